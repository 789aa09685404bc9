//! A real file system through NBD: a snapshot of it stays what it was while the volume becomes something else,
//! and both outlive a `kill -9`.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use crate::support::Appliance;
use crate::support::foreign::must;

/// Real files, at least so much of them.
const TREE_BYTES: u64 = 210_000_000;
const IMAGE_BYTES: u64 = 384 << 20;
/// Where real files are on every machine.
const SOURCES: [&str; 4] = ["/usr/share", "/usr/lib", "/usr/bin", "/usr"];

/// Copies files from `from`, and what is below, until `left` bytes are copied.
fn copy_tree(from: &Path, to: &Path, left: &mut u64) {
    let Ok(entries) = fs::read_dir(from) else {
        return; // not ours to read
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if *left == 0 {
            return;
        }
        let Ok(kind) = entry.file_type() else { continue };
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            fs::create_dir(&target).expect("a new directory");
            copy_tree(&entry.path(), &target, left);
        } else if kind.is_file()
            && let Ok(count) = fs::copy(entry.path(), &target)
        {
            *left = left.saturating_sub(count);
        }
    }
}

fn make_tree(directory: &Path) {
    let mut left = TREE_BYTES;
    for (index, source) in SOURCES.into_iter().enumerate() {
        let part = directory.join(index.to_string());
        fs::create_dir_all(&part).expect("a new directory");
        copy_tree(Path::new(source), &part, &mut left);
    }
    assert_eq!(left, 0, "this machine has too few files");
}

/// Bytes that are in no file.
fn make_other(path: &Path) {
    let mut file = BufWriter::new(File::create(path).expect("a file"));
    let mut state = 0x1234_5678_9abc_def1_u64;
    for _ in 0..IMAGE_BYTES / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes()).expect("room");
    }
    file.flush().expect("room");
}

fn same(one: &Path, other: &Path) {
    let open = |path: &Path| BufReader::new(File::open(path).expect("a file"));
    let (mut one_file, mut other_file) = (open(one), open(other));
    let mut at = 0;
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    while at < IMAGE_BYTES {
        one_file.read_exact(&mut left).expect("as long as the image");
        other_file.read_exact(&mut right).expect("as long as the image");
        assert!(left == right, "{} differs after {at} bytes", one.display());
        at += left.len() as u64;
    }
}

/// V8: a volume that is written over from end to end leaves what its snapshot shows where it is.
#[test]
fn a_snapshot_of_a_file_system_outlives_overwriting_and_kill_9() {
    let appliance = Appliance::started(&["--processors", "2"]);
    let tree = appliance.path("tree");
    make_tree(&tree);
    let image = appliance.path("image");
    let other = appliance.path("other");
    let back = appliance.path("back");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let size = IMAGE_BYTES.to_string();
    must(
        "mkfs.ext4",
        &[
            "-q",
            "-F",
            "-d",
            &text(&tree),
            &text(&image),
            &format!("{}k", IMAGE_BYTES >> 10),
        ],
    );
    fs::remove_dir_all(&tree).expect("it was just made");
    make_other(&other);

    appliance.create_pool("tank", 2, "2GiB", &[]);
    appliance.run(&[
        "volume",
        "create",
        "disk",
        "--size",
        &size,
        "--object-size",
        "4MiB",
    ]);
    appliance.run(&["export", "create", "disk"]);
    let (disk, full) = (appliance.uri("disk"), appliance.uri("disk@full"));
    must("nbdcopy", &["--connections=4", &text(&image), &disk]);
    appliance.run(&["snapshot", "create", "disk@full"]);
    appliance.run(&["export", "create", "disk@full"]);
    must("nbdcopy", &["--connections=4", &text(&other), &disk]);

    let both_hold = || {
        must("nbdcopy", &["--connections=4", &full, &text(&back)]);
        same(&back, &image);
        must("fsck.ext4", &["-fn", &text(&back)]);
        must("nbdcopy", &["--connections=4", &disk, &text(&back)]);
        same(&back, &other);
    };
    both_hold();
    appliance.kill();
    appliance.start(&["--processors", "2"]);
    both_hold();
    // And with another number of processors, after an orderly end.
    appliance.stop();
    appliance.start(&["--processors", "3"]);
    both_hold();
    appliance.stop();
}
