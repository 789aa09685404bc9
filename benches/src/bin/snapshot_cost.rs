//! What snapshots cost those who write meanwhile: the same load without snapshots and with one at every interval, in
//! turn, and what the appliance itself says of each snapshot.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::Value;
use stillpoint_benches::Failure;
use stillpoint_benches::cases::SNAPSHOT_CASE;
use stillpoint_benches::fio::{self, Extent, Measured};
use stillpoint_benches::machine::Machine;
use stillpoint_benches::process::{self, Scratch};
use stillpoint_benches::servers::{Setup, Stillpoint, fill};
use stillpoint_benches::stats::Spread;

/// Measures latency under load with and without snapshots
#[derive(Debug, Parser)]
struct Options {
    /// A release build of the appliance
    #[arg(long, default_value = "target/release/stillpoint")]
    stillpoint: PathBuf,
    /// Directory for the pool file [default: that of the binary]
    #[arg(long)]
    backing: Option<PathBuf>,
    /// Rounds: each is a run without and a run with snapshots
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Milliseconds from one snapshot to the next
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// MiB of the volume
    #[arg(long, default_value_t = 512)]
    volume_mib: u64,
}

fn main() -> ExitCode {
    process::clean_up_always();
    let ended = measure(&Options::parse());
    process::clean_up();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "snapshot_cost: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), Failure> {
    let program = options.stillpoint.canonicalize()?;
    let beside = program.parent().unwrap_or(Path::new("."));
    let backing = options.backing.as_deref().unwrap_or(beside).canonicalize()?;
    let scratch = Scratch::new(&backing)?;
    let size_bytes = options.volume_mib << 20;
    let setup = Setup {
        program: &program,
        serve_options: &[],
        pool_bytes: size_bytes * 4,
        volume_bytes: size_bytes,
    };
    let appliance = Stillpoint::start(&setup, &scratch)?;
    fill(&appliance.target, size_bytes, &scratch)?;
    let (mut without, mut with, mut snapshots) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        without.push(load(options, &appliance, &scratch, |_| Ok(()))?);
        let mut taken = Vec::new();
        with.push(load(options, &appliance, &scratch, |number| {
            let name = format!("round-{round}-{number}");
            snapshots.push(appliance.snapshot(&name, &scratch)?);
            taken.push(name);
            Ok(())
        })?);
        for name in taken {
            appliance.delete_snapshot(&name, &scratch)?;
        }
    }
    write_table(options, &backing, &without, &with, &snapshots)
}

/// Writes for some time; meanwhile `act` is called at every interval, beginning after the first.
fn load(
    options: &Options,
    appliance: &Stillpoint,
    scratch: &Scratch,
    mut act: impl FnMut(u32) -> Result<(), Failure>,
) -> Result<Measured, Failure> {
    let time = Duration::from_secs(options.seconds);
    let interval = Duration::from_millis(options.interval_ms.max(1));
    let size_bytes = options.volume_mib << 20;
    let running = fio::start(
        SNAPSHOT_CASE,
        &appliance.target,
        size_bytes,
        Extent::For(time),
        scratch,
    )?;
    let begun = Instant::now();
    let mut number = 1;
    while interval * number < time {
        thread::sleep((interval * number).saturating_sub(begun.elapsed()));
        act(number)?;
        number += 1;
    }
    running.measured()
}

fn write_table(
    options: &Options,
    backing: &Path,
    without: &[Measured],
    with: &[Measured],
    snapshots: &[Value],
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "Machine: {}.\n", Machine::look(backing))?;
    writeln!(
        out,
        "{}, {} rounds of {} s; medians.\n",
        SNAPSHOT_CASE.name(),
        options.rounds,
        options.seconds
    )?;
    writeln!(out, "| | IOPS | p50 us | p99 us | p99.9 us | max us |")?;
    writeln!(out, "|---|---:|---:|---:|---:|---:|")?;
    let every = format!("a snapshot every {} ms", options.interval_ms);
    for (name, runs) in [("no snapshots", without), (every.as_str(), with)] {
        let median =
            |figure: fn(&Measured) -> f64| format!("{:.0}", Spread::of(runs.iter().map(figure)).median);
        writeln!(
            out,
            "| {name} | {} | {} | {} | {} | {} |",
            median(|run| run.iops),
            median(|run| run.p50_us),
            median(|run| run.p99_us),
            median(|run| run.p99_9_us),
            median(|run| run.max_us),
        )?;
    }
    writeln!(
        out,
        "\n| of {} snapshots | median | min..max |\n|---|---:|---:|",
        snapshots.len()
    )?;
    for (name, field, unit) in [
        ("longest hold of a shard, us", "hold_ns_max", 1e3),
        ("longest that one answer was held, us", "answer_held_ns_max", 1e3),
        ("answers held", "answers_held", 1.0),
        ("command to durable, us", "durable_ns", 1e3),
    ] {
        let values = snapshots
            .iter()
            .filter_map(|snapshot| Some(snapshot[field].as_f64()? / unit));
        let spread = Spread::of(values);
        writeln!(
            out,
            "| {name} | {:.0} | {:.0}..{:.0} |",
            spread.median, spread.min, spread.max
        )?;
    }
    Ok(())
}
