//! A whole run: its threads, and what they measured together.

use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::Duration;

use stillpoint_hw::clock::monotonic_ns;
use stillpoint_hw::topology::{Core, allowed_cores, pin_this_thread};

use crate::figures::{Figures, Verdict};
use crate::job::{BadJob, Idle, Job, Load};
use crate::target::{FileTarget, NbdTarget, NullTarget, Opened, Target, TargetError};
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
    let mut figures = Figures::default();
    of_threads.iter().for_each(|one| figures.add(one));
    let verdict = figures.verdict(Duration::from_nanos(job.time_ns));
    Ok(Outcome {
        job: job.clone(),
        figures,
        began_wall_ns: wall_ns().saturating_sub(monotonic_ns() - span.count_ns),
        verdict,
    })
}

fn wall_ns() -> u64 {
    stillpoint_hw::clock::Clock::new().now().wall_ns
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
                mark: job.seed ^ wall_ns(),
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
            let target = FileTarget::new(files, job.in_flight_max(), job.length_bytes_max());
            work(job, thread, area, start, target)
        }
        Opened::Nbd(uri, _) => work(job, thread, area, start, NbdTarget::connect(uri)),
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
mod tests {
    use super::*;
    use crate::job::{Arrivals, Order};
    use crate::target::Name;

    fn file(bytes: u64) -> (tempfile::NamedTempFile, Name) {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(bytes).expect("it grows");
        let name = Name::File(file.path().to_owned());
        (file, name)
    }

    #[test]
    fn what_is_written_is_verified() {
        for order in [Order::Sequential, Order::Uniform, Order::Zipf(1.1)] {
            let (_kept, name) = file(4 << 20);
            let target = Opened::open(&name, true).expect("it is there");
            let job = Job {
                read_percent: 50,
                order,
                load: Load::Closed { in_flight: 8 },
                threads: 2,
                idle: Idle::Nap,
                time_ns: 300_000_000,
                verify: true,
                ..Job::default()
            };
            let outcome = run(&job, &target).expect("it runs");
            assert_eq!(outcome.verdict, Verdict::Sound);
            assert!(outcome.figures.verified > 100, "{:?}", outcome.figures.verified);
        }
    }

    #[test]
    fn data_that_changes_meanwhile_is_found() {
        use std::os::unix::fs::FileExt;
        let (kept, name) = file(1 << 20);
        let target = Opened::open(&name, true).expect("it is there");
        let job = Job {
            read_percent: 50,
            load: Load::Closed { in_flight: 4 },
            idle: Idle::Nap,
            time_ns: 300_000_000,
            verify: true,
            ..Job::default()
        };
        let outcome = thread::scope(|scope| {
            // The lock of the file is a word of honour.
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(150));
                for block in 0..256 {
                    let at = block * 4096 + 1024;
                    kept.as_file().write_all_at(&[9; 512], at).expect("written");
                }
            });
            run(&job, &target).expect("it runs")
        });
        let Verdict::Failed(why) = outcome.verdict else {
            panic!("nothing was found");
        };
        assert!(why.contains("wrong data at byte"), "{why}");
    }

    #[test]
    fn an_open_loop_starts_as_many_as_it_was_told() {
        let job = Job {
            load: Load::Open {
                rate_iops: 20_000.0,
                arrivals: Arrivals::Fixed,
                in_flight_max: 64,
            },
            idle: Idle::Nap,
            time_ns: 500_000_000,
            interval_ns: Some(1_000_000_000),
            ..Job::default()
        };
        let outcome = run(&job, &Opened::Null(1 << 30)).expect("it runs");
        let all = outcome.figures.requests() + outcome.figures.not_started;
        assert!((9_999..=10_001).contains(&all), "{all}");
        assert_eq!(outcome.figures.intervals.len(), 1);
        assert_eq!(
            outcome.figures.not_started, 0,
            "nothing stands in the way: {:?}",
            outcome.verdict
        );
    }

    #[test]
    fn a_generator_that_is_asked_for_too_much_blames_itself() {
        let job = Job {
            load: Load::Open {
                rate_iops: 90e6,
                arrivals: Arrivals::Fixed,
                in_flight_max: 8,
            },
            time_ns: 50_000_000,
            ..Job::default()
        };
        let outcome = run(&job, &Opened::Null(1 << 30)).expect("it runs");
        assert_eq!(outcome.figures.not_started, 0);
        assert!(
            matches!(outcome.verdict, Verdict::Failed(why) if why.contains("the generator did not keep up"))
        );
    }

    #[test]
    fn what_an_earlier_run_wrote_is_not_taken_for_what_this_one_wrote() {
        let (kept, name) = file(1 << 20);
        let target = Opened::open(&name, true).expect("it is there");
        let job = Job {
            read_percent: 0,
            order: Order::Sequential,
            load: Load::Closed { in_flight: 4 },
            idle: Idle::Nap,
            time_ns: 50_000_000,
            verify: true,
            ..Job::default()
        };
        let first_sector = || {
            let outcome = run(&job, &target).expect("it runs");
            assert_eq!(outcome.verdict, Verdict::Sound);
            std::fs::read(kept.path()).expect("readable")[16..24].to_vec()
        };
        assert_ne!(first_sector(), first_sector(), "the mark of the run");
    }

    #[test]
    fn a_job_beyond_the_end_is_refused() {
        let (_kept, name) = file(1 << 20);
        let target = Opened::open(&name, false).expect("it is there");
        let job = Job {
            size_bytes: Some(2 << 20),
            ..Job::default()
        };
        assert!(matches!(run(&job, &target), Err(RunError::Job(_))));
        let deep = Job {
            load: Load::Closed { in_flight: 1000 },
            ..Job::default()
        };
        assert!(matches!(run(&deep, &target), Err(RunError::Job(BadJob(why))) if why.contains("256")));
    }
}
