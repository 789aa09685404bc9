//! The seam: what a processor needs of the world, as traits that io_uring and the simulator implement.

use crate::ids::{DeviceIndex, ShardIndex};
use core::fmt;
use stillpoint_ondisk::tail::SEGMENT_BYTES;

/// Memory for device and socket transfers, owned by whoever holds it. A buffer comes from a
/// [`BufferPool`] and goes back to one; its memory is aligned to 4096 bytes.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    slot: u32,
}

#[derive(Debug)]
enum Memory {
    /// A piece of an arena that lives as long as the process.
    Arena(&'static mut [u8]),
    /// Memory of its own (the simulator, tests).
    Owned(Box<[u8]>),
}

impl Buffer {
    /// A buffer in an arena that is never unmapped. `slot` is the pool's own number for it.
    #[must_use]
    pub fn from_arena(memory: &'static mut [u8], slot: u32) -> Self {
        Self {
            memory: Memory::Arena(memory),
            slot,
        }
    }

    /// A buffer with memory of its own; not necessarily aligned.
    #[must_use]
    pub fn owned(length_bytes: usize) -> Self {
        Self::filled(0, length_bytes)
    }

    /// The same, full of this byte.
    #[must_use]
    pub fn filled(byte: u8, length_bytes: usize) -> Self {
        Self {
            memory: Memory::Owned(vec![byte; length_bytes].into_boxed_slice()),
            slot: u32::MAX,
        }
    }

    /// The pool's own number for this buffer.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Takes the arena memory back out; `None` for an owned buffer.
    #[must_use]
    pub fn into_arena(self) -> Option<&'static mut [u8]> {
        match self.memory {
            Memory::Arena(memory) => Some(memory),
            Memory::Owned(_) => None,
        }
    }

    /// The whole memory.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Arena(memory) => memory,
            Memory::Owned(memory) => memory,
        }
    }

    /// The whole memory, to write.
    #[inline]
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Arena(memory) => memory,
            Memory::Owned(memory) => memory,
        }
    }

    /// Bytes of the memory.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes().len()
    }
}

/// Where buffers come from. Bounded: `None` means "later", never "never".
pub trait BufferPool {
    /// A buffer of at least `length_bytes` (at most [`crate::PART_BYTES_MAX`]); its content is undefined.
    fn take(&mut self, length_bytes: usize) -> Option<Buffer>;
    /// Gives a buffer back; any pool of the same process takes it and sees that it gets home.
    fn give(&mut self, buffer: Buffer);
    /// What is left for buffers of `length_bytes`. Whoever holds many buffers for long asks, and leaves some to the
    /// others.
    fn room(&self, _length_bytes: usize) -> Room {
        Room::UNLIMITED
    }
}

/// How much a pool has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that may still be taken.
    pub free_bytes: usize,
    /// Bytes of the whole pool.
    pub bytes: usize,
}

impl Room {
    /// There is no end of it.
    pub const UNLIMITED: Self = Self {
        free_bytes: usize::MAX,
        bytes: usize::MAX,
    };
}

/// One side of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The first.
    First,
    /// The second.
    Second,
}

impl Side {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    /// The one that this is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// 0 or 1.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first side",
            Self::Second => "second side",
        })
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Device to buffers.
    Read,
    /// Buffers to device.
    Write,
    /// Everything completed before on the devices named by `transfers` becomes durable.
    Flush,
    /// The device may forget these ranges. Advice: its result is ignored.
    Discard,
    /// These ranges become zeros, without buffers. Shards ask for none: what hosts zero is forgotten in the maps.
    WriteZeroes,
}

/// A contiguous range of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The device.
    pub device: DeviceIndex,
    /// First byte on the device, a multiple of 4096.
    pub offset_bytes: u64,
    /// Length in bytes, a multiple of 4096; the sum over `segments`.
    pub length_bytes: u64,
    /// First of its segments in [`Operation::segments`].
    pub first_segment: u32,
    /// Number of its segments (0 for flush, discard and zeros).
    pub segment_count: u32,
}

/// A piece of memory of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index in [`Operation::buffers`].
    pub buffer: u32,
    /// First byte in the buffer, a multiple of 4096.
    pub offset_bytes: u32,
    /// Length in bytes, a multiple of 4096.
    pub length_bytes: u32,
}

/// Why a device operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The device reported an error (an errno).
    Os(i32),
    /// Fewer bytes moved than asked, and trying the rest did not help.
    Short,
    /// The device is gone.
    Gone,
    /// The device has become smaller, and ends before this.
    Shrunk,
    /// An NVMe device ended the command with this status (type and code).
    Nvme {
        /// Type in bits 10:8, code in bits 7:0.
        status: u16,
        /// What the specification says that it means.
        meaning: &'static str,
    },
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os(errno) => write!(f, "device error {errno}"),
            Self::Short => write!(f, "short transfer"),
            Self::Gone => write!(f, "device is gone"),
            Self::Shrunk => write!(f, "device has become smaller and ends before this"),
            Self::Nvme { status, meaning } => write!(f, "NVMe status {status:#05x}: {meaning}"),
        }
    }
}

/// A device operation: one or more transfers on buffers that it owns until it comes back. It comes back
/// once, when all its transfers have ended.
#[derive(Debug)]
pub struct Operation {
    /// The shard that gets it back.
    pub shard: ShardIndex,
    /// The shard's own number for it.
    pub tag: u64,
    /// What it does.
    pub kind: OperationKind,
    /// Of devices that have two sides. A read asks this side, if it can be read; when it comes back it names the side that answered
    /// (all but `failures`), and `None` if there is no other to ask. A write goes to this side alone, or to all (`None`).
    pub side: Option<Side>,
    /// Of a write, of data or zeros: what it wrote is durable when it comes back (force unit access), and nothing else is for that.
    pub durable: bool,
    /// Of a read: if it fails there is another device that has the same, so that nobody waits for it to be tried here again.
    pub is_tried_once: bool,
    /// The ranges. For a flush: one (empty) per device.
    pub transfers: Vec<Transfer>,
    /// The memory of the ranges.
    pub segments: Vec<Segment>,
    /// The buffers that the segments point into.
    pub buffers: Vec<Buffer>,
    /// Set when the operation comes back: `Err` if any transfer failed.
    pub result: Result<(), DeviceError>,
    /// Then: the transfers that failed, by position, each once, in no order. None of them if the device cannot tell which: then
    /// all count as failed. Of a read that comes back `Ok`: those that `side` failed and the other side answered.
    pub failures: Vec<(u32, DeviceError)>,
}

impl Operation {
    /// An empty operation, to be filled; recycled ones keep the capacity of their vectors.
    #[must_use]
    pub fn new() -> Box<Self> {
        Box::new(Self {
            shard: ShardIndex(0),
            tag: 0,
            kind: OperationKind::Flush,
            is_tried_once: false,
            side: None,
            durable: false,
            transfers: Vec::with_capacity(4),
            segments: Vec::with_capacity(64),
            buffers: Vec::with_capacity(64),
            result: Ok(()),
            failures: Vec::new(),
        })
    }

    /// Empties it for another use. The buffers must have been taken out.
    pub fn clear(&mut self) {
        assert!(
            self.buffers.is_empty(),
            "buffers are taken out before an operation is used again"
        );
        self.side = None;
        self.durable = false;
        self.is_tried_once = false;
        self.transfers.clear();
        self.segments.clear();
        self.result = Ok(());
        self.failures.clear();
    }

    /// A transfer failed; of several errors of one the first counts.
    pub fn fail(&mut self, transfer: u32, error: DeviceError) {
        if self.result.is_ok() {
            self.result = Err(error);
        }
        if self.failures.iter().all(|(failed, _)| *failed != transfer) {
            self.failures.push((transfer, error));
        }
    }
}

/// The queue had no room; here is the operation back.
#[derive(Debug)]
pub struct Full(pub Box<Operation>);

/// The devices of a pool as a processor sees them: operations go in by value, buffers included, and come
/// back completed by polling; nothing blocks.
pub trait BlockDevice {
    /// Queues an operation.
    ///
    /// # Errors
    /// [`Full`] with the operation if there is no room; try again after [`Self::poll`].
    fn submit(&mut self, operation: Box<Operation>) -> Result<(), Full>;
    /// Appends the operations that have ended to `completed`.
    fn poll(&mut self, completed: &mut Vec<Box<Operation>>);
    /// Whether all of its devices make a single write durable ([`Operation::durable`]) for less than the write and a flush cost. Where this
    /// is false no such write is asked for.
    fn writes_durably(&self) -> bool {
        false
    }
    /// Gives back what buffers it keeps for itself; nothing may be in flight.
    fn give_back(&mut self, _buffers: &mut impl BufferPool) {}
}

/// One read or write while a pool is made or opened, before anything is served.
#[derive(Debug)]
pub struct Transferred<'a> {
    /// The device.
    pub device: DeviceIndex,
    /// First byte on the device, a multiple of 4096.
    pub offset_bytes: u64,
    /// Memory, a multiple of 4096 bytes; need not be aligned.
    pub bytes: &'a mut [u8],
    /// How it went.
    pub result: Result<(), DeviceError>,
}

/// The devices of a pool while it is being made or opened: calls that wait. Never used while serving.
pub trait OpenDevice {
    /// Reads all of these, in any order and as parallel as the device likes; sets each `result`.
    fn read_all(&mut self, reads: &mut [Transferred<'_>]);
    /// What another side of the device has instead of this block (4096 bytes) that was read before, and was found not to be what it
    /// should. From then on that counts. `false` if there is nothing else: then `bytes` are as they were.
    fn read_other(&mut self, _device: DeviceIndex, _offset_bytes: u64, _bytes: &mut [u8]) -> bool {
        false
    }
    /// Whether it has two sides that are both in use: reading compares them, and makes them the same.
    fn has_two_sides(&self, _device: DeviceIndex) -> bool {
        false
    }
    /// These blocks hold something that counts, and nothing says that a flush covered it since they were written: a side of the device
    /// that is missing may not have it. Called for all such blocks.
    fn doubt(&mut self, _device: DeviceIndex, _first_block: u64, _count: u64) {}
    /// Writes `bytes` (a multiple of 4096).
    ///
    /// # Errors
    /// What the device said.
    fn write(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError>;
    /// Makes everything written to `device` durable.
    ///
    /// # Errors
    /// What the device said.
    fn flush(&mut self, device: DeviceIndex) -> Result<(), DeviceError>;
}

/// The log tail of one shard: two segments of memory that outlive the process but not a power cut.
pub trait LogTail {
    /// Whether there is one. Without it records are written to the log before the acknowledgement.
    fn is_there(&self) -> bool;
    /// Segment 0 or 1, [`SEGMENT_BYTES`] long (empty if there is no tail).
    fn segment(&mut self, index: usize) -> &mut [u8];
}

/// No log tail.
#[derive(Debug, Default)]
pub struct NoTail;

impl LogTail for NoTail {
    fn is_there(&self) -> bool {
        false
    }

    fn segment(&mut self, _index: usize) -> &mut [u8] {
        &mut []
    }
}

/// A log tail in ordinary memory (the simulator, tests).
#[derive(Clone, Debug)]
pub struct MemoryTail {
    segments: [Vec<u8>; 2],
}

impl Default for MemoryTail {
    fn default() -> Self {
        Self {
            segments: [vec![0; SEGMENT_BYTES], vec![0; SEGMENT_BYTES]],
        }
    }
}

impl LogTail for MemoryTail {
    fn is_there(&self) -> bool {
        true
    }

    fn segment(&mut self, index: usize) -> &mut [u8] {
        &mut self.segments[index]
    }
}
