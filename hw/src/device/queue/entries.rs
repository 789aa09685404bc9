//! Parts of operations as entries of the processor's ring.

use super::{Devices, PAUSE};
use crate::buffers::Arenas;
use crate::device::parts::Part;
use crate::ring::{FileSlot, Owner, Ring, mark, on_file};
use io_uring::{opcode, squeue, types};
use stillpoint_processor::ports::OperationKind;

impl Devices {
    /// The entry of a part of a file or block device.
    pub(super) fn entry(&mut self, ring: &Ring, slot: u32, part: u32) -> squeue::Entry {
        let kind = self.slots[slot as usize].kind();
        if kind == OperationKind::WriteZeroes {
            return self.zero_entry(slot, part);
        }
        let state = &self.slots[slot as usize];
        let Part {
            target,
            offset_bytes,
            left_bytes,
            first_vector,
            vector_count,
            ..
        } = state.parts[part as usize];
        let file = self.targets.at(target).slot;
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
                let registered = (ring.has_arenas())
                    .then(|| holding(&self.arenas, vectors, self.vectored_fixed))
                    .flatten();
                transfer_entry(kind, file, vectors, offset_bytes, registered, state.write_flags())
            }
            OperationKind::WriteZeroes => unreachable!("it has entries of its own"),
        };
        let durable = self.slots[slot as usize].is_durable();
        self.figures.count(kind, durable);
        entry.user_data(self.mark(slot, part))
    }

    /// The entry that is nothing but the wait before a part is tried again.
    pub(super) fn pause_entry(&self, slot: u32, part: u32) -> squeue::Entry {
        let pause = &self.slots[slot as usize].parts[part as usize].pause;
        let time = pause.as_ref().expect("a pause was asked for");
        let entry = opcode::Timeout::new(core::ptr::from_ref(time)).build();
        entry.user_data(self.mark(slot, part) | PAUSE)
    }

    pub(super) fn mark(&self, slot: u32, part: u32) -> u64 {
        mark(
            Owner::Devices(self.place),
            u64::from(slot) << 24 | u64::from(part),
        )
    }
}

/// The arena that holds all of these pieces, if there is one; several pieces only if the kernel takes them so (`vectored`).
pub(super) fn holding(arenas: &Arenas, vectors: &[libc::iovec], vectored: bool) -> Option<u16> {
    let find = |vector: &libc::iovec| arenas.holding(vector.iov_base as usize, vector.iov_len);
    let (first, others) = vectors.split_first()?;
    let arena = find(first)?;
    let all = others.is_empty() || vectored && others.iter().all(|other| find(other) == Some(arena));
    all.then_some(arena as u16)
}

/// The entry of a read or write.
pub(super) fn transfer_entry(
    kind: OperationKind,
    file: FileSlot,
    vectors: &[libc::iovec],
    offset_bytes: u64,
    registered: Option<u16>,
    write_flags: i32,
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
                    .rw_flags(write_flags)
                    .build()
            }
            (None, true) => opcode::Read::new(file, memory, length)
                .offset(offset_bytes)
                .build(),
            (None, false) => opcode::Write::new(file, memory, length)
                .offset(offset_bytes)
                .rw_flags(write_flags)
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
                .rw_flags(write_flags)
                .build()
        }
        (None, true) => opcode::Readv::new(file, memory, count)
            .offset(offset_bytes)
            .build(),
        (None, false) => opcode::Writev::new(file, memory, count)
            .offset(offset_bytes)
            .rw_flags(write_flags)
            .build(),
    })
}
