//! Checks besides the simulation of a whole appliance: the cut alone, in random and in all orders, and the canaries.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stillpoint_simulator::cut_world::plan::Plan;
use stillpoint_simulator::cut_world::small_scope::{self, Scope, Walked};
use stillpoint_simulator::cut_world::{self, Met};
use stillpoint_simulator::model::Broken;
use stillpoint_simulator::random::Random;

use crate::parts::{how_to_replay_this, replay_with};

/// Which check.
#[derive(Debug, clap::Subcommand)]
pub enum Check {
    /// The cut alone: random schedules of many small appliances, with a crash or a stall at one message each
    Cut(Seeds),
    /// The cut alone: every order of a few writes and one snapshot
    Orders {
        /// Shards
        #[arg(long, default_value_t = 2)]
        shards: u16,
        /// Writes
        #[arg(long, default_value_t = 3)]
        writes: usize,
        /// With a kill and a power cut in every state
        #[arg(long)]
        crashes: bool,
        /// With time running out once, anywhere
        #[arg(long)]
        deadlines: bool,
    },
    /// Plants bugs, one at a time, and runs the checks until they find it; fails if one is not found
    #[cfg(feature = "planted-bugs")]
    Canaries,
}

/// Which seeds.
#[derive(Debug, clap::Args)]
pub struct Seeds {
    /// Runs this seed alone and tells everything that happens on standard error
    #[arg(long, conflicts_with_all = ["first", "seeds", "minutes"])]
    seed: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many seeds
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// Goes on with new seeds for so many minutes instead
    #[arg(long, conflicts_with = "seeds")]
    minutes: Option<u64>,
    /// Goes on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Prints at which messages what went wrong
    #[arg(long)]
    coverage: bool,
}

/// Runs a check.
pub fn run(check: &Check) -> ExitCode {
    let passed = match *check {
        Check::Cut(ref seeds) => cut(seeds),
        Check::Orders {
            shards,
            writes,
            crashes,
            deadlines,
        } => orders(Scope {
            crashes,
            time_runs_out: deadlines,
            ..Scope::new(shards, writes)
        }),
        #[cfg(feature = "planted-bugs")]
        Check::Canaries => stillpoint_simulator::canaries::run(),
    };
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn cut(seeds: &Seeds) -> bool {
    let run = |seed, trace| {
        replay_with(Some(format!("cut --seed {seed}")));
        caught(|| cut_world::run(seed, trace)).inspect_err(|Broken(why)| {
            eprintln!("seed {seed}: {why}");
            eprintln!(
                "  options of seed {seed}: {:?}",
                Plan::new(&mut Random::new(seed))
            );
            how_to_replay_this();
        })
    };
    if let Some(seed) = seeds.seed {
        return run(seed, true).is_ok();
    }
    let end = seeds.first.saturating_add(seeds.seeds);
    let limit = seeds.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let work = Work {
        first: seeds.first,
        end: if limit.is_some() { u64::MAX } else { end },
        limit,
        keep_going: seeds.keep_going,
    };
    let total = work.share_out("cut", |seed| run(seed, false), Met::merge);
    if seeds.coverage {
        for ((message, fault), count) in &total.result.faults {
            eprintln!("{count:>10}  {fault:?} at {message:?}");
        }
    }
    total.failed == 0
}

fn orders(scope: Scope) -> bool {
    let work = Work {
        first: 0,
        end: scope.deals() as u64,
        limit: None,
        keep_going: false,
    };
    let mut options = format!("orders --shards {} --writes {}", scope.shards, scope.writes);
    for (is_set, option) in [
        (scope.crashes, " --crashes"),
        (scope.time_runs_out, " --deadlines"),
    ] {
        options += if is_set { option } else { "" };
    }
    let walk = |deal| {
        replay_with(Some(options.clone()));
        caught(|| small_scope::walk(scope, deal as usize)).inspect_err(|Broken(why)| {
            eprintln!("{why}");
            how_to_replay_this();
        })
    };
    let (shards, writes) = (scope.shards, scope.writes);
    let crashes = if scope.crashes { ", crashes" } else { "" };
    let deadlines = if scope.time_runs_out {
        ", time running out"
    } else {
        ""
    };
    let name = format!("orders of {shards} shards, {writes} writes, 1 snapshot{crashes}{deadlines}");
    work.share_out(&name, walk, Walked::merge).failed == 0
}

fn caught<R>(run: impl FnOnce() -> Result<R, Broken>) -> Result<R, Broken> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Broken("a panic, see above".to_string())))
}

/// Numbers to work through, as many at a time as there are processors.
struct Work {
    first: u64,
    end: u64,
    limit: Option<Duration>,
    keep_going: bool,
}

struct Total<R> {
    failed: u64,
    result: R,
}

impl Work {
    /// Works through all numbers, and prints one line with what came of it.
    #[expect(clippy::print_stdout, reason = "a program's result")]
    fn share_out<R: Default + Send + fmt::Display>(
        &self,
        name: &str,
        run: impl Fn(u64) -> Result<R, Broken> + Sync,
        merge: impl Fn(&mut R, &R) + Sync,
    ) -> Total<R> {
        let started = Instant::now();
        let next = AtomicU64::new(self.first);
        let (passed, failed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let total = Mutex::new(R::default());
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut sum = R::default();
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.end || self.limit.is_some_and(|limit| started.elapsed() >= limit) {
                            break;
                        }
                        match run(number) {
                            Ok(result) => {
                                passed.fetch_add(1, Ordering::Relaxed);
                                merge(&mut sum, &result);
                            }
                            Err(_) => {
                                failed.fetch_add(1, Ordering::Relaxed);
                                stop.fetch_or(!self.keep_going, Ordering::Relaxed);
                            }
                        }
                    }
                    merge(&mut total.lock().expect("nobody panics with it"), &sum);
                });
            }
        });
        let (passed, failed) = (passed.into_inner(), failed.into_inner());
        let result = total.into_inner().expect("all threads have ended");
        let seconds = started.elapsed().as_secs_f64();
        println!("{name}: {passed} passed, {failed} failed ({seconds:.1} s; {result})");
        Total { failed, result }
    }
}
