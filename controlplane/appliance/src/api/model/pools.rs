//! What goes in and comes out about pools, their devices and sides, and scrubs.

use serde::{Deserialize, Serialize};

/// POST `/v1/pools`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// Its name.
    pub name: String,
    /// Paths of its devices: files and block devices.
    pub devices: Vec<String>,
    /// Size of each file that does not exist yet; it is made sparse.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Number of shards, for ever; default: the number of processors, at least 2.
    #[serde(default)]
    pub shards: Option<u16>,
    /// The devices are pairs: the first and the second hold the same, the third and the fourth, and so on.
    #[serde(default)]
    pub mirror: bool,
    /// Overwrite what is on all of the devices.
    #[serde(default)]
    pub force: bool,
    /// Overwrite what is on these of the devices.
    #[serde(default)]
    pub force_devices: Vec<String>,
}

/// POST `/v1/pools/open`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenPool {
    /// Paths of all its devices, in any order.
    pub devices: Vec<String>,
    /// Open it even if sides of mirrors are missing that were in sync when it was closed.
    #[serde(default)]
    pub degraded: bool,
}

/// POST `/v1/pools/{name}/replace`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceDevice {
    /// The side whose place is taken: its path, or `DEVICE.SIDE` (`0.1` is the second side of device 0).
    pub device: String,
    /// Path of the device that takes it; a file that does not exist is made.
    pub with: String,
    /// Overwrite what is on it.
    #[serde(default)]
    pub force: bool,
}

/// POST `/v1/pools/{name}/resync`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResyncPool {
    /// Bytes a second that are copied at most, over all processors; 0: as many as the devices can.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// `open`; `degraded`: open, but sides of mirrors lack something; `device_lost`: open, but a device is gone and what lies on it fails;
    /// `device_shrunk`: open, but a device has become smaller than the pool needs, and what lies behind its end fails; `stopped`: open, but a
    /// shard stopped writing though all devices are there; `failed`: it is remembered and could not be opened; `opening`: its
    /// devices are back, and it is being opened again.
    pub state: String,
    /// What is wrong, unless it is `open`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its identity, 32 hexadecimal digits.
    pub id: String,
    /// Its shards.
    pub shards: u16,
    /// Its devices.
    pub devices: Vec<DeviceInfo>,
    /// Of a pool that is not open: the paths of the devices that are remembered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known_devices: Vec<String>,
    /// Room for data and maps.
    pub total_bytes: u64,
    /// In use.
    pub used_bytes: u64,
    /// Comes free with the next checkpoint.
    pub pending_bytes: u64,
    /// Volumes.
    pub volumes: u64,
    /// Overall snapshots.
    pub snapshots: u64,
    /// How long it took to open: recovery of the slowest shard.
    pub recovery_ns: u64,
    /// The sides of its devices, in a pool with mirrors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sides: Vec<MirrorSideInfo>,
    /// What an operator should know about how it was opened.
    pub remarks: Vec<String>,
    /// The scrub that is going on, or the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubInfo>,
}

/// A device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its path.
    pub path: String,
    /// `file`, `block`, or `nvme` for a namespace that is served by NVMe commands of our own.
    pub kind: String,
    /// Its size; if it is gone, that which it had.
    pub size_bytes: u64,
    /// What the pool uses of it: its size when the pool was made.
    #[serde(default)]
    pub pool_bytes: u64,
    /// What the pool does not use, as the device has become larger, or is larger than the other side of its mirror.
    #[serde(default)]
    pub unused_bytes: u64,
    /// Whether transfers go past the page cache.
    pub direct: bool,
    /// Whether completions are polled for.
    #[serde(default)]
    pub polled: bool,
    /// Why an NVMe namespace is served as a block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passthrough_refused: Option<String>,
    /// Whether single writes are made durable one by one (FUA) where that spares a flush.
    #[serde(default)]
    pub durable_writes: bool,
    /// Why they are not, though NVMe commands of our own could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable_writes_refused: Option<String>,
    /// Since when it has not answered, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled_since_ns: Option<u64>,
    /// Since when it is gone or too small, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_since_ns: Option<u64>,
}

/// One side of a mirrored device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorSideInfo {
    /// The mirrored device, from 0.
    pub device: u16,
    /// Which side of it, 0 or 1.
    pub side: u16,
    /// Its path, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `in_sync`, `out`, or `resync`: what it lacks is being copied to it.
    pub state: String,
    /// Why it is not in sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ns: Option<u64>,
    /// What it may lack.
    pub left_bytes: u64,
    /// Copied to it since the pool was opened.
    pub copied_bytes: u64,
    /// Reads that it failed and the other side answered, since the pool was opened.
    pub repaired_reads: u64,
}

/// POST `/v1/pools/{name}/scrub`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubPool {
    /// Bytes a second that are read at most, over all shards; default 64 MiB.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
}

/// POST `/v1/pools/{name}/scrub/resume`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeScrub {
    /// Bytes a second that are read at most from now on, over all shards; default: as before.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
}

/// A scrub: every block in use is read and compared with its checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubInfo {
    /// `running`, `paused`, `done` or `stopped`.
    pub state: String,
    /// Read and compared so far; of a mirror, once for both sides.
    pub checked_bytes: u64,
    /// In use now: about what there is to read.
    pub used_bytes: u64,
    /// Blocks and map pages that are damaged, on every side that there is.
    pub damaged_blocks: u64,
    /// The first of these: which volume, snapshot and offset.
    pub damage: Vec<String>,
    /// When it began.
    pub started_ns: u64,
    /// When the last shard ended; 0 if it is running or paused.
    pub ended_ns: u64,
    /// How long it was running, without pauses and the time in which the pool was closed.
    #[serde(default)]
    pub running_ns: u64,
    /// Bytes a second that are read at most.
    #[serde(default)]
    pub rate_bytes_per_s: u64,
    /// Bytes a second that were checked while it was running.
    #[serde(default)]
    pub checked_bytes_per_s: u64,
    /// What it came to on each side of the pool's mirrors; empty if both were never read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sides: Vec<ScrubSideInfo>,
}

/// What a scrub came to on one side of the mirrors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubSideInfo {
    /// `first side` or `second side`.
    pub side: String,
    /// Read from it and compared, while the other side was in sync.
    pub read_bytes: u64,
    /// Blocks and map pages that were damaged on it and were written again from the other.
    pub repaired_blocks: u64,
    /// Those that stay damaged: on the other side too, or they could not be written.
    pub unrepaired_blocks: u64,
}
