//! Scrubbing mirrors: both sides are read, and each is repaired from the other.

use super::mirrors::{
    FIRST, content, damage, damage_both, far_leaf, flip, is_promoting, is_sound, mirrored, notices,
};
use super::rig::{BLOCK, LIVE, Rig};
use super::scrub::{AT_ONCE, begin, scrub, status};
use crate::ShardCommand;
use crate::command::{EventKind, Notice, ScrubSide, ScrubState};
use crate::ports::{OperationKind, Side};

fn sides(rig: &Rig) -> [ScrubSide; 2] {
    status(rig).sides
}

fn side(read_blocks: u64, repaired_blocks: u64, unrepaired_blocks: u64) -> ScrubSide {
    ScrubSide {
        read_blocks,
        repaired_blocks,
        unrepaired_blocks,
    }
}

#[test]
fn both_sides_are_read_and_each_is_repaired_from_the_other() {
    let mut rig = mirrored();
    let (found, told) = scrub(&mut rig);
    let all = found.checked_blocks;
    assert_eq!((found.damaged_blocks, told), (0, vec![]));
    assert_eq!(found.sides, [side(all, 0, 0), side(all, 0, 0)]);
    let leaf = far_leaf(&mut rig);
    flip(&mut rig, Side::First, leaf);
    let of_first = damage(&mut rig, Side::First, FIRST + 1);
    let of_second = [2, 3, 9].map(|block| (FIRST + block, damage(&mut rig, Side::Second, FIRST + block)));
    let of_both = damage_both(&mut rig, FIRST + 5);
    notices(&mut rig);
    let (found, told) = scrub(&mut rig);
    assert_eq!((found.checked_blocks, found.damaged_blocks), (all, 1));
    assert_eq!(found.sides, [side(all, 2, 1), side(all, 3, 1)]);
    assert_eq!((told.len(), told[0].first.0), (1, FIRST as u64 + 5));
    assert!(is_sound(&mut rig, Side::First, of_first, FIRST + 1));
    for (block, place) in of_second {
        assert!(is_sound(&mut rig, Side::Second, place, block));
    }
    let device = rig.processor.device_mut();
    let second = device.second.as_ref().expect("a second side");
    let differ = |block: &u64| {
        let at = *block as usize * BLOCK;
        second[at..at + BLOCK] != device.bytes[at..at + BLOCK]
    };
    let blocks = (device.bytes.len() / BLOCK) as u64;
    // Both halves of that were damaged in the same way.
    assert_eq!((0..blocks).find(differ), None, "all but {of_both} is whole");
    // What was repaired is sound, and the rest is as it was.
    assert_eq!(scrub(&mut rig).0.sides, [side(all, 0, 1), side(all, 0, 1)]);
}

#[test]
fn what_a_side_cannot_read_is_repaired_by_a_scrub_and_damage_is_not_copied() {
    for side in Side::BOTH {
        let mut rig = mirrored();
        let all = scrub(&mut rig).0.checked_blocks;
        let unreadable = damage(&mut rig, side, FIRST + 1);
        rig.processor.device_mut().unreadable_of[side.index()].insert(unreadable);
        let damaged = damage(&mut rig, side.other(), FIRST + 2);
        let (found, told) = scrub(&mut rig);
        assert_eq!((found.checked_blocks, told), (all, vec![]));
        assert!(is_sound(&mut rig, side, unreadable, FIRST + 1));
        assert!(is_sound(&mut rig, side.other(), damaged, FIRST + 2));
        let repaired = found
            .sides
            .map(|side| (side.repaired_blocks, side.unrepaired_blocks));
        assert_eq!(repaired, [(1, 0); 2]);
        // Not readable here, damaged there.
        let lost = damage_both(&mut rig, FIRST + 3);
        rig.processor.device_mut().unreadable_of[side.index()].insert(lost);
        let found = scrub(&mut rig).0;
        assert_eq!((found.checked_blocks, found.damaged_blocks), (all, 1));
        let unrepaired = found
            .sides
            .map(|side| (side.repaired_blocks, side.unrepaired_blocks));
        assert_eq!(unrepaired, [(0, 1); 2]);
        assert!(rig.processor.device_mut().unreadable_of[side.index()].contains(&lost));
        // On neither.
        rig.processor.device_mut().unreadable_of = [[lost].into(), [lost].into()];
        let found = scrub(&mut rig).0;
        assert_eq!((found.checked_blocks, found.damaged_blocks), (all, 1));
        assert!(found.damage[0].device_error.is_some());
    }
}

#[test]
fn a_repair_of_a_scrub_that_fails_is_in_its_report() {
    let mut rig = mirrored();
    damage(&mut rig, Side::Second, FIRST);
    rig.processor.device_mut().repairs_fail = true;
    notices(&mut rig);
    let (found, told) = scrub(&mut rig);
    let all = found.checked_blocks;
    assert_eq!((found.damaged_blocks, told), (0, vec![]));
    assert_eq!(found.sides, [side(all, 0, 0), side(all, 0, 1)]);
    assert_eq!(rig.processor.shards()[0].status().repair_failures, 1);
}

#[test]
fn a_side_that_goes_out_does_not_keep_a_scrub_from_its_end() {
    let mut rig = mirrored();
    let all = scrub(&mut rig).0.checked_blocks;
    rig.processor.device_mut().held_of_side = Some(OperationKind::Read);
    begin(&mut rig, AT_ONCE);
    for _ in 0..100 {
        rig.turn();
    }
    assert_eq!(rig.processor.device_mut().waiting.len(), 1);
    rig.processor.device_mut().second = None;
    rig.processor.device_mut().held_of_side = None;
    for _ in 0..10_000 {
        rig.turn();
    }
    let found = status(&rig);
    assert_eq!(
        (found.state, found.checked_blocks, found.damaged_blocks),
        (ScrubState::Done, all, 0)
    );
    assert_eq!(found.sides, [ScrubSide::default(); 2]);
}

/// I5, and a scrub that is paused in the middle of a repair.
#[test]
fn a_place_is_not_used_again_before_the_scrub_has_repaired_it() {
    let mut rig = mirrored();
    damage(&mut rig, Side::Second, FIRST);
    rig.processor.device_mut().held_of_side = Some(OperationKind::Write);
    begin(&mut rig, AT_ONCE);
    for _ in 0..10_000 {
        rig.turn();
    }
    assert_eq!(rig.processor.device_mut().waiting.len(), 1, "a repair");
    rig.write(FIRST * BLOCK, &content(1));
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    for _ in 0..100 {
        rig.turn();
    }
    assert!(is_promoting(&rig), "its place is not free yet");
    assert_eq!(rig.command(ShardCommand::PauseScrub), EventKind::Done);
    notices(&mut rig);
    rig.processor.device_mut().held_of_side = None;
    rig.settle();
    assert!(!is_promoting(&rig));
    assert!(matches!(
        notices(&mut rig)[..],
        [Notice::Repaired {
            blocks: 1,
            side: Side::Second,
            ..
        }]
    ));
    assert_eq!(sides(&rig)[1].repaired_blocks, 1);
    let resume = ShardCommand::ResumeScrub {
        rate_bytes_per_s: None,
    };
    assert_eq!(rig.command(resume), EventKind::Done);
    for _ in 0..10_000 {
        rig.turn();
    }
    assert_eq!(
        (status(&rig).state, status(&rig).damaged_blocks),
        (ScrubState::Done, 0)
    );
    assert_eq!(rig.read(LIVE, FIRST * BLOCK, BLOCK), content(1));
}
