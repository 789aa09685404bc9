//! Change log volumes: made, resized, named by volumes and taken away again, filled, and emptied when they drop the oldest
//! snapshots. Shards keep nothing of them on their devices: after a recovery they are told what the rows say.
//!
//! In silence what every shard counts is compared with its maps on the devices ([`World::check_change_logs`]).

use std::collections::{BTreeMap, BTreeSet};

use stillpoint_ondisk::catalog::{self, ChangeLogHead, Key, Value};
use stillpoint_processor::command::{ChangeLogPart, WhenFull};
use stillpoint_processor::{ChangeLogId, ShardCommand, ShardIndex, VolumeId};

use super::jobs::{Job, Purpose, Stage};
use super::{Checked, State, World, broken};
use crate::rows::Rows;

/// Change log volumes at most.
const CHANGE_LOGS_MAX: usize = 2;

/// A change log volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeLog {
    state: State,
    /// Blocks that each shard's part may hold.
    part_blocks: u64,
    /// The size that was asked for, if it is being changed.
    becomes: Option<u64>,
    /// When it is full the oldest snapshots go; if not, writes fail.
    drops: bool,
}

/// What is done about a change log volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogJob {
    /// It is made, or gets another size.
    Put(u32),
    /// It goes.
    Delete(u32),
    /// A volume names it, or none (0).
    Name {
        /// The volume.
        volume: u32,
        /// The change log volume.
        change_log: u32,
    },
    /// Whether a shard is short of room, and what can be dropped then.
    MakeRoom(u32),
    /// Shards are told what they have to know.
    Tell,
}

impl World {
    /// Makes, changes, names or deletes one.
    pub(super) fn operate_change_log(&mut self, ready: &[u32]) {
        let there: Vec<u32> = self
            .change_logs
            .iter()
            .filter(|(_, log)| log.state == State::There)
            .map(|(&id, _)| id)
            .collect();
        let known = self
            .change_logs
            .values()
            .filter(|log| log.state != State::Gone)
            .count();
        match self.random.below(10) {
            0..3 if known < CHANGE_LOGS_MAX => self.begin_create_change_log(),
            0..2 if !there.is_empty() => {
                let id = *self.random.pick(&there);
                let part_blocks = self.part_blocks();
                self.begin_put_change_log(id, part_blocks);
            }
            2..3 => {
                let named = |id: u32| {
                    self.volumes
                        .values()
                        .any(|v| v.state != State::Gone && v.names(id))
                };
                if let Some(&id) = there.iter().find(|id| !named(**id)) {
                    self.begin_delete_change_log(id);
                }
            }
            choice if choice > 1 && !ready.is_empty() => {
                let volume = *self.random.pick(ready);
                let change_log = if choice == 9 || there.is_empty() {
                    0
                } else {
                    *self.random.pick(&there)
                };
                if self.volumes[&volume].change_log != change_log {
                    self.begin_name_change_log(volume, change_log);
                }
            }
            _ => {}
        }
    }

    fn part_blocks(&mut self) -> u64 {
        *self.random.pick(&[16, 64, 256, 1024])
    }

    fn begin_create_change_log(&mut self) {
        let id = self.next_volume;
        self.next_volume += 1;
        let (part_blocks, drops) = (self.part_blocks(), self.random.percent(50));
        let log = ChangeLog {
            state: State::Asked,
            part_blocks,
            becomes: None,
            drops,
        };
        self.change_logs.insert(id, log);
        self.begin_put_change_log(id, part_blocks);
    }

    fn begin_put_change_log(&mut self, id: u32, part_blocks: u64) {
        let shards = u64::from(self.layout.shard_count);
        let log = self
            .change_logs
            .get_mut(&id)
            .expect("change log volumes stay known");
        if log.becomes.is_some() {
            return; // It is being changed already.
        }
        log.becomes = Some(part_blocks);
        let head = ChangeLogHead {
            version: catalog::VERSION.into(),
            name_bytes: 0.into(),
            when_full: u8::from(log.drops),
            reserved_a: [0; 3],
            devices: u64::MAX.into(),
            size_bytes: (part_blocks * 4096 * shards).into(),
            created_ns: 0.into(),
            reserved_b: [0; 16],
        };
        let key = Key::ChangeLog(id).encode();
        let value = Value::ChangeLog(head, &format!("log-{id}")).encode();
        let row = vec![(ShardIndex(0), ShardCommand::CatalogPut { key, value })];
        let parts = self.parts(id, part_blocks);
        self.begin(Purpose::ChangeLog(LogJob::Put(id)), vec![row, parts]);
    }

    fn parts(&self, id: u32, part_blocks: u64) -> Stage {
        let part = ChangeLogPart {
            limit_blocks: part_blocks,
            devices: u64::MAX,
            when_full: match self.change_logs[&id].drops {
                true => WhenFull::DropOldest,
                false => WhenFull::FailWrites,
            },
        };
        let change_log = ChangeLogId(id);
        self.for_all(|_| ShardCommand::SetChangeLog { change_log, part })
    }

    fn begin_delete_change_log(&mut self, id: u32) {
        let log = self
            .change_logs
            .get_mut(&id)
            .expect("change log volumes stay known");
        log.state = State::Ending;
        let key = Key::ChangeLog(id).encode();
        let row = vec![(ShardIndex(0), ShardCommand::CatalogDelete { key })];
        let change_log = ChangeLogId(id);
        let parts = self.for_all(|_| ShardCommand::RemoveChangeLog { change_log });
        self.begin(Purpose::ChangeLog(LogJob::Delete(id)), vec![row, parts]);
    }

    fn begin_name_change_log(&mut self, volume: u32, change_log: u32) {
        let target = self.volume(volume);
        (target.job, target.becomes_log) = (true, Some(change_log));
        let (before, origin, size_bytes) = (target.change_log, target.row_origin, target.size_bytes);
        target.change_log = change_log;
        let row = vec![target.row_with(origin, size_bytes)];
        // Until it is done it has the old one.
        let tell = self.attach();
        self.volume(volume).change_log = before;
        let purpose = Purpose::ChangeLog(LogJob::Name { volume, change_log });
        self.begin(purpose, vec![row, tell]);
    }

    /// What has to be told to the shards that do not know it yet.
    fn attach(&self) -> Stage {
        let after = self.shares_of_change_logs();
        let changed = |shares: &u32| self.attached.get(shares) != after.get(shares);
        let all: BTreeSet<u32> = self
            .attached
            .keys()
            .chain(after.keys())
            .copied()
            .filter(changed)
            .collect();
        let there =
            |shares: &u32| self.volumes[shares].state == State::There || self.has_snapshots_in(*shares);
        let commands = all.into_iter().filter(there).flat_map(|shares| {
            let change_log = after.get(&shares).map(|&id| ChangeLogId(id));
            self.attach_shares(shares, change_log)
        });
        commands.collect()
    }

    fn attach_shares(&self, shares: u32, change_log: Option<ChangeLogId>) -> Stage {
        let volume = VolumeId(shares);
        self.for_all(|_| ShardCommand::AttachChangeLog { volume, change_log })
    }

    /// The shares that a rollback makes have the change log volume of those that they replace.
    pub(super) fn attach_new_head(&self, shares: u32) -> Stage {
        match self.volumes[&shares].change_log {
            0 => Stage::new(),
            id => self.attach_shares(shares, Some(ChangeLogId(id))),
        }
    }

    /// Tells the shards what has become different by something that was done to volumes.
    pub(super) fn tell_change_logs(&mut self) {
        let stage = self.attach();
        self.attached = self.shares_of_change_logs();
        if !stage.is_empty() {
            self.begin(Purpose::ChangeLog(LogJob::Tell), vec![stage]);
        }
    }

    /// Tells shards that were just opened everything.
    pub(super) fn tell_all_change_logs(&mut self) -> Stage {
        self.attached.clear();
        let there = self
            .change_logs
            .iter()
            .filter(|(_, log)| log.state == State::There);
        let parts = there.flat_map(|(&id, log)| self.parts(id, log.part_blocks));
        let stage = parts.chain(self.attach()).collect();
        self.attached = self.shares_of_change_logs();
        stage
    }

    /// The change log volume of every share that has one: a volume's live map, and what its snapshots lie in.
    fn shares_of_change_logs(&self) -> BTreeMap<u32, u32> {
        let mut shares = BTreeMap::new();
        let there = || {
            self.volumes
                .values()
                .filter(|volume| volume.state == State::There)
        };
        let logs: BTreeMap<u32, u32> = there().map(|volume| (volume.row, volume.change_log)).collect();
        for snapshot in self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.state == State::There)
        {
            for (&of, owner) in &snapshot.owners {
                if let Some(&log) = logs.get(owner).filter(|log| **log != 0) {
                    shares.entry(of).or_insert(log);
                }
            }
        }
        for volume in there() {
            match volume.change_log {
                0 => shares.remove(&volume.id),
                log => shares.insert(volume.id, log),
            };
        }
        shares
    }

    /// A job about change log volumes ended.
    pub(super) fn change_log_ended(&mut self, job: LogJob, done: &Job) {
        let failed = done.failed().is_some();
        match job {
            // What is in the row is seen when the pool is opened again.
            LogJob::Put(_) | LogJob::Delete(_) | LogJob::Name { .. } if failed => {
                self.coverage.count("change log volumes in doubt");
            }
            LogJob::Put(id) => {
                let log = self
                    .change_logs
                    .get_mut(&id)
                    .expect("change log volumes stay known");
                log.part_blocks = log.becomes.take().expect("it was asked for");
                log.state = State::There;
                self.coverage.count("change log volumes made or resized");
            }
            LogJob::Delete(id) => {
                let log = self
                    .change_logs
                    .get_mut(&id)
                    .expect("change log volumes stay known");
                log.state = State::Gone;
                self.coverage.count("change log volumes deleted");
            }
            LogJob::Name { volume, change_log } => {
                let target = self.volume(volume);
                (target.job, target.becomes_log, target.change_log) = (false, None, change_log);
                self.attached = self.shares_of_change_logs();
                self.coverage.count("change log volumes named by volumes");
            }
            LogJob::MakeRoom(id) => {
                let is_short = |status: &stillpoint_processor::command::ShardStatus| {
                    let mut parts = status.change_logs.iter();
                    parts.any(|part| part.change_log.0 == id && part.is_short)
                };
                if failed || !done.statuses().any(is_short) {
                    self.making_room.remove(&id);
                } else {
                    self.drop_oldest(id);
                }
            }
            LogJob::Tell => {}
        }
    }

    /// A shard says that its part is full.
    pub(super) fn change_log_full(&mut self, id: u32) {
        self.coverage.count("change log volumes that were full");
        let known = self.change_logs.get(&id);
        if known.is_some_and(|log| log.drops && log.state == State::There) && self.making_room.insert(id) {
            self.begin_make_room(id);
        }
    }

    fn begin_make_room(&mut self, id: u32) {
        let stage = self.for_all(|_| ShardCommand::Status);
        self.begin(Purpose::ChangeLog(LogJob::MakeRoom(id)), vec![stage]);
    }

    /// Deletes the oldest snapshot that may go; if none may, writes that wait fail.
    fn drop_oldest(&mut self, id: u32) {
        let rows: BTreeSet<u32> = self
            .volumes
            .values()
            .filter(|v| v.state == State::There && v.names(id))
            .map(|v| v.row)
            .collect();
        let clones: BTreeSet<u64> = self
            .volumes
            .values()
            .filter(|volume| volume.state != State::Gone)
            .filter_map(|volume| Some(volume.row_origin?.1))
            .collect();
        let mut there = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.state == State::There);
        let oldest = there.find(|snapshot| {
            snapshot.owners.values().any(|owner| rows.contains(owner))
                && snapshot.cloning == 0
                && !clones.contains(&snapshot.id)
        });
        if let Some(snapshot) = oldest.map(|snapshot| snapshot.id) {
            self.snapshot_mut(snapshot).dropped_for = Some(id);
            self.coverage.count("snapshots dropped to make room");
            return self.begin_delete_snapshot(snapshot);
        }
        self.making_room.remove(&id);
        self.coverage
            .count("change log volumes without a snapshot to drop");
        let change_log = ChangeLogId(id);
        let stage = self.for_all(|_| ShardCommand::RefuseChangeLog { change_log });
        self.begin(Purpose::ChangeLog(LogJob::Tell), vec![stage]);
    }

    /// A snapshot was deleted; perhaps to make room.
    pub(super) fn dropped(&mut self, snapshot: u64) {
        if let Some(id) = self.snapshot_mut(snapshot).dropped_for.take() {
            self.begin_make_room(id);
        }
    }

    /// Nobody makes room any more.
    pub(super) fn forget_change_log_jobs(&mut self) {
        self.making_room.clear();
        for snapshot in self.snapshots.values_mut() {
            snapshot.dropped_for = None;
        }
    }

    /// Compares what the rows say of change log volumes with what was confirmed.
    pub(super) fn decide_change_logs(&mut self, rows: &Rows) -> Checked {
        let shards = u64::from(self.layout.shard_count);
        for (id, log) in &mut self.change_logs {
            let row = rows
                .change_logs
                .get(id)
                .map(|&(bytes, drops)| (bytes / 4096 / shards, drops));
            match (log.state, row) {
                (State::There, None) => return broken(format!("change log volume {id} is lost")),
                (State::Gone, Some(_)) => return broken(format!("change log volume {id} came back")),
                (_, None) => log.state = State::Gone,
                (_, Some((part_blocks, drops))) => {
                    let known = part_blocks == log.part_blocks || log.becomes == Some(part_blocks);
                    if !known || drops != log.drops {
                        return broken(format!("change log volume {id} is another: {row:?}, not {log:?}"));
                    }
                    (log.state, log.part_blocks) = (State::There, part_blocks);
                }
            }
            log.becomes = None;
        }
        for (row, found) in &rows.volumes {
            let volume = self.volumes.get_mut(&found.head).expect("decided before");
            let becomes = volume.becomes_log.take();
            if found.change_log != volume.change_log && becomes != Some(found.change_log) {
                return broken(format!(
                    "volume {row} names change log volume {}, not {}",
                    found.change_log, volume.change_log
                ));
            }
            volume.change_log = found.change_log;
        }
        Ok(())
    }
}

impl super::Volume {
    /// Whether it names this change log volume, or may.
    fn names(&self, id: u32) -> bool {
        self.change_log == id || self.becomes_log == Some(id)
    }
}
