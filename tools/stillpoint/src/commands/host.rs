//! `stillpoint host`: what a host can do that has an NBD connection and nothing else.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;
use stillpoint_appliance::{Error, ErrorKind, name};
use stillpoint_export::nbd::client::{ClientError, take_snapshot};
use stillpoint_export::nbd::wire::option_reply;

use crate::cli::{Global, HostCommand};
use crate::exit::Failure;
use crate::nbd_uri::{Address, NbdUri};
use crate::output;

/// How long a server that says nothing is waited for. A snapshot takes milliseconds; a server that is stuck ends the
/// negotiation by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does what is asked.
pub fn run(command: HostCommand, global: &Global) -> Result<(), Failure> {
    match command {
        HostCommand::Snapshot { uri, name } => {
            let uri: NbdUri = uri.parse()?;
            name::check("snapshot", &name)?;
            snapshot(&uri, &name).map_err(|error| told(&uri, &name, &error))?;
            let taken = json!({ "export": uri.export, "name": name });
            output::print(global, &taken, |_| {
                format!(
                    "snapshot {name} is taken: what was written and answered before is in it, and it is durable"
                )
            })
        }
    }
}

fn snapshot(uri: &NbdUri, name: &str) -> Result<(), ClientError> {
    match &uri.address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            take(stream, &uri.export, name)
        }
        Address::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            take(stream, &uri.export, name)
        }
    }
}

fn take(mut stream: impl Read + Write, export: &str, name: &str) -> Result<(), ClientError> {
    take_snapshot(&mut stream, export, name)
}

fn told(uri: &NbdUri, name: &str, error: &ClientError) -> Failure {
    let what = format!("snapshot {name} through {}", uri.address);
    let unreachable = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
    match error {
        ClientError::Io(error) if unreachable.contains(&error.kind()) => {
            Error::failure(format!("{what}: {error}"))
                .hint("`stillpoint export list` shows the URIs of exports")
                .into()
        }
        ClientError::Io(error) => Error::failure(format!("{what}: no answer: {error}"))
            .hint("it may have been taken or not: `stillpoint snapshot list` shows it, `nbdinfo` on the export too")
            .into(),
        ClientError::Protocol(problem) => Error::failure(format!("{what}: {problem}")).into(),
        ClientError::Refused {
            error, message, ..
        } => {
            let kind = match *error {
                option_reply::ERR_UNKNOWN => ErrorKind::NotFound,
                option_reply::ERR_INVALID => ErrorKind::Conflict,
                _ => ErrorKind::Failure,
            };
            Error::new(kind, format!("{what}: {message}")).into()
        }
    }
}
