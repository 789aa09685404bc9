//! What is asked of the coordinator, and what it gives back.

use core::fmt;
use stillpoint_ondisk::catalog::{self, FiguresHead, Key, MarksRow, Value};
use stillpoint_processor::command::{HoldFigures, RefusedReason};
use stillpoint_processor::{RequestError, ShardIndex, SnapshotId, TimeStamp, VolumeId};

/// How long answers are held at most, unless the request says otherwise.
pub const HOLD_NS_DEFAULT: u64 = 10_000_000;
/// How long a shard may take to prepare, to persist or to abort before it counts as stalled.
pub const STEP_NS_DEFAULT: u64 = 10_000_000_000;

/// One volume of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotVolume {
    /// The shares that are cut: those of the volume of this number.
    pub volume: VolumeId,
    /// The volume whose snapshot it is: the same, unless it was rolled back or the snapshot went to a promoted clone.
    pub owner: VolumeId,
    /// Its size when the snapshot was asked for; the snapshot keeps it.
    pub size_bytes: u64,
}

impl SnapshotVolume {
    /// The owner as the catalog writes it: 0 if it is the volume itself.
    #[must_use]
    pub fn owner_row(&self) -> u32 {
        if self.owner == self.volume {
            0
        } else {
            self.owner.0
        }
    }
}

/// What is known of a snapshot beside its commit record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The schedule that took it; 0 if none did.
    pub schedule: u64,
    /// Until then nothing deletes it, nanoseconds since the Unix epoch; 0 if it is not locked.
    pub locked_until_ns: u64,
}

impl Marks {
    /// Whether there is nothing to know.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The catalog row that says so: key and value.
    #[must_use]
    pub fn row(self, snapshot: SnapshotId) -> (Vec<u8>, Vec<u8>) {
        let row = MarksRow {
            version: catalog::VERSION.into(),
            reserved_a: [0; 6],
            schedule: self.schedule.into(),
            locked_until_ns: self.locked_until_ns.into(),
            reserved_b: [0; 24],
        };
        (Key::Marks(snapshot.0).encode(), Value::Marks(row).encode())
    }
}

/// A snapshot that somebody wants: of one volume, or (a consistency group) of several at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// Its number, from the catalog, never used before.
    pub snapshot: SnapshotId,
    /// Its name: the part after the `@`.
    pub name: String,
    /// Its volumes, each once, at least one, at most [`stillpoint_ondisk::catalog::GROUP_MAX`].
    pub volumes: Vec<SnapshotVolume>,
    /// What is to be known of it from its first moment on.
    pub marks: Marks,
    /// Shards of the pool; all of them take part, a shard without objects with an empty share.
    pub shard_count: u16,
    /// How long answers may be held; past it the snapshot is aborted.
    pub hold_limit_ns: u64,
    /// How long a shard may take to prepare, persist or commit.
    pub step_limit_ns: u64,
}

/// What taking a snapshot wrote, on all shards together: records and rows of its own, not the rest of the pages that they lie in.
/// Zero if it is not known: a program before these figures took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Into the logs: the records of the cut, and those of its rows in the catalog, the commit record among them.
    pub log_bytes: u64,
    /// Into the directories, with the next checkpoint: the rows of the intermediate snapshots, and those of the catalog.
    pub metadata_bytes: u64,
}

impl Written {
    /// The same and what a row of figures says.
    #[must_use]
    pub fn and(self, head: &FiguresHead) -> Self {
        Self {
            log_bytes: self.log_bytes + head.log_bytes(),
            metadata_bytes: self.metadata_bytes + head.metadata_bytes(),
        }
    }
}

/// The committed union of all intermediate snapshots, with what it cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverallSnapshot {
    /// Its number.
    pub snapshot: SnapshotId,
    /// Its name: the part after the `@`.
    pub name: String,
    /// Its time stamp, given when the command reached the coordinator.
    pub time_stamp: TimeStamp,
    /// Its volumes.
    pub volumes: Vec<SnapshotVolume>,
    /// What is known of it beside.
    pub marks: Marks,
    /// The price on each shard: element `i` is shard `i`'s.
    pub holds: Vec<HoldFigures>,
    /// From the command to the moment when the last intermediate snapshot was durable.
    pub durable_ns: u64,
    /// What it wrote.
    pub written: Written,
}

impl OverallSnapshot {
    /// Answers held, over all shards.
    #[must_use]
    pub fn answers_held(&self) -> u64 {
        self.holds.iter().map(|hold| hold.answers_held).sum()
    }

    /// The longest time from a shard's cut to its release.
    #[must_use]
    pub fn hold_ns_max(&self) -> u64 {
        self.holds.iter().map(|hold| hold.hold_ns).max().unwrap_or(0)
    }

    /// The longest that any single answer was held.
    #[must_use]
    pub fn answer_held_ns_max(&self) -> u64 {
        self.holds
            .iter()
            .map(|hold| hold.answer_held_ns_max)
            .max()
            .unwrap_or(0)
    }
}

/// The steps of a snapshot, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Shards reserve what the cut needs.
    Prepare,
    /// Shards freeze their maps and hold answers.
    Cut,
    /// Shards let the held answers go.
    Release,
    /// Shards make their intermediate snapshots durable.
    Persist,
    /// Shard 0 makes the commit record durable.
    Commit,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Cut => "cut",
            Self::Release => "release",
            Self::Persist => "persist",
            Self::Commit => "commit",
        })
    }
}

/// Why there is no snapshot. No trace of it is left, or none will be left once the pool is opened again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// A shard said no.
    Refused {
        /// Which.
        shard: ShardIndex,
        /// At which step.
        step: Step,
        /// Why.
        reason: RefusedReason,
    },
    /// A shard failed at something.
    Failed {
        /// Which.
        shard: ShardIndex,
        /// At which step.
        step: Step,
        /// How.
        error: RequestError,
    },
    /// Answers would have been held for longer than the limit.
    HoldExpired {
        /// The shard that was waited for, or that released by itself.
        shard: ShardIndex,
        /// The limit.
        hold_limit_ns: u64,
    },
    /// A shard did not answer in time.
    Stalled {
        /// Which.
        shard: ShardIndex,
        /// At which step.
        step: Step,
        /// The limit.
        step_limit_ns: u64,
    },
    /// Too many snapshots are waiting their turn.
    Busy {
        /// How many may wait.
        queue_max: usize,
    },
    /// The commit record was asked for, but whether it became durable is not known: the snapshot exists if and
    /// only if it is there when the pool is opened the next time.
    InDoubt {
        /// Why it is not known.
        shard: ShardIndex,
        /// How long the commit record was waited for.
        step_limit_ns: u64,
    },
    /// The pool is being closed.
    ShuttingDown,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { shard, step, reason } => {
                write!(f, "shard {} refused to {step}: {}", shard.0, Reason(*reason))
            }
            Self::Failed { shard, step, error } => write!(f, "shard {} failed to {step}: {error}", shard.0),
            Self::HoldExpired { shard, hold_limit_ns } => write!(
                f,
                "shard {} was not ready within the hold limit of {} ms; all held answers were released",
                shard.0,
                *hold_limit_ns as f64 / 1e6
            ),
            Self::Stalled {
                shard,
                step,
                step_limit_ns,
            } => write!(
                f,
                "shard {} did not {step} within {} ms",
                shard.0,
                *step_limit_ns as f64 / 1e6
            ),
            Self::Busy { queue_max } => {
                write!(f, "{queue_max} snapshots are waiting their turn already")
            }
            Self::InDoubt { shard, step_limit_ns } => write!(
                f,
                "shard {} did not confirm the commit record within {} ms; whether the snapshot exists will be known when the pool is opened again",
                shard.0,
                *step_limit_ns as f64 / 1e6
            ),
            Self::ShuttingDown => f.write_str("the pool is being closed"),
        }
    }
}

impl std::error::Error for SnapshotError {}

struct Reason(RefusedReason);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            RefusedReason::NoSuchVolume(volume) => write!(f, "it has no volume {}", volume.0),
            RefusedReason::Busy => f.write_str("another snapshot of the volume is being taken"),
            RefusedReason::NoSpace => f.write_str("the pool is full"),
            RefusedReason::ShardStopped => f.write_str("it stopped writing after a device error"),
            RefusedReason::Aborted => f.write_str("it had aborted the snapshot already"),
        }
    }
}
