//! The parts of the simulation that have plans of their own.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::{Args, Subcommand};
use stillpoint_simulator::boundary::{self, Budget};
use stillpoint_simulator::faults::{damage, full, live};
use stillpoint_simulator::model::Broken;
use stillpoint_simulator::world::Coverage;

use crate::commit;

/// A part of the simulation.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// Crashes at every device write boundary of short scripts, with every choice of what a power cut leaves, and again
    /// during each recovery
    Boundaries(Boundaries),
    /// Devices that do one thing wrong: what is read then is right, or refused
    Faults(Faults),
    #[command(flatten)]
    Check(crate::checks::Check),
}

/// Which faults, and how they are told.
#[derive(Debug, Args)]
pub struct Faults {
    /// The first fault
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many faults; besides them every field of every structure is flipped, and some pools are filled
    #[arg(long, default_value_t = 5000)]
    faults: u64,
    /// Damages only: every field of every structure, one pool after the other
    #[arg(long)]
    fields: bool,
    /// Flips every byte instead of every field
    #[arg(long)]
    every_byte: bool,
    /// Fills pools only
    #[arg(long, conflicts_with = "fields")]
    full: bool,
    #[command(flatten)]
    telling: Telling,
}

/// What is run, and how it is told.
#[derive(Debug, Args)]
pub struct Boundaries {
    /// The first script: a few are made by hand, the others come from their number
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many scripts
    #[arg(long, default_value_t = 50)]
    scripts: u64,
    /// Tries 4,096 subsets of the writes at risk at each boundary, and all subsets of up to 12, instead of 64 and 8
    #[arg(long)]
    long: bool,
    #[command(flatten)]
    telling: Telling,
}

#[derive(Clone, Copy, Debug, Args)]
struct Telling {
    /// Goes on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Prints what the runs came across
    #[arg(long)]
    coverage: bool,
}

thread_local! {
    static OPTIONS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes the options with which this program does again what this thread is about to do.
pub fn replay_with(options: Option<String>) {
    OPTIONS.set(options);
}

/// Says how to see again what this thread runs, if it runs a part.
pub fn how_to_replay_this() {
    let Some(options) = OPTIONS.with_borrow(Clone::clone) else {
        return;
    };
    let features = if cfg!(feature = "planted-bugs") {
        " --features planted-bugs"
    } else {
        ""
    };
    eprintln!(
        "  replay (commit {}): cargo run --profile seeds -p stillpoint-simulator{features} --bin stillpoint-sim -- {options}",
        commit(),
    );
}

/// Runs a part.
pub fn run(part: &Part) -> ExitCode {
    match part {
        Part::Boundaries(plan) => {
            let budget = if plan.long { Budget::LONG } else { Budget::SHORT };
            let long = if plan.long { " --long" } else { "" };
            let batch = Batch {
                name: "boundaries",
                what: "scripts",
                first: plan.first,
                count: plan.scripts,
                telling: plan.telling,
            };
            batch.run(
                |number| boundary::run(number, budget),
                |number| format!("boundaries --first {number} --scripts 1{long}"),
            )
        }
        Part::Faults(plan) => run_faults(plan),
        Part::Check(check) => crate::checks::run(check),
    }
}

fn run_faults(plan: &Faults) -> ExitCode {
    let batch = |name, what, first, count| Batch {
        name,
        what,
        first,
        count,
        telling: plan.telling,
    };
    let mut codes = Vec::new();
    if !plan.fields && !plan.full {
        let faults = batch("faults", "faults", plan.first, plan.faults);
        codes.push(faults.run(live::run, |number| format!("faults --first {number} --faults 1")));
    }
    if !plan.full {
        let fields = batch("damage", "pools", 0, damage::pools());
        let every = if plan.every_byte { " --every-byte" } else { "" };
        codes.push(fields.run(
            |number| damage::run(number, plan.every_byte),
            |_| format!("faults --fields{every}"),
        ));
    }
    if !plan.fields {
        let full = batch("full pools", "pools", 0, full::POOLS);
        codes.push(full.run(full::run, |_| "faults --full".to_string()));
    }
    let ok = codes.iter().all(|code| *code == ExitCode::SUCCESS);
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Numbered runs, spread over the processors.
struct Batch {
    name: &'static str,
    what: &'static str,
    first: u64,
    count: u64,
    telling: Telling,
}

impl Batch {
    #[expect(clippy::print_stdout, reason = "a program's result")]
    fn run(
        &self,
        run: impl Fn(u64) -> Result<Coverage, Broken> + Sync,
        options: impl Fn(u64) -> String + Sync,
    ) -> ExitCode {
        let started = Instant::now();
        let end = self.first.saturating_add(self.count);
        let next = AtomicU64::new(self.first);
        let (passed, failed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let total = Mutex::new(Coverage::default());
        let work = || {
            let mut coverage = Coverage::default();
            while !stop.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    break;
                }
                OPTIONS.set(Some(options(number)));
                let result = catch_unwind(AssertUnwindSafe(|| run(number)))
                    .unwrap_or_else(|_| Err(Broken("a panic, see above".to_string())));
                match result {
                    Ok(seen) => {
                        passed.fetch_add(1, Ordering::Relaxed);
                        coverage.merge(&seen);
                    }
                    Err(Broken(why)) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                        stop.fetch_or(!self.telling.keep_going, Ordering::Relaxed);
                        eprintln!("{}: {why}", self.name);
                        how_to_replay_this();
                    }
                }
            }
            total.lock().expect("nobody panics with it").merge(&coverage);
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(work);
            }
        });
        let total = total.into_inner().expect("all threads have ended");
        if self.telling.coverage {
            for (what, count) in &total.0 {
                println!("{count:>10}  {what}");
            }
        }
        let (passed, failed) = (passed.into_inner(), failed.into_inner());
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "simulator {}: {passed} passed, {failed} failed ({} from {}, {seconds:.1} s)",
            self.name, self.what, self.first
        );
        if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
