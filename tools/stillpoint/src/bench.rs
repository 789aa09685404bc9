//! `stillpoint bench`: measures block targets, the appliance's own and others.

mod arguments;
mod daemon;
mod run;
mod snapshot_cost;
mod words;

pub use arguments::BenchCommand;

use std::io::Write;

use arguments::{CompareArguments, SweepArguments};
use serde::Serialize;
use stillpoint_appliance::Error;
use stillpoint_bench::compare::{Compared, RATIO_TOLD, compare};
use stillpoint_bench::job::Job;
use stillpoint_bench::report::cores_told;
use stillpoint_bench::run::RunError;
use stillpoint_bench::sweep::{Behind, Knee, Sweep, sweep};
use stillpoint_bench::target::{Name, Opened, TargetError};

use crate::cli::{Format, Global};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::Duration;

/// Does what is asked. Figures that cannot be trusted make it fail.
pub fn run_command(command: BenchCommand, global: &Global) -> Result<(), Failure> {
    match command {
        BenchCommand::Run(arguments) => run::run_one(arguments, global),
        BenchCommand::Compare(arguments) => run_compare(arguments, global),
        BenchCommand::Sweep(arguments) => run_sweep(arguments, global),
        BenchCommand::SnapshotCost(arguments) => snapshot_cost::run_snapshot_cost(arguments, global),
    }
}

fn failed(error: RunError) -> Failure {
    match error {
        RunError::Job(error) => Error::usage(error.to_string()).into(),
        RunError::Target(error) => unusable(&error),
    }
}

fn unusable(error: &TargetError) -> Failure {
    Error::failure(error.to_string()).into()
}

fn open(name: &Name, job: &Job) -> Result<Opened, Failure> {
    Opened::open(name, job).map_err(|error| unusable(&error))
}

/// What `bench compare` says, as JSON.
#[derive(Debug, Serialize)]
struct Comparison {
    a: String,
    b: String,
    rounds: usize,
    percentiles: Vec<Compared>,
}

fn run_compare(arguments: CompareArguments, global: &Global) -> Result<(), Failure> {
    let (job, _) = arguments.job.job(false)?;
    job.check().map_err(|error| failed(error.into()))?;
    let (a, b) = (open(&arguments.a, &job)?, open(&arguments.b, &job)?);
    let told = |round: u32| progress(global, &format!("round {} of {}", round + 1, arguments.rounds));
    let (percentiles, rounds) = compare(&job, (&a, &b), arguments.rounds, told).map_err(failed)?;
    let comparison = Comparison {
        a: arguments.a.to_string(),
        b: arguments.b.to_string(),
        rounds,
        percentiles,
    };
    output::print(global, &comparison, |comparison| {
        let rows = comparison.percentiles.iter().map(|one| {
            vec![
                one.percentile.to_owned(),
                Duration(one.a_ns).to_string(),
                Duration(one.b_ns).to_string(),
                format!("{:.3} ({:.3} to {:.3})", one.ratio, one.ratio_low, one.ratio_high),
                one.verdict(rounds),
            ]
        });
        let columns = ["", ">A", ">B", ">B/A (95%)", "VERDICT"];
        format!(
            "A  {}\nB  {}\n{rounds} rounds; response times\n\n{}\n\n{RATIO_TOLD}\n",
            comparison.a,
            comparison.b,
            table(&columns, rows)
        )
    })
}

fn run_sweep(arguments: SweepArguments, global: &Global) -> Result<(), Failure> {
    let (job, _) = arguments.job.job(false)?;
    job.check().map_err(|error| failed(error.into()))?;
    let target = open(&arguments.target, &job)?;
    let told = |rate: f64| progress(global, &format!("{rate:.0} requests a second"));
    let swept = sweep(&job, &target, arguments.steps, told).map_err(failed)?;
    output::print(global, &swept, show_sweep)?;
    match swept.knee.is_unknown() {
        true => Err(Error::failure("the knee of the target is not known: see what was in the way").into()),
        false => Ok(()),
    }
}

fn show_sweep(sweep: &Sweep) -> String {
    let rows = sweep.steps.iter().map(|step| {
        vec![
            format!("{:.0}", step.rate_iops),
            format!("{:.0}", step.ended_iops),
            Duration(step.p50_ns).to_string(),
            Duration(step.p99_ns).to_string(),
            Duration(step.p999_ns).to_string(),
            match step.behind {
                None => "",
                Some(Behind::Target) => "the target did not keep up",
                Some(Behind::Generator) => "the generator did not keep up",
                Some(Behind::Errors) => "requests failed",
            }
            .to_owned(),
        ]
    });
    let columns = [">RATE", ">ENDED", ">P50", ">P99", ">P99.9", ""];
    let knee = match &sweep.knee {
        Knee::Found { rate_iops } => format!("{rate_iops:.0} requests a second"),
        Knee::NotReached { rate_iops } => format!("not reached up to {rate_iops:.0} requests a second"),
        Knee::BelowSlowest => {
            "below the slowest step: the target did not keep up with it; give more --steps".to_owned()
        }
        Knee::Unknown {
            rate_iops_sure: None,
            why,
        } => format!("not known: {why}"),
        Knee::Unknown {
            rate_iops_sure: Some(rate_iops),
            why,
        } => format!("not known, but at least {rate_iops:.0} requests a second: {why}"),
    };
    format!(
        "{}\n\n{}",
        pairs(&[
            ("at most", format!("{:.0} requests a second", sweep.rate_iops_max)),
            ("generator", cores_told(&sweep.cores)),
            ("knee", knee),
        ]),
        table(&columns, rows)
    )
}

/// Says how far it is, on standard error, where a person reads.
fn progress(global: &Global, text: &str) {
    if global.output == Format::Table {
        let mut stderr = std::io::stderr().lock();
        // Only a courtesy.
        let _ = writeln!(stderr, "{text}");
    }
}
