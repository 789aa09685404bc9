//! Bytes from the client: the inbox, options, request headers, payloads.
//!
//! Headers and small payloads are received into the inbox, many at a time; what is missing of a large payload is
//! received into the buffer of its part.

use super::super::handshake::{Handshake, Next, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX};
use super::super::request::{Job, PartInFlight, Ready, Request};
use super::super::transmission::{SKIP_BYTES_MAX, Verdict, judge};
use super::super::wire::{OptionHeader, ReplyError, RequestHeader, command};
use super::{End, Phase, Session};
use stillpoint_processor::host_view::Part;
use stillpoint_processor::marks::{Mark, mark};
use stillpoint_processor::ports::{Buffer, BufferPool};
use stillpoint_processor::{BLOCK_BYTES, PART_BYTES_MAX, RequestKind};

/// Memory for headers and small payloads, in bytes.
pub const INBOX_BYTES: usize = 64 << 10;
/// When at least so much of a part is missing, it is received into the part's own buffer.
const DIRECT_BYTES_MIN: u32 = 16 << 10;
/// Replies that wait to be sent, at most; above it no further request is looked at.
const READY_MAX: usize = 512;

const _: () = assert!(OPTION_BYTES_MAX + OptionHeader::BYTES <= INBOX_BYTES);

/// Where the next bytes from the client are wanted. Owns the memory until it comes back through
/// [`Session::received`].
#[derive(Debug)]
pub struct Receive {
    buffer: Buffer,
    start: usize,
    length: usize,
    direct: bool,
}

impl Receive {
    /// The memory to receive into: never empty; it stays where it is when the `Receive` is moved.
    pub fn memory(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes_mut()[self.start..self.start + self.length]
    }
}

/// Received bytes that are not yet understood.
#[derive(Debug)]
pub(super) struct Inbox {
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            buffer: Some(Buffer::owned(INBOX_BYTES)),
            start: 0,
            end: 0,
        }
    }

    /// Whether a receive into it is under way.
    pub(super) fn is_away(&self) -> bool {
        self.buffer.is_none()
    }

    fn bytes(&self) -> &[u8] {
        self.buffer
            .as_ref()
            .map_or(&[], |buffer| &buffer.bytes()[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
    }

    /// The memory behind the bytes that are left, those moved to the front.
    fn lend(&mut self) -> Option<Receive> {
        let buffer = self.buffer.as_mut()?;
        if self.start > 0 {
            buffer.bytes_mut().copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == INBOX_BYTES {
            return None;
        }
        Some(Receive {
            buffer: self.buffer.take()?,
            start: self.end,
            length: INBOX_BYTES - self.end,
            direct: false,
        })
    }
}

/// What the next bytes are.
#[derive(Debug)]
pub(super) enum Input {
    /// A header (or the flags, or an option).
    Header,
    /// The payload of a write.
    Payload(Payload),
    /// A payload whose buffer is out with a [`Receive`] although nobody wants it any more.
    Away,
    /// Bytes nobody wants; then, perhaps, a reply.
    Skip {
        left_bytes: u64,
        refusal: Option<(u64, ReplyError)>,
    },
}

/// The part of a write that is being received.
#[derive(Debug)]
pub(super) struct Payload {
    request: u16,
    part: Part,
    received_bytes: u32,
    memory: PartMemory,
}

#[derive(Debug)]
enum PartMemory {
    /// Not yet got.
    Wanted,
    Here(Buffer),
    /// Out with a [`Receive`].
    Away,
}

/// How far parsing got.
#[derive(PartialEq, Eq)]
enum Step {
    /// Further.
    On,
    /// More bytes are needed.
    Bytes,
    /// A reply has to go out, a request to end, or memory to come free first.
    Blocked,
}

impl Session {
    /// Where the next bytes are wanted, or `None` while a receive is under way, a limit is reached, or nothing
    /// more is wanted of this client.
    pub fn receive(&mut self, pool: &mut impl BufferPool) -> Option<Receive> {
        self.advance(pool);
        if self.blocked || !self.is_reading() || self.inbox.is_away() {
            return None;
        }
        let Input::Payload(payload) = &mut self.input else {
            return self.inbox.lend();
        };
        let left = payload.part.length_bytes - payload.received_bytes;
        match core::mem::replace(&mut payload.memory, PartMemory::Away) {
            PartMemory::Here(buffer) if left >= DIRECT_BYTES_MIN => {
                mark(Mark::NbdDirect);
                Some(Receive {
                    buffer,
                    start: (payload.part.skip_bytes + payload.received_bytes) as usize,
                    length: left as usize,
                    direct: true,
                })
            }
            PartMemory::Away => None,
            memory => {
                payload.memory = memory;
                self.inbox.lend()
            }
        }
    }

    /// A receive came back: `count` bytes came in. 0 means that no more will come: what was begun is finished,
    /// then the connection is to be closed.
    pub fn received(&mut self, receive: Receive, count: usize, pool: &mut impl BufferPool) {
        assert!(count <= receive.length, "more bytes than there was room for");
        if !receive.direct {
            self.inbox.buffer = Some(receive.buffer);
            self.inbox.end += count;
        } else if let Input::Payload(payload) = &mut self.input {
            payload.memory = PartMemory::Here(receive.buffer);
            payload.received_bytes += count as u32;
        } else {
            self.input = Input::Header;
            self.memory.give(receive.buffer, pool);
        }
        if count == 0 && self.is_reading() {
            self.stop_reading(pool);
        }
        self.advance(pool);
    }

    fn is_reading(&self) -> bool {
        matches!(self.end, End::Open | End::Leaving)
    }

    /// Whether the only request may be a write of which nothing has gone to a shard.
    pub(super) fn is_receiving_a_first_part(&self) -> bool {
        match &self.input {
            Input::Payload(payload) => self.requests[payload.request].outstanding == 0,
            _ => false,
        }
    }

    /// Nothing more is read; what was begun is finished.
    pub(super) fn stop_reading(&mut self, pool: &mut impl BufferPool) {
        self.drop_input(pool);
        if self.is_reading() {
            self.end = End::Draining;
        }
    }

    /// Forgets a write that is half received.
    pub(super) fn drop_input(&mut self, pool: &mut impl BufferPool) {
        let payload = match core::mem::replace(&mut self.input, Input::Header) {
            Input::Payload(payload) => payload,
            other => {
                self.input = other;
                return;
            }
        };
        match payload.memory {
            PartMemory::Here(buffer) => self.memory.give(buffer, pool),
            PartMemory::Away => self.input = Input::Away,
            PartMemory::Wanted => {}
        }
        mark(Mark::NbdHalfWrite);
        let request = &mut self.requests[payload.request];
        request.silent = true;
        request.unissued = 0;
        if request.outstanding == 0 {
            self.requests.remove(payload.request);
        }
    }

    /// Understands as much as there is.
    pub(super) fn advance(&mut self, pool: &mut impl BufferPool) {
        let mut step = Step::On;
        while step == Step::On && self.is_reading() && !self.inbox.is_away() {
            step = match (&mut self.phase, &self.input) {
                (_, Input::Skip { .. }) => self.skip(),
                (_, Input::Payload(_)) => self.payload(pool),
                (_, Input::Away) => unreachable!("only when nothing more is read"),
                (Phase::Flags, _) => self.flags(pool),
                (Phase::Options(_), _) => self.option(pool),
                (Phase::Transmission(_), _) => self.header(pool),
            };
        }
        self.blocked = step == Step::Blocked;
    }

    fn flags(&mut self, pool: &mut impl BufferPool) -> Step {
        let Some(bytes) = self.inbox.bytes().first_chunk() else {
            return Step::Bytes;
        };
        match Handshake::new(u32::from_be_bytes(*bytes)) {
            Some(handshake) => self.phase = Phase::Options(Box::new(handshake)),
            None => self.stop_reading(pool),
        }
        self.inbox.consume(4);
        Step::On
    }

    fn option(&mut self, pool: &mut impl BufferPool) -> Step {
        let bytes = self.inbox.bytes();
        if bytes.len() < OptionHeader::BYTES {
            return Step::Bytes;
        }
        let Some(header) = OptionHeader::decode(bytes) else {
            self.stop_reading(pool);
            return Step::On;
        };
        let Phase::Options(handshake) = &mut self.phase else {
            unreachable!("the phase was looked at");
        };
        if !handshake.is_ready(&self.outbox) {
            return Step::Blocked;
        }
        let length = header.length_bytes as usize;
        let next = if length > OPTION_BYTES_MAX {
            self.inbox.consume(OptionHeader::BYTES);
            self.input = Input::Skip {
                left_bytes: u64::from(header.length_bytes),
                refusal: None,
            };
            if header.length_bytes > OPTION_SKIP_BYTES_MAX {
                Next::Close
            } else {
                handshake.too_big(header.option, &mut self.outbox)
            }
        } else {
            let Some(data) = bytes.get(OptionHeader::BYTES..OptionHeader::BYTES + length) else {
                return Step::Bytes;
            };
            let next = handshake.option(header.option, data, &self.exports, &mut self.outbox);
            if matches!(next, Next::Later) {
                return Step::Blocked;
            }
            self.inbox.consume(OptionHeader::BYTES + length);
            next
        };
        match next {
            Next::Option | Next::Later => {}
            Next::Transmission(agreed) => self.phase = Phase::Transmission(agreed),
            Next::Close => self.stop_reading(pool),
        }
        Step::On
    }

    fn header(&mut self, pool: &mut impl BufferPool) -> Step {
        let Phase::Transmission(agreed) = &self.phase else {
            unreachable!("the phase was looked at");
        };
        let bytes = self.inbox.bytes();
        if bytes.len() < RequestHeader::BYTES {
            return Step::Bytes;
        }
        if self.requests.is_full() || self.ready.len() >= READY_MAX {
            mark(Mark::NbdOutOfRequests);
            return Step::Blocked;
        }
        let Some(header) = RequestHeader::decode(bytes) else {
            self.stop_reading(pool);
            return Step::On;
        };
        self.inbox.consume(RequestHeader::BYTES);
        let verdict = if self.end == End::Leaving && header.command != command::DISC {
            mark(Mark::NbdLeaving);
            Verdict::Refuse(ReplyError::Shutdown)
        } else {
            judge(&header, agreed)
        };
        match verdict {
            Verdict::Serve { job, unissued } => self.begin(&header, job, unissued),
            Verdict::Nothing => self.begin(&header, nothing(agreed), 0),
            Verdict::Refuse(error) => self.refuse(&header, error, pool),
            Verdict::Disconnect => self.stop_reading(pool),
        }
        Step::On
    }

    fn begin(&mut self, header: &RequestHeader, job: Job, unissued: u64) {
        let is_write = unissued > 0 && matches!(job, Job::Write { .. });
        let slot = self.requests.insert(Request {
            cookie: header.cookie,
            offset_bytes: header.offset_bytes,
            length_bytes: header.length_bytes,
            unissued,
            outstanding: 0,
            queued: unissued > 0 && !is_write,
            silent: false,
            error: None,
            job,
            received_ns: self.now_ns,
            answered_ns: self.now_ns,
        });
        if is_write {
            self.input = self.next_payload(slot).expect("a write of at least a byte");
        } else if unissued > 0 {
            self.issuing.push_back(slot);
        } else {
            self.ready.push_back(Ready::Reply { request: slot });
        }
    }

    fn refuse(&mut self, header: &RequestHeader, error: ReplyError, pool: &mut impl BufferPool) {
        let cookie = header.cookie;
        if header.command != command::WRITE || header.length_bytes == 0 {
            self.ready.push_back(Ready::Refusal { cookie, error });
        } else if header.length_bytes > SKIP_BYTES_MAX {
            self.ready.push_back(Ready::Refusal { cookie, error });
            self.stop_reading(pool);
        } else {
            mark(Mark::NbdSkips);
            self.input = Input::Skip {
                left_bytes: u64::from(header.length_bytes),
                refusal: Some((cookie, error)),
            };
        }
    }

    fn skip(&mut self) -> Step {
        let Input::Skip { left_bytes, refusal } = &mut self.input else {
            unreachable!("the input was looked at");
        };
        let count = (self.inbox.bytes().len() as u64).min(*left_bytes);
        *left_bytes -= count;
        self.inbox.consume(count as usize);
        if *left_bytes > 0 {
            return Step::Bytes;
        }
        if let Some((cookie, error)) = *refusal {
            self.ready.push_back(Ready::Refusal { cookie, error });
        }
        self.input = Input::Header;
        Step::On
    }

    /// The next part of a write; `None` if there is no more.
    fn next_payload(&mut self, slot: u16) -> Option<Input> {
        let Job::Write { parts, .. } = &mut self.requests[slot].job else {
            unreachable!("only writes have a payload");
        };
        Some(Input::Payload(Payload {
            request: slot,
            part: parts.next()?,
            received_bytes: 0,
            memory: PartMemory::Wanted,
        }))
    }

    fn payload(&mut self, pool: &mut impl BufferPool) -> Step {
        let Input::Payload(payload) = &mut self.input else {
            unreachable!("the input was looked at");
        };
        let part = payload.part;
        if matches!(payload.memory, PartMemory::Wanted) {
            if self.parts.is_full() {
                return Step::Blocked;
            }
            let length = part.blocks as usize * BLOCK_BYTES;
            // Where memory is scarce it is not lent to a client that may send a byte now and then.
            let room = pool.room(length);
            let begun = DIRECT_BYTES_MIN.min(part.length_bytes) as usize;
            if room.free_bytes < room.bytes / 2 && self.inbox.bytes().len() < begun {
                return Step::Bytes;
            }
            match self.memory.take(length, PART_BYTES_MAX, pool) {
                Some(buffer) => payload.memory = PartMemory::Here(buffer),
                None => {
                    mark(Mark::NbdWaitsForMemory);
                    return Step::Blocked;
                }
            }
        }
        let PartMemory::Here(buffer) = &mut payload.memory else {
            return Step::Bytes;
        };
        let bytes = self.inbox.bytes();
        let count = bytes
            .len()
            .min((part.length_bytes - payload.received_bytes) as usize);
        let start = (part.skip_bytes + payload.received_bytes) as usize;
        buffer.bytes_mut()[start..start + count].copy_from_slice(&bytes[..count]);
        self.inbox.consume(count);
        payload.received_bytes += count as u32;
        if payload.received_bytes < part.length_bytes {
            return Step::Bytes;
        }
        if self.parts.is_full() {
            return Step::Blocked;
        }
        let Input::Payload(payload) = core::mem::replace(&mut self.input, Input::Header) else {
            unreachable!("it was a payload before");
        };
        let PartMemory::Here(buffer) = payload.memory else {
            unreachable!("the part is whole");
        };
        self.issue_received(payload.request, &part, buffer);
        if let Some(input) = self.next_payload(payload.request) {
            self.input = input;
        }
        Step::On
    }

    fn issue_received(&mut self, slot: u16, part: &Part, buffer: Buffer) {
        let Job::Write { fua, .. } = self.requests[slot].job else {
            unreachable!("only writes have a payload");
        };
        let kind = RequestKind::Write { fua };
        let flight = PartInFlight {
            request: slot,
            sequence: 0,
            offset_bytes: part.offset_bytes,
            skip_bytes: part.skip_bytes,
            length_bytes: part.length_bytes,
        };
        let request = self.shard_request(flight, part, kind, Some(buffer));
        self.whole.push_back(request);
    }
}

/// A job with nothing to do.
fn nothing(agreed: &super::Agreed) -> Job {
    Job::Plain {
        kind: RequestKind::Cache,
        parts: agreed.export.host_view.parts_without_data(0, 0),
    }
}
