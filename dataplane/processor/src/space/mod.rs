//! Free space of one shard: one bit per block over its slices of all devices.
//!
//! A block of the data area is in exactly one state:
//!
//! | state | `busy` | `referenced` | set | how it gets there | how it leaves |
//! |---|---|---|---|---|---|
//! | free | 0 | 0 | | `new`, `cancel`, `promote_step` | `reserve`, `mark_used` |
//! | reserved | 1 | 0 | neither | `reserve` | `commit`, `cancel` |
//! | used | 1 | 1 | neither | `commit`, `mark_used`, `load_page` | `free` |
//! | pending | 1 | 0 | open or frozen | `free` | `promote_step` |
//!
//! Invariants:
//! - A freed block stays pending until a checkpoint that no longer refers to it is durable, so every
//!   address is written at most once between two durable checkpoints.
//! - The image of a page is its `referenced` bits at the instant of [`Space::begin_checkpoint`]: neither
//!   reserved nor pending blocks are in it.
//! - What is not data area (header, bitmap slots, log, bits beyond the slice) is referenced for ever.
//!
//! The bits of all pages lie end to end in flat arrays, one array per column, in the shape of the
//! on-disk [`BitmapPage`]; the columns that are rarely touched cost no memory until they are.

mod bits;
mod checkpoint;
mod compare;
mod search;
#[cfg(test)]
mod tests;

use self::bits::{Pieces, count_zeros, page_words, words_of};
use crate::ids::{DeviceAddress, DeviceIndex, ShardIndex};
use stillpoint_ondisk::bitmap::{BLOCKS_PER_PAGE, BitmapPage, WORDS_PER_PAGE};
use stillpoint_ondisk::layout::Layout;

/// The metadata reserve is this part of all blocks, within the two limits below, and a quarter at most.
pub const METADATA_RESERVE_PART: u64 = 64;
/// The set of all devices.
pub const DEVICES_ALL: u64 = u64::MAX;
/// The smallest metadata reserve, in blocks.
pub const METADATA_RESERVE_BLOCKS_MIN: u64 = 256;
/// The largest metadata reserve, in blocks (64 MiB).
pub const METADATA_RESERVE_BLOCKS_MAX: u64 = 16_384;

/// Blocks that lie one after the other on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block.
    pub address: DeviceAddress,
    /// How many.
    pub blocks: u32,
}

/// What a reservation is for, and so how much it has to leave free. Each may take what the one before leaves: what
/// fills a pool up never takes the space that emptying it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Blocks of a volume: leaves the metadata reserve.
    Data,
    /// Map pages of writes: leaves half of the metadata reserve, so that discarding works on a full pool.
    Map,
    /// Map pages of discards: leaves what a checkpoint needs, which is what gives freed blocks back.
    Metadata,
    /// Directory pages of a checkpoint, and recovery, which needs no more than what was there before: may use the
    /// last block.
    Checkpoint,
}

/// One device's slice.
#[derive(Clone, Copy, Debug)]
struct Slice {
    /// Block of the device at which the slice begins.
    start_block: u64,
    /// Blocks of the slice.
    blocks: u64,
    /// Blocks at the start of the slice that are not data area.
    static_blocks: u64,
    /// Number of the slice's first page among the pages of all slices.
    first_page: usize,
    /// Pages of the slice.
    pages: usize,
    /// Where the next reservation is looked for: a bit of the slice.
    cursor: u64,
    /// The bits from the cursor up to here were found free: reservations are cut from them, and the next device has its
    /// turn when they are used up, so that what is written together lies together, however small each part is.
    run_end: u64,
}

/// Where a page stands in the checkpoint that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// Not part of it, or already handed out.
    No,
    /// To be handed out; `referenced` still is what it was at the beginning.
    Waiting,
    /// To be handed out; what it was at the beginning lies in `images`.
    Copied,
}

/// What is known of one page besides its bits.
#[derive(Clone, Copy, Debug)]
struct PageState {
    /// Free blocks.
    free_blocks: u32,
    /// The slot that the last durable checkpoint uses, if any.
    slot: Option<u8>,
    /// CRC32C of the page in that slot.
    crc32c: u32,
    /// CRC32C of the image that was handed out for the running checkpoint.
    image_crc32c: u32,
    /// `referenced` has changed since the last checkpoint began.
    dirty: bool,
    /// Where it stands in the running checkpoint.
    closing: Closing,
    /// It has bits in the open or frozen pending set, by the set's number.
    pending: [bool; 2],
}

/// Free space of one shard. See the module for states and invariants.
#[derive(Debug)]
pub struct Space {
    pool: [u8; 16],
    shard: ShardIndex,
    slices: Vec<Slice>,
    /// Device whose turn it is.
    next_device: usize,
    pages: Vec<PageState>,
    /// Not to be handed out.
    busy: Vec<u64>,
    /// Referenced by the state; what goes to the device.
    referenced: Vec<u64>,
    /// Two sets of freed blocks; `open` says which one takes new ones, the other is frozen or being promoted.
    pending: [Vec<u64>; 2],
    /// `referenced` as it was when the running checkpoint began, for pages in [`Closing::Copied`].
    images: Vec<u64>,
    open: usize,
    /// Pages with bits in the pending sets.
    pending_pages: [Vec<u32>; 2],
    /// Pages with `dirty` set (a page may be listed although it is clean again).
    dirty_pages: Vec<u32>,
    /// Pages of the running checkpoint.
    closing_pages: Vec<u32>,
    /// How many of `closing_pages` were handed out.
    closing_done: usize,
    phase: Phase,
    total_blocks: u64,
    free_blocks: u64,
    used_blocks: u64,
    pending_blocks: u64,
    metadata_reserve_blocks: u64,
    checkpoint_reserve_blocks: u64,
}

/// What the set that is not open is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Promotable, or empty: no checkpoint is running.
    Idle,
    /// Frozen: a checkpoint is running.
    Running,
}

impl Space {
    /// The space of `shard` with every data block free and every page dirty: a new pool. The first checkpoint
    /// hands out all pages, for slot 0. Recovery goes on with [`Self::load_page`] for each page.
    #[must_use]
    pub fn new(layout: &Layout, shard: ShardIndex) -> Self {
        let mut slices = Vec::with_capacity(layout.devices.len());
        let mut page_count = 0;
        for (device, sizes) in layout.devices.iter().enumerate() {
            let start_block = layout.slice_start_block(shard.0, device);
            let static_blocks = layout.data_start_block(shard.0, device) - start_block;
            let pages = layout.bitmap_pages(device) as usize;
            slices.push(Slice {
                start_block,
                blocks: sizes.slice_blocks,
                static_blocks,
                first_page: page_count,
                pages,
                cursor: static_blocks,
                run_end: static_blocks,
            });
            page_count += pages;
        }
        let words = page_count * WORDS_PER_PAGE;
        let total_blocks: u64 = slices.iter().map(|s| s.blocks - s.static_blocks).sum();
        let reserve = (total_blocks / METADATA_RESERVE_PART)
            .clamp(METADATA_RESERVE_BLOCKS_MIN, METADATA_RESERVE_BLOCKS_MAX)
            .min(total_blocks / 4);
        let state = PageState {
            free_blocks: 0,
            slot: None,
            crc32c: 0,
            image_crc32c: 0,
            dirty: true,
            closing: Closing::No,
            pending: [false; 2],
        };
        let mut space = Self {
            pool: layout.pool,
            shard,
            slices,
            next_device: 0,
            pages: vec![state; page_count],
            busy: vec![0; words],
            referenced: vec![0; words],
            pending: [vec![0; words], vec![0; words]],
            images: vec![0; words],
            open: 0,
            pending_pages: [Vec::new(), Vec::new()],
            dirty_pages: (0..page_count as u32).collect(),
            closing_pages: Vec::new(),
            closing_done: 0,
            phase: Phase::Idle,
            total_blocks,
            free_blocks: total_blocks,
            used_blocks: 0,
            pending_blocks: 0,
            metadata_reserve_blocks: reserve,
            checkpoint_reserve_blocks: 0,
        };
        space.mark_static_areas();
        space
    }

    fn mark_static_areas(&mut self) {
        for device in 0..self.slices.len() {
            for page in 0..self.slices[device].pages {
                self.mark_static_area_of_page(device, page);
            }
        }
    }

    /// Sets the bits of a page that are not data area, and counts its free blocks.
    fn mark_static_area_of_page(&mut self, device: usize, page: usize) {
        let slice = self.slices[device];
        let (first, end) = (
            (page * BLOCKS_PER_PAGE) as u64,
            ((page + 1) * BLOCKS_PER_PAGE) as u64,
        );
        let base = (slice.first_page * BLOCKS_PER_PAGE) as u64;
        let before = first..slice.static_blocks.clamp(first, end);
        let beyond = slice.blocks.clamp(first, end)..end;
        for range in [before, beyond] {
            for (word, mask) in words_of(base + range.start..base + range.end) {
                self.busy[word] |= mask;
                self.referenced[word] |= mask;
            }
        }
        let number = slice.first_page + page;
        self.pages[number].free_blocks = count_zeros(&self.busy[page_words(number)]);
    }

    /// Recovery: replaces the bits of one page by those that were read from `slot`. The static areas stay used.
    /// Nothing may be reserved or pending yet, and `page` must lie within the slice.
    pub fn load_page(&mut self, device: DeviceIndex, page: u64, slot: u8, bitmap: &BitmapPage) {
        assert!(slot < 2, "a bitmap page has two slots");
        let number = self.page_number(device, page);
        let words = page_words(number);
        let (free_before, used_before) = self.data_counts(number);
        for (index, word) in words.clone().zip(&bitmap.words) {
            assert!(
                self.busy[index] == self.referenced[index],
                "pages are loaded before anything is reserved or freed"
            );
            self.busy[index] = word.get();
            self.referenced[index] = word.get();
        }
        self.mark_static_area_of_page(usize::from(device.0), page as usize);
        self.pages[number].slot = Some(slot);
        self.pages[number].crc32c = bitmap.header.crc32c.get();
        self.pages[number].dirty = false;
        let (free_after, used_after) = self.data_counts(number);
        self.free_blocks = self.free_blocks - free_before + free_after;
        self.used_blocks = self.used_blocks - used_before + used_after;
    }

    /// Recovery: the next checkpoint is to write this page although nothing in it has changed. Needed when the
    /// slot that was not loaded holds a sound page of a generation above the shard header's (a checkpoint that
    /// was cut off): a later header with that generation would make it valid.
    pub fn mark_dirty(&mut self, device: DeviceIndex, page: u64) {
        let number = self.page_number(device, page);
        self.touch(number);
    }

    /// Whether the whole extent lies in this shard's data area. Addresses that come from a device are checked
    /// with this before anything else is done with them.
    #[must_use]
    pub fn contains(&self, extent: Extent) -> bool {
        let Some(slice) = self.slices.get(usize::from(extent.address.device().0)) else {
            return false;
        };
        let block = extent.address.block();
        block >= slice.start_block + slice.static_blocks
            && block + u64::from(extent.blocks) <= slice.start_block + slice.blocks
    }

    /// Reserves up to `blocks` blocks that lie one after the other, for the caller to write: at least one, fewer
    /// than asked for if no longer run is near. Devices are taken in turn, each for a run of free blocks. `None` if there is
    /// no room for this purpose.
    pub fn reserve(&mut self, blocks: u32, purpose: Purpose) -> Option<Extent> {
        self.reserve_on(blocks, purpose, DEVICES_ALL)
    }

    /// The same, on the devices of this set only: bit `i` is device `i`. `None` also if these have no free block.
    pub fn reserve_on(&mut self, blocks: u32, purpose: Purpose, devices: u64) -> Option<Extent> {
        assert!(blocks > 0, "a reservation has at least one block");
        let room = self.room(purpose);
        if room == 0 {
            return None;
        }
        let wanted = room.min(u64::from(blocks)) as u32;
        for turn in 0..self.slices.len() {
            let device = (self.next_device + turn) % self.slices.len();
            if devices >> device & 1 == 0 {
                continue;
            }
            let Some(extent) = self.cut(device, wanted) else {
                continue;
            };
            let slice = &self.slices[device];
            self.next_device = if slice.cursor < slice.run_end {
                device
            } else {
                (device + 1) % self.slices.len()
            };
            self.take(extent);
            return Some(extent);
        }
        assert!(devices != DEVICES_ALL, "free blocks are counted but not found");
        None
    }

    /// Cuts up to `wanted` free blocks off the run at the cursor, or off the next one if it is too short; `None` if the
    /// slice has no free block.
    fn cut(&mut self, device: usize, wanted: u32) -> Option<Extent> {
        let slice = &self.slices[device];
        let mut run = slice.cursor..slice.run_end;
        if run.end - run.start < u64::from(wanted) {
            run = self.search(device, wanted)?;
        }
        let slice = &mut self.slices[device];
        let blocks = (run.end - run.start).min(u64::from(wanted));
        slice.cursor = run.start + blocks;
        slice.run_end = run.end;
        Some(Extent {
            address: DeviceAddress::new(DeviceIndex(device as u8), slice.start_block + run.start),
            blocks: blocks as u32,
        })
    }

    fn take(&mut self, extent: Extent) {
        for piece in self.pieces(extent) {
            for (word, mask) in words_of(piece.bits.clone()) {
                debug_assert!(self.busy[word] & mask == 0);
                self.busy[word] |= mask;
            }
            self.pages[piece.page].free_blocks -= piece.blocks();
        }
        self.free_blocks -= u64::from(extent.blocks);
    }

    /// (Part of) a reserved extent is now referenced by the state.
    pub fn commit(&mut self, extent: Extent) {
        for piece in self.pieces(extent) {
            self.touch(piece.page);
            for (word, mask) in words_of(piece.bits.clone()) {
                self.assert_reserved(word, mask);
                self.referenced[word] |= mask;
            }
        }
        self.used_blocks += u64::from(extent.blocks);
    }

    /// (Part of) a reserved extent never was referenced: it is free again at once.
    pub fn cancel(&mut self, extent: Extent) {
        for piece in self.pieces(extent) {
            for (word, mask) in words_of(piece.bits.clone()) {
                self.assert_reserved(word, mask);
                self.busy[word] &= !mask;
            }
            self.pages[piece.page].free_blocks += piece.blocks();
        }
        self.free_blocks += u64::from(extent.blocks);
    }

    #[inline]
    fn assert_reserved(&self, word: usize, mask: u64) {
        let others = self.referenced[word] | self.pending[0][word] | self.pending[1][word] | !self.busy[word];
        assert!(
            others & mask == 0,
            "only reserved blocks are committed or cancelled"
        );
    }

    /// Recovery: a log record refers to these blocks. False if one of them was in use already or lies outside
    /// the data area; those inside that were free are used afterwards in any case.
    ///
    /// All records are to be marked before the first map page of the replay is reserved: a block that a later
    /// record refers to looks free until then.
    pub fn mark_used(&mut self, extent: Extent) -> bool {
        if !self.contains(extent) {
            return false;
        }
        let slice = &mut self.slices[usize::from(extent.address.device().0)];
        slice.run_end = slice.cursor;
        let mut all_free = true;
        for piece in self.pieces(extent) {
            self.touch(piece.page);
            for (word, mask) in words_of(piece.bits.clone()) {
                let fresh = mask & !self.busy[word];
                all_free &= fresh == mask;
                self.busy[word] |= fresh;
                self.referenced[word] |= fresh;
                self.pages[piece.page].free_blocks -= fresh.count_ones();
                self.free_blocks -= u64::from(fresh.count_ones());
                self.used_blocks += u64::from(fresh.count_ones());
            }
        }
        all_free
    }

    /// The state no longer refers to these used blocks. They are pending until a checkpoint that does not refer
    /// to them is durable.
    pub fn free(&mut self, address: DeviceAddress, blocks: u32) {
        let open = self.open;
        for piece in self.pieces(Extent { address, blocks }) {
            self.touch(piece.page);
            let state = &mut self.pages[piece.page];
            if !state.pending[open] {
                state.pending[open] = true;
                self.pending_pages[open].push(piece.page as u32);
            }
            for (word, mask) in words_of(piece.bits.clone()) {
                assert!(
                    self.referenced[word] & mask == mask,
                    "only used blocks are freed, and once: {address}, {blocks} blocks"
                );
                self.referenced[word] &= !mask;
                self.pending[open][word] |= mask;
            }
        }
        self.used_blocks -= u64::from(blocks);
        self.pending_blocks += u64::from(blocks);
    }

    /// Whether the state refers to this block; false outside the data area.
    #[must_use]
    pub fn is_used(&self, address: DeviceAddress) -> bool {
        let extent = Extent { address, blocks: 1 };
        self.contains(extent)
            && self
                .pieces(extent)
                .all(|piece| words_of(piece.bits).all(|(word, mask)| self.referenced[word] & mask != 0))
    }

    /// Blocks of the data area.
    #[must_use]
    pub fn total_blocks(&self) -> u64 {
        self.total_blocks
    }

    /// Blocks that can be reserved now, for metadata.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// Blocks that the state refers to.
    #[must_use]
    pub fn used_blocks(&self) -> u64 {
        self.used_blocks
    }

    /// Freed blocks that are not free yet.
    #[must_use]
    pub fn pending_blocks(&self) -> u64 {
        self.pending_blocks
    }

    /// Blocks reserved and neither committed nor cancelled.
    #[must_use]
    pub fn reserved_blocks(&self) -> u64 {
        self.total_blocks - self.free_blocks - self.used_blocks - self.pending_blocks
    }

    /// How many blocks the next checkpoint may need for the directory.
    pub fn set_checkpoint_reserve(&mut self, blocks: u64) {
        self.checkpoint_reserve_blocks = blocks;
    }

    /// Blocks that must stay free of what is reserved for `purpose`.
    fn left_by(&self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::Data => self.checkpoint_reserve_blocks + self.metadata_reserve_blocks,
            Purpose::Map => self.checkpoint_reserve_blocks + self.metadata_reserve_blocks / 2,
            Purpose::Metadata => self.checkpoint_reserve_blocks,
            Purpose::Checkpoint => 0,
        }
    }

    /// Blocks that may be reserved for `purpose` once everything that was freed is free.
    #[must_use]
    pub fn room_to_come(&self, purpose: Purpose) -> u64 {
        (self.free_blocks + self.pending_blocks).saturating_sub(self.left_by(purpose))
    }

    /// Blocks that may be reserved for `purpose` now.
    #[must_use]
    pub fn room(&self, purpose: Purpose) -> u64 {
        self.free_blocks.saturating_sub(self.left_by(purpose))
    }

    fn page_number(&self, device: DeviceIndex, page: u64) -> usize {
        let slice = &self.slices[usize::from(device.0)];
        assert!(page < slice.pages as u64, "the page lies within the slice");
        slice.first_page + page as usize
    }

    /// Free and used blocks of the data area of a page without reserved or pending blocks.
    fn data_counts(&self, page: usize) -> (u64, u64) {
        let slice = self
            .slices
            .iter()
            .rfind(|s| s.first_page <= page)
            .expect("the first slice begins at 0");
        let first = ((page - slice.first_page) * BLOCKS_PER_PAGE) as u64;
        let end = first + BLOCKS_PER_PAGE as u64;
        let data = slice.blocks.clamp(first, end) - slice.static_blocks.clamp(first, end);
        let free = u64::from(self.pages[page].free_blocks);
        (free, data - free)
    }

    /// To be called before `referenced` changes in a page.
    #[inline]
    fn touch(&mut self, page: usize) {
        let state = &mut self.pages[page];
        if state.dirty && state.closing != Closing::Waiting {
            return;
        }
        if !state.dirty {
            state.dirty = true;
            self.dirty_pages.push(page as u32);
        }
        if state.closing == Closing::Waiting {
            state.closing = Closing::Copied;
            self.images[page_words(page)].copy_from_slice(&self.referenced[page_words(page)]);
        }
    }

    /// The extent cut at page boundaries.
    #[inline]
    fn pieces(&self, extent: Extent) -> Pieces {
        let slice = &self.slices[usize::from(extent.address.device().0)];
        assert!(
            self.contains(extent),
            "{extent:?} lies in the data area of this shard"
        );
        let base = (slice.first_page * BLOCKS_PER_PAGE) as u64;
        let start = base + (extent.address.block() - slice.start_block);
        Pieces {
            rest: start..start + u64::from(extent.blocks),
        }
    }
}
