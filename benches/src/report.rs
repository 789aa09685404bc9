//! Tables in Markdown.

use std::fmt::Write;

use serde::Serialize;

use crate::machine::Machine;
use crate::rounds::{CaseResult, RAW_TOLERANCE, Run};
use crate::stats::Spread;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How, in a sentence.
    pub method: String,
    /// The cases: contenders are Stillpoint, qemu-nbd, raw.
    pub cases: Vec<CaseResult>,
    /// Before and right after a snapshot: contenders are Stillpoint before, Stillpoint after, qcow2 before,
    /// qcow2 after, raw.
    pub snapshot: Option<CaseResult>,
    /// What the API says of each snapshot that was taken.
    pub snapshots_taken: Vec<serde_json::Value>,
}

impl Report {
    /// The report as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("Machine: {}.\n\n{}\n", self.machine, self.method);
        for case in &self.cases {
            let _ = write!(text, "\n### {}\n\n{}", case.case, table(case));
            let _ = writeln!(
                text,
                "\nStillpoint / qemu-nbd {}, Stillpoint / raw {}{}",
                factor(case.ratio(0, 1)),
                factor(case.ratio(0, 2)),
                dropped(case)
            );
        }
        if let Some(case) = &self.snapshot {
            let _ = write!(text, "\n### {}, around a snapshot\n\n{}", case.case, table(case));
            let _ = writeln!(
                text,
                "\nAfter / before: Stillpoint {}, qcow2 {}; before: Stillpoint / qcow2 {}; after: {}{}",
                factor(case.ratio(1, 0)),
                factor(case.ratio(3, 2)),
                factor(case.ratio(0, 2)),
                factor(case.ratio(1, 3)),
                dropped(case)
            );
        }
        text
    }
}

fn table(case: &CaseResult) -> String {
    let rate = if case.is_sequential { "MB/s" } else { "IOPS" };
    let mut text = format!(
        "| | {rate} | min..max | p50 us | p99 us | server CPU s per million | client CPU s per million |\n\
         |---|---:|---:|---:|---:|---:|---:|\n"
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
            "| {} | {:.0} | {:.0}..{:.0} | {:.0} | {:.0} | {:.1} | {:.1} |",
            series.contender,
            rate.median,
            rate.min,
            rate.max,
            median(|run| run.measured.p50_us),
            median(|run| run.measured.p99_us),
            median(Run::cpu_s_per_million),
            median(|run| run.measured.client_cpu_s / run.measured.requests.max(1) as f64 * 1e6),
        );
    }
    text
}

fn factor(ratio: Spread) -> String {
    format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max)
}

fn dropped(case: &CaseResult) -> String {
    match case.dropped() {
        0 => ".".into(),
        dropped => format!(
            "; {dropped} of {} rounds dropped (raw was more than {:.0}% from its median).",
            case.counts.len(),
            RAW_TOLERANCE * 100.0
        ),
    }
}
