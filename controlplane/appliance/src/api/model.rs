//! The JSON of the API: what goes in and what comes out. Sizes are bytes, times are nanoseconds (points in
//! time since the Unix epoch), all integers; fields are added, never renamed.

mod pools;
mod schedules;
mod snapshots;
mod status;
mod volumes;

pub use pools::{
    CreatePool, DeviceInfo, MirrorSideInfo, OpenPool, PoolInfo, ReplaceDevice, ResumeScrub, ResyncPool,
    ScrubInfo, ScrubPool, ScrubSideInfo,
};
pub use schedules::{CreateSchedule, KeepRules, ScheduleInfo, ScheduledSnapshotInfo};
pub use snapshots::{
    ChangeLogInfo, ChangedRangeInfo, ChangesBegin, ChangesEnd, ChangesLine, ChangesQuery, CreateSnapshot,
    DeleteSnapshots, DeletionInfo, HoldInfo, IntermediateSnapshotInfo, LockSnapshot, PointInTimeCopyInfo,
    SnapshotInfo, SnapshotVolumeInfo,
};
pub use status::{
    DoctorInfo, EventInfo, EventList, EventsQuery, Finding, FindingState, ProcessorInfo, ShardInfo,
    StageInfo, StatusInfo,
};
pub use volumes::{
    ChangeLogShardInfo, ChangeLogVolumeInfo, CloneVolume, CreateChangeLog, CreateExport, CreateGroup,
    CreateVolume, ExportInfo, GroupInfo, ResizeChangeLog, ResizeVolume, RollbackVolume, SetVolume, ShareInfo,
    VolumeInfo,
};

use serde::{Deserialize, Serialize};

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
