//! What changed since a snapshot (V7, V8): as the command line tells it, as clients of others read it over NBD, and as
//! reading both tells it.

#![allow(clippy::print_stdout, reason = "figures worth reading")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::support::foreign::json;
use crate::support::history::History;
use crate::support::load::Load;
use crate::support::{Appliance, list, member, number};
use serde_json::Value;
use stillpoint_simulator::random::Random;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const SECTOR: usize = 512;
/// Size of the volume under load.
const VOLUME_BYTES: u64 = 64 * MIB;

/// An appliance with an exported volume `disk` of small objects on two devices and two processors.
fn appliance(size: &str) -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("tank", 2, "1GiB", &[]);
    let arguments = ["volume", "create", "disk", "--size", size, "--block-size", "512"];
    appliance.run(&[&arguments[..], &["--object-size", "1MiB"]].concat());
    appliance.run(&["export", "create", "disk"]);
    appliance
}

/// What `snapshot changes` tells of each block: 0 unchanged, 1 changed, 3 changed and a hole now.
fn changes(appliance: &Appliance, from: &str, to: Option<&str>) -> Vec<u8> {
    let mut arguments = vec!["snapshot", "changes", from];
    arguments.extend(to);
    let told = appliance.run(&arguments);
    assert_eq!(member(&told, "/from"), from);
    assert_eq!(member(&told, "/to"), to.unwrap_or("disk"));
    let mut states = vec![0; number(&told, "/size_bytes") as usize / BLOCK];
    let (mut end, mut holes) = (0, 0);
    for range in list(&told, "/changes") {
        let (offset, length) = (number(range, "/offset_bytes"), number(range, "/length_bytes"));
        let hole = member(range, "/hole") == true;
        assert!(offset >= end && length > 0, "in order, never overlapping");
        end = offset + length;
        holes += u64::from(hole) * length;
        states[offset as usize / BLOCK..end as usize / BLOCK].fill(if hole { 3 } else { 1 });
    }
    let changed = states.iter().filter(|&&state| state != 0).count();
    assert_eq!(number(&told, "/ranges"), list(&told, "/changes").len() as u64);
    assert_eq!(number(&told, "/changed_bytes"), (changed * BLOCK) as u64);
    assert_eq!(number(&told, "/hole_bytes"), holes);
    states
}

/// The same as nbdinfo reads it from a metadata context of an export; `states` of blocks as the context has them.
fn mapped(appliance: &Appliance, export: &str, context: &str, blocks: usize) -> Vec<u8> {
    let map = format!("--map={context}");
    let extents = json("nbdinfo", &[&map, "--json", &appliance.uri(export)]);
    let mut states = vec![0xff; blocks];
    for extent in list(&extents, "") {
        let first = number(extent, "/offset") as usize / BLOCK;
        let end = first + number(extent, "/length") as usize / BLOCK;
        states[first..end].fill(number(extent, "/type") as u8);
    }
    states
}

/// What reads differently must be told; what is told and reads the same holds zeros that were written.
fn assert_as_read(told: &[u8], before: &[u8], now: &[u8], holes: &[u8]) {
    let blocks = before.chunks_exact(BLOCK).zip(now.chunks_exact(BLOCK));
    for (block, ((before, now), (&told, &hole))) in blocks.zip(told.iter().zip(holes)).enumerate() {
        let zeros = now
            .chunks_exact(SECTOR)
            .any(|sector| sector.iter().all(|&byte| byte == 0));
        assert!(
            told != 0 || before == now,
            "block {block} changed, and that is not told"
        );
        assert!(
            told == 0 || before != now || zeros,
            "block {block} is told and is the same"
        );
        assert!(
            told == 0 || (told == 3) == (hole == 3),
            "block {block}: {told} is told of a hole {hole}"
        );
    }
}

/// V7: the change logs between two views tell what was written after the first.
#[test]
fn v7_changes_under_load_are_what_reads_differently() {
    let appliance = appliance("64MiB");
    let history = Arc::new(History::new(1, VOLUME_BYTES));
    let load = Load::start(&appliance.nbd_socket(), "disk", 3, &history, 1, 17);
    let names = ["disk@a", "disk@b", "disk@c"];
    for (index, name) in names.iter().enumerate() {
        load.wait_for_answers(400 * (index as u64 + 1));
        appliance.run(&["snapshot", "create", name, "--hold-limit", "2s"]);
        // They are told while the volume is written.
        appliance.run(&["snapshot", "changes", names[0]]);
    }
    load.wait_for_answers(1600);
    load.finish();
    let views = [&names[..], &["disk"]].concat();
    for name in names {
        appliance.run(&["export", "create", name]);
    }
    let blocks = VOLUME_BYTES as usize / BLOCK;
    let read: Vec<(Vec<u8>, Vec<u8>)> = views
        .iter()
        .map(|view| {
            let bytes = appliance.connect(view).read_all();
            let bytes = bytes.unwrap_or_else(|error| panic!("{view}: {error}"));
            (bytes, mapped(&appliance, view, "base:allocation", blocks))
        })
        .collect();
    for (earlier, from) in names.iter().enumerate() {
        let snapshot = from.trim_start_matches("disk@");
        for (later, to) in views.iter().enumerate().skip(earlier) {
            let told = changes(&appliance, from, (*to != "disk").then_some(to));
            assert_eq!(told.iter().any(|&state| state != 0), earlier != later);
            assert_as_read(&told, &read[earlier].0, &read[later].0, &read[later].1);
            let context = format!("stillpoint:changes:{snapshot}");
            assert!(
                mapped(&appliance, to, &context, blocks) == told,
                "{to} since {from}"
            );
            let dirty: Vec<u8> = told.iter().map(|state| state & 1).collect();
            let context = format!("qemu:dirty-bitmap:{snapshot}");
            assert!(mapped(&appliance, to, &context, blocks) == dirty);
            assert!(qemu_map(&appliance, to, &context, blocks) == dirty);
        }
    }
    appliance.stop();
}

/// What qemu makes of a dirty bitmap: where it is dirty it says that there is no data.
fn qemu_map(appliance: &Appliance, export: &str, context: &str, blocks: usize) -> Vec<u8> {
    let socket = appliance.path_text("run/nbd.sock");
    let image =
        format!("driver=nbd,export={export},server.type=unix,server.path={socket},x-dirty-bitmap={context}");
    let extents = json("qemu-img", &["map", "--output=json", "--image-opts", &image]);
    let mut states = vec![0xff; blocks];
    for extent in list(&extents, "") {
        let first = number(extent, "/start") as usize / BLOCK;
        let end = first + number(extent, "/length") as usize / BLOCK;
        let dirty = member(extent, "/data") == false;
        states[first..end].fill(u8::from(dirty));
    }
    states
}

#[test]
fn clients_are_told_which_contexts_there_are() {
    let appliance = appliance("16MiB");
    let contexts = |export: &str| -> Vec<String> {
        let told = json("nbdinfo", &["--json", &appliance.uri(export)]);
        let named = list(&told, "/exports/0/contexts").iter();
        named
            .map(|name| name.as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(contexts("disk"), ["base:allocation"]);
    appliance.run(&["snapshot", "create", "disk@a"]);
    appliance.run(&["snapshot", "create", "disk@b"]);
    let all = [
        "base:allocation",
        "stillpoint:changes:a",
        "stillpoint:changes:b",
        "qemu:dirty-bitmap:a",
        "qemu:dirty-bitmap:b",
    ];
    assert_eq!(contexts("disk"), all, "without a new export");
    appliance.run(&["export", "create", "disk@a", "--name", "frozen"]);
    assert_eq!(contexts("frozen"), all);
    appliance.run(&["snapshot", "delete", "disk@b"]);
    assert_eq!(contexts("disk"), [all[0], all[1], all[3]]);
    for number in 0..32 {
        appliance.run(&["snapshot", "create", &format!("disk@{number:02}")]);
    }
    // Of many snapshots the list names the two families, and each is there for who asks.
    assert_eq!(
        contexts("disk"),
        [all[0], "stillpoint:changes:", "qemu:dirty-bitmap:"]
    );
    assert_eq!(
        mapped(&appliance, "disk", "stillpoint:changes:31", 4096),
        [0; 4096]
    );
    // They are there after a restart, too.
    appliance.kill();
    appliance.start(&["--processors", "2"]);
    assert_eq!(mapped(&appliance, "disk", "qemu:dirty-bitmap:a", 4096), [0; 4096]);
    appliance.stop();
}

#[test]
fn a_thousand_changes_of_ten_tebibytes_are_told_in_no_time() {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("tank", 2, "1GiB", &[]);
    appliance.run(&["volume", "create", "disk", "--size", "10TiB"]);
    appliance.run(&["export", "create", "disk"]);
    let mut connection = appliance.connect("disk");
    let mut random = Random::new(7);
    let mut write = |count: usize| {
        let mut blocks = BTreeSet::new();
        while blocks.len() < count {
            let block = random.below((10 << 40) / BLOCK as u64);
            let written = connection.write(block * BLOCK as u64, &[7; BLOCK], false);
            written.unwrap_or_else(|error| panic!("{error}"));
            blocks.insert(block);
        }
        blocks
    };
    write(1000);
    appliance.run(&["snapshot", "create", "disk@a"]);
    let expected = write(1000);
    let ask = |what: &str| {
        let began = Instant::now();
        let told = appliance.run(&["snapshot", "changes", "disk@a"]);
        let took = began.elapsed();
        let ranges = list(&told, "/changes");
        println!(
            "10 TiB, {what}: {} ranges in {took:.1?}, the command line included",
            ranges.len()
        );
        let first = |range: &Value| number(range, "/offset_bytes") / BLOCK as u64;
        let blocks: BTreeSet<u64> = ranges
            .iter()
            .flat_map(|range| (first(range)..).take(number(range, "/length_bytes") as usize / BLOCK))
            .collect();
        assert!(blocks == expected);
    };
    ask("1,000 changed blocks");
    ask("again");
    let began = Instant::now();
    let extents = json(
        "nbdinfo",
        &["--map=stillpoint:changes:a", "--json", &appliance.uri("disk")],
    );
    println!("10 TiB, the same by nbdinfo: {:.1?}", began.elapsed());
    let changed = list(&extents, "")
        .iter()
        .filter(|extent| number(extent, "/type") == 1);
    let bytes: u64 = changed.map(|extent| number(extent, "/length")).sum();
    assert_eq!(bytes, 1000 * BLOCK as u64);
    appliance.stop();
    appliance.start(&["--processors", "2"]);
    ask("no map page in memory");
    appliance.stop();
}

#[test]
fn clones_and_volumes_that_were_rolled_back_are_compared_too() {
    let appliance = appliance("16MiB");
    let write = |export: &str, block: u64| {
        let mut connection = appliance.connect(export);
        let written = connection.write(block * BLOCK as u64, &[block as u8; BLOCK], true);
        written.unwrap_or_else(|error| panic!("{export}: {error}"));
    };
    let told = |from: &str, to: &str| -> Vec<u64> {
        let told = appliance.run(&["snapshot", "changes", from, to]);
        assert_eq!(member(&told, "/to"), to);
        let ranges = list(&told, "/changes").iter();
        let blocks = ranges.flat_map(|range| {
            let (first, length) = (number(range, "/offset_bytes"), number(range, "/length_bytes"));
            first / BLOCK as u64..(first + length) / BLOCK as u64
        });
        blocks.collect()
    };
    write("disk", 1);
    appliance.run(&["snapshot", "create", "disk@a"]);
    write("disk", 2);
    appliance.run(&["snapshot", "create", "disk@b"]);
    write("disk", 300);
    appliance.run(&["volume", "clone", "disk@a", "copy"]);
    appliance.run(&["export", "create", "copy"]);
    assert!(told("disk@a", "copy").is_empty());
    write("copy", 4);
    appliance.run(&["snapshot", "create", "copy@c"]);
    write("copy", 5);
    assert_eq!(told("disk@a", "copy"), [4, 5]);
    assert_eq!(told("disk@a", "copy@c"), [4]);
    assert_eq!(told("disk@b", "copy@c"), [2, 4], "both sides of the fork");
    assert_eq!(told("copy@c", "copy"), [5]);
    assert_eq!(told("disk@a", "disk"), [2, 300]);
    let of_copy = mapped(&appliance, "copy", "stillpoint:changes:c", 4096);
    assert_eq!(of_copy.iter().position(|&state| state == 1), Some(5));

    appliance.run(&["volume", "rollback", "disk@a", "--force"]);
    assert!(told("disk@a", "disk").is_empty());
    assert_eq!(told("disk@b", "disk"), [2], "what was undone");
    write("disk", 6);
    assert_eq!(told("disk@a", "disk"), [6]);
    assert_eq!(told("disk@before-a", "disk"), [2, 6, 300]);
    let of_disk = mapped(&appliance, "disk", "qemu:dirty-bitmap:before-a", 4096);
    let dirty = (0..4096).filter(|&block| of_disk[block] == 1);
    assert_eq!(dirty.collect::<Vec<_>>(), [2, 6, 300]);
    appliance.kill();
    appliance.start(&["--processors", "2"]);
    assert_eq!(told("disk@before-a", "disk"), [2, 6, 300]);
    assert_eq!(told("disk@a", "copy"), [4, 5]);
    appliance.stop();
}

#[test]
fn what_cannot_be_compared_is_refused_with_what_to_do() {
    let appliance = appliance("16MiB");
    appliance.run(&["volume", "create", "other", "--size", "16MiB"]);
    for name in ["disk@a", "disk@b", "other@a"] {
        appliance.run(&["snapshot", "create", name]);
    }
    for (arguments, code, words) in [
        (&["disk@x"][..], 3, "there is no snapshot disk@x"),
        (&["nothing@a"], 3, "there is no volume nothing"),
        (&["disk@a", "disk@x"], 3, "there is no snapshot disk@x"),
        (&["disk@a", "nothing"], 3, "there is no volume nothing"),
        (&["disk"], 2, "disk is a volume"),
        (&["disk@a", "other"], 2, "disk@a and other are not of one volume"),
        (&["disk@a", "other@a"], 2, "are not of one volume"),
        (&["disk@b", "disk@a"], 2, "disk@a is older than disk@b"),
        (&["disk@b", "disk@a"], 2, "compare disk@a with disk@b"),
        (&["disk@a", "di/sk"], 2, "is no name for a volume"),
    ] {
        let told = appliance.tell(&[&["snapshot", "changes"], arguments].concat());
        assert_eq!(
            (told.code, &told.json),
            (code, &Value::Null),
            "{arguments:?}: {}",
            told.errors
        );
        assert!(told.errors.contains(words), "{arguments:?}: {}", told.errors);
    }
    assert_eq!(changes(&appliance, "disk@a", Some("disk@a")), [0; 4096]);
    // As a table, for people.
    let mut connection = appliance.connect("disk");
    connection
        .write(8192, &[1; 4096], false)
        .unwrap_or_else(|error| panic!("{error}"));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["snapshot", "changes", "disk@a", "--socket"])
        .arg(appliance.control_socket())
        .output()
        .expect("the program starts");
    let text = String::from_utf8(output.stdout).expect("words");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["OFFSET", "LENGTH", "NOW"]);
    assert_eq!(lines[1], ["8192", "4096", "data"]);
    assert_eq!(
        lines[2].join(" "),
        "ranges: 1, changed: 4 KiB, of it holes now: 0 B"
    );
    appliance.stop();
}
