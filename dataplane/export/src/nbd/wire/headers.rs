//! The fixed-size headers, and a reader of big-endian fields.

use super::{CHUNK_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC};

/// A request, without its payload.
///
/// `magic u32 | flags u16 | command u16 | cookie u64 | offset u64 | length u32`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// See [`command_flags`](super::command_flags).
    pub flags: u16,
    /// See [`command`](super::command).
    pub command: u16,
    /// The client's own mark.
    pub cookie: u64,
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes.
    pub length_bytes: u32,
}

impl RequestHeader {
    /// Bytes on the wire.
    pub const BYTES: usize = 28;

    /// To the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length_bytes.to_be_bytes());
        bytes
    }

    /// From the wire; `None` if the magic is wrong or there are too few bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset_bytes: reader.u64()?,
            length_bytes: reader.u32()?,
        })
    }
}

/// An option, without its data: `magic u64 | option u32 | length u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// See [`option`](super::option).
    pub option: u32,
    /// Bytes of data that follow.
    pub length_bytes: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const BYTES: usize = 16;

    /// To the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.length_bytes.to_be_bytes());
        bytes
    }

    /// From the wire; `None` if the magic is wrong or there are too few bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(Self {
            option: reader.u32()?,
            length_bytes: reader.u32()?,
        })
    }
}

/// A reply to an option, without its data: `magic u64 | option u32 | reply type u32 | length u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: u32,
    /// See [`option_reply`](super::option_reply).
    pub reply: u32,
    /// Bytes of data that follow.
    pub length_bytes: u32,
}

impl OptionReplyHeader {
    /// Bytes on the wire.
    pub const BYTES: usize = 20;

    /// To the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.reply.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.length_bytes.to_be_bytes());
        bytes
    }

    /// From the wire; `None` if the magic is wrong or there are too few bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u64()? != OPTION_REPLY_MAGIC {
            return None;
        }
        Some(Self {
            option: reader.u32()?,
            reply: reader.u32()?,
            length_bytes: reader.u32()?,
        })
    }
}

/// A simple reply, without its data: `magic u32 | error u32 | cookie u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0, or a number of [`ReplyError`](super::ReplyError).
    pub error: u32,
    /// The request's.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes on the wire.
    pub const BYTES: usize = 16;

    /// To the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }

    /// From the wire; `None` if the magic is wrong or there are too few bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != SIMPLE_REPLY_MAGIC {
            return None;
        }
        Some(Self {
            error: reader.u32()?,
            cookie: reader.u64()?,
        })
    }
}

/// A structured reply chunk, without its payload:
/// `magic u32 | flags u16 | type u16 | cookie u64 | length u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`chunk::DONE`](super::chunk::DONE) or 0.
    pub flags: u16,
    /// See [`chunk`](super::chunk).
    pub kind: u16,
    /// The request's.
    pub cookie: u64,
    /// Bytes of payload that follow.
    pub length_bytes: u32,
}

impl ChunkHeader {
    /// Bytes on the wire.
    pub const BYTES: usize = 20;

    /// To the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.length_bytes.to_be_bytes());
        bytes
    }

    /// From the wire; `None` if the magic is wrong or there are too few bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != CHUNK_MAGIC {
            return None;
        }
        Some(Self {
            flags: reader.u16()?,
            kind: reader.u16()?,
            cookie: reader.u64()?,
            length_bytes: reader.u32()?,
        })
    }
}

/// Takes big-endian fields off the front of bytes; `None` when there are too few.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the first byte on.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Bytes that are left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(taken)
    }

    /// A string: its length in 32 bits, then its bytes.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{chunk, command, option, option_reply};
    use super::*;

    #[test]
    fn headers_read_back_as_written_and_refuse_a_wrong_magic() {
        let request = RequestHeader {
            flags: 3,
            command: command::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset_bytes: 1 << 40,
            length_bytes: 4096,
        };
        assert_eq!(RequestHeader::decode(&request.encode()), Some(request));
        let option = OptionHeader {
            option: option::GO,
            length_bytes: 12,
        };
        assert_eq!(OptionHeader::decode(&option.encode()), Some(option));
        let reply = OptionReplyHeader {
            option: option::GO,
            reply: option_reply::ACK,
            length_bytes: 0,
        };
        assert_eq!(OptionReplyHeader::decode(&reply.encode()), Some(reply));
        let simple = SimpleReply { error: 5, cookie: 9 };
        assert_eq!(SimpleReply::decode(&simple.encode()), Some(simple));
        let piece = ChunkHeader {
            flags: chunk::DONE,
            kind: chunk::OFFSET_DATA,
            cookie: 7,
            length_bytes: 20,
        };
        assert_eq!(ChunkHeader::decode(&piece.encode()), Some(piece));
        let mut wrong = request.encode();
        wrong[0] ^= 1;
        assert_eq!(RequestHeader::decode(&wrong), None);
        assert_eq!(ChunkHeader::decode(&simple.encode()), None);
        assert_eq!(RequestHeader::decode(&request.encode()[..27]), None);
    }

    #[test]
    fn a_reader_never_reads_past_the_end() {
        let mut reader = Reader::new(&[0, 0, 0, 5, 1, 2]);
        assert_eq!(reader.string(), None);
        let mut reader = Reader::new(&[0, 0, 0, 2, 1, 2, 9]);
        assert_eq!(reader.string(), Some(&[1, 2][..]));
        assert_eq!(reader.rest(), &[9]);
        assert_eq!(reader.u16(), None);
        assert_eq!(reader.rest(), &[9]);
    }
}
