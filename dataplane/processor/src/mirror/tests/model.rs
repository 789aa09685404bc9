//! The laws of the mirrors against random histories: two processors, one mirrored device, sides that are lost and come back, a
//! control plane that takes its time, crashes at any moment that drop what was not flushed, each side by itself.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use proptest::prelude::*;

use super::device::{Pool, Port, Room};
use super::{SHARDS, layout, operation, put_stamp, stamps};
use crate::ids::{DeviceIndex, Now, ShardIndex};
use crate::mirror::{MirrorNotice, Mirrors, SideAt, SideState, load_stale};
use crate::ports::{BlockDevice, OperationKind, Side};
use stillpoint_ondisk::layout::Layout;

const DEVICE: DeviceIndex = DeviceIndex(0);

fn at(side: Side) -> SideAt {
    SideAt { device: DEVICE, side }
}

/// What the control plane thinks of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    InSync,
    GoingOut,
    Out,
    Resync,
    Joining,
}

#[derive(Clone, Copy, Debug)]
enum Job {
    LabelOut(Side),
    TellOut(usize, Side),
    TellReplaced(usize, Side),
    Resync(usize, Side),
    LabelIn(Side),
    Join(usize, Side),
}

/// A block, as who writes it knows it.
#[derive(Clone, Debug, Default)]
struct Block {
    /// Flushed and acknowledged.
    durable: u64,
    /// Acknowledged.
    newest: u64,
    /// Written since it was flushed: any of these may be there after a crash.
    maybe: BTreeSet<u64>,
    /// A write is under way.
    is_busy: bool,
}

struct World {
    room: Rc<RefCell<Room>>,
    layout: Layout,
    processors: Vec<Mirrors<Port>>,
    pool: Pool,
    blocks: BTreeMap<u64, Block>,
    /// Writes under way by tag: blocks and number. Flushes: what they make durable.
    writes: BTreeMap<u64, (u64, u64, u64)>,
    flushes: BTreeMap<u64, Vec<(u64, u64)>>,
    reads: BTreeMap<u64, (u64, u64)>,
    tags: u64,
    now_ns: u64,
    /// The labels: since when each side is out.
    out_since: [Option<u64>; 2],
    sequence: u64,
    known: [Known; 2],
    jobs: VecDeque<Job>,
    resynced: BTreeSet<(usize, usize)>,
    joins: u32,
}

impl World {
    fn new() -> Self {
        let layout = layout(1);
        let mut world = Self {
            room: Room::new(2, layout.devices[0].size_blocks),
            layout,
            processors: Vec::new(),
            pool: Pool::default(),
            blocks: BTreeMap::new(),
            writes: BTreeMap::new(),
            flushes: BTreeMap::new(),
            reads: BTreeMap::new(),
            tags: 0,
            now_ns: 0,
            out_since: [None; 2],
            sequence: 1,
            known: [Known::InSync; 2],
            jobs: VecDeque::new(),
            resynced: BTreeSet::new(),
            joins: 0,
        };
        world.open();
        world
    }

    /// Opens: checks what the labels and stale pages say, makes sides in sync equal, and goes on from there.
    fn open(&mut self) {
        self.check_what_labels_say();
        let states = self.out_since.map(|since| match since {
            None => SideState::InSync,
            Some(_) => SideState::Out,
        });
        let good = Side::BOTH
            .into_iter()
            .find(|side| self.out_since[side.index()].is_none());
        let good = good.expect("one side is in sync").index();
        let mut room = self.room.borrow_mut();
        // As opening does it with what it picks.
        room.disks.iter_mut().for_each(|disk| disk.flush());
        for (&number, block) in &mut self.blocks {
            let found = room.disks[good].stamp(number);
            *block = Block {
                durable: found,
                newest: found,
                ..Block::default()
            };
            if self.out_since[1 - good].is_none() {
                let from = room.disks[good].clone();
                room.disks[1 - good].copy_from(&from, number);
            }
        }
        drop(room);
        self.processors = (0..SHARDS)
            .map(|index| {
                let shard = ShardIndex(index);
                let port = || Port {
                    room: Rc::clone(&self.room),
                    index: usize::from(index),
                };
                let stale = Side::BOTH.into_iter().filter_map(|side| {
                    let since = self.out_since[side.index()]?;
                    Some(load_stale(&mut port(), &self.layout, shard, at(side), since))
                });
                Mirrors::new(port(), &self.layout, &[states], &[shard], stale.collect())
            })
            .collect();
        self.known = self.out_since.map(|since| {
            if since.is_some() {
                Known::Out
            } else {
                Known::InSync
            }
        });
        self.jobs.clear();
        self.resynced.clear();
    }

    /// Whatever side the labels call in sync has all that was promised; and what another lacks of it is noted there.
    fn check_what_labels_say(&self) {
        let room = self.room.borrow();
        for side in Side::BOTH {
            let disk = &room.disks[side.index()];
            if self.out_since[side.index()].is_none() {
                for (number, block) in &self.blocks {
                    let found = disk.stamp(*number);
                    assert!(
                        found == block.durable || block.maybe.contains(&found),
                        "block {number} of the {side} has {found}, and was {block:?}"
                    );
                }
            }
        }
        for side in Side::BOTH {
            let Some(since) = self.out_since[side.index()] else {
                continue;
            };
            for index in 0..SHARDS {
                let mut port = Port {
                    room: Rc::clone(&self.room),
                    index: 0,
                };
                let stale = load_stale(&mut port, &self.layout, ShardIndex(index), at(side), since);
                let Some(words) = stale.words else { continue };
                let start = self.layout.slice_start_block(index, 0);
                let slice = start..start + self.layout.devices[0].slice_blocks;
                for number in self.blocks.keys().filter(|number| slice.contains(number)) {
                    let [ours, theirs] =
                        [side, side.other()].map(|side| room.disks[side.index()].stamp(*number));
                    let region = ((number - start) / 64) as usize;
                    assert!(
                        ours == theirs || words[region / 64] >> (region % 64) & 1 == 1,
                        "block {number}: the {side} has {ours} for {theirs}, and region {region} is not noted"
                    );
                }
            }
        }
    }

    fn crash(&mut self, power_cut: bool, mut seed: u64) {
        let keep = move || {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            seed >> 40 & 1 == 1
        };
        self.processors.clear();
        self.pool = Pool::default();
        self.room.borrow_mut().crash(power_cut, keep);
        self.writes.clear();
        self.flushes.clear();
        self.reads.clear();
        if !power_cut {
            // What was acknowledged survives then.
            for block in self.blocks.values_mut().filter(|block| !block.is_busy) {
                block.durable = block.newest;
                block.maybe.clear();
            }
            for block in self.blocks.values_mut().filter(|block| block.is_busy) {
                block.durable = block.newest;
            }
        }
        // What is gone is there again when the machine starts, or stays away.
        for disk in &mut self.room.borrow_mut().disks {
            disk.unreadable.clear();
        }
        for side in Side::BOTH {
            // One whose failure the labels do not know of: opening tells them.
            if self.room.borrow().disks[side.index()].is_gone && self.out_since[side.index()].is_none() {
                self.sequence += 1;
                self.out_since[side.index()] = Some(self.sequence);
            }
        }
        self.open();
    }

    fn write(&mut self, pick: u64) {
        let shard = (pick % u64::from(SHARDS)) as u16;
        let start = self.layout.slice_start_block(shard, 0);
        // A few places in many regions, so that they are written again and again.
        let first = start + pick / 2 % 15 * 64 + pick / 32 % 3 * 30;
        let count = 1 + pick / 100 % 3;
        let blocks = first..first + count;
        let busy = |number: &u64| self.blocks.get(number).is_some_and(|block| block.is_busy);
        if blocks.clone().any(|number| busy(&number)) || self.is_read(&blocks) {
            return;
        }
        self.tags += 1;
        let mut write = operation(OperationKind::Write, shard, self.tags, 0, first, count);
        for (index, number) in blocks.clone().enumerate() {
            put_stamp(&mut write, index, self.tags);
            let block = self.blocks.entry(number).or_default();
            block.maybe.insert(self.tags);
            block.is_busy = true;
        }
        self.writes
            .insert(self.tags, (blocks.start, blocks.end, self.tags));
        self.submit(shard, write);
    }

    fn is_read(&self, blocks: &core::ops::Range<u64>) -> bool {
        self.reads
            .values()
            .any(|&(start, end)| start < blocks.end && blocks.start < end)
    }

    fn read(&mut self, pick: u64) {
        let known: Vec<u64> = self.blocks.keys().copied().collect();
        let Some(&number) = known.get(pick as usize % known.len().max(1)) else {
            return;
        };
        if self.blocks[&number].is_busy {
            return;
        }
        self.tags += 1;
        let shard = (0..SHARDS).rfind(|shard| self.layout.slice_start_block(*shard, 0) <= number);
        let shard = shard.expect("a block of a slice");
        let read = operation(OperationKind::Read, shard, self.tags, 0, number, 1);
        self.reads.insert(self.tags, (number, number + 1));
        self.submit(shard, read);
    }

    fn flush(&mut self, shard: u16) {
        self.tags += 1;
        let acknowledged = self.blocks.iter().filter(|(_, block)| !block.is_busy);
        let covers = acknowledged
            .map(|(number, block)| (*number, block.newest))
            .collect();
        self.flushes.insert(self.tags, covers);
        let flush = operation(OperationKind::Flush, shard, self.tags, 0, 0, 0);
        self.submit(shard, flush);
    }

    fn submit(&mut self, shard: u16, mut operation: Box<crate::ports::Operation>) {
        while let Err(crate::ports::Full(back)) = self.processors[usize::from(shard)].submit(operation) {
            operation = back;
            self.room.borrow_mut().finish(0);
        }
    }

    fn poll(&mut self) {
        let mut completed = Vec::new();
        self.now_ns += 1_000_000;
        for index in 0..self.processors.len() {
            let now = Now {
                monotonic_ns: self.now_ns,
                wall_ns: 0,
            };
            self.processors[index].turn(now, &mut self.pool);
            self.processors[index].poll(&mut completed);
            while let Some(notice) = self.processors[index].take_notice() {
                self.noticed(index, notice);
            }
        }
        for operation in completed {
            self.completed(operation);
        }
    }

    fn completed(&mut self, operation: Box<crate::ports::Operation>) {
        let tag = operation.tag;
        match operation.kind {
            // A repair: a side that cannot take it goes out.
            OperationKind::Write if operation.side.is_some() => {
                self.reads.remove(&tag).expect("repaired once");
            }
            OperationKind::Write => {
                assert_eq!(operation.result, Ok(()), "one side lives");
                let (first, end, number) = self.writes.remove(&tag).expect("written once");
                for block in first..end {
                    let block = self.blocks.get_mut(&block).expect("known");
                    (block.newest, block.is_busy) = (number, false);
                }
            }
            OperationKind::Flush => {
                assert_eq!(operation.result, Ok(()), "one side lives");
                for (number, stamp) in self.flushes.remove(&tag).expect("flushed once") {
                    let block = self.blocks.get_mut(&number).expect("known");
                    // A later flush may have come back first.
                    if stamp >= block.durable {
                        block.durable = stamp;
                        block.maybe.retain(|maybe| *maybe > stamp);
                    }
                }
            }
            OperationKind::Read => {
                let (number, _) = self.reads.remove(&tag).expect("read once");
                let good = Side::BOTH.into_iter().filter(|side| {
                    let disk = &self.room.borrow().disks[side.index()];
                    !disk.is_gone && !disk.unreadable.contains(&number)
                });
                match operation.result {
                    Ok(()) => {
                        assert_eq!(
                            stamps(&operation),
                            [self.blocks[&number].newest],
                            "block {number}"
                        );
                        self.repair(number, operation);
                    }
                    Err(error) => assert!(good.count() < 2, "{error} though both sides can be read"),
                }
            }
            OperationKind::Discard | OperationKind::WriteZeroes => {
                unreachable!("nothing is discarded or zeroed here")
            }
        }
    }

    /// As a shard does it, which has looked at what it read: the place is not written otherwise meanwhile.
    fn repair(&mut self, number: u64, mut read: Box<crate::ports::Operation>) {
        if read.failures.is_empty() {
            return;
        }
        read.failures.clear();
        read.kind = OperationKind::Write;
        self.tags += 1;
        read.tag = self.tags;
        self.reads.insert(self.tags, (number, number + 1));
        self.submit(read.shard.0, read);
    }

    fn noticed(&mut self, processor: usize, notice: MirrorNotice) {
        match notice {
            MirrorNotice::SideFailed { at, .. } => {
                let known = &mut self.known[at.side.index()];
                if !matches!(*known, Known::GoingOut | Known::Out) {
                    *known = Known::GoingOut;
                    let is_of_other =
                        |job: &Job| !matches!(job, Job::LabelIn(_) | Job::Join(..) | Job::Resync(..));
                    self.jobs.retain(is_of_other);
                    self.jobs.push_back(Job::LabelOut(at.side));
                }
            }
            MirrorNotice::Resynced { at } => {
                self.resynced.insert((processor, at.side.index()));
                let all =
                    (0..self.processors.len()).all(|index| self.resynced.contains(&(index, at.side.index())));
                if all && self.known[at.side.index()] == Known::Resync {
                    self.known[at.side.index()] = Known::Joining;
                    self.jobs.push_back(Job::LabelIn(at.side));
                }
            }
            MirrorNotice::CannotCopy { .. } => {}
        }
    }

    /// The control plane does the next thing.
    fn control(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        let all = 0..self.processors.len();
        match job {
            Job::LabelOut(side) => {
                self.sequence += 1;
                self.out_since[side.index()] = Some(self.sequence);
                self.jobs.extend(all.map(|index| Job::TellOut(index, side)));
            }
            Job::TellOut(index, side) => {
                let since = self.out_since[side.index()].expect("the labels say so");
                self.processors[index].out(at(side), since);
                if index + 1 == self.processors.len() {
                    self.known[side.index()] = Known::Out;
                }
            }
            Job::TellReplaced(index, side) => {
                let since = self.out_since[side.index()].expect("the labels say so");
                self.processors[index].replaced(at(side), since);
            }
            Job::Resync(index, side) => self.processors[index].resync(at(side)),
            Job::LabelIn(side) => {
                if self.room.borrow().disks[side.index()].is_gone {
                    return;
                }
                self.room.borrow_mut().disks[side.index()].flush();
                self.sequence += 1;
                self.out_since[side.index()] = None;
                self.jobs.extend(all.map(|index| Job::Join(index, side)));
            }
            Job::Join(index, side) => {
                self.processors[index].joined(at(side));
                if index + 1 == self.processors.len() {
                    self.known[side.index()] = Known::InSync;
                    self.joins += 1;
                }
            }
        }
    }

    /// A side is lost, if the other one is in sync for all that anybody knows.
    fn lose(&mut self, side: Side) {
        let other = side.other().index();
        let mut room = self.room.borrow_mut();
        if self.known[other] == Known::InSync
            && !room.disks[other].is_gone
            && room.disks[other].unreadable.is_empty()
        {
            room.lose(side.index());
        }
    }

    /// A side that is out is there again, without what it had not flushed; or another device takes its place.
    fn bring_back(&mut self, side: Side, mut seed: u64) {
        if self.known[side.index()] != Known::Out || self.is_told_of_later(side) {
            return;
        }
        let all = 0..self.processors.len();
        let is_gone = self.room.borrow().disks[side.index()].is_gone;
        if is_gone {
            let mut room = self.room.borrow_mut();
            room.disks[side.index()].is_gone = false;
            if (seed >> 8).is_multiple_of(4) {
                room.disks[side.index()].become_blank();
                self.sequence += 1;
                self.out_since[side.index()] = Some(self.sequence);
                let jobs = all.clone().map(|index| Job::TellReplaced(index, side));
                self.jobs.extend(jobs);
            } else {
                room.disks[side.index()].lose_power(|| {
                    seed = seed.rotate_left(5).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    seed >> 50 & 1 == 1
                });
            }
        }
        self.known[side.index()] = Known::Resync;
        self.resynced.retain(|(_, of_side)| *of_side != side.index());
        self.jobs.extend(all.map(|index| Job::Resync(index, side)));
    }

    fn is_told_of_later(&self, side: Side) -> bool {
        let of_side = |job: &Job| matches!(job, Job::TellOut(_, of) | Job::LabelOut(of) if *of == side);
        self.jobs.iter().any(of_side)
    }

    fn act(&mut self, action: u8, pick: u64) {
        let side = Side::BOTH[(pick % 2) as usize];
        match action {
            0..=29 => self.write(pick),
            30..=39 => self.read(pick),
            40..=47 => self.flush((pick % u64::from(SHARDS)) as u16),
            48..=69 => {
                let count = self.room.borrow().in_flight.len() as u64;
                if count > 0 {
                    self.room.borrow_mut().finish((pick % count) as usize);
                }
                self.poll();
            }
            70..=79 => self.poll(),
            80..=87 => self.control(),
            88..=89 => self.lose(side),
            90..=93 => self.bring_back(side, pick),
            94 => {
                // One side at a time, and none that is alone.
                let mut room = self.room.borrow_mut();
                let whole = self.known == [Known::InSync; 2] && !room.disks.iter().any(|disk| disk.is_gone);
                if let (true, Some(&number)) = (whole, self.blocks.keys().next())
                    && room.disks[side.other().index()].unreadable.is_empty()
                {
                    room.disks[side.index()].unreadable.insert(number);
                }
            }
            95 => self.crash(true, pick),
            96 => self.crash(false, pick),
            _ => self.room.borrow_mut().finish_all(),
        }
    }

    fn settle(&mut self) {
        for disk in &mut self.room.borrow_mut().disks {
            disk.unreadable.clear();
        }
        for round in 0.. {
            assert!(
                round < 20_000,
                "it never ends: {:?} {:?} {:?}",
                self.known,
                self.jobs,
                self.writes
            );
            self.room.borrow_mut().finish_all();
            self.poll();
            self.control();
            Side::BOTH.into_iter().for_each(|side| self.bring_back(side, 7));
            let is_over = self.jobs.is_empty()
                && self.room.borrow().in_flight.is_empty()
                && self.known == [Known::InSync; 2]
                && self
                    .processors
                    .iter()
                    .all(|processor| processor.is_quiet() && !processor.has_ready_work());
            if is_over && self.room.borrow().disks.iter().any(|disk| disk.is_gone) {
                // Nobody has noticed yet.
                (0..SHARDS).for_each(|shard| self.flush(shard));
            } else if is_over {
                break;
            }
        }
        assert_eq!(
            (self.writes.len(), self.flushes.len(), self.reads.len()),
            (0, 0, 0)
        );
        assert!(
            self.pool.outside <= self.processors.len(),
            "buffers come back, but for those that are kept"
        );
    }

    fn check_both_sides_are_equal(&self) {
        let room = self.room.borrow();
        for number in self.blocks.keys() {
            let [first, second] = [0, 1].map(|side| room.disks[side].stamp(*number));
            assert_eq!(first, second, "block {number}");
            assert_eq!(first, self.blocks[number].newest, "block {number}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_was_promised_is_lost_while_a_side_lives(
        actions in proptest::collection::vec((0u8..100, any::<u64>()), 20..500)
    ) {
        let mut world = World::new();
        for (action, pick) in actions {
            world.act(action, pick);
        }
        world.settle();
        world.check_both_sides_are_equal();
        (0..SHARDS).for_each(|shard| world.flush(shard));
        world.settle();
        world.crash(true, 0);
        prop_assert_eq!(world.out_since, [None; 2]);
    }
}
