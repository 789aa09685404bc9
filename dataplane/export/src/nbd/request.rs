//! A client's request while it is being served, and what is to be said to the client.

use super::extents::Extents;
use super::wire::ReplyError;
use core::ops::Range;
use stillpoint_processor::host_view::{Part, Parts};
use stillpoint_processor::ports::Buffer;
use stillpoint_processor::stages::Work;
use stillpoint_processor::{RequestKind, ShardIndex};

/// Parts of a read in order that have a buffer at a time.
pub(super) const WINDOW_PARTS: usize = 4;

/// A request of the client.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) cookie: u64,
    /// First byte of the volume.
    pub(super) offset_bytes: u64,
    pub(super) length_bytes: u32,
    /// What is not yet with a shard: bytes, or shards to flush.
    pub(super) unissued: u64,
    /// Parts that are with shards.
    pub(super) outstanding: u32,
    /// Is in the list of requests with parts to issue.
    pub(super) queued: bool,
    /// The client will not hear of it.
    pub(super) silent: bool,
    /// The first error.
    pub(super) error: Option<ReplyError>,
    pub(super) job: Job,
    /// When its header was understood, and when the last of its parts was answered so far.
    pub(super) received_ns: u64,
    pub(super) answered_ns: u64,
}

impl Request {
    pub(super) fn is_complete(&self) -> bool {
        self.unissued == 0 && self.outstanding == 0
    }
}

/// What a reply that was sent was about, with the times of its request on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) work: Work,
    pub(super) received_ns: u64,
    pub(super) answered_ns: u64,
}

/// What is to be done, and how far it is.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives in a slab; a box would be an allocation per request"
)]
pub(super) enum Job {
    /// A read whose parts are sent as they come, a chunk each.
    Chunks { parts: Parts },
    /// A read whose data has to go out in order: without structured replies, or not to be fragmented.
    InOrder(InOrder),
    /// A write; its parts are issued as they are received.
    Write { parts: Parts, fua: bool },
    /// Parts without data: trim, cache.
    Plain { kind: RequestKind, parts: Parts },
    /// Write-zeroes: partial blocks are written, whole ones in the middle become holes.
    Zeroes {
        head: Parts,
        middle: Parts,
        tail: Parts,
        fua: bool,
    },
    /// A flush of these shards.
    Flush { shards: Range<u16> },
    /// A block status query.
    Status(Status),
}

impl Job {
    /// What it is about, for the figures.
    pub(super) fn work(&self) -> Work {
        match self {
            Self::Chunks { .. } | Self::InOrder(_) => Work::Read,
            Self::Write { .. } => Work::Write,
            Self::Plain { kind, .. } => Work::of(*kind),
            Self::Zeroes { .. } => Work::Discard,
            Self::Flush { .. } => Work::Flush,
            Self::Status(_) => Work::Query,
        }
    }
}

/// A read in order. It takes the buffers of its first parts, [`WINDOW_PARTS`] at most, all at once and goes on
/// with the same ones, so that it never waits for memory while the client waits for its data.
#[derive(Debug)]
pub(super) struct InOrder {
    pub(super) parts: Parts,
    pub(super) started: bool,
    /// More parts than the window: the reply begins before all is read.
    pub(super) long: bool,
    /// Buffers for parts to come.
    pub(super) spare: [Option<Buffer>; WINDOW_PARTS],
    /// Buffers that come back once they are sent.
    pub(super) returning: u32,
    /// Answered parts, by number modulo the window.
    pub(super) answered: [Option<Piece>; WINDOW_PARTS],
    pub(super) issued: u32,
    pub(super) sent: u32,
    pub(super) header_sent: bool,
}

impl InOrder {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            started: false,
            long: false,
            spare: [const { None }; WINDOW_PARTS],
            returning: 0,
            answered: [const { None }; WINDOW_PARTS],
            issued: 0,
            sent: 0,
            header_sent: false,
        }
    }

    pub(super) fn put_spare(&mut self, buffer: Buffer) {
        let place = self.spare.iter_mut().find(|place| place.is_none());
        *place.expect("as many places as buffers") = Some(buffer);
    }

    pub(super) fn take_spare(&mut self) -> Option<Buffer> {
        self.spare.iter_mut().find_map(Option::take)
    }

    pub(super) fn spare_count(&self) -> usize {
        self.spare.iter().flatten().count()
    }

    /// All buffers it has, to be given back.
    pub(super) fn take_buffers(&mut self) -> impl Iterator<Item = Buffer> {
        let answered = self.answered.iter_mut().filter_map(Option::take);
        let spare = self.spare.iter_mut().filter_map(Option::take);
        answered.map(|piece| piece.buffer).chain(spare)
    }
}

/// Bytes of a buffer.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) buffer: Buffer,
    pub(super) start: u32,
    pub(super) length: u32,
}

/// A block status query: the selected contexts one after the other, and of each its parts.
#[derive(Debug)]
pub(super) struct Status {
    /// The whole range.
    pub(super) all: Parts,
    /// The context that is being asked about, by its place among the selected.
    pub(super) context: usize,
    /// What is left of the range.
    pub(super) parts: Parts,
    /// The part that is with its shard.
    pub(super) asked: Option<Part>,
    /// What shards have told of later parts already.
    pub(super) foreseen: Foreseen,
    /// One extent at most.
    pub(super) one: bool,
    pub(super) extents: Extents,
    /// Memory of the reply.
    pub(super) reply: Option<Buffer>,
    /// Memory for the shards' answers.
    pub(super) question: Option<Buffer>,
}

/// Runs that shards have told to their end, beyond the part that was asked about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Foreseen([Option<Run>; FORESEEN_SHARDS]);

/// Shards whose runs are remembered.
const FORESEEN_SHARDS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Run {
    shard: ShardIndex,
    /// First block of the share behind it.
    end: u64,
    state: u32,
}

impl Foreseen {
    /// Notes that the share is in `state` up to block `end`, from the part on that was asked about last.
    pub(super) fn note(&mut self, shard: ShardIndex, end: u64, state: u32) {
        self.0[usize::from(shard.0) % FORESEEN_SHARDS] = Some(Run { shard, end, state });
    }

    /// The state of a part, if it is known to its end. Parts are asked about in order.
    pub(super) fn state(&self, part: &Part) -> Option<u32> {
        let run = self.0[usize::from(part.shard.0) % FORESEEN_SHARDS]?;
        let known = run.shard == part.shard && part.first.0 + u64::from(part.blocks) <= run.end;
        known.then_some(run.state)
    }
}

/// A part that is with its shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartInFlight {
    pub(super) request: u16,
    /// Number of the part within an ordered read.
    pub(super) sequence: u32,
    /// From the start of the client's range.
    pub(super) offset_bytes: u64,
    pub(super) skip_bytes: u32,
    pub(super) length_bytes: u32,
}

/// Something to be said to the client. They are said in the order in which they became ready.
#[derive(Debug)]
pub(super) enum Ready {
    /// A chunk of a read.
    Chunk {
        request: u16,
        offset_bytes: u64,
        result: Result<Piece, ReplyError>,
        last: bool,
    },
    /// The whole reply.
    Reply { request: u16 },
    /// A chunk of a block status reply: what one context tells.
    Extents { request: u16, piece: Piece, last: bool },
    /// A long read in order: its data, as it comes. Nothing else is said until it is done.
    Stream { request: u16 },
    /// A request that was not begun.
    Refusal { cookie: u64, error: ReplyError },
    /// Success, though the request goes on.
    #[cfg(feature = "planted-bugs")]
    Early { cookie: u64 },
}
