//! One connection: its life from greeting to end. How bytes come in is in `input`, how parts go to the shards
//! and come back in `issue`, how replies go out in `output`.

mod input;
mod issue;
mod output;
#[cfg(test)]
pub(super) mod tests;

use super::handshake::{Agreed, Handshake};
use super::memory::Memory;
use super::outbox::{Data, Outbox, Send};
use super::request::{Job, PartInFlight, Ready, Request, Told};
use super::slab::Slab;
use crate::export_table::{Export, ExportTable};
pub use input::{INBOX_BYTES, Receive};
use input::{Inbox, Input};
use std::collections::VecDeque;
use std::sync::Arc;
use stillpoint_processor::ports::BufferPool;
use stillpoint_processor::{PART_BYTES_MAX, ShardRequest, Token};

/// Parts with shards at a time, per session.
const PARTS_MAX: usize = 256;

/// What one session may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests at a time (at most 65,535).
    pub requests: usize,
    /// Data memory at a time, in bytes. A write that is being received may go one part (1 MiB) over it, so that
    /// reads whose replies nobody takes do not keep it from being received.
    pub data_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 128,
            data_bytes: 16 * PART_BYTES_MAX,
        }
    }
}

/// How to begin a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Goes into every token, see [`session_tag`]. Not to be used again before the session is drained.
    pub tag: u32,
    /// What is offered.
    pub exports: Arc<ExportTable>,
    /// What it may take.
    pub limits: Limits,
}

/// The tag of the session that a token came from.
#[must_use]
pub fn session_tag(token: Token) -> u32 {
    (token.0 >> 32) as u32
}

/// Where a connection is in its life.
#[derive(Debug)]
enum Phase {
    /// The client's flags are awaited.
    Flags,
    /// Options are negotiated.
    Options(Box<Handshake>),
    /// Requests are served.
    Transmission(Box<Agreed>),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Not yet.
    Open,
    /// The export is gone: requests are refused, and the connection ends when nothing is left to say.
    Leaving,
    /// Nothing more is read; what was begun is finished and said.
    Draining,
    /// Nothing more is read or said.
    Broken,
    /// The peer is gone; what is with the shards and the poll loop is awaited.
    Abandoned,
}

/// One NBD connection, see the [module](super).
#[derive(Debug)]
pub struct Session {
    tag: u32,
    exports: Arc<ExportTable>,
    phase: Phase,
    end: End,
    inbox: Inbox,
    input: Input,
    /// Parsing stopped for want of room or memory, not of bytes.
    blocked: bool,
    outbox: Outbox,
    requests: Slab<Request>,
    parts: Slab<PartInFlight>,
    /// Requests with parts to issue, in turn.
    issuing: VecDeque<u16>,
    /// Received parts of writes, to be issued.
    whole: VecDeque<ShardRequest>,
    ready: VecDeque<Ready>,
    memory: Memory,
    /// The time of this turn.
    now_ns: u64,
    #[cfg(feature = "planted-bugs")]
    flushes_replied_early: bool,
}

impl Session {
    /// A session that has yet to greet its client.
    #[must_use]
    pub fn new(options: SessionOptions) -> Self {
        let mut outbox = Outbox::new();
        Handshake::greet(&mut outbox);
        Self {
            tag: options.tag,
            exports: options.exports,
            phase: Phase::Flags,
            end: End::Open,
            inbox: Inbox::new(),
            input: Input::Header,
            blocked: false,
            outbox,
            requests: Slab::new(options.limits.requests),
            parts: Slab::new(PARTS_MAX),
            issuing: VecDeque::new(),
            whole: VecDeque::new(),
            ready: VecDeque::new(),
            memory: Memory::new(options.limits.data_bytes),
            now_ns: 0,
            #[cfg(feature = "planted-bugs")]
            flushes_replied_early: false,
        }
    }

    /// From now on a flush is replied to when the first shard has flushed, whatever the others do.
    #[cfg(feature = "planted-bugs")]
    pub fn plant_early_flush_replies(&mut self) {
        self.flushes_replied_early = true;
    }

    /// The time on the monotonic clock, for the figures; requests that are understood from now on came then.
    pub(super) fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Says which replies have wholly left since this was asked last.
    pub(super) fn take_told(&mut self, each: impl FnMut(Told)) {
        self.outbox.take_told(each);
    }

    /// The export this session uses, as it was when it was chosen; `None` before that.
    #[must_use]
    pub fn export(&self) -> Option<&Export> {
        match &self.phase {
            Phase::Transmission(agreed) => Some(&agreed.export),
            _ => None,
        }
    }

    /// The table of exports has changed. If it no longer [allows](ExportTable::allows) this session, further
    /// requests get `ESHUTDOWN` and the connection ends once those in flight are answered.
    pub fn set_exports(&mut self, exports: Arc<ExportTable>) {
        if self.export().is_some_and(|export| !exports.allows(export)) {
            self.leave();
        }
        self.exports = exports;
    }

    /// The appliance is going down: as if the export had gone.
    pub fn shut_down(&mut self) {
        self.leave();
    }

    fn leave(&mut self) {
        if self.end == End::Open {
            self.end = End::Leaving;
        }
    }

    /// Whether there is work that waits: for memory, for an answer or a send that frees some, or just to be taken by
    /// [`Self::next_request`] ([`Self::receive`] may have made it). Take another turn, at the latest when the pool
    /// may have buffers.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        let lists = matches!(&self.phase, Phase::Options(handshake) if handshake.is_busy());
        self.blocked || lists || !self.issuing.is_empty() || !self.whole.is_empty()
    }

    /// Requests of the client that are not yet answered.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.requests.len()
    }

    /// Whether the connection is to be closed now: all that could be said is sent.
    #[must_use]
    pub fn wants_close(&self) -> bool {
        let said = self.ready.is_empty() && self.outbox.is_empty();
        match self.end {
            End::Open => false,
            End::Leaving => said && self.requests.len() == usize::from(self.is_receiving_a_first_part()),
            End::Draining => said && self.requests.is_empty(),
            End::Broken | End::Abandoned => true,
        }
    }

    /// The connection is closed (by either side). What the session holds goes back to the pool; answers of
    /// shards, a [`Receive`] and a [`Send`] that are under way still have to be brought back, see
    /// [`Self::is_drained`].
    pub fn abandon(&mut self, pool: &mut impl BufferPool) {
        if self.end == End::Abandoned {
            return;
        }
        self.drop_input(pool);
        self.end = End::Abandoned;
        while let Some(request) = self.whole.pop_front() {
            self.take_back(request, pool);
        }
        while let Some(ready) = self.ready.pop_front() {
            if let Ready::Chunk {
                result: Ok(piece), ..
            }
            | Ready::Extents { piece, .. } = ready
            {
                self.memory.give(piece.buffer, pool);
            }
        }
        let memory = &mut self.memory;
        self.outbox.discard(|data| memory.give(data.buffer, pool));
        self.issuing.clear();
        for slot in self.requests.slots() {
            let request = &mut self.requests[slot];
            request.silent = true;
            request.unissued = 0;
            self.give_buffers(slot, pool);
            if self.requests[slot].outstanding == 0 {
                self.requests.remove(slot);
            }
        }
    }

    /// Whether an abandoned session has got everything back and may be dropped.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let drained = self.end == End::Abandoned
            && self.parts.is_empty()
            && self.requests.is_empty()
            && !self.inbox.is_away()
            && !matches!(self.input, Input::Away)
            && !self.outbox.is_away();
        assert!(!drained || self.memory.is_free(), "every buffer came back");
        drained
    }

    /// A part that never reached its shard.
    fn take_back(&mut self, request: ShardRequest, pool: &mut impl BufferPool) {
        let part = self.parts.remove(request.token.0 as u16);
        self.requests[part.request].outstanding -= 1;
        if let Some(buffer) = request.buffer {
            self.memory.give(buffer, pool);
        }
    }

    /// Gives back the buffers that a request holds itself.
    fn give_buffers(&mut self, slot: u16, pool: &mut impl BufferPool) {
        match &mut self.requests[slot].job {
            Job::InOrder(read) => {
                for buffer in read.take_buffers() {
                    self.memory.give(buffer, pool);
                }
            }
            Job::Status(status) => {
                for buffer in [status.reply.take(), status.question.take()]
                    .into_iter()
                    .flatten()
                {
                    self.memory.give(buffer, pool);
                }
            }
            _ => {}
        }
    }

    /// A send came back: `count` of its bytes went out (0 if the connection broke).
    pub fn sent(&mut self, send: Send, count: usize, pool: &mut impl BufferPool) {
        let (memory, requests, issuing) = (&mut self.memory, &mut self.requests, &mut self.issuing);
        let abandoned = self.end == End::Abandoned;
        let mut free = |data: Data| match data.home.filter(|_| !abandoned) {
            Some(slot) => {
                let request = &mut requests[slot];
                let Job::InOrder(read) = &mut request.job else {
                    unreachable!("only a read in order wants buffers back");
                };
                read.returning -= 1;
                read.put_spare(data.buffer);
                if !request.queued {
                    request.queued = true;
                    issuing.push_back(slot);
                }
            }
            None => memory.give(data.buffer, pool),
        };
        self.outbox.came_back(send, count, &mut free);
        if abandoned {
            self.outbox.discard(&mut free);
        }
    }
}
