//! Background work: it always ends or answers, and one volume's trouble is its own.

use super::adverse::{LEAF, small_cache, wide_volume};
use super::*;

/// A rig whose volume has a thousand mapped leaves, none of which is in the cache, and what is asked of it.
fn rig_with_cold_leaves() -> Rig {
    let mut rig = Rig::with(64 << 20, small_cache());
    for leaf in 0..1000 {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    rig.used_blocks();
    rig = rig.kill();
    rig.settle();
    rig
}

fn shrink() -> ShardCommand {
    ShardCommand::ResizeVolume {
        volume: VOLUME,
        share_blocks: 256,
    }
}

#[test]
fn a_resize_that_cannot_end_is_answered() {
    let mut rig = rig_with_cold_leaves();
    rig.processor.device_mut().failing = Some(OperationKind::Read);
    assert!(matches!(rig.command(shrink()), EventKind::Failed(_)));

    let mut rig = rig_with_cold_leaves();
    rig.processor.device_mut().held = Some(OperationKind::Read);
    rig.processor
        .command(ShardIndex(0), Ticket(99), shrink(), rig.now);
    rig.turn();
    rig.processor.device_mut().failing = Some(OperationKind::Flush);
    rig.send(request(LIVE, RequestKind::Flush, 0, 0, None));
    for _ in 0..10 {
        rig.turn();
    }
    let answer = rig
        .outbox
        .events
        .iter()
        .find(|event| event.ticket == Some(Ticket(99)));
    assert_eq!(
        answer.map(|event| &event.kind),
        Some(&EventKind::Failed(RequestError::ShardStopped))
    );
}

#[test]
fn a_map_that_cannot_be_read_keeps_no_other_volume_from_being_freed() {
    let mut rig = rig_with_cold_leaves();
    let view = wide_volume(&mut rig);
    let kind = RequestKind::Write { fua: false };
    let answer = rig.ask(view, kind, 0, BLOCK, Some(&[7; BLOCK]));
    assert_eq!(answer.result, Ok(()));
    rig.processor.device_mut().failing = Some(OperationKind::Read);
    assert_eq!(
        rig.command(ShardCommand::DeleteVolume { volume: VOLUME }),
        EventKind::Done
    );
    rig.settle();
    // The other volume's pages are in the cache.
    let volume = view.volume;
    assert_eq!(
        rig.command(ShardCommand::DeleteVolume { volume }),
        EventKind::Done
    );
    rig.settle();
    let freed = EventKind::Notice(Notice::VolumeFreed { volume });
    assert!(rig.outbox.events.iter().any(|event| event.kind == freed));
    // The next life tries again.
    rig = rig.kill();
    rig.settle();
    let freed = EventKind::Notice(Notice::VolumeFreed { volume: VOLUME });
    assert!(rig.outbox.events.iter().any(|event| event.kind == freed));
}

#[test]
fn a_checkpoint_says_when_it_began_and_when_it_was_durable() {
    let mut rig = Rig::new(64 << 20);
    rig.settle();
    rig.write(0, &[1; BLOCK]);
    rig.outbox.events.clear();
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    rig.settle();
    let told: Vec<(u64, u64)> = rig
        .outbox
        .events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::Notice(Notice::Checkpointed {
                began_wall_ns,
                ended_wall_ns,
            }) => Some((began_wall_ns, ended_wall_ns)),
            _ => None,
        })
        .collect();
    let [(began_ns, ended_ns)] = told[..] else {
        panic!("one checkpoint: {told:?}");
    };
    assert!(0 < began_ns && began_ns < ended_ns, "{told:?}");
}

#[test]
fn opening_changes_no_change_log_and_logs_nothing() {
    let mut rig = Rig::new(64 << 20);
    rig.write(5 * LEAF, &[1; BLOCK]);
    rig.snapshot(1);
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    rig = rig.kill();
    rig.settle();
    let EventKind::Snapshots(list) = rig.command(ShardCommand::ListSnapshots { volume: VOLUME }) else {
        panic!("a list")
    };
    assert_eq!((list[0].first_change_ns, list[0].last_change_ns), (0, 0));
    assert_eq!(rig.processor.shards()[0].status().log_used_bytes, 0);
}

/// The most blocks that one turn of the next so many frees; in each so many requests come that are answered at once.
fn freed_in_a_turn(rig: &mut Rig, turns: usize, requests: usize) -> u64 {
    let used = |rig: &Rig| rig.processor.shards()[0].status().used_blocks;
    let mut most = 0;
    for _ in 0..turns {
        let before = used(rig);
        for _ in 0..requests {
            rig.send(request(LIVE, RequestKind::Read, 310 * LEAF, BLOCK, None));
        }
        rig.turn();
        most = most.max(before.saturating_sub(used(rig)));
    }
    most
}

#[test]
fn freeing_takes_small_steps_beside_requests_and_large_ones_alone() {
    let mut rig = Rig::with(256 << 20, ShardOptions::default());
    for leaf in 0..300 {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    rig.snapshot(1);
    for leaf in 0..300 {
        rig.write(leaf * LEAF, &[2; BLOCK]);
    }
    // Somebody waits for an answer while the snapshot is freed.
    rig.processor.device_mut().held = Some(OperationKind::Read);
    rig.send(request(LIVE, RequestKind::Read, 0, BLOCK, None));
    let delete = ShardCommand::DeleteSnapshot {
        volume: VOLUME,
        snapshot: SnapshotId(1),
    };
    assert_eq!(rig.command(delete), EventKind::Done);
    assert_eq!(freed_in_a_turn(&mut rig, 50, 0), 0, "nobody else was answered");
    let beside = freed_in_a_turn(&mut rig, 50, 8);
    assert!(
        (1..=3).contains(&beside),
        "{beside} blocks: one leaf has one block, its page, and perhaps the page above"
    );
    assert!(
        !rig.processor.has_ready_work(),
        "it goes along with the turns of others, and wants none of its own"
    );
    // The answer came; nobody else wants anything.
    let waiting = core::mem::take(&mut rig.processor.device_mut().waiting);
    let device = rig.processor.device_mut();
    device.held = None;
    for mut operation in waiting {
        device.run(&mut operation);
        operation.result = Ok(());
        device.done.push_back(operation);
    }
    rig.turn();
    assert!(
        !rig.processor.has_ready_work(),
        "whoever has all answers may send the next requests in a moment"
    );
    rig.now.monotonic_ns = rig.processor.next_deadline_ns().expect("it goes on by itself");
    rig.turn();
    assert!(
        rig.processor.has_ready_work(),
        "and when there are no others it does"
    );
    let alone = freed_in_a_turn(&mut rig, 10, 0);
    assert!(
        alone >= 16,
        "{alone} blocks: eight leaves, a block and a page each"
    );
    rig.settle();
    let freed = EventKind::Notice(Notice::SnapshotFreed {
        volume: VOLUME,
        snapshot: SnapshotId(1),
    });
    assert!(rig.outbox.events.iter().any(|event| event.kind == freed));
}

#[test]
fn freeing_takes_large_steps_beside_requests_when_space_is_short() {
    let mut rig = Rig::with(64 << 20, ShardOptions::default());
    for leaf in 0..300 {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    rig.snapshot(1);
    for leaf in 0..300 {
        rig.write(leaf * LEAF, &[2; BLOCK]);
    }
    let mut at = 300 * LEAF;
    loop {
        let write = RequestKind::Write { fua: false };
        let answer = rig.ask(LIVE, write, at, 16 * BLOCK, Some(&[3; 16 * BLOCK]));
        match answer.result {
            Ok(()) => at += 16 * BLOCK,
            Err(error) => break assert_eq!(error, RequestError::NoSpace),
        }
    }
    rig.processor.device_mut().held = Some(OperationKind::Read);
    rig.send(request(LIVE, RequestKind::Read, 0, BLOCK, None));
    let delete = ShardCommand::DeleteSnapshot {
        volume: VOLUME,
        snapshot: SnapshotId(1),
    };
    rig.processor.command(ShardIndex(0), Ticket(99), delete, rig.now);
    let freed = freed_in_a_turn(&mut rig, 50, 0);
    assert!(
        freed >= 16,
        "{freed} blocks: eight leaves, a block and a page each"
    );
}

#[test]
fn leaves_that_steps_to_come_need_are_read_together_and_those_that_are_shared_are_not() {
    let mut rig = Rig::with(64 << 20, ShardOptions::default());
    for leaf in 0..1000 {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    rig.snapshot(1);
    for leaf in (0..1000).step_by(10) {
        rig.write(leaf * LEAF, &[2; BLOCK]);
    }
    let used = rig.used_blocks();
    rig = rig.kill();
    rig.settle();
    rig.processor.device_mut().held = Some(OperationKind::Read);
    let delete = ShardCommand::DeleteSnapshot {
        volume: VOLUME,
        snapshot: SnapshotId(1),
    };
    assert_eq!(rig.command(delete), EventKind::Done);
    let (mut rounds, mut reads, mut most) = (0, 0, 0);
    while !rig.processor.is_quiet() {
        rig.turn();
        let waiting = core::mem::take(&mut rig.processor.device_mut().waiting);
        rounds += usize::from(!waiting.is_empty());
        reads += waiting.len();
        most = most.max(waiting.len());
        for mut operation in waiting {
            let device = rig.processor.device_mut();
            device.run(&mut operation);
            operation.result = Ok(());
            device.done.push_back(operation);
        }
        assert!(rounds < 1000, "it does not end");
    }
    assert_eq!(most, 32, "sixteen leaves of both maps at once");
    assert!(rounds < 30, "{rounds} times it waited for the device");
    // A leaf in ten differs, and has a page in each of the two maps; above them are five pages in each.
    assert!((200..=2 * (100 + 5)).contains(&reads), "{reads} pages");
    rig.processor.device_mut().held = None;
    assert_eq!(
        used - rig.used_blocks(),
        100 + 100 + 5,
        "blocks, leaves, and the pages above"
    );
}
