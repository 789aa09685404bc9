//! What a random schedule is like, what goes wrong in it, and what was met.

use std::collections::BTreeMap;
use std::fmt;

use stillpoint_coordinator::Coordinator;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::{ShardCommand, ShardOptions};

use super::clients::Limits;
use super::stage::{Move, Props, STRANGERS, Stage};
use crate::random::Random;

/// A message of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Message {
    /// To a shard: reserve what a cut needs.
    Prepare,
    /// From a shard.
    Prepared,
    /// To a shard: freeze, hold.
    Cut,
    /// From a shard.
    Taken,
    /// To a shard: let go.
    Release,
    /// From a shard.
    Released,
    /// To a shard: make the intermediate snapshot durable.
    Persist,
    /// From a shard.
    Durable,
    /// To shard 0: a row of figures, or the commit record.
    Commit,
    /// From shard 0.
    Committed,
    /// To a shard: drop it.
    Abort,
    /// From a shard.
    Aborted,
    /// From a shard: the hold has come to its deadline.
    HoldExpired,
    /// From a shard: no.
    Refused,
}

/// What goes wrong at a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The process is killed.
    Kill,
    /// The power is cut.
    PowerCut,
    /// The coordinator is gone, the shards go on.
    CoordinatorDies,
    /// The message, and what is behind it in the line, waits for longer than answers may be held.
    LateForHold,
    /// It waits for longer than a step may take.
    LateForStep,
    /// The shard gets no turn for longer than answers may be held.
    ShardStalls,
    /// Another cut of all volumes goes on at the shard for as long: it refuses to prepare.
    ShardRefuses,
}

/// All faults.
pub const FAULTS: [Fault; 7] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::CoordinatorDies,
    Fault::LateForHold,
    Fault::LateForStep,
    Fault::ShardStalls,
    Fault::ShardRefuses,
];

/// What runs came across: a simulation that never gets into trouble proves nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Faults, by the message at which they came; "before" the message arrives, or just after.
    pub faults: BTreeMap<(Message, Fault), u64>,
    /// How snapshots ended, as those who asked for them know.
    pub ends: BTreeMap<&'static str, u64>,
    /// Answers that were held.
    pub answers_held: u64,
    /// Operations of clients.
    pub operations: u64,
    /// Faults that came where half of the volumes are clones.
    pub with_clones: BTreeMap<Fault, u64>,
    /// Snapshots that a shard refused, and of these the ones that clones were part of.
    pub refused: (u64, u64),
}

impl Met {
    /// Adds up two runs.
    pub fn merge(&mut self, other: &Self) {
        for (what, count) in &other.faults {
            *self.faults.entry(*what).or_default() += count;
        }
        for (what, count) in &other.ends {
            *self.ends.entry(what).or_default() += count;
        }
        for (fault, count) in &other.with_clones {
            *self.with_clones.entry(*fault).or_default() += count;
        }
        self.refused.0 += other.refused.0;
        self.refused.1 += other.refused.1;
        self.answers_held += other.answers_held;
        self.operations += other.operations;
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (faults, kinds) = (self.faults.values().sum::<u64>(), self.faults.len());
        let (operations, held) = (self.operations, self.answers_held);
        write!(
            f,
            "{operations} operations, {held} answers held, {faults} faults of {kinds} kinds ({} beside clones), {} snapshots \
             refused ({} of clones)",
            self.with_clones.values().sum::<u64>(),
            self.refused.0,
            self.refused.1
        )?;
        self.ends
            .iter()
            .try_for_each(|(what, count)| write!(f, ", {count} snapshots {what}"))
    }
}

/// What one run is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the stage is made of.
    pub props: Props,
    /// Volumes.
    pub volumes: usize,
    /// Clients, each with one operation at a time.
    pub clients: usize,
    /// Operations of clients.
    pub operations: u64,
    /// Snapshots asked for.
    pub snapshots: u64,
    /// How long answers may be held, and steps take.
    pub limits: Limits,
    /// Time that passes with each move at most.
    pub step_ns: u64,
    /// Out of a hundred times, how often anything else moves before the messages of the coordinator and to it: so much
    /// happens in a cut.
    pub lazy_percent: u64,
    /// What goes wrong, at which message of a cut (counted from 0), and whether just after it; one or two of them.
    pub faults: Vec<(Fault, u64, bool)>,
    /// Whether there is a clone of every volume.
    pub clones: bool,
}

impl Plan {
    /// The plan for a seed.
    #[must_use]
    pub fn new(random: &mut Random) -> Self {
        let shards = random.between(2, 5) as u16;
        let snapshots = random.between(1, 3);
        let messages = snapshots * (u64::from(shards) * 8 + 4);
        let count = *random.pick(&[0, 1, 1, 1, 2, 2]);
        // The second comes soon after the first: while the first is being dealt with.
        let mut at = 0;
        let faults = (0..count)
            .map(|number| {
                at += random.below(if number == 0 { messages } else { 12 });
                (*random.pick(&FAULTS), at, random.percent(50))
            })
            .collect();
        let hold_ns = *random.pick(&[20_000, 100_000, 1_000_000]);
        Self {
            props: Props {
                shards,
                devices: random.between(1, 2) as usize,
                tail: random.percent(70),
                options: ShardOptions {
                    map_cache_pages: 64,
                    in_flight_max: 64,
                    #[cfg(feature = "planted-bugs")]
                    planted_bug: None,
                },
            },
            volumes: random.between(1, 2) as usize,
            clients: random.between(2, 6) as usize,
            operations: random.between(10, 50),
            snapshots,
            limits: Limits {
                hold_ns,
                step_ns: 20 * hold_ns,
            },
            step_ns: *random.pick(&[10, 100, 1_000]),
            lazy_percent: *random.pick(&[0, 50, 90, 97]),
            faults,
            clones: random.percent(25),
        }
    }
}

/// The message of a cut that a move delivers, if it delivers one.
pub(super) fn message(stage: &Stage, next: Move) -> Option<Message> {
    match next {
        Move::Command(shard) => {
            let (ticket, command) = stage.commands[shard].front()?;
            Coordinator::gave(*ticket).then_some(match command {
                ShardCommand::Prepare { .. } => Message::Prepare,
                ShardCommand::Cut { .. } => Message::Cut,
                ShardCommand::Release { .. } => Message::Release,
                ShardCommand::Persist { .. } => Message::Persist,
                ShardCommand::Abort { .. } => Message::Abort,
                _ => Message::Commit,
            })
        }
        Move::Event(shard) if stage.events[shard].front()?.ticket == Some(STRANGERS) => None,
        Move::Event(shard) => match stage.events[shard].front()?.kind {
            EventKind::Prepared => Some(Message::Prepared),
            EventKind::Taken => Some(Message::Taken),
            EventKind::Released(_) => Some(Message::Released),
            EventKind::Durable => Some(Message::Durable),
            EventKind::Done => Some(Message::Committed),
            EventKind::Aborted => Some(Message::Aborted),
            EventKind::HoldExpired { .. } => Some(Message::HoldExpired),
            EventKind::Refused { .. } => Some(Message::Refused),
            _ => None,
        },
        _ => None,
    }
}
