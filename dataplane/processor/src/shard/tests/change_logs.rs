//! Change log volumes: the limit is exact, what needs no room is never refused, nobody waits for ever, and what is counted
//! is what a comparison of contents counts.

use std::collections::BTreeSet;

use super::rig::{BLOCK, LIVE, Rig, VOLUME, request};
use super::*;
use crate::change_log_volume::{REFUSE_NS, WAIT_NS_MAX};
use crate::command::{ChangeLogPart, WhenFull};
use crate::ids::ChangeLogId;
use crate::map::LEAF_BLOCKS;
use crate::space::DEVICES_ALL;

const LOG: ChangeLogId = ChangeLogId(7);
const WRITE: RequestKind = RequestKind::Write { fua: false };

fn set(rig: &mut Rig, limit_blocks: u64, when_full: WhenFull) {
    let part = ChangeLogPart {
        limit_blocks,
        devices: DEVICES_ALL,
        when_full,
    };
    let change_log = LOG;
    let set = ShardCommand::SetChangeLog { change_log, part };
    assert_eq!(rig.command(set), EventKind::Done);
}

fn attach(rig: &mut Rig, volume: VolumeId) {
    let change_log = Some(LOG);
    let attach = ShardCommand::AttachChangeLog { volume, change_log };
    assert_eq!(rig.command(attach), EventKind::Done);
}

/// A volume with forty blocks and a snapshot, and room for ten changed blocks.
fn with_room_for_ten(when_full: WhenFull) -> Rig {
    let mut rig = Rig::new(64 << 20);
    set(&mut rig, 10, when_full);
    attach(&mut rig, VOLUME);
    rig.write(0, &[1; 40 * BLOCK]);
    assert_eq!(used(&rig), 0, "without a snapshot nothing counts");
    rig.snapshot(1);
    rig
}

fn used(rig: &Rig) -> u64 {
    rig.processor.shards()[0].status().change_logs[0].used_blocks
}

fn try_write(rig: &mut Rig, block: usize, blocks: usize) -> Result<(), RequestError> {
    let data = vec![9; blocks * BLOCK];
    rig.ask(LIVE, WRITE, block * BLOCK, data.len(), Some(&data))
        .result
}

fn delete(rig: &mut Rig, volume: VolumeId, number: u64) {
    let snapshot = SnapshotId(number);
    let delete = ShardCommand::DeleteSnapshot { volume, snapshot };
    assert_eq!(rig.command(delete), EventKind::Done);
}

fn told_full(rig: &Rig) -> usize {
    let full = EventKind::Notice(Notice::ChangeLogFull { change_log: LOG });
    rig.outbox
        .events
        .iter()
        .filter(|event| event.kind == full)
        .count()
}

#[test]
fn the_limit_is_exact_and_what_has_changed_may_change_again() {
    let mut rig = with_room_for_ten(WhenFull::FailWrites);
    assert_eq!(try_write(&mut rig, 0, 9), Ok(()));
    assert_eq!(try_write(&mut rig, 20, 2), Err(RequestError::NoSpace));
    assert_eq!(used(&rig), 9, "a write that is refused changes nothing");
    assert_eq!(rig.read(LIVE, 20 * BLOCK, BLOCK), [1; BLOCK]);
    assert_eq!(try_write(&mut rig, 20, 1), Ok(()));
    assert_eq!(used(&rig), 10);
    for block in [0, 8, 20] {
        assert_eq!(try_write(&mut rig, block, 1), Ok(()), "block {block} has changed");
    }
    assert_eq!(
        try_write(&mut rig, 8, 2),
        Err(RequestError::NoSpace),
        "half of it is new"
    );
    let part = rig.ask(LIVE, WRITE, 30 * BLOCK + 512, 512, Some(&[2; 512]));
    assert_eq!(
        part.result,
        Err(RequestError::NoSpace),
        "a partial block is a block"
    );
    assert_eq!(told_full(&rig), 1, "told once");
    // Reading, discarding and deleting go on; a discard counts what it changed.
    assert_eq!(rig.read(LIVE, 0, BLOCK), [9; BLOCK]);
    let kind = RequestKind::Discard { fua: false };
    assert_eq!(rig.ask(LIVE, kind, 25 * BLOCK, 4 * BLOCK, None).result, Ok(()));
    assert_eq!(used(&rig), 14, "beyond the limit: a discard is never refused");
    assert_eq!(try_write(&mut rig, 25, 1), Ok(()));
    delete(&mut rig, VOLUME, 1);
    assert_eq!(used(&rig), 0, "as soon as it is to be freed");
    assert_eq!(try_write(&mut rig, 0, 40), Ok(()));
}

/// Found by the simulator: a leaf that lost its last block became a hole that was born now, and what was written into it
/// counted as changed already.
#[test]
fn what_is_written_around_a_block_that_was_discarded_counts() {
    let mut rig = with_room_for_ten(WhenFull::FailWrites);
    let leaf = LEAF_BLOCKS as usize;
    assert_eq!(try_write(&mut rig, leaf, 1), Ok(()));
    let kind = RequestKind::Discard { fua: false };
    assert_eq!(rig.ask(LIVE, kind, leaf * BLOCK, BLOCK, None).result, Ok(()));
    assert_eq!(used(&rig), 1);
    assert_eq!(try_write(&mut rig, leaf, 1), Ok(()));
    assert_eq!(used(&rig), 1, "each block counts once");
    assert_eq!(rig.ask(LIVE, kind, leaf * BLOCK, BLOCK, None).result, Ok(()));
    assert_eq!(try_write(&mut rig, leaf + 1, 9), Ok(()));
    assert_eq!(used(&rig), 10);
    assert_eq!(try_write(&mut rig, leaf + 10, 1), Err(RequestError::NoSpace));
}

#[test]
fn writes_that_arrive_together_cannot_pass_the_limit() {
    let mut rig = with_room_for_ten(WhenFull::FailWrites);
    for block in 0..30 {
        rig.send(request(LIVE, WRITE, block * BLOCK, BLOCK, Some(&[3; BLOCK])));
    }
    rig.settle();
    let answers = core::mem::take(&mut rig.outbox.answers);
    let good = answers.iter().filter(|answer| answer.result.is_ok()).count();
    assert_eq!((good, answers.len()), (10, 30));
    assert_eq!(used(&rig), 10);
}

#[test]
fn those_who_took_more_than_they_need_make_room_for_those_behind() {
    let mut rig = with_room_for_ten(WhenFull::FailWrites);
    // The same eight blocks twice, and two others: ten in all.
    for (block, blocks) in [(0, 8), (0, 8), (8, 2)] {
        let data = vec![4; blocks * BLOCK];
        rig.send(request(LIVE, WRITE, block * BLOCK, data.len(), Some(&data)));
    }
    rig.settle();
    assert!(rig.outbox.answers.drain(..).all(|answer| answer.result.is_ok()));
    assert_eq!(used(&rig), 10);
}

#[test]
fn a_cut_between_the_write_and_its_map_does_not_pass_the_limit() {
    let mut rig = with_room_for_ten(WhenFull::FailWrites);
    assert_eq!(try_write(&mut rig, 0, 10), Ok(()));
    // Its blocks have changed, so it needs no room; but it is still on its way when they are frozen.
    rig.processor.device_mut().held = Some(OperationKind::Write);
    let data = vec![5; 3 * BLOCK];
    rig.send(request(LIVE, WRITE, 0, data.len(), Some(&data)));
    for _ in 0..3 {
        rig.processor
            .submit(request(LIVE, RequestKind::Read, 0, BLOCK, None), rig.now)
            .expect("room");
    }
    rig.now.monotonic_ns += 1_000;
    rig.processor.poll(rig.now, &mut rig.pool, &mut rig.outbox);
    let snapshot = SnapshotId(2);
    let volumes = vec![VOLUME];
    rig.processor.device_mut().held = None;
    let tickets = [Ticket(900), Ticket(901), Ticket(902)];
    let commands = [
        ShardCommand::Prepare { snapshot, volumes },
        ShardCommand::Cut {
            snapshot,
            time_stamp: TimeStamp(2),
            deadline_ns: u64::MAX,
        },
        ShardCommand::Release { snapshot },
    ];
    for (ticket, command) in tickets.into_iter().zip(commands) {
        rig.processor.command(ShardIndex(0), ticket, command, rig.now);
    }
    rig.settle();
    assert!(used(&rig) <= 10, "{} blocks", used(&rig));
}

#[test]
fn a_write_waits_until_a_snapshot_is_dropped() {
    let mut rig = with_room_for_ten(WhenFull::DropOldest);
    assert_eq!(try_write(&mut rig, 0, 10), Ok(()));
    rig.snapshot(2);
    rig.send(request(LIVE, WRITE, 30 * BLOCK, BLOCK, Some(&[6; BLOCK])));
    for _ in 0..100 {
        rig.turn();
    }
    assert!(rig.outbox.answers.is_empty(), "it waits");
    assert_eq!(told_full(&rig), 1, "and somebody was asked, once");
    assert_eq!(rig.read(LIVE, 0, BLOCK), [9; BLOCK], "others go on");
    delete(&mut rig, VOLUME, 1);
    rig.settle();
    let answer = rig.outbox.answers.pop().expect("it went on");
    assert_eq!(answer.result, Ok(()));
    assert_eq!(used(&rig), 1);
}

#[test]
fn nobody_waits_for_ever() {
    // Nothing can be dropped, and the shard is told.
    let mut rig = with_room_for_ten(WhenFull::DropOldest);
    assert_eq!(try_write(&mut rig, 0, 10), Ok(()));
    rig.send(request(LIVE, WRITE, 30 * BLOCK, BLOCK, Some(&[6; BLOCK])));
    rig.turn();
    rig.command(ShardCommand::RefuseChangeLog { change_log: LOG });
    rig.settle();
    let answer = rig.outbox.answers.pop().expect("an answer");
    assert_eq!(answer.result, Err(RequestError::NoSpace));
    let asked = told_full(&rig);
    assert_eq!(try_write(&mut rig, 30, 1), Err(RequestError::NoSpace), "at once");
    // After a while it asks again; and if nobody answers at all, the wait has an end.
    rig.now.monotonic_ns += REFUSE_NS;
    rig.send(request(LIVE, WRITE, 30 * BLOCK, BLOCK, Some(&[6; BLOCK])));
    rig.turn();
    assert!(told_full(&rig) > asked);
    let deadline_ns = rig.processor.next_deadline_ns().expect("a deadline");
    assert!(deadline_ns <= rig.now.monotonic_ns + WAIT_NS_MAX);
    rig.now.monotonic_ns += WAIT_NS_MAX;
    rig.settle();
    let answer = rig.outbox.answers.pop().expect("an answer");
    assert_eq!(answer.result, Err(RequestError::NoSpace));
    // What is larger than all of it is not waited for.
    assert_eq!(try_write(&mut rig, 20, 11), Err(RequestError::NoSpace));
    // More room lets those go on who wait.
    rig.now.monotonic_ns += REFUSE_NS;
    rig.send(request(LIVE, WRITE, 30 * BLOCK, BLOCK, Some(&[6; BLOCK])));
    rig.turn();
    set(&mut rig, 11, WhenFull::DropOldest);
    rig.settle();
    assert_eq!(rig.outbox.answers.pop().map(|answer| answer.result), Some(Ok(())));
}

#[test]
fn detaching_and_removing_ends_the_limit() {
    let mut rig = with_room_for_ten(WhenFull::FailWrites);
    assert_eq!(try_write(&mut rig, 0, 10), Ok(()));
    let none = ShardCommand::AttachChangeLog {
        volume: VOLUME,
        change_log: None,
    };
    assert_eq!(rig.command(none), EventKind::Done);
    assert_eq!(used(&rig), 0);
    assert_eq!(try_write(&mut rig, 10, 5), Ok(()));
    attach(&mut rig, VOLUME);
    assert_eq!(used(&rig), 15, "what changed meanwhile counts");
    assert_eq!(try_write(&mut rig, 20, 1), Err(RequestError::NoSpace));
    rig.command(ShardCommand::RemoveChangeLog { change_log: LOG });
    assert_eq!(try_write(&mut rig, 20, 1), Ok(()));
    let lost = ShardCommand::AttachChangeLog {
        volume: VOLUME,
        change_log: Some(LOG),
    };
    assert_eq!(rig.command(lost), EventKind::Failed(RequestError::NotFound));
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

/// Blocks that were written after each snapshot and before the next (or now), for each snapshot that is there, oldest
/// first; and what was written before all of them.
struct Model {
    logs: Vec<(u64, BTreeSet<usize>)>,
}

impl Model {
    fn wrote(&mut self, block: usize) {
        if let Some((_, log)) = self.logs.last_mut() {
            log.insert(block);
        }
    }

    /// Without a snapshot its log and the one before it are one; without the oldest its log is nobody's.
    fn delete(&mut self, position: usize) {
        let (_, log) = self.logs.remove(position);
        if let Some(before) = position.checked_sub(1) {
            self.logs[before].1.extend(log);
        }
    }

    fn blocks(&self) -> u64 {
        self.logs.iter().map(|(_, log)| log.len() as u64).sum()
    }
}

fn run(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut rig = Rig::new(64 << 20);
    let mut model = Model { logs: Vec::new() };
    let mut next = 0;
    set(&mut rig, 1 << 30, WhenFull::FailWrites);
    attach(&mut rig, VOLUME);
    for _ in 0..400 {
        match random.below(24) {
            0..=15 => {
                let block = random.below(40) * 100 + random.below(3);
                rig.write(block * BLOCK, &[random.below(256) as u8; BLOCK]);
                model.wrote(block);
            }
            16 | 17 => {
                next += 1;
                rig.snapshot(next);
                model.logs.push((next, BTreeSet::new()));
            }
            18 | 19 if !model.logs.is_empty() => {
                let position = random.below(model.logs.len());
                delete(&mut rig, VOLUME, model.logs[position].0);
                model.delete(position);
            }
            20 => (0..random.below(6)).for_each(|_| rig.turn()),
            21 => {
                rig.command(ShardCommand::Checkpoint);
            }
            22 => {
                rig = rig.kill();
                set(&mut rig, 1 << 30, WhenFull::FailWrites);
                attach(&mut rig, VOLUME);
            }
            _ => {
                rig.settle();
                assert_eq!(used(&rig), model.blocks(), "seed {seed}");
            }
        }
        assert!(used(&rig) >= model.blocks(), "seed {seed}: less than is held");
    }
    rig.settle();
    assert_eq!(used(&rig), model.blocks(), "seed {seed}");
}

#[test]
fn what_is_counted_is_what_differs_whatever_was_deleted_and_killed() {
    (1..=60).for_each(run);
}

#[test]
fn what_was_discarded_before_a_deleted_snapshot_and_written_after_it_counts_once() {
    for blocks in [4, 300] {
        let mut rig = Rig::new(64 << 20);
        set(&mut rig, 1 << 30, WhenFull::FailWrites);
        attach(&mut rig, VOLUME);
        let bytes = blocks * BLOCK;
        rig.write(0, &vec![1; bytes.min(256 * BLOCK)]);
        rig.snapshot(1);
        let kind = RequestKind::Discard { fua: false };
        assert_eq!(rig.ask(LIVE, kind, 0, bytes, None).result, Ok(()));
        rig.snapshot(2);
        rig.write(0, &vec![2; bytes.min(256 * BLOCK)]);
        let once = used(&rig) / 2;
        delete(&mut rig, VOLUME, 2);
        rig.settle();
        assert_eq!(used(&rig), once, "{blocks} blocks");
    }
}

#[test]
fn it_counts_once_where_the_map_before_was_a_single_leaf_too() {
    let mut rig = Rig::new(64 << 20);
    set(&mut rig, 1 << 30, WhenFull::FailWrites);
    attach(&mut rig, VOLUME);
    let leaf = 256 * BLOCK;
    rig.write(0, &vec![1; leaf]);
    rig.snapshot(1);
    // The map gets a level, and loses its first leaf.
    rig.write(leaf, &[1; BLOCK]);
    let kind = RequestKind::Discard { fua: false };
    assert_eq!(rig.ask(LIVE, kind, 0, leaf, None).result, Ok(()));
    rig.snapshot(2);
    rig.write(0, &vec![2; leaf]);
    assert_eq!(used(&rig), 257 + 256);
    delete(&mut rig, VOLUME, 2);
    rig.settle();
    assert_eq!(used(&rig), 257);
}

#[test]
fn after_a_rollback_the_log_of_the_snapshots_before_goes_on() {
    let mut rig = with_room_for_ten(WhenFull::FailWrites);
    assert_eq!(try_write(&mut rig, 0, 4), Ok(()));
    let head = VolumeId(2);
    let (origin, snapshot) = (VOLUME, SnapshotId(1));
    let clone = ShardCommand::CloneVolume {
        volume: head,
        origin,
        snapshot,
    };
    assert_eq!(rig.command(clone), EventKind::Done);
    attach(&mut rig, head);
    rig.command(ShardCommand::DeleteHead { volume: VOLUME });
    rig.settle();
    assert_eq!(used(&rig), 0, "the live map that was written has gone");
    let live = View {
        volume: head,
        snapshot: None,
    };
    let data = vec![8; 10 * BLOCK];
    assert_eq!(rig.ask(live, WRITE, 0, data.len(), Some(&data)).result, Ok(()));
    assert_eq!(used(&rig), 10);
    let more = rig.ask(live, WRITE, 10 * BLOCK, BLOCK, Some(&[8; BLOCK]));
    assert_eq!(more.result, Err(RequestError::NoSpace));
    delete(&mut rig, VOLUME, 1);
    assert_eq!(used(&rig), 0);
}
