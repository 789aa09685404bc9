//! `stillpoint-sim`: runs seeds, and says how to see a failing one again.

mod checks;
mod parts;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use stillpoint_simulator::model::Broken;
use stillpoint_simulator::report::Report;
use stillpoint_simulator::scenario::{self, Kind};
use stillpoint_simulator::world::Coverage;

/// How often a report is written while the runs go on.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Runs the shipping data plane and coordinator over simulated devices and time, crashes them, and checks the
/// invariants I1 to I10.
#[derive(Debug, Parser)]
#[command(name = "stillpoint-sim", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    part: Option<parts::Part>,
    /// Runs this seed alone and tells everything that happens on standard error
    #[arg(long, conflicts_with_all = ["first", "seeds", "minutes", "operations"])]
    seed: Option<u64>,
    /// The first seed [default: 1, and with --minutes one that was not used before]
    #[arg(long)]
    first: Option<u64>,
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Goes on with new seeds for so many minutes instead
    #[arg(long, conflicts_with = "seeds")]
    minutes: Option<u64>,
    /// Goes on with new seeds until clients were answered so often instead
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    operations: Option<u64>,
    /// Besides, until so many snapshots were compared
    #[arg(long, requires = "operations", default_value_t = 0)]
    snapshots: u64,
    /// Runs histories of reads, writes and snapshots: every block must be a register, every snapshot a prefix
    #[arg(long)]
    histories: bool,
    /// Gives every pool mirrored devices, not only every fourth
    #[arg(long, conflicts_with = "histories")]
    mirrors: bool,
    /// Goes on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Prints what the runs came across
    #[arg(long)]
    coverage: bool,
    /// Writes a report to this file (JSON, and readable with .txt added), every minute and at the end
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Arguments {
    fn kind(&self) -> Kind {
        if self.histories {
            Kind::History
        } else if self.mirrors {
            Kind::Mirrors
        } else {
            Kind::Appliance
        }
    }
}

thread_local! {
    static SEED: Cell<Option<(Kind, u64)>> = const { Cell::new(None) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        // A release build ends here; otherwise the failure is told like any other.
        if cfg!(panic = "abort")
            && let Some((kind, seed)) = SEED.get()
        {
            how_to_replay(kind, seed);
        }
        parts::how_to_replay_this();
    }));
    if let Some(part) = &arguments.part {
        return parts::run(part);
    }
    let Some(seed) = arguments.seed else {
        return run_many(&arguments);
    };
    match run(arguments.kind(), seed, true) {
        Ok(_) => ExitCode::SUCCESS,
        Err(broken) => {
            tell(arguments.kind(), seed, &broken);
            ExitCode::FAILURE
        }
    }
}

fn run(kind: Kind, seed: u64, trace: bool) -> Result<Coverage, Broken> {
    SEED.set(Some((kind, seed)));
    catch_unwind(AssertUnwindSafe(|| scenario::run_kind(kind, seed, trace)))
        .unwrap_or_else(|_| Err(Broken("a panic, see above".to_string())))
}

fn new_report(arguments: &Arguments) -> Report {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let started_s = now.map_or(0, |since| since.as_secs());
    // Seconds apart, and far more than anybody runs in one.
    let unused = started_s.saturating_mul(1_000_000);
    let first_seed = match (arguments.first, arguments.minutes) {
        (Some(first), _) => first,
        (None, Some(_)) => unused,
        (None, None) => 1,
    };
    Report {
        commit: commit(),
        arguments: std::env::args().skip(1).collect(),
        started_s,
        first_seed,
        branches: scenario::branches(),
        ..Report::default()
    }
}

/// Runs that go on.
struct Runs<'a> {
    arguments: &'a Arguments,
    started: Instant,
    first: u64,
    next: AtomicU64,
    stop: AtomicBool,
    /// What they came to so far, and when that was last written down.
    so_far: Mutex<(Report, Instant)>,
}

impl<'a> Runs<'a> {
    fn new(arguments: &'a Arguments) -> Self {
        let report = new_report(arguments);
        Self {
            arguments,
            started: Instant::now(),
            first: report.first_seed,
            next: AtomicU64::new(report.first_seed),
            stop: AtomicBool::new(false),
            so_far: Mutex::new((report, Instant::now())),
        }
    }

    /// Runs one seed after the other.
    fn go_on(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if self.is_enough(seed) {
                break;
            }
            let result = run(self.arguments.kind(), seed, false);
            if let Err(broken) = &result {
                self.stop.fetch_or(!self.arguments.keep_going, Ordering::Relaxed);
                tell(self.arguments.kind(), seed, broken);
            }
            self.take_in(seed, result);
        }
    }

    fn is_enough(&self, seed: u64) -> bool {
        if let Some(minutes) = self.arguments.minutes {
            return self.started.elapsed() >= Duration::from_secs(minutes * 60);
        }
        let Some(operations) = self.arguments.operations else {
            return seed - self.first >= self.arguments.seeds;
        };
        let (answered, compared) = match self.arguments.kind() {
            Kind::History => ("history: operations", "history: snapshots that are prefixes"),
            Kind::Appliance | Kind::Mirrors => ("operations", "snapshots compared"),
        };
        let so_far = self.so_far.lock().expect("nobody panics with it");
        so_far.0.count(answered) >= operations && so_far.0.count(compared) >= self.arguments.snapshots
    }

    fn take_in(&self, seed: u64, result: Result<Coverage, Broken>) {
        let mut so_far = self.so_far.lock().expect("nobody panics with it");
        let (report, written) = &mut *so_far;
        match result {
            Ok(seen) => {
                report.passed += 1;
                report.coverage.merge(&seen);
            }
            Err(Broken(why)) => report.failed.push((seed, why)),
        }
        if written.elapsed() >= REPORT_EVERY {
            report.seconds = self.started.elapsed().as_secs_f64();
            write_report(self.arguments, report);
            *written = Instant::now();
        }
    }
}

fn run_many(arguments: &Arguments) -> ExitCode {
    let runs = Runs::new(arguments);
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(|| runs.go_on());
        }
    });
    let (mut report, _) = runs.so_far.into_inner().expect("all threads have ended");
    report.seconds = runs.started.elapsed().as_secs_f64();
    let written = write_report(arguments, &report);
    print_summary(arguments, &report);
    if report.failed.is_empty() && written {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(clippy::print_stdout, reason = "a program's result")]
fn print_summary(arguments: &Arguments, report: &Report) {
    if arguments.coverage {
        for (what, count) in &report.coverage.0 {
            println!("{count:>10}  {what}");
        }
    }
    if arguments.histories {
        println!(
            "{} reads and writes of a block are those of registers, {} snapshots are consistent prefixes",
            report.count("history: reads and writes of a block"),
            report.count("history: snapshots that are prefixes")
        );
    }
    println!(
        "simulator: {} passed, {} failed (seeds from {}, {} operations, {} snapshots, {:.1} s)",
        report.passed,
        report.failed.len(),
        report.first_seed,
        report.count("operations"),
        report.count("snapshots taken"),
        report.seconds
    );
}

/// Writes the report if one is wanted; false if that fails.
fn write_report(arguments: &Arguments, report: &Report) -> bool {
    let Some(file) = &arguments.report else {
        return true;
    };
    let written = report.write(file);
    if let Err(error) = &written {
        eprintln!("the report {}: {error}", file.display());
    }
    written.is_ok()
}

fn tell(kind: Kind, seed: u64, Broken(why): &Broken) {
    eprintln!("seed {seed}: {why}");
    how_to_replay(kind, seed);
}

/// The options that the seed stands for, the commit, and the command.
fn how_to_replay(kind: Kind, seed: u64) {
    eprintln!("  options of seed {seed}: {:?}", scenario::plan_of(kind, seed));
    let features = if cfg!(feature = "planted-bugs") {
        " --features planted-bugs"
    } else {
        ""
    };
    eprintln!(
        "  replay (commit {}): cargo run --profile seeds -p stillpoint-simulator{features} --bin stillpoint-sim -- {}--seed {seed}",
        commit(),
        kind.option(),
    );
}

/// The commit of this code: as the build was told, or as git says where the sources are; "unknown" without either.
fn commit() -> String {
    if let Some(commit) = option_env!("STILLPOINT_COMMIT") {
        return commit.to_string();
    }
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    git.ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or("unknown".to_string(), |commit| commit.trim().to_string())
}
