//! A shortcut from (root, leaf) to the leaf's frame, so that most lookups need one probe.
//!
//! A root is named by address and generation, which no two roots share: an address is used at most once per
//! generation. A tree changes below an unchanged root address only where a leaf is replaced or dropped; both
//! write or clear the one place where a hint for that leaf can be. A frame that was given to another page since
//! has another stamp.

use super::Root;
use super::frames::Frames;
use crate::index::fold;

/// Hints at least and at most (32 bytes each).
const HINTS_MIN: usize = 1 << 10;
const HINTS_MAX: usize = 1 << 18;

#[derive(Clone, Copy, Debug, Default)]
struct Hint {
    root: u64,
    leaf: u64,
    check: u32,
    frame: u32,
    /// 0: no hint.
    stamp: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Hints {
    hints: Vec<Hint>,
    mask: usize,
}

impl Hints {
    pub fn new(capacity_pages: usize) -> Self {
        let count = capacity_pages.next_power_of_two().clamp(HINTS_MIN, HINTS_MAX);
        Self {
            hints: vec![Hint::default(); count],
            mask: count - 1,
        }
    }

    #[inline]
    fn place(&self, root: &Root, leaf: u64) -> usize {
        fold(root.entry.address(), leaf) as usize & self.mask
    }

    /// The frame of the leaf, if it is known and still there.
    #[inline]
    pub fn get(&self, root: &Root, leaf: u64, frames: &mut Frames) -> Option<u32> {
        let hint = &self.hints[self.place(root, leaf)];
        let fits =
            hint.leaf == leaf && hint.root == root.entry.address() && hint.check == root.entry.check.get();
        (fits && frames.still_holds(hint.frame, hint.stamp)).then_some(hint.frame)
    }

    /// The same without counting the leaf as used.
    #[inline]
    pub fn peek(&self, root: &Root, leaf: u64, frames: &Frames) -> Option<u32> {
        let hint = &self.hints[self.place(root, leaf)];
        let fits =
            hint.leaf == leaf && hint.root == root.entry.address() && hint.check == root.entry.check.get();
        (fits && frames.has_stamp(hint.frame, hint.stamp)).then_some(hint.frame)
    }

    #[inline]
    pub fn put(&mut self, root: &Root, leaf: u64, frame: u32, frames: &Frames) {
        let place = self.place(root, leaf);
        self.hints[place] = Hint {
            root: root.entry.address(),
            leaf,
            check: root.entry.check.get(),
            frame,
            stamp: frames.stamp(frame),
        };
    }

    /// Forgets whatever is known of the leaf.
    pub fn clear(&mut self, root: &Root, leaf: u64) {
        let place = self.place(root, leaf);
        self.hints[place] = Hint::default();
    }
}
