//! What a large discard costs those who write another volume meanwhile.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use stillpoint_benches::Failure;
use stillpoint_benches::frame::say;
use stillpoint_benches::servers::VOLUME;
use stillpoint_benches::stats::{Distribution, Spread};
use stillpoint_benches::writer::{Arrivals, Sample, Writer};
use stillpoint_export::nbd::client::Connection;
use stillpoint_export::nbd::wire::command;

use super::Options;
use super::place::MappedPool;

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
    gib: u64,
    before: Vec<Window>,
    during: Vec<Window>,
    after: Vec<Window>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Window {
    seconds: f64,
    per_second: f64,
    latency_us: Distribution,
}

/// Writes another volume and discards a part of the large one, a further part in each round.
///
/// # Errors
/// A command or a request fails.
pub fn measure(options: &Options, pool: &mut MappedPool) -> Result<Discard, Failure> {
    let daemon = pool.start(&[])?;
    let size = OTHER_BYTES.to_string();
    pool.command(&daemon, &["volume", "create", OTHER, "--size", &size])?;
    pool.command(&daemon, &["export", "create", OTHER])?;
    fill(daemon.nbd_socket())?;
    let writer = Writer::start(daemon.nbd_socket(), OTHER, Arrivals::Depth(DEPTH))?;
    thread::sleep(REST);
    let gib = options
        .discard_gib
        .min(pool.mapped_gib / u64::from(options.rounds.max(1)));
    let mut spans = Vec::new();
    for round in 0..u64::from(options.rounds) {
        thread::sleep(REST);
        let from = writer.now_ns();
        thread::sleep(options.time());
        let begun = writer.now_ns();
        discard(daemon.nbd_socket(), round * gib, gib)?;
        let ended = writer.now_ns();
        thread::sleep(REST);
        let rested = writer.now_ns();
        thread::sleep(options.time());
        spans.push([(from, begun), (begun, ended), (rested, writer.now_ns())]);
        say(&format!(
            "{gib} GiB discarded in {:.2} s",
            (ended - begun) as f64 / 1e9
        ));
    }
    let samples = writer.finish()?;
    MappedPool::stop(daemon)?;
    let windows = |which: usize| spans.iter().map(|span| window(&samples, span[which])).collect();
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

fn window(samples: &[Sample], (from, to): (u64, u64)) -> Window {
    let within = samples
        .iter()
        .filter(|sample| (from..to).contains(&sample.begun_ns));
    let latency_us = Distribution::of(within.map(|sample| sample.took_ns), 1e3);
    let seconds = (to - from) as f64 / 1e9;
    Window {
        seconds,
        per_second: latency_us.count as f64 / seconds,
        latency_us,
    }
}

impl Discard {
    /// As a table.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "### Discarding {} GiB beside writes of another volume, depth {DEPTH}\n\n{}.\n\n\
             | | s | writes/s | p50 us | p99 us | p99.9 us | max us | p99 to before |\n|---|{}\n",
            self.gib,
            self.pool,
            "---:|".repeat(7)
        );
        for (name, windows) in [
            ("before", &self.before),
            ("during", &self.during),
            ("after", &self.after),
        ] {
            let spread = |figure: fn(&Window) -> f64| {
                let spread = Spread::of(windows.iter().map(figure));
                format!("{:.0} ({:.0}..{:.0})", spread.median, spread.min, spread.max)
            };
            let pairs = windows.iter().zip(&self.before);
            let ratio = Spread::of(pairs.map(|(of, to)| of.latency_us.p99 / to.latency_us.p99.max(1e-9)));
            text += &format!(
                "| {name} | {:.2} | {} | {} | {} | {} | {} | {:.2} ({:.2}..{:.2}) |\n",
                Spread::of(windows.iter().map(|window| window.seconds)).median,
                spread(|window| window.per_second),
                spread(|window| window.latency_us.p50),
                spread(|window| window.latency_us.p99),
                spread(|window| window.latency_us.p99_9),
                spread(|window| window.latency_us.max),
                ratio.median,
                ratio.min,
                ratio.max,
            );
        }
        text
    }
}
