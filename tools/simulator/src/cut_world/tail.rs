//! A log tail of a few kilobytes that outlives its process: a run logs less than that, and opening copies all of it.

use std::cell::RefCell;
use std::rc::Rc;

use stillpoint_processor::ports::LogTail;

/// Bytes of a segment; the log would complain if they did not suffice.
const SMALL_SEGMENT_BYTES: usize = 32 * 1024;

/// The memory of one shard's tail, shared with the shard that lives now.
#[derive(Clone, Debug)]
pub struct SmallTail {
    segments: [Vec<u8>; 2],
    shelf: Shelf,
}

impl SmallTail {
    /// A shelf of its own with a copy of this, as a kill would leave it now.
    #[must_use]
    pub fn copied(&self) -> Shelf {
        let copy = self.is_there().then(|| self.segments.clone());
        Shelf(Rc::new(RefCell::new(copy)))
    }

    /// What it holds, in short.
    #[must_use]
    pub fn checksums(&self) -> [u32; 2] {
        self.segments
            .each_ref()
            .map(|bytes| stillpoint_ondisk::crc32c(bytes))
    }
}

/// Where a tail is kept between two lives; empty if the shard has none.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Rc<RefCell<Option<[Vec<u8>; 2]>>>);

impl Shelf {
    /// A shelf with an empty tail on it.
    #[must_use]
    pub fn with_tail() -> Self {
        let segments = [vec![0; SMALL_SEGMENT_BYTES], vec![0; SMALL_SEGMENT_BYTES]];
        Self(Rc::new(RefCell::new(Some(segments))))
    }

    /// Takes the tail for a new life.
    #[must_use]
    pub fn take(&self) -> SmallTail {
        SmallTail {
            segments: self.0.take().unwrap_or_default(),
            shelf: self.clone(),
        }
    }
}

impl LogTail for SmallTail {
    fn is_there(&self) -> bool {
        !self.segments[0].is_empty()
    }

    fn segment(&mut self, index: usize) -> &mut [u8] {
        &mut self.segments[index]
    }
}

impl Drop for SmallTail {
    fn drop(&mut self) {
        if self.is_there() {
            *self.shelf.0.borrow_mut() = Some(std::mem::take(&mut self.segments));
        }
    }
}
