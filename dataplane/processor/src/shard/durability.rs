//! When an acknowledgement may leave: the log write, the device flush, and who waits for which.
//!
//! All waiting flushes of a shard share one log write and one device flush (group commit). The device flush covers
//! the data too: data is complete on the device before its record is appended.
//!
//! Where devices make single writes durable, the flush is spared if there is nothing for it to do but the log write: no data was written
//! since the last flush, and everything before is durable ([`Shard::is_barrier_needless`]). So it is with snapshots, the catalog and
//! discards of a volume that is not written to. Data is never written durably: that and a durable log write behind it may take longer than
//! one flush of both.

use crate::marks::{Mark, mark};
use std::collections::VecDeque;

use super::{Outcome, Shard, SlotId, Tag, give_all, only_buffer};
use crate::BLOCK_BYTES;
use crate::command::{EventKind, Ticket};
use crate::ids::DeviceIndex;
use crate::ports::{BufferPool, DeviceError, LogTail, Operation, OperationKind, Segment, Transfer};
use crate::request::{RequestError, RequestKind};

/// Records that may be neither durable nor asked to be: bounds what recovery has to verify after a power cut.
const UNFLUSHED_RECORDS_MAX: u64 = 16_384;
/// Bytes of the same on devices with two sides, where recovery reads them after a kill too.
pub(super) const UNFLUSHED_BYTES_MAX: u64 = 128 << 20;
/// Log pages that one durable write has at most: beyond that one flush costs less than making each of them durable.
const DURABLE_LOG_PAGES_MAX: usize = 8;
/// So long after the last flush the log says on the device what that flush made durable, if nothing else was logged.
const MARK_DELAY_NS: u64 = 20_000_000;

#[derive(Debug)]
enum Waiter {
    Slot(SlotId),
    Command(Ticket, EventKind),
}

/// Who waits for what to reach the device, and which devices hold something that was not flushed.
#[derive(Debug, Default)]
pub(super) struct Durability {
    /// In the order of their LSN: every record below it has to be durable.
    durable: VecDeque<(u64, Waiter)>,
    /// The same for "written" (shards without a log tail).
    written: VecDeque<(u64, SlotId)>,
    /// Someone needs room in the log, or a page boundary.
    log_wanted: bool,
    /// A device flush is in flight; this is what it makes durable.
    flushing_lsn: Option<u64>,
    /// Bit per device: written since the last host flush began.
    dirty_for_flush: u64,
    /// Written since then.
    unflushed_bytes: u64,
    /// Bit per device: written since the last checkpoint flush began.
    dirty_for_checkpoint: u64,
    /// When the log is to say what is durable.
    mark_due_ns: Option<u64>,
}

impl Durability {
    /// Notes which devices a completed write touched.
    pub(super) fn wrote(&mut self, operation: &Operation) {
        if operation.durable {
            return;
        }
        for transfer in &operation.transfers {
            self.dirty_for_flush |= 1 << transfer.device.0;
            self.dirty_for_checkpoint |= 1 << transfer.device.0;
            self.unflushed_bytes += transfer.length_bytes;
        }
    }

    /// Bytes written since the last host flush began.
    #[cfg(test)]
    pub(super) fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes
    }

    pub(super) fn is_idle(&self) -> bool {
        self.durable.is_empty() && self.written.is_empty() && self.flushing_lsn.is_none()
    }

    /// The monotonic time at which something has to be done although nothing happens.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.mark_due_ns
    }

    /// Devices that a checkpoint has to flush; they count as flushed from here on.
    pub(super) fn take_dirty_for_checkpoint(&mut self) -> u64 {
        core::mem::take(&mut self.dirty_for_checkpoint)
    }
}

impl<T: LogTail> Shard<T> {
    /// What becomes of a request whose change is in the map and in the log.
    pub(super) fn changed(&mut self, id: SlotId, fua: bool) -> Outcome {
        let lsn = self.log.next_lsn();
        #[cfg(feature = "planted-bugs")]
        let fua = fua && !self.planted(crate::PlantedBug::FuaForgotten);
        if fua {
            mark(Mark::FuaWaits);
            self.durability.durable.push_back((lsn, Waiter::Slot(id)));
            Outcome::Parked
        } else if self.log.has_tail() {
            Outcome::Answer(Ok(()))
        } else {
            mark(Mark::NoTailWaits);
            self.durability.written.push_back((lsn, id));
            Outcome::Parked
        }
    }

    pub(super) fn step_flush(&mut self, id: SlotId) -> Outcome {
        self.status.flushes += 1;
        let lsn = self.log.next_lsn();
        if self.stopped.is_some() {
            return Outcome::Answer(Err(RequestError::ShardStopped));
        }
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::FlushAnsweredBeforeLog) {
            self.want_log_room();
            return Outcome::Answer(Ok(()));
        }
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::FlushSkipsOneShard)
            && self.layout.shard_count > 1
            && self.shard.0 + 1 == self.layout.shard_count
        {
            return Outcome::Answer(Ok(()));
        }
        if lsn <= self.log.durable_lsn() {
            mark(Mark::FlushNothing);
            return Outcome::Answer(Ok(()));
        }
        self.durability.durable.push_back((lsn, Waiter::Slot(id)));
        Outcome::Parked
    }

    /// Whether all that the next log record rests on is durable already: a durable write of its page makes the record durable. False where
    /// devices do not do such writes.
    pub(super) fn is_barrier_needless(&self) -> bool {
        let is_clean = self.durability.dirty_for_flush == 0;
        #[cfg(feature = "planted-bugs")]
        let is_clean = is_clean || self.planted(crate::PlantedBug::BarrierForgotten);
        self.durable_writes
            && is_clean
            && self.durability.flushing_lsn.is_none()
            && self.log.written_lsn() == self.log.durable_lsn()
    }

    /// The event leaves when everything logged so far is durable.
    pub(super) fn event_when_durable(&mut self, ticket: Ticket, kind: EventKind) {
        let lsn = self.log.next_lsn();
        self.durability
            .durable
            .push_back((lsn, Waiter::Command(ticket, kind)));
    }

    pub(super) fn want_log_room(&mut self) {
        self.durability.log_wanted = true;
    }

    /// Starts a log write or a device flush, whichever is due.
    pub(super) fn drive_log(&mut self, buffers: &mut impl BufferPool) {
        if self.stopped.is_some() {
            return;
        }
        self.mark_what_is_durable();
        let waiters = &self.durability;
        let has_too_much = self.layout.mirrored
            && waiters.unflushed_bytes > UNFLUSHED_BYTES_MAX
            && waiters.flushing_lsn.is_none();
        let asked = waiters
            .durable
            .back()
            .is_some_and(|(lsn, _)| *lsn > self.log.written_lsn())
            || !waiters.written.is_empty()
            || waiters.log_wanted
            || has_too_much
            || self.log.is_eager()
            || self.checkpoint_is_due();
        if asked && self.log.has_pending() && !self.log.is_writing() {
            if self.log.is_eager() {
                mark(Mark::LogEager);
            }
            self.write_log(buffers);
        }
        let written = self.log.written_lsn();
        let flush_asked = self
            .durability
            .durable
            .front()
            .is_some_and(|(lsn, _)| *lsn <= written)
            || written - self.log.durable_lsn() > UNFLUSHED_RECORDS_MAX
            || has_too_much;
        if flush_asked && written > self.log.durable_lsn() && self.durability.flushing_lsn.is_none() {
            if self.durability.durable.len() > 1 {
                mark(Mark::FlushShared);
            }
            self.durability.flushing_lsn = Some(written);
            let devices = core::mem::take(&mut self.durability.dirty_for_flush);
            self.durability.unflushed_bytes = 0;
            self.issue_flush(Tag::HostFlush, devices);
        }
    }

    /// More is durable, or the log may say more of it: if no page says so by itself, one is written for it.
    pub(super) fn mark_soon(&mut self) {
        if self.log.needs_mark() {
            self.durability.mark_due_ns = Some(self.now.monotonic_ns + MARK_DELAY_NS);
        }
    }

    /// Without this, damage to the last page that a flush made durable could not be told from a page that a power cut
    /// tore before it was.
    fn mark_what_is_durable(&mut self) {
        let now_ns = self.now.monotonic_ns;
        if self.durability.mark_due_ns.is_none_or(|due_ns| due_ns > now_ns) {
            return;
        }
        self.durability.mark_due_ns = None;
        if !self.log.needs_mark() {
            return;
        }
        if self.log.is_writing() {
            self.durability.mark_due_ns = Some(now_ns + MARK_DELAY_NS);
        } else if self.log.push_mark() {
            self.durability.log_wanted = true;
        }
    }

    fn write_log(&mut self, buffers: &mut impl BufferPool) {
        let bytes = self.log.pending_bytes();
        let Some(mut buffer) = buffers.take(bytes) else {
            mark(Mark::LogShortOfBuffers);
            self.short_of_buffers = true;
            return;
        };
        let first = self.log.start_write(&mut buffer.bytes_mut()[..bytes]);
        self.durability.log_wanted = false;
        let pages = (bytes / BLOCK_BYTES) as u64;
        self.status.log_pages += pages;
        let start = self.layout.log_start_block(self.shard.0);
        let until_end = (self.log.ring_pages() - first).min(pages);
        if until_end < pages {
            mark(Mark::LogWraps);
        }
        let durable = bytes <= DURABLE_LOG_PAGES_MAX * BLOCK_BYTES && self.is_barrier_needless();
        let mut operation = self.operation(OperationKind::Write, Tag::LogWrite);
        operation.durable = durable;
        for (block, offset, count) in [
            (start + first, 0, until_end),
            (start, until_end, pages - until_end),
        ] {
            if count == 0 {
                continue;
            }
            operation.transfers.push(Transfer {
                device: self.home(),
                offset_bytes: block * BLOCK_BYTES as u64,
                length_bytes: count * BLOCK_BYTES as u64,
                first_segment: operation.segments.len() as u32,
                segment_count: 1,
            });
            operation.segments.push(Segment {
                buffer: 0,
                offset_bytes: offset as u32 * BLOCK_BYTES as u32,
                length_bytes: count as u32 * BLOCK_BYTES as u32,
            });
        }
        operation.buffers.push(buffer);
        self.progress = true;
        self.issue(operation);
    }

    /// Flushes the devices whose bit is set; at least the home device, so that the completion comes.
    pub(super) fn issue_flush(&mut self, tag: Tag, devices: u64) {
        let devices = devices | 1 << self.home().0;
        #[cfg(feature = "planted-bugs")]
        let devices = if self.planted(crate::PlantedBug::FlushSkipsOneDevice) {
            1 << self.home().0
        } else {
            devices
        };
        let mut operation = self.operation(OperationKind::Flush, tag);
        for device in (0..64u8).filter(|device| devices >> device & 1 == 1) {
            operation.transfers.push(Transfer {
                device: DeviceIndex(device),
                offset_bytes: 0,
                length_bytes: 0,
                first_segment: 0,
                segment_count: 0,
            });
        }
        self.progress = true;
        self.issue(operation);
    }

    pub(super) fn log_write_done(&mut self, operation: &mut Operation, buffers: &mut impl BufferPool) {
        buffers.give(only_buffer(operation));
        match operation.result {
            Ok(()) => {
                self.log.written();
                // As with a flush: what another one lost is not brought back.
                if operation.durable && self.stopped.is_none() {
                    mark(Mark::LogDurably);
                    self.log.flushed(self.log.written_lsn());
                    self.mark_soon();
                }
                self.unstall();
            }
            Err(error) => self.stop("log write", error),
        }
        give_all(operation, buffers);
    }

    /// A flush of another shard failed: the devices may have lost what this one had them keep, and its next flush would
    /// not say so.
    pub(crate) fn flush_of_another_failed(&mut self, error: DeviceError) {
        self.stop("flush of another shard", error);
    }

    pub(super) fn host_flush_done(&mut self, operation: &Operation) {
        let lsn = self
            .durability
            .flushing_lsn
            .take()
            .expect("a flush was in flight");
        match operation.result {
            // Another flush failed meanwhile: what that one lost this one did not bring back.
            Ok(()) if self.stopped.is_some() => {}
            Ok(()) => {
                self.log.flushed(lsn);
                self.mark_soon();
            }
            Err(error) => self.stop("flush", error),
        }
    }

    /// Answers whoever waited for what is durable or written by now.
    pub(super) fn settle_waiters(&mut self) {
        let stopped = self.stopped.is_some();
        while let Some((lsn, _)) = self.durability.durable.front() {
            if *lsn > self.log.durable_lsn() && !stopped {
                break;
            }
            let (lsn, waiter) = self.durability.durable.pop_front().expect("looked at");
            let durable = lsn <= self.log.durable_lsn();
            match waiter {
                Waiter::Slot(id) => self.answer(id, self.durable_or_stopped(id, durable)),
                Waiter::Command(ticket, kind) if durable => self.event(Some(ticket), kind),
                Waiter::Command(ticket, _) => {
                    self.event(Some(ticket), EventKind::Failed(RequestError::ShardStopped));
                }
            }
        }
        while let Some(&(lsn, id)) = self.durability.written.front() {
            if lsn > self.log.written_lsn() && !stopped {
                break;
            }
            self.durability.written.pop_front();
            self.answer(
                id,
                if lsn <= self.log.written_lsn() {
                    Ok(())
                } else {
                    Err(RequestError::ShardStopped)
                },
            );
        }
    }

    fn durable_or_stopped(&self, id: SlotId, durable: bool) -> Result<(), RequestError> {
        debug_assert!(!matches!(self.slots[id].kind, RequestKind::Read));
        if durable {
            Ok(())
        } else {
            Err(RequestError::ShardStopped)
        }
    }
}
