//! `stillpoint bench run`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use stillpoint_appliance::Error;
use stillpoint_bench::detail::Detail;
use stillpoint_bench::figures::Verdict;
use stillpoint_bench::html::html;
use stillpoint_bench::machine::Machine;
use stillpoint_bench::report::{
    LatencySummary, StallsSummary, Summary, TimesSummary, cores_told, hgrm, write_hlog,
};
use stillpoint_bench::run::{Outcome, calibrate, run};
use stillpoint_bench::target::{Name, Opened};

use super::arguments::RunArguments;
use super::daemon::{Happened, Watch};
use super::{failed, open, words};
use crate::cli::Global;
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::{Duration, Size};

/// Runs a job, writes what was asked for, and says what came of it.
pub fn run_one(arguments: RunArguments, global: &Global) -> Result<(), Failure> {
    let (mut job, named) = arguments.job.job(arguments.hlog.is_some())?;
    job.timeline = true;
    let name: Name = match (arguments.target, named) {
        (Some(name), _) => name,
        (None, Some(text)) => words::target(&text).map_err(Error::usage)?,
        (None, None) => {
            return Err(Error::usage("no target: name a file, a block device or an NBD URI").into());
        }
    };
    job.check().map_err(|error| failed(error.into()))?;
    let target = open(&name, &job)?;
    let calibration = calibrate(&job, &target).map_err(failed)?;
    let watch = arguments.daemon.then(|| Watch::begin(global)).transpose()?;
    let outcome = run(&job, &target).map_err(failed)?;
    let happened = watch.map(|watch| watch.end(&outcome)).transpose()?;
    if let Some(path) = &arguments.hgrm {
        write(path, |file| {
            file.write_all(hgrm(&outcome.figures.all().response).as_bytes())
                .map_err(|error| error.to_string())
        })?;
    }
    if let Some(path) = &arguments.hlog {
        write(path, |file| write_hlog(&outcome, file))?;
    }
    let mut summary = Summary::of(&outcome, &name.to_string(), Some(calibration));
    summary.remarks = target.remarks();
    if arguments.html.is_some() || arguments.detail {
        summary.detail = detail(&outcome, happened, &target);
    }
    if let (Some(path), Some(detail)) = (&arguments.html, &summary.detail) {
        let began = output::time(summary.began_wall_ns);
        write(path, |file| {
            file.write_all(html(&summary, detail, &began).as_bytes())
                .map_err(|error| error.to_string())
        })?;
    }
    output::print(global, &summary, show)?;
    match outcome.verdict {
        // What was printed says why, in every format.
        Verdict::Failed(_) | Verdict::GeneratorLate(_) => {
            Err(Error::failure("these figures cannot be trusted: the verdict says why").into())
        }
        Verdict::Sound | Verdict::Overloaded(_) => Ok(()),
    }
}

fn detail(outcome: &Outcome, happened: Option<Happened>, target: &Opened) -> Option<Detail> {
    let mut devices = target.devices();
    let happenings = happened.map(|happened| {
        devices.extend(happened.devices);
        happened.happenings
    });
    Detail::of(outcome, happenings, Machine::this(&devices))
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
            format!(
                "{:.0} ns for each request, {}",
                calibration.request_ns,
                cores_told(&summary.cores)
            ),
        ));
    }
    if let Some(stalls) = summary.stalls.filter(|stalls| stalls.found > 0) {
        lines.push(("stalls", of_stalls(&stalls)));
    }
    if summary.verified > 0 {
        lines.push(("verified", format!("{} reads", summary.verified)));
    }
    let mut verdict = summary.verdict.to_owned();
    if let Some(why) = &summary.why {
        verdict += &format!(": {why}");
    }
    lines.push(("verdict", verdict));
    let remarks = summary.remarks.iter();
    lines.extend(remarks.map(|remark| ("remark", remark.clone())));
    let kinds = [
        ("read", &summary.reads),
        ("write", &summary.writes),
        ("discard", &summary.discards),
        ("flush", &summary.flushes),
    ];
    let rows = kinds
        .into_iter()
        .filter(|(_, latency)| latency.response.count > 0)
        .flat_map(|(what, latency)| rows(what, latency, summary.loop_kind == "open"));
    let columns = ["", ">MIN", ">P50", ">P90", ">P99", ">P99.9", ">P99.99", ">MAX"];
    format!("{}\n\n{}", pairs(&lines), table(&columns, rows))
}

/// A stall may be several slow responses one after the other, and is then longer than any of them.
fn of_stalls(stalls: &StallsSummary) -> String {
    let [threshold, lasted, at, response] = [
        stalls.threshold_ns,
        stalls.longest_ns,
        stalls.longest_at_ns,
        stalls.longest_response_ns,
    ]
    .map(Duration);
    format!(
        "{} (responses over {threshold}, less than 5 ms apart); the longest lasted {lasted} from {at} on: {} requests, the longest \
         response {response}",
        stalls.found, stalls.longest_requests
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_that_is_longer_than_its_responses_says_of_what_it_is_made() {
        let told = of_stalls(&StallsSummary {
            found: 2,
            threshold_ns: 1_200_000,
            longest_at_ns: 500_000_000,
            longest_ns: 39_000_000,
            longest_response_ns: 12_500_000,
            longest_requests: 41,
        });
        assert_eq!(
            told,
            "2 (responses over 1.20 ms, less than 5 ms apart); the longest lasted 39.0 ms from 500 ms on: 41 requests, the longest \
             response 12.5 ms"
        );
    }
}
