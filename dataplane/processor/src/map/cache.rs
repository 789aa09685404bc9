//! The page cache of one shard, shared by all its trees, live and frozen.

use super::frames::{Frames, Tenant};
use super::hints::Hints;
use super::{MapError, PageRef};
use crate::ids::{DeviceAddress, ShardIndex, VolumeId};
use stillpoint_ondisk::map_page::{MapEntry, MapPage, MapPageIdentity};
use stillpoint_ondisk::page::{Damage, seal};
use zerocopy::IntoBytes;

/// Map pages in memory, at most `capacity_pages` of them. It does no I/O: operations that need a page which
/// is not there end in [`MapError::Miss`], and checkpoints take dirty pages out with [`Self::next_dirty`].
///
/// A generation is what one checkpoint writes. Pages are made in the open generation; [`Self::begin_checkpoint`]
/// closes it and opens the next.
#[derive(Debug)]
pub struct PageCache {
    pub(super) pool: [u8; 16],
    pub(super) shard: ShardIndex,
    pub(super) frames: Frames,
    pub(super) hints: Hints,
    /// Tells the pages of this life from those that an earlier one left at the same places.
    salt: u32,
}

impl PageCache {
    /// An empty cache. `open_generation` is one more than that of the newest durable shard header (or higher, if
    /// an interrupted checkpoint left pages of that generation). Memory grows up to the capacity, which is at
    /// least [`super::CAPACITY_PAGES_MIN`] pages.
    #[must_use]
    pub fn new(pool: [u8; 16], shard: ShardIndex, capacity_pages: usize, open_generation: u64) -> Self {
        Self {
            pool,
            shard,
            frames: Frames::new(capacity_pages, open_generation),
            hints: Hints::new(capacity_pages),
            salt: 0,
        }
    }

    /// Sets what tells the pages that are made from now on from those of any other life of the pool: an interrupted
    /// checkpoint leaves pages of the generation that the next life makes, and at the same places. Should the write of
    /// a new page be lost, its parent must not take the old one for it.
    pub fn set_salt(&mut self, salt: u32) {
        self.salt = salt;
    }

    /// What pages of a checkpoint generation say of themselves; its low half is what their parents say.
    #[must_use]
    pub fn page_generation(&self, generation: u64) -> u64 {
        generation << 32 | u64::from((generation as u32).wrapping_add(self.salt))
    }

    /// Changes the capacity. A larger one counts at once; below a smaller one no memory is given back.
    pub fn set_capacity(&mut self, capacity_pages: usize) {
        self.frames.set_capacity(capacity_pages);
    }

    /// Takes in a page that was read from where `page` says. Nothing happens if it is there already.
    ///
    /// # Errors
    /// [`Damage`] if these bytes are not that page.
    pub fn insert(&mut self, page: &PageRef, bytes: &[u8]) -> Result<(), Damage> {
        if self
            .frames
            .find(page.address.0, page.identity.generation)
            .is_some()
        {
            return Ok(());
        }
        let found = MapPage::parse(bytes, self.pool, &page.identity)?;
        let frame = self.frames.take(Tenant {
            address: page.address,
            generation: 0,
            birth: found.birth.get(),
            check: page.identity.generation,
        });
        *self.frames.page_mut(frame) = *found;
        Ok(())
    }

    /// The page at position `index` of `level` to which `entry` (not a hole) points.
    ///
    /// # Errors
    /// [`MapError::Miss`].
    pub fn page(
        &mut self,
        family: VolumeId,
        level: u8,
        index: u64,
        entry: &MapEntry,
    ) -> Result<&MapPage, MapError> {
        let frame = self.frame_of(family, level, index, entry)?;
        Ok(self.frames.page(frame))
    }

    #[inline]
    pub(super) fn frame_of(
        &mut self,
        family: VolumeId,
        level: u8,
        index: u64,
        entry: &MapEntry,
    ) -> Result<u32, MapError> {
        let (address, generation) = (entry.address(), entry.check.get());
        assert!(address != 0, "a hole has no page");
        if let Some(frame) = self.frames.find(address, generation) {
            return Ok(frame);
        }
        Err(MapError::Miss(PageRef {
            address: DeviceAddress(address),
            identity: MapPageIdentity {
                shard: self.shard.0,
                volume: family.0,
                level,
                index,
                generation,
            },
        }))
    }

    /// Whether the page at this place is in memory and is on the device for good.
    #[must_use]
    pub fn is_durable(&self, address: DeviceAddress) -> bool {
        self.frames
            .at(address)
            .is_some_and(|frame| self.frames.is_durable(frame))
    }

    /// Drops a page that was freed: nothing refers to it any more but perhaps the checkpoint that is running,
    /// which still writes it.
    pub fn forget(&mut self, address: DeviceAddress) {
        if let Some(frame) = self.frames.at(address) {
            self.frames.discard(frame);
        }
    }

    /// Closes the open generation and gives its number; later changes make new pages. The space must be frozen
    /// at the same instant, and the roots that go into the checkpoint are the roots of now.
    pub fn begin_checkpoint(&mut self) -> u64 {
        self.frames.begin_checkpoint()
    }

    /// Writes the next page of the closed generation, sealed, to `into` (4096 bytes) and says where it goes;
    /// `None` when all were handed out.
    pub fn next_dirty(&mut self, into: &mut [u8]) -> Option<DeviceAddress> {
        let (address, page) = self.frames.next_closed()?;
        into.copy_from_slice(page.as_bytes());
        seal(into);
        Some(address)
    }

    /// All pages of the closed generation are on the device for good: they may be evicted now.
    pub fn checkpoint_durable(&mut self) {
        self.frames.checkpoint_durable();
    }

    /// Generation in which pages are made now.
    #[must_use]
    pub fn open_generation(&self) -> u64 {
        self.frames.open_generation()
    }

    /// Dirty pages of the open generation.
    #[must_use]
    pub fn dirty_pages(&self) -> usize {
        self.frames.open_pages()
    }

    /// Pages of the closed generation that are not durable yet.
    #[must_use]
    pub fn closed_pages(&self) -> usize {
        self.frames.closed_pages()
    }

    /// Clean pages that may be in memory now.
    #[must_use]
    pub fn clean_room_pages(&self) -> usize {
        self.frames.capacity() - self.frames.open_pages() - self.frames.closed_pages()
    }

    /// Pages that may be in memory.
    #[must_use]
    pub fn capacity_pages(&self) -> usize {
        self.frames.capacity()
    }

    /// Pages in memory.
    #[must_use]
    pub fn cached_pages(&self) -> usize {
        self.frames.cached_pages()
    }
}
