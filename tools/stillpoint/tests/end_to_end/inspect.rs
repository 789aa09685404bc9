//! `stillpoint inspect`: what a killed daemon leaves is clean, damage is told as what it is, and mended if it can be.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use crate::support::history::History;
use crate::support::load::Load;
use crate::support::{Appliance, Told, list, member, number};
use serde_json::Value;
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::label::PoolLabel;
use stillpoint_ondisk::layout::Layout;

const BLOCK: u64 = 4096;
const VOLUME_BYTES: u64 = 8 << 20;

fn inspect(appliance: &Appliance, arguments: &[&str]) -> Told {
    let device = appliance.path_text("p-0");
    let tails = appliance.tail_directory();
    let fixed = ["inspect", &device, "--tail-dir", &tails];
    appliance.tell(&[&fixed[..], arguments].concat())
}

#[track_caller]
fn clean(appliance: &Appliance, arguments: &[&str]) -> Value {
    let told = inspect(appliance, arguments);
    assert_eq!(told.code, 0, "{}: {:#}", told.errors, told.json);
    told.json
}

/// The kinds of damage that a check finds, each once, in order; it must fail exactly if there are any.
#[track_caller]
fn damage(told: &Told) -> Vec<String> {
    let problems = list(&told.json, "/check/problems").iter();
    let mut kinds: Vec<String> = problems
        .filter(|problem| problem["damage"] == true)
        .map(|problem| member(problem, "/kind").as_str().expect("a text").to_owned())
        .collect();
    kinds.sort();
    kinds.dedup();
    let expected = i32::from(!kinds.is_empty());
    assert_eq!(told.code, expected, "{}: {:#}", told.errors, told.json);
    kinds
}

/// Every block of the volume says which it is.
fn content(version: u8) -> Vec<u8> {
    let blocks = 0..VOLUME_BYTES / BLOCK;
    let block = |number: u64| {
        let mut bytes = vec![version; BLOCK as usize];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    blocks.flat_map(block).collect()
}

/// A pool of one device and two shards that was stopped in order: a volume `v` in objects of 1 MiB whose second half was
/// written again after the snapshot `v@s`.
fn stopped() -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 1, "256MiB", &[]);
    let size = format!("{}MiB", VOLUME_BYTES >> 20);
    appliance.run(&["volume", "create", "v", "--size", &size, "--object-size", "1MiB"]);
    appliance.run(&["export", "create", "v"]);
    let mut connection = appliance.connect("v");
    connection.write(0, &content(1), true).expect("written");
    appliance.run(&["snapshot", "create", "v@s"]);
    let half = VOLUME_BYTES / 2;
    connection
        .write(half, &content(2)[half as usize..], true)
        .expect("written");
    drop(connection);
    appliance.stop();
    appliance
}

fn open(appliance: &Appliance) -> (File, Layout) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(appliance.path("p-0"))
        .expect("there");
    let label = PoolLabel::parse(&read(&file, 0)).expect("sound");
    (file, Layout::of(&label).expect("sound"))
}

fn read(file: &File, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK as usize];
    file.read_exact_at(&mut bytes, block * BLOCK).expect("read");
    bytes
}

fn flip(file: &File, block: u64) {
    let mut bytes = read(file, block);
    bytes[1000] ^= 4;
    file.write_all_at(&bytes, block * BLOCK).expect("written");
}

/// Where a block of this content lies.
fn find(file: &File, wanted: &[u8]) -> u64 {
    let blocks = file.metadata().expect("there").len() / BLOCK;
    (0..blocks)
        .find(|&block| read(file, block) == wanted)
        .expect("somewhere")
}

#[track_caller]
fn expect_content(appliance: &Appliance) {
    appliance.start(&["--processors", "2"]);
    let half = VOLUME_BYTES as usize / 2;
    let live = appliance.connect("v").read_all().expect("read");
    assert!(live == [&content(1)[..half], &content(2)[half..]].concat());
    appliance.run(&["export", "create", "v@s"]);
    assert!(appliance.connect("v@s").read_all().expect("read") == content(1));
}

#[test]
fn a_pool_that_was_killed_under_load_is_clean() {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 1, "512MiB", &["--shards", "3"]);
    appliance.run(&[
        "volume",
        "create",
        "v",
        "--size",
        "8MiB",
        "--block-size",
        "512",
        "--object-size",
        "1MiB",
    ]);
    appliance.run(&["export", "create", "v"]);
    let history = Arc::new(History::new(1, VOLUME_BYTES));
    let mut replayed = 0;
    for round in 0..6u64 {
        let load = Load::start(&appliance.nbd_socket(), "v", 3, &history, 1, round);
        for snapshot in 0..4 {
            load.wait_for_answers(300 * (snapshot + 1));
            appliance.run(&["snapshot", "create", &format!("v@r{round}s{snapshot}")]);
            if snapshot >= 2 {
                appliance.run(&["snapshot", "delete", &format!("v@r{round}s{}", snapshot - 2)]);
            }
        }
        load.expect_crash();
        appliance.kill();
        load.finish();
        let info = clean(&appliance, &["--check"]);
        assert_eq!(member(&info, "/check/clean"), &Value::Bool(true));
        for shard in list(&info, "/shards") {
            assert!(number(shard, "/data_blocks") > 0, "{shard}");
            assert_eq!(number(shard, "/data_blocks"), number(shard, "/verified_blocks"));
            replayed += number(shard, "/log_records") + number(shard, "/tail_records");
        }
        let metadata = clean(&appliance, &["--metadata-only"]);
        assert_eq!(number(&list(&metadata, "/shards")[0], "/verified_blocks"), 0);
        history.crashed();
        appliance.start(&["--processors", "2"]);
        let bytes = appliance.connect("v").read_all().expect("read");
        history
            .recovered(&bytes)
            .unwrap_or_else(|broken| panic!("{}", broken.0));
    }
    assert!(replayed > 0, "the log was looked at");
}

#[test]
fn what_is_damaged_and_kept_twice_is_told_and_mended() {
    let appliance = stopped();
    assert_eq!(damage(&inspect(&appliance, &["--check"])), [] as [&str; 0]);
    let (file, layout) = open(&appliance);
    flip(&file, layout.label_copy_block(0));
    let generation = |copy| {
        let header = ShardHeader::parse(&read(&file, layout.header_block(1, copy)), layout.pool, 1);
        header.expect("sound").generation.get()
    };
    let older = u64::from(generation(0) > generation(1));
    flip(&file, layout.header_block(1, older));
    for slot in 0..2 {
        flip(&file, layout.bitmap_block(0, 0, 0, slot));
    }
    let told = inspect(&appliance, &["--check"]);
    assert_eq!(damage(&told), ["bitmap", "label", "shard_header"]);
    assert!(list(&told.json, "/check/mends").len() >= 3, "{:#}", told.json);
    assert_eq!(
        member(&told.json, "/repair"),
        &Value::Null,
        "nothing was asked for"
    );
    assert_eq!(
        damage(&inspect(&appliance, &["--check"])).len(),
        3,
        "a check changes nothing"
    );
    let repaired = clean(&appliance, &["--repair"]);
    assert!(list(&repaired, "/repair/done").len() >= 3 && list(&repaired, "/repair/left").is_empty());
    assert_eq!(damage(&inspect(&appliance, &["--check"])), [] as [&str; 0]);
    expect_content(&appliance);
}

#[test]
fn damaged_data_is_told_by_volume_snapshot_and_offset() {
    let appliance = stopped();
    let (file, _) = open(&appliance);
    let (shared, of_snapshot) = (5, VOLUME_BYTES / BLOCK - 3);
    for number in [shared, of_snapshot] {
        let bytes = &content(1)[(number * BLOCK) as usize..][..BLOCK as usize];
        flip(&file, find(&file, bytes));
    }
    let told = inspect(&appliance, &["--check"]);
    assert_eq!(damage(&told), ["data_block"]);
    let messages: Vec<&str> = list(&told.json, "/check/problems")
        .iter()
        .map(|problem| member(problem, "/message").as_str().expect("a text"))
        .collect();
    for (number, who) in [(shared, "v@s, v ("), (of_snapshot, "v@s (")] {
        let offset = format!("offset {}, 4096 bytes", number * BLOCK);
        let found = messages.iter().find(|message| message.contains(&offset));
        assert!(
            found.is_some_and(|message| message.starts_with(who)),
            "{offset}: {messages:?}"
        );
    }
    assert_eq!(
        damage(&inspect(&appliance, &["--metadata-only"])),
        [] as [&str; 0]
    );
    let told = inspect(&appliance, &["--repair"]);
    assert_eq!(told.code, 1, "data is nowhere else");
    assert_eq!(list(&told.json, "/repair/left").len(), 2);
    assert!(list(&told.json, "/repair/done").is_empty(), "{:#}", told.json);
    appliance.start(&[]);
    let mut connection = appliance.connect("v");
    assert!(connection.read(shared * BLOCK, 4096).is_err(), "never wrong data");
    connection.read(of_snapshot * BLOCK, 4096).expect("written since");
}

#[test]
fn a_scrub_of_an_open_pool_finds_what_is_damaged() {
    let appliance = stopped();
    appliance.start(&["--processors", "2"]);
    let told = appliance.run(&["pool", "scrub", "p", "--rate", "1GiB/s", "--wait"]);
    assert_eq!(member(&told, "/scrub/state"), "done");
    assert_eq!(number(&told, "/scrub/damaged_blocks"), 0);
    assert!(
        number(&told, "/scrub/checked_bytes") >= VOLUME_BYTES * 3 / 2,
        "{told:#}"
    );
    appliance.run(&["pool", "scrub", "p", "--rate", "4KiB"]);
    let again = appliance.tell(&["pool", "scrub", "p"]);
    assert_eq!(again.code, 4, "{}", again.errors);
    let stopped = appliance.run(&["pool", "scrub", "p", "--stop"]);
    assert_eq!(member(&stopped, "/scrub/state"), "stopped");
    let (file, _) = open(&appliance);
    let (shared, of_snapshot) = (5, VOLUME_BYTES / BLOCK - 3);
    for number in [shared, of_snapshot] {
        let bytes = &content(1)[(number * BLOCK) as usize..][..BLOCK as usize];
        flip(&file, find(&file, bytes));
    }
    file.sync_all().expect("on the device");
    let told = appliance.tell(&["pool", "scrub", "p", "--rate", "1GiB", "--wait"]);
    assert_eq!(told.code, 1, "{}", told.errors);
    let shown = appliance.run(&["pool", "show", "p"]);
    assert_eq!(number(&shown, "/scrub/damaged_blocks"), 2);
    let damage = list(&shown, "/scrub/damage");
    for number in [shared, of_snapshot] {
        let words = format!("v@s (offset {}, 4096 bytes)", number * BLOCK);
        let named = damage
            .iter()
            .any(|line| line.as_str().is_some_and(|line| line.starts_with(&words)));
        assert!(named, "{words}: {damage:?}");
    }
    let log = std::fs::read_to_string(appliance.path("daemon.log")).expect("a log");
    assert_eq!(log.matches("scrub_damage: v@s (offset").count(), 2, "{log}");
    // A scrub that is running does not keep a pool from closing.
    appliance.run(&["pool", "scrub", "p", "--rate", "4KiB"]);
    appliance.run(&["pool", "close", "p"]);
}

#[test]
fn a_pool_that_is_open_is_left_alone() {
    let appliance = stopped();
    appliance.start(&[]);
    for arguments in [&["--check"][..], &["--repair"], &[]] {
        let told = inspect(&appliance, arguments);
        assert_eq!(told.code, 4, "{}", told.errors);
        assert!(
            told.errors.contains("in use") && told.errors.contains("pool close p"),
            "{}",
            told.errors
        );
    }
    appliance.stop();
    let info = clean(&appliance, &[]);
    assert_eq!(member(&info, "/pool"), "p");
    assert_eq!(member(&info, "/check"), &Value::Null);
    let volume = &list(&info, "/volumes")[0];
    assert_eq!(number(volume, "/mapped_bytes"), VOLUME_BYTES);
    assert_eq!(member(volume, "/snapshots/0"), "v@s");
    assert_eq!(inspect(&appliance, &["--accept-loss"]).code, 2);
    assert_eq!(appliance.tell(&["inspect", &appliance.path_text("none")]).code, 3);
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["inspect", "--check", "--tail-dir", "none"])
        .arg(appliance.path("p-0"))
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("check: clean") && text.contains("v@s"),
        "{text}"
    );
}
