//! A client that costs as little as one can: one thread and one ring for all of its connections, so many single blocks at
//! random always in flight on each, sent and taken in together. It never sleeps, so that what is measured is the server and
//! not the waking of a client; it says how much of its time it had something to do, and so whether it was what held a
//! server up. Replies are simple ones, as the kernel's own client has them.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use stillpoint_export::nbd::client::{ReplyHead, negotiate_with, parse_head};
use stillpoint_export::nbd::wire::{RequestHeader, SimpleReply, command};
use stillpoint_hw::ring::{Completion, Ring, RingOptions};
use stillpoint_hw::socket::{Connection, Gather, PIECES_MAX, Scatter, SocketEvent, Sockets};
use stillpoint_hw::topology::{Core, pin_this_thread};

use crate::Failure;
use crate::fio::{Measured, Target};
use crate::stats::Distribution;

/// Bytes of a request.
pub const BLOCK_BYTES: usize = 4096;
/// Requests of one connection in flight at most: header and data of each go out with one call.
pub const DEPTH_MAX: usize = PIECES_MAX / 2;
const INPUT_BYTES: usize = 256 << 10;
/// What is answered in the first part of a run does not count.
const RAMP: Duration = Duration::from_millis(100);
/// A server that says nothing for so long is dead.
const SILENCE: Duration = Duration::from_secs(30);

/// What is asked of a server.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// It writes; otherwise it reads.
    pub writes: bool,
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each, [`DEPTH_MAX`] at most.
    pub depth: usize,
    /// Bytes of the export that are worked on, from the first on.
    pub size_bytes: u64,
    /// How long it counts.
    pub time: Duration,
    /// Where the client runs; anywhere if there is none.
    pub core: Option<Core>,
}

/// Requests on their way out: headers end to end, and the data of each if they write.
struct Outgoing {
    headers: Vec<u8>,
    payload: Option<Arc<[u8]>>,
}

impl Gather for Outgoing {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let (step, payload) = match &self.payload {
            Some(payload) => (RequestHeader::BYTES, &payload[..]),
            None => (self.headers.len(), &[][..]),
        };
        let pieces = self
            .headers
            .chunks(step)
            .flat_map(move |header| [header, payload]);
        pieces.filter(|piece| !piece.is_empty())
    }
}

/// Replies on their way in.
struct Incoming {
    bytes: Vec<u8>,
    end: usize,
}

impl Scatter for Incoming {
    fn spaces(&mut self) -> impl Iterator<Item = &mut [u8]> {
        std::iter::once(&mut self.bytes[self.end..])
    }
}

struct Line {
    connection: Connection,
    /// Headers that wait for the send before them.
    headers: Vec<u8>,
    idle: Option<Outgoing>,
    begun_ns: Vec<u64>,
    in_flight: usize,
    ended: bool,
}

/// Works on a target for so long, on a thread of its own.
///
/// # Errors
/// The server refuses or fails a request, or is gone.
pub fn run(load: Load, target: &Target) -> Result<Measured, Failure> {
    assert!((1..=DEPTH_MAX).contains(&load.depth), "a depth within its limit");
    let target = target.clone();
    let worker = thread::spawn(move || {
        if let Some(core) = load.core {
            // Not pinned is no failure: it is only less exact.
            let _ = pin_this_thread(core);
        }
        Client::connect(load, &target)?.run()
    });
    worker.join().map_err(|_| "the client panicked")?
}

/// The share of what a server used over a whole run that belongs to the part that counts.
#[must_use]
pub fn counted(used_s: f64, time: Duration) -> f64 {
    used_s * time.as_secs_f64() / (time + RAMP).as_secs_f64()
}

fn connect(target: &Target) -> Result<(OwnedFd, u64), Failure> {
    let size = |export: Result<_, _>| -> Result<u64, Failure> {
        let export: stillpoint_export::nbd::client::ExportInfo = export?;
        Ok(export.size_bytes)
    };
    match target {
        Target::Nbd { socket, export } => {
            let mut stream = UnixStream::connect(socket)?;
            let size_bytes = size(negotiate_with(&mut stream, export, false))?;
            Ok((stream.into(), size_bytes))
        }
        Target::NbdTcp { address, export } => {
            let mut stream = tcp(*address)?;
            let size_bytes = size(negotiate_with(&mut stream, export, false))?;
            Ok((stream.into(), size_bytes))
        }
        Target::File { path, .. } => Err(format!("{} is no NBD server", path.display()).into()),
    }
}

fn tcp(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

struct Client {
    load: Load,
    ring: Ring,
    sockets: Sockets<Outgoing, Incoming>,
    lines: Vec<Line>,
    payload: Option<Arc<[u8]>>,
    blocks: u64,
    random: u64,
    begun: Instant,
    now_ns: u64,
    stopping: bool,
    latencies_ns: Vec<u64>,
}

impl Client {
    fn connect(load: Load, target: &Target) -> Result<Self, Failure> {
        let mut lines = Vec::new();
        let mut blocks = load.size_bytes / BLOCK_BYTES as u64;
        for _ in 0..load.connections {
            let (socket, size_bytes) = connect(target)?;
            blocks = blocks.min(size_bytes / BLOCK_BYTES as u64);
            lines.push(Line {
                connection: Connection::new(socket),
                headers: Vec::new(),
                idle: None,
                begun_ns: vec![0; load.depth],
                in_flight: 0,
                ended: false,
            });
        }
        Ok(Self {
            load,
            ring: Ring::new(RingOptions::default())?,
            sockets: Sockets::new(2 * load.connections),
            lines,
            payload: load.writes.then(|| vec![0x5A; BLOCK_BYTES].into()),
            blocks,
            random: 1,
            begun: Instant::now(),
            now_ns: 0,
            stopping: false,
            latencies_ns: Vec::new(),
        })
    }

    fn elapsed_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    fn run(mut self) -> Result<Measured, Failure> {
        let ramp_ns = RAMP.as_nanos() as u64;
        let end_ns = ramp_ns + self.load.time.as_nanos() as u64;
        self.now_ns = self.elapsed_ns();
        for place in 0..self.lines.len() {
            let payload = self.payload.clone();
            self.lines[place].idle = Some(Outgoing {
                headers: Vec::new(),
                payload,
            });
            for slot in 0..self.load.depth {
                self.ask(place, slot);
            }
            self.send(place);
            let incoming = Incoming {
                bytes: vec![0; INPUT_BYTES],
                end: 0,
            };
            self.receive(place, incoming);
        }
        let (mut completions, mut idle_ns, mut heard_ns) = (Vec::new(), 0, self.now_ns);
        while self.lines.iter().any(|line| !line.ended) {
            let (before_ns, enters) = (self.now_ns, self.ring.figures().enters);
            self.ring.submit()?;
            self.ring.reap(&mut completions);
            self.now_ns = self.elapsed_ns();
            self.stopping |= self.now_ns >= end_ns;
            if !completions.is_empty() {
                heard_ns = self.now_ns;
                self.take_in(&mut completions, ramp_ns)?;
                self.now_ns = self.elapsed_ns();
            } else if self.now_ns - heard_ns > SILENCE.as_nanos() as u64 {
                return Err(format!("the server has said nothing for {SILENCE:?}").into());
            } else if self.ring.figures().enters == enters && self.now_ns >= ramp_ns && !self.stopping {
                idle_ns += self.now_ns - before_ns;
            }
        }
        Ok(self.measured(idle_ns))
    }

    fn measured(&self, idle_ns: u64) -> Measured {
        let seconds = self.load.time.as_secs_f64();
        let latency_us = Distribution::of(self.latencies_ns.iter().copied(), 1e3);
        let iops = latency_us.count as f64 / seconds;
        Measured {
            requests: latency_us.count as u64,
            iops,
            bytes_per_second: iops * BLOCK_BYTES as f64,
            p50_us: latency_us.p50,
            p99_us: latency_us.p99,
            p99_9_us: latency_us.p99_9,
            max_us: latency_us.max,
            client_cpu_s: seconds - idle_ns as f64 / 1e9,
        }
    }

    /// Adds a request to those that go out next.
    fn ask(&mut self, place: usize, slot: usize) {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let header = RequestHeader {
            flags: 0,
            command: if self.load.writes {
                command::WRITE
            } else {
                command::READ
            },
            cookie: slot as u64,
            offset_bytes: (self.random >> 24) % self.blocks * BLOCK_BYTES as u64,
            length_bytes: BLOCK_BYTES as u32,
        };
        let line = &mut self.lines[place];
        line.headers.extend_from_slice(&header.encode());
        line.begun_ns[slot] = self.now_ns;
        line.in_flight += 1;
    }

    /// Sends what waits, if nothing is being sent.
    fn send(&mut self, place: usize) {
        let line = &mut self.lines[place];
        if line.headers.is_empty() {
            return;
        }
        let Some(mut outgoing) = line.idle.take() else {
            return;
        };
        outgoing.headers.clear();
        std::mem::swap(&mut outgoing.headers, &mut line.headers);
        let sent = self
            .sockets
            .send(&mut self.ring, &line.connection, place as u32, outgoing);
        assert!(sent.is_ok(), "two places for each connection");
    }

    fn receive(&mut self, place: usize, incoming: Incoming) {
        let connection = &self.lines[place].connection;
        let begun = self
            .sockets
            .receive(&mut self.ring, connection, place as u32, incoming);
        assert!(begun.is_ok(), "two places for each connection");
    }

    fn take_in(&mut self, completions: &mut Vec<Completion>, from_ns: u64) -> Result<(), Failure> {
        for completion in completions.drain(..) {
            match self.sockets.complete(completion) {
                Some(SocketEvent::Sent { key, memory, result }) => {
                    let wanted: usize = memory.pieces().map(<[u8]>::len).sum();
                    if result? != wanted {
                        return Err("the server has hung up".into());
                    }
                    self.lines[key as usize].idle = Some(memory);
                    self.send(key as usize);
                }
                Some(SocketEvent::Received { key, memory, result }) => {
                    self.received(key as usize, memory, result?, from_ns)?;
                }
                Some(SocketEvent::Accepted { .. }) | None => unreachable!("nobody listens here"),
            }
        }
        Ok(())
    }

    fn received(
        &mut self,
        place: usize,
        mut incoming: Incoming,
        count: usize,
        from_ns: u64,
    ) -> Result<(), Failure> {
        incoming.end += count;
        let mut start = 0;
        while let Some((ReplyHead::Simple(reply), _)) = parse_head(&incoming.bytes[start..incoming.end])? {
            let data = if self.load.writes { 0 } else { BLOCK_BYTES };
            if reply.error != 0 {
                return Err(format!("a request failed: error {}", reply.error).into());
            }
            if incoming.end - start < SimpleReply::BYTES + data {
                break;
            }
            start += SimpleReply::BYTES + data;
            let slot = reply.cookie as usize;
            let line = &mut self.lines[place];
            line.in_flight -= 1;
            if self.now_ns >= from_ns && !self.stopping {
                self.latencies_ns.push(self.now_ns - line.begun_ns[slot]);
            }
            if !self.stopping {
                self.ask(place, slot);
            }
        }
        incoming.bytes.copy_within(start..incoming.end, 0);
        incoming.end -= start;
        self.send(place);
        let line = &mut self.lines[place];
        if self.stopping && line.in_flight == 0 {
            line.connection.shut_down();
            line.ended = true;
        } else if count == 0 {
            return Err("the server has hung up".into());
        } else {
            self.receive(place, incoming);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// A server of 1 MiB without any data behind it, for as many clients as come.
    fn serve(listener: &UnixListener) {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                greet(&mut stream);
                let (mut header, mut data) = ([0; RequestHeader::BYTES], [7; BLOCK_BYTES]);
                while stream.read_exact(&mut header).is_ok() {
                    let header = RequestHeader::decode(&header).expect("a request");
                    let reply = SimpleReply {
                        error: 0,
                        cookie: header.cookie,
                    };
                    if header.command == command::WRITE {
                        stream.read_exact(&mut data).expect("its data");
                        assert_eq!(data, [0x5A; BLOCK_BYTES]);
                    }
                    stream.write_all(&reply.encode()).expect("it listens");
                    if header.command == command::READ {
                        stream.write_all(&data).expect("it listens");
                    }
                }
            });
        }
    }

    /// The greeting, and `GO` with 1 MiB.
    fn greet(stream: &mut UnixStream) {
        let mut greeting = b"NBDMAGICIHAVEOPT".to_vec();
        greeting.extend_from_slice(&3u16.to_be_bytes());
        stream.write_all(&greeting).expect("it listens");
        stream.read_exact(&mut [0; 4]).expect("flags");
        let mut option = [0; 16];
        stream.read_exact(&mut option).expect("an option");
        let length = u32::from_be_bytes(option[12..].try_into().expect("four bytes"));
        stream
            .read_exact(&mut vec![0; length as usize])
            .expect("its data");
        let reply = |kind: u32, data: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            bytes.extend_from_slice(&option[8..12]);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
            bytes
        };
        let mut info = vec![0, 0];
        info.extend_from_slice(&(1u64 << 20).to_be_bytes());
        info.extend_from_slice(&1u16.to_be_bytes());
        stream.write_all(&reply(3, &info)).expect("it listens");
        stream.write_all(&reply(1, &[])).expect("it listens");
    }

    #[test]
    fn it_keeps_all_connections_busy_and_stops_in_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        thread::spawn(move || serve(&listener));
        let target = Target::Nbd {
            socket,
            export: String::new(),
        };
        for writes in [false, true] {
            let load = Load {
                writes,
                connections: 3,
                depth: 5,
                size_bytes: 1 << 30,
                time: Duration::from_millis(50),
                core: None,
            };
            let measured = run(load, &target).expect("it runs");
            assert!(measured.requests > 0 && measured.max_us >= measured.p50_us);
            assert!(measured.client_cpu_s <= 0.05, "{measured:?}");
        }
    }
}
