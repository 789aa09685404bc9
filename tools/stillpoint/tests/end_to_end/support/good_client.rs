//! A client that does nothing wrong, and checks that it is served whatever the others do: writes and reads of its own
//! volume, every byte of every answer compared with what it wrote.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::nbd::Connection;
use stillpoint_simulator::random::Random;

const BLOCK_BYTES: usize = 4096;
/// Blocks of one request at most.
const BLOCKS_MAX: u64 = 8;
/// How long a request may take before it hangs: not a measure of anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Every so many requests a flush.
const FLUSH_EVERY: u64 = 64;

/// A good client at work on a thread of its own.
pub struct GoodClient {
    stopping: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: JoinHandle<Result<Served, String>>,
}

/// What a good client was served.
#[derive(Debug, Default)]
pub struct Served {
    /// Requests, none of which failed.
    pub requests: u64,
    latencies_ns: Vec<u64>,
}

impl Served {
    /// The latency that this share of the requests did not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies_ns.clone();
        sorted.sort_unstable();
        let place = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        Duration::from_nanos(sorted.get(place).copied().unwrap_or(0))
    }

    /// The figures in a line.
    pub fn line(&self) -> String {
        format!(
            "{} requests, none failed; p50 {:.0?}, p99 {:.0?}, max {:.0?}",
            self.requests,
            self.quantile(0.5),
            self.quantile(0.99),
            self.quantile(1.0)
        )
    }
}

impl GoodClient {
    /// Connects to an export that is all zeros, and starts.
    pub fn start(socket: &Path, export: &str, seed: u64) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let (told, counted) = (stopping.clone(), served.clone());
        let (socket, export): (PathBuf, String) = (socket.to_owned(), export.to_owned());
        let thread = thread::spawn(move || work(&socket, &export, seed, &told, &counted));
        Self {
            stopping,
            served,
            thread,
        }
    }

    /// Requests served so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    /// Waits until so many more requests were served, or until the client gave up ([`Self::finish`] tells).
    ///
    /// # Panics
    /// If not one is served for so long that it hangs.
    pub fn wait_for(&self, more: u64) {
        let wanted = self.served() + more;
        let (mut last, mut since) = (self.served(), Instant::now());
        while last < wanted && !self.thread.is_finished() {
            assert!(
                since.elapsed() < PATIENCE,
                "the good client was not served for {PATIENCE:?}"
            );
            thread::sleep(Duration::from_millis(1));
            if self.served() > last {
                (last, since) = (self.served(), Instant::now());
            }
        }
    }

    /// Reads everything once more, and ends.
    ///
    /// # Panics
    /// If anything failed or was not what had been written.
    pub fn finish(self) -> Served {
        self.stopping.store(true, Ordering::SeqCst);
        let served = self.thread.join().expect("a client does not panic");
        served.unwrap_or_else(|error| panic!("the good client: {error}"))
    }
}

fn work(
    socket: &Path,
    export: &str,
    seed: u64,
    stopping: &AtomicBool,
    count: &AtomicU64,
) -> Result<Served, String> {
    let mut connection = Connection::open(socket, export).map_err(|error| error.to_string())?;
    let mut mirror = vec![0; connection.export.size_bytes as usize];
    let mut random = Random::new(seed);
    let mut served = Served::default();
    while !stopping.load(Ordering::SeqCst) {
        let (first, blocks) = range(&mut random, mirror.len());
        let (start, end) = (first * BLOCK_BYTES, (first + blocks) * BLOCK_BYTES);
        let began = Instant::now();
        let done = if served.requests % FLUSH_EVERY == FLUSH_EVERY - 1 {
            connection.flush()
        } else if random.below(2) == 0 {
            random_bytes(&mut random, &mut mirror[start..end]);
            connection.write(start as u64, &mirror[start..end], false)
        } else {
            let read = connection.read(start as u64, end - start);
            if let Ok(bytes) = &read
                && *bytes != mirror[start..end]
            {
                return Err(format!("bytes {start}..{end} are not what was written"));
            }
            read.map(drop)
        };
        done.map_err(|error| format!("request {}: {error}", served.requests))?;
        served.latencies_ns.push(began.elapsed().as_nanos() as u64);
        served.requests += 1;
        count.store(served.requests, Ordering::SeqCst);
    }
    let all = connection.read_all().map_err(|error| error.to_string())?;
    if all != mirror {
        return Err("the volume is not what was written".to_owned());
    }
    Ok(served)
}

fn range(random: &mut Random, bytes: usize) -> (usize, usize) {
    let blocks = (bytes / BLOCK_BYTES) as u64;
    let count = 1 + random.below(BLOCKS_MAX.min(blocks));
    (random.below(blocks - count + 1) as usize, count as usize)
}

fn random_bytes(random: &mut Random, bytes: &mut [u8]) {
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&random.bits().to_le_bytes());
    }
}
