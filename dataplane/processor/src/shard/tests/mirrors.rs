//! What one side of a mirror has damaged is answered from the other and written back, and nothing else is.

use super::super::repair::REPAIRS_MAX;
use super::check::{pattern, worked};
use super::rig::{BLOCK, LIVE, Rig, request};
use crate::ShardCommand;
use crate::command::{EventKind, Notice, ShardStatus};
use crate::ids::DeviceAddress;
use crate::ports::{OperationKind, Side};
use crate::request::{RequestError, RequestKind};
use stillpoint_ondisk::PageKind;
use stillpoint_ondisk::map_page::MapPage;
use zerocopy::FromBytes;

/// Blocks that no other block looks like, from this one on.
pub(super) const FIRST: usize = 1000;
const BLOCKS: usize = 16;

pub(super) fn content(block: usize) -> Vec<u8> {
    let mut bytes = pattern(3);
    bytes[..8].copy_from_slice(&((block as u64) << 32 | 0xFACE).to_le_bytes());
    bytes
}

fn contents(blocks: core::ops::Range<usize>) -> Vec<u8> {
    blocks.flat_map(content).collect()
}

/// A mirror, everything on both sides, [`BLOCKS`] blocks written one by one.
pub(super) fn mirrored() -> Rig {
    let mut rig = worked();
    rig.processor.device_mut().mirror();
    for block in FIRST..FIRST + BLOCKS {
        rig.write(block * BLOCK, &content(block));
    }
    rig.used_blocks();
    let device = rig.processor.device_mut();
    assert!(
        device.second.as_ref() == Some(&device.bytes),
        "one is as the other"
    );
    rig
}

pub(super) fn flip(rig: &mut Rig, side: Side, block: u64) {
    rig.processor.device_mut().side(side)[block as usize * BLOCK + 99] ^= 1;
}

/// Damages block `block` of the volume on a side; gives where it lies.
pub(super) fn damage(rig: &mut Rig, side: Side, block: usize) -> u64 {
    // Looked for where it is still whole.
    let wanted = content(block);
    let other = rig.processor.device_mut().side(side.other());
    let mut blocks = other.chunks_exact(BLOCK);
    let place = blocks
        .position(|found| found == wanted)
        .expect("on the other side") as u64;
    flip(rig, side, place);
    place
}

pub(super) fn damage_both(rig: &mut Rig, block: usize) -> u64 {
    let place = damage(rig, Side::First, block);
    flip(rig, Side::Second, place);
    place
}

pub(super) fn is_sound(rig: &mut Rig, side: Side, place: u64, block: usize) -> bool {
    rig.processor.device_mut().side(side)[place as usize * BLOCK..][..BLOCK] == content(block)
}

fn status(rig: &Rig) -> ShardStatus {
    rig.processor.shards()[0].status()
}

/// Corrupt, repaired, not repaired: blocks so far.
fn figures(rig: &Rig) -> (u64, u64, u64) {
    let status = status(rig);
    (
        status.corrupt_blocks,
        status.repaired_blocks,
        status.repair_failures,
    )
}

pub(super) fn notices(rig: &mut Rig) -> Vec<Notice> {
    let events = rig.outbox.events.drain(..);
    let told = events.filter_map(|event| match event.kind {
        EventKind::Notice(Notice::Checkpointed { .. } | Notice::SnapshotFreed { .. }) => None,
        EventKind::Notice(notice) => Some(notice),
        _ => None,
    });
    told.collect()
}

fn read_all(rig: &mut Rig) -> Result<Vec<u8>, RequestError> {
    let answer = rig.ask(LIVE, RequestKind::Read, FIRST * BLOCK, BLOCKS * BLOCK, None);
    answer
        .result
        .map(|()| answer.buffer.expect("a buffer").bytes().to_vec())
}

fn all() -> Vec<u8> {
    contents(FIRST..FIRST + BLOCKS)
}

#[test]
fn a_block_damaged_on_one_side_is_answered_from_the_other_and_repaired() {
    for side in Side::BOTH {
        let mut rig = mirrored();
        rig.processor.device_mut().second_is_preferred = side == Side::Second;
        let place = damage(&mut rig, side, FIRST + 5);
        notices(&mut rig);
        assert_eq!(read_all(&mut rig), Ok(all()));
        rig.settle();
        assert!(is_sound(&mut rig, side, place, FIRST + 5), "{side} is repaired");
        assert_eq!(figures(&rig), (0, 1, 0));
        let address = DeviceAddress(place);
        let repaired = Notice::Repaired {
            address,
            blocks: 1,
            side,
        };
        assert_eq!(notices(&mut rig), [repaired]);
        // Once is enough.
        assert_eq!(read_all(&mut rig), Ok(all()));
        rig.settle();
        assert_eq!((figures(&rig), notices(&mut rig)), ((0, 1, 0), vec![]));
    }
}

#[test]
fn a_block_damaged_on_both_sides_is_an_error_and_stays_as_it_is() {
    let mut rig = mirrored();
    let place = damage_both(&mut rig, FIRST + 5);
    let before = rig.processor.device_mut().second.clone();
    notices(&mut rig);
    assert_eq!(read_all(&mut rig), Err(RequestError::Corrupt));
    rig.settle();
    assert_eq!(figures(&rig), (1, 0, 0));
    let address = DeviceAddress(place);
    assert_eq!(notices(&mut rig), [Notice::Corrupt { address }]);
    assert!(rig.processor.device_mut().second == before, "nothing was written");
}

#[test]
fn different_blocks_damaged_on_different_sides_are_all_answered() {
    let mut rig = mirrored();
    let of_first = [1, 2, 9].map(|block| (FIRST + block, damage(&mut rig, Side::First, FIRST + block)));
    let of_second = damage(&mut rig, Side::Second, FIRST + 4);
    assert_eq!(read_all(&mut rig), Ok(all()));
    rig.settle();
    assert_eq!(figures(&rig), (0, 3, 0));
    for (block, place) in of_first {
        assert!(is_sound(&mut rig, Side::First, place, block));
    }
    // Nobody has looked at this one.
    assert!(!is_sound(&mut rig, Side::Second, of_second, FIRST + 4));
    rig.processor.device_mut().second_is_preferred = true;
    assert_eq!(read_all(&mut rig), Ok(all()));
    rig.settle();
    assert!(is_sound(&mut rig, Side::Second, of_second, FIRST + 4));
    assert_eq!(figures(&rig), (0, 4, 0));
}

#[test]
fn what_can_be_repaired_is_beside_what_cannot() {
    let mut rig = mirrored();
    let sound_on_second = damage(&mut rig, Side::First, FIRST + 3);
    damage_both(&mut rig, FIRST + 7);
    assert_eq!(read_all(&mut rig), Err(RequestError::Corrupt));
    rig.settle();
    assert!(is_sound(&mut rig, Side::First, sound_on_second, FIRST + 3));
    assert_eq!(figures(&rig), (1, 1, 0));
}

#[test]
fn a_partial_write_merges_with_what_the_other_side_has() {
    let mut rig = mirrored();
    let places = [2, 4].map(|block| (FIRST + block, damage(&mut rig, Side::First, FIRST + block)));
    // Half of block 2, all of 3, half of 4.
    let data = vec![0xAB; 2 * BLOCK];
    rig.write((FIRST + 2) * BLOCK + BLOCK / 2, &data);
    let mut wanted = contents(FIRST + 2..FIRST + 5);
    wanted[BLOCK / 2..][..2 * BLOCK].copy_from_slice(&data);
    assert_eq!(rig.read(LIVE, (FIRST + 2) * BLOCK, 3 * BLOCK), wanted);
    rig.settle();
    assert_eq!(figures(&rig), (0, 2, 0));
    for (block, place) in places {
        assert!(is_sound(&mut rig, Side::First, place, block));
    }
    // One of two is damaged on both sides: nothing is written.
    damage(&mut rig, Side::First, FIRST + 10);
    damage_both(&mut rig, FIRST + 12);
    let kind = RequestKind::Write { fua: false };
    let offset = (FIRST + 10) * BLOCK + BLOCK / 2;
    let answer = rig.ask(LIVE, kind, offset, data.len(), Some(&data));
    assert_eq!(answer.result, Err(RequestError::Corrupt));
    assert_eq!(
        rig.read(LIVE, (FIRST + 10) * BLOCK, 2 * BLOCK),
        contents(FIRST + 10..FIRST + 12)
    );
    rig.settle();
    assert_eq!(figures(&rig), (1, 3, 0));
}

/// Where the leaf of the live map lies that leads to a block far away alone.
pub(super) fn far_leaf(rig: &mut Rig) -> u64 {
    let pool = rig.layout.pool;
    let bytes = &rig.processor.device_mut().bytes;
    let is_it = |block: &usize| {
        let bytes = &bytes[block * BLOCK..][..BLOCK];
        let sound = stillpoint_ondisk::page::verify(bytes, PageKind::Map, Some(pool)).is_ok();
        let page = MapPage::ref_from_bytes(bytes).expect("a page");
        sound && page.level == 0 && page.index.get() == 300_000 / 256
    };
    (0..bytes.len() / BLOCK).rfind(is_it).expect("written") as u64
}

#[test]
fn a_map_page_damaged_on_one_side_is_loaded_from_the_other_and_repaired() {
    for both in [false, true] {
        let mut rig = mirrored();
        let leaf = far_leaf(&mut rig);
        rig = rig.kill();
        flip(&mut rig, Side::First, leaf);
        if both {
            flip(&mut rig, Side::Second, leaf);
        }
        let answer = rig.ask(LIVE, RequestKind::Read, 300_000 * BLOCK, BLOCK, None);
        rig.settle();
        if both {
            assert_eq!(answer.result, Err(RequestError::Corrupt));
            assert_eq!(figures(&rig), (1, 0, 0));
            continue;
        }
        assert_eq!(answer.result, Ok(()));
        assert_eq!(answer.buffer.expect("a buffer").bytes(), pattern(9));
        assert_eq!(figures(&rig), (0, 1, 0));
        let device = rig.processor.device_mut();
        assert!(device.second.as_ref() == Some(&device.bytes), "it is repaired");
    }
}

#[test]
fn a_repair_that_fails_changes_no_answer_and_is_told() {
    let mut rig = mirrored();
    rig.processor.device_mut().repairs_fail = true;
    let place = damage(&mut rig, Side::First, FIRST);
    notices(&mut rig);
    assert_eq!(read_all(&mut rig), Ok(all()));
    rig.settle();
    assert_eq!(figures(&rig), (0, 0, 1));
    let told = notices(&mut rig);
    let address = DeviceAddress(place);
    assert!(
        matches!(told[..], [Notice::NotRepaired { address: of, blocks: 1, side: Side::First, error: Some(_) }] if of == address),
        "{told:?}"
    );
}

#[test]
fn no_more_repairs_are_under_way_than_may_be() {
    let mut rig = mirrored();
    rig.processor.device_mut().held_of_side = Some(OperationKind::Write);
    for block in 0..REPAIRS_MAX + 2 {
        damage(&mut rig, Side::First, FIRST + block);
        let found = rig.read(LIVE, (FIRST + block) * BLOCK, BLOCK);
        assert_eq!(found, content(FIRST + block), "answered all the same");
    }
    assert_eq!(rig.processor.device_mut().waiting.len(), REPAIRS_MAX);
    assert_eq!(figures(&rig), (0, 0, 2));
    rig.processor.device_mut().held_of_side = None;
    rig.settle();
    assert_eq!(figures(&rig), (0, REPAIRS_MAX as u64, 2));
    // The next read finds the rest.
    assert_eq!(read_all(&mut rig), Ok(all()));
    rig.settle();
    assert_eq!(figures(&rig), (0, REPAIRS_MAX as u64 + 2, 2));
}

fn unreadable(rig: &mut Rig, side: Side, places: &[u64]) {
    rig.processor.device_mut().unreadable_of[side.index()].extend(places);
}

/// Where the blocks of the volume lie.
fn places(rig: &mut Rig) -> Vec<u64> {
    let bytes = &rig.processor.device_mut().bytes;
    let find = |block| {
        let wanted = content(block);
        let mut blocks = bytes.chunks_exact(BLOCK);
        blocks.position(|found| found == wanted).expect("somewhere") as u64
    };
    (FIRST..FIRST + BLOCKS).map(find).collect()
}

fn are_sound(rig: &mut Rig) -> bool {
    let device = rig.processor.device_mut();
    let same = device.second.as_ref() == Some(&device.bytes);
    same && device
        .unreadable_of
        .iter()
        .all(std::collections::BTreeSet::is_empty)
}

#[test]
fn what_one_side_cannot_read_is_answered_by_the_other_and_written_back() {
    for side in Side::BOTH {
        let mut rig = mirrored();
        rig.processor.device_mut().second_is_preferred = side == Side::Second;
        let place = places(&mut rig)[5];
        unreadable(&mut rig, side, &[place]);
        assert_eq!(read_all(&mut rig), Ok(all()));
        rig.settle();
        assert!(are_sound(&mut rig));
        // What the failed range has beside it is written too: all of it was answered by the other side.
        let (corrupt, repaired, failures) = figures(&rig);
        assert!(repaired >= 1, "{repaired}");
        assert_eq!((corrupt, failures), (0, 0));
        assert!(status(&rig).device_errors > 0);
    }
}

/// A side cannot read one block, so that the other one answers for the whole range; and that one has another block of the
/// range damaged. What it has damaged must not come to the side that failed.
#[test]
fn damage_is_not_copied_to_a_side_that_could_not_read_what_is_beside_it() {
    for side in Side::BOTH {
        let mut rig = mirrored();
        rig.processor.device_mut().second_is_preferred = side == Side::Second;
        let place = places(&mut rig)[5];
        unreadable(&mut rig, side, &[place]);
        let damaged = damage(&mut rig, side.other(), FIRST + 6);
        assert_eq!(read_all(&mut rig), Ok(all()));
        rig.settle();
        for side in Side::BOTH {
            assert!(is_sound(&mut rig, side, damaged, FIRST + 6), "{side}");
        }
        assert!(are_sound(&mut rig));
        assert_eq!(figures(&rig).0, 0);
    }
}

#[test]
fn each_side_may_lack_blocks_that_the_other_has_in_every_way() {
    let mut rig = mirrored();
    let places = places(&mut rig);
    // Neither can read the whole range.
    unreadable(&mut rig, Side::First, &places[2..4]);
    unreadable(&mut rig, Side::Second, &places[8..9]);
    damage(&mut rig, Side::First, FIRST + 10);
    damage(&mut rig, Side::Second, FIRST + 12);
    for second in [false, true] {
        rig.processor.device_mut().second_is_preferred = second;
        assert_eq!(read_all(&mut rig), Ok(all()));
        rig.settle();
    }
    assert!(are_sound(&mut rig));
    assert_eq!(figures(&rig).0, 0);
    // A block that neither has whole is an error, and what can be repaired is.
    unreadable(&mut rig, Side::First, &places[2..3]);
    damage(&mut rig, Side::Second, FIRST + 2);
    let repairable = damage(&mut rig, Side::First, FIRST + 10);
    rig.processor.device_mut().second_is_preferred = false;
    assert!(read_all(&mut rig).is_err());
    rig.settle();
    assert!(is_sound(&mut rig, Side::First, repairable, FIRST + 10));
    assert!(!is_sound(&mut rig, Side::Second, places[2], FIRST + 2));
    assert!(
        rig.processor.device_mut().unreadable_of[0].contains(&places[2]),
        "nothing is made of it"
    );
}

#[test]
fn a_range_that_is_damaged_on_both_sides_in_different_blocks_is_read_whole() {
    // One that was answered by the side that was asked, one by the other because that failed: both are looked at again.
    let mut rig = mirrored();
    let places = places(&mut rig);
    // Holes in the range on the device make several transfers of it.
    rig.write((FIRST + 4) * BLOCK, &content(FIRST + 4));
    rig.used_blocks();
    unreadable(&mut rig, Side::First, &places[1..2]);
    damage(&mut rig, Side::Second, FIRST + 2);
    damage(&mut rig, Side::First, FIRST + 9);
    assert_eq!(read_all(&mut rig), Ok(all()));
    rig.settle();
    assert_eq!(read_all(&mut rig), Ok(all()));
    rig.settle();
    assert!(are_sound(&mut rig));
    assert_eq!(figures(&rig).0, 0);
}

#[test]
fn merges_and_map_pages_too_are_read_where_they_can_be() {
    let mut rig = mirrored();
    let leaf = far_leaf(&mut rig);
    rig = rig.kill();
    let places = places(&mut rig);
    unreadable(&mut rig, Side::First, &[leaf, places[2]]);
    damage(&mut rig, Side::First, FIRST + 4);
    let data = vec![0xAB; 2 * BLOCK];
    rig.write((FIRST + 2) * BLOCK + BLOCK / 2, &data);
    let mut wanted = contents(FIRST + 2..FIRST + 5);
    wanted[BLOCK / 2..][..2 * BLOCK].copy_from_slice(&data);
    assert_eq!(rig.read(LIVE, (FIRST + 2) * BLOCK, 3 * BLOCK), wanted);
    assert_eq!(rig.read(LIVE, 300_000 * BLOCK, BLOCK), pattern(9));
    rig.settle();
    assert!(are_sound(&mut rig));
    assert_eq!(figures(&rig), (0, 3, 0));
    // The leaf cannot be read on one side and is damaged on the other: nothing to answer from, nothing to write.
    let mut rig = rig.kill();
    unreadable(&mut rig, Side::First, &[leaf]);
    flip(&mut rig, Side::Second, leaf);
    let answer = rig.ask(LIVE, RequestKind::Read, 300_000 * BLOCK, BLOCK, None);
    assert_eq!(answer.result, Err(RequestError::Corrupt));
    rig.settle();
    assert_eq!(figures(&rig), (1, 0, 0));
}

pub(super) fn is_promoting(rig: &Rig) -> bool {
    rig.processor.shards()[0].checkpoint.is_promoting()
}

/// Everything is written anew until the place of a block that is not in use any more has been used again.
fn until_reused(rig: &mut Rig, place: u64) {
    let now = |rig: &mut Rig| rig.processor.device_mut().bytes[place as usize * BLOCK..][..BLOCK].to_vec();
    let before = now(rig);
    for round in 0..2000 {
        for block in 0..700 {
            rig.write(block * BLOCK, &pattern((block + round) as u8));
        }
        if round % 8 == 0 {
            assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
        }
        if now(rig) != before {
            return;
        }
    }
    panic!("the place is never used again");
}

/// I5: a block is overwritten, and the checkpoint that frees its place is durable, while it is repaired.
#[test]
fn a_place_is_not_used_again_before_its_repair_has_ended() {
    // What is held back: the first look, the second look, the repair.
    for held in 0..3 {
        let mut rig = mirrored();
        let place = damage(&mut rig, Side::First, FIRST);
        let device = rig.processor.device_mut();
        match held {
            0 => device.held = Some(OperationKind::Read),
            1 => device.held_of_side = Some(OperationKind::Read),
            _ => device.held_of_side = Some(OperationKind::Write),
        }
        rig.send(request(LIVE, RequestKind::Read, FIRST * BLOCK, BLOCK, None));
        (0..20).for_each(|_| rig.turn());
        assert_eq!(rig.processor.device_mut().waiting.len(), 1);
        let answered = usize::from(held == 2);
        assert_eq!(rig.outbox.answers.drain(..).len(), answered);
        rig.write(FIRST * BLOCK, &content(1));
        assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
        (0..100).for_each(|_| rig.turn());
        assert!(is_promoting(&rig), "its place is not free yet");
        if held == 0 {
            // The second look follows from a read that began before the checkpoint was durable.
            let device = rig.processor.device_mut();
            (device.held, device.held_of_side) = (None, Some(OperationKind::Read));
            (0..100).for_each(|_| rig.turn());
            assert_eq!(rig.processor.device_mut().waiting.len(), 1);
            assert!(is_promoting(&rig), "its place is not free yet");
        }
        if held <= 1 {
            // And so does the repair.
            rig.processor.device_mut().held_of_side = Some(OperationKind::Write);
            (0..100).for_each(|_| rig.turn());
            assert_eq!(rig.processor.device_mut().waiting.len(), 1);
            assert!(is_promoting(&rig), "its place is not free yet");
            let answer = rig.outbox.answers.pop().expect("read");
            assert_eq!(answer.result, Ok(()));
            assert_eq!(answer.buffer.expect("a buffer").bytes(), content(FIRST));
        }
        rig.processor.device_mut().held_of_side = None;
        rig.settle();
        assert!(!is_promoting(&rig));
        assert_eq!(figures(&rig), (0, 1, 0));
        until_reused(&mut rig, place);
        rig.settle();
        let device = rig.processor.device_mut();
        assert!(
            device.second.as_ref() == Some(&device.bytes),
            "one is as the other"
        );
        assert_eq!(rig.read(LIVE, FIRST * BLOCK, BLOCK), content(1));
        assert_eq!(figures(&rig), (0, 1, 0));
    }
}
