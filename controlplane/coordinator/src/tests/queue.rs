//! Laws of the queue, the order of commands, the figures, and the errors' words.

use super::model::{HOLD_LIMIT_NS, STEP_LIMIT_NS, Step, World, request};
use crate::{ACTIVE_MAX, QUEUE_MAX, SnapshotError, Written};
use stillpoint_ondisk::catalog::{Key, Value};
use stillpoint_processor::command::RefusedReason;
use stillpoint_processor::{ShardIndex, SnapshotId, TimeStamp, VolumeId};

#[test]
fn the_steps_come_in_order() {
    let mut world = World::new(2);
    world.create(request(1, &[1], 2));
    world.run();
    let order: Vec<&str> = world.sent.iter().map(|(_, name)| *name).collect();
    let first = |name| order.iter().position(|&n| n == name).expect("sent");
    let last = |name| order.iter().rposition(|&n| n == name).expect("sent");
    assert!(last("prepare") < first("cut"));
    assert!(last("cut") < first("release"));
    assert!(last("release") < first("persist"));
    assert!(last("persist") < first("put"));
    assert!(
        world.sent[first("put")..]
            .iter()
            .all(|&(shard, name)| shard == 0 && name == "put")
    );
}

#[test]
fn the_commit_record_says_what_the_answer_says() {
    let mut world = World::new(3);
    world.create(request(9, &[4, 5], 3));
    world.run();
    let overall = world.outcomes[0].1.clone().expect("nothing went wrong");
    assert_eq!(overall.holds.len(), 3);
    assert_eq!((overall.answers_held(), overall.answer_held_ns_max()), (9, 2));
    let catalog = &world.shards[0].catalog;
    let key = Key::Snapshot(9);
    let Ok(Value::Snapshot(head, volumes, name)) = Value::decode(key, &catalog[&key.encode()]) else {
        panic!("a snapshot row")
    };
    assert_eq!((name, head.shard_count.get()), ("s9", 3));
    assert_eq!(head.time_stamp_ns.get(), overall.time_stamp.0);
    assert_eq!(volumes.iter().map(|v| v.volume.get()).collect::<Vec<_>>(), [4, 5]);
    let key = Key::Figures {
        snapshot: 9,
        first_shard: 0,
    };
    let Ok(Value::Figures(head, rows)) = Value::decode(key, &catalog[&key.encode()]) else {
        panic!("a figures row")
    };
    assert_eq!(rows.len(), 3);
    // What the shards told, and the records and rows of three rows of the catalog.
    let of_catalog: usize = catalog.iter().map(|(key, value)| key.len() + value.len()).sum();
    let row_bytes = of_catalog + 3 * stillpoint_ondisk::directory::ROW_HEADER_BYTES;
    let records = catalog.iter().map(|(key, value)| {
        let put = stillpoint_ondisk::record::Record::CatalogPut { key, value };
        put.encoded_bytes()
    });
    let record_bytes: usize = records.sum();
    let up = |bytes: usize| bytes.next_multiple_of(8) as u64;
    assert_eq!(overall.written.log_bytes, up(3 * 80 + record_bytes));
    assert_eq!(overall.written.metadata_bytes, up(3 * 200 + row_bytes));
    assert_eq!(overall.written, Written::default().and(&head));
    let key = Key::Marks(9);
    let Ok(Value::Marks(marks)) = Value::decode(key, &catalog[&key.encode()]) else {
        panic!("a row of marks")
    };
    assert_eq!((marks.schedule.get(), marks.locked_until_ns.get()), (7, 8));
    assert_eq!(overall.marks, request(9, &[4, 5], 3).marks);
}

#[test]
fn figures_of_many_shards_take_several_rows() {
    let mut world = World::new(130);
    world.create(request(1, &[1], 130));
    world.run();
    let keys: Vec<Key> = world.shards[0]
        .catalog
        .keys()
        .map(|key| Key::decode(key).expect("a catalog key"))
        .collect();
    let figures = |first_shard| Key::Figures {
        snapshot: 1,
        first_shard,
    };
    let expected = [
        figures(0),
        figures(64),
        figures(128),
        Key::Marks(1),
        Key::Snapshot(1),
    ];
    assert_eq!(keys, expected);
}

#[test]
fn snapshots_of_one_volume_take_turns_and_their_time_stamps_rise() {
    let mut world = World::new(2);
    for snapshot in 1..=5 {
        world.create(request(snapshot, &[1], 2));
    }
    assert_eq!(
        world.sent.iter().filter(|(_, name)| *name == "prepare").count(),
        2,
        "one at a time"
    );
    world.run();
    let order: Vec<u64> = world.outcomes.iter().map(|(snapshot, _)| snapshot.0).collect();
    assert_eq!(order, [1, 2, 3, 4, 5]);
    let stamps: Vec<_> = world
        .outcomes
        .iter()
        .map(|(_, result)| result.as_ref().expect("committed").time_stamp)
        .collect();
    assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
}

#[test]
fn snapshots_of_different_volumes_do_not_wait_for_each_other() {
    let mut world = World::new(2);
    world.create(request(1, &[1], 2));
    world.create(request(2, &[1, 2], 2));
    world.create(request(3, &[2], 2));
    world.create(request(4, &[3], 2));
    let prepares = world.sent.iter().filter(|(_, name)| *name == "prepare").count();
    assert_eq!(prepares, 4, "1 and 4 run; 2 waits for 1, 3 waits for 2");
    world.run();
    let order: Vec<u64> = world.outcomes.iter().map(|(snapshot, _)| snapshot.0).collect();
    assert!(
        order.iter().position(|&s| s == 2) < order.iter().position(|&s| s == 3),
        "{order:?}"
    );
    assert!(world.outcomes.iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn a_full_queue_says_busy_at_once() {
    let mut world = World::new(1);
    for snapshot in 0..(1 + QUEUE_MAX as u64) {
        world.create(request(snapshot, &[1], 1));
    }
    assert!(world.outcomes.is_empty());
    world.create(request(1000, &[1], 1));
    assert_eq!(
        world.outcomes,
        [(
            SnapshotId(1000),
            Err(SnapshotError::Busy { queue_max: QUEUE_MAX })
        )]
    );
    world.run();
    assert_eq!(world.outcomes.len(), 2 + QUEUE_MAX);
}

#[test]
fn no_more_than_the_limit_are_active() {
    let mut world = World::new(1);
    for volume in 0..20 {
        world.create(request(u64::from(volume), &[volume], 1));
    }
    assert_eq!(world.sent.len(), ACTIVE_MAX);
    world.run();
    assert!(world.outcomes.len() == 20 && world.outcomes.iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn shutting_down_aborts_what_is_not_being_committed() {
    let mut world = World::new(2);
    world.create(request(1, &[1], 2));
    world.create(request(2, &[1], 2));
    for step in [
        Step::Execute(0, None),
        Step::Execute(1, None),
        Step::Deliver(0),
        Step::Deliver(1),
    ] {
        world.step(step);
    }
    world.step(Step::Execute(0, None));
    assert!(world.shards[0].holds());
    world.shut_down();
    world.create(request(3, &[2], 2));
    world.run();
    assert!(world.coordinator.is_idle());
    assert_eq!(world.outcomes.len(), 3);
    assert!(
        world
            .outcomes
            .iter()
            .all(|(_, result)| *result == Err(SnapshotError::ShuttingDown))
    );
    assert!(
        world
            .shards
            .iter()
            .all(|shard| !shard.holds() && !shard.has_trace_of(SnapshotId(1)))
    );
}

#[test]
fn a_stalled_shard_is_named() {
    let mut world = World::new(2);
    world.create(request(1, &[1], 2));
    for step in [Step::Execute(0, None), Step::Deliver(0)] {
        world.step(step);
    }
    world.shards[1].commands.clear();
    world.run();
    let error = world.outcomes[0].1.clone().expect_err("shard 1 never prepared");
    let expected = SnapshotError::Stalled {
        shard: ShardIndex(1),
        step: crate::Step::Prepare,
        step_limit_ns: STEP_LIMIT_NS,
    };
    assert_eq!(error, expected);
    assert!(
        error.to_string().starts_with("shard 1 did not prepare within "),
        "{error}"
    );
}

#[test]
fn errors_name_the_shard_the_step_and_the_reason() {
    let refused = SnapshotError::Refused {
        shard: ShardIndex(3),
        step: crate::Step::Prepare,
        reason: RefusedReason::NoSuchVolume(VolumeId(8)),
    };
    assert_eq!(
        refused.to_string(),
        "shard 3 refused to prepare: it has no volume 8"
    );
    let expired = SnapshotError::HoldExpired {
        shard: ShardIndex(0),
        hold_limit_ns: HOLD_LIMIT_NS * 1_000_000,
    };
    assert_eq!(
        expired.to_string(),
        "shard 0 was not ready within the hold limit of 10 ms; all held answers were released"
    );
}

#[test]
fn time_stamps_go_on_from_the_newest_snapshot_whatever_the_clock_says() {
    let mut world = World::new(1);
    let newest = 1 << 62; // far ahead of this world's clock, as after the clock was set back
    world.coordinator.go_on_from(TimeStamp(newest));
    for number in 1..=3 {
        world.create(request(number, &[1], 1));
        world.run();
    }
    // An older one takes nothing back.
    world.coordinator.go_on_from(TimeStamp(5));
    world.create(request(4, &[1], 1));
    world.run();
    let stamps: Vec<u64> = world
        .outcomes
        .iter()
        .map(|(_, outcome)| outcome.as_ref().expect("nothing went wrong").time_stamp.0)
        .collect();
    assert_eq!(stamps, [newest + 1, newest + 2, newest + 3, newest + 4]);
}
