//! The frames of the page cache: memory for pages, who is in it, and what may be evicted.
//!
//! | frame | `address` | `generation` | listed in | leaves by |
//! |---|---|---|---|---|
//! | free | 0 | | `free` | `take` |
//! | clean | page | at most the durable one | | eviction, `discard` |
//! | dirty, open | page | the open one | `open` | `begin_checkpoint`, `discard` |
//! | dirty, closed | page | between the two | `closed` | `checkpoint_durable` |
//!
//! Whether a frame is clean follows from its generation, so that the end of a checkpoint touches no frame.

use super::MapError;
use crate::ids::DeviceAddress;
use crate::index::DetHashMap;
use stillpoint_ondisk::map_page::MapPage;
use zerocopy::FromZeros;

/// Pages of one piece of memory (256 KiB).
const SLAB_PAGES: usize = 64;
/// Frames that dirty pages never take at least, so that lookups get on while a checkpoint is awaited.
const CLEAN_FRAMES_MIN: usize = 16;
/// The smallest cache, in pages.
pub const CAPACITY_PAGES_MIN: usize = 2 * CLEAN_FRAMES_MIN;

/// What is known of a frame besides its page.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where its page belongs on the devices; 0 = no page.
    address: u64,
    /// Generation in which this program made the page; 0 if it was read from the device.
    generation: u64,
    /// Epoch in which the page was made.
    birth: u32,
    /// Low half of the generation in which the page was made, as its parent says it.
    check: u32,
    /// Counts the pages that were in this frame; what remembers a frame remembers this with it.
    stamp: u32,
    /// Position in `open`, if it is dirty and open.
    open_position: u32,
    /// Used since the hand of the clock passed.
    referenced: bool,
}

/// What a new frame is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenant {
    pub address: DeviceAddress,
    /// Of this program's making, 0 if read from the device.
    pub generation: u64,
    pub birth: u32,
    pub check: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Frames {
    slabs: Vec<Box<[MapPage]>>,
    frames: Vec<Frame>,
    index: DetHashMap<u64, u32>,
    free: Vec<u32>,
    hand: usize,
    capacity: usize,
    open_generation: u64,
    durable_generation: u64,
    open: Vec<u32>,
    closed: Vec<u32>,
    /// How many of `closed` were handed out.
    closed_done: usize,
    /// Frames of `closed` that nothing but the running checkpoint refers to.
    orphans: Vec<u32>,
}

impl Frames {
    pub fn new(capacity: usize, open_generation: u64) -> Self {
        assert!(open_generation > 0, "generation 0 marks pages that were read");
        let mut frames = Self {
            slabs: Vec::new(),
            frames: Vec::new(),
            index: DetHashMap::default(),
            free: Vec::new(),
            hand: 0,
            capacity: 0,
            open_generation,
            durable_generation: open_generation - 1,
            open: Vec::new(),
            closed: Vec::new(),
            closed_done: 0,
            orphans: Vec::new(),
        };
        frames.set_capacity(capacity);
        frames
    }

    pub fn set_capacity(&mut self, capacity: usize) {
        assert!(
            (CAPACITY_PAGES_MIN..u32::MAX as usize).contains(&capacity),
            "a map cache has at least {CAPACITY_PAGES_MIN} pages"
        );
        self.capacity = capacity;
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    #[inline]
    pub fn page(&self, frame: u32) -> &MapPage {
        &self.slabs[frame as usize / SLAB_PAGES][frame as usize % SLAB_PAGES]
    }

    #[inline]
    pub fn page_mut(&mut self, frame: u32) -> &mut MapPage {
        &mut self.slabs[frame as usize / SLAB_PAGES][frame as usize % SLAB_PAGES]
    }

    /// The frame of the page that lies at `address` and was made in the generation that `check` tells. A clean
    /// page of another generation is what was there before: it goes.
    #[inline]
    pub fn find(&mut self, address: u64, check: u32) -> Option<u32> {
        let frame = *self.index.get(&address)?;
        let state = &mut self.frames[frame as usize];
        if state.check == check {
            state.referenced = true;
            return Some(frame);
        }
        assert!(
            state.generation <= self.durable_generation,
            "a page that is not written yet lies where another one is expected"
        );
        self.discard(frame);
        None
    }

    /// The frame's stamp.
    #[inline]
    pub fn stamp(&self, frame: u32) -> u32 {
        self.frames[frame as usize].stamp
    }

    /// Whether the frame still holds the page that it held when it had this stamp; if so it counts as used.
    #[inline]
    pub fn still_holds(&mut self, frame: u32, stamp: u32) -> bool {
        match self.frames.get_mut(frame as usize) {
            Some(state) if state.stamp == stamp => {
                state.referenced = true;
                true
            }
            _ => false,
        }
    }

    /// Whether the frame still holds the page that it held when it had this stamp.
    #[inline]
    pub fn has_stamp(&self, frame: u32, stamp: u32) -> bool {
        self.frames
            .get(frame as usize)
            .is_some_and(|state| state.stamp == stamp)
    }

    /// Whether a tree in epoch `epoch` may change the page in place.
    #[inline]
    pub fn is_writable(&self, frame: u32, epoch: u32) -> bool {
        let state = &self.frames[frame as usize];
        state.generation == self.open_generation && state.birth == epoch
    }

    /// Sees to it that `pages` calls of [`Self::take`] for dirty pages need no eviction.
    pub fn prepare(&mut self, pages: usize) -> Result<(), MapError> {
        let clean_min = CLEAN_FRAMES_MIN.max(self.capacity / 8);
        if self.open.len() + self.closed.len() + pages > self.capacity - clean_min {
            return Err(MapError::CacheFull);
        }
        while self.free.len() < pages {
            self.free_one();
        }
        Ok(())
    }

    /// A frame for a page; its memory holds whatever was there. Evicts a clean page if no frame is free.
    pub fn take(&mut self, tenant: Tenant) -> u32 {
        if let Some(&stale) = self.index.get(&tenant.address.0) {
            self.discard(stale);
        }
        if self.free.is_empty() {
            self.free_one();
        }
        let frame = self.free.pop().expect("one was freed");
        let state = &mut self.frames[frame as usize];
        state.address = tenant.address.0;
        state.generation = tenant.generation;
        state.birth = tenant.birth;
        state.check = tenant.check;
        state.referenced = true;
        if tenant.generation == self.open_generation {
            state.open_position = self.open.len() as u32;
            self.open.push(frame);
        }
        self.index.insert(tenant.address.0, frame);
        frame
    }

    /// Nothing but perhaps the running checkpoint refers to this page any more.
    pub fn discard(&mut self, frame: u32) {
        let state = self.frames[frame as usize];
        self.index.remove(&state.address);
        if state.generation == self.open_generation {
            let position = state.open_position as usize;
            self.open.swap_remove(position);
            if let Some(&moved) = self.open.get(position) {
                self.frames[moved as usize].open_position = position as u32;
            }
        } else if state.generation > self.durable_generation {
            self.orphans.push(frame);
            return;
        }
        self.vacate(frame);
    }

    /// The frame that holds the page at `address`.
    pub fn at(&self, address: DeviceAddress) -> Option<u32> {
        self.index.get(&address.0).copied()
    }

    /// Whether a page was read from the device, or written to it by a checkpoint that is durable.
    pub fn is_durable(&self, frame: u32) -> bool {
        self.frames[frame as usize].generation <= self.durable_generation
    }

    fn vacate(&mut self, frame: u32) {
        let state = &mut self.frames[frame as usize];
        state.address = 0;
        state.generation = 0;
        state.stamp = state.stamp.wrapping_add(1);
        self.free.push(frame);
    }

    /// Adds a free frame: a new one up to the capacity, else that of the next clean page not used of late.
    fn free_one(&mut self) {
        if self.frames.len() < self.capacity {
            let frame = self.frames.len();
            if frame.is_multiple_of(SLAB_PAGES) {
                self.slabs
                    .push(vec![MapPage::new_zeroed(); SLAB_PAGES].into_boxed_slice());
            }
            self.frames.push(Frame {
                address: 0,
                generation: 0,
                birth: 0,
                check: 0,
                stamp: 1,
                open_position: 0,
                referenced: false,
            });
            self.free.push(frame as u32);
            return;
        }
        // Two rounds at most: the first takes away the second chances. Some frames are never dirty.
        for _ in 0..=2 * self.frames.len() {
            let frame = self.hand;
            self.hand = (self.hand + 1) % self.frames.len();
            let state = &mut self.frames[frame];
            if state.address == 0 || state.generation > self.durable_generation {
                continue;
            }
            if core::mem::take(&mut state.referenced) {
                continue;
            }
            let address = state.address;
            self.index.remove(&address);
            self.vacate(frame as u32);
            return;
        }
        unreachable!("some frames hold clean pages or none");
    }

    pub fn open_generation(&self) -> u64 {
        self.open_generation
    }

    pub fn open_pages(&self) -> usize {
        self.open.len()
    }

    pub fn closed_pages(&self) -> usize {
        self.closed.len()
    }

    pub fn cached_pages(&self) -> usize {
        self.frames.len() - self.free.len()
    }

    /// Closes the open generation; gives it.
    pub fn begin_checkpoint(&mut self) -> u64 {
        assert!(
            self.durable_generation + 1 == self.open_generation,
            "one checkpoint at a time"
        );
        let closed = self.open_generation;
        self.open_generation += 1;
        core::mem::swap(&mut self.open, &mut self.closed);
        self.closed_done = 0;
        closed
    }

    /// The next page of the closed generation that was not handed out.
    pub fn next_closed(&mut self) -> Option<(DeviceAddress, &MapPage)> {
        let frame = *self.closed.get(self.closed_done)?;
        self.closed_done += 1;
        let address = DeviceAddress(self.frames[frame as usize].address);
        Some((address, self.page(frame)))
    }

    /// The pages of the closed generation are clean.
    pub fn checkpoint_durable(&mut self) {
        assert!(self.closed_done == self.closed.len(), "all pages were handed out");
        self.durable_generation = self.open_generation - 1;
        self.closed.clear();
        self.closed_done = 0;
        while let Some(frame) = self.orphans.pop() {
            self.vacate(frame);
        }
    }
}
