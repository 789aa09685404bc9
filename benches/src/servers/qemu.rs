//! qemu-nbd, with the page cache of the host out of the way, as the appliance has it.

use std::path::Path;
use std::process::Command;

use super::{Listen, is_there, takes_direct};
use crate::Failure;
use crate::fio::Target;
use crate::process::{self, Process, Scratch};

/// A running qemu-nbd.
#[derive(Debug)]
pub struct QemuNbd {
    process: Process,
    /// What clients connect to.
    pub target: Target,
}

impl QemuNbd {
    /// Serves an image. `name` tells several apart. Without O_DIRECT in the file system there is no `cache=none`;
    /// then it is `writeback`, as for every other contender.
    ///
    /// # Errors
    /// qemu-nbd does not start.
    pub fn start(
        name: &str,
        image: &Path,
        format: &str,
        aio: &str,
        listen: Listen,
        scratch: &Scratch,
    ) -> Result<Self, Failure> {
        let target = listen.target(name, scratch)?;
        let direct = takes_direct(image);
        // Native AIO needs O_DIRECT.
        let aio = if direct || aio != "native" { aio } else { "threads" };
        let mut command = Command::new("qemu-nbd");
        command
            .args(["--persistent", "--shared=8", "--discard=unmap"])
            .arg(format!("--format={format}"))
            .arg(format!("--cache={}", if direct { "none" } else { "writeback" }))
            .arg(format!("--aio={aio}"));
        match &target {
            Target::Nbd { socket, .. } => command.arg(format!("--socket={}", socket.display())),
            Target::NbdTcp { address, .. } => command
                .arg(format!("--bind={}", address.ip()))
                .arg(format!("--port={}", address.port())),
            Target::File { .. } => unreachable!("nobody listens on a file"),
        };
        let process = Process::start(name, command.arg(image), scratch)?;
        process.wait_until(|| is_there(&target))?;
        Ok(Self { process, target })
    }

    /// The server's process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }
}

/// Makes an empty qcow2 image.
///
/// # Errors
/// qemu-img fails.
pub fn make_qcow2(image: &Path, size_bytes: u64, scratch: &Scratch) -> Result<(), Failure> {
    process::run(
        "qemu-img",
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"])
            .arg(image)
            .arg(size_bytes.to_string()),
        scratch,
    )
    .map(drop)
}

/// Makes an empty qcow2 image over another, which stays as it is: a snapshot, in qemu's way.
///
/// # Errors
/// qemu-img fails.
pub fn make_qcow2_over(base: &Path, image: &Path, scratch: &Scratch) -> Result<(), Failure> {
    let _ = std::fs::remove_file(image);
    process::run(
        "qemu-img",
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(base)
            .arg(image),
        scratch,
    )
    .map(drop)
}
