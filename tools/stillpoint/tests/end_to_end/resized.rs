//! Devices that get another size while their pool is open, and before it is opened. They need root and loop devices.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::support::block::{Loop, why_not};
use crate::support::foreign::must;
use crate::support::nbd::Failure;
use crate::support::{Appliance, list, member, number};
use serde_json::Value;
use stillpoint_export::nbd::wire::ReplyError;

const DEVICE_BYTES: u64 = 128 << 20;
const VOLUME_BYTES: usize = 16 << 20;
const BLOCK: usize = 4096;

/// A pool `p` on a loop device, with an exported volume `v` that is written.
struct Rig {
    appliance: Appliance,
    disk: File,
    device: Loop,
}

impl Rig {
    /// `None`, and why, if this machine has no loop devices.
    fn new(test: &str) -> Option<Self> {
        if let Some(reason) = why_not() {
            eprintln!("SKIPPED {test}: {reason}");
            return None;
        }
        let appliance = Appliance::started(&["--processors", "2"]);
        let disk = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(appliance.path("disk"))
            .expect("a new file");
        disk.set_len(DEVICE_BYTES).expect("a sparse file");
        let device = Loop::over(&appliance.path("disk"), false);
        appliance.run(&["pool", "create", "p", device.path()]);
        appliance.run(&[
            "volume",
            "create",
            "v",
            "--size",
            "16MiB",
            "--object-size",
            "1MiB",
        ]);
        appliance.run(&["export", "create", "v"]);
        let rig = Self {
            appliance,
            disk,
            device,
        };
        rig.write(1).expect("written");
        Some(rig)
    }

    /// Writes all of the volume and flushes it.
    fn write(&self, time: u8) -> Result<(), Failure> {
        self.appliance.connect("v").write(0, &content(time), true)
    }

    /// The log of a shard lies where the device has nothing.
    fn is_refused(&self, time: u8) {
        match self.write(time) {
            Err(Failure::Refused(error)) => assert_eq!(error, ReplyError::Io),
            other => panic!("{other:?}"),
        }
    }

    fn holds(&self, time: u8) -> bool {
        self.appliance.connect("v").read_all().expect("read") == content(time)
    }

    /// The pool takes writes again, and nothing on its device is damaged when it ends.
    fn works_and_ends_undamaged(&self, time: u8) {
        self.write(time).expect("written");
        assert!(self.holds(time));
        self.appliance.stop();
        self.appliance
            .check_devices(&[self.device.path()])
            .expect("nothing is damaged");
    }

    /// The device gets this size.
    fn resize(&self, size_bytes: u64) {
        self.disk.set_len(size_bytes).expect("another length");
        must("losetup", &["--set-capacity", self.device.path()]);
    }

    /// The device loses what lies behind this size; gives that.
    fn cut_off(&self, size_bytes: u64) -> Vec<u8> {
        let read = || {
            let mut bytes = vec![0; (DEVICE_BYTES - size_bytes) as usize];
            self.disk.read_exact_at(&mut bytes, size_bytes).expect("read");
            bytes
        };
        // What the pool writes beside requests has come to rest.
        let mut lost = read();
        loop {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let now = read();
            if now == lost {
                break;
            }
            lost = now;
        }
        self.resize(size_bytes);
        lost
    }

    /// The device has all of it again.
    fn give_back(&self, lost: &[u8]) {
        let size_bytes = DEVICE_BYTES - lost.len() as u64;
        self.disk.write_all_at(lost, size_bytes).expect("written");
        self.resize(DEVICE_BYTES);
    }

    fn pool(&self) -> Value {
        self.appliance.run(&["pool", "show", "p"])
    }

    fn wait_for_state(&self, state: &str) {
        let what = format!("the pool is {state}");
        self.appliance
            .wait_until(&what, || member(&self.pool(), "/state") == state);
    }

    /// What was told of another size, oldest first.
    fn told(&self) -> Vec<String> {
        let events = self.appliance.run(&["events"]);
        let events = list(&events, "/events").iter();
        let resized = events.filter(|event| member(event, "/kind") == "device_resized");
        resized
            .map(|event| {
                assert_eq!(member(event, "/pool"), "p");
                assert_eq!(member(event, "/subject"), self.device.path());
                member(event, "/text").as_str().expect("text").to_owned()
            })
            .collect()
    }
}

fn content(time: u8) -> Vec<u8> {
    let block = |number: u64| {
        let mut bytes = vec![time; BLOCK];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    (0..(VOLUME_BYTES / BLOCK) as u64).flat_map(block).collect()
}

#[test]
fn a_device_that_grows_goes_on_and_says_what_is_unused() {
    let Some(rig) = Rig::new("a_device_that_grows_goes_on_and_says_what_is_unused") else {
        return;
    };
    let grown = DEVICE_BYTES + (32 << 20);
    rig.resize(grown);
    rig.appliance
        .wait_until("it is told of", || !rig.told().is_empty());
    let told = rig.told();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains(&format!("it had {DEVICE_BYTES} bytes and has {grown} now"))
            && told[0].contains("unused"),
        "{told:?}"
    );
    rig.write(2).expect("written");
    assert!(rig.holds(2));
    let unused_is_told = || {
        let pool = rig.pool();
        assert_eq!(member(&pool, "/state"), "open");
        assert_eq!(number(&pool, "/devices/0/size_bytes"), grown);
        assert_eq!(number(&pool, "/devices/0/pool_bytes"), DEVICE_BYTES);
        assert_eq!(number(&pool, "/devices/0/unused_bytes"), 32 << 20);
        let device = rig.appliance.run(&["device", "show", rig.device.path()]);
        assert_eq!(number(&device, "/unused_bytes"), 32 << 20);
        let doctor = rig.appliance.run(&["doctor"]);
        let mut findings = list(&doctor, "/findings").iter();
        let found = findings.find(|found| {
            let message = member(found, "/message").as_str().expect("text");
            message.contains("33554432 of its") && message.contains("are unused")
        });
        let found = found.unwrap_or_else(|| panic!("{doctor:#}"));
        assert_eq!(
            member(found, "/subject"),
            &format!("device {}", rig.device.path())
        );
    };
    unused_is_told();
    // And when it is opened so: the second label is where it was.
    rig.appliance.kill();
    rig.appliance.start(&["--processors", "2"]);
    unused_is_told();
    assert!(rig.holds(2));
    // Smaller again, and still as large as it has to be.
    rig.resize(DEVICE_BYTES);
    rig.appliance
        .wait_until("it is told of", || rig.told().len() == 1);
    assert!(
        rig.told()[0].contains("the pool uses all of it"),
        "{:?}",
        rig.told()
    );
    rig.works_and_ends_undamaged(3);
}

#[test]
fn a_device_that_shrinks_fails_what_lies_behind_its_end_and_works_again_with_its_size() {
    let Some(rig) =
        Rig::new("a_device_that_shrinks_fails_what_lies_behind_its_end_and_works_again_with_its_size")
    else {
        return;
    };
    let half = DEVICE_BYTES / 2;
    let lost = rig.cut_off(half);
    rig.wait_for_state("device_shrunk");
    let pool = rig.pool();
    let error = member(&pool, "/error").as_str().expect("text");
    for words in [
        rig.device.path(),
        &half.to_string(),
        &DEVICE_BYTES.to_string(),
        "give it its size back",
    ] {
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(number(&pool, "/devices/0/size_bytes"), half);
    assert!(number(&pool, "/devices/0/lost_since_ns") > 0);
    let told = rig.told();
    assert!(
        told.len() == 1 && told[0].contains(&format!("it had {DEVICE_BYTES} bytes and has {half} now")),
        "{told:?}"
    );
    // Whatever is asked is answered: with what is there, or with an error.
    let mut client = rig.appliance.connect("v");
    let expected = content(1);
    let mut failed = 0;
    for (number, block) in expected.chunks(BLOCK).enumerate() {
        match client.read((number * BLOCK) as u64, BLOCK) {
            Ok(bytes) => assert!(bytes == block, "block {number}"),
            Err(Failure::Refused(error)) => {
                assert_eq!(error, ReplyError::Io, "block {number}");
                failed += 1;
            }
            Err(Failure::Broken(error)) => panic!("{error}"),
        }
    }
    assert!(
        failed > 0,
        "a half of the device is gone, and nothing that was asked"
    );
    rig.is_refused(2);
    drop(client);
    // A start with it is refused, with the same words, and goes on by itself.
    rig.appliance.kill();
    rig.appliance.start(&["--processors", "2"]);
    let pool = rig.pool();
    assert_eq!(member(&pool, "/state"), "failed");
    let error = member(&pool, "/error").as_str().expect("text").to_owned();
    for words in [
        rig.device.path(),
        &half.to_string(),
        &DEVICE_BYTES.to_string(),
        "size back",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let refused = rig.appliance.tell(&["pool", "open", rig.device.path()]);
    assert!(
        refused.code != 0 && refused.errors.contains(&half.to_string()),
        "{refused:?}"
    );
    rig.give_back(&lost);
    rig.wait_for_state("open");
    rig.write(3).expect("written");
    assert!(rig.holds(3));

    // Once more, without a restart.
    let lost = rig.cut_off(half);
    rig.wait_for_state("device_shrunk");
    rig.is_refused(4);
    rig.give_back(&lost);
    rig.wait_for_state("open");
    rig.works_and_ends_undamaged(5);
}

#[test]
fn a_device_that_had_no_bytes_for_a_while_is_opened_again() {
    let Some(rig) = Rig::new("a_device_that_had_no_bytes_for_a_while_is_opened_again") else {
        return;
    };
    let lost = rig.cut_off(0);
    rig.wait_for_state("device_lost");
    rig.is_refused(2);
    // The pool has had it open all the while.
    rig.give_back(&lost);
    rig.wait_for_state("open");
    assert!(rig.holds(1));
    rig.works_and_ends_undamaged(3);
}
