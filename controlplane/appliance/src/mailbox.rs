//! The messages between the control plane and the poll loops.
//!
//! The control plane is ordinary async code on a thread of its own; a poll loop owns everything that is on the path
//! of a request and shares nothing. They meet only here: a bounded mailbox per processor (messages in,
//! answers by one-shot channels) and one channel of notices back. A poll loop takes a message between two
//! turns, so nothing here is on the path of a request.
//!
//! ```text
//! control plane                                   processor p
//!   OpenPool on every processor, wait for all      opens its shards, tells what it recovered
//!   Exports(table), wait for all                   sessions may now open these exports
//!   Shard / CreateSnapshot / Status ...            answers when done
//!   Exports(table without the pool), wait for all  ends the sessions of what is gone
//!   ClosePool on every processor                   finishes, makes a checkpoint, closes its devices
//!   Stop                                           the thread ends
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use stillpoint_coordinator::{OverallSnapshot, SnapshotError, SnapshotRequest};
use stillpoint_export::Seats;
pub use stillpoint_export::{Export, ExportTable, PoolIndex};
use stillpoint_hw::device::{Occupant, PoolFiles};
use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::command::{EventKind, IntermediateSnapshotStatus, Notice, VolumeShareStatus};
use stillpoint_processor::mirror::{MirrorNotice, MirrorStatus, SideAt, SideFailed, Sides};
use stillpoint_processor::ports::{DeviceError, OperationKind};
use stillpoint_processor::stages::Stages;
use stillpoint_processor::{DeviceIndex, ShardAnswer, ShardCommand, ShardIndex, ShardRequest, TimeStamp};
use tokio::sync::{mpsc, oneshot};

/// Messages that may wait in one mailbox.
pub const MAILBOX_MAX: usize = 1024;
/// Notices that may wait for the control plane; further ones are dropped and counted.
pub const NOTICES_MAX: usize = 4096;

/// A processor, by the number of its poll loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessorIndex(pub u16);

/// A message to a poll loop.
#[derive(Debug)]
pub enum ToProcessor {
    /// Open the shards of a pool that this processor is to own, and its own handles on the devices. Every
    /// processor gets this for every pool, even if it owns none of its shards: its sessions send requests
    /// to the owners.
    OpenPool {
        /// The pool's place; free until now.
        pool: PoolIndex,
        /// What to open.
        part: Box<PoolPart>,
        /// Answered when the shards are open; requests are taken from then on.
        reply: oneshot::Sender<Result<Vec<RecoveredShard>, OpenPoolError>>,
    },
    /// Finish the requests, make a checkpoint of every shard, close the devices. No export refers to the pool
    /// any more.
    ClosePool {
        /// The pool.
        pool: PoolIndex,
        /// Answered when all is closed; `Err` says what could not be made durable by the checkpoint (the log
        /// still has it).
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// A command to a shard that this processor owns.
    Shard {
        /// The pool.
        pool: PoolIndex,
        /// The shard.
        shard: ShardIndex,
        /// The command; never one of those that belong to the coordinator.
        command: ShardCommand,
        /// The event that answers it; never `Notice`.
        reply: oneshot::Sender<EventKind>,
    },
    /// A change of the sides of a mirrored device, which every processor of the pool gets.
    Mirror {
        /// The pool.
        pool: PoolIndex,
        /// The change.
        change: MirrorChange,
        /// Answered when it is made.
        reply: oneshot::Sender<()>,
    },
    /// Tell the figures of this processor's mirrors.
    MirrorStatus {
        /// The pool.
        pool: PoolIndex,
        /// The figures of both sides of every device; none without mirrors.
        reply: oneshot::Sender<Vec<MirrorStatus>>,
    },
    /// A request of the control plane's own, for a shard that this processor owns. Its token is given here.
    Ask {
        /// The pool.
        pool: PoolIndex,
        /// The request; its buffer is ordinary memory, so it is one without data.
        request: Box<ShardRequest>,
        /// The shard's answer.
        reply: oneshot::Sender<ShardAnswer>,
    },
    /// Take a snapshot. Processor 0 runs the coordinator of every pool.
    CreateSnapshot {
        /// The pool.
        pool: PoolIndex,
        /// The snapshot.
        request: SnapshotRequest,
        /// The newest time stamp of the pool: the snapshot gets a later one.
        newest: TimeStamp,
        /// Answered when the commit record is durable, or when it is clear that it never will be.
        reply: oneshot::Sender<Result<OverallSnapshot, SnapshotError>>,
    },
    /// From now on these are the exports.
    Exports {
        /// The whole table.
        table: Arc<ExportTable>,
        /// Answered when every session that the table no longer [allows](ExportTable::allows) has ended and none
        /// of its requests is in flight.
        reply: oneshot::Sender<()>,
    },
    /// Accept connections from this listener. Only processor 0 gets listeners; it hands the connections round, so
    /// that those of one client are spread evenly over all processors.
    Listen {
        /// The listener; every connection speaks NBD.
        listener: Listener,
    },
    /// Accept no further connections.
    Unlisten,
    /// Tell the figures of the processor.
    Status {
        /// The figures.
        reply: oneshot::Sender<ProcessorStatus>,
    },
    /// Tell where the time of its requests went since the start.
    Stages {
        /// The histograms.
        reply: oneshot::Sender<Stages>,
    },
    /// End the thread. All pools are closed, all sessions are ended first.
    Stop {
        /// Answered just before the thread ends.
        reply: oneshot::Sender<()>,
    },
}

/// A change of the sides of a mirrored device; see [`stillpoint_processor::mirror::Mirrors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorChange {
    /// The labels say that a side is out. It is given up.
    Out {
        /// Which.
        at: SideAt,
        /// Since when.
        episode: u64,
    },
    /// No label of a device can be written.
    Lost {
        /// The device.
        device: DeviceIndex,
        /// What it said.
        error: DeviceError,
    },
    /// The labels say that a side is out and lacks everything: another device takes its place, or it has become smaller. It is given up.
    Replaced {
        /// Which.
        at: SideAt,
        /// Since when.
        episode: u64,
    },
    /// A side is in its place again.
    Attach {
        /// Which.
        at: SideAt,
        /// What is copied to it from now on is said to be copied with this number.
        pass: u64,
    },
    /// What could not be copied is tried again.
    Again {
        /// The side that lacks it.
        at: SideAt,
        /// As when it is attached.
        pass: u64,
    },
    /// The labels say that a side is in sync.
    Joined {
        /// Which.
        at: SideAt,
    },
    /// So many bytes a second are copied by this processor at most; 0: as many as the devices can.
    Rate {
        /// Bytes a second.
        bytes_per_s: u64,
    },
}

/// A listening socket of the NBD server.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// What one processor opens of a pool.
#[derive(Clone, Debug)]
pub struct PoolPart {
    /// What mirrors tell of sides that were there from the start carries this number, which no other opening of a pool has had.
    pub first_pass: u64,
    /// Name of the pool, for messages.
    pub name: String,
    /// Where things lie; the devices' labels have been read and agree with it.
    pub layout: Layout,
    /// The devices, claimed by the control plane, in label order; with mirrors, both sides of each in turn, of which one may be missing.
    pub files: Arc<PoolFiles>,
    /// Of a pool with mirrors: which sides of each device can be gone by.
    pub sides: Option<Vec<Sides>>,
    /// The shards that this processor owns.
    pub shards: Vec<ShardIndex>,
    /// The owner of every shard: element `i` owns shard `i`.
    pub owners: Vec<ProcessorIndex>,
    /// How to open them.
    pub options: PoolOptions,
}

/// How a pool is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Map pages kept in memory, over all shards of the pool, in bytes.
    pub map_cache_bytes: u64,
    /// Directory on tmpfs for the log tails; `None`: there is no log tail, records go to the log before the
    /// acknowledgement.
    pub tail_directory: Option<PathBuf>,
}

/// What a shard brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredShard {
    /// The shard.
    pub shard: ShardIndex,
    /// Its shares of volumes.
    pub volumes: Vec<VolumeShareStatus>,
    /// Its intermediate snapshots, per volume.
    pub snapshots: Vec<(stillpoint_processor::VolumeId, Vec<IntermediateSnapshotStatus>)>,
    /// The catalog rows, on shard 0; empty elsewhere.
    pub catalog: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Log records replayed from the devices.
    pub log_records: u64,
    /// Log records replayed from the log tail.
    pub tail_records: u64,
    /// How long it took.
    pub recovery_ns: u64,
    /// What an operator should know about the recovery, in words.
    pub remarks: Vec<String>,
}

/// Why a processor did not open its part of a pool. Nothing of it is open then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPoolError {
    /// The shard, or `None` if it was a device.
    pub shard: Option<ShardIndex>,
    /// The device, if it was one.
    pub device: Option<PathBuf>,
    /// The side of a mirror that failed. The pool can be opened without it.
    pub side: Option<SideFailed>,
    /// What happened, in words.
    pub message: String,
}

impl fmt::Display for OpenPoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(device) = &self.device {
            write!(f, "device {}: ", device.display())?;
        }
        if let Some(shard) = self.shard {
            write!(f, "shard {}: ", shard.0)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpenPoolError {}

/// Figures of one processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessorStatus {
    /// The core that the thread is pinned to.
    pub core: Option<u32>,
    /// NBD sessions.
    pub sessions: u64,
    /// Clients that were sent away because they took too long to choose an export.
    pub late: u64,
    /// Requests of its sessions since the start.
    pub requests: u64,
    /// Parts done for the sessions of other processors since the start.
    pub forwarded: u64,
    /// Turns of the poll loop.
    pub turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Whether it polls for what comes soon, because that was asked for or found to pay.
    pub polls: bool,
    /// System calls that submitted or waited.
    pub ring_enters: u64,
    /// Buffers that sessions and shards hold right now, in bytes.
    pub buffer_bytes_used: u64,
    /// Memory for buffers, in bytes.
    pub buffer_bytes: u64,
    /// What kind of memory the buffers have ("huge pages", "transparent huge pages", "plain").
    pub buffer_memory: &'static str,
}

/// How the poll loops are started: `poll_loop::start(&PollLoopOptions, NoticeSender)` gives [`PollLoops`].
#[derive(Clone, Debug)]
pub struct PollLoopOptions {
    /// How many, at least 1.
    pub processors: usize,
    /// Whether each is pinned to a core of its own, as far as there are allowed ones.
    pub pin: bool,
    /// How many devices lie near which NUMA node: their cores are taken first.
    pub near: BTreeMap<u32, usize>,
    /// How long they poll without finding anything before they sleep, in nanoseconds; `None`: they never sleep.
    pub quiet_ns: Option<u64>,
    /// Memory for buffers of each.
    pub buffer_bytes: usize,
    /// Connections of all of them together.
    pub connections: Arc<Seats>,
    /// How long a client may take from connecting to choosing an export, in nanoseconds.
    pub handshake_limit_ns: u64,
}

/// Poll loops that run.
#[derive(Debug)]
pub struct PollLoops {
    /// The mailbox of each, in order.
    pub mailboxes: Arc<[Mailbox]>,
    /// The thread of each. They end after [`ToProcessor::Stop`].
    pub threads: Vec<JoinHandle<()>>,
}

impl PollLoops {
    /// Waits until all threads have ended.
    pub fn join(self) {
        for (index, thread) in self.threads.into_iter().enumerate() {
            if thread.join().is_err() {
                tracing::error!("the poll loop of processor {index} panicked");
            }
        }
    }
}

/// Something that a shard told without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardNotice {
    /// The pool.
    pub pool: PoolIndex,
    /// The shard.
    pub shard: ShardIndex,
    /// What.
    pub notice: Notice,
}

/// Something that a poll loop tells without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoopNotice {
    /// From a shard.
    Shard(ShardNotice),
    /// From the mirrors of a pool.
    Mirror {
        /// The pool.
        pool: PoolIndex,
        /// The processor.
        processor: ProcessorIndex,
        /// Of a side: which of the times that it was attached this is about.
        pass: u64,
        /// What.
        notice: MirrorNotice,
    },
    /// A device does not answer, which is told several times, or has answered again.
    Stall {
        /// The pool.
        pool: PoolIndex,
        /// The processor that waits for it.
        processor: ProcessorIndex,
        /// The device.
        device: Occupant,
        /// What.
        stall: Stall,
    },
}

/// How a device that takes long stands to a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// It has not answered something for so long that people notice.
    Lasts {
        /// What.
        kind: OperationKind,
        /// Since when, in nanoseconds since 1970.
        began_wall_ns: u64,
    },
    /// All of that has ended, well or not.
    Ended,
}

/// Where poll loops put notices.
pub type NoticeSender = mpsc::Sender<LoopNotice>;

/// Wakes a poll loop that may sleep.
pub trait Wake: Send + Sync {
    /// Makes the poll loop look into its mailbox soon. Never blocks.
    fn wake(&self);
}

/// The control plane's end of a processor's mailbox.
#[derive(Clone)]
pub struct Mailbox {
    sender: Sender<ToProcessor>,
    wake: Arc<dyn Wake>,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("waiting", &self.sender.len())
            .finish()
    }
}

/// Why a message was not taken or not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailboxError {
    /// [`MAILBOX_MAX`] messages are waiting already.
    Full,
    /// The poll loop has ended.
    Ended,
}

impl fmt::Display for MailboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "{MAILBOX_MAX} messages are waiting for this processor already"),
            Self::Ended => f.write_str("the processor's poll loop has ended"),
        }
    }
}

impl std::error::Error for MailboxError {}

/// A mailbox: the control plane's end and the poll loop's.
#[must_use]
pub fn mailbox(wake: Arc<dyn Wake>) -> (Mailbox, Receiver<ToProcessor>) {
    let (sender, receiver) = crossbeam_channel::bounded(MAILBOX_MAX);
    (Mailbox { sender, wake }, receiver)
}

impl Mailbox {
    /// Puts a message in and wakes the poll loop.
    ///
    /// # Errors
    /// [`MailboxError`]; the message is dropped, and its reply channel with it.
    pub fn send(&self, message: ToProcessor) -> Result<(), MailboxError> {
        self.sender.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => MailboxError::Full,
            TrySendError::Disconnected(_) => MailboxError::Ended,
        })?;
        self.wake.wake();
        Ok(())
    }

    /// Puts in the message that `message` makes of a reply channel, and waits for the reply.
    ///
    /// # Errors
    /// [`MailboxError::Ended`] also if the poll loop ended before it answered.
    pub async fn ask<R>(
        &self,
        message: impl FnOnce(oneshot::Sender<R>) -> ToProcessor,
    ) -> Result<R, MailboxError> {
        let (reply, answer) = oneshot::channel();
        self.send(message(reply))?;
        answer.await.map_err(|_| MailboxError::Ended)
    }
}
