//! Canaries: bugs planted in the code under test, one at a time. Each must be caught by the very checks that find
//! nothing when no bug is planted; a check that cannot fail proves nothing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use stillpoint_processor::PlantedBug;

use crate::boundary;
use crate::cut_world;
use crate::cut_world::small_scope::{self, Scope};
use crate::faults::live;
use crate::model::Broken;
use crate::scenario;

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
const CHECKS: [Check; 5] = [
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
        at_a_time: 10,
        run: |seed, bug| {
            scenario::run_with(seed, false, |plan| plan.shard_options.planted_bug = bug).map(|_| ())
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
    Check {
        name: "boundaries",
        seeds: 8,
        at_a_time: 1,
        run: |script, bug| {
            PLANTED.set(bug);
            boundary::run(script - 1, boundary::Budget::SHORT).map(|_| ())
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
];
/// Rounds that nothing may be found in when no bug is planted.
const ROUNDS_WITHOUT_A_BUG: u64 = 4;

/// How a bug was caught.
struct Caught {
    check: &'static str,
    seed: u64,
    runs: u64,
    why: String,
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

/// Plants every bug and runs the checks until one finds it; prints which one, at which seed, and why. The last line is
/// `canaries caught n/m`. True if all were caught, and nothing was found where no bug is planted.
#[must_use]
#[expect(clippy::print_stdout, reason = "a program's result")]
pub fn run() -> bool {
    let started = Instant::now();
    // The panics are results here, not trouble to be told of.
    std::panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string())));
    if let Some(found) = hunt(None, ROUNDS_WITHOUT_A_BUG) {
        println!(
            "no bug is planted, and yet {} seed {} says: {}",
            found.check, found.seed, found.why
        );
        return false;
    }
    let caught = hunt_all();
    for (bug, found) in PlantedBug::ALL.iter().zip(&caught) {
        match found {
            Some(found) => println!(
                "{bug:?}: caught by {} at seed {} after {} runs: {}",
                found.check, found.seed, found.runs, found.why
            ),
            None => println!("{bug:?}: NOT CAUGHT"),
        }
    }
    let (count, all) = (caught.iter().flatten().count(), caught.len());
    println!(
        "canaries: {count} passed, {} failed ({:.1} s)",
        all - count,
        started.elapsed().as_secs_f64()
    );
    println!("canaries caught {count}/{all}");
    count == all
}

/// Hunts all bugs, as many at a time as there are processors.
fn hunt_all() -> Vec<Option<Caught>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(bug) = PlantedBug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = hunt(Some(*bug), u64::MAX);
                    let position = PlantedBug::ALL.iter().position(|other| other == bug);
                    results
                        .lock()
                        .expect("nobody panics with it")
                        .insert(position, found);
                }
            });
        }
    });
    let results = results.into_inner().expect("all threads have ended");
    results.into_values().collect()
}

/// Runs the checks in turn, for so many rounds at most, until one of them finds something.
fn hunt(bug: Option<PlantedBug>, rounds: u64) -> Option<Caught> {
    let mut runs = 0;
    for round in 0..rounds {
        let mut any = false;
        for check in &CHECKS {
            let first = round * check.at_a_time + 1;
            for seed in first..(first + check.at_a_time).min(check.seeds + 1) {
                any = true;
                runs += 1;
                if let Err(why) = run_one(check, seed, bug) {
                    let check = check.name;
                    return Some(Caught {
                        check,
                        seed,
                        runs,
                        why,
                    });
                }
            }
        }
        if !any {
            break;
        }
    }
    None
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
