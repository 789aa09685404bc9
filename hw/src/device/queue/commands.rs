//! Operations on namespaces that take our own commands.

use super::{Devices, Slot, Target};
use crate::device::nvme::command::{Command, DatasetRange};
use crate::device::nvme::passthrough::Passthrough;
use crate::device::nvme::ring::{CommandRings, Data, Ended};
use crate::device::nvme::status;
use crate::device::parts::{Limits, Part};
use crate::device::{DeviceFile, PoolFiles};
use crate::ring::Ring;
use std::os::fd::{AsRawFd, RawFd};
use stillpoint_processor::ports::{DeviceError, OperationKind};

/// How often a command is tried again that may do better.
const TRIES_MAX: u8 = 5;
/// Blocks of a range of Dataset Management at most; the command has room for four times as many.
const DISCARD_BLOCKS_MAX: u64 = 1 << 30;

/// What commands to a namespace need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Namespace {
    file: RawFd,
    number: u32,
    block_power: u32,
    pub limits: Limits,
    polled: bool,
}

impl Namespace {
    pub fn of(passthrough: &Passthrough) -> Self {
        Self {
            file: passthrough.as_raw_fd(),
            number: passthrough.namespace,
            block_power: passthrough.block_power,
            limits: passthrough.limits,
            polled: passthrough.is_polled(),
        }
    }

    pub fn block_bytes(&self) -> u64 {
        1 << self.block_power
    }

    pub fn discard_bytes_max(&self) -> u64 {
        DISCARD_BLOCKS_MAX << self.block_power
    }

    /// First block and number of blocks of a part.
    fn blocks(&self, part: &Part) -> (u64, u32) {
        (
            part.offset_bytes >> self.block_power,
            (part.left_bytes >> self.block_power) as u32,
        )
    }
}

/// The rings for the namespaces among these devices; `None` if there are none. Without rings they are block devices.
pub(super) fn rings(files: &PoolFiles, arenas: &crate::buffers::Arenas) -> Option<CommandRings> {
    let mut namespaces = files.all().iter().filter_map(DeviceFile::passthrough).peekable();
    namespaces.peek()?;
    let polled = namespaces.any(Passthrough::is_polled);
    let claims: Vec<RawFd> = files.all().iter().map(AsRawFd::as_raw_fd).collect();
    CommandRings::new(polled, arenas, &claims).ok()
}

impl Devices {
    /// Queues the command of a part of a namespace.
    pub(super) fn push_command(&mut self, namespace: Namespace, slot: u32, part: u32) {
        let rings = self.rings.as_mut().expect("namespaces have rings");
        let kind = self.slots[slot as usize].kind();
        let state = &mut self.slots[slot as usize];
        let piece = &mut state.parts[part as usize];
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
                    _ => Command::write(namespace.number, first_block, blocks, false),
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
        };
        // SAFETY: the command points to the slot's vectors or ranges and, through them, to the operation's buffers. The slot
        // keeps all of these untouched until the last of its parts has ended, and is leaked (`drop`) rather than freed before.
        unsafe {
            ring.push(
                namespace.file,
                &command,
                data,
                u64::from(slot) << 32 | u64::from(part),
            )
        };
        self.figures.count(kind);
    }

    /// Takes in what the rings of commands have to say.
    pub(super) fn take_ended(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let mut ended = core::mem::take(&mut self.ended);
        rings.turn(&mut ended);
        for one in ended.drain(..) {
            self.command_ended(one);
        }
        self.ended = ended;
    }

    fn command_ended(&mut self, ended: Ended) {
        self.in_kernel -= 1;
        let (slot, part) = ((ended.mark >> 32) as u32, ended.mark as u32);
        let state = &mut self.slots[slot as usize];
        let kind = state.kind();
        let piece = &mut state.parts[part as usize];
        let result = outcome(ended.result);
        if ended.result == -libc::EINVAL && piece.registered {
            // Kernel 6.1 counts the pages of the whole arena as pieces of the command, which are more than a device takes.
            let polled = self.targets[piece.device]
                .namespace
                .is_some_and(|namespace| namespace.polled);
            let rings = self.rings.as_mut().expect("namespaces have rings");
            rings.for_data(polled).give_up_arenas();
            return self.ready.push_back((slot, part));
        }
        match (kind, result) {
            (OperationKind::Read, Ok(())) => self.figures.read_bytes += piece.left_bytes,
            (OperationKind::Write, Ok(())) => self.figures.written_bytes += piece.left_bytes,
            (OperationKind::Read | OperationKind::Write, Err(failure)) => {
                if failure.may_retry && piece.tries < TRIES_MAX {
                    piece.tries += 1;
                    self.figures.retries += 1;
                    self.ready.push_back((slot, part));
                    return;
                }
                self.figures.errors += 1;
                state.fail(failure.error);
            }
            // It was not sent.
            (OperationKind::Flush, Err(_)) if ended.result == -libc::EAGAIN && piece.tries < TRIES_MAX => {
                piece.tries += 1;
                self.figures.retries += 1;
                self.ready.push_back((slot, part));
                return;
            }
            // What the device had in its cache may be gone: a second try could succeed and mean nothing.
            (OperationKind::Flush, result) => self.flushed(slot, result.err().map(|failure| failure.error)),
            (OperationKind::Discard, result) => {
                self.discards -= 1;
                if let Err(failure) = result {
                    let device = piece.device;
                    self.discard_failed(slot, device, failure.error);
                }
            }
        }
        self.end_part(slot);
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
    may_retry: bool,
}

/// What the kernel's answer to a command means. 4 (EINTR) is a command that was taken back, by a time-out or a reset.
fn outcome(result: i32) -> Result<(), Failure> {
    match result {
        0 => Ok(()),
        1.. => Err(Failure {
            error: status::error(result as u16),
            may_retry: status::may_retry(result as u16),
        }),
        ..0 => {
            let errno = -result;
            let gone = matches!(errno, libc::ENODEV | libc::ENXIO);
            Err(Failure {
                error: if gone {
                    DeviceError::Gone
                } else {
                    DeviceError::Os(errno)
                },
                may_retry: matches!(errno, libc::EAGAIN | libc::EINTR),
            })
        }
    }
}

impl Target {
    /// What one entry takes at most.
    pub(super) fn limits(&self) -> Limits {
        self.namespace.map_or(Limits::FILE, |namespace| namespace.limits)
    }

    /// The longest discard.
    pub(super) fn discard_bytes_max(&self) -> u64 {
        self.namespace
            .map_or(u64::MAX, |namespace| namespace.discard_bytes_max())
    }
}

impl Slot {
    pub(super) fn kind(&self) -> OperationKind {
        let operation = self.operation.as_ref();
        operation.expect("an entry in flight has its operation").kind
    }

    pub(super) fn fail(&mut self, error: DeviceError) {
        let operation = self.operation.as_mut();
        operation.expect("an entry in flight has its operation").result = Err(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_kernel_become_errors_of_devices() {
        assert_eq!(outcome(0), Ok(()));
        let failed = |result: i32| outcome(result).expect_err("a failure");
        // LBA out of range, do not retry.
        let out_of_range = failed(0x4080);
        assert_eq!(
            out_of_range.error.to_string(),
            "NVMe status 0x080: LBA out of range"
        );
        assert!(!out_of_range.may_retry);
        assert!(
            failed(0x281).may_retry,
            "an error of the media may be gone the second time"
        );
        for gone in [libc::ENODEV, libc::ENXIO] {
            assert_eq!(failed(-gone).error, DeviceError::Gone);
            assert!(!failed(-gone).may_retry);
        }
        assert!(failed(-libc::EINTR).may_retry && failed(-libc::EAGAIN).may_retry);
        assert_eq!(
            failed(-libc::EINVAL),
            Failure {
                error: DeviceError::Os(libc::EINVAL),
                may_retry: false
            }
        );
    }
}
