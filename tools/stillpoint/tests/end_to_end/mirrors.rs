//! Pools with mirrors: a side that is damaged, missing, late, left behind, replaced. (Devices that are pulled out under load are the
//! emulated machine's.)

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::{Appliance, Told, list, member, number};
use serde_json::Value;
use stillpoint_ondisk::label::PoolLabel;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::log::LogPage;
use stillpoint_ondisk::record::Record;

const BLOCK: usize = 4096;
const VOLUME_BYTES: usize = 16 << 20;
const PROCESSORS: [&str; 2] = ["--processors", "2"];

/// Every block says which it is, and of which time.
fn content(time: u8) -> Vec<u8> {
    let block = |number: u64| {
        let mut bytes = vec![time; BLOCK];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    (0..(VOLUME_BYTES / BLOCK) as u64).flat_map(block).collect()
}

/// A pool of one device with two sides, `p-0` and `p-1`, and a volume `v` with content of time 1.
fn started() -> Appliance {
    started_on(2, "256MiB")
}

/// The same on so many sides of this size.
fn started_on(sides: usize, size: &str) -> Appliance {
    let appliance = Appliance::started(&PROCESSORS);
    appliance.create_pool("p", sides, size, &["--mirror"]);
    let size = format!("{}MiB", VOLUME_BYTES >> 20);
    appliance.run(&["volume", "create", "v", "--size", &size, "--object-size", "1MiB"]);
    appliance.run(&["export", "create", "v"]);
    write(&appliance, 0, &content(1));
    appliance
}

fn write(appliance: &Appliance, offset: usize, bytes: &[u8]) {
    let mut connection = appliance.connect("v");
    connection.write(offset as u64, bytes, true).expect("written");
}

fn read(appliance: &Appliance) -> Vec<u8> {
    appliance.connect("v").read_all().expect("read")
}

fn pool(appliance: &Appliance) -> Value {
    appliance.run(&["pool", "show", "p"])
}

fn states(pool: &Value) -> Vec<&str> {
    let sides = list(pool, "/sides").iter();
    sides
        .map(|side| member(side, "/state").as_str().expect("a word"))
        .collect()
}

fn is_in_sync(appliance: &Appliance) -> bool {
    states(&pool(appliance)) == ["in_sync", "in_sync"]
}

fn take_away(appliance: &Appliance, name: &str) {
    fs::rename(appliance.path(name), appliance.path(&format!("{name}.away"))).expect("renamed");
}

fn bring_back(appliance: &Appliance, name: &str) {
    fs::rename(appliance.path(&format!("{name}.away")), appliance.path(name)).expect("renamed");
}

/// What the volume holds if there is only this side.
#[track_caller]
fn expect_on(appliance: &Appliance, side: &str, other: &str, expected: &[u8]) {
    appliance.stop();
    take_away(appliance, other);
    appliance.start(&PROCESSORS);
    assert_eq!(member(&pool(appliance), "/state"), "degraded");
    assert!(read(appliance) == expected, "{side} alone");
    appliance.stop();
    bring_back(appliance, other);
}

#[test]
fn what_one_side_has_damaged_comes_from_the_other_and_is_written_back() {
    let appliance = started();
    let path = appliance.path("p-1");
    let file = File::options().read(true).write(true).open(path).expect("there");
    let wanted = content(1);
    let mut damaged = Vec::new();
    let mut bytes = vec![0; BLOCK];
    for block in 0..file.metadata().expect("there").len() / BLOCK as u64 {
        file.read_exact_at(&mut bytes, block * BLOCK as u64)
            .expect("read");
        let of_volume = wanted.chunks(BLOCK).any(|wanted| wanted == bytes);
        if of_volume && block % 3 == 0 {
            let place = block * BLOCK as u64;
            file.write_all_at(&[0xee; 16], place + 512).expect("damaged");
            damaged.push((place, bytes.clone()));
        }
    }
    assert!(damaged.len() > 1000, "{} blocks are damaged", damaged.len());
    assert!(
        read(&appliance) == wanted,
        "reads are right whichever side they ask"
    );
    // A scrub looks at both sides.
    appliance.run(&["pool", "scrub", "p", "--rate", "1GiB/s", "--wait"]);
    for (place, wanted) in damaged {
        file.read_exact_at(&mut bytes, place).expect("read");
        assert!(bytes == wanted, "the block at {place} was written back");
    }
    drop(file);
    expect_on(&appliance, "p-1", "p-0", &wanted);
}

#[test]
fn a_side_that_is_too_small_is_out_until_it_has_its_size() {
    let appliance = started();
    appliance.stop();
    let path = appliance.path("p-1");
    let file = File::options().read(true).write(true).open(path).expect("there");
    let whole = file.metadata().expect("there").len();
    let mut lost = vec![0; 64 << 20];
    let cut = whole - lost.len() as u64;
    file.read_exact_at(&mut lost, cut).expect("read");
    file.set_len(cut).expect("cut off");
    appliance.start(&PROCESSORS);
    let degraded = pool(&appliance);
    assert_eq!(member(&degraded, "/state"), "degraded");
    assert_eq!(states(&degraded), ["in_sync", "out"]);
    let remarks = list(&degraded, "/remarks").iter();
    let told = remarks
        .filter_map(Value::as_str)
        .find(|text| text.contains("p-1"));
    let told = told.unwrap_or_else(|| panic!("{degraded:#}"));
    assert!(
        told.contains(&cut.to_string()) && told.contains(&whole.to_string()),
        "{told}"
    );
    let mut expected = content(1);
    let quarter = VOLUME_BYTES / 4;
    expected[..quarter].copy_from_slice(&content(2)[..quarter]);
    write(&appliance, 0, &expected[..quarter]);
    assert!(read(&appliance) == expected);
    file.write_all_at(&lost, cut).expect("given back");
    appliance.wait_until("the side has its size and everything", || is_in_sync(&appliance));
    // The same while the pool is open, when nothing more comes.
    let mut before = Vec::new();
    while lost != before {
        before.clone_from(&lost);
        std::thread::sleep(std::time::Duration::from_millis(200));
        file.read_exact_at(&mut lost, cut).expect("read");
    }
    file.set_len(cut).expect("cut off");
    appliance.wait_until("the side is out", || {
        states(&pool(&appliance)) == ["in_sync", "out"]
    });
    expected[quarter..2 * quarter].copy_from_slice(&content(3)[quarter..2 * quarter]);
    write(&appliance, quarter, &expected[quarter..2 * quarter]);
    assert!(read(&appliance) == expected);
    file.write_all_at(&lost, cut).expect("given back");
    appliance.wait_until("the side is back", || is_in_sync(&appliance));
    expect_on(&appliance, "p-1", "p-0", &expected);
}

/// What is in a file when nothing more comes.
fn at_rest(file: &File) -> Vec<u8> {
    let read = || {
        let mut bytes = vec![0; file.metadata().expect("there").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    };
    let mut before = read();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = read();
        if now == before {
            return now;
        }
        before = now;
    }
}

#[test]
fn a_last_side_that_is_whole_again_comes_back_by_itself() {
    let appliance = started();
    let sides = ["p-0", "p-1"].map(|name| {
        let file = File::options().read(true).write(true).open(appliance.path(name));
        file.expect("there")
    });
    let whole = sides[0].metadata().expect("there").len();
    let mut expected = content(1);
    let state = || {
        member(&pool(&appliance), "/state")
            .as_str()
            .expect("a word")
            .to_owned()
    };
    let of_first = at_rest(&sides[0]);
    sides[0].set_len(whole / 2).expect("cut off");
    appliance.wait_until("the first side is out", || {
        states(&pool(&appliance)) == ["out", "in_sync"]
    });
    let quarter = VOLUME_BYTES / 4;
    expected[..quarter].copy_from_slice(&content(2)[..quarter]);
    write(&appliance, 0, &expected[..quarter]);
    // Cut off, then with nothing left, as what was taken out.
    for (left, word) in [(whole / 2, "device_shrunk"), (0, "device_lost")] {
        let of_last = at_rest(&sides[1]);
        sides[1].set_len(left).expect("cut off");
        appliance.wait_until(word, || state() == word);
        let error = member(&pool(&appliance), "/error").to_string();
        assert!(error.contains("p-1") && error.contains("by itself"), "{error}");
        let refused = appliance.connect("v").write(0, &content(9)[..BLOCK], true);
        refused.expect_err("neither side can have it");
        let cut_off = &of_last[left as usize..];
        sides[1].write_all_at(cut_off, left).expect("given back");
        appliance.wait_until("the pool is open again", || state() == "degraded");
        assert!(read(&appliance) == expected);
    }
    // The other one was not forgotten.
    sides[0].write_all_at(&of_first, 0).expect("given back");
    appliance.wait_until("both sides are there", || is_in_sync(&appliance));
    expect_on(&appliance, "p-0", "p-1", &expected);
}

/// No label could say it, as the last side was lost, and then the daemon was killed.
#[test]
fn a_side_that_lost_its_end_beside_the_lost_last_one_gets_everything_after_a_kill() {
    let appliance = started();
    appliance.stop();
    take_away(&appliance, "p-1");
    appliance.start(&PROCESSORS);
    assert_eq!(states(&pool(&appliance)), ["in_sync", "out"]);
    let quarter = VOLUME_BYTES / 4;
    let mut expected = content(1);
    expected[..quarter].copy_from_slice(&content(2)[..quarter]);
    write(&appliance, 0, &expected[..quarter]);
    let [first, second] = ["p-0", "p-1.away"].map(|name| {
        let file = File::options().read(true).write(true).open(appliance.path(name));
        file.expect("there")
    });
    let of_first = at_rest(&first);
    let whole = of_first.len() as u64;
    first.set_len(0).expect("cut off");
    appliance.wait_until("the last side is lost", || {
        member(&pool(&appliance), "/state") == "device_lost"
    });
    second.set_len(whole / 2).expect("cut off");
    bring_back(&appliance, "p-1");
    let noted = appliance.path("state").join("cut-off.json");
    appliance.wait_until("it is noted", || noted.exists());
    appliance.kill();
    // Nothing is where its end was.
    second.set_len(whole).expect("as large as before");
    first.write_all_at(&of_first, 0).expect("given back");
    appliance.start(&PROCESSORS);
    appliance.run(&["pool", "resync", "p", "--rate", "0", "--wait"]);
    assert!(is_in_sync(&appliance));
    let copied = number(&pool(&appliance), "/sides/1/copied_bytes");
    assert!(copied > 250 << 20, "{copied} bytes: it lacked everything");
    expect_on(&appliance, "p-1", "p-0", &expected);
}

#[test]
fn a_side_that_was_missing_gets_what_it_lacks_when_it_is_back() {
    let appliance = started();
    appliance.stop();
    take_away(&appliance, "p-1");
    appliance.start(&PROCESSORS);
    let degraded = pool(&appliance);
    assert_eq!(member(&degraded, "/state"), "degraded");
    assert_eq!(states(&degraded), ["in_sync", "out"]);
    let mut expected = content(1);
    let quarter = VOLUME_BYTES / 4;
    expected[..quarter].copy_from_slice(&content(2)[..quarter]);
    write(&appliance, 0, &expected[..quarter]);
    appliance.run(&["snapshot", "create", "v@s", "--hold-limit", "2s"]);
    appliance.kill();
    appliance.start(&PROCESSORS);
    let half = VOLUME_BYTES / 2;
    expected[half..half + quarter].copy_from_slice(&content(3)[half..half + quarter]);
    write(&appliance, half, &expected[half..half + quarter]);
    bring_back(&appliance, "p-1");
    appliance.wait_until("the side is back and has everything", || is_in_sync(&appliance));
    let copied = number(&pool(&appliance), "/sides/1/copied_bytes");
    // What was written, and the logs: not the 256 MiB of the device.
    assert!((1..96 << 20).contains(&copied), "{copied} bytes were copied");
    assert!(read(&appliance) == expected);
    expect_on(&appliance, "p-1", "p-0", &expected);
    // Each was without the other in turn, and has it again.
    appliance.start(&PROCESSORS);
    appliance.wait_until("the other side is back", || is_in_sync(&appliance));
    expect_on(&appliance, "p-0", "p-1", &expected);
}

#[test]
fn a_side_that_is_missing_after_a_crash_gets_what_it_may_lack() {
    let appliance = started();
    let mut expected = content(1);
    let quarter = VOLUME_BYTES / 4;
    expected[..quarter].copy_from_slice(&content(2)[..quarter]);
    let mut connection = appliance.connect("v");
    connection.write(0, &expected[..quarter], false).expect("written");
    appliance.kill();
    drop(connection);
    // What the other side did not do of it in time.
    take_away(&appliance, "p-1");
    appliance.start(&PROCESSORS);
    assert_eq!(states(&pool(&appliance)), ["in_sync", "out"]);
    assert!(read(&appliance) == expected);
    bring_back(&appliance, "p-1");
    appliance.wait_until("the side is back and has everything", || is_in_sync(&appliance));
    let copied = number(&pool(&appliance), "/sides/1/copied_bytes");
    assert!((1..96 << 20).contains(&copied), "{copied} bytes were copied");
    expect_on(&appliance, "p-1", "p-0", &expected);
}

#[test]
fn what_was_left_behind_is_not_taken_for_the_pool() {
    let appliance = started();
    appliance.stop();
    take_away(&appliance, "p-1");
    appliance.start(&PROCESSORS);
    write(&appliance, 0, &content(2));
    appliance.stop();
    // Now only the side is there that missed it.
    take_away(&appliance, "p-0");
    bring_back(&appliance, "p-1");
    appliance.start(&PROCESSORS);
    let failed = pool(&appliance);
    assert_eq!(member(&failed, "/state"), "failed");
    let error = member(&failed, "/error").as_str().expect("a text");
    assert!(
        error.contains("was used without the sides that are there"),
        "{error}"
    );
    // By hand it opens, as it was, and is another pool from then on.
    appliance.run(&["pool", "close", "p"]);
    let path = appliance.path_text("p-1");
    let told = appliance.tell(&["pool", "open", &path]);
    assert_eq!(told.code, 1, "{}", told.errors);
    assert!(told.errors.contains("--degraded"), "{}", told.errors);
    appliance.run(&["pool", "open", &path, "--degraded"]);
    assert!(read(&appliance) == content(1));
    write(&appliance, 0, &content(3)[..BLOCK]);
    bring_back(&appliance, "p-0");
    appliance.stop();
    appliance.start(&PROCESSORS);
    let told = appliance.tell(&["pool", "open", &path, &appliance.path_text("p-0")]);
    assert_ne!(told.code, 0);
    let all = format!("{}{}", told.errors, pool(&appliance));
    assert!(
        all.contains("without each other") || all.contains("open already"),
        "{all}"
    );
}

/// What a crash may leave: this side alone has the next label, in which the second side of the second device is out.
fn write_label_before_a_crash(path: &Path) {
    let file = File::options().read(true).write(true).open(path).expect("there");
    let mut page = [0; BLOCK];
    file.read_exact_at(&mut page, 0).expect("read");
    let mut label = PoolLabel::parse(&page).expect("a label");
    let layout = Layout::of(&label).expect("a layout");
    label.sequence += 1;
    label.mirrors[1].out_since[1] = label.sequence;
    let device = usize::from(label.device_index.get());
    let page = label.page_for(device, usize::from(label.side.get()));
    for block in [0, layout.label_copy_block(device)] {
        file.write_all_at(&page, block * BLOCK as u64).expect("written");
    }
}

#[test]
fn a_side_that_got_one_label_more_before_a_crash_is_taken_back() {
    let appliance = started_on(4, "128MiB");
    let mut expected = content(1);
    let quarter = VOLUME_BYTES / 4;
    for (time, while_open) in [(2, true), (3, false)] {
        appliance.stop();
        write_label_before_a_crash(&appliance.path("p-0"));
        // It is missing at the next start, and the others know nothing of that label.
        take_away(&appliance, "p-0");
        appliance.start(&PROCESSORS);
        assert_eq!(
            states(&pool(&appliance)),
            ["out", "in_sync", "in_sync", "in_sync"]
        );
        let of_time = &content(time)[..quarter];
        expected[..quarter].copy_from_slice(of_time);
        write(&appliance, 0, of_time);
        if while_open {
            bring_back(&appliance, "p-0");
        } else {
            appliance.stop();
            bring_back(&appliance, "p-0");
            appliance.start(&PROCESSORS);
        }
        appliance.wait_until("the side is back and has everything", || {
            states(&pool(&appliance)) == ["in_sync"; 4]
        });
    }
    expect_on(&appliance, "p-0", "p-1", &expected);
}

#[test]
fn another_device_takes_the_place_of_a_side_while_clients_write() {
    let appliance = started();
    let new = appliance.path_text("new");
    appliance.run(&["pool", "resync", "p", "--rate", "32MiB/s"]);
    appliance.run(&["pool", "replace", "p", &appliance.path_text("p-0"), &new]);
    assert_eq!(states(&pool(&appliance)), ["resync", "in_sync"]);
    let mut expected = content(1);
    let mut connection = appliance.connect("v");
    for (number, block) in content(4).chunks(BLOCK).enumerate().step_by(7) {
        let at = number * BLOCK;
        connection.write(at as u64, block, false).expect("written");
        expected[at..at + BLOCK].copy_from_slice(block);
    }
    connection.flush().expect("flushed");
    drop(connection);
    assert_eq!(
        states(&pool(&appliance)),
        ["resync", "in_sync"],
        "256 MiB take a while at this rate"
    );
    appliance.kill();
    appliance.start(&PROCESSORS);
    appliance.run(&["pool", "resync", "p", "--rate", "0", "--wait"]);
    assert!(is_in_sync(&appliance));
    assert!(read(&appliance) == expected);
    let old = appliance.tell(&["pool", "replace", "p", "0.1", &appliance.path_text("p-0")]);
    assert_ne!(old.code, 0, "the old side still holds a label");
    expect_on(&appliance, "new", "p-1", &expected);
}

#[test]
fn a_replacement_goes_on_where_it_was_after_a_restart() {
    const MIB: u64 = 1 << 20;
    let appliance = started();
    let copied = || number(&pool(&appliance), "/sides/1/copied_bytes");
    appliance.run(&["pool", "resync", "p", "--rate", "64MiB/s"]);
    let new = appliance.path_text("new");
    appliance.run(&["pool", "replace", "p", &appliance.path_text("p-1"), &new]);
    appliance.wait_until("most of it is copied", || copied() > 160 * MIB);
    appliance.kill();
    appliance.start(&PROCESSORS);
    appliance.run(&["pool", "resync", "p", "--rate", "0", "--wait"]);
    assert!(is_in_sync(&appliance));
    let again = copied();
    // Each of two processors notes how far it is every 16 MiB.
    assert!(
        (1..160 * MIB).contains(&again),
        "{again} bytes were copied after the restart"
    );
    expect_on(&appliance, "new", "p-0", &content(1));
}

/// What is damaged, by side; and what the notes of the first look, or of the repair, say.
fn problems(told: &Told, list_of: &str) -> Vec<String> {
    let messages = list(&told.json, list_of).iter();
    messages
        .map(|problem| member(problem, "/message").as_str().expect("a text").to_owned())
        .collect()
}

#[test]
fn inspect_looks_at_each_side_and_mends_what_both_have_damaged() {
    let appliance = started();
    appliance.stop();
    let tails = appliance.tail_directory();
    let sides = [appliance.path_text("p-0"), appliance.path_text("p-1")];
    let inspect = |how: &str| appliance.tell(&["inspect", &sides[0], &sides[1], "--tail-dir", &tails, how]);
    let clean = inspect("--check");
    assert_eq!(clean.code, 0, "{}: {:#}", clean.errors, clean.json);
    // The second header copy of shard 0 on both, and a block of data on the second.
    let files = sides.clone().map(|path| {
        let file = File::options().read(true).write(true).open(path);
        file.expect("there")
    });
    for file in &files {
        file.write_all_at(&[0xee; 16], (1 << 20) + BLOCK as u64 + 64)
            .expect("damaged");
    }
    let wanted = &content(1)[5 * BLOCK..6 * BLOCK];
    let mut bytes = vec![0; BLOCK];
    let blocks = files[1].metadata().expect("there").len() / BLOCK as u64;
    let place = (0..blocks).map(|block| block * BLOCK as u64).find(|place| {
        files[1].read_exact_at(&mut bytes, *place).expect("read");
        bytes == wanted
    });
    let place = place.expect("it is somewhere");
    files[1].write_all_at(&[0xee; 16], place).expect("damaged");
    let told = inspect("--check");
    assert_eq!(told.code, 1, "{}: {:#}", told.errors, told.json);
    let found = problems(&told, "/check/problems");
    let of_side = |side: &str| found.iter().filter(|message| message.starts_with(side)).count();
    assert_eq!(
        (of_side("first side: "), of_side("second side: ")),
        (1, 2),
        "{found:?}"
    );
    let notes = list(&told.json, "/notes").iter().map(ToString::to_string);
    assert!(
        notes
            .into_iter()
            .any(|note| note.contains("stillpoint pool scrub p --wait")),
        "{:#}",
        told.json
    );
    // Of a shard whose sides are damaged in different ways nothing is written.
    files[1].write_all_at(wanted, place).expect("as it was");
    let told = inspect("--repair");
    assert_eq!(told.code, 0, "{}: {:#}", told.errors, told.json);
    assert_eq!(list(&told.json, "/repair/done").len(), 1, "{:#}", told.json);
    files[1].write_all_at(&[0xee; 16], place).expect("damaged");
    let told = inspect("--repair");
    assert_eq!(
        (told.code, list(&told.json, "/repair/done").len()),
        (1, 0),
        "{:#}",
        told.json
    );
    assert_eq!(problems(&told, "/repair/left").len(), 1);
    // The other way out, as it was told.
    appliance.start(&PROCESSORS);
    appliance.run(&["pool", "scrub", "p", "--rate", "1GiB/s", "--wait"]);
    appliance.stop();
    let clean = inspect("--check");
    assert_eq!(clean.code, 0, "{}: {:#}", clean.errors, clean.json);
}

/// Takes from a side the log pages of shard 0 that came after the one with its part of the newest snapshot, as a power cut does to
/// what was not flushed: with them the commit record is lost.
fn forget_the_commit_record(path: &Path) {
    let file = File::options().read(true).write(true).open(path).expect("there");
    let mut page = [0; BLOCK];
    file.read_exact_at(&mut page, 0).expect("read");
    let label = PoolLabel::parse(&page).expect("a label");
    let layout = Layout::of(&label).expect("a layout");
    let start = layout.log_start_block(0);
    let (mut pages, mut cut) = (Vec::new(), None);
    for block in start..start + u64::from(layout.log_pages) {
        file.read_exact_at(&mut page, block * BLOCK as u64).expect("read");
        let Some(log) = LogPage::any(&page, layout.pool, 0) else {
            continue;
        };
        let mut rest = &log.payload[..usize::from(log.used_bytes.get())];
        while let Some((_, record, length)) = Record::decode(rest) {
            if matches!(record, Record::Cut { .. }) {
                cut = cut.max(Some(log.sequence.get()));
            }
            rest = &rest[length..];
        }
        pages.push((log.sequence.get(), block));
    }
    let cut = cut.expect("a snapshot was cut");
    pages.retain(|(sequence, _)| *sequence > cut);
    assert!(!pages.is_empty(), "the commit record has a page of its own");
    for (_, block) in pages {
        file.write_all_at(&[0; BLOCK], block * BLOCK as u64)
            .expect("forgotten");
    }
}

#[test]
fn a_repair_goes_by_the_side_that_has_the_commit_record() {
    for lacks in ["p-0", "p-1"] {
        let appliance = started();
        appliance.run(&["snapshot", "create", "v@kept", "--hold-limit", "2s"]);
        appliance.kill();
        appliance.lose_tails();
        forget_the_commit_record(&appliance.path(lacks));
        let sides = ["p-0", "p-1"].map(|name| appliance.path_text(name));
        let told = appliance.tell(&["inspect", &sides[0], &sides[1], "--tail-dir", "none", "--repair"]);
        assert_eq!(told.code, 0, "{}: {:#}", told.errors, told.json);
        let done = list(&told.json, "/repair/done");
        assert!(done.is_empty(), "{done:?}");
        appliance.start(&PROCESSORS);
        let shown = appliance.run(&["snapshot", "show", "v@kept"]);
        assert_eq!(member(&shown, "/name"), "v@kept");
        assert!(read(&appliance) == content(1));
    }
}

#[test]
fn a_repair_without_a_side_is_refused_unless_it_is_wanted() {
    let appliance = started();
    appliance.stop();
    let sides = ["p-0", "p-1"].map(|name| appliance.path_text(name));
    let inspect = |paths: &[&str], how: &[&str]| {
        appliance.tell(&[&["inspect"], paths, &["--tail-dir", "none"], how].concat())
    };
    // Looking at one side is no harm, and says that it is one.
    let told = inspect(&[&sides[1]], &["--check"]);
    assert_eq!(told.code, 0, "{}: {:#}", told.errors, told.json);
    let notes = list(&told.json, "/notes").iter().map(ToString::to_string);
    assert!(
        notes
            .into_iter()
            .any(|note| note.contains("not there, and was not looked at")),
        "{:#}",
        told.json
    );
    let told = inspect(&[&sides[1]], &["--repair"]);
    assert_eq!(told.code, 4, "{}", told.errors);
    for words in ["device 0, first side is not among the devices", "--degraded"] {
        assert!(told.errors.contains(words), "{}", told.errors);
    }
    let told = inspect(&[&sides[1]], &["--repair", "--degraded"]);
    assert_eq!(told.code, 0, "{}: {:#}", told.errors, told.json);
    let whole = inspect(&[&sides[0], &sides[1]], &["--repair"]);
    assert_eq!(
        whole.code, 0,
        "there was nothing to mend, so nothing was written: {}",
        whole.errors
    );
    // The second header copy of shard 0.
    let file = File::options()
        .read(true)
        .write(true)
        .open(&sides[1])
        .expect("there");
    file.write_all_at(&[0xee; 16], (1 << 20) + BLOCK as u64 + 64)
        .expect("damaged");
    drop(file);
    let told = inspect(&[&sides[1]], &["--repair", "--degraded"]);
    assert_eq!(told.code, 0, "{}: {:#}", told.errors, told.json);
    assert_eq!(list(&told.json, "/repair/done").len(), 1, "{:#}", told.json);
    let told = inspect(&[&sides[0], &sides[1]], &["--repair"]);
    assert_eq!(told.code, 4, "{}", told.errors);
    assert!(
        told.errors.contains("device 0, first side is out"),
        "{}",
        told.errors
    );
    appliance.start(&PROCESSORS);
    appliance.run(&["pool", "resync", "p", "--rate", "0", "--wait"]);
    assert!(is_in_sync(&appliance));
    let copied = number(&pool(&appliance), "/sides/0/copied_bytes");
    assert!(copied > 250 << 20, "{copied} bytes: it lacked everything");
    expect_on(&appliance, "p-0", "p-1", &content(1));
}

/// Damages the second header copy of shard 0.
fn damage_header(appliance: &Appliance, name: &str) {
    let file = File::options().write(true).open(appliance.path(name));
    file.expect("there")
        .write_all_at(&[0xee; 16], (1 << 20) + BLOCK as u64 + 64)
        .expect("damaged");
}

/// Repairs what is on this side alone, and tells the daemon.
fn repair_alone(appliance: &Appliance, name: &str, how: &[&str]) -> Told {
    let (side, tails, state) = (
        appliance.path_text(name),
        appliance.tail_directory(),
        appliance.path_text("state"),
    );
    let common = [
        "--tail-dir",
        &tails,
        "--state-dir",
        &state,
        "--repair",
        "--degraded",
    ];
    appliance.tell(&[&["inspect", &side], &common[..], how].concat())
}

/// Were the other side opened alone after it, that and the repaired one would have been used without each other.
#[test]
fn what_a_repair_without_a_side_changed_is_known_to_the_daemon() {
    let appliance = started();
    appliance.stop();
    damage_header(&appliance, "p-1");
    let told = repair_alone(&appliance, "p-1", &[]);
    assert_eq!(told.code, 0, "{}: {:#}", told.errors, told.json);
    assert_eq!(list(&told.json, "/repair/done").len(), 1, "{:#}", told.json);
    take_away(&appliance, "p-1");
    appliance.start(&PROCESSORS);
    let failed = pool(&appliance);
    assert_eq!(member(&failed, "/state"), "failed");
    let error = member(&failed, "/error").to_string();
    assert!(
        error.contains("was used without the sides that are there"),
        "{error}"
    );
    bring_back(&appliance, "p-1");
    appliance.wait_until("the pool is open, with both sides in sync", || {
        let pool = pool(&appliance);
        member(&pool, "/state") == "open" && states(&pool) == ["in_sync", "in_sync"]
    });
    expect_on(&appliance, "p-0", "p-1", &content(1));
    appliance.start(&PROCESSORS);
    appliance.wait_until("the other side is back", || is_in_sync(&appliance));
    expect_on(&appliance, "p-1", "p-0", &content(1));
}

/// Its labels would be as new as those of the side that has what was written last.
#[test]
fn a_side_that_missed_what_was_written_last_is_not_repaired_alone_by_mistake() {
    let appliance = started();
    appliance.stop();
    take_away(&appliance, "p-1");
    appliance.start(&PROCESSORS);
    write(&appliance, 0, &content(2));
    appliance.stop();
    bring_back(&appliance, "p-1");
    damage_header(&appliance, "p-1");
    let told = repair_alone(&appliance, "p-1", &[]);
    assert_eq!(told.code, 1, "{}: {:#}", told.errors, told.json);
    for words in [
        "was used without the sides that were named",
        "device 0, first side",
        "--accept-loss",
    ] {
        assert!(told.errors.contains(words), "{}", told.errors);
    }
    // Nothing was changed: the other one has everything, and takes it back.
    appliance.start(&PROCESSORS);
    appliance.run(&["pool", "resync", "p", "--rate", "0", "--wait"]);
    assert!(is_in_sync(&appliance));
    expect_on(&appliance, "p-1", "p-0", &content(2));
    appliance.start(&PROCESSORS);
    appliance.wait_until("the other side is back", || is_in_sync(&appliance));
    appliance.stop();
    // Whoever gives up what was written since has a pool that opens.
    take_away(&appliance, "p-1");
    appliance.start(&PROCESSORS);
    write(&appliance, 0, &content(3));
    appliance.stop();
    take_away(&appliance, "p-0");
    bring_back(&appliance, "p-1");
    damage_header(&appliance, "p-1");
    let told = repair_alone(&appliance, "p-1", &["--accept-loss"]);
    assert_eq!(told.code, 0, "{}: {:#}", told.errors, told.json);
    appliance.start(&PROCESSORS);
    assert_eq!(member(&pool(&appliance), "/state"), "degraded");
    assert!(read(&appliance) == content(2));
}

#[test]
fn mirrors_that_cannot_be_are_refused() {
    let appliance = Appliance::started(&PROCESSORS);
    let paths: Vec<String> = (0..3).map(|n| appliance.path_text(&format!("d{n}"))).collect();
    let create = ["pool", "create", "p", &paths[0], &paths[1], &paths[2]];
    let told = appliance.tell(&[&create[..], &["--size", "256MiB", "--mirror"]].concat());
    assert_eq!(told.code, 2, "{}", told.errors);
    assert!(told.errors.contains("pairs"), "{}", told.errors);
    assert!(paths.iter().all(|path| !fs::exists(path).expect("can be asked")));
    appliance.create_pool("p", 1, "256MiB", &[]);
    let told = appliance.tell(&["pool", "replace", "p", "0.0", &paths[0]]);
    assert_eq!(told.code, 2, "{}", told.errors);
    assert!(told.errors.contains("has no mirrors"), "{}", told.errors);
}
