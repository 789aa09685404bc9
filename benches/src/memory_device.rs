//! A pool in memory, to measure a shard without a device: a transfer is a copy, and completes at once.

use std::collections::VecDeque;

use stillpoint_processor::ids::DeviceIndex;
use stillpoint_processor::ports::{
    BlockDevice, Buffer, BufferPool, DeviceError, Full, OpenDevice, Operation, OperationKind, Transferred,
};

/// One device in memory, which counts what it is asked to do.
#[derive(Debug)]
pub struct MemoryDevice {
    bytes: Vec<u8>,
    done: VecDeque<Box<Operation>>,
    /// Operations that were submitted.
    pub operations: u64,
    /// Transfers of these operations.
    pub transfers: u64,
}

impl MemoryDevice {
    /// A device of arbitrary content.
    #[must_use]
    pub fn new(length_bytes: usize) -> Self {
        Self {
            // Not zeros: memory that was never touched is not there yet.
            bytes: vec![0xA5; length_bytes],
            done: VecDeque::with_capacity(256),
            operations: 0,
            transfers: 0,
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn submit(&mut self, mut operation: Box<Operation>) -> Result<(), Full> {
        let whole = &mut *operation;
        for transfer in &whole.transfers {
            let mut at = transfer.offset_bytes as usize;
            let first = transfer.first_segment as usize;
            for segment in &whole.segments[first..first + transfer.segment_count as usize] {
                let (from, length) = (segment.offset_bytes as usize, segment.length_bytes as usize);
                let memory = &mut whole.buffers[segment.buffer as usize].bytes_mut()[from..from + length];
                match whole.kind {
                    OperationKind::Read => memory.copy_from_slice(&self.bytes[at..at + length]),
                    OperationKind::Write => self.bytes[at..at + length].copy_from_slice(memory),
                    OperationKind::Flush | OperationKind::Discard => {}
                    OperationKind::WriteZeroes => unreachable!("shards ask for no zeros"),
                }
                at += length;
            }
        }
        self.operations += 1;
        self.transfers += whole.transfers.len() as u64;
        self.done.push_back(operation);
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        completed.extend(self.done.drain(..));
    }
}

impl OpenDevice for MemoryDevice {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        for read in reads {
            let at = read.offset_bytes as usize;
            read.bytes.copy_from_slice(&self.bytes[at..at + read.bytes.len()]);
        }
    }

    fn write(&mut self, _device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.bytes[offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self, _device: DeviceIndex) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Buffers by size class (powers of two from 4 KiB), used again and again.
#[derive(Debug, Default)]
pub struct RecycledBuffers {
    spare: [Vec<Buffer>; 16],
}

fn class(length_bytes: usize) -> usize {
    length_bytes.div_ceil(4096).next_power_of_two().trailing_zeros() as usize
}

impl BufferPool for RecycledBuffers {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        let class = class(length_bytes);
        Some(
            self.spare[class]
                .pop()
                .unwrap_or_else(|| Buffer::owned(4096 << class)),
        )
    }

    fn give(&mut self, buffer: Buffer) {
        self.spare[class(buffer.capacity())].push(buffer);
    }
}
