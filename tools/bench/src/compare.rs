//! Two targets, measured in turn, and whether they differ.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::job::Job;
use crate::run::{Cores, RunError, run_on};
use crate::target::Opened;

/// The percentiles that are compared.
pub const COMPARED: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
/// With fewer rounds chance alone can look like a difference.
pub const ROUNDS_MIN: usize = 6;
/// How often the rounds are drawn again.
const DRAWS: usize = 10_000;

/// What came of one percentile. Times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Which.
    pub percentile: &'static str,
    /// Median of the rounds with A.
    pub a_ns: u64,
    /// Median of the rounds with B.
    pub b_ns: u64,
    /// B divided by A, in each round: the median of these. What moves from round to round moves both, and is not in it; so it
    /// need not be what the two medians above give.
    pub ratio: f64,
    /// 95% of what other draws of the same rounds give lies between these.
    pub ratio_low: f64,
    /// See `ratio_low`.
    pub ratio_high: f64,
}

impl Compared {
    /// Of the rounds, each with A's time and B's.
    ///
    /// # Panics
    /// If there is no round.
    #[must_use]
    pub fn of(percentile: &'static str, rounds: &[(u64, u64)], seed: u64) -> Self {
        let ratios: Vec<f64> = rounds.iter().map(|&(a, b)| b as f64 / a.max(1) as f64).collect();
        let mut random = SmallRng::seed_from_u64(seed);
        let (ratio_low, ratio_high) = spread(|| {
            let drawn = (0..ratios.len()).map(|_| ratios[random.random_range(0..ratios.len())]);
            median(drawn.collect())
        });
        let times =
            |of: fn(&(u64, u64)) -> u64| median(rounds.iter().map(|round| of(round) as f64).collect());
        Self {
            percentile,
            a_ns: times(|round| round.0) as u64,
            b_ns: times(|round| round.1) as u64,
            ratio: median(ratios),
            ratio_low,
            ratio_high,
        }
    }

    /// In words. For a difference to be said there have to be [`ROUNDS_MIN`].
    #[must_use]
    pub fn verdict(&self, rounds: usize) -> String {
        let percent = (self.ratio - 1.0) * 100.0;
        match (differs(self, rounds), percent > 0.0) {
            (false, _) => "no difference shown".to_owned(),
            (true, true) => format!("B is slower by {percent:.1}%"),
            (true, false) => format!("B is faster by {:.1}%", -percent),
        }
    }
}

/// What a reader of the medians and of the ratio beside them has to know.
pub const RATIO_TOLD: &str = "Times are medians of the rounds. The ratio is that of each round by itself, and of these the median: it need \
                              not be that of the two times beside it.";

/// Whether the interval leaves 1 out, and there were enough rounds.
#[must_use]
pub fn differs(one: &Compared, rounds: usize) -> bool {
    rounds >= ROUNDS_MIN && (one.ratio_low > 1.0 || one.ratio_high < 1.0)
}

/// Between what 95% of the draws lie.
pub fn spread(draw: impl FnMut() -> f64) -> (f64, f64) {
    let mut draws: Vec<f64> = core::iter::repeat_with(draw).take(DRAWS).collect();
    draws.sort_unstable_by(f64::total_cmp);
    (draws[DRAWS / 40], draws[DRAWS - 1 - DRAWS / 40])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

/// Runs a job against two targets in turn, for so many rounds; a round whose figures cannot be trusted is left out. Gives
/// what came of each percentile, and how many rounds count.
///
/// # Errors
/// [`RunError`]; also if no round counts.
pub fn compare(
    job: &Job,
    (a, b): (&Opened, &Opened),
    rounds: u32,
    mut told: impl FnMut(u32),
) -> Result<(Vec<Compared>, usize), RunError> {
    let mut of_rounds: Vec<Vec<(u64, u64)>> = vec![Vec::new(); COMPARED.len()];
    let mut last_failure = None;
    let cores = Cores::beside(&[a, b]);
    for round in 0..rounds {
        told(round);
        let job = Job {
            seed: job.seed.wrapping_add(u64::from(round)),
            ..job.clone()
        };
        let (of_a, of_b) = if round.is_multiple_of(2) {
            let of_a = run_on(&job, a, cores)?;
            (of_a, run_on(&job, b, cores)?)
        } else {
            let of_b = run_on(&job, b, cores)?;
            (run_on(&job, a, cores)?, of_b)
        };
        let failures = [&of_a.verdict, &of_b.verdict].map(crate::figures::Verdict::failure);
        if let Some(why) = failures.into_iter().flatten().next() {
            last_failure = Some(why.to_owned());
            continue;
        }
        let (all_a, all_b) = (of_a.figures.all().response, of_b.figures.all().response);
        for (times, (_, share)) in of_rounds.iter_mut().zip(COMPARED) {
            times.push((all_a.value_at_quantile(share), all_b.value_at_quantile(share)));
        }
    }
    let counted = of_rounds[0].len();
    if counted == 0 {
        let why = last_failure.unwrap_or_default();
        return Err(crate::target::TargetError::Other(format!("no round can be trusted: {why}")).into());
    }
    let compared = of_rounds
        .iter()
        .zip(COMPARED)
        .map(|(times, (name, _))| Compared::of(name, times, job.seed))
        .collect();
    Ok((compared, counted))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds whose times scatter by a tenth, and B's are larger by a factor.
    fn rounds(factor: f64, seed: u64) -> Vec<(u64, u64)> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut time = |factor: f64| (100_000.0 * factor * random.random_range(0.9..1.1)) as u64;
        (0..12).map(|_| (time(1.0), time(factor))).collect()
    }

    #[test]
    fn a_difference_is_shown_and_none_is_not() {
        for seed in 0..20 {
            let slower = Compared::of("p50", &rounds(1.3, seed), 1);
            assert!(slower.verdict(12).starts_with("B is slower by"), "{slower:?}");
            let faster = Compared::of("p50", &rounds(0.7, seed), 1);
            assert!(faster.verdict(12).starts_with("B is faster by"), "{faster:?}");
            assert_eq!(slower.verdict(5), "no difference shown", "too few rounds");
        }
        let wrong = (0..100)
            .filter(|&seed| Compared::of("p50", &rounds(1.0, seed), 1).verdict(12) != "no difference shown")
            .count();
        assert!(
            wrong <= 12,
            "{wrong} of 100 times a difference was shown that is not there"
        );
    }

    #[test]
    fn the_ratio_is_of_each_round_and_not_of_the_medians() {
        // The machine got slower; within each round B was the faster.
        let one = Compared::of("p50", &[(10, 9), (20, 18), (40, 36), (80, 72), (81, 80)], 1);
        assert_eq!((one.a_ns, one.b_ns), (40, 36));
        let other = Compared::of("p50", &[(10, 50), (30, 29), (100, 99), (28, 27), (32, 31)], 1);
        assert_eq!((other.a_ns, other.b_ns), (30, 31), "by these B is slower");
        assert!(other.ratio < 1.0, "round by round it is faster: {other:?}");
    }

    #[test]
    fn the_interval_holds_the_ratio() {
        let one = Compared::of("p99", &rounds(2.0, 3), 1);
        assert!(one.ratio_low <= one.ratio && one.ratio <= one.ratio_high);
        assert!((1.8..2.2).contains(&one.ratio));
        assert_eq!(Compared::of("p99", &[(100, 100); 3], 1).ratio_high, 1.0);
    }
}
