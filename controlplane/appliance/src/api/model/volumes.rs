//! What goes in and comes out about volumes, their groups, change log volumes and exports.

use serde::{Deserialize, Serialize};

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
