//! A machine whose disks have volatile caches: the real program on them, file systems on its volumes, and a power cord.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use stillpoint_simulator::random::Random;

use super::raw::Raw;
use super::volume::{Host, Phase, Volume};
use crate::support::mounts::{Exported, FILE_SYSTEM_BYTES, Fuse, Kind, Loop};
use crate::support::volatile_disk::{Cut, VolatileDisk};
use crate::support::{Appliance, list, member};

const DISK_BYTES: u64 = 512 << 20;
/// Before the power may go, each file system has seen so many changes that are durable.
const CHANGES_MIN: u64 = 12;
const PATIENCE: Duration = Duration::from_secs(60);

/// The disks as devices; detached in this order.
struct Attached {
    _block_device: Loop,
    _files: [Fuse; 2],
}

/// All of it.
pub struct Machine {
    pub appliance: Appliance,
    attached: Option<Attached>,
    disks: Vec<VolatileDisk>,
    devices: [PathBuf; 2],
    pub volumes: Vec<Volume>,
    raw: Mutex<Raw>,
    random: Random,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Figures {
    pub cuts: u64,
    pub cuts_during_recovery: u64,
    pub lost: Cut,
    /// Changes of files that were acknowledged as durable.
    pub changes: u64,
    /// Requests that the volume without a file system answered.
    pub requests: u64,
    /// Looked at after a cut, one by one.
    pub files: u64,
    pub snapshots: u64,
    pub file_systems: u64,
}

/// Set when it goes out of scope, be it by a panic.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Who uses the devices goes before them, and they go before the directory that they are mounted in.
        self.appliance.end();
        self.attached = None;
    }
}

impl Machine {
    /// Two disks, a pool on them, a volume with each kind of file system and one with none.
    pub fn new(kinds: Vec<Kind>, seed: u64) -> Self {
        let appliance = Appliance::new();
        let disk = |name| VolatileDisk::new(&appliance.path(""), name, DISK_BYTES);
        let disks = vec![disk("disk-0"), disk("disk-1")];
        let (attached, devices) = attach(&appliance, &disks);
        appliance.start(&["--processors", "2"]);
        let paths = texts(&devices);
        let pool = appliance.run(&["pool", "create", "p", paths[0], paths[1], "--shards", "3"]);
        for device in list(&pool, "/devices") {
            assert_eq!(member(device, "/direct"), true, "past the page cache: {device}");
        }
        let machine = Self {
            attached: Some(attached),
            disks,
            devices,
            volumes: kinds.into_iter().map(Volume::new).collect(),
            raw: Mutex::new(Raw::new(&appliance)),
            random: Random::new(seed),
            appliance,
        };
        for volume in &machine.volumes {
            let name = volume.kind.name;
            let size = FILE_SYSTEM_BYTES.to_string();
            let shape = ["--block-size", "512", "--object-size", "4MiB"];
            let create = ["volume", "create", name, "--size", &size];
            machine.appliance.run(&[&create[..], &shape].concat());
            machine.appliance.run(&["export", "create", name]);
            let exported = Exported::new(&machine.appliance, name);
            volume.kind.make(exported.device());
        }
        machine
    }

    /// The disks get power and are devices again.
    pub fn attach(&mut self) {
        self.attached = Some(attach(&self.appliance, &self.disks).0);
    }

    /// What a check of the devices finds that is wrong, while no daemon has them.
    pub fn check_devices(&self) -> Result<(), String> {
        self.appliance.check_devices(&texts(&self.devices))
    }

    /// Mounts a volume's file system.
    pub fn host(&self, volume: &Volume) -> Result<Host, String> {
        let exported = Exported::new(&self.appliance, volume.kind.name);
        let directory = self.appliance.path(&format!("{}-root", volume.kind.name));
        let mounted = volume.kind.mount(exported.device(), &directory)?;
        Ok(Host { mounted, exported })
    }

    /// The volume without a file system.
    pub fn raw(&self) -> MutexGuard<'_, Raw> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the disks answer flushes without doing anything.
    pub fn lie(&self) {
        self.disks.iter().for_each(VolatileDisk::lie);
    }

    /// Flushes that reached the disks.
    pub fn flushes(&self) -> u64 {
        self.disks.iter().map(VolatileDisk::flushes).sum()
    }

    /// Snapshots that were confirmed so far.
    pub fn snapshots_confirmed(&self) -> u64 {
        let confirmed: u64 = self.volumes.iter().map(Volume::confirmed).sum();
        confirmed + self.raw().confirmed()
    }

    /// Everything is used until the power goes.
    pub fn live_until_the_power_goes(&mut self, figures: &mut Figures) {
        let hosts = self.volumes.iter().map(|volume| self.host(volume));
        let hosts: Vec<Host> = hosts.collect::<Result<_, _>>().expect("checked file systems");
        let kept: Vec<u64> = self.volumes.iter().map(|volume| volume.ledger.kept()).collect();
        let mut random = self.random.fork();
        let phase = Phase::default();
        let load = self.raw().start(&self.appliance, &mut random);
        thread::scope(|scope| {
            let _whatever_happens = SetAtEnd(&phase.ending);
            for (volume, host) in self.volumes.iter().zip(&hosts) {
                let (phase, random) = (&phase, random.fork());
                scope.spawn(move || volume.change_files(phase, host, random));
            }
            let takers_random = random.fork();
            scope.spawn(|| self.take_snapshots(&phase, takers_random));
            self.wait_for_changes(&kept, &phase);
            thread::sleep(Duration::from_millis(random.below(500)));
            if random.percent(60) {
                // Without anybody who flushes, much waits in the caches.
                phase.pausing.store(true, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(random.between(20, 200)));
            }
            phase.failing.store(true, Ordering::SeqCst);
            load.expect_crash();
            figures.lost.add(&VolatileDisk::cut(&self.disks, &mut random));
            // What the daemon says about disks that are dead must be true, too.
            thread::sleep(Duration::from_millis(random.below(30)));
            self.appliance.kill();
        });
        figures.requests += load.finish();
        self.raw().crashed();
        drop(hosts);
        self.attached = None;
        self.appliance.lose_tails();
        figures.cuts += 1;
        for (volume, before) in self.volumes.iter().zip(kept) {
            figures.changes += volume.ledger.kept() - before;
        }
    }

    fn wait_for_changes(&self, before: &[u64], phase: &Phase) {
        let start = Instant::now();
        for (volume, before) in self.volumes.iter().zip(before) {
            while volume.ledger.kept() < before + CHANGES_MIN {
                assert!(start.elapsed() < PATIENCE, "{} does not go on", volume.kind.name);
                assert!(phase.goes_on());
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn take_snapshots(&self, phase: &Phase, mut random: Random) {
        let succeeded = |arguments: &[&str]| {
            let told = self.appliance.tell(arguments);
            let expected = told.code == 0 || phase.failing.load(Ordering::SeqCst);
            assert!(expected, "stillpoint {}: {}", arguments.join(" "), told.errors);
            told.code == 0
        };
        while phase.goes_on() {
            let chosen = random.below(self.volumes.len() as u64 + 1) as usize;
            match self.volumes.get(chosen) {
                Some(volume) => volume.take_snapshot(succeeded),
                None => self.raw().take_snapshot(succeeded),
            }
            thread::sleep(Duration::from_millis(random.below(120)));
        }
    }

    /// The power comes back and goes again before the daemon is ready, or just after.
    pub fn power_goes_while_recovering(&mut self, figures: &mut Figures) {
        self.attach();
        self.appliance.spawn(&["--processors", "2"], &[]);
        thread::sleep(Duration::from_millis(self.random.below(120)));
        let cut = VolatileDisk::cut(&self.disks, &mut self.random);
        self.appliance.kill();
        self.attached = None;
        self.appliance.lose_tails();
        figures.lost.add(&cut);
        figures.cuts_during_recovery += 1;
    }

    /// Whether something that happens half the time happens now.
    pub fn toss(&mut self) -> bool {
        self.random.percent(50)
    }
}

fn texts(paths: &[PathBuf; 2]) -> [&str; 2] {
    paths.each_ref().map(|path| path.to_str().expect("UTF-8"))
}

/// One disk as a file, the other as a block device. Gives their paths, the same in each life.
fn attach(appliance: &Appliance, disks: &[VolatileDisk]) -> (Attached, [PathBuf; 2]) {
    disks.iter().for_each(VolatileDisk::power_on);
    let file = |index: usize| {
        let directory = appliance.path(&format!("disk-{index}"));
        Fuse::mount(&directory, 1, &[&disks[index].uri()])
    };
    let files = [file(0), file(1)];
    let block_device = Loop::attach(&files[1].file());
    let paths = [files[0].file(), appliance.path("disk-1.device")];
    // Loop devices have another number each time.
    let _ = std::fs::remove_file(&paths[1]);
    symlink(block_device.device(), &paths[1]).expect("a name of ours");
    let attached = Attached {
        _block_device: block_device,
        _files: files,
    };
    (attached, paths)
}
