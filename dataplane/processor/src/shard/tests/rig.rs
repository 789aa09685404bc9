//! The rig of the shard's tests: a device and buffers in memory, one shard over them, one request at a time.

use std::collections::{BTreeSet, VecDeque};

use super::super::*;
use crate::format::{PoolSpec, make_pool};
use crate::ids::{ShareBlock, SnapshotId, TimeStamp};
use crate::ports::{Full, MemoryTail, OpenDevice, Side, Transfer, Transferred};
use crate::processor::Processor;
use crate::request::{Token, View};
/// One device in memory; operations complete in the order in which they were submitted.
#[derive(Debug, Default)]
pub(super) struct MemoryDevice {
    pub(super) bytes: Vec<u8>,
    pub(super) done: VecDeque<Box<Operation>>,
    /// Operations of this kind do not come back.
    pub(super) held: Option<OperationKind>,
    pub(super) waiting: Vec<Box<Operation>>,
    /// Operations of this kind fail.
    pub(super) failing: Option<OperationKind>,
    /// A block that cannot be read.
    pub(super) unreadable: Option<u64>,
    /// What the second side holds, if there is one.
    pub(super) second: Option<Vec<u8>>,
    /// Blocks that a side cannot read, until they are written.
    pub(super) unreadable_of: [BTreeSet<u64>; 2],
    /// Reads that name no side are served by the second.
    pub(super) second_is_preferred: bool,
    /// Operations of this kind that name a side do not come back.
    pub(super) held_of_side: Option<OperationKind>,
    /// Writes to one side fail.
    pub(super) repairs_fail: bool,
    /// Writes since the last flush, if they are remembered.
    pub(super) unflushed: Option<Vec<Unflushed>>,
    /// It makes single writes durable.
    pub(super) durable_writes: bool,
    /// Flushes, and durable writes, that it was asked for.
    pub(super) counts: (u64, u64),
}

/// A write: where, what was there, what came.
type Unflushed = (usize, Vec<u8>, Vec<u8>);

impl MemoryDevice {
    /// What a side holds.
    pub(super) fn side(&mut self, side: Side) -> &mut Vec<u8> {
        match (side, &mut self.second) {
            (Side::Second, Some(second)) => second,
            _ => &mut self.bytes,
        }
    }

    /// Both sides hold the same from now on.
    pub(super) fn mirror(&mut self) {
        self.second = Some(self.bytes.clone());
    }

    pub(super) fn run(&mut self, operation: &mut Operation) {
        if self.second.is_none() {
            operation.side = None;
        } else if operation.kind == OperationKind::Read {
            let preferred = match self.second_is_preferred {
                true => Side::Second,
                false => Side::First,
            };
            operation.side = Some(operation.side.unwrap_or(preferred));
        }
        for number in 0..operation.transfers.len() {
            let sides = match (operation.side, operation.kind) {
                (Some(side), OperationKind::Read) => {
                    let Some(side) = self.answering(side, number as u32, operation) else {
                        continue;
                    };
                    vec![side]
                }
                (Some(side), _) => vec![side],
                (None, _) if self.second.is_some() => Side::BOTH.to_vec(),
                (None, _) => vec![Side::First],
            };
            for side in sides {
                self.run_on(side, number, operation);
            }
        }
    }

    /// The side that answers a read that asks for one, as mirrors do it; none if neither can.
    fn answering(&self, asked: Side, number: u32, operation: &mut Operation) -> Option<Side> {
        let transfer = operation.transfers[number as usize];
        let can = |side: Side| {
            let mut unreadable = self.unreadable_of[side.index()].iter();
            unreadable.all(|&block| !touches(&transfer, block))
        };
        if can(asked) {
            return Some(asked);
        }
        if !can(asked.other()) {
            operation.result = Err(DeviceError::Os(5));
            return None;
        }
        operation.failures.push((number, DeviceError::Os(5)));
        Some(asked.other())
    }

    fn run_on(&mut self, side: Side, number: usize, operation: &mut Operation) {
        let transfer = operation.transfers[number];
        let mut at = transfer.offset_bytes as usize;
        let first = transfer.first_segment as usize;
        if operation.kind == OperationKind::Write {
            self.unreadable_of[side.index()].retain(|&block| !touches(&transfer, block));
        }
        for segment in &operation.segments[first..first + transfer.segment_count as usize] {
            let (from, length) = (segment.offset_bytes as usize, segment.length_bytes as usize);
            let buffer = &mut operation.buffers[segment.buffer as usize].bytes_mut()[from..from + length];
            match operation.kind {
                OperationKind::Read => buffer.copy_from_slice(&self.side(side)[at..at + length]),
                OperationKind::Write => {
                    if let Some(unflushed) = &mut self.unflushed
                        && !operation.durable
                    {
                        unflushed.push((at, self.bytes[at..at + length].to_vec(), buffer.to_vec()));
                    }
                    self.side(side)[at..at + length].copy_from_slice(buffer);
                }
                OperationKind::Flush | OperationKind::Discard => {}
                OperationKind::WriteZeroes => unreachable!("shards ask for no zeros"),
            }
            at += length;
        }
    }
}

/// Whether a block is part of a transfer.
fn touches(transfer: &Transfer, block: u64) -> bool {
    let first = transfer.offset_bytes / BLOCK as u64;
    (first..first + transfer.length_bytes / BLOCK as u64).contains(&block)
}

impl BlockDevice for MemoryDevice {
    fn submit(&mut self, mut operation: Box<Operation>) -> Result<(), Full> {
        let held_of_side = operation.side.is_some() && self.held_of_side == Some(operation.kind);
        if self.held == Some(operation.kind) || held_of_side {
            self.waiting.push(operation);
            return Ok(());
        }
        self.counts.0 += u64::from(operation.kind == OperationKind::Flush);
        self.counts.1 += u64::from(operation.durable);
        if operation.kind == OperationKind::Flush
            && self.failing != Some(OperationKind::Flush)
            && let Some(unflushed) = &mut self.unflushed
        {
            unflushed.clear();
        }
        let unreadable = operation.kind == OperationKind::Read
            && self.unreadable.is_some_and(|block| {
                operation
                    .transfers
                    .iter()
                    .any(|transfer| touches(transfer, block))
            });
        let repair = operation.kind == OperationKind::Write && operation.side.is_some();
        if unreadable || self.failing == Some(operation.kind) || (repair && self.repairs_fail) {
            operation.result = Err(DeviceError::Os(5));
        } else {
            self.run(&mut operation);
        }
        self.done.push_back(operation);
        Ok(())
    }

    fn writes_durably(&self) -> bool {
        self.durable_writes
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        for operation in core::mem::take(&mut self.waiting) {
            self.submit(operation).expect("room");
        }
        completed.extend(self.done.drain(..));
    }
}

impl OpenDevice for MemoryDevice {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        for read in reads {
            let at = read.offset_bytes as usize;
            let blocks = at / BLOCK..(at + read.bytes.len()) / BLOCK;
            if self
                .unreadable
                .is_some_and(|block| blocks.contains(&(block as usize)))
            {
                read.result = Err(DeviceError::Os(5));
                continue;
            }
            read.bytes.copy_from_slice(&self.bytes[at..at + read.bytes.len()]);
        }
    }

    fn write(&mut self, _device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.bytes[offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self, _device: DeviceIndex) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Buffers without a limit, or none at all.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) spare: Vec<Buffer>,
    pub(super) dry: bool,
}

impl BufferPool for Pool {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        if self.dry {
            return None;
        }
        if let Some(position) = self
            .spare
            .iter()
            .position(|buffer| buffer.capacity() == length_bytes)
        {
            return Some(self.spare.swap_remove(position));
        }
        Some(Buffer::owned(length_bytes))
    }

    fn give(&mut self, buffer: Buffer) {
        self.spare.push(buffer);
    }
}

pub(super) const VOLUME: VolumeId = VolumeId(1);
pub(super) const LIVE: View = View {
    volume: VOLUME,
    snapshot: None,
};

pub(super) struct Rig {
    pub(super) layout: Layout,
    pub(super) options: ShardOptions,
    pub(super) processor: Processor<MemoryDevice, MemoryTail>,
    pub(super) pool: Pool,
    pub(super) outbox: Outbox,
    pub(super) now: Now,
    pub(super) tickets: u64,
}

pub(super) fn options() -> ShardOptions {
    ShardOptions {
        map_cache_pages: 256,
        ..ShardOptions::default()
    }
}

impl Rig {
    pub(super) fn new(pool_bytes: usize) -> Self {
        Self::with(pool_bytes, options())
    }

    pub(super) fn with(pool_bytes: usize, options: ShardOptions) -> Self {
        let mut device = MemoryDevice {
            bytes: vec![0; pool_bytes],
            ..MemoryDevice::default()
        };
        let spec = PoolSpec {
            pool: [3; 16],
            name: String::from("test"),
            shard_count: 1,
            created_ns: 1,
            devices: vec![([1; 16], (pool_bytes / BLOCK) as u64)],
            second_sides: Vec::new(),
        };
        let layout = make_pool(&mut device, &spec).expect("a pool");
        let mut rig = Self::open(layout, device, MemoryTail::default(), options);
        assert_eq!(
            rig.command(ShardCommand::CreateVolume {
                volume: VOLUME,
                share_blocks: 1 << 20
            }),
            EventKind::Done
        );
        rig
    }

    pub(super) fn open(
        layout: Layout,
        mut device: MemoryDevice,
        tail: MemoryTail,
        options: ShardOptions,
    ) -> Self {
        let now = Now {
            monotonic_ns: 1,
            wall_ns: 1_000,
        };
        let (shard, _) = Shard::open(&layout, ShardIndex(0), &mut device, tail, options, now).expect("opens");
        let processor = Processor::new(device, vec![shard]);
        Self {
            layout,
            options,
            processor,
            pool: Pool::default(),
            outbox: Outbox::default(),
            now,
            tickets: 0,
        }
    }

    /// Ends like kill -9: what the device and the tail hold stays.
    pub(super) fn kill(self) -> Self {
        let (mut device, mut shards) = self.processor.into_parts(&mut Pool::default());
        device = MemoryDevice {
            bytes: device.bytes,
            second: device.second,
            ..MemoryDevice::default()
        };
        let tail = shards.pop().expect("one shard").into_tail();
        Self::open(self.layout, device, tail, self.options)
    }

    /// Loses the power: of the writes that were not flushed those stay that `stays` says, by their place; the tail is
    /// gone.
    pub(super) fn cut_power(self, stays: impl Fn(usize) -> bool) -> Self {
        let (mut device, _) = self.processor.into_parts(&mut Pool::default());
        let unflushed = device.unflushed.take().expect("writes are remembered");
        for (at, before, _) in unflushed.iter().rev() {
            device.bytes[*at..at + before.len()].copy_from_slice(before);
        }
        for (at, _, after) in unflushed.iter().filter(|(at, ..)| stays(*at)) {
            device.bytes[*at..at + after.len()].copy_from_slice(after);
        }
        let device = MemoryDevice {
            bytes: device.bytes,
            unflushed: Some(Vec::new()),
            ..MemoryDevice::default()
        };
        let mut rig = Self::open(self.layout, device, MemoryTail::default(), self.options);
        // Lives are told apart by their clocks.
        rig.now.wall_ns = self.now.wall_ns;
        rig
    }

    pub(super) fn turn(&mut self) {
        self.now.monotonic_ns += 1_000;
        self.now.wall_ns += 1_000;
        self.processor.poll(self.now, &mut self.pool, &mut self.outbox);
    }

    pub(super) fn send(&mut self, request: ShardRequest) {
        self.processor.submit(request, self.now).expect("room");
    }

    pub(super) fn ask(
        &mut self,
        view: View,
        kind: RequestKind,
        offset: usize,
        length: usize,
        data: Option<&[u8]>,
    ) -> ShardAnswer {
        self.send(request(view, kind, offset, length, data));
        for _ in 0..100_000 {
            self.turn();
            if let Some(answer) = self.outbox.answers.pop() {
                return answer;
            }
        }
        panic!("no answer to {kind:?}");
    }

    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let answer = self.ask(
            LIVE,
            RequestKind::Write { fua: false },
            offset,
            data.len(),
            Some(data),
        );
        assert_eq!(answer.result, Ok(()));
    }

    pub(super) fn read(&mut self, view: View, offset: usize, length: usize) -> Vec<u8> {
        let answer = self.ask(view, RequestKind::Read, offset, length, None);
        assert_eq!(answer.result, Ok(()));
        let skip = offset % BLOCK;
        answer.buffer.expect("a buffer").bytes()[skip..skip + length].to_vec()
    }

    pub(super) fn command(&mut self, command: ShardCommand) -> EventKind {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.processor.command(ShardIndex(0), ticket, command, self.now);
        for _ in 0..100_000 {
            self.turn();
            if let Some(position) = self
                .outbox
                .events
                .iter()
                .position(|event| event.ticket == Some(ticket))
            {
                return self.outbox.events.swap_remove(position).kind;
            }
        }
        panic!("no event for a command");
    }

    pub(super) fn snapshot(&mut self, number: u64) -> View {
        let snapshot = SnapshotId(number);
        let prepared = self.command(ShardCommand::Prepare {
            snapshot,
            volumes: vec![VOLUME],
        });
        assert_eq!(prepared, EventKind::Prepared);
        let cut = ShardCommand::Cut {
            snapshot,
            time_stamp: TimeStamp(number),
            deadline_ns: u64::MAX,
        };
        assert_eq!(self.command(cut), EventKind::Taken);
        assert!(matches!(
            self.command(ShardCommand::Release { snapshot }),
            EventKind::Released(_)
        ));
        assert_eq!(
            self.command(ShardCommand::Persist { snapshot }),
            EventKind::Durable
        );
        View {
            volume: VOLUME,
            snapshot: Some(snapshot),
        }
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.turn();
            if self.processor.is_quiet() {
                return;
            }
        }
        panic!("never quiet");
    }

    pub(super) fn used_blocks(&mut self) -> u64 {
        // Twice: the first frees what was waiting, the second frees what the first replaced.
        for _ in 0..2 {
            assert_eq!(self.command(ShardCommand::Checkpoint), EventKind::Done);
            self.settle();
        }
        let status = self.processor.shards()[0].status();
        status.used_blocks - status.pending_blocks
    }
}

pub(super) const BLOCK: usize = crate::BLOCK_BYTES;

pub(super) fn request(
    view: View,
    kind: RequestKind,
    offset: usize,
    length: usize,
    data: Option<&[u8]>,
) -> ShardRequest {
    let first = offset / BLOCK;
    let blocks = (offset + length).div_ceil(BLOCK) - first;
    let skip = offset % BLOCK;
    let buffer = matches!(
        kind,
        RequestKind::Read
            | RequestKind::Write { .. }
            | RequestKind::BlockStatus
            | RequestKind::Changes { .. }
    )
    .then(|| {
        let mut buffer = Buffer::owned(blocks * BLOCK);
        if let Some(data) = data {
            buffer.bytes_mut().fill(0xEE);
            buffer.bytes_mut()[skip..skip + length].copy_from_slice(data);
        }
        buffer
    });
    ShardRequest {
        token: Token(9),
        shard: ShardIndex(0),
        view,
        kind,
        first: ShareBlock(first as u64),
        blocks: blocks as u32,
        skip_bytes: skip as u32,
        length_bytes: length as u32,
        buffer,
        since_ns: 0,
    }
}
