//! The options of `stillpoint bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use stillpoint_bench::job::{Idle, Job};
use stillpoint_bench::target::Name;

use super::words::{Words, target};
use crate::size::Duration;
use stillpoint_appliance::Error;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Run a job against one target
    Run(RunArguments),
    /// Run the same job against two targets in turn, and say whether they differ
    Compare(CompareArguments),
    /// Find the rate from which on latency grows out of hand
    Sweep(SweepArguments),
    /// Run the same job with and without snapshots in turn, and say what one snapshot costs
    SnapshotCost(SnapshotCostArguments),
}

/// Options of `bench run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// A file or block device, nvme:PATH (a namespace, by commands of our own), nbd+unix:///EXPORT?socket=PATH,
    /// nbd://HOST[:PORT]/EXPORT, null:[SIZE] (nothing: what the generator itself costs), or shards in this process: inside:memory,
    /// inside:PATH, inside+force:PATH [default: filename or uri of the job file]
    #[arg(value_name = "TARGET", value_parser = target)]
    pub target: Option<Name>,
    /// See [`JobArguments`].
    #[command(flatten)]
    pub job: JobArguments,
    /// Write the percentiles of all response times, as HdrHistogram's tools plot them
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Write the response times of each interval, as HdrHistogram's tools read them
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// Write a report for a browser: one file, which loads nothing. The JSON then has the same data, as `detail`
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Have the data of the report in the JSON also without one
    #[arg(long)]
    pub detail: bool,
    /// Ask the daemon (of --socket, on this machine) what it did meanwhile, for the report
    #[arg(long)]
    pub daemon: bool,
}

/// Options of `bench compare`.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// The one target, as for `bench run`
    #[arg(value_name = "A", value_parser = target)]
    pub a: Name,
    /// The other
    #[arg(value_name = "B", value_parser = target)]
    pub b: Name,
    /// See [`JobArguments`]. The run time is that of each round.
    #[command(flatten)]
    pub job: JobArguments,
    /// Rounds: each runs the job against both, and begins with the other one
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=1000))]
    pub rounds: u32,
}

/// Options of `bench sweep`.
#[derive(Debug, Args)]
pub struct SweepArguments {
    /// The target, as for `bench run`
    #[arg(value_name = "TARGET", value_parser = target)]
    pub target: Name,
    /// See [`JobArguments`]. The run time is that of each step.
    #[command(flatten)]
    pub job: JobArguments,
    /// Steps from a tenth of what the target does at most to all of it
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=100))]
    pub steps: u32,
}

/// Options of `bench snapshot-cost`.
#[derive(Debug, Args)]
pub struct SnapshotCostArguments {
    /// What is measured: an export of the volume
    #[arg(value_name = "TARGET", value_parser = target)]
    pub target: Name,
    /// The volume of which snapshots are taken, through the daemon of --socket; several with commas between
    #[arg(long, value_name = "NAME")]
    pub volume: String,
    /// Its pool, if several have one of this name
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// From one snapshot to the next
    #[arg(long, default_value = "1s", value_name = "TIME")]
    pub every: Duration,
    /// Take no snapshots in the half with them either: a difference that is shown then is the measurement's own
    #[arg(long)]
    pub control: bool,
    /// See [`JobArguments`]. The run time is that of each half of a round.
    #[command(flatten)]
    pub job: JobArguments,
    /// Rounds: each runs the job without and with snapshots, and begins with the other one; the snapshots are deleted after it
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=1000))]
    pub rounds: u32,
}

/// A job, in the words of fio.
#[derive(Debug, Args)]
pub struct JobArguments {
    /// A job file of fio (simple ones); options given here win over it
    #[arg(long, value_name = "FILE")]
    pub job: Option<PathBuf>,
    /// The job to take of several in the file
    #[arg(long, value_name = "NAME", requires = "job")]
    pub section: Option<String>,
    /// read, write, rw, trim, trimwrite (discard, then write the same), or with rand before: randread, randtrimwrite [default:
    /// randread]
    #[arg(long, value_name = "KIND")]
    pub rw: Option<String>,
    /// Length of requests, or several and their percent: 4k/60:64k/40 [default: 4k]
    #[arg(long, value_name = "SIZE")]
    pub bs: Option<String>,
    /// Requests a second of all threads: they start on time, whatever the target does [default: 1000, unless there is an
    /// --iodepth]
    #[arg(long, value_name = "N")]
    pub rate_iops: Option<String>,
    /// How these are spread: linear or poisson [default: linear]
    #[arg(long, value_name = "HOW")]
    pub rate_process: Option<String>,
    /// Requests in flight of each thread: without a rate a request starts when another has ended; with one so many at most
    #[arg(long, value_name = "N")]
    pub iodepth: Option<String>,
    /// Percent of reads of a mixed job [default: 50]
    #[arg(long, value_name = "PERCENT")]
    pub rwmixread: Option<String>,
    /// How long it counts: seconds, or with a unit [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub runtime: Option<String>,
    /// How long it runs before that [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub ramp_time: Option<String>,
    /// Threads, each with a connection or a queue of its own [default: 1]
    #[arg(long, value_name = "N")]
    pub numjobs: Option<String>,
    /// Bytes used of the target [default: all]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
    /// The first of them [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub offset: Option<String>,
    /// Flush after so many writes of a thread (on files fdatasync, whichever of the two is given)
    #[arg(long, value_name = "N", conflicts_with = "fdatasync")]
    pub fsync: Option<String>,
    /// The same
    #[arg(long, value_name = "N")]
    pub fdatasync: Option<String>,
    /// What writes write: `write`, data; `zeroes`, zeros that are not sent where the target makes them by itself (NVMe Write Zeroes) [default:
    /// write]
    #[arg(long, value_name = "MODE")]
    pub write_mode: Option<String>,
    /// Each write is durable when it ends: force unit access of an NVMe namespace (nvme:) and of NBD, RWF_DSYNC for files and block
    /// devices
    #[arg(long)]
    pub writefua: bool,
    /// Mark what is written, and compare it when it is read and at the end
    #[arg(long)]
    pub verify: bool,
    /// The same seed makes the same requests [default: 1]
    #[arg(long, value_name = "N")]
    pub randseed: Option<String>,
    /// random, or zipf:EXPONENT [default: random]
    #[arg(long, value_name = "HOW")]
    pub random_distribution: Option<String>,
    /// What a thread does while it waits: look all the time, or sleep until something has ended, as fio does [default: spin, so that
    /// starts are on time; nap if only --iodepth is given, since nothing has to be on time then]
    #[arg(long, value_enum, value_name = "HOW")]
    pub idle: Option<IdleWord>,
    /// Length of the intervals of the log
    #[arg(long, default_value = "1s", value_name = "TIME")]
    pub interval: Duration,
}

/// See [`Idle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdleWord {
    /// Look all the time: exact, takes a core for each thread.
    Spin,
    /// Sleep until something has ended.
    Nap,
}

impl JobArguments {
    /// The job, and the target that the job file names. With `intervals` these are kept apart.
    ///
    /// # Errors
    /// Usage, or the job file cannot be read.
    pub fn job(self, intervals: bool) -> Result<(Job, Option<String>), Error> {
        let of_file = match &self.job {
            None => Words::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Error::usage(format!("{}: {error}", path.display())))?;
                Words::of_file(&text, self.section.as_deref())?
            }
        };
        let said = Words {
            name: None,
            rw: self.rw,
            bs: self.bs,
            iodepth: self.iodepth,
            rwmixread: self.rwmixread,
            runtime: self.runtime,
            ramp_time: self.ramp_time,
            rate_iops: self.rate_iops,
            rate_process: self.rate_process,
            numjobs: self.numjobs,
            size: self.size,
            offset: self.offset,
            fsync: self.fsync.or(self.fdatasync),
            write_mode: self.write_mode,
            writefua: self.writefua.then(|| "1".to_owned()),
            verify: self.verify.then(|| "1".to_owned()),
            randseed: self.randseed,
            random_distribution: self.random_distribution,
            target: None,
        };
        let words = of_file.under(said);
        let idle = self.idle.map(|word| match word {
            IdleWord::Spin => Idle::Spin,
            IdleWord::Nap => Idle::Nap,
        });
        Ok((
            words.job(idle, intervals.then_some(self.interval.0))?,
            words.target,
        ))
    }
}
