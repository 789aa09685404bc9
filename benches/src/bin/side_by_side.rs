//! Stillpoint, qemu-nbd and the raw file side by side: the same fio jobs, in interleaved rounds, on the same file
//! system. Prints a table; `--out` keeps it, and every run as JSON.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use stillpoint_benches::Failure;
use stillpoint_benches::cases::{CASES, SNAPSHOT_CASE};
use stillpoint_benches::frame::{self, Place, say};
use stillpoint_benches::machine::Machine;
use stillpoint_benches::process::Scratch;
use stillpoint_benches::report::Report;
use stillpoint_benches::rounds::{CaseResult, Contender, Pace, Series, run_case, run_once};
use stillpoint_benches::servers::{
    QemuNbd, Setup, Stillpoint, fill, make_qcow2, make_qcow2_over, make_written_file, takes_direct,
};

/// Compares Stillpoint with qemu-nbd and with the raw file, through fio
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    place: Place,
    /// Directory for side_by_side.md and side_by_side.json
    #[arg(long)]
    out: Option<PathBuf>,
    /// Under a minute in all: for a first look, not for a README
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
    /// Only cases whose name contains this; "snapshot" for the runs around a snapshot
    #[arg(long)]
    only: Option<String>,
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
            run: seconds(self.seconds, 1.0, 5.0),
            pause: seconds(self.pause, 0.1, 1.0),
        }
    }

    fn volume_bytes(&self) -> u64 {
        self.volume_mib.unwrap_or(if self.short { 256 } else { 1024 }) << 20
    }

    fn wants(&self, case: &str) -> bool {
        self.only.as_ref().is_none_or(|only| case.contains(only.as_str()))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    frame::run("side_by_side", || compare(&options))
}

fn compare(options: &Options) -> Result<(), Failure> {
    let (program, backing) = options.place.find()?;
    let scratch = Scratch::new(&backing)?;
    let bench = Bench::set_up(options, &program, &scratch)?;
    let mut report = Report {
        machine: Machine::look(&backing),
        method: method(options, bench.direct),
        cases: Vec::new(),
        snapshot: None,
        snapshots_taken: Vec::new(),
    };
    for job in CASES.into_iter().filter(|job| options.wants(&job.name())) {
        say(&job.name());
        let contenders = bench.contenders();
        report.cases.push(run_case(
            job,
            &contenders,
            bench.size_bytes,
            &bench.pace,
            &scratch,
        )?);
    }
    if options.wants("snapshot") {
        say("around a snapshot");
        report.snapshot = Some(bench.around_snapshots(options, &mut report.snapshots_taken)?);
    }
    frame::tell(
        "side_by_side",
        options.out.as_deref(),
        &report.markdown(),
        &report,
    )
}

fn method(options: &Options, direct: bool) -> String {
    let pace = options.pace();
    let cache = if direct {
        "All go past the page cache (O_DIRECT; qemu-nbd with cache=none)."
    } else {
        "The file system has no O_DIRECT: all go through the page cache."
    };
    format!(
        "fio, one job, {} interleaved rounds of {} s, medians; {} MiB images, preallocated and written from end to \
         end, Stillpoint's pool file (four times as large) too. {cache} The NBD servers are reached over unix sockets \
         with fio's nbd engine, the raw file with its io_uring engine. An acknowledged write survives kill -9 of any \
         of the servers, and needs a flush to survive a power cut. qemu-nbd has no checksums and, on the raw file, no \
         snapshots; Stillpoint checks a CRC32C on every block read. CPU is that of the server process, user and \
         system; for raw that of fio.",
        pace.rounds,
        pace.run.as_secs_f64(),
        options.volume_bytes() >> 20,
    )
}

/// Everything that runs.
struct Bench<'a> {
    scratch: &'a Scratch,
    pace: Pace,
    size_bytes: u64,
    direct: bool,
    stillpoint: Stillpoint,
    qemu: QemuNbd,
    raw: PathBuf,
}

impl<'a> Bench<'a> {
    fn set_up(options: &Options, program: &Path, scratch: &'a Scratch) -> Result<Self, Failure> {
        let size_bytes = options.volume_bytes();
        say("writing the raw images");
        let raw = scratch.path("raw.img");
        make_written_file(&raw, size_bytes, scratch)?;
        let served = scratch.path("qemu.img");
        make_written_file(&served, size_bytes, scratch)?;
        let qemu = QemuNbd::start("qemu-nbd", &served, "raw", &options.qemu_aio, scratch)?;
        say("starting the appliance, writing its pool file and its volume");
        let setup = Setup {
            program,
            serve_options: &options.serve_option,
            pool_bytes: size_bytes * 4,
            volume_bytes: size_bytes,
        };
        let stillpoint = Stillpoint::start(&setup, scratch)?;
        fill(&stillpoint.target, size_bytes, scratch)?;
        Ok(Self {
            scratch,
            pace: options.pace(),
            size_bytes,
            direct: takes_direct(&raw),
            stillpoint,
            qemu,
            raw,
        })
    }

    fn appliance(&self, name: &str) -> Contender {
        Contender {
            name: name.into(),
            target: self.stillpoint.target.clone(),
            server: Some(self.stillpoint.process_id()),
        }
    }

    fn raw_file(&self) -> Contender {
        Contender {
            name: "raw file, io_uring".into(),
            target: stillpoint_benches::fio::Target::File {
                path: self.raw.clone(),
                direct: self.direct,
            },
            server: None,
        }
    }

    fn contenders(&self) -> [Contender; 3] {
        [
            self.appliance("Stillpoint"),
            of_qemu("qemu-nbd, raw file", &self.qemu),
            self.raw_file(),
        ]
    }

    /// In each round: write, take a snapshot, write again at once; the same with qcow2, whose snapshot is an image
    /// over the old one; and raw.
    fn around_snapshots(
        &self,
        options: &Options,
        taken: &mut Vec<serde_json::Value>,
    ) -> Result<CaseResult, Failure> {
        let base = self.scratch.path("base.qcow2");
        let over = self.scratch.path("over.qcow2");
        make_qcow2(&base, self.size_bytes, self.scratch)?;
        let serve =
            |image: &Path| QemuNbd::start("qemu-nbd-qcow2", image, "qcow2", &options.qemu_aio, self.scratch);
        fill(&serve(&base)?.target, self.size_bytes, self.scratch)?;
        let names = [
            "Stillpoint, before",
            "Stillpoint, right after",
            "qemu-nbd qcow2, before",
            "qemu-nbd qcow2, right after",
            "raw file, io_uring",
        ];
        let mut series = names.map(|name| Series {
            contender: name.into(),
            runs: Vec::new(),
        });
        let at_once = Pace {
            pause: Duration::ZERO,
            ..self.pace
        };
        let run = |contender: &Contender, pace: &Pace| {
            run_once(SNAPSHOT_CASE, contender, self.size_bytes, pace, self.scratch)
        };
        for round in 0..self.pace.rounds {
            let name = format!("round-{round}");
            series[0].runs.push(run(&self.appliance(names[0]), &self.pace)?);
            taken.push(self.stillpoint.snapshot(&name, self.scratch)?);
            series[1].runs.push(run(&self.appliance(names[1]), &at_once)?);
            self.stillpoint.delete_snapshot(&name, self.scratch)?;
            let before = serve(&base)?;
            series[2].runs.push(run(&of_qemu(names[2], &before), &self.pace)?);
            drop(before);
            make_qcow2_over(&base, &over, self.scratch)?;
            let after = serve(&over)?;
            series[3].runs.push(run(&of_qemu(names[3], &after), &at_once)?);
            drop(after);
            series[4].runs.push(run(&self.raw_file(), &self.pace)?);
        }
        let raw = series.len() - 1;
        Ok(CaseResult::new(SNAPSHOT_CASE.name(), false, series.into(), raw))
    }
}

fn of_qemu(name: &str, server: &QemuNbd) -> Contender {
    Contender {
        name: name.into(),
        target: server.target.clone(),
        server: Some(server.process_id()),
    }
}
