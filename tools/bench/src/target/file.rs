//! A file or block device, through io_uring and past the page cache where that is possible.

use std::fmt;
use std::sync::Arc;

use stillpoint_hw::buffers::{Arenas, ProcessorBuffers};
use stillpoint_hw::device::{Devices, PoolFiles};
use stillpoint_hw::ring::{Completion, Ring, RingOptions};
use stillpoint_processor::ids::{DeviceIndex, ShardIndex};
use stillpoint_processor::ports::{BlockDevice, BufferPool, Operation, OperationKind, Segment, Transfer};

use super::{Target, TargetError};
use crate::job::{Job, WriteMode};
use crate::schedule::{Kind, Request};

/// Entries a ring takes at a time; more operations wait in the queue before it.
pub(crate) const IN_FLIGHT_MAX: usize = stillpoint_hw::device::OPERATIONS_MAX;

/// One thread's ring over the file.
pub struct FileTarget {
    ring: Ring,
    devices: Devices,
    buffers: ProcessorBuffers,
    completions: Vec<Completion>,
    ended: Vec<Box<Operation>>,
    spare: Vec<Box<Operation>>,
    write: OperationKind,
    durable_writes: bool,
}

impl fmt::Debug for FileTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileTarget").finish_non_exhaustive()
    }
}

impl FileTarget {
    /// For the requests of a job, of which at most [`stillpoint_hw::device::OPERATIONS_MAX`] are in flight.
    ///
    /// # Errors
    /// No io_uring, or no memory.
    pub fn new(files: &Arc<PoolFiles>, job: &Job) -> Result<Self, TargetError> {
        let (in_flight, length_bytes) = (job.in_flight_max(), job.length_bytes_max());
        let other = |what: String| TargetError::Other(what);
        let mut ring = Ring::new(RingOptions::default()).map_err(|error| other(error.to_string()))?;
        // Buffers come in powers of four; some chunks are cut and not full.
        let piece_bytes = 4096
            << (2
                * (0..5)
                    .find(|class| 4096 << (2 * class) >= length_bytes)
                    .unwrap_or(4));
        let bytes = (in_flight + 1) * piece_bytes + (4 << 20);
        let arenas = Arenas::map(1, bytes).map_err(|error| other(error.to_string()))?;
        // Works without, only slower.
        let _ = ring.register_arenas(&arenas);
        let devices =
            Devices::new(Arc::clone(files), Arc::clone(&arenas), 0, &mut ring).discards_are_requests();
        Ok(Self {
            ring,
            devices,
            buffers: arenas.pool(0),
            completions: Vec::with_capacity(IN_FLIGHT_MAX),
            ended: Vec::with_capacity(IN_FLIGHT_MAX),
            spare: Vec::with_capacity(IN_FLIGHT_MAX),
            write: match job.write_mode {
                WriteMode::Data => OperationKind::Write,
                WriteMode::Zeroes => OperationKind::WriteZeroes,
            },
            durable_writes: job.durable_writes,
        })
    }
}

impl Target for FileTarget {
    fn start(&mut self, number: u32, request: Request, payload: &[u8]) -> Result<(), TargetError> {
        let mut operation = self.spare.pop().unwrap_or_else(Operation::new);
        operation.shard = ShardIndex(0);
        operation.tag = u64::from(number);
        operation.kind = match request.kind {
            Kind::Read => OperationKind::Read,
            Kind::Write => self.write,
            Kind::Discard => OperationKind::Discard,
            Kind::Flush => OperationKind::Flush,
        };
        operation.durable = self.durable_writes && request.kind == Kind::Write;
        let has_data = matches!(operation.kind, OperationKind::Read | OperationKind::Write);
        operation.transfers.push(Transfer {
            device: DeviceIndex(0),
            offset_bytes: request.offset_bytes,
            length_bytes: u64::from(request.length_bytes),
            first_segment: 0,
            segment_count: u32::from(has_data),
        });
        if has_data {
            let length_bytes = request.length_bytes as usize;
            let buffer = self.buffers.take(length_bytes);
            let mut buffer =
                buffer.ok_or_else(|| TargetError::Other("the generator's buffers are used up".into()))?;
            if operation.kind == OperationKind::Write {
                buffer.bytes_mut()[..length_bytes].copy_from_slice(payload);
            }
            operation.segments.push(Segment {
                buffer: 0,
                offset_bytes: 0,
                length_bytes: request.length_bytes,
            });
            operation.buffers.push(buffer);
        }
        let full = |_| TargetError::Other("more requests than the ring takes".into());
        self.devices.submit(operation).map_err(full)?;
        self.devices.start(&mut self.ring);
        Ok(())
    }

    fn poll(&mut self, mut ended: impl FnMut(u32, Result<(), String>, &[u8])) -> Result<(), TargetError> {
        let failed = |error| TargetError::Other(format!("io_uring: {error}"));
        self.ring.submit().map_err(failed)?;
        self.ring.reap(&mut self.completions);
        for completion in self.completions.drain(..) {
            self.devices.complete(completion);
        }
        self.devices.start(&mut self.ring);
        self.devices.poll(&mut self.ended);
        for mut operation in self.ended.drain(..) {
            let result = operation.result.map_err(|error| error.to_string());
            let buffer = operation.buffers.pop();
            let data = match &buffer {
                Some(buffer) => &buffer.bytes()[..operation.segments[0].length_bytes as usize],
                None => &[],
            };
            ended(operation.tag as u32, result, data);
            if let Some(buffer) = buffer {
                self.buffers.give(buffer);
            }
            operation.clear();
            self.spare.push(operation);
        }
        Ok(())
    }

    fn wait(&mut self, timeout_ns: u64) -> Result<(), TargetError> {
        self.devices.start(&mut self.ring);
        if self.ring.has_completions() || !self.devices.may_sleep(&mut self.ring) {
            return Ok(());
        }
        let failed = |error| TargetError::Other(format!("io_uring: {error}"));
        self.ring.wait(Some(timeout_ns)).map_err(failed)
    }
}
