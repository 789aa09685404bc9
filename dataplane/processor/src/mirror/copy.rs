//! Copying what a side lacks, with I/O going on.
//!
//! ```text
//! a region that the side lacks ─> its chunks: read from the side in sync ─> written to the other ─> recent, like any write
//!   every so many regions: flush ─> the stale pages say less
//!   nothing left:          flush ─> told
//! ```
//! A chunk waits until nothing that is being written overlaps it, and what is written meanwhile waits for the chunk.

use core::ops::Range;

use super::start::below;
use super::state::{Mirror, side_at};
use super::table::{Purpose, SlotId};
use super::{MirrorNotice, SideAt};
use crate::BLOCK_BYTES;
use crate::ids::{DeviceIndex, Now};
use crate::marks::{Mark, mark};
use crate::ports::{BlockDevice, BufferPool, Operation, OperationKind, Segment, Side, Transfer};

/// Blocks that are copied at a time (256 KiB).
const CHUNK_BLOCKS: u64 = 64;
/// Regions after which the stale pages are made to say less: what a restart has to copy again.
const REGIONS_PER_MARK: u32 = 64;
/// How long to wait when there is no buffer.
const RETRY_NS: u64 = 1_000_000;

/// How far a device is with getting its side in sync.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Regions copied since the pages were made to say less.
    regions: u32,
    /// A flush of its own is under way.
    is_flushing: bool,
    /// Everything is copied, and the control plane knows.
    pub is_told: bool,
}

/// The region that is being copied. One at a time per processor.
#[derive(Debug)]
pub(super) struct Copying {
    pub device: usize,
    side: Side,
    slice: usize,
    region: usize,
    /// What is left of it, in blocks of the device.
    left: Range<u64>,
    /// Writes to it wait.
    chunk: Range<u64>,
    in_flight: bool,
}

impl Mirror {
    pub(super) fn turn<D: BlockDevice>(
        &mut self,
        inner: &mut D,
        now: Now,
        buffers: &mut impl BufferPool,
    ) -> bool {
        self.now_ns = now.monotonic_ns;
        self.retry_ns = None;
        let mut any = self.return_buffers(buffers);
        any |= self.write_pages(inner, buffers);
        any |= self.copy(inner, buffers);
        self.go_on(inner);
        any
    }

    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        let paused = self.now_ns < self.copy_from_ns && self.has_chunk_to_copy();
        [self.retry_ns, paused.then_some(self.copy_from_ns)]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn has_ready_work(&self) -> bool {
        if !self.completed.is_empty() || self.has_buffers {
            return true;
        }
        if self.retry_ns.is_some() {
            return false;
        }
        let copies = self.now_ns >= self.copy_from_ns && self.has_chunk_to_copy();
        copies
            || (0..self.devices.len()).any(|device| self.is_flush_due(device))
            || (0..self.slices.len()).any(|slice| self.is_page_ready(slice))
    }

    /// Whether a turn could go on with copying, but for the rate.
    fn has_chunk_to_copy(&self) -> bool {
        match &self.copying {
            Some(copying) => {
                !copying.in_flight && !self.table.is_written(copying.device, &self.next_chunk(copying))
            }
            None => (0..self.devices.len()).any(|device| {
                self.devices[device].resyncing().is_some() && self.next_region(device).is_some()
            }),
        }
    }

    /// Whether enough was copied to a device, or all, and is to be flushed.
    fn is_flush_due(&self, number: usize) -> bool {
        let device = &self.devices[number];
        device.resyncing().is_some()
            && !device.pass.is_flushing
            && !device.pass.is_told
            && (device.pass.regions >= REGIONS_PER_MARK || self.is_all_copied(number))
    }

    pub(super) fn set_rate(&mut self, bytes_per_s: u64) {
        self.rate_bytes_per_s = bytes_per_s;
        self.copy_from_ns = self.now_ns;
    }

    pub(super) fn short_of_buffers(&mut self) {
        mark(Mark::MirrorShortOfBuffers);
        self.retry_ns = Some(self.now_ns + RETRY_NS);
    }

    /// Whether these blocks are being copied.
    pub(super) fn is_being_copied(&self, device: usize, blocks: &Range<u64>) -> bool {
        self.copying.as_ref().is_some_and(|copying| {
            copying.device == device && copying.chunk.start < blocks.end && blocks.start < copying.chunk.end
        })
    }

    /// The next region of a device that is to be copied, with the slice that it is in.
    fn next_region(&self, device: usize) -> Option<(usize, usize)> {
        let of_device = (device..self.slices.len()).step_by(self.devices.len());
        of_device.into_iter().find_map(|position| {
            let slice = &self.slices[position];
            let region = slice.to_copy.first_without(&slice.skipped)?;
            Some((position, region))
        })
    }

    fn is_all_copied(&self, device: usize) -> bool {
        let mut of_device = self.slices.iter().skip(device).step_by(self.devices.len());
        of_device.all(|slice| slice.to_copy.is_empty())
    }

    fn next_chunk(&self, copying: &Copying) -> Range<u64> {
        let Range { start, end } = copying.left;
        start..end.min(start + CHUNK_BLOCKS)
    }

    /// Goes on with copying. Gives whether there was anything to do.
    fn copy<D: BlockDevice>(&mut self, inner: &mut D, buffers: &mut impl BufferPool) -> bool {
        let mut any = false;
        for device in 0..self.devices.len() {
            if self.is_flush_due(device) {
                self.devices[device].pass.is_flushing = true;
                self.send_flush(inner, Purpose::CopyFlush(device), device);
                any = true;
            }
        }
        if self.copying.is_none() {
            self.copying = (0..self.devices.len()).find_map(|device| {
                let side = self.devices[device].resyncing()?;
                let (slice, region) = self.next_region(device)?;
                let left = self.slices[slice].cut.blocks(region);
                Some(Copying {
                    device,
                    side,
                    slice,
                    region,
                    left,
                    chunk: 0..0,
                    in_flight: false,
                })
            });
        }
        let Some(copying) = &self.copying else { return any };
        if copying.in_flight || self.now_ns < self.copy_from_ns {
            return any;
        }
        let chunk = self.next_chunk(copying);
        if self.table.is_written(copying.device, &chunk) {
            // No further writes there until it is done.
            let copying = self.copying.as_mut().expect("as above");
            if copying.chunk != chunk {
                mark(Mark::MirrorChunkWaits);
                copying.chunk = chunk;
            }
            return any;
        }
        let length_bytes = (chunk.end - chunk.start) as usize * BLOCK_BYTES;
        let Some(buffer) = buffers.take(length_bytes) else {
            // Nobody waits for what may take long.
            self.copying.as_mut().expect("as above").chunk = 0..0;
            self.look_again = true;
            self.short_of_buffers();
            return any;
        };
        let mut operation = self.own();
        operation.buffers.push(buffer);
        self.read_chunk(inner, chunk, operation);
        true
    }

    fn read_chunk<D: BlockDevice>(
        &mut self,
        inner: &mut D,
        chunk: Range<u64>,
        mut operation: Box<Operation>,
    ) {
        let copying = self.copying.as_mut().expect("something is being copied");
        copying.in_flight = true;
        copying.chunk = chunk.clone();
        let (number, from) = (copying.device, copying.side.other());
        let length_bytes = (chunk.end - chunk.start) * BLOCK_BYTES as u64;
        if let Some(pause_ns) = (length_bytes * 1_000_000_000).checked_div(self.rate_bytes_per_s) {
            self.copy_from_ns = self.now_ns + pause_ns;
        }
        operation.kind = OperationKind::Read;
        operation.shard = self.slices[copying.slice].shard;
        operation.segments.push(Segment {
            buffer: 0,
            offset_bytes: 0,
            length_bytes: length_bytes as u32,
        });
        operation.transfers.push(Transfer {
            device: DeviceIndex(number as u8),
            offset_bytes: chunk.start * BLOCK_BYTES as u64,
            length_bytes,
            first_segment: 0,
            segment_count: 1,
        });
        let id = self.table.take(Purpose::CopyRead, &mut operation);
        operation
            .transfers
            .push(below(&self.table[id].transfers[0], number, from));
        self.send(inner, id, operation);
    }

    /// Whether an operation of the copying is about what is being copied now.
    fn is_copy_of_now(&self, id: SlotId) -> bool {
        let slot = &self.table[id];
        let number = usize::from(slot.transfers[0].device.0);
        let is_of_device = self
            .copying
            .as_ref()
            .is_some_and(|copying| copying.device == number);
        is_of_device && slot.generation >= self.devices[number].changed
    }

    pub(super) fn chunk_read<D: BlockDevice>(
        &mut self,
        inner: &mut D,
        id: SlotId,
        mut operation: Box<Operation>,
    ) {
        if !self.is_copy_of_now(id) {
            return self.own_ended(id, operation);
        }
        let copying = self.copying.as_ref().expect("of now");
        let (number, side) = (copying.device, copying.side);
        if let Err(error) = operation.result {
            mark(Mark::MirrorCannotCopy);
            let (slice, region) = (copying.slice, copying.region);
            let offset_bytes = copying.chunk.start * BLOCK_BYTES as u64;
            let at: SideAt = side_at(number, side);
            self.tell(MirrorNotice::CannotCopy {
                at,
                offset_bytes,
                error,
            });
            self.slices[slice].skipped.set(region);
            self.copying = None;
            self.look_again = true;
            return self.own_ended(id, operation);
        }
        operation.kind = OperationKind::Write;
        operation.transfers.clear();
        operation
            .transfers
            .push(below(&self.table[id].transfers[0], number, side));
        self.table[id].purpose = Purpose::CopyWrite;
        self.send(inner, id, operation);
    }

    pub(super) fn chunk_written(&mut self, id: SlotId, operation: Box<Operation>) {
        let is_of_now = self.is_copy_of_now(id);
        let at = SideAt::of_below(operation.transfers[0].device);
        let number = usize::from(at.device.0);
        let generation = self.table[id].generation;
        let result = operation.result;
        self.own_ended(id, operation);
        self.look_again = true;
        if !is_of_now {
            return;
        }
        if let Err(error) = result {
            self.failed(number, at.side, error, generation);
            return;
        }
        let copying = self.copying.as_mut().expect("of now");
        let copied_blocks = copying.chunk.end - copying.chunk.start;
        self.devices[number].copied_bytes[at.side.index()] += copied_blocks * BLOCK_BYTES as u64;
        copying.left.start = copying.chunk.end;
        copying.chunk = 0..0;
        copying.in_flight = false;
        if copying.left.is_empty() {
            let (slice, region) = (&mut self.slices[copying.slice], copying.region);
            slice.to_copy.unset(region);
            slice.recent[0].set(region);
            self.devices[number].pass.regions += 1;
            self.copying = None;
        }
    }

    pub(super) fn copy_flushed(&mut self, id: SlotId, operation: Box<Operation>, number: usize) {
        let is_of_now = self.table[id].generation >= self.devices[number].changed;
        let is_well = operation.failures.is_empty();
        // A side that failed it is failing from now on, and that ends the pass.
        let _ = self.blame(id, &operation);
        self.end_flush(id, is_well);
        self.own_ended(id, operation);
        if !is_of_now {
            return;
        }
        let is_all_copied = self.is_all_copied(number);
        let device = &mut self.devices[number];
        device.pass.is_flushing = false;
        if !is_well {
            return;
        }
        device.pass.regions = 0;
        if is_all_copied {
            device.pass.is_told = true;
            let side = device.resyncing().expect("nothing has changed");
            mark(Mark::MirrorResynced);
            self.tell(MirrorNotice::Resynced {
                at: side_at(number, side),
            });
        } else {
            mark(Mark::MirrorMarked);
            self.slices_of(number).for_each(|slice| slice.page.is_due = true);
        }
    }
}
