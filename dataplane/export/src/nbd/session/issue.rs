//! Parts to the shards, and their answers.

use super::super::extents::{Extents, REPLY_BYTES};
use super::super::request::{Foreseen, InOrder, Job, PartInFlight, Piece, Ready, Status, WINDOW_PARTS};
use super::super::wire::ReplyError;
use super::{End, Phase, Session};
use stillpoint_processor::host_view::Part;
use stillpoint_processor::marks::{Mark, mark};
use stillpoint_processor::ports::{Buffer, BufferPool};
use stillpoint_processor::{
    BLOCK_BYTES, RequestError, RequestKind, ShardAnswer, ShardIndex, ShardRequest, ShareBlock, Token,
};

/// Parts without data that one request has with the shards at a time.
const PLAIN_PARTS_MAX: u32 = 16;
/// Parts of zeroes that one request has with the shards at a time.
const ZERO_PARTS_MAX: u32 = 2;

/// What came of trying to issue a part of a request.
#[allow(clippy::large_enum_variant, reason = "returned and matched at once")]
enum Issue {
    /// Here it is.
    Part(ShardRequest),
    /// No memory or no room: again later.
    Later,
    /// Nothing before an answer or a send comes back.
    Wait,
}

impl Session {
    /// The next part for a shard, or `None` for now. Every part is to be brought back by [`Self::answer`], even
    /// after the session was abandoned.
    pub fn next_request(&mut self, pool: &mut impl BufferPool) -> Option<ShardRequest> {
        if self.whole.is_empty() {
            self.advance(pool);
        }
        if let Some(request) = self.whole.pop_front() {
            return Some(request);
        }
        for _ in 0..self.issuing.len() {
            let slot = self.issuing.pop_front()?;
            match self.issue(slot, pool) {
                Issue::Part(part) => {
                    let request = &mut self.requests[slot];
                    request.queued = request.unissued > 0;
                    if request.queued {
                        self.issuing.push_back(slot);
                    }
                    return Some(part);
                }
                Issue::Later => self.issuing.push_back(slot),
                Issue::Wait => self.requests[slot].queued = false,
            }
        }
        None
    }

    fn issue(&mut self, slot: u16, pool: &mut impl BufferPool) -> Issue {
        let request = &mut self.requests[slot];
        if request.unissued == 0 {
            return Issue::Wait;
        }
        if self.parts.is_full() {
            return Issue::Later;
        }
        let outstanding = request.outstanding;
        match &mut request.job {
            Job::Chunks { parts } => {
                let part = parts.clone().next().expect("something is unissued");
                let Some(buffer) = self.memory.take(part.blocks as usize * BLOCK_BYTES, 0, pool) else {
                    return Issue::Later;
                };
                parts.next();
                self.issue_part(slot, 0, &part, RequestKind::Read, Some(buffer))
            }
            Job::Plain { kind, parts } => {
                if outstanding >= PLAIN_PARTS_MAX {
                    return Issue::Wait;
                }
                let kind = *kind;
                let part = parts.next().expect("something is unissued");
                self.issue_part(slot, 0, &part, kind, None)
            }
            Job::Flush { shards } => {
                let shard = shards.next().expect("something is unissued");
                let part = Part {
                    shard: ShardIndex(shard),
                    first: ShareBlock(0),
                    blocks: 0,
                    skip_bytes: 0,
                    length_bytes: 1, // a shard counts for one
                    offset_bytes: 0,
                };
                self.issue_part(slot, 0, &part, RequestKind::Flush, None)
            }
            Job::Zeroes { .. } => self.issue_zeroes(slot, pool),
            Job::InOrder(_) => self.issue_in_order(slot, pool),
            Job::Status(_) => self.issue_status(slot, pool),
            Job::Write { .. } => unreachable!("the parts of a write come from the input"),
        }
    }

    fn issue_zeroes(&mut self, slot: u16, pool: &mut impl BufferPool) -> Issue {
        let request = &mut self.requests[slot];
        let Job::Zeroes {
            head,
            middle,
            tail,
            fua,
        } = &mut request.job
        else {
            unreachable!("the job was looked at");
        };
        let fua = *fua;
        let edge = if head.clone().next().is_some() { head } else { tail };
        if let Some(part) = edge.clone().next() {
            if request.outstanding >= ZERO_PARTS_MAX {
                return Issue::Wait;
            }
            let Some(mut buffer) = self.memory.take(part.blocks as usize * BLOCK_BYTES, 0, pool) else {
                return Issue::Later;
            };
            edge.next();
            mark(Mark::NbdZeroesEdge);
            let data = part.skip_bytes as usize..(part.skip_bytes + part.length_bytes) as usize;
            buffer.bytes_mut()[data].fill(0);
            return self.issue_part(slot, 0, &part, RequestKind::Write { fua }, Some(buffer));
        }
        if request.outstanding >= PLAIN_PARTS_MAX {
            return Issue::Wait;
        }
        let part = middle.next().expect("something is unissued");
        self.issue_part(slot, 0, &part, RequestKind::Discard { fua }, None)
    }

    fn issue_in_order(&mut self, slot: u16, pool: &mut impl BufferPool) -> Issue {
        let Job::InOrder(read) = &mut self.requests[slot].job else {
            unreachable!("the job was looked at");
        };
        if !read.started && !start_window(read, &mut self.memory, pool) {
            return Issue::Later;
        }
        if read.issued - read.sent >= WINDOW_PARTS as u32 {
            return Issue::Wait;
        }
        let Some(buffer) = read.take_spare() else {
            return Issue::Wait;
        };
        let part = read.parts.next().expect("something is unissued");
        let sequence = read.issued;
        read.issued += 1;
        self.issue_part(slot, sequence, &part, RequestKind::Read, Some(buffer))
    }

    fn issue_status(&mut self, slot: u16, pool: &mut impl BufferPool) -> Issue {
        loop {
            let request = &mut self.requests[slot];
            if request.outstanding > 0 || request.unissued == 0 {
                return Issue::Wait;
            }
            let (Job::Status(status), Phase::Transmission(agreed)) = (&mut request.job, &self.phase) else {
                unreachable!("the job was looked at");
            };
            if status.reply.is_none() && !start_status(status, &mut self.memory, pool) {
                return Issue::Later;
            }
            let context = &agreed.contexts[status.context];
            let part = status.parts.next().expect("something is unissued");
            let Some(state) = status.foreseen.state(&part) else {
                status.asked = Some(part);
                let (kind, buffer) = (context.request_kind(), status.question.take());
                return self.issue_part(slot, 0, &part, kind, buffer);
            };
            request.unissued -= u64::from(part.length_bytes);
            let mut pair = [0; 8];
            pair[..4].copy_from_slice(&part.blocks.to_le_bytes());
            pair[4..].copy_from_slice(&state.to_le_bytes());
            self.add_extents(slot, &part, &pair, pool);
        }
    }

    fn issue_part(
        &mut self,
        slot: u16,
        sequence: u32,
        part: &Part,
        kind: RequestKind,
        buffer: Option<Buffer>,
    ) -> Issue {
        let flight = PartInFlight {
            request: slot,
            sequence,
            offset_bytes: part.offset_bytes,
            skip_bytes: part.skip_bytes,
            length_bytes: part.length_bytes,
        };
        Issue::Part(self.shard_request(flight, part, kind, buffer))
    }

    /// Notes a part as being with its shard. There must be room.
    pub(super) fn shard_request(
        &mut self,
        flight: PartInFlight,
        part: &Part,
        kind: RequestKind,
        buffer: Option<Buffer>,
    ) -> ShardRequest {
        let Phase::Transmission(agreed) = &self.phase else {
            unreachable!("requests come after the negotiation");
        };
        let request = &mut self.requests[flight.request];
        request.outstanding += 1;
        request.unissued -= u64::from(part.length_bytes);
        let is_write = matches!(kind, RequestKind::Write { .. });
        ShardRequest {
            token: Token(u64::from(self.tag) << 32 | u64::from(self.parts.insert(flight))),
            shard: part.shard,
            view: agreed.export.host_view.view,
            kind,
            first: part.first,
            blocks: part.blocks,
            skip_bytes: if is_write { part.skip_bytes } else { 0 },
            length_bytes: if is_write { part.length_bytes } else { 0 },
            buffer,
            since_ns: request.received_ns,
        }
    }

    /// A shard's answer to one of this session's parts.
    pub fn answer(&mut self, answer: ShardAnswer, pool: &mut impl BufferPool) {
        let part = self.parts.remove(answer.token.0 as u16);
        let slot = part.request;
        let request = &mut self.requests[slot];
        request.outstanding -= 1;
        request.answered_ns = request.answered_ns.max(answer.since_ns);
        let error = answer.result.err().map(|error| {
            reply_error(
                error,
                matches!(request.job, Job::Write { .. } | Job::Zeroes { .. }),
            )
        });
        if self.end == End::Abandoned {
            mark(Mark::NbdAbandonedAnswer);
            let is_last = request.outstanding == 0;
            if let Some(buffer) = answer.buffer {
                self.memory.give(buffer, pool);
            }
            if is_last {
                self.requests.remove(slot);
            }
            return;
        }
        request.error = request.error.or(error);
        #[cfg(feature = "planted-bugs")]
        if self.flushes_replied_early && matches!(request.job, Job::Flush { .. }) && !request.silent {
            request.silent = true;
            self.ready.push_back(Ready::Early {
                cookie: request.cookie,
            });
        }
        match &request.job {
            Job::Chunks { .. } => self.chunk_answered(&part, answer.buffer, error, pool),
            Job::InOrder(_) => self.in_order_answered(&part, answer.buffer, pool),
            Job::Status(_) => self.status_answered(slot, answer.buffer, answer.valid_bytes, pool),
            Job::Write { .. } | Job::Plain { .. } | Job::Zeroes { .. } | Job::Flush { .. } => {
                if error.is_some() && !matches!(request.job, Job::Write { .. }) {
                    request.unissued = 0;
                }
                if let Some(buffer) = answer.buffer {
                    self.memory.give(buffer, pool);
                }
                self.go_on(slot);
            }
        }
    }

    /// Issues more of a request, or says how it ended.
    fn go_on(&mut self, slot: u16) {
        let request = &mut self.requests[slot];
        if request.is_complete() {
            if request.silent {
                self.requests.remove(slot);
            } else if matches!(request.job, Job::Status(_)) && request.error.is_none() {
                // What each context tells was said when it was complete.
            } else {
                self.ready.push_back(Ready::Reply { request: slot });
            }
        } else if request.unissued > 0 && !request.queued && !matches!(request.job, Job::Write { .. }) {
            request.queued = true;
            self.issuing.push_back(slot);
        }
    }

    fn chunk_answered(
        &mut self,
        part: &PartInFlight,
        buffer: Option<Buffer>,
        error: Option<ReplyError>,
        pool: &mut impl BufferPool,
    ) {
        let buffer = buffer.expect("a read brings its buffer back");
        let request = &self.requests[part.request];
        let result = match error {
            Some(error) => {
                self.memory.give(buffer, pool);
                Err(error)
            }
            None => Ok(Piece {
                buffer,
                start: part.skip_bytes,
                length: part.length_bytes,
            }),
        };
        self.ready.push_back(Ready::Chunk {
            request: part.request,
            offset_bytes: request.offset_bytes + part.offset_bytes,
            result,
            last: request.is_complete(),
        });
    }

    fn in_order_answered(&mut self, part: &PartInFlight, buffer: Option<Buffer>, pool: &mut impl BufferPool) {
        let buffer = buffer.expect("a read brings its buffer back");
        let slot = part.request;
        let request = &mut self.requests[slot];
        let failed = request.error.is_some();
        let Job::InOrder(read) = &mut request.job else {
            unreachable!("the job was looked at");
        };
        let (long, said) = (read.long, read.header_sent);
        if failed {
            mark(Mark::NbdErrorInOrder);
            request.unissued = 0;
            self.memory.give(buffer, pool);
            if said {
                // Data was promised that is not there: the protocol leaves only the end.
                self.end = End::Broken;
            }
        } else {
            read.answered[part.sequence as usize % WINDOW_PARTS] = Some(Piece {
                buffer,
                start: part.skip_bytes,
                length: part.length_bytes,
            });
        }
        if long {
            if part.sequence == 0 {
                self.ready.push_back(Ready::Stream { request: slot });
            }
        } else {
            self.go_on(slot);
        }
    }

    fn status_answered(
        &mut self,
        slot: u16,
        buffer: Option<Buffer>,
        valid_bytes: u32,
        pool: &mut impl BufferPool,
    ) {
        let request = &mut self.requests[slot];
        let Job::Status(status) = &mut request.job else {
            unreachable!("the job was looked at");
        };
        let buffer = buffer.expect("a block status query brings its buffer back");
        let part = status.asked.take().expect("one part is asked about at a time");
        if request.error.is_some() {
            request.unissued = 0;
            self.memory.give(buffer, pool);
            return self.go_on(slot);
        }
        let pairs = &buffer.bytes()[..valid_bytes as usize];
        let word = |pair: &[u8]| u32::from_le_bytes(pair.try_into().expect("four bytes"));
        let told: u64 = pairs
            .chunks_exact(8)
            .map(|pair| u64::from(word(&pair[..4])))
            .sum();
        if let Some(last) = pairs.last_chunk::<4>().filter(|_| told > u64::from(part.blocks)) {
            status
                .foreseen
                .note(part.shard, part.first.0 + told, u32::from_le_bytes(*last));
        }
        self.add_extents(slot, &part, pairs, pool);
        // The next context begins anew, and so without memory.
        match &mut self.requests[slot].job {
            Job::Status(status) if status.reply.is_some() => status.question = Some(buffer),
            _ => self.memory.give(buffer, pool),
        }
        self.go_on(slot);
    }

    /// Adds what is known of a part to what the present context tells, and says that when it is all.
    fn add_extents(&mut self, slot: u16, part: &Part, pairs: &[u8], pool: &mut impl BufferPool) {
        let request = &mut self.requests[slot];
        let (Job::Status(status), Phase::Transmission(agreed)) = (&mut request.job, &self.phase) else {
            unreachable!("the job was looked at");
        };
        let context = &agreed.contexts[status.context];
        let memory = status.reply.as_mut().expect("taken at the start").bytes_mut();
        let (skip, length) = (part.skip_bytes, part.length_bytes);
        if !status
            .extents
            .add(memory, context, pairs, skip, length, status.one)
        {
            mark(Mark::NbdStatusFull);
            request.unissued = 0;
        }
        if request.unissued > 0 {
            return;
        }
        let last = status.context + 1 == agreed.contexts.len();
        let piece = Piece {
            buffer: status.reply.take().expect("taken at the start"),
            start: 0,
            length: status.extents.payload_bytes() as u32,
        };
        if let Some(buffer) = status.question.take() {
            self.memory.give(buffer, pool);
        }
        if !last {
            status.context += 1;
            status.parts = status.all.clone();
            status.foreseen = Foreseen::default();
            status.extents = Extents::default();
            request.unissued = u64::from(request.length_bytes);
        }
        self.ready.push_back(Ready::Extents {
            request: slot,
            piece,
            last,
        });
    }
}

/// Takes the memory of a reply and of the questions to the shards, both or none.
fn start_status(status: &mut Status, memory: &mut super::Memory, pool: &mut impl BufferPool) -> bool {
    if !memory.allows(2 * REPLY_BYTES, REPLY_BYTES, 0, pool) {
        return false;
    }
    let Some(first) = memory.take_allowed(REPLY_BYTES, pool) else {
        return false;
    };
    let Some(second) = memory.take_allowed(REPLY_BYTES, pool) else {
        memory.give(first, pool);
        return false;
    };
    (status.reply, status.question) = (Some(first), Some(second));
    true
}

/// Takes the buffers of the first parts, all or none.
fn start_window(read: &mut InOrder, memory: &mut super::Memory, pool: &mut impl BufferPool) -> bool {
    let mut sizes = [0; WINDOW_PARTS];
    let mut parts = read.parts.clone();
    for (size, part) in sizes.iter_mut().zip(&mut parts) {
        *size = part.blocks as usize * BLOCK_BYTES;
    }
    let long = parts.next().is_some();
    if long {
        sizes = [stillpoint_processor::PART_BYTES_MAX; WINDOW_PARTS];
    }
    let wanted = || sizes.iter().copied().filter(|&size| size > 0);
    let largest = wanted().max().unwrap_or(0);
    if !memory.allows(wanted().sum(), largest, 0, pool) {
        return false;
    }
    for size in wanted() {
        let Some(buffer) = memory.take_allowed(size, pool) else {
            for buffer in read.take_buffers() {
                memory.give(buffer, pool);
            }
            return false;
        };
        read.put_spare(buffer);
    }
    if long {
        mark(Mark::NbdLongRead);
    }
    read.long = long;
    read.started = true;
    true
}

fn reply_error(error: RequestError, is_write: bool) -> ReplyError {
    match error {
        RequestError::Io | RequestError::Corrupt | RequestError::ShardStopped => ReplyError::Io,
        RequestError::NoSpace => ReplyError::NoSpace,
        RequestError::ReadOnly => ReplyError::NotPermitted,
        RequestError::OutOfRange if is_write => ReplyError::NoSpace,
        RequestError::OutOfRange | RequestError::NoBase => ReplyError::Invalid,
        RequestError::NotFound | RequestError::ShuttingDown => ReplyError::Shutdown,
    }
}
