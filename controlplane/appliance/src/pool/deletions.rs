//! How far the freeing of deleted snapshots has come, and when their space can be used again.

use super::Pool;
use crate::api::model::DeletionInfo;
use crate::error::{Error, Result};
use stillpoint_processor::command::{DeletionState, DeletionStatus, EventKind};
use stillpoint_processor::{BLOCK_BYTES, ShardCommand, SnapshotId};

const BLOCK: u64 = BLOCK_BYTES as u64;

impl Pool {
    /// How far the freeing of the snapshot of this number has come, over all shards.
    ///
    /// # Errors
    /// Conflict if it is not deleted; if a shard cannot tell.
    pub async fn deletion(&self, snapshot: u64) -> Result<DeletionInfo> {
        let id = SnapshotId(snapshot);
        let events = self
            .ask_all(self.every_shard(|_| ShardCommand::Deletion { snapshot: id }))
            .await?;
        let found = events.into_iter().filter_map(|(_, kind)| match kind {
            EventKind::Deletion(found) => Some(found),
            _ => None,
        });
        let found: Vec<DeletionStatus> = found.flatten().collect();
        // A volume that was taken out of a group's snapshot keeps no share of it, and the catalog decides.
        if self.catalog().snapshot_by_id(id).is_some() {
            return Err(
                Error::conflict(format!("snapshot number {snapshot} is not deleted"))
                    .hint("stillpoint snapshot delete VOLUME@NAME deletes it"),
            );
        }
        Ok(combined(self.name(), snapshot, &found))
    }

    /// Makes a checkpoint on every shard: what was freed before can be used again when this returns.
    ///
    /// # Errors
    /// If a shard has stopped.
    pub async fn checkpoint(&self) -> Result<()> {
        self.run_all(self.every_shard(|_| ShardCommand::Checkpoint)).await
    }
}

/// What the shards say together: the state that keeps it up most, and sums.
fn combined(pool: &str, snapshot: u64, found: &[DeletionStatus]) -> DeletionInfo {
    let worst = found.iter().map(|status| status.state).max();
    let sum = |of: fn(&DeletionStatus) -> u64| found.iter().map(of).sum::<u64>() * BLOCK;
    DeletionInfo {
        pool: pool.to_owned(),
        id: snapshot,
        state: match worst.unwrap_or(DeletionState::Gone) {
            DeletionState::Gone => "gone",
            // Told by the catalog to be freed, and the command is on its way.
            DeletionState::Going | DeletionState::Kept => "going",
            DeletionState::Branches => "branches",
            DeletionState::Unreadable => "unreadable",
            DeletionState::Stopped => "stopped",
        }
        .to_owned(),
        shares_left: found
            .iter()
            .filter(|status| status.state != DeletionState::Gone)
            .count() as u64,
        left_bytes: sum(|status| status.share_blocks - status.walked_blocks),
        freed_bytes: sum(|status| status.freed_blocks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::VolumeId;

    fn status(state: DeletionState, walked_blocks: u64, freed_blocks: u64) -> DeletionStatus {
        DeletionStatus {
            volume: VolumeId(1),
            state,
            share_blocks: if state == DeletionState::Gone { 0 } else { 100 },
            walked_blocks,
            freed_blocks,
        }
    }

    #[test]
    fn shards_are_added_up_and_whatever_keeps_it_up_is_told() {
        use DeletionState::{Branches, Going, Gone, Kept, Stopped, Unreadable};
        let gone = combined("p", 7, &[]);
        assert_eq!(
            (gone.state.as_str(), gone.shares_left, gone.left_bytes),
            ("gone", 0, 0)
        );
        let going = combined("p", 7, &[status(Gone, 0, 5), status(Going, 40, 3)]);
        assert_eq!((going.state.as_str(), going.shares_left), ("going", 1));
        assert_eq!((going.left_bytes, going.freed_bytes), (60 * BLOCK, 8 * BLOCK));
        for (state, told) in [
            (Branches, "branches"),
            (Unreadable, "unreadable"),
            (Stopped, "stopped"),
            (Kept, "going"),
        ] {
            assert_eq!(
                combined("p", 7, &[status(Going, 0, 0), status(state, 0, 0)]).state,
                told
            );
        }
    }
}
