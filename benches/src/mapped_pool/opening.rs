//! From the start of the process to the first answer.

use std::fmt::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::frame::say;
use crate::servers::{POOL, VOLUME};
use crate::stats::Spread;
use crate::writer::{Arrivals, Writer};
use serde::Serialize;
use serde_json::Value;
use stillpoint_export::nbd::client::Connection;

use super::place::{MappedPool, Settings};

const BLOCK_BYTES: u32 = 4096;
/// What block 0 holds.
const CONTENT: [u8; BLOCK_BYTES as usize] = [0x5A; BLOCK_BYTES as usize];
/// The writer's block 0.
const OTHER_CONTENT: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
/// Requests in flight before a kill.
const DEPTH: u32 = 32;
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a client tries to connect.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// The restarts of one pool, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Restarts {
    /// What it is called.
    pub pool: String,
    disk_bytes: u64,
    /// After a stop in order.
    pub clean: Vec<Start>,
    /// After `kill -9` under load.
    pub killed: Vec<Start>,
    stop_ms: Vec<f64>,
}

/// One start.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Start {
    /// From the start of the process to the first read.
    pub first_read_ms: f64,
    /// Of it: opening the slowest of its shards, as the pool says.
    recovery_ms: f64,
}

/// Restarts it after clean stops and after kills.
///
/// # Errors
/// It does not come back, or with other content than was written.
pub fn measure(settings: &Settings, pool: &mut MappedPool) -> Result<Restarts, Failure> {
    let daemon = pool.start(&[])?;
    connect(daemon.nbd_socket(), Instant::now())?.write(0, &CONTENT)?;
    let mut restarts = Restarts {
        pool: pool.name(),
        disk_bytes: pool.disk_bytes,
        clean: Vec::new(),
        killed: Vec::new(),
        stop_ms: vec![milliseconds(MappedPool::stop(daemon)?)],
    };
    for _ in 0..settings.rounds {
        let (start, daemon) = start(pool)?;
        restarts.clean.push(start);
        restarts.stop_ms.push(milliseconds(MappedPool::stop(daemon)?));
    }
    let (_, mut daemon) = start(pool)?;
    for _ in 0..settings.rounds {
        let writer = Writer::start(daemon.nbd_socket(), VOLUME, Arrivals::Depth(DEPTH))?;
        thread::sleep(settings.time);
        drop(daemon); // kill -9
        // Its connection broke.
        let _ = writer.finish();
        let again = start(pool)?;
        restarts.killed.push(again.0);
        daemon = again.1;
    }
    restarts.stop_ms.push(milliseconds(MappedPool::stop(daemon)?));
    Ok(restarts)
}

fn start(pool: &MappedPool) -> Result<(Start, crate::servers::Daemon), Failure> {
    let (begun, daemon) = pool.spawn()?;
    let data = connect(daemon.nbd_socket(), begun)?.read(0, BLOCK_BYTES)?;
    let first_read_ms = milliseconds(begun.elapsed());
    if data != CONTENT && data != OTHER_CONTENT {
        return Err("the first block has come back with another content".into());
    }
    daemon.wait()?;
    let printed = pool.command(&daemon, &["-o", "json", "pool", "show", POOL])?;
    let info: Value = serde_json::from_str(&printed)?;
    let recovery_ns = info["recovery_ns"].as_u64().unwrap_or_default();
    let start = Start {
        first_read_ms,
        recovery_ms: milliseconds(Duration::from_nanos(recovery_ns)),
    };
    say(&format!("{start:?}"));
    Ok((start, daemon))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A connection to the volume as soon as there is one.
fn connect(socket: &Path, begun: Instant) -> Result<Connection<UnixStream>, Failure> {
    loop {
        let connected = UnixStream::connect(socket)
            .map_err(Failure::from)
            .and_then(|stream| Ok(Connection::open(stream, VOLUME)?));
        match connected {
            Ok(connection) => return Ok(connection),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// As a table.
#[must_use]
pub fn markdown(all: &[Restarts]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "### From the start of the process to the first answered read\n\n\
         | pool | on the disk | after a clean stop, ms | of it: opening a shard | after kill -9 under load, ms | of it: opening a shard | clean stop takes, ms |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
    );
    for restarts in all {
        let spread = |values: Spread| format!("{:.0} ({:.0}..{:.0})", values.median, values.min, values.max);
        let of = |starts: &[Start], figure: fn(&Start) -> f64| spread(Spread::of(starts.iter().map(figure)));
        let _ = writeln!(
            text,
            "| {} | {:.1} GiB | {} | {} | {} | {} | {} |",
            restarts.pool,
            restarts.disk_bytes as f64 / f64::from(1 << 30),
            of(&restarts.clean, |start| start.first_read_ms),
            of(&restarts.clean, |start| start.recovery_ms),
            of(&restarts.killed, |start| start.first_read_ms),
            of(&restarts.killed, |start| start.recovery_ms),
            spread(Spread::of(restarts.stop_ms.iter().copied())),
        );
    }
    text
}
