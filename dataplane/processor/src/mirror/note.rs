//! Stale pages: what one side says that the other lacks.
//!
//! A page is written in place. What it says beyond the page before it counts only when it is flushed, since a write to such a
//! region waits for it: were the write to survive a power cut, and the page not, the region would not be copied. What it
//! says less does not count from the moment it is written on.

use core::ops::Range;

use super::regions::Regions;
use super::start::empty_transfer;
use super::state::{Mirror, Slice, side_at};
use super::table::{Purpose, SlotId, blocks_of};
use crate::BLOCK_BYTES;
use crate::ids::DeviceIndex;
use crate::marks::{Mark, mark};
use crate::ports::{
    BlockDevice, Buffer, BufferPool, DeviceError, Operation, OperationKind, Segment, Transfer,
};
use stillpoint_ondisk::page::{self, PAGE_BYTES, PageHeader, PageKind};
use stillpoint_ondisk::stale::{self, StalePage};
use zerocopy::FromBytes;

/// Regions that are noted together with one that is written to: what is written next lies there, as a rule.
const AHEAD: usize = 8;

/// The stale page of one slice.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// It has to be written.
    pub is_due: bool,
    /// It is being written or flushed.
    pub is_under_way: bool,
    /// One of this episode may be on the device.
    pub is_there: bool,
    /// What the one under way says.
    pub says: Regions,
    /// Why it could not be written: told to those that wait for it.
    pub failed: Option<DeviceError>,
}

impl Mirror {
    /// Whether these blocks of a slice may be written; if they may not, a page is due.
    ///
    /// # Errors
    /// The page cannot be written.
    pub(super) fn is_noted(&mut self, slice: usize, blocks: &Range<u64>) -> Result<bool, DeviceError> {
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::StaleRegionNotNoted) {
            return Ok(true);
        }
        let slice = &mut self.slices[slice];
        if slice.noted.has_all(slice.cut.regions(blocks)) {
            return Ok(true);
        }
        if let Some(error) = slice.page.failed {
            return Err(error);
        }
        slice.page.is_due = true;
        Ok(false)
    }

    pub(super) fn forget_failed_pages(&mut self) {
        for slice in &mut self.slices {
            slice.page.failed = None;
        }
    }

    /// Whether this slice's page can be written, and has to.
    pub(super) fn is_page_ready(&self, slice: usize) -> bool {
        let slice = &self.slices[slice];
        slice.page.is_due && !slice.page.is_under_way && self.devices[slice.device].behind().is_some()
    }

    /// Gives back the buffers of what has ended. One for a page is kept: writes wait for pages, and what waits may hold all others.
    pub(super) fn return_buffers(&mut self, buffers: &mut impl BufferPool) -> bool {
        if self.reserve_bytes == 0 {
            self.reserve = buffers.take(PAGE_BYTES);
            self.reserve_bytes = self.reserve.as_ref().map_or(0, Buffer::capacity);
        }
        if !core::mem::take(&mut self.has_buffers) {
            return false;
        }
        for buffer in self
            .spare
            .iter_mut()
            .flat_map(|operation| operation.buffers.drain(..))
        {
            if self.reserve.is_none() && buffer.capacity() == self.reserve_bytes {
                self.reserve = Some(buffer);
            } else {
                buffers.give(buffer);
            }
        }
        true
    }

    /// Gives back all buffers, those kept too.
    pub(super) fn give_back(&mut self, buffers: &mut impl BufferPool) {
        let spare = self
            .spare
            .iter_mut()
            .flat_map(|operation| operation.buffers.drain(..));
        spare
            .chain(self.reserve.take())
            .for_each(|buffer| buffers.give(buffer));
        (self.reserve_bytes, self.has_buffers) = (0, false);
    }

    /// Starts writing the pages that are due. Gives whether there was any.
    pub(super) fn write_pages<D: BlockDevice>(
        &mut self,
        inner: &mut D,
        buffers: &mut impl BufferPool,
    ) -> bool {
        let mut any = false;
        for slice in 0..self.slices.len() {
            if !self.is_page_ready(slice) {
                continue;
            }
            let Some(buffer) = buffers.take(PAGE_BYTES).or_else(|| self.reserve.take()) else {
                self.short_of_buffers();
                return any;
            };
            let mut operation = self.own();
            operation.buffers.push(buffer);
            self.write_page(inner, slice, operation);
            any = true;
        }
        any
    }

    fn write_page<D: BlockDevice>(&mut self, inner: &mut D, position: usize, mut operation: Box<Operation>) {
        self.gather(position);
        let slice = &mut self.slices[position];
        let device = &self.devices[slice.device];
        let behind = device.behind().expect("a page is about a side that is behind");
        slice.page.is_due = false;
        slice.page.is_under_way = true;
        let bytes = &mut operation.buffers[0].bytes_mut()[..PAGE_BYTES];
        bytes.fill(0);
        let page = StalePage::mut_from_bytes(bytes).expect("a whole page");
        page.header = PageHeader::new(PageKind::Stale, self.pool);
        page.episode = device.episode.into();
        page.region_blocks = stale::region_blocks(slice.cut.slice_blocks()).into();
        page.shard = slice.shard.0.into();
        page.device = (slice.device as u16).into();
        for (word, says) in page.words.iter_mut().zip(slice.page.says.words()) {
            *word = (*says).into();
        }
        page::seal(bytes);
        let device = DeviceIndex(slice.device as u8);
        operation.kind = OperationKind::Write;
        operation.shard = slice.shard;
        operation.segments.push(Segment {
            buffer: 0,
            offset_bytes: 0,
            length_bytes: PAGE_BYTES as u32,
        });
        let block = self.stale_blocks[position / self.devices.len()];
        let id = self.table.take(Purpose::Page(position), &mut operation);
        operation.transfers.push(Transfer {
            device: side_at(usize::from(device.0), behind.other()).below(),
            offset_bytes: block * BLOCK_BYTES as u64,
            length_bytes: PAGE_BYTES as u64,
            first_segment: 0,
            segment_count: 1,
        });
        self.send(inner, id, operation);
    }

    /// What the page of a slice has to say now. What it no longer says does not count from here on.
    fn gather(&mut self, position: usize) {
        let Self {
            slices,
            table,
            waiting,
            ..
        } = self;
        let Slice {
            cut,
            shard,
            device,
            recent,
            to_copy,
            noted,
            page,
            ..
        } = &mut slices[position];
        let count = cut.count();
        page.says.clear();
        page.says.make_room(count);
        page.says.add(to_copy);
        recent.iter().for_each(|recent| page.says.add(recent));
        let is_here = |transfer: &&Transfer| usize::from(transfer.device.0) == *device;
        for slot in table.writing().filter(|slot| slot.shard == *shard) {
            for transfer in slot.transfers.iter().filter(is_here) {
                page.says.set_all(cut.regions(&blocks_of(transfer)));
            }
        }
        for &id in waiting.iter() {
            let slot = &table[id];
            if slot.shard != *shard || slot.kind != OperationKind::Write {
                continue;
            }
            for transfer in slot.transfers.iter().filter(is_here) {
                let regions = cut.regions(&blocks_of(transfer));
                let is_new = !noted.has_all(regions.clone());
                let end = if is_new {
                    (regions.end + AHEAD).min(count)
                } else {
                    regions.end
                };
                page.says.set_all(regions.start..end);
            }
        }
        noted.keep(&page.says);
    }

    pub(super) fn page_written<D: BlockDevice>(
        &mut self,
        inner: &mut D,
        id: SlotId,
        operation: Box<Operation>,
        position: usize,
    ) {
        if !self.is_page_of_now(id, &operation, position) {
            return self.own_ended(id, operation);
        }
        self.own_ended(id, operation);
        let slice = &mut self.slices[position];
        let was_there = core::mem::replace(&mut slice.page.is_there, true);
        if slice.page.says.is_within(&slice.noted) || !was_there {
            mark(Mark::MirrorPageWritten);
            return self.page_counts(position);
        }
        mark(Mark::MirrorPageFlushed);
        let number = slice.device;
        let behind = self.devices[number].behind().expect("the page is of now");
        let mut flush = self.own();
        flush.kind = OperationKind::Flush;
        flush.shard = self.any_shard();
        let id = self.table.take(Purpose::PageFlush(position), &mut flush);
        flush
            .transfers
            .push(empty_transfer(side_at(number, behind.other()).below()));
        self.send(inner, id, flush);
    }

    pub(super) fn page_flushed(&mut self, id: SlotId, operation: Box<Operation>, position: usize) {
        let is_of_now = self.is_page_of_now(id, &operation, position);
        self.own_ended(id, operation);
        if is_of_now {
            self.page_counts(position);
        }
    }

    /// Whether a page that was written or flushed says something of the sides as they are; if not, nothing is under way.
    fn is_page_of_now(&mut self, id: SlotId, operation: &Operation, position: usize) -> bool {
        let slice = &mut self.slices[position];
        let is_old = self.table[id].generation < self.devices[slice.device].changed;
        if !is_old && operation.result.is_ok() {
            return true;
        }
        slice.page.is_under_way = false;
        slice.page.is_there = true;
        if is_old {
            slice.page.is_due = true;
        } else {
            mark(Mark::MirrorPageFailed);
            slice.page.failed = operation.result.err();
        }
        self.look_again = true;
        false
    }

    fn page_counts(&mut self, position: usize) {
        let slice = &mut self.slices[position];
        slice.page.is_under_way = false;
        slice.noted.add(&slice.page.says);
        self.look_again = true;
    }
}
