//! Rings for commands of one's own to NVMe namespaces (IORING_OP_URING_CMD: 128-byte entries, 32-byte completions).
//!
//! A processor has one whose completions come by interrupt, and, if the driver has poll queues, one whose completions
//! somebody has to look for. Commands without data go through the first: kernel 6.1 panics when it polls for a flush. Reads
//! and writes of block devices that have poll queues go through the second as well ([`crate::device::queue`]).

use super::command::{COMMAND_BYTES, Command};
use crate::buffers::Arenas;
use crate::ring::{Owner, Ring, mark};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use zerocopy::IntoBytes;

/// `_IOWR('N', 0x80, struct nvme_uring_cmd)`: the address is that of the data.
const NVME_URING_CMD_IO: u32 = 0xc048_4e80;
/// `_IOWR('N', 0x81, struct nvme_uring_cmd)`: the address is that of an array of `struct iovec`.
const NVME_URING_CMD_IO_VEC: u32 = 0xc048_4e81;

/// Entries of a ring.
const ENTRIES: u32 = 256;
/// Devices that a ring can have a claim of: more than there are in a pool, as those that leave count too.
const CLAIMS_MAX: usize = 256;

/// How the data of a command is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// One piece of memory, or none; the registered buffer that holds it, if there is one.
    Plain(Option<u16>),
    /// An array of pieces.
    Vectors,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// What it was pushed with.
    pub mark: u64,
    /// 0, a negated errno, or the status of the device.
    pub result: i32,
}

/// One ring.
pub(crate) struct CommandRing {
    uring: IoUring<squeue::Entry128, cqueue::Entry32>,
    polled: bool,
    registered: bool,
    in_flight: usize,
}

impl CommandRing {
    /// A ring for the calling thread; `polled`: nobody is told of completions.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(polled: bool) -> io::Result<Self> {
        let build = |more: bool| {
            let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
            builder
                .setup_clamp()
                .setup_submit_all()
                .setup_cqsize(ENTRIES * 4)
                .dontfork();
            if polled {
                builder.setup_iopoll();
            } else if more {
                // A completion waits for the thread to enter the kernel, and a flag says that one does.
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            builder.build(ENTRIES)
        };
        let uring = build(true).or_else(|_| build(false))?;
        Ok(Self {
            uring,
            polled,
            registered: false,
            in_flight: 0,
        })
    }

    /// Registers the arenas, so that the kernel need not look up and pin their pages for each command. It works without.
    pub fn register_arenas(&mut self, arenas: &Arenas) {
        let vectors = arenas.vectors();
        // SAFETY: the kernel takes hold of the pages themselves; commands use them only through buffers, which exist only
        // while their arena does.
        self.registered = unsafe { self.uring.submitter().register_buffers(&vectors) }.is_ok();
    }

    /// The kernel takes no registered buffers for commands: they are given as they are from now on.
    pub fn give_up_arenas(&mut self) {
        self.registered = false;
    }

    /// Whether the arenas are registered.
    pub fn has_arenas(&self) -> bool {
        self.registered
    }

    /// Commands whose end was not seen.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues a command to the namespace that `file` is.
    ///
    /// # Safety
    /// The memory that the command names, and the array of vectors if it has one, stay valid and untouched until its end was
    /// seen.
    pub unsafe fn push(&mut self, file: RawFd, command: &Command, data: Data, mark: u64) {
        let (operation, buffer) = match data {
            Data::Plain(buffer) => (NVME_URING_CMD_IO, buffer),
            Data::Vectors => (NVME_URING_CMD_IO_VEC, None),
        };
        let mut bytes = [0; 80];
        bytes[..COMMAND_BYTES].copy_from_slice(command.as_bytes());
        let entry = opcode::UringCmd80::new(types::Fd(file), operation)
            .cmd(bytes)
            .buf_index(buffer)
            .build()
            .user_data(mark);
        // SAFETY: the caller's promise.
        unsafe { self.push_entry(&entry) };
    }

    /// Queues an entry that is no command. Of one that names its file by a number, that is the number of a claim.
    ///
    /// # Safety
    /// As for [`Self::push`].
    pub unsafe fn push_entry(&mut self, entry: &squeue::Entry128) {
        // SAFETY: the caller's promise.
        while unsafe { self.uring.submission().push(entry) }.is_err() {
            // Full: the kernel takes what is there. It fails only while completions wait, which the caller's turns take.
            let _ = self.uring.submit();
        }
        self.in_flight += 1;
    }

    /// Hands over what is queued, and lets the kernel look for completions where that is needed: one system call, or none.
    pub fn submit(&mut self) {
        let queue = self.uring.submission();
        let needed = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if needed || self.polled && self.in_flight > 0 {
            // It fails when it was interrupted or when completions have to be taken first: the next turn does it again.
            let _ = self.uring.submit();
        }
    }

    /// Whether completions are there to be taken.
    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Appends the commands that have ended. No system call.
    pub fn reap(&mut self, ended: &mut Vec<Ended>) {
        for entry in self.uring.completion() {
            self.in_flight -= 1;
            if entry.user_data() != NOBODY {
                ended.push(Ended {
                    mark: entry.user_data(),
                    result: entry.result(),
                });
            }
        }
    }

    /// Submits and waits until all has ended.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn finish(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        while self.in_flight > 0 {
            match self.uring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => self.reap(ended),
            }
        }
        Ok(())
    }
}

/// A mark that nobody waits for.
const NOBODY: u64 = u64::MAX;

/// The rings of one pool on one processor; each is made with the first device that needs it.
pub(crate) struct CommandRings {
    interrupt: Option<CommandRing>,
    polled: Option<CommandRing>,
    /// The files that the rings have, by number; -1: none.
    claims: Vec<RawFd>,
    /// The processor's own ring will tell when a command has ended.
    armed: bool,
}

impl CommandRings {
    /// None yet.
    pub fn new() -> Self {
        Self {
            interrupt: None,
            polled: None,
            claims: vec![-1; CLAIMS_MAX],
            armed: false,
        }
    }

    /// The calling thread's one that is polled, or is not, unless it is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn make(&mut self, polled: bool, arenas: &Arenas) -> io::Result<()> {
        let ring = if polled {
            &mut self.polled
        } else {
            &mut self.interrupt
        };
        if ring.is_none() {
            *ring = Some(Self::ring(polled, arenas, &self.claims)?);
        }
        Ok(())
    }

    fn all(&mut self) -> impl Iterator<Item = &mut CommandRing> {
        self.interrupt.iter_mut().chain(&mut self.polled)
    }

    fn ring(polled: bool, arenas: &Arenas, claims: &[RawFd]) -> io::Result<CommandRing> {
        let mut ring = CommandRing::new(polled)?;
        ring.uring.submitter().register_files(claims)?;
        ring.register_arenas(arenas);
        Ok(ring)
    }

    /// Has the rings keep the file of a claim, by a number of its own, until nothing is under way in them, even after the process.
    ///
    /// # Errors
    /// What the kernel said; or there are too many.
    pub fn claim(&mut self, number: usize, file: RawFd) -> io::Result<()> {
        let claim = self.claims.get_mut(number).ok_or(io::ErrorKind::StorageFull)?;
        *claim = file;
        for ring in self.all() {
            let submitter = ring.uring.submitter();
            submitter.register_files_update(number as u32, &[file])?;
        }
        Ok(())
    }

    /// The rings need not keep it any more.
    pub fn forget_claim(&mut self, number: usize) {
        if self.claims.get(number).is_some_and(|&file| file >= 0) {
            // An old kernel goes on to have it for a while; a claim ends without it too.
            let _ = self.claim(number, -1);
        }
    }

    /// The ring for reads and writes of a device that is polled, or is not; it was made.
    pub fn for_data(&mut self, polled: bool) -> &mut CommandRing {
        let ring = if polled {
            &mut self.polled
        } else {
            &mut self.interrupt
        };
        ring.as_mut()
            .expect("a ring is made with the first device that needs it")
    }

    /// The ring for everything else.
    pub fn for_others(&mut self) -> &mut CommandRing {
        self.for_data(false)
    }

    /// Hands over what is queued and takes what has ended.
    pub fn turn(&mut self, ended: &mut Vec<Ended>) {
        for ring in self.all() {
            ring.submit();
            ring.reap(ended);
        }
    }

    /// Whether somebody has to look for completions: nothing tells of them.
    pub fn must_be_polled(&self) -> bool {
        self.polled.as_ref().is_some_and(|ring| ring.in_flight() > 0)
    }

    /// Whether the processor may sleep on `ring`, which will wake it when a command has ended.
    pub fn may_sleep(&mut self, place: u8, ring: &mut Ring) -> bool {
        if self.must_be_polled() {
            return false;
        }
        let Some(interrupt) = &mut self.interrupt else {
            return true;
        };
        interrupt.submit();
        if interrupt.has_completions() {
            return false;
        }
        if interrupt.in_flight() > 0 && !self.armed {
            self.armed = true;
            let file = types::Fd(interrupt.uring.as_raw_fd());
            let entry = opcode::PollAdd::new(file, libc::POLLIN as u32).build();
            // SAFETY: the entry points to no memory; the kernel holds the file itself.
            unsafe { ring.push(&entry.user_data(mark(Owner::Bell(place), 0))) };
        }
        true
    }

    /// The processor's ring has told.
    pub fn rung(&mut self) {
        self.armed = false;
    }

    /// Nothing is in flight, and the rings go: what still waits to be told is told, so that nothing of them is held. What
    /// `ring` was asked to do with them it is told first: it knows them by a number that may be another file's afterwards.
    pub fn close(mut self, ring: &mut Ring) {
        if self.armed
            && let Some(interrupt) = &mut self.interrupt
        {
            ring.submit_all();
            let entry = opcode::Nop::new().build().user_data(NOBODY);
            // SAFETY: the entry points to no memory.
            unsafe { interrupt.push_entry(&entry.into()) };
            interrupt.submit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::CHUNK_BYTES;
    use crate::ring::RingOptions;
    use std::io::Write;

    #[test]
    fn what_waits_for_a_ring_does_not_meet_another_file_of_its_number() {
        let arenas = Arenas::map(1, CHUNK_BYTES).expect("memory");
        let mut ring = Ring::new(RingOptions::default()).expect("io_uring");
        let mut rings = CommandRings::new();
        rings.make(false, &arenas).expect("io_uring with large entries");
        // A command that ends when it is told to.
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let entry = opcode::PollAdd::new(types::Fd(reader.as_raw_fd()), libc::POLLIN as u32).build();
        // SAFETY: the entry points to no memory.
        unsafe { rings.for_others().push_entry(&entry.user_data(1).into()) };
        assert!(rings.may_sleep(0, &mut ring), "it will ring");
        writer.write_all(b"!").expect("written");
        let mut ended = Vec::new();
        rings.for_others().finish(&mut ended).expect("it ends");
        assert_eq!(ended.len(), 1);
        rings.close(&mut ring);
        let mut completions = Vec::new();
        while completions.is_empty() {
            ring.wait(None).expect("it is told");
            ring.reap(&mut completions);
        }
        assert_eq!(completions[0].owner(), Owner::Bell(0));
        assert!(completions[0].result() > 0, "{:?}", completions[0]);
    }

    #[test]
    fn claims_are_kept_by_rings_made_later_and_forgotten_by_all() {
        let arenas = Arenas::map(1, CHUNK_BYTES).expect("memory");
        let mut rings = CommandRings::new();
        rings.make(false, &arenas).expect("io_uring with large entries");
        let file = tempfile::tempfile().expect("a file");
        rings.claim(7, file.as_raw_fd()).expect("there is room");
        rings.make(true, &arenas).expect("a second ring");
        rings.forget_claim(7);
        assert!(rings.claims.iter().all(|&file| file == -1));
        assert!(
            rings.claim(CLAIMS_MAX, file.as_raw_fd()).is_err(),
            "there is an end"
        );
    }
}
