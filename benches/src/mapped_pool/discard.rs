//! What a large discard costs those who write another volume meanwhile.

use std::fmt::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::Failure;
use crate::frame::say;
use crate::servers::VOLUME;
use crate::stats::Spread;
use crate::windows::{self, HEADS, Window, cells, p99_ratio};
use crate::writer::{Arrivals, Writer};
use serde::Serialize;
use stillpoint_export::nbd::client::Connection;
use stillpoint_export::nbd::wire::command;

use super::place::{MappedPool, Settings};

const OTHER: &str = "other";
const OTHER_BYTES: u64 = 1 << 30;
const DEPTH: u32 = 32;
/// Bytes of one discard: what the kernel's NBD client sends at most is 2 GiB.
const DISCARD_BYTES: u64 = 1 << 30;
/// Discards in flight.
const DISCARDS_AT_ONCE: usize = 4;
const REST: Duration = Duration::from_millis(500);

/// What the other volume's writes took, in microseconds.
#[derive(Debug, Serialize)]
pub struct Discard {
    pool: String,
    /// GiB of each discard.
    pub gib: u64,
    /// Before it.
    pub before: Vec<Window>,
    /// From the first request to the last answer.
    pub during: Vec<Window>,
    after: Vec<Window>,
}

/// Writes another volume and discards a part of the large one, a further part in each round.
///
/// # Errors
/// A command or a request fails.
pub fn measure(settings: &Settings, pool: &mut MappedPool) -> Result<Discard, Failure> {
    let daemon = pool.start(&[])?;
    let size = OTHER_BYTES.to_string();
    pool.command(&daemon, &["volume", "create", OTHER, "--size", &size])?;
    pool.command(&daemon, &["export", "create", OTHER])?;
    fill(daemon.nbd_socket())?;
    let writer = Writer::start(daemon.nbd_socket(), OTHER, Arrivals::Depth(DEPTH))?;
    thread::sleep(REST);
    let gib = settings
        .discard_gib
        .min(pool.mapped_gib / u64::from(settings.rounds.max(1)));
    let mut spans = Vec::new();
    for round in 0..u64::from(settings.rounds) {
        thread::sleep(REST);
        let now = || windows::now(&writer, daemon.process_id());
        let from = now()?;
        thread::sleep(settings.time);
        let begun = now()?;
        discard(daemon.nbd_socket(), round * gib, gib)?;
        let ended = now()?;
        thread::sleep(REST);
        let rested = now()?;
        thread::sleep(settings.time);
        spans.push([(from, begun), (begun, ended), (rested, now()?)]);
        say(&format!("{gib} GiB discarded, round {}", round + 1));
    }
    let samples = writer.finish()?;
    MappedPool::stop(daemon)?;
    let windows = |which: usize| {
        let spans = spans.iter().map(|span| span[which]);
        spans
            .map(|(from, to)| Window::between(&samples, from, to))
            .collect()
    };
    Ok(Discard {
        pool: pool.name(),
        gib,
        before: windows(0),
        during: windows(1),
        after: windows(2),
    })
}

fn fill(socket: &std::path::Path) -> Result<(), Failure> {
    let mut connection = Connection::open(UnixStream::connect(socket)?, OTHER)?;
    let bytes = vec![0x3C; 1 << 20];
    for offset in (0..OTHER_BYTES).step_by(bytes.len()) {
        connection.write(offset, &bytes)?;
    }
    connection.flush()?;
    Ok(())
}

/// Discards so many GiB from `first` on.
fn discard(socket: &std::path::Path, first_gib: u64, gib: u64) -> Result<(), Failure> {
    let mut connection = Connection::open(UnixStream::connect(socket)?, VOLUME)?;
    let mut parts = (first_gib..first_gib + gib).map(|gib| gib << 30);
    loop {
        while connection.in_flight() < DISCARDS_AT_ONCE
            && let Some(offset) = parts.next()
        {
            connection.send_command(command::TRIM, 0, offset, DISCARD_BYTES as u32)?;
        }
        match connection.wait()? {
            Some(done) => done
                .result
                .map_err(|error| format!("a discard failed: {error:?}"))?,
            None => return Ok(()),
        }
    }
}

impl Discard {
    /// As a table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "### Discarding {} GiB beside writes of another volume, depth {DEPTH}\n\n{}.\n\n\
             | | s | {HEADS} | p99 to before |\n|---|{}\n",
            self.gib,
            self.pool,
            "---:|".repeat(8)
        );
        for (name, windows) in [
            ("before", &self.before),
            ("during", &self.during),
            ("after", &self.after),
        ] {
            let _ = writeln!(
                text,
                "| {name} | {:.2} | {} | {} |",
                Spread::of(windows.iter().map(|window| window.seconds)).median,
                cells(windows),
                p99_ratio(windows, &self.before)
            );
        }
        text
    }
}
