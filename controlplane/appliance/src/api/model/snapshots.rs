//! What goes in and comes out about snapshots, and what changed since one.

use serde::{Deserialize, Serialize};

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
