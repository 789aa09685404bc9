//! The loop itself.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use stillpoint_coordinator::Action;
use stillpoint_export::nbd::{Conversations, Line};
use stillpoint_export::{Seat, Seats};
use stillpoint_hw::buffers::{Arenas, ProcessorBuffers};
use stillpoint_hw::clock::Clock;
use stillpoint_hw::ring::{Completion, Owner, Ring, RingOptions};
use stillpoint_hw::socket::{Connection, SocketError, SocketEvent};
use stillpoint_hw::topology::Core;
use stillpoint_hw::wake::{Sleeper, Waker};
use stillpoint_processor::stages::Stages;
use stillpoint_processor::{Now, Outbox};
use tokio::sync::oneshot;

use super::asked::Asked;
use super::connections::{LISTENER_KEY, SessionSockets, Socket, ToReceive, ToSend, Wires};
use super::door::Door;
use super::links::{Links, Message};
use super::polling::Polling;
use super::pools::{OpenPool, Opened};
use crate::mailbox::{Listener, NoticeSender, ToProcessor};

/// Parts that may wait for shards or links before no client is asked for more.
const BACKLOG_MAX: usize = 1024;
/// How long any loop sleeps at most: it looks around now and then, whatever happened to a wake-up.
const SLEEP_NS_MAX: u64 = 500_000_000;
/// How long a listener rests that could not be given a connection.
const REST_NS: u64 = 100_000_000;
/// How long a loop that was told to stop waits for its sockets, and how long it sleeps meanwhile.
const STOP_NS: u64 = 2_000_000_000;
const STOP_SLEEP_NS: u64 = 1_000_000;

/// What a loop is made of.
pub struct Parts {
    pub index: usize,
    pub core: Option<Core>,
    pub quiet_ns: Option<u64>,
    pub arenas: Arc<Arenas>,
    pub sleeper: Sleeper,
    pub wakers: Vec<Waker>,
    pub links: Links,
    pub mailbox: Receiver<ToProcessor>,
    pub notices: NoticeSender,
    pub connections: Arc<Seats>,
    pub handshake_limit_ns: u64,
}

/// What a loop did.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopFigures {
    pub turns: u64,
    pub sleeps: u64,
    pub requests: u64,
    pub forwarded: u64,
    pub notices_dropped: u64,
}

impl LoopFigures {
    /// Requests taken from clients or executed for other processors.
    fn work(&self) -> u64 {
        self.requests + self.forwarded
    }
}

/// A processor's thread.
pub struct Loop {
    pub(super) index: usize,
    pub(super) core: Option<Core>,
    pub(super) polling: Polling,
    pub(super) ring: Ring,
    sleeper: Sleeper,
    pub(super) wakers: Vec<Waker>,
    clock: Clock,
    pub(super) now: Now,
    pub(super) buffers: ProcessorBuffers,
    pub(super) sockets: SessionSockets,
    pub(super) listeners: Vec<Listener>,
    pub(super) unlistened: bool,
    door: Door,
    /// The loop that gets the next connection (processor 0).
    next_welcome: usize,
    /// Listeners that rest, and until when: the system could not give them a connection.
    resting: Vec<(u32, u64)>,
    pub(super) clients: Conversations<Socket>,
    /// Sessions that have to end, and who waits for it.
    pub(super) leaving: Vec<(Vec<usize>, Option<oneshot::Sender<()>>)>,
    pub(super) pools: Vec<Option<OpenPool>>,
    pub(super) opened: (Sender<Opened>, Receiver<Opened>),
    pub(super) asked: Asked,
    pub(super) links: Links,
    pub(super) mailbox: Receiver<ToProcessor>,
    pub(super) notices: NoticeSender,
    pub(super) outbox: Outbox,
    pub(super) actions: Vec<Action>,
    pub(super) tickets: u64,
    completions: Vec<Completion>,
    pub(super) stopping: Option<oneshot::Sender<()>>,
    pub(super) figures: LoopFigures,
    /// Where the time of requests to shards went that are closed.
    pub(super) closed_stages: Stages,
    pub(super) progress: bool,
    #[cfg(feature = "planted-bugs")]
    pub(super) late_cuts: super::planted::LateCuts,
}

impl Loop {
    /// Makes the loop on the thread that will run it.
    pub fn new(parts: Parts) -> Result<Self, String> {
        let mut ring = Ring::new(RingOptions::default()).map_err(|error| error.to_string())?;
        if let Err(error) = ring.register_arenas(&parts.arenas) {
            tracing::info!(
                "processor {}: buffers are not registered with io_uring: {error}",
                parts.index
            );
        }
        parts.sleeper.attach(&ring);
        let door = Door::new(parts.connections, parts.handshake_limit_ns);
        let mut clients = Conversations::new(parts.index);
        clients.set_handshake_limit(door.handshake_limit_ns());
        let mut clock = Clock::new();
        let now = clock.now();
        Ok(Self {
            index: parts.index,
            core: parts.core,
            polling: Polling::new(parts.quiet_ns, now.monotonic_ns),
            ring,
            sleeper: parts.sleeper,
            wakers: parts.wakers,
            now,
            clock,
            buffers: parts.arenas.pool(parts.index),
            sockets: SessionSockets::new(2 * door.connections_max() + 64),
            listeners: Vec::new(),
            unlistened: false,
            door,
            next_welcome: 0,
            resting: Vec::new(),
            clients,
            leaving: Vec::new(),
            pools: Vec::new(),
            opened: crossbeam_channel::unbounded(),
            asked: Asked::new(parts.index),
            links: parts.links,
            mailbox: parts.mailbox,
            notices: parts.notices,
            outbox: Outbox::default(),
            actions: Vec::new(),
            tickets: 0,
            completions: Vec::with_capacity(1024),
            stopping: None,
            figures: LoopFigures::default(),
            closed_stages: Stages::default(),
            progress: false,
            #[cfg(feature = "planted-bugs")]
            late_cuts: super::planted::LateCuts::new(parts.index),
        })
    }

    /// Runs until told to stop.
    pub fn run(&mut self) {
        let mut quiet_since_ns = self.now.monotonic_ns;
        // A loop that sleeps at once lets the sleep take its entries along: one system call instead of two. If there
        // is more to do after all, they do not wait for a second turn.
        let mut owed = false;
        while self.stopping.is_none() {
            if self.turn() {
                quiet_since_ns = self.now.monotonic_ns;
                owed = self.polling.sleeps_at_once() && !owed;
                if !owed {
                    self.hand_over();
                }
            } else if self.polling.is_over(self.now.monotonic_ns - quiet_since_ns) && !self.has_ready_work() {
                self.sleep();
            } else {
                self.hand_over();
                core::hint::spin_loop();
            }
        }
        self.wind_up();
    }

    /// One turn, which leaves its entries in the ring to be submitted; gives whether anything happened.
    fn turn(&mut self) -> bool {
        self.progress = false;
        self.figures.turns += 1;
        self.now = self.clock.now();
        self.clients.begin_turn(self.now.monotonic_ns);
        let work_before = self.figures.work();
        self.reap();
        self.receive_mail();
        self.receive_messages();
        #[cfg(feature = "planted-bugs")]
        self.receive_late_cuts();
        self.submit_backlogs();
        self.take_requests();
        self.poll_pools();
        self.take_requests(); // an answer may be what the next part of a request waited for
        self.poll_coordinators();
        self.close_pools();
        self.look_after_clients();
        self.accept_again();
        self.send_off();
        if self.progress {
            let work = self.figures.work() - work_before;
            self.polling.worked(self.now.monotonic_ns, work);
        }
        self.progress
    }

    fn reap(&mut self) {
        let mut completions = core::mem::take(&mut self.completions);
        self.ring.reap(&mut completions);
        self.progress |= !completions.is_empty();
        for completion in completions.drain(..) {
            match completion.owner() {
                Owner::Devices(place) => {
                    let open = self.pools[usize::from(place)]
                        .as_mut()
                        .expect("closed when nothing is in flight");
                    open.processor.device_mut().inner_mut().complete(completion);
                }
                Owner::Bell(place) => {
                    // It may ring once more for a pool that is gone.
                    if let Some(Some(open)) = self.pools.get_mut(usize::from(place)) {
                        open.processor.device_mut().inner_mut().complete(completion);
                    }
                }
                Owner::Wake => self.sleeper.complete(completion),
                Owner::Sockets => {
                    if let Some(event) = self.sockets.complete(completion) {
                        self.socket_event(event);
                    }
                }
            }
        }
        self.completions = completions;
    }

    fn socket_event(&mut self, event: SocketEvent<ToSend, ToReceive>) {
        match event {
            SocketEvent::Accepted { key, result } => self.accepted(key, result),
            SocketEvent::Received {
                key,
                memory: ToReceive(receive),
                result,
            } => {
                let count = result.ok();
                self.clients
                    .received(key as usize, receive, count, &mut self.buffers);
            }
            SocketEvent::Sent {
                key,
                memory: ToSend(send),
                result,
            } => {
                let count = result.ok();
                self.clients.sent(key as usize, send, count, &mut self.buffers);
            }
        }
    }

    fn accepted(&mut self, key: u32, result: Result<Connection, SocketError>) {
        match result {
            Ok(connection) => match self.door.admit(connection.peer(), self.now.monotonic_ns) {
                Some(seat) => self.hand_out(connection, seat),
                None => connection.shut_down(),
            },
            Err(error) if self.unlistened => tracing::debug!("accept: {error}"),
            Err(error) => {
                // Out of descriptors or memory: asking again at once would be answered at once.
                tracing::warn!("a connection could not be accepted: {error}");
                return self.resting.push((key, self.now.monotonic_ns + REST_NS));
            }
        }
        self.accept(key);
    }

    /// Lets a listener take its next connection.
    pub(super) fn accept(&mut self, key: u32) {
        if !self.unlistened {
            let listener = &self.listeners[(key & !LISTENER_KEY) as usize];
            let begun = self.sockets.accept(&mut self.ring, listener, key);
            assert!(begun, "the table has places for the listeners");
        }
    }

    fn accept_again(&mut self) {
        while let Some(&(key, until_ns)) = self.resting.first()
            && self.now.monotonic_ns >= until_ns
        {
            self.resting.remove(0);
            self.accept(key);
        }
    }

    /// Gives each loop a connection in turn, so that those of one client are spread evenly.
    fn hand_out(&mut self, connection: Connection, seat: Seat) {
        let to = self.next_welcome;
        self.next_welcome = (to + 1) % self.wakers.len();
        if to == self.index {
            self.welcome(connection, seat);
        } else {
            let message = Message::Connection(Box::new((connection, seat)));
            self.links.send(to, message);
        }
    }

    pub(super) fn welcome(&mut self, connection: Connection, seat: Seat) {
        if let Err(socket) = self.clients.welcome(Socket::new(connection, seat)) {
            socket.shut_down(); // it cannot be: the appliance takes no more than one processor could
        }
    }

    /// Takes the requests of the listed clients, unless too many wait already.
    fn take_requests(&mut self) {
        // Those that waited look again every turn; that alone is no progress.
        self.clients.ask_again();
        while self.backlog() <= BACKLOG_MAX
            && let Some((pool, request)) = self.clients.next_request(&mut self.buffers)
        {
            self.progress = true;
            self.figures.requests += 1;
            self.route(pool, request);
        }
    }

    fn backlog(&self) -> usize {
        self.links.waiting()
            + self
                .pools
                .iter()
                .flatten()
                .map(|open| open.backlog.len())
                .sum::<usize>()
    }

    /// Starts sends and receives of the listed clients.
    fn look_after_clients(&mut self) {
        let mut wires = Wires {
            sockets: &mut self.sockets,
            ring: &mut self.ring,
        };
        self.clients
            .look_after(self.now.monotonic_ns, &mut wires, &mut self.buffers);
        self.door.told_of_late(self.clients.late(), self.now.monotonic_ns);
        if !self.leaving.is_empty() {
            self.report_the_gone();
        }
    }

    /// Puts what this turn has for the kernel into the ring, and what it has for other loops into theirs.
    fn send_off(&mut self) {
        for open in self.pools.iter_mut().flatten() {
            let devices = open.processor.device_mut().inner_mut();
            devices.set_now(self.now.monotonic_ns);
            devices.start(&mut self.ring);
        }
        let (wakers, ring) = (&self.wakers, &mut self.ring);
        self.links.flush(|to| wakers[to].wake_through(ring));
    }

    /// Hands the kernel the entries of the ring.
    fn hand_over(&mut self) {
        if let Err(error) = self.ring.submit() {
            // Nothing is lost: the entries stay queued for the next turn.
            tracing::error!("io_uring: {error}");
        }
    }

    fn has_ready_work(&self) -> bool {
        #[cfg(feature = "planted-bugs")]
        if self.late_cuts.any() {
            return true;
        }
        self.clients.has_listed()
            || self.clients.has_starved()
            || self.links.waiting() > 0
            || self
                .pools
                .iter()
                .flatten()
                .any(|open| open.has_ready_work() || open.processor.device().inner().must_be_polled())
    }

    /// Sleeps until something comes, unless something has come just now.
    fn sleep(&mut self) {
        self.sleeper.prepare(&mut self.ring);
        let (ring, mut awake) = (&mut self.ring, false);
        for open in self.pools.iter_mut().flatten() {
            awake |= !open.processor.device_mut().inner_mut().may_sleep(ring);
        }
        let awaited = awake
            || self.links.has_incoming()
            || !self.mailbox.is_empty()
            || !self.opened.1.is_empty()
            || self.ring.has_completions();
        if !awaited {
            self.figures.sleeps += 1;
            let timeout_ns = self.sleep_ns();
            if let Err(error) = self.ring.wait(Some(timeout_ns)) {
                tracing::error!("io_uring: {error}");
            }
            self.polling
                .slept(self.clock.now().monotonic_ns - self.now.monotonic_ns);
        }
        self.sleeper.awake();
    }

    /// How long it may sleep.
    fn sleep_ns(&self) -> u64 {
        let pools = self.pools.iter().flatten().filter_map(OpenPool::next_deadline_ns);
        let clients = self.clients.next_deadline_ns();
        let resting = self.resting.first().map(|&(_, until_ns)| until_ns);
        let deadline = pools.chain(clients).chain(resting).min();
        let left_ns = deadline.map_or(SLEEP_NS_MAX, |at| at.saturating_sub(self.now.monotonic_ns));
        left_ns.clamp(1_000, SLEEP_NS_MAX)
    }

    /// Ends the conversations and waits for the sockets; then the thread may end.
    fn wind_up(&mut self) {
        let began_ns = self.now.monotonic_ns;
        self.clients.hang_up_all(&mut self.buffers);
        for number in 0..self.listeners.len() as u32 {
            self.sockets.cancel_accept(&mut self.ring, LISTENER_KEY | number);
        }
        self.unlistened = true;
        while self.sockets.under_way() > 0 && self.now.monotonic_ns - began_ns < STOP_NS {
            if self.turn() {
                self.hand_over();
            } else if let Err(error) = self.ring.wait(Some(STOP_SLEEP_NS)) {
                tracing::error!("io_uring: {error}");
            }
        }
        if let Some(reply) = self.stopping.take() {
            // The daemon may have given up waiting.
            let _ = reply.send(());
        }
    }
}
