//! Mirrors over sides in memory: cases by hand in `requests.rs` and `copying.rs`, random histories in `model.rs`.

mod copying;
mod device;
mod model;
mod requests;

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::BLOCK_BYTES;
use crate::ports::{OperationKind, Segment, Transfer};
use device::{Pool, Port, Room};

/// Shards of the layouts of these tests.
const SHARDS: u16 = 2;
const SLICE_BLOCKS: u64 = 1024;

fn layout(devices: usize) -> Layout {
    let sizes = vec![256 + 1 + u64::from(SHARDS) * SLICE_BLOCKS; devices];
    let layout = Layout::plan([7; 16], SHARDS, &sizes).expect("large enough");
    layout.with_mirrors().expect("few enough")
}

/// An operation of one transfer; a flush if it is empty.
fn operation(
    kind: OperationKind,
    shard: u16,
    tag: u64,
    device: u8,
    first: u64,
    count: u64,
) -> Box<Operation> {
    let mut operation = Operation::new();
    operation.kind = kind;
    operation.shard = ShardIndex(shard);
    operation.tag = tag;
    operation.transfers.push(Transfer {
        device: DeviceIndex(device),
        offset_bytes: first * BLOCK_BYTES as u64,
        length_bytes: count * BLOCK_BYTES as u64,
        first_segment: 0,
        segment_count: u32::from(count > 0),
    });
    if count > 0 {
        let length_bytes = count as u32 * BLOCK_BYTES as u32;
        operation
            .buffers
            .push(crate::ports::Buffer::owned(length_bytes as usize));
        operation.segments.push(Segment {
            buffer: 0,
            offset_bytes: 0,
            length_bytes,
        });
    }
    operation
}

fn put_stamp(operation: &mut Operation, block: usize, stamp: u64) {
    let at = block * BLOCK_BYTES;
    operation.buffers[0].bytes_mut()[at..at + 8].copy_from_slice(&stamp.to_le_bytes());
}

fn stamps(operation: &Operation) -> Vec<u64> {
    let blocks = operation.buffers[0].bytes().chunks_exact(BLOCK_BYTES);
    blocks
        .map(|block| u64::from_le_bytes(block[..8].try_into().expect("eight bytes")))
        .collect()
}

/// One processor with all shards.
struct Rig {
    room: Rc<RefCell<Room>>,
    layout: Layout,
    mirrors: Mirrors<Port>,
    pool: Pool,
    now_ns: u64,
    tags: u64,
}

const FIRST: SideAt = SideAt {
    device: DeviceIndex(0),
    side: Side::First,
};
const SECOND: SideAt = SideAt {
    device: DeviceIndex(0),
    side: Side::Second,
};

impl Rig {
    fn new(devices: usize) -> Self {
        let layout = layout(devices);
        let room = Room::new(devices * 2, layout.devices[0].size_blocks);
        let sides = vec![[SideState::InSync; 2]; devices];
        Self::over(room, layout, &sides, Vec::new())
    }

    fn over(room: Rc<RefCell<Room>>, layout: Layout, sides: &[[SideState; 2]], stale: Vec<StaleAt>) -> Self {
        let port = Port {
            room: Rc::clone(&room),
            index: 0,
        };
        let shards: Vec<ShardIndex> = (0..SHARDS).map(ShardIndex).collect();
        Self {
            mirrors: Mirrors::new(port, &layout, sides, &shards, stale),
            room,
            layout,
            pool: Pool::default(),
            now_ns: 0,
            tags: 0,
        }
    }

    fn block(&self, shard: u16, device: usize, block: u64) -> u64 {
        self.layout.slice_start_block(shard, device) + block
    }

    /// Submits; gives the tag.
    fn submit(&mut self, mut operation: Box<Operation>) -> u64 {
        self.tags += 1;
        operation.tag = self.tags;
        self.mirrors.submit(operation).expect("room");
        self.tags
    }

    fn write(&mut self, shard: u16, block: u64, stamp: u64) -> u64 {
        let mut write = operation(OperationKind::Write, shard, 0, 0, self.block(shard, 0, block), 1);
        put_stamp(&mut write, 0, stamp);
        self.submit(write)
    }

    fn repair(&mut self, shard: u16, block: u64, stamp: u64, side: Side) -> u64 {
        let mut write = operation(OperationKind::Write, shard, 0, 0, self.block(shard, 0, block), 1);
        write.side = Some(side);
        put_stamp(&mut write, 0, stamp);
        self.submit(write)
    }

    fn read(&mut self, shard: u16, block: u64, side: Option<Side>) -> u64 {
        let mut read = operation(OperationKind::Read, shard, 0, 0, self.block(shard, 0, block), 1);
        read.side = side;
        self.submit(read)
    }

    fn flush(&mut self) -> u64 {
        self.submit(operation(OperationKind::Flush, 0, 0, 0, 0, 0))
    }

    /// Takes a turn without ending anything below.
    fn turn(&mut self) -> Vec<Box<Operation>> {
        let now = Now {
            monotonic_ns: self.now_ns,
            wall_ns: 0,
        };
        self.mirrors.turn(now, &mut self.pool);
        let mut completed = Vec::new();
        self.mirrors.poll(&mut completed);
        completed
    }

    /// Goes on until nothing more happens.
    fn run(&mut self) -> Vec<Box<Operation>> {
        let mut completed = self.turn();
        while !self.room.borrow().in_flight.is_empty() || self.mirrors.has_ready_work() {
            self.room.borrow_mut().finish_all();
            completed.extend(self.turn());
        }
        assert!(
            self.pool.outside <= 1,
            "one buffer is kept, and nothing held without a turn to come"
        );
        completed
    }

    fn one(&mut self) -> Box<Operation> {
        let mut completed = self.run();
        assert_eq!(completed.len(), 1, "{completed:?}");
        completed.remove(0)
    }

    fn stamp(&self, below: usize, shard: u16, block: u64) -> u64 {
        self.room.borrow().disks[below].stamp(self.block(shard, 0, block))
    }

    fn lose(&mut self, at: SideAt) {
        self.room.borrow_mut().lose(usize::from(at.below().0));
    }

    /// The second side fails a write, and the labels say so.
    fn without_second(&mut self) {
        self.lose(SECOND);
        self.write(0, 0, 1);
        assert!(self.run().is_empty());
        assert!(matches!(
            self.mirrors.take_notice(),
            Some(MirrorNotice::SideFailed { at: SECOND, .. })
        ));
        self.mirrors.out(SECOND, 5);
        assert_eq!(self.one().result, Ok(()));
    }

    fn come_back(&mut self, at: SideAt) {
        let disk = &mut self.room.borrow_mut().disks[usize::from(at.below().0)];
        disk.is_gone = false;
        disk.lose_power(|| false);
    }

    fn stale(&self, at: SideAt, shard: u16, episode: u64) -> Option<Vec<u64>> {
        let mut port = Port {
            room: Rc::clone(&self.room),
            index: 9,
        };
        load_stale(&mut port, &self.layout, ShardIndex(shard), at, episode).words
    }

    fn status(&self, at: SideAt) -> MirrorStatus {
        let status = self.mirrors.status();
        *status.iter().find(|status| status.at == at).expect("every side")
    }
}
