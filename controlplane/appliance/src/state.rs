//! What the appliance remembers outside of pools: which of them were open, and of those with mirrors what no label says. Everything else
//! lies in the pools.

mod mirrors;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use mirrors::MirrorNotes;

use crate::error::{Error, Result};

const FILE: &str = "pools.json";
const VERSION: u32 = 1;

/// A pool that was open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPool {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: String,
    /// Its devices.
    pub devices: Vec<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    pools: Vec<KnownPool>,
}

/// Replaces a file, at once or not at all.
fn write_at_once(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("json.new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().expect("a file in a directory"))?.sync_all()
    };
    write().map_err(|error| Error::failure(format!("cannot write {}: {error}", path.display())))
}

/// The state directory.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    /// Locked as long as the appliance runs.
    _lock: File,
    pools: Vec<KnownPool>,
    mirrors: Arc<MirrorNotes>,
}

impl State {
    /// Opens the directory, makes it if needed, and locks it for this process.
    ///
    /// # Errors
    /// Conflict if another daemon has it; failure if it cannot be used or was written by a newer program.
    pub fn open(directory: &Path) -> Result<Self> {
        let cannot = |what: &str, error: std::io::Error| {
            Error::failure(format!(
                "state directory {}: cannot {what}: {error}",
                directory.display()
            ))
            .hint("choose another with --state-dir")
        };
        fs::create_dir_all(directory).map_err(|error| cannot("make it", error))?;
        let lock = File::create(directory.join("lock")).map_err(|error| cannot("write to it", error))?;
        lock.try_lock().map_err(|_| {
            Error::conflict(format!(
                "state directory {} is used by another daemon",
                directory.display()
            ))
            .hint("stop that one, or choose another directory with --state-dir")
        })?;
        let path = directory.join(FILE);
        let pools = match fs::read(&path) {
            Ok(bytes) => parse(&bytes).map_err(|error| error.while_doing(path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(cannot("read pools.json", error)),
        };
        let mirrors = Arc::new(MirrorNotes::open(directory)?);
        Ok(Self {
            path,
            _lock: lock,
            pools,
            mirrors,
        })
    }

    /// The pools that were open when this was opened.
    #[must_use]
    pub fn pools(&self) -> Vec<KnownPool> {
        self.pools.clone()
    }

    /// Replaces what is remembered, at once or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, pools: &[KnownPool]) -> Result<()> {
        let content = Content {
            version: VERSION,
            pools: pools.to_vec(),
        };
        let mut bytes = serde_json::to_vec_pretty(&content).expect("plain data");
        bytes.push(b'\n');
        write_at_once(&self.path, &bytes)
    }

    /// What is known of pools with mirrors.
    #[must_use]
    pub fn mirrors(&self) -> &Arc<MirrorNotes> {
        &self.mirrors
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<KnownPool>> {
    let bad = |error: serde_json::Error| {
        Error::failure(format!("damaged: {error}"))
            .hint("move it away; the pools are not lost: stillpoint pool open PATH...")
    };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(bad)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version > u64::from(VERSION) => {
            return Err(Error::failure(format!(
                "written by a newer program (version {version})"
            )));
        }
        _ => {}
    }
    serde_json::from_value(value)
        .map(|content: Content| content.pools)
        .map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn known(name: &str) -> KnownPool {
        KnownPool {
            name: name.to_owned(),
            id: "00".repeat(16),
            devices: vec![PathBuf::from("/dev/x")],
        }
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/state");
        let state = State::open(&path).expect("made");
        assert!(state.pools().is_empty());
        state.save(&[known("a"), known("b")]).expect("written");
        state.save(&[known("b")]).expect("written");
        drop(state);
        assert_eq!(State::open(&path).expect("there").pools(), [known("b")]);
    }

    #[test]
    fn one_daemon_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let _first = State::open(directory.path()).expect("free");
        let error = State::open(directory.path()).expect_err("locked");
        assert_eq!(error.kind, ErrorKind::Conflict);
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused_with_a_way_out() {
        let directory = tempfile::tempdir().expect("a directory");
        for bad in ["", "{", "[]", r#"{"version":1}"#, r#"{"version":2,"pools":[]}"#] {
            fs::write(directory.path().join(FILE), bad).expect("written");
            let error = State::open(directory.path()).expect_err(bad);
            assert_eq!(error.kind, ErrorKind::Failure, "{error}");
        }
    }
}
