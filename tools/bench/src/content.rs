//! What is written, so that it can be told from everything else when it is read.
//!
//! ```text
//! each sector of 512 bytes:
//! 0        8          16       24                            512
//! | offset | sequence | seed   | words made from these three |
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::job::SECTOR_BYTES;
use crate::schedule::{Kind, Request};

const HEAD_WORDS: [&str; 3] = ["offset", "sequence", "seed"];

/// Fills `bytes` with what write number `sequence` puts at `offset_bytes`.
pub fn fill(bytes: &mut [u8], offset_bytes: u64, sequence: u64, seed: u64) {
    for (index, sector) in bytes.chunks_mut(SECTOR_BYTES as usize).enumerate() {
        let offset_bytes = offset_bytes + index as u64 * SECTOR_BYTES;
        for (word, at) in words(offset_bytes, sequence, seed).zip(sector.chunks_exact_mut(8)) {
            at.copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn words(offset_bytes: u64, sequence: u64, seed: u64) -> impl Iterator<Item = u64> {
    let mut state = offset_bytes ^ sequence.rotate_left(32) ^ seed.rotate_left(17);
    let rest = core::iter::repeat_with(move || {
        // Vigna's SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    });
    [offset_bytes, sequence, seed].into_iter().chain(rest)
}

/// What was read is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Different(String);

impl fmt::Display for Different {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Compares what was read with what write number `sequence` put there.
///
/// # Errors
/// [`Different`] says at which byte, and how.
pub fn compare(bytes: &[u8], offset_bytes: u64, sequence: u64, seed: u64) -> Result<(), Different> {
    for (index, sector) in bytes.chunks(SECTOR_BYTES as usize).enumerate() {
        let at_bytes = offset_bytes + index as u64 * SECTOR_BYTES;
        for (number, (expected, found)) in words(at_bytes, sequence, seed)
            .zip(sector.chunks_exact(8))
            .enumerate()
        {
            let found = u64::from_le_bytes(found.try_into().expect("eight bytes"));
            if found != expected {
                let what = HEAD_WORDS.get(number).unwrap_or(&"content");
                return Err(Different(format!(
                    "wrong data at byte {}: {what} is {found:#x} and should be {expected:#x}",
                    at_bytes + number as u64 * 8
                )));
            }
        }
    }
    Ok(())
}

/// Says whether what was read is zeros.
///
/// # Errors
/// [`Different`] says at which byte it is not.
pub fn compare_zeros(bytes: &[u8], offset_bytes: u64) -> Result<(), Different> {
    match bytes.iter().position(|&byte| byte != 0) {
        None => Ok(()),
        Some(at) => Err(Different(format!(
            "wrong data at byte {}: it is {:#x} and should be zero",
            offset_bytes + at as u64,
            bytes[at]
        ))),
    }
}

/// What one thread has written. Requests to one address never overlap.
#[derive(Debug, Default)]
pub struct Written {
    /// The last write that was answered, by address.
    sequences: BTreeMap<u64, u64>,
    /// Addresses with a request in flight.
    busy: BTreeSet<u64>,
    last: u64,
}

impl Written {
    /// Whether a request may start now; if so, its address is busy until [`Self::ended`]. Gives the number of the write,
    /// or of the write that a read has to find (0 if it is not known).
    pub fn start(&mut self, request: &Request) -> Option<u64> {
        if !self.busy.insert(request.offset_bytes) {
            return None;
        }
        if request.kind == Kind::Read {
            return Some(self.sequences.get(&request.offset_bytes).copied().unwrap_or(0));
        }
        self.last += 1;
        Some(self.last)
    }

    /// A request has ended.
    pub fn ended(&mut self, request: &Request, sequence: u64, well: bool) {
        self.busy.remove(&request.offset_bytes);
        if request.kind == Kind::Read {
            return;
        }
        if well {
            self.sequences.insert(request.offset_bytes, sequence);
        } else {
            self.sequences.remove(&request.offset_bytes);
        }
    }

    /// The addresses that were written.
    #[must_use]
    pub fn addresses(&self) -> Vec<u64> {
        self.sequences.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_bit_is_found() {
        let mut bytes = vec![0; 1024];
        fill(&mut bytes, 4096, 7, 3);
        assert_eq!(compare(&bytes, 4096, 7, 3), Ok(()));
        for (offset_bytes, sequence, seed) in [(8192, 7, 3), (4096, 8, 3), (4096, 7, 4)] {
            assert!(compare(&bytes, offset_bytes, sequence, seed).is_err());
        }
        for bit in 0..1024 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(compare(&bytes, 4096, 7, 3).is_err());
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn an_address_is_busy_until_its_request_has_ended() {
        let mut written = Written::default();
        let write = Request {
            kind: Kind::Write,
            offset_bytes: 4096,
            length_bytes: 4096,
        };
        let read = Request {
            kind: Kind::Read,
            ..write
        };
        assert_eq!(written.start(&read), Some(0), "nothing is known of it");
        assert_eq!(written.start(&write), None);
        written.ended(&read, 0, true);
        assert_eq!(written.start(&write), Some(1));
        written.ended(&write, 1, true);
        assert_eq!(written.start(&read), Some(1));
        written.ended(&read, 1, true);
        assert_eq!(written.start(&write), Some(2));
        written.ended(&write, 2, false);
        assert_eq!(
            written.start(&read),
            Some(0),
            "a failed write may have done anything"
        );
    }
}
