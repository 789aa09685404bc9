//! The volume or the snapshot that one session sees, and how its requests are cut into parts.

use crate::ids::{BlockIndex, ShardIndex, ShareBlock};
use crate::request::View;
use crate::{BLOCK_BYTES, PART_BYTES_MAX};

/// How the objects of a volume are spread over the shards.
///
/// Object `o` lies on shard `(o + rotation) % shard_count`, so consecutive objects lie on consecutive shards; a
/// shard lays its objects of a volume end to end, and that is its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Shards of the pool.
    pub shard_count: u16,
    /// Shard of object 0.
    pub rotation: u16,
    /// Blocks of one object, a power of two, at least 256 (1 MiB).
    pub object_blocks: u32,
}

impl Placement {
    /// The owner of a block and its place in the owner's share.
    #[inline]
    #[must_use]
    pub fn locate(&self, block: BlockIndex) -> (ShardIndex, ShareBlock) {
        let object_blocks = u64::from(self.object_blocks);
        let shards = u64::from(self.shard_count);
        let object = block.0 / object_blocks;
        let shard = (object + u64::from(self.rotation)) % shards;
        let share = object / shards * object_blocks + block.0 % object_blocks;
        (ShardIndex(shard as u16), ShareBlock(share))
    }

    /// The block of the volume that lies at this place of a shard's share: [`Self::locate`] the other way round.
    #[must_use]
    pub fn block_at(&self, shard: ShardIndex, place: ShareBlock) -> BlockIndex {
        let object_blocks = u64::from(self.object_blocks);
        let shards = u64::from(self.shard_count);
        let first = (u64::from(shard.0) + shards - u64::from(self.rotation) % shards) % shards;
        let object = place.0 / object_blocks * shards + first;
        BlockIndex(object * object_blocks + place.0 % object_blocks)
    }

    /// Blocks of `shard`'s share of a volume of `volume_blocks`.
    #[must_use]
    pub fn share_blocks(&self, shard: ShardIndex, volume_blocks: u64) -> u64 {
        let object_blocks = u64::from(self.object_blocks);
        let shards = u64::from(self.shard_count);
        let first = (u64::from(shard.0) + shards - u64::from(self.rotation) % shards) % shards;
        let objects = volume_blocks / object_blocks;
        let whole = if objects > first {
            (objects - first).div_ceil(shards)
        } else {
            0
        };
        let rest = if objects % shards == first {
            volume_blocks % object_blocks
        } else {
            0
        };
        whole * object_blocks + rest
    }
}

/// What one session sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// The volume or snapshot.
    pub view: View,
    /// Where its objects are.
    pub placement: Placement,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size: 512 or 4096.
    pub block_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A part of a client's range: within one object, at most [`PART_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The owner.
    pub shard: ShardIndex,
    /// First block of the owner's share.
    pub first: ShareBlock,
    /// Blocks touched, partial ones included.
    pub blocks: u32,
    /// Bytes of the first block before the part.
    pub skip_bytes: u32,
    /// Bytes of the part.
    pub length_bytes: u32,
    /// Where the part begins, counted from the start of the client's range.
    pub offset_bytes: u64,
}

/// The parts of a range, in order.
#[derive(Clone, Debug)]
pub struct Parts {
    placement: Placement,
    start_bytes: u64,
    position_bytes: u64,
    end_bytes: u64,
    part_bytes_max: u64,
}

impl HostView {
    /// Whether `length_bytes` from `offset_bytes` on lie within the view.
    #[must_use]
    pub fn contains(&self, offset_bytes: u64, length_bytes: u64) -> bool {
        offset_bytes
            .checked_add(length_bytes)
            .is_some_and(|end| end <= self.size_bytes)
    }

    /// The parts of a range that need a buffer each; the range must lie within the view.
    #[must_use]
    pub fn parts(&self, offset_bytes: u64, length_bytes: u64) -> Parts {
        self.cut(offset_bytes, length_bytes, PART_BYTES_MAX as u64)
    }

    /// The parts of a range that need no buffer: as long as their object, or as 1 GiB.
    #[must_use]
    pub fn parts_without_data(&self, offset_bytes: u64, length_bytes: u64) -> Parts {
        self.cut(offset_bytes, length_bytes, 1 << 30)
    }

    fn cut(&self, offset_bytes: u64, length_bytes: u64, part_bytes_max: u64) -> Parts {
        assert!(self.contains(offset_bytes, length_bytes), "the range was checked");
        Parts {
            placement: self.placement,
            start_bytes: offset_bytes,
            position_bytes: offset_bytes,
            end_bytes: offset_bytes + length_bytes,
            part_bytes_max,
        }
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.position_bytes >= self.end_bytes {
            return None;
        }
        let block_bytes = BLOCK_BYTES as u64;
        let object_bytes = u64::from(self.placement.object_blocks) * block_bytes;
        let block = self.position_bytes / block_bytes;
        let skip = self.position_bytes % block_bytes;
        let object_end = (self.position_bytes / object_bytes + 1) * object_bytes;
        let part_end = block * block_bytes + self.part_bytes_max;
        let end = self.end_bytes.min(object_end).min(part_end);
        let (shard, first) = self.placement.locate(BlockIndex(block));
        let part = Part {
            shard,
            first,
            blocks: (end.div_ceil(block_bytes) - block) as u32,
            skip_bytes: skip as u32,
            length_bytes: (end - self.position_bytes) as u32,
            offset_bytes: self.position_bytes - self.start_bytes,
        };
        self.position_bytes = end;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VolumeId;

    fn view(shards: u16, rotation: u16, object_blocks: u32, size_bytes: u64) -> HostView {
        HostView {
            view: View {
                volume: VolumeId(1),
                snapshot: None,
            },
            placement: Placement {
                shard_count: shards,
                rotation,
                object_blocks,
            },
            size_bytes,
            block_bytes: 512,
            read_only: false,
        }
    }

    #[test]
    fn every_block_has_one_place_and_shares_are_dense() {
        for (shards, rotation) in [(1, 0), (2, 1), (3, 2), (5, 3)] {
            for volume_blocks in [1u64, 255, 256, 257, 256 * 7, 256 * 11 + 3] {
                let placement = Placement {
                    shard_count: shards,
                    rotation,
                    object_blocks: 256,
                };
                let mut seen = vec![Vec::new(); usize::from(shards)];
                for block in 0..volume_blocks {
                    let (shard, share) = placement.locate(BlockIndex(block));
                    seen[usize::from(shard.0)].push(share.0);
                    assert_eq!(placement.block_at(shard, share), BlockIndex(block));
                }
                for (shard, mut blocks) in seen.into_iter().enumerate() {
                    blocks.sort_unstable();
                    let expected = placement.share_blocks(ShardIndex(shard as u16), volume_blocks);
                    assert_eq!(
                        blocks.len() as u64,
                        expected,
                        "{shards} shards, {volume_blocks} blocks, shard {shard}"
                    );
                    assert!(blocks.iter().enumerate().all(|(i, &b)| i as u64 == b));
                }
            }
        }
    }

    #[test]
    fn parts_tile_the_range() {
        let view = view(3, 1, 256, 64 << 20);
        for (offset, length) in [
            (0, 4096),
            (512, 512),
            (4095 - 511, 1024),
            ((1 << 20) - 512, 1024),
            (512, 40 << 20),
        ] {
            let mut at = 0;
            for part in view.parts(offset, length) {
                assert_eq!(part.offset_bytes, at);
                assert!(part.blocks as usize * BLOCK_BYTES <= PART_BYTES_MAX);
                assert!(
                    part.skip_bytes as usize + part.length_bytes as usize
                        <= part.blocks as usize * BLOCK_BYTES
                );
                let (shard, first) = view
                    .placement
                    .locate(BlockIndex((offset + at) / BLOCK_BYTES as u64));
                assert_eq!((part.shard, part.first), (shard, first));
                at += u64::from(part.length_bytes);
            }
            assert_eq!(at, length);
        }
    }

    #[test]
    fn ranges_that_overflow_are_not_contained() {
        let view = view(1, 0, 256, 1 << 20);
        assert!(view.contains(0, 1 << 20));
        assert!(!view.contains(1, 1 << 20));
        assert!(!view.contains(u64::MAX, 2));
    }
}
