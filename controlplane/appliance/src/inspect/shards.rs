//! All shards of a pool, on several threads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::model::ProblemInfo;
use crate::catalog::Catalog;
use crate::daemon::TailDirectory;
use crate::error::{Error, Result};
use crate::label::PoolDevices;
use stillpoint_hw::clock::Clock;
use stillpoint_hw::device::{Opener, PoolFiles};
use stillpoint_hw::tail;
use stillpoint_processor::mirror::MirroredOpener;
use stillpoint_processor::ports::{LogTail, MemoryTail, Side};
use stillpoint_processor::shard::check::{CheckedShard, Depth, Mend, check_shard};
use stillpoint_processor::{ShardIndex, SnapshotId, VolumeId};

/// What was found out about a pool.
pub(super) struct CheckedPool {
    /// By shard.
    pub(super) shards: Vec<CheckedShard>,
    /// The log tail of each.
    pub(super) tails: Vec<Option<MemoryTail>>,
    /// `None` if it cannot be told.
    pub(super) catalog: Option<Catalog>,
    pub(super) of_pool: Vec<ProblemInfo>,
    pub(super) label_mends: Vec<Mend>,
    /// What opening the pool will do by itself.
    pub(super) told: Vec<String>,
    pub(super) unconfirmed: BTreeMap<ShardIndex, Vec<(VolumeId, SnapshotId)>>,
}

impl CheckedPool {
    pub(super) fn about_labels(&mut self, problem: ProblemInfo, mend: Option<Mend>) {
        self.of_pool.push(problem);
        self.label_mends.extend(mend);
    }

    /// What can be mended, in the order in which it has to be done.
    pub(super) fn mends(&self) -> impl Iterator<Item = &Mend> {
        let of_shards = self.shards.iter().flat_map(|shard| &shard.mends);
        self.label_mends.iter().chain(of_shards)
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.told.clone()
    }

    /// What is to be dropped on each shard that can be opened once it is mended.
    pub(super) fn unconfirmed(
        mut self,
    ) -> impl Iterator<Item = (ShardIndex, MemoryOrNone, Vec<(VolumeId, SnapshotId)>)> {
        let shards = std::mem::take(&mut self.unconfirmed).into_iter();
        shards.filter_map(move |(shard, unconfirmed)| {
            let report = &self.shards[usize::from(shard.0)].report;
            let tail = self.tails[usize::from(shard.0)].take();
            let opens = !report.has("log") && !report.has("root");
            opens.then_some((shard, MemoryOrNone(tail), unconfirmed))
        })
    }
}

/// A copy of a log tail, or none.
pub(super) struct MemoryOrNone(pub(super) Option<MemoryTail>);

impl LogTail for MemoryOrNone {
    fn is_there(&self) -> bool {
        self.0.is_some()
    }

    fn segment(&mut self, index: usize) -> &mut [u8] {
        self.0.as_mut().map_or(&mut [], |tail| tail.segment(index))
    }
}

/// Checks all shards.
pub(super) fn check(
    devices: &PoolDevices,
    files: &Arc<PoolFiles>,
    tails: &TailDirectory,
    depth: Depth,
) -> Result<CheckedPool> {
    let count = devices.layout.shard_count;
    let mut found_tails = Vec::with_capacity(usize::from(count));
    for shard in 0..count {
        found_tails.push(find_tail(devices, tails, ShardIndex(shard))?);
    }
    let next = AtomicU16::new(0);
    let done: Mutex<BTreeMap<u16, CheckedShard>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(usize::from(count)) {
            scope.spawn(|| {
                let opener = Opener::new(files.clone());
                loop {
                    let shard = next.fetch_add(1, Ordering::Relaxed);
                    if shard >= count {
                        return;
                    }
                    let mut tail = MemoryOrNone(found_tails[usize::from(shard)].clone());
                    let (layout, shard_index) = (&devices.layout, ShardIndex(shard));
                    let now = Clock::new().now();
                    let mut opener = opener.clone();
                    let checked = match &devices.mirrors {
                        None => check_shard(layout, shard_index, &mut opener, &mut tail, depth, now),
                        Some(label) => {
                            // Nothing is written: what is not the same on both sides stays so.
                            let mut both = MirroredOpener::new(
                                opener,
                                layout,
                                shard_index,
                                label.sides(&[]),
                                Side::First,
                            );
                            check_shard(layout, shard_index, &mut both, &mut tail, depth, now)
                        }
                    };
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.insert(shard, checked);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(CheckedPool {
        shards: done.into_values().collect(),
        tails: found_tails,
        catalog: None,
        of_pool: Vec::new(),
        label_mends: Vec::new(),
        told: Vec::new(),
        unconfirmed: BTreeMap::new(),
    })
}

/// The log tail of a shard, wherever it lies.
fn find_tail(devices: &PoolDevices, wanted: &TailDirectory, shard: ShardIndex) -> Result<Option<MemoryTail>> {
    let directories: Vec<PathBuf> = match wanted {
        TailDirectory::None => Vec::new(),
        TailDirectory::Given(path) => vec![path.clone()],
        TailDirectory::Chosen => tail::tail_directories(),
    };
    if directories.is_empty() {
        return Ok(None);
    }
    let boot = tail::boot_id().map_err(|error| Error::failure(format!("the kernel's boot id: {error}")))?;
    for directory in directories {
        let found = tail::read(&directory, devices.layout.pool, boot, shard).map_err(|error| {
            Error::failure(error.to_string()).hint("--tail-dir DIR names another directory")
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
