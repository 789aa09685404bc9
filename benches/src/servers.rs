//! What is measured: the appliance, qemu-nbd on a raw file and on qcow2, nbdkit, and the raw file itself. All on the same
//! file system, all of the same size, all written from end to end before anything is read.

mod daemon;
mod nbdkit;
mod qemu;
mod qemu_daemon;
mod reflink;
mod stillpoint;

pub use daemon::Daemon;
pub use nbdkit::NbdKit;
pub use qemu::{QemuNbd, make_qcow2, make_qcow2_over};
pub use qemu_daemon::QemuDaemon;
pub use reflink::Reflinked;
pub use stillpoint::{POOL, Setup, Stillpoint, VOLUME};

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::fio::{self, Extent, Job, Target};
use crate::process::{self, Scratch};

/// Where a server is to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On a unix socket.
    Unix,
    /// On TCP, on loopback, on a port that is free now.
    Tcp,
}

impl Listen {
    /// What clients of the server of this name will connect to; its export has no name.
    ///
    /// # Errors
    /// No port is free.
    fn target(self, name: &str, scratch: &Scratch) -> Result<Target, Failure> {
        let export = String::new();
        Ok(match self {
            Self::Unix => {
                let socket = scratch.path(&format!("{name}.sock"));
                let _ = std::fs::remove_file(&socket);
                Target::Nbd { socket, export }
            }
            Self::Tcp => Target::NbdTcp {
                address: free_address()?,
                export,
            },
        })
    }
}

/// A port of loopback on which nobody listens. (Until somebody else asks for it.)
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Whether somebody listens there.
fn is_there(target: &Target) -> bool {
    match target {
        Target::Nbd { socket, .. } => socket.exists(),
        Target::NbdTcp { address, .. } => TcpStream::connect(address).is_ok(),
        Target::File { path, .. } => path.exists(),
    }
}

/// Keeps a process, with all of its threads, on one core.
///
/// # Errors
/// There is no `taskset`, or the process is gone.
pub fn keep_on(core: u32, process_id: u32, scratch: &Scratch) -> Result<(), Failure> {
    let mut command = Command::new("taskset");
    command.args(["-a", "-c", "-p", &core.to_string(), &process_id.to_string()]);
    process::run("taskset", &mut command, scratch).map(drop)
}

/// A server of one volume that takes snapshots of it while it is written.
pub trait TakesSnapshots {
    /// Its name in tables.
    fn name(&self) -> &str;

    /// The socket and the export that clients connect to.
    fn target(&self) -> (PathBuf, String);

    /// The process that serves.
    fn process_id(&self) -> u32;

    /// Takes a snapshot.
    ///
    /// # Errors
    /// It is refused.
    fn take(&mut self, number: u32) -> Result<(), Failure>;

    /// Goes back to having no snapshots, with the volume written from end to end. Nobody is connected.
    ///
    /// # Errors
    /// A command fails.
    fn forget_all(&mut self) -> Result<(), Failure>;
}

/// `O_DIRECT` of the ports that have `fallocate` in common use (x86, and every port with the generic number).
const O_DIRECT: i32 = if cfg!(any(target_arch = "aarch64", target_arch = "arm")) {
    0o200_000
} else {
    0o40_000
};

/// Whether the file system of `path`, an existing file, takes transfers past its page cache.
#[must_use]
pub fn takes_direct(path: &Path) -> bool {
    OpenOptions::new()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(path)
        .is_ok()
}

/// Makes a file of `size_bytes`, preallocated and written from end to end.
///
/// # Errors
/// No space, or fio fails.
pub fn make_written_file(path: &Path, size_bytes: u64, scratch: &Scratch) -> Result<(), Failure> {
    process::run(
        "fallocate",
        Command::new("fallocate")
            .args(["-l", &size_bytes.to_string()])
            .arg(path),
        scratch,
    )?;
    let target = Target::File {
        path: path.to_path_buf(),
        direct: takes_direct(path),
    };
    fill(&target, size_bytes, scratch)
}

/// Writes a target from end to end.
///
/// # Errors
/// fio fails.
pub fn fill(target: &Target, size_bytes: u64, scratch: &Scratch) -> Result<(), Failure> {
    let job = Job {
        pattern: "write",
        block_bytes: 1 << 20,
        depth: 4,
    };
    fio::run(job, target, size_bytes, Extent::Once, scratch).map(drop)
}
