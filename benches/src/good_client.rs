//! A client that does nothing wrong, at work on a thread of its own for as long as the bench runs, and how long its
//! requests take in the windows that are looked at.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use stillpoint_export::nbd::client::Connection;

use crate::Failure;

const BLOCK_BYTES: u32 = 4096;
/// Nobody is looking.
const NO_WINDOW: usize = usize::MAX;

/// See the module.
#[derive(Debug)]
pub struct GoodClient {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Vec<Vec<u64>>, Failure>>,
}

#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    /// Which window is open, or [`NO_WINDOW`].
    window: AtomicUsize,
}

impl GoodClient {
    /// Connects to an export, whose blocks were all written before, and reads and writes single blocks of it at random,
    /// one after the other without a pause.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn start(socket: &Path, export: &str, windows: usize) -> Result<Self, Failure> {
        let connection = Connection::open(UnixStream::connect(socket)?, export)?;
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            window: AtomicUsize::new(NO_WINDOW),
        });
        let told = Arc::clone(&shared);
        let thread = thread::spawn(move || work(connection, &told, windows));
        Ok(Self { shared, thread })
    }

    /// From now on requests count for this window.
    pub fn open_window(&self, window: usize) {
        self.shared.window.store(window, Ordering::SeqCst);
    }

    /// From now on they count for none.
    pub fn close_window(&self) {
        self.shared.window.store(NO_WINDOW, Ordering::SeqCst);
    }

    /// Ends it; gives for each window how many nanoseconds each request took.
    ///
    /// # Errors
    /// A request failed.
    pub fn finish(self) -> Result<Vec<Vec<u64>>, Failure> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let ended = self.thread.join().map_err(|_| "the good client panicked")?;
        ended.map_err(|error| format!("the good client: {error}").into())
    }
}

fn work(
    mut connection: Connection<UnixStream>,
    shared: &Shared,
    windows: usize,
) -> Result<Vec<Vec<u64>>, Failure> {
    let blocks = connection.export().size_bytes / u64::from(BLOCK_BYTES);
    let mut latencies_ns = vec![Vec::new(); windows];
    let bytes = vec![0x5A; BLOCK_BYTES as usize];
    let mut random: u64 = 1;
    while !shared.stopping.load(Ordering::SeqCst) {
        // Knuth's MMIX generator; its high bits are the good ones.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let offset_bytes = (random >> 32) % blocks * u64::from(BLOCK_BYTES);
        let window = shared.window.load(Ordering::SeqCst);
        let begun = Instant::now();
        if random >> 63 == 0 {
            let data = connection.read(offset_bytes, BLOCK_BYTES)?;
            connection.recycle(data);
        } else {
            connection.write(offset_bytes, &bytes)?;
        }
        let took_ns = begun.elapsed().as_nanos() as u64;
        // A request that begins in one window and ends in another belongs to none.
        if window != NO_WINDOW && window == shared.window.load(Ordering::SeqCst) {
            latencies_ns[window].push(took_ns);
        }
    }
    Ok(latencies_ns)
}
