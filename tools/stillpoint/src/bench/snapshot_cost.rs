//! `stillpoint bench snapshot-cost`.

mod halves;

use std::time::{Duration as Time, SystemTime, UNIX_EPOCH};

use halves::{Daemon, Halves, Moment};
use serde::Serialize;
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::SnapshotInfo;
use stillpoint_bench::compare::RATIO_TOLD;
use stillpoint_bench::figures::Verdict;
use stillpoint_bench::job::Job;
use stillpoint_bench::snapshot_cost::{Cost, Extra, Round};

use super::arguments::SnapshotCostArguments;
use super::{failed, open, progress};
use crate::cli::Global;
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::Duration;

/// Version of [`Told`] in JSON: it changes when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// What it says, as JSON.
#[derive(Debug, Serialize)]
struct Told {
    version: u32,
    target: String,
    volume: String,
    every_ns: u64,
    /// No snapshot was taken in either half.
    control: bool,
    verdict: String,
    cost: Cost,
    /// What the daemon says of the snapshots, in nanoseconds: the longest hold of a shard...
    hold_ns: Spread,
    /// ...the longest that an answer was held...
    answer_held_ns: Spread,
    /// ...and from the command to durable.
    durable_ns: Spread,
    /// Rounds that do not count, and why.
    left_out: Vec<String>,
}

/// Of some times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Spread {
    min: u64,
    p50: u64,
    p99: u64,
    max: u64,
}

impl Spread {
    fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else {
            return Self::default();
        };
        Self {
            min: times[0],
            p50: times[last / 2],
            p99: times[last * 99 / 100],
            max: times[last],
        }
    }
}

/// Measures, and says what came of it.
pub fn run_snapshot_cost(arguments: SnapshotCostArguments, global: &Global) -> Result<(), Failure> {
    let (mut job, _) = arguments.job.job(false)?;
    job.timeline = true;
    job.check().map_err(|error| failed(error.into()))?;
    let every = Time::from_nanos(arguments.every.0);
    if every.is_zero() || every > Time::from_nanos(job.time_ns) {
        let message = format!(
            "a snapshot every {} in runs of {}: give an --every that fits into the --runtime",
            arguments.every,
            Duration(job.time_ns)
        );
        return Err(Error::usage(message).into());
    }
    let volumes = arguments.volume.split(',').map(ToOwned::to_owned).collect();
    let daemon = Daemon::of(global, volumes, arguments.pool.as_deref())?;
    let target = open(&arguments.target, &job)?;
    let halves = Halves {
        appliance: &daemon,
        every,
        control: arguments.control,
        mark: since_1970() / 1_000_000_000,
    };
    halves.warm_up(&job, &target)?;
    let (mut rounds, mut infos, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..arguments.rounds {
        progress(global, &format!("round {} of {}", number + 1, arguments.rounds));
        let job = Job {
            seed: job.seed.wrapping_add(u64::from(number)),
            ..job.clone()
        };
        let (without, with, moments) = halves.round(number, &job, &target)?;
        let failures = [&without.verdict, &with.verdict].map(Verdict::failure);
        match failures.into_iter().flatten().next() {
            Some(why) => left_out.push(why.to_owned()),
            None if moments.is_empty() => left_out.push("no snapshot was due in time".to_owned()),
            None => {
                let asked_for = moments.iter().map(|moment| moment.position_ns(&with));
                rounds.push(Round::of(&without, &with, &asked_for.collect::<Vec<_>>()));
                infos.extend(moments.into_iter().filter_map(|Moment { taken, .. }| taken));
            }
        }
    }
    let Some(cost) = Cost::of(&rounds, job.seed) else {
        let why = left_out.first().cloned().unwrap_or_default();
        return Err(Error::failure(format!("no round can be trusted: {why}")).into());
    };
    let spread = |of: fn(&SnapshotInfo) -> u64| Spread::of(infos.iter().map(of).collect());
    let told = Told {
        version: VERSION,
        target: arguments.target.to_string(),
        volume: arguments.volume,
        every_ns: arguments.every.0,
        control: arguments.control,
        verdict: cost.verdict(),
        hold_ns: spread(|info| info.hold_ns_max),
        answer_held_ns: spread(|info| info.answer_held_ns_max),
        durable_ns: spread(|info| info.durable_ns),
        cost,
        left_out,
    };
    output::print(global, &told, show)
}

fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64)
}

fn show(told: &Told) -> String {
    let cost = &told.cost;
    let times = |times: Spread| {
        let [p50, p99, max] = [times.p50, times.p99, times.max].map(Duration);
        format!("p50 {p50}, p99 {p99}, longest {max}")
    };
    let mut lines = vec![
        ("target", told.target.clone()),
        (
            "snapshots",
            format!(
                "{} of {}, one every {}, in {} rounds",
                match told.control {
                    true => format!("none (--control), at {} moments,", cost.snapshots),
                    false => cost.snapshots.to_string(),
                },
                told.volume,
                Duration(told.every_ns),
                cost.rounds
            ),
        ),
        ("hold of a shard", times(told.hold_ns)),
        ("hold of an answer", times(told.answer_held_ns)),
        ("command to durable", times(told.durable_ns)),
        ("extra per snapshot", extra(&cost.extra)),
        ("in the 50 ms after it", extra(&cost.extra_near)),
        ("verdict", told.verdict.clone()),
    ];
    if let Some(why) = told.left_out.first() {
        lines.push((
            "left out",
            format!("{} rounds, the first: {why}", told.left_out.len()),
        ));
    }
    let rows = cost.percentiles.iter().map(|one| {
        vec![
            one.percentile.to_owned(),
            Duration(one.a_ns).to_string(),
            Duration(one.b_ns).to_string(),
            format!("{:.3} ({:.3} to {:.3})", one.ratio, one.ratio_low, one.ratio_high),
            one.verdict(cost.rounds).replace("B is", "it is"),
        ]
    });
    let columns = ["", ">WITHOUT", ">WITH", ">WITH/WITHOUT (95%)", "VERDICT"];
    format!("{}\n\n{}\n\n{RATIO_TOLD}\n", pairs(&lines), table(&columns, rows))
}

/// Waiting of all requests together, in microseconds.
fn extra(extra: &Extra) -> String {
    let [mean, low, high] = [extra.mean_ns, extra.low_ns, extra.high_ns].map(|ns| ns / 1e3);
    let shown = if extra.is_shown() {
        ""
    } else {
        "; no difference shown"
    };
    format!("{mean:.0} us of waiting, all requests together ({low:.0} to {high:.0}){shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_what_there_was() {
        assert_eq!(Spread::of(Vec::new()), Spread::default());
        let all = Spread::of((1..=101).rev().collect());
        assert_eq!((all.min, all.p50, all.p99, all.max), (1, 51, 100, 101));
    }
}
