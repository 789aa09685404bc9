//! A processor: a pinned thread's state. It owns shards, and the devices as it sees them.

use crate::command::{ShardCommand, Ticket};
use crate::ids::{Now, ShardIndex};
use crate::outbox::Outbox;
use crate::ports::{BlockDevice, BufferPool, LogTail, Operation, OperationKind};
use crate::request::ShardRequest;
use crate::reserve::Reserve;
use crate::shard::Shard;

/// The shards of one pool that one thread drives, with the pool's devices as that thread sees them.
#[derive(Debug)]
pub struct Processor<D, T> {
    device: D,
    shards: Vec<Shard<T>>,
    /// Position in `shards` by shard index.
    positions: Vec<Option<usize>>,
    completed: Vec<Box<Operation>>,
    reserve: Reserve,
}

impl<D: BlockDevice, T: LogTail> Processor<D, T> {
    /// A processor that owns `shards`.
    pub fn new(device: D, shards: Vec<Shard<T>>) -> Self {
        let last = shards.iter().map(|shard| usize::from(shard.index().0)).max();
        let mut positions = vec![None; last.map_or(0, |last| last + 1)];
        for (position, shard) in shards.iter().enumerate() {
            let place = &mut positions[usize::from(shard.index().0)];
            assert!(place.is_none(), "a shard is owned once");
            *place = Some(position);
        }
        Self {
            device,
            shards,
            positions,
            completed: Vec::with_capacity(256),
            reserve: Reserve::default(),
        }
    }

    /// Whether this processor owns the shard.
    #[inline]
    #[must_use]
    pub fn owns(&self, shard: ShardIndex) -> bool {
        matches!(self.positions.get(usize::from(shard.0)), Some(Some(_)))
    }

    /// The shards, in the order in which they were given.
    #[must_use]
    pub fn shards(&self) -> &[Shard<T>] {
        &self.shards
    }

    /// The devices.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The devices.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn shard_mut(&mut self, shard: ShardIndex) -> &mut Shard<T> {
        let position = self.positions.get(usize::from(shard.0)).copied().flatten();
        &mut self.shards[position.expect("requests are routed to the owner")]
    }

    /// Takes a request for one of its shards.
    ///
    /// # Errors
    /// The request back, if the shard works on as many as it may; try again after [`Self::poll`].
    pub fn submit(&mut self, request: ShardRequest, now: Now) -> Result<(), ShardRequest> {
        self.shard_mut(request.shard).submit(request, now)
    }

    /// Takes a command for one of its shards.
    pub fn command(&mut self, shard: ShardIndex, ticket: Ticket, command: ShardCommand, now: Now) {
        self.shard_mut(shard).command(ticket, command, now);
    }

    /// One turn: takes back what the devices completed, lets every shard do what it can, and hands the devices what
    /// the shards want done. Gives whether anything happened.
    pub fn poll(&mut self, now: Now, buffers: &mut impl BufferPool, outbox: &mut Outbox) -> bool {
        let mut reserve = core::mem::take(&mut self.reserve);
        let buffers = &mut reserve.over(buffers);
        let mut completed = core::mem::take(&mut self.completed);
        self.device.poll(&mut completed);
        let mut progress = !completed.is_empty();
        for operation in completed.drain(..) {
            let failed_flush = match operation.kind {
                OperationKind::Flush => operation.result.err(),
                _ => None,
            };
            self.shard_mut(operation.shard).completed(operation, now, buffers);
            if let Some(error) = failed_flush {
                for shard in &mut self.shards {
                    shard.flush_of_another_failed(error);
                }
            }
        }
        self.completed = completed;
        for shard in &mut self.shards {
            progress |= shard.poll(now, &mut self.device, buffers, outbox);
        }
        self.reserve = reserve;
        progress
    }

    /// The monotonic time at which [`Self::poll`] has to be called even if no device completes anything.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.shards.iter().filter_map(Shard::next_deadline_ns).min()
    }

    /// Whether a turn would find something to do without waiting for a device.
    #[must_use]
    pub fn has_ready_work(&self) -> bool {
        self.shards.iter().any(Shard::has_ready_work)
    }

    /// Whether nothing is being worked on, in flight, or left to do in the background.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.shards.iter().all(Shard::is_quiet)
    }

    /// Takes the devices and shards apart, and gives back the buffers that were kept for them; nothing may be in
    /// flight on the devices.
    pub fn into_parts(mut self, buffers: &mut impl BufferPool) -> (D, Vec<Shard<T>>) {
        self.reserve.give_back(buffers);
        self.device.give_back(buffers);
        (self.device, self.shards)
    }
}
