//! Buffers without a limit, and log tails that can be copied.

use stillpoint_processor::ports::{Buffer, BufferPool, LogTail};

/// Buffers by their length, used again.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    spare: Vec<Buffer>,
}

impl BufferPool for Buffers {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        let fits = self
            .spare
            .iter()
            .position(|buffer| buffer.capacity() == length_bytes);
        let mut buffer = match fits {
            Some(position) => self.spare.swap_remove(position),
            None => Buffer::owned(length_bytes),
        };
        // The content is undefined: nobody may count on zeros.
        buffer.bytes_mut()[..64].fill(0xD5);
        Some(buffer)
    }

    fn give(&mut self, buffer: Buffer) {
        if self.spare.len() < 64 {
            self.spare.push(buffer);
        }
    }
}

/// The log tail of a shard, or none.
#[derive(Clone, Debug)]
pub(crate) struct Tail(pub(crate) Option<Box<[Vec<u8>; 2]>>);

impl Tail {
    /// An empty one.
    pub(crate) fn empty() -> Self {
        let bytes = stillpoint_ondisk::tail::SEGMENT_BYTES;
        Self(Some(Box::new([vec![0; bytes], vec![0; bytes]])))
    }
}

impl LogTail for Tail {
    fn is_there(&self) -> bool {
        self.0.is_some()
    }

    fn segment(&mut self, index: usize) -> &mut [u8] {
        match &mut self.0 {
            Some(segments) => &mut segments[index],
            None => &mut [],
        }
    }
}
