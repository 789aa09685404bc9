//! A scrub that is interrupted: by a pause, by `kill -9`, by a restart in order. It goes on where it was, and its report stays.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::support::{Appliance, list, member, number};
use serde_json::Value;

const BLOCK: u64 = 4096;
const VOLUME_BYTES: u64 = 16 << 20;
const PROCESSORS: [&str; 2] = ["--processors", "2"];

/// Every block says which it is.
fn content() -> Vec<u8> {
    let block = |number: u64| {
        let mut bytes = vec![7; BLOCK as usize];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    (0..VOLUME_BYTES / BLOCK).flat_map(block).collect()
}

/// Damages block `number` of the volume where it lies on the device.
fn damage(appliance: &Appliance, number: u64) {
    let path = appliance.path("p-0");
    let file = File::options().read(true).write(true).open(path).expect("there");
    let wanted = &content()[(number * BLOCK) as usize..][..BLOCK as usize];
    let mut bytes = vec![0; BLOCK as usize];
    let blocks = file.metadata().expect("there").len() / BLOCK;
    let found = (0..blocks).find(|block| {
        file.read_exact_at(&mut bytes, block * BLOCK).expect("read");
        bytes == wanted
    });
    bytes[1000] ^= 4;
    let place = found.expect("somewhere") * BLOCK;
    file.write_all_at(&bytes, place).expect("written");
    file.sync_all().expect("on the device");
}

fn status(appliance: &Appliance) -> Value {
    appliance.run(&["pool", "scrub", "p", "--status"])
}

fn state(scrub: &Value) -> &str {
    member(scrub, "/state").as_str().expect("a word")
}

/// A pool with a volume of which everything was written, after a restart; a scrub has looked at all of it.
fn scrubbed() -> (Appliance, Value) {
    let appliance = Appliance::started(&PROCESSORS);
    appliance.create_pool("p", 1, "256MiB", &[]);
    assert_eq!(status(&appliance), Value::Null);
    let size = format!("{}MiB", VOLUME_BYTES >> 20);
    appliance.run(&["volume", "create", "v", "--size", &size, "--object-size", "1MiB"]);
    appliance.run(&["export", "create", "v"]);
    appliance
        .connect("v")
        .write(0, &content(), true)
        .expect("written");
    appliance.stop();
    appliance.start(&PROCESSORS);
    appliance.run(&["pool", "scrub", "p", "--rate", "1GiB/s", "--wait"]);
    let report = status(&appliance);
    assert_eq!(state(&report), "done");
    assert!(number(&report, "/checked_bytes") > VOLUME_BYTES);
    (appliance, report)
}

#[test]
fn a_scrub_goes_on_after_a_kill_and_a_pause_and_its_report_stays() {
    let (appliance, whole) = scrubbed();
    let all = number(&whole, "/checked_bytes");
    // One that is found before the kill, and one after.
    damage(&appliance, 5);
    appliance.run(&["pool", "scrub", "p", "--rate", "4MiB/s"]);
    appliance.wait_until("a scrub has gone on for two seconds", || {
        number(&status(&appliance), "/running_ns") > 2_000_000_000
    });
    let before = status(&appliance);
    appliance.kill();
    damage(&appliance, VOLUME_BYTES / BLOCK - 3);
    appliance.start(&PROCESSORS);

    let after = status(&appliance);
    assert_eq!(state(&after), "running");
    let checked = |scrub: &Value| number(scrub, "/checked_bytes");
    assert!(checked(&after) > 0 && checked(&after) < all, "{after:#}");
    assert_eq!(number(&after, "/started_ns"), number(&before, "/started_ns"));
    assert_eq!(number(&after, "/damaged_blocks"), 1, "{after:#}");
    assert_eq!(number(&after, "/rate_bytes_per_s"), 4 << 20);

    appliance.run(&["pool", "scrub", "p", "--pause"]);
    let paused = status(&appliance);
    assert_eq!(state(&paused), "paused");
    assert_eq!(
        appliance.tell(&["pool", "scrub", "p"]).code,
        4,
        "there is one already"
    );
    assert_eq!(appliance.tell(&["pool", "scrub", "p", "--pause"]).code, 4);
    appliance.stop();
    appliance.start(&PROCESSORS);
    assert_eq!(status(&appliance), paused, "it rests");

    let told = appliance.tell(&["pool", "scrub", "p", "--resume", "--rate", "1GiB/s", "--wait"]);
    assert_eq!(told.code, 1, "{}", told.errors);
    assert_eq!(appliance.tell(&["pool", "scrub", "p", "--resume"]).code, 4);
    let done = status(&appliance);
    assert_eq!(state(&done), "done");
    assert_eq!(checked(&done), all, "nothing left out, nothing counted twice");
    assert_eq!(number(&done, "/started_ns"), number(&before, "/started_ns"));
    assert!(number(&done, "/ended_ns") > number(&done, "/started_ns"));
    assert!(number(&done, "/running_ns") > number(&paused, "/running_ns"));
    let damaged: Vec<&str> = list(&done, "/damage").iter().filter_map(Value::as_str).collect();
    for block in [5, VOLUME_BYTES / BLOCK - 3] {
        let words = format!("v (offset {}, 4096 bytes)", block * BLOCK);
        assert!(damaged.iter().any(|line| line.starts_with(&words)), "{damaged:?}");
    }
    assert_eq!(damaged.len(), 2);

    // The report is durable when its event is told, and stays. The same log has told the end of
    // the scrub before this one.
    appliance.wait_until("the end is told", || {
        let log = std::fs::read_to_string(appliance.path("daemon.log")).expect("a log");
        log.matches("scrub_ended: the scrub is done").count() == 2
    });
    appliance.kill();
    appliance.start(&PROCESSORS);
    assert_eq!(status(&appliance), done);
    assert_eq!(member(&appliance.run(&["pool", "show", "p"]), "/scrub"), &done);

    // A stopped one is stopped for good, and the next begins anew.
    appliance.run(&["pool", "scrub", "p", "--rate", "4KiB/s"]);
    appliance.run(&["pool", "scrub", "p", "--pause"]);
    appliance.run(&["pool", "scrub", "p", "--stop"]);
    assert_eq!(appliance.tell(&["pool", "scrub", "p", "--resume"]).code, 4);
    assert_eq!(state(&status(&appliance)), "stopped");
    appliance.run(&["pool", "close", "p"]);
    assert_eq!(
        appliance
            .tell(&["inspect", "--check", &appliance.path_text("p-0")])
            .code,
        1,
        "damaged as it is"
    );
}
