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
use stillpoint_processor::{
    Backlog, Processor, RecoveryReport, Shard, ShardIndex, ShardOptions, SnapshotId, Ticket,
};
use tokio::sync::oneshot;

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
    pub processor: Processor<Devices, FileTail>,
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
    pub result: Result<(Vec<Shard<FileTail>>, Vec<RecoveredShard>), OpenPoolError>,
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

fn open_shards(part: &PoolPart) -> Result<(Vec<Shard<FileTail>>, Vec<RecoveredShard>), OpenPoolError> {
    let mut shards = Vec::with_capacity(part.shards.len());
    let mut recovered = Vec::with_capacity(part.shards.len());
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
            let (shard, found) = opened?;
            shards.push(shard);
            recovered.push(found);
        }
    }
    Ok((shards, recovered))
}

fn open_shard(
    part: &PoolPart,
    shard: ShardIndex,
) -> Result<(Shard<FileTail>, RecoveredShard), OpenPoolError> {
    let began = Instant::now();
    let failed = |message: String| OpenPoolError {
        shard: Some(shard),
        device: None,
        message,
    };
    let tail = open_tail(part, shard).map_err(&failed)?;
    let (shard, report) = Shard::open(
        &part.layout,
        shard,
        &mut Opener::new(Arc::clone(&part.files)),
        tail,
        shard_options(part),
        Clock::new().now(),
    )
    .map_err(|error| failed(error.to_string()))?;
    let recovery_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let recovered = describe(&shard, &report, recovery_ns);
    Ok((shard, recovered))
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
    pub fn new(processor: Processor<Devices, FileTail>, owners: Vec<ProcessorIndex>) -> Self {
        Self {
            processor,
            owners,
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

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.backlog.is_empty()
            && self.commands.is_empty()
            && self.coordinator.is_idle()
            && self.processor.is_quiet()
    }

    /// The monotonic time at which the pool has to be polled even if nothing happens.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let shards = self.processor.next_deadline_ns();
        let coordinator = self.coordinator.next_deadline_ns();
        shards.into_iter().chain(coordinator).min()
    }
}
