//! `stillpoint serve`: its process and the ways to it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Failure;
use crate::api::Api;
use crate::process::{self, Process, Scratch};

/// A running daemon. Dropped, it ends as with `kill -9`.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    program: PathBuf,
    control_socket: PathBuf,
    nbd_socket: PathBuf,
}

impl Daemon {
    /// Starts it with its state and sockets in `scratch`, and waits until it answers: then the pools are open that were
    /// open when the last one ended. `tail` is for the log tails, which belong on tmpfs wherever the pool is.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        program: &Path,
        serve_options: &[String],
        scratch: &Scratch,
        tail: &Scratch,
    ) -> Result<Self, Failure> {
        let daemon = Self::spawn(program, serve_options, scratch, tail)?;
        daemon.wait()?;
        Ok(daemon)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// The program is not there.
    pub fn spawn(
        program: &Path,
        serve_options: &[String],
        scratch: &Scratch,
        tail: &Scratch,
    ) -> Result<Self, Failure> {
        let control_socket = scratch.path("control.sock");
        let nbd_socket = scratch.path("stillpoint.sock");
        let mut command = Command::new(program);
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
            .args(serve_options);
        Ok(Self {
            process: Process::start("stillpoint", &mut command, scratch)?,
            program: program.to_path_buf(),
            control_socket,
            nbd_socket,
        })
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// It ends, or takes too long.
    pub fn wait(&self) -> Result<(), Failure> {
        // A socket alone says nothing: that of a daemon that was killed is still there.
        self.process.wait_until(|| {
            Api::connect(&self.control_socket)
                .is_ok_and(|mut api| api.ask("GET", "/v1/status", &Value::Null).is_ok())
        })
    }

    /// Stops it as an operator does, and waits for its end.
    ///
    /// # Errors
    /// It does not end within `limit`, or ends badly.
    pub fn stop(self, limit: Duration) -> Result<(), Failure> {
        self.process.terminate()?;
        self.process.wait(limit)
    }

    /// A connection to its API.
    ///
    /// # Errors
    /// It does not listen.
    pub fn api(&self) -> Result<Api, Failure> {
        Api::connect(&self.control_socket)
    }

    /// Where NBD clients connect.
    #[must_use]
    pub fn nbd_socket(&self) -> &Path {
        &self.nbd_socket
    }

    /// Its process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Runs a command of the command line; gives what it printed.
    ///
    /// # Errors
    /// The command fails.
    pub fn command(&self, arguments: &[&str], scratch: &Scratch) -> Result<String, Failure> {
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
