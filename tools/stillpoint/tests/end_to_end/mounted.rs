//! ext4, xfs and btrfs on a volume, through nbdfuse and a loop device: files are written and removed, free space is given
//! back with fstrim, the process is killed; the file systems and the snapshots of them stay clean and whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::support::foreign::must;
use crate::support::mounts::{Exported, FILE_SYSTEM_BYTES, Kind, Loop, contained};
use crate::support::{Appliance, number};
use stillpoint_simulator::random::Random;

const MIB: u64 = 1 << 20;
const FILES: u64 = 160;
const FILE_BYTES_MAX: u64 = 512 << 10;

type Files = BTreeMap<String, Vec<u8>>;

fn random_files(random: &mut Random, prefix: &str) -> Files {
    let file = |index| {
        let mut bytes = Vec::new();
        for _ in 0..random.below(FILE_BYTES_MAX) / 8 {
            bytes.extend(random.bits().to_le_bytes());
        }
        (format!("{prefix}-{index}"), bytes)
    };
    (0..FILES).map(file).collect()
}

fn write(files: &Files, directory: &Path) {
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).expect("room");
    }
}

fn same(files: &Files, directory: &Path) {
    for (name, bytes) in files {
        let found = fs::read(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(found == *bytes, "{name} has another content");
    }
    let there = fs::read_dir(directory).expect("mounted").flatten();
    let there = there.filter(|entry| entry.file_name() != "lost+found").count();
    assert_eq!(there, files.len(), "files that nobody wrote");
}

fn ok<T>(result: Result<T, String>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn mapped_bytes(appliance: &Appliance, volume: &str) -> u64 {
    number(&appliance.run(&["volume", "show", volume]), "/mapped_bytes")
}

/// Has the file system give back what is free until so few bytes are mapped. Some (xfs) free a removed file's space some time
/// after the file is gone, whatever is synced.
fn trim(appliance: &Appliance, volume: &str, directory: &Path, few: u64) -> u64 {
    let path = directory.to_str().expect("UTF-8");
    let mut tries = 0;
    loop {
        must("sync", &["--file-system", path]);
        must("fstrim", &["--verbose", path]);
        let mapped = mapped_bytes(appliance, volume);
        if mapped < few {
            return mapped;
        }
        tries += 1;
        assert!(
            tries < 100,
            "{volume}: {mapped} bytes are still mapped after fstrim"
        );
        thread::sleep(Duration::from_millis(100));
    }
}

fn live_on(kind: Kind, appliance: &Appliance, random: &mut Random) {
    let (name, full) = (kind.name, format!("{}@full", kind.name));
    let root = appliance.path("root");
    let exported = Exported::new(appliance, name);
    kind.make(exported.device());
    let mounted = ok(kind.mount(exported.device(), &root));
    let first = random_files(random, "first");
    write(&first, &root);
    must("sync", &["--file-system", root.to_str().expect("UTF-8")]);
    let before = mapped_bytes(appliance, name);
    appliance.run(&["snapshot", "create", &full]);

    for name in first.keys() {
        fs::remove_file(root.join(name)).expect("removed");
    }
    assert!(before > 20 * MIB, "{name}: {before} bytes are mapped");
    let after = trim(appliance, name, mounted.directory(), before / 4);
    let second = random_files(random, "second");
    write(&second, &root);
    ok(mounted.unmount());
    ok(kind.check(exported.device()));
    drop(exported);

    appliance.kill();
    appliance.start(&["--processors", "2"]);
    let exported = Exported::new(appliance, name);
    let mounted = ok(kind.mount(exported.device(), &root));
    same(&second, &root);
    ok(mounted.unmount());
    ok(kind.check(exported.device()));
    drop(exported);

    // A copy of the snapshot, since a file system writes when it is mounted.
    appliance.run(&["export", "create", &full]);
    let image = appliance.path_text("image");
    must("nbdcopy", &[&appliance.uri(&full), &image]);
    let copy = Loop::attach(Path::new(&image));
    let mounted = ok(kind.mount(copy.device(), &root));
    same(&first, &root);
    ok(mounted.unmount());
    ok(kind.check(copy.device()));
    drop(copy);
    fs::remove_file(image).expect("a file of ours");
    eprintln!("{name}: clean; fstrim brought {before} mapped bytes down to {after}");
}

#[test]
fn file_systems_and_their_snapshots_survive_fstrim_and_kill_9() {
    contained(
        "mounted::file_systems_and_their_snapshots_survive_fstrim_and_kill_9",
        || {
            let appliance = Appliance::started(&["--processors", "2"]);
            appliance.create_pool("p", 2, "1GiB", &["--shards", "3"]);
            let mut random = Random::new(9);
            for kind in Kind::all_here() {
                let size = FILE_SYSTEM_BYTES.to_string();
                let shape = ["--block-size", "512", "--object-size", "4MiB"];
                appliance.run(&[&["volume", "create", kind.name, "--size", &size], &shape[..]].concat());
                appliance.run(&["export", "create", kind.name]);
                live_on(kind, &appliance, &mut random);
            }
            appliance.stop();
        },
    );
}
