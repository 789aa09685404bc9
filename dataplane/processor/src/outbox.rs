//! What a processor has to say: answers to sessions, events to the control plane.

use crate::command::ShardEvent;
use crate::request::ShardAnswer;

/// Filled by a processor, drained by whoever drives it. The vectors keep their capacity.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Answers to requests, in the order in which they may go out.
    pub answers: Vec<ShardAnswer>,
    /// Events.
    pub events: Vec<ShardEvent>,
}
