//! The operator: volumes, snapshots and checkpoints, one job at a time, in the order of commands that is safe at a
//! crash (the catalog row decides; see `world/jobs.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use stillpoint_coordinator::{Marks, OverallSnapshot, SnapshotError, SnapshotRequest, SnapshotVolume};
use stillpoint_ondisk::catalog::Key;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::host_view::Placement;
use stillpoint_processor::{BLOCK_BYTES, ShardCommand, ShardEvent, ShardIndex, SnapshotId, Ticket, VolumeId};

use super::history::{Block, Life, Snapshot, Volume};
use super::rig::{Checked, Rig, broken};
use crate::stamp::SECTORS_PER_BLOCK;

/// Blocks of an object: the smallest.
pub(crate) const OBJECT_BLOCKS: u32 = 256;

/// Commands that are sent together.
pub(super) type Stage = Vec<(ShardIndex, ShardCommand)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Create(u32),
    Resize(u32, u64),
    Delete(u32),
    DeleteSnapshot(u64),
    Clone(u32),
    /// What it is, and what it becomes.
    RollBack(u32, u32),
    Promote,
    Checkpoint,
    Reconcile,
}

/// Stages of commands: the next one begins when all of the one before are answered.
#[derive(Debug)]
pub(super) struct Job {
    purpose: Purpose,
    stages: VecDeque<Stage>,
    waiting: BTreeSet<Ticket>,
    failed: bool,
}

impl Rig {
    fn for_all(&self, command: impl Fn(ShardIndex) -> ShardCommand) -> Stage {
        (0..self.layout.shard_count)
            .map(|shard| (ShardIndex(shard), command(ShardIndex(shard))))
            .collect()
    }

    pub(super) fn begin(&mut self, purpose: Purpose, stages: Vec<Stage>) {
        assert!(self.job.is_none(), "one job at a time");
        self.job = Some(Job {
            purpose,
            stages: stages.into_iter().filter(|stage| !stage.is_empty()).collect(),
            waiting: BTreeSet::new(),
            failed: false,
        });
        self.next_stage();
    }

    fn next_stage(&mut self) {
        let job = self.job.as_mut().expect("a job that goes on");
        let Some(stage) = job.stages.pop_front() else {
            let job = self.job.take().expect("a job that goes on");
            return self.job_ended(&job);
        };
        for (shard, command) in stage {
            self.tickets += 1;
            let ticket = Ticket(self.tickets);
            let job = self.job.as_mut().expect("a job that goes on");
            job.waiting.insert(ticket);
            self.command(shard, ticket, command);
        }
    }

    pub(super) fn job_event(&mut self, event: ShardEvent) -> Checked {
        let ticket = event.ticket.expect("the caller looked");
        let Some(job) = &mut self.job else {
            return broken(format!("an event for no job: {event:?}"));
        };
        if !job.waiting.remove(&ticket) {
            return broken(format!("a command was answered twice: {event:?}"));
        }
        match event.kind {
            EventKind::Done => {}
            EventKind::Failed(error) => {
                job.failed = true;
                job.stages.clear();
                if !self.may_fail(error) {
                    return broken(format!(
                        "shard {} failed at {:?}: {error}",
                        event.shard.0, self.job
                    ));
                }
            }
            other => {
                return broken(format!(
                    "shard {} answered {:?} with {other:?}",
                    event.shard.0, self.job
                ));
            }
        }
        if self.job.as_ref().is_some_and(|job| job.waiting.is_empty()) {
            self.next_stage();
        }
        Ok(())
    }

    fn job_ended(&mut self, job: &Job) {
        let volumes = &mut self.history.volumes;
        match job.purpose {
            _ if job.failed => {}
            Purpose::Create(id) | Purpose::Clone(id) => {
                volumes.get_mut(&id).expect("volumes stay known").life = Life::There
            }
            Purpose::Resize(id, size) => {
                let volume = volumes.get_mut(&id).expect("volumes stay known");
                (volume.size, volume.resizing) = (size, None);
                // What was cut off is gone for good.
                for block in &mut volume.blocks[size as usize..] {
                    block.answered(true, true);
                }
            }
            Purpose::Delete(id) => volumes.get_mut(&id).expect("volumes stay known").life = Life::Gone,
            Purpose::DeleteSnapshot(id) => {
                let snapshot = self.history.snapshots.get_mut(&id);
                snapshot.expect("snapshots stay known").life = Life::Gone;
            }
            Purpose::RollBack(old, new) => {
                volumes.get_mut(&old).expect("volumes stay known").life = Life::Gone;
                let new = volumes.get_mut(&new).expect("volumes stay known");
                (new.life, new.replaces) = (Life::There, false);
            }
            Purpose::Promote => self.promoted(),
            Purpose::Checkpoint | Purpose::Reconcile => {}
        }
    }

    fn row(&self, volume: &Volume, size: u64) -> Stage {
        vec![volume.row(size).put(volume.placement, 512)]
    }

    fn shares(&self, volume: &Volume, size: u64, resize: bool) -> Stage {
        let (placement, id) = (volume.placement, VolumeId(volume.id));
        self.for_all(|shard| {
            let share_blocks = placement.share_blocks(shard, size);
            if resize {
                ShardCommand::ResizeVolume {
                    volume: id,
                    share_blocks,
                }
            } else {
                ShardCommand::CreateVolume {
                    volume: id,
                    share_blocks,
                }
            }
        })
    }

    pub(crate) fn create_volume(&mut self, size: u64) {
        let id = self.history.volumes.len() as u32 + 1;
        let shard_count = self.layout.shard_count;
        let volume = Volume {
            id,
            row: id,
            family: id,
            origin: None,
            row_origin: None,
            becomes: None,
            replaces: false,
            placement: Placement {
                shard_count,
                rotation: (id % u32::from(shard_count)) as u16,
                object_blocks: OBJECT_BLOCKS,
            },
            life: Life::Unsure,
            size,
            resizing: None,
            blocks: vec![Block::default(); size as usize],
        };
        let stages = vec![self.row(&volume, size), self.shares(&volume, size, false)];
        self.history.volumes.insert(id, volume);
        self.begin(Purpose::Create(id), stages);
    }

    pub(super) fn resize_volume(&mut self, id: u32, size: u64) {
        let volume = self
            .history
            .volumes
            .get_mut(&id)
            .expect("steps know their volumes");
        let shrinks = size < volume.size;
        volume.resizing = Some(size);
        volume.grow(size);
        for block in &mut volume.blocks[size as usize..] {
            block.sent(0..SECTORS_PER_BLOCK as usize, 0);
        }
        let volume = self.history.volumes[&id].clone();
        let (row, shares) = (self.row(&volume, size), self.shares(&volume, size, true));
        let stages = if shrinks {
            vec![row, shares]
        } else {
            vec![shares, row]
        };
        self.begin(Purpose::Resize(id, size), stages);
    }

    pub(super) fn delete_volume(&mut self, id: u32) {
        let known = self.history.volumes.get_mut(&id);
        let known = known.expect("steps know their volumes");
        known.life = Life::Unsure;
        let key = Key::Volume(known.row).encode();
        let row = vec![(ShardIndex(0), ShardCommand::CatalogDelete { key })];
        let volume = VolumeId(id);
        // Snapshots in it may have gone over to a clone.
        let keeps = self.history.has_snapshots_in(id);
        let shares = self.for_all(|_| match keeps {
            true => ShardCommand::DeleteHead { volume },
            false => ShardCommand::DeleteVolume { volume },
        });
        self.begin(Purpose::Delete(id), vec![row, shares]);
    }

    /// Makes a volume that begins as a snapshot is, or that is what `replaces` becomes. If the snapshot is not there, or not
    /// known, the volume's number is used up.
    pub(crate) fn make_volume_of(&mut self, of: u32, snapshot: u64, replaces: Option<u32>) {
        let id = self.history.volumes.len() as u32 + 1;
        let source = &self.history.volumes[&of];
        let frozen = self.history.snapshots.get(&snapshot);
        let frozen = frozen.filter(|snapshot| snapshot.life == Life::There);
        let owner = frozen.and_then(|snapshot| snapshot.owners.get(&of).copied());
        let frozen = frozen.and_then(|snapshot| snapshot.volumes.get(&of));
        let blocks = frozen.and_then(|frozen| frozen.blocks(source));
        let may_begin = replaces.is_none_or(|old| self.is_usable(old));
        let volume = Volume {
            id,
            row: replaces.map_or(id, |old| self.history.volumes[&old].row),
            family: source.family,
            origin: Some((of, snapshot)),
            row_origin: match replaces {
                None => owner.map(|owner| (owner, snapshot)),
                Some(old) => self.history.volumes[&old].row_origin,
            },
            becomes: None,
            replaces: replaces.is_some(),
            placement: source.placement,
            life: Life::Gone,
            size: blocks.as_ref().map_or(0, Vec::len) as u64,
            resizing: None,
            blocks: blocks.clone().unwrap_or_default(),
        };
        let row = self.row(&volume, volume.size);
        self.history.volumes.insert(id, volume);
        if blocks.is_none() || !may_begin {
            return;
        }
        let unsure = [Some(id), replaces].into_iter().flatten();
        for unsure in unsure {
            let volume = self.history.volumes.get_mut(&unsure);
            volume.expect("volumes stay known").life = Life::Unsure;
        }
        let shares = self.for_all(|_| ShardCommand::CloneVolume {
            volume: VolumeId(id),
            origin: VolumeId(of),
            snapshot: SnapshotId(snapshot),
        });
        match replaces {
            None => self.begin(Purpose::Clone(id), vec![shares, row]),
            Some(old) => {
                let volume = VolumeId(old);
                let head = self.for_all(|_| ShardCommand::DeleteHead { volume });
                self.begin(Purpose::RollBack(old, id), vec![shares, row, head]);
            }
        }
    }

    pub(crate) fn delete_snapshot(&mut self, id: u64) {
        let known = self
            .history
            .snapshots
            .get_mut(&id)
            .expect("steps know their snapshots");
        known.life = Life::Unsure;
        let volumes: Vec<VolumeId> = known.volumes.keys().map(|volume| VolumeId(*volume)).collect();
        let figures = Key::Figures {
            snapshot: id,
            first_shard: 0,
        };
        let rows = [Key::Snapshot(id), figures]
            .map(|key| (ShardIndex(0), ShardCommand::CatalogDelete { key: key.encode() }))
            .to_vec();
        let snapshot = SnapshotId(id);
        let shares = volumes
            .iter()
            .flat_map(|&volume| self.for_all(|_| ShardCommand::DeleteSnapshot { volume, snapshot }))
            .collect();
        self.begin(Purpose::DeleteSnapshot(id), vec![rows, shares]);
    }

    pub(crate) fn checkpoint(&mut self) {
        let stage = self.for_all(|_| ShardCommand::Checkpoint);
        self.begin(Purpose::Checkpoint, vec![stage]);
    }

    pub(crate) fn take_snapshot(&mut self, volumes: &[u32]) -> Checked {
        let id = self.history.snapshots.len() as u64 + 1;
        let frozen: BTreeMap<u32, _> = volumes
            .iter()
            .map(|volume| (*volume, self.history.volumes[volume].freeze()))
            .collect();
        let request = SnapshotRequest {
            snapshot: SnapshotId(id),
            name: format!("snapshot-{id}"),
            volumes: frozen
                .iter()
                .map(|(volume, frozen)| SnapshotVolume {
                    volume: VolumeId(*volume),
                    owner: VolumeId(self.history.volumes[volume].row),
                    size_bytes: frozen.size * BLOCK_BYTES as u64,
                })
                .collect(),
            marks: Marks::default(),
            shard_count: self.layout.shard_count,
            hold_limit_ns: 1_000_000_000,
            step_limit_ns: 100_000_000_000,
        };
        let snapshot = Snapshot {
            id,
            life: Life::Unsure,
            owners: frozen
                .keys()
                .map(|volume| (*volume, self.history.volumes[volume].row))
                .collect(),
            goes: BTreeMap::new(),
            volumes: frozen,
        };
        self.history.snapshots.insert(id, snapshot);
        self.taking = Some(id);
        let mut actions = Vec::new();
        self.coordinator.create(request, self.now(), &mut actions);
        self.act(actions)
    }

    pub(super) fn snapshot_ended(
        &mut self,
        id: u64,
        result: Result<OverallSnapshot, SnapshotError>,
    ) -> Checked {
        assert_eq!(self.taking.take(), Some(id), "one snapshot at a time");
        let history = &mut self.history;
        let snapshot = history.snapshots.get_mut(&id).expect("snapshots stay known");
        for (volume, frozen) in &mut snapshot.volumes {
            frozen.until_now(&history.volumes[volume]);
        }
        match result {
            Ok(_) => {
                snapshot.life = Life::There;
                self.unseen.push_back(id);
                Ok(())
            }
            Err(error) if !self.faulty => broken(format!("snapshot {id} was refused: {error:?}")),
            Err(_) => {
                self.failures += 1;
                Ok(())
            }
        }
    }

    /// Looks at snapshots that were just confirmed: from then on they show this and nothing else.
    pub(crate) fn see_snapshots(&mut self) -> Checked {
        while let Some(id) = self.unseen.pop_front() {
            let sizes: Vec<(u32, u64)> = self.history.snapshots[&id]
                .volumes
                .iter()
                .map(|(volume, frozen)| (*volume, frozen.size))
                .collect();
            for (volume, size) in sizes {
                let Ok(shown) = self.read(volume, size, Some(id), 0..size)? else {
                    continue;
                };
                let history = &mut self.history;
                let snapshot = history.snapshots.get_mut(&id).expect("snapshots stay known");
                let frozen = snapshot.volumes.get_mut(&volume).expect("one of its volumes");
                for (at, sectors) in shown.iter().enumerate() {
                    frozen.check_block(id, &history.volumes[&volume], at, sectors)?;
                }
                let shown: Vec<_> = shown.into_iter().map(Some).collect();
                frozen.fix(&history.volumes[&volume], &shown);
            }
        }
        Ok(())
    }

    /// Whether it is known to be there, with which size.
    pub(super) fn is_usable(&self, volume: u32) -> bool {
        self.history
            .volumes
            .get(&volume)
            .is_some_and(|volume| volume.life == Life::There && volume.resizing.is_none())
    }

    /// Whether a write there leads to states that are known: a part of a block in doubt cannot be written.
    pub(crate) fn may_write(&self, volume: u32, sector: u64, sectors: u64) -> bool {
        let (first, end) = (
            sector / SECTORS_PER_BLOCK,
            (sector + sectors).div_ceil(SECTORS_PER_BLOCK),
        );
        let whole = sector.is_multiple_of(SECTORS_PER_BLOCK) && sectors.is_multiple_of(SECTORS_PER_BLOCK);
        self.is_usable(volume) && {
            let volume = &self.history.volumes[&volume];
            let blocks = &volume.blocks[first as usize..end as usize];
            end <= volume.size && (whole || blocks.iter().all(|block| !block.unsure))
        }
    }

    pub(super) fn has_snapshot(&self, id: u64) -> bool {
        let known = self.history.snapshots.get(&id);
        known.is_some_and(|snapshot| snapshot.life == Life::There)
    }

    /// A snapshot that cannot be asked for: its number is used up.
    pub(super) fn skip_snapshot(&mut self) {
        let id = self.history.snapshots.len() as u64 + 1;
        let snapshot = Snapshot {
            id,
            life: Life::Gone,
            volumes: BTreeMap::new(),
            owners: BTreeMap::new(),
            goes: BTreeMap::new(),
        };
        self.history.snapshots.insert(id, snapshot);
    }
}
