//! Discarding: blocks become holes, leaves without blocks go, bounded work at a time.

use super::cache::PageCache;
use super::tree::{Leaf, index_at, next_in_leaf, slot_at};
use super::{LEVEL_BITS, MapError, TreeMut};
use crate::ids::ShareBlock;
use stillpoint_ondisk::map_page::MapEntry;

impl PageCache {
    /// Makes up to `count` blocks from `first` on holes, looking at `leaves_max` leaves or unmapped subtrees at
    /// most (at least 1). Gives how many blocks are done; go on from there. What was a hole already keeps its
    /// birth, unless its whole leaf or subtree goes with it.
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
        let mut done = 0;
        for _ in 0..leaves_max {
            if done == count {
                break;
            }
            match self.clear_next(tree, first.0 + done, count - done) {
                Ok(blocks) => done += blocks.min(count - done),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Clears what lies in the leaf or unmapped subtree at `first`; gives the blocks up to its end or more.
    fn clear_next(&mut self, tree: &mut TreeMut<'_>, first: u64, count: u64) -> Result<u64, MapError> {
        let (leaf, slots) = next_in_leaf(&mut (first..first + count)).expect("something is left to clear");
        let frame = match self.leaf(tree.family, tree.root, leaf)? {
            Leaf::Beyond => return Ok(count),
            Leaf::Hole { level, .. } => {
                let leaves_end = (index_at(leaf, level) + 1) << (LEVEL_BITS * u32::from(level));
                return Ok((leaves_end << LEVEL_BITS) - first);
            }
            Leaf::Page(frame) => frame,
        };
        let blocks = slots.len() as u64;
        let entries = &self.frames.page(frame).entries;
        if !any_mapped(&entries[slots.clone()]) {
            return Ok(blocks);
        }
        if !any_mapped(&entries[..slots.start]) && !any_mapped(&entries[slots.end..]) {
            self.drop_leaf(tree, leaf)?;
            return Ok(blocks);
        }
        let frame = self.writable_leaf(tree, leaf)?;
        let hole = MapEntry::new(0, 0, tree.epoch.0);
        for run in self.frames.page_mut(frame).entries[slots].chunk_by_mut(both_or_neither_mapped) {
            if is_mapped(&run[0]) {
                tree.release(leaf, run);
                run.fill(hole);
            }
        }
        Ok(blocks)
    }

    /// Puts a hole in the place of a leaf with all its blocks, and of the pages above that lead nowhere else.
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
            if any_mapped(&page.entries) {
                return Ok(());
            }
            let entry = if level == top {
                tree.root.entry
            } else {
                self.frames.page(path[usize::from(level) + 1]).entries[slot_at(leaf, level + 1)]
            };
            self.release_page(tree, level, index_at(leaf, level), &entry, frame);
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
