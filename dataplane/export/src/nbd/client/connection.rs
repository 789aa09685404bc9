//! A connection with several requests in flight, over any stream that waits.

use super::{Chunk, ClientError, ExportInfo, ReplyHead, negotiate_with, parse_chunk, parse_head};
use crate::nbd::wire::{ReplyError, RequestHeader, chunk, command, command_flags};
use core::fmt;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// Bytes that are read from the stream at a time.
const INPUT_BYTES: usize = 256 << 10;
/// Requests are collected up to so many bytes before they are sent without being waited for.
const OUTPUT_BYTES: usize = 256 << 10;

/// A request that is done.
#[derive(Debug)]
pub struct Completed {
    /// What was returned when it was sent.
    pub cookie: u64,
    /// How it went.
    pub result: Result<(), ReplyError>,
    /// What was read; empty for other commands. Give it back with [`Connection::recycle`].
    pub data: Vec<u8>,
    /// Extents of a block status query: length in bytes and state each.
    pub extents: Vec<(u32, u32)>,
}

#[derive(Debug)]
struct Pending {
    offset_bytes: u64,
    data: Vec<u8>,
    extents: Vec<(u32, u32)>,
    error: Option<ReplyError>,
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    export: ExportInfo,
    next_cookie: u64,
    pending: BTreeMap<u64, Pending>,
    output: Vec<u8>,
    input: Vec<u8>,
    /// What of `input` is not yet understood.
    input_start: usize,
    input_end: usize,
    spare: Vec<Vec<u8>>,
}

impl<S: Read + Write> Connection<S> {
    /// Negotiates over a new stream.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open(stream: S, export: &str) -> Result<Self, ClientError> {
        Self::open_with(stream, export, true)
    }

    /// The same; asks for structured replies only if `structured`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open_with(mut stream: S, export: &str, structured: bool) -> Result<Self, ClientError> {
        let export = negotiate_with(&mut stream, export, structured)?;
        Ok(Self {
            stream,
            export,
            next_cookie: 1,
            pending: BTreeMap::new(),
            output: Vec::with_capacity(OUTPUT_BYTES + 4096),
            input: vec![0; INPUT_BYTES],
            input_start: 0,
            input_end: 0,
            spare: Vec::new(),
        })
    }

    /// The stream, to change how it waits.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// What the server said of the export.
    #[must_use]
    pub fn export(&self) -> &ExportInfo {
        &self.export
    }

    /// Requests that are not yet completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Sends a read; its cookie.
    ///
    /// # Errors
    /// The connection's.
    pub fn send_read(&mut self, offset_bytes: u64, length_bytes: u32) -> Result<u64, ClientError> {
        let mut data = self.spare.pop().unwrap_or_default();
        data.resize(length_bytes as usize, 0);
        self.send(command::READ, 0, offset_bytes, length_bytes, data, &[])
    }

    /// Sends a write; its cookie.
    ///
    /// # Errors
    /// The connection's.
    pub fn send_write(&mut self, offset_bytes: u64, bytes: &[u8], fua: bool) -> Result<u64, ClientError> {
        let length = u32::try_from(bytes.len()).expect("a write of less than 4 GiB");
        let flags = if fua { command_flags::FUA } else { 0 };
        self.send(command::WRITE, flags, offset_bytes, length, Vec::new(), bytes)
    }

    /// Sends a command without data: trim, write-zeroes, cache, block status; its cookie.
    ///
    /// # Errors
    /// The connection's.
    pub fn send_command(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> Result<u64, ClientError> {
        self.send(command, flags, offset_bytes, length_bytes, Vec::new(), &[])
    }

    /// Sends a flush; its cookie.
    ///
    /// # Errors
    /// The connection's.
    pub fn send_flush(&mut self) -> Result<u64, ClientError> {
        self.send(command::FLUSH, 0, 0, 0, Vec::new(), &[])
    }

    fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        length_bytes: u32,
        data: Vec<u8>,
        payload: &[u8],
    ) -> Result<u64, ClientError> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset_bytes,
            length_bytes,
        };
        self.output.extend_from_slice(&header.encode());
        if self.output.len() + payload.len() > OUTPUT_BYTES {
            self.push()?;
            self.stream.write_all(payload)?;
        } else {
            self.output.extend_from_slice(payload);
        }
        self.pending.insert(
            cookie,
            Pending {
                offset_bytes,
                data,
                extents: Vec::new(),
                error: None,
            },
        );
        Ok(cookie)
    }

    /// Sends what was collected.
    ///
    /// # Errors
    /// The connection's.
    pub fn push(&mut self) -> Result<(), ClientError> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    /// Waits for the next request to be done; `None` if there is none in flight.
    ///
    /// # Errors
    /// The connection's, or the server broke the protocol.
    pub fn wait(&mut self) -> Result<Option<Completed>, ClientError> {
        if self.pending.is_empty() {
            return Ok(None);
        }
        loop {
            if let Some(completed) = self.take_completed()? {
                return Ok(Some(completed));
            }
            if !self.output.is_empty() {
                self.push()?;
            }
            self.fill()?;
        }
    }

    /// A request whose reply is here already, without waiting.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn take_completed(&mut self) -> Result<Option<Completed>, ClientError> {
        while let Some((head, length)) = parse_head(&self.input[self.input_start..self.input_end])? {
            let body = self.input_start + length;
            let cookie = match head {
                ReplyHead::Simple(reply) => reply.cookie,
                ReplyHead::Chunk(head) => head.cookie,
            };
            let pending = self
                .pending
                .get_mut(&cookie)
                .ok_or(ClientError::Protocol("a reply to a request that was not sent"))?;
            let (end, done) = match head {
                ReplyHead::Simple(reply) => {
                    let data = if reply.error == 0 { pending.data.len() } else { 0 };
                    let Some(bytes) = self.input[..self.input_end].get(body..body + data) else {
                        self.make_room(length + data);
                        return Ok(None);
                    };
                    pending.data[..data].copy_from_slice(bytes);
                    pending.error = (reply.error != 0).then(|| ReplyError::from_number(reply.error));
                    (body + data, true)
                }
                ReplyHead::Chunk(head) => {
                    let payload = head.length_bytes as usize;
                    let Some(bytes) = self.input[..self.input_end].get(body..body + payload) else {
                        self.make_room(length + payload);
                        return Ok(None);
                    };
                    pending.take_in(&parse_chunk(head.kind, bytes)?)?;
                    (body + payload, head.flags & chunk::DONE != 0)
                }
            };
            self.input_start = end;
            if done {
                let pending = self.pending.remove(&cookie).expect("it was found");
                return Ok(Some(Completed {
                    cookie,
                    result: pending.error.map_or(Ok(()), Err),
                    data: pending.data,
                    extents: pending.extents,
                }));
            }
        }
        Ok(None)
    }

    /// Sees to it that a reply of so many bytes fits.
    fn make_room(&mut self, bytes: usize) {
        self.input.copy_within(self.input_start..self.input_end, 0);
        self.input_end -= self.input_start;
        self.input_start = 0;
        if self.input.len() < bytes {
            self.input.resize(bytes, 0);
        }
    }

    fn fill(&mut self) -> Result<(), ClientError> {
        if self.input_start == self.input_end {
            self.input_start = 0;
            self.input_end = 0;
        } else if self.input_end == self.input.len() {
            self.make_room(0);
        }
        let count = self.stream.read(&mut self.input[self.input_end..])?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.input_end += count;
        Ok(())
    }

    /// Takes back the memory of a completed read, to be used again.
    pub fn recycle(&mut self, data: Vec<u8>) {
        if data.capacity() > 0 && self.spare.len() < 64 {
            self.spare.push(data);
        }
    }

    /// Reads and waits. Nothing else may be in flight.
    ///
    /// # Errors
    /// The connection's or the request's.
    pub fn read(&mut self, offset_bytes: u64, length_bytes: u32) -> Result<Vec<u8>, RequestFailed> {
        let cookie = self.send_read(offset_bytes, length_bytes)?;
        self.finish(cookie)
    }

    /// Writes and waits. Nothing else may be in flight.
    ///
    /// # Errors
    /// The connection's or the request's.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), RequestFailed> {
        let cookie = self.send_write(offset_bytes, bytes, false)?;
        self.finish(cookie).map(|_| ())
    }

    /// Flushes and waits. Nothing else may be in flight.
    ///
    /// # Errors
    /// The connection's or the request's.
    pub fn flush(&mut self) -> Result<(), RequestFailed> {
        let cookie = self.send_flush()?;
        self.finish(cookie).map(|_| ())
    }

    fn finish(&mut self, cookie: u64) -> Result<Vec<u8>, RequestFailed> {
        let completed = self.wait()?.expect("a request is in flight");
        assert_eq!(completed.cookie, cookie, "nothing else is in flight");
        completed.result?;
        Ok(completed.data)
    }

    /// Says goodbye and closes.
    pub fn close(mut self) {
        if self.send(command::DISC, 0, 0, 0, Vec::new(), &[]).is_ok() {
            // The server closes either way.
            let _ = self.push();
        }
    }
}

impl Pending {
    fn take_in(&mut self, chunk: &Chunk<'_>) -> Result<(), ClientError> {
        let outside = ClientError::Protocol("data outside the range that was asked for");
        match *chunk {
            Chunk::Data { offset_bytes, bytes } => self
                .place(offset_bytes, bytes.len())
                .ok_or(outside)?
                .copy_from_slice(bytes),
            Chunk::Hole {
                offset_bytes,
                length_bytes,
            } => self
                .place(offset_bytes, length_bytes as usize)
                .ok_or(outside)?
                .fill(0),
            Chunk::Error { error, .. } => self.error = self.error.or(Some(error)),
            Chunk::Extents { ref extents, .. } => self.extents.clone_from(extents),
            Chunk::None => {}
        }
        Ok(())
    }

    fn place(&mut self, offset_bytes: u64, length: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(offset_bytes.checked_sub(self.offset_bytes)?).ok()?;
        self.data.get_mut(start..start.checked_add(length)?)
    }
}

/// Why a request that was waited for failed.
#[derive(Debug)]
pub enum RequestFailed {
    /// The connection.
    Connection(ClientError),
    /// The server said no.
    Reply(ReplyError),
}

impl fmt::Display for RequestFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => error.fmt(f),
            Self::Reply(error) => write!(f, "the NBD server refused a request: {error}"),
        }
    }
}

impl std::error::Error for RequestFailed {}

impl From<ClientError> for RequestFailed {
    fn from(error: ClientError) -> Self {
        Self::Connection(error)
    }
}

impl From<ReplyError> for RequestFailed {
    fn from(error: ReplyError) -> Self {
        Self::Reply(error)
    }
}
