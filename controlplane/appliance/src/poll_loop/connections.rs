//! Connections of NBD clients: each a socket, a session, and at most one receive and one send under way.

use std::sync::Arc;

use stillpoint_export::nbd::{Limits, Receive, Send, Session, SessionOptions};
use stillpoint_export::{ExportTable, PoolIndex};
use stillpoint_hw::buffers::ProcessorBuffers;
use stillpoint_hw::ring::Ring;
use stillpoint_hw::socket::{Connection, Gather, Scatter, Sockets};
use stillpoint_processor::ShardRequest;

/// Connections of one processor at most.
pub const CONNECTIONS_MAX: usize = 4096;
/// Keys of listeners begin here.
pub const LISTENER_KEY: u32 = 1 << 31;
/// How long the client of an export that is gone may take to fetch its last replies.
const GRACE_NS: u64 = 1_000_000_000;

/// A session's memory to be sent, as the sockets want it.
pub struct ToSend(pub Send);
/// A session's memory to be filled, as the sockets want it.
pub struct ToReceive(pub Receive);

impl Gather for ToSend {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.0.pieces()
    }
}

impl Scatter for ToReceive {
    fn spaces(&mut self) -> impl Iterator<Item = &mut [u8]> {
        std::iter::once(self.0.memory())
    }
}

/// The transfers of one loop's sockets.
pub type SessionSockets = Sockets<ToSend, ToReceive>;

/// One connection.
pub struct Client {
    socket: Connection,
    session: Session,
    receiving: bool,
    sending: bool,
    /// In the loop's list of clients to be looked after.
    pub listed: bool,
    leaving: bool,
    /// When its socket is shut down, should it not be gone by then.
    deadline_ns: u64,
}

/// What a look at a client came to.
pub enum Looked {
    /// Nothing more to do for now.
    Settled,
    /// It waits for buffers or for room that may come without a sign.
    Starved,
    /// It is gone: everything came back.
    Gone,
}

impl Client {
    /// A client that has yet to be greeted. `tag` marks its tokens.
    pub fn new(socket: Connection, tag: u32, exports: &Arc<ExportTable>) -> Self {
        let options = SessionOptions {
            tag,
            exports: Arc::clone(exports),
            limits: Limits::default(),
        };
        Self {
            socket,
            session: Session::new(options),
            receiving: false,
            sending: false,
            listed: false,
            leaving: false,
            deadline_ns: u64::MAX,
        }
    }

    /// The session.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The next part for a shard, and the pool it belongs to.
    pub fn next_request(&mut self, buffers: &mut ProcessorBuffers) -> Option<(PoolIndex, ShardRequest)> {
        let request = self.session.next_request(buffers)?;
        let export = self
            .session
            .export()
            .expect("a session with requests has chosen an export");
        Some((export.pool, request))
    }

    /// Starts the transfers that the session wants.
    pub fn look_after(
        &mut self,
        key: u32,
        now_ns: u64,
        sockets: &mut SessionSockets,
        ring: &mut Ring,
        buffers: &mut ProcessorBuffers,
    ) -> Looked {
        let mut starved = false;
        if !self.sending
            && let Some(send) = self.session.next_send(buffers)
        {
            match sockets.send(ring, &self.socket, key, ToSend(send)) {
                Ok(()) => self.sending = true,
                Err(ToSend(send)) => {
                    self.session.sent(send, 0, buffers);
                    starved = true;
                }
            }
        }
        if self.session.wants_close() && !self.sending || now_ns >= self.deadline_ns {
            self.hang_up(buffers);
        }
        if !self.receiving
            && let Some(receive) = self.session.receive(buffers)
        {
            match sockets.receive(ring, &self.socket, key, ToReceive(receive)) {
                Ok(()) => self.receiving = true,
                Err(_) => unreachable!("the table has two places per connection"),
            }
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

    /// A receive came back; `None` if the connection broke.
    pub fn received(&mut self, receive: Receive, count: Option<usize>, buffers: &mut ProcessorBuffers) {
        self.receiving = false;
        self.session.received(receive, count.unwrap_or(0), buffers);
        if count.is_none() {
            self.hang_up(buffers);
        }
    }

    /// A send came back; `None` if the connection broke.
    pub fn sent(&mut self, send: Send, count: Option<usize>, buffers: &mut ProcessorBuffers) {
        self.sending = false;
        self.session.sent(send, count.unwrap_or(0), buffers);
        if count.is_none_or(|count| count == 0) {
            self.hang_up(buffers);
        }
    }

    /// Ends the conversation now.
    pub fn hang_up(&mut self, buffers: &mut ProcessorBuffers) {
        self.socket.shut_down();
        self.session.abandon(buffers);
        self.deadline_ns = u64::MAX;
    }

    /// The exports have changed; gives whether the session has to end.
    pub fn set_exports(&mut self, exports: &Arc<ExportTable>, now_ns: u64) -> bool {
        let stays = self.session.export().is_none_or(|export| exports.allows(export));
        self.session.set_exports(Arc::clone(exports));
        if !stays {
            self.leave(now_ns);
        }
        !stays
    }

    /// Lets the session end: what is in flight is answered, further requests are refused.
    pub fn leave(&mut self, now_ns: u64) {
        self.session.shut_down();
        self.leaving = true;
        self.deadline_ns = self.deadline_ns.min(now_ns + GRACE_NS);
    }

    /// Whether it has to end and has not.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// When it has to be looked at again even if nothing happens.
    pub fn deadline_ns(&self) -> u64 {
        self.deadline_ns
    }
}
