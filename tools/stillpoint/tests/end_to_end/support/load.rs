//! A load: connections with many requests of mixed kinds and sizes in flight, all of them told to a [`History`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::history::History;
use super::nbd::{Connection, Receiver, Sender};
use stillpoint_export::nbd::wire::{RequestHeader, command, command_flags};
use stillpoint_simulator::model::{Range, Tick};
use stillpoint_simulator::random::Random;
use stillpoint_simulator::stamp::{self, SECTOR_BYTES, SECTORS_PER_BLOCK, Shown};

/// Requests of one connection in flight.
pub const DEPTH: usize = 16;
/// Sectors of the longest request: 256 KiB.
const REQUEST_SECTORS_MAX: u64 = 512;
/// Sectors that half of the requests go to, so that requests meet.
const HOT_SECTORS: u64 = 4096;

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    history: Arc<History>,
    /// Marks the data.
    volume: u32,
    /// No more requests are to be sent.
    stopping: AtomicBool,
    /// Connections may break from now on.
    crash_expected: AtomicBool,
    /// Flushes are sent, and writes with FUA.
    flushes: bool,
    complaints: Mutex<Vec<String>>,
    counts: Counts,
}

/// What the clients did.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answered reads.
    pub reads: AtomicU64,
    /// Acknowledged writes.
    pub writes: AtomicU64,
    /// Acknowledged discards and zeroings.
    pub zeroings: AtomicU64,
    /// Completed flushes.
    pub flushes: AtomicU64,
}

impl Counts {
    /// All requests that were answered.
    pub fn answered(&self) -> u64 {
        [&self.reads, &self.writes, &self.zeroings, &self.flushes]
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

/// The requests of one connection that are in flight.
#[derive(Default)]
struct Flight {
    state: Mutex<FlightState>,
    landed: Condvar,
}

#[derive(Default)]
struct FlightState {
    requests: BTreeMap<u64, Pending>,
    broken: bool,
    all_sent: bool,
}

#[derive(Clone, Copy)]
enum Pending {
    Read { first: u64, count: u64, sent: Tick },
    Write { number: Shown, fua: bool },
    Zeros { number: Shown, fua: bool },
    Flush { sent: Tick },
}

/// What is to be sent.
struct Request {
    command: u16,
    flags: u16,
    range: Range,
}

impl Load {
    /// Opens `connections` connections to the export and starts.
    pub fn start(
        socket: &Path,
        export: &str,
        connections: u64,
        history: &Arc<History>,
        volume: u32,
        seed: u64,
    ) -> Self {
        Self::start_with(socket, export, connections, history, (volume, seed), true)
    }

    /// The same, but nothing is ever flushed.
    pub fn start_unflushed(
        socket: &Path,
        export: &str,
        connections: u64,
        history: &Arc<History>,
        volume: u32,
        seed: u64,
    ) -> Self {
        Self::start_with(socket, export, connections, history, (volume, seed), false)
    }

    fn start_with(
        socket: &Path,
        export: &str,
        connections: u64,
        history: &Arc<History>,
        (volume, seed): (u32, u64),
        flushes: bool,
    ) -> Self {
        let shared = Arc::new(Shared {
            history: history.clone(),
            volume,
            stopping: AtomicBool::new(false),
            crash_expected: AtomicBool::new(false),
            flushes,
            complaints: Mutex::default(),
            counts: Counts::default(),
        });
        let mut threads = Vec::new();
        let mut random = Random::new(seed);
        for _ in 0..connections {
            let connection = Connection::open(socket, export).expect("the export answers");
            let sectors = connection.export.size_bytes / SECTOR_BYTES as u64;
            let (sender, receiver) = connection.split();
            let flight = Arc::new(Flight::default());
            let random = random.fork();
            let (sending, receiving) = (shared.clone(), shared.clone());
            let sent = flight.clone();
            threads.push(thread::spawn(move || {
                sending.send(sender, &sent, sectors, random)
            }));
            threads.push(thread::spawn(move || receiving.receive(receiver, &flight)));
        }
        Self { shared, threads }
    }

    /// What the clients did so far.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Waits until so many requests were answered, or a client has something to complain of ([`Self::finish`] tells).
    pub fn wait_for_answers(&self, count: u64) {
        while self.counts().answered() < count && !self.shared.stopping.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// From now on the connections may break, and requests may fail.
    pub fn expect_crash(&self) {
        self.shared.crash_expected.store(true, Ordering::SeqCst);
    }

    /// Sends no more, waits for all answers (or for the connections to break) and ends the threads.
    ///
    /// # Panics
    /// With all that the clients have to complain of.
    pub fn finish(self) -> u64 {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
        let complaints = lock(&self.shared.complaints);
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
        self.shared.counts.answered()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn complain(&self, what: String) {
        let mut complaints = lock(&self.complaints);
        // The first ones tell what happened; the rest would only follow from them.
        if complaints.len() < 5 {
            complaints.push(what);
        }
        self.stopping.store(true, Ordering::SeqCst);
    }

    fn broke(&self, error: impl std::fmt::Display) {
        if !self.crash_expected.load(Ordering::SeqCst) {
            self.complain(format!("a connection broke: {error}"));
        }
    }

    fn send(&self, mut sender: Sender, flight: &Flight, sectors: u64, mut random: Random) {
        let mut payload = Vec::new();
        for cookie in 1.. {
            let Some(pending) = self.prepare(cookie, flight, sectors, &mut random, &mut payload) else {
                break;
            };
            if let Err(error) = sender.send(&pending, &payload) {
                self.broke(error);
                break;
            }
        }
        let mut state = lock(&flight.state);
        state.all_sent = true;
        while !state.requests.is_empty() && !state.broken {
            state = flight.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        // Tells the receiving thread, too, that this is all.
        sender.end();
    }

    /// Chooses a request as soon as one may be sent, and tells the history of it. `None` if none may any more.
    fn prepare(
        &self,
        cookie: u64,
        flight: &Flight,
        sectors: u64,
        random: &mut Random,
        payload: &mut Vec<u8>,
    ) -> Option<RequestHeader> {
        let mut request = choose(random, sectors);
        if !self.flushes {
            request.flags = 0;
            if request.command == command::FLUSH {
                (request.command, request.range) = (command::READ, Range { first: 0, count: 8 });
            }
        }
        let fua = request.flags & command_flags::FUA != 0;
        let mut state = lock(&flight.state);
        while state.requests.len() >= DEPTH && !state.broken {
            state = flight.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.broken || self.stopping.load(Ordering::SeqCst) {
            return None;
        }
        let Range { first, count } = request.range;
        payload.clear();
        let pending = match request.command {
            command::READ => Pending::Read {
                first,
                count,
                sent: self.history.now(),
            },
            command::WRITE => {
                let number = self.history.write_sent(false, request.range);
                payload.resize(count as usize * SECTOR_BYTES, 0);
                stamp::fill(number, self.volume, first, payload);
                Pending::Write { number, fua }
            }
            command::FLUSH => Pending::Flush {
                sent: self.history.now(),
            },
            _ => Pending::Zeros {
                number: self.history.write_sent(true, request.range),
                fua,
            },
        };
        state.requests.insert(cookie, pending);
        Some(RequestHeader {
            flags: request.flags,
            command: request.command,
            cookie,
            offset_bytes: first * SECTOR_BYTES as u64,
            length_bytes: (count * SECTOR_BYTES as u64) as u32,
        })
    }

    fn receive(&self, mut receiver: Receiver, flight: &Flight) {
        loop {
            let lookup = |cookie: u64| match lock(&flight.state).requests.get(&cookie) {
                Some(Pending::Read { first, count, .. }) => {
                    Some((first * SECTOR_BYTES as u64, *count as usize * SECTOR_BYTES))
                }
                _ => None,
            };
            let reply = match receiver.receive(lookup) {
                Ok(reply) => reply,
                Err(error) => {
                    let mut state = lock(&flight.state);
                    state.broken = true;
                    let ended = state.all_sent && state.requests.is_empty();
                    flight.landed.notify_all();
                    drop(state);
                    if !ended {
                        self.broke(error);
                    }
                    return;
                }
            };
            let landed = lock(&flight.state).requests.remove(&reply.cookie);
            match (landed, reply.result) {
                (None, _) => self.complain(format!(
                    "an answer to request {} that was not asked",
                    reply.cookie
                )),
                // It may have happened or not, as if there had been no answer.
                (Some(_), Err(_)) if self.crash_expected.load(Ordering::SeqCst) => {}
                (Some(_), Err(error)) => self.complain(format!("a request was refused: {error}")),
                (Some(pending), Ok(())) => self.landed(pending, &reply.data),
            }
            flight.landed.notify_all();
        }
    }

    fn landed(&self, pending: Pending, data: &[u8]) {
        let count = match pending {
            Pending::Read { first, sent, .. } => {
                if let Err(broken) = self.history.read_answered(first, data, sent) {
                    self.complain(broken.0);
                }
                &self.counts.reads
            }
            Pending::Write { number, fua } => {
                self.history.write_acknowledged(number, fua);
                &self.counts.writes
            }
            Pending::Zeros { number, fua } => {
                self.history.write_acknowledged(number, fua);
                &self.counts.zeroings
            }
            Pending::Flush { sent } => {
                self.history.flushed(sent);
                &self.counts.flushes
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Mostly writes, of all sizes from one sector to 256 KiB.
fn choose(random: &mut Random, sectors: u64) -> Request {
    let count = match random.below(10) {
        0 | 1 => random.between(1, 7),
        2..=5 => 8,
        6 => random.between(9, 64),
        7 | 8 => 8 * random.between(1, 8),
        _ => random.between(65, REQUEST_SECTORS_MAX),
    };
    let within = if random.percent(50) {
        sectors.min(HOT_SECTORS)
    } else {
        sectors
    };
    let aligned = random.percent(60);
    let mut first = random.below(within - count + 1);
    if aligned {
        first -= first % SECTORS_PER_BLOCK;
    }
    let fua = if random.percent(3) { command_flags::FUA } else { 0 };
    let (command, flags) = match random.below(100) {
        0..=61 => (command::WRITE, fua),
        62..=85 => (command::READ, 0),
        86..=90 => (command::TRIM, fua),
        91..=96 => (command::WRITE_ZEROES, fua),
        _ => (command::FLUSH, 0),
    };
    let range = match command {
        command::FLUSH => Range { first: 0, count: 0 },
        // A server may leave the parts of blocks at the ends of a discard as they are.
        command::TRIM => Range {
            first: first - first % SECTORS_PER_BLOCK,
            count: count.div_ceil(SECTORS_PER_BLOCK) * SECTORS_PER_BLOCK,
        },
        _ => Range { first, count },
    };
    Request {
        command,
        flags,
        range,
    }
}
