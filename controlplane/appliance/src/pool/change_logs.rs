//! Change log volumes: made, named by volumes, filled up, and emptied.
//!
//! The catalog says which there are and who names them; shards are told when a pool is opened, before anybody can write, and
//! whenever it changes. A shard that finds its part full says so. With `drop-oldest` its writes wait, and the oldest snapshots
//! of the volumes that name it are deleted one by one until no shard is short.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Pool, wall_ns};
use crate::api::model::{ChangeLogShardInfo, ChangeLogVolumeInfo, CreateChangeLog, SetVolume};
use crate::catalog::{Catalog, Change, ChangeLogVolume, Volume, has_volume};
use crate::error::{Error, Result};
use crate::events::EventKind as Told;
use crate::name;
use crate::pool::info::ShardFigures;
use stillpoint_coordinator::OverallSnapshot;
use stillpoint_ondisk::label::FEATURE_CLONES;
use stillpoint_processor::command::{Notice, WhenFull};
use stillpoint_processor::{BLOCK_BYTES, ChangeLogId, ShardCommand, ShardIndex, VolumeId};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// What every shard has of a change log volume at least: the largest part of a request finds room in it.
pub const PART_BYTES_MIN: u64 = 1 << 20;
/// A change log volume's size in bytes at most: 1 PiB.
pub const CHANGE_LOG_BYTES_MAX: u64 = 1 << 50;
/// Change log volumes of a pool at most.
pub const CHANGE_LOGS_MAX: usize = 256;
/// How long to wait until a snapshot between two others has been freed, before the next is dropped.
const FREED_LIMIT: Duration = Duration::from_secs(2);
/// How often that is looked at.
const FREED_PAUSE: Duration = Duration::from_millis(20);

/// What is going on with the change log volumes of a pool.
#[derive(Debug, Default)]
pub(super) struct ChangeLogs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Shards that said that their part is nearly full.
    high: BTreeMap<ChangeLogId, BTreeSet<ShardIndex>>,
    /// Where room is being made, and whether a shard has asked again since.
    dropping: BTreeMap<ChangeLogId, bool>,
    /// Where no snapshot could be dropped, and it was said.
    stuck: BTreeSet<ChangeLogId>,
}

impl ChangeLogs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Makes a change log volume.
    ///
    /// # Errors
    /// Usage for a bad name, size, device or policy; conflict if the name is taken.
    pub async fn create_change_log(&self, request: &CreateChangeLog) -> Result<()> {
        name::check("change log volume", &request.name)?;
        if request.name == "none" {
            return Err(Error::usage("none is no name for a change log volume")
                .hint("`volume set VOLUME --change-log none` takes a change log volume away"));
        }
        self.check_change_log_size(request.size_bytes)?;
        let devices = self.devices_of_change_log(&request.devices)?;
        let when_full = when_full(request.when_full.as_deref())?;
        let _gate = self.gate.write().await;
        {
            let catalog = self.catalog();
            if catalog.change_log(&request.name).is_some() {
                return Err(Error::conflict(format!(
                    "change log volume {} exists already",
                    request.name
                )));
            }
            if catalog.change_logs().count() >= CHANGE_LOGS_MAX {
                return Err(Error::conflict(format!(
                    "pool {} has {CHANGE_LOGS_MAX} change log volumes, which is the limit",
                    self.name()
                ))
                .hint("several volumes can name the same one"));
            }
        }
        self.set_feature(FEATURE_CLONES).await?;
        let log = ChangeLogVolume {
            id: ChangeLogId(self.number(Catalog::next_volume).await?.0),
            name: request.name.clone(),
            size_bytes: request.size_bytes,
            devices,
            when_full,
            created_ns: wall_ns(),
        };
        self.change([Change::put_change_log(&log)]).await?;
        self.catalog().put_change_log(log.clone());
        self.run_all(self.parts(&log)).await?;
        let text = format!("made, {} bytes, {}", log.size_bytes, word(log.when_full));
        self.tell(Told::ChangeLogCreated, &log.name, text);
        Ok(())
    }

    /// Gives a change log volume another size. If it holds more than that, it is full.
    ///
    /// # Errors
    /// Not found, usage for a bad size.
    pub async fn resize_change_log(&self, name: &str, size_bytes: u64) -> Result<()> {
        self.check_change_log_size(size_bytes)?;
        let _gate = self.gate.write().await;
        let log = ChangeLogVolume {
            size_bytes,
            ..self.change_log(name)?
        };
        self.change([Change::put_change_log(&log)]).await?;
        self.catalog().put_change_log(log.clone());
        self.change_logs.state().stuck.remove(&log.id);
        self.run_all(self.parts(&log)).await?;
        self.tell(
            Told::ChangeLogResized,
            name,
            format!("has {size_bytes} bytes now"),
        );
        Ok(())
    }

    /// Deletes a change log volume that no volume names.
    ///
    /// # Errors
    /// Not found, conflict if volumes name it.
    pub async fn delete_change_log(&self, name: &str) -> Result<()> {
        let _gate = self.gate.write().await;
        let id = self.change_log(name)?.id;
        {
            let catalog = self.catalog();
            let users: Vec<&str> = catalog
                .volumes_of_change_log(id)
                .map(|volume| volume.name.as_str())
                .collect();
            if !users.is_empty() {
                return Err(Error::conflict(format!(
                    "change log volume {name} is used by {}",
                    users.join(", ")
                ))
                .hint("give them another one first: stillpoint volume set VOLUME --change-log NAME|none"));
            }
        }
        self.change([Change::delete_change_log(id)]).await?;
        self.catalog().remove_change_log(id);
        self.run_all(self.every_shard(|_| ShardCommand::RemoveChangeLog { change_log: id }))
            .await?;
        {
            let mut state = self.change_logs.state();
            state.high.remove(&id);
            state.stuck.remove(&id);
        }
        self.tell(Told::ChangeLogDeleted, name, "deleted");
        Ok(())
    }

    /// Changes what can be set of a volume: its change log volume.
    ///
    /// # Errors
    /// Not found.
    pub async fn set_volume(&self, volume: &str, request: &SetVolume) -> Result<()> {
        let _gate = self.gate.write().await;
        let old = self.volume(volume)?;
        let change_log = self.find_change_log(request.change_log.as_deref())?;
        if change_log == old.change_log {
            return Ok(());
        }
        self.set_feature(FEATURE_CLONES).await?;
        let changed = Volume { change_log, ..old };
        self.change([Change::put_volume(&changed)]).await?;
        let before = self.catalog().shares_of_change_logs();
        self.catalog().put_volume(changed);
        let attached = self.attach_change_logs(&before).await;
        let text = match &request.change_log {
            Some(name) => format!("its change log volume is {name} now"),
            None => "has no change log volume any more".to_owned(),
        };
        self.tell(Told::VolumeSet, volume, text);
        attached.map_err(|error| half_done(&error, format_args!("volume {volume} is set")))
    }

    /// The change log volume of this name, if one is named.
    pub(super) fn find_change_log(&self, name: Option<&str>) -> Result<Option<ChangeLogId>> {
        name.map(|name| Ok(self.change_log(name)?.id)).transpose()
    }

    /// The change log volume of this name.
    ///
    /// # Errors
    /// Not found.
    pub fn change_log(&self, name: &str) -> Result<ChangeLogVolume> {
        let found = self.catalog().change_log(name).cloned();
        found.ok_or_else(|| no_change_log(name))
    }

    fn parts(&self, log: &ChangeLogVolume) -> Vec<(ShardIndex, ShardCommand)> {
        let part = |shard| ShardCommand::SetChangeLog {
            change_log: log.id,
            part: log.part(shard, self.shard_count()),
        };
        self.every_shard(part).collect()
    }

    /// Tells the shards of a pool that is being opened what the catalog says of change log volumes.
    pub(super) async fn tell_change_logs(&self) -> Result<()> {
        let logs: Vec<ChangeLogVolume> = self.catalog().change_logs().cloned().collect();
        for log in &logs {
            self.run_all(self.parts(log)).await?;
        }
        self.attach_change_logs(&BTreeMap::new()).await
    }

    /// Tells the shards what has become different: `before` is what they know.
    pub(super) async fn attach_change_logs(&self, before: &BTreeMap<VolumeId, ChangeLogId>) -> Result<()> {
        let after = self.catalog().shares_of_change_logs();
        let gone = before.keys().filter(|shares| !after.contains_key(shares));
        let gone = gone.map(|&shares| (shares, None));
        let new = after
            .iter()
            .filter(|&(shares, log)| before.get(shares) != Some(log));
        let new = new.map(|(&shares, &log)| (shares, Some(log)));
        let attach = |(volume, change_log)| {
            self.every_shard(move |_| ShardCommand::AttachChangeLog { volume, change_log })
        };
        let commands: Vec<_> = gone.chain(new).flat_map(attach).collect();
        for (shard, event) in self.ask_all(commands).await? {
            // A share that is missing on a shard was reported when the pool was opened.
            if event != stillpoint_processor::command::EventKind::Done {
                tracing::warn!(
                    pool = self.name(),
                    shard = shard.0,
                    "a share has no change log volume"
                );
            }
        }
        Ok(())
    }

    fn check_change_log_size(&self, size_bytes: u64) -> Result<()> {
        let least = u64::from(self.shard_count()) * PART_BYTES_MIN;
        if !size_bytes.is_multiple_of(BLOCK) || !(least..=CHANGE_LOG_BYTES_MAX).contains(&size_bytes) {
            return Err(Error::usage(format!(
                "{size_bytes} bytes is no size for a change log volume of pool {}: multiples of {BLOCK} from {least} to \
                 {CHANGE_LOG_BYTES_MAX} are possible",
                self.name()
            ))
            .hint("each of its shards has an equal part, of 1 MiB at least"));
        }
        Ok(())
    }

    fn devices_of_change_log(&self, paths: &[String]) -> Result<u64> {
        let all: Vec<String> = (self.devices.paths.iter())
            .map(|path| path.display().to_string())
            .collect();
        let mut devices = 0;
        for path in paths {
            let Some(device) = all.iter().position(|known| known == path) else {
                return Err(
                    Error::usage(format!("{path} is no device of pool {}", self.name()))
                        .hint(format!("its devices are {}", all.join(", "))),
                );
            };
            devices |= 1 << device;
        }
        Ok(devices)
    }

    /// What a shard says of a change log volume.
    pub(crate) fn change_log_notice(self: &Arc<Self>, shard: ShardIndex, notice: &Notice) {
        match *notice {
            Notice::ChangeLogHigh { change_log, high } => self.change_log_high(shard, change_log, high),
            Notice::ChangeLogFull { change_log } => {
                let Some(log) = self.catalog().change_log_by_id(change_log).cloned() else {
                    return;
                };
                match log.when_full {
                    WhenFull::FailWrites => self.tell(
                        Told::ChangeLogFull,
                        &log.name,
                        format!("full on shard {}: writes fail until there is room", shard.0),
                    ),
                    WhenFull::DropOldest => self.start_dropping(change_log),
                }
            }
            _ => unreachable!("not about change log volumes"),
        }
    }

    fn change_log_high(&self, shard: ShardIndex, change_log: ChangeLogId, high: bool) {
        let is_first = {
            let mut state = self.change_logs.state();
            let shards = state.high.entry(change_log).or_default();
            let none = shards.is_empty();
            if high {
                shards.insert(shard);
            } else {
                shards.remove(&shard);
                state.stuck.remove(&change_log);
            }
            none && high
        };
        let Some(log) = self.catalog().change_log_by_id(change_log).cloned() else {
            return;
        };
        if is_first {
            let text = format!("more than 80% of its part on shard {} is used", shard.0);
            self.tell(Told::ChangeLogHigh, &log.name, text);
        }
    }

    fn start_dropping(self: &Arc<Self>, change_log: ChangeLogId) {
        let goes_on = self.change_logs.state().dropping.insert(change_log, false);
        if goes_on.is_some() {
            self.change_logs.state().dropping.insert(change_log, true);
            return;
        }
        let pool = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                if let Err(error) = pool.make_room(change_log).await {
                    tracing::warn!(
                        pool = pool.name(),
                        "no room is made in a change log volume: {error}"
                    );
                }
                let mut state = pool.change_logs.state();
                match state.dropping.get_mut(&change_log) {
                    Some(again) if *again && !pool.tasks.are_ending() => *again = false,
                    _ => {
                        state.dropping.remove(&change_log);
                        return;
                    }
                }
            }
        });
    }

    /// Drops snapshots until no shard is short.
    async fn make_room(&self, change_log: ChangeLogId) -> Result<()> {
        while !self.tasks.are_ending() && self.is_short(change_log).await? {
            if let Some(is_oldest) = self.drop_oldest(change_log).await? {
                self.change_logs.state().stuck.remove(&change_log);
                if !is_oldest {
                    // What it held between two others comes free bit by bit.
                    self.wait_for_room(change_log).await?;
                }
                continue;
            }
            self.run_all(self.every_shard(|_| ShardCommand::RefuseChangeLog { change_log }))
                .await?;
            let name = self
                .catalog()
                .change_log_by_id(change_log)
                .map(|log| log.name.clone());
            if let Some(name) = name.filter(|_| self.change_logs.state().stuck.insert(change_log)) {
                self.tell(
                    Told::ChangeLogFull,
                    &name,
                    "full, and no snapshot can be dropped: all that there are are locked, exported or have clones; writes \
                     fail until there is room",
                );
            }
        }
        Ok(())
    }

    async fn is_short(&self, change_log: ChangeLogId) -> Result<bool> {
        let figures = self.figures().await?;
        let mut parts = figures.iter().flat_map(|shard| &shard.change_logs);
        Ok(parts.any(|part| part.change_log == change_log && part.is_short))
    }

    async fn wait_for_room(&self, change_log: ChangeLogId) -> Result<()> {
        let end = tokio::time::Instant::now() + FREED_LIMIT;
        while tokio::time::Instant::now() < end && !self.tasks.are_ending() {
            if !self.is_short(change_log).await? {
                break;
            }
            tokio::time::sleep(FREED_PAUSE).await;
        }
        Ok(())
    }

    /// Deletes the oldest snapshot that may go; gives whether it was the oldest of all. `None`: none may go.
    async fn drop_oldest(&self, change_log: ChangeLogId) -> Result<Option<bool>> {
        let _gate = self.gate.write().await;
        let now = self.time_of_locks();
        let (found, is_oldest, log, subject) = {
            let catalog = self.catalog();
            let Some(log) = catalog.change_log_by_id(change_log) else {
                return Ok(None);
            };
            let users: Vec<VolumeId> = catalog
                .volumes_of_change_log(change_log)
                .map(|volume| volume.id)
                .collect();
            let is_user = |snapshot: &&OverallSnapshot| users.iter().any(|&id| has_volume(snapshot, id));
            let mut all: Vec<&OverallSnapshot> = catalog.snapshots().filter(is_user).collect();
            all.sort_by_key(|snapshot| snapshot.time_stamp);
            let may_go = |snapshot: &&OverallSnapshot| {
                catalog.check_removal(snapshot, None, now).is_ok()
                    && catalog.clones_of(snapshot.snapshot).next().is_none()
            };
            let Some(position) = all.iter().position(may_go) else {
                return Ok(None);
            };
            let found = all[position].clone();
            let volume = found.volumes.iter().find(|of| users.contains(&of.owner));
            let volume = volume.and_then(|of| catalog.volume_by_id(of.owner));
            let subject = format!(
                "{}@{}",
                volume.map_or("?", |volume| volume.name.as_str()),
                found.name
            );
            (found, position == 0, log.name.clone(), subject)
        };
        self.remove_snapshot(&found).await?;
        let text = format!("dropped: change log volume {log} is full");
        self.tell(Told::SnapshotDropped, &subject, text);
        Ok(Some(is_oldest))
    }

    /// The pool's change log volumes, by number, with what they hold.
    #[must_use]
    pub fn change_log_infos(&self, figures: &ShardFigures) -> Vec<ChangeLogVolumeInfo> {
        let catalog = self.catalog();
        let infos = catalog.change_logs();
        infos
            .map(|log| self.change_log_info(&catalog, log, figures))
            .collect()
    }

    fn change_log_info(
        &self,
        catalog: &Catalog,
        log: &ChangeLogVolume,
        figures: &ShardFigures,
    ) -> ChangeLogVolumeInfo {
        let shards: Vec<ChangeLogShardInfo> = (0u16..)
            .zip(figures)
            .filter_map(|(shard, status)| {
                let part = status.change_logs.iter().find(|part| part.change_log == log.id)?;
                Some(ChangeLogShardInfo {
                    shard,
                    processor: self.owners[usize::from(shard)].0,
                    limit_bytes: part.limit_blocks * BLOCK,
                    used_bytes: part.used_blocks * BLOCK,
                    waiting: part.waiting,
                    elsewhere_bytes: part.elsewhere_blocks * BLOCK,
                })
            })
            .collect();
        let paths = self.devices.paths.iter().enumerate();
        let named = paths.filter(|(device, _)| log.devices >> device & 1 == 1);
        ChangeLogVolumeInfo {
            name: log.name.clone(),
            pool: self.name().to_owned(),
            id: log.id.0,
            size_bytes: log.size_bytes,
            used_bytes: shards.iter().map(|shard| shard.used_bytes).sum(),
            when_full: word(log.when_full).to_owned(),
            devices: named.map(|(_, path)| path.display().to_string()).collect(),
            volumes: catalog
                .volumes_of_change_log(log.id)
                .map(|volume| volume.name.clone())
                .collect(),
            created_ns: log.created_ns,
            shards,
        }
    }
}

/// What was to be done is durable, but the shards could not be told of the change log volumes that belong to it.
pub(super) fn half_done(error: &Error, done: impl std::fmt::Display) -> Error {
    let text = format!(
        "{done}, but its change log volume is not told to all shards: {}",
        error.message
    );
    Error::new(error.kind, text).hint("close the pool and open it again")
}

/// There is no such change log volume.
#[must_use]
pub fn no_change_log(name: &str) -> Error {
    Error::not_found(format!("there is no change log volume {name}"))
        .hint("stillpoint changelog list shows all")
}

fn when_full(text: Option<&str>) -> Result<WhenFull> {
    match text {
        None | Some("fail-writes") => Ok(WhenFull::FailWrites),
        Some("drop-oldest") => Ok(WhenFull::DropOldest),
        Some(other) => Err(Error::usage(format!(
            "{other:?} is no policy for a full change log volume: fail-writes and drop-oldest are possible"
        ))),
    }
}

/// The policy as the API has it.
fn word(when_full: WhenFull) -> &'static str {
    match when_full {
        WhenFull::FailWrites => "fail-writes",
        WhenFull::DropOldest => "drop-oldest",
    }
}
