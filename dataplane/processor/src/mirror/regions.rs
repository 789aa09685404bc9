//! Sets of regions: which parts of a shard's slice of a device one side lacks, or may lack.

use core::ops::Range;

use stillpoint_ondisk::stale;

/// A set of regions of one slice. It takes memory when it is given its size, so that mirrors whose sides are in sync keep little.
#[derive(Clone, Debug, Default)]
pub(super) struct Regions {
    words: Vec<u64>,
    /// Whether anything was put in since it was cleared.
    touched: bool,
}

impl Regions {
    /// Makes room for `count` regions, if there is none yet.
    pub(super) fn make_room(&mut self, count: usize) {
        if self.words.is_empty() {
            self.words.resize(count.div_ceil(64), 0);
        }
    }

    /// The words, region 0 in the lowest bit of the first; empty if it was never given room.
    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    pub(super) fn set(&mut self, region: usize) {
        self.words[region / 64] |= 1 << (region % 64);
        self.touched = true;
    }

    pub(super) fn set_all(&mut self, regions: Range<usize>) {
        regions.for_each(|region| self.set(region));
    }

    pub(super) fn unset(&mut self, region: usize) {
        self.words[region / 64] &= !(1 << (region % 64));
    }

    pub(super) fn has(&self, region: usize) -> bool {
        let word = self.words.get(region / 64).copied().unwrap_or(0);
        word >> (region % 64) & 1 == 1
    }

    pub(super) fn has_all(&self, mut regions: Range<usize>) -> bool {
        regions.all(|region| self.has(region))
    }

    pub(super) fn clear(&mut self) {
        if self.touched {
            self.words.fill(0);
            self.touched = false;
        }
    }

    /// Adds what `other` has; it must have room.
    pub(super) fn add(&mut self, other: &Self) {
        if other.touched {
            self.add_words(&other.words);
        }
    }

    /// Adds the regions of these words.
    pub(super) fn add_words(&mut self, words: &[u64]) {
        for (mine, theirs) in self.words.iter_mut().zip(words) {
            *mine |= theirs;
        }
        self.touched = true;
    }

    /// Keeps only what `other` has too.
    pub(super) fn keep(&mut self, other: &Self) {
        for (index, mine) in self.words.iter_mut().enumerate() {
            *mine &= other.words.get(index).copied().unwrap_or(0);
        }
    }

    /// Whether `other` has all that this has.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        let of_other = |index: usize| other.words.get(index).copied().unwrap_or(0);
        (self.words.iter().enumerate()).all(|(index, word)| word & !of_other(index) == 0)
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.touched || self.words.iter().all(|word| *word == 0)
    }

    /// The first region that is here and not in `but`.
    pub(super) fn first_without(&self, but: &Self) -> Option<usize> {
        if !self.touched {
            return None;
        }
        self.words.iter().enumerate().find_map(|(index, word)| {
            let left = word & !but.words.get(index).copied().unwrap_or(0);
            (left != 0).then(|| index * 64 + left.trailing_zeros() as usize)
        })
    }
}

/// Where a slice lies on its device, and how it is cut into regions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    start_block: u64,
    blocks: u64,
    region_power: u32,
}

impl Cut {
    pub(super) fn new(start_block: u64, blocks: u64) -> Self {
        Self {
            start_block,
            blocks,
            region_power: stale::region_blocks(blocks).trailing_zeros(),
        }
    }

    pub(super) fn slice_blocks(&self) -> u64 {
        self.blocks
    }

    /// Regions of the slice.
    pub(super) fn count(&self) -> usize {
        stale::region_count(self.blocks)
    }

    /// Blocks of a region; the last one may have fewer.
    pub(super) fn region_blocks(&self) -> u64 {
        1 << self.region_power
    }

    /// The regions that these blocks of the device lie in.
    pub(super) fn regions(&self, blocks: &Range<u64>) -> Range<usize> {
        let end_block = self.start_block + self.blocks;
        assert!(
            blocks.start >= self.start_block && blocks.end <= end_block && !blocks.is_empty(),
            "a shard keeps to its slice: {blocks:?} of {}..{end_block}",
            self.start_block
        );
        let first = (blocks.start - self.start_block) >> self.region_power;
        let last = (blocks.end - 1 - self.start_block) >> self.region_power;
        first as usize..last as usize + 1
    }

    /// The blocks of the device that a region has.
    pub(super) fn blocks(&self, region: usize) -> Range<u64> {
        let first = (region as u64) << self.region_power;
        let end = (first + (1 << self.region_power)).min(self.blocks);
        self.start_block + first..self.start_block + end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_cover_a_slice_once() {
        for blocks in [1, 63, 64, 65, 1000, 64 * 32_256 + 1] {
            let cut = Cut::new(256, blocks);
            let mut at = 256;
            for region in 0..cut.count() {
                let of_region = cut.blocks(region);
                assert_eq!(of_region.start, at);
                assert_eq!(cut.regions(&of_region), region..region + 1);
                at = of_region.end;
            }
            assert_eq!(at, 256 + blocks);
        }
    }

    #[test]
    fn a_set_gives_back_what_was_put_in() {
        let mut set = Regions::default();
        assert!(set.is_empty() && !set.has(500) && set.first_without(&Regions::default()).is_none());
        set.make_room(200);
        set.set_all(63..66);
        set.set(199);
        assert_eq!(
            (set.count(), set.has_all(63..66), set.has_all(62..66)),
            (4, true, false)
        );
        let mut other = Regions::default();
        other.make_room(200);
        other.set(63);
        assert!(other.is_within(&set) && !set.is_within(&other));
        assert_eq!(set.first_without(&other), Some(64));
        set.unset(64);
        other.add(&set);
        other.set(0);
        set.clear();
        assert_eq!((set.count(), other.count()), (0, 4));
        set.set(65);
        other.keep(&set);
        assert_eq!(
            (other.count(), other.first_without(&Regions::default())),
            (1, Some(65))
        );
    }
}
