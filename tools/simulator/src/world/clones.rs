//! Clones and rollbacks: shares that begin as a snapshot is. To the clients, what a volume was before a rollback is one
//! volume and what it is after it another; the catalog has one row for both, and the row says which of them there is.
//!
//! | job | stages |
//! |---|---|
//! | clone a snapshot | shares on all shards, then the row |
//! | roll back a volume | the safety snapshot, then shares on all shards, then the row, then the old live map goes |

use stillpoint_processor::{RequestError, ShardCommand, ShardIndex, SnapshotId, VolumeId};

use super::jobs::{Job, Purpose, Stage};
use super::{State, Volume, World};
use crate::model::VolumeModel;
use crate::rows::VolumeRow;
use crate::stamp::{SECTOR_BYTES, Shown};

/// Volumes made of snapshots, beside those that were made empty, at most.
const CLONES_MAX: usize = 4;

/// A snapshot and the shares in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knot {
    /// The shares.
    pub volume: u32,
    /// The snapshot.
    pub snapshot: u64,
}

impl World {
    /// Clones any snapshot of which it is known what it shows.
    pub(super) fn operate_clone(&mut self) {
        let there = self.volumes.values();
        let clones = there.filter(|volume| volume.is_clone() && volume.state != State::Gone);
        if clones.count() >= CLONES_MAX {
            return;
        }
        let known = self.known_knots(|_| true);
        if known.is_empty() {
            return;
        }
        let origin = *self.random.pick(&known);
        let made = self.make_volume_of(origin, None);
        let shares = self.clone_shares(made, origin);
        let row = self.volume_row(made, self.volumes[&made].size_bytes);
        let purpose = Purpose::CloneVolume {
            volume: made,
            snapshot: origin.snapshot,
        };
        self.begin(purpose, vec![shares, row]);
    }

    /// Takes the safety snapshot of a volume that clients leave alone from now on, to roll it back when that is there.
    pub(super) fn operate_rollback(&mut self, ready: &[u32]) {
        if ready.is_empty() || !self.machine.has_coordinator() {
            return;
        }
        let volume = *self.random.pick(ready);
        let row = self.volumes[&volume].row;
        let known = self.known_knots(|owner| owner == row);
        if known.is_empty() {
            return;
        }
        let target = *self.random.pick(&known);
        self.snapshot_mut(target.snapshot).cloning += 1;
        let old = self.volume(volume);
        (old.resizing, old.rolls_back_to) = (true, Some(target));
        self.begin_create_snapshot(&[volume]);
        if self.random.percent(self.plan.coordinator_death_percent) {
            self.coordinator_dies_after = Some(self.random.below(40));
        }
    }

    /// The safety snapshot of a volume ended: it can be rolled back, or stays as it is.
    pub(super) fn safety_snapshot_ended(&mut self, volume: u32, taken: bool) {
        let old = self.volume(volume);
        if taken {
            (old.rolls_back_now, old.job) = (old.rolls_back_to.is_some(), old.rolls_back_to.is_some());
            return self.roll_back_if_idle(volume);
        }
        if let Some(target) = old.rolls_back_to.take() {
            old.resizing = false;
            self.snapshot_mut(target.snapshot).cloning -= 1;
        }
    }

    /// Rolls a volume back if that is all that is left to do.
    pub(super) fn roll_back_if_idle(&mut self, volume: u32) {
        let old = self.volume(volume);
        if !old.rolls_back_now || old.in_flight > 0 {
            return;
        }
        old.rolls_back_now = false;
        let target = old.rolls_back_to.take().expect("what it rolls back to");
        (old.state, old.job) = (State::Ending, true);
        let made = self.make_volume_of(target, Some(volume));
        self.snapshot_mut(target.snapshot).cloning -= 1;
        let shares = self.clone_shares(made, target);
        let row = self.volume_row(made, self.volumes[&made].size_bytes);
        let head = self.for_all(|_| ShardCommand::DeleteHead {
            volume: VolumeId(volume),
        });
        let purpose = Purpose::RollBack {
            old: volume,
            new: made,
            snapshot: target.snapshot,
        };
        let attach = self.attach_new_head(made);
        self.begin(purpose, vec![shares, row, attach, head]);
    }

    /// A clone was made, or was not.
    pub(super) fn clone_ended(&mut self, volume: u32, snapshot: u64, job: &Job) {
        self.snapshot_mut(snapshot).cloning -= 1;
        if job.failed().is_none() {
            let made = self.volume(volume);
            (made.state, made.job, made.resizing) = (State::There, false, false);
            self.coverage.count("volumes cloned");
        } else {
            self.coverage.count("clones refused");
            self.begin_delete_volume(volume);
        }
    }

    /// A volume was rolled back, or was not.
    pub(super) fn rollback_ended(&mut self, old: u32, new: u32, snapshot: u64, job: &Job) {
        self.snapshot_mut(snapshot).cloning -= 1;
        match job.failed() {
            None => {
                self.volume(old).state = State::Gone;
                let made = self.volume(new);
                (made.state, made.job, made.resizing) = (State::There, false, false);
                self.coverage.count("volumes rolled back");
                self.tell_change_logs();
            }
            // It is told before anything is logged: the row is as it was.
            Some(RequestError::NoSpace) => {
                let before = self.volume(old);
                (before.state, before.job, before.resizing) = (State::There, false, false);
                self.volume(new).state = State::Gone;
                self.coverage.count("rollbacks refused for lack of space");
                let stage = self.for_all(|_| ShardCommand::DeleteVolume {
                    volume: VolumeId(new),
                });
                self.begin(Purpose::FreeShares(new), vec![stage]);
            }
            // Which of the two there is will be seen when the pool is opened again.
            Some(_) => self.coverage.count("rollbacks in doubt"),
        }
    }

    /// A volume that begins as a snapshot is: a clone, or what `replaces` becomes.
    fn make_volume_of(&mut self, origin: Knot, replaces: Option<u32>) -> u32 {
        let id = self.next_volume;
        self.next_volume += 1;
        let tick = self.tick();
        let snapshot = &self.snapshots[&origin.snapshot];
        let of = snapshot
            .volumes
            .iter()
            .find(|(volume, _)| *volume == origin.volume);
        let size_bytes = of.expect("a volume of the snapshot").1;
        let shown: &[Shown] = &snapshot.content[&origin.volume];
        let source = &self.volumes[&origin.volume];
        let volume = Volume {
            id,
            row: replaces.map_or(id, |old| self.volumes[&old].row),
            family: source.family,
            origin: Some(origin),
            row_origin: match replaces {
                None => Some((snapshot.owners[&origin.volume], origin.snapshot)),
                Some(old) => self.volumes[&old].row_origin,
            },
            becomes: None,
            change_log: replaces.map_or(0, |old| self.volumes[&old].change_log),
            becomes_log: None,
            replaces,
            rolls_back_to: None,
            rolls_back_now: false,
            placement: source.placement,
            block_bytes: source.block_bytes,
            size_bytes,
            shown_bytes: size_bytes,
            model: VolumeModel::of_snapshot(source.family, shown, tick),
            state: State::Asked,
            in_flight: 0,
            job: true,
            resizing: true,
        };
        self.volumes.insert(id, volume);
        self.snapshot_mut(origin.snapshot).cloning += 1;
        id
    }

    fn clone_shares(&self, volume: u32, origin: Knot) -> Stage {
        self.for_all(|_| ShardCommand::CloneVolume {
            volume: VolumeId(volume),
            origin: VolumeId(origin.volume),
            snapshot: SnapshotId(origin.snapshot),
        })
    }

    /// Snapshots that were looked at from end to end, whose owners fit.
    fn known_knots(&self, fits: impl Fn(u32) -> bool) -> Vec<Knot> {
        let mut known = Vec::new();
        let there = self.snapshots.values();
        for snapshot in there.filter(|snapshot| snapshot.state == State::There) {
            for &(volume, size_bytes) in &snapshot.volumes {
                let sectors = size_bytes as usize / SECTOR_BYTES;
                let content = snapshot.content.get(&volume);
                if content.is_some_and(|content| content.len() == sectors) && fits(snapshot.owners[&volume]) {
                    known.push(Knot {
                        volume,
                        snapshot: snapshot.id,
                    });
                }
            }
        }
        known
    }
}

impl Volume {
    /// Whether it is a volume of its own that was made of a snapshot.
    pub(super) fn is_clone(&self) -> bool {
        self.origin.is_some() && self.row == self.id
    }

    /// The command that writes its row, with this origin and size.
    pub(super) fn row_with(&self, origin: Option<(u32, u64)>, size_bytes: u64) -> (ShardIndex, ShardCommand) {
        let row = VolumeRow {
            row: self.row,
            head: self.id,
            size_bytes,
            origin,
            change_log: self.change_log,
        };
        row.put(self.placement, self.block_bytes)
    }
}
