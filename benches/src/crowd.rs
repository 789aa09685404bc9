//! A crowd of clients that take without giving, as they look to a server: idle ones, ones that send a byte now and
//! then, ones that never take an answer, and ones that connect, say nothing and are sent away.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use stillpoint_export::nbd::client::negotiate;
use stillpoint_export::nbd::wire::{RequestHeader, command};

use crate::Failure;

/// Bytes of the requests that slow clients never finish and others never fetch.
const REQUEST_BYTES: u32 = 1 << 20;
/// Reads that a client asks for and never fetches.
const UNFETCHED: u64 = 500;
/// What a slow client sends of its payload at first; then a byte each time.
const FIRST_BYTES: usize = 1000;
/// From one byte of a slow client to its next.
const SLOW_PAUSE: Duration = Duration::from_millis(100);
/// How often the crowd acts.
const TICK: Duration = Duration::from_millis(1);

/// How many of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// Connected, and silent for ever.
    pub idle: usize,
    /// They send a write of 1 MiB, a byte every 100 ms.
    pub slow: usize,
    /// They ask for 500 MiB and take nothing.
    pub non_reading: usize,
    /// They connect, say nothing and are sent away when their time is over.
    pub connecting: usize,
}

/// Clients that stay: all kinds but those that connect.
#[derive(Debug)]
pub struct Crowd {
    _idle: Vec<UnixStream>,
    slow: Vec<UnixStream>,
    _non_reading: Vec<UnixStream>,
}

impl Crowd {
    /// Connects them to an export of at least 64 MiB, and lets them begin.
    ///
    /// # Errors
    /// The server refuses one.
    pub fn gather(socket: &Path, export: &str, numbers: Numbers) -> Result<Self, Failure> {
        let connected = || -> Result<UnixStream, Failure> {
            let mut stream = UnixStream::connect(socket)?;
            negotiate(&mut stream, export)?;
            Ok(stream)
        };
        let idle = (0..numbers.idle).map(|_| connected()).collect::<Result<_, _>>()?;
        let slow = (0..numbers.slow).map(|index| -> Result<_, Failure> {
            let mut stream = connected()?;
            stream.write_all(&request(command::WRITE, index as u64))?;
            stream.write_all(&[7; FIRST_BYTES])?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        let slow = slow.collect::<Result<_, _>>()?;
        let non_reading = (0..numbers.non_reading).map(|_| -> Result<_, Failure> {
            let mut stream = connected()?;
            let requests: Vec<u8> = (0..UNFETCHED)
                .flat_map(|number| request(command::READ, number))
                .collect();
            stream.write_all(&requests)?;
            Ok(stream)
        });
        Ok(Self {
            _idle: idle,
            slow,
            _non_reading: non_reading.collect::<Result<_, _>>()?,
        })
    }

    /// Lets the crowd be a crowd for some time; meanwhile so many clients connect, evenly over the first half of it (or,
    /// with `at_once`, as fast as they can). They are gone at the end.
    ///
    /// # Errors
    /// The server hangs up on a slow client, or cannot be connected to.
    pub fn throng(
        &mut self,
        time: Duration,
        socket: &Path,
        connecting: usize,
        at_once: bool,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        let half = time / 2;
        let mut silent: Vec<UnixStream> = Vec::with_capacity(connecting);
        let mut bytes_sent = 0;
        while begun.elapsed() < time {
            let passed = begun.elapsed();
            let share = if at_once {
                1.0
            } else {
                (passed.as_secs_f64() / half.as_secs_f64()).min(1.0)
            };
            while silent.len() < (connecting as f64 * share) as usize {
                silent.push(UnixStream::connect(socket)?);
            }
            let bytes_due = self.slow.len() as f64 * passed.as_secs_f64() / SLOW_PAUSE.as_secs_f64();
            while bytes_sent < bytes_due as usize {
                let count = self.slow.len();
                send_a_byte(&mut self.slow[bytes_sent % count])?;
                bytes_sent += 1;
            }
            thread::sleep(TICK);
        }
        Ok(())
    }
}

/// The header of a request of 1 MiB somewhere in the first 64.
fn request(command: u16, number: u64) -> [u8; RequestHeader::BYTES] {
    let header = RequestHeader {
        flags: 0,
        command,
        cookie: number,
        offset_bytes: number % 64 * u64::from(REQUEST_BYTES),
        length_bytes: REQUEST_BYTES,
    };
    header.encode()
}

fn send_a_byte(stream: &mut UnixStream) -> Result<(), Failure> {
    match stream.write(&[7]) {
        Ok(_) => Ok(()),
        // The server has no memory for it now and does not listen.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(format!("a slow client lost its connection: {error}").into()),
    }
}

/// Lets this process have as many descriptors as a crowd needs.
///
/// # Errors
/// The system's hard limit is lower.
pub fn allow_descriptors(count: usize) -> Result<(), Failure> {
    let pid = std::process::id().to_string();
    let ended = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={count}:")])
        .status()
        .map_err(|error| format!("prlimit does not start: {error}"))?;
    if ended.success() {
        Ok(())
    } else {
        Err(format!("a crowd needs {count} descriptors: raise the hard limit (ulimit -Hn)").into())
    }
}
