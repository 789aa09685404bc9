//! Change log volumes, as a user has them: full while a load runs, with either policy; after a restart; on devices of their
//! own; and what is refused.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::nbd::{Connection, Failure};
use crate::support::{Appliance, list, member, number};
use serde_json::Value;
use stillpoint_export::nbd::wire::ReplyError;

const BLOCK: usize = 4096;
const VOLUME_BYTES: usize = 16 << 20;
const BLOCKS: usize = VOLUME_BYTES / BLOCK;
const LOG_BYTES: u64 = 4 << 20;
/// Blocks that the change log volume has room for, on both shards together.
const LOG_BLOCKS: usize = LOG_BYTES as usize / BLOCK;
const PROCESSORS: [&str; 2] = ["--processors", "2"];

/// A pool of two shards, a change log volume of 4 MiB, and a full volume of 16 MiB that names it.
fn started(policy: &str, more: &[&str]) -> Appliance {
    let appliance = Appliance::started(&PROCESSORS);
    appliance.create_pool("p", 2, "256MiB", &[]);
    let more: Vec<String> = more.iter().map(|device| appliance.path_text(device)).collect();
    let mut create = vec![
        "changelog",
        "create",
        "cl0",
        "--size",
        "4MiB",
        "--when-full",
        policy,
    ];
    for device in &more {
        create.extend(["--device", device]);
    }
    appliance.run(&create);
    let size = VOLUME_BYTES.to_string();
    appliance.run(&[
        "volume",
        "create",
        "v",
        "--size",
        &size,
        "--object-size",
        "1MiB",
        "--change-log",
        "cl0",
    ]);
    appliance.run(&["export", "create", "v"]);
    let mut connection = appliance.connect("v");
    for offset in (0..VOLUME_BYTES).step_by(1 << 20) {
        connection
            .write(offset as u64, &vec![1; 1 << 20], false)
            .expect("a write");
    }
    connection.flush().expect("a flush");
    appliance
}

fn shown(appliance: &Appliance) -> Value {
    appliance.run(&["changelog", "show", "cl0"])
}

fn used(appliance: &Appliance) -> u64 {
    number(&shown(appliance), "/used_bytes")
}

fn events(appliance: &Appliance, kind: &str) -> Vec<String> {
    let told = appliance.run(&["events", "--limit", "1000"]);
    let events = list(&told, "/events").iter();
    let of_kind = events.filter(|event| member(event, "/kind") == kind);
    of_kind
        .map(|event| member(event, "/subject").as_str().expect("a text").to_owned())
        .collect()
}

fn write(connection: &mut Connection, block: usize, byte: u8) -> Result<(), Failure> {
    connection.write((block * BLOCK) as u64, &[byte; BLOCK], false)
}

fn is_full(result: &Result<(), Failure>) -> bool {
    matches!(result, Err(Failure::Refused(ReplyError::NoSpace)))
}

/// Reads this export until told to stop; every block must be one of these bytes all over.
fn keep_reading(appliance: &Appliance, export: &str, allowed: &[u8], stop: &AtomicBool) -> u64 {
    let mut connection = appliance.connect(export);
    let mut reads = 0;
    while !stop.load(Ordering::SeqCst) || reads == 0 {
        for offset in (0..VOLUME_BYTES).step_by(1 << 20) {
            let bytes = connection.read(offset as u64, 1 << 20).expect("reads go on");
            for block in bytes.chunks_exact(BLOCK) {
                assert!(allowed.contains(&block[0]) && block.iter().all(|byte| *byte == block[0]));
            }
            reads += 1;
        }
    }
    reads
}

/// Four clients that each write all blocks of a quarter of the volume once; gives which of them were taken.
fn write_everything(appliance: &Appliance, byte: u8) -> Vec<bool> {
    thread::scope(|scope| {
        let quarter = |quarter: usize| {
            let mut connection = appliance.connect("v");
            let blocks = quarter * BLOCKS / 4..(quarter + 1) * BLOCKS / 4;
            blocks
                .map(|block| {
                    let result = write(&mut connection, block, byte);
                    assert!(result.is_ok() || is_full(&result), "block {block}: {result:?}");
                    result.is_ok()
                })
                .collect::<Vec<bool>>()
        };
        let threads: Vec<_> = (0..4)
            .map(|number| scope.spawn(move || quarter(number)))
            .collect();
        let parts = threads.into_iter().map(|thread| thread.join().expect("a client"));
        parts.flatten().collect()
    })
}

/// V10, V11: a change log volume takes what its size says, on all shards, then writes fail; a read finds a changed block in
/// the change log and any other where the snapshot left it.
#[test]
fn writes_fail_exactly_at_the_limit_and_all_else_goes_on() {
    let appliance = started("fail-writes", &[]);
    assert_eq!(used(&appliance), 0, "nothing counts without a snapshot");
    appliance.run(&["snapshot", "create", "v@s", "--hold-limit", "2s"]);
    appliance.run(&["export", "create", "v@s"]);
    let stop = AtomicBool::new(false);
    let taken = thread::scope(|scope| {
        let (appliance, stop) = (&appliance, &stop);
        let live = scope.spawn(move || keep_reading(appliance, "v", &[1, 2], stop));
        let frozen = scope.spawn(move || keep_reading(appliance, "v@s", &[1], stop));
        let taken = write_everything(appliance, 2);
        stop.store(true, Ordering::SeqCst);
        assert!(live.join().expect("a reader") > 0 && frozen.join().expect("a reader") > 0);
        taken
    });
    assert_eq!(taken.iter().filter(|taken| **taken).count(), LOG_BLOCKS);
    let info = shown(&appliance);
    assert_eq!(number(&info, "/used_bytes"), LOG_BYTES);
    for shard in list(&info, "/shards") {
        assert_eq!(number(shard, "/used_bytes"), LOG_BYTES / 2);
        assert_eq!(number(shard, "/limit_bytes"), LOG_BYTES / 2);
    }
    assert_eq!(list(&info, "/volumes"), ["v"]);
    assert_eq!(
        events(&appliance, "changelog_high"),
        ["cl0"],
        "once, not for each shard"
    );
    assert!(!events(&appliance, "changelog_full").is_empty());
    // The same after a kill, from what is on the devices.
    for _ in 0..2 {
        let mut connection = appliance.connect("v");
        for (block, &taken) in taken.iter().enumerate().step_by(37) {
            let result = write(&mut connection, block, 2);
            assert_eq!(result.is_ok(), taken, "block {block}: {result:?}");
            let bytes = connection.read((block * BLOCK) as u64, BLOCK).expect("a read");
            assert_eq!(bytes, [if taken { 2 } else { 1 }; BLOCK]);
        }
        connection.flush().expect("a flush");
        assert_eq!(used(&appliance), LOG_BYTES);
        appliance.kill();
        appliance.start(&PROCESSORS);
    }
    // Discarding and deleting are never refused; deleting makes room.
    let mut connection = appliance.connect("v");
    let free = taken
        .iter()
        .position(|taken| !taken)
        .expect("a block that was refused");
    connection.trim((free * BLOCK) as u64, BLOCK).expect("a discard");
    assert_eq!(used(&appliance), LOG_BYTES + BLOCK as u64);
    appliance.run(&["export", "delete", "v@s"]);
    appliance.run(&["snapshot", "delete", "v@s"]);
    assert_eq!(used(&appliance), 0);
    assert!(write_everything(&appliance, 3).iter().all(|taken| *taken));
    check(&appliance);
}

/// Every block is used once or free.
fn check(appliance: &Appliance) {
    appliance.stop();
    let devices = [appliance.path_text("p-0"), appliance.path_text("p-1")];
    let checked = appliance.check_devices(&[&devices[0], &devices[1]]);
    checked.expect("every block is used once or free");
}

/// V10: the other policy: when it is full the oldest snapshots go.
#[test]
fn the_oldest_snapshots_go_while_writes_wait_and_none_fails() {
    let appliance = started("drop-oldest", &[]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (appliance, stop) = (&appliance, &stop);
        let reader = scope.spawn(move || keep_reading(appliance, "v", &[1, 2, 3], stop));
        for round in 2..=3 {
            appliance.run(&["snapshot", "create", &format!("v@a{round}"), "--hold-limit", "2s"]);
            let mut connection = appliance.connect("v");
            for block in 0..100 {
                write(&mut connection, block, round).expect("room");
            }
            appliance.run(&["snapshot", "create", &format!("v@b{round}"), "--hold-limit", "2s"]);
            let taken = write_everything(appliance, round);
            assert!(taken.iter().all(|taken| *taken), "round {round}: a write failed");
        }
        stop.store(true, Ordering::SeqCst);
        reader.join().expect("a reader");
    });
    assert!(used(&appliance) <= LOG_BYTES);
    let dropped = events(&appliance, "snapshot_dropped");
    assert_eq!(
        dropped,
        ["v@a2", "v@b2", "v@a3", "v@b3"],
        "oldest first, an event for each"
    );
    assert!(list(&appliance.run(&["snapshot", "list"]), "").is_empty());
    check(&appliance);
}

#[test]
fn what_is_locked_stays_and_writes_fail_when_nothing_else_is_left() {
    let appliance = started("drop-oldest", &[]);
    appliance.run(&["snapshot", "create", "v@kept", "--hold-limit", "2s"]);
    appliance.run(&["snapshot", "lock", "v@kept", "--until", "30d"]);
    appliance.run(&["snapshot", "create", "v@goes", "--hold-limit", "2s"]);
    let taken = write_everything(&appliance, 2);
    assert_eq!(taken.iter().filter(|taken| **taken).count(), LOG_BLOCKS);
    assert_eq!(events(&appliance, "snapshot_dropped"), ["v@goes"]);
    assert_eq!(events(&appliance, "changelog_full"), ["cl0"], "said once");
    let left = appliance.run(&["snapshot", "list"]);
    assert_eq!(list(&left, "").len(), 1);
    // More room, and it goes on at once.
    appliance.run(&["changelog", "resize", "cl0", "--size", "64MiB"]);
    assert!(write_everything(&appliance, 3).iter().all(|taken| *taken));
    appliance.run(&["export", "create", "v@kept"]);
    let bytes = appliance.connect("v@kept").read_all().expect("readable");
    assert!(
        bytes.iter().all(|byte| *byte == 1),
        "what the locked snapshot shows"
    );
    check(&appliance);
}

#[test]
fn changes_are_placed_on_the_devices_that_were_named() {
    let appliance = started("fail-writes", &["p-1"]);
    appliance.run(&["snapshot", "create", "v@s", "--hold-limit", "2s"]);
    let allocated = |device: &str| {
        let file = std::fs::metadata(appliance.path(device)).expect("a device");
        file.blocks() * 512
    };
    let before = [allocated("p-0"), allocated("p-1")];
    let mut connection = appliance.connect("v");
    for block in 0..LOG_BLOCKS / 2 {
        write(&mut connection, block * 3, 2).expect("room");
    }
    connection.flush().expect("a flush");
    let grown = [allocated("p-0") - before[0], allocated("p-1") - before[1]];
    let written = LOG_BYTES / 2;
    assert!(grown[1] >= written, "{grown:?}");
    assert!(
        grown[0] < written / 4,
        "only maps and logs lie elsewhere: {grown:?}"
    );
    let info = shown(&appliance);
    assert_eq!(list(&info, "/devices"), [appliance.path_text("p-1").as_str()]);
    for shard in list(&info, "/shards") {
        assert_eq!(number(shard, "/elsewhere_bytes"), 0);
    }
    check(&appliance);
}

#[test]
fn it_is_set_later_taken_away_and_kept_over_a_rollback_and_restarts() {
    let appliance = started("fail-writes", &[]);
    appliance.run(&["volume", "set", "v", "--change-log", "none"]);
    assert_eq!(
        *member(&appliance.run(&["volume", "show", "v"]), "/change_log"),
        Value::Null
    );
    appliance.run(&["snapshot", "create", "v@s", "--hold-limit", "2s"]);
    let mut connection = appliance.connect("v");
    for block in 0..LOG_BLOCKS {
        write(&mut connection, block, 2).expect("no limit");
    }
    appliance.run(&["volume", "set", "v", "--change-log", "cl0"]);
    assert_eq!(used(&appliance), LOG_BYTES, "what changed before counts");
    appliance.kill();
    appliance.start(&PROCESSORS);
    assert_eq!(
        member(&appliance.run(&["volume", "show", "v"]), "/change_log"),
        "cl0"
    );
    assert_eq!(used(&appliance), LOG_BYTES);
    appliance.run(&["volume", "rollback", "v@s", "--force"]);
    appliance.kill();
    appliance.start(&PROCESSORS);
    // The safety snapshot holds what was written, and what is written now comes on top.
    assert_eq!(used(&appliance), LOG_BYTES);
    let mut connection = appliance.connect("v");
    assert!(is_full(&write(&mut connection, 0, 4)));
    appliance.run(&["snapshot", "delete", "v@before-s"]);
    appliance.wait_until("its blocks are free", || used(&appliance) == 0);
    write(&mut connection, 0, 4).expect("room");
    assert_eq!(used(&appliance), BLOCK as u64);
    appliance.run(&["export", "delete", "v"]);
    appliance.run(&["volume", "delete", "v", "--with-snapshots"]);
    appliance.run(&["changelog", "delete", "cl0"]);
}

#[track_caller]
fn refused(appliance: &Appliance, arguments: &[&str], code: i32, words: &[&str]) {
    let told = appliance.tell(arguments);
    assert_eq!(told.code, code, "{arguments:?}: {}", told.errors);
    for word in words {
        assert!(told.errors.contains(word), "{arguments:?}: {}", told.errors);
    }
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let appliance = started("fail-writes", &[]);
    let create = |name, size| ["changelog", "create", name, "--size", size];
    refused(&appliance, &create("cl0", "4MiB"), 4, &["exists already"]);
    refused(&appliance, &create("none", "4MiB"), 2, &["none"]);
    refused(&appliance, &create("a/b", "4MiB"), 2, &["a/b"]);
    refused(&appliance, &create("cl1", "1MiB"), 2, &["2097152", "equal part"]);
    refused(&appliance, &create("cl1", "4000001"), 2, &["4000001", "4096"]);
    let device = [
        "changelog",
        "create",
        "cl1",
        "--size",
        "4MiB",
        "--device",
        "/dev/zero",
    ];
    refused(&appliance, &device, 2, &["/dev/zero", "p-0", "p-1"]);
    let policy = [
        "changelog",
        "create",
        "cl1",
        "--size",
        "4MiB",
        "--when-full",
        "panic",
    ];
    refused(&appliance, &policy, 2, &["fail-writes", "drop-oldest"]);
    refused(
        &appliance,
        &["changelog", "show", "cl1"],
        3,
        &["cl1", "changelog list"],
    );
    refused(
        &appliance,
        &["changelog", "resize", "cl0", "--size", "8KiB"],
        2,
        &["8192"],
    );
    refused(
        &appliance,
        &["volume", "set", "v", "--change-log", "cl1"],
        3,
        &["cl1"],
    );
    let volume = ["volume", "create", "w", "--size", "4MiB", "--change-log", "cl1"];
    refused(&appliance, &volume, 3, &["cl1"]);
    refused(
        &appliance,
        &["changelog", "delete", "cl0"],
        4,
        &["used by v", "volume set"],
    );
    appliance.run(&["volume", "set", "v", "--change-log", "none"]);
    appliance.run(&["changelog", "delete", "cl0"]);
    refused(&appliance, &["changelog", "delete", "cl0"], 3, &["cl0"]);
    assert!(list(&appliance.run(&["changelog", "list"]), "").is_empty());
}
