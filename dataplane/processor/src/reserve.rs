//! A few buffers that a processor keeps for its own log writes, checkpoints and map pages.
//!
//! Requests hold buffers while they wait for these. Were all memory of the pool with requests, nobody would ever get
//! on; with one buffer of each size at hand everybody does, one after the other.

use crate::marks::{Mark, mark};
use stillpoint_ondisk::page::PAGE_BYTES;

use crate::PART_BYTES_MAX;
use crate::ports::{Buffer, BufferPool};

/// Sizes of the buffers that are kept, smallest first: map pages and merges (a merge takes two), pages of a
/// checkpoint, a log write.
const SIZES_BYTES: [usize; 6] = [
    PAGE_BYTES,
    PAGE_BYTES,
    PAGE_BYTES,
    PAGE_BYTES,
    16 * PAGE_BYTES,
    PART_BYTES_MAX / 2,
];

/// The buffers that are kept and not in use.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    kept: [Option<Buffer>; SIZES_BYTES.len()],
    /// Whether the buffers were taken from the pool once; from then on they come back by themselves.
    filled: bool,
}

impl Reserve {
    /// A pool that falls back on the reserve.
    pub(crate) fn over<'a, B: BufferPool>(&'a mut self, pool: &'a mut B) -> WithReserve<'a, B> {
        if !self.filled {
            for (kept, size_bytes) in self.kept.iter_mut().zip(SIZES_BYTES) {
                let Some(buffer) = kept.is_none().then(|| pool.take(size_bytes)).flatten() else {
                    continue;
                };
                if fits(&buffer, size_bytes) {
                    *kept = Some(buffer);
                } else {
                    pool.give(buffer);
                }
            }
            self.filled = self.kept.iter().all(Option::is_some);
        }
        WithReserve { reserve: self, pool }
    }

    /// Gives all buffers back.
    pub(crate) fn give_back(&mut self, pool: &mut impl BufferPool) {
        for buffer in self.kept.iter_mut().filter_map(Option::take) {
            pool.give(buffer);
        }
    }
}

/// Whether a buffer may be kept for this size: a pool may give more than was asked for, but not for ever.
fn fits(buffer: &Buffer, size_bytes: usize) -> bool {
    (size_bytes..=2 * size_bytes).contains(&buffer.capacity())
}

/// A pool, and a reserve for when it is empty.
pub(crate) struct WithReserve<'a, B> {
    reserve: &'a mut Reserve,
    pool: &'a mut B,
}

impl<B: BufferPool> BufferPool for WithReserve<'_, B> {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        if let Some(buffer) = self.pool.take(length_bytes) {
            return Some(buffer);
        }
        mark(Mark::ReserveUsed);
        // The size that fits, not a larger one: small needs must not use up what the log needs.
        let size_bytes = SIZES_BYTES.into_iter().find(|&size| size >= length_bytes)?;
        let mut kept = self.reserve.kept.iter_mut().zip(SIZES_BYTES);
        kept.find_map(|(kept, size)| if size == size_bytes { kept.take() } else { None })
    }

    fn give(&mut self, buffer: Buffer) {
        let mut kept = self.reserve.kept.iter_mut().zip(SIZES_BYTES);
        match kept.find(|(kept, size_bytes)| kept.is_none() && fits(&buffer, *size_bytes)) {
            Some((kept, _)) => *kept = Some(buffer),
            None => self.pool.give(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives so many bytes at most.
    struct Bounded(usize);

    impl BufferPool for Bounded {
        fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
            self.0 = self.0.checked_sub(length_bytes)?;
            Some(Buffer::owned(length_bytes))
        }

        fn give(&mut self, buffer: Buffer) {
            self.0 += buffer.capacity();
        }
    }

    #[test]
    fn an_empty_pool_still_has_one_buffer_of_each_size_and_all_go_back() {
        let mut pool = Bounded(1 << 20);
        let mut reserve = Reserve::default();
        let mut outside = Vec::new();
        let mut buffers = reserve.over(&mut pool);
        while let Some(buffer) = buffers.pool.take(PAGE_BYTES) {
            outside.push(buffer);
        }
        for _ in 0..3 {
            let taken: Vec<Buffer> = SIZES_BYTES
                .iter()
                .filter_map(|&size| buffers.take(size))
                .collect();
            assert_eq!(taken.len(), SIZES_BYTES.len());
            assert!(
                buffers.take(1).is_none(),
                "a page buffer is not cut from a larger one"
            );
            for buffer in taken {
                buffers.give(buffer);
            }
        }
        for buffer in outside {
            pool.give(buffer);
        }
        reserve.give_back(&mut pool);
        assert_eq!(pool.0, 1 << 20);
    }
}
