//! One life of a pool: the shipping shards and coordinator on one processor, a client and an operator that know what
//! they were told, and devices whose operations end one at a time, when the rig says so.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use stillpoint_coordinator::{Action, Coordinator};
use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::command::{EventKind, Notice};
use stillpoint_processor::outbox::Outbox;
use stillpoint_processor::ports::OperationKind;
use stillpoint_processor::{
    Now, OpenError, Processor, RequestError, Shard, ShardAnswer, ShardCommand, ShardEvent, ShardIndex,
    ShardOptions, Ticket,
};

use super::client::Sent;
use super::history::{History, Sectors};
use super::medium::{Image, Medium, Port};
use super::memory::{Buffers, Tail};
use super::operator::Job;
use crate::faults::Fault;
use crate::machine::WALL_START_NS;
use crate::model::Broken;
use crate::random::Random;

/// A law was broken, or nothing was.
pub(crate) type Checked<T = ()> = Result<T, Broken>;

/// Turns in a row without a device at most.
const TURNS_MAX: u32 = 200_000;
/// A turn takes so long.
const TURN_NS: u64 = 1_000;

/// What is tried at a moment.
pub(crate) fn broken<T>(what: impl Into<String>) -> Checked<T> {
    Err(Broken(what.into()))
}

/// See the module.
pub(crate) struct Rig {
    pub(crate) layout: Layout,
    pub(crate) medium: Rc<RefCell<Medium>>,
    processor: Processor<Port, Tail>,
    buffers: Buffers,
    outbox: Outbox,
    pub(crate) now_ns: u64,
    pub(super) coordinator: Coordinator,
    pub(crate) history: History,
    pub(super) random: Random,
    pub(super) operations: BTreeMap<u64, Sent>,
    pub(super) operations_sent: u64,
    pub(super) looked: Option<Result<Vec<Sectors>, RequestError>>,
    pub(super) first_looked: u64,
    pub(super) job: Option<Job>,
    pub(super) tickets: u64,
    /// The snapshot being taken.
    pub(super) taking: Option<u64>,
    /// Snapshots that were confirmed and not looked at yet.
    pub(super) unseen: VecDeque<u64>,
    /// Devices do what they should not: errors are answers too.
    pub(crate) faulty: bool,
    /// The pool is full: a write may find no room.
    pub(crate) full: bool,
    /// Shards that said that they stopped writing.
    pub(crate) stopped: BTreeSet<u16>,
    /// Blocks that were noticed to be damaged.
    pub(crate) corrupt: u64,
    /// Requests and commands that failed.
    pub(crate) failures: u64,
    /// Blocks that were used twice, or leaked, when the pool was opened to be compared.
    pub(super) unaccounted: Vec<String>,
    /// What the operator or the client does right now, for reports.
    pub(crate) doing: &'static str,
}

/// What shards are opened with.
pub(crate) fn options() -> ShardOptions {
    ShardOptions {
        map_cache_pages: 64,
        in_flight_max: 32,
        #[cfg(feature = "planted-bugs")]
        planted_bug: crate::canaries::planted_here(),
    }
}

impl Rig {
    /// Opens a pool.
    pub(crate) fn open(
        layout: &Layout,
        medium: &Rc<RefCell<Medium>>,
        tails: Vec<Tail>,
        now_ns: u64,
        random: Random,
    ) -> Result<Self, OpenError> {
        let mut port = Port(Rc::clone(medium));
        let now = Now {
            monotonic_ns: now_ns,
            wall_ns: WALL_START_NS + now_ns,
        };
        let mut shards = Vec::with_capacity(tails.len());
        for (shard, tail) in (0..).zip(tails) {
            shards.push(Shard::open(layout, ShardIndex(shard), &mut port, tail, options(), now)?.0);
        }
        let mut unaccounted = Vec::new();
        if medium.borrow().instant {
            for shard in &mut shards {
                let report = shard.check(&mut port, false);
                unaccounted.extend(report.problems.iter().map(|problem| format!("{problem:?}")));
            }
        }
        Ok(Self {
            layout: layout.clone(),
            medium: Rc::clone(medium),
            processor: Processor::new(port, shards),
            buffers: Buffers::default(),
            outbox: Outbox::default(),
            now_ns,
            coordinator: Coordinator::new(),
            history: History::default(),
            random,
            operations: BTreeMap::new(),
            operations_sent: 0,
            looked: None,
            first_looked: 0,
            job: None,
            tickets: 0,
            taking: None,
            unseen: VecDeque::new(),
            faulty: false,
            full: false,
            stopped: BTreeSet::new(),
            corrupt: 0,
            failures: 0,
            unaccounted,
            doing: "nothing",
        })
    }

    /// The shards.
    pub(crate) fn shards(&self) -> &[Shard<Tail>] {
        self.processor.shards()
    }

    /// What the devices hold now.
    pub(crate) fn image(&self) -> Image {
        self.medium.borrow().image()
    }

    /// The process dies: what it leaves on the devices and in the log tails.
    pub(crate) fn die(mut self) -> (Image, Vec<Tail>) {
        let image = self.image();
        let (_, shards) = self.processor.into_parts(&mut self.buffers);
        (image, shards.into_iter().map(Shard::into_tail).collect())
    }

    pub(super) fn now(&self) -> Now {
        Now {
            monotonic_ns: self.now_ns,
            wall_ns: WALL_START_NS + self.now_ns,
        }
    }

    /// Lets everything happen that waits for no write and no flush.
    pub(crate) fn turns(&mut self) -> Checked {
        for _ in 0..TURNS_MAX {
            self.now_ns += TURN_NS;
            let now = self.now();
            let mut progress = self.processor.poll(now, &mut self.buffers, &mut self.outbox);
            let answers: Vec<ShardAnswer> = self.outbox.answers.drain(..).collect();
            let events: Vec<ShardEvent> = self.outbox.events.drain(..).collect();
            progress |= !answers.is_empty() || !events.is_empty();
            for answer in answers {
                self.answered(answer)?;
            }
            for event in events {
                self.event(event)?;
            }
            progress |= self.poll_coordinator()?;
            progress |= self.medium.borrow_mut().complete_reads();
            if !progress && !self.processor.has_ready_work() {
                return Ok(());
            }
        }
        broken("the processor runs in circles: too many turns without a device")
    }

    fn poll_coordinator(&mut self) -> Checked<bool> {
        let due = |deadline: u64| deadline <= self.now_ns;
        if !self.coordinator.next_deadline_ns().is_some_and(due) {
            return Ok(false);
        }
        let mut actions = Vec::new();
        self.coordinator.poll(self.now(), &mut actions);
        self.act(actions)?;
        Ok(true)
    }

    pub(super) fn act(&mut self, actions: Vec<Action>) -> Checked {
        for action in actions {
            match action {
                Action::Send {
                    shard,
                    ticket,
                    command,
                } => self.command(shard, ticket, command),
                Action::Finish { snapshot, result } => self.snapshot_ended(snapshot.0, result)?,
            }
        }
        Ok(())
    }

    pub(super) fn command(&mut self, shard: ShardIndex, ticket: Ticket, command: ShardCommand) {
        let now = self.now();
        self.processor.command(shard, ticket, command, now);
    }

    pub(super) fn submit(&mut self, request: stillpoint_processor::ShardRequest) -> Checked {
        let now = self.now();
        match self.processor.submit(request, now) {
            Ok(()) => Ok(()),
            Err(_) => broken("a shard has no room for so few requests"),
        }
    }

    fn event(&mut self, event: ShardEvent) -> Checked {
        let for_coordinator = event.ticket.is_some_and(Coordinator::gave)
            || matches!(event.kind, EventKind::HoldExpired { .. });
        if for_coordinator {
            let mut actions = Vec::new();
            self.coordinator.event(&event, self.now(), &mut actions);
            return self.act(actions);
        }
        if event.ticket.is_some() {
            return self.job_event(event);
        }
        match event.kind {
            EventKind::Notice(Notice::Corrupt { .. }) if self.faulty => self.corrupt += 1,
            EventKind::Notice(Notice::Stopped { .. }) if self.faulty => {
                self.stopped.insert(event.shard.0);
            }
            EventKind::Notice(notice) if notice.is_background() => {}
            other => {
                return broken(format!(
                    "shard {}: {other:?}, though no device failed",
                    event.shard.0
                ));
            }
        }
        Ok(())
    }

    /// Whether an error is an answer that devices like these may lead to.
    pub(super) fn may_fail(&mut self, error: RequestError) -> bool {
        self.failures += 1;
        let full = self.full && error == RequestError::NoSpace;
        full || self.faulty
            && matches!(
                error,
                RequestError::Io | RequestError::Corrupt | RequestError::ShardStopped | RequestError::NoSpace
            )
    }

    /// Whether the client and the operator wait for nothing.
    pub(crate) fn is_answered(&self) -> bool {
        self.operations.is_empty() && self.job.is_none() && self.taking.is_none()
    }

    /// Whether nothing goes on, not even in the background.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_answered() && self.processor.is_quiet() && self.unseen.is_empty()
    }

    /// Whether something waits for nothing but time.
    pub(super) fn is_waiting(&self) -> bool {
        self.processor.next_deadline_ns().is_some()
    }

    /// Lets time pass until what waits for nothing else happens; false if nothing does.
    pub(crate) fn wait(&mut self) -> bool {
        let deadline_ns = self.processor.next_deadline_ns();
        match deadline_ns {
            Some(deadline_ns) if deadline_ns > self.now_ns => {
                self.now_ns = deadline_ns;
                true
            }
            _ => false,
        }
    }

    /// Ends one of the writes and flushes in flight, any of them.
    pub(crate) fn complete_one(&mut self) {
        let changes = self.medium.borrow().changes_in_flight();
        let pick = *self.random.pick(&changes);
        let mut medium = self.medium.borrow_mut();
        medium.complete(pick.0);
        self.now_ns += medium.fault.as_mut().map_or(0, Fault::take_stall_ns);
    }

    /// The writes and flushes in flight.
    pub(crate) fn changes_in_flight(&self) -> Vec<(usize, OperationKind)> {
        self.medium.borrow().changes_in_flight()
    }

    /// Lets everything that was begun end, and what it leads to in the background. `observe` sees each moment before
    /// a write or flush ends.
    pub(crate) fn finish(&mut self, mut observe: impl FnMut(&mut Self) -> Checked) -> Checked {
        loop {
            self.turns()?;
            self.see_snapshots()?;
            if !self.changes_in_flight().is_empty() {
                observe(self)?;
                self.complete_one();
            } else if self.is_quiet() {
                return Ok(());
            } else if !self.wait() {
                return broken(self.describe_hang());
            }
        }
    }

    pub(super) fn describe_hang(&self) -> String {
        let shards: String = self
            .shards()
            .iter()
            .filter(|shard| !shard.is_quiet())
            .map(|shard| format!("\n    shard {}: {:?}", shard.index().0, shard.status()))
            .collect();
        format!(
            "nothing will ever happen again, but {} requests, job {:?}, snapshot {:?} were not answered{shards}",
            self.operations.len(),
            self.job,
            self.taking
        )
    }
}
