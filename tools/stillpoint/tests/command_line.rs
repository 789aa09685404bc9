//! The command line and the API as their users meet them: the real program, its exit codes, its JSON, its messages.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::{Value, json};
use support::{Appliance, Told, list, member, number};

/// A daemon with two processors and a pool `p`.
fn with_pool() -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 1, "256MiB", &[]);
    appliance
}

/// The same with a volume `v` of 16 MiB in objects of 1 MiB.
fn with_volume() -> Appliance {
    let appliance = with_pool();
    appliance.run(&[
        "volume",
        "create",
        "v",
        "--size",
        "16MiB",
        "--object-size",
        "1MiB",
    ]);
    appliance
}

#[track_caller]
fn refused(told: &Told, code: i32, words: &str) {
    assert_eq!(told.code, code, "{}", told.errors);
    assert!(
        told.errors.contains(words),
        "{words:?} is not in: {}",
        told.errors
    );
}

fn names(values: &Value) -> Vec<&str> {
    list(values, "")
        .iter()
        .map(|value| member(value, "/name").as_str().expect("a text"))
        .collect()
}

#[test]
fn exit_codes_say_what_kind_of_failure_it_was() {
    let appliance = with_volume();
    let tell = |arguments: &[&str]| appliance.tell(arguments);
    refused(&tell(&["volume", "create", "w"]), 2, "--size");
    refused(
        &tell(&["volume", "create", "w", "--size", "lots"]),
        2,
        "is no size",
    );
    refused(
        &tell(&["volume", "create", "a/b", "--size", "1MiB"]),
        2,
        "'/' is not allowed",
    );
    refused(
        &tell(&["volume", "create", "a@b", "--size", "1MiB"]),
        2,
        "'@' is not allowed",
    );
    refused(
        &tell(&["volume", "create", "w", "--size", "5000"]),
        2,
        "the next is 8192",
    );
    refused(
        &tell(&["volume", "create", "w", "--size", "1MiB", "--block-size", "1024"]),
        2,
        "512 and 4096",
    );
    refused(
        &tell(&["volume", "create", "w", "--size", "1MiB", "--object-size", "3MiB"]),
        2,
        "powers of two",
    );
    refused(
        &tell(&["volume", "create", "w", "--size", "1MiB", "--pool", "q"]),
        3,
        "no pool q",
    );
    refused(
        &tell(&["volume", "create", "v", "--size", "1MiB"]),
        4,
        "exists already",
    );
    refused(&tell(&["volume", "show", "w"]), 3, "no volume w");
    refused(&tell(&["volume", "delete", "w"]), 3, "no volume w");
    refused(&tell(&["snapshot", "create", "w@a"]), 3, "no volume w");
    refused(&tell(&["snapshot", "create", "v"]), 2, "volume@name");
    refused(&tell(&["snapshot", "create", "v@a/b"]), 2, "'/' is not allowed");
    refused(&tell(&["snapshot", "show", "v@a"]), 3, "no snapshot v@a");
    refused(&tell(&["snapshot", "show", "v"]), 2, "v is a volume");
    refused(&tell(&["export", "create", "v@a"]), 3, "no snapshot v@a");
    refused(&tell(&["export", "delete", "v"]), 3, "no export v");
    refused(&tell(&["pool", "show", "q"]), 3, "no pool q");
    refused(&tell(&["pool", "open", "/nonexistent"]), 3, "/nonexistent");
    refused(&tell(&["nonsense"]), 2, "nonsense");
    assert_eq!(
        names(&appliance.run(&["volume", "list"])),
        ["v"],
        "nothing of all this left a trace"
    );
}

#[test]
fn without_a_daemon_commands_say_so_and_doctor_works() {
    let appliance = Appliance::new();
    refused(&appliance.tell(&["status"]), 5, "stillpoint serve");
    let findings = appliance.run(&["doctor"]);
    let subjects: Vec<_> = list(&findings, "/findings")
        .iter()
        .map(|f| member(f, "/subject").clone())
        .collect();
    assert!(
        subjects.contains(&json!("io_uring")) && subjects.contains(&json!("daemon")),
        "{subjects:?}"
    );
    for finding in list(&findings, "/findings") {
        assert_eq!(finding["state"] == "ok", finding["mend"].is_null(), "{finding}");
    }
}

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
fn nothing_is_reachable_without_an_export_and_snapshots_are_never_written() {
    let appliance = with_volume();
    let open = |name: &str| support::nbd::Connection::open(&appliance.nbd_socket(), name);
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
            appliance.kill()
        } else {
            appliance.stop()
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
    assert_eq!(pool["remarks"], json!([]), "only the copy of the label was cut off");
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
        &appliance.tell(&["pool", "create", "q", &taken, "--force"]),
        4,
        "in use",
    );
    std::fs::write(appliance.path("other"), vec![b'x'; 64 << 20]).expect("written");
    refused(&appliance.tell(&["pool", "create", "q", &other]), 4, "not empty");
    appliance.run(&["pool", "create", "q", &other, "--force"]);
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
fn the_api_refuses_nonsense_in_its_own_words() {
    let appliance = with_pool();
    let call = |head: &str, body: &str| -> (u16, Value) {
        let mut stream = UnixStream::connect(appliance.path("run/control.sock")).expect("connected");
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("answered");
        let status = response
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .expect("a status");
        let body = response.split("\r\n\r\n").nth(1).unwrap_or_default();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    };
    for (head, body, status, kind) in [
        ("GET /v2/pools", "", 404, "not_found"),
        ("PUT /v1/pools", "", 400, "usage"),
        ("POST /v1/volumes", "", 400, "usage"),
        ("POST /v1/volumes", "{", 400, "usage"),
        ("POST /v1/volumes", "[]", 400, "usage"),
        (
            "POST /v1/volumes",
            r#"{"name":"v","size_bytes":-1}"#,
            400,
            "usage",
        ),
        (
            "POST /v1/volumes",
            r#"{"name":"v","size_bytes":4096,"size":1}"#,
            400,
            "usage",
        ),
        ("POST /v1/snapshots", r#"{"volumes":[],"name":"a"}"#, 400, "usage"),
        ("POST /v1/pools", r#"{"name":"q","devices":[]}"#, 400, "usage"),
        ("GET /v1/volumes?color=red", "", 400, "usage"),
        ("GET /v1/volumes/%2e%2e%2fetc", "", 404, "not_found"),
        ("DELETE /v1/exports/v", "", 404, "not_found"),
    ] {
        let (found, error) = call(head, body);
        assert_eq!(
            (found, &error["kind"]),
            (status, &json!(kind)),
            "{head} {body}: {error}"
        );
        assert!(
            error["message"].as_str().is_some_and(|text| !text.is_empty()),
            "{head}: {error}"
        );
    }
    let (status, volume) = call("POST /v1/volumes", r#"{"name":"v","size_bytes":1048576}"#);
    assert_eq!((status, number(&volume, "/size_bytes")), (201, 1 << 20));
}

#[test]
fn a_configuration_with_a_mistake_is_refused_with_its_line() {
    let appliance = Appliance::new();
    std::fs::write(appliance.path("config.toml"), "processors = 2\nprocesors = 3\n").expect("written");
    let serve = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
            .arg("serve")
            .args(arguments)
            .output();
        let output = output.expect("the program starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, errors) = serve(&["--config", &appliance.path_text("config.toml")]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(
        errors.contains("line 2") && errors.contains("procesors"),
        "{errors}"
    );
    let (code, errors) = serve(&["--config", &appliance.path_text("none.toml")]);
    assert_eq!(code, Some(3), "{errors}");
    let (code, errors) = serve(&["--processors", "0"]);
    assert_eq!(code, Some(2), "{errors}");
}

#[test]
fn configuration_files_can_say_everything() {
    let appliance = Appliance::new();
    let config = format!(
        "processors = 3\nno-pin = true\npoll = \"adaptive\"\nmap-cache = \"64MiB\"\ntail-dir = \"none\"\n\
         nbd-tcp = [\"127.0.0.1:0\"]\nlog = \"debug\"\nrun-dir = {:?}\n",
        appliance.path_text("run")
    );
    std::fs::write(appliance.path("config.toml"), config).expect("written");
    appliance.start(&["--config", &appliance.path_text("config.toml")]);
    appliance.create_pool("p", 1, "64MiB", &[]);
    let status = appliance.run(&["status"]);
    assert_eq!(list(&status, "/processors").len(), 3);
    assert!(
        list(&status, "/processors")
            .iter()
            .all(|processor| processor["core"].is_null())
    );
    assert_eq!(number(&status["pools"][0], "/shards"), 3);
    appliance.run(&["volume", "create", "v", "--size", "1MiB"]);
    appliance.run(&["export", "create", "v"]);
    appliance
        .connect("v")
        .write(0, &[1; 4096], true)
        .expect("written");
    appliance.kill();
    appliance.start(&["--config", &appliance.path_text("config.toml")]);
    assert_eq!(
        appliance.connect("v").read(0, 4096).expect("read"),
        [1; 4096],
        "without log tails"
    );
}

#[test]
fn completions_are_printed_for_shells() {
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["completions", "bash"])
        .output()
        .expect("starts");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("snapshot"));
}
