//! A whole run: its threads, and what they measured together.

use std::collections::BTreeMap;
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::Duration;

use stillpoint_hw::clock::{Clock, monotonic_ns};
use stillpoint_hw::topology::{Core, allowed_cores, pin_this_thread, place_clients, place_processors};

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
    /// The core of each thread, as the kernel counts them; `None` if it ran wherever there was time.
    pub cores: Vec<Option<u32>>,
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

/// Runs a job, on the cores that it has by [`Cores::beside`].
///
/// # Errors
/// [`RunError`]. Requests that fail are no error: they are counted.
pub fn run(job: &Job, target: &Opened) -> Result<Outcome, RunError> {
    run_on(job, target, Cores::beside(&[target]))
}

/// Runs a job on cores of this kind.
///
/// # Errors
/// As [`run`].
pub fn run_on(job: &Job, target: &Opened, cores: Cores) -> Result<Outcome, RunError> {
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
    let cores = cores_for(job.threads, &allowed_cores(), cores);
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
                    // Not pinned is no failure: it is only less exact.
                    let core = core.filter(|&core| pin_this_thread(core));
                    let figures = work_on(job, index, area, start, target)?;
                    Ok((figures, core.map(|core| core.number)))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect::<Result<Vec<_>, TargetError>>()
    });
    let (ended, span) = (ended?, start.span(job));
    let (of_threads, cores): (Vec<Figures>, Vec<Option<u32>>) = ended.into_iter().unzip();
    let mut of_threads = of_threads.into_iter();
    let mut figures = of_threads.next().unwrap_or_default();
    of_threads.for_each(|one| figures.add(&one));
    let verdict = figures.verdict(Duration::from_nanos(job.time_ns));
    Ok(Outcome {
        job: job.clone(),
        figures,
        began_wall_ns: span.count_ns.wrapping_add(start.wall_minus_monotonic_ns),
        clock_moved_ns: wall_minus_monotonic_ns().abs_diff(start.wall_minus_monotonic_ns),
        cores,
        verdict,
    })
}

/// How far the wall clock is ahead of the monotonic one.
fn wall_minus_monotonic_ns() -> u64 {
    let now = Clock::new().now();
    now.wall_ns.wrapping_sub(now.monotonic_ns)
}

/// Which cores the threads of a run are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Beside whoever serves: the cores that the appliance's processors take last.
    OfClients,
    /// The threads are the processors.
    OfProcessors,
}

impl Cores {
    /// The same for all these targets, so that they can be compared: those of processors only if each is the data plane in
    /// this process.
    #[must_use]
    pub fn beside(targets: &[&Opened]) -> Self {
        match targets.iter().all(|target| matches!(target, Opened::Inside(_))) {
            true => Self::OfProcessors,
            false => Self::OfClients,
        }
    }
}

/// A core for each thread. None if there are too few: a core is left to whoever serves.
fn cores_for(threads: usize, allowed: &[Core], cores: Cores) -> Vec<Option<Core>> {
    if threads >= allowed.len() {
        return vec![None; threads];
    }
    match cores {
        Cores::OfClients => place_clients(allowed, threads),
        Cores::OfProcessors => place_processors(allowed, threads, &BTreeMap::new()),
    }
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

/// Tries the generator out with the same job, on the same cores as with this target, and one that does nothing.
///
/// # Errors
/// [`RunError`] if the job cannot be done.
pub fn calibrate(job: &Job, target: &Opened) -> Result<Calibration, RunError> {
    let null = Opened::Null(target.size_bytes());
    let cores = Cores::beside(&[target]);
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
    let full = run_on(&full, &null, cores)?;
    let start_ns_p99 = match job.load {
        Load::Closed { .. } => 0,
        Load::Open { .. } => {
            let short = Job {
                idle: job.idle,
                ..short
            };
            run_on(&short, &null, cores)?
                .figures
                .all()
                .response
                .value_at_quantile(0.99)
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
