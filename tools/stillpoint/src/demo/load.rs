//! Clients that write stamped blocks and read them back: one thread and one connection per lane, several
//! requests in flight on each.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use hdrhistogram::Histogram;
use stillpoint_export::nbd::client::{ClientError, Completed};
use stillpoint_export::nbd::wire::ReplyError;

use super::proof::Write;
use super::stamp::{self, BLOCK_BYTES};
use crate::nbd_client::{self, Connection};

/// Parts of the run that have figures of their own.
pub const PHASES: usize = 4;
/// Longest latency that is told apart: a minute, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// One request in so many is a read.
const READ_ONE_IN: u64 = 4;

/// What all lanes share.
#[derive(Debug)]
pub struct Shared {
    /// The clock of the history.
    pub start: Instant,
    /// The part of the run that latencies are counted for.
    pub phase: AtomicUsize,
    /// Set to end the load.
    pub stop: AtomicBool,
    /// Requests completed so far, for the progress line.
    pub completed: AtomicUsize,
}

impl Shared {
    /// Nanoseconds on the clock of the history.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Latencies of one part of the run, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// Of reads.
    pub reads: Histogram<u64>,
    /// Of writes.
    pub writes: Histogram<u64>,
}

impl Latencies {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        let empty = || Histogram::new_with_bounds(1000, LATENCY_NS_MAX, 3).expect("sensible bounds");
        Self {
            reads: empty(),
            writes: empty(),
        }
    }
}

/// What a lane did.
#[derive(Debug)]
pub struct LaneResult {
    /// Its writes, in the order in which they were sent.
    pub writes: Vec<Write>,
    /// Its latencies, per part of the run.
    pub latencies: Vec<Latencies>,
    /// Reads that were compared with what was written before.
    pub reads_verified: u64,
}

/// Why a lane stopped.
#[derive(Debug)]
pub enum LaneError {
    /// The connection.
    Connection(ClientError),
    /// The server refused a request.
    Refused {
        /// The block.
        block: u64,
        /// What it said.
        error: ReplyError,
    },
    /// A read did not show the last acknowledged write.
    Stale {
        /// The block.
        block: u64,
        /// Number of the last acknowledged write.
        expected: u64,
        /// What was read: a number, or nothing sensible.
        found: Option<u64>,
    },
}

impl std::fmt::Display for LaneError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection(error) => error.fmt(f),
            Self::Refused { block, error } => write!(f, "block {block}: the server said: {error}"),
            Self::Stale {
                block,
                expected,
                found: Some(found),
            } => write!(
                f,
                "block {block}: write {found} was read after write {expected} was acknowledged"
            ),
            Self::Stale { block, expected, .. } => {
                write!(
                    f,
                    "block {block}: garbage was read after write {expected} was acknowledged"
                )
            }
        }
    }
}

impl From<ClientError> for LaneError {
    fn from(error: ClientError) -> Self {
        Self::Connection(error)
    }
}

/// How a lane works.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    /// Where the server listens.
    pub socket: PathBuf,
    /// The export.
    pub export: String,
    /// Its number: it uses the blocks `lane, lane + lanes, lane + 2 * lanes...`.
    pub lane: u64,
    /// Lanes in all.
    pub lanes: u64,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Requests in flight.
    pub depth: usize,
}

/// Starts a lane. If it fails it says so on `failed` too, so that nobody waits for the end of the run.
pub fn start(
    options: LaneOptions,
    shared: Arc<Shared>,
    failed: mpsc::Sender<String>,
) -> std::io::Result<JoinHandle<Result<LaneResult, LaneError>>> {
    std::thread::Builder::new()
        .name(format!("lane-{}", options.lane))
        .spawn(move || {
            let result = Lane::new(options, shared).and_then(Lane::run);
            if let Err(error) = &result {
                // The receiver may have gone with an earlier failure.
                let _ = failed.send(error.to_string());
            }
            result
        })
}

#[derive(Debug)]
enum Asked {
    Write { number: usize },
    Read { expected: u64 },
}

#[derive(Debug)]
struct InFlight {
    block: u64,
    sent_ns: u64,
    asked: Asked,
}

struct Lane {
    options: LaneOptions,
    shared: Arc<Shared>,
    connection: Connection,
    random: u64,
    /// Number of the last write of each of its blocks, and whether a request for it is in flight.
    blocks: Vec<(u64, bool)>,
    in_flight: HashMap<u64, InFlight>,
    memory: Vec<u8>,
    result: LaneResult,
}

impl Lane {
    fn new(options: LaneOptions, shared: Arc<Shared>) -> Result<Self, LaneError> {
        let own = (options.blocks - options.lane).div_ceil(options.lanes);
        assert!(
            own as usize > 2 * options.depth,
            "a lane needs idle blocks to choose from"
        );
        Ok(Self {
            connection: nbd_client::connect(&options.socket, &options.export)?,
            shared,
            random: 0x9e37_79b9_7f4a_7c15 ^ (options.lane + 1) << 32,
            blocks: vec![(0, false); own as usize],
            in_flight: HashMap::new(),
            memory: vec![0; BLOCK_BYTES],
            result: LaneResult {
                writes: Vec::new(),
                latencies: vec![Latencies::new(); PHASES],
                reads_verified: 0,
            },
            options,
        })
    }

    fn run(mut self) -> Result<LaneResult, LaneError> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            while self.in_flight.len() < self.options.depth {
                self.send()?;
            }
            self.take_in()?;
        }
        while !self.in_flight.is_empty() {
            self.take_in()?;
        }
        self.connection.close();
        Ok(self.result)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % end
    }

    fn send(&mut self) -> Result<(), LaneError> {
        let own = loop {
            let candidate = self.below(self.blocks.len() as u64) as usize;
            if !self.blocks[candidate].1 {
                break candidate;
            }
        };
        self.blocks[own].1 = true;
        let block = own as u64 * self.options.lanes + self.options.lane;
        let offset = block * BLOCK_BYTES as u64;
        let is_read = self.below(READ_ONE_IN) == 0;
        let sent_ns;
        let (cookie, asked) = if is_read {
            sent_ns = self.shared.now_ns();
            let cookie = self.connection.send_read(offset, BLOCK_BYTES as u32)?;
            let expected = self.blocks[own].0;
            (cookie, Asked::Read { expected })
        } else {
            let number = self.result.writes.len() + 1;
            stamp::fill(&mut self.memory, block, number as u64);
            sent_ns = self.shared.now_ns();
            self.result.writes.push(Write {
                block,
                sent_ns,
                acknowledged_ns: u64::MAX,
            });
            let cookie = self.connection.send_write(offset, &self.memory, false)?;
            (cookie, Asked::Write { number })
        };
        self.in_flight.insert(
            cookie,
            InFlight {
                block,
                sent_ns,
                asked,
            },
        );
        Ok(())
    }

    /// Waits for a reply and takes in those that came with it.
    fn take_in(&mut self) -> Result<(), LaneError> {
        let Some(completed) = self.connection.wait()? else {
            return Ok(());
        };
        self.completed(completed)?;
        while let Some(completed) = self.connection.take_completed()? {
            self.completed(completed)?;
        }
        Ok(())
    }

    fn completed(&mut self, completed: Completed) -> Result<(), LaneError> {
        let now_ns = self.shared.now_ns();
        let request = self
            .in_flight
            .remove(&completed.cookie)
            .expect("the client answers what was asked");
        let block = request.block;
        completed
            .result
            .map_err(|error| LaneError::Refused { block, error })?;
        let own = &mut self.blocks[(block / self.options.lanes) as usize];
        own.1 = false;
        let phase = self.shared.phase.load(Ordering::Relaxed);
        let latencies = &mut self.result.latencies[phase];
        let latency_ns = now_ns - request.sent_ns;
        match request.asked {
            Asked::Write { number } => {
                own.0 = number as u64;
                self.result.writes[number - 1].acknowledged_ns = now_ns;
                latencies.writes.saturating_record(latency_ns);
            }
            Asked::Read { expected } => {
                let found = stamp::read(&completed.data, block).ok();
                if found != Some(expected) {
                    return Err(LaneError::Stale {
                        block,
                        expected,
                        found,
                    });
                }
                self.result.reads_verified += 1;
                latencies.reads.saturating_record(latency_ns);
                self.connection.recycle(completed.data);
            }
        }
        self.shared.completed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
