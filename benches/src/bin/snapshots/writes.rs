//! Writes at a fixed rate, without snapshots and with one each second: here, with qcow2 and with btrfs.

use std::fmt::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use stillpoint_benches::Failure;
use stillpoint_benches::frame::say;
use stillpoint_benches::process::Scratch;
use stillpoint_benches::servers::{POOL, QemuDaemon, Reflinked, Stillpoint, TakesSnapshots, VOLUME};
use stillpoint_benches::writer::{Arrivals, Writer};

use super::Options;
use stillpoint_benches::prices::{self, DEPTH};
use stillpoint_benches::windows::{self, HEADS, Window, cells, p99_ratio};

const INTERVAL: Duration = Duration::from_secs(1);
/// What a connection does at first counts for nothing.
const WARM_UP: Duration = Duration::from_millis(200);

/// What came out.
#[derive(Debug, Serialize)]
pub struct Writes {
    /// Who was measured, and what it did at full load without snapshots, in writes per second.
    full_load: Vec<(String, f64)>,
    /// Who could not be measured, and why.
    missing: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Debug, Serialize)]
struct Case {
    name: String,
    /// Writes per second that come.
    rate: f64,
    without: Vec<Window>,
    with: Vec<Window>,
    snapshots: u32,
}

/// The appliance, by its command line, as the others are used by theirs.
struct Ours<'a> {
    appliance: &'a Stillpoint,
    scratch: &'a Scratch,
    taken: Vec<String>,
    used_bytes: u64,
}

impl TakesSnapshots for Ours<'_> {
    fn name(&self) -> &str {
        "Stillpoint"
    }

    fn target(&self) -> (PathBuf, String) {
        (self.appliance.nbd_socket().to_path_buf(), VOLUME.into())
    }

    fn process_id(&self) -> u32 {
        self.appliance.process_id()
    }

    fn take(&mut self, number: u32) -> Result<(), Failure> {
        let name = format!("second-{number}");
        self.appliance.take(&name, self.scratch)?;
        self.taken.push(name);
        Ok(())
    }

    fn forget_all(&mut self) -> Result<(), Failure> {
        let mut api = self.appliance.api()?;
        for name in self.taken.drain(..) {
            api.delete_snapshot(VOLUME, &name)?;
        }
        api.wait_for_space(POOL, self.used_bytes).map(drop)
    }
}

/// Runs all rounds.
///
/// # Errors
/// A server or a command fails.
pub fn measure(options: &Options, appliance: &Stillpoint, scratch: &Scratch) -> Result<Writes, Failure> {
    let size_bytes = options.volume_bytes();
    // A little more than there was: maps come and go.
    let used_bytes = appliance.api()?.used_bytes(POOL)? + prices::slack_bytes(size_bytes);
    let mut ours = Ours {
        appliance,
        scratch,
        taken: Vec::new(),
        used_bytes,
    };
    let mut missing = Vec::new();
    let mut qemu = or_missing(
        "qemu-storage-daemon",
        QemuDaemon::start(size_bytes, &options.qemu_aio, scratch),
        &mut missing,
    );
    let mut btrfs = or_missing(
        "btrfs",
        Reflinked::start(size_bytes, &options.qemu_aio, scratch),
        &mut missing,
    );
    let mut all: Vec<&mut dyn TakesSnapshots> = vec![&mut ours];
    all.extend(qemu.as_mut().map(|server| server as &mut dyn TakesSnapshots));
    all.extend(btrfs.as_mut().map(|server| server as &mut dyn TakesSnapshots));
    let mut full_load = Vec::new();
    for server in &mut all {
        let at_full_load = run(*server, Arrivals::Depth(DEPTH), options.time() / 2, None)?;
        full_load.push((server.name().to_owned(), at_full_load.per_second));
    }
    let slowest = full_load.iter().map(|(_, rate)| *rate).fold(f64::MAX, f64::min);
    let rate = options.rate.unwrap_or(slowest / 2.0);
    let mut cases: Vec<(usize, Case)> = all
        .iter()
        .enumerate()
        .map(|(index, server)| (index, Case::new(server.name(), rate)))
        .collect();
    let own_half = Case::new("Stillpoint, at half of its own full load", full_load[0].1 / 2.0);
    cases.push((0, own_half));
    for round in 0..options.rounds() as usize {
        for turn in 0..cases.len() {
            let place = (round + turn) % cases.len();
            let (index, case) = &mut cases[place];
            say(&format!("round {}, {}", round + 1, case.name));
            case.round(&mut *all[*index], options.time(), round % 2 == 1)?;
        }
    }
    Ok(Writes {
        full_load,
        missing,
        cases: cases.into_iter().map(|(_, case)| case).collect(),
    })
}

fn or_missing<S>(name: &str, started: Result<S, Failure>, missing: &mut Vec<String>) -> Option<S> {
    started
        .map_err(|error| {
            say(&format!("{name} is left out: {error}"));
            missing.push(format!("{name}: {error}"));
        })
        .ok()
}

impl Case {
    fn new(name: &str, rate: f64) -> Self {
        Self {
            name: name.into(),
            rate,
            without: Vec::new(),
            with: Vec::new(),
            snapshots: 0,
        }
    }

    fn round(
        &mut self,
        server: &mut dyn TakesSnapshots,
        time: Duration,
        with_first: bool,
    ) -> Result<(), Failure> {
        for with in [with_first, !with_first] {
            let arrivals = Arrivals::Rate(self.rate);
            if with {
                let window = run(server, arrivals, time, Some(&mut self.snapshots))?;
                self.with.push(window);
                server.forget_all()?;
            } else {
                self.without.push(run(server, arrivals, time, None)?);
            }
        }
        Ok(())
    }
}

/// Writes for some time; with `snapshots`, takes one each second and counts them.
fn run(
    server: &mut dyn TakesSnapshots,
    arrivals: Arrivals,
    time: Duration,
    mut snapshots: Option<&mut u32>,
) -> Result<Window, Failure> {
    let (socket, export) = server.target();
    let process = server.process_id();
    let writer = Writer::start(&socket, &export, arrivals)?;
    thread::sleep(WARM_UP);
    let from = windows::now(&writer, process)?;
    let begun = Instant::now();
    let mut number = 1;
    while INTERVAL * number < time {
        thread::sleep((INTERVAL * number).saturating_sub(begun.elapsed()));
        if let Some(snapshots) = &mut snapshots {
            server.take(number)?;
            **snapshots += 1;
        }
        number += 1;
    }
    thread::sleep(time.saturating_sub(begun.elapsed()));
    let to = windows::now(&writer, process)?;
    Ok(Window::between(&writer.finish()?, from, to))
}

impl Writes {
    /// As tables.
    pub fn markdown(&self) -> String {
        let mut text =
            String::from("### Writes beside a snapshot each second\n\nAt full load without snapshots:");
        for (at, (name, rate)) in self.full_load.iter().enumerate() {
            let comma = if at == 0 { "" } else { ";" };
            let _ = write!(text, "{comma} {name} {rate:.0} writes/s");
        }
        let _ = write!(
            text,
            ".\n\n| | {HEADS} | p99 to without |\n|---|{}---:|\n",
            "---:|".repeat(6)
        );
        for case in &self.cases {
            let _ = writeln!(
                text,
                "| {}, {:.0} writes/s come, no snapshots | {} | 1 |",
                case.name,
                case.rate,
                cells(&case.without)
            );
            let _ = writeln!(
                text,
                "| the same, a snapshot each second ({}) | {} | {} |",
                case.snapshots,
                cells(&case.with),
                p99_ratio(&case.with, &case.without)
            );
        }
        for missing in &self.missing {
            let _ = writeln!(text, "\nLeft out: {missing}.");
        }
        text
    }
}
