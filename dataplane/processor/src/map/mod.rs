//! The map of a share: from block to `{device address, crc32c, birth epoch}`, as a persistent
//! (copy-on-write) radix tree of [`MapPage`]s behind a bounded page cache.
//!
//! ```text
//! Root { entry, level 2 } -> interior page, level 2 (256 x 64 GiB)
//!                              -> interior page, level 1 (256 x 1 MiB)
//!                                   -> leaf, level 0 (256 blocks of 4 KiB)
//! ```
//! An interior entry holds the child's address, the low half of the generation and the epoch in which the
//! child was made. Address 0 with birth e: everything below became a hole in epoch e. A leaf entry holds a
//! block's address, CRC32C and birth; address 0 with birth e: a hole made in epoch e (all zero: never written).
//!
//! Invariants:
//! - A page that a durable checkpoint or a frozen root refers to is never changed: a page is changed in place
//!   only if it was made in the open generation and in the tree's epoch, else it is copied to a new address.
//! - Freezing a tree is keeping its [`Root`] and raising the epoch.
//! - An operation that fails ([`MapError`]) leaves every tree with the content it had.
//! - Dirty pages are never evicted; some frames are kept for clean pages, so that lookups always get on.

mod cache;
mod compare;
mod discard;
mod frames;
mod hints;
#[cfg(test)]
mod tests;
mod tree;

pub use cache::PageCache;
pub use compare::Difference;
pub use frames::CAPACITY_PAGES_MIN;

use crate::ids::{DeviceAddress, Epoch, VolumeId};
use crate::space::{Purpose, Space};
use stillpoint_ondisk::map_page::{ENTRIES, LEVEL_MAX, MapEntry, MapPage, MapPageIdentity};

/// Bits of a block number that one level decodes.
const LEVEL_BITS: u32 = ENTRIES.trailing_zeros();
/// Blocks of one leaf.
pub const LEAF_BLOCKS: u64 = ENTRIES as u64;
/// Pages on the way from a root to a leaf at most.
const PATH_PAGES_MAX: usize = LEVEL_MAX as usize + 1;

const _: () = assert!(size_of::<MapPage>() == crate::BLOCK_BYTES && ENTRIES == 1 << LEVEL_BITS);

/// Where a tree begins. The default is the empty tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// The root page, or a hole.
    pub entry: MapEntry,
    /// Level of the root page; the tree covers 256^(level + 1) blocks, beyond it nothing was ever written.
    pub level: u8,
}

/// A page that must be read before an operation can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    /// Where it lies.
    pub address: DeviceAddress,
    /// What it must say of itself.
    pub identity: MapPageIdentity,
}

/// Why an operation on a map did not end. Nothing has changed that a lookup could see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Read this page, give it to the cache, try again.
    Miss(PageRef),
    /// No block is free for a new map page.
    NoSpace,
    /// Too many pages are dirty: try again after the next durable checkpoint.
    CacheFull,
}

/// What a block maps to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Where the block lies; [`DeviceAddress::NONE`] is a hole.
    pub address: DeviceAddress,
    /// Its CRC32C.
    pub crc32c: u32,
    /// Epoch in which it was written or discarded; 0 = never.
    pub birth: Epoch,
}

/// Which replaced blocks and pages nobody else holds: those born after the newest snapshot.
///
/// While the newest snapshot is being freed by the background walk, leaves that the walk has passed follow
/// the snapshot before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeRule {
    /// Epoch of the newest snapshot.
    pub newest: Option<Epoch>,
    /// How far the walk has come.
    pub passed: Option<Passed>,
}

/// How far the walk that frees the newest snapshot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// All leaves before this one were passed.
    pub cursor_leaf: u64,
    /// Epoch of the snapshot before the newest.
    pub newest: Option<Epoch>,
}

impl FreeRule {
    /// Whether what was born in `birth` and covers leaves up to `last_leaf` is held by no snapshot.
    #[inline]
    #[must_use]
    pub fn frees(&self, birth: Epoch, last_leaf: u64) -> bool {
        self.newest_at(last_leaf).is_none_or(|newest| birth > newest)
    }

    /// Whether a block of `leaf` that was born in `birth` has not changed since the newest snapshot, so that changing it
    /// counts. What changed before a snapshot that the walk has passed there counts in the log that ended with it.
    #[inline]
    #[must_use]
    pub fn is_unchanged(&self, birth: Epoch, leaf: u64) -> bool {
        birth <= self.newest_at(leaf).unwrap_or_default()
    }

    #[inline]
    fn newest_at(&self, last_leaf: u64) -> Option<Epoch> {
        match self.passed {
            Some(passed) if passed.cursor_leaf > last_leaf => passed.newest,
            _ => self.newest,
        }
    }
}

/// Figures of a live tree, kept up to date by its changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Blocks mapped.
    pub mapped_blocks: u64,
    /// Blocks written or discarded since the newest snapshot, each counted once.
    pub changed_blocks: u64,
}

/// A live tree with all that a change of it needs.
#[derive(Debug)]
pub struct TreeMut<'a> {
    /// The volume that the pages carry: the volume itself, or the one it was cloned from.
    pub family: VolumeId,
    /// Where the tree begins; moves when the root page is copied.
    pub root: &'a mut Root,
    /// The current epoch: birth of everything that is made.
    pub epoch: Epoch,
    /// What may be freed.
    pub free: FreeRule,
    /// Where pages come from, and where what is replaced goes.
    pub space: &'a mut Space,
    /// What the change is for: how far it may use the space up.
    pub purpose: Purpose,
    /// Kept up to date.
    pub stats: &'a mut TreeStats,
}
