//! What happens to a request between "it arrived" and "the device did it".
//!
//! Everything here is pure: no system call, no clock, no thread, no randomness. Time comes in as
//! [`Now`], device operations go out through [`ports::BlockDevice`], answers through an [`Outbox`].
//! The poll loop drives these types with io_uring, the simulator drives the very same types with a
//! simulated device and a seed.

pub mod backlog;
pub mod change_log;
pub mod change_log_volume;
pub mod command;
pub mod directory;
pub mod format;
pub mod hold;
pub mod host_view;
pub mod ids;
pub mod index;
pub mod intermediate_snapshot;
pub mod lineage;
pub mod log;
pub mod map;
pub mod marks;
pub mod mirror;
pub mod object;
pub mod outbox;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod ports;
pub mod processor;
pub mod request;
mod reserve;
pub mod shard;
pub mod snapshot_chain;
pub mod space;
pub mod stages;
pub mod virtual_volume;

pub use backlog::Backlog;
pub use command::{ShardCommand, ShardEvent, Ticket};
pub use ids::{
    BlockIndex, ChangeLogId, DeviceAddress, DeviceIndex, Epoch, Now, ShardIndex, ShareBlock, SnapshotId,
    TimeStamp, VolumeId, VolumeOffset,
};
pub use mirror::{MirrorNotice, MirrorStatus, Mirrors, SideAt, SideState, StaleAt, load_stale};
pub use outbox::Outbox;
#[cfg(feature = "planted-bugs")]
pub use planted::PlantedBug;
pub use processor::Processor;
pub use request::{
    Base, CHANGED, CHANGED_TO_HOLE, RequestError, RequestKind, ShardAnswer, ShardRequest, Token, View,
};
pub use shard::{OpenError, RecoveryReport, Shard, ShardOptions};

/// Size of a block, in bytes.
pub const BLOCK_BYTES: usize = stillpoint_ondisk::BLOCK_BYTES;
/// Bytes of one part of a request at most: what one [`ports::Buffer`] holds.
pub const PART_BYTES_MAX: usize = 1 << 20;
/// Blocks of one part of a request at most.
pub const PART_BLOCKS_MAX: u32 = (PART_BYTES_MAX / BLOCK_BYTES) as u32;
