//! Waking a poll loop that sleeps, and not bothering one that does not.
//!
//! ```text
//! the loop                                   whoever has something for it
//!   sleeper.prepare()   (flag on, fence)        put it into a ring or mailbox
//!   look into rings and mailbox once more       waker.wake()  (fence, flag off? then nothing to do)
//!   ring.wait()         (sleeps)                     ... else write to the eventfd
//!   sleeper.awake()     (flag off)
//! ```
//! A waker with a ring of its own sends a message from ring to ring, which goes out with what it submits
//! anyway; others, and kernels without such messages, write to the eventfd.
//!
//! The two fences order "flag, then look" against "put, then flag": at least one side sees the other, so a
//! message is never slept over. A flag taken off by a waker keeps further wakers quiet.

use crate::ring::{Completion, Owner, Ring, mark};
use io_uring::{opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};

/// The eventfd was read.
const DETAIL_ARMED: u64 = 1;
/// A message to another ring did not get out.
const DETAIL_SENT: u64 = 2;
/// A message of another ring has come.
const DETAIL_CALLED: u64 = 3;

/// What an eventfd is written with.
static ONE: u64 = 1;

#[derive(Debug)]
struct Bell {
    event: OwnedFd,
    /// The sleeper's ring, where messages may go to it.
    ring: OnceLock<OwnedFd>,
    sleeping: AtomicBool,
}

impl Bell {
    /// Whether the loop sleeps and nobody has woken it yet.
    fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel)
    }
}

/// The end of the one who sleeps; belongs to its thread.
#[derive(Debug)]
pub struct Sleeper {
    bell: Arc<Bell>,
    /// Where the kernel puts the eventfd's count.
    count: Option<Box<u64>>,
    armed: bool,
}

/// The end of those who wake; any number, on any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    bell: Arc<Bell>,
}

/// A sleeper and its waker.
///
/// # Errors
/// What the system said: out of file descriptors.
pub fn bell() -> io::Result<(Sleeper, Waker)> {
    // SAFETY: makes a new descriptor and touches no memory.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    let event = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let bell = Arc::new(Bell {
        event,
        ring: OnceLock::new(),
        sleeping: AtomicBool::new(false),
    });
    let sleeper = Sleeper {
        bell: Arc::clone(&bell),
        count: Some(Box::new(0)),
        armed: false,
    };
    Ok((sleeper, Waker { bell }))
}

impl Sleeper {
    /// Says which ring the sleeper waits on, so that other rings can send it messages.
    pub fn attach(&self, ring: &Ring) {
        // SAFETY: the ring is there for the time of this call, and so is its descriptor.
        let descriptor = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        if ring.features().messages
            && let Ok(copy) = descriptor.try_clone_to_owned()
        {
            let first = self.bell.ring.set(copy).is_ok();
            assert!(first, "a sleeper has one ring");
        }
    }

    /// Announces sleep. Look for work once more after this, then wait.
    pub fn prepare(&mut self, ring: &mut Ring) {
        self.arm(ring);
        self.bell.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back.
    pub fn awake(&self) {
        self.bell.sleeping.store(false, Ordering::Release);
    }

    /// Queues a read of the eventfd, unless one is waiting in the kernel: it ends the ring's wait.
    fn arm(&mut self, ring: &mut Ring) {
        if self.armed {
            return;
        }
        self.armed = true;
        let count: *mut u64 = &mut **self.count.as_mut().expect("not dropped");
        let entry = opcode::Read::new(types::Fd(self.bell.event.as_raw_fd()), count.cast(), 8).build();
        // SAFETY: the kernel writes to `count`, a box of its own that is neither touched nor freed while
        // armed: `drop` leaks it then. The eventfd stays open in the kernel's own reference.
        unsafe { ring.push(&entry.user_data(mark(Owner::Wake, DETAIL_ARMED))) };
    }

    /// Takes in a completion of [`Owner::Wake`].
    pub fn complete(&mut self, completion: Completion) {
        // A message that did not get through (the kernel was out of memory) only delays the other loop: no
        // loop sleeps for longer than a moment without looking around.
        if completion.detail() == DETAIL_ARMED {
            self.armed = false;
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if self.armed {
            std::mem::forget(self.count.take());
        }
    }
}

impl Waker {
    /// Wakes the loop if it sleeps. Call it after the message was put in place.
    pub fn wake(&self) {
        if self.bell.must_ring() {
            let one = (&raw const ONE).cast();
            // SAFETY: writes the eight bytes of ONE. It cannot block: the count stays far from its end, as
            // the loop sleeps only once per write.
            unsafe { libc::write(self.bell.event.as_raw_fd(), one, 8) };
        }
    }

    /// The same for a caller with a ring: goes with the ring's next submission where that is possible.
    pub fn wake_through(&self, ring: &mut Ring) {
        match self.bell.ring.get() {
            Some(target) if ring.features().messages => {
                if self.bell.must_ring() {
                    let target = types::Fd(target.as_raw_fd());
                    let called = mark(Owner::Wake, DETAIL_CALLED);
                    let entry = opcode::MsgRingData::new(target, 0, called, None).build();
                    let entry = entry.user_data(mark(Owner::Wake, DETAIL_SENT));
                    // Its success is no news: the sender would only be kept from sleeping.
                    let entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
                    // SAFETY: the entry points to no memory.
                    unsafe { ring.push(&entry) };
                }
            }
            _ => self.wake(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::RingOptions;
    use std::sync::mpsc;

    /// Sleeps until something is in `channel`, as a poll loop does.
    fn receive(ring: &mut Ring, sleeper: &mut Sleeper, channel: &mpsc::Receiver<u64>) -> u64 {
        let mut completions = Vec::new();
        loop {
            if let Ok(value) = channel.try_recv() {
                return value;
            }
            sleeper.prepare(ring);
            if let Ok(value) = channel.try_recv() {
                sleeper.awake();
                return value;
            }
            ring.wait(None).expect("woken"); // no timeout: a lost wake-up would hang here
            sleeper.awake();
            ring.reap(&mut completions);
            completions
                .drain(..)
                .for_each(|completion| sleeper.complete(completion));
        }
    }

    #[test]
    fn no_message_is_slept_over() {
        const ROUNDS: u64 = 4_000;
        let (to_far, far_inbox) = mpsc::channel();
        let (to_near, near_inbox) = mpsc::channel();
        let (mut near, near_waker) = bell().expect("an eventfd");
        let (mut far, far_waker) = bell().expect("an eventfd");
        let thread = std::thread::spawn(move || {
            let mut ring = Ring::new(RingOptions::default()).expect("io_uring");
            far.attach(&ring);
            for _ in 0..ROUNDS {
                let value = receive(&mut ring, &mut far, &far_inbox);
                to_near.send(value + 1).expect("the other side listens");
                // Both ways of waking.
                if value.is_multiple_of(2) {
                    near_waker.wake();
                } else {
                    near_waker.wake_through(&mut ring);
                    ring.submit().expect("submitted");
                }
            }
        });
        let mut ring = Ring::new(RingOptions::default()).expect("io_uring");
        near.attach(&ring);
        for round in 0..ROUNDS {
            to_far.send(round).expect("the other side listens");
            far_waker.wake();
            assert_eq!(receive(&mut ring, &mut near, &near_inbox), round + 1);
        }
        thread.join().expect("no panic");
    }

    #[test]
    fn a_loop_that_does_not_sleep_is_not_bothered() {
        let mut ring = Ring::new(RingOptions::default()).expect("io_uring");
        let (mut sleeper, waker) = bell().expect("an eventfd");
        sleeper.prepare(&mut ring);
        sleeper.awake();
        waker.wake();
        ring.wait(Some(5_000_000)).expect("a timeout is no failure");
        assert!(!ring.has_completions(), "nothing was written");
        sleeper.prepare(&mut ring);
        waker.wake();
        ring.wait(None).expect("woken");
        assert!(ring.has_completions());
    }
}
