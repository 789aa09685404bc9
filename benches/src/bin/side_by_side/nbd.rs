//! Beside row g: what fio says of a unix socket, with qemu-nbd and the raw file beside it, and around a snapshot with qcow2.

use std::path::{Path, PathBuf};
use std::time::Duration;

use stillpoint_benches::Failure;
use stillpoint_benches::cases::{CASES, SNAPSHOT_CASE};
use stillpoint_benches::frame::say;
use stillpoint_benches::process::Scratch;
use stillpoint_benches::report::factor;
use stillpoint_benches::rounds::{CaseResult, Contender, Pace, Series, run_case, run_once};
use stillpoint_benches::servers::{
    Listen, QemuNbd, Setup, Stillpoint, fill, make_qcow2, make_qcow2_over, make_written_file, takes_direct,
};
use stillpoint_benches::table::Row;

use crate::Options;

/// Adds the cases to the row.
///
/// # Errors
/// A server or a run fails.
pub fn add_cases(options: &Options, row: &mut Row, scratch: &Scratch) -> Result<(), Failure> {
    let jobs = || CASES.into_iter().filter(|job| options.wants_case(&job.name()));
    if jobs().next().is_none() && !options.wants_case("snapshot") {
        return Ok(());
    }
    let (program, _) = options.place.find()?;
    let bench = Bench::set_up(options, &program, scratch)?;
    for job in jobs() {
        say(&job.name());
        let contenders = bench.contenders();
        let case = run_case(job, &contenders, bench.size_bytes, &bench.pace, scratch)?;
        row.cases.push(case);
    }
    if options.wants_case("snapshot") {
        say("around a snapshot");
        let mut taken = Vec::new();
        let case = bench.around_snapshots(options, &mut taken)?;
        row.notes.push(format!(
            "Around a snapshot, after / before: Stillpoint {}, qcow2 {}; before: Stillpoint / qcow2 {}; after: {}.",
            factor(case.ratio(1, 0)),
            factor(case.ratio(3, 2)),
            factor(case.ratio(0, 2)),
            factor(case.ratio(1, 3)),
        ));
        row.notes.push(format!(
            "What the API says of the snapshots: {}",
            serde_json::to_string(&taken)?
        ));
        row.cases.push(case);
    }
    row.notes.push(method(options, bench.direct));
    Ok(())
}

fn method(options: &Options, direct: bool) -> String {
    let pace = options.pace();
    let cache = if direct {
        "All go past the page cache (O_DIRECT; qemu-nbd with cache=none)."
    } else {
        "The file system has no O_DIRECT: all go through the page cache."
    };
    format!(
        "With fio, one job, any core for everybody: {} interleaved rounds of {} s, medians; {} MiB images, preallocated and written from end to \
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
pub struct Bench<'a> {
    scratch: &'a Scratch,
    pace: Pace,
    size_bytes: u64,
    direct: bool,
    stillpoint: Stillpoint,
    qemu: QemuNbd,
    raw: PathBuf,
}

impl<'a> Bench<'a> {
    /// Starts the servers and writes all images from end to end.
    ///
    /// # Errors
    /// One of them does not start.
    pub fn set_up(options: &Options, program: &Path, scratch: &'a Scratch) -> Result<Self, Failure> {
        let size_bytes = options.volume_bytes();
        say("writing the raw images");
        let raw = scratch.path("raw.img");
        make_written_file(&raw, size_bytes, scratch)?;
        let served = scratch.path("qemu.img");
        make_written_file(&served, size_bytes, scratch)?;
        let qemu = QemuNbd::start(
            "qemu-nbd",
            &served,
            "raw",
            &options.qemu_aio,
            Listen::Unix,
            scratch,
        )?;
        say("starting the appliance, writing its pool file and its volume");
        let setup = Setup {
            program,
            serve_options: &options.serve_option,
            device: None,
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
        let serve = |image: &Path| {
            QemuNbd::start(
                "qemu-nbd-qcow2",
                image,
                "qcow2",
                &options.qemu_aio,
                Listen::Unix,
                self.scratch,
            )
        };
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
