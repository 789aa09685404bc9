//! One open pool as the control plane sees it: its catalog, and the way to its shards.
//!
//! Changes that concern the shape of things (volumes, deletions) take the gate alone; snapshots share it, so that
//! a volume does not vanish or change its size while it is being cut.

mod change_logs;
mod changes;
mod clones;
mod deletions;
mod exports;
mod groups;
mod info;
mod locks;
mod losses;
mod mirrors;
mod schedule_runs;
mod schedules;
mod scrub;
mod snapshots;
mod stalls;
mod tasks;
#[cfg(test)]
mod tests;
mod volumes;
mod wishes;

pub use change_logs::no_change_log;
pub use changes::{ChangedRange, Changes, Comparison};
pub use exports::no_export;
pub use groups::{PREFIX as GROUP_PREFIX, no_group};
pub use info::ShardFigures;
pub use schedules::no_schedule;
pub use volumes::no_volume;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::oneshot;

use crate::catalog::{Catalog, Change, reconcile};
use crate::error::{Error, Result};
use crate::events::{EventKind as Happening, Events, When};
use crate::label::PoolDevices;
use crate::mailbox::{
    MAILBOX_MAX, Mailbox, MailboxError, PoolIndex, ProcessorIndex, RecoveredShard, ToProcessor,
};
use crate::state::MirrorNotes;
use stillpoint_hw::device::PoolFiles;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::{ShardCommand, ShardIndex, TimeStamp};

/// Commands of one change that wait in mailboxes at the same time: a mailbox that is full refuses, and a change may be of
/// any number of snapshots.
const COMMANDS_WAITING_MAX: usize = MAILBOX_MAX / 4;

/// An open pool.
#[derive(Debug)]
pub struct Pool {
    /// Its place.
    pub index: PoolIndex,
    /// What its labels say.
    pub devices: PoolDevices,
    /// Its devices, claimed.
    pub files: Arc<PoolFiles>,
    /// The owner of every shard.
    pub owners: Vec<ProcessorIndex>,
    /// What an operator should know about how it was opened.
    pub remarks: Vec<String>,
    /// How long the slowest shard took to recover.
    pub recovery_ns: u64,
    mailboxes: Arc<[Mailbox]>,
    events: Arc<Events>,
    catalog: Mutex<Catalog>,
    gate: tokio::sync::RwLock<()>,
    /// Held while a number is taken, until the counters that cover it are durable.
    numbers: tokio::sync::Mutex<()>,
    /// A snapshot was locked.
    locked: tokio::sync::Notify,
    tasks: tasks::Tasks,
    change_logs: change_logs::ChangeLogs,
    wishes: wishes::Wishes,
    scrubs: scrub::Scrubs,
    losses: losses::Losses,
    stalls: stalls::Stalls,
    sides: Option<mirrors::Sides>,
    notes: Arc<MirrorNotes>,
    runners: Mutex<BTreeMap<u64, Arc<schedule_runs::Runner>>>,
    /// For its tasks; set when they start.
    itself: OnceLock<Weak<Self>>,
}

/// What a pool is made of when its shards are open.
#[derive(Debug)]
pub struct OpenedPool {
    /// Its place.
    pub index: PoolIndex,
    /// What its labels say.
    pub devices: PoolDevices,
    /// Its devices, claimed.
    pub files: Arc<PoolFiles>,
    /// The owner of every shard.
    pub owners: Vec<ProcessorIndex>,
    /// What the shards brought back, in order.
    pub shards: Vec<RecoveredShard>,
    /// What may be copied to a side of a mirror that lacks something; 0: as much as the devices can.
    pub resync_bytes_per_s: u64,
    /// What is known of mirrors that labels cannot say.
    pub notes: Arc<MirrorNotes>,
    /// What its mirrors tell of sides that were there from the start carries this number.
    pub first_pass: u64,
}

impl Pool {
    /// Reads the catalog, and mends what a crash left behind.
    ///
    /// # Errors
    /// If the catalog cannot be read, or a shard cannot do what mends it.
    pub async fn start(opened: OpenedPool, mailboxes: Arc<[Mailbox]>, events: Arc<Events>) -> Result<Self> {
        let OpenedPool {
            index,
            devices,
            files,
            owners,
            shards,
            resync_bytes_per_s,
            notes,
            first_pass,
        } = opened;
        let shard_count = devices.layout.shard_count;
        let rows = shards
            .first()
            .map(|shard| shard.catalog.clone())
            .unwrap_or_default();
        let (mut catalog, left_over) = Catalog::load(&rows, shard_count)?;
        let mending = reconcile(&mut catalog, &shards);
        let told = shards.iter().flat_map(|shard| {
            shard
                .remarks
                .iter()
                .map(move |remark| format!("shard {}: {remark}", shard.shard.0))
        });
        let of_labels = devices.remarks.iter().cloned();
        let told_by_catalog = mending.remarks.into_iter().chain(mending.damage);
        let behind = clock_remark(catalog.newest_time_stamp(), wall_ns());
        let behind_locks = (catalog.lock_end() > 0)
            .then(|| lock_remark(catalog.saw_time(0), wall_ns()))
            .flatten();
        let remarks = of_labels
            .chain(told)
            .chain(told_by_catalog)
            .chain(behind)
            .chain(behind_locks)
            .collect();
        let sides = mirrors::Sides::new(&devices, resync_bytes_per_s, first_pass);
        let pool = Self {
            index,
            devices,
            files,
            owners,
            remarks,
            recovery_ns: shards.iter().map(|shard| shard.recovery_ns).max().unwrap_or(0),
            mailboxes,
            events,
            catalog: Mutex::new(catalog),
            gate: tokio::sync::RwLock::new(()),
            numbers: tokio::sync::Mutex::new(()),
            locked: tokio::sync::Notify::new(),
            tasks: tasks::Tasks::default(),
            change_logs: change_logs::ChangeLogs::default(),
            wishes: wishes::Wishes::default(),
            scrubs: scrub::Scrubs::default(),
            losses: losses::Losses::default(),
            stalls: stalls::Stalls::default(),
            sides,
            notes,
            runners: Mutex::default(),
            itself: OnceLock::new(),
        };
        let now = pool.time_of_locks();
        let time = (pool.catalog().lock_end() > 0).then(|| Change::put_highest_time(now));
        pool.change(left_over.into_iter().chain(mending.changes).chain(time))
            .await?;
        pool.run_all(mending.commands).await?;
        pool.tell_change_logs().await?;
        pool.restore_scrubs().await?;
        Ok(pool)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.devices.name
    }

    /// Says that something happened in this pool; see [`Events::tell`].
    pub(crate) fn tell(&self, kind: Happening, subject: &str, text: impl Into<String>) {
        self.events.tell(kind, self.name(), subject, text);
    }

    /// The same, of something that took time.
    pub(crate) fn tell_of(&self, kind: Happening, when: When, subject: &str, text: impl Into<String>) {
        self.events.tell_of(kind, when, self.name(), subject, text);
    }

    /// Its shards.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.devices.layout.shard_count
    }

    /// Waits until no change and no snapshot is going on, and lets none begin while the guard lives.
    pub async fn quiet(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }

    /// The catalog. Never held across an await.
    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        // A panic elsewhere does not make the rows untrue.
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self, shard: ShardIndex) -> &Mailbox {
        &self.mailboxes[usize::from(self.owners[usize::from(shard.0)].0)]
    }

    /// Gives a command to a shard; the receiver gets its event.
    fn send(
        &self,
        shard: ShardIndex,
        command: ShardCommand,
    ) -> Result<oneshot::Receiver<EventKind>, MailboxError> {
        let (reply, answer) = oneshot::channel();
        self.owner(shard).send(ToProcessor::Shard {
            pool: self.index,
            shard,
            command,
            reply,
        })?;
        Ok(answer)
    }

    /// Gives these commands to these shards, in order and many at a time, and waits until all are done.
    ///
    /// # Errors
    /// The first that failed; the others were waited for all the same.
    async fn run_all(&self, commands: impl IntoIterator<Item = (ShardIndex, ShardCommand)>) -> Result<()> {
        self.ask_all(commands)
            .await?
            .into_iter()
            .try_for_each(|(shard, kind)| match kind {
                EventKind::Done => Ok(()),
                EventKind::Failed(error) => Err(self.failed(shard, error)),
                other => Err(Error::failure(format!("shard {} answered {other:?}", shard.0))),
            })
    }

    /// The same, and gives the events.
    async fn ask_all(
        &self,
        commands: impl IntoIterator<Item = (ShardIndex, ShardCommand)>,
    ) -> Result<Vec<(ShardIndex, EventKind)>> {
        let mut commands = commands.into_iter();
        let mut waiting = VecDeque::new();
        let mut events = Vec::new();
        let mut failure = None;
        loop {
            let room = COMMANDS_WAITING_MAX - waiting.len();
            for (shard, command) in commands.by_ref().take(room) {
                waiting.push_back((shard, self.send(shard, command)));
            }
            let Some((shard, answer)) = waiting.pop_front() else {
                break;
            };
            let event = match answer {
                Ok(answer) => answer.await.map_err(|_| MailboxError::Ended),
                Err(error) => Err(error),
            };
            match event {
                Ok(event) => events.push((shard, event)),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            None => Ok(events),
            Some(error) => Err(Error::from(error).while_doing(format_args!("pool {}", self.name()))),
        }
    }

    /// The same command for every shard.
    fn every_shard(
        &self,
        command: impl Fn(ShardIndex) -> ShardCommand,
    ) -> impl Iterator<Item = (ShardIndex, ShardCommand)> {
        (0..self.shard_count())
            .map(ShardIndex)
            .map(move |shard| (shard, command(shard)))
    }

    /// Makes these changes of the catalog durable, in order.
    async fn change(&self, changes: impl IntoIterator<Item = Change>) -> Result<()> {
        let commands: Vec<_> = changes
            .into_iter()
            .map(|change| (ShardIndex(0), change.command()))
            .collect();
        self.run_all(commands).await
    }

    /// Takes a number that nothing has had before; durable before it is given out.
    async fn number<N>(&self, take: impl Fn(&mut Catalog) -> (N, Option<Change>)) -> Result<N> {
        let _numbers = self.numbers.lock().await;
        let (number, counters) = take(&mut self.catalog());
        if let Err(error) = self.change(counters).await {
            self.catalog().forget_reserved_numbers();
            return Err(error);
        }
        Ok(number)
    }

    fn failed(&self, shard: ShardIndex, error: stillpoint_processor::RequestError) -> Error {
        Error::from(error).while_doing(format_args!("pool {}, shard {}", self.name(), shard.0))
    }
}

/// What an operator should know if the clock is behind the newest snapshot.
fn clock_remark(newest: TimeStamp, now_ns: u64) -> Option<String> {
    let behind_ns = newest.0.checked_sub(now_ns)?;
    Some(format!(
        "the clock is {} s behind the newest snapshot: it was set back, or had been ahead; time stamps go on from that \
         snapshot's",
        behind_ns / 1_000_000_000
    ))
}

/// What an operator should know if the clock is behind the time that locks end by.
fn lock_remark(highest_ns: u64, now_ns: u64) -> Option<String> {
    let behind_ns = highest_ns.checked_sub(now_ns)?;
    Some(format!(
        "the clock is {} s behind the highest time that this pool has seen: locks end by the highest time",
        behind_ns / 1_000_000_000
    ))
}

/// A point in time in UTC, for messages.
pub(crate) fn time_text(ns: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(ns)) {
        Ok(stamp) => format!("{stamp:.0}"),
        Err(_) => format!("{ns} ns after 1970"),
    }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn wall_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
