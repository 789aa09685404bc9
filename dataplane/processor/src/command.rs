//! Commands from the control plane to one shard, and what a shard tells in return.

use crate::ids::{ChangeLogId, ShardIndex, SnapshotId, TimeStamp, VolumeId};
use crate::ports::Side;
use crate::request::RequestError;

/// The sender's own mark on a command; comes back with its event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A command to a shard. Every command is answered by exactly one event that carries its ticket;
/// `Cut` may be followed by one more ([`EventKind::HoldExpired`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardCommand {
    /// The shard gets its share of a new volume; answered when durable. Idempotent.
    CreateVolume {
        /// The volume.
        volume: VolumeId,
        /// Blocks of this shard's share.
        share_blocks: u64,
    },
    /// The share gets a new size; blocks beyond it are discarded; answered when durable. Idempotent.
    ResizeVolume {
        /// The volume.
        volume: VolumeId,
        /// Blocks of this shard's share.
        share_blocks: u64,
    },
    /// The share and all its intermediate snapshots are to be freed in the background; answered when the
    /// intent is durable. Idempotent.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The shard gets a share that begins as an intermediate snapshot is: in O(1), nothing is copied. Answered when
    /// durable. Idempotent.
    CloneVolume {
        /// The new volume.
        volume: VolumeId,
        /// The share that has the snapshot.
        origin: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The live map of the share is to be freed in the background; its intermediate snapshots stay. Answered when the
    /// intent is durable. Idempotent.
    DeleteHead {
        /// The volume.
        volume: VolumeId,
    },
    /// Reserve what a cut needs. Answered by `Prepared` or `Refused`.
    Prepare {
        /// The snapshot to be.
        snapshot: SnapshotId,
        /// Its volumes on this shard.
        volumes: Vec<VolumeId>,
    },
    /// Freeze the maps now, between two requests, and hold the answers that depend on anything newer, until
    /// `Release`, `Abort` or the deadline. Answered by `Taken` at once.
    Cut {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Its time stamp.
        time_stamp: TimeStamp,
        /// Monotonic time at which the shard aborts and releases by itself.
        deadline_ns: u64,
    },
    /// Let the held answers go. Answered by `Released` with the figures of the hold.
    Release {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Make the intermediate snapshot durable. Answered by `Durable`, or `Refused` if it was aborted.
    Persist {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The snapshot is not to be: drop the frozen maps, release. Answered by `Aborted`, whatever the state.
    Abort {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Free an intermediate snapshot in the background; answered when the intent is durable. If several maps were made of
    /// it (by clones), as soon as no more than one of them is left. Idempotent.
    DeleteSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Store a catalog row (shard 0); answered when durable.
    CatalogPut {
        /// Key, at most 255 bytes.
        key: Vec<u8>,
        /// Value, at most 3072 bytes.
        value: Vec<u8>,
    },
    /// Remove a catalog row (shard 0); answered when durable. Idempotent.
    CatalogDelete {
        /// Key.
        key: Vec<u8>,
    },
    /// Make a checkpoint now; answered when it is durable and the log is empty behind it.
    Checkpoint,
    /// Read every block that is in use, live and of snapshots, at this rate at most, and compare it with its checksum;
    /// answered at once. One that is running begins anew.
    Scrub {
        /// Bytes a second.
        rate_bytes_per_s: u64,
    },
    /// End a scrub that is running or paused; answered at once.
    StopScrub,
    /// Let a scrub that is running rest, until it is resumed; answered at once. Otherwise nothing happens.
    PauseScrub,
    /// Let a scrub that was paused go on where it was; answered at once. Otherwise nothing happens.
    ResumeScrub {
        /// Bytes a second from now on; as before, if none are given.
        rate_bytes_per_s: Option<u64>,
    },
    /// Take over what was known of the scrub before the shard was opened: one that was running goes on where it was;
    /// answered at once.
    RestoreScrub(Box<ScrubStatus>),
    /// The shard's part of a change log volume, until the shard is closed; answered at once. Replaces what was said before.
    SetChangeLog {
        /// The change log volume.
        change_log: ChangeLogId,
        /// Its part.
        part: ChangeLogPart,
    },
    /// The change log volume is no more: shares that it was named for have none; answered at once. Idempotent.
    RemoveChangeLog {
        /// The change log volume.
        change_log: ChangeLogId,
    },
    /// Names the change log volume of a share, until the shard is closed, or takes it away; answered at once.
    AttachChangeLog {
        /// The share.
        volume: VolumeId,
        /// Its change log volume.
        change_log: Option<ChangeLogId>,
    },
    /// No snapshot can be dropped to make room: writes that wait for it fail; answered at once.
    RefuseChangeLog {
        /// The change log volume.
        change_log: ChangeLogId,
    },
    /// Answered by `Deletion`: how far the freeing of this snapshot has come, in all its volumes.
    Deletion {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Answered by `Status`.
    Status,
    /// Answered by `Snapshots`: the shard's intermediate snapshots of this volume.
    ListSnapshots {
        /// The volume.
        volume: VolumeId,
    },
}

/// What happens to writes that find a change log volume full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// They fail, as on a full device.
    FailWrites,
    /// They wait while the control plane deletes snapshots.
    DropOldest,
}

/// One shard's part of a change log volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeLogPart {
    /// Blocks that its change logs may hold together.
    pub limit_blocks: u64,
    /// Devices that its blocks are placed on: bit `i` is device `i`.
    pub devices: u64,
    /// What happens when it is full.
    pub when_full: WhenFull,
}

/// What a shard tells the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardEvent {
    /// The shard.
    pub shard: ShardIndex,
    /// The ticket of the command, or `None` if nobody asked.
    pub ticket: Option<Ticket>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Done, and durable.
    Done,
    /// Not done.
    Failed(RequestError),
    /// Ready to cut.
    Prepared,
    /// Will not cut; `reason` says why.
    Refused {
        /// Why.
        reason: RefusedReason,
    },
    /// The maps are frozen, answers are held.
    Taken,
    /// The answers went out.
    Released(HoldFigures),
    /// The intermediate snapshot is durable.
    Durable,
    /// No trace is left, or will be left.
    Aborted,
    /// The deadline passed: the shard aborted and released by itself.
    HoldExpired {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The figures of the hold.
        figures: HoldFigures,
    },
    /// Figures of the shard.
    Status(Box<ShardStatus>),
    /// Intermediate snapshots of a volume, oldest first.
    Snapshots(Vec<IntermediateSnapshotStatus>),
    /// One entry for each share that has, or had, the snapshot.
    Deletion(Vec<DeletionStatus>),
    /// Something an operator should know.
    Notice(Notice),
}

/// Why a shard will not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// A volume is not there.
    NoSuchVolume(VolumeId),
    /// Another cut of the volume is going on.
    Busy,
    /// No space for the metadata.
    NoSpace,
    /// The shard stopped writing after a device error.
    ShardStopped,
    /// The snapshot was aborted before (deadline).
    Aborted,
}

/// The price of one cut on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldFigures {
    /// From the cut to the release.
    pub hold_ns: u64,
    /// Answers held.
    pub answers_held: u64,
    /// The longest that one answer was held.
    pub answer_held_ns_max: u64,
    /// What the cut put into the log: its records, in bytes.
    pub log_bytes: u64,
    /// What the intermediate snapshots put into the directory with the next checkpoint: their rows, in bytes.
    pub metadata_bytes: u64,
}

/// Something an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A block or page did not match its checksum.
    Corrupt {
        /// Where.
        address: crate::ids::DeviceAddress,
    },
    /// Blocks or pages that one side of a mirror had damaged were read from the other side and written back.
    Repaired {
        /// Where the first of them lies.
        address: crate::ids::DeviceAddress,
        /// How many.
        blocks: u64,
        /// The side that had them damaged.
        side: Side,
    },
    /// Blocks or pages that one side of a mirror has damaged were read from the other side, and could not be written back.
    NotRepaired {
        /// Where the first of them lies.
        address: crate::ids::DeviceAddress,
        /// How many.
        blocks: u64,
        /// The side that has them damaged.
        side: Side,
        /// What the device said; `None` if there was no memory for it, and the next read may repair them.
        error: Option<crate::ports::DeviceError>,
    },
    /// A scrub found a damaged block or page.
    Scrub(ScrubDamage),
    /// The shard stopped writing.
    Stopped {
        /// Which operation failed.
        operation: &'static str,
        /// How.
        error: crate::ports::DeviceError,
    },
    /// A checkpoint is durable.
    Checkpointed {
        /// When its state was frozen, in nanoseconds since 1970.
        began_wall_ns: u64,
        /// When it was durable.
        ended_wall_ns: u64,
    },
    /// An intermediate snapshot is gone and its space is free.
    SnapshotFreed {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// A change log volume is full. With [`WhenFull::DropOldest`] writes wait for room.
    ChangeLogFull {
        /// The change log volume.
        change_log: ChangeLogId,
    },
    /// A change log volume has become nearly full on this shard, or no longer is.
    ChangeLogHigh {
        /// The change log volume.
        change_log: ChangeLogId,
        /// It is.
        high: bool,
    },
    /// A volume's share is gone and its space is free.
    VolumeFreed {
        /// The volume.
        volume: VolumeId,
    },
}

impl Notice {
    /// Whether it only says what the shard did beside requests: nothing is amiss if it gets lost.
    #[must_use]
    pub fn is_background(&self) -> bool {
        matches!(
            self,
            Self::Checkpointed { .. } | Self::SnapshotFreed { .. } | Self::VolumeFreed { .. }
        )
    }
}

/// Whether a scrub is going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScrubState {
    /// None is known of.
    #[default]
    Never,
    /// It is going on.
    Running,
    /// It was going on, and rests.
    Paused,
    /// It has looked at everything.
    Done,
    /// It was ended before it had looked at everything.
    Stopped,
}

/// A scrub of a shard: the one that is going on, or the last. All that it needs to go on after the shard was opened again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Whether it is going on.
    pub state: ScrubState,
    /// Bytes a second that are read at most.
    pub rate_bytes_per_s: u64,
    /// Where it is.
    pub position: ScrubPosition,
    /// Blocks and pages read and compared so far; of a mirror, once for both sides.
    pub checked_blocks: u64,
    /// Damaged ones among them: on every side that there is.
    pub damaged_blocks: u64,
    /// The first of these.
    pub damage: Vec<ScrubDamage>,
    /// What it came to on each side of the mirrors; all zero where there are none.
    pub sides: [ScrubSide; 2],
    /// When it began, nanoseconds since the Unix epoch; 0 = never.
    pub started_ns: u64,
    /// When it ended, nanoseconds since the Unix epoch; 0 = it has not.
    pub ended_ns: u64,
    /// How long it was running, without pauses and the time in which the shard was closed.
    pub running_ns: u64,
}

/// What a scrub came to on one side of the mirrors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubSide {
    /// Blocks and pages read from this side and compared, while the other side was in sync.
    pub read_blocks: u64,
    /// Those that were damaged on this side and written to it again while the scrub was running, by whoever read them.
    pub repaired_blocks: u64,
    /// Those that are damaged on this side and stay so: on the other too, or they could not be written.
    pub unrepaired_blocks: u64,
}

/// Where a scrub is: the next block to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubPosition {
    /// The share, or the next one that is there.
    pub volume: u32,
    /// Epoch of the snapshot that it looks at, or of the next one that is there; from `until` on it is the last view.
    pub epoch: u32,
    /// The live map's epoch when the scrub came to this share; 0 if it has not.
    pub until: u32,
    /// Leaf of the map.
    pub leaf: u64,
    /// The pages that lead to this leaf were read.
    pub pages_read: bool,
    /// Entry of the leaf.
    pub slot: u32,
}

/// A damaged block or page that a scrub found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubDamage {
    /// The volume or the oldest snapshot that shows it.
    pub view: crate::request::View,
    /// It is a page of the map, of this level (0 = leaf): nothing that it covers can be read.
    pub map_level: Option<u8>,
    /// First block of the share that it is about.
    pub first: crate::ids::ShareBlock,
    /// Where it lies.
    pub address: crate::ids::DeviceAddress,
    /// It could not be read; if not, its checksum does not match.
    pub device_error: Option<crate::ports::DeviceError>,
}

/// An intermediate snapshot, as told by its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntermediateSnapshotStatus {
    /// The overall snapshot.
    pub snapshot: SnapshotId,
    /// The last epoch it holds.
    pub epoch: u32,
    /// Its time stamp.
    pub time_stamp: TimeStamp,
    /// Blocks mapped by the point-in-time copy.
    pub mapped_blocks: u64,
    /// The change log behind it (what was written after it, up to the next snapshot or now): blocks.
    pub changed_blocks: u64,
    /// First change after it, nanoseconds since the Unix epoch, 0 if none.
    pub first_change_ns: u64,
    /// Last change after it.
    pub last_change_ns: u64,
    /// To be freed.
    pub deleting: bool,
}

/// How the freeing of an intermediate snapshot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeletionState {
    /// It is not there any more, and its space comes free with the next checkpoint.
    Gone,
    /// It is being freed, or its turn will come.
    Going,
    /// More than one map was made of it; it goes when no more than one of them is left.
    Branches,
    /// A map page could not be read: what it holds stays allocated until the shard is opened again.
    Unreadable,
    /// The shard stopped writing: it goes on when the pool is opened again.
    Stopped,
    /// It is not to be freed.
    Kept,
}

/// How far the freeing of an intermediate snapshot has come. What only it holds is not known before its map was walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletionStatus {
    /// The share.
    pub volume: VolumeId,
    /// How it stands.
    pub state: DeletionState,
    /// Blocks of the share that its map covers.
    pub share_blocks: u64,
    /// How many of these were walked.
    pub walked_blocks: u64,
    /// Blocks and map pages given back since the shard was opened.
    pub freed_blocks: u64,
}

/// Figures of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// Blocks that can hold data or map pages.
    pub total_blocks: u64,
    /// Blocks in use.
    pub used_blocks: u64,
    /// Blocks that come free with the next checkpoint.
    pub pending_blocks: u64,
    /// Parts read.
    pub reads: u64,
    /// Parts written.
    pub writes: u64,
    /// Parts discarded.
    pub discards: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes read for clients.
    pub read_bytes: u64,
    /// Bytes written for clients.
    pub written_bytes: u64,
    /// Write operations sent to the devices for data: several small writes may go as one.
    pub device_writes: u64,
    /// Read operations sent to the devices for data.
    pub device_reads: u64,
    /// Log pages written.
    pub log_pages: u64,
    /// Bytes of the log ring in use.
    pub log_used_bytes: u64,
    /// Bytes of the log ring.
    pub log_bytes: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Map pages read from the devices.
    pub map_misses: u64,
    /// Map pages in memory.
    pub map_pages_cached: u64,
    /// Blocks and pages whose checksum did not match, on any side of a mirror.
    pub corrupt_blocks: u64,
    /// Blocks and pages that one side of a mirror had damaged and that were written to it again.
    pub repaired_blocks: u64,
    /// Those that could not be written to it again, or not this time.
    pub repair_failures: u64,
    /// Device errors seen.
    pub device_errors: u64,
    /// Whether the shard stopped writing.
    pub stopped: bool,
    /// Requests being worked on.
    pub in_flight: u64,
    /// The scrub that is going on, or the last.
    pub scrub: ScrubStatus,
    /// The shard's parts of change log volumes.
    pub change_logs: Vec<ChangeLogPartStatus>,
    /// Per volume: share and mapped blocks.
    pub volumes: Vec<VolumeShareStatus>,
}

/// How full one shard's part of a change log volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeLogPartStatus {
    /// The change log volume.
    pub change_log: ChangeLogId,
    /// Blocks that its change logs may hold together.
    pub limit_blocks: u64,
    /// Blocks that they hold.
    pub used_blocks: u64,
    /// Writes that wait for room.
    pub waiting: u64,
    /// Some of them wait until a snapshot is dropped.
    pub is_short: bool,
    /// Blocks that found no place on its devices since the shard was opened, and went to others.
    pub elsewhere_blocks: u64,
}

/// One volume's share on a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeShareStatus {
    /// The volume.
    pub volume: VolumeId,
    /// Size of the share.
    pub share_blocks: u64,
    /// Blocks mapped by the live map.
    pub mapped_blocks: u64,
    /// Current epoch.
    pub epoch: u32,
    /// Intermediate snapshots, those to be freed included.
    pub snapshots: u64,
    /// The live map is gone, or to be freed.
    pub headless: bool,
    /// The share and its intermediate snapshot that this share was made of.
    pub origin: Option<(VolumeId, SnapshotId)>,
}
