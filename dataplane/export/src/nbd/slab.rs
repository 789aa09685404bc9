//! A table of numbered entries with a limit. Numbers are used again; memory grows up to the limit and stays.

use core::ops::{Index, IndexMut};

#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u16>,
    limit: usize,
}

impl<T> Slab<T> {
    pub(super) fn new(limit: usize) -> Self {
        assert!(limit <= usize::from(u16::MAX), "numbers have 16 bits");
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            limit,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.entries.len() == self.limit
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The number of the new entry. There must be room.
    pub(super) fn insert(&mut self, entry: T) -> u16 {
        if let Some(slot) = self.free.pop() {
            self.entries[usize::from(slot)] = Some(entry);
            return slot;
        }
        assert!(self.entries.len() < self.limit, "room was asked for");
        self.entries.push(Some(entry));
        (self.entries.len() - 1) as u16
    }

    pub(super) fn remove(&mut self, slot: u16) -> T {
        let entry = self.entries[usize::from(slot)]
            .take()
            .expect("an entry is removed once");
        self.free.push(slot);
        entry
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = u16> + use<T> {
        let taken: Vec<u16> = (0u16..)
            .zip(&self.entries)
            .filter(|(_, entry)| entry.is_some())
            .map(|(slot, _)| slot)
            .collect();
        taken.into_iter()
    }
}

impl<T> Index<u16> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u16) -> &T {
        self.entries[usize::from(slot)]
            .as_ref()
            .expect("the number of an entry")
    }
}

impl<T> IndexMut<u16> for Slab<T> {
    fn index_mut(&mut self, slot: u16) -> &mut T {
        self.entries[usize::from(slot)]
            .as_mut()
            .expect("the number of an entry")
    }
}
