//! Hash maps whose order and cost are the same in every run, for keys that the program makes itself.
#![allow(clippy::disallowed_types)]

use core::hash::{BuildHasherDefault, Hasher};

/// A hash map with a fixed, fast hash. Not for keys that a client chooses freely.
pub type DetHashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<FoldHasher>>;

/// An odd number without pattern (2^64 divided by the golden ratio).
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Mixes two words into one: the full product, folded.
#[inline]
#[must_use]
pub fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ MULTIPLIER) * u128::from(b ^ MULTIPLIER.rotate_left(32));
    let mixed = (product as u64) ^ (product >> 64) as u64;
    mixed ^ (mixed >> 29)
}

/// Multiplies and folds each word that is written to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct FoldHasher(u64);

impl Hasher for FoldHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    #[inline]
    fn write_u16(&mut self, word: u16) {
        self.write_u64(word.into());
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = fold(self.0, word);
    }

    #[inline]
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn neighbouring_keys_spread_over_low_and_high_bits() {
        let hash = |key: u64| {
            let mut hasher = FoldHasher::default();
            hasher.write_u64(key);
            hasher.finish()
        };
        for stride in [1u64, 64, 256, 1 << 20, 1 << 40] {
            let low: BTreeSet<u64> = (0..4096).map(|i| hash(i * stride) & 4095).collect();
            let high: BTreeSet<u64> = (0..4096).map(|i| hash(i * stride) >> 57).collect();
            // The map takes buckets from the low bits (a random function would hit about 63 percent of them)
            // and tags from the highest 7.
            assert!(low.len() > 2200, "stride {stride}: {} of 4096", low.len());
            assert_eq!(high.len(), 128, "stride {stride}");
        }
    }

    #[test]
    fn iteration_order_is_the_same_in_every_run() {
        let fill = || {
            (0..100u64)
                .map(|i| (i * 7919, i))
                .collect::<DetHashMap<u64, u64>>()
        };
        assert!(fill().iter().eq(fill().iter()));
    }
}
