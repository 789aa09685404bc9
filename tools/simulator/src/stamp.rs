//! What the simulated clients write: every 512-byte sector says which write, which volume and which place it
//! belongs to, in all of its bytes, so that lost, torn, misplaced and mixed data show.

use std::fmt;

use crate::random::mix;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Sectors of a block.
pub const SECTORS_PER_BLOCK: u64 = 8;

/// What a sector shows: the number of the write, or 0 for zeros.
pub type Shown = u32;

/// A sector whose bytes are no client's write to that place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    volume: u32,
    sector: u64,
    first_words: [u64; 2],
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [write, place] = self.first_words;
        write!(
            f,
            "volume {} sector {} holds data that was never written there: it looks like write {} to volume {} sector {}",
            self.volume,
            self.sector,
            write,
            place >> 40,
            place & ((1 << 40) - 1),
        )
    }
}

fn words(write: Shown, volume: u32, sector: u64) -> impl Iterator<Item = u64> {
    let (write, place) = (u64::from(write), u64::from(volume) << 40 | sector);
    let step = mix(write ^ mix(place)) | 1;
    [write, place]
        .into_iter()
        .chain((0..62).map(move |i: u64| step.wrapping_mul(i + 1)))
}

/// Fills `bytes` (whole sectors) as `write` to `volume` from `sector` on.
pub fn fill(write: Shown, volume: u32, sector: u64, bytes: &mut [u8]) {
    for (at, bytes) in (sector..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
        for (word, place) in words(write, volume, at).zip(bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// What one sector shows.
///
/// # Errors
/// [`Foreign`] if no write to this place leaves these bytes.
pub fn read(volume: u32, sector: u64, bytes: &[u8]) -> Result<Shown, Foreign> {
    assert_eq!(bytes.len(), SECTOR_BYTES);
    let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let foreign = Foreign {
        volume,
        sector,
        first_words: [word(0), word(1)],
    };
    match Shown::try_from(word(0)) {
        Ok(write)
            if write != 0
                && words(write, volume, sector)
                    .zip(0..)
                    .all(|(expected, at)| expected == word(at)) =>
        {
            Ok(write)
        }
        _ => Err(foreign),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_shows_its_write() {
        let mut bytes = vec![0; 3 * SECTOR_BYTES];
        fill(7, 2, 100, &mut bytes);
        for (at, sector) in (100..).zip(bytes.chunks(SECTOR_BYTES)) {
            assert_eq!(read(2, at, sector), Ok(7));
        }
        assert_eq!(read(2, 5, &[0; SECTOR_BYTES]), Ok(0));
    }

    #[test]
    fn a_misplaced_mixed_or_changed_sector_is_foreign() {
        let mut bytes = vec![0; 2 * SECTOR_BYTES];
        fill(7, 2, 100, &mut bytes);
        assert!(read(2, 101, &bytes[..SECTOR_BYTES]).is_err(), "another place");
        assert!(read(3, 100, &bytes[..SECTOR_BYTES]).is_err(), "another volume");
        let mut other = vec![0; SECTOR_BYTES];
        fill(8, 2, 100, &mut other);
        for split in (8..SECTOR_BYTES).step_by(8) {
            let mixed = [&bytes[..split], &other[split..]].concat();
            assert!(read(2, 100, &mixed).is_err(), "mixed at {split}");
        }
        for at in 0..SECTOR_BYTES {
            let mut changed = bytes[..SECTOR_BYTES].to_vec();
            changed[at] ^= 0x40;
            assert!(read(2, 100, &changed).is_err(), "byte {at}");
        }
    }
}
