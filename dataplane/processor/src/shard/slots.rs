//! The table of requests being worked on: each an explicit state in a fixed place.

use core::ops::{Index, IndexMut};

use zerocopy::little_endian::U32;

use crate::BLOCK_BYTES;
use crate::change_log_volume::Grant;
use crate::ids::{ChangeLogId, Epoch, ShareBlock};
use crate::map::Entry;
use crate::ports::Buffer;
use crate::request::{Base, RequestError, RequestKind, ShardAnswer, ShardRequest, Token, View};
use crate::space::Extent;
use crate::stages::Stage;

/// A place in the table.
pub(super) type SlotId = u32;

/// What a request needs done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Look up and read.
    Read,
    /// Look up only.
    Cache,
    /// Read the blocks of which only a part is written.
    Merge,
    /// Join the next batch.
    Queue,
    /// The data is on the device: make it the volume's.
    Apply,
    /// Make holes.
    Discard,
    /// List extents.
    BlockStatus,
    /// List what changed since this snapshot.
    Changes(Base),
    /// Wait for durability.
    Flush,
}

/// A partial block of a write, and what the map said of it when the rest of it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    /// Position among the request's blocks.
    pub(super) block: u32,
    /// What was merged.
    pub(super) entry: Entry,
}

/// A request being worked on.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) step: Step,
    pub(super) token: Token,
    pub(super) view: View,
    pub(super) kind: RequestKind,
    pub(super) first: ShareBlock,
    pub(super) blocks: u32,
    pub(super) skip_bytes: u32,
    pub(super) length_bytes: u32,
    pub(super) buffer: Option<Buffer>,
    /// Whether it has waited for a map page before.
    pub(super) waited: bool,
    /// The newest epoch that the answer depends on.
    pub(super) max_birth: Epoch,
    /// Blocks applied, discarded or listed so far.
    pub(super) done_blocks: u32,
    pub(super) valid_bytes: u32,
    /// Reads: what the map said of each block.
    pub(super) entries: Vec<Entry>,
    /// Writes: CRC of each block.
    pub(super) crcs: Vec<U32>,
    /// Writes: where the blocks went, in order; applied ones are gone.
    pub(super) extents: Vec<Extent>,
    /// Writes: partial first and last block.
    pub(super) edges: [Option<Edge>; 2],
    /// Writes: what they may put into a change log volume.
    pub(super) grant: Option<(ChangeLogId, Grant)>,
    /// Writes: until when they wait for room there; 0 if they have not.
    pub(super) room_deadline_ns: u64,
    /// Where its time goes now, and since when.
    pub(super) stage: Stage,
    pub(super) since_ns: u64,
}

impl ShardRequest {
    /// Whether a write covers only a part of its first or last block.
    pub(super) fn is_partial(&self) -> bool {
        self.skip_bytes != 0 || self.length_bytes as usize != self.blocks as usize * BLOCK_BYTES
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    limit: usize,
}

impl Slots {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            limit,
        }
    }

    /// Whether no request may be taken; held answers count as requests.
    pub(super) fn is_full(&self, held: usize) -> bool {
        self.in_use() + held >= self.limit
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn take(&mut self, request: ShardRequest, step: Step, now_ns: u64) -> SlotId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::empty());
            (self.slots.len() - 1) as SlotId
        });
        let slot = &mut self.slots[id as usize];
        slot.step = step;
        slot.token = request.token;
        slot.view = request.view;
        slot.kind = request.kind;
        slot.first = request.first;
        slot.blocks = request.blocks;
        slot.skip_bytes = request.skip_bytes;
        slot.length_bytes = request.length_bytes;
        slot.buffer = request.buffer;
        slot.waited = false;
        slot.max_birth = Epoch(0);
        slot.done_blocks = 0;
        slot.valid_bytes = 0;
        slot.edges = [None; 2];
        slot.grant = None;
        slot.room_deadline_ns = 0;
        slot.stage = if step == Step::Flush {
            Stage::Log
        } else {
            Stage::Map
        };
        slot.since_ns = now_ns;
        id
    }

    pub(super) fn release(
        &mut self,
        id: SlotId,
        result: Result<(), RequestError>,
        now_ns: u64,
    ) -> ShardAnswer {
        let slot = &mut self.slots[id as usize];
        assert!(
            slot.extents.is_empty() && slot.grant.is_none(),
            "the space of a request is settled before its answer"
        );
        slot.entries.clear();
        slot.crcs.clear();
        self.free.push(id);
        ShardAnswer {
            token: slot.token,
            result,
            buffer: slot.buffer.take(),
            valid_bytes: slot.valid_bytes,
            since_ns: now_ns,
        }
    }
}

impl Slot {
    fn empty() -> Self {
        Self {
            step: Step::Flush,
            token: Token(0),
            view: View {
                volume: crate::ids::VolumeId(0),
                snapshot: None,
            },
            kind: RequestKind::Flush,
            first: ShareBlock(0),
            blocks: 0,
            skip_bytes: 0,
            length_bytes: 0,
            buffer: None,
            waited: false,
            max_birth: Epoch(0),
            done_blocks: 0,
            valid_bytes: 0,
            entries: Vec::new(),
            crcs: Vec::new(),
            extents: Vec::new(),
            edges: [None; 2],
            grant: None,
            room_deadline_ns: 0,
            stage: Stage::Map,
            since_ns: 0,
        }
    }
}

impl Index<SlotId> for Slots {
    type Output = Slot;

    fn index(&self, id: SlotId) -> &Slot {
        &self.slots[id as usize]
    }
}

impl IndexMut<SlotId> for Slots {
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[id as usize]
    }
}
