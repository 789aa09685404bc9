//! What differs between two maps of one family, found by comparing their trees position by position.
//!
//! A block or page is never written over while a frozen map refers to it, and maps never share a place between
//! different positions. So the same address at the same position says that everything below is the same, and whole
//! subtrees are passed by: the cost follows the amount of change, not the size of the maps.

use super::cache::PageCache;
use super::tree::index_at;
use super::{LEVEL_BITS, MapError, Root};
use crate::ids::{Epoch, ShareBlock, VolumeId};
use stillpoint_ondisk::map_page::{ENTRIES, MapEntry, MapPage};

/// A run of blocks that all changed, all in the same way, or all did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whether the blocks were written or discarded since the base. Never-written and discarded are the same.
    pub changed: bool,
    /// Whether the blocks are holes now. Only told of blocks that changed.
    pub hole: bool,
    /// First block behind the run, as far as one page tells; `u64::MAX` if there is nothing more.
    pub end: u64,
    /// The newest epoch of the map (not of the base) that this depends on.
    pub birth: Epoch,
}

/// What a tree says of the compared position: an entry and the level of the page it leads to.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    entry: MapEntry,
    level: u8,
    /// First block behind what the entry covers.
    end: u64,
}

/// Blocks covered by a page of `level`.
fn covered(level: u8) -> u64 {
    1 << (LEVEL_BITS * (u32::from(level) + 1))
}

impl Cursor {
    fn top(root: &Root, block: u64) -> Self {
        if block >= covered(root.level) {
            return Self {
                entry: MapEntry::default(),
                level: 0,
                end: u64::MAX,
            };
        }
        Self {
            entry: root.entry,
            level: root.level,
            end: covered(root.level),
        }
    }

    fn is_hole(&self) -> bool {
        self.entry.address() == 0
    }

    /// What it says of the children of a page of `level`: that page's entries, or the same for all.
    fn entry(&self, page: Option<&MapPage>, slot: usize) -> MapEntry {
        page.map_or(self.entry, |page| page.entries[slot])
    }

    /// One level further down, if it stands at a page.
    fn descend(&mut self, page: Option<&MapPage>, block: u64) {
        let Some(page) = page else { return };
        self.level -= 1;
        let child = covered(self.level);
        self.entry = page.entries[(block / child) as usize % ENTRIES];
        self.end = (block / child + 1) * child;
    }
}

impl PageCache {
    /// The run that begins at `block`: what `map` says there against what `base` says. Both are of `family`; they may
    /// be of different sizes.
    ///
    /// # Errors
    /// [`MapError::Miss`]; nothing else.
    pub fn difference_at(
        &mut self,
        family: VolumeId,
        map: &Root,
        base: &Root,
        block: ShareBlock,
    ) -> Result<Difference, MapError> {
        let block = block.0;
        let (mut map, mut base) = (Cursor::top(map, block), Cursor::top(base, block));
        if map.entry.address() == base.entry.address() {
            // Beyond what a tree covers there is nothing either.
            (map.end, base.end) = (u64::MAX, u64::MAX);
        }
        loop {
            if map.entry.address() == base.entry.address() {
                return Ok(Difference {
                    changed: false,
                    hole: false,
                    end: map.end.min(base.end),
                    birth: Epoch(map.entry.birth.get()),
                });
            }
            let tops = [map, base].into_iter().filter(|cursor| !cursor.is_hole());
            let level = tops.map(|cursor| cursor.level).max().expect("not both are holes");
            let frames = [
                self.frame_at(family, level, block, &map)?,
                self.frame_at(family, level, block, &base)?,
            ];
            let pages = frames.map(|frame| frame.map(|frame| self.frames.page(frame)));
            // A tree that is not as high as the other one has nothing to say at this level yet.
            let lower = [map, base]
                .iter()
                .any(|cursor| !cursor.is_hole() && cursor.level < level);
            if !lower && let Some(run) = run_of(level, block, [&map, &base], pages) {
                return Ok(run);
            }
            map.descend(pages[0], block);
            base.descend(pages[1], block);
        }
    }

    fn frame_at(
        &mut self,
        family: VolumeId,
        level: u8,
        block: u64,
        cursor: &Cursor,
    ) -> Result<Option<u32>, MapError> {
        if cursor.is_hole() || cursor.level != level {
            return Ok(None);
        }
        let index = index_at(block >> LEVEL_BITS, level);
        self.frame_of(family, level, index, &cursor.entry).map(Some)
    }
}

/// The run at `block` as the entries of two pages of `level` tell it (a hole has no page); `None` if that takes a look
/// at their children.
fn run_of(level: u8, block: u64, cursors: [&Cursor; 2], pages: [Option<&MapPage>; 2]) -> Option<Difference> {
    let child = 1 << (LEVEL_BITS * u32::from(level));
    let first = (block / child) as usize % ENTRIES;
    let entries = |slot| (cursors[0].entry(pages[0], slot), cursors[1].entry(pages[1], slot));
    let state = |slot| {
        let (map, base) = entries(slot);
        let changed = map.address() != base.address();
        (changed, changed && map.address() == 0)
    };
    let (changed, hole) = state(first);
    if changed && level > 0 {
        return None;
    }
    let same = (first..ENTRIES).take_while(|&slot| state(slot) == (changed, hole));
    let (count, birth) = same.fold((0, 0), |(count, birth), slot| {
        (count + 1, entries(slot).0.birth.get().max(birth))
    });
    Some(Difference {
        changed,
        hole,
        end: (block / child + count) * child,
        birth: Epoch(birth),
    })
}
