//! What one snapshot costs: a job with and without snapshots in turn, and the difference.
//!
//! ```text
//! round 0: without, with    round 1: with, without    round 2: without, with    ...
//! ```

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::compare::{COMPARED, Compared, ROUNDS_MIN, differs, spread};
use crate::run::Outcome;
use crate::timeline::{Pooled, Timeline};

/// So long after a snapshot was asked for its cost is looked for.
pub const NEAR_NS: u64 = 50_000_000;

/// What is kept of a job without and with snapshots.
#[derive(Clone, Debug)]
pub struct Round {
    /// Of each of [`COMPARED`], without and with.
    times_ns: Vec<(u64, u64)>,
    /// See [`whole`].
    whole_ns: f64,
    /// See [`areas`]: with, and at the same moments without.
    near_ns: Vec<f64>,
    beside_ns: Vec<f64>,
    snapshots: usize,
}

impl Round {
    /// Of these two, which both kept a timeline; `snapshots_ns` is when the snapshots were asked for, from the first moment of
    /// `with` that counts on.
    #[must_use]
    pub fn of(without: &Outcome, with: &Outcome, snapshots_ns: &[i64]) -> Self {
        let (all_without, all_with) = (without.figures.all().response, with.figures.all().response);
        let times_ns = COMPARED.iter().map(|&(_, share)| {
            (
                all_without.value_at_quantile(share),
                all_with.value_at_quantile(share),
            )
        });
        let near = |outcome: &Outcome| {
            let timeline = outcome.figures.timeline.as_ref();
            timeline.map_or_else(Vec::new, |timeline| areas(timeline, snapshots_ns))
        };
        Self {
            times_ns: times_ns.collect(),
            whole_ns: whole(without, with, snapshots_ns.len()),
            near_ns: near(with),
            beside_ns: near(without),
            snapshots: snapshots_ns.len(),
        }
    }
}

/// Time that requests waited for one snapshot, all of them added up: the area of the response times above those without. In
/// nanoseconds; below 0 if they waited less.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Extra {
    /// The mean.
    pub mean_ns: f64,
    /// 95% of what other draws of the same give lie between these.
    pub low_ns: f64,
    /// See `low_ns`.
    pub high_ns: f64,
    /// How many were drawn from: rounds, or snapshots.
    pub of: usize,
}

impl Extra {
    /// Whether the interval leaves 0 out, and there was enough to draw from.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.of >= ROUNDS_MIN && (self.low_ns > 0.0 || self.high_ns < 0.0)
    }

    fn of(
        of: usize,
        seed: u64,
        mut draw: impl FnMut(&mut dyn FnMut(usize) -> usize) -> f64,
        mean_ns: f64,
    ) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let (low_ns, high_ns) = spread(|| draw(&mut |count| random.random_range(0..count)));
        Self {
            mean_ns,
            low_ns,
            high_ns,
            of,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Rounds that count.
    pub rounds: usize,
    /// Snapshots of these.
    pub snapshots: usize,
    /// Responses with snapshots (B) compared with those without (A).
    pub percentiles: Vec<Compared>,
    /// Of the whole time with snapshots, drawn from the rounds.
    pub extra: Extra,
    /// Of the 50 ms from each snapshot on, compared with the rest of the same time; what the same is without snapshots is
    /// taken off. Drawn from the snapshots.
    pub extra_near: Extra,
}

impl Cost {
    /// Of these rounds, which all count; `None` if there are none.
    #[must_use]
    pub fn of(rounds: &[Round], seed: u64) -> Option<Self> {
        if rounds.is_empty() {
            return None;
        }
        let percentiles = COMPARED.iter().enumerate().map(|(index, &(name, _))| {
            let times: Vec<(u64, u64)> = rounds.iter().map(|round| round.times_ns[index]).collect();
            Compared::of(name, &times, seed)
        });
        let whole: Vec<f64> = rounds.iter().map(|round| round.whole_ns).collect();
        let near: Vec<f64> = rounds.iter().flat_map(|round| round.near_ns.clone()).collect();
        let beside: Vec<f64> = rounds.iter().flat_map(|round| round.beside_ns.clone()).collect();
        Some(Self {
            rounds: rounds.len(),
            snapshots: rounds.iter().map(|round| round.snapshots).sum(),
            percentiles: percentiles.collect(),
            extra: Extra::of(
                whole.len(),
                seed,
                |random| drawn_mean(&whole, random),
                mean(&whole),
            ),
            extra_near: Extra::of(
                near.len().min(beside.len()),
                seed,
                |random| drawn_mean(&near, random) - drawn_mean(&beside, random),
                mean(&near) - mean(&beside),
            ),
        })
    }

    /// In words.
    #[must_use]
    pub fn verdict(&self) -> String {
        let slower: Vec<String> = self
            .percentiles
            .iter()
            .filter(|one| differs(one, self.rounds))
            .map(|one| format!("{} by {:+.1}%", one.percentile, (one.ratio - 1.0) * 100.0))
            .collect();
        let shown = self.extra.is_shown() || self.extra_near.is_shown();
        match (slower.is_empty(), shown) {
            (true, false) => "no difference shown".to_owned(),
            (true, true) => {
                "responses are longer or shorter around snapshots; no percentile shows it".to_owned()
            }
            (false, _) => format!("with snapshots responses differ: {}", slower.join(", ")),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn drawn_mean(values: &[f64], random: &mut dyn FnMut(usize) -> usize) -> f64 {
    let sum: f64 = values.iter().map(|_| values[random(values.len())]).sum();
    sum / values.len().max(1) as f64
}

/// For each snapshot, what all requests together waited more than those without.
fn whole(without: &Outcome, with: &Outcome, snapshots: usize) -> f64 {
    let of = |outcome: &Outcome| {
        let requests = outcome.figures.requests() as f64;
        (
            requests,
            outcome.figures.response_ns_sum as f64 / requests.max(1.0),
        )
    };
    let ((_, without_ns), (requests, with_ns)) = (of(without), of(with));
    (with_ns - without_ns) * requests / snapshots.max(1) as f64
}

/// For each of these moments what requests in the 50 ms after it waited more than others of the same time.
fn areas(timeline: &Timeline, moments_ns: &[i64]) -> Vec<f64> {
    let slot_ns = timeline.slot_ns() as i64;
    let length = NEAR_NS.div_ceil(timeline.slot_ns()) as usize;
    let windows: Vec<std::ops::Range<usize>> = moments_ns
        .iter()
        .filter_map(|at_ns| usize::try_from(at_ns.div_euclid(slot_ns)).ok())
        .filter(|first| first + length <= timeline.slot_count())
        .map(|first| first..first + length)
        .collect();
    let slots = (0..timeline.slot_count()).filter(|slot| !windows.iter().any(|window| window.contains(slot)));
    let others: Pooled = slots.map(|index| timeline.slot(index)).collect();
    let usual_ns = others.sum_ns as f64 / others.started.max(1) as f64;
    let area = |window: std::ops::Range<usize>| {
        let near: Pooled = window.map(|index| timeline.slot(index)).collect();
        near.sum_ns as f64 - usual_ns * near.started as f64
    };
    windows.into_iter().map(area).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Ended, Figures, Verdict};
    use crate::job::Job;
    use crate::schedule::Kind;

    const MS: u64 = 1_000_000;

    /// A second with a request of about 100 us each millisecond; from these moments on, ten take `more_ns` longer.
    fn outcome(seed: u64, moments_ms: &[u64], more_ns: u64) -> Outcome {
        let mut random = SmallRng::seed_from_u64(seed);
        let job = Job {
            time_ns: 1000 * MS,
            timeline: true,
            ..Job::default()
        };
        let mut figures = Figures::of(&job);
        for ms in 0..1000 {
            let near = moments_ms.iter().any(|at| (*at..at + 10).contains(&ms));
            let response_ns = random.random_range(80_000..120_000) + if near { more_ns } else { 0 };
            figures.ended(Ended {
                kind: Kind::Write,
                length_bytes: 4096,
                intended_ns: ms * MS,
                response_ns,
                service_ns: response_ns,
            });
        }
        Outcome {
            job,
            figures,
            began_wall_ns: 0,
            clock_moved_ns: 0,
            cores: vec![None],
            verdict: Verdict::Sound,
        }
    }

    fn rounds_at(snapshots_ns: &[i64], more_ns: u64, seed: u64) -> Vec<Round> {
        (0..8)
            .map(|round| {
                let without = outcome(seed + 2 * round, &[], 0);
                let with = outcome(seed + 2 * round + 1, &[200, 600], more_ns);
                Round::of(&without, &with, snapshots_ns)
            })
            .collect()
    }

    fn rounds(more_ns: u64, seed: u64) -> Vec<Round> {
        rounds_at(&[200 * MS as i64, 600 * MS as i64], more_ns, seed)
    }

    #[test]
    fn what_a_snapshot_costs_is_found() {
        let cost = Cost::of(&rounds(500_000, 1), 1).expect("rounds");
        assert_eq!((cost.rounds, cost.snapshots), (8, 16));
        for extra in [cost.extra, cost.extra_near] {
            assert!(extra.is_shown(), "{extra:?}");
            // Ten requests, half a millisecond each.
            assert!((4_700_000.0..5_300_000.0).contains(&extra.mean_ns), "{extra:?}");
            assert!(
                extra.low_ns < extra.mean_ns && extra.mean_ns < extra.high_ns,
                "{extra:?}"
            );
        }
        let near = cost.extra_near.high_ns - cost.extra_near.low_ns;
        assert!(
            near < cost.extra.high_ns - cost.extra.low_ns,
            "it is the sharper look"
        );
        assert!(cost.verdict().contains("p99 by +"), "{}", cost.verdict());
    }

    #[test]
    fn what_costs_nothing_shows_no_difference() {
        let silent = (0..20)
            .filter(|seed| {
                Cost::of(&rounds(0, 1000 * seed), 1).expect("rounds").verdict() == "no difference shown"
            })
            .count();
        assert!(silent >= 12, "{silent} of 20, each with six intervals of 95%");
        assert!(Cost::of(&[], 1).is_none());
        let few = &rounds(500_000, 1)[..2];
        let cost = Cost::of(few, 1).expect("rounds");
        assert!(!cost.extra.is_shown(), "two rounds show nothing");
    }

    #[test]
    fn a_snapshot_too_close_to_an_end_is_not_looked_at() {
        let all = rounds_at(&[-5, 990 * MS as i64], 500_000, 1);
        let cost = Cost::of(&all, 1).expect("rounds");
        assert_eq!(cost.extra_near.of, 0);
        assert!(!cost.extra_near.is_shown() && cost.extra_near.mean_ns == 0.0);
    }
}
