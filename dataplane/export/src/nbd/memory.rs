//! The data buffers one session holds: how much of the pool it has, and how much it may have.
//!
//! A session may take only so much that at least twice of what it has stays free. So sessions that take and do not give
//! (their clients read no replies, or send a payload a byte at a time) come to rest at a point where there is something
//! left, and a session that needs little is served whatever the others do. (This is the dynamic threshold of Choudhury
//! and Hahne, known from switches.)

use stillpoint_processor::PART_BYTES_MAX;
use stillpoint_processor::ports::{Buffer, BufferPool, Room};

/// This part of a pool is kept for sessions that need little...
const SPARE_SHARE: usize = 16;
/// ...unless the pool is no larger than this: then there is nothing to spare.
const SMALL_POOL_BYTES: usize = 8 * PART_BYTES_MAX;

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

    /// Whether the session may take so much more, in buffers of `piece_bytes`. With a reserve it may go so far over its
    /// limit.
    pub(super) fn allows(
        &self,
        length_bytes: usize,
        piece_bytes: usize,
        reserve_bytes: usize,
        pool: &impl BufferPool,
    ) -> bool {
        let begins = self.held_bytes == 0;
        let within_limit = begins || self.held_bytes + length_bytes <= self.limit_bytes + reserve_bytes;
        within_limit && {
            let Room { free_bytes, bytes } = pool.room(piece_bytes);
            let spare_bytes = if bytes > SMALL_POOL_BYTES {
                bytes / SPARE_SHARE
            } else {
                0
            };
            let leaves_enough = 2 * (self.held_bytes + length_bytes) <= free_bytes;
            leaves_enough || ((begins || reserve_bytes > 0) && length_bytes + spare_bytes <= free_bytes)
        }
    }

    /// A buffer, unless the session has its share or the pool is empty.
    pub(super) fn take(
        &mut self,
        length_bytes: usize,
        reserve_bytes: usize,
        pool: &mut impl BufferPool,
    ) -> Option<Buffer> {
        if !self.allows(length_bytes, length_bytes, reserve_bytes, pool) {
            return None;
        }
        self.take_allowed(length_bytes, pool)
    }

    /// A buffer of several that were allowed together, unless the pool is empty.
    pub(super) fn take_allowed(&mut self, length_bytes: usize, pool: &mut impl BufferPool) -> Option<Buffer> {
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
