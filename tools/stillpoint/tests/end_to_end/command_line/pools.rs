//! Pools that come and go, here and elsewhere.

use std::process::Command;

use super::{names, refused, with_pool, with_volume};
use crate::support::foreign::must;
use crate::support::{Appliance, list, member, number};
use serde_json::json;

#[test]
fn a_restart_brings_everything_back() {
    let appliance = with_volume();
    appliance.run(&["export", "create", "v", "--name", "data"]);
    appliance
        .connect("data")
        .write(0, &[5; 4096], true)
        .expect("written");
    appliance.run(&["snapshot", "create", "v@a"]);
    let before = ["volume", "snapshot", "export"].map(|what| appliance.run(&[what, "list"]));
    for hard in [false, true] {
        if hard {
            appliance.kill();
            assert_eq!(appliance.tails(), 2, "recovery needs them");
        } else {
            appliance.stop();
            assert_eq!(appliance.tails(), 0, "the last checkpoint holds everything");
        }
        appliance.start(&["--processors", "2"]);
        let after = ["volume", "snapshot", "export"].map(|what| appliance.run(&[what, "list"]));
        assert_eq!(before, after, "killed: {hard}");
        assert_eq!(appliance.connect("data").read(0, 4096).expect("read"), [5; 4096]);
    }
    appliance.run(&["pool", "close", "p"]);
    appliance.stop();
    appliance.start(&[]);
    assert_eq!(
        appliance.run(&["pool", "list"]),
        json!([]),
        "a pool that was closed stays closed"
    );
}

#[test]
fn a_pool_opens_elsewhere_with_more_or_fewer_processors() {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 2, "128MiB", &["--shards", "3"]);
    appliance.run(&[
        "volume",
        "create",
        "v",
        "--size",
        "64MiB",
        "--object-size",
        "1MiB",
    ]);
    appliance.run(&["export", "create", "v"]);
    let pattern: Vec<u8> = (0..6u32 << 20).map(|byte| (byte >> 12) as u8 | 1).collect();
    appliance.connect("v").write(0, &pattern, true).expect("written");
    appliance.run(&["snapshot", "create", "v@a"]);
    appliance.stop();
    for processors in ["1", "5"] {
        let other = Appliance::started(&["--processors", processors]);
        let devices = ["p-1", "p-0"].map(|name| appliance.path_text(name));
        refused(
            &other.tell(&["pool", "open", &devices[0]]),
            1,
            "device 1 of 2 of pool p is missing",
        );
        let pool = other.run(&["pool", "open", &devices[0], &devices[1]]);
        assert_eq!(number(&pool, "/shards"), 3);
        assert_eq!(
            number(&other.run(&["volume", "show", "v"]), "/size_bytes"),
            64 << 20
        );
        assert_eq!(names(&other.run(&["snapshot", "list"])), ["v@a"]);
        other.run(&["export", "create", "v@a"]);
        for export in ["v", "v@a"] {
            assert!(
                other.connect(export).read(0, 6 << 20).expect("read") == pattern,
                "{export}"
            );
        }
        other.run(&["export", "delete", "v@a"]);
        let status = other.run(&["status"]);
        assert_eq!(list(&status, "/processors").len().to_string(), processors);
        let owned: usize = list(&status, "/processors")
            .iter()
            .map(|found| list(found, "/shards").len())
            .sum();
        assert_eq!(owned, 3);
        other.stop();
    }
}

#[test]
fn a_pool_that_cannot_be_opened_does_not_stop_the_others() {
    let appliance = with_pool();
    appliance.create_pool("broken", 1, "64MiB", &[]);
    appliance.run(&["volume", "create", "v", "--size", "1MiB", "--pool", "p"]);
    appliance.stop();
    std::fs::write(appliance.path("broken-0"), vec![0; 64 << 20]).expect("overwritten");
    appliance.start(&[]);
    let pools = appliance.run(&["pool", "list"]);
    let states: Vec<_> = list(&pools, "")
        .iter()
        .map(|pool| (&pool["name"], &pool["state"]))
        .collect();
    assert_eq!(
        states,
        [
            (&json!("p"), &json!("open")),
            (&json!("broken"), &json!("failed"))
        ]
    );
    refused(
        &appliance.tell(&["volume", "create", "w", "--size", "1MiB", "--pool", "broken"]),
        1,
        "belongs to no pool",
    );
    assert_eq!(appliance.tell(&["doctor"]).code, 1, "doctor calls it a problem");
    appliance.run(&["pool", "close", "broken"]);
    assert_eq!(names(&appliance.run(&["pool", "list"])), ["p"]);
}

#[test]
fn a_pool_that_is_only_given_waits_for_its_devices_too() {
    let appliance = Appliance::started(&[]);
    appliance.create_pool("p", 2, "64MiB", &[]);
    appliance.run(&["volume", "create", "v", "--size", "1MiB"]);
    appliance.run(&["pool", "close", "p"]);
    appliance.stop();
    let (one, other) = (appliance.path("p-0"), appliance.path("p-1"));
    let away = |path: &std::path::Path| path.with_extension("away");
    for path in [&one, &other] {
        std::fs::rename(path, away(path)).expect("renamed");
    }
    let given = format!("{},{}", appliance.path_text("p-0"), appliance.path_text("p-1"));
    appliance.start(&["--pool", &given]);
    assert_eq!(
        names(&appliance.run(&["pool", "list"])).len(),
        0,
        "nobody knows its name"
    );
    let events = appliance.run(&["events"]);
    let told = list(&events, "/events").iter().any(|event| {
        member(event, "/kind") == "pool_not_opened" && member(event, "/subject") == given.as_str()
    });
    assert!(told, "{events:#}");
    let state = || {
        let pools = appliance.run(&["pool", "list"]);
        let found = list(&pools, "")
            .first()
            .map(|pool| member(pool, "/state").clone());
        found.and_then(|state| state.as_str().map(ToOwned::to_owned))
    };
    std::fs::rename(away(&one), &one).expect("renamed");
    appliance.wait_until("one of its devices says which pool it is", || {
        state().as_deref() == Some("failed")
    });
    // It was never open here: it is remembered only then.
    appliance.stop();
    appliance.start(&[]);
    assert_eq!(names(&appliance.run(&["pool", "list"])).len(), 0);
    appliance.stop();
    appliance.start(&["--pool", &given]);
    assert_eq!(state().as_deref(), Some("failed"));
    std::fs::rename(away(&other), &other).expect("renamed");
    appliance.wait_until("all its devices are there", || state().as_deref() == Some("open"));
    assert_eq!(names(&appliance.run(&["volume", "list"])), ["v"]);
    appliance.stop();
    appliance.start(&[]);
    assert_eq!(state().as_deref(), Some("open"), "now it is remembered");
}

#[test]
fn a_given_device_that_does_not_answer_does_not_keep_the_daemon_from_stopping() {
    let appliance = Appliance::new();
    let given = appliance.path_text("given");
    appliance.start(&["--pool", &given]);
    // Nobody writes to it: who opens it to read waits.
    must("mkfifo", &[&given]);
    // It is looked at every two seconds.
    std::thread::sleep(std::time::Duration::from_secs(5));
    appliance.stop();
}

#[test]
fn a_given_device_that_does_not_answer_keeps_no_other_pool_from_coming_back() {
    let appliance = Appliance::started(&[]);
    appliance.create_pool("p", 1, "128MiB", &[]);
    appliance.stop();
    let (device, away) = (appliance.path("p-0"), appliance.path("away"));
    std::fs::rename(&device, &away).expect("taken out");
    let given = appliance.path_text("given");
    appliance.start(&["--pool", &given]);
    // Nobody writes to it: who opens it to read waits.
    must("mkfifo", &[&given]);
    std::thread::sleep(std::time::Duration::from_secs(5));
    std::fs::rename(&away, &device).expect("put back");
    appliance.wait_until("the other pool is opened by itself", || {
        let pools = appliance.run(&["pool", "list"]);
        list(&pools, "")
            .iter()
            .any(|pool| member(pool, "/state") == "open")
    });
}

#[test]
fn a_pool_whose_device_was_missing_is_opened_when_it_is_there() {
    let appliance = Appliance::started(&[]);
    appliance.create_pool("p", 2, "128MiB", &[]);
    appliance.run(&["volume", "create", "v", "--size", "1MiB"]);
    appliance.run(&["export", "create", "v"]);
    appliance
        .connect("v")
        .write(0, &[7; 4096], true)
        .expect("written");
    appliance.stop();
    let (device, away) = (appliance.path("p-1"), appliance.path("away"));
    std::fs::rename(&device, &away).expect("taken out");
    appliance.start(&[]);
    let state = || {
        let pools = appliance.run(&["pool", "list"]);
        list(&pools, "")[0]["state"].as_str().expect("a word").to_owned()
    };
    assert_eq!(state(), "failed");
    std::fs::rename(&away, &device).expect("put back");
    appliance.wait_until("the pool is opened by itself", || state() == "open");
    assert_eq!(appliance.connect("v").read(0, 4096).expect("read"), [7; 4096]);
}

#[test]
fn damaged_labels_and_shrunken_devices_are_told() {
    let appliance = with_volume();
    appliance.run(&["pool", "close", "p"]);
    let device = appliance.path_text("p-0");
    let file = std::fs::File::options().write(true).open(&device).expect("there");
    let size_bytes = file.metadata().expect("there").len();
    file.set_len(size_bytes - 4096).expect("cut");
    refused(
        &appliance.tell(&["pool", "open", &device]),
        1,
        "was made when it had",
    );
    file.set_len(size_bytes).expect("grown");
    refused(&appliance.tell(&["pool", "close", "p"]), 3, "no pool p");
    let pool = appliance.run(&["pool", "open", &device]);
    assert_eq!(
        pool["remarks"],
        json!([]),
        "only the copy of the label was cut off"
    );
    assert_eq!(names(&appliance.run(&["volume", "list"])), ["v"]);
    appliance.run(&["pool", "close", "p"]);
    appliance.create_pool("q", 1, "64MiB", &[]);
    appliance.run(&["pool", "close", "q"]);
    let device = appliance.path_text("q-0");
    let file = std::fs::File::options().write(true).open(&device).expect("there");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 64], 100).expect("damaged");
    let pool = appliance.run(&["pool", "open", &device]);
    assert!(
        pool["remarks"][0]
            .as_str()
            .is_some_and(|remark| remark.contains("checksum")),
        "{pool}"
    );
    appliance.run(&["pool", "close", "q"]);
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 64], (64 << 20) - 4096).expect("damaged");
    refused(&appliance.tell(&["pool", "open", &device]), 1, "both labels");
}

#[test]
fn a_pool_is_made_only_where_nothing_is_lost() {
    let appliance = with_pool();
    let [taken, other, missing] = ["p-0", "other", "missing"].map(|name| appliance.path_text(name));
    refused(&appliance.tell(&["pool", "create", "q", &missing]), 3, "--size");
    refused(
        &appliance.tell(&[
            "pool",
            "create",
            "q",
            "/dev/stillpoint-no-such",
            "--size",
            "64MiB",
        ]),
        3,
        "does not exist",
    );
    refused(
        &appliance.tell(&["pool", "create", "p", &missing, "--size", "64MiB"]),
        4,
        "exists already",
    );
    refused(
        &appliance.tell(&["pool", "create", "q", &missing, "--size", "1MiB"]),
        2,
        "too small",
    );
    assert!(
        !appliance.path("missing").exists(),
        "a file that was made for nothing is removed"
    );
    refused(
        &appliance.tell(&[
            "pool", "create", "q", &missing, "--size", "64MiB", "--shards", "300",
        ]),
        2,
        "from 1 to 256",
    );
    refused(
        &appliance.tell(&["pool", "create", "q", &taken]),
        4,
        "belongs to pool p",
    );
    refused(
        &appliance.tell(&["pool", "create", "q", &taken, "--force", &taken]),
        4,
        "in use",
    );
    std::fs::write(appliance.path("other"), vec![b'x'; 64 << 20]).expect("written");
    refused(&appliance.tell(&["pool", "create", "q", &other]), 4, "not empty");
    appliance.run(&["pool", "create", "q", &other, "--force", &other]);
    refused(
        &appliance.tell(&["volume", "create", "v", "--size", "1MiB"]),
        2,
        "--pool",
    );
    appliance.run(&["volume", "create", "v", "--size", "1MiB", "--pool", "q"]);
    appliance.run(&["volume", "create", "v", "--size", "1MiB", "--pool", "p"]);
    refused(&appliance.tell(&["volume", "show", "v"]), 4, "--pool");
    appliance.run(&["volume", "delete", "v", "--pool", "q"]);
    assert_eq!(
        member(&appliance.run(&["volume", "show", "v"]), "/pool"),
        &json!("p")
    );
}

#[test]
fn two_daemons_never_share_a_pool_or_a_directory() {
    let appliance = with_pool();
    let other = Appliance::started(&[]);
    refused(
        &other.tell(&["pool", "open", &appliance.path_text("p-0")]),
        4,
        "in use",
    );
    let second = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .arg("serve")
        .args(["--state-dir", &appliance.path_text("state")])
        .args(["--run-dir", &appliance.path_text("elsewhere")])
        .args(["--socket", &appliance.path_text("elsewhere/control.sock")])
        .output()
        .expect("the program starts");
    assert_eq!(
        second.status.code(),
        Some(4),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    assert_eq!(
        names(&appliance.run(&["pool", "list"])),
        ["p"],
        "the first one is not disturbed"
    );
}

#[test]
fn every_processor_does_its_share_of_the_work() {
    let appliance = with_volume();
    appliance.run(&["export", "create", "v"]);
    appliance
        .connect("v")
        .write(0, &vec![9; 16 << 20], true)
        .expect("written");
    let status = appliance.run(&["status"]);
    for processor in list(&status, "/processors") {
        let written: u64 = list(processor, "/shards")
            .iter()
            .map(|shard| number(shard, "/written_bytes"))
            .sum();
        assert_eq!(written, 8 << 20, "{processor}");
    }
}
