//! The appliance of the demo: a child of this very program, in a directory of its own.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::place::{Place, Tied, clean_up_when_interrupted};
use crate::cli::{Format, Global};
use crate::client::Client;
use crate::exit::Failure;
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::StatusInfo;
use stillpoint_appliance::daemon::processors_default;

/// How long the daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running daemon; ends with this value unless it is [let go](Daemon::let_go).
#[derive(Debug)]
pub struct Daemon {
    process: Tied,
    log: PathBuf,
    nbd_socket: PathBuf,
    /// A way to its API.
    pub client: Client,
}

impl Daemon {
    /// Starts one as `process` and waits until it answers. If the demo is interrupted the process ends, and what is
    /// temporary of the place goes away.
    ///
    /// # Errors
    /// If it does not come up; the last lines of its log are in the message.
    pub fn start(place: &Place, process: Tied, processors: Option<u16>) -> Result<Self, Failure> {
        let directory = place.directory();
        let failure = |error: std::io::Error| Error::failure(format!("cannot start the daemon: {error}"));
        let path = directory.join("log");
        let log = File::create(&path).map_err(failure)?;
        let mut command = Command::new(std::env::current_exe().map_err(failure)?);
        command
            .arg("serve")
            .arg("--state-dir")
            .arg(directory.join("state"))
            .arg("--run-dir")
            .arg(place.run())
            .env_remove("STILLPOINT_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failure)?)
            .stderr(log);
        // A snapshot over one processor would show little.
        let processors = processors.map_or_else(|| processors_default().max(2), usize::from);
        command.arg("--processors").arg(processors.to_string());
        if let Some(tails) = place.tails() {
            command.arg("--tail-dir").arg(tails);
        }
        clean_up_when_interrupted(&process, place.temporary()).map_err(failure)?;
        process.tie(command.spawn().map_err(failure)?);
        let daemon = Self {
            process,
            log: path,
            nbd_socket: place.nbd_socket(),
            client: Client::new(&Global {
                socket: Some(place.control_socket()),
                output: Format::Json,
            }),
        };
        daemon.wait_until_it_answers()?;
        Ok(daemon)
    }

    fn wait_until_it_answers(&self) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            match self.status() {
                Ok(_) => return Ok(()),
                Err(failure) if start.elapsed() > PATIENCE => return Err(failure),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            let ended = self
                .process
                .lock()
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
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
        self.nbd_socket.clone()
    }

    /// The end of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Leaves it running; its process number.
    #[must_use]
    pub fn let_go(self) -> u32 {
        self.process.lock().take().expect("it is let go once").id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.end();
    }
}
