//! Which pieces of an arena are free.

use super::{CHUNK_BYTES, PIECE_BYTES_MIN};

/// Size classes: 4 KiB, 16 KiB, 64 KiB, 256 KiB, 1 MiB.
const CLASSES: usize = 5;
const WORDS: usize = CHUNK_BYTES / PIECE_BYTES_MIN / 64;

/// Bytes of a piece of class `class`.
const fn piece_bytes(class: usize) -> usize {
    PIECE_BYTES_MIN << (2 * class)
}

const _: () = assert!(piece_bytes(CLASSES - 1) == CHUNK_BYTES);

/// A piece of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub offset_bytes: usize,
    pub length_bytes: usize,
}

#[derive(Clone, Debug)]
struct Chunk {
    /// The class it serves; `CLASSES` while it lies in the stock.
    class: usize,
    /// One bit per piece, set while the piece is here.
    free: [u64; WORDS],
    free_count: usize,
    /// Its place in `partial[class]` while any piece is here.
    place: usize,
}

/// The free pieces of an arena of whole chunks.
#[derive(Debug)]
pub(super) struct Chunks {
    chunks: Vec<Chunk>,
    /// Chunks that serve no class.
    stock: Vec<usize>,
    /// Per class: chunks with at least one piece here.
    partial: [Vec<usize>; CLASSES],
}

impl Chunks {
    pub(super) fn new(count: usize) -> Self {
        let chunk = Chunk {
            class: CLASSES,
            free: [0; WORDS],
            free_count: 0,
            place: 0,
        };
        Self {
            chunks: vec![chunk; count],
            stock: (0..count).rev().collect(),
            partial: core::array::from_fn(|_| Vec::with_capacity(count)),
        }
    }

    /// The smallest free piece of at least `length_bytes`; a larger class helps out when the right one and
    /// the stock are empty.
    pub(super) fn take(&mut self, length_bytes: usize) -> Option<Piece> {
        let wanted = (0..CLASSES).find(|&class| piece_bytes(class) >= length_bytes)?;
        if self.partial[wanted].is_empty() {
            self.reclaim_if_out_of_stock(wanted);
            if let Some(chunk) = self.stock.pop() {
                self.open(chunk, wanted);
            }
        }
        let class = (wanted..CLASSES).find(|&class| !self.partial[class].is_empty())?;
        let index = *self.partial[class].last()?;
        let chunk = &mut self.chunks[index];
        let word = chunk.free.iter().position(|&word| word != 0)?;
        let bit = chunk.free[word].trailing_zeros() as usize;
        chunk.free[word] &= !(1 << bit);
        chunk.free_count -= 1;
        if chunk.free_count == 0 {
            self.partial[class].pop();
        }
        Some(Piece {
            offset_bytes: index * CHUNK_BYTES + (word * 64 + bit) * piece_bytes(class),
            length_bytes: piece_bytes(class),
        })
    }

    /// Bytes that can be had in pieces for `length_bytes`: whole chunks, and what is here of chunks that are cut for it.
    pub(super) fn free_bytes(&self, length_bytes: usize) -> usize {
        let Some(class) = (0..CLASSES).find(|&class| piece_bytes(class) >= length_bytes) else {
            return 0;
        };
        let pieces: usize = self.partial[class]
            .iter()
            .map(|&index| self.chunks[index].free_count)
            .sum();
        self.stock.len() * CHUNK_BYTES + pieces * piece_bytes(class)
    }

    /// Puts back the piece at `offset_bytes`; returns its size. `length_bytes`, where known, must agree.
    pub(super) fn put(&mut self, offset_bytes: usize, length_bytes: Option<usize>) -> usize {
        let index = offset_bytes / CHUNK_BYTES;
        let chunk = &mut self.chunks[index];
        let class = chunk.class;
        assert!(class < CLASSES, "a piece of a chunk that was not cut");
        let bytes = piece_bytes(class);
        let piece = offset_bytes % CHUNK_BYTES / bytes;
        assert!(
            offset_bytes.is_multiple_of(bytes) && length_bytes.is_none_or(|length| length == bytes),
            "a buffer comes back whole"
        );
        let (word, mask) = (piece / 64, 1u64 << (piece % 64));
        assert!(chunk.free[word] & mask == 0, "a buffer comes back once");
        chunk.free[word] |= mask;
        chunk.free_count += 1;
        if chunk.free_count == 1 {
            chunk.place = self.partial[class].len();
            self.partial[class].push(index);
        }
        // One chunk per class stays cut, so that a class in use does not cut and mend all the time.
        if self.chunks[index].free_count == CHUNK_BYTES / bytes && self.partial[class].len() > 1 {
            self.close(index);
        }
        bytes
    }

    /// Mends a chunk that another class keeps cut without using it.
    fn reclaim_if_out_of_stock(&mut self, wanted: usize) {
        if !self.stock.is_empty() {
            return;
        }
        let idle = (0..CLASSES).filter(|&class| class != wanted).find_map(|class| {
            let pieces = CHUNK_BYTES / piece_bytes(class);
            let whole = |&&index: &&usize| self.chunks[index].free_count == pieces;
            self.partial[class].iter().find(whole).copied()
        });
        if let Some(index) = idle {
            self.close(index);
        }
    }

    fn open(&mut self, index: usize, class: usize) {
        let pieces = CHUNK_BYTES / piece_bytes(class);
        let chunk = &mut self.chunks[index];
        chunk.class = class;
        chunk.free_count = pieces;
        for (word, bits) in chunk.free.iter_mut().enumerate() {
            let here = pieces.saturating_sub(word * 64).min(64);
            *bits = if here == 64 { u64::MAX } else { (1 << here) - 1 };
        }
        chunk.place = self.partial[class].len();
        self.partial[class].push(index);
    }

    fn close(&mut self, index: usize) {
        let (class, place) = (self.chunks[index].class, self.chunks[index].place);
        self.partial[class].swap_remove(place);
        if let Some(&moved) = self.partial[class].get(place) {
            self.chunks[moved].place = place;
        }
        let chunk = &mut self.chunks[index];
        chunk.class = CLASSES;
        chunk.free = [0; WORDS];
        chunk.free_count = 0;
        self.stock.push(index);
    }
}
