//! The shard's side of a cut: prepare, cut, release, persist, abort; and the deadline that ends every hold.
//!
//! | phase | message | becomes | answer |
//! |---|---|---|---|
//! | none | Prepare | Prepared | Prepared, or Refused |
//! | Prepared | Cut | Holding | Taken; Refused if a volume has gone since |
//! | Holding | Release | Released | Released |
//! | Holding | the deadline | none (intermediate snapshots to be freed) | HoldExpired |
//! | Released | Persist | none (the commit record decides) | Durable, when it is |
//! | any, none | Abort | none (intermediate snapshots to be freed) | Aborted |
//! | anything else | | unchanged | Refused (Aborted) |

use super::Shard;
use crate::command::{EventKind, RefusedReason, Ticket};
use crate::hold::{CutInProgress, CutPhase};
use crate::ids::{SnapshotId, TimeStamp, VolumeId};
use crate::marks::{Mark, mark};
use crate::ports::LogTail;
use crate::virtual_volume::SNAPSHOT_ROW_BYTES;
use stillpoint_ondisk::record::{RECORD_BYTES_MAX, Record};

/// Cuts in progress on one shard at most.
const CUTS_MAX: usize = 64;
/// Snapshots that a volume may have.
const SNAPSHOTS_PER_VOLUME_MAX: usize = 1 << 20;

impl<T: LogTail> Shard<T> {
    pub(super) fn prepare(&mut self, ticket: Ticket, snapshot: SnapshotId, volumes: &[VolumeId]) {
        let kind = match self.refusal(volumes) {
            Some(reason) => {
                mark(Mark::CutRefused);
                EventKind::Refused { reason }
            }
            None => {
                self.cuts.push(CutInProgress::prepared(snapshot, volumes));
                EventKind::Prepared
            }
        };
        self.event(Some(ticket), kind);
    }

    /// What forbids a cut of these volumes, at prepare and again at the cut: a volume whose map is being freed must
    /// not be frozen.
    fn cannot_be_cut<'v>(&self, mut volumes: impl Iterator<Item = &'v VolumeId>) -> Option<RefusedReason> {
        if self.stopped.is_some() {
            return Some(RefusedReason::ShardStopped);
        }
        let missing = volumes.find(|id| self.volumes.get(id).is_none_or(|volume| volume.deleting));
        missing.map(|&volume| RefusedReason::NoSuchVolume(volume))
    }

    fn refusal(&self, volumes: &[VolumeId]) -> Option<RefusedReason> {
        if let Some(reason) = self.cannot_be_cut(volumes.iter()) {
            return Some(reason);
        }
        let busy = |id: &VolumeId| {
            self.cuts
                .iter()
                .any(|cut| cut.volumes.iter().any(|(volume, _)| volume == id))
        };
        if self.cuts.len() >= CUTS_MAX || volumes.iter().any(busy) {
            return Some(RefusedReason::Busy);
        }
        let many = |id: &VolumeId| self.volumes[id].snapshots.len() >= SNAPSHOTS_PER_VOLUME_MAX;
        let directory_pages = self.directory.pages_to_write() as u64 + volumes.len() as u64 + 2;
        if volumes.iter().any(many)
            || self.directory.is_nearly_full()
            || self.space.free_blocks() < directory_pages
        {
            return Some(RefusedReason::NoSpace);
        }
        None
    }

    /// Freezes the maps between two requests: O(1) per volume, no I/O. False if the log has no room yet.
    pub(super) fn cut(
        &mut self,
        ticket: Ticket,
        snapshot: SnapshotId,
        time_stamp: TimeStamp,
        deadline_ns: u64,
    ) -> bool {
        let Some(position) = self.position(snapshot, CutPhase::Prepared) else {
            mark(Mark::CutAborted);
            self.event(
                Some(ticket),
                EventKind::Refused {
                    reason: RefusedReason::Aborted,
                },
            );
            return true;
        };
        if let Some(reason) = self.cannot_be_cut(self.cuts[position].volumes.iter().map(|(id, _)| id)) {
            self.event(Some(ticket), EventKind::Refused { reason });
            return true;
        }
        if !self.log.has_urgent_room(self.cuts[position].volumes.len() * 64) {
            mark(Mark::CutWaitsForLog);
            self.want_log_room();
            return false;
        }
        let cut = &mut self.cuts[position];
        let mut log_bytes = 0;
        for (id, frozen) in &mut cut.volumes {
            let volume = self.volumes.get_mut(id).expect("looked up before");
            *frozen = volume.epoch;
            let record = Record::Cut {
                volume: id.0,
                epoch: volume.epoch.0,
                snapshot: snapshot.0,
                time_stamp_ns: time_stamp.0,
            };
            self.log.append(&record);
            log_bytes += record.encoded_bytes();
            volume.cut(snapshot, time_stamp);
            self.rows_made += 1;
        }
        cut.wrote(log_bytes, cut.volumes.len() * SNAPSHOT_ROW_BYTES);
        cut.begin(self.now.monotonic_ns, deadline_ns);
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::AnswersNotHeld) {
            self.cuts[position]
                .volumes
                .iter_mut()
                .for_each(|(_, epoch)| *epoch = crate::ids::Epoch(u32::MAX));
        }
        self.event(Some(ticket), EventKind::Taken);
        true
    }

    pub(super) fn release(&mut self, ticket: Ticket, snapshot: SnapshotId) {
        let kind = match self.position(snapshot, CutPhase::Holding) {
            Some(position) => EventKind::Released(self.end_hold(position)),
            None => EventKind::Refused {
                reason: RefusedReason::Aborted,
            },
        };
        self.event(Some(ticket), kind);
    }

    fn end_hold(&mut self, position: usize) -> crate::command::HoldFigures {
        self.held_answers -= self.cuts[position].held_count();
        self.cuts[position].release(self.now.monotonic_ns, &mut self.stages, &mut self.answers)
    }

    pub(super) fn persist(&mut self, ticket: Ticket, snapshot: SnapshotId) {
        match self.position(snapshot, CutPhase::Released) {
            #[cfg(feature = "planted-bugs")]
            Some(position) if self.planted(crate::PlantedBug::CommitBeforeIntermediates) => {
                self.cuts.remove(position);
                self.event(Some(ticket), EventKind::Durable);
            }
            Some(position) => {
                self.cuts.remove(position);
                self.event_when_durable(ticket, EventKind::Durable);
            }
            None => {
                mark(Mark::PersistRefused);
                let reason = RefusedReason::Aborted;
                self.event(Some(ticket), EventKind::Refused { reason });
            }
        }
    }

    /// Whatever the state: no answer is held for this snapshot any more, and its frozen maps are to be freed. False if
    /// the log has no room yet.
    pub(super) fn abort(&mut self, ticket: Ticket, snapshot: SnapshotId) -> bool {
        if let Some(position) = self.cuts.iter().position(|cut| cut.snapshot == snapshot) {
            if self.cuts[position].phase == CutPhase::Holding {
                mark(Mark::AbortInHold);
                self.end_hold(position);
            }
            self.cuts.remove(position);
        }
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::AbortLeavesTrace) {
            self.event(Some(ticket), EventKind::Aborted);
            return true;
        }
        if !self.drop_snapshot_everywhere(snapshot) {
            return false;
        }
        self.event(Some(ticket), EventKind::Aborted);
        true
    }

    /// Marks the snapshot's intermediate snapshots of all volumes as to be freed.
    fn drop_snapshot_everywhere(&mut self, snapshot: SnapshotId) -> bool {
        let holders: Vec<VolumeId> = self
            .volumes
            .values()
            .filter(|volume| {
                let position = volume.snapshots.position(snapshot);
                position.is_some_and(|position| !volume.snapshots[position].deleting)
            })
            .map(|volume| volume.id)
            .collect();
        holders
            .into_iter()
            .all(|volume| self.drop_snapshot(volume, snapshot))
    }

    /// Marks one intermediate snapshot as to be freed, and logs it. False if the log has no room yet.
    pub(super) fn drop_snapshot(&mut self, volume: VolumeId, snapshot: SnapshotId) -> bool {
        // A stopped shard logs nothing more and nobody will make room; the missing commit record says the same (I8).
        let logs = self.stopped.is_none();
        if logs && !self.log.has_urgent_room(RECORD_BYTES_MAX.min(64)) {
            self.want_log_room();
            return false;
        }
        let share = self.volumes.get_mut(&volume);
        if share.is_some_and(|share| share.snapshots.delete(snapshot)) {
            if logs {
                self.log.append(&Record::SnapshotDelete {
                    volume: volume.0,
                    snapshot: snapshot.0,
                });
            }
            self.reclaim.wake();
            self.change_logs.count_again();
        }
        true
    }

    /// Ends the holds whose deadline has passed: I9 does not depend on the coordinator.
    pub(super) fn expire_holds(&mut self) {
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::HoldOutlivesDeadline) {
            return;
        }
        while let Some(position) = self
            .cuts
            .iter()
            .position(|cut| cut.deadline_ns <= self.now.monotonic_ns)
        {
            mark(Mark::HoldExpired);
            let snapshot = self.cuts[position].snapshot;
            let figures = self.end_hold(position);
            self.cuts.remove(position);
            self.progress = true;
            // Without room in the log the record follows with the coordinator's abort; on recovery the missing commit
            // record has the same effect (I8).
            self.drop_snapshot_everywhere(snapshot);
            self.event(None, EventKind::HoldExpired { snapshot, figures });
        }
    }

    fn position(&self, snapshot: SnapshotId, phase: CutPhase) -> Option<usize> {
        self.cuts
            .iter()
            .position(|cut| cut.snapshot == snapshot && cut.phase == phase)
    }
}
