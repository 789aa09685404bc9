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
    /// Whether the target kept up, and the generator too.
    pub kept_up: bool,
}

/// A sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sweep {
    /// What the target does at most, with 64 requests in flight.
    pub rate_iops_max: f64,
    /// From the slowest to the fastest.
    pub steps: Vec<Step>,
    /// The fastest step at which latency is in hand: see [`knee`].
    pub knee_iops: Option<f64>,
}

/// The fastest rate before the first step that did not keep up or whose p99 is more than three times that of the slowest.
#[must_use]
pub fn knee(steps: &[Step]) -> Option<f64> {
    let first = steps.first()?;
    let limit_ns = first.p99_ns as f64 * KNEE_FACTOR;
    let in_hand = steps
        .iter()
        .take_while(|step| step.kept_up && step.p99_ns as f64 <= limit_ns);
    in_hand.last().map(|step| step.rate_iops)
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
    if let Verdict::Failed(why) = full.verdict {
        return Err(BadJob(why).into());
    }
    let rate_iops_max = full.rate_iops();
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
            kept_up: outcome.verdict == Verdict::Sound,
        });
    }
    Ok(Sweep {
        rate_iops_max,
        knee_iops: knee(&done),
        steps: done,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(rate_iops: f64, p99_ns: u64, kept_up: bool) -> Step {
        Step {
            rate_iops,
            ended_iops: rate_iops,
            p50_ns: p99_ns / 2,
            p99_ns,
            p999_ns: p99_ns * 2,
            kept_up,
        }
    }

    #[test]
    fn the_knee_is_before_latency_gets_out_of_hand() {
        let steps = [
            step(1.0, 100, true),
            step(2.0, 150, true),
            step(3.0, 290, true),
            step(4.0, 310, true),
        ];
        assert_eq!(knee(&steps), Some(3.0));
        assert_eq!(knee(&steps[..2]), Some(2.0), "it was not reached");
        let steps = [step(1.0, 100, true), step(2.0, 110, false), step(3.0, 120, true)];
        assert_eq!(knee(&steps), Some(1.0));
        assert_eq!(knee(&[step(1.0, 100, false)]), None);
        assert_eq!(knee(&[]), None);
    }
}
