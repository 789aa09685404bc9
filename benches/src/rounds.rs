//! Interleaved rounds: in each, every contender does the same job once, so that what the machine does to one it does
//! to all. Rounds in which the raw device itself was not itself are dropped.

use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::Failure;
use crate::cpu;
use crate::fio::{self, Extent, Job, Measured, Target};
use crate::process::Scratch;
use crate::stats::{Spread, near_the_median};

/// How far raw may be from its median in a round that counts.
pub const RAW_TOLERANCE: f64 = 0.2;

/// How rounds are run.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds.
    pub rounds: u32,
    /// Time of each run.
    pub run: Duration,
    /// Rest before each run: virtual disks have budgets that refill.
    pub pause: Duration,
}

/// Someone who is measured.
#[derive(Clone, Debug)]
pub struct Contender {
    /// Name in the table.
    pub name: String,
    /// What fio works on.
    pub target: Target,
    /// The server; for a raw file fio itself is what costs CPU.
    pub server: Option<u32>,
}

/// One run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// What fio says.
    #[serde(flatten)]
    pub measured: Measured,
    /// CPU time of the server (of fio, for a raw file), user and system.
    pub server_cpu_s: f64,
}

impl Run {
    /// CPU seconds for each million requests.
    #[must_use]
    pub fn cpu_s_per_million(&self) -> f64 {
        self.server_cpu_s / self.measured.requests.max(1) as f64 * 1e6
    }
}

/// The runs of one contender in one case, one a round.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// The contender.
    pub contender: String,
    /// Its runs, by round.
    pub runs: Vec<Run>,
}

/// What came out of a case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseResult {
    /// The case.
    pub case: String,
    /// Whether bytes per second say more than requests.
    pub is_sequential: bool,
    /// The contenders; raw is last.
    pub series: Vec<Series>,
    /// Whether each round counts.
    pub counts: Vec<bool>,
}

impl CaseResult {
    /// Decides which rounds count. `raw` is the series that should not move.
    #[must_use]
    pub fn new(case: String, is_sequential: bool, series: Vec<Series>, raw: usize) -> Self {
        let raw_iops: Vec<f64> = series[raw].runs.iter().map(|run| run.measured.iops).collect();
        Self {
            case,
            is_sequential,
            counts: near_the_median(&raw_iops, RAW_TOLERANCE),
            series,
        }
    }

    /// The spread of a figure of one contender over the rounds that count.
    pub fn spread(&self, contender: usize, figure: impl Fn(&Run) -> f64) -> Spread {
        Spread::of(self.counted(contender).map(figure))
    }

    /// The spread of the ratio of two contenders' IOPS, taken round by round.
    #[must_use]
    pub fn ratio(&self, of: usize, to: usize) -> Spread {
        self.ratio_of(of, to, |run| run.measured.iops)
    }

    /// The same of any figure.
    #[must_use]
    pub fn ratio_of(&self, of: usize, to: usize, figure: impl Fn(&Run) -> f64) -> Spread {
        let pairs = self.counted(of).zip(self.counted(to));
        Spread::of(pairs.map(|(of, to)| figure(of) / figure(to).max(1e-9)))
    }

    /// The spread of the difference of a figure of two contenders, taken round by round.
    #[must_use]
    pub fn difference(&self, of: usize, to: usize, figure: impl Fn(&Run) -> f64) -> Spread {
        let pairs = self.counted(of).zip(self.counted(to));
        Spread::of(pairs.map(|(of, to)| figure(of) - figure(to)))
    }

    /// The spread of a figure of one contender to that of the best of `peers` in the same round: the one with the highest
    /// `merit`.
    #[must_use]
    pub fn ratio_to_best(
        &self,
        of: usize,
        peers: &[usize],
        merit: impl Fn(&Run) -> f64,
        figure: impl Fn(&Run) -> f64,
    ) -> Spread {
        let rounds = (0..self.counts.len()).filter(|&round| self.counts[round]);
        Spread::of(rounds.filter_map(|round| {
            let runs = peers.iter().map(|&peer| &self.series[peer].runs[round]);
            let best = runs.max_by(|one, other| merit(one).total_cmp(&merit(other)))?;
            Some(figure(&self.series[of].runs[round]) / figure(best).max(1e-9))
        }))
    }

    fn counted(&self, contender: usize) -> impl Iterator<Item = &Run> {
        let runs = self.series[contender].runs.iter().zip(&self.counts);
        runs.filter(|(_, counts)| **counts).map(|(run, _)| run)
    }

    /// Rounds that do not count.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.counts.iter().filter(|counts| !**counts).count()
    }
}

/// Lets a contender do a job once.
///
/// # Errors
/// fio fails, or the server is gone.
pub fn run_once(
    job: Job,
    contender: &Contender,
    size_bytes: u64,
    pace: &Pace,
    scratch: &Scratch,
) -> Result<Run, Failure> {
    thread::sleep(pace.pause);
    let used = |server: Option<u32>| server.map(cpu::used_seconds).transpose();
    let before = used(contender.server)?;
    let measured = fio::run(job, &contender.target, size_bytes, Extent::For(pace.run), scratch)?;
    let after = used(contender.server)?;
    let server_cpu_s = match (before, after) {
        (Some(before), Some(after)) => after - before,
        _ => measured.client_cpu_s,
    };
    Ok(Run {
        measured,
        server_cpu_s,
    })
}

/// Runs a case: all rounds, the contenders in turn, each round beginning with another one.
///
/// # Errors
/// As [`run_once`].
pub fn run_case(
    job: Job,
    contenders: &[Contender],
    size_bytes: u64,
    pace: &Pace,
    scratch: &Scratch,
) -> Result<CaseResult, Failure> {
    let mut series: Vec<Series> = contenders
        .iter()
        .map(|contender| Series {
            contender: contender.name.clone(),
            runs: Vec::new(),
        })
        .collect();
    for round in 0..pace.rounds as usize {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            let run = run_once(job, &contenders[index], size_bytes, pace, scratch)?;
            series[index].runs.push(run);
        }
    }
    let is_sequential = matches!(job.pattern, "read" | "write");
    Ok(CaseResult::new(
        job.name(),
        is_sequential,
        series,
        contenders.len() - 1,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(contender: &str, iops: &[f64]) -> Series {
        let runs = iops.iter().map(|&iops| Run {
            measured: Measured {
                requests: 1000,
                iops,
                bytes_per_second: 0.0,
                p50_us: 0.0,
                p99_us: 0.0,
                p99_9_us: 0.0,
                max_us: 0.0,
                client_cpu_s: 0.0,
            },
            server_cpu_s: 0.5,
        });
        Series {
            contender: contender.into(),
            runs: runs.collect(),
        }
    }

    #[test]
    fn a_round_in_which_raw_collapsed_counts_for_nobody() {
        let all = vec![
            series("ours", &[200.0, 10.0, 220.0]),
            series("raw", &[100.0, 5.0, 110.0]),
        ];
        let result = CaseResult::new("case".into(), false, all, 1);
        assert_eq!(result.dropped(), 1);
        assert_eq!(result.spread(0, |run| run.measured.iops).min, 200.0);
        assert_eq!(result.ratio(0, 1).median, 2.0);
        let iops = |run: &Run| run.measured.iops;
        assert_eq!(result.ratio_to_best(1, &[0, 1], iops, iops).median, 0.5);
        assert_eq!(result.spread(0, Run::cpu_s_per_million).median, 500.0);
    }
}
