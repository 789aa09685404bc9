//! Mirrors over sides in memory: cases by hand here, random histories in `model.rs`.

mod device;
mod model;

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

#[test]
fn a_write_goes_to_both_sides_and_a_read_to_one() {
    let mut rig = Rig::new(2);
    let tag = rig.write(1, 10, 77);
    let written = rig.one();
    assert_eq!((written.tag, written.result, written.side), (tag, Ok(()), None));
    assert_eq!(
        (written.transfers.len(), written.transfers[0].device),
        (1, DeviceIndex(0))
    );
    assert_eq!([rig.stamp(0, 1, 10), rig.stamp(1, 1, 10)], [77, 77]);
    let mut served = [0; 2];
    for _ in 0..10 {
        rig.read(1, 10, None);
        let read = rig.one();
        assert_eq!(stamps(&read), [77]);
        served[read.side.expect("there is another").index()] += 1;
    }
    assert_eq!(served, [5, 5], "both have a share");
    rig.read(1, 10, Some(Side::Second));
    assert_eq!(rig.one().side, Some(Side::Second));
    assert!(rig.mirrors.is_quiet());
    // A repair goes to one.
    let mut repair = operation(OperationKind::Write, 1, 0, 0, rig.block(1, 0, 10), 1);
    put_stamp(&mut repair, 0, 78);
    repair.side = Some(Side::First);
    rig.submit(repair);
    assert_eq!(rig.one().result, Ok(()));
    assert_eq!([rig.stamp(0, 1, 10), rig.stamp(1, 1, 10)], [78, 77]);
}

#[test]
fn the_less_busy_side_is_asked() {
    let mut rig = Rig::new(1);
    for _ in 0..4 {
        rig.read(0, 1, Some(Side::Second));
    }
    for _ in 0..4 {
        rig.read(0, 1, None);
    }
    let of_first = |(_, read, _): &&(usize, Box<Operation>, u64)| read.transfers[0].device.0 == 0;
    assert_eq!(rig.room.borrow().in_flight.iter().filter(of_first).count(), 4);
    assert_eq!(rig.run().len(), 8);
}

#[test]
fn a_full_queue_gives_the_operation_back_as_it_was() {
    let mut rig = Rig::new(1);
    rig.room.borrow_mut().depth = 0;
    for kind in [OperationKind::Write, OperationKind::Read, OperationKind::Flush] {
        let count = u64::from(kind != OperationKind::Flush);
        let mut sent = operation(kind, 1, 99, 0, rig.block(1, 0, 3) * count, count);
        sent.side = None;
        let Err(Full(back)) = rig.mirrors.submit(sent) else {
            panic!("there is no room");
        };
        assert_eq!(
            (back.tag, back.kind, back.side, back.transfers.len()),
            (99, kind, None, 1)
        );
        assert_eq!(back.transfers[0].device, DeviceIndex(0));
    }
    assert!(rig.mirrors.is_quiet());
}

#[test]
fn an_answer_that_rests_on_one_side_waits_for_the_labels() {
    let mut rig = Rig::new(1);
    rig.lose(SECOND);
    rig.write(0, 3, 7);
    assert!(rig.run().is_empty(), "kept back");
    assert!(!rig.mirrors.is_quiet());
    let notice = rig.mirrors.take_notice();
    let error = DeviceError::Gone;
    assert_eq!(notice, Some(MirrorNotice::SideFailed { at: SECOND, error }));
    assert_eq!(rig.mirrors.take_notice(), None, "told once");
    // What comes meanwhile waits too, but reads do not.
    rig.write(1, 70, 8);
    rig.flush();
    rig.read(0, 3, None);
    let read = rig.one();
    assert_eq!(
        (read.kind, stamps(&read), read.side),
        (OperationKind::Read, vec![7], None)
    );
    rig.mirrors.out(SECOND, 5);
    let answered = rig.run();
    assert_eq!(answered.len(), 3);
    assert!(answered.iter().all(|operation| operation.result.is_ok()));
    assert_eq!([rig.stamp(0, 0, 3), rig.stamp(0, 1, 70)], [7, 8]);
    assert_eq!(rig.status(SECOND).state, SideState::Out);
    // Region 1 of shard 1, and what lies ahead of it.
    assert_eq!(rig.stale(SECOND, 0, 5).expect("a page")[0] & 1, 1);
    assert_eq!(rig.stale(SECOND, 1, 5).expect("a page")[0] & 2, 2);
    assert_eq!(rig.stale(SECOND, 1, 6), None, "of another time");
}

#[test]
fn when_both_sides_fail_the_error_is_told() {
    let mut rig = Rig::new(1);
    for disk in &mut rig.room.borrow_mut().disks {
        disk.fails = Some(OperationKind::Write);
    }
    rig.write(0, 3, 7);
    assert_eq!(rig.one().result, Err(DeviceError::Os(5)));
    // The last one fails.
    let mut alone = Rig::new(1);
    alone.without_second();
    alone.room.borrow_mut().disks[0].fails = Some(OperationKind::Flush);
    alone.flush();
    assert_eq!(alone.one().result, Err(DeviceError::Os(5)));
    assert_eq!(alone.mirrors.take_notice(), None, "there is nothing to change");
    alone.room.borrow_mut().disks[0].fails = Some(OperationKind::Write);
    alone.write(1, 500, 1);
    assert_eq!(alone.one().result, Err(DeviceError::Os(5)), "nor can it be noted");
    alone.room.borrow_mut().disks[0].fails = None;
    alone.write(1, 500, 1);
    assert_eq!(alone.one().result, Ok(()), "noted at the second try");
}

#[test]
fn labels_that_cannot_be_written_end_the_waiting() {
    let mut rig = Rig::new(1);
    rig.lose(SECOND);
    rig.write(0, 3, 7);
    assert!(rig.run().is_empty());
    rig.flush();
    rig.mirrors.lost(DeviceIndex(0), DeviceError::Os(28));
    let answers = rig.run();
    assert_eq!(answers.len(), 2);
    assert!(
        answers
            .iter()
            .all(|operation| operation.result == Err(DeviceError::Os(28)))
    );
    rig.read(0, 3, None);
    assert_eq!(rig.one().result, Ok(()));
}

#[test]
fn the_labels_decide_if_two_processors_saw_different_sides_fail() {
    let mut rig = Rig::new(1);
    rig.lose(SECOND);
    rig.write(0, 3, 7);
    assert!(rig.run().is_empty());
    // Another processor saw the first side fail, and it is that one that the labels say is out.
    rig.come_back(SECOND);
    rig.mirrors.out(FIRST, 5);
    assert_eq!(
        rig.one().result,
        Err(DeviceError::Gone),
        "the side that stays lacks it"
    );
    rig.write(0, 3, 8);
    assert_eq!(rig.one().result, Ok(()));
    assert_eq!(rig.stamp(1, 0, 3), 8);
}

#[test]
fn what_one_side_cannot_read_the_other_answers_and_the_shard_is_told() {
    let mut rig = Rig::new(1);
    rig.write(0, 3, 7);
    rig.run();
    let block = rig.block(0, 0, 3);
    let error = DeviceError::Os(5);
    rig.room.borrow_mut().disks[1].unreadable.insert(block);
    rig.read(0, 3, Some(Side::Second));
    let read = rig.one();
    assert_eq!(
        (read.result, stamps(&read), read.kind),
        (Ok(()), vec![7], OperationKind::Read)
    );
    assert_eq!(
        (read.side, &read.failures[..]),
        (Some(Side::Second), &[(0, error)][..])
    );
    // Nothing is written that nobody has looked at.
    assert!(rig.room.borrow().disks[1].unreadable.contains(&block));
    assert_eq!(rig.mirrors.take_notice(), None);
    assert_eq!(rig.status(SECOND).repaired_reads, 0);
    // The shard has, and writes it.
    rig.repair(0, 3, 7, Side::Second);
    assert_eq!(rig.one().result, Ok(()));
    assert!(rig.room.borrow().disks[1].unreadable.is_empty());
    assert_eq!(rig.status(SECOND).repaired_reads, 1);
    // Both cannot.
    for disk in &mut rig.room.borrow_mut().disks {
        disk.unreadable.insert(block);
    }
    rig.read(0, 3, None);
    let read = rig.one();
    assert_eq!((read.result, &read.failures[..]), (Err(error), &[][..]));
    // It cannot be written back: that side is out.
    rig.room.borrow_mut().disks[1].fails = Some(OperationKind::Write);
    rig.repair(0, 3, 7, Side::Second);
    assert_eq!(rig.one().result, Err(error));
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::SideFailed { at: SECOND, error })
    );
}

#[test]
fn a_read_that_a_side_fails_goes_to_the_other_at_once_and_back_only_if_that_fails_too() {
    let mut rig = Rig::new(1);
    rig.write(0, 3, 7);
    rig.run();
    let block = rig.block(0, 0, 3);
    let asked = |rig: &Rig| {
        let room = rig.room.borrow();
        let reads = room.in_flight.iter().map(|(_, read, _)| {
            assert_eq!(read.kind, OperationKind::Read);
            (read.transfers[0].device.0, read.is_tried_once)
        });
        reads.collect::<Vec<_>>()
    };
    let fail = |rig: &Rig, below: usize| {
        let mut room = rig.room.borrow_mut();
        room.disks[below].unreadable.insert(block);
        room.finish_all();
        room.disks[below].unreadable.clear();
    };
    rig.read(0, 3, Some(Side::Second));
    assert_eq!(asked(&rig), [(1, true)], "nobody waits for its tries");
    fail(&rig, 1);
    assert!(rig.turn().is_empty());
    assert_eq!(asked(&rig), [(0, false)], "there is no third side");
    fail(&rig, 0);
    assert!(rig.turn().is_empty());
    assert_eq!(asked(&rig), [(1, false)], "now it may take its time");
    let read = rig.one();
    assert_eq!((read.result, stamps(&read)), (Ok(()), vec![7]));
    assert_eq!(&read.failures[..], &[][..], "it has it, after all");
    // Alone there is nothing else to ask.
    rig.without_second();
    rig.run();
    rig.read(0, 3, None);
    assert_eq!(asked(&rig), [(0, false)]);
    assert_eq!(rig.one().result, Ok(()));
}

/// The second side is lost, comes back and joins while something that was asked of it before has not ended.
fn second_joins_again(rig: &mut Rig) {
    let old = rig.room.borrow_mut().in_flight.pop().expect("in flight");
    rig.lose(SECOND);
    rig.mirrors.out(SECOND, 5);
    rig.run();
    rig.come_back(SECOND);
    rig.mirrors.resync(SECOND);
    rig.run();
    rig.mirrors.joined(SECOND);
    assert_eq!(rig.status(SECOND).state, SideState::InSync);
    rig.room.borrow_mut().in_flight.push((old.0, old.1, 0b10));
}

#[test]
fn what_a_side_failed_before_it_joined_again_is_not_held_against_it() {
    let mut rig = Rig::new(1);
    rig.write(1, 3, 7);
    rig.run();
    rig.flush();
    second_joins_again(&mut rig);
    // And now the first side is lost, on which it had not ended either.
    rig.lose(FIRST);
    assert!(rig.run().is_empty());
    rig.mirrors.take_notice();
    assert!(matches!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::SideFailed { at: FIRST, .. })
    ));
    rig.mirrors.out(FIRST, 6);
    assert_eq!(
        rig.one().result,
        Ok(()),
        "the second had flushed all of it before it joined"
    );

    let mut rig = Rig::new(1);
    rig.write(1, 3, 7);
    rig.run();
    rig.read(1, 3, Some(Side::Second));
    second_joins_again(&mut rig);
    rig.lose(FIRST);
    rig.mirrors.out(FIRST, 6);
    let read = rig.one();
    assert_eq!(
        (read.result, stamps(&read)),
        (Ok(()), vec![7]),
        "it is asked again"
    );
}

#[test]
fn what_a_side_says_after_it_went_out_is_not_believed() {
    let mut rig = Rig::new(1);
    rig.write(1, 3, 7);
    rig.run();
    rig.read(1, 3, Some(Side::Second));
    rig.mirrors.out(SECOND, 5);
    // It is there again, without what it had not flushed, and only now does what it was asked.
    rig.come_back(SECOND);
    assert_eq!(rig.stamp(1, 1, 3), 0);
    rig.mirrors.resync(SECOND);
    assert_eq!(stamps(&rig.one()), [7]);
}

#[test]
fn a_region_is_noted_for_good_before_it_is_written() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.run();
    rig.write(0, 700, 9);
    // The page, then its flush, then the write.
    rig.turn();
    let kinds = |rig: &Rig| -> Vec<OperationKind> {
        rig.room
            .borrow()
            .in_flight
            .iter()
            .map(|(_, operation, _)| operation.kind)
            .collect()
    };
    assert_eq!(kinds(&rig), [OperationKind::Write]);
    assert_eq!(
        rig.room.borrow().in_flight[0].1.transfers[0].offset_bytes,
        BLOCK_BYTES as u64
    );
    rig.room.borrow_mut().finish_all();
    rig.turn();
    assert_eq!(kinds(&rig), [OperationKind::Flush]);
    rig.room.borrow_mut().finish_all();
    rig.turn();
    let offset_bytes = rig.room.borrow().in_flight[0].1.transfers[0].offset_bytes;
    assert_eq!(offset_bytes, rig.block(0, 0, 700) * BLOCK_BYTES as u64);
    rig.room.borrow_mut().finish_all();
    assert_eq!(rig.turn().len(), 1);
    // The next writes there need no page.
    rig.write(0, 701, 9);
    rig.write(0, 64 * 12, 9);
    assert_eq!(rig.room.borrow().in_flight.len(), 2);
    rig.run();
    rig.mirrors.give_back(&mut rig.pool);
    assert_eq!(rig.pool.outside, 0);
}

#[test]
fn a_side_that_comes_back_gets_what_it_lacks_and_joins() {
    let mut rig = Rig::new(1);
    rig.write(1, 900, 3);
    rig.run();
    rig.flush();
    rig.run();
    rig.write(1, 100, 4);
    rig.run();
    rig.without_second();
    for block in [5, 300, 301, 1023] {
        rig.write(0, block, block);
        rig.run();
    }
    rig.come_back(SECOND);
    assert_eq!(rig.stamp(1, 1, 100), 0, "it was not flushed");
    rig.mirrors.resync(SECOND);
    // Reads go on from the first alone; writes go to both.
    rig.read(0, 300, Some(Side::Second));
    rig.write(0, 64 * 9, 11);
    let completed = rig.run();
    assert_eq!(completed.len(), 2);
    let read = completed
        .iter()
        .find(|operation| operation.kind == OperationKind::Read);
    assert_eq!(
        read.map(|read| (stamps(read), read.side)),
        Some((vec![300], None))
    );
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
    let status = rig.status(SECOND);
    assert_eq!(
        (status.state, status.regions_left, status.bytes_left),
        (SideState::Resync, 0, 0)
    );
    // Regions 0, 4 and 15 of shard 0, region 1 of shard 1.
    assert_eq!(status.copied_bytes, 4 * 64 * BLOCK_BYTES as u64);
    rig.mirrors.joined(SECOND);
    assert_eq!(rig.status(SECOND).state, SideState::InSync);
    for (shard, block, stamp) in [
        (0, 0, 1),
        (0, 5, 5),
        (0, 301, 301),
        (0, 1023, 1023),
        (1, 100, 4),
        (0, 576, 11),
    ] {
        assert_eq!(rig.stamp(1, shard, block), stamp);
    }
    assert_eq!(rig.stamp(1, 1, 900), 3, "it was there all the time");
    rig.read(0, 5, Some(Side::Second));
    assert_eq!(rig.one().side, Some(Side::Second));
}

#[test]
fn another_device_gets_everything() {
    let mut rig = Rig::new(1);
    rig.write(1, 900, 3);
    rig.run();
    rig.without_second();
    rig.come_back(SECOND);
    rig.mirrors.replaced(SECOND, 7);
    rig.mirrors.resync(SECOND);
    assert_eq!(
        rig.status(SECOND).bytes_left,
        2 * SLICE_BLOCKS * BLOCK_BYTES as u64
    );
    rig.run();
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
    assert_eq!(rig.stamp(1, 1, 900), 3);
}

/// What the old device lacked is not what the new one lacks, whenever the pages are read.
#[test]
fn from_the_first_page_on_another_device_lacks_everything() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(0, 300, 1);
    rig.run();
    rig.mirrors.replaced(SECOND, 7);
    rig.write(0, 301, 2);
    rig.run();
    let words = rig.stale(SECOND, 0, 7).expect("a page of this episode");
    let regions: u32 = words.iter().map(|word| word.count_ones()).sum();
    assert_eq!(u64::from(regions), SLICE_BLOCKS / 64, "all of them");
}

#[test]
fn copying_keeps_to_its_rate_and_waits_for_buffers() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(0, 500, 1);
    rig.run();
    rig.come_back(SECOND);
    // A chunk each second.
    rig.mirrors.set_rate(64 * BLOCK_BYTES as u64);
    rig.mirrors.resync(SECOND);
    rig.pool.is_dry = true;
    rig.turn();
    assert!(!rig.mirrors.has_ready_work(), "no buffer");
    rig.now_ns = rig.mirrors.next_deadline_ns().expect("to be tried again");
    rig.pool.is_dry = false;
    let begun_ns = rig.now_ns;
    rig.run();
    assert_eq!(rig.status(SECOND).regions_left, 1);
    assert_eq!(rig.mirrors.next_deadline_ns(), Some(begun_ns + 1_000_000_000));
    rig.now_ns = begun_ns + 1_000_000_000;
    rig.run();
    assert_eq!(rig.status(SECOND).regions_left, 0);
    assert!(matches!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { .. })
    ));
}

#[test]
fn writes_and_the_chunk_they_overlap_wait_for_each_other() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.run();
    rig.write(0, 1, 21);
    rig.come_back(SECOND);
    rig.mirrors.resync(SECOND);
    rig.turn();
    // The write is in flight, to the first side alone: the chunk waits for it.
    assert_eq!(rig.room.borrow().in_flight.len(), 1);
    assert!(!rig.mirrors.has_ready_work());
    // And this one for the chunk.
    rig.write(0, 2, 22);
    assert_eq!(rig.room.borrow().in_flight.len(), 1);
    rig.room.borrow_mut().finish_all();
    assert_eq!(rig.turn().len(), 1);
    rig.turn();
    assert_eq!(rig.room.borrow().in_flight[0].1.kind, OperationKind::Read);
    assert_eq!(rig.one().result, Ok(()));
    assert_eq!([rig.stamp(1, 0, 1), rig.stamp(1, 0, 2)], [21, 22]);
}

#[test]
fn without_memory_writes_are_noted_all_the_same_and_wait_for_no_chunk() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.run();
    rig.pool.is_dry = true;
    // A page each, one after the other.
    rig.write(0, 500, 1);
    rig.write(1, 500, 1);
    assert_eq!(rig.run().len(), 2);
    // Chunk and write wait for each other; without memory for the chunk the write goes on.
    rig.write(0, 1, 21);
    rig.come_back(SECOND);
    rig.mirrors.resync(SECOND);
    rig.turn();
    rig.write(0, 2, 22);
    assert_eq!(rig.run().len(), 2);
    assert_eq!(rig.status(SECOND).copied_bytes, 0);
}

#[test]
fn what_cannot_be_copied_keeps_the_side_out_until_it_can() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(0, 500, 1);
    rig.run();
    rig.come_back(SECOND);
    let block = rig.block(0, 0, 0);
    rig.room.borrow_mut().disks[0].unreadable.insert(block);
    rig.mirrors.resync(SECOND);
    rig.run();
    let told = MirrorNotice::CannotCopy {
        at: SECOND,
        offset_bytes: block * BLOCK_BYTES as u64,
        error: DeviceError::Os(5),
    };
    assert_eq!(
        (rig.mirrors.take_notice(), rig.mirrors.take_notice()),
        (Some(told), None)
    );
    assert_eq!(rig.status(SECOND).regions_left, 1, "the rest is there");
    rig.mirrors.joined(SECOND);
    assert_eq!(rig.status(SECOND).state, SideState::Resync, "nobody may say so");
    rig.room.borrow_mut().disks[0].unreadable.clear();
    rig.mirrors.resync(SECOND);
    rig.run();
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
}

#[test]
fn a_side_that_fails_again_goes_out_again() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(0, 500, 1);
    rig.run();
    rig.come_back(SECOND);
    rig.mirrors.resync(SECOND);
    rig.run();
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
    rig.lose(SECOND);
    rig.write(0, 900, 2);
    assert!(rig.run().is_empty(), "the labels may say in sync by now");
    assert!(matches!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::SideFailed { .. })
    ));
    rig.mirrors.joined(SECOND);
    assert!(rig.run().is_empty(), "too late");
    rig.mirrors.out(SECOND, 9);
    assert_eq!(rig.one().result, Ok(()));
    rig.run();
    // What was copied and flushed is not lacking, but what was written since is.
    let words = rig.stale(SECOND, 0, 9).expect("a page");
    assert_eq!(words[0] >> 14 & 1, 1);
    assert_eq!(words[0] & 1, 0);
}

#[test]
fn a_pool_goes_on_from_the_stale_pages() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(1, 640, 6);
    rig.run();
    let stale: Vec<StaleAt> = (0..SHARDS)
        .map(|shard| {
            let mut port = Port {
                room: Rc::clone(&rig.room),
                index: 9,
            };
            load_stale(&mut port, &rig.layout, ShardIndex(shard), SECOND, 5)
        })
        .collect();
    let sides = [[SideState::InSync, SideState::Out]];
    let mut again = Rig::over(Rc::clone(&rig.room), rig.layout.clone(), &sides, stale);
    again.come_back(SECOND);
    again.mirrors.resync(SECOND);
    let left = again.status(SECOND).regions_left;
    assert!(
        (2..=20).contains(&left),
        "{left}: what was noted, and not everything"
    );
    again.run();
    assert_eq!(
        again.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
    assert_eq!([again.stamp(1, 0, 0), again.stamp(1, 1, 640)], [1, 6]);
    // Without pages everything is copied.
    let all = Rig::over(Rc::clone(&rig.room), rig.layout.clone(), &sides, Vec::new());
    assert_eq!(all.status(SECOND).regions_left, 2 * SLICE_BLOCKS / 64);
}

#[test]
fn without_mirrors_everything_passes_through() {
    let layout = layout(1);
    let room = Room::new(1, layout.devices[0].size_blocks);
    let mut plain = Mirrors::plain(Port {
        room: Rc::clone(&room),
        index: 0,
    });
    let mut write = operation(OperationKind::Write, 0, 3, 0, 300, 1);
    put_stamp(&mut write, 0, 5);
    plain.submit(write).expect("room");
    room.borrow_mut().finish_all();
    let mut completed = Vec::new();
    plain.poll(&mut completed);
    assert_eq!(
        (
            completed.len(),
            completed[0].tag,
            room.borrow().disks[0].stamp(300)
        ),
        (1, 3, 5)
    );
    assert!(plain.is_quiet() && !plain.has_ready_work() && plain.status().is_empty());
    assert!(!plain.turn(Now::default(), &mut Pool::default()));
}
