//! What was measured, for programs (JSON, the text and log formats of HdrHistogram).

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use serde::Serialize;

use crate::figures::{Latency, Times, Verdict};
use crate::job::Load;
use crate::run::{Calibration, Outcome};

/// A run, as JSON has it. All times in nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The job's name.
    pub name: String,
    /// The target's name.
    pub target: String,
    /// `sound`, `overloaded` or `failed`.
    pub verdict: &'static str,
    /// Why, unless it is sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Starts at times of their own (`open`), or after another has ended (`closed`).
    pub loop_kind: &'static str,
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
    /// Of all requests.
    pub all: LatencySummary,
    /// Of reads.
    pub reads: LatencySummary,
    /// Of writes.
    pub writes: LatencySummary,
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
            Verdict::Failed(why) => ("failed", Some(why.clone())),
        };
        let (loop_kind, rate_iops_intended) = match outcome.job.load {
            Load::Closed { .. } => ("closed", 0.0),
            Load::Open { rate_iops, .. } => ("open", rate_iops),
        };
        Self {
            name: outcome.job.name.clone(),
            target: target.to_owned(),
            verdict,
            why,
            loop_kind,
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
            reads: LatencySummary::of(&figures.reads),
            writes: LatencySummary::of(&figures.writes),
        }
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
mod tests {
    use super::*;
    use crate::figures::{Figures, times};
    use crate::job::Job;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn outcome() -> Outcome {
        let mut figures = Figures::default();
        for number in 1..=1000 {
            figures.ended(
                number % 2 == 0,
                4096,
                number * 1000,
                number * 500,
                Some((number / 500) as usize),
            );
        }
        let verdict = figures.verdict(Duration::from_secs(1));
        Outcome {
            job: Job {
                interval_ns: Some(1_000_000_000),
                ..Job::default()
            },
            figures,
            began_wall_ns: 1_700_000_000_000_000_000,
            verdict,
        }
    }

    #[test]
    fn the_percentile_text_has_the_columns_and_the_footer_of_others() {
        let mut all = times();
        (1..=1000).for_each(|number| all.record(number * 1000).expect("in bounds"));
        let text = hgrm(&all);
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
            .map(|line| {
                line.split_whitespace()
                    .map(|word| word.parse().expect("a number"))
                    .collect()
            })
            .collect();
        assert!(rows.len() > 20 && rows.is_sorted_by(|a, b| a[1] <= b[1]));
        let last = rows.last().expect("rows");
        assert_eq!((last[1], last[2], last.len()), (1.0, 1000.0, 3));
        assert!((last[0] - 1000.0).abs() < 1.0, "in microseconds");
        let middle = rows.iter().find(|row| row[1] >= 0.5).expect("a median");
        assert!((middle[0] - 500.0).abs() < 1.0);
        assert!(text.contains("#[Max     =") && text.contains("Total count    =         1000]"));
    }

    #[test]
    fn the_interval_log_is_read_back() {
        let mut bytes = Vec::new();
        write_hlog(&outcome(), &mut bytes).expect("into memory");
        let mut counts = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            if let Ok(LogEntry::Interval(interval)) = entry {
                let base64 = interval.encoded_histogram();
                let packed = decode_base64(base64);
                let read: Histogram<u64> = Deserializer::new()
                    .deserialize(&mut &packed[..])
                    .expect("version 2");
                counts.push((interval.start_timestamp().as_secs(), read.len()));
            }
        }
        assert_eq!(counts, [(0, 499), (1, 500), (2, 1)]);
    }

    fn decode_base64(text: &str) -> Vec<u8> {
        let digit = |byte: u8| match byte {
            b'A'..=b'Z' => u32::from(byte - b'A'),
            b'a'..=b'z' => u32::from(byte - b'a') + 26,
            b'0'..=b'9' => u32::from(byte - b'0') + 52,
            b'+' => 62,
            b'/' => 63,
            _ => 0,
        };
        let mut bytes = Vec::new();
        for four in text.as_bytes().chunks(4) {
            let word = four.iter().fold(0, |word, &byte| word << 6 | digit(byte));
            let padding = four.iter().filter(|&&byte| byte == b'=').count();
            bytes.extend_from_slice(&word.to_be_bytes()[1..4 - padding]);
        }
        bytes
    }

    #[test]
    fn a_summary_says_what_happened() {
        let summary = Summary::of(&outcome(), "null:", None);
        let json = serde_json::to_value(&summary).expect("plain data");
        assert_eq!(
            (&json["verdict"], &json["requests"]),
            (&"sound".into(), &1000.into())
        );
        let p50 = json["all"]["response"]["p50_ns"].as_u64().expect("a number");
        assert!((499_000..=501_000).contains(&p50), "{p50}");
        assert_eq!(json["reads"]["response"]["count"], 500);
    }
}
