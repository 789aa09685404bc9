//! Volumes, snapshots and exports.

use super::{names, refused, with_pool, with_volume};
use crate::support::nbd::Connection;
use crate::support::{list, member, number};
use serde_json::json;

#[test]
fn json_has_whole_numbers_for_sizes_and_times() {
    let appliance = with_volume();
    appliance.run(&["snapshot", "create", "v@a"]);
    appliance.run(&["export", "create", "v"]);
    let volume = appliance.run(&["volume", "show", "v"]);
    assert_eq!(number(&volume, "/size_bytes"), 16 << 20);
    assert_eq!(number(&volume, "/block_bytes"), 4096);
    assert_eq!(number(&volume, "/object_bytes"), 1 << 20);
    assert!(number(&volume, "/created_ns") > 1_700_000_000_000_000_000);
    assert_eq!(volume["snapshots"], json!(["v@a"]));
    assert_eq!(volume["exports"], json!(["v"]));
    let shares = list(&volume, "/shares");
    let objects: Vec<u64> = shares.iter().map(|share| number(share, "/objects")).collect();
    assert_eq!(objects, [8, 8], "objects are spread over both shards");
    let snapshot = appliance.run(&["snapshot", "show", "v@a"]);
    assert!(number(&snapshot, "/time_stamp_ns") > number(&volume, "/created_ns"));
    assert!(number(&snapshot, "/durable_ns") > 0);
    assert_eq!(list(&snapshot, "/holds").len(), 2);
    let intermediate = list(&snapshot, "/intermediate_snapshots");
    assert_eq!(intermediate.len(), 2);
    for (shard, found) in intermediate.iter().enumerate() {
        assert_eq!(number(found, "/shard"), shard as u64);
        assert_eq!(number(found, "/objects"), 8);
        assert_eq!(number(found, "/point_in_time_copy/mapped_bytes"), 0);
        assert_eq!(number(found, "/change_log/blocks"), 0);
    }
    let pool = appliance.run(&["pool", "show", "p"]);
    assert!(number(&pool, "/total_bytes") > 200 << 20);
    assert_eq!((number(&pool, "/volumes"), number(&pool, "/snapshots")), (1, 1));
    let export = &appliance.run(&["export", "list"])[0];
    assert_eq!(
        member(export, "/uris/0").as_str(),
        Some(appliance.uri("v").as_str())
    );
}

/// V7: each snapshot has a change log, and what is written after it is counted there.
#[test]
fn a_change_log_counts_what_was_written_after_the_snapshot() {
    let appliance = with_volume();
    appliance.run(&["export", "create", "v"]);
    let mut connection = appliance.connect("v");
    connection.write(0, &vec![1; 1 << 20], true).expect("written");
    appliance.run(&["snapshot", "create", "v@a"]);
    connection.write(0, &[2; 8192], true).expect("written");
    connection.write(1 << 20, &[3; 4096], true).expect("written");
    let snapshot = appliance.run(&["snapshot", "show", "v@a"]);
    let sum = |path: &str| -> u64 {
        list(&snapshot, "/intermediate_snapshots")
            .iter()
            .map(|found| number(found, path))
            .sum()
    };
    assert_eq!(sum("/point_in_time_copy/mapped_bytes"), 1 << 20);
    assert_eq!(sum("/change_log/blocks"), 3);
    assert_eq!(sum("/change_log/bytes"), 3 * 4096);
    let stamp = number(&snapshot, "/time_stamp_ns");
    for found in list(&snapshot, "/intermediate_snapshots") {
        let first = number(found, "/change_log/first_change_ns");
        assert!(
            first > stamp && first <= number(found, "/change_log/last_change_ns"),
            "{found}"
        );
    }
}

#[test]
fn what_is_in_use_is_not_deleted_and_the_message_says_how_to_go_on() {
    let appliance = with_volume();
    appliance.run(&["snapshot", "create", "v@a"]);
    appliance.run(&["export", "create", "v@a", "--name", "frozen"]);
    refused(
        &appliance.tell(&["snapshot", "delete", "v@a"]),
        4,
        "exported as frozen",
    );
    refused(
        &appliance.tell(&["volume", "delete", "v", "--with-snapshots"]),
        4,
        "export delete",
    );
    appliance.run(&["export", "delete", "frozen"]);
    refused(&appliance.tell(&["volume", "delete", "v"]), 4, "--with-snapshots");
    refused(
        &appliance.tell(&["snapshot", "create", "v@a"]),
        4,
        "exists already",
    );
    appliance.run(&["snapshot", "delete", "v@a"]);
    refused(&appliance.tell(&["snapshot", "show", "v@a"]), 3, "no snapshot");
    appliance.run(&["snapshot", "create", "v@a"]);
    appliance.run(&["volume", "delete", "v", "--with-snapshots"]);
    assert_eq!(appliance.run(&["volume", "list"]), json!([]));
    assert_eq!(appliance.run(&["snapshot", "list"]), json!([]));
    appliance.run(&["volume", "create", "v", "--size", "1MiB"]);
    assert_eq!(
        number(&appliance.run(&["volume", "show", "v"]), "/id"),
        2,
        "numbers are not used twice"
    );
}

#[test]
fn a_volume_grows_at_will_and_shrinks_only_by_force() {
    let appliance = with_volume();
    appliance.run(&["export", "create", "v"]);
    let mut old = appliance.connect("v");
    appliance.run(&["volume", "resize", "v", "--size", "32MiB"]);
    old.write(0, &[7; 4096], true)
        .expect("a session goes on when its volume grows");
    let mut connection = appliance.connect("v");
    connection
        .write(31 << 20, &[8; 4096], true)
        .expect("the new end is there");
    refused(
        &appliance.tell(&["volume", "resize", "v", "--size", "16MiB"]),
        4,
        "--force",
    );
    appliance.run(&["volume", "resize", "v", "--size", "16MiB", "--force"]);
    assert!(
        connection.read(0, 4096).is_err(),
        "a session does not see its volume shrink"
    );
    appliance.run(&["volume", "resize", "v", "--size", "32MiB"]);
    let mut connection = appliance.connect("v");
    assert_eq!(
        connection.read(31 << 20, 4096).expect("read"),
        [0; 4096],
        "what was cut off is gone"
    );
    assert_eq!(connection.read(0, 4096).expect("read"), [7; 4096]);
    refused(
        &appliance.tell(&["volume", "resize", "v", "--size", "0"]),
        2,
        "no size",
    );
}

#[test]
fn a_hold_that_would_be_too_long_leaves_no_trace() {
    let appliance = with_volume();
    refused(
        &appliance.tell(&["snapshot", "create", "v@a", "--hold-limit", "1ns"]),
        1,
        "--hold-limit",
    );
    assert_eq!(appliance.run(&["snapshot", "list"]), json!([]));
    let snapshot = appliance.run(&["snapshot", "create", "v@a"]);
    assert_eq!(
        list(&snapshot, "/intermediate_snapshots").len(),
        2,
        "the name is free again"
    );
    assert_eq!(names(&appliance.run(&["snapshot", "list"])), ["v@a"]);
}

#[test]
fn a_group_is_one_snapshot_of_several_volumes() {
    let appliance = with_volume();
    appliance.run(&["volume", "create", "w", "--size", "4MiB"]);
    appliance.run(&["snapshot", "create", "w@alone"]);
    let group = appliance.run(&["snapshot", "create", "v,w", "--name", "both"]);
    assert_eq!(names(member(&group, "/volumes")), ["v", "w"]);
    assert_eq!(list(&group, "/intermediate_snapshots").len(), 4);
    refused(
        &appliance.tell(&["snapshot", "create", "v,w", "--name", "alone"]),
        4,
        "w@alone",
    );
    refused(
        &appliance.tell(&["snapshot", "create", "v,v", "--name", "twice"]),
        2,
        "named twice",
    );
    assert_eq!(
        names(&appliance.run(&["snapshot", "list", "w"])),
        ["w@alone", "w@both"]
    );
    assert_eq!(names(&appliance.run(&["snapshot", "list", "v"])), ["v@both"]);
    appliance.run(&["volume", "delete", "v", "--with-snapshots"]);
    assert_eq!(
        names(&appliance.run(&["snapshot", "list"])),
        ["w@alone", "w@both"],
        "the other volume keeps it"
    );
    appliance.run(&["snapshot", "delete", "w@both"]);
}

#[test]
fn a_named_group_stands_for_its_volumes() {
    let appliance = with_volume();
    appliance.run(&["volume", "create", "w", "--size", "4MiB"]);
    let made = appliance.run(&["group", "create", "both", "--volumes", "v,w"]);
    assert_eq!(member(&made, "/volumes"), &json!(["v", "w"]));
    let taken = appliance.run(&["snapshot", "create", "group:both@s", "--hold-limit", "2s"]);
    assert_eq!(names(member(&taken, "/volumes")), ["v", "w"]);
    assert_eq!(names(&appliance.run(&["snapshot", "list", "w"])), ["w@s"]);
    let schedule = [
        "schedule",
        "create",
        "n",
        "--volumes",
        "group:both",
        "--every",
        "30d",
    ];
    let schedule = appliance.run(&[&schedule[..], &["--keep", "last=1"]].concat());
    assert_eq!(member(&schedule, "/volumes"), &json!(["v", "w"]));
    appliance.run(&["schedule", "delete", "n"]);
    appliance.kill();
    appliance.start(&["--processors", "2"]);
    assert_eq!(names(&appliance.run(&["group", "list"])), ["both"]);
    refused(
        &appliance.tell(&["volume", "delete", "w", "--with-snapshots"]),
        4,
        "in group both",
    );
    for (arguments, code, words) in [
        (
            &["group", "create", "both", "--volumes", "v"][..],
            4,
            "exists already",
        ),
        (&["group", "create", "x", "--volumes", "v,z"], 3, "no volume z"),
        (
            &["group", "create", "x", "--volumes", "group:both,v"],
            2,
            "named twice",
        ),
        (&["group", "create", "a:b", "--volumes", "v"], 2, "':'"),
        (&["group", "delete", "x"], 3, "no group x"),
        (&["snapshot", "create", "group:x@s"], 3, "no group x"),
        (&["snapshot", "create", "group:both@s"], 4, "exists already"),
    ] {
        refused(&appliance.tell(arguments), code, words);
    }
    appliance.run(&["group", "delete", "both"]);
    appliance.run(&["volume", "delete", "w", "--with-snapshots"]);
    assert_eq!(names(&appliance.run(&["snapshot", "list"])), ["v@s"]);
}

#[test]
fn nothing_is_reachable_without_an_export_and_snapshots_are_never_written() {
    let appliance = with_volume();
    let open = |name: &str| Connection::open(&appliance.nbd_socket(), name);
    assert!(open("v").is_err());
    appliance.run(&["snapshot", "create", "v@a"]);
    let export = appliance.run(&["export", "create", "v@a"]);
    assert_eq!(member(&export, "/read_only"), &json!(true));
    let mut frozen = appliance.connect("v@a");
    assert!(frozen.write(0, &[1; 4096], false).is_err());
    appliance.run(&["export", "create", "v", "--name", "careful", "--read-only"]);
    assert!(appliance.connect("careful").write(0, &[1; 4096], false).is_err());
    refused(
        &appliance.tell(&["export", "create", "v", "--name", "careful"]),
        4,
        "exists already",
    );
    appliance.run(&["export", "delete", "careful"]);
    assert!(open("careful").is_err());
}

#[test]
fn what_a_snapshot_cost_is_shown_and_kept_with_it() {
    let appliance = with_pool();
    for name in ["a", "b"] {
        appliance.run(&["volume", "create", name, "--size", "8MiB"]);
    }
    let take = |volumes: &str, name: &str| {
        let taken = appliance.run(&[
            "snapshot",
            "create",
            volumes,
            "--name",
            name,
            "--hold-limit",
            "2s",
        ]);
        let figures = ["/log_bytes", "/metadata_bytes", "/durable_ns", "/hold_ns_max"];
        let shown = appliance.run(&["snapshot", "show", &format!("a@{name}")]);
        let shown = figures.map(|figure| number(&shown, figure));
        assert_eq!(figures.map(|figure| number(&taken, figure)), shown, "{name}");
        shown
    };
    let one = take("a", "one");
    let two = take("a,b", "two");
    assert!(one[0] > 0 && one[1] > 0, "{one:?}");
    // A record and a row for each volume and shard, and one more volume in the commit record.
    let pool = appliance.run(&["pool", "list"]);
    let shards = number(&pool, "/0/shards");
    let more = [two[0] - one[0], two[1] - one[1]];
    assert!(more[0] >= 24 * shards && more[0] < 80 * shards, "{more:?}");
    assert!(more[1] >= 80 * shards && more[1] < 160 * shards, "{more:?}");
    appliance.kill();
    appliance.start(&[]);
    for (name, before) in [("one", one), ("two", two)] {
        let shown = appliance.run(&["snapshot", "show", &format!("a@{name}")]);
        let figures = ["/log_bytes", "/metadata_bytes", "/durable_ns", "/hold_ns_max"];
        assert_eq!(figures.map(|figure| number(&shown, figure)), before, "{name}");
    }
    appliance.stop();
}
