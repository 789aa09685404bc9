//! One shard's share of a snapshot.

use crate::change_log::ChangeLog;
use crate::ids::{Epoch, SnapshotId, TimeStamp, VolumeId};
use crate::map::Root;

/// The frozen map of a share: what the shard's objects of the volume looked like at the cut.
#[derive(Clone, Copy, Debug)]
pub struct PointInTimeCopy {
    /// Root of the frozen map. Nothing below it is ever written again.
    pub root: Root,
    /// The last epoch it holds.
    pub epoch: Epoch,
    /// Size of the share at the cut.
    pub share_blocks: u64,
    /// Blocks it maps.
    pub mapped_blocks: u64,
}

/// One shard's share of an overall snapshot: it refers to the objects of the share through the
/// point-in-time copy of their map, and to the change log that led up to the cut. The change log that
/// belongs to the copy, what was written after it, is the one of the next snapshot, or the volume's own.
#[derive(Clone, Debug)]
pub struct IntermediateSnapshot {
    /// The overall snapshot.
    pub snapshot: SnapshotId,
    /// Its time stamp.
    pub time_stamp: TimeStamp,
    /// The frozen map.
    pub copy: PointInTimeCopy,
    /// What was written between the snapshot before and this one.
    pub before: ChangeLog,
    /// To be freed.
    pub deleting: bool,
    /// First leaf that has not been freed yet, when `deleting`.
    pub cursor_leaf: u64,
    /// Shares whose chain begins here. Not in the row: it follows from theirs.
    pub clones: Vec<VolumeId>,
    /// The directory row is older than this.
    pub dirty: bool,
}
