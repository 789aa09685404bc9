//! The connections of one processor, and whose turn it is.
//!
//! In each turn whoever drives them brings back what has ended ([`Conversations::received`],
//! [`Conversations::sent`], [`Conversations::answer`]), takes requests ([`Conversations::next_request`]) and lets
//! transfers begin ([`Conversations::look_after`]). Only connections to which something happened are looked at, and
//! those that wait for memory.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use stillpoint_processor::ports::BufferPool;
use stillpoint_processor::stages::{Stage, Stages, Work};
use stillpoint_processor::{PART_BYTES_MAX, ShardAnswer, ShardRequest, Token};

use super::conversation::{Conversation, Line, Looked, Noted, Transport};
use super::{Receive, Send, session_tag};
use crate::{ExportTable, PoolIndex};

/// Connections of one processor at most.
pub const CONNECTIONS_MAX: usize = 65_536;

/// Who found no memory twice is looked at again when the pool has so much more...
const MORE_BYTES: usize = 256 << 10;
/// ...or after this time, and then after twice as long each time, up to...
const WAIT_NS: u64 = 1_000_000;
/// ...this. Some wait for as long as they are connected (their clients fetch nothing), and each look costs those that
/// have work: to set the clock for it more than to look.
const WAIT_NS_MAX: u64 = 64_000_000;

/// Low bits of a session's tag: the place of its connection. The bits above are its processor.
const PLACE_BITS: u32 = 24;
/// A place that no connection has.
const NO_PLACE: usize = (1 << PLACE_BITS) - 1;
const _: () = assert!(CONNECTIONS_MAX <= NO_PLACE);

/// The tag of the session in `place` of `processor`.
fn tag_of(processor: usize, place: usize) -> u32 {
    debug_assert!(place < 1 << PLACE_BITS && processor < 256);
    (processor as u32) << PLACE_BITS | place as u32
}

/// The processor of the session that a token came from.
#[must_use]
pub fn processor_of(token: Token) -> usize {
    (session_tag(token) >> PLACE_BITS) as usize
}

/// A token of a request that comes from no session; `processor` is at most 255.
#[must_use]
pub fn token_without_session(processor: usize, number: u32) -> Token {
    Token(u64::from(tag_of(processor, NO_PLACE)) << 32 | u64::from(number))
}

/// Whether a token is one of [`token_without_session`].
#[must_use]
pub fn is_without_session(token: Token) -> bool {
    place_of(token) == NO_PLACE
}

fn place_of(token: Token) -> usize {
    (session_tag(token) & ((1 << PLACE_BITS) - 1)) as usize
}

/// How long those wait that found no memory twice.
#[derive(Debug)]
struct Wait {
    /// The least that was left when one of them was looked at.
    least_bytes: usize,
    /// Until when at most.
    until_ns: u64,
    /// How long the one that is looked at now may have to wait.
    patience_ns: u64,
}

impl Wait {
    const NONE: Self = Self {
        least_bytes: usize::MAX,
        until_ns: u64::MAX,
        patience_ns: WAIT_NS,
    };

    /// Somebody begins to wait, or goes on.
    fn begin(&mut self, again: bool, now_ns: u64, free_bytes: usize) {
        if !again {
            self.patience_ns = WAIT_NS;
        }
        self.least_bytes = self.least_bytes.min(free_bytes);
        self.until_ns = self.until_ns.min(now_ns + self.patience_ns);
    }

    /// It is over, because there is more or because the time is up.
    fn end(&mut self, more: bool) {
        let patience_ns = if more {
            self.patience_ns
        } else {
            (2 * self.patience_ns).min(WAIT_NS_MAX)
        };
        *self = Self {
            patience_ns,
            ..Self::NONE
        };
    }
}

/// The connections of one processor.
#[derive(Debug)]
pub struct Conversations<L> {
    processor: usize,
    exports: Arc<ExportTable>,
    places: Vec<Option<Box<Conversation<L>>>>,
    free: Vec<usize>,
    /// To be looked after in this turn.
    listed: VecDeque<usize>,
    /// How many of the listed have no further requests now.
    asked: usize,
    /// To be listed in the next turn: they found no memory in this one.
    starved: Vec<usize>,
    /// They found no memory twice.
    waiting: Vec<usize>,
    wait: Wait,
    /// How many have to end and have not.
    leaving: usize,
    /// Those that have chosen no export: until when they may, and their places.
    undecided: BTreeSet<(u64, usize)>,
    handshake_limit_ns: u64,
    late: u64,
    now_ns: u64,
    stages: Stages,
    #[cfg(feature = "planted-bugs")]
    flushes_replied_early: bool,
}

impl<L: Line> Conversations<L> {
    /// No connections yet. `processor` (at most 255) goes into all tokens.
    #[must_use]
    pub fn new(processor: usize) -> Self {
        Self {
            processor,
            exports: Arc::default(),
            places: Vec::new(),
            free: Vec::new(),
            listed: VecDeque::new(),
            asked: 0,
            starved: Vec::new(),
            waiting: Vec::new(),
            wait: Wait::NONE,
            leaving: 0,
            undecided: BTreeSet::new(),
            handshake_limit_ns: u64::MAX,
            late: 0,
            now_ns: 0,
            stages: Stages::default(),
            #[cfg(feature = "planted-bugs")]
            flushes_replied_early: false,
        }
    }

    /// From now on a client that has chosen no export so long after it was welcomed is disconnected. (At first there is no
    /// limit.)
    pub fn set_handshake_limit(&mut self, limit_ns: u64) {
        self.handshake_limit_ns = limit_ns;
    }

    /// A turn begins at `now_ns` on the monotonic clock: what happens in it happens then.
    pub fn begin_turn(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Where the time of their requests went outside the shards.
    #[must_use]
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Clients that were disconnected because they had chosen no export in time.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes in a new connection; gives its place.
    ///
    /// # Errors
    /// The line back if there are [`CONNECTIONS_MAX`] already.
    pub fn welcome(&mut self, line: L) -> Result<usize, L> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.places.len() < CONNECTIONS_MAX => {
                self.places.push(None);
                self.places.len() - 1
            }
            None => return Err(line),
        };
        let tag = tag_of(self.processor, place);
        #[cfg_attr(
            not(feature = "planted-bugs"),
            expect(unused_mut, reason = "a bug is planted")
        )]
        let mut conversation = Conversation::new(line, tag, &self.exports);
        #[cfg(feature = "planted-bugs")]
        if self.flushes_replied_early {
            conversation.session.plant_early_flush_replies();
        }
        self.places[place] = Some(Box::new(conversation));
        self.list(place);
        Ok(place)
    }

    /// From now on flushes of new connections are replied to when the first shard has flushed.
    #[cfg(feature = "planted-bugs")]
    pub fn plant_early_flush_replies(&mut self) {
        self.flushes_replied_early = true;
    }

    /// A conversation to which something happens.
    fn at(&mut self, place: usize) -> &mut Conversation<L> {
        let conversation = self.places[place].as_mut();
        let conversation = conversation.expect("gone only when all came back");
        conversation.starved = false;
        conversation.waited = false;
        conversation.session.set_now(self.now_ns);
        conversation
    }

    /// Puts a connection on the list of this turn.
    fn list(&mut self, place: usize) {
        if let Some(conversation) = &mut self.places[place]
            && !core::mem::replace(&mut conversation.listed, true)
        {
            self.listed.push_back(place);
        }
    }

    /// A receive came back; `None` if the connection broke.
    pub fn received(
        &mut self,
        place: usize,
        receive: Receive,
        count: Option<usize>,
        pool: &mut impl BufferPool,
    ) {
        self.at(place).received(receive, count, pool);
        self.list(place);
    }

    /// A send came back; `None` if the connection broke.
    pub fn sent(&mut self, place: usize, send: Send, count: Option<usize>, pool: &mut impl BufferPool) {
        let now_ns = self.now_ns;
        let conversation = self.at(place);
        conversation.sent(send, count, pool);
        let stages = &mut self.stages;
        let conversation = self.places[place].as_mut().expect("it was there before");
        conversation.session.take_told(|told| {
            stages.record(Stage::Reply, told.work, told.answered_ns, now_ns);
            stages.record(Stage::Total, told.work, told.received_ns, now_ns);
        });
        self.list(place);
    }

    /// Brings an answer to its session, which is one of these.
    pub fn answer(&mut self, answer: ShardAnswer, pool: &mut impl BufferPool) {
        let place = place_of(answer.token);
        self.at(place).session.answer(answer, pool);
        self.list(place);
    }

    /// Begins to ask for requests: [`Self::next_request`] starts at the first listed connection again, and those that
    /// wait for memory are listed again.
    pub fn ask_again(&mut self) {
        self.asked = 0;
        while let Some(place) = self.starved.pop() {
            self.list(place);
        }
    }

    /// The next part of a request of a listed connection, and the pool it is for; `None` if there is none now.
    pub fn next_request(&mut self, pool: &mut impl BufferPool) -> Option<(PoolIndex, ShardRequest)> {
        while let Some(&place) = self.listed.get(self.asked) {
            if let Some(conversation) = &mut self.places[place] {
                conversation.session.set_now(self.now_ns);
                if let Some((pool, mut request)) = conversation.next_request(pool) {
                    conversation.starved = false;
                    conversation.waited = false;
                    let work = Work::of(request.kind);
                    let received_ns = core::mem::replace(&mut request.since_ns, self.now_ns);
                    self.stages.record(Stage::Receive, work, received_ns, self.now_ns);
                    return Some((pool, request));
                }
            }
            self.asked += 1;
        }
        None
    }

    /// Starts sends and receives of the listed connections, and forgets those that are gone.
    pub fn look_after(&mut self, now_ns: u64, transport: &mut impl Transport<L>, pool: &mut impl BufferPool) {
        self.hang_up_the_late(now_ns, pool);
        let deadline_ns = now_ns.saturating_add(self.handshake_limit_ns);
        for _ in 0..self.listed.len() {
            let Some(place) = self.listed.pop_front() else {
                break;
            };
            let Some(conversation) = &mut self.places[place] else {
                continue;
            };
            conversation.listed = false;
            conversation.session.set_now(self.now_ns);
            let looked = conversation.look_after(place, now_ns, transport, pool);
            match conversation.handshake(deadline_ns, looked == Looked::Gone) {
                Noted::Nothing => {}
                Noted::Begun(until_ns) => drop(self.undecided.insert((until_ns, place))),
                Noted::Over(until_ns) => drop(self.undecided.remove(&(until_ns, place))),
            }
            match looked {
                Looked::Settled => {
                    conversation.starved = false;
                    conversation.waited = false;
                }
                Looked::Starved if !conversation.starved => {
                    conversation.starved = true;
                    self.starved.push(place);
                }
                Looked::Starved => {
                    let again = core::mem::replace(&mut conversation.waited, true);
                    let free_bytes = pool.room(PART_BYTES_MAX).free_bytes;
                    self.wait.begin(again, now_ns, free_bytes);
                    if !core::mem::replace(&mut conversation.waiting, true) {
                        self.waiting.push(place);
                    }
                }
                Looked::Gone => {
                    self.leaving -= usize::from(conversation.leaving);
                    self.places[place] = None;
                    self.free.push(place);
                }
            }
        }
        self.asked = 0;
        self.end_the_wait(now_ns, pool);
        if self.leaving > 0 {
            self.hurry(now_ns);
        }
    }

    /// Lets those that wait for memory look again in the next turn, if there may be some.
    fn end_the_wait(&mut self, now_ns: u64, pool: &impl BufferPool) {
        if self.waiting.is_empty() {
            return;
        }
        let free_bytes = pool.room(PART_BYTES_MAX).free_bytes;
        // A pool that does not know what it has is asked every time.
        let more = free_bytes == usize::MAX || free_bytes >= self.wait.least_bytes.saturating_add(MORE_BYTES);
        if !more && now_ns < self.wait.until_ns {
            return;
        }
        self.wait.end(more);
        for &place in &self.waiting {
            if let Some(conversation) = &mut self.places[place] {
                conversation.waiting = false;
            }
        }
        self.starved.append(&mut self.waiting);
    }

    /// Disconnects clients that have chosen no export in their time.
    fn hang_up_the_late(&mut self, now_ns: u64, pool: &mut impl BufferPool) {
        while let Some(&(until_ns, place)) = self.undecided.first()
            && until_ns <= now_ns
        {
            self.undecided.pop_first();
            self.late += 1;
            self.at(place).hang_up(pool);
            self.list(place);
        }
    }

    /// Lists connections whose grace is over.
    fn hurry(&mut self, now_ns: u64) {
        for place in 0..self.places.len() {
            if self.places[place]
                .as_ref()
                .is_some_and(|conversation| conversation.deadline_ns <= now_ns)
            {
                self.list(place);
            }
        }
    }

    /// Whether some are listed: take another turn at once.
    #[must_use]
    pub fn has_listed(&self) -> bool {
        !self.listed.is_empty()
    }

    /// Whether some found no memory just now: take another turn at once. (Who finds none then waits, and has a deadline.)
    #[must_use]
    pub fn has_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// When to take a turn even if nothing happens: the grace of a connection that has to end is over, or the time of a
    /// client that has chosen no export, or those that wait for memory, which may come without a sign, look again.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let places = if self.leaving > 0 { &self.places[..] } else { &[] };
        let graces = places.iter().flatten().map(|one| one.deadline_ns);
        let late = self.undecided.first().map(|&(until_ns, _)| until_ns);
        let look = (!self.waiting.is_empty()).then_some(self.wait.until_ns);
        let deadline = graces.chain(late).chain(look).min();
        deadline.filter(|&deadline_ns| deadline_ns != u64::MAX)
    }

    /// The exports have changed; gives the places of the connections that have to end now.
    pub fn set_exports(&mut self, exports: &Arc<ExportTable>, now_ns: u64) -> Vec<usize> {
        self.exports = Arc::clone(exports);
        let mut leaving = Vec::new();
        for place in 0..self.places.len() {
            let Some(conversation) = &mut self.places[place] else {
                continue;
            };
            let left_before = conversation.leaving;
            if conversation.set_exports(exports, now_ns) {
                self.leaving += usize::from(!left_before);
                leaving.push(place);
            }
            self.list(place);
        }
        leaving
    }

    /// Whether the connection in this place has to end and has not.
    #[must_use]
    pub fn is_leaving(&self, place: usize) -> bool {
        self.places[place]
            .as_ref()
            .is_some_and(|conversation| conversation.leaving)
    }

    /// Ends all conversations now.
    pub fn hang_up_all(&mut self, pool: &mut impl BufferPool) {
        for place in 0..self.places.len() {
            if let Some(conversation) = &mut self.places[place] {
                conversation.hang_up(pool);
            }
            self.list(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::client::{encode_go, encode_option};
    use crate::nbd::session::tests::harness::{Pool, table};
    use crate::nbd::wire::{RequestHeader, command, option};
    use std::cell::Cell;
    use std::rc::Rc;

    /// A line that notes when it is shut down.
    struct Wire(Rc<Cell<bool>>);

    impl Line for Wire {
        fn shut_down(&self) {
            self.0.set(true);
        }
    }

    /// Sends everything at once, and keeps receives until somebody has bytes for them.
    #[derive(Default)]
    struct Hub {
        sent: Vec<(usize, Send)>,
        receives: Vec<(usize, Receive)>,
    }

    impl Transport<Wire> for Hub {
        fn send(&mut self, place: usize, _: &Wire, send: Send) -> Result<(), Send> {
            self.sent.push((place, send));
            Ok(())
        }

        fn receive(&mut self, place: usize, _: &Wire, receive: Receive) {
            self.receives.push((place, receive));
        }
    }

    /// The connections of a processor, with `bytes` from the client in `place`, at `now_ns`.
    fn turn(
        all: &mut Conversations<Wire>,
        hub: &mut Hub,
        pool: &mut Pool,
        now_ns: u64,
        from: Option<(usize, &[u8])>,
    ) {
        if let Some((place, bytes)) = from {
            let index = hub.receives.iter().position(|(of, _)| *of == place);
            let (_, mut receive) = hub.receives.swap_remove(index.expect("it listens"));
            receive.memory()[..bytes.len()].copy_from_slice(bytes);
            all.received(place, receive, Some(bytes.len()), pool);
        }
        loop {
            all.look_after(now_ns, hub, pool);
            for (place, send) in core::mem::take(&mut hub.sent) {
                let count = send.pieces().map(<[u8]>::len).sum();
                all.sent(place, send, Some(count), pool);
            }
            if !all.has_listed() {
                return;
            }
        }
    }

    #[test]
    fn who_finds_no_memory_twice_looks_again_when_there_is_more_or_after_a_while() {
        let (mut hub, mut pool) = (Hub::default(), Pool::new(64 << 20));
        let mut all = Conversations::new(0);
        all.set_exports(&table(1 << 20), 0);
        let place = all.welcome(Wire(Rc::default())).ok().expect("there is room");
        turn(&mut all, &mut hub, &mut pool, 0, None);
        let go = encode_option(option::GO, &encode_go("disk", &[]));
        let hello = [&3u32.to_be_bytes()[..], &go].concat();
        turn(&mut all, &mut hub, &mut pool, 0, Some((place, &hello)));
        pool.held_bytes = 64 << 20;
        let read = RequestHeader {
            flags: 0,
            command: command::READ,
            cookie: 1,
            offset_bytes: 0,
            length_bytes: 4096,
        };
        turn(&mut all, &mut hub, &mut pool, 0, Some((place, &read.encode())));
        let mut looks = |all: &mut Conversations<Wire>, pool: &mut Pool, now_ns| {
            all.ask_again();
            let looked = all.has_listed();
            let request = all.next_request(pool);
            all.look_after(now_ns, &mut hub, pool);
            (looked, request.is_some())
        };
        assert_eq!(looks(&mut all, &mut pool, 0), (true, false), "once more");
        // After a while, and then after a longer one.
        let mut now_ns = 0;
        for wait_ns in [1, 2, 4, 8, 16, 32, 64, 64, 64].map(|times| times * WAIT_NS) {
            for early_ns in [0, 10, wait_ns - 1] {
                assert_eq!(looks(&mut all, &mut pool, now_ns + early_ns), (false, false));
                assert!(!all.has_starved());
                assert_eq!(all.next_deadline_ns(), Some(now_ns + wait_ns));
            }
            now_ns += wait_ns;
            assert_eq!(looks(&mut all, &mut pool, now_ns), (false, false));
            assert!(all.has_starved(), "in the next turn");
            assert_eq!(looks(&mut all, &mut pool, now_ns), (true, false));
        }
        pool.held_bytes -= MORE_BYTES - 1;
        assert_eq!(
            looks(&mut all, &mut pool, now_ns),
            (false, false),
            "that is not much more"
        );
        pool.held_bytes -= 1;
        assert_eq!(looks(&mut all, &mut pool, now_ns), (false, false));
        pool.held_bytes = 0;
        assert_eq!(looks(&mut all, &mut pool, now_ns), (true, true), "there is more");
        assert!(!all.has_starved());
        assert_eq!(all.next_deadline_ns(), None);
    }

    #[test]
    fn who_chooses_no_export_in_time_is_hung_up_on_and_who_chose_never() {
        let (mut hub, mut pool) = (Hub::default(), Pool::new(1 << 20));
        let mut all = Conversations::new(0);
        all.set_handshake_limit(100);
        all.set_exports(&table(1 << 20), 0);
        let ends: Vec<Rc<Cell<bool>>> = (0..3).map(|_| Rc::default()).collect();
        let mut places = Vec::new();
        for (number, end) in ends.iter().enumerate() {
            places.push(all.welcome(Wire(Rc::clone(end))).ok().expect("there is room"));
            turn(&mut all, &mut hub, &mut pool, number as u64 * 10, None);
        }
        assert_eq!(all.next_deadline_ns(), Some(100));
        let go = encode_option(option::GO, &encode_go("disk", &[]));
        let hello = [&3u32.to_be_bytes()[..], &go].concat();
        turn(&mut all, &mut hub, &mut pool, 50, Some((places[0], &hello)));
        // Saying something is not enough.
        turn(&mut all, &mut hub, &mut pool, 109, Some((places[1], &hello[..9])));
        assert!(ends.iter().all(|end| !end.get()));
        assert_eq!(all.next_deadline_ns(), Some(110));
        turn(&mut all, &mut hub, &mut pool, 110, None);
        assert_eq!(
            ends.iter().map(|end| end.get()).collect::<Vec<_>>(),
            [false, true, false]
        );
        turn(&mut all, &mut hub, &mut pool, u64::MAX - 1, None);
        assert_eq!(
            ends.iter().map(|end| end.get()).collect::<Vec<_>>(),
            [false, true, true]
        );
        assert_eq!((all.late(), all.next_deadline_ns()), (2, None));
        for place in [places[1], places[2]] {
            turn(&mut all, &mut hub, &mut pool, u64::MAX - 1, Some((place, &[])));
        }
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn a_tag_names_its_processor_and_its_place() {
        for (processor, place) in [(0, 0), (1, 4095), (255, (1 << 24) - 1)] {
            let token = Token(u64::from(tag_of(processor, place)) << 32 | 7);
            assert_eq!((processor_of(token), place_of(token)), (processor, place));
        }
    }
}
