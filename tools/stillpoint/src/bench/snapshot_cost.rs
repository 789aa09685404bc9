//! `stillpoint bench snapshot-cost`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration as Time, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{CreateSnapshot, DeletionInfo, SnapshotInfo};
use stillpoint_bench::figures::Verdict;
use stillpoint_bench::job::Job;
use stillpoint_bench::run::{Outcome, run};
use stillpoint_bench::snapshot_cost::{Cost, Extra, Round};
use stillpoint_bench::target::Opened;

use super::arguments::SnapshotCostArguments;
use super::{failed, open, progress};
use crate::cli::Global;
use crate::client::{Client, escape, with_query};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::Duration;

/// Version of [`Told`] in JSON: it changes when a field changes its meaning or goes.
const VERSION: u32 = 1;
/// How often it is looked whether a deletion has ended, or whether no more snapshots are to be taken.
const GLANCE: Time = Time::from_millis(5);
/// How long is waited for what deleted snapshots had to come free.
const FREED: Time = Time::from_secs(60);

/// What it says, as JSON.
#[derive(Debug, Serialize)]
struct Told {
    version: u32,
    target: String,
    volume: String,
    every_ns: u64,
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
    let target = open(&arguments.target, &job)?;
    let taker = Taker {
        client: Client::new(global),
        volumes: arguments.volume.split(',').map(ToOwned::to_owned).collect(),
        pool: arguments.pool.clone(),
        every,
        mark: since_1970() / 1_000_000_000,
    };
    let (mut rounds, mut infos, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..arguments.rounds {
        progress(global, &format!("round {} of {}", number + 1, arguments.rounds));
        let job = Job {
            seed: job.seed.wrapping_add(u64::from(number)),
            ..job.clone()
        };
        let (without, with, taken) = taker.round(number, &job, &target)?;
        let failures = [&without.verdict, &with.verdict].map(Verdict::failure);
        match failures.into_iter().flatten().next() {
            Some(why) => left_out.push(why.to_owned()),
            None if taken.is_empty() => left_out.push("no snapshot was taken in time".to_owned()),
            None => {
                let asked_for = taken.iter().map(|info| position_ns(info, &with));
                rounds.push(Round::of(&without, &with, &asked_for.collect::<Vec<_>>()));
                infos.extend(taken);
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
        verdict: cost.verdict(),
        hold_ns: spread(|info| info.hold_ns_max),
        answer_held_ns: spread(|info| info.answer_held_ns_max),
        durable_ns: spread(|info| info.durable_ns),
        cost,
        left_out,
    };
    output::print(global, &told, show)
}

/// When a snapshot was asked for, from the first moment of a run that counts on.
fn position_ns(info: &SnapshotInfo, outcome: &Outcome) -> i64 {
    info.time_stamp_ns.wrapping_sub(outcome.began_wall_ns) as i64
}

fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64)
}

/// Takes snapshots, and deletes them again.
struct Taker {
    client: Client,
    volumes: Vec<String>,
    pool: Option<String>,
    every: Time,
    /// Part of the names, so that two runs do not meet.
    mark: u64,
}

impl Taker {
    /// Both halves of a round, without and with, and the snapshots of the other; these are gone when it returns, and what they
    /// had is free.
    fn round(
        &self,
        number: u32,
        job: &Job,
        target: &Opened,
    ) -> Result<(Outcome, Outcome, Vec<SnapshotInfo>), Failure> {
        let before = if number.is_multiple_of(2) {
            Some(run(job, target).map_err(failed)?)
        } else {
            None
        };
        let (with, taken) = self.half(number, job, target)?;
        let without = match before {
            Some(before) => before,
            None => run(job, target).map_err(failed)?,
        };
        Ok((without, with, taken))
    }

    /// The job with snapshots beside it; gives those that were asked for in the time that counts.
    fn half(&self, number: u32, job: &Job, target: &Opened) -> Result<(Outcome, Vec<SnapshotInfo>), Failure> {
        let ended = AtomicBool::new(false);
        let (outcome, (taken, trouble)) = thread::scope(|scope| {
            let snapshots = scope.spawn(|| self.take(number, &ended));
            let outcome = run(job, target);
            ended.store(true, Ordering::Relaxed);
            (outcome, snapshots.join().expect("no panic"))
        });
        // Whatever went wrong, what was taken goes.
        let deleted: Vec<Result<(), Failure>> = taken.iter().map(|info| self.delete(info)).collect();
        let outcome = outcome.map_err(failed)?;
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        deleted.into_iter().collect::<Result<(), Failure>>()?;
        let counts = |info: &SnapshotInfo| (0..job.time_ns as i64).contains(&position_ns(info, &outcome));
        let taken = taken.into_iter().filter(counts).collect();
        Ok((outcome, taken))
    }

    /// Takes one in each interval, in its middle, until told that it is enough.
    fn take(&self, number: u32, ended: &AtomicBool) -> (Vec<SnapshotInfo>, Option<Failure>) {
        let mut taken = Vec::new();
        let mut due = Instant::now() + self.every / 2;
        loop {
            while Instant::now() < due {
                if ended.load(Ordering::Relaxed) {
                    return (taken, None);
                }
                thread::sleep(due.saturating_duration_since(Instant::now()).min(GLANCE));
            }
            let request = CreateSnapshot {
                volumes: self.volumes.clone(),
                name: format!("bench-{}-{number}-{}", self.mark, taken.len()),
                pool: self.pool.clone(),
                hold_limit_ns: None,
            };
            match self.client.post("/v1/snapshots", &request) {
                Ok(info) => taken.push(info),
                Err(failure) => return (taken, Some(failure)),
            }
            due = (due + self.every).max(Instant::now());
        }
    }

    /// Deletes one, and waits until what it had is free, so that this is not measured with what comes next.
    fn delete(&self, info: &SnapshotInfo) -> Result<(), Failure> {
        let pool = [("pool", Some(info.pool.as_str()))];
        let path = format!("/v1/snapshots/{}", escape(&info.name));
        self.client.delete(&with_query(&path, &pool))?;
        let of_pool = format!("/v1/pools/{}", escape(&info.pool));
        let begun = Instant::now();
        loop {
            let path = format!("{of_pool}/deletions/{}", info.id);
            let state: DeletionInfo = self.client.get(&path)?;
            if state.state != "going" {
                return self.client.post(&format!("{of_pool}/checkpoint"), &());
            }
            if begun.elapsed() > FREED {
                let message = format!(
                    "snapshot {} is deleted, and its space does not come free",
                    info.name
                );
                return Err(Error::failure(message)
                    .hint("see `stillpoint events --background`")
                    .into());
            }
            thread::sleep(GLANCE);
        }
    }
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
                cost.snapshots,
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
    format!("{}\n\n{}", pairs(&lines), table(&columns, rows))
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
