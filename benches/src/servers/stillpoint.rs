//! The appliance: the real binary, its command line, a pool on one file.

use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Daemon, make_written_file};
use crate::Failure;
use crate::api::Api;
use crate::fio::Target;
use crate::process::Scratch;

/// The pool.
pub const POOL: &str = "bench";
/// The volume, and the name of its export.
pub const VOLUME: &str = "volume";

/// A running appliance with one pool, one volume and one export.
#[derive(Debug)]
pub struct Stillpoint {
    daemon: Daemon,
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
    /// The device of the pool; a file of `pool_bytes` is made if there is none.
    pub device: Option<&'a Path>,
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
        let made = scratch.path("pool.img");
        let device = match setup.device {
            Some(device) => device,
            None => {
                make_written_file(&made, setup.pool_bytes, scratch)?;
                &made
            }
        };
        let tail = Scratch::new(Path::new("/dev/shm"))?;
        let daemon = Daemon::start(setup.program, setup.serve_options, scratch, &tail)?;
        let target = Target::Nbd {
            socket: daemon.nbd_socket().to_path_buf(),
            export: VOLUME.into(),
        };
        let appliance = Self {
            daemon,
            target,
            _tail: tail,
        };
        let device = device.display().to_string();
        appliance.command(&["pool", "create", POOL, &device, "--force", &device], scratch)?;
        let size = setup.volume_bytes.to_string();
        appliance.command(&["volume", "create", VOLUME, "--size", &size], scratch)?;
        appliance.command(&["export", "create", VOLUME], scratch)?;
        Ok(appliance)
    }

    /// Where NBD clients connect.
    #[must_use]
    pub fn nbd_socket(&self) -> &Path {
        self.daemon.nbd_socket()
    }

    /// The server's process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.daemon.process_id()
    }

    /// A connection to its API.
    ///
    /// # Errors
    /// It does not listen.
    pub fn api(&self) -> Result<Api, Failure> {
        self.daemon.api()
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
            socket: self.nbd_socket().to_path_buf(),
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

    /// Takes a snapshot and asks for nothing else.
    ///
    /// # Errors
    /// The command fails.
    pub fn take(&self, name: &str, scratch: &Scratch) -> Result<(), Failure> {
        self.command(&["snapshot", "create", &format!("{VOLUME}@{name}")], scratch)
            .map(drop)
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
        self.daemon.command(arguments, scratch)
    }
}
