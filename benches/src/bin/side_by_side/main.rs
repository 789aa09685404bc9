//! The table: what the data path does beside the bare device and its peers, in interleaved rounds, and which goals are
//! met. Prints it; `--out` keeps it, and every run as JSON.
//!
//! A row is a function in [`rows`] that gives a [`Row`]. `restart` and `snapshots` measure rows l, m and n in other sizes too.

mod in_process;
mod large;
mod nbd;
mod rows;
mod snapshots;
mod sockets;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use stillpoint_benches::Failure;
use stillpoint_benches::frame::{self, Place, say};
use stillpoint_benches::machine::Machine;
use stillpoint_benches::process::Scratch;
use stillpoint_benches::rounds::Pace;
use stillpoint_benches::table::{Report, Row};

/// Compares Stillpoint with the bare device and with its peers, and says which goals are met
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    place: Place,
    /// Directory for side_by_side.md and side_by_side.json
    #[arg(long)]
    out: Option<PathBuf>,
    /// Just under a minute in all, without what needs large pools: for a first look, not for a README
    #[arg(long)]
    short: bool,
    /// Rounds of each case
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of each run
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds of rest before each run
    #[arg(long)]
    pause: Option<f64>,
    /// MiB of the volume and of the other images
    #[arg(long)]
    volume_mib: Option<u64>,
    /// Only these rows: letters with commas between
    #[arg(long, value_delimiter = ',', value_name = "LETTERS")]
    only: Vec<String>,
    /// Rows g and h: only cases whose name contains this; "snapshot" for the runs around a snapshot
    #[arg(long)]
    case: Option<String>,
    /// Rows g and h: images are block devices in memory (zram, which takes root), so that it is CPU that is compared
    #[arg(long)]
    zram: bool,
    /// Row j: seconds with a snapshot each second, and as many without [default: 600; 1 with --short]
    #[arg(long)]
    snapshot_seconds: Option<u64>,
    /// qemu-nbd's --aio: io_uring, native or threads
    #[arg(long, default_value = "io_uring")]
    qemu_aio: String,
    /// One more option of `stillpoint serve`; may be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    serve_option: Vec<String>,
}

impl Options {
    fn pace(&self) -> Pace {
        let seconds = |given: Option<f64>, short: f64, full: f64| {
            Duration::from_secs_f64(given.unwrap_or(if self.short { short } else { full }))
        };
        Pace {
            rounds: self.rounds.unwrap_or(if self.short { 1 } else { 5 }),
            run: seconds(self.seconds, 0.15, 3.0),
            pause: seconds(self.pause, 0.02, 1.0),
        }
    }

    fn volume_bytes(&self) -> u64 {
        self.volume_mib.unwrap_or(if self.short { 64 } else { 1024 }) << 20
    }

    fn wants(&self, letter: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == letter)
    }

    fn wants_case(&self, case: &str) -> bool {
        self.case.as_ref().is_none_or(|only| case.contains(only.as_str()))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    frame::run("side_by_side", || compare(&options))
}

fn compare(options: &Options) -> Result<(), Failure> {
    for letter in &options.only {
        if !rows::ROWS.iter().any(|(known, _)| known == letter) {
            let known: Vec<&str> = rows::ROWS.iter().map(|(known, _)| *known).collect();
            return Err(format!("there is no row {letter}: {} are there", known.join(", ")).into());
        }
    }
    let backing = options.place.backing()?;
    let pace = options.pace();
    let mut report = Report {
        machine: Machine::look(&backing),
        method: format!(
            "{} interleaved rounds of {} s, medians and (min..max); {} MiB volumes and images, written from end to end. In \
             process: real shards with log, checksums, log tail and checkpoints, driven as the daemon's poll loop drives \
             them, the load made by the same thread and counted in; a pool is four times as large as its volume where nothing else is said. CPU \
             is user and system time: in process of the whole process, for fio of fio.",
            pace.rounds,
            pace.run.as_secs_f64(),
            options.volume_bytes() >> 20,
        ),
        rows: Vec::new(),
    };
    for (letter, measure) in rows::ROWS {
        if !options.wants(letter) {
            continue;
        }
        say(&format!("row {letter}"));
        let scratch = Scratch::new(&backing)?;
        let row: Row = measure(options, &scratch).map_err(|error| format!("row {letter}: {error}"))?;
        report.rows.push(row);
    }
    frame::tell(
        "side_by_side",
        options.out.as_deref(),
        &report.markdown(),
        &report,
    )
}
