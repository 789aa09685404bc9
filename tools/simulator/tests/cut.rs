//! The cut alone: that the random schedules get into every kind of trouble, that a seed replays, and that the small scope
//! is walked whole.

use std::collections::BTreeSet;

use stillpoint_simulator::cut_world::plan::FAULTS;
use stillpoint_simulator::cut_world::small_scope::{Scope, Walked, walk};
use stillpoint_simulator::cut_world::{self, Met};

#[test]
fn some_seeds_keep_all_laws_and_meet_every_message_and_every_fault() {
    let mut met = Met::default();
    for seed in 1..=600 {
        match cut_world::run(seed, false) {
            Ok(of_seed) => met.merge(&of_seed),
            Err(broken) => panic!("seed {seed}: {}", broken.0),
        }
    }
    let messages: BTreeSet<_> = met.faults.keys().map(|(message, _)| *message).collect();
    let faults: BTreeSet<_> = met.faults.keys().map(|(_, fault)| *fault).collect();
    assert!(
        messages.len() >= 13,
        "prepare to committed, abort, the deadline: {messages:?}"
    );
    assert_eq!(faults.len(), FAULTS.len());
    assert!(met.faults.len() > 60, "{:?}", met.faults);
    assert!(met.answers_held > 100, "{met}");
    assert_eq!(
        met.with_clones.len(),
        FAULTS.len(),
        "every fault beside clones: {met}"
    );
    assert!(met.refused.1 > 0 && met.refused.0 > met.refused.1, "{met}");
    let ends: Vec<_> = met.ends.keys().copied().collect();
    assert_eq!(ends, ["in doubt", "not there", "there"]);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 4] {
        assert_eq!(cut_world::run(seed, false), cut_world::run(seed, false));
    }
}

fn walk_all(scope: Scope) -> Walked {
    let mut walked = Walked::default();
    for deal in 0..scope.deals() {
        match walk(scope, deal) {
            Ok(of_deal) => walked.merge(&of_deal),
            Err(broken) => panic!("{}", broken.0),
        }
    }
    walked
}

/// The coordinator's own tests count as many orders of the messages of one snapshot over model shards.
#[test]
fn with_no_write_every_order_of_the_messages_is_walked() {
    let walked = walk_all(Scope::new(2, 0));
    assert_eq!((walked.orders, walked.not_there), (6 * 6 * 70 * 2, 0), "{walked}");
}

#[test]
fn one_write_meets_every_step_of_a_cut_and_a_crash_in_every_state() {
    let mut scope = Scope::new(2, 1);
    scope.crashes = true;
    let walked = walk_all(scope);
    assert_eq!(walked.crashes, 2 * walked.states);
    assert!(walked.recoveries > 100, "{walked}");
    assert!(walked.states > 500 && walked.not_there == 0, "{walked}");
}

#[test]
fn time_that_runs_out_anywhere_ends_with_all_or_nothing() {
    let mut scope = Scope::new(2, 0);
    scope.time_runs_out = true;
    scope.crashes = true;
    let walked = walk_all(scope);
    assert!(walked.there > 1 && walked.not_there > 1, "{walked}");
}

/// Few of the crashes are recovered, so it is seen here that these suffice to find a bug that only a crash shows.
#[cfg(feature = "planted-bugs")]
#[test]
fn without_waiting_for_its_parts_a_commit_outlives_them_in_some_order() {
    let mut scope = Scope::new(2, 0);
    scope.options.planted_bug = Some(stillpoint_processor::PlantedBug::CommitBeforeIntermediates);
    assert!(walk(scope, 0).is_ok(), "only a crash shows it");
    scope.crashes = true;
    let broken = walk(scope, 0).expect_err("a crash shows it");
    assert!(broken.0.contains("I8"), "{}", broken.0);
}
