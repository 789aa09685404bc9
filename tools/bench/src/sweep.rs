//! How latency grows with the rate, and where it gets out of hand.

use serde::Serialize;

use crate::figures::Verdict;
use crate::job::{Arrivals, BadJob, Job, Load};
use crate::run::{RunError, run};
use crate::target::Opened;

/// A p99 so many times that of the slowest rate is out of hand.
const KNEE_FACTOR: f64 = 3.0;
/// Requests in flight while it is found out what a target does at most.
const DEPTH: usize = 64;

/// A step of a sweep. Times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Requests a second that were to start.
    pub rate_iops: f64,
    /// Requests a second that ended.
    pub ended_iops: f64,
    /// Median response time.
    pub p50_ns: u64,
    /// Of 99 in a hundred.
    pub p99_ns: u64,
    /// Of 999 in a thousand.
    pub p999_ns: u64,
    /// Who did not keep up, if somebody did not.
    pub behind: Option<Behind>,
    /// In words, how.
    pub why: Option<String>,
}

/// Who did not keep up with a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Behind {
    /// As many requests as may be were with the target all the time, and further ones waited for room.
    Target,
    /// Requests started late though the target had room: nothing is known of the target at this rate.
    Generator,
    /// Requests failed.
    Errors,
}

impl Behind {
    fn of(verdict: &Verdict) -> Option<Self> {
        match verdict {
            Verdict::Sound => None,
            Verdict::Overloaded(_) => Some(Self::Target),
            Verdict::GeneratorLate(_) => Some(Self::Generator),
            Verdict::Failed(_) => Some(Self::Errors),
        }
    }
}

/// A sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sweep {
    /// What the target does at most, with 64 requests in flight.
    pub rate_iops_max: f64,
    /// The core of each thread; `null` for one that ran wherever there was time.
    pub cores: Vec<Option<u32>>,
    /// From the slowest to the fastest.
    pub steps: Vec<Step>,
    /// What came of it.
    pub knee: Knee,
}

/// The rate before latency gets out of hand. In requests a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Knee {
    /// The fastest step before the first that the target did not keep up with, or whose p99 is more than three times that of
    /// the slowest.
    Found {
        /// That step.
        rate_iops: f64,
    },
    /// Latency was in hand at all steps.
    NotReached {
        /// The fastest.
        rate_iops: f64,
    },
    /// The target did not keep up with the slowest step.
    BelowSlowest,
    /// It is not known: before it was reached, the generator was the limit or requests failed.
    Unknown {
        /// The fastest step at which latency is in hand for sure.
        rate_iops_sure: Option<f64>,
        /// What was in the way, at which rate, and what to do.
        why: String,
    },
}

impl Knee {
    /// Of these steps, from the slowest to the fastest.
    #[must_use]
    pub fn of(steps: &[Step]) -> Self {
        let limit_ns = steps
            .first()
            .map_or(0.0, |first| first.p99_ns as f64 * KNEE_FACTOR);
        let in_hand = |step: &Step| step.behind.is_none() && step.p99_ns as f64 <= limit_ns;
        let out = steps
            .iter()
            .position(|step| !in_hand(step))
            .unwrap_or(steps.len());
        let last = out.checked_sub(1).map(|last| steps[last].rate_iops);
        let in_the_way = steps.get(out).filter(|step| {
            // Where it is late, responses are not the target's alone.
            matches!(step.behind, Some(Behind::Generator | Behind::Errors))
        });
        match (in_the_way, last) {
            (Some(step), rate_iops_sure) => Self::Unknown {
                rate_iops_sure,
                why: format!(
                    "at {:.0} requests a second {}",
                    step.rate_iops,
                    step.why.as_deref().unwrap_or_default()
                ),
            },
            (None, None) => Self::BelowSlowest,
            (None, Some(rate_iops)) if out == steps.len() => Self::NotReached { rate_iops },
            (None, Some(rate_iops)) => Self::Found { rate_iops },
        }
    }

    /// Whether nothing can be said of the target.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// Measures a target at so many rates, up to all it does.
///
/// # Errors
/// [`RunError`].
pub fn sweep(job: &Job, target: &Opened, steps: u32, mut told: impl FnMut(f64)) -> Result<Sweep, RunError> {
    let (arrivals, in_flight_max) = match job.load {
        Load::Open {
            arrivals,
            in_flight_max,
            ..
        } => (arrivals, in_flight_max),
        Load::Closed { in_flight } => (Arrivals::Fixed, in_flight),
    };
    let full = Job {
        load: Load::Closed {
            in_flight: (DEPTH / job.threads).max(1).min(in_flight_max),
        },
        ..job.clone()
    };
    let full = run(&full, target)?;
    if let Verdict::Failed(why) | Verdict::GeneratorLate(why) = full.verdict {
        return Err(BadJob(why).into());
    }
    let rate_iops_max = full.rate_iops();
    let mut cores = full.cores;
    let mut done = Vec::new();
    for step in 1..=steps {
        let rate_iops = rate_iops_max * f64::from(step) / f64::from(steps);
        told(rate_iops);
        let open = Job {
            load: Load::Open {
                rate_iops,
                arrivals,
                in_flight_max,
            },
            ..job.clone()
        };
        let outcome = run(&open, target)?;
        let all = outcome.figures.all().response;
        done.push(Step {
            rate_iops,
            ended_iops: outcome.rate_iops(),
            p50_ns: all.value_at_quantile(0.5),
            p99_ns: all.value_at_quantile(0.99),
            p999_ns: all.value_at_quantile(0.999),
            behind: Behind::of(&outcome.verdict),
            why: match outcome.verdict {
                Verdict::Sound => None,
                Verdict::Overloaded(why) | Verdict::GeneratorLate(why) | Verdict::Failed(why) => Some(why),
            },
        });
        cores = outcome.cores;
    }
    Ok(Sweep {
        rate_iops_max,
        cores,
        knee: Knee::of(&done),
        steps: done,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(rate_iops: f64, p99_ns: u64, behind: Option<Behind>) -> Step {
        Step {
            rate_iops,
            ended_iops: rate_iops,
            p50_ns: p99_ns / 2,
            p99_ns,
            p999_ns: p99_ns * 2,
            behind,
            why: behind.map(|behind| format!("{behind:?} was behind")),
        }
    }

    #[test]
    fn the_knee_is_before_latency_gets_out_of_hand() {
        let steps = [
            step(1.0, 100, None),
            step(2.0, 150, None),
            step(3.0, 290, None),
            step(4.0, 310, None),
        ];
        let found = |rate_iops| Knee::Found { rate_iops };
        assert_eq!(Knee::of(&steps), found(3.0));
        assert_eq!(Knee::of(&steps[..2]), Knee::NotReached { rate_iops: 2.0 });
        let target = Some(Behind::Target);
        let steps = [step(1.0, 100, None), step(2.0, 110, target), step(3.0, 120, None)];
        assert_eq!(Knee::of(&steps), found(1.0));
        assert_eq!(Knee::of(&[step(1.0, 100, target)]), Knee::BelowSlowest);
    }

    #[test]
    fn a_generator_that_is_late_is_not_taken_for_the_target() {
        let (target, generator) = (Some(Behind::Target), Some(Behind::Generator));
        let slowest = Knee::of(&[step(1.0, 100, generator), step(2.0, 100, None)]);
        let Knee::Unknown { rate_iops_sure, why } = &slowest else {
            panic!("{slowest:?}");
        };
        assert_eq!((*rate_iops_sure, slowest.is_unknown()), (None, true));
        assert!(
            why.contains("at 1 requests a second Generator was behind"),
            "{why}"
        );
        let later = Knee::of(&[step(1.0, 100, None), step(2.0, 9000, generator)]);
        assert!(
            matches!(
                later,
                Knee::Unknown {
                    rate_iops_sure: Some(1.0),
                    ..
                }
            ),
            "{later:?}"
        );
        let failed = Knee::of(&[step(1.0, 100, Some(Behind::Errors))]);
        assert!(failed.is_unknown());
        // Beyond the knee it spoils nothing.
        for beyond in [step(2.0, 110, target), step(2.0, 301, None)] {
            let knee = Knee::of(&[step(1.0, 100, None), beyond, step(3.0, 120, generator)]);
            assert_eq!(knee, Knee::Found { rate_iops: 1.0 });
        }
    }

    #[test]
    fn who_is_behind_follows_from_the_verdict() {
        let why = String::new;
        for (verdict, behind) in [
            (Verdict::Sound, None),
            (Verdict::Overloaded(why()), Some(Behind::Target)),
            (Verdict::GeneratorLate(why()), Some(Behind::Generator)),
            (Verdict::Failed(why()), Some(Behind::Errors)),
        ] {
            assert_eq!(Behind::of(&verdict), behind);
        }
    }
}
