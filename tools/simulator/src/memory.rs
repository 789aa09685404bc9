//! The simulated memory of a processor: a bounded pool of buffers, and log tails that outlive a kill.

use std::cell::RefCell;
use std::rc::Rc;

use stillpoint_ondisk::tail::SEGMENT_BYTES;
use stillpoint_processor::BLOCK_BYTES;
use stillpoint_processor::ports::{Buffer, BufferPool, LogTail};

/// A pool that hands out so many bytes at most, and remembers that it had to say "later".
#[derive(Debug)]
pub struct SimulatedPool {
    bytes_left: usize,
    said_later: bool,
}

impl SimulatedPool {
    /// A pool of this size.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes_left: bytes,
            said_later: false,
        }
    }
}

impl BufferPool for SimulatedPool {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        let length_bytes = length_bytes.next_multiple_of(BLOCK_BYTES);
        if length_bytes > self.bytes_left {
            self.said_later = true;
            return None;
        }
        self.bytes_left -= length_bytes;
        // The content is undefined: nobody may count on zeros.
        Some(Buffer::filled(0xD5, length_bytes))
    }

    fn give(&mut self, buffer: Buffer) {
        self.bytes_left += buffer.capacity();
    }
}

/// The two segments of a log tail.
pub type Segments = [Vec<u8>; 2];

/// Where a shard's log tail is kept between two lives of the process.
#[derive(Clone, Debug)]
pub struct TailShelf(Rc<RefCell<Option<Segments>>>);

impl Default for TailShelf {
    fn default() -> Self {
        let segments = [vec![0; SEGMENT_BYTES], vec![0; SEGMENT_BYTES]];
        Self(Rc::new(RefCell::new(Some(segments))))
    }
}

impl TailShelf {
    /// Takes the tail for a new life of the process.
    ///
    /// # Panics
    /// If another life still has it.
    #[must_use]
    pub fn take(&self, is_there: bool) -> SimulatedTail {
        SimulatedTail {
            segments: self.0.borrow_mut().take().expect("the life before has ended"),
            is_there,
            shelf: self.clone(),
        }
    }
}

/// A log tail that goes back to its shelf when the process dies.
#[derive(Debug)]
pub struct SimulatedTail {
    segments: Segments,
    is_there: bool,
    shelf: TailShelf,
}

impl LogTail for SimulatedTail {
    fn is_there(&self) -> bool {
        self.is_there
    }

    fn segment(&mut self, index: usize) -> &mut [u8] {
        if self.is_there {
            &mut self.segments[index]
        } else {
            &mut []
        }
    }
}

impl Drop for SimulatedTail {
    fn drop(&mut self) {
        *self.shelf.0.borrow_mut() = Some(std::mem::take(&mut self.segments));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_survives_its_process() {
        let shelf = TailShelf::default();
        shelf.take(true).segment(1)[7] = 9;
        assert_eq!(shelf.take(true).segment(1)[7], 9);
        assert!(shelf.take(false).segment(0).is_empty());
    }

    #[test]
    fn a_pool_says_later_when_it_is_empty_and_recovers() {
        let mut pool = SimulatedPool::new(2 * BLOCK_BYTES);
        let buffer = pool.take(BLOCK_BYTES + 1).expect("two blocks");
        assert!(pool.take(1).is_none() && pool.said_later);
        pool.give(buffer);
        assert!(pool.take(1).is_some());
    }
}
