//! Volumes that are deleted, with their snapshots or without: the rows of the snapshots, then the volume's, then what the
//! shards have of it. Shares in which others have snapshots (after a promotion) only lose their live map.

use std::collections::{BTreeMap, BTreeSet};

use stillpoint_ondisk::catalog::Key;
use stillpoint_processor::{ShardCommand, ShardIndex, SnapshotId, VolumeId};

use super::jobs::{Purpose, Stage};
use super::{Snapshot, State, Volume, World};

impl World {
    /// Deletes a volume that has no snapshots, or whose snapshots may go with it.
    pub(super) fn operate_delete_volume(&mut self, ready: &[u32], fits: impl Fn(&Volume) -> bool) {
        let with_snapshots = self.random.percent(30);
        let unused = ready.iter().find(|id| {
            let volume = &self.volumes[id];
            let may_go = match with_snapshots {
                true => self.snapshots_may_go(volume.row),
                false => !self.has_snapshots(volume.row),
            };
            volume.in_flight == 0 && fits(volume) && may_go
        });
        if let Some(&volume) = unused
            && ready.len() > 1
        {
            if self.volumes[&volume].is_clone() {
                self.coverage.count("clones deleted");
            }
            self.begin_delete_volume(volume);
        }
    }

    /// Deletes a volume, and its snapshots if it has any.
    pub(super) fn begin_delete_volume(&mut self, volume: u32) {
        let target = self.volume(volume);
        (target.state, target.job) = (State::Ending, true);
        let row = target.row;
        let mut gone: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::from([(volume, BTreeSet::new())]);
        let mut rows = Stage::new();
        let delete = |key: Key| (ShardIndex(0), ShardCommand::CatalogDelete { key: key.encode() });
        for snapshot in self.snapshots.values_mut().filter(|snapshot| snapshot.is_of(row)) {
            (snapshot.state, snapshot.ends_with) = (State::Ending, Some(volume));
            for &shares in snapshot.owners.keys() {
                gone.entry(shares).or_default().insert(snapshot.id);
            }
            let (snapshot, first_shard) = (snapshot.id, 0);
            rows.extend(
                [
                    Key::Snapshot(snapshot),
                    Key::Figures {
                        snapshot,
                        first_shard,
                    },
                ]
                .map(delete),
            );
            self.coverage.count("snapshots deleted with their volume");
        }
        rows.push(delete(Key::Volume(row)));
        let shares = gone
            .iter()
            .flat_map(|(&shares, snapshots)| self.free(shares, snapshots));
        let shares: Stage = shares.collect();
        if self.has_snapshots_in(volume) {
            self.coverage.count("volumes deleted whose snapshots a clone has");
        }
        self.begin(Purpose::DeleteVolume(volume), vec![rows, shares]);
    }

    /// What makes shards free what they have in these shares of a volume that is deleted, and of its snapshots.
    fn free(&self, shares: u32, snapshots: &BTreeSet<u64>) -> Stage {
        let volume = VolumeId(shares);
        let head = &self.volumes[&shares];
        if head.state != State::There && !self.has_snapshots_in(shares) {
            return self.for_all(|_| ShardCommand::DeleteVolume { volume });
        }
        let mut stage = Stage::new();
        if head.state == State::Ending {
            stage.extend(self.for_all(|_| ShardCommand::DeleteHead { volume }));
        }
        for &snapshot in snapshots {
            let snapshot = SnapshotId(snapshot);
            stage.extend(self.for_all(|_| ShardCommand::DeleteSnapshot { volume, snapshot }));
        }
        stage
    }

    /// A volume is gone, and the snapshots that went with it.
    pub(super) fn volume_deleted(&mut self, volume: u32) {
        self.volume(volume).state = State::Gone;
        for snapshot in self.snapshots.values_mut() {
            if snapshot.ends_with == Some(volume) {
                (snapshot.state, snapshot.ends_with) = (State::Gone, None);
            }
        }
        self.tell_change_logs();
    }

    /// Whether a volume has snapshots, those from before it was rolled back included.
    fn has_snapshots(&self, row: u32) -> bool {
        let mut known = self.snapshots.values();
        known.any(|snapshot| {
            snapshot.state != State::Gone && snapshot.owners.values().any(|owner| *owner == row)
        })
    }

    /// Whether all snapshots of a volume are its own alone, nothing is made of them, and no volume counts as their clone.
    fn snapshots_may_go(&self, row: u32) -> bool {
        let mut clones = self.volumes.values().filter(|volume| volume.state != State::Gone);
        let mut all = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.state != State::Gone);
        !clones.any(|volume| volume.row != row && volume.row_origin.is_some_and(|(of, _)| of == row))
            && all.all(|snapshot| {
                let is_free = snapshot.state == State::There && snapshot.cloning == 0;
                !snapshot.owners.values().any(|owner| *owner == row) || is_free && snapshot.is_of(row)
            })
    }
}

impl Snapshot {
    /// Whether it is there, and of this volume alone.
    fn is_of(&self, row: u32) -> bool {
        self.state == State::There && self.owners.values().all(|owner| *owner == row)
    }
}
