//! One io_uring per poll loop: devices, sockets and wake-ups go through it in one submission per turn.
//!
//! ```text
//! loop {
//!     ring.reap(&mut completions);          // no system call
//!     ... hand each completion to its owner, queue new entries ...
//!     ring.submit()?;                       // at most one system call, none if there is nothing to do
//!     ring.wait(timeout)?;                  // or this one, when the loop goes to sleep
//! }
//! ```
//! A completion can be made only by the kernel's answer and is handed over by value, so that whoever
//! owns the memory of an entry ([`crate::device::Devices`], [`crate::socket::Sockets`]) learns exactly
//! once that the kernel is done with it.

mod setup;
#[cfg(test)]
mod tests;

pub use setup::{RingError, RingFeatures, RingOptions};

use crate::buffers::Arenas;
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};

/// Whom a completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The devices of the pool in this place ([`crate::device::Devices`]).
    Devices(u8),
    /// The same devices: commands of their own rings have ended. May come when they are closed.
    Bell(u8),
    /// The sockets ([`crate::socket::Sockets`]).
    Sockets,
    /// A wake-up ([`crate::wake`]).
    Wake,
}

const KIND_DEVICES: u64 = 1;
const KIND_SOCKETS: u64 = 2;
const KIND_WAKE: u64 = 3;
const KIND_BELL: u64 = 4;
/// Bits of an owner's own number.
const DETAIL_BITS: u32 = 48;

/// Packs an owner and its own number (48 bits) into the 64 bits that come back with the completion.
pub(crate) fn mark(owner: Owner, detail: u64) -> u64 {
    debug_assert!(detail < 1 << DETAIL_BITS);
    let (kind, place) = match owner {
        Owner::Devices(place) => (KIND_DEVICES, u64::from(place)),
        Owner::Sockets => (KIND_SOCKETS, 0),
        Owner::Wake => (KIND_WAKE, 0),
        Owner::Bell(place) => (KIND_BELL, u64::from(place)),
    };
    kind << 56 | place << DETAIL_BITS | detail
}

/// The kernel's answer to one entry.
#[derive(Debug)]
pub struct Completion {
    owner: Owner,
    detail: u64,
    result: i32,
}

impl Completion {
    /// Whom it is for.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    pub(crate) fn detail(&self) -> u64 {
        self.detail
    }

    /// What a system call would have returned; a negated errno if it failed.
    pub(crate) fn result(&self) -> i32 {
        self.result
    }
}

/// What a ring did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFigures {
    /// System calls made to submit, to run deferred work or to wait.
    pub enters: u64,
    /// Of these, calls that waited.
    pub waits: u64,
    /// Entries submitted.
    pub entries: u64,
    /// Completions reaped.
    pub completions: u64,
}

/// An io_uring, owned by one thread.
pub struct Ring {
    uring: IoUring,
    features: RingFeatures,
    figures: RingFigures,
    arenas_registered: bool,
    free_file_slots: Vec<u32>,
    /// The kernel takes entries from one thread only: the ring stays where it was made.
    one_thread: PhantomData<*mut ()>,
}

impl Ring {
    /// Whether it may be used, and how well: what the kernel granted.
    #[must_use]
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// What it did.
    #[must_use]
    pub fn figures(&self) -> RingFigures {
        self.figures
    }

    /// Registers the arenas, so that the kernel need not look up and pin their pages for each transfer.
    /// This touches all of their memory.
    ///
    /// # Errors
    /// What the kernel said, `ENOMEM` if the limit on locked memory is too low. The ring works without.
    pub fn register_arenas(&mut self, arenas: &Arenas) -> io::Result<()> {
        let vectors = arenas.vectors();
        // SAFETY: the kernel takes hold of the pages themselves; entries use them only through buffers, which
        // exist only while their arena does.
        unsafe { self.uring.submitter().register_buffers(&vectors) }?;
        self.arenas_registered = true;
        Ok(())
    }

    /// Whether they are: arena `n` is registered buffer `n`.
    pub(crate) fn has_arenas(&self) -> bool {
        self.arenas_registered
    }

    /// Registers a file; what comes back is used in entries and given to [`Self::forget_file`] in the end.
    pub(crate) fn register_file(&mut self, file: RawFd) -> FileSlot {
        let Some(slot) = self.free_file_slots.pop() else {
            return FileSlot::Descriptor(file);
        };
        match self.uring.submitter().register_files_update(slot, &[file]) {
            Ok(_) => FileSlot::Registered(slot),
            Err(_) => {
                self.free_file_slots.push(slot);
                FileSlot::Descriptor(file)
            }
        }
    }

    pub(crate) fn forget_file(&mut self, file: FileSlot) {
        if let FileSlot::Registered(slot) = file
            && self.uring.submitter().register_files_update(slot, &[-1]).is_ok()
        {
            self.free_file_slots.push(slot);
        }
    }

    /// Places in the table of registered files that nothing is in.
    #[cfg(test)]
    pub(crate) fn file_slots_free(&self) -> usize {
        self.free_file_slots.len()
    }

    /// Queues an entry for the next submission.
    ///
    /// # Safety
    /// What the entry points to stays valid, and what the kernel writes to stays untouched, until its
    /// completion was reaped.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise is exactly what `push` asks for.
        while unsafe { self.uring.submission().push(entry) }.is_err() {
            // The queue is full: the kernel takes what is there. It fails only while its completion
            // queue is full, which cannot last: it keeps overflowing completions in its own memory.
            let _ = self.enter_now();
        }
        self.figures.entries += 1;
    }

    /// Queues an entry that does nothing and completes as a wake-up: what the way through the kernel costs by itself.
    pub fn push_nothing(&mut self) {
        let entry = opcode::Nop::new().build().user_data(mark(Owner::Wake, 0));
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&entry) };
    }

    /// Submits what is queued and lets the kernel run deferred work, with one system call; with none if
    /// there is neither.
    ///
    /// # Errors
    /// What the kernel said; the entries stay queued.
    pub fn submit(&mut self) -> io::Result<()> {
        let queue = self.uring.submission();
        let nothing = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        // Without the flag nobody says that there is deferred work.
        let blind = self.features.defer_taskrun && !self.features.taskrun_flag;
        if nothing && !blind {
            return Ok(());
        }
        self.enter_now()
    }

    /// Submits all that is queued, so that what an entry names by its number may be closed.
    pub(crate) fn submit_all(&mut self) {
        // Completions that have to be taken first do not last: see `push`.
        while !self.uring.submission().is_empty() && self.enter_now().is_ok() {}
    }

    fn enter_now(&mut self) -> io::Result<()> {
        self.figures.enters += 1;
        tolerate(self.uring.submit().map(drop))
    }

    /// Submits what is queued and sleeps until there is a completion, or for `timeout_ns`.
    ///
    /// # Errors
    /// What the kernel said. A signal or the timeout are no errors.
    pub fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<()> {
        self.figures.enters += 1;
        self.figures.waits += 1;
        let result = match timeout_ns {
            None => self.uring.submit_and_wait(1),
            Some(ns) => {
                let time = types::Timespec::new()
                    .sec(ns / 1_000_000_000)
                    .nsec((ns % 1_000_000_000) as u32);
                let arguments = types::SubmitArgs::new().timespec(&time);
                self.uring.submitter().submit_with_args(1, &arguments)
            }
        };
        tolerate(result.map(drop))
    }

    /// Whether completions are there to be reaped.
    #[must_use]
    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Appends the completions that have arrived. No system call.
    pub fn reap(&mut self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        completions.extend(self.uring.completion().map(|entry| {
            let data = entry.user_data();
            let owner = match data >> 56 {
                KIND_DEVICES => Owner::Devices((data >> DETAIL_BITS) as u8),
                KIND_SOCKETS => Owner::Sockets,
                KIND_WAKE => Owner::Wake,
                KIND_BELL => Owner::Bell((data >> DETAIL_BITS) as u8),
                kind => unreachable!("completion of kind {kind}: never submitted"),
            };
            Completion {
                owner,
                detail: data & ((1 << DETAIL_BITS) - 1),
                result: entry.result(),
            }
        }));
        self.figures.completions += (completions.len() - before) as u64;
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

/// A file as entries name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSlot {
    /// In the ring's table: the kernel need not look it up.
    Registered(u32),
    /// A plain file descriptor.
    Descriptor(RawFd),
}

/// Builds an entry for a registered file or a plain descriptor: the two are different types to
/// io-uring's builders.
macro_rules! on_file {
    ($slot:expr, |$file:ident| $entry:expr) => {
        match $slot {
            $crate::ring::FileSlot::Registered(slot) => {
                let $file = io_uring::types::Fixed(slot);
                $entry
            }
            $crate::ring::FileSlot::Descriptor(descriptor) => {
                let $file = io_uring::types::Fd(descriptor);
                $entry
            }
        }
    };
}
pub(crate) use on_file;

/// A signal, a timeout, or "reap first" are no failures: the next turn tries again.
fn tolerate(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}
