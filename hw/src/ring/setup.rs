//! Making a ring: the best that the kernel grants, with a fallback for each feature.

use super::{Ring, RingFigures};
use core::fmt;
use io_uring::{IoUring, Probe, opcode};
use std::io;

/// How a ring is made.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Entries of the submission queue, a power of two.
    pub entries: u32,
    /// Places in the table of registered files.
    pub file_slots: u32,
    /// Leave out the flags of newer kernels (to test the fallback).
    pub plain: bool,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self {
            entries: 512,
            file_slots: 1024,
            plain: false,
        }
    }
}

/// What the kernel granted a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// One thread submits: less locking (kernel 6.0).
    pub single_issuer: bool,
    /// Completions are worked off when the thread asks, not by interrupting it (kernel 6.1).
    pub defer_taskrun: bool,
    /// Completions do not interrupt the thread (kernel 5.19).
    pub coop_taskrun: bool,
    /// A flag in shared memory says when there is deferred work (kernel 5.19).
    pub taskrun_flag: bool,
    /// The table of registered files is there (kernel 5.19).
    pub registered_files: bool,
    /// Messages from ring to ring (kernel 5.18).
    pub messages: bool,
    /// Vectored transfers on registered buffers (kernel 6.15).
    pub vectored_fixed: bool,
}

/// A ring cannot be had.
#[derive(Debug)]
pub enum RingError {
    /// The kernel does not allow io_uring, or not to this user.
    Forbidden(io::Error),
    /// The kernel has no io_uring.
    Absent(io::Error),
    /// The kernel is too old: an operation is missing.
    TooOld {
        /// The operation.
        operation: &'static str,
    },
    /// Something else.
    Os(io::Error),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden(error) => write!(
                f,
                "io_uring is forbidden here ({error}): set sysctl kernel.io_uring_disabled=0, \
                 or allow io_uring_setup in the container's seccomp profile"
            ),
            Self::Absent(error) => write!(
                f,
                "this kernel has no io_uring ({error}): use Linux 5.19 or newer"
            ),
            Self::TooOld { operation } => write!(
                f,
                "io_uring of this kernel has no {operation}: use Linux 5.19 or newer"
            ),
            Self::Os(error) => write!(f, "io_uring cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for RingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Forbidden(error) | Self::Absent(error) | Self::Os(error) => Some(error),
            Self::TooOld { .. } => None,
        }
    }
}

/// Operations without which nothing works.
const NEEDED: [(u8, &str); 12] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Readv::CODE, "READV"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::Timeout::CODE, "TIMEOUT"),
];

impl Ring {
    /// A ring for the calling thread, which is the only one that may use it.
    ///
    /// # Errors
    /// [`RingError`] if there is no io_uring for this process.
    pub fn new(options: RingOptions) -> Result<Self, RingError> {
        let (uring, mut features) = build(options)?;
        let mut probe = Probe::new();
        uring
            .submitter()
            .register_probe(&mut probe)
            .map_err(RingError::Os)?;
        if let Some((_, operation)) = NEEDED.iter().find(|(code, _)| !probe.is_supported(*code)) {
            return Err(RingError::TooOld { operation });
        }
        features.messages = !options.plain
            && probe.is_supported(opcode::MsgRingData::CODE)
            && uring.params().is_feature_skip_cqe_on_success();
        features.vectored_fixed =
            probe.is_supported(opcode::ReadvFixed::CODE) && probe.is_supported(opcode::WritevFixed::CODE);
        features.registered_files = !options.plain
            && options.file_slots > 0
            && uring
                .submitter()
                .register_files_sparse(options.file_slots)
                .is_ok();
        let free_file_slots = if features.registered_files {
            (0..options.file_slots).rev().collect()
        } else {
            Vec::new()
        };
        Ok(Self {
            uring,
            features,
            figures: RingFigures::default(),
            arenas_registered: false,
            free_file_slots,
            one_thread: std::marker::PhantomData,
        })
    }
}

/// Tries the sets of flags from the best to none.
fn build(options: RingOptions) -> Result<(IoUring, RingFeatures), RingError> {
    let best = RingFeatures {
        single_issuer: true,
        defer_taskrun: true,
        taskrun_flag: true,
        ..RingFeatures::default()
    };
    let good = RingFeatures {
        coop_taskrun: true,
        taskrun_flag: true,
        ..RingFeatures::default()
    };
    let ladder = [best, good, RingFeatures::default()];
    let start = if options.plain { ladder.len() - 1 } else { 0 };
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for features in &ladder[start..] {
        match attempt(options, *features) {
            Ok(uring) => return Ok((uring, *features)),
            // The kernel does not know one of the flags.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            Err(error) => return Err(classify(error)),
        }
    }
    Err(classify(refused))
}

fn attempt(options: RingOptions, features: RingFeatures) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_clamp()
        .setup_submit_all()
        .setup_cqsize(options.entries * 4)
        .dontfork();
    if features.single_issuer {
        builder.setup_single_issuer();
    }
    if features.defer_taskrun {
        builder.setup_defer_taskrun();
    }
    if features.coop_taskrun {
        builder.setup_coop_taskrun();
    }
    if features.taskrun_flag {
        builder.setup_taskrun_flag();
    }
    builder.build(options.entries)
}

fn classify(error: io::Error) -> RingError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => RingError::Forbidden(error),
        Some(libc::ENOSYS) => RingError::Absent(error),
        _ => RingError::Os(error),
    }
}
