//! The devices of a pool while serving: operations become entries of the processor's ring.
//!
//! An operation waits in a slot, with its buffers, until every one of its entries has completed; then it
//! goes back to the processor, once. A transfer of several segments is one vectored entry. What a short
//! transfer left over is submitted again.
//!
//! ```text
//! submit ──> ready ──start──> in the kernel ──complete──> ready again (short) | completed ──poll──>
//! ```

use super::PoolFiles;
use crate::buffers::Arenas;
use crate::ring::{Completion, FileSlot, Owner, Ring, mark, on_file};
use io_uring::{opcode, squeue, types};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use stillpoint_processor::ports::{
    BlockDevice, Buffer, DeviceError, Full, Operation, OperationKind, Segment, Transfer,
};

/// Operations of one pool that one processor has in flight at most.
pub const OPERATIONS_MAX: usize = 256;
/// Discards in the kernel at the same time at most: they are advice, and slow on some file systems.
const DISCARDS_MAX: usize = 2;
/// Pieces of memory of one entry at most (the kernel's UIO_MAXIOV).
const VECTORS_MAX: usize = 1024;

/// What the devices of a pool did for one processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceFigures {
    /// Read entries.
    pub reads: u64,
    /// Write entries.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flush entries.
    pub flushes: u64,
    /// Discard entries.
    pub discards: u64,
    /// Discards left out, because enough were in flight or the device cannot.
    pub discards_skipped: u64,
    /// Entries that moved less than asked and were submitted again for the rest.
    pub short_transfers: u64,
    /// Entries that failed.
    pub errors: u64,
}

/// One processor's way to the devices of a pool.
pub struct Devices {
    files: Arc<PoolFiles>,
    arenas: Arc<Arenas>,
    targets: Vec<Target>,
    /// This pool's place on the processor: part of every entry's mark.
    place: u8,
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: VecDeque<(u32, u32)>,
    /// Entries in the kernel.
    in_kernel: usize,
    discards: usize,
    /// Discards are advice: see [`Self::discards_are_requests`].
    advice: bool,
    completed: Vec<Box<Operation>>,
    figures: DeviceFigures,
}

#[derive(Debug)]
struct Target {
    slot: FileSlot,
    discards: bool,
}

/// An operation in flight.
#[derive(Default)]
struct Slot {
    operation: Option<Box<Operation>>,
    vectors: Vec<libc::iovec>,
    parts: Vec<Part>,
    parts_left: usize,
}

/// What becomes one entry.
#[derive(Clone, Copy)]
struct Part {
    device: usize,
    offset_bytes: u64,
    left_bytes: u64,
    first_vector: usize,
    vector_count: usize,
}

impl Devices {
    /// For these devices, through `ring`. `place` tells this pool's completions from those of others on
    /// the same ring.
    #[must_use]
    pub fn new(files: Arc<PoolFiles>, arenas: Arc<Arenas>, place: u8, ring: &mut Ring) -> Self {
        let targets = files
            .all()
            .iter()
            .map(|file| Target {
                slot: ring.register_file(file.as_raw_fd()),
                discards: true,
            })
            .collect();
        Self {
            files,
            arenas,
            targets,
            place,
            slots: (0..OPERATIONS_MAX).map(|_| Slot::default()).collect(),
            free: (0..OPERATIONS_MAX as u32).rev().collect(),
            ready: VecDeque::with_capacity(OPERATIONS_MAX),
            in_kernel: 0,
            discards: 0,
            advice: true,
            completed: Vec::with_capacity(OPERATIONS_MAX),
            figures: DeviceFigures::default(),
        }
    }

    /// Discards are no longer advice, of which some may be left out and whose end says nothing: each goes to the device, and
    /// says how it ended.
    #[must_use]
    pub fn discards_are_requests(mut self) -> Self {
        self.advice = false;
        self
    }

    /// Operations that have not come back yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        OPERATIONS_MAX - self.free.len()
    }

    /// The devices behind.
    #[must_use]
    pub fn files(&self) -> &Arc<PoolFiles> {
        &self.files
    }

    /// What they did.
    #[must_use]
    pub fn figures(&self) -> DeviceFigures {
        self.figures
    }

    /// Queues entries for everything that is ready; they go with the ring's next submission.
    pub fn start(&mut self, ring: &mut Ring) {
        while let Some((slot, part)) = self.ready.pop_front() {
            let entry = self.entry(ring, slot, part);
            // SAFETY: the entry points to the slot's vectors and, through them, to the operation's buffers.
            // The slot keeps both untouched until `complete` has seen the last of its parts, and is leaked
            // (`drop`) rather than freed before.
            unsafe { ring.push(&entry) };
            self.in_kernel += 1;
        }
    }

    /// Takes in the kernel's answer to one entry.
    pub fn complete(&mut self, completion: Completion) {
        assert!(
            completion.owner() == Owner::Devices(self.place),
            "another pool's completion"
        );
        self.in_kernel -= 1;
        let (slot, part) = (
            (completion.detail() >> 24) as u32,
            completion.detail() as u32 & 0xff_ffff,
        );
        let kind = self.kind(slot);
        let ended = match kind {
            OperationKind::Read | OperationKind::Write => self.moved(slot, part, completion.result()),
            OperationKind::Flush => self.flushed(slot, completion.result()),
            OperationKind::Discard => self.discarded(slot, part, completion.result()),
        };
        if ended {
            self.end_part(slot);
        }
    }

    /// Gives up its places in the ring. Everything must have come back.
    pub fn close(self, ring: &mut Ring) {
        assert!(
            self.in_kernel == 0,
            "devices are closed when nothing is in flight"
        );
        for target in &self.targets {
            ring.forget_file(target.slot);
        }
    }

    fn kind(&self, slot: u32) -> OperationKind {
        let operation = self.slots[slot as usize].operation.as_ref();
        operation.expect("an entry in flight has its operation").kind
    }

    fn entry(&mut self, ring: &Ring, slot: u32, part: u32) -> squeue::Entry {
        let kind = self.kind(slot);
        let state = &self.slots[slot as usize];
        let Part {
            device,
            offset_bytes,
            left_bytes,
            first_vector,
            vector_count,
        } = state.parts[part as usize];
        let file = self.targets[device].slot;
        let entry = match kind {
            OperationKind::Flush => on_file!(file, |file| {
                opcode::Fsync::new(file)
                    .flags(types::FsyncFlags::DATASYNC)
                    .build()
            }),
            OperationKind::Discard => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                on_file!(file, |file| {
                    opcode::Fallocate::new(file, left_bytes)
                        .offset(offset_bytes)
                        .mode(mode)
                        .build()
                })
            }
            OperationKind::Read | OperationKind::Write => {
                let vectors = &state.vectors[first_vector..first_vector + vector_count];
                let registered = self.registered(ring, vectors);
                transfer_entry(kind, file, vectors, offset_bytes, registered)
            }
        };
        match kind {
            OperationKind::Read => self.figures.reads += 1,
            OperationKind::Write => self.figures.writes += 1,
            OperationKind::Flush => self.figures.flushes += 1,
            OperationKind::Discard => self.figures.discards += 1,
        }
        entry.user_data(mark(
            Owner::Devices(self.place),
            u64::from(slot) << 24 | u64::from(part),
        ))
    }

    /// The registered buffer that holds all of these pieces, if there is one and the kernel can use it.
    fn registered(&self, ring: &Ring, vectors: &[libc::iovec]) -> Option<u16> {
        if vectors.len() > 1 && !ring.features().vectored_fixed {
            return None;
        }
        let find = |vector: &libc::iovec| {
            ring.registered_buffer(&self.arenas, vector.iov_base as usize, vector.iov_len)
        };
        let first = find(vectors.first()?)?;
        vectors[1..]
            .iter()
            .all(|vector| find(vector) == Some(first))
            .then_some(first)
    }

    /// A read or write moved some bytes; returns whether the part has ended.
    fn moved(&mut self, slot: u32, part: u32, result: i32) -> bool {
        let state = &mut self.slots[slot as usize];
        let operation = state
            .operation
            .as_mut()
            .expect("an entry in flight has its operation");
        let piece = &mut state.parts[part as usize];
        match result {
            ..0 => {
                let errno = -result;
                if errno == libc::EAGAIN || errno == libc::EINTR {
                    self.ready.push_back((slot, part));
                    return false;
                }
                self.figures.errors += 1;
                let end_bytes = piece.offset_bytes + piece.left_bytes;
                let lost = errno == libc::ENOSPC && self.files.all()[piece.device].ends_before(end_bytes);
                operation.result = Err(if lost {
                    DeviceError::Gone
                } else {
                    DeviceError::Os(errno)
                });
                true
            }
            0 => {
                self.figures.errors += 1;
                operation.result = Err(DeviceError::Short);
                true
            }
            1.. => {
                let moved = result as u64;
                assert!(moved <= piece.left_bytes, "the kernel moved more than was asked");
                match operation.kind {
                    OperationKind::Read => self.figures.read_bytes += moved,
                    _ => self.figures.written_bytes += moved,
                }
                piece.offset_bytes += moved;
                piece.left_bytes -= moved;
                if piece.left_bytes == 0 {
                    return true;
                }
                self.figures.short_transfers += 1;
                advance(&mut state.vectors, piece, moved as usize);
                self.ready.push_back((slot, part));
                false
            }
        }
    }

    fn flushed(&mut self, slot: u32, result: i32) -> bool {
        if result < 0 {
            self.files.note_failed_flush(-result);
        }
        if let Some(errno) = self.files.failed_flush() {
            self.figures.errors += 1;
            let operation = self.slots[slot as usize].operation.as_mut();
            operation.expect("an entry in flight has its operation").result = Err(DeviceError::Os(errno));
        }
        true
    }

    fn discarded(&mut self, slot: u32, part: u32, result: i32) -> bool {
        self.discards -= 1;
        if !self.advice {
            if result < 0 {
                self.figures.errors += 1;
                let operation = self.slots[slot as usize].operation.as_mut();
                operation.expect("an entry in flight has its operation").result =
                    Err(DeviceError::Os(-result));
            }
            return true;
        }
        if matches!(-result, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV) {
            let device = self.slots[slot as usize].parts[part as usize].device;
            self.targets[device].discards = false;
        }
        true
    }

    fn end_part(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        state.parts_left -= 1;
        if state.parts_left > 0 {
            return;
        }
        state.vectors.clear();
        state.parts.clear();
        let operation = state.operation.take().expect("an operation ends once");
        self.completed.push(operation);
        self.free.push(slot);
    }

    /// Whether this discard goes to the device or is skipped as the advice that it is.
    fn wants(&self, operation: &Operation) -> bool {
        operation.kind != OperationKind::Discard
            || !self.advice
            || self.discards + operation.transfers.len() <= DISCARDS_MAX
                && operation
                    .transfers
                    .iter()
                    .all(|transfer| self.targets[usize::from(transfer.device.0)].discards)
    }
}

impl BlockDevice for Devices {
    fn submit(&mut self, mut operation: Box<Operation>) -> Result<(), Full> {
        operation.result = Ok(());
        if !self.wants(&operation) {
            self.figures.discards_skipped += 1;
            self.completed.push(operation);
            return Ok(());
        }
        if operation.transfers.is_empty() {
            self.completed.push(operation);
            return Ok(());
        }
        let Some(slot) = self.free.pop() else {
            return Err(Full(operation));
        };
        let state = &mut self.slots[slot as usize];
        let Operation {
            kind,
            transfers,
            segments,
            buffers,
            ..
        } = &mut *operation;
        for transfer in transfers.iter() {
            let device = usize::from(transfer.device.0);
            assert!(device < self.targets.len(), "a device of this pool");
            let whole = Part {
                device,
                offset_bytes: transfer.offset_bytes,
                left_bytes: transfer.length_bytes,
                first_vector: state.vectors.len(),
                vector_count: 0,
            };
            match kind {
                OperationKind::Flush | OperationKind::Discard => state.parts.push(whole),
                OperationKind::Read | OperationKind::Write => {
                    let first = transfer.first_segment as usize;
                    let segments = &segments[first..first + transfer.segment_count as usize];
                    cut(state, whole, transfer, segments, buffers);
                }
            }
        }
        if operation.kind == OperationKind::Discard {
            self.discards += state.parts.len();
        }
        state.parts_left = state.parts.len();
        state.operation = Some(operation);
        self.ready
            .extend((0..state.parts.len() as u32).map(|part| (slot, part)));
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        completed.append(&mut self.completed);
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        if self.in_kernel > 0 {
            // The kernel may still write to their memory.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// Makes the parts of a transfer: one, or several if it has more pieces than the kernel takes at once.
fn cut(state: &mut Slot, mut part: Part, transfer: &Transfer, segments: &[Segment], buffers: &mut [Buffer]) {
    let total: u64 = segments
        .iter()
        .map(|segment| u64::from(segment.length_bytes))
        .sum();
    assert!(
        total == transfer.length_bytes && total > 0,
        "segments add up to their transfer"
    );
    for some in segments.chunks(VECTORS_MAX) {
        part.first_vector = state.vectors.len();
        part.vector_count = some.len();
        part.left_bytes = 0;
        for segment in some {
            let start = segment.offset_bytes as usize;
            let memory = buffers[segment.buffer as usize].bytes_mut();
            let piece = &mut memory[start..start + segment.length_bytes as usize];
            state.vectors.push(libc::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: piece.len(),
            });
            part.left_bytes += piece.len() as u64;
        }
        state.parts.push(part);
        part.offset_bytes += part.left_bytes;
    }
}

/// Moves the start of a part's memory on by `moved_bytes`.
fn advance(vectors: &mut [libc::iovec], part: &mut Part, mut moved_bytes: usize) {
    while moved_bytes > 0 {
        let vector = &mut vectors[part.first_vector];
        let step = moved_bytes.min(vector.iov_len);
        vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(step).cast();
        vector.iov_len -= step;
        moved_bytes -= step;
        if vector.iov_len == 0 {
            part.first_vector += 1;
            part.vector_count -= 1;
        }
    }
}

fn transfer_entry(
    kind: OperationKind,
    file: FileSlot,
    vectors: &[libc::iovec],
    offset_bytes: u64,
    registered: Option<u16>,
) -> squeue::Entry {
    let read = kind == OperationKind::Read;
    if let [only] = vectors {
        let (memory, length) = (only.iov_base.cast::<u8>(), only.iov_len as u32);
        return on_file!(file, |file| match (registered, read) {
            (Some(buffer), true) => {
                opcode::ReadFixed::new(file, memory, length, buffer)
                    .offset(offset_bytes)
                    .build()
            }
            (Some(buffer), false) => {
                opcode::WriteFixed::new(file, memory, length, buffer)
                    .offset(offset_bytes)
                    .build()
            }
            (None, true) => opcode::Read::new(file, memory, length)
                .offset(offset_bytes)
                .build(),
            (None, false) => opcode::Write::new(file, memory, length)
                .offset(offset_bytes)
                .build(),
        });
    }
    let (memory, count) = (vectors.as_ptr(), vectors.len() as u32);
    on_file!(file, |file| match (registered, read) {
        (Some(buffer), true) => {
            opcode::ReadvFixed::new(file, memory, count, buffer)
                .offset(offset_bytes)
                .build()
        }
        (Some(buffer), false) => {
            opcode::WritevFixed::new(file, memory, count, buffer)
                .offset(offset_bytes)
                .build()
        }
        (None, true) => opcode::Readv::new(file, memory, count)
            .offset(offset_bytes)
            .build(),
        (None, false) => opcode::Writev::new(file, memory, count)
            .offset(offset_bytes)
            .build(),
    })
}
