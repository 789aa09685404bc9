//! Operations on namespaces that take our own commands.

use super::{Devices, Slot, command_mark, of_command_mark, zeroes};
use crate::device::DeviceFile;
use crate::device::nvme::command::{Command, DatasetRange};
use crate::device::nvme::passthrough::{Passthrough, RetryDelays};
use crate::device::nvme::ring::{CommandRings, Data, Ended};
use crate::device::nvme::status;
use crate::device::parts::{Limits, Part};
use crate::ring::Ring;
use io_uring::types::Timespec;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;
use stillpoint_processor::BLOCK_BYTES;
use stillpoint_processor::ports::{DeviceError, OperationKind};

/// How often a command is tried again that may do better.
const TRIES_MAX: u8 = 5;
/// The pause before the first of these tries, unless the device says how long. Each one is four times as long as the one before: a
/// third of a second in all.
const PAUSE: Duration = Duration::from_millis(1);
/// The longest pause, whatever the device says.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Blocks of a range of Dataset Management at most; the command has room for four times as many.
const DISCARD_BLOCKS_MAX: u64 = 1 << 30;

/// What commands to a namespace need.
#[derive(Clone, Copy, Debug)]
pub(in crate::device) struct Namespace {
    file: RawFd,
    number: u32,
    block_power: u32,
    pub limits: Limits,
    pub discards: bool,
    /// The longest range that one command makes zeros; 0: it has no such command.
    pub zero_bytes_max: u64,
    zeroes_deallocate: bool,
    /// It has a cache that loses what it holds with the power, so that flushes do something.
    pub caches: bool,
    /// Single writes are made durable where that spares a flush.
    forces: bool,
    retry_delays: RetryDelays,
    polled: bool,
}

impl Namespace {
    pub fn of(passthrough: &Passthrough) -> Self {
        Self {
            file: passthrough.as_raw_fd(),
            number: passthrough.namespace,
            block_power: passthrough.block_power,
            limits: passthrough.limits,
            discards: passthrough.discards,
            zero_bytes_max: passthrough.zero_bytes_max,
            zeroes_deallocate: passthrough.zeroes_deallocate,
            caches: passthrough.caches,
            forces: passthrough.durable_writes().is_ok(),
            retry_delays: passthrough.retry_delays,
            polled: passthrough.is_polled(),
        }
    }

    pub fn block_bytes(&self) -> u64 {
        1 << self.block_power
    }

    pub fn discard_bytes_max(&self) -> u64 {
        DISCARD_BLOCKS_MAX << self.block_power
    }

    /// Whether a durable write costs less than a write and a flush. Without a cache a flush costs nothing.
    pub fn writes_durably(&self) -> bool {
        self.caches && self.forces
    }

    /// The command that makes a part zeros; or the first of them as data, if it is not done `by_itself`.
    fn zeros(&self, piece: &mut Part, by_itself: bool, durable: bool) -> Command {
        let (first_block, blocks) = self.blocks(piece);
        if by_itself {
            piece.step_bytes = 0;
            let deallocate = self.zeroes_deallocate;
            return Command::write_zeroes(self.number, first_block, blocks, deallocate, durable);
        }
        let in_pages = self.limits.pages.saturating_mul(BLOCK_BYTES) as u64;
        let zeros = zeroes::some(piece.left_bytes.min(self.limits.bytes).min(in_pages));
        piece.step_bytes = zeros.len() as u64;
        let blocks = (piece.step_bytes >> self.block_power) as u32;
        Command::write(self.number, first_block, blocks, durable)
            .with_data(zeros.as_ptr() as usize, zeros.len() as u32)
    }

    /// First block and number of blocks of a part.
    fn blocks(&self, part: &Part) -> (u64, u32) {
        (
            part.offset_bytes >> self.block_power,
            (part.left_bytes >> self.block_power) as u32,
        )
    }
}

impl Devices {
    /// What commands to a device need, if it takes them; the rings that they go through are made if need be. A device that cannot
    /// have such a ring is served as a block device.
    pub(super) fn namespace_of(&mut self, number: usize, file: &DeviceFile) -> Option<Namespace> {
        let passthrough = file.passthrough()?;
        let rings = self.rings.get_or_insert_with(CommandRings::new);
        let made = rings.make(false, &self.arenas).and_then(|()| {
            if passthrough.is_polled() {
                rings.make(true, &self.arenas)?;
            }
            rings.claim(number, file.as_raw_fd())
        });
        if made.is_err() {
            file.note_not_polled();
            return None;
        }
        Some(Namespace::of(passthrough))
    }

    /// Queues the command of a part of a namespace.
    pub(super) fn push_command(&mut self, namespace: Namespace, slot: u32, part: u32) {
        let rings = self.rings.as_mut().expect("namespaces have rings");
        let kind = self.slots[slot as usize].kind();
        let durable = self.slots[slot as usize].is_durable();
        let state = &mut self.slots[slot as usize];
        let piece = &mut state.parts[part as usize];
        let makes_zeros = self.targets.at(piece.target).makes_zeroes();
        piece.registered = false;
        let (first_block, blocks) = namespace.blocks(piece);
        let (command, data, ring) = match kind {
            OperationKind::Flush => (
                Command::flush(namespace.number),
                Data::Plain(None),
                rings.for_others(),
            ),
            OperationKind::Discard => {
                let range = &mut state.ranges[part as usize];
                *range = DatasetRange {
                    attributes: 0.into(),
                    length_blocks: blocks.into(),
                    first_block: first_block.into(),
                };
                let command = Command::deallocate(namespace.number, 1).with_data(
                    core::ptr::from_mut(range) as usize,
                    size_of::<DatasetRange>() as u32,
                );
                (command, Data::Plain(None), rings.for_others())
            }
            OperationKind::Read | OperationKind::Write => {
                let ring = rings.for_data(namespace.polled);
                let command = match kind {
                    OperationKind::Read => Command::read(namespace.number, first_block, blocks),
                    _ => Command::write(namespace.number, first_block, blocks, durable),
                };
                let vectors = &state.vectors[piece.first_vector..piece.first_vector + piece.vector_count];
                let (command, data) = match vectors {
                    [only] => {
                        let buffer = (ring.has_arenas())
                            .then(|| self.arenas.holding(only.iov_base as usize, only.iov_len))
                            .flatten();
                        piece.registered = buffer.is_some();
                        let command = command.with_data(only.iov_base as usize, only.iov_len as u32);
                        (command, Data::Plain(buffer.map(|index| index as u16)))
                    }
                    several => (
                        command.with_data(several.as_ptr() as usize, several.len() as u32),
                        Data::Vectors,
                    ),
                };
                (command, data, ring)
            }
            OperationKind::WriteZeroes => {
                let command = namespace.zeros(piece, makes_zeros, durable);
                let ring = match piece.step_bytes {
                    0 => rings.for_others(),
                    _ => rings.for_data(namespace.polled),
                };
                (command, Data::Plain(None), ring)
            }
        };
        let sent = match kind {
            OperationKind::WriteZeroes if piece.step_bytes > 0 => OperationKind::Write,
            kind => kind,
        };
        // SAFETY: the command points to zeros that are never freed, or to the slot's vectors or ranges and, through them, to the
        // operation's buffers. The slot keeps all of these untouched until the last of its parts has ended, and is leaked (`drop`)
        // rather than freed before.
        unsafe { ring.push(namespace.file, &command, data, command_mark(slot, part)) };
        self.figures.count(sent, durable);
    }

    /// Takes in what the rings of commands have to say.
    pub(super) fn take_ended(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let mut ended = core::mem::take(&mut self.ended);
        rings.turn(&mut ended);
        for one in ended.drain(..) {
            self.part_ended(one);
        }
        self.ended = ended;
    }

    pub(super) fn part_ended(&mut self, ended: Ended) {
        let (slot, part) = of_command_mark(ended.mark);
        let target = self.slots[slot as usize].parts[part as usize].target;
        let namespace = self.targets.at(target).namespace;
        self.came_back(slot, part);
        match namespace {
            Some(namespace) => self.command_ended(namespace, slot, part, ended),
            None => self.polled_ended(slot, part, ended.result),
        }
    }

    fn command_ended(&mut self, namespace: Namespace, slot: u32, part: u32, ended: Ended) {
        let state = &mut self.slots[slot as usize];
        let (kind, is_tried_once) = (state.kind(), state.is_tried_once());
        let piece = &mut state.parts[part as usize];
        if ended.result == -libc::EINVAL && piece.registered {
            // Kernel 6.1 counts the pages of the whole arena as pieces of the command, which are more than a device takes.
            let rings = self.rings.as_mut().expect("namespaces have rings");
            rings.for_data(namespace.polled).give_up_arenas();
            return self.again(slot, part);
        }
        let failure = outcome(ended.result).err();
        if let Some(failure) = failure
            && failure.may_retry(kind, is_tried_once)
            && piece.tries < TRIES_MAX
        {
            let pause = pause(ended.result, piece.tries, namespace.retry_delays);
            piece.pause = Some(Timespec::from(pause));
            piece.tries += 1;
            self.figures.retries += 1;
            return self.again(slot, part);
        }
        let error = failure.map(|failure| failure.error);
        match (kind, error) {
            (OperationKind::Flush, error) => self.flushed(slot, part, error),
            (OperationKind::Discard, error) => self.discarded(slot, part, error),
            (OperationKind::WriteZeroes, error) => self.zeroed_by_command(slot, part, error),
            (_, Some(error)) => self.end_failed(slot, part, error),
            (OperationKind::Read, None) => {
                self.figures.read_bytes += piece.left_bytes;
                self.end_moved(slot, part);
            }
            (OperationKind::Write, None) => {
                self.figures.written_bytes += piece.left_bytes;
                self.end_moved(slot, part);
            }
        }
    }

    /// Whether somebody has to call [`stillpoint_processor::ports::BlockDevice::poll`] to learn of completions: nothing
    /// wakes who sleeps.
    #[must_use]
    pub fn must_be_polled(&self) -> bool {
        self.rings.as_ref().is_some_and(CommandRings::must_be_polled)
    }

    /// To be asked before `ring` is waited on, after all was queued: whether it will tell of everything that ends.
    #[must_use]
    pub fn may_sleep(&mut self, ring: &mut Ring) -> bool {
        let place = self.place;
        let rings = self.rings.as_mut();
        rings.is_none_or(|rings| rings.may_sleep(place, ring))
    }
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    error: DeviceError,
    /// The same command may do better.
    may_pass: bool,
    /// The command was not carried out, for a reason that says nothing of the device and of what it holds.
    was_taken_back: bool,
}

impl Failure {
    /// Whether a command of this kind is sent again. What a flush was to make durable may be gone when the device fails it: a second try
    /// could succeed and mean nothing. One that was taken back leaves everything where it was, and the next one does all of its
    /// work. A read that is tried once goes elsewhere, unless it was never sent.
    fn may_retry(self, kind: OperationKind, is_tried_once: bool) -> bool {
        match kind {
            OperationKind::Read if is_tried_once => self.error == DeviceError::Os(libc::EAGAIN),
            OperationKind::Read | OperationKind::Write | OperationKind::WriteZeroes => self.may_pass,
            OperationKind::Flush => self.may_pass && self.was_taken_back,
            OperationKind::Discard => false,
        }
    }
}

/// What the kernel's answer to a command means. 4 (EINTR) is a command that the kernel took back: after a time-out, or to reset the
/// controller. 11 (EAGAIN) was not sent.
fn outcome(result: i32) -> Result<(), Failure> {
    match result {
        0 => Ok(()),
        1.. => Err(Failure {
            error: status::error(result as u16),
            may_pass: status::may_retry(result as u16),
            was_taken_back: status::was_taken_back(result as u16),
        }),
        ..0 => {
            let errno = -result;
            let gone = matches!(errno, libc::ENODEV | libc::ENXIO);
            let not_done = matches!(errno, libc::EAGAIN | libc::EINTR);
            Err(Failure {
                error: if gone {
                    DeviceError::Gone
                } else {
                    DeviceError::Os(errno)
                },
                may_pass: not_done,
                was_taken_back: not_done,
            })
        }
    }
}

/// How long a command that ended so waits before it is sent again, after so many tries: as long as the device says, else longer each time.
fn pause(result: i32, tries: u8, delays: RetryDelays) -> Duration {
    let told = u16::try_from(result).ok().and_then(|status| delays.of(status));
    told.unwrap_or(PAUSE * 4u32.pow(tries.into())).min(PAUSE_MAX)
}

impl Slot {
    pub(super) fn kind(&self) -> OperationKind {
        let operation = self.operation.as_ref();
        operation.expect("an entry in flight has its operation").kind
    }

    /// Whether what it writes has to be durable when it comes back.
    pub(super) fn is_durable(&self) -> bool {
        let operation = self.operation.as_ref();
        operation.expect("an entry in flight has its operation").durable
    }

    /// The kernel makes a durable write one with FUA where the device has that, else a write and a flush.
    pub(super) fn write_flags(&self) -> i32 {
        if self.is_durable() { libc::RWF_DSYNC } else { 0 }
    }

    pub(super) fn is_tried_once(&self) -> bool {
        let operation = self.operation.as_ref();
        operation.is_some_and(|operation| operation.is_tried_once)
    }

    /// A part failed, and with it its transfer.
    pub(super) fn fail(&mut self, part: u32, error: DeviceError) {
        let operation = self.operation.as_mut();
        let transfer = self.parts[part as usize].transfer;
        operation
            .expect("an entry in flight has its operation")
            .fail(transfer, error);
    }
}

#[cfg(test)]
impl Namespace {
    /// One to which nothing can be sent.
    pub fn out_of_reach(caches: bool) -> Self {
        Self {
            file: -1,
            number: 1,
            block_power: 12,
            limits: Limits::FILE,
            discards: true,
            zero_bytes_max: 0,
            zeroes_deallocate: false,
            caches,
            forces: true,
            retry_delays: RetryDelays::default(),
            polled: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_kernel_become_errors_of_devices() {
        assert_eq!(outcome(0), Ok(()));
        let failed = |result: i32| outcome(result).expect_err("a failure");
        let read_again = |result| failed(result).may_retry(OperationKind::Read, false);
        // LBA out of range, do not retry.
        let out_of_range = failed(0x4080);
        assert_eq!(
            out_of_range.error.to_string(),
            "NVMe status 0x080: LBA out of range"
        );
        assert!(!read_again(0x4080));
        assert!(
            read_again(0x281),
            "an error of the media may be gone the second time"
        );
        for gone in [libc::ENODEV, libc::ENXIO] {
            assert_eq!(failed(-gone).error, DeviceError::Gone);
            assert!(!read_again(-gone));
        }
        assert!(read_again(-libc::EINTR) && read_again(-libc::EAGAIN));
        assert_eq!(failed(-libc::EINVAL).error, DeviceError::Os(libc::EINVAL));
        assert!(!read_again(-libc::EINVAL));
    }

    #[test]
    fn zeros_are_one_command_or_as_much_data_as_fits() {
        let namespace = Namespace {
            block_power: 9,
            limits: Limits {
                bytes: 32 << 10,
                vectors: 8,
                pages: 5,
            },
            zeroes_deallocate: true,
            ..Namespace::out_of_reach(true)
        };
        let mut piece = Part::of(0, 4096, 48 << 10, 0);
        let command = namespace.zeros(&mut piece, true, false);
        assert_eq!(command, Command::write_zeroes(1, 8, 96, true, false));
        assert_eq!(piece.step_bytes, 0);
        // Five pages are the least of what it takes, of data and of zeros at hand.
        let command = namespace.zeros(&mut piece, false, true);
        let expected = Command::write(1, 8, 40, true).with_data(command.address.get() as usize, 20 << 10);
        assert_eq!((command, piece.step_bytes), (expected, 20 << 10));
        piece.left_bytes = 512;
        let command = namespace.zeros(&mut piece, false, false);
        assert_eq!((command.words[2].get(), command.data_length.get()), (0, 512));
    }

    #[test]
    fn a_read_that_another_device_can_answer_is_not_sent_again_and_a_write_is() {
        // An error of the media, a device that is not ready, a command that the kernel took back.
        for result in [0x281, 0x082, -libc::EINTR] {
            let failure = outcome(result).expect_err("a failure");
            assert!(!failure.may_retry(OperationKind::Read, true), "{result:#x}");
            assert!(failure.may_retry(OperationKind::Write, true), "{result:#x}");
        }
        // The device has not heard of it.
        let failure = outcome(-libc::EAGAIN).expect_err("a failure");
        assert!(failure.may_retry(OperationKind::Read, true));
    }

    #[test]
    fn a_flush_is_sent_again_only_if_it_was_taken_back() {
        let again = |result: i32| {
            let failure = outcome(result).expect_err("a failure");
            failure.may_retry(OperationKind::Flush, false)
        };
        // Taken back by the kernel, not sent; aborted on request, with its queue, by the host; not sent for want of a path.
        for result in [-libc::EINTR, -libc::EAGAIN, 0x007, 0x008, 0x371, 0x370] {
            assert!(again(result), "{result:#x}");
        }
        // The device could not; do not retry.
        for result in [0x006, 0x280, 0x4007, 0x4371, -libc::EIO, -libc::ENODEV] {
            assert!(!again(result), "{result:#x}");
        }
    }

    #[test]
    fn pauses_are_what_the_device_says_or_grow_and_have_an_end() {
        let silent = RetryDelays::default();
        let all: Vec<u128> = (0..TRIES_MAX)
            .map(|tries| pause(0x021, tries, silent).as_millis())
            .collect();
        assert_eq!(all, [1, 4, 16, 64, 256]);
        assert_eq!(
            pause(-libc::EINTR, 1, silent).as_millis(),
            4,
            "no status, nothing said"
        );
        let delays = RetryDelays::new([3, 0, u16::MAX]);
        // Bits 12:11 choose one, counted from 1; units of 100 ms.
        assert_eq!(pause(0x021 | 1 << 11, 0, delays).as_millis(), 300);
        assert_eq!(pause(0x021 | 2 << 11, 0, delays).as_millis(), 1, "it has none");
        assert_eq!(pause(0x021 | 3 << 11, 0, delays), PAUSE_MAX);
    }
}
