//! The way from the console to the daemon: its control socket.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::Method;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long the daemon may take to begin its answer. Making a pool and the like takes its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// Bytes of an answer that the console reads itself, at most.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The daemon of a socket.
#[derive(Debug)]
pub(super) struct Daemon {
    socket: PathBuf,
}

/// The daemon gave no answer.
#[derive(Debug)]
pub(super) struct Away {
    socket: PathBuf,
    why: String,
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no daemon answers on {}: {}", self.socket.display(), self.why)
    }
}

impl Daemon {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// What the daemon answers, as it is; its body comes while it is read.
    pub(super) async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Body>, Away> {
        let (parts, body) = self.send(method, path, body).await?.into_parts();
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = parts.status;
        if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
            response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
        }
        Ok(response)
    }

    /// GET
    pub(super) async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, Away> {
        let (parts, body) = self.send(Method::GET, path, Bytes::new()).await?.into_parts();
        let read = axum::body::to_bytes(Body::new(body), ANSWER_BYTES_MAX).await;
        let bytes = read.map_err(|error| self.away(&error))?;
        if parts.status != StatusCode::OK {
            return Err(self.away(&format!("{path}: {}", parts.status)));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| self.away(&format!("{path} is not understood: {error}")))
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Away> {
        let connected = UnixStream::connect(&self.socket).await;
        let stream = connected.map_err(|error| self.away(&error))?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|error| self.away(&error))?;
        // It ends with the answer, or when nobody wants the answer any more.
        tokio::spawn(connection);
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|error| self.away(&error))?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_static("stillpoint"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match timeout(ANSWER_LIMIT, sender.send_request(request)).await {
            Ok(answer) => answer.map_err(|error| self.away(&error)),
            Err(_) => Err(self.away(&format!(
                "it took more than {} s; what was asked for may go on",
                ANSWER_LIMIT.as_secs()
            ))),
        }
    }

    fn away(&self, why: &impl fmt::Display) -> Away {
        Away {
            socket: self.socket.clone(),
            why: why.to_string(),
        }
    }
}
