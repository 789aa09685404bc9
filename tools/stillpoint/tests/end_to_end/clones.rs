//! Clones, promotion and rollback, as a user does them; killed in between; and who may delete what.

use std::collections::BTreeMap;

use crate::support::nbd::Failure;
use crate::support::{Appliance, list, member, number};
use serde_json::Value;

const BLOCK: usize = 4096;
const VOLUME_BYTES: usize = 8 << 20;

fn started() -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 2, "256MiB", &[]);
    appliance
}

fn make_volume(appliance: &Appliance, name: &str) {
    let size = VOLUME_BYTES.to_string();
    appliance.run(&["volume", "create", name, "--size", &size, "--object-size", "1MiB"]);
    appliance.run(&["export", "create", name]);
}

/// Fills some blocks of every object with a byte.
fn fill(appliance: &Appliance, export: &str, byte: u8, every: usize) {
    let mut connection = appliance.connect(export);
    for block in (0..VOLUME_BYTES / BLOCK).step_by(every) {
        connection
            .write((block * BLOCK) as u64, &[byte; BLOCK], false)
            .expect("a write");
    }
    connection.flush().expect("a flush");
}

fn read(appliance: &Appliance, view: &str) -> Vec<u8> {
    let name = format!("check-{}", view.replace('@', "-"));
    appliance.run(&["export", "create", view, "--name", &name, "--read-only"]);
    let bytes = appliance.connect(&name).read_all().expect("readable");
    appliance.run(&["export", "delete", &name]);
    bytes
}

#[track_caller]
fn refused(appliance: &Appliance, arguments: &[&str], code: i32, words: &[&str]) {
    let told = appliance.tell(arguments);
    assert_eq!(told.code, code, "{arguments:?}: {}", told.errors);
    for word in words {
        assert!(told.errors.contains(word), "{arguments:?}: {}", told.errors);
    }
}

fn devices(appliance: &Appliance) -> [String; 2] {
    [appliance.path_text("p-0"), appliance.path_text("p-1")]
}

/// Kills the daemon, checks the devices, and starts it again.
fn kill_and_check(appliance: &Appliance) {
    appliance.kill();
    let devices = devices(appliance);
    let checked = appliance.check_devices(&[&devices[0], &devices[1]]);
    checked.expect("every block is used once or free");
    appliance.start(&["--processors", "2"]);
}

fn used_bytes(appliance: &Appliance) -> u64 {
    number(&appliance.run(&["pool", "show", "p"]), "/used_bytes")
}

fn names(info: &Value, path: &str) -> Vec<String> {
    let names = list(info, path).iter();
    names
        .map(|name| name.as_str().expect("a text").to_owned())
        .collect()
}

#[test]
fn a_clone_costs_nothing_and_goes_its_own_way() {
    let appliance = started();
    make_volume(&appliance, "v");
    fill(&appliance, "v", 1, 1);
    appliance.run(&["snapshot", "create", "v@s"]);
    fill(&appliance, "v", 2, 3);
    let before = used_bytes(&appliance);
    appliance.run(&["volume", "clone", "v@s", "c"]);
    appliance.run(&["export", "create", "c"]);
    let grown = used_bytes(&appliance).saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} bytes for a clone of 8 MiB");
    fill(&appliance, "c", 3, 5);
    let expected = |block: usize, every: usize, then: u8| if block.is_multiple_of(every) { then } else { 1 };
    for _ in 0..2 {
        for (view, every, then) in [("v", 3, 2), ("v@s", 1, 1), ("c", 5, 3)] {
            let found = read(&appliance, view);
            for (block, bytes) in found.chunks_exact(BLOCK).enumerate() {
                assert_eq!(
                    bytes,
                    [expected(block, every, then); BLOCK],
                    "{view} block {block}"
                );
            }
        }
        kill_and_check(&appliance);
    }
    let shown = appliance.run(&["volume", "show", "c"]);
    assert_eq!(member(&shown, "/origin"), "v@s");
    // A clone of a clone's snapshot.
    appliance.run(&["snapshot", "create", "c@t"]);
    appliance.run(&["volume", "clone", "c@t", "d"]);
    assert_eq!(read(&appliance, "d"), read(&appliance, "c"));
    kill_and_check(&appliance);
    assert_eq!(read(&appliance, "d"), read(&appliance, "c@t"));
}

#[test]
fn a_snapshot_with_clones_is_deleted_only_when_asked_twice() {
    let appliance = started();
    make_volume(&appliance, "v");
    fill(&appliance, "v", 1, 1);
    appliance.run(&["snapshot", "create", "v@s"]);
    appliance.run(&["volume", "clone", "v@s", "one"]);
    appliance.run(&["volume", "clone", "v@s", "two"]);
    refused(
        &appliance,
        &["snapshot", "delete", "v@s"],
        4,
        &["one, two", "--defer", "promote"],
    );
    appliance.run(&["export", "delete", "v"]);
    refused(
        &appliance,
        &["volume", "delete", "v", "--with-snapshots"],
        4,
        &["v@s", "one, two", "promote"],
    );
    refused(
        &appliance,
        &["volume", "clone", "v@s", "one"],
        4,
        &["one exists already"],
    );
    refused(&appliance, &["volume", "clone", "v@t", "three"], 3, &["v@t"]);
    refused(&appliance, &["volume", "clone", "w@t", "three"], 3, &["volume w"]);
    refused(
        &appliance,
        &["volume", "clone", "v", "three"],
        2,
        &["volume@name"],
    );
    refused(&appliance, &["volume", "clone", "v@s", "a b"], 2, &["a b"]);
    refused(&appliance, &["volume", "promote", "v"], 2, &["v is not a clone"]);
    appliance.run(&["snapshot", "delete", "v@s", "--defer"]);
    refused(&appliance, &["snapshot", "show", "v@s"], 3, &["v@s"]);
    kill_and_check(&appliance);
    assert_eq!(read(&appliance, "one"), vec![1; VOLUME_BYTES]);
    let with_all = used_bytes(&appliance);
    for volume in ["v", "one"] {
        appliance.run(&["volume", "delete", volume]);
    }
    assert_eq!(read(&appliance, "two"), vec![1; VOLUME_BYTES]);
    kill_and_check(&appliance);
    appliance.run(&["volume", "delete", "two"]);
    appliance.wait_until("the space is free", || {
        let used = used_bytes(&appliance);
        with_all.saturating_sub(used) > (VOLUME_BYTES - (64 << 10)) as u64
    });
    kill_and_check(&appliance);
}

#[test]
fn a_promoted_clone_takes_the_snapshots_over_and_its_origin_can_go() {
    let appliance = started();
    make_volume(&appliance, "v");
    for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
        fill(&appliance, "v", byte, usize::from(byte));
        appliance.run(&["snapshot", "create", &format!("v@{name}")]);
    }
    let contents: BTreeMap<&str, Vec<u8>> = ["a", "b", "c"]
        .map(|name| (name, read(&appliance, &format!("v@{name}"))))
        .into();
    appliance.run(&["export", "create", "v@a"]);
    appliance.run(&["volume", "clone", "v@b", "w"]);
    appliance.run(&["snapshot", "create", "w@c"]);
    appliance.run(&["volume", "clone", "v@a", "x"]);
    appliance.run(&["volume", "promote", "w"]);
    for _ in 0..2 {
        let shown = appliance.run(&["volume", "show", "w"]);
        assert_eq!(names(&shown, "/snapshots"), ["w@a", "w@b", "w@c"]);
        assert_eq!(member(&shown, "/origin"), &Value::Null);
        let shown = appliance.run(&["volume", "show", "v"]);
        assert_eq!(names(&shown, "/snapshots"), ["v@c"]);
        assert_eq!(member(&shown, "/origin"), "w@b");
        let shown = appliance.run(&["volume", "show", "x"]);
        assert_eq!(member(&shown, "/origin"), "w@a");
        assert_eq!(read(&appliance, "w@b"), contents["b"]);
        assert_eq!(read(&appliance, "v@c"), contents["c"]);
        kill_and_check(&appliance);
    }
    // The export of v@a goes on, and shows w@a.
    assert_eq!(
        appliance.connect("v@a").read_all().expect("readable"),
        contents["a"]
    );
    refused(&appliance, &["snapshot", "delete", "w@b"], 4, &["clones: v"]);
    appliance.run(&["export", "delete", "v"]);
    appliance.run(&["volume", "delete", "v", "--with-snapshots"]);
    kill_and_check(&appliance);
    assert_eq!(read(&appliance, "w@a"), contents["a"]);
    assert_eq!(read(&appliance, "w@b"), contents["b"]);
    assert_eq!(read(&appliance, "w"), contents["b"]);
    assert_eq!(read(&appliance, "x"), contents["a"]);
    appliance.run(&["snapshot", "delete", "w@b"]);
    kill_and_check(&appliance);
    assert_eq!(read(&appliance, "w"), contents["b"]);
}

#[test]
fn a_promotion_that_would_double_a_name_is_refused() {
    let appliance = started();
    make_volume(&appliance, "v");
    appliance.run(&["snapshot", "create", "v@s"]);
    appliance.run(&["volume", "clone", "v@s", "c"]);
    appliance.run(&["snapshot", "create", "c@s"]);
    refused(&appliance, &["volume", "promote", "c"], 4, &["c@s"]);
}

#[test]
fn a_rollback_brings_the_past_back_and_keeps_the_present() {
    let appliance = started();
    make_volume(&appliance, "v");
    fill(&appliance, "v", 1, 1);
    appliance.run(&["snapshot", "create", "v@old"]);
    fill(&appliance, "v", 2, 2);
    appliance.run(&["snapshot", "create", "v@new"]);
    fill(&appliance, "v", 3, 3);
    let present = read(&appliance, "v");
    let new = read(&appliance, "v@new");
    let mut connection = appliance.connect("v");
    refused(
        &appliance,
        &["volume", "rollback", "v@old"],
        4,
        &["clients are connected", "v (1)", "--force"],
    );
    connection.write(0, &present[..BLOCK], false).expect("it goes on");
    refused(
        &appliance,
        &["volume", "rollback", "v@none", "--force"],
        3,
        &["v@none"],
    );
    let safety = appliance.run(&["volume", "rollback", "v@old", "--force"]);
    assert_eq!(member(&safety, "/name"), "v@before-old");
    assert!(
        matches!(connection.read(0, BLOCK), Err(Failure::Broken(_))),
        "the client of the other volume is disconnected"
    );
    for _ in 0..2 {
        assert_eq!(read(&appliance, "v"), vec![1; VOLUME_BYTES]);
        assert_eq!(read(&appliance, "v@before-old"), present);
        assert_eq!(read(&appliance, "v@new"), new);
        let shown = appliance.run(&["volume", "show", "v"]);
        assert_eq!(names(&shown, "/snapshots"), ["v@old", "v@new", "v@before-old"]);
        kill_and_check(&appliance);
    }
    // The volume lives on: it is written, and another snapshot is taken.
    fill(&appliance, "v", 4, 4);
    appliance.run(&["snapshot", "create", "v@later"]);
    let later = read(&appliance, "v");
    // Forward again, with the next name of its kind.
    appliance.run(&["volume", "rollback", "v@before-old"]);
    assert_eq!(read(&appliance, "v"), present);
    appliance.run(&["volume", "rollback", "v@old"]);
    let shown = appliance.run(&["volume", "show", "v"]);
    assert!(names(&shown, "/snapshots").contains(&String::from("v@before-old-2")));
    kill_and_check(&appliance);
    assert_eq!(read(&appliance, "v@later"), later);
    // Deleted in any order; what is left stays what it was.
    for name in ["old", "before-old", "before-before-old", "later"] {
        appliance.run(&["snapshot", "delete", &format!("v@{name}")]);
        kill_and_check(&appliance);
        assert_eq!(read(&appliance, "v@new"), new);
        assert_eq!(read(&appliance, "v"), vec![1; VOLUME_BYTES]);
    }
    appliance.run(&["export", "delete", "v"]);
    appliance.run(&["volume", "delete", "v", "--with-snapshots"]);
    appliance.wait_until("everything is free", || {
        let status = appliance.run(&["status"]);
        list(&status, "/processors").iter().all(|processor| {
            let shards = list(processor, "/shards").iter();
            shards.map(|shard| number(shard, "/in_flight")).sum::<u64>() == 0
        }) && used_bytes(&appliance) < 1 << 20
    });
    kill_and_check(&appliance);
}

#[test]
fn a_rollback_after_a_resize_brings_the_size_back_too() {
    let appliance = started();
    make_volume(&appliance, "v");
    fill(&appliance, "v", 1, 1);
    appliance.run(&["snapshot", "create", "v@s"]);
    appliance.run(&["volume", "resize", "v", "--size", "1MiB", "--force"]);
    appliance.run(&["snapshot", "create", "v@small"]);
    appliance.run(&["volume", "rollback", "v@s"]);
    assert_eq!(read(&appliance, "v"), vec![1; VOLUME_BYTES]);
    appliance.run(&["volume", "rollback", "v@small"]);
    appliance.run(&["volume", "resize", "v", "--size", "8MiB"]);
    let grown = read(&appliance, "v");
    assert!(grown[..1 << 20].iter().all(|&byte| byte == 1));
    assert!(
        grown[1 << 20..].iter().all(|&byte| byte == 0),
        "what was cut off stays cut off"
    );
    kill_and_check(&appliance);
}
