//! Snapshots that a host takes through its NBD connection (V15): with our client and with those of others, without the control
//! socket; what they hold; and what is refused.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::foreign::{json, must, run};
use crate::support::raw::{FLAGS, Raw, queries};
use crate::support::{Appliance, Told, list, member, number};
use stillpoint_export::nbd::client::encode_option;
use stillpoint_export::nbd::wire::option;

const BLOCK: usize = 4096;

/// An appliance with a volume `disk` of 4 objects, exported so that clients may take snapshots.
fn appliance() -> Appliance {
    let appliance = Appliance::started(&ARGUMENTS);
    appliance.create_pool("tank", 1, "1GiB", &[]);
    appliance.run(&[
        "volume",
        "create",
        "disk",
        "--size",
        "4MiB",
        "--object-size",
        "1MiB",
    ]);
    appliance.run(&["export", "create", "disk", "--allow-snapshots"]);
    appliance
}

const ARGUMENTS: [&str; 4] = ["--processors", "2", "--nbd-tcp", "127.0.0.1:0"];

/// Where the export can be reached, over a unix socket and over TCP.
fn uris(appliance: &Appliance, export: &str) -> Vec<String> {
    let exports = appliance.run(&["export", "list"]);
    let found = list(&exports, "").iter().find(|found| found["name"] == export);
    let uris = list(found.expect("it is exported"), "/uris").iter();
    uris.map(|uri| uri.as_str().expect("text").to_owned()).collect()
}

/// The command of a host that has a URI and nothing else.
fn host_snapshot(uri: &str, name: &str) -> Told {
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["host", "snapshot", uri, name, "--socket", "/nowhere"])
        .output()
        .expect("the program starts");
    Told {
        code: output.status.code().unwrap_or(-1),
        json: serde_json::Value::Null,
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The names of all snapshots, oldest first.
fn snapshots(appliance: &Appliance) -> Vec<String> {
    let found = appliance.run(&["snapshot", "list"]);
    let names = list(&found, "")
        .iter()
        .map(|found| member(found, "/name").clone());
    names
        .map(|name| name.as_str().expect("text").to_owned())
        .collect()
}

/// Where writer `writer` writes: its own block of each object in turn.
fn place(writer: usize, counter: u64) -> u64 {
    (counter % 4) << 20 | (writer * BLOCK) as u64
}

/// The highest counter that a writer's blocks hold.
fn newest(bytes: &[u8], writer: usize) -> u64 {
    let counters = (0..4).map(|turn| {
        let at = place(writer, turn) as usize;
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    });
    counters.max().expect("four")
}

/// V15: in band, with our client.
#[test]
fn a_host_takes_snapshots_and_what_was_answered_before_is_in_them() {
    let appliance = appliance();
    let uris = uris(&appliance, "disk");
    assert_eq!(uris.len(), 2);
    assert!(
        uris.iter().any(|uri| uri.starts_with("nbd://127.0.0.1:")),
        "{uris:?}"
    );
    let sent: [AtomicU64; 3] = Default::default();
    let answered: [AtomicU64; 3] = Default::default();
    let stop = AtomicBool::new(false);
    let read = |counters: &[AtomicU64; 3]| counters.each_ref().map(|counter| counter.load(Ordering::SeqCst));
    let mut taken = Vec::new();
    thread::scope(|scope| {
        for writer in 0..3 {
            let mut connection = appliance.connect("disk");
            let (sent, answered, stop) = (&sent[writer], &answered[writer], &stop);
            scope.spawn(move || {
                for counter in 1..u64::MAX {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let mut block = [0; BLOCK];
                    block[..8].copy_from_slice(&counter.to_le_bytes());
                    sent.store(counter, Ordering::SeqCst);
                    let written = connection.write(place(writer, counter), &block, false);
                    written.unwrap_or_else(|error| panic!("{error}"));
                    answered.store(counter, Ordering::SeqCst);
                }
            });
        }
        for number in 0..20 {
            thread::sleep(Duration::from_millis(5));
            let before = read(&answered);
            let name = format!("s{number}");
            let told = host_snapshot(&uris[number % 2], &name);
            let after = read(&sent);
            // On a busy machine a processor may not get its core in time, four times in a row.
            let held_too_long = told.errors.contains("hold limit");
            if told.code == 0 || !held_too_long {
                assert_eq!(told.code, 0, "{}", told.errors);
                taken.push((name, before, after));
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(taken.len() >= 10, "only {} of 20", taken.len());
    // They are durable without anybody having flushed.
    appliance.kill();
    appliance.start(&ARGUMENTS);
    let names: Vec<String> = taken.iter().map(|(name, ..)| format!("disk@{name}")).collect();
    assert_eq!(snapshots(&appliance), names);
    for (name, before, after) in &taken {
        let view = format!("disk@{name}");
        appliance.run(&["export", "create", &view]);
        let bytes = appliance.connect(&view).read_all();
        let bytes = bytes.unwrap_or_else(|error| panic!("{error}"));
        for writer in 0..3 {
            let found = newest(&bytes, writer);
            assert!(
                before[writer] <= found && found <= after[writer],
                "{view}: writer {writer} had {} answered before and {} sent after; {found} is in it",
                before[writer],
                after[writer]
            );
        }
    }
    // What was allowed still is.
    assert_eq!(host_snapshot(&self::uris(&appliance, "disk")[0], "again").code, 0);
    appliance.stop();
}

/// V15: in band, with clients that were not written here.
#[test]
fn clients_of_others_take_snapshots_too() {
    let appliance = appliance();
    let block = vec![7; BLOCK];
    let write = |offset: u64| {
        let written = appliance.connect("disk").write(offset, &block, false);
        written.unwrap_or_else(|error| panic!("{error}"));
    };
    write(0);
    for uri in uris(&appliance, "disk") {
        let listed = must("nbdinfo", &[&uri]);
        assert!(listed.contains("stillpoint:snapshot:"), "{listed}");
    }
    must("nbdinfo", &["--list", &uris(&appliance, "disk")[0]]);
    assert!(snapshots(&appliance).is_empty(), "looking takes none");
    // libnbd: the snapshot is there, and the map says that nothing has changed since.
    let map = json(
        "nbdinfo",
        &[
            "--json",
            "--map=stillpoint:snapshot:by-libnbd",
            &appliance.uri("disk"),
        ],
    );
    assert_eq!(map.to_string(), r#"[{"length":4194304,"offset":0,"type":0}]"#);
    assert_eq!(snapshots(&appliance), ["disk@by-libnbd"]);
    write(1 << 20);
    // qemu takes any context in the place of the allocation.
    let image = format!(
        "driver=nbd,export=disk,server.type=unix,server.path={},x-dirty-bitmap=stillpoint:snapshot:by-qemu",
        appliance.path_text("run/nbd.sock")
    );
    must("qemu-img", &["map", "--output=json", "--image-opts", &image]);
    assert_eq!(snapshots(&appliance), ["disk@by-libnbd", "disk@by-qemu"]);
    write(2 << 20);
    for (name, blocks) in [("by-libnbd", 1), ("by-qemu", 2)] {
        appliance.run(&["export", "create", &format!("disk@{name}")]);
        let bytes = appliance.connect(&format!("disk@{name}")).read_all();
        let bytes = bytes.unwrap_or_else(|error| panic!("{error}"));
        let written = bytes.chunks(BLOCK).filter(|found| *found == block).count();
        assert_eq!(written, blocks, "{name}");
    }
    // A second one of that name is not taken, and the client is told that it got no such context.
    let again = run(
        "nbdinfo",
        &["--map=stillpoint:snapshot:by-libnbd", &appliance.uri("disk")],
    );
    assert!(!again.success, "{}", again.text);
    assert_eq!(snapshots(&appliance).len(), 2);
    appliance.stop();
}

#[test]
fn only_where_it_is_allowed_and_every_refusal_says_what_to_do() {
    let appliance = appliance();
    let uri = |export: &str| appliance.uri(export);
    appliance.run(&["export", "create", "disk", "--name", "closed"]);
    appliance.run(&["export", "create", "disk", "--name", "look", "--read-only"]);
    assert_eq!(host_snapshot(&uri("disk"), "first").code, 0);
    appliance.run(&["export", "create", "disk@first"]);
    let long = "x".repeat(129);
    let cases = [
        ("closed", "second", 1, "--allow-snapshots"),
        ("look", "second", 1, "read-only"),
        ("disk@first", "second", 1, "read-only"),
        ("nowhere", "second", 3, "no such export"),
        (
            "disk",
            "first",
            4,
            "disk@first exists already (choose another name",
        ),
        ("disk", "se cond", 2, "' ' is not allowed"),
        ("disk", "", 2, "it is empty"),
        ("disk", &long, 2, "129 bytes"),
    ];
    for (export, name, code, words) in cases {
        let told = host_snapshot(&uri(export), name);
        assert_eq!(told.code, code, "{export} {name}: {}", told.errors);
        assert!(told.errors.contains(words), "{export} {name}: {}", told.errors);
    }
    assert_eq!(host_snapshot("http://disk", "second").code, 2);
    let nobody = format!("nbd+unix:///disk?socket={}", appliance.path_text("none.sock"));
    assert_eq!(host_snapshot(&nobody, "second").code, 1);
    assert_eq!(snapshots(&appliance), ["disk@first"]);
    // Only what can be written can be cut.
    for arguments in [
        &["disk@first", "--name", "a"][..],
        &["disk", "--name", "a", "--read-only"],
    ] {
        let command = [&["export", "create", "--allow-snapshots"], arguments].concat();
        let told = appliance.tell(&command);
        assert_eq!(told.code, 2, "{}", told.errors);
        assert!(
            told.errors.contains("leave --allow-snapshots out"),
            "{}",
            told.errors
        );
    }
    let exports = appliance.run(&["export", "list"]);
    let allowed: Vec<&str> = list(&exports, "")
        .iter()
        .filter(|export| export["allow_snapshots"] == true)
        .filter_map(|export| export["name"].as_str())
        .collect();
    assert_eq!(allowed, ["disk"]);
    appliance.stop();
}

#[test]
fn a_client_that_goes_away_meanwhile_leaves_nothing_hanging() {
    let appliance = appliance();
    for number in 0..100 {
        let mut raw = Raw::open(&appliance.nbd_socket()).expect("greeted");
        let query = format!("stillpoint:snapshot:n{number}");
        raw.send(&FLAGS.to_be_bytes());
        raw.send(&encode_option(option::STRUCTURED_REPLY, &[]));
        let data = queries("disk", &[query.as_bytes()]);
        raw.send(&encode_option(option::SET_META_CONTEXT, &data));
        drop(raw);
    }
    // A good one is served at once, and the others' connections come to their end.
    appliance.wait_until("a snapshot is taken", || {
        let told = host_snapshot(&appliance.uri("disk"), "last");
        assert!(
            told.code == 0 || told.errors.contains("hold limit") || told.errors.contains("waiting"),
            "{}",
            told.errors
        );
        told.code == 0
    });
    appliance.wait_until("the others are gone", || {
        number(&appliance.run(&["status"]), "/connections") == 0
    });
    // Those that were begun are whole.
    let found = snapshots(&appliance);
    assert!(found.contains(&"disk@last".to_owned()));
    for name in &found {
        appliance.run(&["snapshot", "delete", name]);
    }
    assert!(snapshots(&appliance).is_empty());
    // Nor does one keep the daemon from stopping.
    let mut raw = Raw::open(&appliance.nbd_socket()).expect("greeted");
    raw.send(&FLAGS.to_be_bytes());
    raw.send(&encode_option(option::STRUCTURED_REPLY, &[]));
    let data = queries("disk", &[b"stillpoint:snapshot:at-the-end"]);
    raw.send(&encode_option(option::SET_META_CONTEXT, &data));
    appliance.stop();
    let device = appliance.path_text("tank-0");
    appliance
        .check_devices(&[&device])
        .unwrap_or_else(|error| panic!("{error}"));
}
