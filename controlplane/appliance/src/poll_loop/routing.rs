//! Who gets what: requests to the owners of their shards, answers to their sessions, the coordinator's commands to
//! the shards and their events back.

use stillpoint_coordinator::{Action, Coordinator};
use stillpoint_export::nbd::{is_without_session, processor_of};
use stillpoint_processor::command::EventKind;
use stillpoint_processor::mirror::MirrorNotice;
use stillpoint_processor::{
    RequestError, ShardAnswer, ShardCommand, ShardEvent, ShardIndex, ShardRequest, Ticket,
};

use super::links::{MESSAGES_PER_TURN, Message};
use super::looping::Loop;
use crate::mailbox::{LoopNotice, PoolIndex, ProcessorIndex, ShardNotice};

impl Loop {
    /// Takes in what other loops sent.
    pub(super) fn receive_messages(&mut self) {
        for from in 0..self.links.count() {
            for _ in 0..MESSAGES_PER_TURN {
                let Some(message) = self.links.receive(from) else {
                    break;
                };
                self.progress = true;
                match message {
                    Message::Request { pool, request } => {
                        self.figures.forwarded += 1;
                        self.submit(pool, request);
                    }
                    Message::Answer(answer) => self.clients.answer(answer, &mut self.buffers),
                    Message::Command(message) => {
                        #[cfg(feature = "planted-bugs")]
                        let Some(message) = self.late_cuts.keep_back(message, self.now) else {
                            continue;
                        };
                        let (pool, shard, ticket, command) = *message;
                        self.command(pool, shard, ticket, command);
                    }
                    Message::Event(message) => self.coordinator_event(message.0, &message.1),
                    Message::Connection(message) => self.welcome(message.0, message.1),
                }
            }
        }
    }

    /// Takes in the cuts that were kept back on purpose.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn receive_late_cuts(&mut self) {
        while let Some(message) = self.late_cuts.due(self.now) {
            let (pool, shard, ticket, command) = *message;
            self.command(pool, shard, ticket, command);
        }
    }

    /// Sends a part to the owner of its shard.
    pub(super) fn route(&mut self, pool: PoolIndex, request: ShardRequest) {
        let Some(open) = self.pools.get(usize::from(pool.0)).and_then(Option::as_ref) else {
            return self.refuse(request);
        };
        let owner = open.owner(request.shard);
        if owner == self.index {
            self.submit(pool, request);
        } else {
            self.links.send(owner, Message::Request { pool, request });
        }
    }

    /// Gives a part to a shard of this loop, or puts it behind those that wait.
    fn submit(&mut self, pool: PoolIndex, request: ShardRequest) {
        let Some(open) = self.pools.get_mut(usize::from(pool.0)).and_then(Option::as_mut) else {
            return self.refuse(request);
        };
        open.backlog.submit(&mut open.processor, request, self.now);
    }

    /// Gives a request of the control plane to a shard, which should be of this loop.
    pub(super) fn submit_own(&mut self, pool: PoolIndex, mut request: ShardRequest) {
        request.since_ns = self.now.monotonic_ns;
        let open = self.pools.get(usize::from(pool.0)).and_then(Option::as_ref);
        match open.filter(|open| open.processor.owns(request.shard)) {
            Some(_) => self.submit(pool, request),
            None => self.refuse(request),
        }
    }

    /// Gives the shards what waits for them.
    pub(super) fn submit_backlogs(&mut self) {
        for open in self.pools.iter_mut().flatten() {
            self.progress |= open.backlog.submit_waiting(&mut open.processor, self.now);
        }
    }

    fn refuse(&mut self, request: ShardRequest) {
        let result = Err(RequestError::ShuttingDown);
        self.deliver(ShardAnswer {
            token: request.token,
            result,
            buffer: request.buffer,
            valid_bytes: 0,
            since_ns: self.now.monotonic_ns,
        });
    }

    /// Brings an answer to its session, wherever that is.
    fn deliver(&mut self, answer: ShardAnswer) {
        if is_without_session(answer.token) {
            return self.asked.answer(answer);
        }
        let processor = processor_of(answer.token);
        if processor == self.index {
            self.clients.answer(answer, &mut self.buffers);
        } else {
            self.links.send(processor, Message::Answer(answer));
        }
    }

    /// One turn of every pool's processor; distributes what it has to say.
    pub(super) fn poll_pools(&mut self) {
        for pool in 0..self.pools.len() {
            let Some(open) = &mut self.pools[pool] else {
                continue;
            };
            let mut outbox = core::mem::take(&mut self.outbox);
            self.progress |= open.processor.device_mut().turn(self.now, &mut self.buffers);
            self.progress |= open.processor.poll(self.now, &mut self.buffers, &mut outbox);
            for answer in outbox.answers.drain(..) {
                self.deliver(answer);
            }
            for event in outbox.events.drain(..) {
                self.event(PoolIndex(pool as u16), event);
            }
            self.outbox = outbox;
            self.tell_of_mirrors(pool);
            self.tell_of_stalls(pool);
        }
    }

    /// Tells the control plane of devices of a pool that do not answer.
    fn tell_of_stalls(&mut self, pool: usize) {
        let Some(Some(open)) = self.pools.get_mut(pool) else {
            return;
        };
        let devices = open.processor.device().inner();
        let (notices, processor) = (&self.notices, ProcessorIndex(self.index as u16));
        let unanswered = |oldest: &mut _| devices.unanswered(oldest);
        open.stalls.turn(self.now, unanswered, |device, stall| {
            let told = LoopNotice::Stall {
                pool: PoolIndex(pool as u16),
                processor,
                device,
                stall,
            };
            // It is told again: room is left for what is told once.
            notices.capacity() * 2 >= notices.max_capacity() && notices.try_send(told).is_ok()
        });
    }

    /// Tells the control plane what the mirrors of a pool have to say. Answers wait for what it does about it, so nothing of this is dropped.
    pub(super) fn tell_of_mirrors(&mut self, pool: usize) {
        let Some(Some(open)) = self.pools.get_mut(pool) else {
            return;
        };
        let devices = open.processor.device_mut();
        while let Some(notice) = open.untold.take().or_else(|| devices.take_notice()) {
            let at = match notice {
                MirrorNotice::SideFailed { at, .. }
                | MirrorNotice::Resynced { at }
                | MirrorNotice::CannotCopy { at, .. } => at,
            };
            let told = LoopNotice::Mirror {
                pool: PoolIndex(pool as u16),
                processor: ProcessorIndex(self.index as u16),
                pass: open.passes.get(&at).copied().unwrap_or(open.first_pass),
                notice,
            };
            if self.notices.try_send(told).is_err() {
                open.untold = Some(notice);
                break;
            }
        }
    }

    /// Gives a command to a shard of this loop.
    pub(super) fn command(
        &mut self,
        pool: PoolIndex,
        shard: ShardIndex,
        ticket: Ticket,
        command: ShardCommand,
    ) {
        if let Some(open) = self.pools.get_mut(usize::from(pool.0)).and_then(Option::as_mut) {
            open.processor.command(shard, ticket, command, self.now);
        }
    }

    /// An event of a shard of this loop, to whoever asked.
    fn event(&mut self, pool: PoolIndex, event: ShardEvent) {
        let for_coordinator = event.ticket.is_some_and(Coordinator::gave)
            || matches!(event.kind, EventKind::HoldExpired { .. });
        if for_coordinator {
            if self.index == 0 {
                self.coordinator_event(pool, &event);
            } else {
                self.links.send(0, Message::Event(Box::new((pool, event))));
            }
            return;
        }
        match (event.ticket, event.kind) {
            (Some(ticket), kind) => self.command_ended(pool, ticket, kind),
            // What is only good to know leaves room for what somebody has to look at.
            (None, EventKind::Notice(notice))
                if notice.is_background() && self.notices.capacity() * 2 < self.notices.max_capacity() =>
            {
                self.figures.notices_dropped += 1;
            }
            (None, EventKind::Notice(notice)) => {
                let notice = ShardNotice {
                    pool,
                    shard: event.shard,
                    notice,
                };
                if self.notices.try_send(LoopNotice::Shard(notice)).is_err() {
                    self.figures.notices_dropped += 1;
                }
            }
            (None, kind) => unreachable!("{kind:?} answers a command"),
        }
    }

    /// An event for the coordinator of a pool (processor 0).
    fn coordinator_event(&mut self, pool: PoolIndex, event: &ShardEvent) {
        let Some(open) = self.pools.get_mut(usize::from(pool.0)).and_then(Option::as_mut) else {
            return;
        };
        let mut actions = core::mem::take(&mut self.actions);
        open.coordinator.event(event, self.now, &mut actions);
        self.act(pool, &mut actions);
        self.actions = actions;
    }

    /// Lets the coordinators look at the clock (processor 0).
    pub(super) fn poll_coordinators(&mut self) {
        if self.index != 0 {
            return;
        }
        for pool in 0..self.pools.len() {
            let Some(open) = self.pools[pool]
                .as_mut()
                .filter(|open| !open.coordinator.is_idle())
            else {
                continue;
            };
            let mut actions = core::mem::take(&mut self.actions);
            open.coordinator.poll(self.now, &mut actions);
            self.act(PoolIndex(pool as u16), &mut actions);
            self.actions = actions;
        }
    }

    /// Does what a coordinator wants done.
    pub(super) fn act(&mut self, pool: PoolIndex, actions: &mut Vec<Action>) {
        for action in actions.drain(..) {
            self.progress = true;
            let Some(open) = self.pools[usize::from(pool.0)].as_mut() else {
                continue;
            };
            match action {
                Action::Send {
                    shard,
                    ticket,
                    command,
                } => {
                    let owner = open.owner(shard);
                    if owner == self.index {
                        open.processor.command(shard, ticket, command, self.now);
                    } else {
                        let message = Box::new((pool, shard, ticket, command));
                        self.links.send(owner, Message::Command(message));
                    }
                }
                Action::Finish { snapshot, result } => {
                    if let Some(reply) = open.snapshots.remove(&snapshot) {
                        // Whoever asked may have gone away; the catalog has the snapshot all the same.
                        let _ = reply.send(result);
                    }
                }
            }
        }
    }
}
