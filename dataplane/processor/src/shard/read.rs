//! Reading: one lookup, one device operation, one CRC per block.

use super::repair::{Judged, Look, Place};
use super::{Outcome, Shard, SlotId, Tag, only_buffer};
use crate::BLOCK_BYTES;
use crate::change_log::ChangeLog;
use crate::ids::{DeviceAddress, Epoch};
use crate::map::Entry;
use crate::marks::{Mark, mark};
use crate::ports::{Buffer, BufferPool, LogTail, Operation, OperationKind, Segment, Transfer};
use crate::request::RequestError;
use crate::stages::Stage;
use stillpoint_ondisk::crc32c;

impl<T: LogTail> Shard<T> {
    /// Looks every block up. A block born after the newest snapshot comes from the change log, any other from where
    /// the snapshot left it; the one map entry says both ([`ChangeLog`]).
    fn look_up(&mut self, id: SlotId) -> Result<(), Outcome> {
        let slot = &mut self.slots[id];
        let viewed = self
            .volumes
            .get(&slot.view.volume)
            .and_then(|volume| volume.viewed(slot.view))
            .ok_or(Outcome::Answer(Err(RequestError::NotFound)))?;
        self.cache
            .lookup_run(
                viewed.family,
                &viewed.root,
                slot.first,
                slot.blocks,
                &mut slot.entries,
            )
            .map_err(Outcome::Map)?;
        slot.max_birth = newest_birth(&slot.entries);
        Ok(())
    }

    pub(super) fn step_cache(&mut self, id: SlotId) -> Outcome {
        match self.look_up(id) {
            Ok(()) => Outcome::Answer(Ok(())),
            Err(outcome) => outcome,
        }
    }

    pub(super) fn step_read(&mut self, id: SlotId) -> Outcome {
        if let Err(outcome) = self.look_up(id) {
            return outcome;
        }
        self.status.reads += 1;
        self.status.read_bytes += u64::from(self.slots[id].blocks) * BLOCK_BYTES as u64;
        let mut operation = self.operation(OperationKind::Read, Tag::Read(id));
        let slot = &mut self.slots[id];
        let mut buffer = slot.buffer.take().expect("a read has a buffer");
        plan_read(&slot.entries, &mut buffer, &mut operation);
        if operation.transfers.is_empty() {
            slot.buffer = Some(buffer);
            self.recycle(operation);
            mark(Mark::ReadHole);
            return Outcome::Answer(Ok(()));
        }
        if operation.transfers.len() > 1 {
            mark(Mark::ReadSeveralRuns);
        }
        operation.buffers.push(buffer);
        self.status.device_reads += operation.transfers.len() as u64;
        self.enter(id, Stage::Device);
        self.issue(operation);
        Outcome::Parked
    }

    pub(super) fn read_done(
        &mut self,
        id: SlotId,
        look: Look,
        operation: &mut Operation,
        buffers: &mut impl BufferPool,
    ) {
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::DataCrcNotChecked) && operation.result.is_ok() {
            self.slots[id].buffer = Some(only_buffer(operation));
            return self.answer(id, Ok(()));
        }
        let entries = core::mem::take(&mut self.slots[id].entries);
        let is_sound = |place: Place, came: &Operation| {
            let entry = &entries[place.offset_bytes as usize / BLOCK_BYTES];
            crc32c(place.bytes(came)) == entry.crc32c
        };
        let judged = self.judge(
            Tag::Read(id),
            look,
            operation,
            buffers,
            || places(&entries),
            is_sound,
        );
        self.slots[id].entries = entries;
        let result = match judged {
            Judged::Again(again) => {
                mark(Mark::ReadWrongCrc);
                self.status.device_reads += again.transfers.len() as u64;
                return self.issue(again);
            }
            Judged::Sound => Ok(()),
            Judged::Unreadable => Err(RequestError::Io),
            Judged::Damaged(address) => {
                mark(Mark::ReadWrongCrc);
                self.corrupt(address);
                Err(RequestError::Corrupt)
            }
        };
        self.slots[id].buffer = Some(only_buffer(operation));
        self.answer(id, result);
    }
}

/// The blocks of a read that lie somewhere, in its only buffer.
fn places(entries: &[Entry]) -> impl Iterator<Item = Place> {
    let blocks = (0u32..).zip(entries);
    blocks
        .filter(|(_, entry)| !entry.address.is_none())
        .map(|(block, entry)| Place {
            address: entry.address,
            buffer: 0,
            offset_bytes: block * BLOCK_BYTES as u32,
        })
}

/// The newest epoch among entries, holes included: a hole made after a cut is a change too.
fn newest_birth(entries: &[Entry]) -> Epoch {
    let newest = entries.iter().map(|entry| entry.birth).max().unwrap_or_default();
    debug_assert!(entries.iter().all(|entry| !ChangeLog::holds(entry.birth, newest)));
    newest
}

/// Zeros for holes, one transfer for each run that is contiguous on a device.
fn plan_read(entries: &[Entry], buffer: &mut Buffer, operation: &mut Operation) {
    let mut block = 0;
    while block < entries.len() {
        let start = entries[block].address;
        let mut end = block + 1;
        if start.is_none() {
            while end < entries.len() && entries[end].address.is_none() {
                end += 1;
            }
            buffer.bytes_mut()[block * BLOCK_BYTES..end * BLOCK_BYTES].fill(0);
        } else {
            while end < entries.len() && entries[end].address == start.plus((end - block) as u64) {
                end += 1;
            }
            push_transfer(
                operation,
                start,
                0,
                block * BLOCK_BYTES,
                (end - block) * BLOCK_BYTES,
            );
        }
        block = end;
    }
}

/// Adds a transfer of one segment.
pub(super) fn push_transfer(
    operation: &mut Operation,
    address: DeviceAddress,
    buffer: u32,
    offset_bytes: usize,
    length_bytes: usize,
) {
    operation.transfers.push(Transfer {
        device: address.device(),
        offset_bytes: address.offset_bytes(),
        length_bytes: length_bytes as u64,
        first_segment: operation.segments.len() as u32,
        segment_count: 1,
    });
    operation.segments.push(Segment {
        buffer,
        offset_bytes: offset_bytes as u32,
        length_bytes: length_bytes as u32,
    });
}
