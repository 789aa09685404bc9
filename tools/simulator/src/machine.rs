//! One life of an appliance: processors, the coordinator, and the messages between them and the clients.
//!
//! The types that do the work are the shipping ones. What is simulated is when anything happens: every message
//! takes a random time, commands to a shard (and its events) keep their order, a processor gets its turns at
//! random moments and now and then not for a long while.

mod hosts;
mod sides;

use std::collections::BTreeMap;
use std::sync::Arc;

use stillpoint_coordinator::{Action, Coordinator, OverallSnapshot, SnapshotError, SnapshotRequest};
use stillpoint_export::ExportTable;
use stillpoint_export::nbd::Conversations;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::outbox::Outbox;
use stillpoint_processor::{
    Backlog, MirrorNotice, Mirrors, Now, Processor, Shard, ShardAnswer, ShardCommand, ShardEvent, ShardIndex,
    ShardRequest, SnapshotId, Ticket,
};

use crate::device::{Devices, Port};
use crate::memory::{SimulatedPool, SimulatedTail};
use crate::network::{Ended, Heard, ServerEnd};
use crate::random::Random;
pub use hosts::DIRECT;
use hosts::Hosts;
pub use sides::{Below, Sides, SidesOrder};

/// Nanoseconds between the Unix epoch and the start of simulated time.
pub const WALL_START_NS: u64 = 1_700_000_000_000_000_000;

/// How fast things go.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The shortest time that a message takes.
    pub message_ns: u64,
    /// The shortest time between two turns of a busy processor.
    pub turn_ns: u64,
    /// Out of ten thousand turns, how many come late.
    pub late_turns: u64,
    /// How late.
    pub late_ns: u64,
}

/// What reaches the clients and the control plane.
#[derive(Debug)]
pub enum News {
    /// An answer to a client.
    Answer(ShardAnswer),
    /// An event for the control plane (not for the coordinator).
    Event(ShardEvent),
    /// A snapshot was taken, or was not.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
        /// How it ended.
        result: Result<OverallSnapshot, SnapshotError>,
    },
    /// A time that somebody wanted to be told of has come.
    Alarm(u64),
    /// A client of NBD hears something on its connection.
    Heard(u64, Heard),
    /// The appliance has forgotten a connection: nothing of what came through it goes on.
    Gone(u64),
    /// The mirrors of a processor have something to say.
    Mirror(usize, MirrorNotice),
    /// A processor has done this with its mirrors.
    MirrorDid(usize, SidesOrder),
    /// A processor shows this table of exports and nothing that is not in it.
    Published(u64),
}

#[derive(Debug)]
enum Mail {
    Request(ShardRequest),
    /// An answer to the session of a processor.
    Answer(usize, ShardAnswer),
    /// Bytes of a connection may move.
    Line(u64),
    /// A client reads again.
    Hears(u64),
    /// A table of exports, by number, for a processor.
    Exports(usize, u64, Arc<ExportTable>),
    Command(ShardIndex, Ticket, ShardCommand),
    /// For the mirrors of a processor.
    Mirror(usize, SidesOrder),
    ForCoordinator(ShardEvent),
    News(News),
}

struct Seat {
    processor: Processor<Mirrors<Port>, SimulatedTail>,
    pool: SimulatedPool,
    /// When it gets its next turn.
    turn_ns: Option<u64>,
    /// Requests that have arrived and were not looked at.
    arrived: Vec<ShardRequest>,
    /// Requests that found no room.
    backlog: Backlog,
    conversations: Conversations<ServerEnd>,
    /// Transfers that have ended, by place.
    ended: Vec<(usize, Ended)>,
    /// Tables of exports, and the places of the connections that have to end before they are in force.
    leaving: Vec<(u64, Vec<usize>)>,
}

/// One life of an appliance.
pub struct Machine {
    now_ns: u64,
    pace: Pace,
    random: Random,
    devices: Devices,
    seats: Vec<Seat>,
    /// Shard to seat.
    owner: Vec<usize>,
    coordinator: Option<Coordinator>,
    /// Coordinators that died before this one: their events are not for it.
    coordinators_before: u64,
    mail: BTreeMap<(u64, u64), Mail>,
    mail_count: u64,
    /// Per shard: when the last command, and the last event, arrive.
    command_line_ns: Vec<u64>,
    event_line_ns: Vec<u64>,
    /// Per processor: when the last order for its mirrors arrives, and the last of what they say.
    mirror_line_ns: Vec<u64>,
    mirror_news_line_ns: Vec<u64>,
    outbox: Outbox,
    turns: u64,
    hosts: Hosts,
}

/// Bits of a coordinator's ticket that say which coordinator gave it.
const COORDINATOR_SHIFT: u32 = 48;
const COORDINATOR_MASK: u64 = 0x7FFF << COORDINATOR_SHIFT;

impl Machine {
    /// An appliance whose shards were opened; shard `i` runs on processor `i % processors`.
    #[must_use]
    pub fn new(
        shards: Vec<Shard<SimulatedTail>>,
        processors: usize,
        pool_bytes: usize,
        below: Below<'_>,
        pace: Pace,
        now_ns: u64,
        random: Random,
    ) -> Self {
        let shard_count = shards.len();
        let mut owned: Vec<Vec<Shard<SimulatedTail>>> = (0..processors).map(|_| Vec::new()).collect();
        for (index, shard) in shards.into_iter().enumerate() {
            owned[index % processors].push(shard);
        }
        let seats = (0..)
            .zip(owned)
            .map(|(index, shards)| Seat {
                processor: Processor::new(below.port(&shards), shards),
                pool: SimulatedPool::new(pool_bytes),
                turn_ns: Some(now_ns),
                arrived: Vec::new(),
                backlog: Backlog::default(),
                conversations: Conversations::new(index),
                ended: Vec::new(),
                leaving: Vec::new(),
            })
            .collect();
        Self {
            now_ns,
            pace,
            random,
            devices: below.devices.clone(),
            seats,
            owner: (0..shard_count).map(|shard| shard % processors).collect(),
            coordinator: Some(Coordinator::new()),
            coordinators_before: 0,
            mail: BTreeMap::new(),
            mail_count: 0,
            command_line_ns: vec![0; shard_count],
            event_line_ns: vec![0; shard_count],
            mirror_line_ns: vec![0; processors],
            mirror_news_line_ns: vec![0; processors],
            outbox: Outbox::default(),
            turns: 0,
            hosts: Hosts::new(processors),
        }
    }

    /// The time, as a processor is told it.
    #[must_use]
    pub fn now(&self) -> Now {
        Now {
            monotonic_ns: self.now_ns,
            wall_ns: WALL_START_NS + self.now_ns,
        }
    }

    /// Shards.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.owner.len() as u16
    }

    /// Turns that processors got so far.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// Sends a request to its owner.
    pub fn request(&mut self, request: ShardRequest) {
        let at = self.now_ns + self.random.latency_ns(self.pace.message_ns);
        self.post(at, Mail::Request(request));
    }

    /// Sends a command to a shard.
    pub fn command(&mut self, shard: ShardIndex, ticket: Ticket, command: ShardCommand) {
        let delay_ns = self.random.latency_ns(self.pace.message_ns);
        let line = &mut self.command_line_ns[usize::from(shard.0)];
        *line = (*line).max(self.now_ns + delay_ns);
        let at = *line;
        self.post(at, Mail::Command(shard, ticket, command));
    }

    /// Asks the coordinator for a snapshot; gives false if there is no coordinator.
    pub fn snapshot(&mut self, request: SnapshotRequest) -> bool {
        let now = self.now();
        let Some(coordinator) = &mut self.coordinator else {
            return false;
        };
        let mut actions = Vec::new();
        coordinator.create(request, now, &mut actions);
        self.act(actions);
        true
    }

    /// The coordinator dies; what is on its way to it is lost, what it sent before arrives.
    pub fn kill_coordinator(&mut self) {
        self.coordinator = None;
        self.coordinators_before += 1;
    }

    /// Whether there is one.
    #[must_use]
    pub fn has_coordinator(&self) -> bool {
        self.coordinator.is_some()
    }

    /// Asks for [`News::Alarm`] after `delay_ns`.
    pub fn alarm(&mut self, delay_ns: u64, mark: u64) {
        let at = self.now_ns + delay_ns;
        self.post(at, Mail::News(News::Alarm(mark)));
    }

    /// Lets the next thing happen. `Some` if news arrived, `None` if something else did.
    ///
    /// # Errors
    /// "Nothing will ever happen again", or a hold that outlived its deadline.
    pub fn step(&mut self) -> Result<Option<News>, Stuck> {
        let next = [
            self.mail.keys().next().map(|key| key.0),
            self.devices.next_completion_ns(),
            self.seats.iter().filter_map(|seat| seat.turn_ns).min(),
            self.coordinator.as_ref().and_then(Coordinator::next_deadline_ns),
        ];
        let Some(next_ns) = next.into_iter().flatten().min() else {
            return Err(Stuck::Idle);
        };
        self.now_ns = self.now_ns.max(next_ns);
        for port in self.devices.advance(self.now_ns) {
            self.wake(port);
        }
        self.poll_coordinator();
        for seat in 0..self.seats.len() {
            if self.seats[seat]
                .turn_ns
                .is_some_and(|turn_ns| turn_ns <= self.now_ns)
            {
                self.turn(seat)?;
            }
        }
        match self.mail.first_entry() {
            Some(entry) if entry.key().0 <= self.now_ns => {
                let mail = entry.remove();
                Ok(self.deliver(mail))
            }
            _ => Ok(None),
        }
    }

    /// Whether nothing goes on but alarms.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.mail
            .values()
            .all(|mail| matches!(mail, Mail::News(News::Alarm(_))))
            && self.seats.iter().all(|seat| {
                seat.processor.is_quiet() && seat.processor.device().is_quiet() && seat.is_quiet()
            })
            && self.coordinator.as_ref().is_none_or(Coordinator::is_idle)
    }

    /// The figures of every shard that is not quiet, for somebody who wonders why.
    #[must_use]
    pub fn describe(&self) -> String {
        let shards = self.seats.iter().flat_map(|seat| seat.processor.shards());
        let busy = shards.filter(|shard| !shard.is_quiet());
        busy.map(|shard| format!("\n    shard {}: {:?}", shard.index().0, shard.status()))
            .collect()
    }

    fn post(&mut self, at_ns: u64, mail: Mail) {
        self.mail_count += 1;
        self.mail.insert((at_ns, self.mail_count), mail);
    }

    fn deliver(&mut self, mail: Mail) -> Option<News> {
        let now = self.now();
        match mail {
            Mail::Request(request) => {
                let seat = self.owner[usize::from(request.shard.0)];
                self.seats[seat].arrived.push(request);
                self.wake(seat);
            }
            Mail::Answer(index, answer) => {
                let seat = &mut self.seats[index];
                seat.conversations.answer(answer, &mut seat.pool);
                self.wake(index);
            }
            Mail::Line(connection) => return self.move_bytes(connection),
            Mail::Hears(connection) => self.hear_again(connection),
            Mail::Exports(seat, number, table) => self.show_exports(seat, number, &table),
            Mail::Command(shard, ticket, command) => {
                let seat = self.owner[usize::from(shard.0)];
                self.seats[seat].processor.command(shard, ticket, command, now);
                self.wake(seat);
            }
            Mail::Mirror(seat, order) => {
                order.carry_out(self.seats[seat].processor.device_mut());
                self.wake(seat);
                self.post_notices(seat);
                self.post_of_mirror(seat, News::MirrorDid(seat, order));
            }
            Mail::ForCoordinator(event) => {
                if let Some(coordinator) = &mut self.coordinator {
                    let mut actions = Vec::new();
                    coordinator.event(&event, now, &mut actions);
                    self.act(actions);
                }
            }
            Mail::News(news) => return Some(news),
        }
        None
    }

    /// Sees that a processor gets a turn soon.
    fn wake(&mut self, seat: usize) {
        let mut delay_ns = self.pace.turn_ns + self.random.below(self.pace.turn_ns + 1);
        if self.random.below(10_000) < self.pace.late_turns {
            delay_ns += self.random.below(self.pace.late_ns + 1);
        }
        let at = self.now_ns + delay_ns;
        let turn = &mut self.seats[seat].turn_ns;
        *turn = Some(turn.map_or(at, |turn_ns| turn_ns.min(at)));
    }

    fn turn(&mut self, index: usize) -> Result<(), Stuck> {
        let now = self.now();
        self.turns += 1;
        let seat = &mut self.seats[index];
        seat.turn_ns = None;
        seat.conversations.begin_turn(now.monotonic_ns);
        let mut did = seat.take_in(now);
        did |= self.take_requests(index);
        let seat = &mut self.seats[index];
        did |= seat.processor.device_mut().turn(now, &mut seat.pool);
        did |= seat.processor.poll(now, &mut seat.pool, &mut self.outbox);
        self.post_notices(index);
        self.post_outbox(index);
        did |= self.take_requests(index);
        did |= self.look_after_hosts(index);
        let seat = &mut self.seats[index];
        did |= seat.processor.has_ready_work() || seat.processor.device().has_ready_work();
        let deadline_ns = seat.processor.next_deadline_ns();
        if deadline_ns.is_some_and(|deadline_ns| deadline_ns <= self.now_ns) {
            return Err(Stuck::Hold { seat: index });
        }
        let mirrors_ns = seat.processor.device().next_deadline_ns();
        let again_ns = [deadline_ns, mirrors_ns, seat.look_again_ns(self.now_ns)];
        if did {
            self.wake(index);
        } else if let Some(again_ns) = again_ns.into_iter().flatten().min() {
            let turn_ns = &mut self.seats[index].turn_ns;
            *turn_ns = Some(turn_ns.map_or(again_ns, |turn_ns| turn_ns.min(again_ns)));
        }
        Ok(())
    }

    fn post_outbox(&mut self, index: usize) {
        let mut outbox = std::mem::take(&mut self.outbox);
        for answer in outbox.answers.drain(..) {
            self.post_answer(index, answer);
        }
        for event in outbox.events.drain(..) {
            self.post_event(event);
        }
        self.outbox = outbox;
    }

    fn post_event(&mut self, mut event: ShardEvent) {
        let delay_ns = self.random.latency_ns(self.pace.message_ns);
        let line = &mut self.event_line_ns[usize::from(event.shard.0)];
        *line = (*line).max(self.now_ns + delay_ns);
        let at = *line;
        let given = event.ticket.filter(|ticket| Coordinator::gave(*ticket));
        if let Some(ticket) = given {
            if (ticket.0 & COORDINATOR_MASK) >> COORDINATOR_SHIFT == self.coordinators_before {
                event.ticket = Some(Ticket(ticket.0 & !COORDINATOR_MASK));
                self.post(at, Mail::ForCoordinator(event));
            }
        } else if matches!(event.kind, EventKind::HoldExpired { .. }) {
            self.post(at, Mail::ForCoordinator(event));
        } else {
            self.post(at, Mail::News(News::Event(event)));
        }
    }

    fn poll_coordinator(&mut self) {
        let now = self.now();
        if let Some(coordinator) = &mut self.coordinator
            && coordinator
                .next_deadline_ns()
                .is_some_and(|deadline_ns| deadline_ns <= now.monotonic_ns)
        {
            let mut actions = Vec::new();
            coordinator.poll(now, &mut actions);
            self.act(actions);
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send {
                    shard,
                    ticket,
                    command,
                } => {
                    assert_eq!(ticket.0 & COORDINATOR_MASK, 0, "tickets do not reach these bits");
                    let mark = self.coordinators_before << COORDINATOR_SHIFT;
                    self.command(shard, Ticket(ticket.0 | mark), command);
                }
                Action::Finish { snapshot, result } => {
                    let at = self.now_ns + self.random.latency_ns(self.pace.message_ns);
                    self.post(at, Mail::News(News::Snapshot { snapshot, result }));
                }
            }
        }
    }
}

/// Why a machine cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Nothing will ever happen again.
    Idle,
    /// A processor had its turn at the deadline of a hold, and the hold is still there.
    Hold {
        /// Which processor.
        seat: usize,
    },
}
