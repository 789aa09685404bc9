//! What the appliance remembers outside of pools: which of them were open. Everything else lies in the pools.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const FILE: &str = "pools.json";
const SEQUENCES: &str = "mirrors.json";
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

/// Of pools with mirrors, by identity: the highest sequence that their labels were given. Labels that say less are older than what was
/// written last.
#[derive(Debug, Default)]
pub struct Sequences {
    path: Option<PathBuf>,
    known: Mutex<BTreeMap<String, u64>>,
}

impl Sequences {
    fn open(path: PathBuf) -> Result<Self> {
        let known = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Error::failure(format!("{} is damaged: {error}", path.display())).hint(
                    "move it away; then look that no pool with mirrors lacks a device that was used last",
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(Error::failure(format!("cannot read {}: {error}", path.display()))),
        };
        Ok(Self {
            path: Some(path),
            known: Mutex::new(known),
        })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        // A panic elsewhere does not make the numbers untrue.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest of a pool; 0 if none was seen.
    #[must_use]
    pub fn of(&self, id: &str) -> u64 {
        self.known().get(id).copied().unwrap_or(0)
    }

    /// Keeps a sequence, for good, before or just after labels have it, and before anything rests on them.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note(&self, id: &str, sequence: u64) -> Result<()> {
        let mut known = self.known();
        if known.get(id).is_some_and(|highest| *highest >= sequence) {
            return Ok(());
        }
        self.replace(&mut known, id, sequence)
    }

    /// What is not written is not known either.
    fn replace(&self, known: &mut BTreeMap<String, u64>, id: &str, sequence: u64) -> Result<()> {
        let mut changed = known.clone();
        changed.insert(id.to_owned(), sequence);
        if let Some(path) = &self.path {
            let mut bytes = serde_json::to_vec_pretty(&changed).expect("plain data");
            bytes.push(b'\n');
            write_at_once(path, &bytes)?;
        }
        *known = changed;
        Ok(())
    }

    /// A number for labels that none has had here: labels as new as `newest` were found, and a crash may have left the next one, or one with
    /// a number that was given out here, on devices that are missing now. Durable before it is used.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn reserve(&self, id: &str, newest: u64) -> Result<u64> {
        // Beside the pool's own, where programs that do not know it leave it as it is.
        let key = format!("{id} reserved");
        let reserved = self.of(&key);
        let sequence = reserved.max(newest + 1) + 1;
        self.replace(&mut self.known(), &key, sequence)?;
        Ok(sequence)
    }

    /// A pool was opened by hand in another state: what it says now counts.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin_again(&self, id: &str, sequence: u64) -> Result<()> {
        self.replace(&mut self.known(), id, sequence)
    }
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
    sequences: Arc<Sequences>,
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
        let sequences = Arc::new(Sequences::open(directory.join(SEQUENCES))?);
        Ok(Self {
            path,
            _lock: lock,
            pools,
            sequences,
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

    /// How new the labels of pools with mirrors have to be.
    #[must_use]
    pub fn sequences(&self) -> &Arc<Sequences> {
        &self.sequences
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
