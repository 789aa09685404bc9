//! An NBD client on a unix socket: one request after the other, or sending and receiving apart.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use stillpoint_export::nbd::client::{self, Chunk, ClientError, ExportInfo, ReplyHead};
use stillpoint_export::nbd::wire::{ReplyError, RequestHeader, chunk, command, command_flags};

/// Longest request that the tests send.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Why a request did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The server said so.
    Refused(ReplyError),
    /// The connection broke, or the server spoke nonsense.
    Broken(ClientError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::Broken(error) => write!(f, "{error}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Broken(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(ClientError::Io(error))
    }
}

/// A whole reply.
#[derive(Debug)]
pub struct Reply {
    /// The request's.
    pub cookie: u64,
    /// How it went.
    pub result: Result<(), ReplyError>,
    /// What was read; empty for other commands.
    pub data: Vec<u8>,
}

/// The sending half of a connection.
#[derive(Debug)]
pub struct Sender {
    stream: UnixStream,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Receiver {
    stream: BufReader<UnixStream>,
    structured: bool,
    /// Reads that have begun to come in, by cookie.
    reads: BTreeMap<u64, PendingRead>,
}

#[derive(Debug)]
struct PendingRead {
    offset_bytes: u64,
    data: Vec<u8>,
    filled_bytes: usize,
    error: Option<ReplyError>,
}

/// A connection to one export.
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
    receiver: Receiver,
    /// What the server said of the export.
    pub export: ExportInfo,
    next_cookie: u64,
}

impl Sender {
    /// Sends a request with its payload.
    pub fn send(&mut self, header: &RequestHeader, payload: &[u8]) -> io::Result<()> {
        // One packet for small requests: two would be two wake-ups of the server.
        let mut bytes = Vec::with_capacity(RequestHeader::BYTES + payload.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes)
    }

    /// Ends the connection, and with it the receiving half.
    pub fn end(self) {
        // It may be broken already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Receiver {
    /// The next whole reply. `read_of` tells offset and length in bytes of the read with this cookie, `None` if it is
    /// no read.
    pub fn receive(&mut self, read_of: impl Fn(u64) -> Option<(u64, usize)>) -> Result<Reply, ClientError> {
        loop {
            let mut bytes = [0; 32];
            self.stream.read_exact(&mut bytes[..16])?;
            let mut head = client::parse_head(&bytes[..16])?;
            if head.is_none() {
                self.stream.read_exact(&mut bytes[16..20])?;
                head = client::parse_head(&bytes[..20])?;
            }
            let cookie = match head {
                Some((ReplyHead::Simple(head), _)) => head.cookie,
                Some((ReplyHead::Chunk(head), _)) => head.cookie,
                None => return Err(ClientError::Protocol("a head of a reply that is too long")),
            };
            if let Some((offset_bytes, length_bytes)) = read_of(cookie) {
                self.reads.entry(cookie).or_insert_with(|| PendingRead {
                    offset_bytes,
                    data: vec![0; length_bytes],
                    filled_bytes: 0,
                    error: None,
                });
            }
            match head {
                Some((ReplyHead::Simple(head), _)) => return self.simple(head.cookie, head.error),
                Some((ReplyHead::Chunk(head), _)) => {
                    let mut payload = vec![0; head.length_bytes as usize];
                    self.stream.read_exact(&mut payload)?;
                    let content = client::parse_chunk(head.kind, &payload)?;
                    let error = self.take(head.cookie, content)?;
                    if head.flags & chunk::DONE != 0 {
                        return self.finish(head.cookie, error);
                    }
                }
                None => unreachable!("looked at above"),
            }
        }
    }

    fn simple(&mut self, cookie: u64, error: u32) -> Result<Reply, ClientError> {
        if let Some(read) = self.reads.get_mut(&cookie) {
            if self.structured {
                return Err(ClientError::Protocol("a simple reply to a read"));
            }
            if error == 0 {
                self.stream.read_exact(&mut read.data)?;
                read.filled_bytes = read.data.len();
            }
        }
        let error = (error != 0).then(|| ReplyError::from_number(error));
        self.finish(cookie, error)
    }

    /// Takes a chunk; gives the error that it tells.
    fn take(&mut self, cookie: u64, content: Chunk<'_>) -> Result<Option<ReplyError>, ClientError> {
        let (offset_bytes, length_bytes, bytes) = match content {
            Chunk::None | Chunk::Extents { .. } => return Ok(None),
            Chunk::Error { error, .. } => {
                if let Some(read) = self.reads.get_mut(&cookie) {
                    read.error = Some(error);
                }
                return Ok(Some(error));
            }
            Chunk::Data { offset_bytes, bytes } => (offset_bytes, bytes.len(), Some(bytes)),
            Chunk::Hole {
                offset_bytes,
                length_bytes,
            } => (offset_bytes, length_bytes as usize, None),
        };
        let read = self
            .reads
            .get_mut(&cookie)
            .ok_or(ClientError::Protocol("data that nobody asked for"))?;
        let place = offset_bytes
            .checked_sub(read.offset_bytes)
            .and_then(|start| read.data.get_mut(start as usize..start as usize + length_bytes))
            .ok_or(ClientError::Protocol("data beyond what was asked for"))?;
        match bytes {
            Some(bytes) => place.copy_from_slice(bytes),
            None => place.fill(0),
        }
        read.filled_bytes += length_bytes;
        Ok(None)
    }

    fn finish(&mut self, cookie: u64, error: Option<ReplyError>) -> Result<Reply, ClientError> {
        let (data, error) = match self.reads.remove(&cookie) {
            Some(read) => {
                let error = error.or(read.error);
                if error.is_none() && read.filled_bytes != read.data.len() {
                    return Err(ClientError::Protocol("less or more data than was asked for"));
                }
                (read.data, error)
            }
            None => (Vec::new(), error),
        };
        Ok(Reply {
            cookie,
            result: error.map_or(Ok(()), Err),
            data,
        })
    }
}

impl Connection {
    /// Connects and negotiates.
    pub fn open(socket: &Path, export: &str) -> Result<Self, ClientError> {
        let mut stream = UnixStream::connect(socket)?;
        let export = client::negotiate(&mut stream, export)?;
        let receiver = Receiver {
            stream: BufReader::with_capacity(64 << 10, stream.try_clone()?),
            structured: export.structured,
            reads: BTreeMap::new(),
        };
        Ok(Self {
            sender: Sender { stream },
            receiver,
            export,
            next_cookie: 1,
        })
    }

    /// The two halves, for threads of their own.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Reads.
    pub fn read(&mut self, offset_bytes: u64, length_bytes: usize) -> Result<Vec<u8>, Failure> {
        let reply = self.request(command::READ, 0, offset_bytes, length_bytes, &[])?;
        Ok(reply.data)
    }

    /// Reads all of the export.
    pub fn read_all(&mut self) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::with_capacity(self.export.size_bytes as usize);
        while (all.len() as u64) < self.export.size_bytes {
            let offset_bytes = all.len() as u64;
            let length_bytes = (self.export.size_bytes - offset_bytes).min(REQUEST_BYTES_MAX as u64);
            all.extend_from_slice(&self.read(offset_bytes, length_bytes as usize)?);
        }
        Ok(all)
    }

    /// Writes; with `fua` it is durable when answered.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8], fua: bool) -> Result<(), Failure> {
        let flags = if fua { command_flags::FUA } else { 0 };
        self.request(command::WRITE, flags, offset_bytes, bytes.len(), bytes)
            .map(drop)
    }

    /// Sends a write and leaves its answer for [`Self::await_answer`].
    pub fn send_write(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.send(command::WRITE, 0, offset_bytes, bytes.len(), bytes)?;
        Ok(())
    }

    /// The answer to a request that was only sent.
    pub fn await_answer(&mut self) -> Result<(), Failure> {
        let reply = self.receiver.receive(|_| None)?;
        reply.result.map_err(Failure::Refused)
    }

    /// Discards.
    pub fn trim(&mut self, offset_bytes: u64, length_bytes: usize) -> Result<(), Failure> {
        self.request(command::TRIM, 0, offset_bytes, length_bytes, &[])
            .map(drop)
    }

    /// Makes durable what was acknowledged, on all connections.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.request(command::FLUSH, 0, 0, 0, &[]).map(drop)
    }

    fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        length_bytes: usize,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset_bytes,
            length_bytes: length_bytes as u32,
        };
        self.sender.send(&header, payload)?;
        Ok(cookie)
    }

    fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        length_bytes: usize,
        payload: &[u8],
    ) -> Result<Reply, Failure> {
        let cookie = self.send(command, flags, offset_bytes, length_bytes, payload)?;
        let read = (command == command::READ).then_some((offset_bytes, length_bytes));
        let reply = self.receiver.receive(|_| read)?;
        if reply.cookie != cookie {
            return Err(ClientError::Protocol("the answer to another request").into());
        }
        match reply.result {
            Ok(()) => Ok(reply),
            Err(error) => Err(Failure::Refused(error)),
        }
    }
}
