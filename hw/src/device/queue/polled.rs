//! Reads and writes of block devices that have poll queues: through a ring whose completions somebody has to look for (IOPOLL),
//! beside the processor's own, which is for everything else. Such a ring takes nothing but reads and writes.

use super::entries::{holding, transfer_entry};
use super::{Devices, command_mark};
use crate::device::DeviceFile;
use crate::device::file::AlignedBlock;
use crate::device::nvme::ring::{CommandRing, CommandRings};
use crate::ring::FileSlot;
use io_uring::{opcode, types};
use std::os::fd::AsRawFd;
use stillpoint_processor::BLOCK_BYTES;
use stillpoint_processor::ports::OperationKind;

/// Whether the kernel polls for reads of this file: one block is read so.
pub(in crate::device) fn reads_polled(file: &impl AsRawFd) -> bool {
    let Ok(mut ring) = CommandRing::new(true) else {
        return false;
    };
    let mut block = Box::new(AlignedBlock([0; BLOCK_BYTES]));
    let file = types::Fd(file.as_raw_fd());
    let entry = opcode::Read::new(file, block.0.as_mut_ptr(), BLOCK_BYTES as u32).build();
    // SAFETY: `block` is neither touched nor freed before `finish` has seen the entry's end; if it fails, `block` is leaked.
    unsafe { ring.push_entry(&entry.into()) };
    let mut ended = Vec::new();
    if ring.finish(&mut ended).is_err() {
        std::mem::forget(block);
        return false;
    }
    ended[0].result == BLOCK_BYTES as i32
}

impl Devices {
    /// Makes the ring for a block device whose completions are polled for; whether there is one.
    pub(super) fn make_polled(&mut self, number: usize, file: &DeviceFile) -> bool {
        let rings = self.rings.get_or_insert_with(CommandRings::new);
        let made = rings.make(true, &self.arenas).is_ok() && rings.claim(number, file.as_raw_fd()).is_ok();
        if !made {
            file.note_not_polled();
        }
        made
    }

    /// Whether the completion of a part is polled for. A durable write may need a flush, which cannot be polled for.
    pub(super) fn goes_polled(&self, slot: u32, part: u32) -> bool {
        let state = &self.slots[slot as usize];
        let piece = &state.parts[part as usize];
        let Some(polled) = self.targets.at(piece.target).polled else {
            return false;
        };
        match state.kind() {
            OperationKind::Write if state.is_durable() => false,
            OperationKind::Read | OperationKind::Write => polled.takes(piece.offset_bytes, piece.left_bytes),
            OperationKind::Flush | OperationKind::Discard | OperationKind::WriteZeroes => false,
        }
    }

    /// Queues the entry of such a part.
    pub(super) fn push_polled(&mut self, slot: u32, part: u32) {
        let state = &self.slots[slot as usize];
        let (kind, piece) = (state.kind(), &state.parts[part as usize]);
        let vectors = &state.vectors[piece.first_vector..piece.first_vector + piece.vector_count];
        let rings = self.rings.as_mut().expect("a polled device has a ring");
        let ring = rings.for_data(true);
        let registered = (ring.has_arenas())
            .then(|| holding(&self.arenas, vectors, self.vectored_fixed))
            .flatten();
        let file = FileSlot::Registered(piece.target as u32);
        let entry = transfer_entry(kind, file, vectors, piece.offset_bytes, registered, 0);
        let entry = entry.user_data(command_mark(slot, part));
        // SAFETY: the entry points to the slot's vectors and, through them, to the operation's buffers. The slot keeps all of these
        // untouched until the last of its parts has ended, and is leaked (`drop`) rather than freed before.
        unsafe { ring.push_entry(&entry.into()) };
    }

    /// The kernel's answer to such an entry. If it does not poll after all, that one and all that follow go the other way, and are
    /// counted there.
    pub(super) fn polled_ended(&mut self, slot: u32, part: u32, result: i32) {
        if result != -libc::EOPNOTSUPP {
            self.figures.count(self.slots[slot as usize].kind(), false);
            return self.moved(slot, part, result);
        }
        let number = self.slots[slot as usize].parts[part as usize].target;
        let target = self.targets.at_mut(number);
        target.polled = None;
        target.file.note_not_polled();
        self.again(slot, part);
    }
}
