//! The devices of a pool while serving: operations become entries of the processor's ring.
//!
//! An operation waits in a slot, with its buffers, until every one of its entries has completed; then it
//! goes back to the processor, once. A transfer of several segments is one vectored entry. What a short
//! transfer left over is submitted again. Namespaces that take our own commands have rings of their own ([`commands`]), and so have
//! reads and writes that are polled for ([`polled`]).
//! Devices may come and go meanwhile ([`targets`]): what is asked of one that is not there ends at once.
//!
//! ```text
//! submit ──> ready ──start──> in the kernel ──complete──> ready again (short, after a pause) | completed ──poll──>
//! ```

mod commands;
mod entries;
pub(super) mod polled;
mod stalls;
pub(super) mod targets;
#[cfg(test)]
mod tests;
mod zeroes;

use super::PoolFiles;
use super::nvme::command::DatasetRange;
use super::nvme::ring::{CommandRings, Ended};
use super::nvme::status;
use super::parts::{Part, advance, cut, cut_range};
use crate::buffers::Arenas;
use crate::ring::{Completion, Owner, Ring};
use io_uring::types::Timespec;
pub use stalls::{Occupant, Unanswered};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use stillpoint_processor::ports::{BlockDevice, DeviceError, Full, Operation, OperationKind};
use targets::Targets;

/// Operations of one pool that one processor has in flight at most.
pub const OPERATIONS_MAX: usize = 256;
/// Discards in the kernel at the same time at most: they are advice, and slow on some file systems.
const DISCARDS_MAX: usize = 2;
/// How often what the kernel did not do for now (EAGAIN, EINTR) is tried again before it counts as failed: for half a minute, which is
/// as long as the kernel gives a device for a command.
const BUSY_TRIES_MAX: u8 = 32;
/// The pause before the first of these tries; each one is four times as long as the one before.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// The longest of these pauses.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Set in the mark of a pause, which is an entry of a part that goes to no device.
const PAUSE: u64 = 1 << 47;

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
    /// Of the write entries, those that are durable when they end.
    pub durable_writes: u64,
    /// Entries that have a device make zeros by itself.
    pub zeroes: u64,
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
    fn count(&mut self, kind: OperationKind, durable: bool) {
        self.durable_writes += u64::from(durable);
        match kind {
            OperationKind::Read => self.reads += 1,
            OperationKind::Write => self.writes += 1,
            OperationKind::Flush => self.flushes += 1,
            OperationKind::Discard => self.discards += 1,
            OperationKind::WriteZeroes => self.zeroes += 1,
        }
    }
}

/// One processor's way to the devices of a pool.
pub struct Devices {
    files: Arc<PoolFiles>,
    arenas: Arc<Arenas>,
    targets: Targets,
    /// For the namespaces among the targets, and what is polled; made with the first of them.
    rings: Option<CommandRings>,
    ended: Vec<Ended>,
    /// This pool's place on the processor: part of every entry's mark.
    place: u8,
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: VecDeque<(u32, u32)>,
    /// Entries, commands and pauses in the kernel.
    in_kernel: usize,
    discards: usize,
    /// Discards are advice: see [`Self::discards_are_requests`].
    advice: bool,
    /// See [`BlockDevice::writes_durably`].
    durable_writes: bool,
    /// The kernel takes several pieces of a registered buffer.
    vectored_fixed: bool,
    completed: Vec<Box<Operation>>,
    figures: DeviceFigures,
    /// See [`Self::set_now`].
    now_ns: u64,
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
    /// When it was started first; `None`: it was not yet.
    started_ns: Option<u64>,
}

impl Devices {
    /// For these devices, through `ring`. `place` tells this pool's completions from those of others on
    /// the same ring.
    #[must_use]
    pub fn new(files: Arc<PoolFiles>, arenas: Arc<Arenas>, place: u8, ring: &mut Ring) -> Self {
        let places = files.places();
        let mut devices = Self {
            files,
            arenas,
            targets: Targets::of_places(places),
            rings: None,
            ended: Vec::with_capacity(OPERATIONS_MAX),
            place,
            slots: (0..OPERATIONS_MAX).map(|_| Slot::default()).collect(),
            free: (0..OPERATIONS_MAX as u32).rev().collect(),
            ready: VecDeque::with_capacity(OPERATIONS_MAX),
            in_kernel: 0,
            discards: 0,
            advice: true,
            durable_writes: false,
            vectored_fixed: ring.features().vectored_fixed,
            completed: Vec::with_capacity(OPERATIONS_MAX),
            figures: DeviceFigures::default(),
            now_ns: 0,
        };
        (0..places).for_each(|device| devices.attach(device, ring));
        devices
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
            self.slots[slot as usize].started_ns.get_or_insert(self.now_ns);
            let Part { target, pause, .. } = self.slots[slot as usize].parts[part as usize];
            self.in_kernel += 1;
            self.targets.at_mut(target).in_kernel += 1;
            let entry = match self.targets.at(target).namespace {
                _ if pause.is_some() => self.pause_entry(slot, part),
                Some(namespace) => {
                    self.push_command(namespace, slot, part);
                    continue;
                }
                None if self.goes_polled(slot, part) => {
                    self.push_polled(slot, part);
                    continue;
                }
                None => self.entry(ring, slot, part),
            };
            // SAFETY: the entry points to the slot's vectors and, through them, to the operation's buffers, or to the part's
            // pause. The slot keeps all of these untouched until `complete` has seen the last of its parts, and is leaked
            // (`drop`) rather than freed before.
            unsafe { ring.push(&entry) };
        }
        if self.targets.someone_left() {
            self.release(ring);
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
        let (slot, part) = (
            ((completion.detail() & !PAUSE) >> 24) as u32,
            completion.detail() as u32 & 0xff_ffff,
        );
        self.came_back(slot, part);
        if completion.detail() & PAUSE != 0 {
            self.slots[slot as usize].parts[part as usize].pause = None;
            return self.again(slot, part);
        }
        let result = completion.result();
        match self.slots[slot as usize].kind() {
            OperationKind::Read | OperationKind::Write => self.moved(slot, part, result),
            OperationKind::Flush => {
                let failure = (result < 0).then(|| self.error_of(slot, part, -result));
                self.flushed(slot, part, failure);
            }
            OperationKind::Discard => {
                let failure = (result < 0).then(|| self.error_of(slot, part, -result));
                self.discarded(slot, part, failure);
            }
            OperationKind::WriteZeroes => self.zeroed(slot, part, result),
        }
    }

    /// An entry, command or pause of a part is no longer in the kernel.
    fn came_back(&mut self, slot: u32, part: u32) {
        self.in_kernel -= 1;
        let target = self.slots[slot as usize].parts[part as usize].target;
        self.targets.came_back(target);
    }

    /// A part waits for its turn once more, unless its device is to get nothing more.
    fn again(&mut self, slot: u32, part: u32) {
        let target = self.slots[slot as usize].parts[part as usize].target;
        if self.targets.serves(target) {
            self.ready.push_back((slot, part));
        } else {
            self.end_gone(slot, part);
        }
    }

    /// Ends a part that did not get to its device: it is gone.
    fn end_gone(&mut self, slot: u32, part: u32) {
        match self.slots[slot as usize].kind() {
            OperationKind::Discard => self.discarded(slot, part, Some(DeviceError::Gone)),
            _ => self.end_failed(slot, part, DeviceError::Gone),
        }
    }

    /// Ends a part with this error.
    fn end_failed(&mut self, slot: u32, part: u32, error: DeviceError) {
        self.figures.errors += 1;
        self.slots[slot as usize].fail(part, error);
        self.end_part(slot, part);
    }

    /// Gives up its places in the ring. Everything must have come back.
    pub fn close(mut self, ring: &mut Ring) {
        assert!(
            self.in_kernel == 0,
            "devices are closed when nothing is in flight"
        );
        self.targets.forget_all(ring);
        if let Some(rings) = self.rings.take() {
            rings.close(ring);
        }
    }

    /// A read or write moved some bytes.
    fn moved(&mut self, slot: u32, part: u32, result: i32) {
        let state = &mut self.slots[slot as usize];
        let piece = &mut state.parts[part as usize];
        match result {
            ..0 if piece.is_busy(result) => self.after_a_pause(slot, part),
            ..=0 => {
                let error = self.error_of(slot, part, -result);
                self.end_failed(slot, part, error);
            }
            1.. => {
                let moved = result as u64;
                piece.tries = 0;
                assert!(moved <= piece.left_bytes, "the kernel moved more than was asked");
                piece.offset_bytes += moved;
                piece.left_bytes -= moved;
                let rest_bytes = piece.left_bytes;
                if rest_bytes > 0 {
                    advance(&mut state.vectors, piece, moved as usize);
                }
                match state.kind() {
                    OperationKind::Read => self.figures.read_bytes += moved,
                    _ => self.figures.written_bytes += moved,
                }
                if rest_bytes == 0 {
                    return self.end_moved(slot, part);
                }
                self.figures.short_transfers += 1;
                self.again(slot, part);
            }
        }
    }

    /// A part of what reads, writes or makes zeros has done all that it was to do.
    fn end_moved(&mut self, slot: u32, part: u32) {
        let state = &self.slots[slot as usize];
        let target = state.parts[part as usize].target;
        // A flush that failed took away what a durable write would have made count.
        if state.is_durable()
            && state.kind() != OperationKind::Read
            && let Some(error) = self.targets.at(target).file.failed_flush()
        {
            return self.end_failed(slot, part, error);
        }
        self.end_part(slot, part);
    }

    /// Tries what the kernel did not do for now once more, later.
    fn after_a_pause(&mut self, slot: u32, part: u32) {
        let piece = &mut self.slots[slot as usize].parts[part as usize];
        piece.pause = Some(Timespec::from(busy_pause(piece.tries)));
        piece.tries += 1;
        self.figures.retries += 1;
        self.again(slot, part);
    }

    /// What the failure of an entry means; 0: nothing was moved. What is asked of a block device that was taken out, or that has
    /// become smaller, is beyond its end, with whatever number the kernel has for that.
    fn error_of(&self, slot: u32, part: u32, errno: i32) -> DeviceError {
        let piece = &self.slots[slot as usize].parts[part as usize];
        let end_bytes = (piece.offset_bytes + piece.left_bytes).max(1);
        let file = &self.targets.at(piece.target).file;
        file.out_of_reach(end_bytes).unwrap_or(match errno {
            0 => DeviceError::Short,
            errno => DeviceError::Os(errno),
        })
    }

    /// A flush ended, with this error.
    fn flushed(&mut self, slot: u32, part: u32, error: Option<DeviceError>) {
        let target = self.slots[slot as usize].parts[part as usize].target;
        let file = &self.targets.at(target).file;
        if let Some(error) = error {
            file.note_failed_flush(error);
        }
        match file.failed_flush() {
            Some(error) => self.end_failed(slot, part, error),
            None => self.end_part(slot, part),
        }
    }

    /// A discard ended, with this error. As advice it says whether there is any use in more.
    fn discarded(&mut self, slot: u32, part: u32, error: Option<DeviceError>) {
        self.discards -= 1;
        let Some(error) = error else {
            return self.end_part(slot, part);
        };
        let never = match error {
            DeviceError::Os(errno) => matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV),
            DeviceError::Nvme { status, .. } => status == status::INVALID_OPCODE,
            DeviceError::Short | DeviceError::Gone => true,
            DeviceError::Shrunk => false,
        };
        let target = self.slots[slot as usize].parts[part as usize].target;
        self.targets.at_mut(target).discards &= !never;
        if self.advice {
            self.end_part(slot, part);
        } else {
            self.end_failed(slot, part, error);
        }
    }

    fn end_part(&mut self, slot: u32, part: u32) {
        let state = &mut self.slots[slot as usize];
        state.parts[part as usize].ended = true;
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
            let namespace = self
                .targets
                .of(transfer.device)
                .and_then(|target| target.namespace);
            let part = Part::of(0, transfer.offset_bytes, transfer.length_bytes, 0);
            namespace.is_none_or(|namespace| part.is_aligned(namespace.block_bytes()))
        })
    }

    /// Whether this discard goes to the device or is skipped as the advice that it is.
    fn wants(&self, operation: &Operation) -> bool {
        let takes_discards = |device| self.targets.of(device).is_some_and(|target| target.discards);
        operation.kind != OperationKind::Discard
            || !self.advice
            || self.discards + operation.transfers.len() <= DISCARDS_MAX
                && operation
                    .transfers
                    .iter()
                    .all(|transfer| takes_discards(transfer.device))
    }

    /// Cuts an operation into parts. A transfer to a place that is empty fails; one that has nothing to do has no part.
    fn cut(&mut self, slot: u32, operation: &mut Operation) {
        let state = &mut self.slots[slot as usize];
        let Operation {
            kind,
            transfers,
            segments,
            buffers,
            result,
            failures,
            ..
        } = operation;
        for (index, transfer) in (0..).zip(transfers.iter()) {
            let first_part = state.parts.len();
            let Some(number) = self.targets.number_of(transfer.device) else {
                self.figures.errors += 1;
                *result = Err(DeviceError::Gone);
                failures.push((index, DeviceError::Gone));
                continue;
            };
            let target = self.targets.at(number);
            match kind {
                OperationKind::Flush if target.keeps_all() => {}
                OperationKind::Flush => cut_range(number, transfer, u64::MAX, &mut state.parts),
                OperationKind::Discard => {
                    cut_range(number, transfer, target.discard_bytes_max(), &mut state.parts);
                }
                OperationKind::WriteZeroes => {
                    assert!(transfer.length_bytes > 0, "zeros have a length");
                    cut_range(number, transfer, target.zero_bytes_max(), &mut state.parts);
                }
                OperationKind::Read | OperationKind::Write => {
                    let first = transfer.first_segment as usize;
                    let segments = &segments[first..first + transfer.segment_count as usize];
                    let (limits, parts) = (target.limits(), &mut state.parts);
                    cut(
                        number,
                        transfer,
                        segments,
                        buffers,
                        limits,
                        parts,
                        &mut state.vectors,
                    );
                }
            }
            for part in &mut state.parts[first_part..] {
                part.transfer = index;
            }
        }
    }
}

impl BlockDevice for Devices {
    fn submit(&mut self, mut operation: Box<Operation>) -> Result<(), Full> {
        operation.result = Ok(());
        operation.failures.clear();
        if !self.wants(&operation) {
            self.figures.discards_skipped += 1;
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
        self.cut(slot, &mut operation);
        let state = &mut self.slots[slot as usize];
        if state.parts.is_empty() {
            self.free.push(slot);
            self.completed.push(operation);
            return Ok(());
        }
        if operation.kind == OperationKind::Discard {
            self.discards += state.parts.len();
            state.ranges.resize(state.parts.len(), DatasetRange::default());
        }
        state.parts_left = state.parts.len();
        state.started_ns = None;
        state.operation = Some(operation);
        self.ready
            .extend((0..state.parts.len() as u32).map(|part| (slot, part)));
        Ok(())
    }

    fn writes_durably(&self) -> bool {
        self.durable_writes
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
            self.targets.leak();
        }
    }
}

impl Part {
    /// Whether the kernel did not do it for now, and may be asked once more.
    fn is_busy(&self, result: i32) -> bool {
        matches!(-result, libc::EAGAIN | libc::EINTR) && self.tries < BUSY_TRIES_MAX
    }
}

/// The mark of a part's entry in a ring of [`CommandRings`].
fn command_mark(slot: u32, part: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(part)
}

/// Slot and part of such an entry.
fn of_command_mark(mark: u64) -> (u32, u32) {
    ((mark >> 32) as u32, mark as u32)
}

/// How long what the kernel did not do waits, after so many tries.
fn busy_pause(tries: u8) -> Duration {
    let longer = 4u32.saturating_pow(tries.into());
    BUSY_PAUSE.saturating_mul(longer).min(BUSY_PAUSE_MAX)
}
