//! The daemon: starts everything, serves until it is told to stop, stops everything.
//!
//! ```text
//! start: state directory (lock) -> sockets bound -> processors -> known pools, given pools -> listen -> API
//! stop:  API ends -> no further connections -> sessions end, pools close (checkpoint) -> processors end
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::api;
use crate::appliance::{Appliance, ListenerUri, Options};
use crate::error::{Error, Result};
use crate::mailbox::{
    Listener, Mailbox, NOTICES_MAX, NoticeSender, PollLoopOptions, PollLoops, PoolOptions, ToProcessor,
};
use crate::notices;
use crate::patience::{self, Questions};
use crate::poll_loop;
use crate::state::{KnownPool, State};
use stillpoint_export::Seats;
pub use stillpoint_hw::device::nvme::passthrough::DurableWrites;
use stillpoint_hw::discovery::Machine;
use stillpoint_hw::socket::{listen_tcp, listen_unix};
use stillpoint_hw::{files, tail, topology};

/// How many processors there are, if nothing is said: one per allowed physical core, less one for the control plane and
/// the rest of the machine; at least 1.
#[must_use]
pub fn processors_default() -> usize {
    topology::processors_for(&topology::allowed_cores())
}

/// What a processor does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Poll for a short while where that pays, then sleep until something comes.
    Adaptive,
    /// Never sleep.
    Busy,
    /// Sleep at once.
    Sleep,
}

impl PollMode {
    /// How long a processor polls without finding anything before it sleeps, of so many on a machine with this many physical
    /// cores; `None`: it never sleeps. If no core is left for others, a core that polls is missed by clients and interrupts, and
    /// even trying it now and then costs more than it shows.
    #[must_use]
    pub fn quiet_ns(self, cores: usize, processors: usize) -> Option<u64> {
        match self {
            Self::Adaptive if cores <= processors => Some(0),
            Self::Adaptive => Some(100_000),
            Self::Busy => None,
            Self::Sleep => Some(0),
        }
    }
}

/// Where log tails lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TailDirectory {
    /// In the best place of this machine; without log tails if there is none.
    Chosen,
    /// Here, or the daemon does not start.
    Given(PathBuf),
    /// There are none.
    None,
}

/// How the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonOptions {
    /// Where the pools that are open are remembered.
    pub state_directory: PathBuf,
    /// Where sockets lie; made if needed.
    pub run_directory: PathBuf,
    /// Socket of the API.
    pub control_socket: PathBuf,
    /// Sockets for NBD clients.
    pub nbd_unix: Vec<PathBuf>,
    /// Addresses for NBD clients.
    pub nbd_tcp: Vec<SocketAddr>,
    /// Number of processors; `None`: [`processors_default`].
    pub processors: Option<usize>,
    /// Whether processors are pinned to cores.
    pub pin: bool,
    /// What they do when there is nothing to do.
    pub poll: PollMode,
    /// See [`Options::nvme_commands`].
    pub nvme_commands: Option<DurableWrites>,
    /// Memory for map pages of each pool.
    pub map_cache_bytes: u64,
    /// Memory for buffers of each processor.
    pub buffer_bytes: u64,
    /// Where log tails lie.
    pub tail_directory: TailDirectory,
    /// Connections of NBD clients at most.
    pub connection_limit: u32,
    /// Connections to one export at most.
    pub export_connection_limit: u32,
    /// How long a client may take from connecting to choosing an export, in nanoseconds.
    pub handshake_limit_ns: u64,
    /// Pools to open besides those that are remembered: the devices of each.
    pub pools: Vec<Vec<PathBuf>>,
}

impl DaemonOptions {
    /// Memory for map pages of each pool, unless something is said.
    pub const MAP_CACHE_BYTES: u64 = 256 << 20;
    /// Memory for buffers of each processor, unless something is said.
    pub const BUFFER_BYTES: u64 = 64 << 20;
    /// Connections of NBD clients at most, unless something is said.
    pub const CONNECTION_LIMIT: u32 = 4096;
    /// That number at most.
    pub const CONNECTION_LIMIT_MAX: u32 = stillpoint_export::nbd::CONNECTIONS_MAX as u32;
    /// Connections to one export at most, unless something is said.
    pub const EXPORT_CONNECTION_LIMIT: u32 = 1024;
    /// How long a client may take to choose an export, unless something is said: 10 s.
    pub const HANDSHAKE_LIMIT_NS: u64 = 10_000_000_000;
}

/// Descriptors that are not connections: devices, log tails, sockets, the API's clients.
const OTHER_DESCRIPTORS: u64 = 512;

/// The limit on connections, or a lower one if the system does not let this process have as many descriptors.
fn connections(limit: u32) -> Arc<Seats> {
    let descriptors = files::raise_descriptor_limit();
    let possible = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(descriptors / 2);
    if possible >= u64::from(limit) {
        return Seats::new(limit);
    }
    tracing::warn!(
        "only {possible} connections instead of {limit}: this process may have {descriptors} descriptors \
         (raise it with LimitNOFILE= or ulimit -n)"
    );
    Seats::new(possible as u32)
}

/// Runs the daemon until SIGTERM or SIGINT; a second one ends it at once.
///
/// # Errors
/// What kept it from starting.
pub fn run(options: DaemonOptions) -> Result<()> {
    let runtime = patience::builder()
        .enable_all()
        .build()
        .map_err(|error| Error::failure(format!("cannot start: {error}")))?;
    let result = runtime.block_on(serve(options));
    // Whoever still waits for a device that does not answer keeps nobody.
    runtime.shutdown_background();
    result
}

async fn serve(options: DaemonOptions) -> Result<()> {
    let mut signals = Signals::new()?;
    let state = State::open(&options.state_directory)?;
    let sockets = patience::unless_in_use(|| std::future::ready(Sockets::bind(&options))).await?;
    let tail_directory = tail_directory(&options.tail_directory)?;
    let (notices, notice_receiver) = mpsc::channel(NOTICES_MAX);
    let connections = connections(options.connection_limit);
    let near = near(&state.pools(), &options.pools).await;
    let processors = start_processors(&options, near, &connections, notices)?;
    let mailboxes = processors.mailboxes.clone();
    let pool = PoolOptions {
        map_cache_bytes: options.map_cache_bytes,
        tail_directory,
    };
    let options_of_appliance = Options {
        pool,
        nvme_commands: options.nvme_commands,
        buffer_bytes: options.buffer_bytes,
        listeners: sockets.uris.clone(),
        connections,
        export_connection_limit: options.export_connection_limit,
    };
    let appliance = Arc::new(Appliance::new(options_of_appliance, state, mailboxes.clone()));
    tokio::spawn(notices::tell_all(appliance.clone(), notice_receiver));
    let is_told_to_stop = open_pools(&appliance, &options.pools, &mut signals).await;
    let (stopping, told) = watch::channel(false);
    let devices = tokio::spawn({
        let appliance = appliance.clone();
        async move { appliance.look_after_devices(told).await }
    });
    let result = match is_told_to_stop {
        true => Ok(()),
        false => serve_until_told(&appliance, sockets, &mailboxes, &mut signals).await,
    };
    stopping.send_replace(true);
    tell(&mailboxes, || ToProcessor::Unlisten);
    if let Err(error) = devices.await {
        tracing::error!("what looks after devices ended before its time: {error}");
    }
    appliance.stop().await;
    stop_processors(&mailboxes).await;
    processors.join();
    for path in options.nbd_unix.iter().chain([&options.control_socket]) {
        // A socket that stays behind is replaced at the next start.
        let _ = std::fs::remove_file(path);
    }
    tracing::info!("stopped");
    result
}

/// So long the start waits for where devices lie.
const NEAR_LIMIT: Duration = Duration::from_secs(1);

/// How many devices of pools lie near which NUMA node: of those that are remembered and given. If there are none yet, of the
/// NVMe namespaces that nobody uses: a pool will be made of these.
async fn near(known: &[KnownPool], given: &[Vec<PathBuf>]) -> BTreeMap<u32, usize> {
    let known = known.iter().flat_map(|pool| &pool.devices);
    // A pool that is given is often remembered too.
    let paths: BTreeSet<PathBuf> = known.chain(given.iter().flatten()).cloned().collect();
    if paths.is_empty() {
        return Machine::here().nodes_of_free_namespaces();
    }
    // A file may be on a server that does not answer: then it is near nobody.
    let questions = (paths.into_iter()).map(|path| (path.clone(), move || Machine::here().nodes_of(&[path])));
    let answers = Questions::default().ask(questions.collect(), NEAR_LIMIT).await;
    let mut nodes = BTreeMap::new();
    for (node, count) in answers.into_values().flatten() {
        *nodes.entry(node).or_default() += count;
    }
    nodes
}

fn start_processors(
    options: &DaemonOptions,
    near: BTreeMap<u32, usize>,
    connections: &Arc<Seats>,
    notices: NoticeSender,
) -> Result<PollLoops> {
    let processors = options.processors.unwrap_or_else(processors_default);
    let cores = topology::physical_cores(&topology::allowed_cores());
    let options = PollLoopOptions {
        processors,
        pin: options.pin,
        near,
        quiet_ns: options.poll.quiet_ns(cores, processors),
        buffer_bytes: usize::try_from(options.buffer_bytes).unwrap_or(usize::MAX),
        connections: Arc::clone(connections),
        handshake_limit_ns: options.handshake_limit_ns,
    };
    poll_loop::start(&options, notices).map_err(|error| error.while_doing("cannot start the processors"))
}

/// Opens the pools that are known and given; gives whether somebody wants it to stop since. What has begun ends first.
async fn open_pools(appliance: &Appliance, given: &[Vec<PathBuf>], signals: &mut Signals) -> bool {
    let mut opening = std::pin::pin!(appliance.open_at_start(given));
    tokio::select! {
        () = &mut opening => return false,
        () = signals.told_to_stop() => {}
    }
    opening.await;
    true
}

async fn serve_until_told(
    appliance: &Arc<Appliance>,
    sockets: Sockets,
    mailboxes: &[Mailbox],
    signals: &mut Signals,
) -> Result<()> {
    for listener in sockets.nbd {
        mailboxes[0].send(ToProcessor::Listen { listener })?;
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(sockets.control, api::router(appliance.clone()));
    let server = server.with_graceful_shutdown(async {
        // Told, or the sender is gone: the same.
        let _ = stopped.await;
    });
    let server = tokio::spawn(async move { server.await });
    for uri in appliance.listeners() {
        tracing::info!("NBD clients: {}", uri.of("EXPORT"));
    }
    tracing::info!("ready");
    signals.told_to_stop().await;
    appliance.events().end_waiting();
    drop(stop);
    match server.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::failure(format!("the API ended: {error}"))),
        Err(error) => Err(Error::failure(format!("the API ended: {error}"))),
    }
}

fn tell(mailboxes: &[Mailbox], message: impl Fn() -> ToProcessor) {
    for mailbox in mailboxes {
        if let Err(error) = mailbox.send(message()) {
            tracing::warn!("{error}");
        }
    }
}

async fn stop_processors(mailboxes: &[Mailbox]) {
    let mut answers = Vec::new();
    for mailbox in mailboxes {
        let (reply, answer) = oneshot::channel();
        if mailbox.send(ToProcessor::Stop { reply }).is_ok() {
            answers.push(answer);
        }
    }
    for answer in answers {
        // No answer: the thread has ended, which is what was asked.
        let _ = answer.await;
    }
}

/// The sockets of the daemon, bound before anything else is touched.
struct Sockets {
    control: UnixListener,
    nbd: Vec<Listener>,
    uris: Vec<ListenerUri>,
}

impl Sockets {
    fn bind(options: &DaemonOptions) -> Result<Self> {
        make_directory(&options.run_directory)?;
        let refused = |error: stillpoint_hw::socket::ListenError| {
            use stillpoint_hw::socket::ListenError;
            match error {
                ListenError::InUse { .. } | ListenError::NotASocket { .. } => {
                    Error::conflict(error.to_string())
                }
                ListenError::Os { .. } => Error::failure(error.to_string()),
            }
        };
        let control = listen_unix(&options.control_socket).map_err(refused)?;
        only_for_this_user(&options.control_socket)?;
        control
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(control))
            .map_err(|error| Error::failure(format!("control socket: {error}")))
            .and_then(|control| {
                let mut sockets = Self {
                    control,
                    nbd: Vec::new(),
                    uris: Vec::new(),
                };
                for path in &options.nbd_unix {
                    sockets
                        .nbd
                        .push(Listener::Unix(listen_unix(path).map_err(refused)?));
                    only_for_this_user(path)?;
                    sockets.uris.push(ListenerUri::Unix(path.clone()));
                }
                for &address in &options.nbd_tcp {
                    let listener = listen_tcp(address).map_err(refused)?;
                    let bound = listener.local_addr().unwrap_or(address);
                    sockets.nbd.push(Listener::Tcp(listener));
                    sockets.uris.push(ListenerUri::Tcp(bound));
                }
                Ok(sockets)
            })
    }
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| {
            Error::failure(format!("run directory {}: {error}", path.display()))
                .hint("choose another with --run-dir")
        })
}

fn only_for_this_user(path: &Path) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| Error::failure(format!("{}: {error}", path.display())))
}

fn tail_directory(wanted: &TailDirectory) -> Result<Option<PathBuf>> {
    match wanted {
        TailDirectory::None => Ok(None),
        TailDirectory::Given(path) => match tail::check_tail_directory(path) {
            Ok(()) => Ok(Some(path.clone())),
            Err(error) => Err(Error::failure(format!("--tail-dir: {error}"))
                .hint("choose a directory on tmpfs, or --tail-dir none")),
        },
        TailDirectory::Chosen => match tail::tail_directory() {
            Ok(path) => Ok(Some(path)),
            Err(error) => {
                tracing::warn!("no log tails, writes go through the log: {error}");
                Ok(None)
            }
        },
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::failure(format!("cannot listen to signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for one of them; from then on the next one ends the process.
    async fn told_to_stop(&mut self) {
        self.recv().await;
        tracing::info!("stopping; a second signal stops at once");
        self.exit_at_the_next();
    }

    /// From now on the next signal ends the process.
    fn exit_at_the_next(&mut self) {
        match Self::new() {
            Ok(mut again) => {
                tokio::spawn(async move {
                    again.recv().await;
                    tracing::warn!("stopped at once");
                    std::process::exit(1);
                });
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_out_whether_polling_pays_only_where_a_core_is_left() {
        let adaptive = |cores, processors| PollMode::Adaptive.quiet_ns(cores, processors);
        for (cores, processors) in [(1, 1), (2, 2), (4, 4), (2, 3)] {
            assert_eq!(adaptive(cores, processors), Some(0), "{processors} of {cores}");
        }
        for (cores, processors) in [(2, 1), (4, 3), (64, 63)] {
            assert!(adaptive(cores, processors) > Some(0), "{processors} of {cores}");
        }
        assert_eq!(PollMode::Busy.quiet_ns(1, 1), None);
        assert_eq!(PollMode::Sleep.quiet_ns(64, 1), Some(0));
    }
}
