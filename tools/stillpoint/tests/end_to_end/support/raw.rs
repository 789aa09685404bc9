//! A client that says exactly what it is told to, right or wrong.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use stillpoint_export::nbd::client::{encode_go, encode_option, string};
use stillpoint_export::nbd::wire::{OptionReplyHeader, info, option, option_reply};

/// Bytes of the server's greeting.
pub const GREETING_BYTES: usize = 18;
/// The flags of a client that understands everything.
pub const FLAGS: u32 = 3;
/// How long a server that says nothing is waited for. Not a measure of anything: beyond it, it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that was greeted.
#[derive(Debug)]
pub struct Raw {
    stream: UnixStream,
}

impl Raw {
    /// Connects and takes the greeting.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let mut raw = Self::silent(socket)?;
        raw.receive(GREETING_BYTES)?;
        Ok(raw)
    }

    /// Connects and does nothing.
    pub fn silent(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// Sends all of it, unless the server has hung up: that shows in what comes back.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
            assert!(gone.contains(&error.kind()), "sending: {error}");
        }
    }

    /// Sends what the socket takes at once; how much that was.
    pub fn send_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_nonblocking(true)?;
        let result = self.stream.write(bytes);
        self.stream.set_nonblocking(false)?;
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    /// So many bytes.
    pub fn receive(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Takes replies to options up to the one that enters transmission.
    ///
    /// # Panics
    /// If an option is refused, or something else comes.
    pub fn skip_options(&mut self) {
        loop {
            let head = self.receive(OptionReplyHeader::BYTES).expect("a reply");
            let head = OptionReplyHeader::decode(&head).expect("a reply to an option");
            self.receive(head.length_bytes as usize).expect("its data");
            assert_eq!(head.reply & option_reply::ERROR, 0, "option {}", head.option);
            if (head.option, head.reply) == (option::GO, option_reply::ACK) {
                return;
            }
        }
    }

    /// Says that nothing more will come.
    pub fn end(&mut self) {
        // The server may have hung up already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Everything until the server hangs up.
    ///
    /// # Panics
    /// If it does not.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            // What the server never read makes its hanging up a reset.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server neither spoke nor hung up: {error}"),
        }
        bytes
    }
}

/// Flags and options up to the choice of an export.
pub fn hello(export: &str, structured: bool, wanted: &[u16]) -> Vec<u8> {
    let mut bytes = FLAGS.to_be_bytes().to_vec();
    if structured {
        bytes.extend(encode_option(option::STRUCTURED_REPLY, &[]));
        let data = queries(export, &[b"base:allocation"]);
        bytes.extend(encode_option(option::SET_META_CONTEXT, &data));
    }
    bytes.extend(encode_option(option::GO, &encode_go(export, wanted)));
    bytes
}

/// Data of a metadata context option.
pub fn queries(export: &str, queries: &[&[u8]]) -> Vec<u8> {
    let mut data = string(export.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend(string(query));
    }
    data
}

/// Replies to options at the start of `bytes`, each as (option, type), and the bytes behind the last whole one.
pub fn option_replies(mut bytes: &[u8]) -> (Vec<(u32, u32)>, &[u8]) {
    let mut replies = Vec::new();
    while let Some(head) = bytes
        .get(..OptionReplyHeader::BYTES)
        .and_then(OptionReplyHeader::decode)
    {
        let end = OptionReplyHeader::BYTES + head.length_bytes as usize;
        let Some(rest) = bytes.get(end..) else { break };
        replies.push((head.option, head.reply));
        bytes = rest;
    }
    (replies, bytes)
}

/// Asks for the block sizes, and so promises to keep to them.
pub const BLOCK_SIZES: [u16; 1] = [info::BLOCK_SIZE];
