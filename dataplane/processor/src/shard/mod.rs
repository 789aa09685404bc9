//! A shard: one share of a pool, owned by one processor at a time.
//!
//! The way of a request through this folder:
//!
//! ```text
//! submit ─> ready ─> run ─┬─ read: lookup ─> device ─> check CRC ─> answer            (read.rs)
//!                         ├─ write: merge partial blocks ─> queue ─> batch ─> device  (write.rs)
//!                         │         ─> apply to the map, append to the log ─> answer
//!                         ├─ discard: a few leaves per step, `discards` in between     (discard.rs)
//!                         └─ flush: log write ─> device flush ─> answer               (durability.rs)
//! ```
//! A step that needs a map page waits in [`loads`]; one that needs room (log, space, map cache) waits in
//! `stalled` until a checkpoint or a log write made some. Everything is driven by [`Shard::poll`]; nothing blocks.
//!
//! Invariants:
//! - a slot is in exactly one place: `free`, `ready`, `stalled`, `write_queue`, a page load's waiters, a device
//!   operation, or the durability waiters;
//! - a block's map entry and its log record are made in the same step, so the log order is the map's order;
//! - an answer leaves through [`Shard::answer`] alone, which is where a cut holds it.

mod block_status;
mod change_logs;
mod changes;
pub mod check;
mod checkpoint;
mod commands;
mod cut;
mod deletions;
mod discard;
mod durability;
mod loads;
mod read;
mod reclaim;
mod recovery;
mod repair;
mod scrub;
mod slots;
#[cfg(test)]
mod tests;
mod write;

use crate::marks::{Mark, mark};
use std::collections::{BTreeMap, VecDeque};

use stillpoint_ondisk::layout::Layout;

use crate::command::{EventKind, Notice, ShardCommand, ShardEvent, ShardStatus, Ticket};
use crate::directory::Directory;
use crate::hold::CutInProgress;
use crate::ids::{DeviceAddress, DeviceIndex, Epoch, Now, ShardIndex, VolumeId};
use crate::log::LogWriter;
use crate::map::{MapError, PageCache};
use crate::outbox::Outbox;
use crate::ports::{BlockDevice, Buffer, BufferPool, DeviceError, LogTail, Operation, OperationKind};
use crate::request::{RequestError, RequestKind, ShardAnswer, ShardRequest};
use crate::space::{Purpose, Space};
use crate::stages::{Stage, Stages, Work};
use crate::virtual_volume::VirtualVolume;

use checkpoint::Checkpoint;
use durability::Durability;
use loads::Loads;
pub use recovery::{OpenError, RecoveryReport};
use repair::Look;
pub use scrub::REMEMBERED_MAX as SCRUB_REMEMBERED_MAX;
use slots::{Slot, SlotId, Slots, Step};
use write::Batches;

/// Steps that one turn runs at most, so that a turn stays short.
const STEPS_PER_TURN: usize = 256;

/// Requests that the shard looks ahead for at most, and how many have to be there for it to be of use.
const LOOK_AHEAD_MAX: usize = 64;
const LOOK_AHEAD_MIN: usize = 4;

/// Blocks that may be on their way from one checkpoint's places to the next one's.
const CHECKPOINT_BLOCKS: u64 = 64;
/// Blocks that a step of a discard needs at most, with some to spare.
const DISCARD_BLOCKS: u64 = 16;

/// What can be chosen when a shard is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardOptions {
    /// Map pages held in memory at most, 4 KiB each.
    pub map_cache_pages: usize,
    /// Requests worked on at the same time at most.
    pub in_flight_max: usize,
    /// The bug planted in this shard, if one is.
    #[cfg(feature = "planted-bugs")]
    pub planted_bug: Option<crate::PlantedBug>,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self {
            map_cache_pages: 16_384,
            in_flight_max: 1024,
            #[cfg(feature = "planted-bugs")]
            planted_bug: None,
        }
    }
}

/// Why a shard stopped writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stopped {
    operation: &'static str,
    error: DeviceError,
}

/// What a device operation in flight belongs to; packed into [`Operation::tag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Read(SlotId),
    Merge(SlotId),
    WriteBatch(u32),
    LoadPage(DeviceAddress),
    LogWrite,
    HostFlush,
    CheckpointWrite,
    CheckpointFlush,
    HeaderWrite,
    HeaderFlush,
    Scrub,
    Repair,
    ScrubRepair,
}

impl Tag {
    fn pack(self, look: Look) -> u64 {
        let (kind, value) = match self {
            Self::Read(slot) => (0, u64::from(slot)),
            Self::Merge(slot) => (1, u64::from(slot)),
            Self::WriteBatch(batch) => (2, u64::from(batch)),
            Self::LoadPage(address) => (3, address.0),
            Self::LogWrite => (4, 0),
            Self::HostFlush => (5, 0),
            Self::CheckpointWrite => (6, 0),
            Self::CheckpointFlush => (7, 0),
            Self::HeaderWrite => (8, 0),
            Self::HeaderFlush => (9, 0),
            Self::Scrub => (10, 0),
            Self::Repair => (11, 0),
            Self::ScrubRepair => (12, 0),
        };
        kind << 56 | look.bits() << 48 | value
    }

    fn unpack(tag: u64) -> (Self, Look) {
        let value = tag & ((1 << 48) - 1);
        let kind = match tag >> 56 {
            0 => Self::Read(value as SlotId),
            1 => Self::Merge(value as SlotId),
            2 => Self::WriteBatch(value as u32),
            3 => Self::LoadPage(DeviceAddress(value)),
            4 => Self::LogWrite,
            5 => Self::HostFlush,
            6 => Self::CheckpointWrite,
            7 => Self::CheckpointFlush,
            8 => Self::HeaderWrite,
            9 => Self::HeaderFlush,
            10 => Self::Scrub,
            11 => Self::Repair,
            12 => Self::ScrubRepair,
            other => panic!("an operation came back with the unknown tag {other}"),
        };
        (kind, Look::of_bits(tag >> 48 & 0xff))
    }

    /// Whether the places that it is about are not used again before it has come back (I5).
    fn keeps_places(self) -> bool {
        matches!(
            self,
            Self::Read(_)
                | Self::Merge(_)
                | Self::LoadPage(_)
                | Self::Scrub
                | Self::Repair
                | Self::ScrubRepair
        )
    }
}

/// What a step of a request came to.
#[derive(Debug)]
enum Outcome {
    /// Answer it.
    Answer(Result<(), RequestError>),
    /// It waits somewhere, or a device operation carries it.
    Parked,
    /// More to do: run it again in a later turn.
    Again,
    /// It needs a map page.
    Map(MapError),
    /// It needs room in the log.
    LogRoom,
    /// It needs a buffer.
    Buffer,
}

/// One share of a pool.
#[derive(Debug)]
pub struct Shard<T> {
    layout: Layout,
    shard: ShardIndex,
    #[cfg_attr(
        not(feature = "planted-bugs"),
        expect(dead_code, reason = "read by planted bugs")
    )]
    options: ShardOptions,
    now: Now,
    space: Space,
    cache: PageCache,
    directory: Directory,
    log: LogWriter<T>,
    volumes: BTreeMap<VolumeId, VirtualVolume>,
    slots: Slots,
    ready: VecDeque<SlotId>,
    stalled: VecDeque<SlotId>,
    write_queue: VecDeque<SlotId>,
    batches: Batches,
    loads: Loads,
    durability: Durability,
    checkpoint: Checkpoint,
    cuts: Vec<CutInProgress>,
    commands: VecDeque<(Ticket, ShardCommand)>,
    /// The first command waits for room in the log.
    command_waits: bool,
    reclaim: reclaim::Reclaim,
    discards: discard::Discards,
    change_logs: change_logs::ChangeLogs,
    scrub: scrub::Scrub,
    /// Volumes and snapshots that have come since the last checkpoint began.
    rows_made: u64,
    /// Checkpoints begun when space was first found wanting; `None` while there is room.
    no_space_since: Option<u64>,
    outgoing: VecDeque<Box<Operation>>,
    spare_operations: Vec<Box<Operation>>,
    /// Reads in flight that began before (`[1 - half]`) and after (`[half]`) the last durable checkpoint (I5).
    reads_in_flight: [u64; 2],
    read_half: usize,
    repairs: repair::Repairs,
    operations_in_flight: u64,
    held_answers: usize,
    answers: Vec<ShardAnswer>,
    events: Vec<ShardEvent>,
    stopped: Option<Stopped>,
    status: ShardStatus,
    stages: Stages,
    /// The last turn found no buffer for something that nobody else will wake.
    short_of_buffers: bool,
    /// The devices make single writes durable for less than a flush costs.
    durable_writes: bool,
    progress: bool,
}

impl<T: LogTail> Shard<T> {
    /// Takes the log tail back out, as the next process would find it.
    pub fn into_tail(self) -> T {
        self.log.into_tail()
    }

    /// The log tail, to look at.
    pub fn tail(&self) -> &T {
        self.log.tail()
    }

    /// Whether the last checkpoint holds everything, so that the log tail is not needed to open the shard again.
    pub fn is_checkpointed(&self) -> bool {
        self.log.is_left_behind()
    }

    /// Which shard this is.
    pub fn index(&self) -> ShardIndex {
        self.shard
    }

    /// The pool's catalog, on shard 0: key and value of every row, in key order.
    pub fn catalog(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let rows = self
            .directory
            .rows(stillpoint_ondisk::directory::RowKind::Catalog);
        rows.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    /// The shares of this shard that are not to be freed with all their snapshots, and the snapshots of each, for
    /// reconciliation with the catalog.
    pub fn shares(&self) -> impl Iterator<Item = &VirtualVolume> {
        self.volumes.values().filter(|volume| !volume.with_snapshots)
    }

    /// Takes a request.
    ///
    /// # Errors
    /// The request back, if as many as may be are being worked on; try again after [`Self::poll`].
    pub fn submit(&mut self, request: ShardRequest, now: Now) -> Result<(), ShardRequest> {
        self.now = now;
        if self.slots.is_full(self.held_answers) {
            mark(Mark::SlotsFull);
            return Err(request);
        }
        let now_ns = now.monotonic_ns;
        let work = Work::of(request.kind);
        self.stages.record(Stage::Ring, work, request.since_ns, now_ns);
        match self.admit(&request) {
            Ok(step) => {
                if step == Step::Discard {
                    self.discards.taken();
                }
                let slot = self.slots.take(request, step, now_ns);
                self.ready.push_back(slot);
            }
            Err(error) => {
                let ShardRequest { token, buffer, .. } = request;
                self.answers.push(ShardAnswer {
                    token,
                    result: Err(error),
                    buffer,
                    valid_bytes: 0,
                    since_ns: now_ns,
                });
            }
        }
        Ok(())
    }

    /// Checks a request against the volume; gives its first step.
    fn admit(&self, request: &ShardRequest) -> Result<Step, RequestError> {
        let volume = self
            .volumes
            .get(&request.view.volume)
            .ok_or(RequestError::NotFound)?;
        let viewed = volume.viewed(request.view).ok_or(RequestError::NotFound)?;
        let end = request.first.0.checked_add(u64::from(request.blocks));
        if request.kind != RequestKind::Flush && end.is_none_or(|end| end > viewed.share_blocks) {
            return Err(RequestError::OutOfRange);
        }
        let changes = matches!(
            request.kind,
            RequestKind::Write { .. } | RequestKind::Discard { .. }
        );
        if changes && request.view.snapshot.is_some() {
            return Err(RequestError::ReadOnly);
        }
        if changes && self.stopped.is_some() {
            return Err(RequestError::ShardStopped);
        }
        Ok(match request.kind {
            RequestKind::Read => Step::Read,
            RequestKind::Write { .. } if request.is_partial() => Step::Merge,
            RequestKind::Write { .. } => Step::Queue,
            RequestKind::Discard { .. } => Step::Discard,
            RequestKind::Flush => Step::Flush,
            RequestKind::BlockStatus => Step::BlockStatus,
            RequestKind::Changes { base } => {
                self.compared(request.view, base)?;
                Step::Changes(base)
            }
            RequestKind::Cache => Step::Cache,
        })
    }

    /// Takes a command; its event comes out of a later [`Self::poll`].
    pub fn command(&mut self, ticket: Ticket, command: ShardCommand, now: Now) {
        self.now = now;
        self.commands.push_back((ticket, command));
        self.command_waits = false;
    }

    /// Takes a device operation back.
    pub fn completed(&mut self, mut operation: Box<Operation>, now: Now, buffers: &mut impl BufferPool) {
        self.now = now;
        self.progress = true;
        self.operations_in_flight -= 1;
        let (tag, look) = Tag::unpack(operation.tag);
        if tag.keeps_places() {
            self.reads_in_flight[look.half()] -= 1;
        }
        if operation.result.is_err() {
            self.status.device_errors += 1;
        } else if operation.kind == OperationKind::Read {
            // Of one side: the other one answered.
            self.status.device_errors += operation.failures.len() as u64;
        } else if operation.kind == OperationKind::Write {
            self.durability.wrote(&operation);
        }
        match tag {
            Tag::Read(slot) => self.read_done(slot, look, &mut operation, buffers),
            Tag::Merge(slot) => self.merge_done(slot, look, &mut operation, buffers),
            Tag::WriteBatch(batch) => self.batch_done(batch, &mut operation),
            Tag::LoadPage(address) => self.load_done(address, look, &mut operation, buffers),
            Tag::LogWrite => self.log_write_done(&mut operation, buffers),
            Tag::HostFlush => self.host_flush_done(&operation),
            Tag::Scrub => self.scrub_read_done(look, &mut operation, buffers),
            Tag::Repair => self.repair_done(look, &mut operation, buffers),
            Tag::ScrubRepair => self.scrub_repair_done(look, &mut operation, buffers),
            Tag::CheckpointWrite | Tag::CheckpointFlush | Tag::HeaderWrite | Tag::HeaderFlush => {
                self.checkpoint_operation_done(tag, &mut operation, buffers);
            }
        }
        self.recycle(operation);
    }

    /// Does what can be done now; gives whether anything was done. Answers and events are appended to `outbox`.
    pub fn poll(
        &mut self,
        now: Now,
        device: &mut impl BlockDevice,
        buffers: &mut impl BufferPool,
        outbox: &mut Outbox,
    ) -> bool {
        self.now = now;
        self.durable_writes = device.writes_durably();
        self.short_of_buffers = false;
        // Before the commands, so that a release that comes too late finds no hold; after them, so that neither does a
        // cut whose deadline is past already.
        self.expire_holds();
        self.run_commands();
        self.expire_holds();
        self.drive_change_logs();
        self.drive_discards();
        self.run_ready(buffers);
        self.form_batches();
        self.issue_loads(buffers);
        self.drive_log(buffers);
        self.drive_checkpoint(buffers);
        self.drive_reclaim();
        self.drive_change_logs();
        self.drive_scrub(buffers);
        self.settle_waiters();
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::FreedSpaceReusedTooEarly) {
            self.space.reuse_at_once();
        }
        self.send(device);
        self.progress |= !self.answers.is_empty() || !self.events.is_empty();
        outbox.answers.append(&mut self.answers);
        outbox.events.append(&mut self.events);
        core::mem::take(&mut self.progress)
    }

    /// The monotonic time at which [`Self::poll`] has to be called even if nothing happens.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        // A step of a scrub that is due already is work that is ready, and no deadline.
        let scrub = self.scrub.next_ns();
        let scrub = scrub.filter(|&next_ns| next_ns > self.now.monotonic_ns);
        self.cuts
            .iter()
            .map(|cut| cut.deadline_ns)
            .filter(|&deadline| deadline != u64::MAX)
            .chain(self.durability.deadline_ns().filter(|_| self.stopped.is_none()))
            .chain(scrub)
            .chain(self.discards.next_ns(self.now.monotonic_ns))
            .chain(self.change_logs.next_ns())
            .chain(self.reclaim_deadline_ns())
            .min()
    }

    /// Whether nothing is being worked on, in flight, or left to do in the background.
    pub fn is_quiet(&self) -> bool {
        self.slots.in_use() == 0
            && self.held_answers == 0
            && self.operations_in_flight == 0
            && self.outgoing.is_empty()
            && self.commands.is_empty()
            && self.durability.is_idle()
            && self.checkpoint.is_idle()
            && (self.reclaim.is_idle() || self.stopped.is_some())
    }

    /// Whether a turn would find something to do without waiting for a device.
    pub fn has_ready_work(&self) -> bool {
        !self.ready.is_empty()
            || !self.answers.is_empty()
            || !self.events.is_empty()
            || (!self.commands.is_empty() && !self.command_waits)
            || !self.outgoing.is_empty()
            || self.short_of_buffers
            || self.can_load()
            || (self.checkpoint.is_promoting() && self.reads_in_flight[1 - self.read_half] == 0)
            || self.reclaim_is_ready()
            || self.discards_are_ready()
            || self.scrub.is_ready(self.now.monotonic_ns)
    }

    /// Looks at the map entries that the next steps need, one request after the other and without acting on any: these looks
    /// do not wait for each other, so that the time until memory answers is spent once and not for each request.
    fn look_ahead(&self) {
        if self.ready.len() < LOOK_AHEAD_MIN {
            return;
        }
        let mut found = 0;
        let mut last: Option<(VolumeId, &VirtualVolume)> = None;
        for &id in self.ready.iter().take(LOOK_AHEAD_MAX) {
            let slot = &self.slots[id];
            let wants = matches!(slot.step, Step::Read | Step::Apply);
            if !wants || slot.view.snapshot.is_some() {
                continue;
            }
            if last.is_none_or(|(volume, _)| volume != slot.view.volume) {
                last = self
                    .volumes
                    .get_key_value(&slot.view.volume)
                    .map(|(&id, volume)| (id, volume));
            }
            if let Some((_, volume)) = last {
                found ^= self.cache.glance(&volume.root, slot.first);
            }
        }
        core::hint::black_box(found);
    }

    fn run_ready(&mut self, buffers: &mut impl BufferPool) {
        self.look_ahead();
        for _ in 0..STEPS_PER_TURN.min(self.ready.len()) {
            let Some(slot) = self.ready.pop_front() else { break };
            self.progress = true;
            self.run(slot, buffers);
        }
    }

    /// Runs one step of a request and puts the request where it goes next.
    fn run(&mut self, id: SlotId, buffers: &mut impl BufferPool) {
        let outcome = match self.slots[id].step {
            Step::Read => self.step_read(id),
            Step::Cache => self.step_cache(id),
            Step::Merge => self.step_merge(id, buffers),
            Step::Queue if self.stopped.is_some() => Outcome::Answer(Err(RequestError::ShardStopped)),
            Step::Queue => match self.grant_change(id) {
                Err(outcome) => outcome,
                Ok(()) => {
                    self.write_queue.push_back(id);
                    Outcome::Parked
                }
            },
            Step::Apply => self.step_apply(id),
            Step::Discard => self.step_discard(id),
            Step::BlockStatus => self.step_block_status(id),
            Step::Changes(base) => self.step_changes(id, base),
            Step::Flush => self.step_flush(id),
        };
        match outcome {
            Outcome::Parked => {}
            Outcome::Answer(result) => self.answer(id, result),
            Outcome::Again => self.ready.push_back(id),
            Outcome::Map(MapError::Miss(page)) => {
                let again = core::mem::replace(&mut self.slots[id].waited, true);
                self.loads.wait(page, loads::Waiter::Slot(id), again);
            }
            Outcome::Map(MapError::NoSpace) => self.stall_for_space(id),
            Outcome::Map(MapError::CacheFull) => {
                mark(Mark::WaitsForCache);
                self.checkpoint.want();
                self.stalled.push_back(id);
            }
            Outcome::LogRoom => {
                mark(Mark::WaitsForLogRoom);
                self.want_log_room();
                self.stalled.push_back(id);
            }
            // Buffers come back all the time: look again next turn.
            Outcome::Buffer => {
                mark(Mark::WaitsForBuffer);
                self.ready.push_back(id);
            }
        }
    }

    fn stall_for_space(&mut self, id: SlotId) {
        let purpose = match self.slots[id].kind {
            RequestKind::Write { .. } => Purpose::Map,
            _ => Purpose::Metadata,
        };
        if self.is_out_of_space(purpose, 0) {
            self.give_up_space(id);
        } else {
            self.stalled.push_back(id);
        }
    }

    /// Notes that there was no room for `blocks`; true if no checkpoint can change that.
    fn is_out_of_space(&mut self, purpose: Purpose, blocks: u32) -> bool {
        let needed = match purpose {
            Purpose::Metadata => DISCARD_BLOCKS,
            _ => u64::from(blocks) + CHECKPOINT_BLOCKS,
        };
        match self.no_space_since {
            Some(since) if self.checkpoint.promoted() <= since => false,
            Some(_) if self.space.room_to_come(purpose) < needed => true,
            _ => {
                self.no_space_since = Some(self.checkpoint.begun());
                self.checkpoint.want();
                false
            }
        }
    }

    fn give_up_space(&mut self, id: SlotId) {
        self.drop_extents(id);
        self.answer(id, Err(RequestError::NoSpace));
    }

    /// Runs stalled requests again: something they may have waited for has happened.
    fn unstall(&mut self) {
        self.reclaim.unstall();
        while let Some(id) = self.stalled.pop_front() {
            self.ready.push_back(id);
        }
    }

    /// The one door through which answers leave: frees the slot, holds the answer if a cut says so.
    fn answer(&mut self, id: SlotId, result: Result<(), RequestError>) {
        self.reclaim.answered(self.now.monotonic_ns);
        let (volume, birth) = (self.slots[id].view.volume, self.slots[id].max_birth);
        self.settle_grant(id);
        let now_ns = self.now.monotonic_ns;
        let slot = &self.slots[id];
        let work = Work::of(slot.kind);
        self.discards.answered(slot.kind, now_ns);
        self.stages.record(slot.stage, work, slot.since_ns, now_ns);
        let answer = self.slots.release(id, result, now_ns);
        if let Some(cut) = self.cuts.iter_mut().find(|cut| cut.holds(volume, birth)) {
            mark(Mark::AnswerHeld);
            cut.hold(answer, work);
            self.held_answers += 1;
        } else {
            self.answers.push(answer);
        }
    }

    /// A request goes over into another stage of its way.
    fn enter(&mut self, id: SlotId, stage: Stage) {
        let now_ns = self.now.monotonic_ns;
        let slot = &mut self.slots[id];
        let since_ns = core::mem::replace(&mut slot.since_ns, now_ns);
        let left = core::mem::replace(&mut slot.stage, stage);
        self.stages.record(left, Work::of(slot.kind), since_ns, now_ns);
    }

    fn event(&mut self, ticket: Option<Ticket>, kind: EventKind) {
        self.events.push(ShardEvent {
            shard: self.shard,
            ticket,
            kind,
        });
    }

    fn notice(&mut self, notice: Notice) {
        self.event(None, EventKind::Notice(notice));
    }

    fn corrupt(&mut self, address: DeviceAddress) {
        self.status.corrupt_blocks += 1;
        self.notice(Notice::Corrupt { address });
    }

    /// After a failed log write, checkpoint write or flush the shard writes no more: what is durable is no longer
    /// known, and guessing would risk what is. Reads go on.
    fn stop(&mut self, operation: &'static str, error: DeviceError) {
        if self.stopped.is_some() {
            return;
        }
        mark(Mark::Stopped);
        self.stopped = Some(Stopped { operation, error });
        self.notice(Notice::Stopped { operation, error });
        while let Some(id) = self.write_queue.pop_front() {
            self.answer(id, Err(RequestError::ShardStopped));
        }
        self.unstall();
        self.change_logs.wake_all(&mut self.ready);
    }

    fn operation(&mut self, kind: OperationKind, tag: Tag) -> Box<Operation> {
        self.operation_of(kind, tag, Look::first(self.read_half))
    }

    fn operation_of(&mut self, kind: OperationKind, tag: Tag, look: Look) -> Box<Operation> {
        let mut operation = self.spare_operations.pop().unwrap_or_else(Operation::new);
        operation.shard = self.shard;
        operation.kind = kind;
        operation.tag = tag.pack(look);
        operation
    }

    fn recycle(&mut self, mut operation: Box<Operation>) {
        operation.clear();
        if self.spare_operations.len() < 256 {
            self.spare_operations.push(operation);
        }
    }

    fn issue(&mut self, operation: Box<Operation>) {
        let (tag, look) = Tag::unpack(operation.tag);
        if tag.keeps_places() {
            self.reads_in_flight[look.half()] += 1;
        }
        self.operations_in_flight += 1;
        self.outgoing.push_back(operation);
    }

    fn send(&mut self, device: &mut impl BlockDevice) {
        while let Some(operation) = self.outgoing.pop_front() {
            if let Err(full) = device.submit(operation) {
                mark(Mark::DeviceQueueFull);
                self.outgoing.push_front(full.0);
                return;
            }
            self.progress = true;
        }
    }

    /// Where the time of its requests went since it was opened.
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Figures of the shard.
    pub fn status(&self) -> ShardStatus {
        ShardStatus {
            total_blocks: self.space.total_blocks(),
            used_blocks: self.space.used_blocks(),
            pending_blocks: self.space.pending_blocks(),
            log_used_bytes: self.log.used_pages() * crate::BLOCK_BYTES as u64,
            log_bytes: self.log.ring_pages() * crate::BLOCK_BYTES as u64,
            map_pages_cached: self.cache.cached_pages() as u64,
            in_flight: (self.slots.in_use() + self.held_answers) as u64,
            stopped: self.stopped.is_some(),
            volumes: self.volumes.values().map(VirtualVolume::status).collect(),
            scrub: self.scrub.status(self.now.monotonic_ns),
            change_logs: self.change_logs.statuses(),
            ..self.status.clone()
        }
    }

    /// Whether this bug is planted here.
    #[cfg(feature = "planted-bugs")]
    fn planted(&self, bug: crate::PlantedBug) -> bool {
        self.options.planted_bug == Some(bug)
    }

    fn home(&self) -> DeviceIndex {
        DeviceIndex(self.layout.home(self.shard.0) as u8)
    }

    /// Records that a change of `volume` happened now; gives the epoch it was born in.
    fn note_change(volume: &mut VirtualVolume, now: Now) -> Epoch {
        volume.dirty = true;
        volume.changes.note(now.wall_ns);
        volume.epoch
    }
}

/// Gives all buffers of an operation back.
fn give_all(operation: &mut Operation, buffers: &mut impl BufferPool) {
    for buffer in operation.buffers.drain(..) {
        buffers.give(buffer);
    }
}

/// Takes the only buffer out of an operation.
fn only_buffer(operation: &mut Operation) -> Buffer {
    assert_eq!(operation.buffers.len(), 1, "this operation has one buffer");
    operation.buffers.pop().expect("one buffer")
}
