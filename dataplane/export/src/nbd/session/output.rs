//! Replies, in the order in which they became ready.

use super::super::outbox::{COPY_BYTES_MAX, Outbox, Send};
use super::super::request::{Job, Piece, Ready, Told, WINDOW_PARTS};
use super::super::wire::{ChunkHeader, ReplyError, SimpleReply, chunk};
use super::{End, Phase, Session};
use stillpoint_processor::ports::BufferPool;

/// Room for a header, an offset and an error's sentence or copied data.
const ROOM_BYTES: usize = ChunkHeader::BYTES + 8 + COPY_BYTES_MAX;

impl Session {
    /// What is to be sent next, or `None` while a send is under way or there is nothing to say.
    pub fn next_send(&mut self, pool: &mut impl BufferPool) -> Option<Send> {
        if matches!(self.end, End::Broken | End::Abandoned) {
            return None;
        }
        if let Phase::Options(handshake) = &mut self.phase {
            handshake.go_on_listing(&self.exports, &mut self.outbox);
        }
        while self.say_first(pool) {}
        self.outbox.take()
    }

    fn is_structured(&self) -> bool {
        matches!(&self.phase, Phase::Transmission(agreed) if agreed.structured)
    }

    /// Says the first thing that is ready; false if there is none or no room for it.
    fn say_first(&mut self, pool: &mut impl BufferPool) -> bool {
        let Some(first) = self.ready.front() else {
            return false;
        };
        if !self.outbox.has_room(ROOM_BYTES, 2) {
            return false;
        }
        let structured = self.is_structured();
        match *first {
            Ready::Refusal { cookie, error } => {
                say_error(&mut self.outbox, structured, cookie, error, None);
                self.ready.pop_front();
                true
            }
            #[cfg(feature = "planted-bugs")]
            Ready::Early { cookie } => {
                say_done(&mut self.outbox, structured, cookie);
                self.ready.pop_front();
                true
            }
            Ready::Chunk { .. } => {
                self.say_chunk(pool);
                true
            }
            Ready::Extents { .. } => {
                self.say_extents(pool);
                true
            }
            Ready::Reply { request } => self.say_reply(request, pool),
            Ready::Stream { request } => self.say_stream(request, pool),
        }
    }

    /// The whole reply of a request lies in the outbox.
    fn said(&mut self, slot: u16) {
        let request = self.requests.remove(slot);
        self.outbox.note(Told {
            work: request.job.work(),
            received_ns: request.received_ns,
            answered_ns: request.answered_ns,
        });
    }

    fn say_chunk(&mut self, pool: &mut impl BufferPool) {
        let Some(Ready::Chunk {
            request,
            offset_bytes,
            result,
            last,
        }) = self.ready.pop_front()
        else {
            unreachable!("it was looked at");
        };
        let cookie = self.requests[request].cookie;
        match result {
            Ok(piece) => {
                let flags = if last { chunk::DONE } else { 0 };
                say_data_header(&mut self.outbox, flags, cookie, offset_bytes, piece.length);
                self.say_data(piece, pool);
            }
            Err(error) => say_error(&mut self.outbox, true, cookie, error, Some((offset_bytes, last))),
        }
        if last {
            self.said(request);
        }
    }

    /// Says what one context tells.
    fn say_extents(&mut self, pool: &mut impl BufferPool) {
        let Some(Ready::Extents { request, piece, last }) = self.ready.pop_front() else {
            unreachable!("it was looked at");
        };
        let header = ChunkHeader {
            flags: if last { chunk::DONE } else { 0 },
            kind: chunk::BLOCK_STATUS,
            cookie: self.requests[request].cookie,
            length_bytes: piece.length,
        };
        self.outbox.put(&header.encode());
        self.say_data(piece, pool);
        if last {
            self.give_buffers(request, pool);
            self.said(request);
        }
    }

    fn say_data(&mut self, piece: Piece, pool: &mut impl BufferPool) {
        if piece.length as usize <= COPY_BYTES_MAX {
            let start = piece.start as usize;
            self.outbox
                .put(&piece.buffer.bytes()[start..start + piece.length as usize]);
            self.memory.give(piece.buffer, pool);
        } else {
            self.outbox.attach(piece.buffer, piece.start, piece.length, None);
        }
    }

    /// Says a whole reply; false if there is no room.
    fn say_reply(&mut self, slot: u16, pool: &mut impl BufferPool) -> bool {
        let structured = self.is_structured();
        let request = &mut self.requests[slot];
        let cookie = request.cookie;
        if let Some(error) = request.error {
            say_error(&mut self.outbox, structured, cookie, error, None);
        } else {
            match &mut request.job {
                Job::InOrder(read) => {
                    let pieces = read.answered.iter().flatten().count();
                    if !self
                        .outbox
                        .has_room(ROOM_BYTES + WINDOW_PARTS * COPY_BYTES_MAX, pieces + 1)
                    {
                        return false;
                    }
                    let answered = core::mem::take(&mut read.answered);
                    let length = request.length_bytes;
                    let offset = request.offset_bytes;
                    say_read_header(&mut self.outbox, structured, cookie, offset, length);
                    for piece in answered.into_iter().flatten() {
                        self.say_data(piece, pool);
                    }
                }
                _ => say_done(&mut self.outbox, structured, cookie),
            }
        }
        self.give_buffers(slot, pool);
        self.said(slot);
        self.ready.pop_front();
        true
    }

    /// Says as much of a long read in order as there is; false if it has to wait for more, and with it all that
    /// comes after.
    fn say_stream(&mut self, slot: u16, pool: &mut impl BufferPool) -> bool {
        let structured = self.is_structured();
        let request = &mut self.requests[slot];
        let (cookie, offset, length) = (request.cookie, request.offset_bytes, request.length_bytes);
        let (error, complete) = (request.error, request.is_complete());
        let Job::InOrder(read) = &mut request.job else {
            unreachable!("only reads in order are streamed");
        };
        if let Some(error) = error {
            if read.header_sent || !complete {
                return false;
            }
            say_error(&mut self.outbox, structured, cookie, error, None);
            self.give_buffers(slot, pool);
            self.said(slot);
            self.ready.pop_front();
            return true;
        }
        if !read.header_sent {
            say_read_header(&mut self.outbox, structured, cookie, offset, length);
            read.header_sent = true;
        }
        let Some(piece) = read.answered[read.sent as usize % WINDOW_PARTS].take() else {
            return false;
        };
        read.sent += 1;
        let finished = complete && read.sent == read.issued;
        let coming = read.spare_count() + read.returning as usize;
        let parts_left = read.parts.clone().take(WINDOW_PARTS + 1).count();
        let home = (parts_left > coming).then_some(slot);
        read.returning += u32::from(home.is_some());
        self.outbox.attach(piece.buffer, piece.start, piece.length, home);
        if finished {
            self.give_buffers(slot, pool);
            self.said(slot);
            self.ready.pop_front();
        }
        true
    }
}

/// The header of a read's data when it comes in one piece: a simple reply, or the only chunk of a structured one.
fn say_read_header(outbox: &mut Outbox, structured: bool, cookie: u64, offset: u64, length: u32) {
    if structured {
        say_data_header(outbox, chunk::DONE, cookie, offset, length);
    } else {
        outbox.put(&SimpleReply { error: 0, cookie }.encode());
    }
}

/// Success, without data.
fn say_done(outbox: &mut Outbox, structured: bool, cookie: u64) {
    if structured {
        let header = ChunkHeader {
            flags: chunk::DONE,
            kind: chunk::NONE,
            cookie,
            length_bytes: 0,
        };
        outbox.put(&header.encode());
    } else {
        outbox.put(&SimpleReply { error: 0, cookie }.encode());
    }
}

fn say_data_header(outbox: &mut Outbox, flags: u16, cookie: u64, offset: u64, length: u32) {
    let header = ChunkHeader {
        flags,
        kind: chunk::OFFSET_DATA,
        cookie,
        length_bytes: length + 8,
    };
    outbox.put(&header.encode());
    outbox.put(&offset.to_be_bytes());
}

/// An error: as a chunk with a sentence, at an offset if there is one, or as a simple reply.
fn say_error(outbox: &mut Outbox, structured: bool, cookie: u64, error: ReplyError, at: Option<(u64, bool)>) {
    if !structured {
        let error = error as u32;
        outbox.put(&SimpleReply { error, cookie }.encode());
        return;
    }
    let message = error.message().as_bytes();
    let (kind, last) = match at {
        Some((_, last)) => (chunk::ERROR_OFFSET, last),
        None => (chunk::ERROR, true),
    };
    let offset_bytes = if at.is_some() { 8 } else { 0 };
    let header = ChunkHeader {
        flags: if last { chunk::DONE } else { 0 },
        kind,
        cookie,
        length_bytes: (6 + message.len() + offset_bytes) as u32,
    };
    outbox.put(&header.encode());
    outbox.put(&(error as u32).to_be_bytes());
    outbox.put(&(message.len() as u16).to_be_bytes());
    outbox.put(message);
    if let Some((offset, _)) = at {
        outbox.put(&offset.to_be_bytes());
    }
}
