//! Sockets: listeners and stream connections, driven by the poll loop's ring.
//!
//! Memory travels by ownership: what is to be sent ([`Gather`]) or filled ([`Scatter`]) goes in by value and comes
//! back with the event. One receive and one send per connection may be under way at a time; the table has
//! a limit, and a full one gives the memory back.

mod endpoint;
mod listen;
#[cfg(test)]
mod tests;

pub use endpoint::{Connection, Peer};
pub use listen::{ListenError, listen_tcp, listen_unix};

use crate::ring::{Completion, Owner, Ring, mark};
use io_uring::{opcode, types};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Pieces of memory of one send or receive at most.
pub const PIECES_MAX: usize = 128;

/// Memory to be sent.
pub trait Gather: 'static {
    /// The pieces, in order; at least one byte in all, at most [`PIECES_MAX`] pieces.
    fn pieces(&self) -> impl Iterator<Item = &[u8]>;
}

/// Memory to be filled.
pub trait Scatter: 'static {
    /// The pieces, in order; at least one byte in all, at most [`PIECES_MAX`] pieces.
    fn spaces(&mut self) -> impl Iterator<Item = &mut [u8]>;
}

/// Sleeps until a socket can be read (or has ended), if `to_write` also until it takes bytes, or for `timeout_ns`. For those who
/// have no ring.
///
/// # Errors
/// What the kernel said. A signal or the timeout are no errors.
pub fn wait_for(socket: BorrowedFd<'_>, to_write: bool, timeout_ns: u64) -> io::Result<()> {
    let mut wanted = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN | if to_write { libc::POLLOUT } else { 0 },
        revents: 0,
    };
    let time = libc::timespec {
        tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (timeout_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: one pollfd and one timespec that live through the call; no signal mask.
    let result = unsafe { libc::ppoll(&raw mut wanted, 1, &raw const time, core::ptr::null()) };
    match result {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// Why a transfer on a socket failed: an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketError(pub i32);

impl std::fmt::Display for SocketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for SocketError {}

/// What happened on a socket. `key` is the caller's own number.
#[derive(Debug)]
pub enum SocketEvent<S, R> {
    /// A listener has a connection, or failed to take one.
    Accepted {
        /// The listener's.
        key: u32,
        /// The connection.
        result: Result<Connection, SocketError>,
    },
    /// Bytes came; 0 means that the peer sends no more.
    Received {
        /// The connection's.
        key: u32,
        /// The memory, filled from its start.
        memory: R,
        /// Bytes received.
        result: Result<usize, SocketError>,
    },
    /// Bytes went out, perhaps not all.
    Sent {
        /// The connection's.
        key: u32,
        /// The memory.
        memory: S,
        /// Bytes sent.
        result: Result<usize, SocketError>,
    },
}

enum Work<S, R> {
    Accept,
    Receive(R),
    Send(S),
}

struct Slot<S, R> {
    key: u32,
    work: Option<Work<S, R>>,
    vectors: Vec<libc::iovec>,
    message: libc::msghdr,
}

/// The transfers under way on all sockets of one poll loop.
pub struct Sockets<S: Gather, R: Scatter> {
    slots: Box<[Slot<S, R>]>,
    free: Vec<u32>,
}

impl<S: Gather, R: Scatter> Sockets<S, R> {
    /// A table for `transfers_max` transfers at a time: two per connection, one per listener.
    #[must_use]
    pub fn new(transfers_max: usize) -> Self {
        let slot = || Slot {
            key: 0,
            work: None,
            vectors: Vec::new(),
            // SAFETY: all zeros is a valid msghdr: no name, no pieces, no control data.
            message: unsafe { std::mem::zeroed() },
        };
        Self {
            slots: (0..transfers_max).map(|_| slot()).collect(),
            free: (0..transfers_max as u32).rev().collect(),
        }
    }

    /// Transfers under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes the next connection of a listener; says whether there was room. The listener stays open
    /// until the event came, or until [`Self::cancel_accept`].
    pub fn accept(&mut self, ring: &mut Ring, listener: &impl AsFd, key: u32) -> bool {
        let Some(index) = self.free.pop() else {
            return false;
        };
        let slot = &mut self.slots[index as usize];
        slot.key = key;
        slot.work = Some(Work::Accept);
        let file = types::Fd(listener.as_fd().as_raw_fd());
        let entry = opcode::Accept::new(file, std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(mark(Owner::Sockets, u64::from(index)));
        // SAFETY: the entry points to no memory.
        unsafe { ring.push(&entry) };
        true
    }

    /// Ends the accept under `key`, if one is under way: its event comes with `ECANCELED`, unless a
    /// connection came first.
    pub fn cancel_accept(&mut self, ring: &mut Ring, key: u32) {
        let found = self
            .slots
            .iter()
            .position(|slot| slot.key == key && matches!(slot.work, Some(Work::Accept)));
        let Some(index) = found else { return };
        let entry = opcode::AsyncCancel::new(mark(Owner::Sockets, index as u64))
            .build()
            .user_data(mark(Owner::Sockets, CANCEL_DETAIL));
        // SAFETY: the entry points to no memory.
        unsafe { ring.push(&entry) };
    }

    /// Receives into `memory`; gives it back if there is no room.
    ///
    /// # Errors
    /// The memory.
    pub fn receive(
        &mut self,
        ring: &mut Ring,
        connection: &Connection,
        key: u32,
        memory: R,
    ) -> Result<(), R> {
        let Some(index) = self.free.pop() else {
            return Err(memory);
        };
        let slot = &mut self.slots[index as usize];
        slot.key = key;
        let Work::Receive(memory) = slot.work.insert(Work::Receive(memory)) else {
            unreachable!("just put there");
        };
        slot.vectors.clear();
        slot.vectors.extend(memory.spaces().map(|space| libc::iovec {
            iov_base: space.as_mut_ptr().cast(),
            iov_len: space.len(),
        }));
        assert!(
            !slot.vectors.is_empty() && slot.vectors.len() <= PIECES_MAX,
            "pieces within their limit"
        );
        let file = types::Fd(connection.as_fd().as_raw_fd());
        let entry = if let [only] = &slot.vectors[..] {
            opcode::Recv::new(file, only.iov_base.cast(), only.iov_len as u32).build()
        } else {
            slot.message.msg_iov = slot.vectors.as_mut_ptr();
            slot.message.msg_iovlen = slot.vectors.len() as _;
            opcode::RecvMsg::new(file, &raw mut slot.message).build()
        };
        // SAFETY: the entry points to the slot's message, its vectors, and the memory that the slot owns. The
        // slots are a boxed slice that never moves; nobody touches this one until `complete` sees the
        // completion; `drop` leaks it before that.
        unsafe { ring.push(&entry.user_data(mark(Owner::Sockets, u64::from(index)))) };
        Ok(())
    }

    /// Sends `memory`; gives it back if there is no room. The kernel sends all of it unless the connection
    /// breaks.
    ///
    /// # Errors
    /// The memory.
    pub fn send(&mut self, ring: &mut Ring, connection: &Connection, key: u32, memory: S) -> Result<(), S> {
        let Some(index) = self.free.pop() else {
            return Err(memory);
        };
        let slot = &mut self.slots[index as usize];
        slot.key = key;
        let Work::Send(memory) = slot.work.insert(Work::Send(memory)) else {
            unreachable!("just put there");
        };
        slot.vectors.clear();
        slot.vectors.extend(memory.pieces().map(|piece| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        }));
        assert!(
            !slot.vectors.is_empty() && slot.vectors.len() <= PIECES_MAX,
            "pieces within their limit"
        );
        let file = types::Fd(connection.as_fd().as_raw_fd());
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = if let [only] = &slot.vectors[..] {
            opcode::Send::new(file, only.iov_base.cast(), only.iov_len as u32)
                .flags(flags)
                .build()
        } else {
            slot.message.msg_iov = slot.vectors.as_mut_ptr();
            slot.message.msg_iovlen = slot.vectors.len() as _;
            opcode::SendMsg::new(file, &raw const slot.message)
                .flags(flags as u32)
                .build()
        };
        // SAFETY: as in `receive`; the kernel only reads the pieces.
        unsafe { ring.push(&entry.user_data(mark(Owner::Sockets, u64::from(index)))) };
        Ok(())
    }

    /// Takes in a completion of [`Owner::Sockets`]; `None` for the answer to a cancel.
    pub fn complete(&mut self, completion: Completion) -> Option<SocketEvent<S, R>> {
        assert!(completion.owner() == Owner::Sockets, "a socket's completion");
        if completion.detail() == CANCEL_DETAIL {
            return None;
        }
        let index = completion.detail() as u32;
        let slot = &mut self.slots[index as usize];
        let work = slot.work.take().expect("a transfer completes once");
        let key = slot.key;
        self.free.push(index);
        let result = match completion.result() {
            errno @ ..0 => Err(SocketError(-errno)),
            value => Ok(value as usize),
        };
        Some(match work {
            Work::Accept => SocketEvent::Accepted {
                key,
                // SAFETY: the kernel just made this descriptor for us.
                result: result.map(|file| Connection::new(unsafe { OwnedFd::from_raw_fd(file as i32) })),
            },
            Work::Receive(memory) => SocketEvent::Received { key, memory, result },
            Work::Send(memory) => SocketEvent::Sent { key, memory, result },
        })
    }
}

/// Marks the answer to a cancel.
const CANCEL_DETAIL: u64 = u32::MAX as u64;

impl<S: Gather, R: Scatter> Drop for Sockets<S, R> {
    fn drop(&mut self) {
        if self.under_way() > 0 {
            // The kernel may still write to this memory.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}
