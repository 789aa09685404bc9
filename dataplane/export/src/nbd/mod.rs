//! The NBD protocol, server side ([`Session`]) and client side ([`client`]).
//!
//! A session is one connection. Whoever drives it does, in each turn:
//!
//! 1. brings back what has ended: [`Session::received`], [`Session::sent`], [`Session::answer`];
//! 2. takes what is to be done: [`Session::next_request`] until `None`, [`Session::receive`] and
//!    [`Session::next_send`] (one of each is under way at a time);
//! 3. closes the connection when [`Session::wants_close`] says so, then calls [`Session::abandon`] and drops
//!    the session once [`Session::is_drained`].
//!
//! [`Conversations`] does this for all connections of a processor, over any [`Transport`].
//!
//! ```text
//!            received              next_request
//! socket ──▶ inbox ──▶ options ──▶ requests ──▶ parts ──▶ shards
//!        ◀── outbox ◀───────────── ready    ◀──────────── answer
//!            next_send, sent
//! ```
//!
//! Limits, so that one client cannot take everything: [`Limits`] bounds requests and data memory in flight;
//! when a limit is reached the session stops reading from the client. Nothing waits for memory while it holds
//! up something that could free memory: a read in order takes its window of buffers at once and keeps it.

pub mod client;
pub mod wire;

mod contexts;
mod conversation;
mod conversations;
mod extents;
mod handshake;
mod memory;
mod outbox;
mod request;
mod session;
mod slab;
mod taking;
mod transmission;

pub use contexts::{ALLOCATION_CONTEXT_ID, CONTEXTS_MAX, SNAPSHOTS_LISTED_MAX};
pub use conversation::{Line, Transport};
pub use conversations::{
    CONNECTIONS_MAX, Conversations, is_without_session, processor_of, token_without_session,
};
pub use handshake::{OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_MAX};
pub use outbox::{OUTBOX_BYTES, PIECES_MAX, Send};
pub use session::{INBOX_BYTES, Limits, Receive, Session, SessionOptions, session_tag};
pub use transmission::{DF_BYTES_MAX, SKIP_BYTES_MAX};
