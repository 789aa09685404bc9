//! A client that writes single blocks at random, over one NBD connection to any server: so many always in flight, or so many
//! per second whether or not the server keeps up. In the second form a request counts from the moment it was due, so that a
//! server that stops for a while is charged for everything that had to wait.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use stillpoint_export::nbd::client::{ReplyHead, negotiate_with, parse_head};
use stillpoint_export::nbd::wire::{RequestHeader, SimpleReply, command};

use crate::Failure;

/// Bytes of a request.
pub const BLOCK_BYTES: usize = 4096;
/// Requests that are sent at once at most.
const TOGETHER: usize = 64;
/// What is due and not sent so long after the end is given up, and counts as having taken until then.
const GRACE: Duration = Duration::from_secs(2);
/// A server that says nothing for so long is dead.
const SILENCE: Duration = Duration::from_secs(60);
/// A writer never rests for longer, so that it hears when it is to end.
const NAP_MAX: Duration = Duration::from_millis(20);
const RUNNING: u64 = u64::MAX;
/// Cookie of the flush behind the last write.
const LAST: u64 = u64::MAX;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// So many per second on average, at random, as if from very many clients.
    Rate(f64),
    /// So many are always in flight.
    Depth(u32),
}

/// A request, in nanoseconds since the writer began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was due, or sent.
    pub begun_ns: u64,
    /// How long it took from then to its answer.
    pub took_ns: u64,
}

#[derive(Debug)]
struct Shared {
    begun: Instant,
    /// When it was told to end, or [`RUNNING`].
    end_ns: AtomicU64,
    /// Writes that were sent, once the last one was.
    sent: AtomicU64,
}

impl Shared {
    fn now_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }
}

/// A writer at work on threads of its own.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<Result<Vec<Sample>, Failure>>>,
    receiver: JoinHandle<Result<Vec<Sample>, Failure>>,
}

impl Writer {
    /// Connects to an export and begins.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn start(socket: &Path, export: &str, arrivals: Arrivals) -> Result<Self, Failure> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let blocks = negotiate_with(&mut stream, export, false)?.size_bytes / BLOCK_BYTES as u64;
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            end_ns: AtomicU64::new(RUNNING),
            sent: AtomicU64::new(0),
        });
        let requests = Requests::new(stream.try_clone()?, blocks);
        let (input, told) = (BufReader::with_capacity(64 << 10, stream), Arc::clone(&shared));
        let (sender, receiver) = match arrivals {
            Arrivals::Depth(depth) => {
                let receiver = thread::spawn(move || keep_in_flight(requests, input, &told, depth));
                (None, receiver)
            }
            Arrivals::Rate(rate) => {
                let receiver = thread::spawn(move || receive(input, &told));
                let told = Arc::clone(&shared);
                (Some(thread::spawn(move || send(requests, &told, rate))), receiver)
            }
        };
        Ok(Self {
            shared,
            sender,
            receiver,
        })
    }

    /// Nanoseconds since it began.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.shared.now_ns()
    }

    /// Ends it and waits for its answers; gives every request.
    ///
    /// # Errors
    /// A request failed, or the connection.
    pub fn finish(self) -> Result<Vec<Sample>, Failure> {
        self.shared.end_ns.store(self.shared.now_ns(), Ordering::SeqCst);
        let mut samples = Vec::new();
        if let Some(sender) = self.sender {
            samples = sender.join().map_err(|_| "the writer panicked")??;
        }
        let received = self.receiver.join().map_err(|_| "the writer panicked")?;
        samples.extend(received.map_err(|error| format!("the writer: {error}"))?);
        Ok(samples)
    }
}

/// Requests on their way into the socket.
struct Requests {
    stream: UnixStream,
    blocks: u64,
    random: u64,
    bytes: Vec<u8>,
}

impl Requests {
    fn new(stream: UnixStream, blocks: u64) -> Self {
        Self {
            stream,
            blocks,
            random: 1,
            bytes: Vec::with_capacity(TOGETHER * (RequestHeader::BYTES + BLOCK_BYTES)),
        }
    }

    fn next(&mut self) -> u64 {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.random >> 32
    }

    /// A number between 0 and 1, 0 left out.
    fn fraction(&mut self) -> f64 {
        (self.next() + 1) as f64 / (1u64 << 32) as f64
    }

    /// One more; the server gives the cookie back.
    fn add(&mut self, begun_ns: u64) {
        let block = self.next() % self.blocks;
        let header = RequestHeader {
            flags: 0,
            command: command::WRITE,
            cookie: begun_ns,
            offset_bytes: block * BLOCK_BYTES as u64,
            length_bytes: BLOCK_BYTES as u32,
        };
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.resize(self.bytes.len() + BLOCK_BYTES, block as u8);
    }

    /// Says to the receiver that no more comes.
    fn add_last(&mut self) {
        let header = RequestHeader {
            flags: 0,
            command: command::FLUSH,
            cookie: LAST,
            offset_bytes: 0,
            length_bytes: 0,
        };
        self.bytes.extend_from_slice(&header.encode());
    }

    fn push(&mut self) -> Result<(), Failure> {
        self.stream.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}

/// Sends what is due; gives what was due and never sent.
fn send(mut requests: Requests, shared: &Shared, rate: f64) -> Result<Vec<Sample>, Failure> {
    sharp_timers();
    let mut due_ns = 0.0;
    let (mut sent, mut unsent) = (0, Vec::new());
    loop {
        let (now, end) = (shared.now_ns(), shared.end_ns.load(Ordering::SeqCst));
        if due_ns as u64 >= end {
            shared.sent.store(sent, Ordering::SeqCst);
            requests.add_last();
            requests.push()?;
            return Ok(unsent);
        }
        let mut count = 0;
        while (due_ns as u64) < now.min(end) && count < TOGETHER {
            if now > end.saturating_add(GRACE.as_nanos() as u64) {
                unsent.push(Sample {
                    begun_ns: due_ns as u64,
                    took_ns: now - due_ns as u64,
                });
            } else {
                requests.add(due_ns as u64);
                count += 1;
            }
            due_ns -= requests.fraction().ln() * 1e9 / rate;
        }
        if count > 0 {
            sent += count as u64;
            requests.push()?;
        } else {
            let until = Duration::from_nanos((due_ns as u64).saturating_sub(shared.now_ns()));
            thread::sleep(until.min(NAP_MAX));
        }
    }
}

/// Lets this thread sleep to the microsecond, where the system allows it.
fn sharp_timers() {
    if let Ok(link) = std::fs::read_link("/proc/thread-self")
        && let Some(thread) = link.file_name()
    {
        let path = Path::new("/proc").join(thread).join("timerslack_ns");
        // Without it everybody's requests are sent some 50 us late, which is charged to all alike.
        let _ = std::fs::write(path, "1");
    }
}

/// Takes the answers until that of the last request, and of all before it, are there.
fn receive(mut input: BufReader<UnixStream>, shared: &Shared) -> Result<Vec<Sample>, Failure> {
    let mut samples = Vec::new();
    let mut is_last_there = false;
    while !is_last_there || (samples.len() as u64) < shared.sent.load(Ordering::SeqCst) {
        let sample = reply(&mut input, shared)?;
        if sample.begun_ns == LAST {
            is_last_there = true;
        } else {
            samples.push(sample);
        }
    }
    Ok(samples)
}

fn keep_in_flight(
    mut requests: Requests,
    mut input: BufReader<UnixStream>,
    shared: &Shared,
    depth: u32,
) -> Result<Vec<Sample>, Failure> {
    let mut samples = Vec::new();
    let (mut in_flight, mut ending) = (0, false);
    loop {
        while !ending && in_flight < depth {
            requests.add(shared.now_ns());
            in_flight += 1;
        }
        requests.push()?;
        if in_flight == 0 {
            return Ok(samples);
        }
        // All answers that are there, then as many new requests.
        loop {
            samples.push(reply(&mut input, shared)?);
            in_flight -= 1;
            if in_flight == 0 || input.buffer().len() < SimpleReply::BYTES {
                break;
            }
        }
        ending = shared.end_ns.load(Ordering::SeqCst) != RUNNING;
    }
}

fn reply(input: &mut BufReader<UnixStream>, shared: &Shared) -> Result<Sample, Failure> {
    let mut bytes = [0; SimpleReply::BYTES];
    input.fill_buf()?;
    input.read_exact(&mut bytes)?;
    let Some((ReplyHead::Simple(reply), _)) = parse_head(&bytes)? else {
        return Err("a structured reply that nobody asked for".into());
    };
    if reply.error != 0 {
        return Err(format!("a write failed: error {}", reply.error).into());
    }
    Ok(Sample {
        begun_ns: reply.cookie,
        took_ns: shared.now_ns().saturating_sub(reply.cookie),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers everything; the first request only after a pause.
    fn serve(stream: &mut UnixStream, pause: Duration) {
        let mut pause = Some(pause);
        let mut header = [0; RequestHeader::BYTES];
        while stream.read_exact(&mut header).is_ok() {
            let header = RequestHeader::decode(&header).expect("a request");
            if header.command == command::WRITE {
                stream.read_exact(&mut [0; BLOCK_BYTES]).expect("its data");
            }
            thread::sleep(pause.take().unwrap_or_default());
            let reply = SimpleReply {
                error: 0,
                cookie: header.cookie,
            };
            stream.write_all(&reply.encode()).expect("it listens");
        }
    }

    fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            begun: Instant::now(),
            end_ns: AtomicU64::new(RUNNING),
            sent: AtomicU64::new(0),
        })
    }

    #[test]
    fn a_pause_of_the_server_is_charged_to_all_that_were_due() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let pause = Duration::from_millis(300);
        let server = thread::spawn(move || serve(&mut theirs, pause));
        let shared = shared();
        let told = Arc::clone(&shared);
        let input = BufReader::new(ours.try_clone().expect("a copy"));
        let receiver = thread::spawn(move || receive(input, &told).map_err(|error| error.to_string()));
        shared.end_ns.store(pause.as_nanos() as u64, Ordering::SeqCst);
        let requests = Requests::new(ours.try_clone().expect("a copy"), 100);
        let unsent = send(requests, &shared, 1000.0).expect("sent");
        let samples = receiver.join().expect("no panic").expect("all answered");
        assert!(unsent.is_empty());
        assert!(
            (150..600).contains(&samples.len()),
            "{} of about 300",
            samples.len()
        );
        // Due while the server did nothing, so they waited for the rest of that time at least.
        let first = samples[0].begun_ns;
        for sample in &samples {
            let rest = (first + pause.as_nanos() as u64).saturating_sub(sample.begun_ns);
            assert!(sample.took_ns >= rest, "{sample:?}");
        }
        drop(ours);
        server.join().expect("no panic");
    }

    #[test]
    fn so_many_are_in_flight_and_all_are_answered() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let server = thread::spawn(move || serve(&mut theirs, Duration::ZERO));
        let shared = shared();
        shared.end_ns.store(0, Ordering::SeqCst);
        let requests = Requests::new(ours.try_clone().expect("a copy"), 100);
        let input = BufReader::new(ours);
        // Told to end before it began, it still answers for the first lot.
        let samples = keep_in_flight(requests, input, &shared, 8).expect("all answered");
        assert_eq!(samples.len(), 8);
        server.join().expect("no panic");
    }
}
