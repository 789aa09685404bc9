//! Memory while blocks all over the pool are read, and what reads cost when their map is not in memory.

use std::fmt::Write;

use crate::Failure;
use crate::cpu::resident_bytes;
use crate::frame::say;
use crate::reader::{Reads, read_at_random};
use crate::servers::{Daemon, VOLUME};
use crate::stats::Spread;
use serde::Serialize;
use serde_json::Value;

use super::place::{MappedPool, Settings};

const DEPTH: usize = 32;
/// Map cache that holds everything: 4 GiB.
const ALL: &str = "4GiB";
/// A map page describes this many blocks.
const BLOCKS_PER_PAGE: u64 = 256;

/// Resident memory before and after reads all over the pool, at the default map cache.
#[derive(Debug, Serialize)]
pub struct Memory {
    pool: String,
    idle_bytes: u64,
    /// Later and later.
    pub after: Vec<Point>,
    map_bytes: u64,
}

/// What was seen after some reads.
#[derive(Debug, Serialize)]
pub struct Point {
    seconds: f64,
    reads: Reads,
    /// What the daemon takes.
    pub resident_bytes: u64,
    map_pages_cached: u64,
    map_misses: u64,
}

/// Reads all over the pool, and looks at the daemon's memory in between.
///
/// # Errors
/// A command fails.
pub fn measure(settings: &Settings, pool: &mut MappedPool) -> Result<Memory, Failure> {
    let daemon = pool.start(&[])?;
    let mut memory = Memory {
        pool: pool.name(),
        idle_bytes: resident_bytes(daemon.process_id())?,
        after: Vec::new(),
        map_bytes: (pool.mapped_gib << 30) / BLOCKS_PER_PAGE,
    };
    let mut seconds = 0.0;
    for round in 0..2 * u64::from(settings.rounds) {
        let reads = read_at_random(daemon.nbd_socket(), VOLUME, DEPTH, settings.time, round + 1)?;
        seconds += settings.time.as_secs_f64();
        let (map_pages_cached, map_misses) = map_figures(pool, &daemon)?;
        memory.after.push(Point {
            seconds,
            reads,
            resident_bytes: resident_bytes(daemon.process_id())?,
            map_pages_cached,
            map_misses,
        });
    }
    MappedPool::stop(daemon)?;
    Ok(memory)
}

/// Map pages in memory, and read from the device so far, over all shards.
fn map_figures(pool: &MappedPool, daemon: &Daemon) -> Result<(u64, u64), Failure> {
    let status: Value = serde_json::from_str(&pool.command(daemon, &["-o", "json", "status"])?)?;
    let processors = status["processors"].as_array().ok_or("no processors")?;
    let shards = processors
        .iter()
        .filter_map(|processor| processor["shards"].as_array());
    let mut sums = (0, 0);
    for shard in shards.flatten() {
        sums.0 += shard["map_pages_cached"].as_u64().unwrap_or_default();
        sums.1 += shard["map_misses"].as_u64().unwrap_or_default();
    }
    Ok(sums)
}

impl Memory {
    /// As a table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let mut text = format!(
            "### Memory while blocks all over the pool are read\n\n{}; its map takes {} MiB; resident after the start: {} MiB.\n\n\
             | after s | reads/s | answered with a checksum error/s | resident, MiB | map pages in memory, MiB | map pages read |\n\
             |---:|---:|---:|---:|---:|---:|\n",
            self.pool,
            mib(self.map_bytes),
            mib(self.idle_bytes)
        );
        for point in &self.after {
            let _ = writeln!(
                text,
                "| {:.0} | {:.0} | {:.0} | {} | {} | {} |",
                point.seconds,
                point.reads.per_second,
                point.reads.errors_per_second,
                mib(point.resident_bytes),
                mib(point.map_pages_cached * 4096),
                point.map_misses,
            );
        }
        text
    }
}

/// Random reads with all of the map in memory, and with a hundredth of it.
#[derive(Debug, Serialize)]
pub struct CacheReads {
    pool: String,
    small_cache: String,
    small_share: f64,
    /// Reads a second with all of it.
    pub all: Vec<f64>,
    /// Reads a second with a hundredth.
    pub small: Vec<f64>,
    misses_per_read: Vec<f64>,
}

/// Reads with a map cache that holds everything and with one that holds a hundredth, in turn.
///
/// # Errors
/// A command fails, or a read.
pub fn reads(settings: &Settings, pool: &mut MappedPool) -> Result<CacheReads, Failure> {
    let map_bytes = (pool.mapped_gib << 30) / BLOCKS_PER_PAGE;
    let small = (map_bytes / 100).to_string();
    let mut result = CacheReads {
        pool: pool.name(),
        small_cache: small.clone(),
        small_share: 0.0,
        all: Vec::new(),
        small: Vec::new(),
        misses_per_read: Vec::new(),
    };
    for round in 0..u64::from(settings.rounds) {
        for (cache, is_small) in [(ALL, false), (small.as_str(), true)] {
            let daemon = pool.start(&["--map-cache", cache])?;
            // Once to fill the cache, which at random takes several times as many reads as it has pages.
            let warm = if is_small {
                settings.time
            } else {
                settings.time * 4
            };
            read_at_random(daemon.nbd_socket(), VOLUME, DEPTH, warm, round + 100)?;
            let before = map_figures(pool, &daemon)?;
            let reads = read_at_random(daemon.nbd_socket(), VOLUME, DEPTH, settings.time, round + 1)?;
            let after = map_figures(pool, &daemon)?;
            if reads.errors_per_second > 0.0 {
                return Err("reads failed".into());
            }
            say(&format!("map cache {cache}: {:.0} reads/s", reads.per_second));
            if is_small {
                result.small.push(reads.per_second);
                result.small_share = (after.0 * 4096) as f64 / map_bytes as f64;
                let count = reads.per_second * settings.time.as_secs_f64();
                result.misses_per_read.push((after.1 - before.1) as f64 / count);
            } else {
                result.all.push(reads.per_second);
            }
            MappedPool::stop(daemon)?;
        }
    }
    Ok(result)
}

impl CacheReads {
    /// As a table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let spread = |values: &[f64]| {
            let spread = Spread::of(values.iter().copied());
            format!("{:.0} ({:.0}..{:.0})", spread.median, spread.min, spread.max)
        };
        let ratio = Spread::of(self.small.iter().zip(&self.all).map(|(small, all)| small / all));
        format!(
            "### Random reads, depth {DEPTH}, when the map is not in memory\n\n{}.\n\n\
             | map cache | reads/s | map pages read for each read | to all of it |\n|---|---:|---:|---:|\n\
             | holds all | {} | 0 | 1 |\n| holds {:.1} % | {} | {:.2} | {:.2} ({:.2}..{:.2}) |\n",
            self.pool,
            spread(&self.all),
            self.small_share * 100.0,
            spread(&self.small),
            Spread::of(self.misses_per_read.iter().copied()).median,
            ratio.median,
            ratio.min,
            ratio.max,
        )
    }
}
