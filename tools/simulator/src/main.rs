//! `stillpoint-sim`: runs seeds, and says how to see a failing one again.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use stillpoint_simulator::model::Broken;
use stillpoint_simulator::scenario;
use stillpoint_simulator::world::Coverage;

/// Runs the shipping data plane and coordinator over simulated devices and time, crashes them, and checks the
/// invariants I1 to I10.
#[derive(Debug, Parser)]
#[command(name = "stillpoint-sim", version)]
struct Arguments {
    /// Runs this seed alone and tells everything that happens on standard error
    #[arg(long, conflicts_with_all = ["first", "seeds", "minutes"])]
    seed: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Goes on with new seeds for so many minutes instead
    #[arg(long, conflicts_with = "seeds")]
    minutes: Option<u64>,
    /// Goes on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Prints what the runs came across
    #[arg(long)]
    coverage: bool,
}

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        // Before unwinding, because a release build aborts here.
        how_to_replay(SEED.get());
    }));
    if let Some(seed) = arguments.seed {
        return match run(seed, true) {
            Ok(_) => ExitCode::SUCCESS,
            Err(broken) => {
                tell(seed, &broken);
                ExitCode::FAILURE
            }
        };
    }
    run_many(&arguments)
}

fn run(seed: u64, trace: bool) -> Result<Coverage, Broken> {
    SEED.set(seed);
    catch_unwind(AssertUnwindSafe(|| scenario::run(seed, trace)))
        .unwrap_or_else(|_| Err(Broken("a panic, see above".to_string())))
}

#[expect(clippy::print_stdout, reason = "a program's result")]
fn run_many(arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let end = arguments.first.saturating_add(arguments.seeds);
    let limit = arguments.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let next = AtomicU64::new(arguments.first);
    let (passed, failed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Coverage::default());
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(|| {
                let mut coverage = Coverage::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = limit.map_or(seed >= end, |limit| started.elapsed() >= limit);
                    if over {
                        break;
                    }
                    match run(seed, false) {
                        Ok(seen) => {
                            passed.fetch_add(1, Ordering::Relaxed);
                            coverage.merge(&seen);
                        }
                        Err(broken) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            stop.fetch_or(!arguments.keep_going, Ordering::Relaxed);
                            tell(seed, &broken);
                        }
                    }
                }
                total.lock().expect("nobody panics with it").merge(&coverage);
            });
        }
    });
    if arguments.coverage {
        for (what, count) in &total.lock().expect("all threads have ended").0 {
            println!("{count:>10}  {what}");
        }
    }
    let (passed, failed) = (passed.into_inner(), failed.into_inner());
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "simulator: {passed} passed, {failed} failed (seeds from {}, {seconds:.1} s)",
        arguments.first
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn tell(seed: u64, Broken(why): &Broken) {
    eprintln!("seed {seed}: {why}");
    how_to_replay(seed);
}

fn how_to_replay(seed: u64) {
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or("unknown".to_string(), |commit| commit.trim().to_string());
    eprintln!(
        "  replay (commit {commit}): cargo run --release -p stillpoint-simulator --bin stillpoint-sim -- --seed {seed}"
    );
}
