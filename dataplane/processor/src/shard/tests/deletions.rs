//! How far the freeing of a snapshot has come: told while it goes on, across a crash, and when it cannot go on.

use super::adverse::{LEAF, small_cache};
use super::*;
use crate::command::{DeletionState, DeletionStatus};

const LEAVES: usize = 400;

/// A rig with a snapshot of as many leaves, all of which were written over since.
fn rig() -> Rig {
    let mut rig = Rig::with(64 << 20, small_cache());
    for (pass, snapshot) in [(1, Some(1)), (2, None)] {
        for leaf in 0..LEAVES {
            rig.write(leaf * LEAF, &[pass; BLOCK]);
        }
        if let Some(snapshot) = snapshot {
            rig.snapshot(snapshot);
        }
    }
    rig
}

fn deletion(rig: &mut Rig, snapshot: u64) -> Vec<DeletionStatus> {
    let snapshot = SnapshotId(snapshot);
    match rig.command(ShardCommand::Deletion { snapshot }) {
        EventKind::Deletion(found) => found,
        other => panic!("{other:?}"),
    }
}

fn delete(rig: &mut Rig) {
    let command = ShardCommand::DeleteSnapshot {
        volume: VOLUME,
        snapshot: SnapshotId(1),
    };
    rig.processor.command(ShardIndex(0), Ticket(77), command, rig.now);
}

/// Asks for the deletion and takes turns until it is in its middle.
fn delete_half(rig: &mut Rig) -> DeletionStatus {
    delete(rig);
    for _ in 0..100_000 {
        rig.turn();
        let shard = &rig.processor.shards()[0];
        let found = shard.deletions(SnapshotId(1));
        if let [status] = found[..]
            && status.walked_blocks > 0
        {
            assert_eq!(status.state, DeletionState::Going);
            assert!(status.walked_blocks < status.share_blocks, "{status:?}");
            return status;
        }
    }
    panic!("it does not begin");
}

#[test]
fn the_way_that_is_left_shrinks_until_all_is_freed() {
    let mut rig = rig();
    let kept = deletion(&mut rig, 1);
    assert_eq!((kept.len(), kept[0].state), (1, DeletionState::Kept));
    assert_eq!(deletion(&mut rig, 9), []);
    let half = delete_half(&mut rig);
    assert!(half.freed_blocks > 0 && half.freed_blocks < LEAVES as u64);
    rig.settle();
    let end = deletion(&mut rig, 1);
    assert_eq!((end.len(), end[0].state), (1, DeletionState::Gone));
    // A block and a leaf page each, and the pages above them.
    assert!(end[0].freed_blocks > 2 * LEAVES as u64, "{end:?}");
    assert_eq!((end[0].share_blocks, end[0].walked_blocks), (0, 0));
}

#[test]
fn a_crash_in_the_middle_is_gone_on_from() {
    let mut rig = rig();
    rig.settle();
    let before = rig.used_blocks();
    delete_half(&mut rig);
    rig = rig.kill();
    let resumed = rig.processor.shards()[0].deletions(SnapshotId(1));
    assert_eq!((resumed.len(), resumed[0].state), (1, DeletionState::Going));
    rig.settle();
    assert!(
        rig.processor.shards()[0]
            .deletions(SnapshotId(1))
            .iter()
            .all(|status| status.state == DeletionState::Gone)
    );
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    assert!(rig.used_blocks() + LEAVES as u64 <= before, "the space is back");
    for leaf in 0..LEAVES {
        assert_eq!(rig.read(LIVE, leaf * LEAF, BLOCK), [2; BLOCK]);
    }
}

#[test]
fn whatever_keeps_it_up_is_told() {
    let mut branched = rig();
    let clone = ShardCommand::CloneVolume {
        volume: VolumeId(70),
        origin: VOLUME,
        snapshot: SnapshotId(1),
    };
    assert_eq!(branched.command(clone), EventKind::Done);
    delete(&mut branched);
    branched.settle();
    assert_eq!(deletion(&mut branched, 1)[0].state, DeletionState::Branches);
    // Of two maps that were made of it, one goes: then it has its turn too.
    let volume = VolumeId(70);
    branched.processor.command(
        ShardIndex(0),
        Ticket(78),
        ShardCommand::DeleteVolume { volume },
        branched.now,
    );
    branched.turn();
    let state = branched.processor.shards()[0].deletions(SnapshotId(1))[0].state;
    assert!(
        matches!(state, DeletionState::Going | DeletionState::Gone),
        "{state:?}"
    );
    branched.settle();
    assert_eq!(deletion(&mut branched, 1)[0].state, DeletionState::Gone);

    let mut unreadable = rig();
    unreadable.used_blocks();
    unreadable = unreadable.kill();
    unreadable.settle();
    unreadable.processor.device_mut().failing = Some(OperationKind::Read);
    delete(&mut unreadable);
    unreadable.settle();
    assert_eq!(deletion(&mut unreadable, 1)[0].state, DeletionState::Unreadable);

    let mut stopped = rig();
    delete_half(&mut stopped);
    stopped.write(0, &[3; BLOCK]);
    stopped.processor.device_mut().failing = Some(OperationKind::Flush);
    stopped.send(request(LIVE, RequestKind::Flush, 0, 0, None));
    for _ in 0..10 {
        stopped.turn();
    }
    let state = stopped.processor.shards()[0].deletions(SnapshotId(1))[0].state;
    assert_eq!(state, DeletionState::Stopped);

    // One that was not deleted before the shard stopped will not be: whoever waits for it is told.
    let mut late = rig();
    late.write(0, &[3; BLOCK]);
    late.processor.device_mut().failing = Some(OperationKind::Flush);
    late.send(request(LIVE, RequestKind::Flush, 0, 0, None));
    for _ in 0..10 {
        late.turn();
    }
    let state = late.processor.shards()[0].deletions(SnapshotId(1))[0].state;
    assert_eq!(state, DeletionState::Stopped);
}
