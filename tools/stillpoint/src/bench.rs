//! `stillpoint bench`: measures block targets, the appliance's own and others.

mod arguments;
mod words;

pub use arguments::BenchCommand;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use arguments::{CompareArguments, RunArguments, SweepArguments};
use serde::Serialize;
use stillpoint_appliance::Error;
use stillpoint_bench::compare::{Compared, compare};
use stillpoint_bench::figures::Verdict;
use stillpoint_bench::job::Job;
use stillpoint_bench::report::{LatencySummary, Summary, TimesSummary, hgrm, write_hlog};
use stillpoint_bench::run::{RunError, calibrate, run};
use stillpoint_bench::sweep::{Sweep, sweep};
use stillpoint_bench::target::{Name, Opened, TargetError};

use crate::cli::{Format, Global};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::{Duration, Size};

/// Does what is asked. Figures that cannot be trusted make it fail.
pub fn run_command(command: BenchCommand, global: &Global) -> Result<(), Failure> {
    match command {
        BenchCommand::Run(arguments) => run_one(arguments, global),
        BenchCommand::Compare(arguments) => run_compare(arguments, global),
        BenchCommand::Sweep(arguments) => run_sweep(arguments, global),
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
    Opened::open(name, job.writes()).map_err(|error| unusable(&error))
}

fn run_one(arguments: RunArguments, global: &Global) -> Result<(), Failure> {
    let (job, named) = arguments.job.job(arguments.hlog.is_some())?;
    let name: Name = match (arguments.target, named) {
        (Some(name), _) => name,
        (None, Some(text)) => text.parse().map_err(Error::usage)?,
        (None, None) => {
            return Err(Error::usage("no target: name a file, a block device or an NBD URI").into());
        }
    };
    job.check().map_err(|error| failed(error.into()))?;
    let target = open(&name, &job)?;
    let calibration = calibrate(&job, target.size_bytes()).map_err(failed)?;
    let outcome = run(&job, &target).map_err(failed)?;
    if let Some(path) = &arguments.hgrm {
        write(path, |file| {
            file.write_all(hgrm(&outcome.figures.all().response).as_bytes())
                .map_err(|error| error.to_string())
        })?;
    }
    if let Some(path) = &arguments.hlog {
        write(path, |file| write_hlog(&outcome, file))?;
    }
    let summary = Summary::of(&outcome, &name.to_string(), Some(calibration));
    output::print(global, &summary, show)?;
    match outcome.verdict {
        Verdict::Failed(why) => Err(Error::failure(why).into()),
        Verdict::Sound | Verdict::Overloaded(_) => Ok(()),
    }
}

fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), String>) -> Result<(), Failure> {
    let named = |error: String| Error::failure(format!("{}: {error}", path.display()));
    let file = File::create(path).map_err(|error| named(error.to_string()))?;
    let mut file = BufWriter::new(file);
    fill(&mut file).map_err(named)?;
    file.flush().map_err(|error| named(error.to_string()))?;
    Ok(())
}

fn show(summary: &Summary) -> String {
    let rate = if summary.rate_iops_intended > 0.0 {
        format!(
            "{:.0} a second, of {:.0}",
            summary.rate_iops, summary.rate_iops_intended
        )
    } else {
        format!("{:.0} a second", summary.rate_iops)
    };
    let mut lines = vec![
        ("target", summary.target.clone()),
        (
            "requests",
            format!("{} in {}: {rate}", summary.requests, Duration(summary.time_ns)),
        ),
        (
            "bytes",
            format!("{} a second", Size(summary.bytes_per_second as u64)),
        ),
        ("starts", starts(summary)),
    ];
    if let Some(calibration) = summary.calibration {
        lines.push((
            "generator",
            format!("{:.0} ns for each request", calibration.request_ns),
        ));
    }
    if summary.verified > 0 {
        lines.push(("verified", format!("{} reads", summary.verified)));
    }
    let mut verdict = summary.verdict.to_owned();
    if let Some(why) = &summary.why {
        verdict += &format!(": {why}");
    }
    lines.push(("verdict", verdict));
    let rows = [("read", &summary.reads), ("write", &summary.writes)]
        .into_iter()
        .filter(|(_, latency)| latency.response.count > 0)
        .flat_map(|(what, latency)| rows(what, latency, summary.loop_kind == "open"));
    let columns = ["", ">MIN", ">P50", ">P90", ">P99", ">P99.9", ">P99.99", ">MAX"];
    format!("{}\n\n{}", pairs(&lines), table(&columns, rows))
}

fn starts(summary: &Summary) -> String {
    if summary.loop_kind == "closed" {
        return "whenever another request has ended".to_owned();
    }
    let late = match summary.late {
        0 => "all on time".to_owned(),
        count => format!("{count} late, the latest by {}", Duration(summary.late_ns_max)),
    };
    let room = match summary.waited_for_room {
        0 => String::new(),
        count => format!("; {count} waited for room at the target"),
    };
    format!("{late}{room}")
}

fn rows(what: &str, latency: &LatencySummary, open: bool) -> Vec<Vec<String>> {
    let row = |name: String, times: &TimesSummary| {
        let times = times.in_order_ns().map(|ns| Duration(ns).to_string());
        [name].into_iter().chain(times).collect()
    };
    let mut rows = vec![row(format!("{what} response"), &latency.response)];
    if open {
        rows.push(row(format!("{what} service"), &latency.service));
    }
    rows
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
            "A  {}\nB  {}\n{rounds} rounds; response times\n\n{}",
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
    output::print(global, &swept, show_sweep)
}

fn show_sweep(sweep: &Sweep) -> String {
    let rows = sweep.steps.iter().map(|step| {
        vec![
            format!("{:.0}", step.rate_iops),
            format!("{:.0}", step.ended_iops),
            Duration(step.p50_ns).to_string(),
            Duration(step.p99_ns).to_string(),
            Duration(step.p999_ns).to_string(),
            if step.kept_up { "" } else { "did not keep up" }.to_owned(),
        ]
    });
    let columns = [">RATE", ">ENDED", ">P50", ">P99", ">P99.9", ""];
    let knee = match sweep.knee_iops {
        Some(rate) => format!("{rate:.0} requests a second"),
        None => "below the slowest step".to_owned(),
    };
    format!(
        "{}\n\n{}",
        pairs(&[
            ("at most", format!("{:.0} requests a second", sweep.rate_iops_max)),
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
