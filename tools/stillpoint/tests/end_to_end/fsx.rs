//! fsx, the file system exerciser that nobody here wrote, on exports that are mounted as files, with snapshots in between
//! and `kill -9` now and then. In between the volume is overwritten and rolled back, and the last parts go to a clone. At the end every snapshot is read again and compared with what fsx, given the same seed,
//! makes of a plain file up to that operation. `STILLPOINT_FSX_OPERATIONS` says how many operations.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::foreign::must;
use crate::support::mounts::{Fuse, contained};
use crate::support::nbd::{Connection, Failure};
use crate::support::{Appliance, setting};
use stillpoint_simulator::random::Random;

const OPERATIONS: u64 = 10_000;
/// Between two snapshots that are compared with a plain file.
const OPERATIONS_OF_PART: u64 = 1_000;
const PARTS: u64 = 5;
/// After this part the volume is overwritten and rolled back.
const PART_BEFORE_ROLLBACK: u64 = 1;
/// After this one fsx goes on with a clone.
const PART_BEFORE_CLONE: u64 = 2;
const VOLUME_BYTES: u64 = 2 << 20;

/// A way to use fsx.
struct Style {
    /// Of the volume, too.
    name: &'static str,
    /// Lines of its configuration, before the weights and after them.
    sizes: &'static str,
    weights: &'static str,
}

const STYLES: [Style; 2] = [
    // Any byte; nbdkit's filter makes 512-byte sectors of it, which Stillpoint has to merge into its blocks. Holes are
    // left out: what a discard of a part of a sector does is nobody's promise.
    Style {
        name: "bytes",
        sizes: "min = 1",
        weights: "",
    },
    // Whole blocks, with holes.
    Style {
        name: "blocks",
        sizes: "min = 4096\nalign = 4096",
        weights: "punch_hole = 5",
    },
];

/// A snapshot, and what it has to show.
struct Taken {
    name: String,
    content: Vec<u8>,
}

struct Scene {
    appliance: Appliance,
    random: Random,
    compared: u64,
    looked_at_twice: u64,
    kills: u64,
}

impl Style {
    fn configuration(&self) -> String {
        format!(
            "blockmode = true\nflen = {VOLUME_BYTES}\n[opsize]\nmax = 65536\n{}\n[weights]\ntruncate = 0\nclose_open = 0\n\
             read = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 2\nfsync = 1\nfdatasync = 1\nsendfile = 2\n\
             posix_fadvise = 2\ncopy_file_range = 2\n{}\n",
            self.sizes, self.weights
        )
    }
}

impl Scene {
    fn new() -> Self {
        let appliance = Appliance::started(&["--processors", "2"]);
        appliance.create_pool("p", 2, "512MiB", &["--shards", "3"]);
        for style in &STYLES {
            let size = VOLUME_BYTES.to_string();
            let shape = ["--block-size", "512", "--object-size", "1MiB"];
            appliance.run(&[&["volume", "create", style.name, "--size", &size], &shape[..]].concat());
            appliance.run(&["export", "create", style.name]);
            fs::write(appliance.path(style.name), style.configuration()).expect("a file of ours");
        }
        Self {
            appliance,
            random: Random::new(1),
            compared: 0,
            looked_at_twice: 0,
            kills: 0,
        }
    }

    /// Runs fsx up to operation `end`; what is before `first` it makes in one go.
    fn fsx(&self, style: &Style, seed: u64, (first, end): (u64, u64), file: &str) {
        let numbers = [first, end, seed].map(|number| number.to_string());
        let configuration = self.appliance.path_text(style.name);
        let artifacts = self.appliance.path_text("");
        let arguments = ["-b", &numbers[0], "-N", &numbers[1], "-S", &numbers[2]];
        let places = ["-f", &configuration, "-P", &artifacts, file];
        must("fsx", &[&arguments[..], &places].concat());
    }

    /// What fsx makes of a plain file, in memory where there is a tmpfs.
    fn expected(&self, style: &Style, seed: u64, end: u64) -> Vec<u8> {
        let plain = tempfile::NamedTempFile::new_in("/dev/shm").or_else(|_| tempfile::NamedTempFile::new());
        let plain = plain.expect("a temporary file");
        plain.as_file().set_len(VOLUME_BYTES).expect("a sparse file");
        self.fsx(style, seed, (1, end), plain.path().to_str().expect("UTF-8"));
        fs::read(plain.path()).expect("a file of ours")
    }

    fn read(&self, export: &str) -> Vec<u8> {
        let connection = Connection::open(&self.appliance.nbd_socket(), export);
        let read = connection
            .map_err(Into::into)
            .and_then(|mut connection| connection.read_all());
        read.unwrap_or_else(|error: Failure| panic!("{export}: {error}"))
    }

    fn snapshot(&self, name: &str) {
        self.appliance
            .run(&["snapshot", "create", name, "--hold-limit", "2s"]);
        self.appliance.run(&["export", "create", name]);
    }

    /// Overwrites a volume here and there, and rolls it back to its newest snapshot; gives what keeps the damage.
    fn damage_and_roll_back(&mut self, volume: &str, snapshot: &str) -> Taken {
        let mut connection = self.appliance.connect(volume);
        for offset_bytes in (0..VOLUME_BYTES).step_by(256 << 10) {
            let bytes = vec![self.random.bits() as u8; 4096 * self.random.between(1, 16) as usize];
            connection.write(offset_bytes, &bytes, false).expect("a write");
        }
        drop(connection);
        let content = self.read(volume);
        let safety = "damaged";
        self.appliance
            .run(&["volume", "rollback", snapshot, "--force", "--safety-name", safety]);
        let name = format!("{volume}@{safety}");
        self.appliance.run(&["export", "create", &name]);
        Taken { name, content }
    }

    /// Some operations, with snapshots at moments that nobody knows.
    fn part(&mut self, style: &Style, volume: &str, seed: u64, operations: (u64, u64)) -> Vec<Taken> {
        let uri = format!("uri={}", self.appliance.uri(volume));
        let source = [
            "--command",
            "nbdkit",
            "-s",
            "--filter=blocksize",
            "nbd",
            &uri,
            "minblock=512",
        ];
        let mounted = Fuse::mount(&self.appliance.path("mounted"), 1, &source);
        let file: PathBuf = mounted.file();
        let done = AtomicBool::new(false);
        let mut random = self.random.fork();
        let taken = thread::scope(|scope| {
            let taker = scope.spawn(|| {
                let mut taken = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    let name = format!("{volume}@during-{}-{}", operations.1, taken.len());
                    self.snapshot(&name);
                    let content = self.read(&name);
                    taken.push(Taken { name, content });
                    thread::sleep(Duration::from_millis(random.between(50, 300)));
                }
                taken
            });
            let file = file.to_str().expect("UTF-8");
            let ended = std::panic::catch_unwind(|| self.fsx(style, seed, operations, file));
            done.store(true, Ordering::SeqCst);
            let taken = taker.join().expect("snapshots are taken");
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            taken
        });
        File::open(file).and_then(|file| file.sync_all()).expect("synced");
        taken
    }

    /// All parts with one seed; then every snapshot is judged.
    fn round(&mut self, style: &Style, seed: u64) {
        let (mut during, mut between) = (Vec::new(), Vec::new());
        let mut volume = style.name.to_owned();
        let clone = format!("{}-{seed}", style.name);
        for part in 0..PARTS {
            let (first, end) = (part * OPERATIONS_OF_PART + 1, (part + 1) * OPERATIONS_OF_PART);
            during.extend(self.part(style, &volume, seed, (first, end)));
            let name = format!("{volume}@after-{end}");
            self.snapshot(&name);
            if part == PART_BEFORE_ROLLBACK {
                during.push(self.damage_and_roll_back(&volume, &name));
            }
            if part == PART_BEFORE_CLONE {
                self.appliance.run(&["volume", "clone", &name, &clone]);
                self.appliance.run(&["export", "create", &clone]);
                volume.clone_from(&clone);
            }
            let content = self.expected(style, seed, end);
            between.push(Taken { name, content });
            if self.random.percent(40) {
                self.appliance.kill();
                self.appliance.start(&["--processors", "2"]);
                self.kills += 1;
            }
        }
        let last = &between.last().expect("parts").content;
        assert!(self.read(&clone) == *last, "{clone}: the volume itself");
        let cloned_from = &between[PART_BEFORE_CLONE as usize].content;
        assert!(
            self.read(style.name) == *cloned_from,
            "{}: what was cloned",
            style.name
        );
        self.compared += between.len() as u64;
        self.looked_at_twice += during.len() as u64;
        for Taken { name, content } in between.into_iter().chain(during) {
            assert!(self.read(&name) == content, "{name} shows something else");
            self.appliance.run(&["export", "delete", &name]);
            self.appliance.run(&["snapshot", "delete", &name, "--defer"]);
        }
        self.appliance.run(&["export", "delete", &clone]);
        self.appliance.run(&["volume", "delete", &clone]);
    }
}

/// V8, V11: fsx reads its last writes, and every snapshot shows what the file was then.
#[test]
fn fsx_finds_nothing_and_every_snapshot_is_what_fsx_had_made() {
    contained(
        "fsx::fsx_finds_nothing_and_every_snapshot_is_what_fsx_had_made",
        || {
            let mut scene = Scene::new();
            let rounds = setting("STILLPOINT_FSX_OPERATIONS", OPERATIONS) / (PARTS * OPERATIONS_OF_PART);
            for round in 1..=rounds {
                scene.round(&STYLES[round as usize % STYLES.len()], round);
            }
            eprintln!(
                "{} operations of fsx, a rollback and a clone in each {}, {} snapshots compared with a plain file, {} read twice, {} kills; different: 0",
                rounds * PARTS * OPERATIONS_OF_PART,
                PARTS * OPERATIONS_OF_PART,
                scene.compared,
                scene.looked_at_twice,
                scene.kills
            );
            scene.appliance.stop();
        },
    );
}
