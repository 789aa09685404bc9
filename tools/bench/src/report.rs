//! What was measured, for programs (JSON, the text and log formats of HdrHistogram).

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use serde::Serialize;

use crate::detail::Detail;
use crate::figures::{Latency, Times, Verdict};
use crate::job::Load;
use crate::run::{Calibration, Outcome};
use crate::schedule::Kind;
use crate::stalls::Stalls;

/// Version of [`Summary`] in JSON: it changes when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// A run, as JSON has it. All times in nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// [`VERSION`].
    pub version: u32,
    /// The job's name.
    pub name: String,
    /// The target's name.
    pub target: String,
    /// `sound`, `overloaded` or `failed`.
    pub verdict: &'static str,
    /// Why, unless it is sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// See [`crate::target::Opened::remarks`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Starts at times of their own (`open`), or after another has ended (`closed`).
    pub loop_kind: &'static str,
    /// Threads, each with a connection or a queue of its own.
    pub threads: usize,
    /// The core of each thread; `null` for one that ran wherever there was time.
    pub cores: Vec<Option<u32>>,
    /// Requests a second that were to start; 0 for a closed loop.
    pub rate_iops_intended: f64,
    /// Requests a second that ended well.
    pub rate_iops: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Requests that ended well.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests that started late by the generator's fault.
    pub late: u64,
    /// The latest of these.
    pub late_ns_max: u64,
    /// Requests that waited for room at the target.
    pub waited_for_room: u64,
    /// Requests that never started.
    pub not_started: u64,
    /// Blocks whose content was compared.
    pub verified: u64,
    /// When it began to count, in nanoseconds since 1970.
    pub began_wall_ns: u64,
    /// How long it counted.
    pub time_ns: u64,
    /// What the generator costs.
    pub calibration: Option<CalibrationSummary>,
    /// Of all requests but flushes.
    pub all: LatencySummary,
    /// Of reads.
    pub reads: LatencySummary,
    /// Of writes.
    pub writes: LatencySummary,
    /// Of discards.
    pub discards: LatencySummary,
    /// Of flushes.
    pub flushes: LatencySummary,
    /// How many stalls there were and how long the longest was; `None` if that was not kept.
    pub stalls: Option<StallsSummary>,
    /// All that the HTML report shows, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
}

/// See [`Stalls`]: the list is in [`Summary::detail`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StallsSummary {
    /// How many.
    pub found: u64,
    /// Responses beyond this are stalls.
    pub threshold_ns: u64,
    /// When the longest began, from the first moment that counts on.
    pub longest_at_ns: u64,
    /// How long it was: from the first request to the end of the last, and those closer than 5 ms are one.
    pub longest_ns: u64,
    /// The longest response in it.
    pub longest_response_ns: u64,
    /// Requests that were to start in it.
    pub longest_requests: u64,
}

impl StallsSummary {
    fn of(stalls: &Stalls) -> Self {
        let longest = stalls.longest();
        Self {
            found: stalls.found,
            threshold_ns: stalls.threshold_ns,
            longest_at_ns: longest.map_or(0, |stall| stall.began_ns),
            longest_ns: longest.map_or(0, |stall| stall.ended_ns - stall.began_ns),
            longest_response_ns: longest.map_or(0, |stall| stall.response_ns_max),
            longest_requests: longest.map_or(0, |stall| stall.requests),
        }
    }
}

/// See [`Calibration`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CalibrationSummary {
    /// See [`Calibration::request_ns`].
    pub request_ns: f64,
    /// See [`Calibration::rate_iops_max`].
    pub rate_iops_max: f64,
    /// See [`Calibration::start_ns_p99`].
    pub start_ns_p99: u64,
}

/// See [`Latency`].
#[derive(Clone, Debug, Serialize)]
pub struct LatencySummary {
    /// From the intended start.
    pub response: TimesSummary,
    /// From the real start.
    pub service: TimesSummary,
}

/// A distribution.
#[derive(Clone, Debug, Serialize)]
pub struct TimesSummary {
    /// Requests.
    pub count: u64,
    /// Their mean.
    pub mean_ns: f64,
    /// The shortest.
    pub min_ns: u64,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// 90 of a hundred.
    pub p90_ns: u64,
    /// 99 of a hundred.
    pub p99_ns: u64,
    /// 999 of a thousand.
    pub p99_9_ns: u64,
    /// 9,999 of ten thousand.
    pub p99_99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl TimesSummary {
    fn of(times: &Times) -> Self {
        Self {
            count: times.len(),
            mean_ns: times.mean(),
            min_ns: if times.is_empty() { 0 } else { times.min() },
            p50_ns: times.value_at_quantile(0.5),
            p90_ns: times.value_at_quantile(0.9),
            p99_ns: times.value_at_quantile(0.99),
            p99_9_ns: times.value_at_quantile(0.999),
            p99_99_ns: times.value_at_quantile(0.9999),
            max_ns: times.max(),
        }
    }

    /// The shortest, the percentiles, and the longest.
    #[must_use]
    pub fn in_order_ns(&self) -> [u64; 7] {
        [
            self.min_ns,
            self.p50_ns,
            self.p90_ns,
            self.p99_ns,
            self.p99_9_ns,
            self.p99_99_ns,
            self.max_ns,
        ]
    }
}

impl LatencySummary {
    fn of(latency: &Latency) -> Self {
        Self {
            response: TimesSummary::of(&latency.response),
            service: TimesSummary::of(&latency.service),
        }
    }
}

impl Summary {
    /// Of a run against a target of this name.
    #[must_use]
    pub fn of(outcome: &Outcome, target: &str, calibration: Option<Calibration>) -> Self {
        let figures = &outcome.figures;
        let (verdict, why) = match &outcome.verdict {
            Verdict::Sound => ("sound", None),
            Verdict::Overloaded(why) => ("overloaded", Some(why.clone())),
            Verdict::Failed(why) | Verdict::GeneratorLate(why) => ("failed", Some(why.clone())),
        };
        let (loop_kind, rate_iops_intended) = match outcome.job.load {
            Load::Closed { .. } => ("closed", 0.0),
            Load::Open { rate_iops, .. } => ("open", rate_iops),
        };
        Self {
            version: VERSION,
            name: outcome.job.name.clone(),
            target: target.to_owned(),
            verdict,
            why,
            remarks: Vec::new(),
            loop_kind,
            threads: outcome.job.threads,
            cores: outcome.cores.clone(),
            rate_iops_intended,
            rate_iops: outcome.rate_iops(),
            bytes_per_second: figures.bytes as f64 * 1e9 / outcome.job.time_ns as f64,
            requests: figures.requests(),
            errors: figures.errors,
            late: figures.late,
            late_ns_max: figures.late_ns_max,
            waited_for_room: figures.waited_for_room,
            not_started: figures.not_started,
            verified: figures.verified,
            began_wall_ns: outcome.began_wall_ns,
            time_ns: outcome.job.time_ns,
            calibration: calibration.map(|calibration| CalibrationSummary {
                request_ns: calibration.request_ns,
                rate_iops_max: calibration.rate_iops_max,
                start_ns_p99: calibration.start_ns_p99,
            }),
            all: LatencySummary::of(&figures.all()),
            reads: LatencySummary::of(figures.kind(Kind::Read)),
            writes: LatencySummary::of(figures.kind(Kind::Write)),
            discards: LatencySummary::of(figures.kind(Kind::Discard)),
            flushes: LatencySummary::of(figures.kind(Kind::Flush)),
            stalls: figures
                .timeline
                .as_ref()
                .map(|timeline| StallsSummary::of(&Stalls::of(timeline, &[]))),
            detail: None,
        }
    }
}

/// Where threads ran, in words.
#[must_use]
pub fn cores_told(cores: &[Option<u32>]) -> String {
    let mut pinned: Vec<String> = cores.iter().flatten().map(u32::to_string).collect();
    let others = match pinned.len() {
        0 => return "on whatever core had time".to_owned(),
        count if count < cores.len() => ", others anywhere",
        _ => "",
    };
    let last = pinned.pop().expect("there is one");
    match pinned.is_empty() {
        true => format!("on core {last}{others}"),
        false => format!("on cores {} and {last}{others}", pinned.join(", ")),
    }
}

/// Percentiles as HdrHistogram's tools print and plot them (`.hgrm`), in microseconds.
#[must_use]
pub fn hgrm(times: &Times) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut count = 0;
    let mut row = |value: u64, quantile: f64, count: u64| {
        let (value, count) = (value as f64 / 1e3, count);
        let ended = if quantile < 1.0 {
            writeln!(
                text,
                "{value:12.3} {quantile:2.12} {count:10} {:14.2}",
                1.0 / (1.0 - quantile)
            )
        } else {
            writeln!(text, "{value:12.3} {quantile:2.12} {count:10}")
        };
        ended.expect("into memory");
    };
    for step in times.iter_quantiles(5) {
        count += step.count_since_last_iteration();
        row(step.value_iterated_to(), step.quantile_iterated_to(), count);
    }
    let sub_buckets = 2048;
    let buckets = 64 - (times.high() / sub_buckets).leading_zeros() + 1;
    let (mean, deviation) = (times.mean() / 1e3, times.stdev() / 1e3);
    let (max, total) = (times.max() as f64 / 1e3, times.len());
    writeln!(
        text,
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]\n\
         #[Max     = {max:12.3}, Total count    = {total:12}]\n\
         #[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]"
    )
    .expect("into memory");
    text
}

/// Writes the histograms of all intervals as HdrHistogram's tools read them (`.hlog`, compressed, version 2), in
/// nanoseconds.
///
/// # Errors
/// The writer's, in words.
pub fn write_hlog(outcome: &Outcome, writer: &mut impl Write) -> Result<(), String> {
    let mut serializer = V2DeflateSerializer::new();
    let began = UNIX_EPOCH + Duration::from_nanos(outcome.began_wall_ns);
    let interval = Duration::from_nanos(outcome.job.interval_ns.unwrap_or(outcome.job.time_ns));
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(concat!(
            "stillpoint bench ",
            env!("CARGO_PKG_VERSION"),
            ": response times in nanoseconds"
        ))
        .with_start_time(began)
        .with_base_time(began)
        .with_max_value_divisor(1e6)
        .begin_log_with(writer, &mut serializer)
        .map_err(|error| error.to_string())?;
    for (index, times) in outcome.figures.intervals.iter().enumerate() {
        let from = interval * index as u32;
        log.write_histogram(times, from, interval, None)
            .map_err(|error| format!("{error:?}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
