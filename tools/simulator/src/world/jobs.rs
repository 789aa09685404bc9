//! The control plane: each job is a row of stages, each stage a set of commands that are sent together; the
//! next stage begins when all are answered. The catalog row always decides:
//!
//! | job | stages |
//! |---|---|
//! | create a volume | the row, then shares on all shards |
//! | grow a volume | shares, then the row |
//! | shrink a volume | the row, then the shares |
//! | delete a volume | the row, then the shares |
//! | create a snapshot | the coordinator's |
//! | delete a snapshot | the rows, then the intermediate snapshots |
//!
//! Clones and rollbacks are in `clones.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use stillpoint_coordinator::{Marks, OverallSnapshot, SnapshotError, SnapshotRequest, SnapshotVolume};
use stillpoint_ondisk::catalog::Key;
use stillpoint_processor::command::{EventKind, Notice, ShardStatus};
use stillpoint_processor::host_view::Placement;
use stillpoint_processor::{
    RequestError, ShardCommand, ShardEvent, ShardIndex, SnapshotId, Ticket, VolumeId,
};

use super::change_logs::LogJob;
use super::{Checked, Snapshot, State, Volume, World, broken};
use crate::model::{CutBounds, Range, VolumeModel};
use crate::stamp::{SECTOR_BYTES, Shown};

/// What a job is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A new volume.
    CreateVolume(u32),
    /// Another size.
    ResizeVolume {
        /// The volume.
        volume: u32,
        /// The new size.
        size_bytes: u64,
        /// The write of zeros that shrinking amounts to.
        zeros: Option<Shown>,
    },
    /// No volume any more.
    DeleteVolume(u32),
    /// No snapshot any more. If it has clones, its space comes free when one of what was made of it is left.
    DeleteSnapshot(u64),
    /// A new volume that begins as a snapshot is.
    CloneVolume {
        /// The new volume.
        volume: u32,
        /// The snapshot.
        snapshot: u64,
    },
    /// A volume becomes what it was.
    RollBack {
        /// What it is.
        old: u32,
        /// What it becomes.
        new: u32,
        /// What it was then.
        snapshot: u64,
    },
    /// A clone takes over the snapshots that it has in common with what it was made of.
    Promote(u32),
    /// Something about change log volumes.
    ChangeLog(LogJob),
    /// Shares that no row leads to go.
    FreeShares(u32),
    /// A checkpoint of all shards.
    Checkpoint,
    /// What recovery finds out of place is put right.
    Reconcile,
    /// The figures of all shards.
    Status,
}

pub(super) type Stage = Vec<(ShardIndex, ShardCommand)>;

/// A job going on.
#[derive(Debug)]
pub struct Job {
    purpose: Purpose,
    stages: VecDeque<Stage>,
    waiting: Vec<Ticket>,
    failed: Option<RequestError>,
    statuses: BTreeMap<u16, ShardStatus>,
}

impl Job {
    /// What shards told of themselves.
    pub(super) fn statuses(&self) -> impl Iterator<Item = &ShardStatus> {
        self.statuses.values()
    }

    /// What a command said that failed.
    pub(super) fn failed(&self) -> Option<RequestError> {
        self.failed
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (waiting, left) = (self.waiting.len(), self.stages.len());
        write!(
            f,
            "{:?}: {waiting} commands not answered, {left} stages to come",
            self.purpose
        )
    }
}

/// Blocks of a volume whose blocks are checked as registers, at least: more than one object.
const REGISTERS_MIN: u64 = 300;
/// Low bits of a ticket: which command of the job.
const TICKET_BITS: u32 = 16;

impl World {
    /// Begins a job.
    pub(super) fn begin(&mut self, purpose: Purpose, stages: Vec<Stage>) {
        // Nothing is taken away from under a session.
        if purpose.takes_away()
            && let Some(number) = self.refresh_exports()
        {
            return self.exports.hold(number, purpose, stages);
        }
        self.begin_now(purpose, stages);
    }

    /// Begins a job that no session stands in the way of.
    pub(super) fn begin_now(&mut self, purpose: Purpose, stages: Vec<Stage>) {
        self.jobs_begun += 1;
        let id = self.jobs_begun;
        self.trace(|| format!("begin  job {id}: {purpose:?}"));
        let job = Job {
            purpose,
            stages: stages.into_iter().filter(|stage| !stage.is_empty()).collect(),
            waiting: Vec::new(),
            failed: None,
            statuses: BTreeMap::new(),
        };
        self.jobs.insert(id, job);
        self.next_stage(id);
    }

    fn next_stage(&mut self, id: u64) {
        let job = self.jobs.get_mut(&id).expect("a job that goes on");
        let Some(stage) = job.stages.pop_front() else {
            let job = self.jobs.remove(&id).expect("a job that goes on");
            self.trace(|| format!("end    job {id}: {:?}: {:?}", job.purpose, job.failed));
            return self.job_ended(job);
        };
        let left = job.stages.len() as u64;
        for (index, (shard, command)) in (0..).zip(stage) {
            let ticket = Ticket((id * 16 + left) << TICKET_BITS | index);
            job.waiting.push(ticket);
            self.machine.command(shard, ticket, command);
        }
    }

    /// Takes in what a shard told.
    pub(super) fn event(&mut self, event: ShardEvent) -> Checked {
        let Some(ticket) = event.ticket else {
            return self.notice(&event);
        };
        let id = (ticket.0 >> TICKET_BITS) / 16;
        let Some(job) = self.jobs.get_mut(&id) else {
            return broken(format!("an event for a job that has ended: {event:?}"));
        };
        let Some(position) = job.waiting.iter().position(|waiting| *waiting == ticket) else {
            return broken(format!("a command was answered twice: {event:?}"));
        };
        job.waiting.swap_remove(position);
        match event.kind {
            EventKind::Done => {}
            EventKind::Status(status) => drop(job.statuses.insert(event.shard.0, *status)),
            EventKind::Failed(error) => {
                let (stopped, full) = (RequestError::ShardStopped, RequestError::NoSpace);
                let may_stop = self.plan.device_errors > 0 && (error == stopped || error == RequestError::Io);
                let may_be_full = error == full && !job.purpose.must_work_when_full();
                let may_be_damaged = self.plan.corruption && error == RequestError::Corrupt;
                if !may_stop && !may_be_full && !may_be_damaged {
                    return broken(format!("shard {} failed at {job}: {error}", event.shard.0));
                }
                job.failed = Some(error);
            }
            other => return broken(format!("shard {} answered {job} with {other:?}", event.shard.0)),
        }
        if job.waiting.is_empty() {
            if job.failed.is_some() {
                job.stages.clear();
            }
            self.next_stage(id);
        }
        Ok(())
    }

    fn notice(&mut self, event: &ShardEvent) -> Checked {
        match &event.kind {
            EventKind::Notice(Notice::Corrupt { address }) if !self.plan.corruption => broken(format!(
                "I4: shard {} found damage at {address} though nothing was damaged",
                event.shard.0
            )),
            EventKind::Notice(Notice::Stopped { operation, error }) if self.plan.device_errors == 0 => {
                broken(format!(
                    "shard {} stopped at {operation} ({error}) though no device failed",
                    event.shard.0
                ))
            }
            EventKind::Notice(Notice::Stopped { .. }) => {
                self.coverage.count("shards stopped by device errors");
                Ok(())
            }
            EventKind::Notice(Notice::SnapshotFreed { .. }) => {
                self.coverage.count("intermediate snapshots freed");
                Ok(())
            }
            &EventKind::Notice(Notice::ChangeLogFull { change_log }) => {
                self.change_log_full(change_log.0);
                Ok(())
            }
            EventKind::Notice(Notice::ChangeLogHigh { high: true, .. }) => {
                self.coverage.count("change log volumes that became nearly full");
                Ok(())
            }
            EventKind::Notice(_) => Ok(()),
            other => broken(format!("an event that nobody asked for: {other:?}")),
        }
    }

    fn job_ended(&mut self, job: Job) {
        let done = job.failed.is_none();
        match job.purpose {
            Purpose::CreateVolume(volume) => {
                if done {
                    let target = self.volume(volume);
                    (target.state, target.job, target.resizing) = (State::There, false, false);
                } else {
                    self.coverage.count("volumes refused for lack of space");
                    self.begin_delete_volume(volume);
                }
            }
            Purpose::ResizeVolume {
                volume,
                size_bytes,
                zeros,
            } => {
                let tick = self.tick();
                if let Some(zeros) = zeros {
                    self.writes.end(zeros, done, done, tick);
                }
                let target = self.volume(volume);
                (target.job, target.resizing) = (false, false);
                // A resize that failed half way leaves the size that is safe: the smaller one.
                target.size_bytes = if done {
                    size_bytes
                } else {
                    target.size_bytes.min(size_bytes)
                };
                target.shown_bytes = target.size_bytes;
                self.coverage.count("volumes resized");
            }
            Purpose::DeleteVolume(volume) if done => self.volume_deleted(volume),
            Purpose::DeleteSnapshot(snapshot) if done => {
                self.snapshots
                    .get_mut(&snapshot)
                    .expect("snapshots stay known")
                    .state = State::Gone;
                self.coverage.count("snapshots deleted");
                self.dropped(snapshot);
            }
            Purpose::CloneVolume { volume, snapshot } => self.clone_ended(volume, snapshot, &job),
            Purpose::RollBack { old, new, snapshot } => self.rollback_ended(old, new, snapshot, &job),
            Purpose::Promote(_) => self.promotion_ended(&job),
            Purpose::ChangeLog(what) => self.change_log_ended(what, &job),
            Purpose::Status => self.statuses = job.statuses,
            Purpose::Checkpoint | Purpose::FreeShares(_) | Purpose::Reconcile | Purpose::DeleteVolume(_) => {}
            Purpose::DeleteSnapshot(snapshot) => self.dropped(snapshot),
        }
        self.refresh_exports();
    }

    pub(super) fn volume(&mut self, volume: u32) -> &mut Volume {
        self.volumes.get_mut(&volume).expect("volumes stay known")
    }

    pub(super) fn snapshot_mut(&mut self, snapshot: u64) -> &mut Snapshot {
        self.snapshots.get_mut(&snapshot).expect("snapshots stay known")
    }

    /// One command for every shard.
    pub(super) fn for_all(&self, command: impl Fn(ShardIndex) -> ShardCommand) -> Stage {
        self.shards().map(|shard| (shard, command(shard))).collect()
    }

    pub(super) fn volume_row(&self, volume: u32, size_bytes: u64) -> Stage {
        let target = &self.volumes[&volume];
        vec![target.row_with(target.row_origin, size_bytes)]
    }

    /// Makes a volume of a random shape.
    pub(super) fn begin_create_volume(&mut self) {
        let id = self.next_volume;
        self.next_volume += 1;
        let block_bytes = *self.random.pick(&[512, 4096]);
        // What is exported ends where a block ends, as the control plane sees to.
        let whole_blocks = self.plan.nbd.clients > 0 || self.plan.registers;
        let unit_bytes = if whole_blocks { 4096 } else { block_bytes };
        let units_min = if self.plan.registers { REGISTERS_MIN } else { 1 };
        let units_max = self.plan.volume_bytes_max / u64::from(unit_bytes);
        let units = self.random.between(units_min, units_max);
        let placement = Placement {
            shard_count: self.layout.shard_count,
            rotation: self.random.below(u64::from(self.layout.shard_count)) as u16,
            object_blocks: 256,
        };
        let size_bytes = units * u64::from(unit_bytes);
        let volume = Volume {
            id,
            row: id,
            family: id,
            origin: None,
            row_origin: None,
            becomes: None,
            change_log: 0,
            becomes_log: None,
            replaces: None,
            rolls_back_to: None,
            rolls_back_now: false,
            placement,
            block_bytes,
            size_bytes,
            shown_bytes: size_bytes,
            model: VolumeModel::new(id, size_bytes / SECTOR_BYTES as u64),
            state: State::Asked,
            in_flight: 0,
            job: true,
            resizing: true,
        };
        self.volumes.insert(id, volume);
        let shares = self.for_all(|shard| ShardCommand::CreateVolume {
            volume: VolumeId(id),
            share_blocks: placement.share_blocks(shard, size_bytes.div_ceil(4096)),
        });
        let row = self.volume_row(id, size_bytes);
        self.begin(Purpose::CreateVolume(id), vec![row, shares]);
    }

    /// Gives a volume another size. Nothing else goes on with it.
    pub(super) fn begin_resize_volume(&mut self, volume: u32, size_bytes: u64) {
        let tick = self.tick();
        let target = self.volumes.get_mut(&volume).expect("volumes stay known");
        assert!(target.in_flight == 0 && !target.job);
        (target.job, target.resizing) = (true, true);
        let (placement, old_bytes) = (target.placement, target.size_bytes);
        target.shown_bytes = old_bytes.min(size_bytes);
        let sectors = |bytes: u64| bytes / SECTOR_BYTES as u64;
        target.model.grow(sectors(size_bytes));
        let family = target.family;
        let zeros = (size_bytes < old_bytes).then(|| {
            let number = self.writes.send(true, tick);
            let range = Range {
                first: sectors(size_bytes),
                count: sectors(old_bytes - size_bytes),
            };
            target.model.write_sent(number, range);
            number
        });
        if zeros.is_some() {
            self.discarded.insert(family);
        }
        let shares = self.resize_shares(volume, placement, size_bytes);
        let row = self.volume_row(volume, size_bytes);
        let stages = if zeros.is_some() {
            vec![row, shares]
        } else {
            vec![shares, row]
        };
        let purpose = Purpose::ResizeVolume {
            volume,
            size_bytes,
            zeros,
        };
        self.begin(purpose, stages);
    }

    /// The commands that give every shard the right share of a volume.
    pub(super) fn resize_shares(&self, volume: u32, placement: Placement, size_bytes: u64) -> Stage {
        self.for_all(|shard| ShardCommand::ResizeVolume {
            volume: VolumeId(volume),
            share_blocks: placement.share_blocks(shard, size_bytes.div_ceil(4096)),
        })
    }

    /// Takes a snapshot of some volumes at one instant.
    pub(super) fn begin_create_snapshot(&mut self, volumes: &[u32]) {
        let sent = self.tick();
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        let sizes: Vec<(u32, u64)> = volumes
            .iter()
            .map(|id| (*id, self.volumes[id].size_bytes))
            .collect();
        volumes.iter().for_each(|id| self.volume(*id).job = true);
        let hold_limit_ns = self.random.between(self.plan.hold_ns_min, self.plan.hold_ns_max);
        let request = SnapshotRequest {
            snapshot: SnapshotId(id),
            name: format!("snapshot-{id}"),
            volumes: sizes
                .iter()
                .map(|&(volume, size_bytes)| SnapshotVolume {
                    volume: VolumeId(volume),
                    owner: VolumeId(self.volumes[&volume].row),
                    size_bytes,
                })
                .collect(),
            marks: Marks::default(),
            shard_count: self.layout.shard_count,
            hold_limit_ns,
            step_limit_ns: self.plan.step_limit_ns,
        };
        let snapshot = Snapshot {
            id,
            owners: sizes
                .iter()
                .map(|(volume, _)| (*volume, self.volumes[volume].row))
                .collect(),
            goes: None,
            ends_with: None,
            dropped_for: None,
            volumes: sizes,
            state: State::Asked,
            bounds: CutBounds::new(sent, u64::MAX),
            content: BTreeMap::new(),
            hold_limit_ns,
            cloning: 0,
        };
        self.snapshots.insert(id, snapshot);
        self.record(|recorder| recorder.snapshot_asked(id, sent));
        self.snapshots_asked += 1;
        self.trace(|| format!("ask    snapshot {id} of {volumes:?}"));
        assert!(self.machine.snapshot(request), "nobody asks a dead coordinator");
    }

    /// The coordinator told how a snapshot ended.
    pub(super) fn snapshot_ended(
        &mut self,
        id: SnapshotId,
        result: Result<OverallSnapshot, SnapshotError>,
    ) -> Checked {
        let tick = self.tick();
        self.trace(|| format!("end    snapshot {}: {result:?}", id.0));
        // News that was on its way when the coordinator died still comes; nobody waits for it any more.
        self.snapshots_asked = self.snapshots_asked.saturating_sub(1);
        self.record(|recorder| recorder.snapshot_answered(id.0, tick));
        let snapshot = self.snapshots.get_mut(&id.0).expect("snapshots stay known");
        snapshot.bounds.answered = tick;
        let volumes = snapshot.volumes.clone();
        for (volume, _) in &volumes {
            self.volume(*volume).job = false;
        }
        let taken = result.is_ok();
        let snapshot = self.snapshots.get_mut(&id.0).expect("snapshots stay known");
        match result {
            Ok(overall) => {
                if overall.hold_ns_max() > snapshot.hold_limit_ns {
                    return broken(format!(
                        "I9: snapshot {} was held for longer than its limit",
                        id.0
                    ));
                }
                snapshot.state = State::There;
                self.coverage.count("snapshots taken");
                self.coverage.add("answers held", overall.answers_held());
                self.send_first_looks(id.0);
                self.refresh_exports();
            }
            Err(SnapshotError::InDoubt { .. }) => {}
            Err(error) => {
                snapshot.state = State::Gone;
                self.coverage.count(match error {
                    SnapshotError::HoldExpired { .. } => "snapshots aborted at the hold's deadline",
                    SnapshotError::Refused { .. } => "snapshots refused",
                    _ => "snapshots failed otherwise",
                });
            }
        }
        for (volume, _) in volumes {
            self.safety_snapshot_ended(volume, taken);
        }
        Ok(())
    }

    /// Deletes a snapshot.
    pub(super) fn begin_delete_snapshot(&mut self, id: u64) {
        let snapshot = self.snapshots.get_mut(&id).expect("snapshots stay known");
        snapshot.state = State::Ending;
        let volumes: Vec<u32> = snapshot.volumes.iter().map(|(volume, _)| *volume).collect();
        let figures = Key::Figures {
            snapshot: id,
            first_shard: 0,
        };
        let rows = [Key::Snapshot(id), figures]
            .map(|key| (ShardIndex(0), ShardCommand::CatalogDelete { key: key.encode() }))
            .to_vec();
        let shares = volumes
            .iter()
            .flat_map(|&volume| {
                self.for_all(|_| ShardCommand::DeleteSnapshot {
                    volume: VolumeId(volume),
                    snapshot: SnapshotId(id),
                })
            })
            .collect();
        self.begin(Purpose::DeleteSnapshot(id), vec![rows, shares]);
    }

    /// Makes a checkpoint of all shards.
    pub(super) fn begin_checkpoint(&mut self) {
        let stage = self.for_all(|_| ShardCommand::Checkpoint);
        self.begin(Purpose::Checkpoint, vec![stage]);
    }

    /// Asks all shards for their figures.
    pub(super) fn begin_status(&mut self) {
        let stage = self.for_all(|_| ShardCommand::Status);
        self.begin(Purpose::Status, vec![stage]);
    }
}

impl Purpose {
    /// Whether sessions may see what is about to go.
    fn takes_away(&self) -> bool {
        matches!(
            self,
            Self::DeleteVolume(_)
                | Self::DeleteSnapshot(_)
                | Self::RollBack { .. }
                | Self::ResizeVolume { zeros: Some(_), .. }
        )
    }

    /// I10: what makes room works without room.
    fn must_work_when_full(&self) -> bool {
        !matches!(
            self,
            Self::CreateVolume(_)
                | Self::ResizeVolume { .. }
                | Self::CloneVolume { .. }
                | Self::RollBack { .. }
                | Self::Promote(_)
                | Self::ChangeLog(_)
        )
    }
}
