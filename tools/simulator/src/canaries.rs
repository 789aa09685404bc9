//! Canaries: bugs planted in the code under test, one at a time. Each must be caught by the very checks that find
//! nothing when no bug is planted; a check that cannot fail proves nothing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stillpoint_processor::PlantedBug;

use crate::boundary;
use crate::cut_world;
use crate::cut_world::small_scope::{self, Scope};
use crate::faults::live;
use crate::model::Broken;
use crate::scenario::{self, Kind};

/// A check that a planted bug meets.
struct Check {
    name: &'static str,
    /// Seeds that it is given at most.
    seeds: u64,
    /// Seeds in a row, before the next check has its turn.
    at_a_time: u64,
    run: fn(u64, Option<PlantedBug>) -> Result<(), Broken>,
}

/// The checks, which take turns; of each at most what its short form in `tools/test` runs.
const CHECKS: [Check; 6] = [
    Check {
        name: "cut",
        seeds: 20_000,
        at_a_time: 100,
        run: |seed, bug| {
            cut_world::run_with(seed, false, |plan| plan.props.options.planted_bug = bug).map(|_| ())
        },
    },
    Check {
        name: "appliance",
        seeds: 1000,
        at_a_time: 25,
        run: |seed, bug| {
            scenario::run_with(seed, false, |plan| plan.shard_options.planted_bug = bug).map(|_| ())
        },
    },
    Check {
        name: "mirrors",
        seeds: 300,
        at_a_time: 25,
        run: |seed, bug| {
            scenario::run_with(seed, false, |plan| {
                Kind::Mirrors.change(seed, plan);
                plan.shard_options.planted_bug = bug;
            })
            .map(|_| ())
        },
    },
    Check {
        name: "boundaries",
        seeds: 13,
        at_a_time: 1,
        run: |turn, bug| {
            PLANTED.set(bug);
            // The last scripts first: one has the longest log pages of all, then come clones, rollbacks and promotions, and devices that
            // make single writes durable.
            let scripts = boundary::scripts_by_hand();
            let script = (scripts + turn - 7) % scripts;
            boundary::run(script, boundary::Budget::SHORT).map(|_| ())
        },
    },
    Check {
        name: "faults",
        seeds: 500,
        at_a_time: 25,
        run: |fault, bug| {
            PLANTED.set(bug);
            live::run(fault - 1).map(|_| ())
        },
    },
    Check {
        name: "orders",
        seeds: 4,
        at_a_time: 1,
        run: |deal, bug| {
            let mut scope = Scope::new(2, 2);
            scope.crashes = true;
            scope.options.planted_bug = bug;
            small_scope::walk(scope, deal as usize - 1).map(|_| ())
        },
    },
];
/// Rounds that nothing may be found in when no bug is planted: elsewhere the short forms run whole without one.
const ROUNDS_WITHOUT_A_BUG: u64 = 2;

/// How a bug was caught.
struct Caught {
    check: &'static str,
    seed: u64,
    why: String,
}

/// What a hunt came to.
struct Hunted {
    caught: Option<Caught>,
    runs: u64,
    time: Duration,
}

thread_local! {
    /// What the last panic of this thread said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// The bug of checks that take none.
    static PLANTED: Cell<Option<PlantedBug>> = const { Cell::new(None) };
}

/// The bug that checks which take none plant, on this thread.
pub(crate) fn planted_here() -> Option<PlantedBug> {
    PLANTED.get()
}

/// Does something with a bug planted in checks that take none, on this thread.
pub fn with_planted<R>(bug: Option<PlantedBug>, act: impl FnOnce() -> R) -> R {
    PLANTED.set(bug);
    let result = act();
    PLANTED.set(None);
    result
}

/// Plants every bug and runs the checks until one finds it; prints which one, at which seed, and why. The last line is
/// `canaries caught n/m`. True if all were caught, and nothing was found where no bug is planted.
#[must_use]
#[expect(clippy::print_stdout, reason = "a program's result")]
pub fn run() -> bool {
    let started = Instant::now();
    // The panics are results here, not trouble to be told of.
    std::panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string())));
    let mut count = 0;
    for (bug, hunted) in hunt_all() {
        let Hunted { caught, runs, time } = hunted;
        let after = format!("{runs} runs, {:.1} s", time.as_secs_f64());
        match (bug, caught) {
            (Some(bug), Some(Caught { check, seed, why })) => {
                count += 1;
                println!("{bug:?}: caught by {check} at seed {seed} after {after}: {why}");
            }
            (Some(bug), None) => println!("{bug:?}: NOT CAUGHT after {after}"),
            (None, None) => println!("no bug is planted: nothing found in {after}"),
            (None, Some(Caught { check, seed, why })) => {
                println!("no bug is planted, and yet {check} seed {seed} says: {why}");
                return false;
            }
        }
    }
    let all = PlantedBug::ALL.len();
    println!(
        "canaries: {count} passed, {} failed ({:.1} s)",
        all - count,
        started.elapsed().as_secs_f64()
    );
    println!("canaries caught {count}/{all}");
    count == all
}

/// Hunts all bugs, and first none at all, as many at a time as there are processors.
fn hunt_all() -> Vec<(Option<PlantedBug>, Hunted)> {
    let bugs: Vec<Option<PlantedBug>> = [None].into_iter().chain(PlantedBug::ALL.map(Some)).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&bug) = bugs.get(position) else { break };
                    let rounds = if bug.is_some() {
                        u64::MAX
                    } else {
                        ROUNDS_WITHOUT_A_BUG
                    };
                    let hunted = hunt(bug, rounds);
                    let mut results = results.lock().expect("nobody panics with it");
                    results.insert(position, hunted);
                }
            });
        }
    });
    let results = results.into_inner().expect("all threads have ended");
    bugs.iter().copied().zip(results.into_values()).collect()
}

/// Runs the checks in turn, for so many rounds at most, until one of them finds something.
fn hunt(bug: Option<PlantedBug>, rounds: u64) -> Hunted {
    let started = Instant::now();
    let mut runs = 0;
    let caught = 'hunt: {
        for round in 0..rounds {
            let mut any = false;
            for check in &CHECKS {
                let first = round * check.at_a_time + 1;
                for seed in first..(first + check.at_a_time).min(check.seeds + 1) {
                    any = true;
                    runs += 1;
                    if let Err(why) = run_one(check, seed, bug) {
                        let check = check.name;
                        break 'hunt Some(Caught { check, seed, why });
                    }
                }
            }
            if !any {
                break;
            }
        }
        None
    };
    Hunted {
        caught,
        runs,
        time: started.elapsed(),
    }
}

/// Runs one seed of one check; an error says in one line what it found.
fn run_one(check: &Check, seed: u64, bug: Option<PlantedBug>) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| (check.run)(seed, bug)));
    let why = match result {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(Broken(why))) => why,
        Err(_) => PANIC.take().replace('\n', " "),
    };
    Err(why.lines().next().unwrap_or_default().to_string())
}
