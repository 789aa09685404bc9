//! The intermediate snapshots of one share, oldest first. Finding one, and finding those whose rows changed, costs the
//! same however many there are.
//!
//! Invariants:
//! - the snapshots are in the order of their epochs, and each is found by its number;
//! - a snapshot with `dirty` set is listed in `changed`;
//! - `deleting` counts those with `deleting` set.

use std::collections::BTreeMap;

use crate::ids::{Epoch, SnapshotId, VolumeId};
use crate::intermediate_snapshot::IntermediateSnapshot;

/// The snapshots of a share; reads like a slice of them.
#[derive(Debug, Default)]
pub struct SnapshotChain {
    snapshots: Vec<IntermediateSnapshot>,
    epochs: BTreeMap<SnapshotId, Epoch>,
    changed: Vec<SnapshotId>,
    deleting: usize,
}

impl core::ops::Deref for SnapshotChain {
    type Target = [IntermediateSnapshot];

    fn deref(&self) -> &[IntermediateSnapshot] {
        &self.snapshots
    }
}

impl SnapshotChain {
    /// The chain that directory rows describe, in any order.
    #[must_use]
    pub fn from_rows(mut rows: Vec<IntermediateSnapshot>) -> Self {
        rows.sort_by_key(|snapshot| snapshot.copy.epoch);
        Self {
            epochs: rows.iter().map(|s| (s.snapshot, s.copy.epoch)).collect(),
            changed: Vec::new(),
            deleting: rows.iter().filter(|s| s.deleting).count(),
            snapshots: rows,
        }
    }

    /// Adds the newest snapshot, which has no row yet.
    pub fn push(&mut self, snapshot: IntermediateSnapshot) {
        let newest = self.snapshots.last().map(|s| s.copy.epoch);
        assert!(newest < Some(snapshot.copy.epoch), "epochs go up");
        assert!(
            snapshot.dirty && !snapshot.deleting,
            "a snapshot that was just cut"
        );
        self.epochs.insert(snapshot.snapshot, snapshot.copy.epoch);
        self.changed.push(snapshot.snapshot);
        self.snapshots.push(snapshot);
    }

    /// Where a snapshot stands in the chain, deleting or not.
    #[must_use]
    pub fn position(&self, snapshot: SnapshotId) -> Option<usize> {
        let epoch = self.epochs.get(&snapshot)?;
        self.snapshots.binary_search_by_key(epoch, |s| s.copy.epoch).ok()
    }

    /// A snapshot to be changed; its row is older then.
    pub fn change(&mut self, position: usize) -> &mut IntermediateSnapshot {
        let found = &mut self.snapshots[position];
        if !core::mem::replace(&mut found.dirty, true) {
            self.changed.push(found.snapshot);
        }
        found
    }

    /// The shares whose chain begins at a snapshot, to be changed; its row does not say them.
    pub fn clones(&mut self, position: usize) -> &mut Vec<VolumeId> {
        &mut self.snapshots[position].clones
    }

    /// Marks a snapshot as to be freed; false if it was already, or is not there.
    pub fn delete(&mut self, snapshot: SnapshotId) -> bool {
        let position = self.position(snapshot);
        let Some(position) = position.filter(|&position| !self.snapshots[position].deleting) else {
            return false;
        };
        self.change(position).deleting = true;
        self.deleting += 1;
        true
    }

    /// Takes a snapshot out.
    pub fn remove(&mut self, position: usize) -> IntermediateSnapshot {
        let removed = self.snapshots.remove(position);
        self.epochs.remove(&removed.snapshot);
        self.deleting -= usize::from(removed.deleting);
        removed
    }

    /// Whether a snapshot is to be freed.
    #[must_use]
    pub fn any_deleting(&self) -> bool {
        self.deleting > 0
    }

    /// The next snapshot whose row is older than it is; its row counts as written from here on.
    pub fn next_changed(&mut self) -> Option<&IntermediateSnapshot> {
        while let Some(snapshot) = self.changed.pop() {
            if let Some(position) = self.position(snapshot) {
                let found = &mut self.snapshots[position];
                found.dirty = false;
                return Some(found);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change_log::ChangeLog;
    use crate::ids::TimeStamp;
    use crate::intermediate_snapshot::PointInTimeCopy;
    use crate::map::Root;

    fn snapshot(number: u64, epoch: u32) -> IntermediateSnapshot {
        IntermediateSnapshot {
            snapshot: SnapshotId(number),
            time_stamp: TimeStamp(number),
            copy: PointInTimeCopy {
                root: Root::default(),
                epoch: Epoch(epoch),
                share_blocks: 1,
                mapped_blocks: 0,
            },
            before: ChangeLog::default(),
            deleting: false,
            cursor_leaf: 0,
            clones: Vec::new(),
            dirty: true,
        }
    }

    #[test]
    fn snapshots_are_found_by_number_whatever_the_order_of_the_numbers() {
        let mut chain = SnapshotChain::default();
        for (number, epoch) in [(7, 1), (3, 2), (9, 5)] {
            chain.push(snapshot(number, epoch));
        }
        assert_eq!(chain.position(SnapshotId(3)), Some(1));
        assert_eq!(chain.position(SnapshotId(4)), None);
        assert_eq!(chain.remove(0).snapshot, SnapshotId(7));
        assert_eq!(chain.position(SnapshotId(7)), None);
        assert_eq!(chain.position(SnapshotId(9)), Some(1));
    }

    #[test]
    fn what_changed_is_listed_once_and_what_is_gone_is_not() {
        let mut chain = SnapshotChain::default();
        for number in 1..=3 {
            chain.push(snapshot(number, number as u32));
        }
        while chain.next_changed().is_some() {}
        chain.change(0).cursor_leaf = 5;
        chain.change(0).cursor_leaf = 6;
        assert!(chain.delete(SnapshotId(3)) && !chain.delete(SnapshotId(3)));
        assert!(chain.any_deleting());
        chain.remove(2);
        assert!(!chain.any_deleting());
        assert_eq!(chain.next_changed().map(|s| s.cursor_leaf), Some(6));
        assert!(chain.next_changed().is_none());
    }
}
