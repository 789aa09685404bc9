//! The devices of a pool while serving: operations become entries of the processor's ring.
//!
//! An operation waits in a slot, with its buffers, until every one of its entries has completed; then it
//! goes back to the processor, once. A transfer of several segments is one vectored entry. What a short
//! transfer left over is submitted again. Namespaces that take our own commands have rings of their own ([`commands`]).
//!
//! ```text
//! submit ──> ready ──start──> in the kernel ──complete──> ready again (short) | completed ──poll──>
//! ```

mod commands;

use super::nvme::command::DatasetRange;
use super::nvme::ring::{CommandRings, Ended};
use super::parts::{Part, advance, cut, cut_range};
use super::{DeviceFile, PoolFiles};
use crate::buffers::Arenas;
use crate::ring::{Completion, FileSlot, Owner, Ring, mark, on_file};
use commands::Namespace;
use io_uring::{opcode, squeue, types};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use stillpoint_processor::ports::{BlockDevice, DeviceError, Full, Operation, OperationKind};

/// Operations of one pool that one processor has in flight at most.
pub const OPERATIONS_MAX: usize = 256;
/// Discards in the kernel at the same time at most: they are advice, and slow on some file systems.
const DISCARDS_MAX: usize = 2;

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
    /// Commands that failed in a way that may pass, and were tried again.
    pub retries: u64,
    /// Entries that failed.
    pub errors: u64,
}

impl DeviceFigures {
    fn count(&mut self, kind: OperationKind) {
        match kind {
            OperationKind::Read => self.reads += 1,
            OperationKind::Write => self.writes += 1,
            OperationKind::Flush => self.flushes += 1,
            OperationKind::Discard => self.discards += 1,
        }
    }
}

/// One processor's way to the devices of a pool.
pub struct Devices {
    files: Arc<PoolFiles>,
    arenas: Arc<Arenas>,
    targets: Vec<Target>,
    /// For the namespaces among the targets.
    rings: Option<CommandRings>,
    ended: Vec<Ended>,
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
    /// Set if it takes our own commands.
    namespace: Option<Namespace>,
}

/// An operation in flight.
#[derive(Default)]
struct Slot {
    operation: Option<Box<Operation>>,
    vectors: Vec<libc::iovec>,
    /// One for each part of a discard.
    ranges: Vec<DatasetRange>,
    parts: Vec<Part>,
    parts_left: usize,
}

impl Devices {
    /// For these devices, through `ring`. `place` tells this pool's completions from those of others on
    /// the same ring.
    #[must_use]
    pub fn new(files: Arc<PoolFiles>, arenas: Arc<Arenas>, place: u8, ring: &mut Ring) -> Self {
        let rings = commands::rings(&files, &arenas);
        let mut target = |file: &DeviceFile| {
            let passthrough = file.passthrough().filter(|_| rings.is_some());
            Target {
                slot: ring.register_file(file.as_raw_fd()),
                discards: passthrough.is_none_or(|passthrough| passthrough.discards),
                namespace: passthrough.map(Namespace::of),
            }
        };
        let targets = files.all().iter().map(&mut target).collect();
        Self {
            files,
            arenas,
            targets,
            rings,
            ended: Vec::with_capacity(OPERATIONS_MAX),
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

    /// Queues entries for everything that is ready; they go with the ring's next submission, and commands with the next
    /// [`BlockDevice::poll`] or [`Self::may_sleep`].
    pub fn start(&mut self, ring: &mut Ring) {
        while let Some((slot, part)) = self.ready.pop_front() {
            let device = self.slots[slot as usize].parts[part as usize].device;
            if let Some(namespace) = self.targets[device].namespace {
                self.push_command(namespace, slot, part);
                self.in_kernel += 1;
                continue;
            }
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
        if completion.owner() == Owner::Bell(self.place) {
            return self.rings.iter_mut().for_each(CommandRings::rung);
        }
        assert!(
            completion.owner() == Owner::Devices(self.place),
            "another pool's completion"
        );
        self.in_kernel -= 1;
        let (slot, part) = (
            (completion.detail() >> 24) as u32,
            completion.detail() as u32 & 0xff_ffff,
        );
        let result = completion.result();
        let failure = (result < 0).then_some(DeviceError::Os(-result));
        let ended = match self.slots[slot as usize].kind() {
            OperationKind::Read | OperationKind::Write => self.moved(slot, part, result),
            OperationKind::Flush => {
                self.flushed(slot, failure);
                true
            }
            OperationKind::Discard => {
                self.discards -= 1;
                let device = self.slots[slot as usize].parts[part as usize].device;
                if let Some(error) = failure {
                    self.discard_failed(slot, device, error);
                }
                true
            }
        };
        if ended {
            self.end_part(slot);
        }
    }

    /// Gives up its places in the ring. Everything must have come back.
    pub fn close(mut self, ring: &mut Ring) {
        assert!(
            self.in_kernel == 0,
            "devices are closed when nothing is in flight"
        );
        for target in &self.targets {
            ring.forget_file(target.slot);
        }
        if let Some(rings) = self.rings.take() {
            rings.close();
        }
    }

    fn entry(&mut self, ring: &Ring, slot: u32, part: u32) -> squeue::Entry {
        let state = &self.slots[slot as usize];
        let kind = state.kind();
        let Part {
            device,
            offset_bytes,
            left_bytes,
            first_vector,
            vector_count,
            ..
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
        self.figures.count(kind);
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

    /// A flush ended, with this error.
    fn flushed(&mut self, slot: u32, error: Option<DeviceError>) {
        if let Some(error) = error {
            self.files.note_failed_flush(error);
        }
        if let Some(error) = self.files.failed_flush() {
            self.figures.errors += 1;
            self.slots[slot as usize].fail(error);
        }
    }

    /// A discard of a device ended so. As advice it says whether there is any use in more.
    fn discard_failed(&mut self, slot: u32, device: usize, error: DeviceError) {
        const INVALID_OPCODE: u16 = 1;
        if !self.advice {
            self.figures.errors += 1;
            self.slots[slot as usize].fail(error);
        }
        let never = match error {
            DeviceError::Os(errno) => matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV),
            DeviceError::Nvme { status, .. } => status == INVALID_OPCODE,
            DeviceError::Short | DeviceError::Gone => true,
        };
        self.targets[device].discards &= !never;
    }

    fn end_part(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        state.parts_left -= 1;
        if state.parts_left > 0 {
            return;
        }
        state.vectors.clear();
        state.ranges.clear();
        state.parts.clear();
        let operation = state.operation.take().expect("an operation ends once");
        self.completed.push(operation);
        self.free.push(slot);
    }

    /// Whether the namespaces among its devices can do this: the kernel tells of files and block devices.
    fn is_aligned(&self, operation: &Operation) -> bool {
        operation.transfers.iter().all(|transfer| {
            let namespace = self.targets[usize::from(transfer.device.0)].namespace;
            let part = Part::of(0, transfer.offset_bytes, transfer.length_bytes, 0);
            namespace.is_none_or(|namespace| part.is_aligned(namespace.block_bytes()))
        })
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
        if !self.is_aligned(&operation) {
            operation.result = Err(DeviceError::Os(libc::EINVAL));
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
            let target = &self.targets[device];
            match kind {
                OperationKind::Flush => cut_range(device, transfer, u64::MAX, &mut state.parts),
                OperationKind::Discard => {
                    cut_range(device, transfer, target.discard_bytes_max(), &mut state.parts);
                }
                OperationKind::Read | OperationKind::Write => {
                    let first = transfer.first_segment as usize;
                    let segments = &segments[first..first + transfer.segment_count as usize];
                    let limits = target.limits();
                    cut(
                        device,
                        transfer,
                        segments,
                        buffers,
                        limits,
                        &mut state.parts,
                        &mut state.vectors,
                    );
                }
            }
        }
        if operation.kind == OperationKind::Discard {
            self.discards += state.parts.len();
            state.ranges.resize(state.parts.len(), DatasetRange::default());
        }
        state.parts_left = state.parts.len();
        state.operation = Some(operation);
        self.ready
            .extend((0..state.parts.len() as u32).map(|part| (slot, part)));
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        self.take_ended();
        completed.append(&mut self.completed);
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        if self.in_kernel > 0 {
            // The kernel may still write to their memory, and to the devices: these stay claimed.
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(Arc::clone(&self.files));
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
