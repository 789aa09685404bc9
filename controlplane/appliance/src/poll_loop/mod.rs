//! The poll loops: one pinned thread per processor, and all that a request meets on its way.
//!
//! ```text
//!            +----------------------------- one turn ------------------------------+
//! reap ───>  | devices' completions  sockets' events  wake-ups                     |
//!            | mailbox (control plane)    links (other processors)                 |
//!            | sessions: requests ──> own Processor, or the link to the owner      |
//!            | Processor::poll ──> answers ──> session, or the link back           |
//!            | coordinator (processor 0)   sessions: sends and receives            |
//!            +─ submit once ─ then poll again, or sleep in io_uring until something comes ─+
//! ```
//! Nothing is shared between the loops but the links ([`links`]), the arenas of buffers, the wakers, and the counts of
//! connections. A full
//! link or a busy shard makes a loop keep requests in a bounded backlog and take no further ones from its
//! clients until it is gone (I12).

mod asked;
mod connections;
mod control;
mod door;
mod links;
mod looping;
#[cfg(feature = "planted-bugs")]
mod planted;
mod polling;
mod pools;
mod routing;
mod stalls;

use std::fmt;
use std::sync::Arc;

use stillpoint_hw::buffers::{ArenaError, Arenas};
use stillpoint_hw::topology::{self, Core};
use stillpoint_hw::wake::{Sleeper, Waker, bell};

use crate::error::Error;
use crate::mailbox::{NoticeSender, PollLoopOptions, PollLoops, Wake, mailbox};
use links::Links;
use looping::{Loop, Parts};

/// Processors at most: eight bits of a session's tag.
pub const PROCESSORS_MAX: usize = 256;

/// Why the poll loops did not start.
#[derive(Debug)]
pub enum StartError {
    /// Too many or none.
    Processors(usize),
    /// No memory for buffers.
    Arena(ArenaError),
    /// A thread's io_uring or eventfd.
    Loop(String),
    /// The system did not start a thread.
    Thread(std::io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processors(count) => write!(
                f,
                "{count} processors asked for; 1 to {PROCESSORS_MAX} are possible"
            ),
            Self::Arena(error) => write!(f, "memory for buffers: {error}"),
            Self::Loop(message) => f.write_str(message),
            Self::Thread(error) => write!(f, "a thread: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl Wake for Waker {
    fn wake(&self) {
        Self::wake(self);
    }
}

/// Starts the poll loops; each has its ring when this returns.
///
/// # Errors
/// What kept them from starting, as a [`StartError`] would say it; no thread is left behind then.
pub fn start(options: &PollLoopOptions, notices: NoticeSender) -> crate::Result<PollLoops> {
    start_all(options, notices)
        .map_err(|error| Error::failure(error.to_string()).hint("stillpoint doctor tells more"))
}

fn start_all(options: &PollLoopOptions, notices: NoticeSender) -> Result<PollLoops, StartError> {
    let count = options.processors;
    if count == 0 || count > PROCESSORS_MAX {
        return Err(StartError::Processors(count));
    }
    let arenas = Arenas::map(count, options.buffer_bytes).map_err(StartError::Arena)?;
    let bells: Vec<(Sleeper, Waker)> = (0..count)
        .map(|_| bell())
        .collect::<Result<_, _>>()
        .map_err(StartError::Thread)?;
    let wakers: Vec<Waker> = bells.iter().map(|(_, waker)| waker.clone()).collect();
    let cores = if options.pin {
        topology::place_processors(&topology::allowed_cores(), count, &options.near)
    } else {
        vec![None; count]
    };
    let mut loops = PollLoops {
        mailboxes: Arc::new([]),
        threads: Vec::with_capacity(count),
    };
    let mut mailboxes = Vec::with_capacity(count);
    let (started, results) = std::sync::mpsc::channel();
    for ((index, (sleeper, waker)), links) in bells.into_iter().enumerate().zip(Links::matrix(count)) {
        let (sender, receiver) = mailbox(Arc::new(waker));
        mailboxes.push(sender);
        let parts = Parts {
            index,
            core: cores[index],
            quiet_ns: options.quiet_ns,
            arenas: Arc::clone(&arenas),
            sleeper,
            wakers: wakers.clone(),
            links,
            mailbox: receiver,
            notices: notices.clone(),
            connections: Arc::clone(&options.connections),
            handshake_limit_ns: options.handshake_limit_ns,
        };
        let started = started.clone();
        let thread = std::thread::Builder::new()
            .name(format!("processor-{index}"))
            .spawn(move || run(parts, &started))
            .map_err(StartError::Thread)?;
        loops.threads.push(thread);
    }
    drop(started);
    loops.mailboxes = mailboxes.into();
    for result in results.iter().take(count) {
        if let Err(message) = result {
            // The mailboxes go with `loops`: a loop without one ends.
            return Err(StartError::Loop(message));
        }
    }
    Ok(loops)
}

/// Ends the process if a poll loop panics: its shards' state is broken, and a daemon that serves a part of its volumes
/// would be worse than one that recovers.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn run(parts: Parts, started: &std::sync::mpsc::Sender<Result<(), String>>) {
    let _guard = AbortOnPanic;
    let core = parts.core;
    if let Some(core) = core
        && !pin(core)
    {
        tracing::warn!(
            "processor {} could not be pinned to core {}",
            parts.index,
            core.number
        );
    }
    if topology::ask_for_slices(topology::SLICE_NS_MIN).is_none() {
        tracing::debug!("processor {}: the kernel knows no slices of its own", parts.index);
    }
    match Loop::new(parts) {
        Ok(mut poll_loop) => {
            // Nobody listens any more if another loop failed: then the mailbox is gone too.
            let _ = started.send(Ok(()));
            poll_loop.run();
        }
        Err(message) => {
            let _ = started.send(Err(message));
        }
    }
}

fn pin(core: Core) -> bool {
    topology::pin_this_thread(core)
}
