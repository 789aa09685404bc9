//! Talking to the daemon: HTTP and JSON over its control socket.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use tokio::task::JoinHandle;

use crate::cli::Global;
use crate::exit::Failure;
use stillpoint_appliance::{Error, directories};

/// Where the daemon listens: what was given, or the default.
pub fn control_socket(global: &Global) -> PathBuf {
    let default = || directories::control_socket(&directories::run_directory());
    global.socket.clone().unwrap_or_else(default)
}

/// A way to the daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// To the daemon of this socket, or of the default one.
    pub fn new(global: &Global) -> Self {
        let socket = control_socket(global);
        Self { socket }
    }

    /// GET
    pub fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, Failure> {
        self.call(Method::GET, path, Vec::new())
    }

    /// POST
    pub fn post<R: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<R, Failure> {
        self.call(Method::POST, path, serde_json::to_vec(body).expect("plain data"))
    }

    /// DELETE
    pub fn delete(&self, path: &str) -> Result<(), Failure> {
        self.call(Method::DELETE, path, Vec::new())
    }

    /// GET of lines: gives each to `each` as it comes.
    pub fn lines(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        runtime()?.block_on(async {
            let (response, driver) = self.send(Method::GET, path, Vec::new()).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let bytes = body
                    .collect()
                    .await
                    .map_err(|error| self.lost(&error))?
                    .to_bytes();
                return Err(refusal(status, &bytes));
            }
            let mut rest = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| self.lost(&error))?;
                rest.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
                let whole = rest
                    .iter()
                    .rposition(|&byte| byte == b'\n')
                    .map_or(0, |at| at + 1);
                for line in rest[..whole].split_inclusive(|&byte| byte == b'\n') {
                    each(line)?;
                }
                rest.drain(..whole);
            }
            driver.abort();
            Ok(())
        })
    }

    fn call<R: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<R, Failure> {
        let (status, bytes) = runtime()?.block_on(self.exchange(method, path, body))?;
        // No content reads as null, which is () and nothing else.
        let bytes = if bytes.is_empty() {
            Bytes::from_static(b"null")
        } else {
            bytes
        };
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| strange(&error.to_string()));
        }
        Err(refusal(status, &bytes))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let (response, driver) = self.send(method, path, body).await?;
        let status = response.status();
        let collected = response.into_body().collect().await;
        let bytes = collected.map_err(|error| self.lost(&error))?.to_bytes();
        driver.abort();
        Ok((status, bytes))
    }

    /// Sends a request; what it gives second carries the response and is to be aborted behind it.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(Response<Incoming>, JoinHandle<hyper::Result<()>>), Failure> {
        let shown = self.socket.display();
        let stream = tokio::net::UnixStream::connect(&self.socket)
            .await
            .map_err(|error| Failure::Unreachable(format!("no daemon answers on {shown}: {error}")))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.lost(&error))?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "stillpoint")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Error::usage(format!("{path:?}: {error}")))?;
        let response = sender.send_request(request).await;
        Ok((response.map_err(|error| self.lost(&error))?, driver))
    }

    fn lost(&self, error: &hyper::Error) -> Failure {
        Failure::Unreachable(format!(
            "the daemon on {} broke off: {error}",
            self.socket.display()
        ))
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| Error::failure(format!("cannot start: {error}")))
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice::<Error>(body) {
        Ok(error) => Failure::Refused(error),
        Err(_) => strange(&format!("{status}: {}", String::from_utf8_lossy(body))),
    }
}

/// An answer that is no answer.
pub fn strange(what: &str) -> Failure {
    Error::failure(format!("the daemon's answer is not understood: {what}"))
        .hint("are the daemon and this program of the same version?")
        .into()
}

/// A name as part of a path or query: what is not a plain character is escaped.
pub fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-@".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// A path with a query of those parameters that are given.
pub fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let given = parameters
        .iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)));
    let query: Vec<String> = given
        .map(|(name, value)| format!("{name}={}", escape(value)))
        .collect();
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", query.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(escape("vol@monday-1.2_x"), "vol@monday-1.2_x");
        assert_eq!(escape("a/../b?c#d e%"), "a%2F..%2Fb%3Fc%23d%20e%25");
        assert_eq!(escape("ä"), "%C3%A4");
        assert_eq!(with_query("/x", &[("a", None), ("b", Some("1&2"))]), "/x?b=1%262");
        assert_eq!(with_query("/x", &[("a", None)]), "/x");
    }
}
