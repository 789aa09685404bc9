//! Where the demo has its things, and how they go away: at its end, or when it is interrupted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;
use stillpoint_appliance::Error;

/// Where log tails can live: memory that outlives the process.
const TMPFS: &str = "/dev/shm";

/// The demo's directories.
#[derive(Debug)]
pub struct Place {
    directory: PathBuf,
    /// Removes them when dropped.
    made: Vec<TempDir>,
    tails: Option<PathBuf>,
}

impl Place {
    /// Makes them: `given`, which must not exist yet and will stay, or a temporary directory; and one for log tails
    /// where this machine has tmpfs.
    ///
    /// # Errors
    /// If there is no room, or `given` exists.
    pub fn new(given: Option<&Path>) -> Result<Self, Failure> {
        let failure = |error: io::Error| Error::failure(format!("no directory for the demo: {error}"));
        let mut builder = tempfile::Builder::new();
        builder.prefix("stillpoint-demo-");
        let mut made = Vec::new();
        let directory = match given {
            Some(path) => {
                fs::create_dir(path).map_err(failure)?;
                path.canonicalize().map_err(failure)?
            }
            None => {
                let directory = builder.tempdir().map_err(failure)?;
                made.push(directory);
                made[0].path().to_owned()
            }
        };
        let mut tails = None;
        if is_tmpfs(TMPFS)
            && let Ok(directory) = builder.tempdir_in(TMPFS)
        {
            tails = Some(directory.path().to_owned());
            made.push(directory);
        }
        Ok(Self {
            directory,
            made,
            tails,
        })
    }

    /// The directory for everything but log tails.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of the daemon's sockets.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// The unix socket for NBD clients.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.run().join("nbd.sock")
    }

    /// The unix socket of the API.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run().join("control.sock")
    }

    /// The directory for log tails, if there is one.
    #[must_use]
    pub fn tails(&self) -> Option<&Path> {
        self.tails.as_deref()
    }

    /// The directories that go away with this value.
    #[must_use]
    pub fn temporary(&self) -> Vec<PathBuf> {
        self.made.iter().map(|made| made.path().to_owned()).collect()
    }

    /// Leaves everything where it is.
    pub fn keep(self) {
        for directory in self.made {
            let _ = directory.keep();
        }
    }
}

fn is_tmpfs(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(path) && fields.next() == Some("tmpfs")
    })
}

/// A process that ends with the demo, however that ends, unless it is let go.
#[derive(Clone, Debug, Default)]
pub struct Tied {
    child: Arc<Mutex<Option<Child>>>,
    interrupted: Arc<AtomicBool>,
}

impl Tied {
    /// Ties a process.
    pub fn tie(&self, child: Child) {
        *self.lock() = Some(child);
    }

    /// The process, unless it has ended or was let go.
    pub fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// If the demo was interrupted: waits for it to end. What fails then fails for that reason alone.
    pub fn wait_if_interrupted(&self) {
        while self.interrupted.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    /// Ends the process. What it has is thrown away with it: there is nothing to be saved by a slower end.
    pub fn end(&self) {
        if let Some(mut child) = self.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// From now on an interrupt (or a request to terminate) ends the process, removes the directories and ends the
/// demo.
///
/// # Errors
/// If there is no thread to wait for signals.
pub fn clean_up_when_interrupted(process: &Tied, directories: Vec<PathBuf>) -> io::Result<()> {
    let process = process.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let number = runtime.block_on(async {
                let mut interrupted = signal(SignalKind::interrupt())?;
                let mut terminated = signal(SignalKind::terminate())?;
                io::Result::Ok(tokio::select! {
                    _ = interrupted.recv() => SignalKind::interrupt().as_raw_value(),
                    _ = terminated.recv() => SignalKind::terminate().as_raw_value(),
                })
            });
            // Without signals there is nothing to wait for; the demo goes on without this thread.
            let Ok(number) = number else { return };
            process.interrupted.store(true, Ordering::SeqCst);
            process.end();
            for directory in directories {
                let _ = fs::remove_dir_all(directory);
            }
            std::process::exit(128 + number);
        })?;
    Ok(())
}
