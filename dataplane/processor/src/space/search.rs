//! Where the next reservation lies: next fit, with a short look around for a run that is long enough.

use super::Space;
use super::bits::page_words;
use core::ops::Range;
use stillpoint_ondisk::bitmap::{BLOCKS_PER_PAGE, WORDS_PER_PAGE};

/// Steps (words looked at, pages skipped) that a search goes on after its first find, for a longer run.
const STEPS_AFTER_FIRST_FIND: usize = 512;
/// A run is followed so far, for the reservations to come, although less is wanted.
pub(super) const RUN_BLOCKS: u32 = 16;

/// A search over one slice; bits are counted from the start of the slice.
struct Search {
    wanted: u64,
    best: Range<u64>,
    steps_left: usize,
}

impl Search {
    /// Takes note of a free run; true if the search can end.
    fn found(&mut self, run: Range<u64>) -> bool {
        if run.end - run.start > self.best.end - self.best.start {
            self.best = run;
        }
        self.best.end - self.best.start >= self.wanted
    }

    /// Counts a step; true if the search has gone on long enough.
    fn step(&mut self) -> bool {
        if self.best.is_empty() {
            return false;
        }
        self.steps_left = self.steps_left.saturating_sub(1);
        self.steps_left == 0
    }
}

impl Space {
    /// A run of free bits of the slice of `device`: of `wanted` at least if one is near, and of the larger of `wanted` and
    /// [`RUN_BLOCKS`] at most. `None` if the slice has no free block.
    pub(super) fn search(&self, device: usize, wanted: u32) -> Option<Range<u64>> {
        let slice = &self.slices[device];
        let page_bits = BLOCKS_PER_PAGE as u64;
        let mut search = Search {
            wanted: u64::from(wanted),
            best: 0..0,
            steps_left: STEPS_AFTER_FIRST_FIND,
        };
        let start_page = (slice.cursor / page_bits) as usize % slice.pages;
        let start_bit = (slice.cursor % page_bits) as usize;
        // The page of the cursor is looked at twice: from the cursor on, and at the end up to the cursor.
        for turn in 0..=slice.pages {
            let page = (start_page + turn) % slice.pages;
            let bits = match turn {
                0 => start_bit..BLOCKS_PER_PAGE,
                turn if turn == slice.pages => 0..start_bit,
                _ => 0..BLOCKS_PER_PAGE,
            };
            let number = slice.first_page + page;
            let ended = if self.pages[number].free_blocks == 0 {
                search.step()
            } else {
                self.search_page(number, page as u64 * page_bits, bits, &mut search)
            };
            if ended {
                break;
            }
        }
        (!search.best.is_empty()).then_some(search.best)
    }

    /// Looks at `bits` of one page, which begins at `base` in its slice; true if the search can end.
    fn search_page(&self, number: usize, base: u64, bits: Range<usize>, search: &mut Search) -> bool {
        let words = &self.busy[page_words(number)];
        let mut position = bits.start;
        while let Some(start) = next_bit(words, position, bits.end, |word| !word, || search.step()) {
            let wanted = search.wanted.max(u64::from(RUN_BLOCKS));
            let limit = bits.end.min(start + wanted as usize);
            let end = next_bit(words, start, limit, |word| word, || false).unwrap_or(limit);
            if search.found(base + start as u64..base + end as u64) || search.step() {
                return true;
            }
            position = end;
        }
        search.steps_left == 0
    }
}

/// The first position in `from..end` whose bit is set in `view(word)`. `stop` is asked before each further
/// word.
#[inline]
fn next_bit(
    words: &[u64],
    from: usize,
    end: usize,
    view: impl Fn(u64) -> u64,
    mut stop: impl FnMut() -> bool,
) -> Option<usize> {
    if from >= end {
        return None;
    }
    debug_assert!(end <= WORDS_PER_PAGE * 64);
    let mut index = from / 64;
    let mut word = view(words[index]) & (u64::MAX << (from % 64));
    while word == 0 {
        index += 1;
        if index * 64 >= end || stop() {
            return None;
        }
        word = view(words[index]);
    }
    let position = index * 64 + word.trailing_zeros() as usize;
    (position < end).then_some(position)
}
