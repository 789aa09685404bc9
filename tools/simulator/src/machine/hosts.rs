//! The part of a machine that serves NBD, turn for turn what the poll loops do: sessions of every processor, parts
//! sent to the owners of their shards, answers brought back, exports that come and go.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use stillpoint_export::ExportTable;
use stillpoint_export::nbd::processor_of;
use stillpoint_processor::{Now, ShardAnswer};

use super::{Machine, Mail, News, Seat};
use crate::network::{ClientEnd, Ended, LineHabits, Lines, ServerEnd, Touched, Wire};

/// Set in the tokens of requests that come from no session: their answers are news.
pub const DIRECT: u64 = 1 << 63;

/// Parts that may wait for shards before no client is asked for more: as in the poll loops.
const BACKLOG_MAX: usize = 1024;
/// When a processor with clients that wait for memory looks again at the latest: as in the poll loops.
const STARVED_SLEEP_NS: u64 = 1_000_000;
/// Out of a hundred sends, how many find no room to be begun.
const REFUSED_SENDS_PERCENT: u64 = 1;

struct Connected {
    seat: usize,
    place: usize,
    wire: Rc<RefCell<Wire>>,
    /// Its bytes will be looked at.
    due: bool,
}

/// All connections.
pub(super) struct Hosts {
    connections: BTreeMap<u64, Connected>,
    touched: Touched,
    /// Per seat: when the last table of exports arrives.
    exports_line_ns: Vec<u64>,
}

impl Hosts {
    pub(super) fn new(processors: usize) -> Self {
        Self {
            connections: BTreeMap::new(),
            touched: Touched::default(),
            exports_line_ns: vec![0; processors],
        }
    }
}

impl Seat {
    /// Brings what has ended to the sessions and what has arrived to the shards; gives whether there was anything.
    pub(super) fn take_in(&mut self, now: Now) -> bool {
        let mut did = !self.ended.is_empty() || !self.arrived.is_empty();
        for (place, ended) in self.ended.drain(..) {
            let pool = &mut self.pool;
            match ended {
                Ended::Received(receive, count) => self.conversations.received(place, receive, count, pool),
                Ended::Sent(send, count) => self.conversations.sent(place, send, count, pool),
            }
        }
        for request in self.arrived.drain(..) {
            self.backlog.submit(&mut self.processor, request, now);
        }
        did |= self.backlog.submit_waiting(&mut self.processor, now);
        did
    }

    /// When it needs a turn though nothing comes.
    pub(super) fn look_again_ns(&self, now_ns: u64) -> Option<u64> {
        let starved = self.conversations.has_starved() || !self.backlog.is_empty();
        let starved = starved.then_some(now_ns + STARVED_SLEEP_NS);
        [starved, self.conversations.next_deadline_ns()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether nothing waits in front of the shards.
    pub(super) fn is_quiet(&self) -> bool {
        let nothing_came = self.arrived.is_empty() && self.ended.is_empty() && self.leaving.is_empty();
        let nobody_waits = !self.conversations.has_starved() && !self.conversations.has_listed();
        self.backlog.is_empty() && nothing_came && nobody_waits
    }
}

impl Machine {
    /// A client connects; the connection is `connection` from now on, a number that was never used.
    pub fn connect(&mut self, connection: u64, habits: LineHabits) {
        let wire = Rc::new(RefCell::new(Wire::new(habits)));
        let seat = self.random.below(self.seats.len() as u64) as usize;
        let line = ServerEnd {
            connection,
            wire: Rc::clone(&wire),
            touched: Rc::clone(&self.hosts.touched),
        };
        let place = self.seats[seat].conversations.welcome(line);
        let connected = Connected {
            seat,
            place: place.expect("the simulation has few clients"),
            wire,
            due: false,
        };
        self.hosts.connections.insert(connection, connected);
        self.wake(seat);
    }

    /// A client's end of its connection, from the first byte on.
    #[must_use]
    pub fn client_end(&self, connection: u64) -> ClientEnd {
        ClientEnd::again(&self.hosts.connections[&connection].wire)
    }

    /// Looks at a connection, or does something to it from the client's side.
    pub fn with_wire<R>(&mut self, connection: u64, act: impl FnOnce(&mut Wire) -> R) -> R {
        let result = act(&mut self.hosts.connections[&connection].wire.borrow_mut());
        self.move_soon(connection);
        result
    }

    /// The client of a connection does not read until then.
    pub fn deafen(&mut self, connection: u64, until_ns: u64) {
        self.with_wire(connection, |wire| wire.set_deaf(true));
        self.post(until_ns, Mail::Hears(connection));
    }

    pub(super) fn hear_again(&mut self, connection: u64) {
        if let Some(connected) = self.hosts.connections.get(&connection) {
            connected.wire.borrow_mut().set_deaf(false);
            self.move_soon(connection);
        }
    }

    /// Tells all processors what is offered from now on; each answers with [`News::Published`].
    pub fn publish(&mut self, number: u64, table: &Arc<ExportTable>) {
        for seat in 0..self.seats.len() {
            let delay_ns = self.random.latency_ns(self.pace.message_ns);
            let line = &mut self.hosts.exports_line_ns[seat];
            *line = (*line).max(self.now_ns + delay_ns);
            let at = *line;
            self.post(at, Mail::Exports(seat, number, Arc::clone(table)));
        }
    }

    /// Processors.
    #[must_use]
    pub fn processors(&self) -> usize {
        self.seats.len()
    }

    /// From now on flushes of new connections are replied to when the first shard has flushed.
    #[cfg(feature = "planted-bugs")]
    pub fn plant_early_flush_replies(&mut self) {
        for seat in &mut self.seats {
            seat.conversations.plant_early_flush_replies();
        }
    }

    pub(super) fn show_exports(&mut self, index: usize, number: u64, table: &Arc<ExportTable>) {
        let seat = &mut self.seats[index];
        let leaving = seat.conversations.set_exports(table, self.now_ns);
        seat.leaving.push((number, leaving));
        self.wake(index);
    }

    /// Sees that the bytes of a connection are looked at.
    fn move_soon(&mut self, connection: u64) {
        let Some(connected) = self.hosts.connections.get_mut(&connection) else {
            return;
        };
        if !connected.wire.borrow().can_move() || std::mem::replace(&mut connected.due, true) {
            return;
        }
        let latency_ns = connected.wire.borrow().latency_ns();
        let at = self.now_ns + self.random.latency_ns(latency_ns);
        self.post(at, Mail::Line(connection));
    }

    pub(super) fn move_bytes(&mut self, connection: u64) -> Option<News> {
        let connected = self.hosts.connections.get_mut(&connection)?;
        connected.due = false;
        let (seat, place) = (connected.seat, connected.place);
        let mut ended = Vec::new();
        let heard = connected.wire.borrow_mut().tick(&mut self.random, &mut ended);
        if !ended.is_empty() {
            let ended = ended.into_iter().map(|ended| (place, ended));
            self.seats[seat].ended.extend(ended);
            self.wake(seat);
        }
        self.move_soon(connection);
        heard.map(|heard| News::Heard(connection, heard))
    }

    /// Takes the requests of the clients and routes them; gives whether there were any.
    pub(super) fn take_requests(&mut self, index: usize) -> bool {
        let (now, mut did) = (self.now(), false);
        self.seats[index].conversations.ask_again();
        loop {
            let seat = &mut self.seats[index];
            if seat.backlog.len() > BACKLOG_MAX {
                return did;
            }
            let Some((_, request)) = seat.conversations.next_request(&mut seat.pool) else {
                return did;
            };
            did = true;
            if seat.processor.owns(request.shard) {
                seat.backlog.submit(&mut seat.processor, request, now);
            } else {
                self.request(request);
            }
        }
    }

    /// Brings an answer of this processor to its session, wherever that is, or out.
    pub(super) fn post_answer(&mut self, index: usize, answer: ShardAnswer) {
        let at = self.now_ns + self.random.latency_ns(self.pace.message_ns);
        if answer.token.0 & DIRECT != 0 {
            return self.post(at, Mail::News(News::Answer(answer)));
        }
        let processor = processor_of(answer.token);
        if processor == index {
            let seat = &mut self.seats[index];
            seat.conversations.answer(answer, &mut seat.pool);
        } else {
            self.post(at, Mail::Answer(processor, answer));
        }
    }

    /// Starts transfers, and tells of connections that are gone and exports that are in force.
    pub(super) fn look_after_hosts(&mut self, index: usize) -> bool {
        let seat = &mut self.seats[index];
        let mut lines = Lines {
            refuse_percent: REFUSED_SENDS_PERCENT,
            random: &mut self.random,
        };
        seat.conversations
            .look_after(self.now_ns, &mut lines, &mut seat.pool);
        let conversations = &seat.conversations;
        let mut published = Vec::new();
        seat.leaving.retain_mut(|(number, places)| {
            places.retain(|&place| conversations.is_leaving(place));
            if places.is_empty() {
                published.push(*number);
            }
            !places.is_empty()
        });
        let listed = seat.conversations.has_listed();
        for number in published {
            let at = self.now_ns + self.random.latency_ns(self.pace.message_ns);
            self.post(at, Mail::News(News::Published(number)));
        }
        let mut touched = self.hosts.touched.take();
        touched.sort_unstable();
        touched.dedup();
        for connection in touched {
            self.after_touch(connection);
        }
        listed
    }

    fn after_touch(&mut self, connection: u64) {
        let Some(connected) = self.hosts.connections.get(&connection) else {
            return;
        };
        if !connected.wire.borrow().gone {
            return self.move_soon(connection);
        }
        assert!(
            !connected.wire.borrow().is_lost(),
            "a connection is forgotten when all came back"
        );
        // The client may still read what was sent before.
        if connected.wire.borrow().can_move() {
            self.move_soon(connection);
        }
        self.post(self.now_ns, Mail::News(News::Gone(connection)));
    }

    /// Forgets a connection that is gone and whose client has heard the end.
    pub fn forget_connection(&mut self, connection: u64) {
        self.hosts.connections.remove(&connection);
    }
}
