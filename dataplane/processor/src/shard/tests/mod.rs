//! A shard over a device in memory: one request at a time, to pin down what each part promises. Schedules, crashes and
//! faults are the simulator's.

mod adverse;
mod background;
mod work;

use std::collections::VecDeque;

use super::*;
use crate::format::{PoolSpec, make_pool};
use crate::ids::{ShareBlock, SnapshotId, TimeStamp};
use crate::ports::{Full, MemoryTail, OpenDevice, Transferred};
use crate::processor::Processor;
use crate::request::{Token, View};

/// One device in memory; operations complete in the order in which they were submitted.
#[derive(Debug, Default)]
pub(super) struct MemoryDevice {
    pub(super) bytes: Vec<u8>,
    done: VecDeque<Box<Operation>>,
    /// Operations of this kind do not come back.
    held: Option<OperationKind>,
    waiting: Vec<Box<Operation>>,
    /// Operations of this kind fail.
    failing: Option<OperationKind>,
    /// Writes since the last flush, if they are remembered.
    unflushed: Option<Vec<Unflushed>>,
}

/// A write: where, what was there, what came.
type Unflushed = (usize, Vec<u8>, Vec<u8>);

impl MemoryDevice {
    fn run(&mut self, operation: &mut Operation) {
        for transfer in &operation.transfers {
            let mut at = transfer.offset_bytes as usize;
            let first = transfer.first_segment as usize;
            for segment in &operation.segments[first..first + transfer.segment_count as usize] {
                let (from, length) = (segment.offset_bytes as usize, segment.length_bytes as usize);
                let buffer = &mut operation.buffers[segment.buffer as usize].bytes_mut()[from..from + length];
                match operation.kind {
                    OperationKind::Read => buffer.copy_from_slice(&self.bytes[at..at + length]),
                    OperationKind::Write => {
                        if let Some(unflushed) = &mut self.unflushed {
                            unflushed.push((at, self.bytes[at..at + length].to_vec(), buffer.to_vec()));
                        }
                        self.bytes[at..at + length].copy_from_slice(buffer);
                    }
                    OperationKind::Flush | OperationKind::Discard => {}
                }
                at += length;
            }
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn submit(&mut self, mut operation: Box<Operation>) -> Result<(), Full> {
        if self.held == Some(operation.kind) {
            self.waiting.push(operation);
            return Ok(());
        }
        if operation.kind == OperationKind::Flush
            && let Some(unflushed) = &mut self.unflushed
        {
            unflushed.clear();
        }
        if self.failing == Some(operation.kind) {
            operation.result = Err(DeviceError::Os(5));
        } else {
            self.run(&mut operation);
        }
        self.done.push_back(operation);
        Ok(())
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
    spare: Vec<Buffer>,
    dry: bool,
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

const VOLUME: VolumeId = VolumeId(1);
const LIVE: View = View {
    volume: VOLUME,
    snapshot: None,
};

struct Rig {
    layout: Layout,
    options: ShardOptions,
    processor: Processor<MemoryDevice, MemoryTail>,
    pool: Pool,
    outbox: Outbox,
    now: Now,
    tickets: u64,
}

fn options() -> ShardOptions {
    ShardOptions {
        map_cache_pages: 256,
        ..ShardOptions::default()
    }
}

impl Rig {
    fn new(pool_bytes: usize) -> Self {
        Self::with(pool_bytes, options())
    }

    fn with(pool_bytes: usize, options: ShardOptions) -> Self {
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

    fn open(layout: Layout, mut device: MemoryDevice, tail: MemoryTail, options: ShardOptions) -> Self {
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
    fn kill(self) -> Self {
        let (mut device, mut shards) = self.processor.into_parts(&mut Pool::default());
        device = MemoryDevice {
            bytes: device.bytes,
            ..MemoryDevice::default()
        };
        let tail = shards.pop().expect("one shard").into_tail();
        Self::open(self.layout, device, tail, self.options)
    }

    /// Loses the power: of the writes that were not flushed those stay that `stays` says, by their place; the tail is
    /// gone.
    fn cut_power(self, stays: impl Fn(usize) -> bool) -> Self {
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

    fn turn(&mut self) {
        self.now.monotonic_ns += 1_000;
        self.now.wall_ns += 1_000;
        self.processor.poll(self.now, &mut self.pool, &mut self.outbox);
    }

    fn send(&mut self, request: ShardRequest) {
        self.processor.submit(request, self.now).expect("room");
    }

    fn ask(
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

    fn write(&mut self, offset: usize, data: &[u8]) {
        let answer = self.ask(
            LIVE,
            RequestKind::Write { fua: false },
            offset,
            data.len(),
            Some(data),
        );
        assert_eq!(answer.result, Ok(()));
    }

    fn read(&mut self, view: View, offset: usize, length: usize) -> Vec<u8> {
        let answer = self.ask(view, RequestKind::Read, offset, length, None);
        assert_eq!(answer.result, Ok(()));
        let skip = offset % BLOCK;
        answer.buffer.expect("a buffer").bytes()[skip..skip + length].to_vec()
    }

    fn command(&mut self, command: ShardCommand) -> EventKind {
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

    fn snapshot(&mut self, number: u64) -> View {
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

    fn settle(&mut self) {
        for _ in 0..100_000 {
            self.turn();
            if self.processor.is_quiet() {
                return;
            }
        }
        panic!("never quiet");
    }

    fn used_blocks(&mut self) -> u64 {
        // Twice: the first frees what was waiting, the second frees what the first replaced.
        for _ in 0..2 {
            assert_eq!(self.command(ShardCommand::Checkpoint), EventKind::Done);
            self.settle();
        }
        let status = self.processor.shards()[0].status();
        status.used_blocks - status.pending_blocks
    }
}

const BLOCK: usize = crate::BLOCK_BYTES;

fn request(view: View, kind: RequestKind, offset: usize, length: usize, data: Option<&[u8]>) -> ShardRequest {
    let first = offset / BLOCK;
    let blocks = (offset + length).div_ceil(BLOCK) - first;
    let skip = offset % BLOCK;
    let buffer = matches!(
        kind,
        RequestKind::Read | RequestKind::Write { .. } | RequestKind::BlockStatus
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
    }
}

#[test]
fn what_was_written_is_read_and_holes_are_zero() {
    let mut rig = Rig::new(64 << 20);
    rig.write(3 * BLOCK, &[7; 2 * BLOCK]);
    assert_eq!(rig.read(LIVE, 3 * BLOCK, 2 * BLOCK), [7; 2 * BLOCK]);
    assert_eq!(rig.read(LIVE, 0, BLOCK), [0; BLOCK]);
    assert_eq!(rig.read(LIVE, 2 * BLOCK, 2 * BLOCK)[..BLOCK], [0; BLOCK]);
}

#[test]
fn a_partial_write_keeps_the_rest_of_its_blocks() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; 4 * BLOCK]);
    rig.write(BLOCK + 512, &[2; BLOCK]);
    rig.write(9 * BLOCK + 1024, &[3; 512]);
    let read = rig.read(LIVE, 0, 4 * BLOCK);
    assert_eq!(read[..BLOCK + 512], [1; BLOCK + 512]);
    assert_eq!(read[BLOCK + 512..2 * BLOCK + 512], [2; BLOCK]);
    assert_eq!(read[2 * BLOCK + 512..], [1; 2 * BLOCK - 512]);
    let fresh = rig.read(LIVE, 9 * BLOCK, BLOCK);
    assert_eq!((fresh[1023], fresh[1024], fresh[1535], fresh[1536]), (0, 3, 3, 0));
}

#[test]
fn acknowledged_writes_survive_a_kill_flushed_or_not() {
    let mut rig = Rig::new(64 << 20);
    for i in 0..200 {
        rig.write(i * BLOCK, &[i as u8 + 1; BLOCK]);
    }
    for round in 0..3 {
        rig = rig.kill();
        for i in 0..200 {
            assert_eq!(
                rig.read(LIVE, i * BLOCK, BLOCK),
                [i as u8 + 1; BLOCK],
                "block {i}, round {round}"
            );
        }
        rig.write(500 * BLOCK, &[round; BLOCK]);
    }
}

#[test]
fn a_snapshot_keeps_its_content_through_overwrites_discards_kills_and_checkpoints() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; 8 * BLOCK]);
    let before = rig.snapshot(1);
    rig.write(BLOCK, &[2; BLOCK]);
    let discarded = rig.ask(
        LIVE,
        RequestKind::Discard { fua: false },
        4 * BLOCK,
        2 * BLOCK,
        None,
    );
    assert_eq!(discarded.result, Ok(()));
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    for i in 0..600 {
        rig.write((i % 8) * BLOCK, &[i as u8; BLOCK]);
    }
    rig = rig.kill();
    assert_eq!(rig.read(before, 0, 8 * BLOCK), [1; 8 * BLOCK]);
    assert_eq!(rig.read(LIVE, 0, BLOCK), [(592 % 256) as u8; BLOCK]);
    let refused = rig.ask(
        before,
        RequestKind::Write { fua: false },
        0,
        BLOCK,
        Some(&[9; BLOCK]),
    );
    assert_eq!(refused.result, Err(RequestError::ReadOnly));
}

#[test]
fn deleting_snapshots_in_any_order_gives_all_their_space_back() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3], [2, 3, 1]] {
        let mut rig = Rig::new(64 << 20);
        for i in 0..64 {
            rig.write(i * 40 * BLOCK, &[1; BLOCK]);
        }
        let baseline = rig.used_blocks();
        for snapshot in 1..=3u64 {
            rig.snapshot(snapshot);
            for i in 0..64 {
                if (i as u64).is_multiple_of(snapshot + 1) {
                    rig.write(i * 40 * BLOCK, &[snapshot as u8 + 1; BLOCK]);
                }
            }
        }
        assert!(rig.used_blocks() > baseline + 60);
        for snapshot in order {
            let delete = ShardCommand::DeleteSnapshot {
                volume: VOLUME,
                snapshot: SnapshotId(snapshot),
            };
            assert_eq!(rig.command(delete), EventKind::Done);
            rig.settle();
            rig = rig.kill();
        }
        rig.settle();
        assert_eq!(rig.used_blocks(), baseline, "order {order:?}");
    }
}

#[test]
fn a_deleted_volume_gives_everything_back() {
    let mut rig = Rig::new(64 << 20);
    let baseline = rig.used_blocks();
    let other = View {
        volume: VolumeId(2),
        snapshot: None,
    };
    let create = ShardCommand::CreateVolume {
        volume: VolumeId(2),
        share_blocks: 1 << 16,
    };
    assert_eq!(rig.command(create), EventKind::Done);
    for i in 0..300 {
        let data = [i as u8; BLOCK];
        let answer = rig.ask(
            other,
            RequestKind::Write { fua: false },
            i * 7 * BLOCK,
            BLOCK,
            Some(&data),
        );
        assert_eq!(answer.result, Ok(()));
    }
    assert!(rig.used_blocks() > baseline + 300);
    assert_eq!(
        rig.command(ShardCommand::DeleteVolume { volume: VolumeId(2) }),
        EventKind::Done
    );
    rig.settle();
    assert_eq!(rig.used_blocks(), baseline);
    let gone = rig.ask(other, RequestKind::Read, 0, BLOCK, None);
    assert_eq!(gone.result, Err(RequestError::NotFound));
}

#[test]
fn a_full_pool_says_so_still_reads_and_discarding_makes_room() {
    let mut rig = Rig::new(16 << 20);
    let mut written = 0;
    let full = loop {
        let data = [written as u8; 16 * BLOCK];
        let offset = written * 16 * BLOCK;
        let answer = rig.ask(
            LIVE,
            RequestKind::Write { fua: false },
            offset,
            data.len(),
            Some(&data),
        );
        match answer.result {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, RequestError::NoSpace);
    assert!(written > 100, "{written}");
    for i in 0..written {
        assert_eq!(rig.read(LIVE, i * 16 * BLOCK, BLOCK), [i as u8; BLOCK]);
    }
    let discarded = rig.ask(
        LIVE,
        RequestKind::Discard { fua: false },
        0,
        64 * 16 * BLOCK,
        None,
    );
    assert_eq!(discarded.result, Ok(()));
    for i in 0..60 {
        rig.write(i * 16 * BLOCK, &[0x55; 16 * BLOCK]);
    }
    rig = rig.kill();
    assert_eq!(rig.read(LIVE, 0, BLOCK), [0x55; BLOCK]);
}

#[test]
fn a_shrunk_volume_reads_zeros_when_it_grows_again() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    rig.write(5000 * BLOCK, &[2; BLOCK]);
    for share_blocks in [1000, 1 << 20] {
        let resize = ShardCommand::ResizeVolume {
            volume: VOLUME,
            share_blocks,
        };
        assert_eq!(rig.command(resize), EventKind::Done);
        rig = rig.kill();
    }
    assert_eq!(rig.read(LIVE, 0, BLOCK), [1; BLOCK]);
    assert_eq!(rig.read(LIVE, 5000 * BLOCK, BLOCK), [0; BLOCK]);
}

#[test]
fn rot_is_an_error_and_never_data() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[0xAB; BLOCK]);
    rig.settle();
    let needle = [0xAB; BLOCK];
    let device = rig.processor.device_mut();
    let place = device
        .bytes
        .chunks_exact(BLOCK)
        .position(|block| block == needle)
        .expect("the block");
    device.bytes[place * BLOCK + 100] ^= 1;
    let answer = rig.ask(LIVE, RequestKind::Read, 0, BLOCK, None);
    assert_eq!(answer.result, Err(RequestError::Corrupt));
}

#[test]
fn a_hold_ends_at_its_deadline_without_a_coordinator() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    let snapshot = SnapshotId(5);
    rig.command(ShardCommand::Prepare {
        snapshot,
        volumes: vec![VOLUME],
    });
    let deadline_ns = rig.now.monotonic_ns + 50_000;
    rig.command(ShardCommand::Cut {
        snapshot,
        time_stamp: TimeStamp(1),
        deadline_ns,
    });
    rig.send(request(
        LIVE,
        RequestKind::Write { fua: false },
        0,
        BLOCK,
        Some(&[2; BLOCK]),
    ));
    let answered_at = loop {
        rig.turn();
        if rig.outbox.answers.pop().is_some() {
            break rig.now.monotonic_ns;
        }
    };
    assert!((deadline_ns..deadline_ns + 2_000).contains(&answered_at));
    let persisted = rig.command(ShardCommand::Persist { snapshot });
    assert!(matches!(persisted, EventKind::Refused { .. }));
    rig.settle();
    assert_eq!(
        rig.command(ShardCommand::ListSnapshots { volume: VOLUME }),
        EventKind::Snapshots(Vec::new())
    );
}

#[test]
fn reads_of_older_data_are_not_held_and_reads_of_newer_data_are() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    rig.write(BLOCK, &[1; BLOCK]);
    let snapshot = SnapshotId(5);
    rig.command(ShardCommand::Prepare {
        snapshot,
        volumes: vec![VOLUME],
    });
    rig.command(ShardCommand::Cut {
        snapshot,
        time_stamp: TimeStamp(1),
        deadline_ns: u64::MAX,
    });
    rig.send(request(
        LIVE,
        RequestKind::Write { fua: false },
        0,
        BLOCK,
        Some(&[2; BLOCK]),
    ));
    for _ in 0..10 {
        rig.turn();
    }
    assert!(rig.outbox.answers.is_empty(), "the acknowledgement is held");
    assert_eq!(rig.read(LIVE, BLOCK, BLOCK), [1; BLOCK]);
    rig.send(request(LIVE, RequestKind::Read, 0, BLOCK, None));
    for _ in 0..10 {
        rig.turn();
    }
    assert!(rig.outbox.answers.is_empty(), "the read of newer data is held");
    let EventKind::Released(figures) = rig.command(ShardCommand::Release { snapshot }) else {
        panic!("released")
    };
    assert_eq!(figures.answers_held, 2);
    assert_eq!(rig.outbox.answers.len(), 2);
}

#[test]
fn block_status_lists_what_is_mapped() {
    let mut rig = Rig::new(64 << 20);
    rig.write(10 * BLOCK, &[1; 5 * BLOCK]);
    rig.write(700 * BLOCK, &[1; BLOCK]);
    let answer = rig.ask(LIVE, RequestKind::BlockStatus, 0, 2000 * BLOCK, None);
    let bytes = &answer.buffer.expect("a buffer").bytes()[..answer.valid_bytes as usize].to_vec();
    let words: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes(w.try_into().expect("four")))
        .collect();
    assert_eq!(words, [10, 1, 5, 0, 685, 1, 1, 0, 1299, 1]);
}
