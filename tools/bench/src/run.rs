//! A whole run: its threads, and what they measured together.

use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::Duration;

use stillpoint_hw::clock::{Clock, monotonic_ns};
use stillpoint_hw::topology::{Core, allowed_cores, pin_this_thread};

use crate::figures::{Figures, Verdict};
use crate::job::{BadJob, Idle, Job, Load};
use crate::target::{
    FileTarget, InsideTarget, NbdTarget, NullTarget, Opened, Target, TargetError, buffer_bytes,
};
use crate::worker::{Span, Worker, starts};

/// From the start of the threads to the first request.
const LEAD_NS: u64 = 5_000_000;
/// How long the generator is tried out.
const CALIBRATION_NS: u64 = 200_000_000;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was done.
    pub job: Job,
    /// What was measured.
    pub figures: Figures,
    /// Wall time of the first request that counts, in nanoseconds since 1970.
    pub began_wall_ns: u64,
    /// So much the wall clock moved against the monotonic one meanwhile.
    pub clock_moved_ns: u64,
    /// Whether it can be trusted.
    pub verdict: Verdict,
}

impl Outcome {
    /// Requests a second.
    #[must_use]
    pub fn rate_iops(&self) -> f64 {
        self.figures.requests() as f64 * 1e9 / self.job.time_ns as f64
    }
}

/// What the generator itself costs, measured with a target that does nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Of one request, in nanoseconds of its thread.
    pub request_ns: f64,
    /// Requests a second that the threads could start at most.
    pub rate_iops_max: f64,
    /// 99 of 100 starts of an open loop are not later than this; 0 for a closed one.
    pub start_ns_p99: u64,
}

/// Why there is no outcome.
#[derive(Debug)]
pub enum RunError {
    /// The job cannot be done.
    Job(BadJob),
    /// The target cannot be used.
    Target(TargetError),
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Job(error) => error.fmt(f),
            Self::Target(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RunError {}

impl From<BadJob> for RunError {
    fn from(error: BadJob) -> Self {
        Self::Job(error)
    }
}

impl From<TargetError> for RunError {
    fn from(error: TargetError) -> Self {
        Self::Target(error)
    }
}

/// Runs a job.
///
/// # Errors
/// [`RunError`]. Requests that fail are no error: they are counted.
pub fn run(job: &Job, target: &Opened) -> Result<Outcome, RunError> {
    job.check()?;
    let area = job.area(target.size_bytes())?;
    if let Opened::File(_) = target
        && job.in_flight_max() > stillpoint_hw::device::OPERATIONS_MAX
    {
        return Err(BadJob(format!(
            "a file or device takes at most {} requests in flight from each thread: give a smaller --iodepth or more --numjobs",
            stillpoint_hw::device::OPERATIONS_MAX
        ))
        .into());
    }
    let cores = cores_for(job.threads);
    // The clock starts when every thread has its target.
    let start = Start {
        ready: Barrier::new(job.threads),
        span: OnceLock::new(),
        wall_minus_monotonic_ns: wall_minus_monotonic_ns(),
    };
    let ended = thread::scope(|scope| {
        let threads: Vec<_> = (0..job.threads)
            .map(|index| {
                let (core, start) = (cores[index], &start);
                scope.spawn(move || {
                    if let Some(core) = core {
                        // Not pinned is no failure: it is only less exact.
                        let _ = pin_this_thread(core);
                    }
                    work_on(job, index, area, start, target)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect::<Result<Vec<_>, _>>()
    });
    let (of_threads, span) = (ended?, start.span(job));
    let mut of_threads = of_threads.into_iter();
    let mut figures = of_threads.next().unwrap_or_default();
    of_threads.for_each(|one| figures.add(&one));
    let verdict = figures.verdict(Duration::from_nanos(job.time_ns));
    Ok(Outcome {
        job: job.clone(),
        figures,
        began_wall_ns: span.count_ns.wrapping_add(start.wall_minus_monotonic_ns),
        clock_moved_ns: wall_minus_monotonic_ns().abs_diff(start.wall_minus_monotonic_ns),
        verdict,
    })
}

/// How far the wall clock is ahead of the monotonic one.
fn wall_minus_monotonic_ns() -> u64 {
    let now = Clock::new().now();
    now.wall_ns.wrapping_sub(now.monotonic_ns)
}

/// A core for each thread, from the last one on: the appliance's processors begin at the first. None if there are too few.
fn cores_for(threads: usize) -> Vec<Option<Core>> {
    let allowed = allowed_cores();
    if threads >= allowed.len() {
        return vec![None; threads];
    }
    allowed.iter().rev().take(threads).copied().map(Some).collect()
}

/// When a run starts.
struct Start {
    ready: Barrier,
    span: OnceLock<Span>,
    wall_minus_monotonic_ns: u64,
}

impl Start {
    /// Decided by whoever asks first.
    fn span(&self, job: &Job) -> Span {
        *self.span.get_or_init(|| {
            let begin_ns = monotonic_ns() + LEAD_NS;
            let count_ns = begin_ns + job.ramp_ns;
            Span {
                begin_ns,
                count_ns,
                end_ns: count_ns + job.time_ns,
                mark: job.seed ^ begin_ns.wrapping_add(self.wall_minus_monotonic_ns),
            }
        })
    }
}

fn work_on(
    job: &Job,
    thread: usize,
    area: (u64, u64),
    start: &Start,
    target: &Opened,
) -> Result<Figures, TargetError> {
    match target {
        Opened::Null(_) => work(job, thread, area, start, Ok(NullTarget::default())),
        Opened::File(files) => {
            let target = FileTarget::new(files, job);
            work(job, thread, area, start, target)
        }
        Opened::Nbd(uri, _) => work(job, thread, area, start, NbdTarget::connect(uri, job)),
        Opened::Inside(inside) => {
            let bytes = buffer_bytes(job.in_flight_max(), job.length_bytes_max());
            if inside.is_in_memory() {
                let station = inside.in_memory(thread, bytes);
                let target = station.map(|station| InsideTarget::new(inside, station, job));
                work(job, thread, area, start, target)
            } else {
                let station = inside.on_files(thread, bytes);
                let target = station.map(|station| InsideTarget::new(inside, station, job));
                work(job, thread, area, start, target)
            }
        }
    }
}

fn work<T: Target>(
    job: &Job,
    thread: usize,
    area: (u64, u64),
    start: &Start,
    target: Result<T, TargetError>,
) -> Result<Figures, TargetError> {
    // Also without a target: the others wait for all.
    start.ready.wait();
    let span = start.span(job);
    Worker::new(job, thread, area, span, target?).run(starts(job, thread, span))
}

/// Tries the generator out with the same job and a target that does nothing.
///
/// # Errors
/// [`RunError`] if the job cannot be done.
pub fn calibrate(job: &Job, target_bytes: u64) -> Result<Calibration, RunError> {
    let null = Opened::Null(target_bytes);
    let short = Job {
        time_ns: CALIBRATION_NS,
        ramp_ns: CALIBRATION_NS / 10,
        verify: false,
        interval_ns: None,
        timeline: false,
        idle: Idle::Spin,
        ..job.clone()
    };
    let full = Job {
        load: Load::Closed { in_flight: 1 },
        ..short.clone()
    };
    let full = run(&full, &null)?;
    let start_ns_p99 = match job.load {
        Load::Closed { .. } => 0,
        Load::Open { .. } => {
            let short = Job {
                idle: job.idle,
                ..short
            };
            run(&short, &null)?.figures.all().response.value_at_quantile(0.99)
        }
    };
    Ok(Calibration {
        request_ns: 1e9 * job.threads as f64 / full.rate_iops().max(1.0),
        rate_iops_max: full.rate_iops(),
        start_ns_p99,
    })
}

#[cfg(test)]
mod tests;
