//! Deleting very many snapshots at once under full load: what the writes notice. Windows before, during and after, in each
//! round.

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use stillpoint_benches::Failure;
use stillpoint_benches::servers::{POOL, Stillpoint, VOLUME};
use stillpoint_benches::stats::Spread;
use stillpoint_benches::writer::{Arrivals, Writer};

use super::Options;
use stillpoint_benches::prices::DEPTH;
use stillpoint_benches::windows::{self, HEADS, REST, Window, cells, p99_ratio, pass};

/// A window without deletions: some turns of the cycle in which checkpoints come and the places for writes go round the
/// pool, which p99 follows by itself.
const CYCLES: Duration = Duration::from_secs(20);
const CYCLES_SHORT: Duration = Duration::from_secs(4);

/// What came out.
#[derive(Debug, Serialize)]
pub struct Deletions {
    snapshots: u32,
    before: Vec<Window>,
    /// What the command took, in seconds.
    command_s: Vec<f64>,
    /// From the command until all space is back.
    during: Vec<Window>,
    after: Vec<Window>,
}

/// The instants of one round.
struct Round {
    before: [windows::Instant; 2],
    command_s: f64,
    during: [windows::Instant; 2],
    after: [windows::Instant; 2],
}

/// Runs all rounds, beside one writer.
///
/// # Errors
/// A command fails.
pub fn measure(options: &Options, appliance: &Stillpoint) -> Result<Deletions, Failure> {
    let snapshots = options.deletions();
    let writer = Writer::start(appliance.nbd_socket(), VOLUME, Arrivals::Depth(DEPTH))?;
    let server = appliance.process_id();
    let mut api = appliance.api()?;
    let cycles = if options.short { CYCLES_SHORT } else { CYCLES };
    let mut rounds = Vec::new();
    let names: Vec<String> = (0..snapshots).map(|number| format!("many-{number}")).collect();
    for _ in 0..options.rounds() {
        // With the snapshots there already: what is compared is the deleting.
        let mut last = 0;
        for name in &names {
            let (snapshot, _) = api.take_snapshot(VOLUME, name)?;
            let id = snapshot["id"].as_u64();
            last = id.ok_or_else(|| format!("no number in {snapshot}"))?;
        }
        thread::sleep(REST);
        let before = pass(&writer, server, cycles)?;
        let from = windows::now(&writer, server)?;
        let command_s = api.delete_snapshots(VOLUME, &names)?.as_secs_f64();
        // Those that were deleted first are freed first.
        api.wait_for_deletion(POOL, last)?;
        let to = windows::now(&writer, server)?;
        thread::sleep(REST);
        let after = pass(&writer, server, cycles)?;
        rounds.push(Round {
            before,
            command_s,
            during: [from, to],
            after,
        });
    }
    let samples = writer.finish()?;
    let windows = |of: fn(&Round) -> [windows::Instant; 2]| {
        let spans = rounds.iter().map(of);
        spans
            .map(|[from, to]| Window::between(&samples, from, to))
            .collect()
    };
    Ok(Deletions {
        snapshots,
        before: windows(|round| round.before),
        command_s: rounds.iter().map(|round| round.command_s).collect(),
        during: windows(|round| round.during),
        after: windows(|round| round.after),
    })
}

impl Deletions {
    /// As a table.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "### Deleting {} snapshots at once under full load\n\n| | {HEADS} | p99 to before |\n|---|{}---:|\n",
            self.snapshots,
            "---:|".repeat(6)
        );
        for (name, windows) in [
            ("before", &self.before),
            ("from the command until all space is back", &self.during),
            ("after", &self.after),
        ] {
            let _ = writeln!(
                text,
                "| {name} | {} | {} |",
                cells(windows),
                p99_ratio(windows, &self.before)
            );
        }
        let seconds =
            |values: Spread| format!("{:.2} s ({:.2}..{:.2})", values.median, values.min, values.max);
        let _ = writeln!(
            text,
            "\nThe command took {}, all space was back after {}.",
            seconds(Spread::of(self.command_s.iter().copied())),
            seconds(Spread::of(self.during.iter().map(|window| window.seconds)))
        );
        text
    }
}
