//! The mechanism: shards on their processors, the coordinator, and all that is on its way between them. Every [`Move`]
//! lets exactly one thing happen; nothing happens by itself, time included.
//!
//! Commands to one shard keep their order, and so do its events; requests, answers and device operations overtake each
//! other freely.

use std::collections::VecDeque;

use stillpoint_coordinator::{Action, Coordinator, OverallSnapshot, SnapshotError, SnapshotRequest};
use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::format::{PoolSpec, make_pool};
use stillpoint_processor::ports::{Operation, OperationKind};
use stillpoint_processor::shard::RecoveryReport;
use stillpoint_processor::{
    Now, Outbox, Processor, RequestError, Shard, ShardAnswer, ShardCommand, ShardEvent, ShardIndex,
    ShardOptions, ShardRequest, SnapshotId, Ticket, VolumeId,
};

use super::tail::{Shelf, SmallTail};
use crate::device::{CrashFate, DeviceHabits, Devices, Port};
use crate::machine::WALL_START_NS;
use crate::memory::SimulatedPool;
use crate::model::Broken;
use crate::random::Random;

/// Turns of one shard after one move at most: beyond it something runs in circles.
const TURNS_MAX: u32 = 10_000;
/// Memory of a processor: without the largest buffer of the reserve, which nothing here needs and which takes longer to
/// fill than all the rest.
const POOL_BYTES: usize = 512 << 10;

/// A snapshot that nobody waits for, and the mark on its commands.
const STRANGER: SnapshotId = SnapshotId(u64::MAX);
pub(super) const STRANGERS: Ticket = Ticket(1);

/// One thing that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// Request `.0` of those on their way reaches its shard.
    Request(usize),
    /// The next command reaches this shard.
    Command(usize),
    /// The next event of this shard reaches the coordinator (or the control plane).
    Event(usize),
    /// Answer `.0` of those on their way reaches its client.
    Answer(usize),
    /// The device completes operation `.1` of those that shard `.0` has in flight.
    Device(usize, usize),
    /// A shard gets a turn for nothing but the time.
    Turn(usize),
}

/// What a move brought to the outside.
#[derive(Debug)]
pub enum News {
    /// Nothing.
    None,
    /// An answer for a client.
    Answer(ShardAnswer),
    /// How a snapshot ended.
    Ended(SnapshotId, Box<Result<OverallSnapshot, SnapshotError>>),
}

struct Seat {
    processor: Processor<Port, SmallTail>,
    pool: SimulatedPool,
}

/// What a stage is made of.
#[derive(Clone, Copy, Debug)]
pub struct Props {
    /// Shards, each with a processor of its own.
    pub shards: u16,
    /// Devices.
    pub devices: usize,
    /// Whether shards have a log tail.
    pub tail: bool,
    /// What shards are opened with.
    pub options: ShardOptions,
}

/// Shards, coordinator, and what is on its way.
pub struct Stage {
    pub(super) layout: Layout,
    pub(super) devices: Devices,
    props: Props,
    shelves: Vec<Shelf>,
    seats: Vec<Seat>,
    pub(super) coordinator: Option<Coordinator>,
    pub(super) commands: Vec<VecDeque<(Ticket, ShardCommand)>>,
    pub(super) events: Vec<VecDeque<ShardEvent>>,
    pub(super) requests: Vec<ShardRequest>,
    pub(super) answers: Vec<ShardAnswer>,
    /// Snapshots that ended and that nobody was told of yet.
    ended: VecDeque<(SnapshotId, Result<OverallSnapshot, SnapshotError>)>,
    /// Commands of the control plane that were not answered yet.
    control_waiting: usize,
    /// Where somebody else's cut goes on, and until when.
    occupied: Option<(usize, u64)>,
    pub(super) now_ns: u64,
}

impl Stage {
    /// A new pool, opened.
    ///
    /// # Errors
    /// If it cannot be made or opened.
    pub fn new(props: Props, random: Random) -> Result<Self, Broken> {
        let slice = stillpoint_ondisk::layout::SLICE_BLOCKS_MIN;
        let blocks = stillpoint_ondisk::layout::FIRST_SLICE_BLOCK + 1 + u64::from(props.shards) * slice;
        // Operations complete when somebody says so; the latencies are not used.
        let habits = DeviceHabits {
            latency_ns: 0,
            flush_ns: 0,
            ..DeviceHabits::default()
        };
        let devices = Devices::new(&vec![blocks; props.devices], habits, random);
        let spec = PoolSpec {
            pool: *b"a pool for cuts.",
            name: "cuts".to_string(),
            shard_count: props.shards,
            created_ns: WALL_START_NS,
            devices: (0..props.devices).map(|i| ([i as u8; 16], blocks)).collect(),
            second_sides: Vec::new(),
        };
        let layout = make_pool(&mut devices.open_port(None), &spec)
            .map_err(|error| Broken(format!("the pool cannot be made: {error}")))?;
        let shelves = (0..props.shards)
            .map(|_| {
                if props.tail {
                    Shelf::with_tail()
                } else {
                    Shelf::default()
                }
            })
            .collect();
        let mut stage = Self {
            layout,
            devices,
            props,
            shelves,
            seats: Vec::new(),
            coordinator: None,
            commands: Vec::new(),
            events: Vec::new(),
            requests: Vec::new(),
            answers: Vec::new(),
            ended: VecDeque::new(),
            control_waiting: 0,
            occupied: None,
            now_ns: 1,
        };
        let opened = stage.open()?;
        stage.start(opened.into_iter().map(|(shard, _)| shard).collect());
        Ok(stage)
    }

    /// Opens all shards.
    ///
    /// # Errors
    /// Why one does not open.
    pub fn open(&self) -> Result<Vec<(Shard<SmallTail>, RecoveryReport)>, Broken> {
        let mut port = self.devices.open_port(None);
        (0..self.props.shards)
            .zip(&self.shelves)
            .map(|(shard, shelf)| {
                let (tail, options) = (shelf.take(), self.props.options);
                Shard::open(
                    &self.layout,
                    ShardIndex(shard),
                    &mut port,
                    tail,
                    options,
                    self.now(),
                )
                .map_err(|error| Broken(format!("shard {shard} does not open: {error}")))
            })
            .collect()
    }

    /// Begins a life with these shards and a new coordinator.
    pub fn start(&mut self, shards: Vec<Shard<SmallTail>>) {
        let count = shards.len();
        self.seats = shards
            .into_iter()
            .map(|shard| Seat {
                processor: Processor::new(self.devices.port(), vec![shard]),
                pool: SimulatedPool::new(POOL_BYTES),
            })
            .collect();
        self.coordinator = Some(Coordinator::new());
        self.commands = vec![VecDeque::new(); count];
        self.events = vec![VecDeque::new(); count];
    }

    /// Ends this life: everything that was on its way is lost.
    pub fn crash(&mut self, power_cut: bool, fate: CrashFate) {
        self.seats.clear();
        self.coordinator = None;
        self.commands.clear();
        self.events.clear();
        self.requests.clear();
        self.answers.clear();
        self.ended.clear();
        self.control_waiting = 0;
        self.occupied = None;
        self.devices.crash(power_cut, fate);
        if power_cut && self.props.tail {
            self.shelves = self.shelves.iter().map(|_| Shelf::with_tail()).collect();
        }
    }

    /// A stage of its own, on which nobody lives, that holds what [`Self::crash`] would leave of this one, which goes on.
    #[must_use]
    pub fn after_a_crash(&self, power_cut: bool, fate: CrashFate) -> Self {
        let shelves = (0..self.shard_count()).map(|shard| match (self.props.tail, power_cut) {
            (true, true) => Shelf::with_tail(),
            (true, false) => self.shard(shard).tail().copied(),
            (false, _) => Shelf::default(),
        });
        Self {
            layout: self.layout.clone(),
            devices: self.devices.after_a_crash(power_cut, fate),
            props: self.props,
            shelves: shelves.collect(),
            seats: Vec::new(),
            coordinator: None,
            commands: Vec::new(),
            events: Vec::new(),
            requests: Vec::new(),
            answers: Vec::new(),
            ended: VecDeque::new(),
            control_waiting: 0,
            occupied: None,
            now_ns: self.now_ns,
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Now {
        Now {
            monotonic_ns: self.now_ns,
            wall_ns: WALL_START_NS + self.now_ns,
        }
    }

    /// How many shards there are.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        usize::from(self.props.shards)
    }

    /// A shard, to look at.
    #[must_use]
    pub fn shard(&self, index: usize) -> &Shard<SmallTail> {
        &self.seats[index].processor.shards()[0]
    }

    /// Asks the coordinator for a snapshot. False if there is no coordinator.
    pub fn ask(&mut self, request: SnapshotRequest) -> bool {
        let now = self.now();
        let Some(coordinator) = &mut self.coordinator else {
            return false;
        };
        let mut actions = Vec::new();
        coordinator.create(request, now, &mut actions);
        self.act(actions);
        true
    }

    /// Sends a command of the control plane to a shard.
    pub fn control(&mut self, shard: usize, command: ShardCommand) {
        self.control_waiting += 1;
        self.commands[shard].push_back((Ticket(0), command));
    }

    /// A cut of these volumes at one shard that is nobody's and ends at this time: until then the shard refuses others (unless
    /// it takes part in one already, and refuses this). Gives the move that begins it. There is no other one.
    pub fn occupy(&mut self, shard: usize, volumes: Vec<VolumeId>, until_ns: u64) -> Move {
        assert!(self.occupied.is_none(), "one at a time");
        let snapshot = STRANGER;
        self.commands[shard].push_front((STRANGERS, ShardCommand::Prepare { snapshot, volumes }));
        self.occupied = Some((shard, until_ns));
        Move::Command(shard)
    }

    /// The move that ends that cut, if its time has come.
    pub fn vacate(&mut self, now_ns: u64) -> Option<Move> {
        let (shard, _) = self.occupied.take_if(|(_, until_ns)| *until_ns <= now_ns)?;
        let snapshot = STRANGER;
        self.commands[shard].push_front((STRANGERS, ShardCommand::Abort { snapshot }));
        Some(Move::Command(shard))
    }

    /// When that cut ends.
    #[must_use]
    pub fn occupied_until_ns(&self) -> Option<u64> {
        self.occupied.map(|(_, until_ns)| until_ns)
    }

    /// Everything that can happen now, but for time.
    pub fn moves(&self, moves: &mut Vec<Move>) {
        moves.extend((0..self.requests.len()).map(Move::Request));
        moves.extend((0..self.answers.len()).map(Move::Answer));
        for shard in 0..self.seats.len() {
            if !self.commands[shard].is_empty() {
                moves.push(Move::Command(shard));
            }
            if !self.events[shard].is_empty() {
                moves.push(Move::Event(shard));
            }
            moves.extend((0..self.devices.in_flight(shard)).map(|nth| Move::Device(shard, nth)));
        }
    }

    /// Lets one thing happen.
    ///
    /// # Errors
    /// A hold that outlives its deadline, or a control command that fails.
    pub fn take(&mut self, next: Move) -> Result<News, Broken> {
        let now = self.now();
        match next {
            Move::Request(index) => {
                let request = self.requests.remove(index);
                let shard = usize::from(request.shard.0);
                let taken = self.seats[shard].processor.submit(request, now);
                taken.map_err(|_| Broken(format!("shard {shard} has no room for a request")))?;
                self.turn(shard)?;
            }
            Move::Command(shard) => {
                let (ticket, command) = self.commands[shard].pop_front().expect("a command is on its way");
                let index = ShardIndex(shard as u16);
                self.seats[shard].processor.command(index, ticket, command, now);
                self.turn(shard)?;
            }
            Move::Event(shard) => {
                let event = self.events[shard].pop_front().expect("an event is on its way");
                self.event(&event)?;
            }
            Move::Answer(index) => return Ok(News::Answer(self.answers.remove(index))),
            Move::Device(shard, nth) => {
                self.devices.complete_nth(shard, nth);
                self.turn(shard)?;
            }
            Move::Turn(shard) => self.turn(shard)?,
        }
        Ok(self.news())
    }

    /// A snapshot that has ended and that nobody was told of yet.
    pub fn news(&mut self) -> News {
        match self.ended.pop_front() {
            Some((snapshot, result)) => News::Ended(snapshot, Box::new(result)),
            None => News::None,
        }
    }

    fn event(&mut self, event: &ShardEvent) -> Result<(), Broken> {
        let for_coordinator = event.ticket.is_some_and(Coordinator::gave)
            || matches!(event.kind, EventKind::HoldExpired { .. });
        let now = self.now();
        if event.ticket == Some(STRANGERS) {
            return Ok(());
        }
        if for_coordinator {
            if let Some(coordinator) = &mut self.coordinator {
                let mut actions = Vec::new();
                coordinator.event(event, now, &mut actions);
                self.act(actions);
            }
        } else if event.ticket.is_some() {
            self.control_waiting -= 1;
            if event.kind != EventKind::Done {
                return Err(Broken(format!(
                    "a command of the control plane failed: {event:?}"
                )));
            }
        }
        Ok(())
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send {
                    shard,
                    ticket,
                    command,
                } => self.commands[usize::from(shard.0)].push_back((ticket, command)),
                Action::Finish { snapshot, result } => self.ended.push_back((snapshot, result)),
            }
        }
    }

    /// Gives a processor turns until it finds nothing more to do.
    fn turn(&mut self, shard: usize) -> Result<(), Broken> {
        let now = self.now();
        let seat = &mut self.seats[shard];
        let mut outbox = Outbox::default();
        let mut turns = 0;
        while seat.processor.poll(now, &mut seat.pool, &mut outbox) || seat.processor.has_ready_work() {
            turns += 1;
            if turns > TURNS_MAX {
                return Err(Broken(format!("shard {shard} runs in circles")));
            }
        }
        if seat
            .processor
            .next_deadline_ns()
            .is_some_and(|at_ns| at_ns <= self.now_ns)
        {
            return Err(Broken(format!(
                "I9: shard {shard} holds answers beyond the deadline"
            )));
        }
        self.answers.append(&mut outbox.answers);
        let told = outbox.events.into_iter();
        self.events[shard].extend(told.filter(|event| !matches!(event.kind, EventKind::Notice(_))));
        Ok(())
    }

    /// Lets the coordinator look at the time.
    pub fn poll_coordinator(&mut self) {
        let now = self.now();
        if let Some(coordinator) = &mut self.coordinator {
            let mut actions = Vec::new();
            coordinator.poll(now, &mut actions);
            self.act(actions);
        }
    }

    /// When this shard has something to do even if nothing reaches it: a hold that ends by itself, or work of its own.
    #[must_use]
    pub fn deadline_ns(&self, shard: usize) -> Option<u64> {
        self.seats[shard].processor.next_deadline_ns()
    }

    /// The next time at which somebody has something to do even if no message moves.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let holds = self
            .seats
            .iter()
            .filter_map(|seat| seat.processor.next_deadline_ns());
        let coordinator = self.coordinator.as_ref().and_then(Coordinator::next_deadline_ns);
        holds.chain(coordinator).min()
    }

    /// Lets commands of the control plane, and what the shards do for them, come to an end.
    ///
    /// # Errors
    /// As [`Self::take`], or if they never end.
    pub fn settle(&mut self) -> Result<(), Broken> {
        // A shard that was just opened has work of its own.
        (0..self.seats.len()).try_for_each(|shard| self.turn(shard))?;
        let mut moves = Vec::new();
        loop {
            moves.clear();
            self.moves(&mut moves);
            let quiet = self.seats.iter().all(|seat| seat.processor.is_quiet());
            let Some(next) = moves.iter().find(|next| !matches!(next, Move::Answer(_))) else {
                if quiet && self.control_waiting == 0 {
                    return Ok(());
                }
                if self.waits_for_time()? {
                    continue;
                }
                return Err(Broken(
                    "commands of the control plane are never answered".to_string(),
                ));
            };
            self.take(*next)?;
        }
    }

    /// Lets time pass until a shard goes on with its own work; gives whether one waited for that.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn waits_for_time(&mut self) -> Result<bool, Broken> {
        let deadlines = self
            .seats
            .iter()
            .filter_map(|seat| seat.processor.next_deadline_ns());
        let Some(at_ns) = deadlines.min().filter(|&at_ns| at_ns > self.now_ns) else {
            return Ok(false);
        };
        self.now_ns = at_ns;
        (0..self.seats.len()).try_for_each(|shard| self.turn(shard))?;
        Ok(true)
    }

    /// Whether all shards are quiet and nothing is on its way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.seats.iter().all(|seat| seat.processor.is_quiet())
            && self.requests.is_empty()
            && self.answers.is_empty()
            && self.commands.iter().all(VecDeque::is_empty)
            && self.events.iter().all(VecDeque::is_empty)
    }
}

/// Whether an operation carries the data of a write.
#[must_use]
pub fn is_data_write(layout: &Layout, shard: usize, operation: &Operation) -> bool {
    operation.kind == OperationKind::Write
        && operation.transfers.iter().all(|transfer| {
            let block = transfer.offset_bytes / stillpoint_processor::BLOCK_BYTES as u64;
            block >= layout.data_start_block(shard as u16, usize::from(transfer.device.0))
        })
}

/// An error of a request, as a broken law.
#[must_use]
pub fn failed(what: &str, error: RequestError) -> Broken {
    Broken(format!("{what} failed: {error}"))
}
