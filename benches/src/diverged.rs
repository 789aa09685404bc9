//! Deleting one snapshot of which nothing is shared any more, because its volume was written over from end to end: what those
//! notice who write another volume at full load.

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use crate::Failure;
use crate::prices::DEPTH;
use crate::process::Scratch;
use crate::servers::{POOL, Stillpoint, VOLUME, fill};
use crate::stats::Spread;
use crate::windows::{self, HEADS, REST, Window, cells, p99_ratio, pass};
use crate::writer::{Arrivals, Writer};
use serde::Serialize;

const NAME: &str = "diverged";
/// The volume is so many times as large as the one that is written meanwhile.
pub const FACTOR: u64 = 2;

/// What came out.
#[derive(Debug, Serialize)]
pub struct Diverged {
    /// Of the snapshot.
    pub mib: u64,
    /// Before the command.
    pub before: Vec<Window>,
    /// From the command until all of its space can be used again.
    pub during: Vec<Window>,
    after: Vec<Window>,
}

/// Runs so many rounds, with windows of `time` before and after, beside an appliance whose volume has `volume_bytes`.
///
/// # Errors
/// A command fails.
pub fn measure(
    (rounds, time): (u32, Duration),
    volume_bytes: u64,
    appliance: &Stillpoint,
    scratch: &Scratch,
) -> Result<Diverged, Failure> {
    let size_bytes = volume_bytes * FACTOR;
    let target = appliance.add_volume(NAME, size_bytes, scratch)?;
    fill(&target, size_bytes, scratch)?;
    let (server, mut api) = (appliance.process_id(), appliance.api()?);
    let mut result = Diverged {
        mib: size_bytes >> 20,
        before: Vec::new(),
        during: Vec::new(),
        after: Vec::new(),
    };
    for _ in 0..rounds {
        let (snapshot, _) = api.take_snapshot(NAME, "whole")?;
        let id = snapshot["id"].as_u64();
        let id = id.ok_or_else(|| format!("no number in {snapshot}"))?;
        fill(&target, size_bytes, scratch)?;
        let writer = Writer::start(appliance.nbd_socket(), VOLUME, Arrivals::Depth(DEPTH))?;
        thread::sleep(REST);
        let before = pass(&writer, server, time)?;
        let from = windows::now(&writer, server)?;
        api.delete_snapshot(NAME, "whole")?;
        api.wait_for_deletion(POOL, id)?;
        let to = windows::now(&writer, server)?;
        thread::sleep(REST);
        let after = pass(&writer, server, time)?;
        let samples = writer.finish()?;
        let window = |[from, to]: [windows::Instant; 2]| Window::between(&samples, from, to);
        result.before.push(window(before));
        result.during.push(window([from, to]));
        result.after.push(window(after));
    }
    Ok(result)
}

impl Diverged {
    /// As a table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "### Deleting a snapshot of {} MiB of which nothing is shared, beside writes of another volume at full load\n\n\
             | | s | {HEADS} | p99 to before |\n|---|{}\n",
            self.mib,
            "---:|".repeat(8)
        );
        for (name, windows) in [
            ("before", &self.before),
            ("until all of it is free", &self.during),
            ("after", &self.after),
        ] {
            let seconds = Spread::of(windows.iter().map(|window| window.seconds)).median;
            let _ = writeln!(
                text,
                "| {name} | {seconds:.2} | {} | {} |",
                cells(windows),
                p99_ratio(windows, &self.before)
            );
        }
        text
    }
}
