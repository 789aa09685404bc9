//! Memory and descriptors of the daemon stay flat under everything that its users do over and over.
//! `STILLPOINT_SOAK_SECONDS` says for how long.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::history::History;
use crate::support::load::Load;
use crate::support::{Appliance, setting};

const SECONDS: u64 = 60;
/// Of the time, until everything that is allocated once is.
const WARM_UP_PERCENT: u32 = 35;
/// After the warm-up resident memory may grow by so much; a leak of 100 bytes per request would exceed it within
/// the short form.
const GROWTH_BYTES_MAX: u64 = 4 << 20;
/// For threads that were started to end, when there is nothing left to do.
const TIME_TO_END: Duration = Duration::from_secs(60);
const PROCESSORS: u64 = 2;
const VOLUME_BYTES: u64 = 12 << 20;
/// Answered requests of a round.
const REQUESTS: u64 = 1_500;
/// Then the volume is deleted and the next one made.
const ROUNDS_OF_VOLUME: u64 = 12;

/// What the daemon holds while no client is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    resident_bytes: u64,
    descriptors: u64,
    /// The daemon's own.
    threads: u64,
    /// Threads that the kernel lends to its rings.
    workers: u64,
}

impl Held {
    fn now(appliance: &Appliance) -> Self {
        let process = format!("/proc/{}", appliance.pid());
        let status = fs::read_to_string(format!("{process}/status")).expect("the daemon runs");
        let names = thread_names(appliance).into_iter();
        let (workers, own): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with("iou-wrk"));
        let number = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).expect(key);
            let word = line.split_whitespace().nth(1).expect("a value");
            word.parse::<u64>().expect("a number")
        };
        Self {
            resident_bytes: number("VmRSS:") << 10,
            descriptors: fs::read_dir(format!("{process}/fd")).expect("ours").count() as u64,
            threads: own.len() as u64,
            workers: workers.len() as u64,
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
            workers: self.workers.max(other.workers),
        }
    }
}

/// What the daemon's threads are called, in order.
fn thread_names(appliance: &Appliance) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", appliance.pid())).expect("ours");
    // A thread may end while they are counted.
    let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    let mut names: Vec<String> = names.map(|name| name.trim_end().to_owned()).collect();
    names.sort_unstable();
    names
}

struct Scene {
    appliance: Appliance,
    history: Arc<History>,
    volume: String,
    rounds: u64,
    requests: u64,
}

impl Scene {
    fn new() -> Self {
        let appliance = Appliance::started(&["--processors", &PROCESSORS.to_string()]);
        appliance.create_pool("p", 2, "256MiB", &[]);
        Self {
            appliance,
            history: Arc::new(History::new(1, VOLUME_BYTES)),
            volume: String::new(),
            rounds: 0,
            requests: 0,
        }
    }

    fn next_volume(&mut self) {
        if !self.volume.is_empty() {
            self.appliance.run(&["export", "delete", &self.volume]);
            self.appliance.run(&["volume", "delete", &self.volume]);
        }
        self.volume = format!("v{}", self.rounds);
        self.history = Arc::new(History::new(1, VOLUME_BYTES));
        let size = VOLUME_BYTES.to_string();
        let shape = ["--block-size", "512", "--object-size", "1MiB"];
        let create = ["volume", "create", &self.volume, "--size", &size];
        self.appliance.run(&[&create[..], &shape].concat());
        self.appliance.run(&["export", "create", &self.volume]);
    }

    /// What users do; at the end nobody is connected.
    fn round(&mut self) {
        if self.rounds.is_multiple_of(ROUNDS_OF_VOLUME) {
            self.next_volume();
        }
        self.rounds += 1;
        let socket = self.appliance.nbd_socket();
        let load = Load::start(&socket, &self.volume, 3, &self.history, 1, self.rounds);
        let snapshot = format!("{}@now", self.volume);
        self.appliance
            .run(&["snapshot", "create", &snapshot, "--hold-limit", "2s"]);
        self.appliance.run(&["export", "create", &snapshot]);
        let mut reader = self.appliance.connect(&snapshot);
        reader.read_all().unwrap_or_else(|error| panic!("{error}"));
        drop(reader);
        // Clients that go in the middle of the handshake, and one that asks for what is not there.
        for bytes in [&[][..], &[0, 0, 0, 3], &[0, 0, 0, 3, 0x49, 0x48, 0x41]] {
            let mut stream = UnixStream::connect(&socket).expect("the daemon listens");
            stream.write_all(bytes).expect("it reads");
        }
        assert_ne!(self.appliance.tell(&["volume", "show", "nothing"]).code, 0);
        self.appliance.run(&["status"]);
        load.wait_for_answers(REQUESTS);
        self.requests += load.finish();
        self.appliance.run(&["export", "delete", &snapshot]);
        self.appliance.run(&["snapshot", "delete", &snapshot]);
    }

    /// When no more descriptors are open than before.
    fn held(&self, before: Held) -> Held {
        // Connections that ended are closed a moment later.
        self.appliance.wait_until("all descriptors are closed again", || {
            Held::now(&self.appliance).descriptors <= before.descriptors
        });
        Held::now(&self.appliance)
    }
}

#[test]
fn memory_and_descriptors_stay_flat() {
    let time = Duration::from_secs(setting("STILLPOINT_SOAK_SECONDS", SECONDS));
    let mut scene = Scene::new();
    let fresh = Held::now(&scene.appliance);
    let start = Instant::now();
    let (mut warm, mut later) = (Held::default(), Held::default());
    while start.elapsed() < time || later == Held::default() {
        scene.round();
        let held = scene.held(fresh);
        if start.elapsed() < time * WARM_UP_PERCENT / 100 || warm == Held::default() {
            warm = warm.max(held);
        } else {
            later = later.max(held);
        }
    }
    let growth = later.resident_bytes.saturating_sub(warm.resident_bytes);
    eprintln!(
        "{:?}, {} rounds, {} requests: resident {} KiB when fresh, at most {} KiB in the warm-up, then at most {} KiB \
         (growth {} KiB); descriptors {} and {}, threads {}, at most {}, and {} of the kernel",
        start.elapsed(),
        scene.rounds,
        scene.requests,
        fresh.resident_bytes >> 10,
        warm.resident_bytes >> 10,
        later.resident_bytes >> 10,
        growth >> 10,
        fresh.descriptors,
        later.descriptors,
        fresh.threads,
        later.threads,
        later.workers,
    );
    assert!(
        growth <= GROWTH_BYTES_MAX,
        "resident memory grew by {growth} bytes: {warm:?}, {later:?}"
    );
    assert_eq!(later.descriptors, fresh.descriptors);
    wait_for_threads(&scene.appliance, fresh, warm);
    scene.appliance.stop();
}

/// Until all threads have ended that the daemon started. Those that the kernel lends its rings it takes back when it likes:
/// an hour of load left six behind a minute later, of ten. It must not have lent more and more of them.
fn wait_for_threads(appliance: &Appliance, fresh: Held, warm: Held) {
    let begun = Instant::now();
    loop {
        let held = Held::now(appliance);
        if held.threads <= fresh.threads && held.workers <= warm.workers {
            return;
        }
        assert!(
            begun.elapsed() < TIME_TO_END,
            "threads that do not end: {:?}; at first there were {}, and at most {} of the kernel in the warm-up",
            thread_names(appliance),
            fresh.threads,
            warm.workers
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
