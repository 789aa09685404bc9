//! Ranges of bits in the flat arrays, cut at page and word boundaries.

use core::ops::Range;
use stillpoint_ondisk::bitmap::{BLOCKS_PER_PAGE, WORDS_PER_PAGE};

/// A piece of an extent within one page; bits are counted over the pages of all slices.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) page: usize,
    pub(super) bits: Range<u64>,
}

impl Piece {
    pub(super) fn blocks(&self) -> u32 {
        (self.bits.end - self.bits.start) as u32
    }
}

/// The pieces of a range of bits.
pub(super) struct Pieces {
    pub(super) rest: Range<u64>,
}

impl Iterator for Pieces {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.rest.is_empty() {
            return None;
        }
        let page = self.rest.start / BLOCKS_PER_PAGE as u64;
        let end = self.rest.end.min((page + 1) * BLOCKS_PER_PAGE as u64);
        let bits = self.rest.start..end;
        self.rest.start = end;
        Some(Piece {
            page: page as usize,
            bits,
        })
    }
}

/// The words that hold `bits`, each with the mask of those bits.
#[inline]
pub(super) fn words_of(bits: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut position = bits.start;
    core::iter::from_fn(move || {
        if position >= bits.end {
            return None;
        }
        let word = position / 64;
        let low = position % 64;
        let count = (bits.end - position).min(64 - low);
        position += count;
        Some((word as usize, (u64::MAX >> (64 - count)) << low))
    })
}

/// The words of a page.
pub(super) fn page_words(page: usize) -> Range<usize> {
    page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE
}

/// Free blocks among `words` of the busy column.
pub(super) fn count_zeros(words: &[u64]) -> u32 {
    words.iter().map(|word| word.count_zeros()).sum()
}
