//! Requests that wait in front of a processor.

use std::collections::VecDeque;

use crate::ids::Now;
use crate::ports::{BlockDevice, LogTail};
use crate::processor::Processor;
use crate::request::ShardRequest;

/// Requests that found their shard working on as many as it may. Whoever fills it bounds it: by taking no further
/// requests from clients while it is long (I12).
#[derive(Debug, Default)]
pub struct Backlog {
    waiting: VecDeque<ShardRequest>,
}

impl Backlog {
    /// Gives a request to its shard, or puts it behind those that wait.
    pub fn submit<D: BlockDevice, T: LogTail>(
        &mut self,
        processor: &mut Processor<D, T>,
        request: ShardRequest,
        now: Now,
    ) {
        if !self.waiting.is_empty() {
            self.waiting.push_back(request);
        } else if let Err(request) = processor.submit(request, now) {
            self.waiting.push_back(request);
        }
    }

    /// Gives the shards what waits for them; gives whether they took any of it.
    pub fn submit_waiting<D: BlockDevice, T: LogTail>(
        &mut self,
        processor: &mut Processor<D, T>,
        now: Now,
    ) -> bool {
        let mut any = false;
        // A full shard does not hold up the others.
        for _ in 0..self.waiting.len() {
            let Some(request) = self.waiting.pop_front() else {
                break;
            };
            match processor.submit(request, now) {
                Ok(()) => any = true,
                Err(request) => self.waiting.push_back(request),
            }
        }
        any
    }

    /// Requests that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
