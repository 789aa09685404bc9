//! What happened, numbered: a bounded memory of events that the API shows and that clients can wait on.
//!
//! Whoever does something that an operator may want to know of says so once, with [`Events::tell`]; it comes into the
//! log and into the memory. What is routine (a snapshot each second) cannot push out what went wrong: warnings and
//! errors have a ring of their own, and so has what shards do beside requests (checkpoints, freeing): it is only shown to
//! those who ask for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::api::model::{EventInfo, EventList};
use crate::pool::wall_ns;

/// Events of the level info that are kept.
pub const INFO_MAX: usize = 4096;
/// Events of what shards do beside requests that are kept.
pub const BACKGROUND_MAX: usize = 4096;
/// Warnings and errors that are kept.
pub const TROUBLE_MAX: usize = 1024;
/// Events in one answer at most.
pub const LIMIT_MAX: usize = 1000;
/// Events in one answer, unless the question says otherwise.
pub const LIMIT_DEFAULT: usize = 100;
/// How long a question may wait for an event at most.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something happened that was asked for.
    Info,
    /// Somebody should look at it some time.
    Warning,
    /// Something is lost, or does not work.
    Error,
}

impl Level {
    /// The word in the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $level:ident;)*) => {
        /// What kind of event it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum EventKind {
            $($(#[$doc])* $name,)*
        }

        impl EventKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word in the API; it never changes.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// How much it matters.
            #[must_use]
            pub fn level(self) -> Level {
                match self {
                    $(Self::$name => Level::$level,)*
                }
            }
        }
    };
}

kinds! {
    /// A pool is open.
    PoolOpened = "pool_opened", Info;
    /// A pool was closed.
    PoolClosed = "pool_closed", Info;
    /// A pool that was open before could not be opened.
    PoolNotOpened = "pool_not_opened", Error;
    /// What an operator should know about how a pool was opened.
    PoolRemark = "pool_remark", Warning;
    /// A volume was made.
    VolumeCreated = "volume_created", Info;
    /// A volume has another size.
    VolumeResized = "volume_resized", Info;
    /// What can be set of a volume was set.
    VolumeSet = "volume_set", Info;
    /// A change log volume was made.
    ChangeLogCreated = "changelog_created", Info;
    /// A change log volume has another size.
    ChangeLogResized = "changelog_resized", Info;
    /// A change log volume was deleted.
    ChangeLogDeleted = "changelog_deleted", Info;
    /// A change log volume is nearly full.
    ChangeLogHigh = "changelog_high", Warning;
    /// A change log volume is full, and writes fail.
    ChangeLogFull = "changelog_full", Warning;
    /// A snapshot was deleted because a change log volume was full.
    SnapshotDropped = "snapshot_dropped", Warning;
    /// A volume was made of a snapshot.
    VolumeCloned = "volume_cloned", Info;
    /// A clone took over the snapshots that it has in common with its origin.
    VolumePromoted = "volume_promoted", Info;
    /// A volume is what it was at a snapshot.
    VolumeRolledBack = "volume_rolled_back", Info;
    /// A volume was deleted.
    VolumeDeleted = "volume_deleted", Info;
    /// A snapshot was taken.
    SnapshotTaken = "snapshot_taken", Info;
    /// A snapshot was asked for and could not be taken.
    SnapshotFailed = "snapshot_failed", Warning;
    /// A snapshot was deleted because somebody asked for it.
    SnapshotDeleted = "snapshot_deleted", Info;
    /// A shard has freed what only a deleted snapshot had.
    SnapshotFreed = "snapshot_freed", Info;
    /// A shard has made a checkpoint.
    Checkpointed = "checkpointed", Info;
    /// A snapshot was locked, or locked for longer.
    SnapshotLocked = "snapshot_locked", Info;
    /// A named group of volumes was made.
    GroupCreated = "group_created", Info;
    /// A named group was deleted.
    GroupDeleted = "group_deleted", Info;
    /// A schedule was made.
    ScheduleCreated = "schedule_created", Info;
    /// A schedule was paused.
    SchedulePaused = "schedule_paused", Info;
    /// A schedule that was paused goes on.
    ScheduleResumed = "schedule_resumed", Info;
    /// A schedule was deleted.
    ScheduleDeleted = "schedule_deleted", Info;
    /// A schedule took a snapshot.
    ScheduleRan = "schedule_ran", Info;
    /// A schedule was due and no snapshot was taken.
    ScheduleMissed = "schedule_missed", Warning;
    /// A schedule could not take a snapshot.
    ScheduleFailed = "schedule_failed", Warning;
    /// A schedule deleted a snapshot that its rules no longer keep.
    SnapshotPruned = "snapshot_pruned", Info;
    /// A schedule would have deleted a snapshot, but something needs it.
    SnapshotKept = "snapshot_kept", Warning;
    /// An export was made.
    ExportCreated = "export_created", Info;
    /// An export was withdrawn.
    ExportDeleted = "export_deleted", Info;
    /// A block or page did not match its checksum when it was read.
    BlockCorrupt = "block_corrupt", Error;
    /// A block or page that was damaged on one side of a mirror was written to it again from the other.
    BlockRepaired = "block_repaired", Warning;
    /// A block or page that is damaged on one side of a mirror could not be written to it again.
    BlockNotRepaired = "block_not_repaired", Warning;
    /// A scrub was begun.
    ScrubStarted = "scrub_started", Info;
    /// A scrub was paused.
    ScrubPaused = "scrub_paused", Info;
    /// A scrub goes on that was paused, or was running when its pool was closed or the daemon ended.
    ScrubResumed = "scrub_resumed", Info;
    /// A scrub has looked at everything, or was stopped.
    ScrubEnded = "scrub_ended", Info;
    /// A scrub found a damaged block or page.
    ScrubDamage = "scrub_damage", Error;
    /// A device has not answered for so long that clients may have noticed.
    DeviceStalled = "device_stalled", Warning;
    /// All that it had not answered has ended, well or not.
    DeviceStallEnded = "device_stall_ended", Info;
    /// A device of an open pool is gone.
    DeviceLost = "device_lost", Error;
    /// A device that was gone is there again.
    DeviceReturned = "device_returned", Info;
    /// A device of a pool has another size.
    DeviceResized = "device_resized", Warning;
    /// A side of a mirror failed; the other one has everything.
    MirrorSideOut = "mirror_side_out", Error;
    /// Neither side of a device is left.
    MirrorLost = "mirror_lost", Error;
    /// A side of a mirror has everything again.
    MirrorJoined = "mirror_joined", Info;
    /// Something that a side lacks cannot be read from the other.
    MirrorNotCopied = "mirror_not_copied", Error;
    /// A shard stopped writing after a device failed.
    ShardStopped = "shard_stopped", Error;
}

impl EventKind {
    /// Whether there may be some each second: the log has it only at the level debug.
    #[must_use]
    pub fn is_routine(self) -> bool {
        matches!(
            self,
            Self::SnapshotTaken | Self::SnapshotDeleted | Self::ScheduleRan | Self::SnapshotPruned
        ) || self.is_background()
    }

    /// Whether it only says what shards do beside requests: it is shown to those who ask for it, and wakes nobody.
    #[must_use]
    pub fn is_background(self) -> bool {
        matches!(self, Self::SnapshotFreed | Self::Checkpointed)
    }
}

/// When something happened, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    /// When it began, if it took time.
    pub began_ns: Option<u64>,
    /// When it had happened.
    pub time_ns: u64,
}

impl When {
    /// It has just happened, at once.
    #[must_use]
    pub fn now() -> Self {
        Self {
            began_ns: None,
            time_ns: wall_ns(),
        }
    }

    /// It has just ended, and took from then on; no longer, if the clock was set back.
    #[must_use]
    pub fn since(began_ns: u64) -> Self {
        let time_ns = wall_ns();
        Self {
            began_ns: Some(began_ns.min(time_ns)),
            time_ns,
        }
    }
}

/// The memory of events.
#[derive(Debug)]
pub struct Events {
    rings: Mutex<Rings>,
    /// The number of the newest; [`ENDED`] when nobody is to wait any more.
    newest: watch::Sender<u64>,
    started_ns: u64,
}

const ENDED: u64 = u64::MAX;

#[derive(Debug, Default)]
struct Rings {
    given: u64,
    info: VecDeque<EventInfo>,
    trouble: VecDeque<EventInfo>,
    background: VecDeque<EventInfo>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            rings: Mutex::default(),
            newest: watch::Sender::new(0),
            started_ns: wall_ns(),
        }
    }
}

impl Events {
    /// Remembers an event, logs it, and wakes those who wait for one. `pool` is the pool's name, `subject` what it is
    /// about within the pool, as the command line writes it (`vol`, `vol@snap`, `shard 3`), empty for the pool itself.
    pub fn tell(&self, kind: EventKind, pool: &str, subject: &str, text: impl Into<String>) {
        self.tell_of(kind, When::now(), pool, subject, text);
    }

    /// The same, of something whose time is known better.
    pub fn tell_of(&self, kind: EventKind, when: When, pool: &str, subject: &str, text: impl Into<String>) {
        let text = text.into();
        let word = kind.word();
        match kind.level() {
            Level::Error => tracing::error!(pool, subject, "{word}: {text}"),
            Level::Warning => tracing::warn!(pool, subject, "{word}: {text}"),
            Level::Info if kind.is_routine() => tracing::debug!(pool, subject, "{word}: {text}"),
            Level::Info => tracing::info!(pool, subject, "{word}: {text}"),
        }
        let mut rings = self.rings();
        rings.given += 1;
        let number = rings.given;
        let event = EventInfo {
            number,
            began_ns: when.began_ns,
            time_ns: when.time_ns,
            level: kind.level().word().to_owned(),
            kind: word.to_owned(),
            pool: pool.to_owned(),
            subject: subject.to_owned(),
            text,
        };
        let (ring, max) = match kind.level() {
            _ if kind.is_background() => (&mut rings.background, BACKGROUND_MAX),
            Level::Info => (&mut rings.info, INFO_MAX),
            Level::Warning | Level::Error => (&mut rings.trouble, TROUBLE_MAX),
        };
        if ring.len() == max {
            ring.pop_front();
        }
        ring.push_back(event);
        drop(rings);
        if kind.is_background() {
            return;
        }
        self.newest.send_if_modified(|newest| {
            let later = *newest < number;
            if later {
                *newest = number;
            }
            later
        });
    }

    /// Events in their order: the first `limit` after number `after`, or the last `limit` if that is not given. An
    /// `after` beyond the newest event is from an earlier life of the daemon and counts as 0. With `background` also what
    /// shards do beside requests.
    #[must_use]
    pub fn list(&self, after: Option<u64>, limit: usize, background: bool) -> EventList {
        let rings = self.rings();
        let from = after.filter(|&after| after <= rings.given).unwrap_or(0);
        let newer = |ring: &VecDeque<EventInfo>| {
            let begin = ring.partition_point(|event| event.number <= from);
            ring.range(begin..).take(limit).cloned().collect::<Vec<_>>()
        };
        let newest = |ring: &VecDeque<EventInfo>| {
            let begin = ring.len().saturating_sub(limit);
            ring.range(begin..).cloned().collect::<Vec<_>>()
        };
        let wanted = [
            Some(&rings.info),
            Some(&rings.trouble),
            background.then_some(&rings.background),
        ];
        let of_each = wanted.into_iter().flatten().map(|ring| match after {
            Some(_) => newer(ring),
            None => newest(ring),
        });
        let mut events: Vec<EventInfo> = of_each.flatten().collect();
        events.sort_by_key(|event| event.number);
        match after {
            Some(_) => events.truncate(limit),
            None => drop(events.drain(..events.len().saturating_sub(limit))),
        }
        EventList {
            events,
            last: rings.given,
            started_ns: self.started_ns,
        }
    }

    /// Waits until there is an event after number `after`, but for no longer than `patience` (at most [`WAIT_MAX`]).
    pub async fn wait(&self, after: u64, patience: Duration) {
        let mut newest = self.newest.subscribe();
        if after > self.rings().given {
            return;
        }
        let there = newest.wait_for(|&newest| newest > after);
        // Both ends of the wait mean the same: look now.
        let _ = tokio::time::timeout(patience.min(WAIT_MAX), there).await;
    }

    /// Nobody waits any more: the daemon stops.
    pub fn end_waiting(&self) {
        self.newest.send_replace(ENDED);
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        // A panic elsewhere does not make the events untrue.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
