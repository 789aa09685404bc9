//! Requests and answers between an export and the shards. A request of a client is cut by object into
//! parts ([`crate::host_view`]); each part is one [`ShardRequest`] with a buffer of its own.

use crate::ids::{ShardIndex, ShareBlock, SnapshotId, VolumeId};
use crate::ports::Buffer;
use core::fmt;

/// The sender's own mark on a request; comes back with the answer. Shards never look into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What a session looks at: a volume as it is, or one of its snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct View {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot, or `None` for the volume as it is.
    pub snapshot: Option<SnapshotId>,
}

/// The snapshot that a view is compared with: of the same volume, or of another one of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Base {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

impl From<Base> for View {
    fn from(base: Base) -> Self {
        Self {
            volume: base.volume,
            snapshot: Some(base.snapshot),
        }
    }
}

/// Bit of a run's state in the answer to [`RequestKind::Changes`]: written or discarded since the base.
pub const CHANGED: u32 = 1 << 0;
/// Bit of a run's state in the answer to [`RequestKind::Changes`]: a hole now; only with [`CHANGED`].
pub const CHANGED_TO_HOLE: u32 = 1 << 1;

/// What is asked of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Fill `blocks` whole blocks of the buffer; holes read as zeros.
    Read,
    /// Write `length_bytes` from byte `skip_bytes` of the buffer on. The buffer is block-aligned: its byte 0
    /// is byte 0 of block `first`, and it has room for all `blocks`, so that the owner can merge the rest of
    /// a partial first or last block into it.
    Write {
        /// Durable before it is answered.
        fua: bool,
    },
    /// These whole blocks become holes.
    Discard {
        /// Durable before it is answered.
        fua: bool,
    },
    /// Everything that was answered before is durable.
    Flush,
    /// Fill the buffer with pairs of little-endian u32 (blocks, state: 0 mapped, 1 hole), runs merged, for up
    /// to `blocks` blocks; the answer's `valid_bytes` says how much was filled. Covers less than `blocks` only
    /// if the buffer is full.
    BlockStatus,
    /// Fill the buffer as for [`Self::BlockStatus`], with what changed since a snapshot: the states are bits,
    /// [`CHANGED`] and [`CHANGED_TO_HOLE`]. The last run may go beyond `blocks`, as far as the share and what was
    /// looked at anyway tell.
    Changes {
        /// The snapshot.
        base: Base,
    },
    /// Read ahead: no data comes back, errors do.
    Cache,
}

/// A part of a client's request, for one shard.
#[derive(Debug)]
pub struct ShardRequest {
    /// Comes back with the answer.
    pub token: Token,
    /// The owner.
    pub shard: ShardIndex,
    /// What it is asked of.
    pub view: View,
    /// What is asked.
    pub kind: RequestKind,
    /// First block of the share.
    pub first: ShareBlock,
    /// Blocks touched, partial ones included; at most [`crate::PART_BLOCKS_MAX`] where there is a buffer.
    pub blocks: u32,
    /// Bytes of the first block before the data (writes).
    pub skip_bytes: u32,
    /// Bytes of data (writes).
    pub length_bytes: u32,
    /// Memory: `blocks` * 4096 bytes for reads and writes, any size for block status and changes, else `None`.
    pub buffer: Option<Buffer>,
    /// When the stage began that the part is in, on the monotonic clock ([`crate::stages`]).
    pub since_ns: u64,
}

/// Why a request was not done. Nothing of it was done, or (a write) any of its blocks may hold old or new data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The device failed.
    Io,
    /// What was read is not what was written: the CRC does not match.
    Corrupt,
    /// The pool is full.
    NoSpace,
    /// The volume or snapshot is not there (any more).
    NotFound,
    /// The snapshot to compare with is not there (any more), or the two volumes share no past.
    NoBase,
    /// A write to a snapshot.
    ReadOnly,
    /// The shard stopped writing after a device error; reads go on.
    ShardStopped,
    /// The range is not within the volume.
    OutOfRange,
    /// The appliance is shutting down.
    ShuttingDown,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "device I/O error",
            Self::Corrupt => "checksum mismatch",
            Self::NoSpace => "the pool is full",
            Self::NotFound => "no such volume or snapshot",
            Self::NoBase => "no such snapshot to compare with",
            Self::ReadOnly => "a snapshot cannot be written",
            Self::ShardStopped => "the shard stopped writing after a device error",
            Self::OutOfRange => "beyond the end of the volume",
            Self::ShuttingDown => "shutting down",
        })
    }
}

impl std::error::Error for RequestError {}

/// The answer to a [`ShardRequest`]; the buffer comes back with it.
#[derive(Debug)]
pub struct ShardAnswer {
    /// The request's.
    pub token: Token,
    /// How it went.
    pub result: Result<(), RequestError>,
    /// The request's buffer.
    pub buffer: Option<Buffer>,
    /// Bytes of the buffer that answer a block status or changes request.
    pub valid_bytes: u32,
    /// When the shard let it go, on the monotonic clock.
    pub since_ns: u64,
}
