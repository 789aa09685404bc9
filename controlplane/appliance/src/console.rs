//! The console: a page for a browser, served on a loopback address, that sees and does what the API allows.
//!
//! It is a program of its own beside the daemon, and a client of its socket like the command line. So the daemon listens on no
//! address for it, and whoever may use the console is who may use the socket.
//!
//! ```text
//! browser --- HTTP, loopback ---> console --- HTTP, unix socket ---> daemon
//!             /                     the page (embedded)
//!             /session              a ticket for a key
//!             /history              figures of the last ten minutes
//!             /v1/...               passed on as it is
//! ```
//!
//! What has to be so before a request is looked at any further (`access`), in this order:
//!
//! | checked | against |
//! |---|---|
//! | the host that is asked for is this machine's loopback | names that an attacker lets point here (DNS rebinding) |
//! | what changes something comes from the page itself (`Origin`) | other pages in the same browser |
//! | the key, for all but the page itself | other users of this machine |
//!
//! Who is connected and does nothing keeps nobody out (`seats`).

mod access;
mod assets;
mod daemon;
mod history;
mod seats;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, timeout};

use crate::api::extract::Query;
use crate::error::{Error, ErrorKind, Result};
use access::{Access, Refusal};
use daemon::Daemon;
use history::{History, HistoryQuery, Sample};
use seats::{Impatient, Seat, Seats};

/// How long the head of a request may take to come, and how long a connection stays without one.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long the body of a request may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// How long the other end may take nothing of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the body of a request, at most.
const BODY_BYTES_MAX: usize = 256 << 10;
/// How often the daemon is asked for its figures.
const SAMPLE_PERIOD: Duration = Duration::from_secs(1);
/// How long it may take to give them.
const SAMPLE_LIMIT: Duration = Duration::from_secs(5);

/// How the console runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The loopback address that it listens on; port 0: one that is free.
    pub listen: SocketAddr,
    /// The daemon's control socket.
    pub control_socket: PathBuf,
}

/// Wishes for a further ticket; each is answered by telling its address.
pub type Wishes = mpsc::Receiver<()>;

#[derive(Debug)]
struct Console {
    access: Access,
    daemon: Daemon,
    history: Mutex<History>,
}

/// Serves the console until SIGTERM or SIGINT. `tell` is called with an address that lets one browser in, when the console
/// listens, and again for each wish.
///
/// # Errors
/// What kept it from listening, or what `tell` said.
pub fn run<E: From<Error>>(
    options: &Options,
    wishes: Wishes,
    tell: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    if !options.listen.ip().is_loopback() {
        return Err(not_loopback(options.listen).into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failure(format!("cannot start: {error}")))?;
    let result = runtime.block_on(serve(options, wishes, tell));
    runtime.shutdown_background();
    result
}

fn not_loopback(address: SocketAddr) -> Error {
    let port = match address.port() {
        0 => "PORT".to_owned(),
        port => port.to_string(),
    };
    Error::usage(format!(
        "the console does not listen on {address}: it speaks plain HTTP, and only on loopback addresses"
    ))
    .hint(format!(
        "run it with --listen 127.0.0.1:{port} on the server and `ssh -L {port}:127.0.0.1:{port} SERVER` where the browser is"
    ))
}

async fn serve<E: From<Error>>(
    options: &Options,
    mut wishes: Wishes,
    mut tell: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let cannot = |error: std::io::Error| Error::failure(format!("cannot wait for signals: {error}"));
    let mut interrupted = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(cannot)?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        Error::failure(format!("cannot listen on {}: {error}", options.listen))
            .hint("choose another port with --listen, or none: 127.0.0.1:0 takes one that is free")
    })?;
    let address = listener
        .local_addr()
        .map_err(|error| Error::failure(format!("cannot listen on {}: {error}", options.listen)))?;
    let console = Arc::new(Console {
        access: Access::default(),
        daemon: Daemon::new(options.control_socket.clone()),
        history: Mutex::default(),
    });
    tokio::spawn(sample(Arc::clone(&console)));
    tokio::spawn(accept(listener, router(Arc::clone(&console))));
    tell(&invitation(&console, address)?)?;
    loop {
        tokio::select! {
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            Some(()) = wishes.recv() => tell(&invitation(&console, address)?)?,
        }
    }
}

/// An address that lets one browser in. The ticket is behind the `#`: browsers send that to nobody.
fn invitation(console: &Console, address: SocketAddr) -> Result<String> {
    Ok(format!("http://{address}/#{}", console.access.ticket()?))
}

async fn accept(listener: TcpListener, router: Router) {
    let seats = Arc::new(Seats::default());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (seat, leave) = seats.take();
                tokio::spawn(converse(stream, router.clone(), seat, leave));
                // It is to be looked at before the next one takes a seat.
                tokio::task::yield_now().await;
            }
            // No descriptors, or the client is gone already: the next one may have more luck.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: TcpStream, router: Router, seat: Seat, leave: oneshot::Receiver<()>) {
    let router = router.layer(Extension(Arc::new(seat)));
    let stream = TokioIo::new(Impatient::new(stream, ANSWER_LIMIT));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    tokio::select! {
        // A browser that breaks off has no use for a word about it.
        _ = server.serve_connection(stream, TowerToHyperService::new(router)) => {}
        // Another needs the seat.
        _ = leave => {}
    }
}

fn router(console: Arc<Console>) -> Router {
    let kept = Router::new()
        .route("/history", get(history))
        .route("/v1/{*path}", any(pass_on))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&console), with_key));
    let page = assets::ALL
        .iter()
        .fold(Router::new(), |router, asset| {
            router.route(asset.path, get(move || async move { asset.response() }))
        })
        .route("/session", post(session));
    page.merge(kept)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(console)
        .layer(middleware::from_fn(from_the_page))
}

/// Before everything else: the right host, and the right origin. Behind everything: what the browser is told about it.
async fn from_the_page(request: Request, next: Next) -> Result<Response, Infallible> {
    let mut response = match access::check_place(request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in &assets::HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

async fn with_key(
    State(console): State<Arc<Console>>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
    next: Next,
) -> Response {
    match console.access.check_key(request.headers()) {
        Ok(()) => {
            seat.becomes_known();
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Self::WrongHost(_) | Self::ForeignOrigin | Self::NoOrigin => StatusCode::FORBIDDEN,
            Self::NoKey | Self::WrongTicket => StatusCode::UNAUTHORIZED,
        };
        (status, Json(self.error())).into_response()
    }
}

/// POST `/session`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ticket {
    ticket: String,
}

#[derive(Debug, Serialize)]
struct Key {
    key: String,
}

async fn session(State(console): State<Arc<Console>>, request: Request) -> Response {
    let body = match body_of(request).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let Ok(Ticket { ticket }) = serde_json::from_slice(&body) else {
        return Error::usage("a session begins with {\"ticket\": \"...\"}").into_response();
    };
    match console.access.admit(&ticket) {
        Ok(Some(key)) => Json(Key { key }).into_response(),
        Ok(None) => Refusal::WrongTicket.into_response(),
        Err(error) => error.into_response(),
    }
}

async fn history(State(console): State<Arc<Console>>, Query(query): Query<HistoryQuery>) -> Response {
    let history = console.history.lock().unwrap_or_else(PoisonError::into_inner);
    Json(history.after(query.after_ms)).into_response()
}

async fn pass_on(State(console): State<Arc<Console>>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    match body_of(request).await {
        Ok(body) => console
            .daemon
            .answer(method, path, body)
            .await
            .unwrap_or_else(|away| away.into_response()),
        Err(response) => response,
    }
}

async fn body_of(request: Request) -> Result<hyper::body::Bytes, Response> {
    let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX);
    match timeout(BODY_LIMIT, body).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let what = format!("a request of more than {BODY_BYTES_MAX} bytes, or one that broke off");
            Err((StatusCode::PAYLOAD_TOO_LARGE, Json(Error::usage(what))).into_response())
        }
        Err(_) => {
            let what = format!("the request was not there after {} s", BODY_LIMIT.as_secs());
            Err((StatusCode::REQUEST_TIMEOUT, Json(Error::usage(what))).into_response())
        }
    }
}

impl IntoResponse for daemon::Away {
    fn into_response(self) -> Response {
        let error = Error::new(ErrorKind::Unavailable, self.to_string());
        let error = error.hint("start it with `stillpoint serve`; the console finds it again by itself");
        (StatusCode::BAD_GATEWAY, Json(error)).into_response()
    }
}

async fn no_such_path() -> Error {
    Error::not_found("the console has no such path")
}

async fn no_such_method() -> Error {
    Error::usage("the console has no such method on this path")
}

/// Asks the daemon for its figures once a second, for ever.
async fn sample(console: Arc<Console>) {
    let mut ticks = tokio::time::interval(SAMPLE_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = async {
            let status = console.daemon.get("/v1/status").await?;
            let stages = console.daemon.get("/v1/stages").await?;
            let events = console.daemon.get("/v1/events?limit=1").await?;
            Ok::<_, daemon::Away>(Sample {
                status,
                stages,
                events,
            })
        };
        let sample = match timeout(SAMPLE_LIMIT, asked).await {
            Ok(Ok(sample)) => Ok(sample),
            Ok(Err(away)) => Err(away.to_string()),
            Err(_) => Err(format!(
                "the daemon does not answer within {} s",
                SAMPLE_LIMIT.as_secs()
            )),
        };
        let mut history = console.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.add(crate::pool::wall_ns() / 1_000_000, sample);
    }
}
