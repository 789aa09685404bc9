//! A volume without a file system: many writes in flight, stamped sectors, and sometimes no flush at all, so that a
//! power cut meets much that is in the disks' caches.

use std::collections::BTreeSet;
use std::sync::Arc;

use stillpoint_simulator::model::Tick;
use stillpoint_simulator::random::Random;

use crate::support::Appliance;
use crate::support::history::History;
use crate::support::load::Load;

const NAME: &str = "raw";
const VOLUME_BYTES: u64 = 16 << 20;
/// Each with sixteen requests in flight.
const CONNECTIONS: u64 = 2;

/// The volume, and what its users know.
pub struct Raw {
    history: Arc<History>,
    snapshots: Vec<Taken>,
    asked: u64,
    confirmed: u64,
    died: Tick,
}

struct Taken {
    name: String,
    asked: Tick,
    confirmed: Option<Tick>,
}

impl Raw {
    /// Makes it.
    pub fn new(appliance: &Appliance) -> Self {
        let size = VOLUME_BYTES.to_string();
        let shape = ["--block-size", "512", "--object-size", "1MiB"];
        appliance.run(&[&["volume", "create", NAME, "--size", &size], &shape[..]].concat());
        appliance.run(&["export", "create", NAME]);
        Self {
            history: Arc::new(History::with_power_cuts(1, VOLUME_BYTES)),
            snapshots: Vec::new(),
            asked: 0,
            confirmed: 0,
            died: 0,
        }
    }

    /// Starts a load; in half of the lives one that never flushes.
    pub fn start(&self, appliance: &Appliance, random: &mut Random) -> Load {
        let start = if random.percent(50) {
            Load::start
        } else {
            Load::start_unflushed
        };
        let socket = appliance.nbd_socket();
        start(&socket, NAME, CONNECTIONS, &self.history, 1, random.bits())
    }

    /// Takes a snapshot, if `succeeded` says so.
    pub fn take_snapshot(&mut self, succeeded: impl Fn(&[&str]) -> bool) {
        let name = format!("{NAME}@{}", self.asked);
        self.asked += 1;
        self.snapshots.push(Taken {
            name: name.clone(),
            asked: self.history.now(),
            confirmed: None,
        });
        if succeeded(&["snapshot", "create", &name, "--hold-limit", "2s"]) {
            let confirmed = self.history.now();
            self.snapshots.last_mut().expect("just pushed").confirmed = Some(confirmed);
            self.confirmed += 1;
        }
    }

    /// Snapshots that were confirmed so far.
    pub fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// The power went.
    pub fn crashed(&mut self) {
        self.died = self.history.crashed();
    }

    /// What is wrong after the power came back. Deletes its snapshots: the history forgets what was before the cut.
    pub fn check(&mut self, appliance: &Appliance, there: &BTreeSet<String>) -> Vec<String> {
        let mut complaints = Vec::new();
        for snapshot in std::mem::take(&mut self.snapshots) {
            let name = &snapshot.name;
            if !there.contains(name) {
                if snapshot.confirmed.is_some() {
                    complaints.push(format!("the snapshot {name} is lost"));
                }
                continue;
            }
            appliance.run(&["export", "create", name]);
            let answered = snapshot.confirmed.unwrap_or(self.died);
            let looked = read_all(appliance, name).and_then(|bytes| {
                let looked = self.history.first_look(&bytes, snapshot.asked, answered);
                looked.map_err(|broken| broken.0)
            });
            complaints.extend(looked.err().map(|error| format!("{name}: {error}")));
            appliance.run(&["export", "delete", name]);
            appliance.run(&["snapshot", "delete", name]);
        }
        let recovered = read_all(appliance, NAME)
            .and_then(|bytes| self.history.recovered(&bytes).map_err(|broken| broken.0));
        complaints.extend(recovered.err().map(|error| format!("{NAME}: {error}")));
        complaints
    }
}

fn read_all(appliance: &Appliance, export: &str) -> Result<Vec<u8>, String> {
    let mut connection = appliance.connect(export);
    connection.read_all().map_err(|error| error.to_string())
}
