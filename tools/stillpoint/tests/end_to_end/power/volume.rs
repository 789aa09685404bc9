//! A volume with a file system that is used, and its snapshots.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use stillpoint_simulator::random::Random;

use super::ledger::{self, Ledger, Promises};
use crate::support::mounts::{Exported, Kind, Mounted};

/// With more of them the oldest goes.
const SNAPSHOTS_KEPT: usize = 2;

/// The volume; it is called like its kind of file system.
pub struct Volume {
    pub kind: Kind,
    pub ledger: Ledger,
    snapshots: Mutex<Vec<Snapshot>>,
    asked: AtomicU64,
    confirmed: AtomicU64,
}

/// One of its snapshots.
pub struct Snapshot {
    pub name: String,
    pub confirmed: bool,
    /// From when its deletion was asked for, it may be gone.
    pub deleting: bool,
    /// What was promised when it was asked for, and still when it was confirmed.
    pub promises: Promises,
}

/// Where it is mounted; taken apart in this order.
pub struct Host {
    pub mounted: Mounted,
    pub exported: Exported,
}

/// What all who use the machine look at.
#[derive(Default)]
pub struct Phase {
    /// Nobody changes files or takes snapshots.
    pub pausing: AtomicBool,
    /// Errors are the power's fault from now on.
    pub failing: AtomicBool,
    /// Everybody ends.
    pub ending: AtomicBool,
}

impl Phase {
    /// Whether there is something to do; waits while there is a pause.
    pub fn goes_on(&self) -> bool {
        while self.pausing.load(Ordering::SeqCst) && !self.ending.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        !self.ending.load(Ordering::SeqCst)
    }
}

impl Volume {
    /// Nothing is known of it.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            ledger: Ledger::default(),
            snapshots: Mutex::default(),
            asked: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
        }
    }

    /// Snapshots that may be there.
    pub fn snapshots(&self) -> MutexGuard<'_, Vec<Snapshot>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Snapshots that were confirmed so far.
    pub fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::SeqCst)
    }

    /// Changes files until the end, or until the power goes.
    pub fn change_files(&self, phase: &Phase, host: &Host, mut random: Random) {
        while phase.goes_on() {
            let directory = host.mounted.directory();
            if let Err(error) = ledger::change_something(&self.ledger, directory, &mut random) {
                let expected = phase.failing.load(Ordering::SeqCst);
                assert!(expected, "{}: {error}", self.kind.name);
                return;
            }
        }
    }

    /// Takes a snapshot; deletes the oldest if there are many. `succeeded` runs a command.
    pub fn take_snapshot(&self, succeeded: impl Fn(&[&str]) -> bool) {
        let mut snapshots = self.snapshots();
        if snapshots.len() > SNAPSHOTS_KEPT {
            snapshots[0].deleting = true;
            if !succeeded(&["snapshot", "delete", &snapshots[0].name]) {
                return;
            }
            snapshots.remove(0);
        }
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        let name = format!("{}@{number}", self.kind.name);
        snapshots.push(Snapshot {
            name: name.clone(),
            confirmed: false,
            deleting: false,
            promises: self.ledger.promises(),
        });
        if succeeded(&["snapshot", "create", &name, "--hold-limit", "2s"]) {
            let snapshot = snapshots.last_mut().expect("just pushed");
            snapshot.promises = self.ledger.held_since(std::mem::take(&mut snapshot.promises));
            snapshot.confirmed = true;
            self.confirmed.fetch_add(1, Ordering::SeqCst);
        }
    }
}
