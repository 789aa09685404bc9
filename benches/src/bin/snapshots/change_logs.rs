//! What a change log volume that has room costs the writes that it counts: two volumes with a snapshot each, one of which
//! names a change log volume, in turn.

use std::fmt::Write;
use std::thread;

use serde::Serialize;
use serde_json::json;
use stillpoint_benches::Failure;
use stillpoint_benches::process::Scratch;
use stillpoint_benches::servers::{POOL, Stillpoint, fill};
use stillpoint_benches::stats::Spread;
use stillpoint_benches::writer::{Arrivals, Writer};

use super::Options;
use stillpoint_benches::prices::DEPTH;
use stillpoint_benches::prices::slack_bytes;
use stillpoint_benches::windows::{self, HEADS, Window, cells, p99_ratio};

const NAMES: [&str; 2] = ["plain", "logged"];

/// What came out.
#[derive(Debug, Serialize)]
pub struct ChangeLogs {
    without: Vec<Window>,
    with: Vec<Window>,
}

/// Runs all rounds.
///
/// # Errors
/// A command fails.
pub fn measure(options: &Options, appliance: &Stillpoint, scratch: &Scratch) -> Result<ChangeLogs, Failure> {
    let size_bytes = options.volume_bytes() / 2;
    let mut api = appliance.api()?;
    for name in NAMES {
        let target = appliance.add_volume(name, size_bytes, scratch)?;
        fill(&target, size_bytes, scratch)?;
    }
    api.ask(
        "POST",
        "/v1/changelogs",
        &json!({"name": "log", "size_bytes": size_bytes * 2}),
    )?;
    api.ask("POST", "/v1/volumes/logged/set", &json!({"change_log": "log"}))?;
    let used = api.used_bytes(POOL)? + slack_bytes(options.volume_bytes());
    let mut found = [Vec::new(), Vec::new()];
    for round in 0..options.rounds() as usize {
        for name in NAMES {
            api.take_snapshot(name, "s")?;
        }
        for turn in 0..NAMES.len() {
            let which = (round + turn) % NAMES.len();
            found[which].push(run(options, appliance, NAMES[which])?);
        }
        for name in NAMES {
            api.delete_snapshot(name, "s")?;
        }
        api.wait_for_space(POOL, used)?;
    }
    let [without, with] = found;
    Ok(ChangeLogs { without, with })
}

fn run(options: &Options, appliance: &Stillpoint, volume: &str) -> Result<Window, Failure> {
    let writer = Writer::start(appliance.nbd_socket(), volume, Arrivals::Depth(DEPTH))?;
    let from = windows::now(&writer, appliance.process_id())?;
    thread::sleep(options.time() / 2);
    let to = windows::now(&writer, appliance.process_id())?;
    Ok(Window::between(&writer.finish()?, from, to))
}

impl ChangeLogs {
    /// As a table.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "### Change log volumes under full load\n\n| volume with a snapshot | {HEADS} | p99 to without |\n|---|{}---:|\n",
            "---:|".repeat(6)
        );
        let _ = writeln!(text, "| no change log volume | {} | 1 |", cells(&self.without));
        let _ = writeln!(
            text,
            "| with one that has room | {} | {} |",
            cells(&self.with),
            p99_ratio(&self.with, &self.without)
        );
        let pairs = self.with.iter().zip(&self.without);
        let ratio = Spread::of(pairs.map(|(with, without)| with.per_second / without.per_second.max(1e-9)));
        let _ = writeln!(
            text,
            "\nWrites per second, with to without: {:.2} ({:.2}..{:.2}).",
            ratio.median, ratio.min, ratio.max
        );
        text
    }
}
