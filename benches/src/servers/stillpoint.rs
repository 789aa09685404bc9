//! The appliance: the real binary, its command line, a pool on one file.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::make_written_file;
use crate::Failure;
use crate::fio::Target;
use crate::process::{self, Process, Scratch};

const POOL: &str = "bench";
/// The volume, and the name of its export.
pub const VOLUME: &str = "volume";

/// A running appliance with one pool, one volume and one export.
#[derive(Debug)]
pub struct Stillpoint {
    process: Process,
    program: PathBuf,
    control_socket: PathBuf,
    nbd_socket: PathBuf,
    /// What clients connect to.
    pub target: Target,
    _tail: Scratch,
}

/// What it is to be.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// The binary.
    pub program: &'a Path,
    /// More options of `serve`.
    pub serve_options: &'a [String],
    /// Size of the pool's file.
    pub pool_bytes: u64,
    /// Size of the volume.
    pub volume_bytes: u64,
}

impl Stillpoint {
    /// Starts the appliance on a pool file that was written from end to end, as the raw image was: the first
    /// write to a sparse file costs the file system more than any later one.
    ///
    /// # Errors
    /// It does not start, or a command fails.
    pub fn start(setup: &Setup<'_>, scratch: &Scratch) -> Result<Self, Failure> {
        let device = scratch.path("pool.img");
        make_written_file(&device, setup.pool_bytes, scratch)?;
        // The log tail belongs on tmpfs wherever the pool is.
        let tail = Scratch::new(Path::new("/dev/shm"))?;
        let control_socket = scratch.path("control.sock");
        let nbd_socket = scratch.path("stillpoint.sock");
        let mut command = Command::new(setup.program);
        command
            .arg("serve")
            .args(["--log", "warn"])
            .arg("--socket")
            .arg(&control_socket)
            .arg("--nbd-unix")
            .arg(&nbd_socket)
            .arg("--state-dir")
            .arg(scratch.path("state"))
            .arg("--run-dir")
            .arg(scratch.path("run"))
            .arg("--tail-dir")
            .arg(tail.path("tails"))
            .args(setup.serve_options);
        let process = Process::start("stillpoint", &mut command, scratch)?;
        process.wait_until(|| control_socket.exists() && nbd_socket.exists())?;
        let appliance = Self {
            process,
            program: setup.program.to_path_buf(),
            control_socket,
            nbd_socket: nbd_socket.clone(),
            target: Target::Nbd {
                socket: nbd_socket,
                export: VOLUME.into(),
            },
            _tail: tail,
        };
        let device = device.display().to_string();
        appliance.command(&["pool", "create", POOL, &device, "--force"], scratch)?;
        let size = setup.volume_bytes.to_string();
        appliance.command(&["volume", "create", VOLUME, "--size", &size], scratch)?;
        appliance.command(&["export", "create", VOLUME], scratch)?;
        Ok(appliance)
    }

    /// Where NBD clients connect.
    #[must_use]
    pub fn nbd_socket(&self) -> &Path {
        &self.nbd_socket
    }

    /// The server's process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Makes another volume of this name with an export; gives what clients connect to.
    ///
    /// # Errors
    /// The command fails.
    pub fn add_volume(&self, name: &str, size_bytes: u64, scratch: &Scratch) -> Result<Target, Failure> {
        let size = size_bytes.to_string();
        self.command(&["volume", "create", name, "--size", &size], scratch)?;
        self.command(&["export", "create", name], scratch)?;
        Ok(Target::Nbd {
            socket: self.nbd_socket.clone(),
            export: name.into(),
        })
    }

    /// Connections of clients that are open now.
    ///
    /// # Errors
    /// The command fails.
    pub fn connections(&self, scratch: &Scratch) -> Result<u64, Failure> {
        let printed = self.command(&["-o", "json", "status"], scratch)?;
        let value: Value = serde_json::from_str(&printed)?;
        value["connections"]
            .as_u64()
            .ok_or_else(|| format!("`status` has no connections: {printed}").into())
    }

    /// Takes a snapshot; gives what the API says of it.
    ///
    /// # Errors
    /// The command fails.
    pub fn snapshot(&self, name: &str, scratch: &Scratch) -> Result<Value, Failure> {
        let snapshot = format!("{VOLUME}@{name}");
        self.command(&["snapshot", "create", &snapshot], scratch)?;
        let printed = self.command(&["-o", "json", "snapshot", "show", &snapshot], scratch)?;
        Ok(serde_json::from_str(&printed)?)
    }

    /// Deletes a snapshot and waits until what it held is free again.
    ///
    /// # Errors
    /// The command fails, or the space does not come back within a minute.
    pub fn delete_snapshot(&self, name: &str, scratch: &Scratch) -> Result<(), Failure> {
        self.command(&["snapshot", "delete", &format!("{VOLUME}@{name}")], scratch)?;
        let mut before = None;
        for _ in 0..120 {
            thread::sleep(Duration::from_millis(500));
            let used = self.used_bytes(scratch)?;
            if before == Some(used) {
                return Ok(());
            }
            before = Some(used);
        }
        Err(format!("the space of {VOLUME}@{name} is still coming back after a minute").into())
    }

    fn used_bytes(&self, scratch: &Scratch) -> Result<u64, Failure> {
        let printed = self.command(&["-o", "json", "pool", "show", POOL], scratch)?;
        let value: Value = serde_json::from_str(&printed)?;
        value["used_bytes"]
            .as_u64()
            .ok_or_else(|| format!("`pool show` has no used_bytes: {printed}").into())
    }

    fn command(&self, arguments: &[&str], scratch: &Scratch) -> Result<String, Failure> {
        process::run(
            "stillpoint-command",
            Command::new(&self.program)
                .arg("--socket")
                .arg(&self.control_socket)
                .args(arguments),
            scratch,
        )
    }
}
