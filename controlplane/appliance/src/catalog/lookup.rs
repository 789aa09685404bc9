//! What is looked up in a catalog other than by number. It follows from the rows, and finding something costs the same
//! however many volumes and snapshots there are.

use std::collections::{BTreeMap, BTreeSet};

use super::Volume;
use stillpoint_coordinator::OverallSnapshot;
use stillpoint_processor::{SnapshotId, VolumeId};

/// Everything by something else than its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lookup {
    volumes: BTreeMap<String, VolumeId>,
    /// The volume of the shares that have its live map.
    heads: BTreeMap<VolumeId, VolumeId>,
    clones: BTreeMap<SnapshotId, BTreeSet<VolumeId>>,
    of_volumes: BTreeMap<VolumeId, BTreeSet<SnapshotId>>,
    in_shares: BTreeMap<VolumeId, BTreeSet<SnapshotId>>,
}

impl Lookup {
    pub(super) fn volume(&self, name: &str) -> Option<VolumeId> {
        self.volumes.get(name).copied()
    }

    pub(super) fn head(&self, shares: VolumeId) -> Option<VolumeId> {
        self.heads.get(&shares).copied()
    }

    pub(super) fn clones_of(&self, snapshot: SnapshotId) -> impl Iterator<Item = VolumeId> {
        self.clones.get(&snapshot).into_iter().flatten().copied()
    }

    pub(super) fn snapshots_of(&self, volume: VolumeId) -> impl DoubleEndedIterator<Item = SnapshotId> {
        self.of_volumes.get(&volume).into_iter().flatten().copied()
    }

    pub(super) fn snapshots_in(&self, shares: VolumeId) -> impl Iterator<Item = SnapshotId> {
        self.in_shares.get(&shares).into_iter().flatten().copied()
    }

    pub(super) fn put_volume(&mut self, volume: &Volume, old: Option<&Volume>) {
        if let Some(old) = old {
            self.remove_volume(old);
        }
        self.volumes.insert(volume.name.clone(), volume.id);
        self.heads.insert(volume.head, volume.id);
        if let Some(origin) = volume.origin {
            self.clones.entry(origin.snapshot).or_default().insert(volume.id);
        }
    }

    pub(super) fn remove_volume(&mut self, old: &Volume) {
        self.volumes.remove(&old.name);
        self.heads.remove(&old.head);
        if let Some(origin) = old.origin {
            take(&mut self.clones, origin.snapshot, old.id);
        }
    }

    pub(super) fn put_snapshot(&mut self, snapshot: &OverallSnapshot, old: Option<&OverallSnapshot>) {
        if let Some(old) = old {
            self.remove_snapshot(old);
        }
        for of in &snapshot.volumes {
            let of_volume = self.of_volumes.entry(of.owner).or_default();
            of_volume.insert(snapshot.snapshot);
            let in_shares = self.in_shares.entry(of.volume).or_default();
            in_shares.insert(snapshot.snapshot);
        }
    }

    pub(super) fn remove_snapshot(&mut self, old: &OverallSnapshot) {
        for of in &old.volumes {
            take(&mut self.of_volumes, of.owner, old.snapshot);
            take(&mut self.in_shares, of.volume, old.snapshot);
        }
    }
}

/// Takes a value out of the set at a key, and the set with its last value.
fn take<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: K, value: V) {
    if let Some(set) = sets.get_mut(&key) {
        set.remove(&value);
        if set.is_empty() {
            sets.remove(&key);
        }
    }
}
