//! Who is connected, and for how long.
//!
//! Whoever can reach the port can connect: also other users of this machine, who have no key. What they hold must not keep the
//! browser out that has one, so:
//!
//! - A connection that has shown no key is a **stranger**. One more than [`SEATS`] of them, and the oldest is cut off: there is always
//!   room for a browser that comes, and it is no stranger as soon as its first request is read.
//! - Connections that have shown a key are **known**, and are never cut off for others.
//! - Whoever is connected has to go on: hyper ends a connection whose next head does not come in time, and [`Impatient`] one whose
//!   answer is not taken.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

/// Connections of strangers, at most, and known ones, at most.
pub(super) const SEATS: usize = 64;

/// All that are taken.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    given: u64,
    /// The oldest first; to drop the sender is to cut it off.
    strangers: VecDeque<(u64, oneshot::Sender<()>)>,
    known: Vec<(u64, oneshot::Sender<()>)>,
}

/// The seat of one connection, which is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    seats: Arc<Seats>,
}

impl Seats {
    /// A seat for a stranger. What comes with it ends when the seat is needed for another.
    pub(super) fn take(self: &Arc<Self>) -> (Seat, oneshot::Receiver<()>) {
        let (stay, leave) = oneshot::channel();
        let mut taken = self.taken();
        taken.given += 1;
        let number = taken.given;
        if taken.strangers.len() == SEATS {
            taken.strangers.pop_front();
        }
        taken.strangers.push_back((number, stay));
        let seats = Arc::clone(self);
        (Seat { number, seats }, leave)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// It has shown a key. If there are too many that have, it stays among the strangers.
    pub(super) fn becomes_known(&self) {
        let mut taken = self.seats.taken();
        if taken.known.len() < SEATS {
            let stranger = taken
                .strangers
                .iter()
                .position(|(number, _)| *number == self.number);
            let seat = stranger.and_then(|index| taken.strangers.remove(index));
            taken.known.extend(seat);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        taken.strangers.retain(|(number, _)| *number != self.number);
        taken.known.retain(|(number, _)| *number != self.number);
    }
}

/// A connection whose other end has to take what is written to it.
#[derive(Debug)]
pub(super) struct Impatient<S> {
    stream: S,
    limit: Duration,
    /// Runs while nothing can be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    /// Writing fails when for so long nothing could be written.
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            stalled: None,
        }
    }

    fn in_time<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.in_time(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.in_time(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oneshot::error::TryRecvError;

    fn is_cut_off(leave: &mut oneshot::Receiver<()>) -> bool {
        leave.try_recv() == Err(TryRecvError::Closed)
    }

    #[test]
    fn the_oldest_stranger_makes_room_and_nobody_who_is_known() {
        let seats = Arc::new(Seats::default());
        let (known, mut of_known) = seats.take();
        known.becomes_known();
        let mut strangers: Vec<_> = (0..SEATS).map(|_| seats.take()).collect();
        assert!(strangers.iter_mut().all(|(_, leave)| !is_cut_off(leave)));
        let (newest, mut of_newest) = seats.take();
        let cut: Vec<bool> = strangers.iter_mut().map(|(_, leave)| is_cut_off(leave)).collect();
        assert!(cut[0] && !cut[1..].contains(&true), "{cut:?}");
        for _ in 0..2 * SEATS {
            strangers.push(seats.take());
        }
        assert!(is_cut_off(&mut of_newest));
        assert!(!is_cut_off(&mut of_known));
        // Too late: it is gone already.
        newest.becomes_known();
        assert_eq!(seats.taken().known.len(), 1);
        drop((known, newest, strangers));
        let taken = seats.taken();
        assert!(taken.known.is_empty() && taken.strangers.is_empty());
    }

    #[test]
    fn of_too_many_that_are_known_the_last_stay_strangers() {
        let seats = Arc::new(Seats::default());
        let all: Vec<_> = (0..=SEATS).map(|_| seats.take()).collect();
        for (seat, _) in &all {
            seat.becomes_known();
            seat.becomes_known();
        }
        assert_eq!(seats.taken().known.len(), SEATS);
        assert_eq!(seats.taken().strangers.len(), 0, "the first was cut off");
        let (last, mut leave) = seats.take();
        last.becomes_known();
        assert_eq!(seats.taken().strangers.len(), 1);
        drop(all);
        last.becomes_known();
        assert_eq!(seats.taken().strangers.len(), 0);
        assert!(!is_cut_off(&mut leave));
    }
}
