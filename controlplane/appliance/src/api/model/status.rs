//! What the daemon tells of itself: processors, shards, stages, events, findings.

use super::PoolInfo;
use serde::{Deserialize, Serialize};

/// GET `/v1/status`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// Version of the program.
    pub version: String,
    /// Process number of the daemon.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_ns: u64,
    /// Where NBD clients connect.
    pub listeners: Vec<String>,
    /// Connections of NBD clients.
    pub connections: u32,
    /// That number at most.
    pub connection_limit: u32,
    /// Connections that were refused because there were as many already.
    pub connections_refused: u64,
    /// Its processors.
    pub processors: Vec<ProcessorInfo>,
    /// Its pools.
    pub pools: Vec<PoolInfo>,
}

/// A processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorInfo {
    /// Its number.
    pub processor: u16,
    /// The core it is pinned to.
    pub core: Option<u32>,
    /// NBD sessions on it.
    pub sessions: u64,
    /// Clients that were sent away because they took too long to choose an export.
    pub late: u64,
    /// Requests of its sessions.
    pub requests: u64,
    /// Parts done for sessions of other processors.
    pub forwarded: u64,
    /// Turns of the poll loop.
    pub turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Whether it polls for what comes soon, because that was asked for or found to pay.
    pub polls: bool,
    /// System calls that submitted or waited.
    pub ring_enters: u64,
    /// Buffers in use.
    pub buffer_bytes_used: u64,
    /// Memory for buffers.
    pub buffer_bytes: u64,
    /// Kind of that memory.
    pub buffer_memory: String,
    /// The shards it owns, with their share of the work.
    pub shards: Vec<ShardInfo>,
}

/// A shard's figures since it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// The pool.
    pub pool: String,
    /// The shard.
    pub shard: u16,
    /// Parts of requests: reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Discards.
    pub discards: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes read for clients.
    pub read_bytes: u64,
    /// Bytes written for clients.
    pub written_bytes: u64,
    /// Data operations sent to devices: reads.
    pub device_reads: u64,
    /// Data operations sent to devices: writes; several small writes may go as one.
    pub device_writes: u64,
    /// Log pages written.
    pub log_pages: u64,
    /// Log ring in use.
    pub log_used_bytes: u64,
    /// Log ring.
    pub log_bytes: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Map pages read from devices.
    pub map_misses: u64,
    /// Map pages in memory.
    pub map_pages_cached: u64,
    /// Checksum mismatches seen; of a mirror, on both sides.
    pub corrupt_blocks: u64,
    /// Blocks that one side of a mirror had damaged and that were written to it again from the other.
    #[serde(default)]
    pub repaired_blocks: u64,
    /// Those that could not be written to it again, or not this time.
    #[serde(default)]
    pub repair_failures: u64,
    /// Device errors seen.
    pub device_errors: u64,
    /// Whether it stopped writing after a device error.
    pub stopped: bool,
    /// Requests being worked on.
    pub in_flight: u64,
    /// Room for data and maps.
    pub total_bytes: u64,
    /// In use.
    pub used_bytes: u64,
    /// Comes free with the next checkpoint.
    pub pending_bytes: u64,
}

/// GET `/v1/stages`: how long one kind of request was in one stage of its way, on one processor, since the daemon started.
/// What was never counted is left out. `docs/metrics.md` says what the stages are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInfo {
    /// The processor.
    pub processor: u16,
    /// `read`, `write`, `discard`, `flush` or `query`.
    pub kind: String,
    /// `receive`, `ring`, `map`, `device`, `log`, `held`, `reply` or `total`.
    pub stage: String,
    /// How many.
    pub count: u64,
    /// All together.
    pub sum_ns: u64,
    /// Pairs of a time in nanoseconds and how many took less than it, and not less than the one before. An interval is an
    /// eighth of its times wide, or 16 ns; the last also has what took longer than 68 s.
    pub counted: Vec<(u64, u64)>,
}

/// GET `/v1/events`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Events after this number, the oldest first; not given: the newest ones.
    #[serde(default)]
    pub after: Option<u64>,
    /// So many at most, 1000 or fewer; default 100.
    #[serde(default)]
    pub limit: Option<u32>,
    /// If there is none, wait for one so many seconds, 60 or fewer; default 0. Needs `after`.
    #[serde(default)]
    pub wait_s: Option<u32>,
    /// Also what shards do beside requests (checkpoints, freeing); nobody is woken by it. Default false.
    #[serde(default)]
    pub background: Option<bool>,
}

/// Events, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// The events.
    pub events: Vec<EventInfo>,
    /// Number of the newest event there is; 0 if there is none.
    pub last: u64,
    /// When the daemon started, and numbers began at 1.
    pub started_ns: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventInfo {
    /// Its number. One that is missing between two was forgotten, or is of the background.
    pub number: u64,
    /// When it began, if it took time and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_ns: Option<u64>,
    /// When it had happened.
    pub time_ns: u64,
    /// `info`, `warning` or `error`.
    pub level: String,
    /// What kind, in one word, as `snapshot_taken`.
    pub kind: String,
    /// The pool; empty if it is about the whole appliance.
    pub pool: String,
    /// What in the pool: `volume`, `volume@snapshot`, `shard 3`; empty for the pool itself.
    pub subject: String,
    /// What happened, in words.
    pub text: String,
}

/// GET `/v1/doctor`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorInfo {
    /// What was looked at, in order.
    pub findings: Vec<Finding>,
}

/// Something that doctor looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub subject: String,
    /// `ok`, `note` (works, could be faster) or `problem` (does not work).
    pub state: FindingState,
    /// What was found.
    pub message: String,
    /// How to mend it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingState {
    /// As it should be.
    Ok,
    /// Works, could be faster or safer.
    Note,
    /// Does not work.
    Problem,
}
