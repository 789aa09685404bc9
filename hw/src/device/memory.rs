//! A device in memory: no system call, and a transfer is a copy. For measuring what a processor costs without one.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::DeviceFigures;
use crate::buffers::arena::{advise_huge, anonymous};
use stillpoint_processor::ids::DeviceIndex;
use stillpoint_processor::ports::{
    BlockDevice, DeviceError, Full, OpenDevice, Operation, OperationKind, Transferred,
};

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// How far ahead reads are fetched, in operations, and how much of each: found by trying.
const FETCHED_AHEAD: usize = 4;
const FETCHED_BYTES: usize = 1024;

/// A mapping of zeros, on huge pages as far as the kernel finds them.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    mapped_bytes: usize,
    skip_bytes: usize,
    bytes: usize,
}

// SAFETY: plain memory that this value alone owns.
unsafe impl Send for Mapping {}
// SAFETY: as above; through a shared reference it is only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        // One huge page more than needed, so that it can begin at a huge page's boundary.
        let mapped_bytes = bytes + HUGE_PAGE_BYTES;
        let base = anonymous(mapped_bytes, libc::MAP_NORESERVE)?;
        let skip_bytes = base.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: less than HUGE_PAGE_BYTES, which was mapped beyond `bytes`.
        advise_huge(unsafe { base.add(skip_bytes) }, bytes);
        let mut mapping = Self {
            base,
            mapped_bytes,
            skip_bytes,
            bytes,
        };
        // Taken now: what is measured later is not to be the kernel clearing pages.
        for page in mapping.chunks_mut(4096) {
            page[0] = 1;
            std::hint::black_box(&mut *page)[0] = 0;
        }
        Ok(mapping)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: within the mapping, which the kernel zeroed, lives as long as `self`, and is borrowed with it.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(self.skip_bytes), self.bytes) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(self.skip_bytes), self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: a mapping of our own, to which no reference is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// A range of a device, in memory: the slice of one shard. Operations end when it is polled, in their order.
#[derive(Debug)]
pub struct MemoryDevice {
    first_byte: u64,
    memory: Mapping,
    /// What was submitted since the last poll.
    submitted: Vec<Box<Operation>>,
    figures: DeviceFigures,
}

impl MemoryDevice {
    /// The range of `length_bytes` from `first_byte` on, all zeros. All of its memory is taken at once.
    ///
    /// # Errors
    /// The address space cannot be had.
    pub fn new(first_byte: u64, length_bytes: usize) -> io::Result<Self> {
        Ok(Self {
            first_byte,
            memory: Mapping::new(length_bytes)?,
            submitted: Vec::with_capacity(256),
            figures: DeviceFigures::default(),
        })
    }

    /// What it did; every transfer counts as an entry.
    #[must_use]
    pub fn figures(&self) -> DeviceFigures {
        self.figures
    }

    /// Where a byte of the device lies in memory.
    fn place(&self, offset_bytes: u64) -> usize {
        let place = offset_bytes.checked_sub(self.first_byte);
        place.expect("within the range of this device") as usize
    }

    fn work(&mut self, operation: &mut Operation) {
        match operation.kind {
            OperationKind::Read | OperationKind::Write => self.move_data(operation),
            OperationKind::Flush => self.figures.flushes += 1,
            OperationKind::Discard => self.figures.discards += 1,
            OperationKind::WriteZeroes => self.make_zeros(operation),
        }
    }

    fn make_zeros(&mut self, operation: &Operation) {
        for transfer in &operation.transfers {
            let at = self.place(transfer.offset_bytes);
            self.memory[at..at + transfer.length_bytes as usize].fill(0);
            self.figures.zeroes += 1;
        }
    }

    fn move_data(&mut self, operation: &mut Operation) {
        for transfer in &operation.transfers {
            let mut at = self.place(transfer.offset_bytes);
            let first = transfer.first_segment as usize;
            for segment in &operation.segments[first..first + transfer.segment_count as usize] {
                let (from, length) = (segment.offset_bytes as usize, segment.length_bytes as usize);
                let buffer = &mut operation.buffers[segment.buffer as usize];
                let theirs = &mut buffer.bytes_mut()[from..from + length];
                let ours = &mut self.memory[at..at + length];
                if operation.kind == OperationKind::Read {
                    theirs.copy_from_slice(ours);
                } else {
                    store(ours, theirs);
                }
                at += length;
            }
            if operation.kind == OperationKind::Read {
                self.figures.reads += 1;
                self.figures.read_bytes += transfer.length_bytes;
            } else {
                self.figures.writes += 1;
                self.figures.written_bytes += transfer.length_bytes;
            }
        }
    }

    /// Has the beginning of what an operation reads brought near; the processor fetches the rest by itself once it sees
    /// where this leads.
    fn fetch(&self, operation: &Operation) {
        if operation.kind == OperationKind::Read {
            for transfer in &operation.transfers {
                let at = self.place(transfer.offset_bytes);
                let length = (transfer.length_bytes as usize).min(FETCHED_BYTES);
                fetch(&self.memory[at..at + length]);
            }
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn submit(&mut self, mut operation: Box<Operation>) -> Result<(), Full> {
        operation.result = Ok(());
        operation.failures.clear();
        if self.submitted.len() < FETCHED_AHEAD {
            self.fetch(&operation);
        }
        self.submitted.push(operation);
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        let mut submitted = std::mem::take(&mut self.submitted);
        for index in 0..submitted.len() {
            if let Some(later) = submitted.get(index + FETCHED_AHEAD) {
                self.fetch(later);
            }
            self.work(&mut submitted[index]);
        }
        completed.append(&mut submitted);
        self.submitted = submitted;
    }
}

/// Copies past the caches where the machine can, as a device does that takes its data from memory by itself.
#[cfg(target_arch = "x86_64")]
fn store(to: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const STEP: usize = size_of::<__m128i>();
    assert!(to.len() == from.len());
    if !to.len().is_multiple_of(STEP) || !(to.as_ptr() as usize).is_multiple_of(STEP) {
        return to.copy_from_slice(from);
    }
    for (to, from) in to.chunks_exact_mut(STEP).zip(from.chunks_exact(STEP)) {
        // SAFETY: both are 16 bytes; `to` is aligned to 16, as its beginning is and every step keeps it. SSE2 is there on
        // every x86-64.
        unsafe { _mm_stream_si128(to.as_mut_ptr().cast(), _mm_loadu_si128(from.as_ptr().cast())) };
    }
    // SAFETY: touches no memory; orders the stores above before what follows, on other threads too.
    unsafe { _mm_sfence() };
}

#[cfg(not(target_arch = "x86_64"))]
fn store(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
}

/// Asks for memory to be brought into the second cache.
#[cfg(target_arch = "x86_64")]
fn fetch(memory: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    for line in memory.chunks(64) {
        // SAFETY: a hint: it changes nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fetch(_: &[u8]) {}

impl OpenDevice for MemoryDevice {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        for read in reads {
            let at = self.place(read.offset_bytes);
            read.bytes
                .copy_from_slice(&self.memory[at..at + read.bytes.len()]);
            read.result = Ok(());
        }
    }

    fn write(&mut self, _: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let at = self.place(offset_bytes);
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self, _: DeviceIndex) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::ports::{Buffer, Segment, Transfer};

    fn operation(kind: OperationKind, offset_bytes: u64, fill: u8) -> Box<Operation> {
        let mut operation = Operation::new();
        operation.kind = kind;
        let mut buffer = Buffer::owned(8192);
        buffer.bytes_mut().fill(fill);
        operation.buffers.push(buffer);
        operation.transfers.push(Transfer {
            device: DeviceIndex(0),
            offset_bytes,
            length_bytes: 8192,
            first_segment: 0,
            segment_count: 2,
        });
        // The halves the other way round.
        operation.segments.extend([4096, 0].map(|offset_bytes| Segment {
            buffer: 0,
            offset_bytes,
            length_bytes: 4096,
        }));
        operation
    }

    #[test]
    fn what_was_written_is_read_at_the_same_place_of_the_device() {
        let mut device = MemoryDevice::new(1 << 20, 1 << 20).expect("memory");
        let mut ended = Vec::new();
        let mut write = operation(OperationKind::Write, (1 << 20) + 4096, 1);
        write.buffers[0].bytes_mut()[..4096].fill(2);
        device.submit(write).expect("room");
        device
            .submit(operation(OperationKind::Read, (1 << 20) + 4096, 0))
            .expect("room");
        assert!(ended.is_empty());
        device.poll(&mut ended);
        let read = ended[1].buffers[0].bytes();
        assert!(read[..4096].iter().all(|&byte| byte == 2) && read[4096..].iter().all(|&byte| byte == 1));
        let mut raw = [0; 4096];
        let mut reads = [Transferred {
            device: DeviceIndex(0),
            offset_bytes: (1 << 20) + 4096,
            bytes: &mut raw,
            result: Err(DeviceError::Gone),
        }];
        device.read_all(&mut reads);
        assert!(reads[0].result.is_ok() && raw == [1; 4096]);
        let figures = device.figures();
        assert_eq!(
            (figures.reads, figures.writes, figures.written_bytes),
            (1, 1, 8192)
        );
    }
}
