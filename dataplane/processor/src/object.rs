//! An object: a fixed range of a volume, owned by one shard, with its map to device data.

use crate::host_view::Placement;
use crate::ids::{BlockIndex, ShardIndex, ShareBlock, VolumeId};

/// A fixed range of a volume. Its map is the range `[first, first + blocks)` of its shard's map of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// The volume.
    pub volume: VolumeId,
    /// Position among the volume's objects.
    pub index: u64,
    /// The shard that owns it alone.
    pub owner: ShardIndex,
    /// First block in the owner's share of the volume.
    pub first: ShareBlock,
    /// Blocks.
    pub blocks: u32,
}

impl Object {
    /// Object `index` of a volume.
    #[must_use]
    pub fn of(volume: VolumeId, placement: &Placement, index: u64) -> Self {
        let (owner, first) = placement.locate(BlockIndex(index * u64::from(placement.object_blocks)));
        Self {
            volume,
            index,
            owner,
            first,
            blocks: placement.object_blocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_objects_have_different_owners() {
        let placement = Placement {
            shard_count: 3,
            rotation: 2,
            object_blocks: 256,
        };
        let owners: Vec<u16> = (0..6)
            .map(|i| Object::of(VolumeId(1), &placement, i).owner.0)
            .collect();
        assert_eq!(owners, [2, 0, 1, 2, 0, 1]);
    }
}
