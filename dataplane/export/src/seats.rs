//! How many connections something may have, and has: an export, or the whole appliance.
//!
//! Connections are counted over all processors, when they begin and when they have ended; nothing of this is on the
//! path of a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A number of places, some of them taken.
#[derive(Debug)]
pub struct Seats {
    limit: AtomicU32,
    taken: AtomicU32,
    refused: AtomicU64,
}

/// One place that is taken; free again when this is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
}

impl Seats {
    /// So many places, all free.
    #[must_use]
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicU32::new(limit),
            taken: AtomicU32::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// A place, or `None` if all are taken. Never more than the limit are taken, from however many threads.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Seat> {
        let limit = self.limit();
        let one_more = |taken| (taken < limit).then_some(taken + 1);
        let taken = self
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        if taken.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Seat {
            seats: Arc::clone(self),
        })
    }

    /// Places there are.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Places that are taken.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }

    /// How often there was none.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_and_not_one_more_and_each_comes_back() {
        let seats = Seats::new(3);
        let mut held: Vec<Seat> = (0..3).map(|_| seats.take().expect("a free one")).collect();
        assert!(seats.take().is_none());
        assert_eq!((seats.taken(), seats.refused()), (3, 1));
        held.pop();
        assert_eq!(seats.taken(), 2);
        held.push(seats.take().expect("the one that came back"));
        assert!(seats.take().is_none());
        drop(held);
        assert_eq!((seats.taken(), seats.refused()), (0, 2));
    }

    #[test]
    fn a_lower_limit_refuses_until_enough_have_left() {
        let seats = Seats::new(2);
        let held = (seats.take(), seats.take());
        seats.set_limit(1);
        assert!(seats.take().is_none());
        drop(held.0);
        assert!(seats.take().is_none());
        drop(held.1);
        assert!(seats.take().is_some());
    }
}
