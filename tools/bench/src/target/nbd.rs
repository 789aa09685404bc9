//! An NBD export, over a unix socket or TCP; each thread has a connection of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use stillpoint_export::nbd::client::{ClientError, Connection, ExportInfo};
use stillpoint_export::nbd::wire::{command, command_flags, option, option_reply, transmission_flags};
use stillpoint_hw::socket::wait_for;

use super::{Target, TargetError};
use crate::job::{Discards, Job, WriteMode};
use crate::schedule::{Kind, Request};

/// The port that IANA gave to NBD.
const PORT: u16 = 10809;

/// Where an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    place: Place,
    export: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp(String, u16),
}

impl FromStr for NbdUri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            format!("{text:?}: {why}; write nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT")
        };
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, query) = rest.split_once('?').ok_or_else(|| bad("the socket is missing"))?;
            let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
            let socket = socket.filter(|path| !path.is_empty());
            return Ok(Self {
                place: Place::Unix(decode(socket.ok_or_else(|| bad("the socket is missing"))?).into()),
                export: decode(export),
            });
        }
        let rest = text
            .strip_prefix("nbd://")
            .ok_or_else(|| bad("this kind of URI is not known"))?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        // An IPv6 address has colons of its own, in brackets.
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                (name, port.parse().map_err(|_| bad("the port is no number"))?)
            }
            _ => (host, PORT),
        };
        if name.is_empty() {
            return Err(bad("the host is missing"));
        }
        Ok(Self {
            place: Place::Tcp(
                name.trim_start_matches('[').trim_end_matches(']').to_owned(),
                port,
            ),
            export: decode(export),
        })
    }
}

/// Text with its `%41` made `A`.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = (first == b'%').then(|| after.get(..2)).flatten();
        let number = hex.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match number {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = &self.export;
        match &self.place {
            Place::Unix(path) => write!(f, "nbd+unix:///{export}?socket={}", path.display()),
            Place::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{export}"),
        }
    }
}

impl NbdUri {
    /// Says whether an export can do what a job asks of it.
    ///
    /// # Errors
    /// [`TargetError`]: what it cannot.
    pub(super) fn check(&self, export: &ExportInfo, job: &Job) -> Result<(), TargetError> {
        let lacks = |flag| export.flags & flag == 0;
        let refusal = if job.writes() && !lacks(transmission_flags::READ_ONLY) {
            "is read-only: measure it with reads"
        } else if job.discards != Discards::None && lacks(transmission_flags::SEND_TRIM) {
            "takes no discards: choose another --rw"
        } else if job.flush_every.is_some() && lacks(transmission_flags::SEND_FLUSH) {
            "takes no flushes: leave --fsync out"
        } else if job.durable_writes && lacks(transmission_flags::SEND_FUA) {
            "makes no single writes durable: leave --writefua out"
        } else if job.write_mode == WriteMode::Zeroes && lacks(transmission_flags::SEND_WRITE_ZEROES) {
            "makes no zeros: leave --write-mode out"
        } else {
            return Ok(());
        };
        Err(TargetError::Other(format!("{self} {refusal}")))
    }

    /// Connects, and gives what the server says of the export.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(super) fn look(&self) -> Result<ExportInfo, TargetError> {
        let stream = self.connect()?;
        let connection = Connection::open(stream, &self.export).map_err(|error| self.refused(error))?;
        let info = connection.export().clone();
        connection.close();
        Ok(info)
    }

    /// Says it in words if the server has no such export.
    fn refused(&self, error: ClientError) -> TargetError {
        match error {
            ClientError::Refused {
                option: option::GO,
                error: option_reply::ERR_UNKNOWN,
                message,
            } => TargetError::Other(format!(
                "{self}: there is no export {:?} on this server ({message}): `stillpoint export list` names those of an appliance",
                self.export
            )),
            error => error.into(),
        }
    }

    fn connect(&self) -> Result<Stream, TargetError> {
        let named = |error: io::Error| TargetError::Other(format!("{self}: {error}"));
        match &self.place {
            Place::Unix(path) => UnixStream::connect(path).map(Stream::Unix).map_err(named),
            Place::Tcp(host, port) => {
                let stream = TcpStream::connect((&host[..], *port)).map_err(named)?;
                stream.set_nodelay(true).map_err(named)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(true),
            Self::Tcp(stream) => stream.set_nonblocking(true),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that takes whatever is written to it, and sends what the other side does not take yet later. Reading from it
/// never waits.
#[derive(Debug)]
struct Eager {
    stream: Stream,
    unsent: Vec<u8>,
    /// Bytes of these that are on their way.
    sent: usize,
    nonblocking: bool,
}

impl Eager {
    fn send(&mut self) -> io::Result<()> {
        while self.sent < self.unsent.len() {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // What was sent goes, or a server that is always a little behind would make this grow for ever.
                    if self.sent >= self.unsent.len() / 2 {
                        self.unsent.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.unsent.clear();
        self.sent = 0;
        Ok(())
    }
}

impl Read for Eager {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.send()?;
        self.stream.read(bytes)
    }
}

impl Write for Eager {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.nonblocking {
            return self.stream.write(bytes);
        }
        self.unsent.extend_from_slice(bytes);
        self.send()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection.
#[derive(Debug)]
pub struct NbdTarget {
    connection: Connection<Eager>,
    /// The number of each request in flight, by its cookie.
    numbers: BTreeMap<u64, u32>,
    write_mode: WriteMode,
    durable_writes: bool,
}

impl NbdTarget {
    /// Connects, for the requests of a job.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn connect(uri: &NbdUri, job: &Job) -> Result<Self, TargetError> {
        let stream = Eager {
            stream: uri.connect()?,
            unsent: Vec::new(),
            sent: 0,
            nonblocking: false,
        };
        let mut connection = Connection::open(stream, &uri.export)?;
        let stream = connection.stream_mut();
        stream.stream.set_nonblocking().map_err(ClientError::Io)?;
        stream.nonblocking = true;
        Ok(Self {
            connection,
            numbers: BTreeMap::new(),
            write_mode: job.write_mode,
            durable_writes: job.durable_writes,
        })
    }
}

impl Target for NbdTarget {
    fn start(&mut self, number: u32, request: Request, payload: &[u8]) -> Result<(), TargetError> {
        let (offset_bytes, length_bytes) = (request.offset_bytes, request.length_bytes);
        let cookie = match request.kind {
            Kind::Read => self.connection.send_read(offset_bytes, length_bytes)?,
            Kind::Write => match self.write_mode {
                WriteMode::Data => {
                    (self.connection).send_write(offset_bytes, payload, self.durable_writes)?
                }
                WriteMode::Zeroes => {
                    let flags = if self.durable_writes {
                        command_flags::FUA
                    } else {
                        0
                    };
                    (self.connection).send_command(
                        command::WRITE_ZEROES,
                        flags,
                        offset_bytes,
                        length_bytes,
                    )?
                }
            },
            Kind::Discard => self
                .connection
                .send_command(command::TRIM, 0, offset_bytes, length_bytes)?,
            Kind::Flush => self.connection.send_flush()?,
        };
        self.numbers.insert(cookie, number);
        Ok(())
    }

    fn poll(&mut self, mut ended: impl FnMut(u32, Result<(), String>, &[u8])) -> Result<(), TargetError> {
        if self.numbers.is_empty() {
            return Ok(());
        }
        // One that is here, or one look at the socket: whatever comes with it is taken in without another.
        let mut next = match self.connection.wait() {
            Ok(completed) => completed,
            Err(ClientError::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        while let Some(completed) = next {
            let number = self.numbers.remove(&completed.cookie).expect("one of ours");
            let result = completed.result.map_err(|error| error.to_string());
            ended(number, result, &completed.data);
            self.connection.recycle(completed.data);
            next = self.connection.take_completed()?;
        }
        Ok(())
    }

    fn wait(&mut self, timeout_ns: u64) -> Result<(), TargetError> {
        let eager = self.connection.stream_mut();
        eager.send().map_err(ClientError::Io)?;
        let behind = eager.sent < eager.unsent.len();
        let waited = match &eager.stream {
            Stream::Unix(stream) => wait_for(stream.as_fd(), behind, timeout_ns),
            Stream::Tcp(stream) => wait_for(stream.as_fd(), behind, timeout_ns),
        };
        waited.map_err(|error| ClientError::Io(error).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_not_kept_while_the_other_side_is_always_behind() {
        let (here, mut there) = UnixStream::pair().expect("a pair");
        let mut eager = Eager {
            stream: Stream::Unix(here),
            unsent: Vec::new(),
            sent: 0,
            nonblocking: true,
        };
        eager.stream.set_nonblocking().expect("ours");
        let mut bytes = vec![0; 32 << 10];
        // Never all of it is taken before more comes.
        eager.write_all(&[1; 1 << 20]).expect("it takes everything");
        for _ in 0..1600 {
            there.read_exact(&mut bytes).expect("there is more");
            eager.write_all(&bytes).expect("it takes everything");
            assert!(eager.unsent.len() - eager.sent > 0, "it is behind");
        }
        assert!(eager.unsent.capacity() < 8 << 20, "of 50 MiB that went through");
    }

    #[test]
    fn uris_are_read_as_others_read_them() {
        for (text, place, export) in [
            (
                "nbd+unix:///disk?socket=/run/nbd.sock",
                Place::Unix("/run/nbd.sock".into()),
                "disk",
            ),
            ("nbd+unix:///?socket=a%20b", Place::Unix("a b".into()), ""),
            ("nbd+unix:///disk%40s?socket=s", Place::Unix("s".into()), "disk@s"),
            ("nbd://host/disk", Place::Tcp("host".into(), 10809), "disk"),
            (
                "nbd://127.0.0.1:9000/disk",
                Place::Tcp("127.0.0.1".into(), 9000),
                "disk",
            ),
            ("nbd://[::1]:9000/", Place::Tcp("::1".into(), 9000), ""),
            ("nbd://[::1]", Place::Tcp("::1".into(), 10809), ""),
        ] {
            let expected = NbdUri {
                place,
                export: export.into(),
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for wrong in [
            "nbd://",
            "nbd://:1/x",
            "nbd://h:x/d",
            "nbd+unix:///d?sock=s",
            "nbds://h/d",
        ] {
            assert!(wrong.parse::<NbdUri>().is_err(), "{wrong}");
        }
    }
}
