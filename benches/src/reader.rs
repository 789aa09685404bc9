//! A client that reads single blocks at random over one NBD connection, so many always in flight.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use stillpoint_export::nbd::client::Connection;

use crate::Failure;

const BLOCK_BYTES: u32 = 4096;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Reads {
    /// Reads that were answered with data, per second.
    pub per_second: f64,
    /// Reads that were answered with an error, per second.
    pub errors_per_second: f64,
}

/// Reads for so long.
///
/// # Errors
/// The connection broke.
pub fn read_at_random(
    socket: &Path,
    export: &str,
    depth: usize,
    time: Duration,
    seed: u64,
) -> Result<Reads, Failure> {
    let mut connection = Connection::open(UnixStream::connect(socket)?, export)?;
    let blocks = connection.export().size_bytes / u64::from(BLOCK_BYTES);
    let mut random = seed | 1;
    let (mut good, mut bad) = (0u64, 0u64);
    let begun = Instant::now();
    loop {
        let over = begun.elapsed() >= time;
        while !over && connection.in_flight() < depth {
            // Knuth's MMIX generator; its high bits are the good ones.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            connection.send_read((random >> 24) % blocks * u64::from(BLOCK_BYTES), BLOCK_BYTES)?;
        }
        let Some(mut done) = connection.wait()? else {
            break;
        };
        // All that are there before anything new is sent.
        loop {
            match done.result {
                Ok(()) => good += 1,
                Err(_) => bad += 1,
            }
            connection.recycle(done.data);
            match connection.take_completed()? {
                Some(next) => done = next,
                None => break,
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Reads {
        per_second: good as f64 / seconds,
        errors_per_second: bad as f64 / seconds,
    })
}
