//! The appliance of the demo: a child of this very program, in a directory of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::{Format, Global};
use crate::client::Client;
use crate::exit::Failure;
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::StatusInfo;

/// How long the daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running daemon; ends with this value unless it is [let go](Daemon::let_go).
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    directory: PathBuf,
    /// A way to its API.
    pub client: Client,
}

impl Daemon {
    /// Starts one in `directory` and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up; the last lines of its log are in the message.
    pub fn start(directory: &Path, processors: Option<u16>) -> Result<Self, Failure> {
        let failure = |error: std::io::Error| Error::failure(format!("cannot start the daemon: {error}"));
        let log = File::create(directory.join("log")).map_err(failure)?;
        let run = directory.join("run");
        let mut command = Command::new(std::env::current_exe().map_err(failure)?);
        command
            .arg("serve")
            .arg("--state-dir")
            .arg(directory.join("state"))
            .arg("--run-dir")
            .arg(&run)
            .env_remove("STILLPOINT_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failure)?)
            .stderr(log);
        if let Some(processors) = processors {
            command.arg("--processors").arg(processors.to_string());
        }
        let mut daemon = Self {
            child: Some(command.spawn().map_err(failure)?),
            directory: directory.to_owned(),
            client: Client::new(&Global {
                socket: Some(run.join("control.sock")),
                output: Format::Json,
            }),
        };
        daemon.wait_until_it_answers()?;
        Ok(daemon)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            match self.status() {
                Ok(_) => return Ok(()),
                Err(failure) if start.elapsed() > PATIENCE => return Err(failure),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            let child = self.child.as_mut().expect("it was just started");
            if let Ok(Some(status)) = child.try_wait() {
                let message = format!("the daemon ended at once ({status}):\n{}", self.last_words());
                return Err(Error::failure(message).into());
            }
        }
    }

    /// The daemon's figures.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<StatusInfo, Failure> {
        self.client.get("/v1/status")
    }

    /// The unix socket for NBD clients.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.directory.join("run/nbd.sock")
    }

    /// The unix socket of the API.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.directory.join("run/control.sock")
    }

    /// The end of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Leaves it running; its process number.
    #[must_use]
    pub fn let_go(mut self) -> u32 {
        self.child.take().expect("it is let go once").id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its pool is thrown away with it: there is nothing to be saved by a slower end.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
