//! Every order in which the messages of one snapshot over two shards can arrive, with every single fault at
//! every place, and with time running out at every place.

use super::model::{Fault, Step, World, request};
use crate::SnapshotError;
use stillpoint_ondisk::catalog::Key;
use stillpoint_processor::{RequestError, ShardCommand, SnapshotId};

const SNAPSHOT: SnapshotId = SnapshotId(7);

/// What may still go wrong in a run.
#[derive(Clone, Copy)]
struct Budget {
    faults: u32,
    waits: u32,
}

#[derive(Debug, Default)]
struct Seen {
    ends: u64,
    committed: u64,
    expired: u64,
    stalled: u64,
    refused: u64,
    failed: u64,
    in_doubt: u64,
}

fn explore(world: &World, budget: Budget, seen: &mut Seen) {
    let ready = world.ready();
    if ready.is_empty() && !world.can_wait() {
        check_the_end(world, seen);
        return;
    }
    for &step in &ready {
        go(world, step, budget, seen);
        if let (Step::Execute(shard, None), true) = (step, budget.faults > 0) {
            let left = Budget {
                faults: budget.faults - 1,
                ..budget
            };
            for fault in faults_of(&world.shards[shard].commands[0].1) {
                go(world, Step::Execute(shard, Some(fault)), left, seen);
            }
        }
    }
    if ready.is_empty() {
        go(world, Step::Wait, budget, seen);
    } else if world.can_wait() && budget.waits > 0 {
        let left = Budget {
            waits: budget.waits - 1,
            ..budget
        };
        go(world, Step::Wait, left, seen);
    }
}

fn go(world: &World, step: Step, budget: Budget, seen: &mut Seen) {
    let mut next = world.clone();
    let releases = next.sent.iter().filter(|(_, name)| *name == "release").count();
    next.step(step);
    check_the_release(&next, releases);
    explore(&next, budget, seen);
}

fn faults_of(command: &ShardCommand) -> Vec<Fault> {
    let mut faults = vec![Fault::LoseCommand, Fault::LoseEvent];
    match command {
        ShardCommand::Prepare { .. } | ShardCommand::Cut { .. } | ShardCommand::Persist { .. } => {
            faults.push(Fault::Refuse);
        }
        ShardCommand::CatalogPut { .. } => {
            faults.push(Fault::Fail(RequestError::NoSpace));
            faults.push(Fault::Fail(RequestError::Io));
        }
        _ => {}
    }
    faults
}

/// When the coordinator releases, every shard has cut (or released by itself, and then refuses to persist).
fn check_the_release(world: &World, releases_before: usize) {
    let releases = world.sent.iter().filter(|(_, name)| *name == "release").count();
    if releases > releases_before {
        for shard in &world.shards {
            assert!(shard.holds() || shard.expired.contains(&SNAPSHOT), "{world:#?}");
        }
    }
}

fn check_the_end(world: &World, seen: &mut Seen) {
    assert!(world.coordinator.is_idle(), "{world:#?}");
    assert_eq!(world.outcomes.len(), 1, "one answer per command: {world:#?}");
    assert!(
        world.shards.iter().all(|shard| !shard.holds()),
        "every hold ends: {world:#?}"
    );
    let commit_record = world.shards[0]
        .catalog
        .contains_key(&Key::Snapshot(SNAPSHOT.0).encode());
    let (snapshot, result) = &world.outcomes[0];
    assert_eq!(*snapshot, SNAPSHOT);
    seen.ends += 1;
    match result {
        Ok(overall) => {
            seen.committed += 1;
            assert!(commit_record, "{world:#?}");
            assert!(
                world.shards.iter().all(|shard| shard.is_durable(SNAPSHOT)),
                "{world:#?}"
            );
            assert!(
                world
                    .shards
                    .iter()
                    .all(|shard| !shard.expired.contains(&SNAPSHOT)),
                "{world:#?}"
            );
            assert_eq!(overall.answers_held(), 6);
        }
        Err(SnapshotError::InDoubt { .. }) => {
            seen.in_doubt += 1;
            assert!(
                world.shards.iter().all(|shard| shard.is_durable(SNAPSHOT)),
                "whole, if it is: {world:#?}"
            );
        }
        Err(error) => {
            assert!(
                world.shards.iter().all(|shard| !shard.has_trace_of(SNAPSHOT)),
                "{error}: {world:#?}"
            );
            assert!(
                world.shards.iter().all(|shard| shard.catalog.is_empty()),
                "{error}: {world:#?}"
            );
            match error {
                SnapshotError::HoldExpired { .. } => seen.expired += 1,
                SnapshotError::Stalled { .. } => seen.stalled += 1,
                SnapshotError::Refused { .. } => seen.refused += 1,
                SnapshotError::Failed { .. } => seen.failed += 1,
                other => panic!("nobody asked for {other}"),
            }
        }
    }
}

fn explore_all(faults: u32, waits: u32) -> Seen {
    let mut world = World::new(2);
    world.create(request(SNAPSHOT.0, &[1], 2));
    let mut seen = Seen::default();
    explore(&world, Budget { faults, waits }, &mut seen);
    seen
}

#[test]
fn every_order_of_messages_commits() {
    let seen = explore_all(0, 0);
    // Prepare and cut: two chains of two messages each; release and persist: two of four; a figures row, a row
    // of marks and the record, whose answer is the end: five orders up to there.
    assert_eq!(seen.ends, 6 * 6 * 70 * 5, "{seen:?}");
    assert_eq!(seen.ends, seen.committed);
}

#[test]
fn every_lost_late_or_refused_message_ends_in_release_and_in_all_or_nothing() {
    let seen = explore_all(1, 0);
    for count in [
        seen.committed,
        seen.expired,
        seen.stalled,
        seen.refused,
        seen.failed,
        seen.in_doubt,
    ] {
        assert!(count > 0, "{seen:?}");
    }
}

#[test]
fn time_running_out_anywhere_ends_in_release_and_in_all_or_nothing() {
    let seen = explore_all(0, 1);
    for count in [seen.committed, seen.expired, seen.stalled, seen.in_doubt] {
        assert!(count > 0, "{seen:?}");
    }
}
