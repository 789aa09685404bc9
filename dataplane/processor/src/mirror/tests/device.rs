//! Sides in memory, shared by the processors of a test: what is flushed survives a power cut, what is in flight ends when the test
//! says so.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::BLOCK_BYTES;
use crate::ids::DeviceIndex;
use crate::mirror::table::blocks_of;
use crate::ports::{
    BlockDevice, Buffer, BufferPool, DeviceError, Full, OpenDevice, Operation, OperationKind, Transferred,
};

type Page = Rc<[u8; BLOCK_BYTES]>;

/// One side.
#[derive(Clone)]
pub(super) struct Disk {
    durable: Vec<Page>,
    current: Vec<Page>,
    unflushed: Vec<(usize, Page)>,
    pub(super) is_gone: bool,
    pub(super) unreadable: BTreeSet<u64>,
    /// Writes of it fail, or flushes.
    pub(super) fails: Option<OperationKind>,
}

impl Disk {
    fn write(&mut self, block: u64, page: Page) {
        self.unreadable.remove(&block);
        self.current[block as usize] = Rc::clone(&page);
        self.unflushed.push((block as usize, page));
    }

    pub(super) fn flush(&mut self) {
        for (block, page) in self.unflushed.drain(..) {
            self.durable[block] = page;
        }
    }

    /// It lost its power: what was not flushed is there or not, as `keep` says.
    pub(super) fn lose_power(&mut self, mut keep: impl FnMut() -> bool) {
        for (block, page) in self.unflushed.drain(..) {
            if keep() {
                self.durable[block] = page;
            }
        }
        self.current = self.durable.clone();
    }

    /// Another, blank device is in its place.
    pub(super) fn become_blank(&mut self) {
        let blank: Page = Rc::new([0; BLOCK_BYTES]);
        self.unflushed.clear();
        self.unreadable.clear();
        self.durable.fill(Rc::clone(&blank));
        self.current.fill(blank);
    }

    pub(super) fn peek(&self, block: u64) -> &[u8; BLOCK_BYTES] {
        &self.current[block as usize]
    }

    /// The number in a block.
    pub(super) fn stamp(&self, block: u64) -> u64 {
        u64::from_le_bytes(self.peek(block)[..8].try_into().expect("eight bytes"))
    }

    pub(super) fn copy_from(&mut self, other: &Self, block: u64) {
        self.current[block as usize] = Rc::clone(&other.current[block as usize]);
        self.durable[block as usize] = Rc::clone(&other.current[block as usize]);
    }
}

#[derive(Default)]
pub(super) struct Room {
    pub(super) disks: Vec<Disk>,
    /// With the processor each belongs to, and a bit for each side that was lost since: it will not do its part, even if it comes back.
    pub(super) in_flight: Vec<(usize, Box<Operation>, u64)>,
    ended: Vec<(usize, Box<Operation>)>,
    /// Operations in flight at most.
    pub(super) depth: usize,
}

impl Room {
    pub(super) fn new(disks: usize, blocks: u64) -> Rc<RefCell<Self>> {
        let blank: Page = Rc::new([0; BLOCK_BYTES]);
        let disk = Disk {
            durable: vec![Rc::clone(&blank); blocks as usize],
            current: vec![blank; blocks as usize],
            unflushed: Vec::new(),
            is_gone: false,
            unreadable: BTreeSet::new(),
            fails: None,
        };
        Rc::new(RefCell::new(Self {
            disks: vec![disk; disks],
            in_flight: Vec::new(),
            ended: Vec::new(),
            depth: 64,
        }))
    }

    /// Ends operation `index` of those in flight.
    pub(super) fn finish(&mut self, index: usize) {
        let (port, mut operation, doomed) = self.in_flight.remove(index);
        self.carry_out(&mut operation, doomed);
        self.ended.push((port, operation));
    }

    pub(super) fn finish_all(&mut self) {
        while !self.in_flight.is_empty() {
            self.finish(0);
        }
    }

    /// A side is lost.
    pub(super) fn lose(&mut self, disk: usize) {
        self.disks[disk].is_gone = true;
        for (_, _, doomed) in &mut self.in_flight {
            *doomed |= 1 << disk;
        }
    }

    fn carry_out(&mut self, operation: &mut Operation, doomed: u64) {
        operation.result = Ok(());
        operation.failures.clear();
        for index in 0..operation.transfers.len() {
            let transfer = operation.transfers[index];
            let disk = &mut self.disks[usize::from(transfer.device.0)];
            let blocks = blocks_of(&transfer);
            let is_unreadable = operation.kind == OperationKind::Read
                && blocks.clone().any(|block| disk.unreadable.contains(&block));
            let is_gone = disk.is_gone || doomed >> transfer.device.0 & 1 == 1;
            if is_gone || is_unreadable || disk.fails == Some(operation.kind) {
                let error = if is_gone {
                    DeviceError::Gone
                } else {
                    DeviceError::Os(5)
                };
                operation.fail(index as u32, error);
                continue;
            }
            if operation.kind == OperationKind::Flush {
                disk.flush();
                continue;
            }
            let mut block = blocks.start;
            let first = transfer.first_segment as usize;
            for segment in &operation.segments[first..first + transfer.segment_count as usize] {
                let (start, length) = (segment.offset_bytes as usize, segment.length_bytes as usize);
                let memory =
                    &mut operation.buffers[segment.buffer as usize].bytes_mut()[start..start + length];
                for chunk in memory.chunks_exact_mut(BLOCK_BYTES) {
                    match operation.kind {
                        OperationKind::Read => chunk.copy_from_slice(&disk.current[block as usize][..]),
                        _ => {
                            let page: [u8; BLOCK_BYTES] = (&*chunk).try_into().expect("a block");
                            disk.write(block, Rc::new(page));
                        }
                    }
                    block += 1;
                }
            }
        }
    }

    /// The processors are gone. What was in flight is done on a side, or not, as `keep` says; with the power goes what was not
    /// flushed.
    pub(super) fn crash(&mut self, power_cut: bool, mut keep: impl FnMut() -> bool) {
        for (_, operation, _) in core::mem::take(&mut self.in_flight) {
            for transfer in &operation.transfers {
                if operation.kind == OperationKind::Write && keep() {
                    let mut block = transfer.offset_bytes / BLOCK_BYTES as u64;
                    let first = transfer.first_segment as usize;
                    let segments = &operation.segments[first..first + transfer.segment_count as usize];
                    for segment in segments {
                        let memory = operation.buffers[segment.buffer as usize].bytes();
                        let start = segment.offset_bytes as usize;
                        for chunk in
                            memory[start..start + segment.length_bytes as usize].chunks_exact(BLOCK_BYTES)
                        {
                            let page: [u8; BLOCK_BYTES] = chunk.try_into().expect("a block");
                            self.disks[usize::from(transfer.device.0)].write(block, Rc::new(page));
                            block += 1;
                        }
                    }
                }
            }
        }
        self.ended.clear();
        for disk in &mut self.disks {
            if power_cut {
                disk.lose_power(&mut keep);
            }
        }
    }
}

/// The sides as one processor sees them.
pub(super) struct Port {
    pub(super) room: Rc<RefCell<Room>>,
    pub(super) index: usize,
}

impl BlockDevice for Port {
    fn submit(&mut self, operation: Box<Operation>) -> Result<(), Full> {
        let mut room = self.room.borrow_mut();
        if room.in_flight.len() >= room.depth {
            return Err(Full(operation));
        }
        room.in_flight.push((self.index, operation, 0));
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        let mut room = self.room.borrow_mut();
        let (mine, others) = core::mem::take(&mut room.ended)
            .into_iter()
            .partition(|(port, _)| *port == self.index);
        room.ended = others;
        let mine: Vec<(usize, Box<Operation>)> = mine;
        completed.extend(mine.into_iter().map(|(_, operation)| operation));
    }
}

impl OpenDevice for Port {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        let room = self.room.borrow();
        for read in reads {
            let first = read.offset_bytes / BLOCK_BYTES as u64;
            for (block, chunk) in (first..).zip(read.bytes.chunks_exact_mut(BLOCK_BYTES)) {
                chunk.copy_from_slice(room.disks[usize::from(read.device.0)].peek(block));
            }
            read.result = Ok(());
        }
    }

    fn write(&mut self, _: DeviceIndex, _: u64, _: &[u8]) -> Result<(), DeviceError> {
        unreachable!("stale pages are only read")
    }

    fn flush(&mut self, _: DeviceIndex) -> Result<(), DeviceError> {
        unreachable!("stale pages are only read")
    }
}

/// Buffers without a limit, all of which have to come back.
#[derive(Default)]
pub(super) struct Pool {
    pub(super) outside: usize,
    pub(super) is_dry: bool,
}

impl BufferPool for Pool {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        if self.is_dry {
            return None;
        }
        self.outside += 1;
        Some(Buffer::owned(length_bytes))
    }

    fn give(&mut self, _: Buffer) {
        self.outside -= 1;
    }
}
