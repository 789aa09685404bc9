//! What the control plane tells a poll loop, between two turns.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use stillpoint_export::ExportTable;
use stillpoint_hw::buffers::PageKind;
use stillpoint_hw::device::{Devices, PoolFiles};
use stillpoint_processor::command::EventKind;
use stillpoint_processor::mirror::{Mirrors, SideAt, SideState, Sides};
use stillpoint_processor::ports::Side;
use stillpoint_processor::stages::Stages;
use stillpoint_processor::{DeviceIndex, Processor, RequestError, ShardCommand, Ticket};

use super::connections::LISTENER_KEY;
use super::looping::Loop;
use super::pools::{Closing, OpenPool, Opened, open_in_the_background};
use crate::mailbox::{Listener, MirrorChange, PoolIndex, ProcessorStatus, ToProcessor};

/// Messages taken per turn.
const MESSAGES_PER_TURN: usize = 16;

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Loop {
    /// Takes in what the control plane sent, and shards that were opened meanwhile.
    pub(super) fn receive_mail(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Ok(message) = self.mailbox.try_recv() else {
                break;
            };
            self.progress = true;
            self.take_in(message);
        }
        while let Ok(opened) = self.opened.1.try_recv() {
            self.progress = true;
            self.pool_opened(opened);
        }
    }

    fn take_in(&mut self, message: ToProcessor) {
        match message {
            ToProcessor::OpenPool { pool, part, reply } => {
                let (done, waker) = (self.opened.0.clone(), self.wakers[self.index].clone());
                open_in_the_background(pool, part, reply, done, waker);
            }
            ToProcessor::ClosePool { pool, reply } => match self.pool_mut(pool) {
                Some(open) => {
                    open.closing = Some(Closing {
                        reply,
                        checkpoints: None,
                        error: None,
                    })
                }
                None => drop(reply.send(Ok(()))),
            },
            ToProcessor::Shard {
                pool,
                shard,
                command,
                reply,
            } => {
                let ticket = self.next_ticket();
                match self.pool_mut(pool).filter(|open| open.processor.owns(shard)) {
                    Some(open) => {
                        open.commands.insert(ticket, reply);
                        self.command(pool, shard, ticket, command);
                    }
                    None => drop(reply.send(EventKind::Failed(RequestError::NotFound))),
                }
            }
            ToProcessor::Ask {
                pool,
                mut request,
                reply,
            } => {
                request.token = self.asked.wait(reply);
                self.submit_own(pool, *request);
            }
            ToProcessor::Mirror { pool, change, reply } => {
                self.change_mirror(pool, change);
                // The control plane may have given up waiting.
                let _ = reply.send(());
            }
            ToProcessor::MirrorStatus { pool, reply } => {
                let open = self.pool_mut(pool);
                let status = open.map_or(Vec::new(), |open| open.processor.device().status());
                drop(reply.send(status));
            }
            ToProcessor::CreateSnapshot {
                pool,
                request,
                newest,
                reply,
            } => {
                let now = self.now;
                let mut actions = core::mem::take(&mut self.actions);
                if let Some(open) = self.pool_mut(pool) {
                    open.snapshots.insert(request.snapshot, reply);
                    open.coordinator.go_on_from(newest);
                    open.coordinator.create(request, now, &mut actions);
                }
                self.act(pool, &mut actions);
                self.actions = actions;
            }
            ToProcessor::Exports { table, reply } => self.set_exports(table, reply),
            ToProcessor::Listen { listener } => {
                let key = LISTENER_KEY | self.listeners.len() as u32;
                self.listeners.push(listener);
                self.accept(key);
            }
            ToProcessor::Unlisten => self.unlisten(),
            ToProcessor::Status { reply } => drop(reply.send(self.status())),
            ToProcessor::Stages { reply } => drop(reply.send(self.stages())),
            ToProcessor::Stop { reply } => self.stopping = Some(reply),
        }
    }

    fn change_mirror(&mut self, pool: PoolIndex, change: MirrorChange) {
        // What was said before is about what was before.
        self.tell_of_mirrors(usize::from(pool.0));
        let Some(open) = self.pools.get_mut(usize::from(pool.0)).and_then(Option::as_mut) else {
            return;
        };
        if let MirrorChange::Attach { at, pass, .. } | MirrorChange::Again { at, pass } = change {
            open.begin_pass(at, pass);
        }
        let mirrors = open.processor.device_mut();
        match change {
            MirrorChange::Out { at, episode } => {
                mirrors
                    .inner_mut()
                    .detach(usize::from(at.below().0), &mut self.ring);
                mirrors.out(at, episode);
            }
            MirrorChange::Lost { device, error } => mirrors.lost(device, error),
            MirrorChange::Replaced { at, episode } => {
                mirrors
                    .inner_mut()
                    .detach(usize::from(at.below().0), &mut self.ring);
                mirrors.replaced(at, episode);
            }
            MirrorChange::Attach { at, .. } => {
                mirrors
                    .inner_mut()
                    .attach(usize::from(at.below().0), &mut self.ring);
                mirrors.resync(at);
            }
            MirrorChange::Again { at, .. } => mirrors.resync(at),
            MirrorChange::Joined { at } => mirrors.joined(at),
            MirrorChange::Rate { bytes_per_s } => mirrors.set_rate(bytes_per_s),
        }
    }

    fn pool_mut(&mut self, pool: PoolIndex) -> Option<&mut OpenPool> {
        self.pools.get_mut(usize::from(pool.0)).and_then(Option::as_mut)
    }

    fn next_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn pool_opened(&mut self, opened: Opened) {
        let Opened {
            pool,
            part,
            reply,
            result,
        } = opened;
        let result = result.map(|opened| {
            let place = usize::from(pool.0);
            if self.pools.len() <= place {
                self.pools.resize_with(place + 1, || None);
            }
            assert!(
                self.pools[place].is_none(),
                "the control plane gives each pool a place of its own"
            );
            let devices = Devices::new(
                part.files.clone(),
                self.buffers.arenas(),
                place as u8,
                &mut self.ring,
            );
            let mirrors = match &part.sides {
                None => Mirrors::plain(devices),
                Some(sides) => {
                    let states = states(sides, &part.files);
                    Mirrors::new(devices, &part.layout, &states, &part.shards, opened.stale)
                }
            };
            let processor = Processor::new(mirrors, opened.shards);
            self.pools[place] = Some(OpenPool::new(processor, &part));
            opened.recovered
        });
        // Nobody waits any more if the daemon is on its way out; it closes the pool then.
        let _ = reply.send(result);
    }

    fn set_exports(&mut self, exports: Arc<ExportTable>, reply: tokio::sync::oneshot::Sender<()>) {
        let leaving = self.clients.set_exports(&exports, self.now.monotonic_ns);
        self.leaving.push((leaving, Some(reply)));
    }

    /// Answers whoever waited for sessions that are gone now.
    pub(super) fn report_the_gone(&mut self) {
        let clients = &self.clients;
        self.leaving.retain_mut(|(places, reply)| {
            places.retain(|&place| clients.is_leaving(place));
            if places.is_empty()
                && let Some(reply) = reply.take()
            {
                // The control plane may have given up waiting.
                let _ = reply.send(());
            }
            !places.is_empty()
        });
    }

    fn unlisten(&mut self) {
        for number in 0..self.listeners.len() as u32 {
            self.sockets.cancel_accept(&mut self.ring, LISTENER_KEY | number);
        }
        self.unlistened = true;
    }

    /// A command of the control plane has ended.
    pub(super) fn command_ended(&mut self, pool: PoolIndex, ticket: Ticket, kind: EventKind) {
        let Some(open) = self.pool_mut(pool) else { return };
        if let Some(reply) = open.commands.remove(&ticket) {
            // Whoever asked may have gone away.
            let _ = reply.send(kind);
            return;
        }
        let Some(closing) = &mut open.closing else { return };
        if let EventKind::Failed(error) = kind {
            closing.error = Some(format!(
                "checkpoint: {error}; the log still holds what it would have held"
            ));
        }
        if let Some(checkpoints) = &mut closing.checkpoints {
            checkpoints.retain(|&waiting| waiting != ticket);
        }
    }

    /// Brings pools that are being closed on their way: first every shard makes a checkpoint, then, when nothing is
    /// under way, the devices are given up.
    pub(super) fn close_pools(&mut self) {
        for place in 0..self.pools.len() {
            let Some(open) = &self.pools[place] else { continue };
            let Some(closing) = &open.closing else { continue };
            match &closing.checkpoints {
                None => self.ask_for_checkpoints(place),
                Some(waiting) if waiting.is_empty() && open.is_quiet() => self.give_up_devices(place),
                Some(_) => {}
            }
        }
    }

    fn ask_for_checkpoints(&mut self, place: usize) {
        self.progress = true;
        let open = self.pools[place].as_ref().expect("it is being closed");
        let shards: Vec<_> = open
            .processor
            .shards()
            .iter()
            .map(|shard| shard.index())
            .collect();
        let mut tickets = Vec::with_capacity(shards.len());
        for shard in shards {
            let ticket = self.next_ticket();
            self.command(PoolIndex(place as u16), shard, ticket, ShardCommand::Checkpoint);
            tickets.push(ticket);
            // Its answer concerns nobody.
            let ticket = self.next_ticket();
            self.command(PoolIndex(place as u16), shard, ticket, ShardCommand::StopScrub);
        }
        let open = self.pools[place].as_mut().expect("it is being closed");
        open.closing.as_mut().expect("it is being closed").checkpoints = Some(tickets);
    }

    fn give_up_devices(&mut self, place: usize) {
        self.progress = true;
        let open = self.pools[place].take().expect("it is being closed");
        let (devices, shards) = open.processor.into_parts(&mut self.buffers);
        devices.into_inner().close(&mut self.ring);
        for shard in shards {
            self.closed_stages.add(shard.stages());
            if shard.is_checkpointed()
                && let Err(error) = shard.into_tail().remove()
            {
                tracing::warn!("{error}");
            }
        }
        let closing = open.closing.expect("it is being closed");
        // The daemon may have given up waiting.
        let _ = closing.reply.send(closing.error.map_or(Ok(()), Err));
    }

    /// Where the time of requests went: outside the shards, and in those that are and were open here.
    fn stages(&self) -> Stages {
        let mut stages = self.clients.stages().clone();
        stages.add(&self.closed_stages);
        for open in self.pools.iter().flatten() {
            for shard in open.processor.shards() {
                stages.add(shard.stages());
            }
        }
        stages
    }

    fn status(&self) -> ProcessorStatus {
        let buffers = self.buffers.figures();
        let arenas = self.buffers.arenas();
        let arena = &arenas.all()[self.index];
        ProcessorStatus {
            core: self.core.map(|core| core.number),
            sessions: self.clients.len() as u64,
            late: self.clients.late(),
            requests: self.figures.requests,
            forwarded: self.figures.forwarded,
            turns: self.figures.turns,
            sleeps: self.figures.sleeps,
            polls: self.polling.habit_is_to_poll(),
            ring_enters: self.ring.figures().enters,
            buffer_bytes_used: buffers.out_bytes,
            buffer_bytes: arena.bytes() as u64,
            buffer_memory: match arena.pages() {
                PageKind::Huge => "huge pages",
                PageKind::TransparentHuge => "transparent huge pages",
                PageKind::Plain => "plain",
            },
        }
    }
}

/// What the sides of each device are to begin with: one that is out, and there, is given back what it lacks.
fn states(sides: &[Sides], files: &PoolFiles) -> Vec<[SideState; 2]> {
    let of_device = |(device, sides): (usize, &Sides)| {
        let device = DeviceIndex(device as u8);
        Side::BOTH.map(|side| match *sides {
            Sides::Only { side: only, .. } if only != side => {
                match files.get(usize::from(SideAt { device, side }.below().0)) {
                    Some(_) => SideState::Resync,
                    None => SideState::Out,
                }
            }
            _ => SideState::InSync,
        })
    };
    sides.iter().enumerate().map(of_device).collect()
}
