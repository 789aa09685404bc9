//! Looking up and writing: the way from a root to a leaf, and the copies that a change makes of it.

use super::cache::PageCache;
use super::frames::Tenant;
use super::{Entry, LEVEL_BITS, MapError, PATH_PAGES_MAX, Root, TreeMut};
use crate::ids::{DeviceAddress, Epoch, ShareBlock, VolumeId};
use core::ops::Range;
use stillpoint_ondisk::map_page::{ENTRIES, LEVEL_MAX, MapEntry, MapPage};
use stillpoint_ondisk::page::{PageHeader, PageKind};
use zerocopy::FromZeros;
use zerocopy::little_endian::U32;

/// What lies where a leaf would be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leaf {
    /// The leaf, in this frame.
    Page(u32),
    /// A hole made in this epoch, in place of a page of this level.
    Hole { birth: Epoch, level: u8 },
    /// Beyond what the tree covers.
    Beyond,
}

/// The leaf that holds a block.
#[inline]
pub(super) fn leaf_of(block: u64) -> u64 {
    block >> LEVEL_BITS
}

/// Position of the page of `level` on the way to `leaf`, within its level.
#[inline]
pub(super) fn index_at(leaf: u64, level: u8) -> u64 {
    leaf >> (LEVEL_BITS * u32::from(level))
}

/// Entry of the page of `level` (at least 1) that leads to `leaf`.
#[inline]
pub(super) fn slot_at(leaf: u64, level: u8) -> usize {
    (index_at(leaf, level - 1) % ENTRIES as u64) as usize
}

/// The last leaf below the page at `index` of `level`.
pub(super) fn last_leaf(level: u8, index: u64) -> u64 {
    ((index + 1) << (LEVEL_BITS * u32::from(level))) - 1
}

impl Root {
    #[inline]
    fn covers(&self, leaf: u64) -> bool {
        index_at(leaf, self.level) == 0
    }
}

impl Entry {
    #[inline]
    fn of(entry: &MapEntry) -> Self {
        Self {
            address: DeviceAddress(entry.address()),
            crc32c: entry.check.get(),
            birth: Epoch(entry.birth.get()),
        }
    }

    fn hole(birth: Epoch) -> Self {
        Self {
            address: DeviceAddress::NONE,
            crc32c: 0,
            birth,
        }
    }
}

impl PageCache {
    /// What `block` maps to.
    ///
    /// # Errors
    /// [`MapError::Miss`].
    #[inline]
    pub fn lookup(&mut self, family: VolumeId, root: &Root, block: ShareBlock) -> Result<Entry, MapError> {
        Ok(match self.leaf(family, root, leaf_of(block.0))? {
            Leaf::Page(frame) => Entry::of(&self.frames.page(frame).entries[block.0 as usize % ENTRIES]),
            Leaf::Hole { birth, .. } => Entry::hole(birth),
            Leaf::Beyond => Entry::default(),
        })
    }

    /// Reads the entry of `block` if a shortcut leads to its leaf, and says nothing of use: only to have it near.
    #[inline]
    #[must_use]
    pub fn glance(&self, root: &Root, block: ShareBlock) -> u64 {
        let leaf = self.hints.peek(root, leaf_of(block.0), &self.frames);
        leaf.map_or(0, |frame| {
            self.frames.page(frame).entries[block.0 as usize % ENTRIES].address()
        })
    }

    /// What each of `blocks` blocks from `first` on maps to, in `out`, whose content is replaced.
    ///
    /// # Errors
    /// [`MapError::Miss`]; `out` is empty then.
    pub fn lookup_run(
        &mut self,
        family: VolumeId,
        root: &Root,
        first: ShareBlock,
        blocks: u32,
        out: &mut Vec<Entry>,
    ) -> Result<(), MapError> {
        out.clear();
        let mut rest = first.0..first.0 + u64::from(blocks);
        while let Some((leaf, slots)) = next_in_leaf(&mut rest) {
            match self.leaf(family, root, leaf) {
                Ok(Leaf::Page(frame)) => {
                    out.extend(self.frames.page(frame).entries[slots].iter().map(Entry::of));
                }
                Ok(Leaf::Hole { birth, .. }) => out.extend(slots.map(|_| Entry::hole(birth))),
                Ok(Leaf::Beyond) => out.extend(slots.map(|_| Entry::default())),
                Err(error) => {
                    out.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Finds a leaf without changing anything.
    #[inline]
    pub(super) fn leaf(&mut self, family: VolumeId, root: &Root, leaf: u64) -> Result<Leaf, MapError> {
        match self.hints.get(root, leaf, &mut self.frames) {
            Some(frame) => Ok(Leaf::Page(frame)),
            None => self.descend(family, root, leaf),
        }
    }

    fn descend(&mut self, family: VolumeId, root: &Root, leaf: u64) -> Result<Leaf, MapError> {
        if !root.covers(leaf) {
            return Ok(Leaf::Beyond);
        }
        let (mut entry, mut level) = (root.entry, root.level);
        loop {
            if entry.address() == 0 {
                let birth = Epoch(entry.birth.get());
                return Ok(Leaf::Hole { birth, level });
            }
            let frame = self.frame_of(family, level, index_at(leaf, level), &entry)?;
            if level == 0 {
                self.hints.put(root, leaf, frame, &self.frames);
                return Ok(Leaf::Page(frame));
            }
            entry = self.frames.page(frame).entries[slot_at(leaf, level)];
            level -= 1;
        }
    }

    /// Maps `crcs.len()` blocks from `first` on to as many blocks from `address` on (used already in the space).
    /// What they mapped to before is freed unless a snapshot holds it. All or nothing: on an error the tree has
    /// the content it had, and what was prepared serves the next try.
    ///
    /// The epoch is above 0 and above the epoch of every frozen tree that shares pages with this one.
    ///
    /// # Errors
    /// Every [`MapError`].
    pub fn set(
        &mut self,
        tree: &mut TreeMut<'_>,
        first: ShareBlock,
        address: DeviceAddress,
        crcs: &[U32],
    ) -> Result<(), MapError> {
        assert!(
            !crcs.is_empty() && !address.is_none(),
            "blocks are mapped to blocks"
        );
        let blocks = first.0..first.0 + crcs.len() as u64;
        let mut rest = blocks.clone();
        while let Some((leaf, slots)) = next_in_leaf(&mut rest) {
            let frame = self.writable_leaf(tree, leaf)?;
            if slots.len() == crcs.len() {
                self.replace(tree, leaf, frame, slots, address, crcs);
                return Ok(());
            }
        }
        let (mut rest, mut address, mut crcs) = (blocks, address, crcs);
        while let Some((leaf, slots)) = next_in_leaf(&mut rest) {
            // Found, not made: the pages of the first round may have filled the cache, but dirty pages stay.
            let Ok(Leaf::Page(frame)) = self.leaf(tree.family, tree.root, leaf) else {
                unreachable!("writable pages stay in the cache")
            };
            assert!(
                self.frames.is_writable(frame, tree.epoch.0),
                "the first round made it writable"
            );
            let (now, later) = crcs.split_at(slots.len());
            self.replace(tree, leaf, frame, slots, address, now);
            if !later.is_empty() {
                address = address.plus(now.len() as u64);
            }
            crcs = later;
        }
        Ok(())
    }

    fn replace(
        &mut self,
        tree: &mut TreeMut<'_>,
        leaf: u64,
        frame: u32,
        slots: Range<usize>,
        address: DeviceAddress,
        crcs: &[U32],
    ) {
        let page = self.frames.page_mut(frame);
        tree.release(leaf, &page.entries[slots.clone()]);
        tree.stats.mapped_blocks += slots.len() as u64;
        let birth = tree.epoch.0;
        for ((entry, crc), block) in page.entries[slots].iter_mut().zip(crcs).zip(address.0..) {
            *entry = MapEntry::new(block, crc.get(), birth);
        }
    }

    /// The frame of a leaf that the tree may change in place.
    #[inline]
    pub(super) fn writable_leaf(&mut self, tree: &mut TreeMut<'_>, leaf: u64) -> Result<u32, MapError> {
        // A writable leaf is below writable pages only: they were copied when it was.
        match self.hints.get(tree.root, leaf, &mut self.frames) {
            Some(frame) if self.frames.is_writable(frame, tree.epoch.0) => Ok(frame),
            _ => {
                let path = self.writable_path(tree, leaf, 0)?;
                self.hints.put(tree.root, leaf, path[0], &self.frames);
                Ok(path[0])
            }
        }
    }

    /// Makes the pages on the way to `leaf` writable, from the root down to level `stop`; grows the tree if it
    /// does not cover the leaf. Gives their frames by level. An error leaves what was done: copies of pages
    /// and empty pages, which change no content.
    pub(super) fn writable_path(
        &mut self,
        tree: &mut TreeMut<'_>,
        leaf: u64,
        stop: u8,
    ) -> Result<[u32; PATH_PAGES_MAX], MapError> {
        // From here on nothing is evicted, so frames that were found stay.
        self.frames.prepare(PATH_PAGES_MAX)?;
        self.grow(tree, leaf)?;
        let mut path = [0; PATH_PAGES_MAX];
        let mut level = tree.root.level;
        let mut entry = tree.root.entry;
        loop {
            let (frame, moved) = self.writable_page(tree, level, index_at(leaf, level), &entry)?;
            if let Some(moved) = moved {
                if level == tree.root.level {
                    tree.root.entry = moved;
                } else {
                    let parent = path[usize::from(level) + 1];
                    self.frames.page_mut(parent).entries[slot_at(leaf, level + 1)] = moved;
                }
            }
            path[usize::from(level)] = frame;
            if level == stop {
                return Ok(path);
            }
            entry = self.frames.page(frame).entries[slot_at(leaf, level)];
            level -= 1;
        }
    }

    /// Puts new roots above the old one until the tree covers `leaf`.
    fn grow(&mut self, tree: &mut TreeMut<'_>, leaf: u64) -> Result<(), MapError> {
        while !tree.root.covers(leaf) {
            assert!(tree.root.level < LEVEL_MAX, "a share has at most 2^40 blocks");
            let level = tree.root.level + 1;
            if tree.root.entry != MapEntry::default() {
                let (frame, entry) = self.make_page(tree, level, 0)?;
                let page = self.frames.page_mut(frame);
                page.entries.fill(MapEntry::default());
                page.entries[0] = tree.root.entry;
                tree.root.entry = entry;
            }
            tree.root.level = level;
        }
        Ok(())
    }

    /// A page that may be changed in place, with the content of the one at `entry`. If it had to be made, also
    /// the entry that points to it.
    fn writable_page(
        &mut self,
        tree: &mut TreeMut<'_>,
        level: u8,
        index: u64,
        entry: &MapEntry,
    ) -> Result<(u32, Option<MapEntry>), MapError> {
        if entry.address() == 0 {
            let (frame, made) = self.make_page(tree, level, index)?;
            let hole = MapEntry::new(0, 0, entry.birth.get());
            self.frames.page_mut(frame).entries.fill(hole);
            return Ok((frame, Some(made)));
        }
        let old = self.frame_of(tree.family, level, index, entry)?;
        if self.frames.is_writable(old, tree.epoch.0) {
            return Ok((old, None));
        }
        let (frame, made) = self.make_page(tree, level, index)?;
        let entries = self.frames.page(old).entries;
        self.frames.page_mut(frame).entries = entries;
        self.release_page(tree, level, index, entry, old);
        Ok((frame, Some(made)))
    }

    /// The tree no longer refers to this page: frees it unless a snapshot holds it.
    pub(super) fn release_page(
        &mut self,
        tree: &mut TreeMut<'_>,
        level: u8,
        index: u64,
        entry: &MapEntry,
        frame: u32,
    ) {
        let birth = Epoch(entry.birth.get());
        if tree.free.frees(birth, last_leaf(level, index)) {
            tree.space.free(DeviceAddress(entry.address()), 1);
            self.frames.discard(frame);
        }
    }

    /// A new dirty page, all but its entries filled in, and the entry that points to it.
    fn make_page(
        &mut self,
        tree: &mut TreeMut<'_>,
        level: u8,
        index: u64,
    ) -> Result<(u32, MapEntry), MapError> {
        let extent = tree.space.reserve(1, tree.purpose).ok_or(MapError::NoSpace)?;
        tree.space.commit(extent);
        let generation = self.frames.open_generation();
        let page_generation = self.page_generation(generation);
        let entry = MapEntry::new(extent.address.0, page_generation as u32, tree.epoch.0);
        let frame = self.frames.take(Tenant {
            address: extent.address,
            generation,
            birth: tree.epoch.0,
            check: page_generation as u32,
        });
        let (pool, shard) = (self.pool, self.shard);
        let page: &mut MapPage = self.frames.page_mut(frame);
        page.header = PageHeader::new(PageKind::Map, pool);
        page.index = index.into();
        page.generation = page_generation.into();
        page.volume = tree.family.0.into();
        page.birth = tree.epoch.0.into();
        page.shard = shard.0.into();
        page.level = level;
        page.reserved_a.zero();
        page.reserved_b.zero();
        Ok((frame, entry))
    }
}

impl TreeMut<'_> {
    /// Whether there are holes among these entries that were not changed since the newest snapshot, if there is one.
    pub(super) fn has_uncounted_holes(&self, last_leaf: u64, entries: &[MapEntry]) -> bool {
        let newest = self.free.newest_at(last_leaf);
        newest.is_some_and(|newest| {
            let mut holes = entries.iter().filter(|entry| entry.address() == 0);
            holes.any(|hole| hole.birth.get() <= newest.0)
        })
    }

    /// Holes that are to be born again count as changed, as blocks do.
    pub(super) fn count_holes(&mut self, leaf: u64, holes: &[MapEntry]) {
        if let Some(newest) = self.free.newest_at(leaf) {
            let unchanged = holes.iter().filter(|hole| hole.birth.get() <= newest.0);
            self.stats.changed_blocks += unchanged.count() as u64;
        }
    }

    /// Takes leaf entries out of the figures and frees their blocks unless a snapshot holds them; blocks that
    /// lie one after the other are freed together. They count as changed if they had not changed since the
    /// newest snapshot.
    pub(super) fn release(&mut self, leaf: u64, entries: &[MapEntry]) {
        let newest = self.free.newest_at(leaf).unwrap_or_default().0;
        let mut run = 0..0;
        for entry in entries {
            let (address, birth) = (entry.address(), entry.birth.get());
            self.stats.changed_blocks += u64::from(birth <= newest);
            if address == 0 {
                continue;
            }
            self.stats.mapped_blocks -= 1;
            if !self.free.frees(Epoch(birth), leaf) {
                continue;
            }
            if address == run.end {
                run.end += 1;
            } else {
                self.free_run(run);
                run = address..address + 1;
            }
        }
        self.free_run(run);
    }

    fn free_run(&mut self, run: Range<u64>) {
        if !run.is_empty() {
            self.space
                .free(DeviceAddress(run.start), (run.end - run.start) as u32);
        }
    }
}

/// Cuts off the part of a range of blocks that lies in its first leaf: the leaf and its slots.
#[inline]
pub(super) fn next_in_leaf(blocks: &mut Range<u64>) -> Option<(u64, Range<usize>)> {
    if blocks.is_empty() {
        return None;
    }
    let leaf = leaf_of(blocks.start);
    let end = blocks.end.min((leaf + 1) << LEVEL_BITS);
    let slot = blocks.start as usize % ENTRIES;
    let slots = slot..slot + (end - blocks.start) as usize;
    blocks.start = end;
    Some((leaf, slots))
}
