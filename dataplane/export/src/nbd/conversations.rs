//! The connections of one processor, and whose turn it is.
//!
//! In each turn whoever drives them brings back what has ended ([`Conversations::received`],
//! [`Conversations::sent`], [`Conversations::answer`]), takes requests ([`Conversations::next_request`]) and lets
//! transfers begin ([`Conversations::look_after`]). Only connections to which something happened are looked at, and
//! those that wait for memory.

use std::collections::VecDeque;
use std::sync::Arc;

use stillpoint_processor::ports::BufferPool;
use stillpoint_processor::{ShardAnswer, ShardRequest, Token};

use super::conversation::{Conversation, Line, Looked, Transport};
use super::{Receive, Send, session_tag};
use crate::{ExportTable, PoolIndex};

/// Connections of one processor at most.
pub const CONNECTIONS_MAX: usize = 4096;

/// Low bits of a session's tag: the place of its connection. The bits above are its processor.
const PLACE_BITS: u32 = 24;

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

fn place_of(token: Token) -> usize {
    (session_tag(token) & ((1 << PLACE_BITS) - 1)) as usize
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
    starved: Vec<usize>,
    /// How many have to end and have not.
    leaving: usize,
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
            leaving: 0,
            #[cfg(feature = "planted-bugs")]
            flushes_replied_early: false,
        }
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

    fn at(&mut self, place: usize) -> &mut Conversation<L> {
        self.places[place].as_mut().expect("gone only when all came back")
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
        self.at(place).sent(send, count, pool);
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
            if let Some(conversation) = &mut self.places[place]
                && let Some(request) = conversation.next_request(pool)
            {
                return Some(request);
            }
            self.asked += 1;
        }
        None
    }

    /// Starts sends and receives of the listed connections, and forgets those that are gone.
    pub fn look_after(&mut self, now_ns: u64, transport: &mut impl Transport<L>, pool: &mut impl BufferPool) {
        for _ in 0..self.listed.len() {
            let Some(place) = self.listed.pop_front() else {
                break;
            };
            let Some(conversation) = &mut self.places[place] else {
                continue;
            };
            conversation.listed = false;
            match conversation.look_after(place, now_ns, transport, pool) {
                Looked::Settled => {}
                Looked::Starved => self.starved.push(place),
                Looked::Gone => {
                    self.leaving -= usize::from(conversation.leaving);
                    self.places[place] = None;
                    self.free.push(place);
                }
            }
        }
        self.asked = 0;
        if self.leaving > 0 {
            self.hurry(now_ns);
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

    /// Whether some wait for memory, which may come without a sign: take another turn soon.
    #[must_use]
    pub fn has_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// When to take a turn even if nothing happens: the grace of a connection that has to end is over.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        if self.leaving == 0 {
            return None;
        }
        let deadlines = self.places.iter().flatten().map(|one| one.deadline_ns);
        deadlines.min().filter(|&deadline_ns| deadline_ns != u64::MAX)
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

    #[test]
    fn a_tag_names_its_processor_and_its_place() {
        for (processor, place) in [(0, 0), (1, 4095), (255, (1 << 24) - 1)] {
            let token = Token(u64::from(tag_of(processor, place)) << 32 | 7);
            assert_eq!((processor_of(token), place_of(token)), (processor, place));
        }
    }
}
