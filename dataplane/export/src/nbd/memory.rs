//! The data buffers one session holds: how much of the pool it has, and how much it may have.

use stillpoint_processor::ports::{Buffer, BufferPool};

#[derive(Debug)]
pub(super) struct Memory {
    held_bytes: usize,
    limit_bytes: usize,
}

impl Memory {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            held_bytes: 0,
            limit_bytes,
        }
    }

    pub(super) fn is_free(&self) -> bool {
        self.held_bytes == 0
    }

    /// Whether the session may take so much more. One that holds nothing always may.
    pub(super) fn allows(&self, length_bytes: usize, reserve_bytes: usize) -> bool {
        self.held_bytes == 0 || self.held_bytes + length_bytes <= self.limit_bytes + reserve_bytes
    }

    /// A buffer, unless the session has its share or the pool is empty.
    pub(super) fn take(
        &mut self,
        length_bytes: usize,
        reserve_bytes: usize,
        pool: &mut impl BufferPool,
    ) -> Option<Buffer> {
        if !self.allows(length_bytes, reserve_bytes) {
            return None;
        }
        let buffer = pool.take(length_bytes)?;
        assert!(
            buffer.capacity() >= length_bytes,
            "a pool gives what is asked for"
        );
        self.held_bytes += buffer.capacity();
        Some(buffer)
    }

    pub(super) fn give(&mut self, buffer: Buffer, pool: &mut impl BufferPool) {
        self.held_bytes -= buffer.capacity();
        pool.give(buffer);
    }
}
