//! The operations that a mirror works on, those of its own among them: each in a place of a table, whose number is the tag
//! under which the devices know it.

use core::ops::{Index, IndexMut, Range};

use crate::BLOCK_BYTES;
use crate::ids::ShardIndex;
use crate::ports::{DeviceError, Operation, OperationKind, Side, Transfer};

/// A place in the table.
pub(super) type SlotId = u32;

/// Whose an operation is, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A shard's write, flush or discard.
    Of,
    /// A shard's read, at the side that was picked.
    Read,
    /// What that side could not read, at the other.
    ReadOther,
    /// What the other could not read either, at the side that was picked: now it may take its time.
    ReadAgain,
    /// The stale page of a slice, by its position.
    Page(usize),
    /// The flush that makes it durable.
    PageFlush(usize),
    /// A chunk from the side that is in sync.
    CopyRead,
    /// To the other.
    CopyWrite,
    /// A flush of a device that is being resynchronised, by its number.
    CopyFlush(usize),
}

/// A side that could not do its part of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Miss {
    /// Position among [`Slot::transfers`].
    pub transfer: u32,
    pub side: Side,
    pub error: DeviceError,
    /// The other side failed too.
    pub other_failed: bool,
}

/// An operation.
#[derive(Debug)]
pub(super) struct Slot {
    pub purpose: Purpose,
    /// What it was submitted as.
    pub shard: ShardIndex,
    pub tag: u64,
    pub kind: OperationKind,
    pub side: Option<Side>,
    /// A read: the side that answers, if there is another one to ask.
    pub served: Option<Side>,
    /// On devices, not on sides.
    pub transfers: Vec<Transfer>,
    /// Here while the devices do not have it.
    pub operation: Option<Box<Operation>>,
    /// It was given to the devices, or waits only for room there.
    pub started: bool,
    /// Changes of sides before it was started.
    pub generation: u64,
    /// Sides that failed it.
    pub misses: Vec<Miss>,
}

impl Slot {
    fn empty() -> Self {
        Self {
            purpose: Purpose::Of,
            shard: ShardIndex(0),
            tag: 0,
            kind: OperationKind::Flush,
            side: None,
            served: None,
            transfers: Vec::with_capacity(8),
            operation: None,
            started: false,
            generation: 0,
            misses: Vec::new(),
        }
    }

    /// Whether blocks are being written by it.
    pub(super) fn writes(&self) -> bool {
        match self.purpose {
            Purpose::Of => self.kind == OperationKind::Write,
            Purpose::CopyWrite => true,
            _ => false,
        }
    }
}

/// The blocks of a transfer.
pub(super) fn blocks_of(transfer: &Transfer) -> Range<u64> {
    let first = transfer.offset_bytes / BLOCK_BYTES as u64;
    first..first + transfer.length_bytes / BLOCK_BYTES as u64
}

/// The table. Its size is bounded by what the shards have in flight.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<SlotId>,
}

impl Table {
    /// A place for an operation: everything but the operation itself is kept there as it is now, and its tag is the place.
    pub(super) fn take(&mut self, purpose: Purpose, operation: &mut Operation) -> SlotId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::empty());
            (self.slots.len() - 1) as SlotId
        });
        let slot = &mut self.slots[id as usize];
        slot.purpose = purpose;
        slot.shard = operation.shard;
        slot.tag = operation.tag;
        slot.kind = operation.kind;
        slot.side = operation.side;
        slot.served = None;
        slot.started = false;
        slot.misses.clear();
        core::mem::swap(&mut slot.transfers, &mut operation.transfers);
        operation.transfers.clear();
        operation.tag = u64::from(id);
        id
    }

    /// Makes an operation what it was when it took its place, which it leaves.
    pub(super) fn leave(&mut self, id: SlotId, operation: &mut Operation) {
        let slot = &mut self.slots[id as usize];
        core::mem::swap(&mut slot.transfers, &mut operation.transfers);
        slot.started = false;
        operation.tag = slot.tag;
        operation.kind = slot.kind;
        operation.side = slot.side;
        operation.is_tried_once = false;
        operation.failures.clear();
        self.free.push(id);
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Those that the devices have, or are about to get, and that write.
    pub(super) fn writing(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.started && slot.writes())
    }

    /// Whether any of these writes to blocks of a device.
    pub(super) fn is_written(&self, device: usize, blocks: &Range<u64>) -> bool {
        self.writing().flat_map(|slot| &slot.transfers).any(|transfer| {
            let of_transfer = blocks_of(transfer);
            usize::from(transfer.device.0) == device
                && of_transfer.start < blocks.end
                && blocks.start < of_transfer.end
        })
    }
}

impl Index<SlotId> for Table {
    type Output = Slot;

    fn index(&self, id: SlotId) -> &Slot {
        &self.slots[id as usize]
    }
}

impl IndexMut<SlotId> for Table {
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[id as usize]
    }
}
