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
use stillpoint_processor::mirror::{MirroredOpener, Sides};
use stillpoint_processor::ports::{LogTail, MemoryTail, Side};
use stillpoint_processor::shard::check::{CheckedShard, Depth, Mend, check_shard};
use stillpoint_processor::{ShardIndex, SnapshotId, VolumeId};

/// What was found out about a pool.
pub(super) struct CheckedPool {
    /// By shard. Of a pool with mirrors: on the first side of every device that has both in sync.
    pub(super) shards: Vec<CheckedShard>,
    /// The same on the second sides; nothing if there are none.
    pub(super) second: Vec<CheckedShard>,
    /// What both sides come to together; nothing if there are none.
    pub(super) merged: Vec<CheckedShard>,
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

    /// What was found on the second sides of mirrors, which were looked at like the first.
    pub(super) fn add_second(&mut self, second: Self, pool: &str) {
        self.second = second.shards;
        let mut differ = false;
        for (first, second) in self.shards.iter_mut().zip(&mut self.second) {
            if first.found.is_none() {
                first.found = second.found.take();
            }
            differ |= first.report.problems != second.report.problems;
        }
        if differ {
            self.told.push(format!(
                "what one side of a mirror has damaged and the other has not is repaired from the other while the pool is open: \
                 stillpoint pool open PATH..., then stillpoint pool scrub {pool} --wait"
            ));
        }
    }

    /// What can be mended, in the order in which it has to be done: labels, then each shard. What the sides of mirrors have
    /// damaged in different ways is mended while the pool is open, one from the other.
    pub(super) fn mends_by_shard(&self) -> impl Iterator<Item = (Option<ShardIndex>, &[Mend])> {
        let is_mended_here = |number: usize, shard: &CheckedShard| {
            let second = self.second.get(number);
            second.is_none_or(|second| second.mends == shard.mends)
        };
        let of_shards = (self.shards.iter().enumerate())
            .filter(move |(number, shard)| is_mended_here(*number, shard))
            .map(|(number, shard)| (Some(ShardIndex(number as u16)), shard.mends.as_slice()));
        core::iter::once((None, self.label_mends.as_slice())).chain(of_shards)
    }

    /// All of that.
    pub(super) fn mends(&self) -> impl Iterator<Item = &Mend> {
        self.mends_by_shard().flat_map(|(_, mends)| mends)
    }

    /// The shards by which it is judged what the pool holds.
    pub(super) fn judged(&self) -> &[CheckedShard] {
        match self.merged.is_empty() {
            true => &self.shards,
            false => &self.merged,
        }
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.told.clone()
    }

    /// Whether there are intermediate snapshots that were never confirmed.
    pub(super) fn has_unconfirmed(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// What is to be dropped on each shard that can be opened once it is mended.
    pub(super) fn unconfirmed(
        mut self,
    ) -> impl Iterator<Item = (ShardIndex, MemoryOrNone, Vec<(VolumeId, SnapshotId)>)> {
        let shards = std::mem::take(&mut self.unconfirmed).into_iter();
        shards.filter_map(move |(shard, unconfirmed)| {
            let number = usize::from(shard.0);
            let mut reports = self.shards.get(number).into_iter().chain(self.second.get(number));
            let opens = reports.all(|shard| !shard.report.has("log") && !shard.report.has("root"));
            let tail = self.tails[number].take();
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
    sides: Option<&[Sides]>,
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
                    let checked = match sides {
                        None => check_shard(layout, shard_index, &mut opener, &mut tail, depth, now),
                        Some(sides) => {
                            let mut alone =
                                MirroredOpener::new(opener, layout, shard_index, sides.to_vec(), Side::First);
                            check_shard(layout, shard_index, &mut alone, &mut tail, depth, now)
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
        second: Vec::new(),
        merged: Vec::new(),
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
