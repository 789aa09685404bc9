//! One end of a stream connection.

use core::fmt;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// A connected stream socket, TCP or unix.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A network address.
    Tcp(SocketAddr),
    /// Somebody on this machine.
    Unix,
    /// Gone already.
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("local"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl Connection {
    /// Takes over a connected socket; small messages go out at once (TCP_NODELAY).
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        let tcp = TcpStream::from(socket);
        if tcp.local_addr().is_ok() {
            // It only costs latency if this fails, as it does when the peer is gone already.
            let _ = tcp.set_nodelay(true);
            return Self {
                stream: Stream::Tcp(tcp),
            };
        }
        Self {
            stream: Stream::Unix(UnixStream::from(OwnedFd::from(tcp))),
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        match &self.stream {
            Stream::Tcp(stream) => stream.peer_addr().map_or(Peer::Unknown, Peer::Tcp),
            Stream::Unix(_) => Peer::Unix,
        }
    }

    /// Ends the conversation in both directions: transfers under way complete soon. Never blocks.
    pub fn shut_down(&self) {
        // It fails only if the peer was faster.
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}
