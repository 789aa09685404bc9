//! How far the freeing of a deleted snapshot has come.

use std::collections::VecDeque;

use super::Shard;
use crate::command::{DeletionState, DeletionStatus};
use crate::ids::{SnapshotId, VolumeId};
use crate::ports::LogTail;
use crate::virtual_volume::VirtualVolume;
use stillpoint_ondisk::map_page::ENTRIES;

/// Walks of which it is remembered what they freed.
const WALKS_MAX: usize = 256;

/// What the last walks freed since the shard was opened, the newest behind.
#[derive(Debug, Default)]
pub(super) struct Freed(VecDeque<(VolumeId, SnapshotId, u64)>);

impl Freed {
    /// A walk freed so many blocks more.
    pub(super) fn count(&mut self, volume: VolumeId, snapshot: SnapshotId, blocks: u64) {
        match self.0.back_mut() {
            Some((of, walked, freed)) if (*of, *walked) == (volume, snapshot) => *freed += blocks,
            _ => {
                if self.0.len() == WALKS_MAX {
                    self.0.pop_front();
                }
                self.0.push_back((volume, snapshot, blocks));
            }
        }
    }

    fn of(&self, volume: VolumeId, snapshot: SnapshotId) -> u64 {
        let walks = self
            .0
            .iter()
            .filter(|(of, walked, _)| (*of, *walked) == (volume, snapshot));
        walks.map(|(_, _, freed)| freed).sum()
    }

    /// The shares of which a walk freed something of this snapshot, each once.
    fn shares(&self, snapshot: SnapshotId) -> Vec<VolumeId> {
        let walks = self.0.iter().filter(|(_, walked, _)| *walked == snapshot);
        let mut shares: Vec<VolumeId> = walks.map(|(of, ..)| *of).collect();
        shares.sort_unstable();
        shares.dedup();
        shares
    }
}

impl<T: LogTail> Shard<T> {
    /// One entry for each share that has, or had, an intermediate snapshot of this number.
    pub(crate) fn deletions(&self, snapshot: SnapshotId) -> Vec<DeletionStatus> {
        let here = self
            .volumes
            .values()
            .filter_map(|volume| Some((volume, volume.snapshots.position(snapshot)?)));
        let mut found: Vec<DeletionStatus> = here
            .map(|(volume, position)| self.deletion(volume, position))
            .collect();
        for volume in self.reclaim.freed.shares(snapshot) {
            if found.iter().all(|status| status.volume != volume) {
                found.push(DeletionStatus {
                    volume,
                    state: DeletionState::Gone,
                    share_blocks: 0,
                    walked_blocks: 0,
                    freed_blocks: self.reclaim.freed.of(volume, snapshot),
                });
            }
        }
        found
    }

    /// How many maps were made of a snapshot and will stay: those that are to be freed themselves only have their turn before.
    fn staying_children(&self, volume: &VirtualVolume, position: usize) -> usize {
        let later = position + 1..volume.snapshots.len();
        let goes_on = !volume.deleting || later.into_iter().any(|later| stays(volume, later));
        let clones = volume.snapshots[position].clones.iter().filter(|clone| {
            let clone = &self.volumes[clone];
            !clone.deleting || (0..clone.snapshots.len()).any(|position| stays(clone, position))
        });
        clones.count() + usize::from(goes_on)
    }

    fn deletion(&self, volume: &VirtualVolume, position: usize) -> DeletionStatus {
        let found = &volume.snapshots[position];
        // A shard that stopped may not even have taken the command.
        let state = if self.stopped.is_some() {
            DeletionState::Stopped
        } else if !volume.is_to_be_freed(position) {
            DeletionState::Kept
        } else if self.reclaim.is_unreadable(volume.family) {
            DeletionState::Unreadable
        } else if self.staying_children(volume, position) > 1 {
            DeletionState::Branches
        } else {
            DeletionState::Going
        };
        let share_blocks = found.copy.share_blocks;
        DeletionStatus {
            volume: volume.id,
            state,
            share_blocks,
            walked_blocks: found.cursor_leaf.saturating_mul(ENTRIES as u64).min(share_blocks),
            freed_blocks: self.reclaim.freed.of(volume.id, found.snapshot),
        }
    }
}

/// Whether a snapshot will be there for as long as nobody deletes more; one that something was made of may be.
fn stays(volume: &VirtualVolume, position: usize) -> bool {
    !volume.is_to_be_freed(position) || !volume.snapshots[position].clones.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_walks_freed_is_added_up_and_the_oldest_are_forgotten() {
        let mut freed = Freed::default();
        let (one, two) = (VolumeId(1), VolumeId(2));
        for (volume, blocks) in [(one, 3), (one, 4), (two, 5), (one, 6)] {
            freed.count(volume, SnapshotId(9), blocks);
        }
        assert_eq!(
            (freed.of(one, SnapshotId(9)), freed.of(two, SnapshotId(9))),
            (13, 5)
        );
        assert_eq!(freed.shares(SnapshotId(9)), [one, two]);
        assert_eq!(freed.shares(SnapshotId(8)), []);
        for number in 0..WALKS_MAX as u64 {
            freed.count(one, SnapshotId(100 + number), 1);
        }
        assert_eq!(freed.of(two, SnapshotId(9)), 0);
        assert_eq!(freed.of(one, SnapshotId(100)), 1);
        assert_eq!(freed.0.len(), WALKS_MAX);
    }
}
