//! Several snapshots at a time, several faults, any order: what one snapshot with one fault cannot show.

use super::model::{Fault, Step, World, request};
use crate::SnapshotError;
use proptest::prelude::*;
use stillpoint_ondisk::catalog::Key;
use stillpoint_processor::{RequestError, ShardCommand};

const SHARDS: u16 = 3;

/// The fault that `choice` means for a command, if any.
fn fault(choice: u8, command: &ShardCommand) -> Option<Fault> {
    match (choice, command) {
        (0, _) => Some(Fault::LoseEvent),
        // A commit record or its removal that is lost is not tried again: only its answer may be.
        (1, ShardCommand::CatalogDelete { .. }) => None,
        (1, _) => Some(Fault::LoseCommand),
        (2, ShardCommand::Prepare { .. } | ShardCommand::Cut { .. } | ShardCommand::Persist { .. }) => {
            Some(Fault::Refuse)
        }
        (2, ShardCommand::CatalogPut { .. }) => Some(Fault::Fail(RequestError::Io)),
        _ => None,
    }
}

fn run(world: &mut World, choices: &[(u8, u8)]) {
    for &(which, luck) in choices {
        let ready = world.ready();
        let step = if ready.is_empty() || (luck > 250 && world.can_wait()) {
            if !world.can_wait() {
                return;
            }
            Step::Wait
        } else {
            match ready[usize::from(which) % ready.len()] {
                Step::Execute(shard, _) => {
                    Step::Execute(shard, fault(luck, &world.shards[shard].commands[0].1))
                }
                step => step,
            }
        };
        world.step(step);
    }
    world.run();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_snapshot_is_whole_or_was_never_there(
        groups in prop::collection::vec(prop::collection::btree_set(1u32..4, 1..3), 1..6),
        choices in prop::collection::vec((any::<u8>(), any::<u8>()), 0..200),
    ) {
        let mut world = World::new(SHARDS);
        for (number, volumes) in groups.iter().enumerate() {
            let volumes: Vec<u32> = volumes.iter().copied().collect();
            world.create(request(number as u64 + 1, &volumes, SHARDS));
        }
        run(&mut world, &choices);
        prop_assert!(world.coordinator.is_idle());
        prop_assert_eq!(world.outcomes.len(), groups.len(), "one answer per command");
        prop_assert!(world.shards.iter().all(|shard| !shard.holds()), "every hold ends");
        for (snapshot, result) in &world.outcomes {
            let record = world.shards[0].catalog.contains_key(&Key::Snapshot(snapshot.0).encode());
            let whole = world.shards.iter().all(|shard| shard.is_durable(*snapshot));
            let expired = world.shards.iter().any(|shard| shard.expired.contains(snapshot));
            match result {
                Ok(_) => prop_assert!(record && whole && !expired, "{:?}", snapshot),
                Err(SnapshotError::InDoubt { .. }) => prop_assert!(whole, "{:?}", snapshot),
                Err(_) => prop_assert!(!record, "{:?}", snapshot),
            }
        }
        let stamps: Vec<_> = world.outcomes.iter().filter_map(|(_, result)| result.as_ref().ok()).collect();
        for (index, earlier) in stamps.iter().enumerate() {
            for later in &stamps[index + 1..] {
                let shared = earlier.volumes.iter().any(|of| later.volumes.contains(of));
                prop_assert!(!shared || earlier.time_stamp < later.time_stamp, "snapshots of a volume are in order");
            }
        }
    }
}
