//! The clients, the control plane and what they know: sends operations into a [`Machine`], checks every answer.
//!
//! | file | what it does |
//! |---|---|
//! | `operations.rs` | reads, writes, flushes, discards of clients, and the checks of their answers |
//! | `jobs.rs` | the control plane: volumes, snapshots, checkpoints, in the order of commands that is safe at a crash |
//! | `change_logs.rs`, `change_log_count.rs` | change log volumes, and what they must hold |
//! | `clones.rs` | clones and rollbacks |
//! | `deletion.rs` | volumes that are deleted, with their snapshots or without |
//! | `promotion.rs` | clones that take over the snapshots of what they were made of |
//! | `looks.rs` | whole volumes and snapshots read and compared |
//! | `exports.rs` | what is offered over NBD, and what waits until something no longer is |
//! | `hosts.rs` | clients of NBD: connections made, read, cut |
//! | `nbd.rs` | their requests, and the checks of the replies |
//! | `recorder.rs` | the history of a run of reads, writes and snapshots |
//! | `audit.rs` | the devices, read without the code that wrote them |
//! | `sides.rs` | the sides of mirrored devices: lost, back, rotten; the labels |
//! | `recovery.rs` | crash, open, reconcile with the catalog, compare |
//! | `workload.rs` | what the clients and the operator happen to want next |

mod audit;
mod change_log_count;
mod change_logs;
mod clones;
mod deletion;
mod exports;
mod hosts;
mod jobs;
mod looks;
mod nbd;
mod operations;
mod promotion;
mod recorder;
mod recovery;
mod sides;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::command::ShardStatus;
use stillpoint_processor::host_view::{HostView, Placement};
use stillpoint_processor::{ShardIndex, SnapshotId, View, VolumeId};

use crate::device::Devices;
use crate::machine::{Machine, News, Stuck};
use crate::memory::TailShelf;
use crate::model::{Broken, CutBounds, Tick, VolumeModel, Writes};
use crate::random::Random;
use crate::scenario::Plan;
use crate::stamp::{SECTOR_BYTES, Shown};

use change_logs::ChangeLog;
use clones::Knot;
use exports::Exports;
use hosts::Hosts;
use jobs::Job;
use operations::Operation;
use recorder::Recorder;
use sides::Pairs;

/// Turns of one life at most, for each of its operations: beyond it something runs in circles. (A processor whose
/// device queue is full takes turns until there is room.)
const TURNS_PER_OPERATION_MAX: u64 = 12_000;
/// Turns of one life that need no operations.
const TURNS_MAX: u64 = 3_000_000;

/// A virtual volume, as its clients know it: the shares of one number.
#[derive(Debug)]
pub struct Volume {
    id: u32,
    /// The number of its row in the catalog. A volume that was rolled back has other shares, and the same row.
    row: u32,
    /// The volume that it, or what it was made of, was first: sectors are stamped with it.
    family: u32,
    /// What it was made of.
    origin: Option<Knot>,
    /// What its row says that it was cloned from: volume and snapshot. Promotions change that.
    row_origin: Option<(u32, u64)>,
    /// What its row is about to say.
    becomes: Option<Option<(u32, u64)>>,
    /// Its change log volume, 0 if none; and what its row is about to say.
    change_log: u32,
    becomes_log: Option<u32>,
    /// The shares that it takes the place of, if it is what a rollback led to.
    replaces: Option<u32>,
    /// It is to be rolled back when its safety snapshot is there.
    rolls_back_to: Option<Knot>,
    /// That snapshot is there: nothing but what clients have begun is waited for.
    rolls_back_now: bool,
    placement: Placement,
    block_bytes: u32,
    size_bytes: u64,
    /// What sessions see as its size.
    shown_bytes: u64,
    model: VolumeModel,
    state: State,
    /// Operations on it that were not answered yet, those through NBD not counted.
    in_flight: usize,
    /// It is part of a snapshot being made, or a job changes it.
    job: bool,
    /// Its size is being changed, or it is being made or deleted: clients leave it alone.
    resizing: bool,
}

/// Whether a volume or a snapshot exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was asked for. After a crash it may be there, whole, or not.
    Asked,
    /// It was confirmed.
    There,
    /// Its end was asked for. After a crash it may be there, whole, or not.
    Ending,
    /// It never was, or is no more.
    Gone,
}

/// A snapshot, as its clients know it.
#[derive(Debug)]
pub struct Snapshot {
    id: u64,
    /// Volumes with their sizes at the time.
    volumes: Vec<(u32, u64)>,
    /// For each of them the volume whose snapshot it is.
    owners: BTreeMap<u32, u32>,
    /// What goes over to a clone that is being promoted: shares, and the clone's row.
    goes: Option<(u32, u32)>,
    /// The volume that is being deleted together with it.
    ends_with: Option<u32>,
    /// The change log volume that it is deleted to make room in.
    dropped_for: Option<u32>,
    state: State,
    bounds: CutBounds,
    /// What each volume shows, once it was looked at.
    content: BTreeMap<u32, Vec<Shown>>,
    hold_limit_ns: u64,
    /// Jobs that make something of it: it is not deleted meanwhile.
    cloning: u32,
}

/// What a run came across: a simulation that never gets into trouble proves nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(pub BTreeMap<&'static str, u64>);

impl Coverage {
    /// Counts one more.
    pub fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// Counts `number` more.
    pub fn add(&mut self, what: &'static str, number: u64) {
        *self.0.entry(what).or_default() += number;
    }

    /// Adds up two runs.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, count)| self.add(what, *count));
    }
}

/// A pool and all who use it.
pub struct World {
    plan: Plan,
    layout: Layout,
    devices: Devices,
    tails: Vec<TailShelf>,
    machine: Machine,
    random: Random,
    tick: Tick,
    writes: Writes,
    volumes: BTreeMap<u32, Volume>,
    snapshots: BTreeMap<u64, Snapshot>,
    operations: BTreeMap<u64, Operation>,
    operations_sent: u64,
    jobs: BTreeMap<u64, Job>,
    jobs_begun: u64,
    /// A clone is being promoted.
    promoting: bool,
    change_logs: BTreeMap<u32, ChangeLog>,
    /// The change log volume of every share, as the shards were told.
    attached: BTreeMap<u32, u32>,
    /// Families of volumes of which something was discarded or cut off.
    discarded: BTreeSet<u32>,
    /// A recovery dropped writes that had not arrived.
    has_dropped: bool,
    /// Change log volumes in which room is being made.
    making_room: BTreeSet<u32>,
    next_volume: u32,
    next_snapshot: u64,
    /// Clients that want to send something now.
    idle_clients: Vec<usize>,
    /// Snapshots that the coordinator works on.
    snapshots_asked: usize,
    /// What the last status job brought.
    statuses: BTreeMap<u16, ShardStatus>,
    /// Steps after which the coordinator dies.
    coordinator_dies_after: Option<u64>,
    /// Calls that the last opening took.
    open_calls: u64,
    exports: Exports,
    hosts: Hosts,
    /// The sides of the devices, if they have two.
    pairs: Option<Box<Pairs>>,
    recorder: Option<Box<Recorder>>,
    /// What happened.
    pub coverage: Coverage,
    trace: bool,
}

/// A law was broken: which, and what led there.
pub type Checked<T = ()> = Result<T, Broken>;

fn broken<T>(what: impl fmt::Display) -> Checked<T> {
    Err(Broken(what.to_string()))
}

impl Volume {
    fn sectors(&self) -> u64 {
        self.size_bytes / SECTOR_BYTES as u64
    }

    fn host_view(&self, snapshot: Option<(u64, u64)>) -> HostView {
        HostView {
            view: View {
                volume: VolumeId(self.id),
                snapshot: snapshot.map(|(id, _)| SnapshotId(id)),
            },
            placement: self.placement,
            size_bytes: snapshot.map_or(self.size_bytes, |(_, size_bytes)| size_bytes),
            block_bytes: self.block_bytes,
            read_only: snapshot.is_some(),
        }
    }
}

impl World {
    fn tick(&mut self) -> Tick {
        self.tick += 1;
        if let Some(recorder) = &mut self.recorder {
            recorder.tick(self.machine.now().monotonic_ns);
        }
        self.tick
    }

    fn shards(&self) -> impl Iterator<Item = ShardIndex> + use<> {
        (0..self.layout.shard_count).map(ShardIndex)
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!(
                "{:>12} ns  tick {:>6}  {}",
                self.machine.now().monotonic_ns,
                self.tick,
                what()
            );
        }
    }

    /// Lets the next thing happen and takes in what it brings.
    fn step(&mut self) -> Checked {
        let longest = self.plan.operations.iter().max().copied().unwrap_or(0);
        if self.machine.turns() > TURNS_MAX + longest * TURNS_PER_OPERATION_MAX {
            return broken("the processors run in circles: too many turns");
        }
        match self.coordinator_dies_after {
            Some(0) => {
                self.coordinator_dies_after = None;
                // What it was asked for is never answered; holds end by themselves.
                self.snapshots_asked = 0;
                self.machine.kill_coordinator();
                self.coverage.count("coordinators that died");
            }
            Some(steps) => self.coordinator_dies_after = Some(steps - 1),
            None => {}
        }
        match self.machine.step() {
            Ok(None) => Ok(()),
            Ok(Some(News::Answer(answer))) => self.answered(answer),
            Ok(Some(News::Event(event))) => self.event(event),
            Ok(Some(News::Snapshot { snapshot, result })) => self.snapshot_ended(snapshot, result),
            Ok(Some(News::Mirror(seat, notice))) => self.mirror_noticed(seat, notice),
            Ok(Some(News::MirrorDid(seat, order))) => {
                self.mirror_did(seat, order);
                Ok(())
            }
            Ok(Some(News::Alarm(mark))) if sides::is_for_sides(mark) => self.sides_alarmed(mark),
            Ok(Some(News::Alarm(mark))) => {
                self.alarmed(mark);
                Ok(())
            }
            Ok(Some(News::Heard(connection, heard))) => self.host_heard(connection, heard),
            Ok(Some(News::Gone(connection))) => {
                self.connection_gone(connection);
                Ok(())
            }
            Ok(Some(News::Published(number))) => {
                self.published(number);
                Ok(())
            }
            Err(Stuck::Hold { seat }) => {
                broken(format!("I9: processor {seat} holds answers beyond the deadline"))
            }
            Err(Stuck::Idle) => broken(self.describe_hang()),
        }
    }

    /// Goes on until there are no operations, jobs and messages left.
    fn settle(&mut self) -> Checked {
        while !(self.operations.is_empty() && self.is_idle_but_for_clients() && self.machine.is_quiet()) {
            self.step()?;
        }
        Ok(())
    }

    /// Whether no job goes on and no request of a host waits for its reply.
    fn is_idle_but_for_clients(&self) -> bool {
        self.jobs.is_empty() && self.exports.is_idle() && self.hosts.is_idle()
    }

    fn describe_hang(&self) -> String {
        let mut text = "nothing will ever happen again, but these were not answered:".to_string();
        for operation in self.operations.values() {
            text += &format!("\n    {operation}");
        }
        for job in self.jobs.values() {
            text += &format!("\n    {job}");
        }
        text + &self.hosts.describe() + &self.exports.describe() + &self.machine.describe()
    }
}
