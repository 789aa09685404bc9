//! The links between poll loops: one single-producer ring for each ordered pair.
//!
//! An idle poll of such a ring costs about a nanosecond (`benches/`, micro), which is why it is not a channel:
//! every loop looks into all of its links every turn. What finds a link full waits at the sender, in order.

use std::collections::VecDeque;

use rtrb::{Consumer, Producer, PushError, RingBuffer};
use stillpoint_export::Seat;
use stillpoint_hw::socket::Connection;
use stillpoint_processor::{ShardAnswer, ShardCommand, ShardEvent, ShardIndex, ShardRequest, Ticket};

use crate::mailbox::PoolIndex;

/// Messages that one link holds.
const LINK_MESSAGES: usize = 1024;
/// Messages taken from one link per turn.
pub const MESSAGES_PER_TURN: usize = 256;

/// What travels between poll loops.
#[derive(Debug)]
pub enum Message {
    /// A part of a request, to the owner of its shard.
    Request {
        /// The pool.
        pool: PoolIndex,
        /// The part.
        request: ShardRequest,
    },
    /// Its answer, back to the session.
    Answer(ShardAnswer),
    /// A command of the coordinator, from processor 0 to the owner of the shard.
    Command(Box<(PoolIndex, ShardIndex, Ticket, ShardCommand)>),
    /// Its event, back to processor 0.
    Event(Box<(PoolIndex, ShardEvent)>),
    /// A connection that processor 0 accepted, for this loop to serve.
    Connection(Box<(Connection, Seat)>),
}

/// One loop's ends of its links.
#[derive(Debug)]
pub struct Links {
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Option<Consumer<Message>>>,
}

#[derive(Debug)]
struct Outgoing {
    ring: Producer<Message>,
    waiting: VecDeque<Message>,
    /// Something was put in since the last look.
    touched: bool,
}

impl Links {
    /// The links of `count` loops, by loop.
    pub fn matrix(count: usize) -> Vec<Self> {
        let mut ends: Vec<Self> = (0..count)
            .map(|_| Self {
                outgoing: (0..count).map(|_| None).collect(),
                incoming: (0..count).map(|_| None).collect(),
            })
            .collect();
        for from in 0..count {
            for to in (0..count).filter(|&to| to != from) {
                let (producer, consumer) = RingBuffer::new(LINK_MESSAGES);
                ends[from].outgoing[to] = Some(Outgoing {
                    ring: producer,
                    waiting: VecDeque::new(),
                    touched: false,
                });
                ends[to].incoming[from] = Some(consumer);
            }
        }
        ends
    }

    /// Sends a message; if the link is full it waits here, behind those that wait already.
    pub fn send(&mut self, to: usize, message: Message) {
        let link = self.outgoing[to]
            .as_mut()
            .expect("a loop sends nothing to itself");
        link.touched = true;
        if link.waiting.is_empty() {
            if let Err(PushError::Full(message)) = link.ring.push(message) {
                link.waiting.push_back(message);
            }
        } else {
            link.waiting.push_back(message);
        }
    }

    /// Pushes what waits; calls `wake` for each loop that has something new.
    pub fn flush(&mut self, mut wake: impl FnMut(usize)) {
        for (to, link) in self.outgoing.iter_mut().enumerate() {
            let Some(link) = link else { continue };
            while let Some(message) = link.waiting.pop_front() {
                if let Err(PushError::Full(message)) = link.ring.push(message) {
                    link.waiting.push_front(message);
                    break;
                }
                link.touched = true;
            }
            if core::mem::take(&mut link.touched) {
                wake(to);
            }
        }
    }

    /// Messages that wait because a link is full.
    pub fn waiting(&self) -> usize {
        self.outgoing
            .iter()
            .flatten()
            .map(|link| link.waiting.len())
            .sum()
    }

    /// The next message of the loop `from`.
    #[inline]
    pub fn receive(&mut self, from: usize) -> Option<Message> {
        self.incoming[from].as_mut()?.pop().ok()
    }

    /// Loops, this one included.
    pub fn count(&self) -> usize {
        self.incoming.len()
    }

    /// Whether another loop has sent something.
    pub fn has_incoming(&self) -> bool {
        self.incoming.iter().flatten().any(|ring| !ring.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::Token;

    fn answer(number: u64) -> Message {
        Message::Answer(ShardAnswer {
            token: Token(number),
            result: Ok(()),
            buffer: None,
            valid_bytes: 0,
            since_ns: 0,
        })
    }

    #[test]
    fn messages_arrive_in_order_also_when_the_link_overflows() {
        let mut ends = Links::matrix(2);
        let mut far = ends.pop().expect("two");
        let mut near = ends.pop().expect("two");
        let count = LINK_MESSAGES as u64 * 2 + 7;
        for number in 0..count {
            near.send(1, answer(number));
        }
        assert_eq!(near.waiting() as u64, count - LINK_MESSAGES as u64);
        let mut woken = 0;
        let mut expected = 0;
        while expected < count {
            near.flush(|to| woken += to);
            assert!(far.has_incoming());
            while let Some(message) = far.receive(0) {
                let Message::Answer(answer) = message else {
                    panic!("an answer was sent")
                };
                assert_eq!(answer.token.0, expected);
                expected += 1;
            }
        }
        assert!(woken >= 3 && near.waiting() == 0 && !far.has_incoming());
    }
}
