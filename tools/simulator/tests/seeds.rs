//! Seeds that found something once, and a look at whether the simulation gets into enough trouble.

use stillpoint_simulator::scenario::{self, Kind};
use stillpoint_simulator::world::Coverage;

/// Seeds that are run in any case, and at most: some troubles are rare, and which seed meets them changes with the code.
const SEEDS_MIN: u64 = 300;
const SEEDS_MAX: u64 = 1000;

const TROUBLES: &[&str] = &[
    "answers held",
    "blocks dropped in recovery",
    "change log volume: a write is refused because it is full",
    "change log volume: a write waits for room",
    "change log volumes named by volumes",
    "change log volumes that became nearly full",
    "checkpoint: begun because the log is half full",
    "checkpoints",
    "clone: a share begins as a snapshot is",
    "clones deleted",
    "clones promoted",
    "coordinator: a shard stalls",
    "coordinator: asks for an abort again",
    "coordinators that died",
    "crashes during recovery",
    "damage noticed",
    "intermediate snapshots freed",
    "intermediate snapshots without a commit record",
    "kills",
    "log records replayed",
    "log tail records replayed",
    "map pages read back",
    "mirror: a chunk waits for writes",
    "mirror: a read is begun again because sides changed meanwhile",
    "mirror: a side goes out that failed elsewhere",
    "mirror: a stale page says more and is flushed",
    "mirror: a write waits for a chunk that is copied",
    "mirror: an answer waits for the labels",
    "mirror: no buffer to copy or note with",
    "mirror: what one side has damaged is asked of the other",
    "mirrors: audits of both sides",
    "mirrors: blocks that rotted on one side",
    "mirrors: pages that were not the same on both sides",
    "mirrors: pools opened with a side missing",
    "mirrors: pools opened with the other side missing",
    "mirrors: recoveries with all data on each side",
    "mirrors: shards whose side is missing since the start, and what it may lack is known",
    "mirrors: sides that joined again",
    "mirrors: sides that lost their power beside a kill",
    "mirrors: sides that were lost",
    "mirrors: sides that were replaced",
    "nbd: a payload is received into its own buffer",
    "nbd: a write waits for memory",
    "nbd: as many requests as may be",
    "nbd connections cut",
    "nbd connections ended by the appliance",
    "nbd exports that were just withdrawn",
    "nbd reads of snapshots",
    "nbd requests refused as they must be",
    "nbd requests refused on the way out",
    "nbd requests whose connection was cut",
    "parts of change log volumes counted exactly",
    "parts of change log volumes that hold enough",
    "power cuts",
    "processor: a buffer of the reserve is used",
    "reclaim: a live map goes and its snapshots stay",
    "reclaim: a snapshot waits until one map only was made of it",
    "reclaim: what a clone was made of is freed",
    "recoveries with all space accounted for",
    "recovery: data in doubt is verified",
    "requests failed by device errors",
    "shard: a request waits for a buffer",
    "shards stopped by device errors",
    "snapshots aborted at the hold's deadline",
    "snapshots compared",
    "snapshots deleted",
    "snapshots dropped to make room",
    "snapshots that went over to a promoted clone",
    "snapshots taken",
    "volumes cloned",
    "volumes resized",
    "volumes rolled back",
    "write: a partial block changed meanwhile and is merged again",
    "write: several requests in one device write",
    "write: space in several pieces",
    "writes refused for lack of space",
];

#[test]
fn a_few_seeds_keep_all_laws_and_meet_all_kinds_of_trouble() {
    let mut total = Coverage::default();
    let unmet = |total: &Coverage| {
        let was_met = |what: &str| total.0.get(what).is_some_and(|count| *count > 0);
        TROUBLES.iter().find(|what| !was_met(what)).copied()
    };
    for seed in 1..=SEEDS_MAX {
        if seed > SEEDS_MIN && unmet(&total).is_none() {
            break;
        }
        match scenario::run(seed, false) {
            Ok(coverage) => total.merge(&coverage),
            Err(broken) => panic!("seed {seed}: {}", broken.0),
        }
    }
    assert_eq!(unmet(&total), None, "{total:?}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    // What they come across includes how often they pass each branch of the shipping code.
    for (kind, seed) in [(Kind::Appliance, 7), (Kind::Appliance, 8), (Kind::History, 7)] {
        let run = || scenario::run_kind(kind, seed, false);
        let (first, second) = (run(), run());
        assert!(
            first.as_ref().is_ok_and(|coverage| coverage.0.len() > 20),
            "{first:?}"
        );
        assert_eq!(first, second);
    }
}

#[test]
fn a_few_histories_are_those_of_registers_with_snapshots_that_are_prefixes() {
    let mut total = Coverage::default();
    for seed in 1..=8 {
        match scenario::run_kind(Kind::History, seed, false) {
            Ok(coverage) => total.merge(&coverage),
            Err(broken) => panic!("seed {seed}: {}", broken.0),
        }
    }
    for (what, least) in [
        ("history: blocks that are registers", 500),
        ("history: operations", 10_000),
        ("history: snapshots that are prefixes", 20),
        ("kills", 3),
        ("nbd requests", 1_000),
    ] {
        let count = total.0.get(what).copied().unwrap_or(0);
        assert!(count >= least, "{count} {what} in {total:?}");
    }
}

/// What each seed found is in the commit that added it. The plan of a seed changes with the simulator, so this list
/// is no proof; the laws of the processor crate are.
#[test]
fn seeds_that_found_bugs_pass() {
    for seed in [2, 45, 93, 439, 456, 473, 717, 771, 1230, 2982] {
        if let Err(broken) = scenario::run(seed, false) {
            panic!("seed {seed}: {}", broken.0);
        }
    }
}

/// Leaves much time between the first shard's cut and the last one's.
#[cfg(feature = "planted-bugs")]
fn slow_messages(plan: &mut scenario::Plan) {
    plan.pace.message_ns = 50_000;
    plan.habits.latency_ns = 2_000;
    plan.think_ns = 0;
    plan.clients = 12;
    plan.operator_percent = 10;
    plan.hold_ns_max = 10_000_000;
}

/// The checks can fail: without held answers, snapshots are found that show an effect without its cause.
#[cfg(feature = "planted-bugs")]
#[test]
fn without_held_answers_some_snapshot_is_not_one_instant() {
    let broken = (1..=400).find_map(|seed| {
        scenario::run_with(seed, false, |plan| {
            slow_messages(plan);
            plan.shard_options.planted_bug = Some(stillpoint_processor::PlantedBug::AnswersNotHeld);
        })
        .err()
    });
    let broken = broken.expect("a causality violation");
    assert!(broken.0.contains("I7"), "{}", broken.0);
}

/// The same plans with held answers: what the test before finds is the missing hold and nothing else.
#[cfg(feature = "planted-bugs")]
#[test]
fn without_the_planted_bug_the_same_plans_pass() {
    for seed in 1..=60 {
        if let Err(broken) = scenario::run_with(seed, false, slow_messages) {
            panic!("seed {seed}: {}", broken.0);
        }
    }
}

/// Lets hosts flush over NBD, and as little as possible flush besides.
#[cfg(feature = "planted-bugs")]
fn hosts_that_flush(plan: &mut scenario::Plan) {
    plan.nbd.clients = 6;
    plan.nbd.depth = 4;
    plan.nbd.cuts = 0;
    plan.nbd.think_ns = 50_000;
    plan.clients = 1;
    plan.think_ns = 50_000;
    plan.habits.flush_ns = 500_000;
    plan.device_errors = 0;
    plan.operations.truncate(2);
}

/// The checks can fail: a session that replies to a flush before all shards have flushed is found at a power cut.
#[cfg(feature = "planted-bugs")]
#[test]
fn without_waiting_for_all_parts_of_a_flush_flushed_data_is_lost() {
    let broken = (1..=400).find_map(|seed| {
        scenario::run_with(seed, false, |plan| {
            hosts_that_flush(plan);
            plan.nbd.flushes_replied_early = true;
        })
        .err()
    });
    let broken = broken.expect("flushed data that is lost");
    assert!(broken.0.contains("PowerCut"), "{}", broken.0);
}

/// The same plans with flushes that wait: what the test before finds is the early reply and nothing else.
#[cfg(feature = "planted-bugs")]
#[test]
fn without_an_early_reply_the_same_plans_pass() {
    for seed in 1..=60 {
        if let Err(broken) = scenario::run_with(seed, false, hosts_that_flush) {
            panic!("seed {seed}: {}", broken.0);
        }
    }
}

/// Leaves much time between the first shard's cut and the last one's, in a history.
#[cfg(feature = "planted-bugs")]
fn slow_history(plan: &mut scenario::Plan) {
    plan.make_history();
    slow_messages(plan);
    plan.nbd.clients = 0;
    plan.operations.truncate(1);
}

/// The second oracle can fail too.
#[cfg(feature = "planted-bugs")]
#[test]
fn without_held_answers_some_snapshot_in_a_history_is_no_prefix() {
    let broken = (1..=100).find_map(|seed| {
        scenario::run_with(seed, false, |plan| {
            slow_history(plan);
            plan.shard_options.planted_bug = Some(stillpoint_processor::PlantedBug::AnswersNotHeld);
        })
        .err()
    });
    let broken = broken.expect("a snapshot that is no prefix");
    assert!(broken.0.contains("no consistent prefix"), "{}", broken.0);
}

/// What the test before finds is the missing hold and nothing else.
#[cfg(feature = "planted-bugs")]
#[test]
fn without_the_planted_bug_the_same_histories_pass() {
    for seed in 1..=10 {
        if let Err(broken) = scenario::run_with(seed, false, slow_history) {
            panic!("seed {seed}: {}", broken.0);
        }
    }
}
