//! Requests of the control plane itself: who waits for which answer.

use std::collections::BTreeMap;

use stillpoint_export::nbd::token_without_session;
use stillpoint_processor::{ShardAnswer, Token};
use tokio::sync::oneshot;

/// The requests that are under way on one loop.
#[derive(Debug)]
pub struct Asked {
    processor: usize,
    number: u32,
    waiting: BTreeMap<Token, oneshot::Sender<ShardAnswer>>,
}

impl Asked {
    /// None yet.
    pub fn new(processor: usize) -> Self {
        Self {
            processor,
            number: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// The token of a new request, whose answer goes to `reply`.
    pub fn wait(&mut self, reply: oneshot::Sender<ShardAnswer>) -> Token {
        self.number = self.number.wrapping_add(1);
        let token = token_without_session(self.processor, self.number);
        self.waiting.insert(token, reply);
        token
    }

    /// Brings an answer to whoever asked.
    pub fn answer(&mut self, answer: ShardAnswer) {
        if let Some(reply) = self.waiting.remove(&answer.token) {
            // Whoever asked may have gone away.
            let _ = reply.send(answer);
        }
    }
}
