//! Writing: merge partial blocks, lay everything that arrived together side by side on the device, then
//! make it the volume's in one step per run: map entry and log record.

use super::read::push_transfer;
use super::repair::{Judged, Look, Place};
use super::slots::{Edge, Step};
use super::{Outcome, Shard, SlotId, Tag, give_all};
use crate::ids::{DeviceAddress, ShareBlock};
use crate::map::{Entry, MapError};
use crate::marks::{Mark, mark};
use crate::ports::{BufferPool, DeviceError, LogTail, Operation, OperationKind, Segment, Transfer};
use crate::request::{RequestError, RequestKind};
use crate::space::{DEVICES_ALL, Purpose};
use crate::stages::{Stage, Work};
use crate::{BLOCK_BYTES, PART_BLOCKS_MAX};
use stillpoint_ondisk::crc32c;
use stillpoint_ondisk::record::Record;
use zerocopy::little_endian::U32;

/// Batches in flight at most: more only makes each smaller.
const BATCHES_MAX: usize = 8;
/// Blocks of one batch at most, unless a single request is larger.
const BATCH_BLOCKS_MAX: u32 = PART_BLOCKS_MAX;
/// Requests of one batch at most.
const BATCH_REQUESTS_MAX: usize = 128;
/// errno: the file system under a file ran out of space.
const ENOSPC: i32 = 28;

/// Writes that go to the device as one operation.
#[derive(Debug, Default)]
pub(super) struct Batches {
    members: Vec<Vec<SlotId>>,
    free: Vec<u32>,
}

impl Batches {
    fn take(&mut self) -> Option<u32> {
        if let Some(batch) = self.free.pop() {
            return Some(batch);
        }
        (self.members.len() < BATCHES_MAX).then(|| {
            self.members.push(Vec::with_capacity(BATCH_REQUESTS_MAX));
            (self.members.len() - 1) as u32
        })
    }
}

impl<T: LogTail> Shard<T> {
    /// Reads the blocks of which the request writes only a part, or fills them with zeros.
    pub(super) fn step_merge(&mut self, id: SlotId, buffers: &mut impl BufferPool) -> Outcome {
        let slot = &self.slots[id];
        let Some(viewed) = self
            .volumes
            .get(&slot.view.volume)
            .and_then(|volume| volume.viewed(slot.view))
        else {
            return Outcome::Answer(Err(RequestError::NotFound));
        };
        let mut edges = [None; 2];
        for (edge, block) in edges.iter_mut().zip(slot.partial_blocks()) {
            let Some(block) = block else { continue };
            let place = ShareBlock(slot.first.0 + u64::from(block));
            match self.cache.lookup(viewed.family, &viewed.root, place) {
                Ok(entry) => *edge = Some(Edge { block, entry }),
                Err(error) => return Outcome::Map(error),
            }
        }
        let mut operation = self.operation(OperationKind::Read, Tag::Merge(id));
        for edge in edges
            .iter()
            .flatten()
            .filter(|edge| !edge.entry.address.is_none())
        {
            let Some(buffer) = buffers.take(BLOCK_BYTES) else {
                give_all(&mut operation, buffers);
                self.recycle(operation);
                return Outcome::Buffer;
            };
            let number = operation.buffers.len() as u32;
            operation.buffers.push(buffer);
            push_transfer(&mut operation, edge.entry.address, number, 0, BLOCK_BYTES);
        }
        let slot = &mut self.slots[id];
        slot.edges = edges;
        slot.step = Step::Queue;
        for edge in edges.iter().flatten().filter(|edge| edge.entry.address.is_none()) {
            slot.fill_around(edge.block, None);
        }
        if operation.transfers.is_empty() {
            mark(Mark::WriteMergedZeros);
            self.recycle(operation);
            return Outcome::Again;
        }
        mark(Mark::WriteMerged);
        self.issue(operation);
        Outcome::Parked
    }

    pub(super) fn merge_done(
        &mut self,
        id: SlotId,
        look: Look,
        operation: &mut Operation,
        buffers: &mut impl BufferPool,
    ) {
        let old = self.slots[id].old_blocks();
        let is_sound = |place: Place, operation: &Operation| {
            let edge = old[place.buffer as usize].expect("one buffer for each block");
            crc32c(place.bytes(operation)) == edge.entry.crc32c
        };
        let all = || {
            let places = (0..).zip(old.iter().flatten());
            places.map(|(buffer, edge)| Place {
                address: edge.entry.address,
                buffer,
                offset_bytes: 0,
            })
        };
        let result = match self.judge(Tag::Merge(id), look, operation, buffers, all, is_sound) {
            Judged::Again(again) => return self.issue(again),
            Judged::Sound => Ok(()),
            Judged::Unreadable => Err(RequestError::Io),
            Judged::Damaged(address) => {
                self.corrupt(address);
                Err(RequestError::Corrupt)
            }
        };
        let slot = &mut self.slots[id];
        for (edge, old) in old.iter().flatten().zip(&operation.buffers) {
            slot.fill_around(edge.block, Some(&old.bytes()[..BLOCK_BYTES]));
        }
        give_all(operation, buffers);
        match result {
            Ok(()) => self.ready.push_back(id),
            Err(error) => self.answer(id, Err(error)),
        }
    }

    /// Lays what waits in the write queue side by side.
    pub(super) fn form_batches(&mut self) {
        while !self.write_queue.is_empty() && self.stopped.is_none() {
            let Some(batch) = self.batches.take() else { return };
            self.gather(batch);
            if self.batches.members[batch as usize].is_empty() {
                self.batches.free.push(batch);
                return;
            }
            self.progress = true;
            self.write_batch(batch);
        }
    }

    /// Moves requests from the queue into a batch as long as there is space for them.
    fn gather(&mut self, batch: u32) {
        let mut blocks = 0;
        while let Some(&id) = self.write_queue.front() {
            let wanted = self.slots[id].blocks;
            let members = self.batches.members[batch as usize].len();
            if members > 0 && (blocks + wanted > BATCH_BLOCKS_MAX || members == BATCH_REQUESTS_MAX) {
                return;
            }
            if !self.reserve_for(id) {
                if members == 0 && self.is_out_of_space(Purpose::Data, wanted) {
                    mark(Mark::WriteNoSpace);
                    self.write_queue.pop_front();
                    self.answer(id, Err(RequestError::NoSpace));
                    continue;
                }
                return;
            }
            blocks += wanted;
            self.write_queue.pop_front();
            self.batches.members[batch as usize].push(id);
        }
    }

    fn reserve_for(&mut self, id: SlotId) -> bool {
        let devices = self.devices_for(id);
        let slot = &mut self.slots[id];
        assert!(
            slot.extents.is_empty() && slot.done_blocks == 0,
            "a queued write has no space yet"
        );
        let mut missing = slot.blocks;
        while missing > 0 {
            let found = self.space.reserve_on(missing, Purpose::Data, devices);
            let found = found.or_else(|| self.space.reserve(missing, Purpose::Data));
            let Some(extent) = found else {
                for extent in slot.extents.drain(..) {
                    self.space.cancel(extent);
                }
                return false;
            };
            missing -= extent.blocks;
            slot.extents.push(extent);
        }
        if slot.extents.len() > 1 {
            mark(Mark::WriteSeveralExtents);
        }
        self.no_space_since = None;
        if devices != DEVICES_ALL {
            self.note_places(id, devices);
        }
        true
    }

    fn write_batch(&mut self, batch: u32) {
        let mut operation = self.operation(OperationKind::Write, Tag::WriteBatch(batch));
        for &id in &self.batches.members[batch as usize] {
            let slot = &mut self.slots[id];
            let number = operation.buffers.len() as u32;
            let buffer = slot.buffer.take().expect("a write has a buffer");
            let data = &buffer.bytes()[..slot.blocks as usize * BLOCK_BYTES];
            slot.crcs.clear();
            slot.crcs.extend(
                data.chunks_exact(BLOCK_BYTES)
                    .map(|block| U32::new(crc32c(block))),
            );
            let mut offset = 0;
            for extent in &slot.extents {
                let length = extent.blocks as usize * BLOCK_BYTES;
                push_side_by_side(&mut operation, extent.address, number, offset, length);
                offset += length;
            }
            operation.buffers.push(buffer);
            slot.step = Step::Apply;
            let since_ns = core::mem::replace(&mut slot.since_ns, self.now.monotonic_ns);
            self.stages
                .record(slot.stage, Work::Write, since_ns, self.now.monotonic_ns);
            slot.stage = Stage::Device;
        }
        if operation.buffers.len() > 1 {
            mark(Mark::WriteTogether);
        }
        self.status.device_writes += operation.transfers.len() as u64;
        self.issue(operation);
    }

    pub(super) fn batch_done(&mut self, batch: u32, operation: &mut Operation) {
        let mut members = core::mem::take(&mut self.batches.members[batch as usize]);
        for (id, buffer) in members.drain(..).zip(operation.buffers.drain(..)) {
            self.slots[id].buffer = Some(buffer);
            match operation.result {
                Ok(()) => {
                    self.enter(id, Stage::Log);
                    self.ready.push_back(id);
                }
                Err(error) => {
                    self.drop_extents(id);
                    let full = error == DeviceError::Os(ENOSPC);
                    self.answer(
                        id,
                        Err(if full {
                            RequestError::NoSpace
                        } else {
                            RequestError::Io
                        }),
                    );
                }
            }
        }
        self.batches.members[batch as usize] = members;
        self.batches.free.push(batch);
    }

    /// Makes the data on the device the volume's. Retried from where it stopped after a wait.
    pub(super) fn step_apply(&mut self, id: SlotId) -> Outcome {
        loop {
            let slot = &self.slots[id];
            let view = slot.view;
            if self.stopped.is_some() {
                self.drop_extents(id);
                return Outcome::Answer(Err(RequestError::ShardStopped));
            }
            let Some(volume) = self.volumes.get(&view.volume).filter(|volume| !volume.deleting) else {
                self.drop_extents(id);
                mark(Mark::WriteVolumeGone);
                return Outcome::Answer(Err(RequestError::NotFound));
            };
            if slot.first.0 + u64::from(slot.blocks) > volume.share_blocks {
                self.drop_extents(id);
                mark(Mark::WriteBeyondShare);
                return Outcome::Answer(Err(RequestError::OutOfRange));
            }
            if let Err(outcome) = self.grant_change(id) {
                return outcome;
            }
            match self.edges_changed(id) {
                Err(error) => return Outcome::Map(error),
                Ok(true) => {
                    // Another write of the same block came between: merge with what is there now.
                    mark(Mark::WriteMergedAgain);
                    self.drop_extents(id);
                    self.slots[id].done_blocks = 0;
                    self.slots[id].step = Step::Merge;
                    self.enter(id, Stage::Map);
                    return Outcome::Again;
                }
                Ok(false) => {}
            }
            if let Err(outcome) = self.apply_extent(id) {
                return outcome;
            }
            let slot = &self.slots[id];
            if slot.extents.is_empty() {
                self.settle_grant(id);
                let slot = &self.slots[id];
                self.status.writes += 1;
                self.status.written_bytes += u64::from(slot.length_bytes);
                let RequestKind::Write { fua } = slot.kind else {
                    unreachable!("only writes are applied")
                };
                return self.changed(id, fua);
            }
        }
    }

    /// Applies the first extent that has not been applied.
    fn apply_extent(&mut self, id: SlotId) -> Result<(), Outcome> {
        let slot = &mut self.slots[id];
        let extent = slot.extents[0];
        let start = slot.done_blocks as usize;
        let crcs = &slot.crcs[start..start + extent.blocks as usize];
        let volume = self.volumes.get_mut(&slot.view.volume).expect("looked up before");
        let record = Record::Write {
            volume: volume.id.0,
            birth: volume.epoch.0,
            first: slot.first.0 + start as u64,
            address: extent.address.0,
            crcs,
        };
        if !self.log.has_room(record.encoded_bytes()) {
            return Err(Outcome::LogRoom);
        }
        // Even a try that ends in an error may have moved the root.
        volume.dirty = true;
        let mut tree = volume.tree(&mut self.space, Purpose::Map);
        #[cfg(feature = "planted-bugs")]
        if self.options.planted_bug == Some(crate::PlantedBug::EpochOffByOne) {
            let older = |epoch: crate::ids::Epoch| crate::ids::Epoch(epoch.0.saturating_sub(1));
            tree.free.newest = tree.free.newest.map(older);
        }
        let first = ShareBlock(slot.first.0 + start as u64);
        let changed_blocks = tree.stats.changed_blocks;
        self.cache
            .set(&mut tree, first, extent.address, crcs)
            .map_err(Outcome::Map)?;
        let changed_blocks = tree.stats.changed_blocks - changed_blocks;
        self.change_logs.changed(volume, changed_blocks);
        self.space.commit(extent);
        self.log.append(&record);
        slot.max_birth = Self::note_change(volume, self.now);
        slot.done_blocks += extent.blocks;
        slot.extents.remove(0);
        Ok(())
    }

    /// Whether a partial block that is still to be applied is no longer what was merged.
    fn edges_changed(&mut self, id: SlotId) -> Result<bool, MapError> {
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::MergeNotRepeated) {
            return Ok(false);
        }
        let slot = &self.slots[id];
        let Some(viewed) = self
            .volumes
            .get(&slot.view.volume)
            .and_then(|volume| volume.viewed(slot.view))
        else {
            return Ok(false);
        };
        for edge in slot
            .edges
            .iter()
            .flatten()
            .filter(|edge| edge.block >= slot.done_blocks)
        {
            let place = ShareBlock(slot.first.0 + u64::from(edge.block));
            let current: Entry = self.cache.lookup(viewed.family, &viewed.root, place)?;
            if current != edge.entry {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives back the space of a request that has not been applied.
    pub(super) fn drop_extents(&mut self, id: SlotId) {
        for extent in self.slots[id].extents.drain(..) {
            self.space.cancel(extent);
        }
    }
}

impl super::Slot {
    /// The blocks of which a write covers only a part: the first, the last, both, or none.
    fn partial_blocks(&self) -> [Option<u32>; 2] {
        let end = (self.skip_bytes + self.length_bytes) as usize;
        let last = self.blocks - 1;
        let tail_partial = end != self.blocks as usize * BLOCK_BYTES;
        let head = (self.skip_bytes != 0 || (last == 0 && tail_partial)).then_some(0);
        [head, (tail_partial && last != 0).then_some(last)]
    }

    /// The partial blocks that are merged with what is on the device, in the order of the buffers of that read.
    fn old_blocks(&self) -> [Option<Edge>; 2] {
        let mut mapped = self.edges.into_iter().flatten();
        let mut next = || mapped.find(|edge| !edge.entry.address.is_none());
        [next(), next()]
    }

    /// Fills what the request does not write of one of its blocks, from the old block or with zeros.
    fn fill_around(&mut self, block: u32, old: Option<&[u8]>) {
        let start = block as usize * BLOCK_BYTES;
        let data_start = (self.skip_bytes as usize).clamp(start, start + BLOCK_BYTES);
        let data_end = ((self.skip_bytes + self.length_bytes) as usize).clamp(start, start + BLOCK_BYTES);
        let bytes = self.buffer.as_mut().expect("a write has a buffer").bytes_mut();
        for (from, to) in [(start, data_start), (data_end, start + BLOCK_BYTES)] {
            match old {
                Some(old) => bytes[from..to].copy_from_slice(&old[from - start..to - start]),
                None => bytes[from..to].fill(0),
            }
        }
    }
}

/// Adds a piece to the operation, to the last transfer if it goes on where that one ends.
fn push_side_by_side(
    operation: &mut Operation,
    address: DeviceAddress,
    buffer: u32,
    offset: usize,
    length: usize,
) {
    let segment = Segment {
        buffer,
        offset_bytes: offset as u32,
        length_bytes: length as u32,
    };
    if let Some(last) = operation.transfers.last_mut()
        && last.device == address.device()
        && last.offset_bytes + last.length_bytes == address.offset_bytes()
    {
        last.length_bytes += length as u64;
        last.segment_count += 1;
    } else {
        operation.transfers.push(Transfer {
            device: address.device(),
            offset_bytes: address.offset_bytes(),
            length_bytes: length as u64,
            first_segment: operation.segments.len() as u32,
            segment_count: 1,
        });
    }
    operation.segments.push(segment);
}
