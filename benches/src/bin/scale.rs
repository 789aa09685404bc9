//! Whether snapshots cost the same however many there are, and however large or full their volume is: create, show, list,
//! open, read and delete, with so many snapshots in the pool, and on an empty small and a written huge volume.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use stillpoint_benches::api::Api;
use stillpoint_benches::machine::Machine;
use stillpoint_benches::process::{Process, Scratch};
use stillpoint_benches::servers::Daemon;
use stillpoint_benches::stats::quantile;
use stillpoint_benches::{Failure, frame};
use stillpoint_export::nbd::client::Connection;

/// Measures operations on snapshots with few and with very many of them
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    place: frame::Place,
    /// Snapshots in the pool at the end
    #[arg(long, default_value_t = 100_000)]
    snapshots: u64,
    /// Volumes that they are spread over
    #[arg(long, default_value_t = 100)]
    volumes: u64,
    /// Blocks of 4 KiB written to the huge volume before its snapshots
    #[arg(long, default_value_t = 1_000_000)]
    mapped_blocks: u64,
    /// How often each operation is timed
    #[arg(long, default_value_t = 200)]
    samples: u64,
}

fn main() -> ExitCode {
    frame::run("scale", || measure(&Options::parse()))
}

/// The appliance and what it leaves behind when it is killed.
struct Appliance {
    daemon: Option<Daemon>,
    program: PathBuf,
    scratch: Scratch,
    tail: Scratch,
}

impl Appliance {
    fn start(&mut self) -> Result<(Api, Duration), Failure> {
        let begun = Instant::now();
        let daemon = Daemon::start(&self.program, &[], &self.scratch, &self.tail)?;
        let took = begun.elapsed();
        let api = daemon.api()?;
        self.daemon = Some(daemon);
        Ok((api, took))
    }

    /// Ends it like `kill -9`.
    fn kill(&mut self) {
        self.daemon = None;
    }

    fn nbd_socket(&self) -> Result<&Path, Failure> {
        let daemon = self.daemon.as_ref().ok_or("no appliance runs")?;
        Ok(daemon.nbd_socket())
    }
}

fn measure(options: &Options) -> Result<(), Failure> {
    let (program, backing) = options.place.find()?;
    let scratch = Scratch::new(&backing)?;
    let tail = Scratch::new(Path::new("/dev/shm"))?;
    let mut appliance = Appliance {
        daemon: None,
        program,
        scratch,
        tail,
    };
    let (mut api, _) = appliance.start()?;
    let device = appliance.scratch.path("pool.img").display().to_string();
    let pool = json!({"name": "bench", "devices": [device], "size_bytes": 64u64 << 30});
    api.ask("POST", "/v1/pools", &pool)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "Machine: {}.\n", Machine::look(&backing))?;
    writeln!(out, "Milliseconds, p50 (p99) of {} each.\n", options.samples)?;
    sizes(options, &appliance, &mut api, &mut out)?;
    numbers(options, &appliance, &mut api, &mut out)?;
    let mut restarts = Vec::new();
    for _ in 0..3 {
        appliance.kill();
        restarts.push(appliance.start()?.1);
    }
    restarts.sort();
    writeln!(
        out,
        "\nStart after `kill -9` with all of them: {} ms (median of 3).",
        restarts[1].as_millis()
    )?;
    Ok(())
}

/// Volumes of different sizes, alone in the pool.
fn sizes(
    options: &Options,
    appliance: &Appliance,
    api: &mut Api,
    out: &mut impl Write,
) -> Result<(), Failure> {
    writeln!(out, "| volume | create |\n|---|---:|")?;
    for (name, size_bytes, blocks) in [
        ("small", 1u64 << 30, 0),
        ("huge", 10u64 << 40, options.mapped_blocks),
    ] {
        api.ask(
            "POST",
            "/v1/volumes",
            &json!({"name": name, "size_bytes": size_bytes}),
        )?;
        api.ask("POST", "/v1/exports", &json!({"view": name}))?;
        if blocks > 0 {
            scatter(appliance, name, size_bytes, blocks)?;
        }
        let mut times = Vec::new();
        for number in 0..options.samples {
            times.push(api.take_snapshot(name, &format!("s{number}"))?.1);
        }
        writeln!(
            out,
            "| {} GiB, {blocks} blocks mapped | {} |",
            size_bytes >> 30,
            shown(times)
        )?;
        api.ask("DELETE", &format!("/v1/exports/{name}"), &Value::Null)?;
        api.ask(
            "DELETE",
            &format!("/v1/volumes/{name}?with_snapshots=true"),
            &Value::Null,
        )?;
    }
    writeln!(out)?;
    Ok(())
}

/// Writes single blocks all over an export.
fn scatter(appliance: &Appliance, export: &str, size_bytes: u64, blocks: u64) -> Result<(), Failure> {
    let socket = appliance.nbd_socket()?;
    let mut command = Command::new("fio");
    command
        .args([
            "--name=scatter",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=32",
            "--norandommap",
        ])
        .arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()))
        .arg(format!("--size={size_bytes}"))
        .arg(format!("--io_size={}", blocks * 4096));
    let process = Process::start("fio", &mut command, &appliance.scratch)?;
    process.wait(Duration::from_secs(1800))
}

/// More and more snapshots in one pool.
fn numbers(
    options: &Options,
    appliance: &Appliance,
    api: &mut Api,
    out: &mut impl Write,
) -> Result<(), Failure> {
    for volume in 0..options.volumes {
        let request = json!({"name": format!("v{volume}"), "size_bytes": 1u64 << 30});
        api.ask("POST", "/v1/volumes", &request)?;
    }
    writeln!(
        out,
        "| snapshots in the pool | on one volume | create | show | list those of the volume | open as an export | first read | delete |"
    )?;
    writeln!(out, "|---:|---:|---:|---:|---:|---:|---:|---:|")?;
    let mut made = 0;
    let stops = (0..)
        .map(|power| 10u64.pow(power))
        .take_while(|&stop| stop < options.snapshots);
    for stop in stops
        .filter(|&stop| stop == 1 || stop >= 1000)
        .chain([options.snapshots])
    {
        let mut create = Vec::new();
        while made < stop {
            create.push(snapshot(api, made % options.volumes, made)?);
            made += 1;
        }
        // Timed at this number: those that are made for it are deleted again.
        let mut row = Row::default();
        for sample in 0..options.samples {
            row.take(api, appliance, sample % options.volumes.min(stop), sample)?;
        }
        let on_one = stop.div_ceil(options.volumes);
        writeln!(
            out,
            "| {stop} | {on_one} | {} | {} | {} | {} | {} | {} |",
            shown(row.create),
            shown(row.show),
            shown(row.list),
            shown(row.open),
            shown(row.read),
            shown(row.delete)
        )?;
        out.flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct Row {
    create: Vec<Duration>,
    show: Vec<Duration>,
    list: Vec<Duration>,
    open: Vec<Duration>,
    read: Vec<Duration>,
    delete: Vec<Duration>,
}

impl Row {
    fn take(
        &mut self,
        api: &mut Api,
        appliance: &Appliance,
        volume: u64,
        sample: u64,
    ) -> Result<(), Failure> {
        let name = format!("sample-{sample}");
        self.create
            .push(api.take_snapshot(&format!("v{volume}"), &name)?.1);
        let view = format!("v{volume}@{name}");
        let path = format!("/v1/snapshots/{view}");
        self.show.push(api.ask("GET", &path, &Value::Null)?.1);
        let list = format!("/v1/snapshots?volume=v{volume}");
        self.list.push(api.ask("GET", &list, &Value::Null)?.1);
        self.open
            .push(api.ask("POST", "/v1/exports", &json!({"view": view}))?.1);
        let socket = appliance.nbd_socket()?;
        let begun = Instant::now();
        let stream = std::os::unix::net::UnixStream::connect(socket)?;
        let mut connection = Connection::open(stream, &view)?;
        connection.read(0, 4096)?;
        self.read.push(begun.elapsed());
        drop(connection);
        api.ask("DELETE", &format!("/v1/exports/{view}"), &Value::Null)?;
        self.delete
            .push(api.delete_snapshot(&format!("v{volume}"), &name)?);
        Ok(())
    }
}

fn snapshot(api: &mut Api, volume: u64, number: u64) -> Result<Duration, Failure> {
    Ok(api.take_snapshot(&format!("v{volume}"), &format!("s{number}"))?.1)
}

/// p50 (p99) in milliseconds.
fn shown(times: Vec<Duration>) -> String {
    let mut sorted: Vec<u64> = times.iter().map(|time| time.as_nanos() as u64).collect();
    sorted.sort_unstable();
    let ms = |share| quantile(&sorted, share) as f64 / 1e6;
    format!("{:.2} ({:.2})", ms(0.5), ms(0.99))
}
