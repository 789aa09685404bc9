//! Who is measured on a row of the table: the data plane in this process, a lean loop on the bare device, fio on it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use stillpoint_bench::job::{Idle, Job as InProcess, Load, Order};
use stillpoint_bench::run::{Cores, Outcome, run_on};
use stillpoint_bench::target::{Name, Opened};

use crate::Failure;
use crate::cpu;
use crate::fio::{self, Extent, Job, Measured, Target};
use crate::process::Scratch;
use crate::rounds::{CaseResult, Pace, Run, Series};

/// How often files are flushed, where a row says so.
pub const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Someone who is measured.
#[derive(Debug)]
pub enum Work<'a> {
    /// Shards in this process.
    Ours(&'a Opened, Idle),
    /// The same load generator with nothing but a ring over this file or device.
    Lean(&'a Path, Idle),
    /// fio on this file or device, with io_uring; flushed by this process each second if so.
    Fio {
        /// The file or device.
        path: &'a Path,
        /// Past the page cache.
        direct: bool,
        /// Flushed each second.
        flushed: bool,
    },
}

impl Work<'_> {
    /// Its name in tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ours(_, Idle::Spin) => "Stillpoint, in-process",
            Self::Ours(_, Idle::Nap) => "Stillpoint, in-process, sleeping",
            Self::Lean(_, Idle::Spin) => "lean loop on the bare device, io_uring",
            Self::Lean(_, Idle::Nap) => "lean loop on the bare device, io_uring, sleeping",
            Self::Fio { .. } => "fio on the bare device, io_uring",
        }
    }

    /// Does a job once.
    ///
    /// # Errors
    /// A request fails, or fio does.
    pub fn run(
        &self,
        job: Job,
        threads: usize,
        size_bytes: u64,
        time: Duration,
        scratch: &Scratch,
    ) -> Result<Run, Failure> {
        match self {
            Self::Ours(opened, idle) => {
                in_process(&in_process_job(job, threads, size_bytes, time, *idle)?, opened)
            }
            Self::Lean(path, idle) => {
                let asked = in_process_job(job, threads, size_bytes, time, *idle)?;
                let opened = Opened::open(&Name::File(path.to_path_buf()), &asked)?;
                in_process(&asked, &opened)
            }
            Self::Fio {
                path,
                direct,
                flushed,
            } => {
                let target = Target::File {
                    path: path.to_path_buf(),
                    direct: *direct,
                };
                let _flusher = flushed.then(|| Flusher::start(path)).transpose()?;
                let measured = fio::run(job, &target, size_bytes, Extent::For(time), scratch)?;
                Ok(Run {
                    measured,
                    server_cpu_s: measured.client_cpu_s,
                })
            }
        }
    }
}

fn in_process_job(
    job: Job,
    threads: usize,
    size_bytes: u64,
    time: Duration,
    idle: Idle,
) -> Result<InProcess, Failure> {
    let (order, read_percent) = match job.pattern {
        "randread" => (Order::Uniform, 100),
        "randwrite" => (Order::Uniform, 0),
        "read" => (Order::Sequential, 100),
        "write" => (Order::Sequential, 0),
        other => return Err(format!("{other} is not known in process").into()),
    };
    Ok(InProcess {
        name: job.name(),
        read_percent,
        order,
        lengths: vec![(job.block_bytes, 1)],
        load: Load::Closed {
            in_flight: job.depth as usize,
        },
        threads,
        time_ns: time.as_nanos() as u64,
        ramp_ns: 100_000_000,
        size_bytes: Some(size_bytes),
        idle,
        seed: std::process::id().into(),
        ..InProcess::default()
    })
}

/// Does a job of the load generator in this process.
///
/// # Errors
/// A request fails.
pub fn in_process(asked: &InProcess, opened: &Opened) -> Result<Run, Failure> {
    let before = cpu::used_seconds(std::process::id())?;
    // All that are compared with each other on the same cores.
    let outcome = run_on(asked, opened, Cores::OfProcessors)?;
    let used_s = cpu::used_seconds(std::process::id())? - before;
    if let Some(why) = outcome.verdict.failure() {
        return Err(why.into());
    }
    // The ramp costs as much as the rest, and its requests do not count.
    let counted = asked.time_ns as f64 / (asked.time_ns + asked.ramp_ns) as f64;
    Ok(measured(&outcome, used_s * counted))
}

fn measured(outcome: &Outcome, used_s: f64) -> Run {
    let (figures, seconds) = (&outcome.figures, outcome.job.time_ns as f64 / 1e9);
    let all = figures.all().response;
    let at_us = |share| all.value_at_quantile(share) as f64 / 1e3;
    Run {
        measured: Measured {
            requests: figures.requests(),
            iops: outcome.rate_iops(),
            bytes_per_second: figures.bytes as f64 / seconds,
            p50_us: at_us(0.5),
            p99_us: at_us(0.99),
            p99_9_us: at_us(0.999),
            max_us: all.max() as f64 / 1e3,
            client_cpu_s: used_s,
        },
        server_cpu_s: used_s,
    }
}

/// Flushes a file each second until it is dropped: what a host does whose file system commits.
#[derive(Debug)]
struct Flusher {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    fn start(path: &Path) -> Result<Self, Failure> {
        let file = File::options().write(true).open(path)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopping);
        let thread = thread::spawn(move || {
            let mut next = Instant::now();
            while !told.load(Ordering::Relaxed) {
                if Instant::now() >= next {
                    next += FLUSH_EVERY;
                    if let Err(error) = file.sync_data() {
                        return crate::frame::say(&format!("flushing: {error}"));
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        Ok(Self {
            stopping,
            thread: Some(thread),
        })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a case: all rounds, whoever is measured in turn, each round beginning with another one. `raw` is the one that
/// should not move, if there is one.
///
/// # Errors
/// A run fails.
pub fn run_case(
    name: String,
    job: Job,
    works: &[(Work<'_>, usize)],
    raw: Option<usize>,
    place: &Arena<'_>,
) -> Result<CaseResult, Failure> {
    let mut series: Vec<Series> = works
        .iter()
        .map(|(work, threads)| Series {
            contender: match threads {
                1 => work.name().into(),
                _ => format!("{}, {threads} processors", work.name()),
            },
            runs: Vec::new(),
        })
        .collect();
    for round in 0..place.pace.rounds as usize {
        for turn in 0..works.len() {
            let index = (round + turn) % works.len();
            let (work, threads) = &works[index];
            thread::sleep(place.pace.pause);
            let run = work.run(job, *threads, place.size_bytes, place.pace.run, place.scratch)?;
            series[index].runs.push(run);
        }
    }
    let is_sequential = matches!(job.pattern, "read" | "write");
    Ok(case_of(name, is_sequential, series, raw))
}

/// What runs came to; all rounds count if there is no raw device that could have moved.
#[must_use]
pub fn case_of(name: String, is_sequential: bool, series: Vec<Series>, raw: Option<usize>) -> CaseResult {
    match raw {
        Some(raw) => CaseResult::new(name, is_sequential, series, raw),
        None => CaseResult {
            case: name,
            is_sequential,
            counts: vec![true; series[0].runs.len()],
            series,
        },
    }
}

/// Where and how long.
#[derive(Clone, Copy, Debug)]
pub struct Arena<'a> {
    /// Rounds and times.
    pub pace: &'a Pace,
    /// Bytes that are worked on.
    pub size_bytes: u64,
    /// For files.
    pub scratch: &'a Scratch,
}

/// A pool file that was written from end to end, `factor` times as large as a volume of `volume_bytes`. Writes go to what
/// is free, in runs that are the longer the emptier the pool is.
///
/// # Errors
/// No space, or fio fails.
pub fn written_pool(
    name: &str,
    volume_bytes: u64,
    factor: u64,
    scratch: &Scratch,
) -> Result<PathBuf, Failure> {
    let path = scratch.path(name);
    crate::servers::make_written_file(&path, volume_bytes * factor, scratch)?;
    Ok(path)
}
