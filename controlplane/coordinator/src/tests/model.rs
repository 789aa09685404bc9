//! Shards as `command.rs` describes them, reduced to what a snapshot needs, and the world around them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{Action, Coordinator, Marks, OverallSnapshot, SnapshotError, SnapshotRequest, SnapshotVolume};
use stillpoint_processor::command::{EventKind, HoldFigures, RefusedReason};
use stillpoint_processor::{
    Now, RequestError, ShardCommand, ShardEvent, ShardIndex, SnapshotId, Ticket, VolumeId,
};

pub const HOLD_LIMIT_NS: u64 = 10;
pub const STEP_LIMIT_NS: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Prepared,
    Holding { deadline_ns: u64 },
    Released,
    Durable,
}

/// What goes wrong with one message or one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The command never arrives.
    LoseCommand,
    /// The command is done, the answer never arrives.
    LoseEvent,
    /// The shard says no (where it can).
    Refuse,
    /// The shard fails without doing it.
    Fail(RequestError),
}

#[derive(Clone, Debug, Default)]
pub struct Shard {
    pub commands: VecDeque<(Ticket, ShardCommand)>,
    pub events: VecDeque<ShardEvent>,
    shares: BTreeMap<SnapshotId, Share>,
    pub catalog: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Snapshots whose hold ended by the deadline.
    pub expired: BTreeSet<SnapshotId>,
}

impl Shard {
    fn execute(&mut self, shard: ShardIndex, now_ns: u64, fault: Option<Fault>) {
        let (ticket, command) = self.commands.pop_front().expect("the caller looked");
        if fault == Some(Fault::LoseCommand) {
            return;
        }
        let kind = match fault {
            Some(Fault::Fail(error)) => EventKind::Failed(error),
            Some(Fault::Refuse) => EventKind::Refused {
                reason: RefusedReason::Busy,
            },
            _ => self.apply(command, now_ns),
        };
        if fault != Some(Fault::LoseEvent) {
            self.events.push_back(ShardEvent {
                shard,
                ticket: Some(ticket),
                kind,
            });
        }
    }

    fn apply(&mut self, command: ShardCommand, now_ns: u64) -> EventKind {
        let refused = EventKind::Refused {
            reason: RefusedReason::Aborted,
        };
        match command {
            ShardCommand::Prepare { snapshot, .. } => {
                self.shares.insert(snapshot, Share::Prepared);
                EventKind::Prepared
            }
            ShardCommand::Cut {
                snapshot,
                deadline_ns,
                ..
            } => match self.shares.get_mut(&snapshot) {
                Some(share @ Share::Prepared) => {
                    *share = Share::Holding { deadline_ns };
                    EventKind::Taken
                }
                _ => refused,
            },
            ShardCommand::Release { snapshot } => match self.shares.get_mut(&snapshot) {
                Some(share @ Share::Holding { .. }) => {
                    *share = Share::Released;
                    EventKind::Released(HoldFigures {
                        hold_ns: now_ns,
                        answers_held: 3,
                        answer_held_ns_max: 2,
                        log_bytes: 80,
                        metadata_bytes: 200,
                    })
                }
                _ => refused,
            },
            ShardCommand::Persist { snapshot } => match self.shares.get_mut(&snapshot) {
                Some(share @ Share::Released) => {
                    *share = Share::Durable;
                    EventKind::Durable
                }
                _ => refused,
            },
            ShardCommand::Abort { snapshot } => {
                self.shares.remove(&snapshot);
                EventKind::Aborted
            }
            ShardCommand::CatalogPut { key, value } => {
                self.catalog.insert(key, value);
                EventKind::Done
            }
            ShardCommand::CatalogDelete { key } => {
                self.catalog.remove(&key);
                EventKind::Done
            }
            other => panic!("not a command of a coordinator: {other:?}"),
        }
    }

    /// Releases by itself what was held for too long.
    fn expire(&mut self, shard: ShardIndex, now_ns: u64) {
        let late: Vec<SnapshotId> = self
            .shares
            .iter()
            .filter(|(_, share)| matches!(share, Share::Holding { deadline_ns } if *deadline_ns <= now_ns))
            .map(|(&snapshot, _)| snapshot)
            .collect();
        for snapshot in late {
            self.shares.remove(&snapshot);
            self.expired.insert(snapshot);
            let kind = EventKind::HoldExpired {
                snapshot,
                figures: HoldFigures::default(),
            };
            self.events.push_back(ShardEvent {
                shard,
                ticket: None,
                kind,
            });
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.shares
            .values()
            .filter_map(|share| match share {
                Share::Holding { deadline_ns } => Some(*deadline_ns),
                _ => None,
            })
            .min()
    }

    pub fn holds(&self) -> bool {
        self.deadline_ns().is_some()
    }

    pub fn has_trace_of(&self, snapshot: SnapshotId) -> bool {
        self.shares.contains_key(&snapshot)
    }

    pub fn is_durable(&self, snapshot: SnapshotId) -> bool {
        self.shares.get(&snapshot) == Some(&Share::Durable)
    }
}

/// One thing that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This shard takes its next command.
    Execute(usize, Option<Fault>),
    /// The coordinator takes this shard's next event.
    Deliver(usize),
    /// Time goes to the next deadline of anyone.
    Wait,
}

pub type Outcome = (SnapshotId, Result<OverallSnapshot, SnapshotError>);

#[derive(Clone, Debug, Default)]
pub struct World {
    pub coordinator: Coordinator,
    pub shards: Vec<Shard>,
    pub now_ns: u64,
    pub outcomes: Vec<Outcome>,
    /// Commands that were sent, by name, for tests of the order.
    pub sent: Vec<(u16, &'static str)>,
}

pub fn request(snapshot: u64, volumes: &[u32], shards: u16) -> SnapshotRequest {
    SnapshotRequest {
        snapshot: SnapshotId(snapshot),
        name: format!("s{snapshot}"),
        volumes: volumes
            .iter()
            .map(|&volume| SnapshotVolume {
                volume: VolumeId(volume),
                owner: VolumeId(volume),
                size_bytes: 1 << 20,
            })
            .collect(),
        marks: Marks {
            schedule: 7,
            locked_until_ns: 8,
        },
        shard_count: shards,
        hold_limit_ns: HOLD_LIMIT_NS,
        step_limit_ns: STEP_LIMIT_NS,
    }
}

impl World {
    pub fn new(shards: u16) -> Self {
        Self {
            shards: vec![Shard::default(); usize::from(shards)],
            ..Self::default()
        }
    }

    fn now(&self) -> Now {
        Now {
            monotonic_ns: self.now_ns,
            wall_ns: 1_000_000 + self.now_ns,
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send {
                    shard,
                    ticket,
                    command,
                } => {
                    assert!(Coordinator::gave(ticket));
                    self.sent.push((shard.0, name(&command)));
                    self.shards[usize::from(shard.0)]
                        .commands
                        .push_back((ticket, command));
                }
                Action::Finish { snapshot, result } => self.outcomes.push((snapshot, result)),
            }
        }
    }

    pub fn create(&mut self, request: SnapshotRequest) {
        let mut actions = Vec::new();
        self.coordinator.create(request, self.now(), &mut actions);
        self.perform(actions);
    }

    pub fn shut_down(&mut self) {
        let mut actions = Vec::new();
        self.coordinator.shut_down(self.now(), &mut actions);
        self.perform(actions);
    }

    /// What can happen next, faults and waiting left out.
    pub fn ready(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            if !shard.commands.is_empty() {
                steps.push(Step::Execute(index, None));
            }
            if !shard.events.is_empty() {
                steps.push(Step::Deliver(index));
            }
        }
        steps
    }

    pub fn can_wait(&self) -> bool {
        self.next_deadline_ns().is_some()
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        let shards = self.shards.iter().filter_map(Shard::deadline_ns);
        shards.chain(self.coordinator.next_deadline_ns()).min()
    }

    pub fn step(&mut self, step: Step) {
        match step {
            Step::Execute(index, fault) => {
                self.shards[index].execute(ShardIndex(index as u16), self.now_ns, fault);
            }
            Step::Deliver(index) => {
                let event = self.shards[index].events.pop_front().expect("the caller looked");
                let mut actions = Vec::new();
                self.coordinator.event(&event, self.now(), &mut actions);
                self.perform(actions);
            }
            Step::Wait => {
                self.now_ns = self
                    .now_ns
                    .max(self.next_deadline_ns().expect("the caller looked"));
                for (index, shard) in self.shards.iter_mut().enumerate() {
                    shard.expire(ShardIndex(index as u16), self.now_ns);
                }
                let mut actions = Vec::new();
                self.coordinator.poll(self.now(), &mut actions);
                self.perform(actions);
            }
        }
    }

    /// Lets everything happen in a plain order until nothing is left.
    pub fn run(&mut self) {
        for _ in 0..100_000 {
            if let Some(&step) = self.ready().first() {
                self.step(step);
            } else if self.can_wait() {
                self.step(Step::Wait);
            } else {
                return;
            }
        }
        panic!("it never ends");
    }
}

fn name(command: &ShardCommand) -> &'static str {
    match command {
        ShardCommand::Prepare { .. } => "prepare",
        ShardCommand::Cut { .. } => "cut",
        ShardCommand::Release { .. } => "release",
        ShardCommand::Persist { .. } => "persist",
        ShardCommand::Abort { .. } => "abort",
        ShardCommand::CatalogPut { .. } => "put",
        ShardCommand::CatalogDelete { .. } => "delete",
        _ => "other",
    }
}
