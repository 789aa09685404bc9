//! Listening sockets.

use core::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// A socket cannot be listened on.
#[derive(Debug)]
pub enum ListenError {
    /// Somebody listens there.
    InUse {
        /// The address.
        address: String,
    },
    /// Something that is no socket is in the way.
    NotASocket {
        /// The path.
        path: String,
    },
    /// Something else.
    Os {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { address } => {
                write!(
                    f,
                    "somebody listens on {address} already; stop that first or choose another address"
                )
            }
            Self::NotASocket { path } => {
                write!(
                    f,
                    "{path} exists and is no socket; choose another path or remove it"
                )
            }
            Self::Os { address, source } => write!(f, "cannot listen on {address}: {source}"),
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Os { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Listens on a TCP address.
///
/// # Errors
/// [`ListenError`].
pub fn listen_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).map_err(|source| refused(address.to_string(), source))
}

/// Listens on a unix socket. A socket that a dead process left behind is replaced; one that somebody
/// listens on is not.
///
/// # Errors
/// [`ListenError`].
pub fn listen_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let address = path.display().to_string();
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        other => return other.map_err(|source| refused(address, source)),
    }
    let there = std::fs::symlink_metadata(path).map_err(|source| refused(address.clone(), source))?;
    if !there.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: address });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(_) => return Err(ListenError::InUse { address }),
        Err(source) => return Err(refused(address, source)),
    }
    std::fs::remove_file(path).map_err(|source| refused(address.clone(), source))?;
    UnixListener::bind(path).map_err(|source| refused(address, source))
}

fn refused(address: String, source: io::Error) -> ListenError {
    if source.kind() == io::ErrorKind::AddrInUse {
        ListenError::InUse { address }
    } else {
        ListenError::Os { address, source }
    }
}
