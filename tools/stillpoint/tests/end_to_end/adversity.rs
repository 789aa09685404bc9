//! What happens to the machine under an appliance: full disks and pools, devices that shrink, vanish or may not be
//! written, a second daemon, a pool of a newer program, a clock that goes back. Each time there is a clear error, the
//! rest lives, and nothing that was acknowledged is lost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::block::{FileSystem, Loop, why_not};
use crate::support::foreign::must;
use crate::support::good_client::GoodClient;
use crate::support::nbd::{Connection, Failure};
use crate::support::{Appliance, list, member, number};
use stillpoint_export::nbd::wire::ReplyError;
use stillpoint_simulator::random::mix;

const MIB: usize = 1 << 20;
/// Bytes of one request of the tests.
const PIECE: usize = 256 << 10;

/// Whether a test can run here; says why if it cannot.
fn possible(test: &str) -> bool {
    let reason = why_not();
    if let Some(reason) = &reason {
        eprintln!("SKIPPED {test}: {reason}");
    }
    reason.is_none()
}

/// A volume that is filled piece by piece; remembers what was acknowledged.
struct Filler {
    connection: Connection,
    acknowledged: BTreeMap<u64, u64>,
}

fn piece(seed: u64) -> Vec<u8> {
    (0..PIECE as u64 / 8)
        .flat_map(|word| mix(seed << 20 | word).to_le_bytes())
        .collect()
}

impl Filler {
    fn new(appliance: &Appliance, export: &str) -> Self {
        Self {
            connection: appliance.connect(export),
            acknowledged: BTreeMap::new(),
        }
    }

    fn write(&mut self, number: u64, seed: u64) -> Result<(), Failure> {
        self.connection
            .write(number * PIECE as u64, &piece(seed), false)?;
        self.acknowledged.insert(number, seed);
        Ok(())
    }

    /// Writes until an error comes; gives that.
    fn fill(&mut self, seed: u64) -> ReplyError {
        let pieces = self.connection.export.size_bytes / PIECE as u64;
        for number in 0..pieces {
            match self.write(number, seed + number) {
                Ok(()) => {}
                Err(Failure::Refused(error)) => return error,
                Err(error) => panic!("piece {number}: {error}"),
            }
        }
        panic!("all {pieces} pieces found room");
    }

    /// Reads what was acknowledged.
    fn check(&mut self) {
        for (&number, &seed) in &self.acknowledged {
            let read = self.connection.read(number * PIECE as u64, PIECE);
            let read = read.unwrap_or_else(|error| panic!("piece {number}: {error}"));
            assert!(read == piece(seed), "piece {number} is not what was acknowledged");
        }
    }

    /// Reads what was acknowledged: each piece is right or an error. Gives how many were errors.
    fn check_or_error(&mut self) -> usize {
        let mut errors = 0;
        for (&number, &seed) in &self.acknowledged {
            match self.connection.read(number * PIECE as u64, PIECE) {
                Ok(read) => assert!(read == piece(seed), "piece {number}: wrong data"),
                Err(Failure::Refused(_)) => errors += 1,
                Err(error) => panic!("piece {number}: {error}"),
            }
        }
        errors
    }
}

/// A volume on this pool, exported under its name.
fn export(appliance: &Appliance, pool: &str, volume: &str, size: &str) {
    let arguments = ["volume", "create", volume, "--size", size, "--pool", pool];
    appliance.run(&[&arguments[..], &["--object-size", "1MiB"]].concat());
    appliance.run(&["export", "create", volume]);
}

/// A daemon with a pool `healthy` on which a good client is at work.
fn with_good_client() -> (Appliance, GoodClient) {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("healthy", 1, "256MiB", &[]);
    export(&appliance, "healthy", "good", "16MiB");
    let good = GoodClient::start(&appliance.nbd_socket(), "good", 11);
    good.wait_for(50);
    (appliance, good)
}

/// The good client was served all the time, and the daemon is in order.
fn end(appliance: &Appliance, good: GoodClient) {
    good.wait_for(50);
    good.finish();
    appliance.stop();
}

fn state_of(appliance: &Appliance, pool: &str) -> serde_json::Value {
    appliance.run(&["pool", "show", pool])
}

#[test]
fn a_full_file_system_under_a_pool_loses_nothing() {
    if !possible("a_full_file_system_under_a_pool_loses_nothing") {
        return;
    }
    let (appliance, good) = with_good_client();
    let small = FileSystem::make(
        &appliance.path("small.img"),
        &appliance.path("small"),
        64 * MIB as u64,
    );
    let ballast = small.path.join("ballast");
    fs::write(&ballast, vec![1; 24 * MIB]).expect("room for it");
    let device = small.path.join("pool");
    let device = device.to_str().expect("a path in UTF-8");
    appliance.run(&["pool", "create", "p", device, "--size", "256MiB"]);
    export(&appliance, "p", "v", "200MiB");
    let mut filler = Filler::new(&appliance, "v");
    let error = filler.fill(1000);
    eprintln!(
        "full after {} MiB: {error}",
        filler.acknowledged.len() * PIECE / MIB
    );
    assert!(matches!(error, ReplyError::NoSpace | ReplyError::Io), "{error}");
    assert!(filler.acknowledged.len() * PIECE > 8 * MIB);
    filler.check();
    // There is room again: the pool is opened anew, and nothing is missing.
    fs::remove_file(&ballast).expect("removed");
    appliance.run(&["pool", "close", "p"]);
    appliance.run(&["pool", "open", device]);
    filler.connection = appliance.connect("v");
    filler.check();
    for number in 0..16 {
        filler
            .write(number, 5000 + number)
            .unwrap_or_else(|error| panic!("there is room again: {error}"));
    }
    filler
        .connection
        .flush()
        .unwrap_or_else(|error| panic!("{error}"));
    filler.check();
    end(&appliance, good);
    drop(small);
}

#[test]
fn a_full_pool_reads_discards_deletes_and_writes_again() {
    let (appliance, good) = with_good_client();
    appliance.create_pool("p", 1, "96MiB", &[]);
    export(&appliance, "p", "v", "256MiB");
    let mut filler = Filler::new(&appliance, "v");
    for number in 0..32 {
        filler
            .write(number, 1 + number)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    appliance.run(&["snapshot", "create", "v@before", "--hold-limit", "2s"]);
    assert_eq!(filler.fill(1000), ReplyError::NoSpace);
    filler.check();
    filler
        .connection
        .flush()
        .unwrap_or_else(|error| panic!("{error}"));
    let told = appliance.tell(&["status"]);
    let stopped = list(&told.json, "/processors").iter().any(|processor| {
        list(processor, "/shards")
            .iter()
            .any(|shard| shard["stopped"] == true)
    });
    assert!(!stopped, "a full pool is no failure");
    // Deleting and discarding give room.
    appliance.run(&["snapshot", "delete", "v@before"]);
    for number in 0..8 {
        filler
            .connection
            .trim(number * PIECE as u64, PIECE)
            .unwrap_or_else(|error| panic!("{error}"));
        filler.acknowledged.remove(&number);
    }
    let mut wrote = 0;
    appliance.wait_until("space has come free", || {
        match filler.write(wrote, 9000 + wrote) {
            Ok(()) => wrote += 1,
            Err(Failure::Refused(ReplyError::NoSpace)) => {}
            Err(error) => panic!("{error}"),
        }
        wrote == 8
    });
    filler.check();
    appliance.kill();
    appliance.start(&["--processors", "2"]);
    filler.connection = appliance.connect("v");
    filler.check();
    drop(good); // it went down with the daemon
    appliance.stop();
}

#[test]
fn a_file_that_is_cut_short_under_its_pool_gives_errors_and_never_wrong_data() {
    let (appliance, good) = with_good_client();
    appliance.create_pool("p", 1, "128MiB", &[]);
    export(&appliance, "p", "v", "64MiB");
    let mut filler = Filler::new(&appliance, "v");
    for number in 0..128 {
        filler
            .write(number, 1 + number)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    filler
        .connection
        .flush()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(filler.check_or_error(), 0);
    let device = appliance.path("p-0");
    let file = File::options().write(true).open(&device).expect("the device");
    file.set_len(16 * MIB as u64).expect("cut");
    let errors = filler.check_or_error();
    assert!(errors > 0, "most of it is gone");
    eprintln!("{errors} of 128 pieces are gone with the end of the file");
    good.wait_for(50);
    // Too small for its pool, it is not opened.
    let closed = appliance.tell(&["pool", "close", "p"]);
    assert_eq!(closed.code, 0, "{}", closed.errors);
    let path = appliance.path_text("p-0");
    file.set_len(16 * MIB as u64)
        .expect("as closing it may have written beyond");
    let told = appliance.tell(&["pool", "open", &path]);
    assert_eq!(told.code, 1, "{}", told.errors);
    assert!(
        told.errors.contains("bytes; pool p was made when it had"),
        "{}",
        told.errors
    );
    end(&appliance, good);
}

#[test]
fn a_device_that_vanishes_gives_errors_and_never_wrong_data() {
    if !possible("a_device_that_vanishes_gives_errors_and_never_wrong_data") {
        return;
    }
    let (appliance, good) = with_good_client();
    let image = appliance.path("image");
    File::create_new(&image)
        .and_then(|file| file.set_len(128 * MIB as u64))
        .expect("a sparse file");
    let device = Loop::over(&image, false);
    appliance.run(&["pool", "create", "p", device.path()]);
    export(&appliance, "p", "v", "64MiB");
    let mut filler = Filler::new(&appliance, "v");
    for number in 0..128 {
        filler
            .write(number, 1 + number)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    filler
        .connection
        .flush()
        .unwrap_or_else(|error| panic!("{error}"));
    // Detached while it is in use it goes on until it is given up.
    must("losetup", &["--detach", device.path()]);
    assert_eq!(filler.check_or_error(), 0);
    // What it stands for is gone.
    File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(0))
        .expect("cut");
    assert_eq!(
        filler.check_or_error(),
        128,
        "nothing is there, and zeros are not data"
    );
    good.wait_for(50);
    let told = appliance.tell(&["pool", "close", "p"]);
    assert_eq!(told.code, 0, "{}", told.errors);
    let told = appliance.tell(&["pool", "open", device.path()]);
    assert_ne!(told.code, 0);
    assert!(told.errors.contains(device.path()), "{}", told.errors);
    end(&appliance, good);
}

#[test]
fn a_block_device_that_ends_early_fails_writes_and_is_not_called_full() {
    if !possible("a_block_device_that_ends_early_fails_writes_and_is_not_called_full") {
        return;
    }
    let (appliance, good) = with_good_client();
    let image = appliance.path("image");
    let file = File::create_new(&image).expect("a new file");
    file.set_len(128 * MIB as u64).expect("a sparse file");
    let device = Loop::over(&image, false);
    appliance.run(&["pool", "create", "p", device.path()]);
    export(&appliance, "p", "v", "64MiB");
    let mut filler = Filler::new(&appliance, "v");
    file.set_len(16 * MIB as u64).expect("cut");
    must("losetup", &["--set-capacity", device.path()]);
    // The kernel calls a write behind the end of a device "no space left"; the pool has all its space left.
    assert_eq!(filler.fill(1), ReplyError::Io);
    good.wait_for(50);
    end(&appliance, good);
}

#[test]
fn a_read_only_device_is_refused_with_the_reason() {
    if !possible("a_read_only_device_is_refused_with_the_reason") {
        return;
    }
    let (appliance, good) = with_good_client();
    appliance.create_pool("p", 1, "64MiB", &[]);
    appliance.run(&["pool", "close", "p"]);
    let device = Loop::over(&appliance.path("p-0"), true);
    for arguments in [
        vec!["pool", "open", device.path()],
        vec!["pool", "create", "q", device.path(), "--force", device.path()],
    ] {
        let told = appliance.tell(&arguments);
        assert_eq!(told.code, 1, "{}", told.errors);
        let words = format!("{} is read-only", device.path());
        assert!(told.errors.contains(&words), "{}", told.errors);
    }
    drop(device);
    appliance.run(&["pool", "open", &appliance.path_text("p-0")]);
    end(&appliance, good);
}

#[test]
fn a_second_daemon_does_not_get_a_pool_that_is_open() {
    let (appliance, good) = with_good_client();
    let other = Appliance::started(&["--processors", "2"]);
    let path = appliance.path_text("healthy-0");
    for arguments in [
        vec!["pool", "open", path.as_str()],
        vec!["pool", "create", "mine", path.as_str(), "--force", path.as_str()],
    ] {
        let told = other.tell(&arguments);
        assert_eq!(told.code, 4, "{}", told.errors);
        let words = format!("{path} is in use by process {} (stillpoint)", appliance.pid());
        assert!(told.errors.contains(&words), "{}", told.errors);
    }
    // Neither do two daemons share a state directory.
    let third = Appliance::new();
    std::os::unix::fs::symlink(appliance.path("state"), third.path("state")).expect("a link");
    third.spawn(&[], &[]);
    assert!(!third.wait_for_the_end().success());
    let log = fs::read_to_string(third.path("daemon.log")).expect("the log");
    assert!(log.contains("is used by another daemon"), "{log}");
    assert_eq!(list(&other.run(&["pool", "list"]), "").len(), 0);
    other.stop();
    end(&appliance, good);
}

/// Changes bytes of both labels of a device; with a new checksum if they are to be sound.
fn change_labels(path: &Path, which: &[u64], change: impl Fn(&mut [u8; 4096])) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the device");
    for &offset in which {
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, offset).expect("a label");
        assert_eq!(page[..8], *b"STILLPT\0");
        change(&mut page);
        page[12..16].fill(0);
        let sum = crc32c::crc32c(&page);
        page[12..16].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&page, offset).expect("written");
    }
}

#[test]
fn a_pool_of_a_newer_program_is_refused_untouched_and_hints_are_ignored() {
    let (appliance, good) = with_good_client();
    appliance.create_pool("p", 1, "64MiB", &[]);
    export(&appliance, "p", "v", "16MiB");
    let mut filler = Filler::new(&appliance, "v");
    filler.write(3, 4).unwrap_or_else(|error| panic!("{error}"));
    filler
        .connection
        .flush()
        .unwrap_or_else(|error| panic!("{error}"));
    let device = appliance.path("p-0");
    let path = appliance.path_text("p-0");
    let (first, copy) = (0, 64 * MIB as u64 - 4096);
    let version: fn(&mut [u8; 4096]) = |page| page[8..10].copy_from_slice(&2u16.to_le_bytes());
    let incompatible: fn(&mut [u8; 4096]) = |page| page[96 + 5] |= 0x10;
    let read_only: fn(&mut [u8; 4096]) = |page| page[104] |= 1;
    for (change, words) in [
        (version, "written by format version 2"),
        (
            incompatible,
            "incompatible features that this program does not know",
        ),
        (
            read_only,
            "read-only compatible features that this program does not know",
        ),
    ] {
        // Both labels; and one of them, as if the newer program had been interrupted.
        for which in [&[first, copy][..], &[first], &[copy]] {
            appliance.run(&["pool", "close", "p"]);
            let before = fs::read(&device).expect("the device");
            change_labels(&device, which, change);
            let newer = fs::read(&device).expect("the device");
            let told = appliance.tell(&["pool", "open", &path]);
            assert_eq!(told.code, 1, "{}", told.errors);
            assert!(told.errors.contains(words), "{which:?}: {}", told.errors);
            assert!(told.errors.contains("use a newer program"), "{}", told.errors);
            let told = appliance.tell(&["pool", "create", "q", &path]);
            assert_eq!(told.code, 4, "{}", told.errors);
            assert!(fs::read(&device).expect("the device") == newer, "it was touched");
            fs::write(&device, before).expect("put back");
            appliance.run(&["pool", "open", &path]);
        }
    }
    appliance.run(&["pool", "close", "p"]);
    change_labels(&device, &[first, copy], |page| page[112 + 3] |= 0x40);
    appliance.run(&["pool", "open", &path]);
    filler.connection = appliance.connect("v");
    filler.check();
    appliance.run(&["pool", "close", "p"]);
    let label = fs::read(&device).expect("the device");
    assert_eq!(label[112 + 3], 0x40, "a hint that nobody knows stays");
    end(&appliance, good);
}

#[test]
fn time_stamps_of_snapshots_never_run_backwards() {
    let appliance = Appliance::new();
    let start = |ahead_s: i64| appliance.start_with_clock(&["--processors", "2"], ahead_s);
    let snapshot = |name: &str| {
        let told = appliance.run(&["snapshot", "create", name, "--hold-limit", "2s"]);
        number(&told, "/time_stamp_ns")
    };
    const YEAR_S: u64 = 365 * 24 * 3600;
    start(YEAR_S as i64);
    appliance.create_pool("p", 1, "128MiB", &[]);
    export(&appliance, "p", "v", "16MiB");
    let mut filler = Filler::new(&appliance, "v");
    filler.write(0, 1).unwrap_or_else(|error| panic!("{error}"));
    let mut stamps = vec![snapshot("v@next-year")];
    let year_ns = YEAR_S * 1_000_000_000;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ns = now.expect("after 1970").as_nanos() as u64;
    assert!(stamps[0] > now_ns + year_ns / 2, "the clock is a year ahead");
    // The clock is right again, which is a year back; then the process is killed, and the clock goes back once more.
    for (shift, name) in [(0, "v@today"), (-100_000, "v@yesterday")] {
        appliance.kill();
        start(shift);
        stamps.push(snapshot(name));
        let remarks = state_of(&appliance, "p");
        let remarks = member(&remarks, "/remarks").to_string();
        assert!(remarks.contains("behind the newest snapshot"), "{remarks}");
    }
    stamps.push(snapshot("v@again"));
    assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
    let listed: Vec<u64> = list(&appliance.run(&["snapshot", "list", "v"]), "")
        .iter()
        .map(|snapshot| number(snapshot, "/time_stamp_ns"))
        .collect();
    assert_eq!(listed, stamps);
    filler.connection = appliance.connect("v");
    filler.check();
    appliance.stop();
}
