//! The data plane in this process as a target: [`crate::inside`].

use std::fmt;
use std::sync::Arc;

use stillpoint_hw::buffers::ARENA_BYTES_DEFAULT;
use stillpoint_processor::ports::{Buffer, BufferPool};
use stillpoint_processor::{BLOCK_BYTES, RequestKind, ShardAnswer, ShardRequest, ShareBlock, Token};

use super::{Target, TargetError};
use crate::inside::{Inside, Medium, Station};
use crate::job::Job;
use crate::schedule::{Kind, Request};

/// The token of a flush that the target makes by itself.
const OWN_FLUSH: Token = Token(u64::MAX);
/// Bytes of a request when the volume is filled, and how many are in flight.
const FILL_BYTES: u32 = 1 << 20;
const FILL_REQUESTS: u32 = 4;

/// A request in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    kind: Kind,
    skip_bytes: u32,
    length_bytes: u32,
}

/// One thread's way to its shard.
pub struct InsideTarget<D: Medium> {
    inside: Arc<Inside>,
    /// `None` only while it is dropped.
    station: Option<Station<D>>,
    flights: Vec<Option<Flight>>,
    /// Writes are durable when they are answered.
    durable_writes: bool,
    /// All writes write the same: buffers that hold it already need not be filled again.
    same_payload: bool,
    filled: Vec<Buffer>,
    next_flush_ns: u64,
}

impl<D: Medium> fmt::Debug for InsideTarget<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InsideTarget").finish_non_exhaustive()
    }
}

/// Memory for the buffers of `in_flight` requests of at most `length_bytes`, in flight or kept filled, beside what a
/// processor has anyway.
#[must_use]
pub fn buffer_bytes(in_flight: usize, length_bytes: u32) -> usize {
    ARENA_BYTES_DEFAULT + 2 * in_flight * (length_bytes as usize + BLOCK_BYTES).next_power_of_two()
}

impl<D: Medium> InsideTarget<D> {
    /// For a job that was checked.
    #[must_use]
    pub fn new(inside: &Arc<Inside>, station: Station<D>, job: &Job) -> Self {
        Self {
            inside: Arc::clone(inside),
            flights: vec![None; job.in_flight_max()],
            durable_writes: job.durable_writes,
            same_payload: !job.verify && job.lengths.len() == 1,
            filled: Vec::with_capacity(job.in_flight_max()),
            next_flush_ns: station.now_ns(),
            station: Some(station),
        }
    }

    fn request(&self, flight: Flight, offset_bytes: u64) -> ShardRequest {
        let station = self.station.as_ref().expect("not dropped");
        let part_bytes = self.inside.part_bytes();
        let length_bytes = u64::from(flight.length_bytes);
        // Its own part of the volume; what would reach beyond its end begins earlier.
        let at_bytes = offset_bytes % part_bytes;
        let at_bytes = at_bytes.min(part_bytes - length_bytes);
        let block_bytes = BLOCK_BYTES as u64;
        let first = at_bytes / block_bytes;
        let blocks = (at_bytes + length_bytes).div_ceil(block_bytes) - first;
        ShardRequest {
            token: Token(0),
            shard: station.shard(),
            view: self.inside.view(),
            kind: RequestKind::Read,
            first: ShareBlock(first),
            blocks: blocks as u32,
            skip_bytes: flight.skip_bytes,
            length_bytes: flight.length_bytes,
            buffer: None,
            since_ns: station.now_ns(),
        }
    }

    /// Memory for a write, filled with what it writes.
    fn filled(&mut self, request: &ShardRequest, payload: &[u8]) -> Result<Buffer, TargetError> {
        let whole = request.skip_bytes == 0 && payload.len() == request.blocks as usize * BLOCK_BYTES;
        if self.same_payload
            && whole
            && let Some(buffer) = self.filled.pop()
        {
            return Ok(buffer);
        }
        let mut buffer = self.buffer(request)?;
        buffer.bytes_mut()[request.skip_bytes as usize..][..payload.len()].copy_from_slice(payload);
        Ok(buffer)
    }

    fn buffer(&mut self, request: &ShardRequest) -> Result<Buffer, TargetError> {
        let station = self.station.as_mut().expect("not dropped");
        let buffer = station.buffer(request.blocks as usize * BLOCK_BYTES);
        buffer.ok_or_else(|| TargetError::Other("the buffers are used up: give a smaller --iodepth".into()))
    }

    /// A flush at the times when this pool flushes by itself.
    fn flush_by_itself(&mut self) {
        let station = self.station.as_mut().expect("not dropped");
        if let Some(every_ns) = self.inside.flush_every_ns
            && station.now_ns() >= self.next_flush_ns
        {
            let since_ns = station.now_ns();
            self.next_flush_ns = since_ns + every_ns;
            station.submit(ShardRequest {
                token: OWN_FLUSH,
                shard: station.shard(),
                view: self.inside.view(),
                kind: RequestKind::Flush,
                first: ShareBlock(0),
                blocks: 0,
                skip_bytes: 0,
                length_bytes: 0,
                buffer: None,
                since_ns,
            });
        }
    }

    /// Writes the part of this thread from end to end.
    ///
    /// # Errors
    /// A write fails.
    pub fn fill(mut self) -> Result<(), TargetError> {
        let mut payload = vec![0; FILL_BYTES as usize];
        crate::content::fill(&mut payload, 0, 0, 1);
        let mut free: Vec<u32> = (0..FILL_REQUESTS.min(self.flights.len() as u32)).collect();
        let all = free.len();
        let mut places = (0..self.inside.part_bytes()).step_by(FILL_BYTES as usize);
        let mut failed = None;
        loop {
            while let Some(number) = free.pop() {
                let Some(offset_bytes) = places.next() else {
                    free.push(number);
                    break;
                };
                let request = Request {
                    kind: Kind::Write,
                    offset_bytes,
                    length_bytes: FILL_BYTES,
                };
                self.start(number, request, &payload)?;
            }
            if free.len() == all {
                return failed.map_or(Ok(()), |error| Err(TargetError::Other(error)));
            }
            self.poll(|number, result, _| {
                free.push(number);
                failed = failed.take().or(result.err());
            })?;
        }
    }
}

impl<D: Medium> Target for InsideTarget<D> {
    fn start(&mut self, number: u32, request: Request, payload: &[u8]) -> Result<(), TargetError> {
        let aligned = |bytes: u64| bytes.is_multiple_of(BLOCK_BYTES as u64);
        let flight = Flight {
            kind: request.kind,
            skip_bytes: (request.offset_bytes % BLOCK_BYTES as u64) as u32,
            length_bytes: request.length_bytes,
        };
        let mut asked = self.request(flight, request.offset_bytes);
        asked.token = Token(u64::from(number));
        match request.kind {
            Kind::Read => asked.buffer = Some(self.buffer(&asked)?),
            Kind::Write => {
                asked.kind = RequestKind::Write {
                    fua: self.durable_writes,
                };
                asked.buffer = Some(self.filled(&asked, payload)?);
            }
            Kind::Discard if !aligned(request.offset_bytes) || !aligned(request.length_bytes.into()) => {
                return Err(TargetError::Other(format!(
                    "a discard of {} bytes at {}: shards discard whole blocks of {BLOCK_BYTES} bytes",
                    request.length_bytes, request.offset_bytes
                )));
            }
            Kind::Discard => asked.kind = RequestKind::Discard { fua: false },
            Kind::Flush => {
                asked.kind = RequestKind::Flush;
                asked.blocks = 0;
            }
        }
        self.flights[number as usize] = Some(flight);
        self.station.as_mut().expect("not dropped").submit(asked);
        Ok(())
    }

    fn poll(&mut self, mut ended: impl FnMut(u32, Result<(), String>, &[u8])) -> Result<(), TargetError> {
        self.flush_by_itself();
        let Self {
            station,
            flights,
            filled,
            same_payload,
            ..
        } = self;
        let station = station.as_mut().expect("not dropped");
        let answered = |answer: ShardAnswer, buffers: &mut stillpoint_hw::buffers::ProcessorBuffers| {
            if answer.token == OWN_FLUSH {
                return;
            }
            let number = answer.token.0 as u32;
            let flight = flights[number as usize].take().expect("it was in flight");
            let result = answer.result.map_err(|error| error.to_string());
            let data = match (&answer.buffer, flight.kind) {
                (Some(buffer), Kind::Read) => {
                    &buffer.bytes()[flight.skip_bytes as usize..][..flight.length_bytes as usize]
                }
                _ => &[],
            };
            ended(number, result, data);
            let Some(buffer) = answer.buffer else { return };
            let whole = flight.skip_bytes == 0 && (flight.length_bytes as usize).is_multiple_of(BLOCK_BYTES);
            if *same_payload && whole && flight.kind == Kind::Write {
                filled.push(buffer);
            } else {
                buffers.give(buffer);
            }
        };
        match station.turn(answered) {
            Ok(_) => Ok(()),
            Err(error) => Err(TargetError::Other(format!("io_uring: {error}"))),
        }
    }

    fn wait(&mut self, timeout_ns: u64) -> Result<(), TargetError> {
        let station = self.station.as_mut().expect("not dropped");
        let waited = station.wait(timeout_ns);
        waited.map_err(|error| TargetError::Other(format!("io_uring: {error}")))
    }
}

impl<D: Medium> Drop for InsideTarget<D> {
    fn drop(&mut self) {
        let mut station = self.station.take().expect("dropped once");
        for buffer in self.filled.drain(..) {
            station.give(buffer);
        }
        // Should that fail, the next run finds no shard and says so.
        let _ = self.inside.put_back(station, true);
    }
}
