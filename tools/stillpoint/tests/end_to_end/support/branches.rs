//! A small volume that is cloned and rolled back, its snapshots and its clones: what each of them shows is what its user
//! knows, also if the daemon died in the middle of anything.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stillpoint_simulator::random::Random;

use super::nbd::{Connection, Failure};
use super::{Appliance, list, member};

const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 300;
/// Clones, and snapshots, at most.
const KEPT: usize = 3;
/// The volume.
const VOLUME: &str = "w";

/// Whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked,
    There,
    Ending,
}

/// A volume or a snapshot: the byte that fills each block.
#[derive(Clone, Debug)]
struct Branch {
    blocks: Vec<u8>,
    /// A write that was not answered.
    pending: Option<(usize, u8)>,
    state: State,
}

/// All that the user knows.
#[derive(Debug)]
pub struct Branches {
    random: Random,
    made: u64,
    volume: Branch,
    /// What the volume becomes by a rollback that was not answered.
    becomes: Option<Branch>,
    clones: BTreeMap<String, Branch>,
    snapshots: BTreeMap<String, Branch>,
    /// Clones made.
    pub cloned: u64,
    /// Rollbacks done.
    pub rolled_back: u64,
    /// Volumes and snapshots compared after a kill.
    pub compared: u64,
}

impl Branches {
    /// Makes the volume, all zeros, and offers it.
    pub fn new(appliance: &Appliance, seed: u64) -> Self {
        let size = (BLOCKS * BLOCK_BYTES as u64).to_string();
        appliance.run(&[
            "volume",
            "create",
            VOLUME,
            "--size",
            &size,
            "--object-size",
            "1MiB",
        ]);
        appliance.run(&["export", "create", VOLUME]);
        let volume = Branch {
            blocks: vec![0; BLOCKS as usize],
            pending: None,
            state: State::There,
        };
        Self {
            random: Random::new(seed),
            made: 0,
            volume,
            becomes: None,
            clones: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            cloned: 0,
            rolled_back: 0,
            compared: 0,
        }
    }

    /// Does something. `command` runs a command and says whether it was done; it fails only while the daemon dies.
    pub fn step(&mut self, appliance: &Appliance, command: impl Fn(&[&str]) -> bool) {
        match self.random.below(10) {
            0..=3 => {
                let clones: Vec<String> = self.clones.keys().cloned().collect();
                let on_a_clone = !clones.is_empty() && self.random.percent(50);
                let name = on_a_clone.then(|| self.random.pick(&clones).clone());
                self.write(appliance, name.as_deref(), &command);
            }
            4 if self.snapshots.len() < KEPT => self.take(&command),
            5 if self.clones.len() < KEPT => self.make_clone(&command),
            6 | 7 => self.roll_back(appliance, &command),
            8 => self.delete_clone(&command),
            9 => self.delete_snapshot(&command),
            _ => {}
        }
    }

    fn next_name(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}{}", self.made)
    }

    fn any_snapshot(&mut self) -> Option<(String, Branch)> {
        let there = self.snapshots.iter();
        let there: Vec<(String, Branch)> = there
            .filter(|(_, snapshot)| snapshot.state == State::There)
            .map(|(name, snapshot)| (name.clone(), snapshot.clone()))
            .collect();
        (!there.is_empty()).then(|| self.random.pick(&there).clone())
    }

    /// Fills a block of the volume or of a clone.
    fn write(&mut self, appliance: &Appliance, clone: Option<&str>, command: &impl Fn(&[&str]) -> bool) {
        let (block, byte) = (
            self.random.below(BLOCKS) as usize,
            self.random.between(1, 255) as u8,
        );
        let branch = match clone {
            Some(name) => self.clones.get_mut(name).expect("a clone"),
            None => &mut self.volume,
        };
        branch.pending = Some((block, byte));
        let offset_bytes = (block * BLOCK_BYTES) as u64;
        let written = Connection::open(&appliance.nbd_socket(), clone.unwrap_or(VOLUME))
            .map_err(Failure::from)
            .and_then(|mut connection| connection.write(offset_bytes, &[byte; BLOCK_BYTES], false));
        if written.is_ok() {
            branch.blocks[block] = byte;
            branch.pending = None;
        } else {
            assert!(
                !command(&["volume", "list"]),
                "a write failed, and the daemon lives"
            );
        }
    }

    fn take(&mut self, command: &impl Fn(&[&str]) -> bool) {
        if self.volume.pending.is_some() {
            return;
        }
        let name = format!("{VOLUME}@{}", self.next_name("b"));
        let asked = Branch {
            state: State::Asked,
            ..self.volume.clone()
        };
        self.snapshots.insert(name.clone(), asked);
        if command(&["snapshot", "create", &name, "--hold-limit", "2s"]) {
            self.snapshots.get_mut(&name).expect("just made").state = State::There;
        }
    }

    fn make_clone(&mut self, command: &impl Fn(&[&str]) -> bool) {
        let Some((snapshot, content)) = self.any_snapshot() else {
            return;
        };
        let name = self.next_name("c");
        let asked = Branch {
            state: State::Asked,
            ..content
        };
        self.clones.insert(name.clone(), asked);
        if command(&["volume", "clone", &snapshot, &name]) {
            self.clones.get_mut(&name).expect("just made").state = State::There;
            self.cloned += 1;
            command(&["export", "create", &name]);
        }
    }

    fn roll_back(&mut self, appliance: &Appliance, command: &impl Fn(&[&str]) -> bool) {
        let Some((snapshot, content)) = self.any_snapshot() else {
            return;
        };
        if self.volume.pending.is_some() {
            return;
        }
        let safety = self.next_name("safety");
        let asked = Branch {
            state: State::Asked,
            ..self.volume.clone()
        };
        let arguments = [
            "volume",
            "rollback",
            &snapshot,
            "--force",
            "--safety-name",
            &safety,
        ];
        let safety = format!("{VOLUME}@{safety}");
        self.snapshots.insert(safety.clone(), asked);
        self.becomes = Some(content);
        let told = appliance.tell(&arguments);
        if told.code == 0 {
            self.snapshots.get_mut(&safety).expect("just made").state = State::There;
            self.volume = self.becomes.take().expect("just noted");
            self.rolled_back += 1;
        } else if told.errors.contains("hold") {
            // On a busy machine its snapshot may not come in time: then it is as it was.
            self.snapshots.remove(&safety);
            self.becomes = None;
        } else {
            assert!(!command(&["volume", "list"]), "rollback: {}", told.errors);
        }
    }

    fn delete_clone(&mut self, command: &impl Fn(&[&str]) -> bool) {
        let Some((name, _)) = self.clones.iter().next() else {
            return;
        };
        let name = name.clone();
        self.clones.get_mut(&name).expect("just found").state = State::Ending;
        if command(&["export", "delete", &name]) && command(&["volume", "delete", &name]) {
            self.clones.remove(&name);
        }
    }

    /// Also if it has clones.
    fn delete_snapshot(&mut self, command: &impl Fn(&[&str]) -> bool) {
        let Some((name, _)) = self.any_snapshot() else {
            return;
        };
        self.snapshots.get_mut(&name).expect("just found").state = State::Ending;
        if command(&["snapshot", "delete", &name, "--defer"]) {
            self.snapshots.remove(&name);
        }
    }

    /// After a start: everything is there that was confirmed, and shows what it must.
    pub fn judge(&mut self, appliance: &Appliance) {
        let volumes = names(&appliance.run(&["volume", "list"]));
        let snapshots = names(&appliance.run(&["snapshot", "list", VOLUME]));
        let exports = names(&appliance.run(&["export", "list"]));
        retain(&mut self.clones, &volumes);
        retain(&mut self.snapshots, &snapshots);
        let unknown: Vec<&String> = snapshots
            .iter()
            .filter(|name| !self.snapshots.contains_key(*name))
            .collect();
        assert!(unknown.is_empty(), "snapshots that nobody asked for: {unknown:?}");
        let shown = read(appliance, VOLUME);
        let before = self.volume.found(&shown);
        let becomes = self
            .becomes
            .take()
            .filter(|branch| !before && branch.blocks == shown);
        assert!(before || becomes.is_some(), "{VOLUME} shows something else");
        self.volume.settle(shown);
        for (name, clone) in &mut self.clones {
            if !exports.contains(name) {
                appliance.run(&["export", "create", name]);
            }
            let shown = read(appliance, name);
            assert!(clone.found(&shown), "the clone {name} shows something else");
            clone.settle(shown);
            self.compared += 1;
        }
        for (name, snapshot) in &mut self.snapshots {
            appliance.run(&["export", "create", name, "--name", "look", "--read-only"]);
            let shown = read(appliance, "look");
            appliance.run(&["export", "delete", "look"]);
            assert!(snapshot.blocks == shown, "{name} shows something else");
            snapshot.settle(shown);
            self.compared += 1;
        }
    }

    /// Deletes all of it.
    pub fn delete_everything(self, appliance: &Appliance) {
        for name in self.snapshots.keys() {
            appliance.run(&["snapshot", "delete", name, "--defer"]);
        }
        for name in self.clones.keys().map(String::as_str).chain([VOLUME]) {
            appliance.run(&["export", "delete", name]);
            appliance.run(&["volume", "delete", name]);
        }
    }
}

impl Branch {
    /// Whether these bytes of its blocks may be there.
    fn found(&self, shown: &[u8]) -> bool {
        let mut written = self.blocks.clone();
        if let Some((block, byte)) = self.pending {
            written[block] = byte;
        }
        self.blocks == shown || written == shown
    }

    fn settle(&mut self, shown: Vec<u8>) {
        (self.blocks, self.pending, self.state) = (shown, None, State::There);
    }
}

/// Drops what is not there and need not be.
fn retain(known: &mut BTreeMap<String, Branch>, there: &BTreeSet<String>) {
    known.retain(|name, branch| {
        let is_there = there.contains(name);
        assert!(is_there || branch.state != State::There, "{name} is gone");
        is_there
    });
}

/// The byte that fills each block of an export.
fn read(appliance: &Appliance, export: &str) -> Vec<u8> {
    let bytes = appliance.connect(export).read_all();
    let bytes = bytes.unwrap_or_else(|error| panic!("{export}: {error}"));
    let blocks = bytes.chunks_exact(BLOCK_BYTES);
    blocks
        .map(|block| {
            let whole = block.iter().all(|byte| *byte == block[0]);
            assert!(whole, "{export} has a block that nobody wrote");
            block[0]
        })
        .collect()
}

/// The names in a list of things.
pub fn names(things: &Value) -> BTreeSet<String> {
    let name = |thing: &Value| member(thing, "/name").as_str().expect("a text").to_owned();
    list(things, "").iter().map(name).collect()
}
