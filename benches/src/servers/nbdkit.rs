//! nbdkit with its file plugin. It has no way past the page cache; told so, it asks the kernel to drop what it has read or
//! written, so that reads come from the device as everybody else's.

use std::path::Path;
use std::process::Command;

use super::{Listen, is_there};
use crate::Failure;
use crate::fio::Target;
use crate::process::{Process, Scratch};

/// A running nbdkit.
#[derive(Debug)]
pub struct NbdKit {
    process: Process,
    /// What clients connect to.
    pub target: Target,
}

impl NbdKit {
    /// Serves a raw image. Blocks in the page cache are dropped where the others go past it (`direct`).
    ///
    /// # Errors
    /// nbdkit is not there or does not start.
    pub fn start(image: &Path, direct: bool, listen: Listen, scratch: &Scratch) -> Result<Self, Failure> {
        let target = listen.target("nbdkit", scratch)?;
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--exit-with-parent"]);
        match &target {
            Target::Nbd { socket, .. } => command.arg("--unix").arg(socket),
            Target::NbdTcp { address, .. } => command
                .arg(format!("--ipaddr={}", address.ip()))
                .arg(format!("--port={}", address.port())),
            Target::File { .. } => unreachable!("nobody listens on a file"),
        };
        command.arg("file").arg(image).arg("fadvise=random");
        if direct {
            command.arg("cache=none");
        }
        let process = Process::start("nbdkit", &mut command, scratch)?;
        process.wait_until(|| is_there(&target))?;
        Ok(Self { process, target })
    }

    /// The server's process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }
}
