//! Nothing acknowledged is lost to `kill -9`, flushed or not; confirmed snapshots are whole, unconfirmed ones gone.
//!
//! Each cycle: a load on several connections, snapshots taken and deleted meanwhile, the daemon killed at some
//! moment, started again with another number of processors, everything read back and judged. In some of them a second
//! volume is cloned and rolled back meanwhile. `STILLPOINT_KILLS` says how many cycles.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::branches::{Branches, names};
use crate::support::history::{Content, History};
use crate::support::load::Load;
use crate::support::nbd::Connection;
use crate::support::{Appliance, number, setting};
use stillpoint_simulator::model::{Broken, Tick};
use stillpoint_simulator::random::Random;

/// Small, so that all of it can be read back in every cycle.
const VOLUME_BYTES: u64 = 6 << 20;
/// Each with sixteen requests in flight.
const CONNECTIONS: u64 = 4;
const SNAPSHOTS_KEPT: usize = 3;
const KILLS: u64 = 500;
/// Every so many cycles the devices are checked as the killed process left them.
const CYCLES_OF_CHECK: usize = 10;
/// Every so many cycles there are clones and rollbacks too.
const CYCLES_OF_BRANCHES: usize = 5;
/// After so many the next appliance takes over: what is known of all writes to a volume only grows.
const KILLS_OF_ONE_MAX: u64 = 500;

/// A snapshot, as its user knows it.
struct Snapshot {
    name: String,
    asked: Tick,
    /// When the command returned with success.
    confirmed: Option<Tick>,
    /// What it showed at the first look.
    content: Option<Content>,
    /// Its deletion was asked for: from then on it may be gone.
    deleting: bool,
}

/// What happened.
#[derive(Default)]
struct Figures {
    requests_answered: u64,
    snapshots_asked: u64,
    snapshots_confirmed: u64,
    snapshots_deleted: u64,
    /// Snapshots read from end to end after a crash.
    looks: u64,
    /// Of the devices, by `inspect --check`.
    checks: u64,
    cloned: u64,
    rolled_back: u64,
    /// Clones, and snapshots of the volume that is cloned, compared after a kill.
    branches_compared: u64,
    restarts: Vec<Duration>,
}

/// The appliance, its volume `v`, and all that its users know.
struct Scene {
    appliance: Appliance,
    /// Further arguments of every start.
    arguments: Vec<&'static str>,
    history: Arc<History>,
    snapshots: Vec<Snapshot>,
    branches: Option<Branches>,
    random: Random,
    figures: Figures,
}

impl Scene {
    fn new(arguments: &[&'static str], seed: u64) -> Self {
        let appliance = Appliance::new();
        let mut first = vec!["--processors", "2"];
        first.extend(arguments);
        appliance.start(&first);
        appliance.create_pool("p", 2, "512MiB", &["--shards", "3"]);
        let size = format!("{}MiB", VOLUME_BYTES >> 20);
        let volume = ["volume", "create", "v", "--size", &size];
        let shape = ["--block-size", "512", "--object-size", "1MiB"];
        appliance.run(&[&volume[..], &shape[..]].concat());
        appliance.run(&["export", "create", "v"]);
        let branches = Some(Branches::new(&appliance, seed));
        Self {
            branches,
            appliance,
            arguments: arguments.to_vec(),
            history: Arc::new(History::new(1, VOLUME_BYTES)),
            snapshots: Vec::new(),
            random: Random::new(seed),
            figures: Figures::default(),
        }
    }

    /// A life from one start to the next: everything must be there.
    fn cycle(&mut self, processors: &'static str) {
        let with_branches = self.figures.restarts.len().is_multiple_of(CYCLES_OF_BRANCHES);
        let died = self.live_and_die(with_branches);
        if self.figures.restarts.len().is_multiple_of(CYCLES_OF_CHECK) {
            self.check_devices();
        }
        self.restart(processors);
        self.judge_snapshots(died);
        self.judge_volume()
            .unwrap_or_else(|broken| panic!("after the crash: {}", broken.0));
        if with_branches && let Some(branches) = &mut self.branches {
            branches.judge(&self.appliance);
        }
        let mut snapshots = std::mem::take(&mut self.snapshots);
        let mut figures = std::mem::take(&mut self.figures);
        while snapshots.len() > SNAPSHOTS_KEPT {
            self.delete_oldest(&mut snapshots, &mut figures, &AtomicBool::new(false));
        }
        (self.snapshots, self.figures) = (snapshots, figures);
    }

    /// Load and snapshots until the daemon is killed; gives the time of its death.
    fn live_and_die(&mut self, with_branches: bool) -> Tick {
        let seed = self.random.bits();
        let busy = Duration::from_millis(self.random.between(20, 220));
        let socket = self.appliance.nbd_socket();
        let load = Load::start(&socket, "v", CONNECTIONS, &self.history, 1, seed);
        let dying = AtomicBool::new(false);
        let mut snapshots = std::mem::take(&mut self.snapshots);
        let mut figures = std::mem::take(&mut self.figures);
        let mut branches = self.branches.take();
        let (scene, is_dying) = (&*self, &dying);
        thread::scope(|scope| {
            let taker = scope.spawn(|| {
                while !dying.load(Ordering::SeqCst) {
                    scene.take_and_delete(&mut snapshots, &mut figures, is_dying);
                }
            });
            if let Some(branches) = branches.as_mut().filter(|_| with_branches) {
                scope.spawn(move || {
                    while !is_dying.load(Ordering::SeqCst) {
                        branches.step(&scene.appliance, |arguments| scene.command(arguments, is_dying));
                    }
                });
            }
            thread::sleep(busy);
            load.expect_crash();
            dying.store(true, Ordering::SeqCst);
            scene.appliance.kill();
            taker.join().expect("the taker of snapshots does not panic");
        });
        figures.requests_answered += load.finish();
        (self.snapshots, self.figures) = (snapshots, figures);
        self.branches = branches;
        self.history.crashed()
    }

    /// Takes a snapshot and notes what it shows; deletes the oldest if there are many.
    fn take_and_delete(&self, snapshots: &mut Vec<Snapshot>, figures: &mut Figures, dying: &AtomicBool) {
        let name = format!("v@s{}", figures.snapshots_asked);
        figures.snapshots_asked += 1;
        snapshots.push(Snapshot {
            name: name.clone(),
            asked: self.history.now(),
            confirmed: None,
            content: None,
            deleting: false,
        });
        let snapshot = snapshots.last_mut().expect("just pushed");
        if !self.command(&["snapshot", "create", &name, "--hold-limit", "2s"], dying) {
            return;
        }
        snapshot.confirmed = Some(self.history.now());
        figures.snapshots_confirmed += 1;
        if !self.command(&["export", "create", &name], dying) {
            return;
        }
        if let Ok(bytes) = self.read_all(&name) {
            let answered = snapshot.confirmed.expect("just noted");
            let content = self.history.first_look(&bytes, snapshot.asked, answered);
            snapshot.content = Some(content.unwrap_or_else(|broken| panic!("{name}: {}", broken.0)));
        } else {
            assert!(dying.load(Ordering::SeqCst), "{name} cannot be read");
            return;
        }
        if snapshots.len() > SNAPSHOTS_KEPT {
            self.delete_oldest(snapshots, figures, dying);
        }
    }

    fn delete_oldest(&self, snapshots: &mut Vec<Snapshot>, figures: &mut Figures, dying: &AtomicBool) {
        let oldest = &mut snapshots[0];
        oldest.deleting = true;
        if self.command(&["export", "delete", &oldest.name], dying)
            && self.command(&["snapshot", "delete", &oldest.name], dying)
        {
            snapshots.remove(0);
            figures.snapshots_deleted += 1;
        }
    }

    /// Runs a command that may fail only because the daemon dies.
    fn command(&self, arguments: &[&str], dying: &AtomicBool) -> bool {
        let told = self.appliance.tell(arguments);
        assert!(
            told.code == 0 || dying.load(Ordering::SeqCst),
            "stillpoint {}: {}",
            arguments.join(" "),
            told.errors
        );
        told.code == 0
    }

    fn read_all(&self, export: &str) -> Result<Vec<u8>, String> {
        let mut connection = Connection::open(&self.appliance.nbd_socket(), export)
            .map_err(|error| format!("{export}: {error}"))?;
        connection
            .read_all()
            .map_err(|error| format!("{export}: {error}"))
    }

    fn restart(&mut self, processors: &'static str) {
        let mut arguments = vec!["--processors", processors];
        arguments.extend(&self.arguments);
        let start = Instant::now();
        self.appliance.spawn(&arguments, &[]);
        self.appliance.connect("v");
        self.figures.restarts.push(start.elapsed());
    }

    fn check_devices(&mut self) {
        let devices = ["p-0", "p-1"].map(|name| self.appliance.path_text(name));
        let checked = self
            .appliance
            .check_devices(&devices.each_ref().map(String::as_str));
        checked.unwrap_or_else(|broken| panic!("before the restart: {broken}"));
        self.figures.checks += 1;
    }

    /// Before anything is written: the snapshots are judged by the history up to the crash.
    fn judge_snapshots(&mut self, died: Tick) {
        let there = names(&self.appliance.run(&["snapshot", "list", "v"]));
        let exported = names(&self.appliance.run(&["export", "list"]));
        let mut kept = Vec::new();
        let mut seen = BTreeSet::new();
        for mut snapshot in std::mem::take(&mut self.snapshots) {
            let name = snapshot.name.clone();
            if !there.contains(&name) {
                assert!(
                    snapshot.confirmed.is_none() || snapshot.deleting,
                    "the confirmed snapshot {name} is gone"
                );
                continue;
            }
            seen.insert(name.clone());
            if !exported.contains(&name) {
                self.appliance.run(&["export", "create", &name]);
            }
            let bytes = self.read_all(&name).unwrap_or_else(|error| panic!("{error}"));
            let judged = match &snapshot.content {
                Some(content) => self.history.next_look(&bytes, content),
                None => {
                    let answered = snapshot.confirmed.unwrap_or(died);
                    let looked = self.history.first_look(&bytes, snapshot.asked, answered);
                    looked.map(|content| snapshot.content = Some(content))
                }
            };
            judged.unwrap_or_else(|broken| panic!("{name} after the crash: {}", broken.0));
            // Its commit record was durable: it is there to stay.
            snapshot.confirmed.get_or_insert(died);
            snapshot.deleting = false;
            self.figures.looks += 1;
            kept.push(snapshot);
        }
        let unknown: Vec<&String> = there.difference(&seen).collect();
        assert!(unknown.is_empty(), "snapshots that nobody knows: {unknown:?}");
        self.snapshots = kept;
    }

    fn judge_volume(&self) -> Result<(), Broken> {
        let bytes = self.read_all("v").unwrap_or_else(|error| panic!("{error}"));
        self.history.recovered(&bytes)
    }

    /// Everything deleted and discarded, all space comes back: no crash has leaked any.
    fn space_comes_back(&mut self) {
        for snapshot in std::mem::take(&mut self.snapshots) {
            self.appliance.run(&["export", "delete", &snapshot.name]);
            self.appliance.run(&["snapshot", "delete", &snapshot.name]);
        }
        if let Some(branches) = self.branches.take() {
            self.figures.cloned = branches.cloned;
            self.figures.rolled_back = branches.rolled_back;
            self.figures.branches_compared = branches.compared;
            branches.delete_everything(&self.appliance);
        }
        let mut connection = self.appliance.connect("v");
        let trimmed = connection
            .trim(0, VOLUME_BYTES as usize)
            .and_then(|()| connection.flush());
        trimmed.unwrap_or_else(|error| panic!("{error}"));
        let mut used = 0;
        self.appliance.wait_until("all space is free again", || {
            used = number(&self.appliance.run(&["pool", "show", "p"]), "/used_bytes");
            // What is left is metadata: maps of three empty shares, catalog, bitmaps.
            used < 4 << 20
        });
    }
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.requests_answered += other.requests_answered;
        self.snapshots_asked += other.snapshots_asked;
        self.snapshots_confirmed += other.snapshots_confirmed;
        self.snapshots_deleted += other.snapshots_deleted;
        self.looks += other.looks;
        self.checks += other.checks;
        self.cloned += other.cloned;
        self.rolled_back += other.rolled_back;
        self.branches_compared += other.branches_compared;
        self.restarts.extend(other.restarts);
    }

    /// For whoever reads the output; no test is about time. Whatever is lost ends the test before this.
    fn report(mut self) {
        self.restarts.sort_unstable();
        let kills = self.restarts.len();
        eprintln!(
            "{kills} kills, {} requests answered, lost: 0; {} snapshots confirmed of {} asked for, {} deleted, lost: 0 \
             ({} looks at a snapshot after a kill); {} clones, {} rollbacks, {} looks at what they led to, different: 0; \
             {} checks of the devices, damage: 0; restart until the export answers (goal: under 2 s): median {:?}, \
             longest {:?}",
            self.requests_answered,
            self.snapshots_confirmed,
            self.snapshots_asked,
            self.snapshots_deleted,
            self.looks,
            self.cloned,
            self.rolled_back,
            self.branches_compared,
            self.checks,
            self.restarts[kills / 2],
            self.restarts[kills - 1],
        );
    }
}

#[test]
fn nothing_acknowledged_is_lost_to_kill_9() {
    let mut left = setting("STILLPOINT_KILLS", KILLS);
    let mut figures = Figures::default();
    for seed in 1.. {
        let kills = left.min(KILLS_OF_ONE_MAX);
        let mut scene = Scene::new(&[], seed);
        for cycle in 0..kills as usize {
            scene.cycle(["1", "2", "3"][cycle % 3]);
        }
        scene.space_comes_back();
        scene.appliance.stop();
        scene.check_devices();
        figures.add(std::mem::take(&mut scene.figures));
        left -= kills;
        if left == 0 {
            break;
        }
    }
    figures.report();
}

#[test]
fn without_a_log_tail_nothing_acknowledged_is_lost_either() {
    let mut scene = Scene::new(&["--tail-dir", "none"], 2);
    for cycle in 0..8 {
        scene.cycle(["3", "1"][cycle % 2]);
    }
    std::mem::take(&mut scene.figures).report();
    scene.appliance.stop();
}

/// The judge can say no: the same crash, and with it goes what only the log tail held.
#[test]
fn a_log_tail_that_does_not_survive_is_noticed() {
    let noticed = (1..=20).find_map(|seed| {
        let mut scene = Scene::new(&[], seed);
        scene.live_and_die(false);
        scene.appliance.lose_tails();
        scene.restart("2");
        scene.judge_volume().err().map(|broken| (seed, broken.0))
    });
    let (lives, broken) = noticed.expect("what was acknowledged and not flushed is gone, and noticed");
    eprintln!("lost log tails noticed after {lives} lives: {broken}");
}
