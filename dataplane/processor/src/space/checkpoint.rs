//! The space in a checkpoint: freeze, hand out images, then let go of what was freed before.
//!
//! ```text
//! begin_checkpoint -> next_image ... -> (header durable) checkpoint_durable -> promote_step ...
//!                                    \-> (given up)      checkpoint_failed
//! ```

use super::bits::page_words;
use super::{Closing, Phase, Space};
use crate::ids::DeviceIndex;
use stillpoint_ondisk::bitmap::{BitmapPage, check_of};
use stillpoint_ondisk::page::{PageHeader, PageKind, seal};
use zerocopy::{FromBytes, IntoBytes};

impl Space {
    /// Freezes the state as it is for a checkpoint. The map must be frozen at the same instant. Cost: the list
    /// of dirty pages; a page is copied only if it changes before its image was handed out. Whatever the
    /// previous checkpoint left to promote is promoted here.
    pub fn begin_checkpoint(&mut self) {
        assert!(self.phase == Phase::Idle, "one checkpoint at a time");
        while !self.promote_step(usize::MAX) {}
        self.phase = Phase::Running;
        self.open = 1 - self.open;
        self.closing_done = 0;
        self.closing_pages.clear();
        core::mem::swap(&mut self.closing_pages, &mut self.dirty_pages);
        let pages = &mut self.pages;
        // A page that was loaded after it was listed is clean, or listed twice.
        self.closing_pages
            .retain(|&page| core::mem::take(&mut pages[page as usize].dirty));
        for &page in &self.closing_pages {
            pages[page as usize].closing = Closing::Waiting;
        }
    }

    /// Writes the next page of the frozen state, sealed, to `into` (4096 bytes) and says where it goes: its
    /// device and position, and the slot that the last durable checkpoint does not use. `None` when all were
    /// handed out.
    pub fn next_image(&mut self, generation: u64, into: &mut [u8]) -> Option<(DeviceIndex, u64, u8)> {
        let number = *self.closing_pages.get(self.closing_done)? as usize;
        self.closing_done += 1;
        let words = match self.pages[number].closing {
            Closing::Waiting => &self.referenced[page_words(number)],
            Closing::Copied => &self.images[page_words(number)],
            Closing::No => unreachable!("a page is handed out once"),
        };
        let device = self
            .slices
            .iter()
            .rposition(|s| s.first_page <= number)
            .expect("slice 0 begins at 0");
        let index = (number - self.slices[device].first_page) as u64;
        let image = BitmapPage::mut_from_bytes(into).expect("an image is 4096 bytes");
        image.header = PageHeader::new(PageKind::Bitmap, self.pool);
        image.generation = generation.into();
        image.index = index.into();
        image.shard = self.shard.0.into();
        image.device = (device as u16).into();
        image.used_blocks = words.iter().map(|word| word.count_ones()).sum::<u32>().into();
        image.reserved = [0; 8];
        for (to, from) in image.words.iter_mut().zip(words) {
            *to = (*from).into();
        }
        seal(image.as_mut_bytes());
        let state = &mut self.pages[number];
        state.closing = Closing::No;
        state.image_crc32c = image.header.crc32c.get();
        Some((DeviceIndex(device as u8), index, other_slot(state.slot)))
    }

    /// What the shard header says of the bitmap pages: of those handed out, if a checkpoint is running, and of the
    /// durable ones that it leaves as they are.
    #[must_use]
    pub fn bitmap_check(&self) -> u32 {
        assert!(
            self.closing_done == self.closing_pages.len(),
            "all images were handed out"
        );
        let mut crcs: Vec<u32> = self.pages.iter().map(|page| page.crc32c).collect();
        for &page in &self.closing_pages {
            crcs[page as usize] = self.pages[page as usize].image_crc32c;
        }
        check_of(crcs)
    }

    /// The header of this checkpoint is on the device: what was handed out is now what is durable, and blocks
    /// that were freed before the beginning may be promoted.
    pub fn checkpoint_durable(&mut self) {
        assert!(self.phase == Phase::Running, "a checkpoint is running");
        assert!(
            self.closing_done == self.closing_pages.len(),
            "all images were handed out"
        );
        for &page in &self.closing_pages {
            let state = &mut self.pages[page as usize];
            state.slot = Some(other_slot(state.slot));
            state.crc32c = state.image_crc32c;
        }
        self.closing_pages.clear();
        self.closing_done = 0;
        self.phase = Phase::Idle;
    }

    /// Forgets the running checkpoint: its pages are dirty again, what was freed before it is pending as before.
    pub fn checkpoint_failed(&mut self) {
        assert!(self.phase == Phase::Running, "a checkpoint is running");
        for page in core::mem::take(&mut self.closing_pages) {
            let state = &mut self.pages[page as usize];
            state.closing = Closing::No;
            if !state.dirty {
                state.dirty = true;
                self.dirty_pages.push(page);
            }
        }
        self.closing_done = 0;
        let (open, frozen) = (self.open, 1 - self.open);
        for page in core::mem::take(&mut self.pending_pages[frozen]) {
            let number = page as usize;
            self.pages[number].pending[frozen] = false;
            if !self.pages[number].pending[open] {
                self.pages[number].pending[open] = true;
                self.pending_pages[open].push(page);
            }
            for word in page_words(number) {
                let bits = core::mem::take(&mut self.pending[frozen][word]);
                self.pending[open][word] |= bits;
            }
        }
        self.phase = Phase::Idle;
    }

    /// A planted bug: everything that was freed is free, whatever still refers to it.
    #[cfg(feature = "planted-bugs")]
    pub fn reuse_at_once(&mut self) {
        for pages in [0, 1] {
            for page in core::mem::take(&mut self.pending_pages[pages]) {
                let number = page as usize;
                let mut freed = 0;
                for word in page_words(number) {
                    let bits = core::mem::take(&mut self.pending[pages][word]);
                    self.busy[word] &= !bits;
                    freed += bits.count_ones();
                }
                let state = &mut self.pages[number];
                state.pending[pages] = false;
                state.free_blocks += freed;
                self.free_blocks += u64::from(freed);
                self.pending_blocks -= u64::from(freed);
            }
        }
    }

    /// Makes the blocks that were freed before the last durable checkpoint free, at most `pages_max` pages of
    /// them; true when nothing is left to do.
    pub fn promote_step(&mut self, pages_max: usize) -> bool {
        if self.phase == Phase::Running {
            return true;
        }
        let frozen = 1 - self.open;
        for _ in 0..pages_max {
            let Some(page) = self.pending_pages[frozen].pop() else {
                break;
            };
            let number = page as usize;
            let mut freed = 0;
            for word in page_words(number) {
                let bits = core::mem::take(&mut self.pending[frozen][word]);
                self.busy[word] &= !bits;
                freed += bits.count_ones();
            }
            let state = &mut self.pages[number];
            state.pending[frozen] = false;
            state.free_blocks += freed;
            self.free_blocks += u64::from(freed);
            self.pending_blocks -= u64::from(freed);
        }
        self.pending_pages[frozen].is_empty()
    }
}

/// The slot to write next.
fn other_slot(slot: Option<u8>) -> u8 {
    slot.map_or(0, |slot| 1 - slot)
}
