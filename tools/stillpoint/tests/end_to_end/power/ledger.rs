//! What a file system promised: which files were there, and with which content, when `fsync` came back.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stillpoint_simulator::random::Random;

const FILE_BYTES_MAX: u64 = 192 << 10;
/// With more of them, one is removed before the next is made.
const FILES_MAX: usize = 120;
/// Files that are written and never synced, so that there is always something that may go.
const UNSYNCED_FILES: u64 = 10;

/// Of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    hash: u64,
    length_bytes: u64,
}

/// Of one name: its content, or that it is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Counts the changes to this name.
    change: u64,
    content: Option<Content>,
}

/// Promises by name.
pub type Promises = BTreeMap<String, Promise>;

#[derive(Debug, Default)]
struct Names {
    promises: Promises,
    /// Names with a change under way; what they show is open.
    open: BTreeMap<String, u64>,
    changes: u64,
    kept: u64,
    named: u64,
}

/// One file system's promises.
#[derive(Debug, Default)]
pub struct Ledger {
    names: Mutex<Names>,
}

impl Content {
    fn of(bytes: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        Self {
            hash: hasher.finish(),
            length_bytes: bytes.len() as u64,
        }
    }
}

impl Ledger {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of this name begins.
    fn begin(&self, name: &str) {
        let mut names = self.names();
        names.changes += 1;
        let change = names.changes;
        names.promises.remove(name);
        names.open.insert(name.to_owned(), change);
    }

    /// The change of this name is durable.
    fn end(&self, name: &str, content: Option<Content>) {
        let mut names = self.names();
        let change = names.open.remove(name).expect("it has begun");
        names
            .promises
            .insert(name.to_owned(), Promise { change, content });
        names.kept += 1;
    }

    /// Changes that became durable so far.
    pub fn kept(&self) -> u64 {
        self.names().kept
    }

    /// What is promised now.
    pub fn promises(&self) -> Promises {
        self.names().promises.clone()
    }

    /// Of promises made before, those that held all the time until now.
    pub fn held_since(&self, mut before: Promises) -> Promises {
        let names = self.names();
        before.retain(|name, promise| names.promises.get(name) == Some(promise));
        before
    }

    /// After a power cut: changes that were under way are promised by nobody. Their files are removed, for good.
    pub fn settle(&self, directory: &Path) -> io::Result<()> {
        let open = std::mem::take(&mut self.names().open);
        for name in open.keys() {
            match fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // Promises that something is gone have been judged.
        self.names()
            .promises
            .retain(|_, promise| promise.content.is_some());
        sync_directory(directory)
    }

    fn pick(&self, random: &mut Random) -> Option<String> {
        let names = self.names();
        let files: Vec<&String> = names
            .promises
            .iter()
            .filter(|(_, promise)| promise.content.is_some())
            .map(|(name, _)| name)
            .collect();
        (!files.is_empty()).then(|| (*random.pick(&files)).clone())
    }

    fn new_name(&self) -> String {
        let mut names = self.names();
        names.named += 1;
        format!("file-{}", names.named)
    }

    fn files(&self) -> usize {
        let names = self.names();
        names
            .promises
            .values()
            .filter(|promise| promise.content.is_some())
            .count()
    }
}

/// Whatever differs from what was promised, in words.
pub fn complaints(promises: &Promises, directory: &Path) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, promise) in promises {
        let found = match fs::read(directory.join(name)) {
            Ok(bytes) => Ok(Some(Content::of(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        match found {
            Ok(found) if found == promise.content => {}
            Ok(None) => complaints.push(format!("{name} is lost")),
            Ok(Some(_)) if promise.content.is_none() => complaints.push(format!("{name} is back")),
            Ok(Some(_)) => complaints.push(format!("{name} has another content")),
            Err(error) => complaints.push(format!("{name}: {error}")),
        }
    }
    complaints
}

fn random_bytes(random: &mut Random) -> Vec<u8> {
    let length = random.between(1, FILE_BYTES_MAX) as usize;
    // Mostly small files, as everywhere.
    let length = if random.percent(70) {
        length / 16 + 1
    } else {
        length
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(random.bits().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn write_and_sync(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// One change of the file system, as careful programs make it. An error is the file system's.
pub fn change_something(ledger: &Ledger, directory: &Path, random: &mut Random) -> io::Result<()> {
    let many = ledger.files() >= FILES_MAX;
    match (random.below(100), ledger.pick(random)) {
        (0..=29, _) => {
            let path = directory.join(format!("unsynced-{}", random.below(UNSYNCED_FILES)));
            fs::write(path, random_bytes(random))
        }
        (30..=49, Some(name)) => replace(ledger, directory, &name, &random_bytes(random)),
        (50..=69, Some(name)) => overwrite_in_place(ledger, directory, &name, random),
        (choice, Some(name)) if many || choice >= 90 => remove(ledger, directory, &name),
        _ => create(ledger, directory, &random_bytes(random)),
    }
}

fn create(ledger: &Ledger, directory: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = ledger.new_name();
    ledger.begin(&name);
    write_and_sync(&directory.join(&name), bytes)?;
    sync_directory(directory)?;
    ledger.end(&name, Some(Content::of(bytes)));
    Ok(())
}

/// Written beside it, synced, moved over it.
fn replace(ledger: &Ledger, directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    ledger.begin(name);
    let beside = directory.join("beside");
    write_and_sync(&beside, bytes)?;
    fs::rename(beside, directory.join(name))?;
    sync_directory(directory)?;
    ledger.end(name, Some(Content::of(bytes)));
    Ok(())
}

fn overwrite_in_place(ledger: &Ledger, directory: &Path, name: &str, random: &mut Random) -> io::Result<()> {
    let path = directory.join(name);
    let mut bytes = fs::read(&path)?;
    let from = random.below(bytes.len() as u64) as usize;
    let new = random_bytes(random);
    let count = new.len().min(bytes.len() - from);
    bytes[from..from + count].copy_from_slice(&new[..count]);
    ledger.begin(name);
    let file = File::options().write(true).open(path)?;
    file.write_all_at(&new[..count], from as u64)?;
    file.sync_data()?;
    ledger.end(name, Some(Content::of(&bytes)));
    Ok(())
}

fn remove(ledger: &Ledger, directory: &Path, name: &str) -> io::Result<()> {
    ledger.begin(name);
    fs::remove_file(directory.join(name))?;
    sync_directory(directory)?;
    ledger.end(name, None);
    Ok(())
}
