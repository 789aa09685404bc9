//! The JSON of the API: what goes in and what comes out. Sizes are bytes, times are nanoseconds (points in
//! time since the Unix epoch), all integers; fields are added, never renamed.

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

/// POST `/v1/volumes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Its size, a multiple of 4096.
    pub size_bytes: u64,
    /// Its pool; not needed if there is only one.
    #[serde(default)]
    pub pool: Option<String>,
    /// Logical block size, 512 or 4096 (default).
    #[serde(default)]
    pub block_bytes: Option<u32>,
    /// Size of its objects, a power of two from 1 MiB to 1 GiB; default 64 MiB.
    #[serde(default)]
    pub object_bytes: Option<u64>,
    /// Its change log volume; default: none.
    #[serde(default)]
    pub change_log: Option<String>,
}

/// POST `/v1/volumes/{name}/set`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetVolume {
    /// Its change log volume from now on; `null` for none.
    pub change_log: Option<String>,
}

/// POST `/v1/changelogs`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateChangeLog {
    /// Its name.
    pub name: String,
    /// What the change logs in it may hold together, a multiple of 4096; every shard has an equal part.
    pub size_bytes: u64,
    /// Its pool; not needed if there is only one.
    #[serde(default)]
    pub pool: Option<String>,
    /// Paths of the pool's devices that its blocks are placed on, as long as these have room; default: all.
    #[serde(default)]
    pub devices: Vec<String>,
    /// What happens when it is full: `fail-writes` (default) or `drop-oldest`.
    #[serde(default)]
    pub when_full: Option<String>,
}

/// POST `/v1/changelogs/{name}/resize`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeChangeLog {
    /// The new size.
    pub size_bytes: u64,
}

/// POST `/v1/volumes/{name}/resize`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// The new size.
    pub size_bytes: u64,
    /// Needed to make it smaller: what is beyond the new end is discarded.
    #[serde(default)]
    pub force: bool,
}

/// POST `/v1/snapshots`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// The volumes, all of one pool: one, or several that are to be cut at one instant; `group:NAME` for those of a group.
    pub volumes: Vec<String>,
    /// The name after the `@`.
    pub name: String,
    /// The pool; not needed if the volumes' names are unique.
    #[serde(default)]
    pub pool: Option<String>,
    /// How long answers may be held; default 10 ms.
    #[serde(default)]
    pub hold_limit_ns: Option<u64>,
}

/// POST `/v1/snapshots/{volume@name}/lock`: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockSnapshot {
    /// Until then nobody deletes it.
    #[serde(default)]
    pub until_ns: Option<u64>,
    /// For so long from now on nobody deletes it.
    #[serde(default)]
    pub for_ns: Option<u64>,
}

/// POST `/v1/snapshots/delete`: all of them or, if one may not go, none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteSnapshots {
    /// `volume@name` of each; all of one pool.
    pub snapshots: Vec<String>,
    /// The pool; not needed if the volumes' names are unique.
    #[serde(default)]
    pub pool: Option<String>,
    /// Although some have clones: their space comes free when one of what was made of them is left.
    #[serde(default)]
    pub defer: bool,
}

/// POST `/v1/volumes/{name}/clone`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneVolume {
    /// The snapshot of the volume that the clone begins as.
    pub snapshot: String,
    /// The name of the clone.
    pub name: String,
}

/// POST `/v1/volumes/{name}/rollback`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackVolume {
    /// The snapshot of the volume that it is to be again.
    pub snapshot: String,
    /// Disconnect its clients.
    #[serde(default)]
    pub force: bool,
    /// The name of the snapshot that is taken before; default: `before-SNAPSHOT` and the time.
    #[serde(default)]
    pub safety_name: Option<String>,
}

/// POST `/v1/groups`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// Its name; `group:NAME` stands for its volumes where snapshots and schedules are made.
    pub name: String,
    /// The volumes, all of one pool.
    pub volumes: Vec<String>,
    /// The pool; not needed if the volumes' names are unique.
    #[serde(default)]
    pub pool: Option<String>,
}

/// A named group of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// When it was made.
    pub created_ns: u64,
}

/// How many of a schedule's snapshots are kept: the newest ones, and one for each of the last hours, days and so on that
/// have any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepRules {
    /// The newest.
    #[serde(default)]
    pub last: u32,
    /// One for each hour.
    #[serde(default)]
    pub hourly: u32,
    /// One for each day.
    #[serde(default)]
    pub daily: u32,
    /// One for each week, which begins on Monday.
    #[serde(default)]
    pub weekly: u32,
    /// One for each month.
    #[serde(default)]
    pub monthly: u32,
    /// One for each year.
    #[serde(default)]
    pub yearly: u32,
}

/// POST `/v1/schedules`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSchedule {
    /// Its name; its snapshots are called by it and the time.
    pub name: String,
    /// The volumes, all of one pool, cut at one instant.
    pub volumes: Vec<String>,
    /// The pool; not needed if the volumes' names are unique.
    #[serde(default)]
    pub pool: Option<String>,
    /// Its period, whole seconds from 1 s to 30 d; or
    #[serde(default)]
    pub every_ns: Option<u64>,
    /// its cron line.
    #[serde(default)]
    pub cron: Option<String>,
    /// Time zone of the cron line and of the days that are kept, as `Europe/Berlin`; default UTC.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// What is kept.
    pub keep: KeepRules,
    /// How long answers may be held; default 10 ms.
    #[serde(default)]
    pub hold_limit_ns: Option<u64>,
}

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleInfo {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its number in the pool.
    pub id: u64,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// Its period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ns: Option<u64>,
    /// Its cron line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// Time zone of the cron line and of the days that are kept.
    pub time_zone: String,
    /// What is kept.
    pub keep: KeepRules,
    /// `active` or `paused`.
    pub state: String,
    /// When it was made.
    pub created_ns: u64,
    /// When it ran last since the pool was opened; 0 if it did not.
    pub last_run_ns: u64,
    /// Why the last run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The next five runs.
    pub next_runs_ns: Vec<u64>,
    /// Snapshots it took since the pool was opened.
    pub runs: u64,
    /// Due times since then that had no run.
    pub missed: u64,
    /// Runs since then that took no snapshot.
    pub failed: u64,
    /// Snapshots it deleted since then.
    pub pruned: u64,
    /// Snapshots of it that there are.
    pub snapshots: u64,
    /// Each of these, oldest first; only when one schedule is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<ScheduledSnapshotInfo>,
}

/// A snapshot of a schedule, as it will be when the next run has taken one more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledSnapshotInfo {
    /// `volume@name`, with the first of its volumes.
    pub name: String,
    /// Its time stamp.
    pub time_stamp_ns: u64,
    /// Whether the next run deletes it.
    pub pruned_next: bool,
    /// Otherwise why it stays: the rules, with the number it has in each, counted from the newest (`hourly 3`), or what
    /// else needs it.
    pub kept_by: Vec<String>,
}

/// GET `/v1/pools/{pool}/deletions/{snapshot}`, by the number of the snapshot: how far the freeing of its space has come. What
/// only the snapshot holds is not known before its maps were walked, so the way that is left is told, and what came of it so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionInfo {
    /// The pool.
    pub pool: String,
    /// The number of the snapshot.
    pub id: u64,
    /// `going`; `gone`; `branches`: waits until no more than one map that was made of it is left; `unreadable`: a map page
    /// cannot be read; `stopped`: a shard stopped writing.
    pub state: String,
    /// Shares of volumes on shards that still have something of it.
    pub shares_left: u64,
    /// How much of the volumes its maps cover that was not walked yet.
    pub left_bytes: u64,
    /// What was freed since the pool was opened, as far as the shards remember: data and maps.
    pub freed_bytes: u64,
}

/// POST `/v1/exports`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateExport {
    /// `volume` or `volume@snapshot`.
    pub view: String,
    /// The name clients ask for; default: the view.
    #[serde(default)]
    pub name: Option<String>,
    /// Refuse writes. Snapshots are never written.
    #[serde(default)]
    pub read_only: bool,
    /// Let clients take snapshots of the volume through their connections.
    #[serde(default)]
    pub allow_snapshots: bool,
    /// The pool; not needed if the volume's name is unique.
    #[serde(default)]
    pub pool: Option<String>,
}

/// `?pool=` and the like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Only this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Only this volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Delete the snapshots too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_snapshots: bool,
    /// Delete the snapshot although it has clones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub defer: bool,
}

/// `?to=` of GET `/v1/snapshots/{volume@name}/changes`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangesQuery {
    /// The pool; not needed if the volume's name is unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// What to compare with: `volume@snapshot`, a later one, or `volume`; default: the volume as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// A line of GET `/v1/snapshots/{volume@name}/changes`: one `Begin`, any number of `Range`, one `End`; or an error in
/// its place, if it came while lines were being sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ChangesLine {
    /// The first.
    Begin(ChangesBegin),
    /// A range that changed.
    Range(ChangedRangeInfo),
    /// The last.
    End(ChangesEnd),
    /// The last, if it went wrong.
    Failed(crate::error::Error),
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesBegin {
    /// The earlier one: `volume@snapshot`.
    pub from: String,
    /// The later one: `volume@snapshot`, or `volume` as it is.
    pub to: String,
    /// Size of the later one.
    pub size_bytes: u64,
}

/// A range that was written or discarded, in units of 4096 bytes; in order, never overlapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedRangeInfo {
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes.
    pub length_bytes: u64,
    /// Whether it is a hole now.
    pub hole: bool,
}

/// The sums.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesEnd {
    /// Ranges.
    pub ranges: u64,
    /// Their bytes.
    pub changed_bytes: u64,
    /// Those of them that are holes now.
    pub hole_bytes: u64,
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
    /// Since when it is gone or too small, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_since_ns: Option<u64>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its number in the pool.
    pub id: u32,
    /// Its size.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_bytes: u32,
    /// Size of its objects.
    pub object_bytes: u64,
    /// Data that it maps now.
    pub mapped_bytes: u64,
    /// When it was made.
    pub created_ns: u64,
    /// What it was cloned from, as `volume@snapshot`; a `?` for what has been deleted since.
    #[serde(default)]
    pub origin: Option<String>,
    /// Its change log volume.
    #[serde(default)]
    pub change_log: Option<String>,
    /// Its snapshots, oldest first, as `volume@snapshot`.
    pub snapshots: Vec<String>,
    /// Its exports and those of its snapshots.
    pub exports: Vec<String>,
    /// The share of each shard.
    pub shares: Vec<ShareInfo>,
}

/// A change log volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeLogVolumeInfo {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its number in the pool.
    pub id: u32,
    /// What its change logs may hold together.
    pub size_bytes: u64,
    /// What they hold.
    pub used_bytes: u64,
    /// What happens when it is full: `fail-writes` or `drop-oldest`.
    pub when_full: String,
    /// The devices that its blocks are placed on; empty for all.
    pub devices: Vec<String>,
    /// The volumes that name it.
    pub volumes: Vec<String>,
    /// When it was made.
    pub created_ns: u64,
    /// The part of each shard.
    pub shards: Vec<ChangeLogShardInfo>,
}

/// One shard's part of a change log volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeLogShardInfo {
    /// The shard.
    pub shard: u16,
    /// The processor that owns it now.
    pub processor: u16,
    /// What its change logs may hold there.
    pub limit_bytes: u64,
    /// What they hold there.
    pub used_bytes: u64,
    /// Writes that wait for room.
    pub waiting: u64,
    /// Written since the pool was opened, and found no place on its devices: it lies on others.
    pub elsewhere_bytes: u64,
}

/// One shard's share of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareInfo {
    /// The shard.
    pub shard: u16,
    /// The processor that owns it now.
    pub processor: u16,
    /// Objects in it, the last one perhaps in part.
    pub objects: u64,
    /// Its size.
    pub share_bytes: u64,
    /// Data that it maps now.
    pub mapped_bytes: u64,
    /// Its epoch: raised by one with every cut.
    pub epoch: u32,
}

/// An overall snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// `volume@name`; of a group, the volume that was asked for or the first one.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its number in the pool.
    pub id: u64,
    /// Its volumes, with their sizes when it was taken.
    pub volumes: Vec<SnapshotVolumeInfo>,
    /// Its time stamp.
    pub time_stamp_ns: u64,
    /// Until then nothing deletes it; 0 if it was never locked.
    #[serde(default)]
    pub locked_until_ns: u64,
    /// The schedule that took it, and may prune it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// From the command to the last intermediate snapshot being durable.
    pub durable_ns: u64,
    /// The longest hold of a shard.
    pub hold_ns_max: u64,
    /// Answers held, over all shards.
    pub answers_held: u64,
    /// The longest that a single answer was held.
    pub answer_held_ns_max: u64,
    /// What it put into the logs: records of its own, not the rest of their pages. 0: not known, an older program took it.
    #[serde(default)]
    pub log_bytes: u64,
    /// What it put into the directories: rows of its own. 0: not known.
    #[serde(default)]
    pub metadata_bytes: u64,
    /// The price on each shard.
    pub holds: Vec<HoldInfo>,
    /// Its intermediate snapshots; only when one snapshot is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intermediate_snapshots: Vec<IntermediateSnapshotInfo>,
}

/// A volume of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotVolumeInfo {
    /// Its name.
    pub name: String,
    /// Its size when the snapshot was taken.
    pub size_bytes: u64,
}

/// What a snapshot cost on one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldInfo {
    /// The shard.
    pub shard: u16,
    /// From the cut to the release.
    pub hold_ns: u64,
    /// Answers held.
    pub answers_held: u64,
    /// The longest that one answer was held.
    pub answer_held_ns_max: u64,
}

/// One shard's share of a snapshot: objects, point-in-time copy, change log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntermediateSnapshotInfo {
    /// The volume.
    pub volume: String,
    /// The shard.
    pub shard: u16,
    /// The processor that owns it now.
    pub processor: u16,
    /// Objects of the volume in it.
    pub objects: u64,
    /// The first of them, by its position in the volume; the others follow in steps.
    #[serde(default)]
    pub first_object: u64,
    /// From one of its objects to the next.
    #[serde(default)]
    pub object_step: u64,
    /// The frozen map.
    pub point_in_time_copy: PointInTimeCopyInfo,
    /// What was written after it, up to the next snapshot or now.
    pub change_log: ChangeLogInfo,
}

/// A frozen map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInTimeCopyInfo {
    /// The last epoch it holds.
    pub epoch: u32,
    /// Data that it maps.
    pub mapped_bytes: u64,
}

/// A change log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeLogInfo {
    /// Blocks of 4 KiB written or discarded.
    pub blocks: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// The first change, 0 if there is none.
    pub first_change_ns: u64,
    /// The last change, 0 if there is none.
    pub last_change_ns: u64,
}

/// An export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportInfo {
    /// The name clients ask for.
    pub name: String,
    /// `volume` or `volume@snapshot`.
    pub view: String,
    /// The pool.
    pub pool: String,
    /// Its size.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether clients may take snapshots through their connections.
    pub allow_snapshots: bool,
    /// When it was made.
    pub created_ns: u64,
    /// Clients that have chosen it and are connected.
    pub connections: u32,
    /// That number at most.
    pub connection_limit: u32,
    /// Clients that were refused because there were as many already.
    pub connections_refused: u64,
    /// Where to reach it.
    pub uris: Vec<String>,
}

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
