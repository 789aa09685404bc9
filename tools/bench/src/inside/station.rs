//! One thread at work on its shard: the turn of a poll loop, without sockets.

use std::io;
use std::sync::Arc;

use stillpoint_hw::buffers::{Arenas, ProcessorBuffers};
use stillpoint_hw::clock::Clock;
use stillpoint_hw::device::{DeviceFigures, Devices, MemoryDevice};
use stillpoint_hw::ring::{Completion, Ring, RingOptions};
use stillpoint_hw::tail::FileTail;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::ports::{BlockDevice, Buffer, BufferPool};
use stillpoint_processor::{
    Backlog, Now, Outbox, Processor, Shard, ShardAnswer, ShardCommand, ShardIndex, ShardRequest, Ticket,
};

use crate::target::TargetError;

/// How long a station waits for its shard to become quiet.
const QUIET_NS: u64 = 60_000_000_000;

/// What is under a shard.
pub trait Medium: BlockDevice + Sized {
    /// Puts what was submitted into the ring.
    fn start(&mut self, ring: &mut Ring);
    /// Whether the ring will tell of everything that ends.
    fn may_sleep(&mut self, ring: &mut Ring) -> bool;
    /// Takes a completion in.
    fn complete(&mut self, completion: Completion);
    /// What it did so far.
    fn figures(&self) -> DeviceFigures;
    /// Leaves the ring; what is kept for the next one.
    fn leave(self, ring: &mut Ring) -> Option<MemoryDevice>;
}

impl Medium for Devices {
    fn start(&mut self, ring: &mut Ring) {
        Self::start(self, ring);
    }

    fn may_sleep(&mut self, ring: &mut Ring) -> bool {
        Self::may_sleep(self, ring)
    }

    fn complete(&mut self, completion: Completion) {
        Self::complete(self, completion);
    }

    fn figures(&self) -> DeviceFigures {
        Self::figures(self)
    }

    fn leave(self, ring: &mut Ring) -> Option<MemoryDevice> {
        self.close(ring);
        None
    }
}

impl Medium for MemoryDevice {
    fn start(&mut self, _: &mut Ring) {}

    fn may_sleep(&mut self, _: &mut Ring) -> bool {
        false
    }

    fn complete(&mut self, _: Completion) {
        unreachable!("memory puts nothing into the ring");
    }

    fn figures(&self) -> DeviceFigures {
        Self::figures(self)
    }

    fn leave(self, _: &mut Ring) -> Option<MemoryDevice> {
        Some(self)
    }
}

/// A thread's ring, devices and processor.
pub struct Station<D> {
    ring: Ring,
    clock: Clock,
    now: Now,
    buffers: ProcessorBuffers,
    processor: Processor<D, FileTail>,
    backlog: Backlog,
    outbox: Outbox,
    completions: Vec<Completion>,
    shard: ShardIndex,
    tickets: u64,
}

impl<D: Medium> Station<D> {
    /// On the thread that is to work, with `buffer_bytes` of registered memory.
    ///
    /// # Errors
    /// No io_uring, or no memory.
    pub fn new(
        shard: Shard<FileTail>,
        buffer_bytes: usize,
        device: impl FnOnce(Arc<Arenas>, &mut Ring) -> D,
    ) -> Result<Self, TargetError> {
        let other = |what: String| TargetError::Other(what);
        let mut ring = Ring::new(RingOptions::default()).map_err(|error| other(error.to_string()))?;
        let arenas = Arenas::map(1, buffer_bytes).map_err(|error| other(error.to_string()))?;
        // Works without, only slower.
        let _ = ring.register_arenas(&arenas);
        let device = device(Arc::clone(&arenas), &mut ring);
        let mut clock = Clock::new();
        Ok(Self {
            now: clock.now(),
            clock,
            buffers: arenas.pool(0),
            shard: shard.index(),
            processor: Processor::new(device, vec![shard]),
            ring,
            backlog: Backlog::default(),
            outbox: Outbox::default(),
            completions: Vec::with_capacity(1024),
            tickets: 0,
        })
    }

    /// The time of this turn.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.now.monotonic_ns
    }

    /// Which shard it is.
    #[must_use]
    pub fn shard(&self) -> ShardIndex {
        self.shard
    }

    /// A buffer for a request.
    pub fn buffer(&mut self, length_bytes: usize) -> Option<Buffer> {
        self.buffers.take(length_bytes)
    }

    /// Gives a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        self.buffers.give(buffer);
    }

    /// Gives a request to the shard.
    pub fn submit(&mut self, request: ShardRequest) {
        self.backlog.submit(&mut self.processor, request, self.now);
    }

    /// What the devices did.
    pub fn figures(&mut self) -> DeviceFigures {
        self.processor.device_mut().figures()
    }

    /// One turn, in the order of the daemon's: completions, what waits, the shards, answers, submission.
    ///
    /// # Errors
    /// io_uring fails.
    pub fn turn(&mut self, mut answered: impl FnMut(ShardAnswer, &mut ProcessorBuffers)) -> io::Result<bool> {
        self.now = self.clock.now();
        self.ring.reap(&mut self.completions);
        let mut progress = !self.completions.is_empty();
        for completion in self.completions.drain(..) {
            self.processor.device_mut().complete(completion);
        }
        progress |= self.backlog.submit_waiting(&mut self.processor, self.now);
        progress |= self.processor.poll(self.now, &mut self.buffers, &mut self.outbox);
        for answer in self.outbox.answers.drain(..) {
            answered(answer, &mut self.buffers);
        }
        self.processor.device_mut().start(&mut self.ring);
        self.ring.submit()?;
        Ok(progress)
    }

    /// Sleeps until the devices have done something, the shard has to, or for `timeout_ns`; not at all if there is something
    /// to do now, or if nothing would wake it.
    ///
    /// # Errors
    /// io_uring fails.
    pub fn wait(&mut self, timeout_ns: u64) -> io::Result<()> {
        let busy = !self.backlog.is_empty() || self.processor.has_ready_work() || self.ring.has_completions();
        if busy || !self.processor.device_mut().may_sleep(&mut self.ring) {
            return Ok(());
        }
        let due_ns = self.processor.next_deadline_ns().unwrap_or(u64::MAX);
        let left_ns = due_ns.saturating_sub(self.now.monotonic_ns);
        self.ring.wait(Some(timeout_ns.min(left_ns).max(1_000)))
    }

    /// Sends a command and waits for its event; nothing else may be in flight.
    ///
    /// # Errors
    /// io_uring fails.
    pub fn command(&mut self, command: ShardCommand) -> Result<EventKind, TargetError> {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.processor.command(self.shard, ticket, command, self.now);
        let mut found = None;
        self.until(|station| {
            let events = station.outbox.events.drain(..);
            let event = events.into_iter().find(|event| event.ticket == Some(ticket));
            found = found.take().or(event.map(|event| event.kind));
            found.is_some()
        })?;
        Ok(found.expect("waited for"))
    }

    fn until(&mut self, mut is_over: impl FnMut(&mut Self) -> bool) -> Result<(), TargetError> {
        let give_up_ns = self.clock.now().monotonic_ns + QUIET_NS;
        loop {
            let turned = self.turn(|answer, buffers| {
                if let Some(buffer) = answer.buffer {
                    buffers.give(buffer);
                }
            });
            turned.map_err(|error| TargetError::Other(format!("io_uring: {error}")))?;
            if is_over(self) {
                return Ok(());
            }
            if self.now.monotonic_ns > give_up_ns {
                return Err(TargetError::Other(
                    "the shard is still at work after a minute".into(),
                ));
            }
        }
    }

    /// Waits until nothing is in flight and takes everything apart: the shard, and its memory if it has any.
    ///
    /// # Errors
    /// Something stays in flight.
    pub fn leave(mut self) -> Result<(Shard<FileTail>, Option<MemoryDevice>), TargetError> {
        self.until(|station| station.backlog.is_empty() && station.processor.is_quiet())?;
        let (device, mut shards) = self.processor.into_parts(&mut self.buffers);
        let kept = device.leave(&mut self.ring);
        Ok((shards.pop().expect("there is one"), kept))
    }
}
