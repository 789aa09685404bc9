//! Clients of a stage: each has one operation at a time, on volumes of a few blocks that are spread over all shards.
//! Every answer is checked against the history of what was written.

use std::collections::BTreeMap;
use std::fmt;

use stillpoint_coordinator::{Marks, OverallSnapshot, SnapshotError, SnapshotRequest, SnapshotVolume};
use stillpoint_processor::host_view::{HostView, Part, Placement};
use stillpoint_processor::ports::Buffer;
use stillpoint_processor::{
    BLOCK_BYTES, RequestKind, ShardAnswer, ShardCommand, ShardIndex, ShardRequest, ShareBlock, SnapshotId,
    Token, View, VolumeId,
};

use super::stage::{Stage, failed};
use crate::model::{Broken, CutBounds, Range, Tick, VolumeModel, Writes};
use crate::stamp::{self, SECTOR_BYTES, SECTORS_PER_BLOCK, Shown};

/// Blocks of an object: as few as a placement may have, so that a volume is read in no time.
pub const OBJECT_BLOCKS: u32 = 4;
/// Low bits of a token: the part.
const PART_BITS: u32 = 8;
/// Hold limits and step limits are told to the coordinator by whoever asks.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long answers may be held.
    pub hold_ns: u64,
    /// How long a step may take.
    pub step_ns: u64,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Writes stamped sectors.
    Write {
        /// The number of the write.
        number: Shown,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Reads the volume and checks what it shows.
    Read,
    /// Reads a snapshot from end to end.
    Look(u64),
    /// Reads the volume after a recovery.
    Recovered(crate::model::Crash),
    /// Makes what was acknowledged durable.
    Flush,
}

#[derive(Debug)]
struct Operation {
    client: Option<usize>,
    does: Does,
    volume: usize,
    offset_bytes: u64,
    length_bytes: u64,
    sent: Tick,
    waiting: usize,
    parts: Vec<(Part, Option<Buffer>)>,
}

/// How far a snapshot has come, as the one who asked for it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Asked for, not answered.
    Asked,
    /// It was confirmed.
    There,
    /// It was refused or aborted.
    NotThere,
    /// The answer was that nobody knows.
    InDoubt,
}

/// A snapshot of some volumes.
#[derive(Debug)]
pub struct Snapshot {
    /// Positions of its volumes.
    pub volumes: Vec<usize>,
    /// What was told of it.
    pub known: Known,
    pub(super) bounds: CutBounds,
    /// What each volume shows, once it was looked at.
    content: BTreeMap<usize, Vec<Shown>>,
    limits: Limits,
}

/// A volume.
pub struct Volume {
    pub(super) view: HostView,
    /// The volume that it, or what it was made of, was first: sectors are stamped with it.
    family: u32,
    pub(super) model: VolumeModel,
}

/// The clients, and what they know.
pub struct Clients {
    tick: Tick,
    pub(super) writes: Writes,
    pub(super) volumes: Vec<Volume>,
    pub(super) snapshots: BTreeMap<u64, Snapshot>,
    operations: BTreeMap<u64, Operation>,
    sent: u64,
    /// Clients without an operation.
    pub idle: Vec<usize>,
    /// Answers that were held for snapshots that are there.
    pub answers_held: u64,
    /// Snapshots that a shard refused, and of these the ones that clones were part of.
    pub refused: (u64, u64),
    trace: bool,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (does, length, at) = (self.does, self.length_bytes, self.offset_bytes);
        write!(
            f,
            "{does:?} of {length} bytes at {at} of volume {}, sent at tick {}",
            self.volume, self.sent
        )
    }
}

impl Clients {
    /// Makes volumes of `blocks` blocks each and has their shares made.
    ///
    /// # Errors
    /// If the shards do not make them.
    pub fn new(
        stage: &mut Stage,
        volumes: usize,
        blocks: u64,
        clients: usize,
        trace: bool,
    ) -> Result<Self, Broken> {
        let shard_count = stage.shard_count() as u16;
        let volumes: Vec<Volume> = (0..volumes)
            .map(|index| {
                let size_bytes = blocks * BLOCK_BYTES as u64;
                let view = HostView {
                    view: View {
                        volume: VolumeId(index as u32 + 1),
                        snapshot: None,
                    },
                    placement: Placement {
                        shard_count,
                        rotation: index as u16 % shard_count,
                        object_blocks: OBJECT_BLOCKS,
                    },
                    size_bytes,
                    block_bytes: SECTOR_BYTES as u32,
                    read_only: false,
                };
                let model = VolumeModel::new(index as u32 + 1, size_bytes / SECTOR_BYTES as u64);
                let family = index as u32 + 1;
                Volume { view, family, model }
            })
            .collect();
        for volume in &volumes {
            for shard in 0..shard_count {
                let share_blocks = volume.view.placement.share_blocks(ShardIndex(shard), blocks);
                let volume = volume.view.view.volume;
                stage.control(
                    usize::from(shard),
                    ShardCommand::CreateVolume { volume, share_blocks },
                );
            }
        }
        stage.settle()?;
        Ok(Self {
            tick: 0,
            writes: Writes::default(),
            volumes,
            snapshots: BTreeMap::new(),
            operations: BTreeMap::new(),
            sent: 0,
            idle: (0..clients).collect(),
            answers_held: 0,
            refused: (0, 0),
            trace,
        })
    }

    /// Makes a clone of every volume, of a snapshot that is there and was looked at.
    ///
    /// # Errors
    /// If the shards do not make them.
    pub fn clone_all(&mut self, stage: &mut Stage, snapshot: u64) -> Result<(), Broken> {
        let tick = self.tick();
        let originals = self.volumes.len();
        for index in 0..originals {
            let (clone, origin) = (VolumeId((originals + index) as u32 + 1), &self.volumes[index]);
            for shard in 0..stage.shard_count() {
                let command = ShardCommand::CloneVolume {
                    volume: clone,
                    origin: origin.view.view.volume,
                    snapshot: SnapshotId(snapshot),
                };
                stage.control(shard, command);
            }
            let mut view = origin.view.clone();
            view.view.volume = clone;
            let shown = &self.snapshots[&snapshot].content[&index];
            let (family, model) = (
                origin.family,
                VolumeModel::of_snapshot(origin.family, shown, tick),
            );
            self.volumes.push(Volume { view, family, model });
        }
        stage.settle()
    }

    /// The next moment.
    pub fn tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("  tick {:>4}  {}", self.tick, what());
        }
    }

    /// Whether every operation was answered.
    #[must_use]
    pub fn all_answered(&self) -> bool {
        self.operations.is_empty()
    }

    /// The operations that were not answered, for somebody who wonders why.
    #[must_use]
    pub fn describe(&self) -> String {
        self.operations
            .values()
            .map(|operation| format!("\n    {operation}"))
            .collect()
    }

    /// Sends a write of whole sectors.
    pub fn write(&mut self, stage: &mut Stage, client: usize, volume: usize, range: Range, fua: bool) {
        let number = self.writes.send(false, self.tick + 1);
        self.send(stage, Some(client), Does::Write { number, fua }, volume, range);
    }

    /// Sends an operation on sectors.
    pub fn send(
        &mut self,
        stage: &mut Stage,
        client: Option<usize>,
        does: Does,
        volume: usize,
        range: Range,
    ) {
        let sent = self.tick();
        let target = &mut self.volumes[volume];
        if let Does::Write { number, .. } = does {
            target.model.write_sent(number, range);
        }
        self.sent += 1;
        let (mut view, family) = (target.view.clone(), target.family);
        if let Does::Look(snapshot) = does {
            view.view.snapshot = Some(SnapshotId(snapshot));
        }
        let (offset_bytes, length_bytes) = (bytes(range.first), bytes(range.count));
        let parts: Vec<Part> = match does {
            Does::Flush => Vec::new(),
            _ => view.parts(offset_bytes, length_bytes).collect(),
        };
        let token = |part: usize| Token(self.sent << PART_BITS | part as u64);
        let first = stage.requests.len();
        match does {
            Does::Flush => {
                let shards = 0..stage.shard_count() as u16;
                stage
                    .requests
                    .extend(shards.map(|shard| flush(token(0), ShardIndex(shard), view.view)));
            }
            _ => {
                let numbered = parts.iter().enumerate();
                let requests =
                    numbered.map(|(at, part)| request(token(at), does, &view, family, range, part));
                stage.requests.extend(requests);
            }
        }
        let operation = Operation {
            client,
            does,
            volume,
            offset_bytes,
            length_bytes,
            sent,
            waiting: stage.requests.len() - first,
            parts: parts.into_iter().map(|part| (part, None)).collect(),
        };
        self.trace(|| format!("send   {}: {operation}", self.sent));
        self.operations.insert(self.sent, operation);
    }

    /// Reads a volume, or a snapshot of it, from end to end.
    pub fn look(&mut self, stage: &mut Stage, does: Does, volume: usize) {
        let count = self.volumes[volume].model.sectors();
        self.send(stage, None, does, volume, Range { first: 0, count });
    }

    /// Takes in an answer; checks the operation if it was the last one.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn answered(&mut self, answer: ShardAnswer) -> Result<(), Broken> {
        let id = answer.token.0 >> PART_BITS;
        let part = (answer.token.0 & ((1 << PART_BITS) - 1)) as usize;
        let Some(operation) = self.operations.get_mut(&id) else {
            return Err(Broken(format!(
                "operation {id} was answered more often than asked"
            )));
        };
        if let Err(error) = answer.result {
            return Err(failed(&operation.to_string(), error));
        }
        if let Some(part) = operation.parts.get_mut(part) {
            part.1 = answer.buffer;
        }
        operation.waiting -= 1;
        if operation.waiting > 0 {
            return Ok(());
        }
        let operation = self.operations.remove(&id).expect("found above");
        let ended = self.tick();
        self.trace(|| format!("answer {id}: {operation}"));
        self.idle.extend(operation.client);
        self.check(&operation, ended)
            .map_err(|Broken(why)| Broken(format!("{operation}: {why}")))
    }

    fn check(&mut self, operation: &Operation, ended: Tick) -> Result<(), Broken> {
        match operation.does {
            Does::Write { number, fua } => self.writes.end(number, true, fua, ended),
            Does::Flush => self.writes.flushed(operation.sent),
            Does::Read | Does::Look(_) | Does::Recovered(_) => {
                let mut all = Vec::with_capacity(operation.length_bytes as usize);
                for (part, buffer) in &operation.parts {
                    let bytes = buffer.as_ref().expect("a read gives its buffer back").bytes();
                    let skip = part.skip_bytes as usize;
                    all.extend_from_slice(&bytes[skip..skip + part.length_bytes as usize]);
                }
                let first = operation.offset_bytes / SECTOR_BYTES as u64;
                let Self { writes, volumes, .. } = self;
                let model = &mut volumes[operation.volume].model;
                match operation.does {
                    Does::Look(id) => self.looked(id, operation.volume, &all)?,
                    Does::Recovered(crash) => model.check_recovered(writes, crash, first, &all, ended)?,
                    _ => model.check_read(writes, first, &all, operation.sent, ended)?,
                }
            }
        }
        Ok(())
    }

    /// The first look at a snapshot says what it shows, and whether that is one instant; every other look must show the
    /// same.
    fn looked(&mut self, id: u64, volume: usize, bytes: &[u8]) -> Result<(), Broken> {
        let snapshot = self
            .snapshots
            .get_mut(&id)
            .expect("only known snapshots are looked at");
        let model = &self.volumes[volume].model;
        if let Some(content) = snapshot.content.get(&volume) {
            for (at, bytes) in (0..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
                if model.shown(at, bytes)? != content[at as usize] {
                    return Err(Broken(format!(
                        "I6: snapshot {id} of volume {volume} has changed at sector {at}"
                    )));
                }
            }
            return Ok(());
        }
        let mut content = Vec::new();
        model.check_snapshot(&self.writes, 0, bytes, &mut snapshot.bounds, &mut content)?;
        snapshot.content.insert(volume, content);
        snapshot
            .bounds
            .check()
            .map_err(|why| Broken(format!("I7: snapshot {id} is not one instant: {why}")))
    }

    /// Asks for a snapshot. False if nobody takes it.
    pub fn ask(&mut self, stage: &mut Stage, volumes: Vec<usize>, limits: Limits) -> bool {
        let sent = self.tick();
        let id = self.snapshots.len() as u64 + 1;
        let request = SnapshotRequest {
            snapshot: SnapshotId(id),
            name: format!("s{id}"),
            volumes: volumes
                .iter()
                .map(|&volume| SnapshotVolume {
                    volume: self.volumes[volume].view.view.volume,
                    owner: self.volumes[volume].view.view.volume,
                    size_bytes: self.volumes[volume].view.size_bytes,
                })
                .collect(),
            marks: Marks::default(),
            shard_count: stage.shard_count() as u16,
            hold_limit_ns: limits.hold_ns,
            step_limit_ns: limits.step_ns,
        };
        if !stage.ask(request) {
            return false;
        }
        self.trace(|| format!("ask    snapshot {id} of {volumes:?}"));
        let snapshot = Snapshot {
            volumes,
            known: Known::Asked,
            bounds: CutBounds::new(sent, u64::MAX),
            content: BTreeMap::new(),
            limits,
        };
        self.snapshots.insert(id, snapshot);
        true
    }

    /// The coordinator told how a snapshot ended; a confirmed one is looked at.
    ///
    /// # Errors
    /// A hold that was too long.
    pub fn snapshot_ended(
        &mut self,
        stage: &mut Stage,
        id: SnapshotId,
        result: &Result<OverallSnapshot, SnapshotError>,
    ) -> Result<(), Broken> {
        let tick = self.tick();
        self.trace(|| format!("end    snapshot {}: {result:?}", id.0));
        let snapshot = self.snapshots.get_mut(&id.0).expect("snapshots stay known");
        snapshot.bounds.answered = tick;
        snapshot.known = match result {
            Ok(overall) if overall.hold_ns_max() > snapshot.limits.hold_ns => {
                return Err(Broken(format!(
                    "I9: snapshot {} was held for longer than its limit",
                    id.0
                )));
            }
            Ok(_) => Known::There,
            Err(SnapshotError::InDoubt { .. }) => Known::InDoubt,
            Err(SnapshotError::Refused { .. }) => {
                let is_clone =
                    |volume: &usize| self.volumes[*volume].family != self.volumes[*volume].view.view.volume.0;
                self.refused.0 += 1;
                self.refused.1 += u64::from(snapshot.volumes.iter().any(is_clone));
                Known::NotThere
            }
            Err(_) => Known::NotThere,
        };
        self.answers_held += result.as_ref().map_or(0, OverallSnapshot::answers_held);
        if snapshot.known == Known::There {
            for volume in snapshot.volumes.clone() {
                self.look(stage, Does::Look(id.0), volume);
            }
        }
        Ok(())
    }

    /// All connections broke.
    pub fn crash(&mut self) -> Tick {
        let tick = self.tick();
        self.writes.crash(tick);
        for operation in std::mem::take(&mut self.operations).into_values() {
            self.idle.extend(operation.client);
        }
        for snapshot in self.snapshots.values_mut() {
            snapshot.bounds.answered = snapshot.bounds.answered.min(tick);
        }
        tick
    }
}

fn bytes(sectors: u64) -> u64 {
    sectors * SECTOR_BYTES as u64
}

fn flush(token: Token, shard: ShardIndex, view: View) -> ShardRequest {
    ShardRequest {
        token,
        shard,
        view,
        kind: RequestKind::Flush,
        first: ShareBlock(0),
        blocks: 0,
        skip_bytes: 0,
        length_bytes: 0,
        buffer: None,
        since_ns: 0,
    }
}

fn request(
    token: Token,
    does: Does,
    view: &HostView,
    family: u32,
    range: Range,
    part: &Part,
) -> ShardRequest {
    let mut buffer = Buffer::owned(part.blocks as usize * BLOCK_BYTES);
    let kind = match does {
        Does::Write { number, fua } => {
            // What lies around the data must never reach a device.
            buffer.bytes_mut().fill(0xB7);
            let (start, length) = (part.skip_bytes as usize, part.length_bytes as usize);
            let sector = range.first + part.offset_bytes / SECTOR_BYTES as u64;
            let data = &mut buffer.bytes_mut()[start..start + length];
            stamp::fill(number, family, sector, data);
            RequestKind::Write { fua }
        }
        _ => RequestKind::Read,
    };
    ShardRequest {
        token,
        shard: part.shard,
        view: view.view,
        kind,
        first: part.first,
        blocks: part.blocks,
        skip_bytes: part.skip_bytes,
        length_bytes: part.length_bytes,
        buffer: Some(buffer),
        since_ns: 0,
    }
}

const _: () = assert!(SECTORS_PER_BLOCK * SECTOR_BYTES as u64 == BLOCK_BYTES as u64);
