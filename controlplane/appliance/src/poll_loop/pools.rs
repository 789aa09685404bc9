//! The pools as one poll loop sees them: its processor, who owns which shard, who waits for what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use stillpoint_coordinator::{Coordinator, OverallSnapshot, SnapshotError};
use stillpoint_hw::clock::Clock;
use stillpoint_hw::device::{Devices, Opener};
use stillpoint_hw::tail::{self, FileTail};
use stillpoint_hw::wake::Waker;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::mirror::{
    MirrorNotice, MirroredOpener, Mirrors, SideAt, Sides, StaleAt, load_stale,
};
use stillpoint_processor::ports::{OpenDevice, Side};
use stillpoint_processor::{
    Backlog, DeviceIndex, Processor, RecoveryReport, Shard, ShardIndex, ShardOptions, SnapshotId, Ticket,
};
use tokio::sync::oneshot;

use super::stalls::Stalls;
use crate::mailbox::{OpenPoolError, PoolIndex, PoolPart, ProcessorIndex, RecoveredShard};

/// Map pages that a shard may hold in memory at least (1 MiB), whatever `--map-cache` says: a few requests that each need
/// several pages must find room at the same time.
const MAP_CACHE_PAGES_MIN: u64 = 256;

/// Shards of one processor that are opened side by side: they wait for devices, mostly.
const SHARDS_AT_ONCE: usize = 8;

/// Who waits for a pool to be open.
pub type OpenReply = oneshot::Sender<Result<Vec<RecoveredShard>, OpenPoolError>>;

/// A pool that is open.
pub struct OpenPool {
    /// The shards of this loop.
    pub processor: Processor<Mirrors<Devices>, FileTail>,
    /// What its mirrors said, and the control plane had no room for.
    pub untold: Option<MirrorNotice>,
    /// Devices that do not answer.
    pub stalls: Stalls,
    /// The number with which each side was attached last; none for those that were there from the start, which have the first.
    pub passes: BTreeMap<SideAt, u64>,
    /// [`PoolPart::first_pass`].
    pub first_pass: u64,
    /// The owner of every shard.
    pub owners: Vec<ProcessorIndex>,
    /// Requests that found their shard working on as many as it may.
    pub backlog: Backlog,
    /// Takes the snapshots; used on processor 0.
    pub coordinator: Coordinator,
    /// Commands of the control plane that are under way.
    pub commands: BTreeMap<Ticket, oneshot::Sender<EventKind>>,
    /// Snapshots that are being taken.
    pub snapshots: BTreeMap<SnapshotId, oneshot::Sender<Result<OverallSnapshot, SnapshotError>>>,
    /// The pool is being closed.
    pub closing: Option<Closing>,
}

/// A pool on its way out.
pub struct Closing {
    /// Who waits.
    pub reply: oneshot::Sender<Result<(), String>>,
    /// Checkpoints that have not ended; `None` before they were asked for.
    pub checkpoints: Option<Vec<Ticket>>,
    /// What went wrong.
    pub error: Option<String>,
}

/// Shards that a helper thread has opened.
pub struct Opened {
    /// The pool.
    pub pool: PoolIndex,
    /// What was asked for.
    pub part: Box<PoolPart>,
    /// Who waits.
    pub reply: OpenReply,
    /// The shards and what they brought back.
    pub result: Result<OpenedShards, OpenPoolError>,
}

/// Shards that are open.
#[derive(Default)]
pub struct OpenedShards {
    /// The shards.
    pub shards: Vec<Shard<FileTail>>,
    /// What each brought back.
    pub recovered: Vec<RecoveredShard>,
    /// What the sides of mirrors that are not in sync lack of them.
    pub stale: Vec<StaleAt>,
}

/// Opens the shards on a thread of their own, since recovery waits for devices; the loop goes on meanwhile.
pub fn open_in_the_background(
    pool: PoolIndex,
    part: Box<PoolPart>,
    reply: OpenReply,
    done: Sender<Opened>,
    waker: Waker,
) {
    let work = move || {
        let result = open_shards(&part);
        // If the loop has ended nobody wants the shards.
        let _ = done.send(Opened {
            pool,
            part,
            reply,
            result,
        });
        waker.wake();
    };
    // Without a thread the reply is dropped, which its receiver sees.
    if let Err(error) = std::thread::Builder::new()
        .name(String::from("open-pool"))
        .spawn(work)
    {
        tracing::error!("cannot start a thread to open a pool: {error}");
    }
}

fn open_shards(part: &PoolPart) -> Result<OpenedShards, OpenPoolError> {
    let mut all = OpenedShards::default();
    for some in part.shards.chunks(SHARDS_AT_ONCE) {
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = |&shard| {
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || open_shard(part, shard));
                (shard, thread.ok())
            };
            let threads: Vec<_> = some.iter().map(open).collect();
            let opened = threads.into_iter().map(|(shard, thread)| match thread {
                Some(thread) => thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                None => open_shard(part, shard), // the system has no thread to give
            });
            opened.collect()
        });
        for opened in opened {
            let (shard, found, stale) = opened?;
            all.shards.push(shard);
            all.recovered.push(found);
            all.stale.extend(stale);
        }
    }
    Ok(all)
}

fn open_shard(
    part: &PoolPart,
    index: ShardIndex,
) -> Result<(Shard<FileTail>, RecoveredShard, Vec<StaleAt>), OpenPoolError> {
    let began = Instant::now();
    let opener = Opener::new(Arc::clone(&part.files));
    let (shard, report, stale) = match &part.sides {
        None => {
            let (shard, report) = open_over(part, index, &mut { opener })?;
            (shard, report, Vec::new())
        }
        Some(sides) => open_mirrored(part, index, opener, sides)?,
    };
    let recovery_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let recovered = describe(&shard, &report, recovery_ns);
    Ok((shard, recovered, stale))
}

fn open_over(
    part: &PoolPart,
    shard: ShardIndex,
    devices: &mut impl OpenDevice,
) -> Result<(Shard<FileTail>, RecoveryReport), OpenPoolError> {
    let failed = |message: String| OpenPoolError {
        shard: Some(shard),
        device: None,
        side: None,
        message,
    };
    let tail = open_tail(part, shard).map_err(&failed)?;
    let now = Clock::new().now();
    Shard::open(&part.layout, shard, devices, tail, shard_options(part), now)
        .map_err(|error| failed(error.to_string()))
}

/// The same over devices with two sides. What one side has damaged beyond what is mended page by page may be whole on the other.
fn open_mirrored(
    part: &PoolPart,
    shard: ShardIndex,
    opener: Opener,
    sides: &[Sides],
) -> Result<(Shard<FileTail>, RecoveryReport, Vec<StaleAt>), OpenPoolError> {
    let mut failure = None;
    for preferred in Side::BOTH {
        let mut devices = MirroredOpener::new(opener.clone(), &part.layout, shard, sides.to_vec(), preferred);
        let (opened, report) = match open_over(part, shard, &mut devices) {
            Ok(opened) => opened,
            Err(error) => {
                failure = failure.or(Some(error));
                continue;
            }
        };
        let settled = devices.settle().map_err(|failed| OpenPoolError {
            shard: Some(shard),
            device: None,
            side: Some(failed),
            message: failed.to_string(),
        });
        let mut opener = settled?;
        let mut stale = Vec::new();
        for (device, sides) in sides.iter().enumerate() {
            if let Sides::Only { side, episode, .. } = *sides {
                let device = DeviceIndex(device as u8);
                let at = SideAt { device, side }.other();
                stale.push(load_stale(&mut opener, &part.layout, shard, at, episode));
            }
        }
        return Ok((opened, report, stale));
    }
    Err(failure.expect("it was tried"))
}

fn open_tail(part: &PoolPart, shard: ShardIndex) -> Result<FileTail, String> {
    let Some(directory) = &part.options.tail_directory else {
        return Ok(FileTail::none());
    };
    let boot = tail::boot_id().map_err(|error| format!("the kernel's boot id: {error}"))?;
    let (tail, _) = FileTail::open(directory, part.layout.pool, boot, shard)
        .map_err(|error| format!("log tail: {error}"))?;
    Ok(tail)
}

fn shard_options(part: &PoolPart) -> ShardOptions {
    let pages = part.options.map_cache_bytes / stillpoint_processor::BLOCK_BYTES as u64;
    let share = pages / u64::from(part.layout.shard_count).max(1);
    ShardOptions {
        map_cache_pages: share.max(MAP_CACHE_PAGES_MIN) as usize,
        #[cfg(feature = "planted-bugs")]
        planted_bug: super::planted::picked(super::planted::ANSWERS_NOT_HELD)
            .then_some(stillpoint_processor::PlantedBug::AnswersNotHeld),
        ..ShardOptions::default()
    }
}

fn describe(shard: &Shard<FileTail>, report: &RecoveryReport, recovery_ns: u64) -> RecoveredShard {
    let mut remarks = Vec::new();
    if !report.tail_fitted && report.log_records > 0 {
        remarks.push(format!(
            "no log tail fits: after a power cut or on another machine; {} blocks not known to be durable were verified",
            report.verified_blocks
        ));
    }
    if report.dropped_blocks > 0 {
        remarks.push(format!(
            "{} blocks written after the last flush had not reached the device; they keep their older content",
            report.dropped_blocks
        ));
    }
    RecoveredShard {
        shard: shard.index(),
        volumes: shard.shares().map(|volume| volume.status()).collect(),
        snapshots: shard
            .shares()
            .map(|volume| (volume.id, volume.snapshot_statuses()))
            .collect(),
        catalog: shard.catalog(),
        log_records: report.log_records,
        tail_records: report.tail_records,
        recovery_ns,
        remarks,
    }
}

impl OpenPool {
    /// A pool whose shards are open.
    pub fn new(processor: Processor<Mirrors<Devices>, FileTail>, part: &PoolPart) -> Self {
        Self {
            processor,
            untold: None,
            stalls: Stalls::of_places(part.files.places()),
            passes: BTreeMap::new(),
            first_pass: part.first_pass,
            owners: part.owners.clone(),
            backlog: Backlog::default(),
            coordinator: Coordinator::new(),
            commands: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            closing: None,
        }
    }

    /// The owner of a shard.
    pub fn owner(&self, shard: ShardIndex) -> usize {
        usize::from(self.owners[usize::from(shard.0)].0)
    }

    /// What is copied to a side from now on is told with this number; what was said before, and not heard, is of no use any more.
    pub fn begin_pass(&mut self, at: SideAt, pass: u64) {
        self.passes.insert(at, pass);
        self.untold
            .take_if(|untold| *untold == MirrorNotice::Resynced { at });
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.backlog.is_empty()
            && self.commands.is_empty()
            && self.coordinator.is_idle()
            && self.processor.is_quiet()
            && self.processor.device().is_quiet()
    }

    /// Whether a turn would find something to do without waiting for a device.
    pub fn has_ready_work(&self) -> bool {
        self.processor.has_ready_work() || self.processor.device().has_ready_work()
    }

    /// The monotonic time at which the pool has to be polled even if nothing happens.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let shards = self.processor.next_deadline_ns();
        let coordinator = self.coordinator.next_deadline_ns();
        let mirrors = self.processor.device().next_deadline_ns();
        let in_flight = self.processor.device().inner().in_flight() > 0;
        let stalls = in_flight.then(|| self.stalls.next_deadline_ns());
        let deadlines = shards.into_iter().chain(coordinator).chain(mirrors).chain(stalls);
        deadlines.min()
    }
}
