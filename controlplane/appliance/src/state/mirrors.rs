//! What is known of pools with mirrors that their labels cannot say: how new these have to be, and which sides have lost what lay at
//! their end.
//!
//! | file | says | kept |
//! |---|---|---|
//! | `mirrors.json` | the highest sequence of each pool's labels | before anything rests on labels with it |
//! | `cut-off.json` | sides that were too small, for which no label says yet that they lack everything | before such a label is written, until it is |
//!
//! `stillpoint inspect --repair` changes labels too, and keeps their sequences here beside a daemon that may be running: so that file is read
//! each time, and written under a lock of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::write_at_once;
use crate::error::{Error, Result};

const SEQUENCES: &str = "mirrors.json";
/// Locked while that is written.
const SEQUENCES_LOCK: &str = "mirrors.lock";
const CUT_OFF: &str = "cut-off.json";
const CUT_OFF_VERSION: u32 = 1;

/// By identity of a pool: the highest sequence that its labels were given. Labels that say less are older than what was written last.
type Sequences = BTreeMap<String, u64>;
/// By identity of a pool: the identities of sides.
type CutOff = BTreeMap<String, BTreeSet<String>>;

#[derive(Debug, Serialize, Deserialize)]
struct CutOffContent {
    version: u32,
    pools: CutOff,
}

/// What is known of pools with mirrors.
#[derive(Debug, Default)]
pub struct MirrorNotes {
    /// Without one nothing outlives the process.
    directory: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    sequences: Sequences,
    cut_off: CutOff,
}

impl MirrorNotes {
    /// What a state directory says.
    ///
    /// # Errors
    /// Failure if a file cannot be read, is damaged or was written by a newer program.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let sequences = read(&directory.join(SEQUENCES), parse_sequences)?;
        let cut_off = read(&directory.join(CUT_OFF), parse_cut_off)?;
        Ok(Self {
            directory: Some(directory.to_owned()),
            known: Mutex::new(Known { sequences, cut_off }),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic elsewhere does not make the notes untrue.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a daemon, for another program; `None` if nothing is known there of this pool.
    ///
    /// # Errors
    /// Failure if a file cannot be read, is damaged or was written by a newer program.
    pub fn of_daemon(directory: &Path, pool: &str) -> Result<Option<Self>> {
        let notes = Self::open(directory)?;
        let is_known = notes.known().sequences.contains_key(pool);
        Ok(is_known.then_some(notes))
    }

    /// The highest sequence that labels of a pool were given; 0 if none was seen.
    #[must_use]
    pub fn newest_sequence(&self, pool: &str) -> u64 {
        let mut known = self.known();
        self.look_again(&mut known);
        known.sequences.get(pool).copied().unwrap_or(0)
    }

    /// Somebody else may have written it.
    fn look_again(&self, known: &mut Known) {
        let Some(directory) = &self.directory else { return };
        match read(&directory.join(SEQUENCES), parse_sequences) {
            Ok(sequences) => known.sequences = sequences,
            Err(error) => tracing::error!("{error}; what was read before counts"),
        }
    }

    /// Keeps a sequence, for good, before or just after labels have it, and before anything rests on them.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_sequence(&self, pool: &str, sequence: u64) -> Result<()> {
        self.keep_sequence(pool, |highest| highest.max(sequence))
    }

    /// A number for labels that none has had here: labels as new as `newest` were found, and a crash may have left the next one, or one with
    /// a number that was given out here, on devices that are missing now. Durable before it is used.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn reserve(&self, pool: &str, newest: u64) -> Result<u64> {
        // Beside the pool's own, where programs that do not know it leave it as it is.
        let key = format!("{pool} reserved");
        let reserved = self.newest_sequence(&key);
        let sequence = reserved.max(newest + 1) + 1;
        self.keep_sequence(&key, |_| sequence)?;
        Ok(sequence)
    }

    /// A pool was opened by hand in another state: what it says now counts.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin_again(&self, pool: &str, sequence: u64) -> Result<()> {
        self.keep_sequence(pool, |_| sequence)
    }

    /// Held while sequences are written.
    fn lock(&self) -> Result<Option<File>> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        let path = directory.join(SEQUENCES_LOCK);
        let cannot =
            |error: std::io::Error| Error::failure(format!("cannot lock {}: {error}", path.display()));
        let lock = File::create(&path).map_err(cannot)?;
        lock.lock().map_err(cannot)?;
        Ok(Some(lock))
    }

    /// What is not written is not known either.
    fn keep_sequence(&self, pool: &str, change: impl Fn(u64) -> u64) -> Result<()> {
        let mut known = self.known();
        let _lock = self.lock()?;
        self.look_again(&mut known);
        let before = known.sequences.get(pool).copied();
        let sequence = change(before.unwrap_or(0));
        if before == Some(sequence) {
            return Ok(());
        }
        let mut changed = known.sequences.clone();
        changed.insert(pool.to_owned(), sequence);
        self.write(SEQUENCES, &changed)?;
        known.sequences = changed;
        Ok(())
    }

    /// The identities of sides that have to get everything, whatever labels and stale pages say.
    #[must_use]
    pub fn cut_off(&self, pool: &str) -> BTreeSet<String> {
        self.known().cut_off.get(pool).cloned().unwrap_or_default()
    }

    /// Keeps that a side was too small.
    ///
    /// # Errors
    /// If it cannot be written. Until this process ends it is known all the same.
    pub fn note_cut_off(&self, pool: &str, side: &str) -> Result<()> {
        let mut known = self.known();
        let is_news = (known.cut_off.entry(pool.to_owned()).or_default()).insert(side.to_owned());
        if is_news {
            return self.keep_cut_off(&known);
        }
        Ok(())
    }

    /// A label says it now, or somebody gave up what is lost.
    ///
    /// # Errors
    /// If it cannot be written: then it may be said once more, and everything copied once more.
    pub fn forget_cut_off(&self, pool: &str, side: &str) -> Result<()> {
        let mut known = self.known();
        let Some(sides) = known.cut_off.get_mut(pool) else {
            return Ok(());
        };
        if !sides.remove(side) {
            return Ok(());
        }
        if sides.is_empty() {
            known.cut_off.remove(pool);
        }
        self.keep_cut_off(&known)
    }

    fn keep_cut_off(&self, known: &Known) -> Result<()> {
        let content = CutOffContent {
            version: CUT_OFF_VERSION,
            pools: known.cut_off.clone(),
        };
        self.write(CUT_OFF, &content)
    }

    fn write(&self, name: &str, content: &impl Serialize) -> Result<()> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let mut bytes = serde_json::to_vec_pretty(content).expect("plain data");
        bytes.push(b'\n');
        write_at_once(&directory.join(name), &bytes)
    }
}

/// What a file says; nothing if it is not there.
fn read<T: Default>(path: &Path, parse: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    match fs::read(path) {
        Ok(bytes) => parse(&bytes).map_err(|error| error.while_doing(path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(Error::failure(format!("cannot read {}: {error}", path.display()))),
    }
}

fn parse_sequences(bytes: &[u8]) -> Result<Sequences> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::failure(format!("damaged: {error}"))
            .hint("move it away; then look that no pool with mirrors lacks a device that was used last")
    })
}

fn parse_cut_off(bytes: &[u8]) -> Result<CutOff> {
    let bad = |error: serde_json::Error| {
        Error::failure(format!("damaged: {error}")).hint(
            "move it away; then stillpoint pool replace sides of mirrors that were too small while the other side was missing",
        )
    };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(bad)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version > u64::from(CUT_OFF_VERSION) => Err(Error::failure(format!(
            "written by a newer program (version {version})"
        ))),
        _ => serde_json::from_value(value)
            .map(|content: CutOffContent| content.pools)
            .map_err(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn open(directory: &tempfile::TempDir) -> MirrorNotes {
        MirrorNotes::open(directory.path()).expect("it can be read")
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let notes = open(&directory);
        notes.note_sequence("a", 7).expect("written");
        notes.note_sequence("a", 5).expect("nothing is to be written");
        notes.note_cut_off("a", "01").expect("written");
        notes.note_cut_off("a", "02").expect("written");
        notes.note_cut_off("b", "03").expect("written");
        notes.forget_cut_off("a", "01").expect("written");
        notes.forget_cut_off("b", "03").expect("written");
        drop(notes);
        let notes = open(&directory);
        assert_eq!(notes.newest_sequence("a"), 7);
        assert_eq!(notes.cut_off("a"), BTreeSet::from(["02".to_owned()]));
        assert_eq!(notes.cut_off("b"), BTreeSet::new());
        notes.begin_again("a", 3).expect("written");
        assert_eq!(open(&directory).newest_sequence("a"), 3);
    }

    /// A repair beside a daemon.
    #[test]
    fn what_another_program_has_noted_counts_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let daemon = open(&directory);
        let unknown = MirrorNotes::of_daemon(directory.path(), "a").expect("it can be read");
        assert!(unknown.is_none());
        daemon.note_sequence("a", 4).expect("written");
        let other = MirrorNotes::of_daemon(directory.path(), "a").expect("it can be read");
        let other = other.expect("it is known");
        other.note_sequence("a", 5).expect("written");
        assert_eq!(daemon.newest_sequence("a"), 5);
        daemon.note_sequence("b", 2).expect("written");
        daemon.note_sequence("a", 4).expect("it is less");
        let now = open(&directory);
        assert_eq!((now.newest_sequence("a"), now.newest_sequence("b")), (5, 2));
    }

    #[test]
    fn a_sequence_is_given_out_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let notes = open(&directory);
        notes.note_sequence("a", 4).expect("written");
        // The next one may be on a device that is missing.
        assert_eq!(notes.reserve("a", 4).expect("written"), 6);
        drop(notes);
        let notes = open(&directory);
        assert_eq!(notes.reserve("a", 4).expect("written"), 7);
        assert_eq!(notes.reserve("a", 9).expect("written"), 11);
        assert_eq!(notes.newest_sequence("a"), 4, "no label has them yet");
    }

    /// As a program wrote it that knew of no sides that were too small.
    #[test]
    fn sequences_of_an_older_program_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(SEQUENCES), "{\n  \"a\": 4\n}\n").expect("written");
        let notes = open(&directory);
        assert_eq!((notes.newest_sequence("a"), notes.cut_off("a").len()), (4, 0));
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused_with_a_way_out() {
        for (name, bad) in [
            (SEQUENCES, "["),
            (CUT_OFF, ""),
            (CUT_OFF, "[]"),
            (CUT_OFF, r#"{"version":1}"#),
            (CUT_OFF, r#"{"version":2,"pools":{}}"#),
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            fs::write(directory.path().join(name), bad).expect("written");
            let error = MirrorNotes::open(directory.path()).expect_err(bad);
            assert_eq!(error.kind, ErrorKind::Failure, "{error}");
            assert!(error.message.contains(name), "{error}");
        }
    }
}
