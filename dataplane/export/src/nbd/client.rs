//! The client's side of the protocol: a negotiation over any stream, requests to bytes, bytes to replies. Used
//! by the demo, the benches and the tests; always asks for structured replies, and copes without.

mod connection;
mod snapshot;

pub use connection::{Completed, Connection, RequestFailed};
pub use snapshot::take_snapshot;

use super::wire::{
    CHUNK_MAGIC, CONTEXT_ALLOCATION, ChunkHeader, GREETING_MAGIC, NAME_BYTES_MAX, OPTION_MAGIC, OptionHeader,
    OptionReplyHeader, Reader, ReplyError, SIMPLE_REPLY_MAGIC, SimpleReply, chunk, handshake_flags, info,
    option, option_reply,
};
use core::fmt;
use std::io;

/// Longest reply to an option that is taken, in bytes.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// What the server said of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// See [`transmission_flags`](super::wire::transmission_flags).
    pub flags: u16,
    /// Smallest unit of a request, in bytes; 1 if the server did not say.
    pub block_bytes: u32,
    /// Replies to reads are structured.
    pub structured: bool,
    /// `base:allocation` was selected: block status queries work.
    pub block_status: bool,
}

/// Why a negotiation failed or a reply was not understood.
#[derive(Debug)]
pub enum ClientError {
    /// The connection failed.
    Io(io::Error),
    /// The server refused an option: its number, the error type, the server's words.
    Refused {
        /// See [`option`].
        option: u32,
        /// See [`option_reply`].
        error: u32,
        /// What the server had to say.
        message: String,
    },
    /// What came is not NBD.
    Protocol(&'static str),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "NBD connection: {error}"),
            Self::Refused {
                option,
                error,
                message,
            } => write!(
                f,
                "the NBD server refused option {option} (error {error:#x}): {message}"
            ),
            Self::Protocol(what) => write!(f, "the NBD server broke the protocol: {what}"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Negotiates up to the transmission phase of the export `name`. The stream should not be buffered.
///
/// # Errors
/// [`ClientError`]: the connection broke, there is no such export, or this is no NBD server.
pub fn negotiate(stream: &mut (impl io::Read + io::Write), name: &str) -> Result<ExportInfo, ClientError> {
    negotiate_with(stream, name, true)
}

/// The same; asks for structured replies (and with them for block status) only if `structured`.
///
/// # Errors
/// As [`negotiate`].
pub fn negotiate_with(
    stream: &mut (impl io::Read + io::Write),
    name: &str,
    structured: bool,
) -> Result<ExportInfo, ClientError> {
    greet(stream)?;
    let mut export = ExportInfo {
        block_bytes: 1,
        ..ExportInfo::default()
    };
    if structured {
        let outcome = exchange(stream, option::STRUCTURED_REPLY, &[], |_, _| ());
        export.structured = is_granted(outcome)?;
    }
    if export.structured {
        let mut data = string(name.as_bytes());
        data.extend_from_slice(&1u32.to_be_bytes());
        data.extend_from_slice(&string(CONTEXT_ALLOCATION.as_bytes()));
        let mut selected = false;
        let outcome = exchange(stream, option::SET_META_CONTEXT, &data, |reply, _| {
            selected |= reply == option_reply::META_CONTEXT;
        });
        export.block_status = is_granted(outcome)? && selected;
    }
    let data = encode_go(name, &[info::BLOCK_SIZE]);
    exchange(stream, option::GO, &data, |reply, data| {
        if reply == option_reply::INFO {
            read_info(data, &mut export);
        }
    })?;
    if export.flags == 0 {
        return Err(ClientError::Protocol("no information about the export"));
    }
    Ok(export)
}

/// Takes the server's greeting and answers it.
fn greet(stream: &mut (impl io::Read + io::Write)) -> Result<(), ClientError> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    let mut reader = Reader::new(&greeting);
    if reader.u64() != Some(GREETING_MAGIC) || reader.u64() != Some(OPTION_MAGIC) {
        return Err(ClientError::Protocol("this is not a newstyle NBD server"));
    }
    let known = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
    let flags = reader.u16().unwrap_or(0) & known;
    if flags & handshake_flags::FIXED_NEWSTYLE == 0 {
        return Err(ClientError::Protocol("the server does not speak fixed newstyle"));
    }
    stream.write_all(&u32::from(flags).to_be_bytes())?;
    Ok(())
}

/// Data of a `GO` or `INFO` option that asks for these kinds of information.
#[must_use]
pub fn encode_go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = string(name.as_bytes());
    data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    for kind in wanted {
        data.extend_from_slice(&kind.to_be_bytes());
    }
    data
}

/// An option with its data.
#[must_use]
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader {
        option,
        length_bytes: data.len() as u32,
    };
    [&header.encode()[..], data].concat()
}

/// A string with its length in front.
#[must_use]
pub fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn read_info(data: &[u8], export: &mut ExportInfo) {
    let mut reader = Reader::new(data);
    match reader.u16() {
        Some(info::EXPORT) => {
            export.size_bytes = reader.u64().unwrap_or(0);
            export.flags = reader.u16().unwrap_or(0);
        }
        Some(info::BLOCK_SIZE) => export.block_bytes = reader.u32().unwrap_or(1),
        _ => {}
    }
}

/// Whether the server took an option that it may refuse.
fn is_granted(outcome: Result<(), ClientError>) -> Result<bool, ClientError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(ClientError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends an option and reads its replies up to the last.
fn exchange(
    stream: &mut (impl io::Read + io::Write),
    option: u32,
    data: &[u8],
    mut see: impl FnMut(u32, &[u8]),
) -> Result<(), ClientError> {
    stream.write_all(&encode_option(option, data))?;
    loop {
        let mut head = [0; OptionReplyHeader::BYTES];
        stream.read_exact(&mut head)?;
        let head = OptionReplyHeader::decode(&head)
            .filter(|head| head.option == option)
            .ok_or(ClientError::Protocol("a reply to an option that was not asked"))?;
        if head.length_bytes > OPTION_REPLY_BYTES_MAX {
            return Err(ClientError::Protocol("an endless reply to an option"));
        }
        let mut data = vec![0; head.length_bytes as usize];
        stream.read_exact(&mut data)?;
        if head.reply & option_reply::ERROR != 0 {
            data.truncate(NAME_BYTES_MAX);
            return Err(ClientError::Refused {
                option,
                error: head.reply,
                message: String::from_utf8_lossy(&data).into_owned(),
            });
        }
        if head.reply == option_reply::ACK {
            return Ok(());
        }
        see(head.reply, &data);
    }
}

/// How a reply begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHead {
    /// A simple reply; the data of a read follows if it succeeded.
    Simple(SimpleReply),
    /// A chunk; its payload follows.
    Chunk(ChunkHeader),
}

/// The head of a reply and its length in bytes; `None` if there are too few bytes yet.
///
/// # Errors
/// [`ClientError::Protocol`] if this is no reply.
pub fn parse_head(bytes: &[u8]) -> Result<Option<(ReplyHead, usize)>, ClientError> {
    let Some(magic) = Reader::new(bytes).u32() else {
        return Ok(None);
    };
    Ok(match magic {
        SIMPLE_REPLY_MAGIC => {
            SimpleReply::decode(bytes).map(|reply| (ReplyHead::Simple(reply), SimpleReply::BYTES))
        }
        CHUNK_MAGIC => ChunkHeader::decode(bytes).map(|head| (ReplyHead::Chunk(head), ChunkHeader::BYTES)),
        _ => return Err(ClientError::Protocol("bad magic of a reply")),
    })
}

/// The payload of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing.
    None,
    /// Bytes of the volume.
    Data {
        /// First byte.
        offset_bytes: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Zeroes.
    Hole {
        /// First byte.
        offset_bytes: u64,
        /// How many.
        length_bytes: u32,
    },
    /// What a metadata context tells of a range.
    Extents {
        /// Number of the context.
        context: u32,
        /// Length in bytes and state each.
        extents: Vec<(u32, u32)>,
    },
    /// The request failed.
    Error {
        /// How.
        error: ReplyError,
        /// Where, if the server said.
        offset_bytes: Option<u64>,
        /// What the server had to say.
        message: &'a [u8],
    },
}

/// Reads the payload of a chunk.
///
/// # Errors
/// [`ClientError::Protocol`] if the payload does not fit its type.
pub fn parse_chunk(kind: u16, payload: &[u8]) -> Result<Chunk<'_>, ClientError> {
    let parse = || {
        let mut reader = Reader::new(payload);
        Some(match kind {
            chunk::NONE => Chunk::None,
            chunk::OFFSET_DATA => Chunk::Data {
                offset_bytes: reader.u64()?,
                bytes: reader
                    .take(reader.rest().len())
                    .filter(|bytes| !bytes.is_empty())?,
            },
            chunk::OFFSET_HOLE => Chunk::Hole {
                offset_bytes: reader.u64()?,
                length_bytes: reader.u32()?,
            },
            chunk::BLOCK_STATUS => {
                let context = reader.u32()?;
                let mut extents = Vec::new();
                while !reader.rest().is_empty() {
                    extents.push((reader.u32()?, reader.u32()?));
                }
                Chunk::Extents { context, extents }
            }
            chunk::ERROR | chunk::ERROR_OFFSET => {
                let error = ReplyError::from_number(reader.u32()?);
                let length = reader.u16()?;
                let message = reader.take(usize::from(length))?;
                let offset_bytes = match kind {
                    chunk::ERROR_OFFSET => Some(reader.u64()?),
                    _ => None,
                };
                Chunk::Error {
                    error,
                    offset_bytes,
                    message,
                }
            }
            _ => return None,
        })
    };
    parse().ok_or(ClientError::Protocol("a chunk that does not fit its type"))
}
