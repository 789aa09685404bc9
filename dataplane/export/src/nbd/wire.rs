//! The constants and layouts of the NBD protocol, one definition each, used by the server session, the client
//! codec and the tests. Numbers are big-endian on the wire. Source: the NBD project's `doc/proto.md`, sections
//! "Newstyle negotiation", "Transmission" and "Values".

mod headers;

pub use headers::{ChunkHeader, OptionHeader, OptionReplyHeader, Reader, RequestHeader, SimpleReply};

use core::fmt;

/// First eight bytes of the server's greeting: `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the greeting and first of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First eight bytes of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First four bytes of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First four bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First four bytes of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Longest string of the protocol, in bytes.
pub const NAME_BYTES_MAX: usize = 4096;
/// Largest payload of one request that every server must take, and ours announces: 32 MiB.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// The preferred block size that is announced.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// Zeroes after the reply to `EXPORT_NAME`, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// The metadata context that tells holes from data.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";
/// The wildcard that lists it.
pub const CONTEXT_BASE: &str = "base:";
/// Before the name of a snapshot: the context that tells what changed since it. Alone, the wildcard.
pub const CONTEXT_CHANGES: &str = "stillpoint:changes:";
/// Before the name of a snapshot that does not exist yet: selecting this takes it. Alone, says in a list that this is allowed.
pub const CONTEXT_SNAPSHOT: &str = "stillpoint:snapshot:";
/// The wildcard that lists both.
pub const CONTEXT_STILLPOINT: &str = "stillpoint:";
/// Before the name of a snapshot: the context that tells the same as qemu tells of its dirty bitmaps.
pub const CONTEXT_DIRTY: &str = "qemu:dirty-bitmap:";
/// Another wildcard for the same.
pub const CONTEXT_QEMU: &str = "qemu:";

/// Flags of the greeting and of the client's answer to it (same bits).
pub mod handshake_flags {
    /// Option replies are understood.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No padding after `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the negotiation.
pub mod option {
    /// Enter transmission, no error reply possible.
    pub const EXPORT_NAME: u32 = 1;
    /// End politely.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Upgrade to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and enter transmission.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// 64-bit lengths (an extension).
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export.
    pub const SERVER: u32 = 2;
    /// A piece of information about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Bit set in every error.
    pub const ERROR: u32 = 1 << 31;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// Refused for a reason of the server's own.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// Malformed option.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// Option too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flush works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Trim works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Write-zeroes works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Reads may ask not to be fragmented.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Cache works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// Write-zeroes may ask to be fast or fail.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Read ahead.
    pub const CACHE: u16 = 5;
    /// Zero without payload.
    pub const WRITE_ZEROES: u16 = 6;
    /// Query metadata.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flags {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes are to be written, not punched.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One content chunk at most.
    pub const DF: u16 = 1 << 2;
    /// One extent at most.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail rather than be as slow as a write.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types and flags of structured reply chunks.
pub mod chunk {
    /// Flag: the last chunk of a reply.
    pub const DONE: u16 = 1 << 0;
    /// Nothing more to say.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Context and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error.
    pub const ERROR: u16 = (1 << 15) | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = (1 << 15) | 2;
}

/// State bits of `base:allocation`.
pub mod extent_state {
    /// Not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// States of an extent of `stillpoint:changes:SNAPSHOT`.
pub mod changes_state {
    /// Written or discarded since the snapshot.
    pub const CHANGED: u32 = 1 << 0;
    /// A hole now; only together with `CHANGED`.
    pub const HOLE: u32 = 1 << 1;
}

/// States of an extent of `qemu:dirty-bitmap:SNAPSHOT`.
pub mod dirty_state {
    /// Written or discarded since the snapshot.
    pub const DIRTY: u32 = 1 << 0;
}

/// The errors a reply can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ReplyError {
    /// The export is read-only.
    NotPermitted = 1,
    /// The device failed.
    Io = 5,
    /// The server has no memory.
    NoMemory = 12,
    /// The request is wrong.
    Invalid = 22,
    /// The pool is full, or a write goes beyond the end.
    NoSpace = 28,
    /// The request is too long.
    Overflow = 75,
    /// It cannot be done fast.
    NotSupported = 95,
    /// The export is going away.
    Shutdown = 108,
}

impl ReplyError {
    /// The error with this number. Servers may send others, which the protocol says to take for `EINVAL`.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }

    /// A sentence for the person who reads the client's log.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::NotPermitted => "this export is read-only",
            Self::Io => "the device failed, or what it holds does not match its checksum",
            Self::NoMemory => "the server has no memory for this request",
            Self::Invalid => {
                "invalid request: unknown command or flag, bad alignment or range, or a snapshot that is gone"
            }
            Self::NoSpace => "the pool is full or the range goes beyond the end of the volume",
            Self::Overflow => "the request is longer than the server takes (32 MiB)",
            Self::NotSupported => "this cannot be done faster than by writing",
            Self::Shutdown => "the export is going away",
        }
    }
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for ReplyError {}
