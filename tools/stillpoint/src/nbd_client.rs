//! The NBD client over unix sockets. Several connections are several threads with a [`Connection`] each.

use std::os::unix::net::UnixStream;
use std::path::Path;

use stillpoint_export::nbd::client;
use stillpoint_export::nbd::client::ClientError;

/// A connection over a socket.
pub type Connection = client::Connection<UnixStream>;

/// Connects to a socket and negotiates.
///
/// # Errors
/// [`ClientError`].
pub fn connect(socket: &Path, export: &str) -> Result<Connection, ClientError> {
    Connection::open(UnixStream::connect(socket)?, export)
}
