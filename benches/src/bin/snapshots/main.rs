//! What snapshots cost those who write meanwhile, here, with qcow2 and with btrfs; what they cost themselves; what deleting a
//! thousand of them costs the writes, and one of which nothing is shared, and what a change log volume does. Prints tables; `--out` keeps them, and every run as
//! JSON.

mod change_logs;
mod deletions;
mod writes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use stillpoint_benches::Failure;
use stillpoint_benches::diverged::{self, Diverged};
use stillpoint_benches::frame::{self, Place, say};
use stillpoint_benches::machine::Machine;
use stillpoint_benches::prices::{self, Prices};
use stillpoint_benches::process::Scratch;
use stillpoint_benches::servers::{Setup, Stillpoint, fill, takes_direct};

use change_logs::ChangeLogs;
use deletions::Deletions;
use writes::Writes;

/// Measures writes beside snapshots, and snapshots beside writes
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    place: Place,
    /// Directory for snapshots.md and snapshots.json
    #[arg(long)]
    out: Option<PathBuf>,
    /// Under a minute in all: for a first look
    #[arg(long)]
    short: bool,
    /// Rounds: in each, everybody has a turn
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of each run
    #[arg(long)]
    seconds: Option<f64>,
    /// MiB of the volume and of the other images
    #[arg(long)]
    volume_mib: Option<u64>,
    /// Writes per second for everybody [default: half of what the slowest does at full load]
    #[arg(long)]
    rate: Option<f64>,
    /// Snapshots that are deleted at once under load
    #[arg(long)]
    deletions: Option<u32>,
    /// Only the part of this name: writes, prices, deletions, diverged or change-logs
    #[arg(long)]
    only: Option<String>,
    /// --aio of qemu: io_uring, native or threads
    #[arg(long, default_value = "io_uring")]
    qemu_aio: String,
    /// One more option of `stillpoint serve`; may be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    serve_option: Vec<String>,
}

impl Options {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.short { 1 } else { 3 })
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(if self.short { 2.5 } else { 6.0 }))
    }

    fn volume_bytes(&self) -> u64 {
        self.volume_mib.unwrap_or(if self.short { 128 } else { 512 }) << 20
    }

    fn deletions(&self) -> u32 {
        self.deletions.unwrap_or(if self.short { 200 } else { 1000 })
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }
}

/// Everything that was measured.
#[derive(Serialize)]
struct Report {
    machine: Machine,
    method: String,
    writes: Option<Writes>,
    prices: Option<Prices>,
    deletions: Option<Deletions>,
    diverged: Option<Diverged>,
    change_logs: Option<ChangeLogs>,
}

impl Report {
    fn markdown(&self) -> String {
        let parts = [
            self.writes.as_ref().map(Writes::markdown),
            self.prices.as_ref().map(Prices::markdown),
            self.deletions.as_ref().map(Deletions::markdown),
            self.diverged.as_ref().map(Diverged::markdown),
            self.change_logs.as_ref().map(ChangeLogs::markdown),
        ];
        let mut text = format!("Machine: {}.\n\n{}\n", self.machine, self.method);
        for part in parts.iter().flatten() {
            text.push('\n');
            text.push_str(part);
        }
        text
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    frame::run("snapshots", || measure(&options))
}

fn measure(options: &Options) -> Result<(), Failure> {
    let (program, backing) = options.place.find()?;
    let scratch = Scratch::new(&backing)?;
    let machine = Machine::look(&backing);
    let size_bytes = options.volume_bytes();
    say("starting the appliance, writing its pool file and its volume");
    let setup = Setup {
        program: &program,
        serve_options: &options.serve_option,
        device: None,
        pool_bytes: size_bytes * 8,
        volume_bytes: size_bytes,
    };
    let appliance = Stillpoint::start(&setup, &scratch)?;
    fill(&appliance.target, size_bytes, &scratch)?;
    let mut report = Report {
        method: method(options, takes_direct(&scratch.path("pool.img"))),
        machine,
        writes: None,
        prices: None,
        deletions: None,
        diverged: None,
        change_logs: None,
    };
    if options.wants("writes") {
        say("writes beside snapshots");
        report.writes = Some(writes::measure(options, &appliance, &scratch)?);
    }
    if options.wants("prices") {
        say("snapshots beside writes");
        let count = if options.short { 20 } else { 200 };
        report.prices = Some(prices::measure(count, size_bytes, &appliance)?.0);
    }
    if options.wants("deletions") {
        say("deletions");
        report.deletions = Some(deletions::measure(options, &appliance)?);
    }
    if options.wants("diverged") {
        say("deleting what is not shared");
        report.diverged = Some(diverged::measure(
            (options.rounds(), options.time()),
            size_bytes,
            &appliance,
            &scratch,
        )?);
    }
    if options.wants("change-logs") {
        say("change log volumes");
        report.change_logs = Some(change_logs::measure(options, &appliance, &scratch)?);
    }
    frame::tell("snapshots", options.out.as_deref(), &report.markdown(), &report)
}

fn method(options: &Options, direct: bool) -> String {
    format!(
        "Random writes of 4 KiB over one NBD connection on a unix socket, {} MiB volumes written from end to end before, {}. \
         {} interleaved rounds of {} s; medians (min..max) of the rounds. Full load is 32 writes always in flight. At a fixed \
         rate writes come at random, whether or not the ones before are answered, and count from when they were due. Client \
         and server share the machine. CPU is that of the server process, user and system, in seconds per million writes.",
        options.volume_bytes() >> 20,
        if direct {
            "all past the page cache (O_DIRECT)"
        } else {
            "all through the page cache (no O_DIRECT here)"
        },
        options.rounds(),
        options.time().as_secs_f64(),
    )
}
