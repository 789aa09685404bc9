//! A session and the line to its client: at most one receive and one send are under way.

use std::sync::Arc;
use stillpoint_processor::marks::{Mark, mark};

use stillpoint_processor::ShardRequest;
use stillpoint_processor::ports::BufferPool;

use super::{Limits, Receive, Send, Session, SessionOptions};
use crate::{ExportTable, PoolIndex};

/// How long the client of an export that is gone may take to fetch its last replies.
const GRACE_NS: u64 = 1_000_000_000;

/// A connection, as whoever moves the bytes knows it. Dropped when everything came back.
pub trait Line {
    /// Ends it for both sides: transfers that are under way come back soon, with what they got.
    fn shut_down(&self);
}

/// Moves bytes over lines: io_uring, or a simulated network.
pub trait Transport<L> {
    /// Starts a send, which comes back through [`Conversations::sent`](super::Conversations::sent).
    ///
    /// # Errors
    /// The memory back if there is no room for a send now.
    fn send(&mut self, place: usize, line: &L, send: Send) -> Result<(), Send>;

    /// Starts a receive, which comes back through [`Conversations::received`](super::Conversations::received).
    fn receive(&mut self, place: usize, line: &L, receive: Receive);
}

/// What a look at a conversation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nothing more to do for now.
    Settled,
    /// It waits for buffers or for room that may come without a sign.
    Starved,
    /// It is gone: everything came back.
    Gone,
}

/// How far a client is on its way to an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// It was not looked at yet.
    New,
    /// It has until then.
    Until(u64),
    /// It has chosen one, or it is gone.
    Over,
}

/// What is to be noted of a client's handshake, with the time that it has or had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// Nothing.
    Nothing,
    /// It has begun.
    Begun(u64),
    /// It is over.
    Over(u64),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conversation<L> {
    line: L,
    pub(super) session: Session,
    receiving: bool,
    sending: bool,
    /// In the list of those to be looked after.
    pub(super) listed: bool,
    /// It found no memory when it was looked at last, and nothing has happened to it since.
    pub(super) starved: bool,
    /// In the list of those that wait for more memory than there was.
    pub(super) waiting: bool,
    /// It waited for more memory, and nothing has happened to it since.
    pub(super) waited: bool,
    pub(super) leaving: bool,
    /// When its line is shut down, should it not be gone by then.
    pub(super) deadline_ns: u64,
    decision: Decision,
}

impl<L: Line> Conversation<L> {
    /// A client that has yet to be greeted. `tag` marks its tokens.
    pub(super) fn new(line: L, tag: u32, exports: &Arc<ExportTable>) -> Self {
        let options = SessionOptions {
            tag,
            exports: Arc::clone(exports),
            limits: Limits::default(),
        };
        Self {
            line,
            session: Session::new(options),
            receiving: false,
            sending: false,
            listed: false,
            starved: false,
            waiting: false,
            waited: false,
            leaving: false,
            deadline_ns: u64::MAX,
            decision: Decision::New,
        }
    }

    /// The next part for a shard, and the pool it belongs to.
    pub(super) fn next_request(&mut self, pool: &mut impl BufferPool) -> Option<(PoolIndex, ShardRequest)> {
        let request = self.session.next_request(pool)?;
        let export = self
            .session
            .export()
            .expect("a session with requests has chosen an export");
        Some((export.pool, request))
    }

    /// Starts the transfers that the session wants.
    pub(super) fn look_after(
        &mut self,
        place: usize,
        now_ns: u64,
        transport: &mut impl Transport<L>,
        pool: &mut impl BufferPool,
    ) -> Looked {
        let mut starved = false;
        if !self.sending
            && let Some(send) = self.session.next_send(pool)
        {
            match transport.send(place, &self.line, send) {
                Ok(()) => self.sending = true,
                Err(send) => {
                    self.session.sent(send, 0, pool);
                    starved = true;
                }
            }
        }
        if self.session.wants_close() && !self.sending || now_ns >= self.deadline_ns {
            if now_ns >= self.deadline_ns {
                mark(Mark::NbdGraceOver);
            }
            self.hang_up(pool);
        }
        if !self.receiving
            && let Some(receive) = self.session.receive(pool)
        {
            transport.receive(place, &self.line, receive);
            self.receiving = true;
        }
        if self.session.is_drained() && !self.receiving && !self.sending {
            return Looked::Gone;
        }
        if starved || self.session.is_starved() {
            Looked::Starved
        } else {
            Looked::Settled
        }
    }

    /// What is to be noted of its handshake, which has to be over at `deadline_ns` if it begins now.
    pub(super) fn handshake(&mut self, deadline_ns: u64, gone: bool) -> Noted {
        let over = gone || self.session.export().is_some();
        match self.decision {
            Decision::New if over => {
                self.decision = Decision::Over;
                Noted::Nothing
            }
            Decision::New => {
                self.decision = Decision::Until(deadline_ns);
                Noted::Begun(deadline_ns)
            }
            Decision::Until(deadline_ns) if over => {
                self.decision = Decision::Over;
                Noted::Over(deadline_ns)
            }
            Decision::Until(_) | Decision::Over => Noted::Nothing,
        }
    }

    /// A receive came back; `None` if the connection broke.
    pub(super) fn received(&mut self, receive: Receive, count: Option<usize>, pool: &mut impl BufferPool) {
        self.receiving = false;
        self.session.received(receive, count.unwrap_or(0), pool);
        if count.is_none() {
            self.hang_up(pool);
        }
    }

    /// A send came back; `None` if the connection broke.
    pub(super) fn sent(&mut self, send: Send, count: Option<usize>, pool: &mut impl BufferPool) {
        self.sending = false;
        self.session.sent(send, count.unwrap_or(0), pool);
        if count.is_none_or(|count| count == 0) {
            self.hang_up(pool);
        }
    }

    /// Ends the conversation now.
    pub(super) fn hang_up(&mut self, pool: &mut impl BufferPool) {
        self.line.shut_down();
        self.session.abandon(pool);
        self.deadline_ns = u64::MAX;
    }

    /// The exports have changed; gives whether the session has to end.
    pub(super) fn set_exports(&mut self, exports: &Arc<ExportTable>, now_ns: u64) -> bool {
        let stays = self.session.export().is_none_or(|export| exports.allows(export));
        self.session.set_exports(Arc::clone(exports));
        if !stays {
            self.leave(now_ns);
        }
        !stays
    }

    /// Lets the session end: what is in flight is answered, further requests are refused.
    fn leave(&mut self, now_ns: u64) {
        self.session.shut_down();
        self.leaving = true;
        self.deadline_ns = self.deadline_ns.min(now_ns + GRACE_NS);
    }
}
