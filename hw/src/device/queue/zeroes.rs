//! Ranges that become zeros: by the device itself where it can, else piece by piece as data.
//!
//! ```text
//! by itself (Write Zeroes, FALLOC_FL_ZERO_RANGE) ──done──> ended
//!     └──it cannot──> written piece by piece ──all of it──> ended
//! ```
//! A device that could not is not asked again as long as it is open.

use super::Devices;
use super::entries::transfer_entry;
use crate::device::nvme::status::is_refusal;
use crate::device::parts::Part;
use crate::ring::on_file;
use io_uring::{opcode, squeue};
use stillpoint_processor::ports::{DeviceError, OperationKind};

/// What is sent at a time.
const ZEROS_BYTES: usize = 64 << 10;

#[repr(align(4096))]
struct Zeros([u8; ZEROS_BYTES]);

static ZEROS: Zeros = Zeros([0; ZEROS_BYTES]);

/// As many zeros as there are at hand, at most `length_bytes`; they live for ever.
pub(super) fn some(length_bytes: u64) -> &'static [u8] {
    let fits = usize::try_from(length_bytes).unwrap_or(usize::MAX);
    &ZEROS.0[..fits.min(ZEROS_BYTES)]
}

impl Devices {
    /// The entry of a part that becomes zeros, of a file or block device. The kernel does not make zeros durable that it makes by itself,
    /// so these are written.
    pub(super) fn zero_entry(&mut self, slot: u32, part: u32) -> squeue::Entry {
        let state = &mut self.slots[slot as usize];
        let (durable, flags) = (state.is_durable(), state.write_flags());
        let piece = &mut state.parts[part as usize];
        let Part {
            target,
            offset_bytes,
            left_bytes,
            ..
        } = *piece;
        let target = self.targets.at(target);
        let file = target.slot;
        let (entry, sent) = if target.makes_zeroes() && !durable {
            piece.step_bytes = 0;
            // Not KEEP_SIZE: with it the kernel passes by in silence what lies past the end of a device that has shrunk.
            let mode = libc::FALLOC_FL_ZERO_RANGE;
            let entry = on_file!(file, |file| {
                opcode::Fallocate::new(file, left_bytes)
                    .offset(offset_bytes)
                    .mode(mode)
                    .build()
            });
            (entry, OperationKind::WriteZeroes)
        } else {
            let zeros = some(left_bytes);
            piece.step_bytes = zeros.len() as u64;
            let only = libc::iovec {
                iov_base: zeros.as_ptr().cast_mut().cast(),
                iov_len: zeros.len(),
            };
            let kind = OperationKind::Write;
            (
                transfer_entry(kind, file, &[only], offset_bytes, None, flags),
                kind,
            )
        };
        self.figures.count(sent, durable);
        entry.user_data(self.mark(slot, part))
    }

    /// The kernel's answer to such an entry.
    pub(super) fn zeroed(&mut self, slot: u32, part: u32, result: i32) {
        let piece = &self.slots[slot as usize].parts[part as usize];
        let (by_itself, left_bytes) = (piece.step_bytes == 0, piece.left_bytes);
        match result {
            ..0 if piece.is_busy(result) => self.after_a_pause(slot, part),
            0 if by_itself => self.zeros_are_there(slot, part, left_bytes),
            ..0 if by_itself && matches!(-result, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV) => {
                self.write_zeros_instead(slot, part, DeviceError::Os(-result));
            }
            ..=0 => {
                let error = self.error_of(slot, part, -result);
                self.end_failed(slot, part, error);
            }
            1.. => self.zeros_are_there(slot, part, result as u64),
        }
    }

    /// A command for such a part ended, with this error.
    pub(super) fn zeroed_by_command(&mut self, slot: u32, part: u32, error: Option<DeviceError>) {
        let piece = &self.slots[slot as usize].parts[part as usize];
        let (step_bytes, left_bytes) = (piece.step_bytes, piece.left_bytes);
        match error {
            None if step_bytes == 0 => self.zeros_are_there(slot, part, left_bytes),
            None => self.zeros_are_there(slot, part, step_bytes),
            Some(error @ DeviceError::Nvme { status, .. }) if step_bytes == 0 && is_refusal(status) => {
                self.write_zeros_instead(slot, part, error);
            }
            Some(error) => self.end_failed(slot, part, error),
        }
    }

    /// The device cannot make zeros by itself, whatever it says.
    fn write_zeros_instead(&mut self, slot: u32, part: u32, error: DeviceError) {
        let piece = &mut self.slots[slot as usize].parts[part as usize];
        piece.tries = 0;
        self.targets.at(piece.target).file.note_refused_zeroes(error);
        self.again(slot, part);
    }

    /// So many bytes of a part are zeros by now.
    fn zeros_are_there(&mut self, slot: u32, part: u32, done_bytes: u64) {
        let piece = &mut self.slots[slot as usize].parts[part as usize];
        assert!(done_bytes <= piece.left_bytes, "no more than was asked");
        if piece.step_bytes > 0 {
            self.figures.written_bytes += done_bytes;
        }
        piece.tries = 0;
        piece.offset_bytes += done_bytes;
        piece.left_bytes -= done_bytes;
        if piece.left_bytes > 0 {
            self.again(slot, part);
        } else {
            self.end_moved(slot, part);
        }
    }
}
