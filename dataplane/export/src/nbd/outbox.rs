//! What goes to the client: small things copied together, large data by ownership, in one send at a time.

use super::request::Told;
use stillpoint_processor::marks::{Mark, mark};
use stillpoint_processor::ports::Buffer;

/// Memory for headers and small data, in bytes. Holds the longest answer to one option.
pub const OUTBOX_BYTES: usize = 32 << 10;
/// Pieces of one send at most (a limit on the caller's scatter list).
pub const PIECES_MAX: usize = 64;
/// Data up to this length is copied behind its header; longer data goes out from its own buffer.
pub const COPY_BYTES_MAX: usize = 2048;

/// Replies of one send whose times are noted; more are sent, but not noted.
const TOLD_MAX: usize = 128;

#[derive(Clone, Copy, Debug)]
enum Source {
    Memory,
    Data(u32),
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    source: Source,
    start: u32,
    length: u32,
}

/// A buffer on its way out, and the request (if any) that wants it back afterwards.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) buffer: Buffer,
    pub(super) home: Option<u16>,
}

/// Bytes to be sent with one call. Owns its memory until it comes back through `Session::sent`.
#[derive(Debug)]
pub struct Send {
    memory: Buffer,
    used: usize,
    pieces: Vec<Piece>,
    data: Vec<Data>,
    sent_pieces: usize,
    sent_bytes: usize,
}

impl Send {
    fn new() -> Self {
        Self {
            memory: Buffer::owned(OUTBOX_BYTES),
            used: 0,
            pieces: Vec::with_capacity(PIECES_MAX),
            data: Vec::with_capacity(PIECES_MAX),
            sent_pieces: 0,
            sent_bytes: 0,
        }
    }

    /// What is still to be sent, in order: at most [`PIECES_MAX`] pieces. The memory stays where it is when the
    /// `Send` is moved.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces[self.sent_pieces..]
            .iter()
            .enumerate()
            .map(|(index, piece)| {
                let memory = match piece.source {
                    Source::Memory => self.memory.bytes(),
                    Source::Data(index) => self.data[index as usize].buffer.bytes(),
                };
                let skip = if index == 0 { self.sent_bytes } else { 0 };
                &memory[piece.start as usize + skip..(piece.start + piece.length) as usize]
            })
    }

    fn is_empty(&self) -> bool {
        self.sent_pieces == self.pieces.len()
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let piece = self.pieces[self.sent_pieces];
            let left = piece.length as usize - self.sent_bytes;
            if count < left {
                self.sent_bytes += count;
                return;
            }
            count -= left;
            self.sent_pieces += 1;
            self.sent_bytes = 0;
        }
    }

    fn clear(&mut self) {
        assert!(self.data.is_empty(), "buffers are taken out first");
        self.used = 0;
        self.pieces.clear();
        self.sent_pieces = 0;
        self.sent_bytes = 0;
    }
}

/// Collects what is to be sent; away while a send is under way.
#[derive(Debug)]
pub(super) struct Outbox {
    filling: Option<Send>,
    /// The replies that end in what is being sent, or filled.
    told: Vec<Told>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            filling: Some(Send::new()),
            told: Vec::with_capacity(TOLD_MAX),
        }
    }

    /// Whether this much can be added now.
    pub(super) fn has_room(&self, bytes: usize, pieces: usize) -> bool {
        self.filling.as_ref().is_some_and(|send| {
            send.sent_pieces == 0
                && send.sent_bytes == 0
                && OUTBOX_BYTES - send.used >= bytes
                && PIECES_MAX - send.pieces.len() >= pieces
        })
    }

    /// Copies bytes. There must be room.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let send = self.filling.as_mut().expect("room was asked for");
        let start = send.used;
        send.memory.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        send.used += bytes.len();
        if let Some(Piece {
            source: Source::Memory,
            start: first,
            length,
        }) = send.pieces.last_mut()
            && (*first + *length) as usize == start
        {
            *length += bytes.len() as u32;
            return;
        }
        send.pieces.push(Piece {
            source: Source::Memory,
            start: start as u32,
            length: bytes.len() as u32,
        });
    }

    /// Adds bytes `start..start + length` of a buffer. There must be room.
    pub(super) fn attach(&mut self, buffer: Buffer, start: u32, length: u32, home: Option<u16>) {
        let send = self.filling.as_mut().expect("room was asked for");
        send.pieces.push(Piece {
            source: Source::Data(send.data.len() as u32),
            start,
            length,
        });
        send.data.push(Data { buffer, home });
    }

    /// The reply that was put last is whole.
    pub(super) fn note(&mut self, told: Told) {
        if self.told.len() < TOLD_MAX {
            self.told.push(told);
        }
    }

    /// Says which replies have wholly left since this was asked last.
    pub(super) fn take_told(&mut self, each: impl FnMut(Told)) {
        if self.is_empty() {
            self.told.drain(..).for_each(each);
        }
    }

    /// What there is to send, if anything.
    pub(super) fn take(&mut self) -> Option<Send> {
        self.filling.take_if(|send| !send.is_empty())
    }

    /// A send came back with `count` bytes gone; what has become free goes to `free`.
    pub(super) fn came_back(&mut self, mut send: Send, count: usize, mut free: impl FnMut(Data)) {
        assert!(self.filling.is_none(), "one send at a time");
        send.advance(count);
        if send.is_empty() {
            for data in send.data.drain(..) {
                free(data);
            }
            send.clear();
        }
        if !send.is_empty() {
            mark(Mark::NbdSendInPieces);
        }
        self.filling = Some(send);
    }

    /// Forgets what was not sent.
    pub(super) fn discard(&mut self, mut free: impl FnMut(Data)) {
        if let Some(send) = &mut self.filling {
            for data in send.data.drain(..) {
                free(data);
            }
            send.clear();
            self.told.clear();
        }
    }

    /// Whether a send is under way.
    pub(super) fn is_away(&self) -> bool {
        self.filling.is_none()
    }

    /// Whether everything was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.filling.as_ref().is_some_and(Send::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(send: &Send) -> Vec<u8> {
        send.pieces().flatten().copied().collect()
    }

    #[test]
    fn a_short_send_goes_on_where_it_stopped() {
        let mut outbox = Outbox::new();
        outbox.put(b"head");
        outbox.put(b"er");
        let mut buffer = Buffer::owned(16);
        buffer.bytes_mut().copy_from_slice(b"0123456789abcdef");
        outbox.attach(buffer, 2, 6, None);
        outbox.put(b"tail");
        let whole = b"header234567tail".to_vec();
        let mut freed = 0;
        for at in 0..whole.len() {
            let send = outbox.take().expect("something is left");
            assert_eq!(text(&send), whole[at..], "after {at} bytes");
            outbox.came_back(send, 1, |_| freed += 1);
            assert!(
                at + 1 == whole.len() || !outbox.has_room(1, 1),
                "a half-sent box is not added to"
            );
        }
        assert!(outbox.is_empty() && outbox.take().is_none());
        assert_eq!(freed, 1);
        assert!(outbox.has_room(OUTBOX_BYTES, PIECES_MAX));
    }

    #[test]
    fn a_reply_is_told_when_its_last_byte_has_left() {
        let told = |received_ns| Told {
            work: stillpoint_processor::stages::Work::Read,
            received_ns,
            answered_ns: received_ns + 1,
        };
        let mut outbox = Outbox::new();
        let mut heard = Vec::new();
        outbox.put(b"first");
        outbox.note(told(7));
        outbox.put(b"second");
        outbox.note(told(8));
        for (bytes, expected) in [(5, 0), (5, 0), (1, 2)] {
            let send = outbox.take().expect("something is left");
            outbox.came_back(send, bytes, |_| {});
            outbox.take_told(|told| heard.push(told.received_ns));
            assert_eq!(heard.len(), expected);
        }
        assert_eq!(heard, [7, 8]);
        outbox.put(b"third");
        outbox.note(told(9));
        outbox.discard(|_| {});
        outbox.take_told(|_| panic!("it never left"));
    }

    #[test]
    fn neighbouring_copies_are_one_piece() {
        let mut outbox = Outbox::new();
        outbox.put(b"a");
        outbox.put(b"b");
        let send = outbox.take().expect("something");
        assert_eq!(send.pieces().count(), 1);
    }
}
