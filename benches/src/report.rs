//! Tables of one case in Markdown.

use std::fmt::Write;

use crate::rounds::{CaseResult, RAW_TOLERANCE, Run};
use crate::stats::Spread;

/// Who did how much, how fast and for how much CPU.
#[must_use]
pub fn table(case: &CaseResult) -> String {
    let rate = if case.is_sequential { "MB/s" } else { "IOPS" };
    let mut text = format!(
        "| | {rate} | min..max | p50 us | p99 us | p99.9 us | server CPU s per million | client CPU s per million |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for (index, series) in case.series.iter().enumerate() {
        let rate = case.spread(index, |run| {
            if case.is_sequential {
                run.measured.bytes_per_second / 1e6
            } else {
                run.measured.iops
            }
        });
        let median = |figure: fn(&Run) -> f64| case.spread(index, figure).median;
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0}..{:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            series.contender,
            rate.median,
            rate.min,
            rate.max,
            median(|run| run.measured.p50_us),
            median(|run| run.measured.p99_us),
            median(|run| run.measured.p99_9_us),
            median(Run::cpu_s_per_million),
            median(|run| run.measured.client_cpu_s / run.measured.requests.max(1) as f64 * 1e6),
        );
    }
    text
}

/// A ratio with its spread.
#[must_use]
pub fn factor(ratio: Spread) -> String {
    format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max)
}

/// How many rounds did not count, and why.
#[must_use]
pub fn dropped(case: &CaseResult) -> String {
    match case.dropped() {
        0 => ".".into(),
        dropped => format!(
            "; {dropped} of {} rounds dropped (raw was more than {:.0}% from its median).",
            case.counts.len(),
            RAW_TOLERANCE * 100.0
        ),
    }
}
