//! Where things lie unless something is said: for root in the system's places, for others in their own.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

fn is_root() -> bool {
    user() == Some(0)
}

/// The user of this process.
fn user() -> Option<u32> {
    std::fs::metadata("/proc/self").ok().map(|found| found.uid())
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Where the pools that are open are remembered.
#[must_use]
pub fn state_directory() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/lib/stillpoint");
    }
    let in_home = || variable("HOME").map(|home| home.join(".local/state"));
    variable("XDG_STATE_HOME")
        .or_else(in_home)
        .unwrap_or_else(std::env::temp_dir)
        .join("stillpoint")
}

/// Where sockets lie.
#[must_use]
pub fn run_directory() -> PathBuf {
    if is_root() {
        return PathBuf::from("/run/stillpoint");
    }
    match variable("XDG_RUNTIME_DIR") {
        Some(directory) => directory.join("stillpoint"),
        None => std::env::temp_dir().join(format!("stillpoint-{}", user().unwrap_or(0))),
    }
}

/// The control socket in a run directory.
#[must_use]
pub fn control_socket(run_directory: &Path) -> PathBuf {
    run_directory.join("control.sock")
}

/// The NBD socket in a run directory.
#[must_use]
pub fn nbd_socket(run_directory: &Path) -> PathBuf {
    run_directory.join("nbd.sock")
}
