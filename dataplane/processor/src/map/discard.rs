//! Discarding: blocks become holes, leaves without blocks go, bounded work at a time.

use super::cache::PageCache;
use super::tree::{Leaf, index_at, last_leaf, next_in_leaf, slot_at};
use super::{LEVEL_BITS, MapError, TreeMut};
use crate::ids::ShareBlock;
use crate::space::Purpose;
use stillpoint_ondisk::map_page::MapEntry;

/// Leaves and unmapped subtrees that one call looks at.
const LOOKS_MAX: usize = 256;

impl PageCache {
    /// Makes up to `count` blocks from `first` on holes, in `leaves_max` leaves at most (at least 1), beside which unmapped
    /// subtrees are passed by. Gives how many blocks are done; go on from there. What was a hole already keeps its
    /// birth, unless its whole leaf or subtree goes with it; and that does not go before all of it has counted as changed since
    /// the newest snapshot (what is written into it later would not count any more), unless there is no room: then all of the leaf
    /// counts.
    ///
    /// # Errors
    /// Every [`MapError`], if nothing was done in this call.
    pub fn clear_leaf_range(
        &mut self,
        tree: &mut TreeMut<'_>,
        first: ShareBlock,
        count: u64,
        leaves_max: usize,
    ) -> Result<u64, MapError> {
        let (mut done, mut leaves) = (0, 0);
        for _ in 0..LOOKS_MAX {
            if done == count || leaves == leaves_max {
                break;
            }
            match self.clear_next(tree, first.0 + done, count - done) {
                Ok((blocks, is_leaf)) => {
                    done += blocks.min(count - done);
                    leaves += usize::from(is_leaf);
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Clears what lies in the leaf or unmapped subtree at `first`; gives the blocks up to its end or more, and
    /// whether there was a leaf.
    fn clear_next(
        &mut self,
        tree: &mut TreeMut<'_>,
        first: u64,
        count: u64,
    ) -> Result<(u64, bool), MapError> {
        let (leaf, slots) = next_in_leaf(&mut (first..first + count)).expect("something is left to clear");
        let frame = match self.leaf(tree.family, tree.root, leaf)? {
            Leaf::Beyond => return Ok((count, false)),
            Leaf::Hole { level, .. } => {
                let leaves_end = (index_at(leaf, level) + 1) << (LEVEL_BITS * u32::from(level));
                return Ok(((leaves_end << LEVEL_BITS) - first, false));
            }
            Leaf::Page(frame) => frame,
        };
        let blocks = slots.len() as u64;
        let entries = &self.frames.page(frame).entries;
        let is_last = !any_mapped(&entries[..slots.start]) && !any_mapped(&entries[slots.end..]);
        if is_last && !tree.has_uncounted_holes(leaf, entries) {
            self.drop_leaf(tree, leaf)?;
            return Ok((blocks, true));
        }
        if !any_mapped(&entries[slots.clone()]) {
            return Ok((blocks, true));
        }
        let frame = match self.leaf_to_clear(tree, leaf, is_last) {
            Err(MapError::NoSpace) if is_last => {
                self.drop_leaf(tree, leaf)?;
                return Ok((blocks, true));
            }
            found => found?,
        };
        let hole = MapEntry::new(0, 0, tree.epoch.0);
        for run in self.frames.page_mut(frame).entries[slots].chunk_by_mut(both_or_neither_mapped) {
            if is_mapped(&run[0]) {
                tree.release(leaf, run);
                run.fill(hole);
            }
        }
        Ok((blocks, true))
    }

    /// The frame of a leaf in which blocks become holes. One that loses its last block could go: it is not copied into the
    /// room that the map needs when the pool is full.
    fn leaf_to_clear(&mut self, tree: &mut TreeMut<'_>, leaf: u64, is_last: bool) -> Result<u32, MapError> {
        let purpose = tree.purpose;
        if is_last {
            tree.purpose = Purpose::Data;
        }
        let found = self.writable_leaf(tree, leaf);
        tree.purpose = purpose;
        found
    }

    /// Puts a hole in the place of a leaf with all its blocks, which all count as changed, and of the pages above that lead nowhere else.
    fn drop_leaf(&mut self, tree: &mut TreeMut<'_>, leaf: u64) -> Result<(), MapError> {
        let hole = MapEntry::new(0, 0, tree.epoch.0);
        let top = tree.root.level;
        let (path, entry) = if top == 0 {
            (None, tree.root.entry)
        } else {
            let path = self.writable_path(tree, leaf, 1)?;
            (Some(path), self.frames.page(path[1]).entries[slot_at(leaf, 1)])
        };
        // The copies above may have evicted the leaf; nothing has changed for whoever looks, so try again.
        let frame = self.frame_of(tree.family, 0, leaf, &entry)?;
        self.hints.clear(tree.root, leaf);
        for run in self.frames.page(frame).entries.chunk_by(both_or_neither_mapped) {
            if is_mapped(&run[0]) {
                tree.release(leaf, run);
            } else {
                tree.count_holes(leaf, run);
            }
        }
        self.release_page(tree, 0, leaf, &entry, frame);
        let Some(path) = path else {
            tree.root.entry = hole;
            return Ok(());
        };
        for level in 1..=top {
            let frame = path[usize::from(level)];
            let page = self.frames.page_mut(frame);
            page.entries[slot_at(leaf, level)] = hole;
            let (index, entries) = (index_at(leaf, level), &page.entries);
            if any_mapped(entries) || tree.has_uncounted_holes(last_leaf(level, index), entries) {
                return Ok(());
            }
            let entry = if level == top {
                tree.root.entry
            } else {
                self.frames.page(path[usize::from(level) + 1]).entries[slot_at(leaf, level + 1)]
            };
            self.release_page(tree, level, index, &entry, frame);
        }
        tree.root.entry = hole;
        Ok(())
    }
}

fn is_mapped(entry: &MapEntry) -> bool {
    entry.address() != 0
}

fn both_or_neither_mapped(a: &MapEntry, b: &MapEntry) -> bool {
    is_mapped(a) == is_mapped(b)
}

fn any_mapped(entries: &[MapEntry]) -> bool {
    entries.iter().any(is_mapped)
}
