//! Memory for devices and sockets: one arena per processor, cut into page-aligned buffers.
//!
//! An arena is cut into chunks of 1 MiB; a chunk serves one size class at a time and goes back to the
//! common stock when all its pieces are home. Taking and giving are a few bit operations: no system
//! call, no allocation, no lock.
//!
//! Buffers travel by ownership and may end on another processor's thread. Given to that thread's pool,
//! such a buffer sets one bit in the home arena (one per page, so it cannot overflow); the home pool
//! collects the bits when it next takes a buffer.

pub(crate) mod arena;
mod chunks;
#[cfg(test)]
mod tests;

pub use arena::{Arena, ArenaError, PageKind};

use chunks::Chunks;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use stillpoint_processor::ports::{Buffer, BufferPool, Room};

/// Bytes of the smallest buffer, and the alignment of all.
pub const PIECE_BYTES_MIN: usize = 4096;
/// Bytes of a chunk, and of the largest buffer.
pub const CHUNK_BYTES: usize = stillpoint_processor::PART_BYTES_MAX;
/// Default size of one processor's arena.
pub const ARENA_BYTES_DEFAULT: usize = 64 << 20;

/// The arenas of all processors of this process.
#[derive(Debug)]
pub struct Arenas {
    arenas: Vec<Arena>,
}

impl Arenas {
    /// Maps `count` arenas of `bytes_each` (rounded up to whole chunks). Nothing is touched yet.
    ///
    /// # Errors
    /// [`ArenaError`] if the address space cannot be had.
    pub fn map(count: usize, bytes_each: usize) -> Result<Arc<Self>, ArenaError> {
        let bytes = bytes_each.max(CHUNK_BYTES).next_multiple_of(CHUNK_BYTES);
        let arenas = (0..count).map(|_| Arena::map(bytes)).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { arenas }))
    }

    /// The arenas, in processor order.
    #[must_use]
    pub fn all(&self) -> &[Arena] {
        &self.arenas
    }

    /// The memory of all of them, as the kernel wants it told to register it.
    pub(crate) fn vectors(&self) -> Vec<libc::iovec> {
        let vector = |arena: &Arena| libc::iovec {
            iov_base: arena.address() as *mut libc::c_void,
            iov_len: arena.bytes(),
        };
        self.arenas.iter().map(vector).collect()
    }

    /// The arena that holds all of `length_bytes` from `address` on.
    #[must_use]
    pub fn holding(&self, address: usize, length_bytes: usize) -> Option<usize> {
        self.arenas
            .iter()
            .position(|arena| arena.contains(address, length_bytes))
    }

    /// The pool over arena `index`.
    ///
    /// # Panics
    /// If there is a pool over it, or was one that left buffers out: an arena has one owner.
    #[must_use]
    pub fn pool(self: &Arc<Self>, index: usize) -> ProcessorBuffers {
        let arena = &self.arenas[index];
        arena.claim();
        let home = Home {
            arenas: Arc::clone(self),
            index,
            chunks: Chunks::new(arena.bytes() / CHUNK_BYTES),
            figures: BufferFigures::default(),
        };
        ProcessorBuffers {
            home: Rc::new(RefCell::new(home)),
        }
    }
}

/// What a pool did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferFigures {
    /// Buffers taken.
    pub taken: u64,
    /// Times there was none of the size.
    pub refused: u64,
    /// Bytes out at the moment.
    pub out_bytes: u64,
    /// Most bytes that were ever out.
    pub out_bytes_max: u64,
}

#[derive(Debug)]
struct Home {
    arenas: Arc<Arenas>,
    index: usize,
    chunks: Chunks,
    figures: BufferFigures,
}

/// One processor's buffer pool. A clone is another handle to the same pool, for the same thread.
#[derive(Clone, Debug)]
pub struct ProcessorBuffers {
    home: Rc<RefCell<Home>>,
}

impl ProcessorBuffers {
    /// What this pool did.
    #[must_use]
    pub fn figures(&self) -> BufferFigures {
        self.home.borrow().figures
    }

    /// The arenas of the process.
    #[must_use]
    pub fn arenas(&self) -> Arc<Arenas> {
        Arc::clone(&self.home.borrow().arenas)
    }
}

impl BufferPool for ProcessorBuffers {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        self.home.borrow_mut().take(length_bytes)
    }

    fn give(&mut self, buffer: Buffer) {
        self.home.borrow_mut().give(buffer);
    }

    fn room(&self, length_bytes: usize) -> Room {
        self.home.borrow_mut().room(length_bytes)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.collect();
        // A buffer that is still out lives for ever, and so does the arena then.
        if self.figures.out_bytes == 0 {
            self.arenas.arenas[self.index].unclaim();
        }
    }
}

impl Home {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        assert!(length_bytes <= CHUNK_BYTES, "a buffer holds one part at most");
        self.collect();
        let Some(piece) = self.chunks.take(length_bytes) else {
            self.figures.refused += 1;
            return None;
        };
        self.figures.taken += 1;
        self.figures.out_bytes += piece.length_bytes as u64;
        self.figures.out_bytes_max = self.figures.out_bytes_max.max(self.figures.out_bytes);
        let arena = &self.arenas.arenas[self.index];
        // SAFETY: `chunks` hands out each piece once until it came back, and this pool is the only
        // owner of the arena (`claim`).
        let memory = unsafe { arena.piece(piece.offset_bytes, piece.length_bytes) };
        Some(Buffer::from_arena(memory, self.index as u32))
    }

    fn room(&mut self, length_bytes: usize) -> Room {
        self.collect();
        Room {
            free_bytes: self.chunks.free_bytes(length_bytes),
            bytes: self.arenas.arenas[self.index].bytes(),
        }
    }

    fn give(&mut self, buffer: Buffer) {
        let Some(memory) = buffer.into_arena() else {
            return; // memory of its own: freed here
        };
        let (address, length_bytes) = (memory.as_ptr() as usize, memory.len());
        match self.arenas.holding(address, length_bytes) {
            Some(home) if home == self.index => {
                let offset_bytes = address - self.arenas.arenas[home].address();
                self.put_back(offset_bytes, Some(length_bytes));
            }
            Some(home) => self.arenas.arenas[home].send_home(address),
            None => {} // of no arena of ours: somebody else's for ever
        }
    }

    /// Takes in what other threads sent home.
    fn collect(&mut self) {
        if !self.arenas.arenas[self.index].has_returned() {
            return;
        }
        let arenas = Arc::clone(&self.arenas);
        arenas.arenas[self.index].collect(|offset_bytes| self.put_back(offset_bytes, None));
    }

    fn put_back(&mut self, offset_bytes: usize, length_bytes: Option<usize>) {
        let piece_bytes = self.chunks.put(offset_bytes, length_bytes);
        self.figures.out_bytes -= piece_bytes as u64;
    }
}
