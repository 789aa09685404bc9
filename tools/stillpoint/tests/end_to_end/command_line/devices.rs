//! The block devices of the machine, and what keeps a pool from being made on one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{names, refused};
use crate::support::block::{FileSystem, Loop, why_not};
use crate::support::foreign::{must, run};
use crate::support::{Appliance, list, member, number};
use serde_json::json;

const SIZE_BYTES: u64 = 128 << 20;

/// Whether this machine has loop devices; says why if not.
fn possible(test: &str) -> bool {
    let reason = why_not();
    if let Some(reason) = &reason {
        eprintln!("SKIPPED {test}: {reason}");
    }
    reason.is_none()
}

fn sparse(path: &Path) -> File {
    let file = File::create_new(path).expect("a new file");
    file.set_len(SIZE_BYTES).expect("a sparse file");
    file
}

fn name(device: &Loop) -> &str {
    device.path().strip_prefix("/dev/").expect("a device")
}

#[test]
fn devices_are_listed_with_and_without_a_daemon() {
    if !possible("devices_are_listed_with_and_without_a_daemon") {
        return;
    }
    let appliance = Appliance::new();
    sparse(&appliance.path("disk"));
    let device = Loop::over(&appliance.path("disk"), false);
    for with_a_daemon in [false, true] {
        if with_a_daemon {
            appliance.start(&[]);
        }
        let devices = appliance.run(&["device", "list"]);
        assert!(names(&devices).contains(&name(&device)), "{devices:#}");
        for named in [name(&device), device.path()] {
            let shown = appliance.run(&["device", "show", named]);
            assert_eq!(number(&shown, "/size_bytes"), SIZE_BYTES);
            assert_eq!(number(&shown, "/logical_block_bytes"), 512);
            assert_eq!(member(&shown, "/path"), device.path());
            assert_eq!(member(&shown, "/nvme"), &json!(null));
            assert_eq!(list(&shown, "/used_by").len(), 0);
            assert_eq!(member(&shown, "/content"), &json!(null));
        }
        refused(
            &appliance.tell(&["device", "show", "loop9999"]),
            3,
            "no block device",
        );
        refused(
            &appliance.tell(&["device", "show", "/dev/loop9999"]),
            3,
            "/dev/loop9999",
        );
    }
    appliance.run(&["pool", "create", "p", device.path()]);
    let shown = appliance.run(&["device", "show", name(&device)]);
    assert_eq!(list(&shown, "/used_by"), [json!({"kind": "pool", "name": "p"})]);
    assert_eq!(member(&shown, "/content"), "pool p");
    appliance.stop();
    let shown = appliance.run(&["device", "show", name(&device)]);
    assert_eq!(list(&shown, "/used_by").len(), 0, "nobody has it now");
    assert_eq!(member(&shown, "/content"), "pool p");
}

#[test]
fn a_device_says_by_which_links_pools_name_it() {
    if !possible("a_device_says_by_which_links_pools_name_it") {
        return;
    }
    let appliance = Appliance::started(&[]);
    sparse(&appliance.path("disk"));
    let device = Loop::over(&appliance.path("disk"), false);
    let link = appliance.path_text("by-id");
    std::os::unix::fs::symlink(device.path(), &link).expect("a link");
    appliance.run(&["pool", "create", "p", &link]);
    let pool = appliance.run(&["pool", "show", "p"]);
    assert_eq!(member(&pool, "/devices/0/path"), link.as_str());
    let shown = appliance.run(&["device", "show", name(&device)]);
    assert_eq!(member(&shown, "/path"), device.path());
    assert_eq!(list(&shown, "/pool_paths"), [json!(link)]);
    let devices = appliance.run(&["device", "list"]);
    let rows = list(&devices, "").iter();
    let found = rows.filter(|row| list(row, "/pool_paths").contains(&json!(link)));
    assert_eq!(found.count(), 1, "{devices:#}");
    appliance.run(&["pool", "close", "p"]);
    let shown = appliance.run(&["device", "show", name(&device)]);
    assert_eq!(list(&shown, "/pool_paths").len(), 0, "no pool has it");
}

#[test]
fn what_holds_something_is_refused_unless_force_names_it() {
    let appliance = Appliance::started(&[]);
    let path = appliance.path_text("disk");
    for (program, arguments, words) in [
        ("mkfs.btrfs", vec!["-q"], "holds a Btrfs file system"),
        (
            "mkfs.ext4",
            vec!["-q", "-F"],
            "holds an ext2, ext3 or ext4 file system",
        ),
        ("mkfs.xfs", vec!["-q", "-f"], "holds an XFS file system"),
    ] {
        // A new file for each, as large as XFS wants it.
        if appliance.path("disk").exists() {
            std::fs::remove_file(appliance.path("disk")).expect("there");
        }
        sparse(&appliance.path("disk")).set_len(512 << 20).expect("grown");
        must(program, &[&arguments[..], &[&path]].concat());
        refused(&appliance.tell(&["pool", "create", "p", &path]), 4, words);
    }
    let other = appliance.path_text("other");
    refused(
        &appliance.tell(&["pool", "create", "p", &path, "--force", &other]),
        2,
        "is none of the devices",
    );
    // Naming one does not free the others.
    must("cp", &["--sparse=always", &path, &other]);
    refused(
        &appliance.tell(&["pool", "create", "p", &path, &other, "--force", &path]),
        4,
        &format!("{other} holds"),
    );
    appliance.run(&["pool", "create", "p", &path, "--force", &path]);
    appliance.run(&["pool", "close", "p"]);
    // Nothing is left of what was there: neither we nor others take it for two things.
    let found = must("wipefs", &["--no-act", &path]);
    assert_eq!(found.trim(), "", "marks of others");
    refused(
        &appliance.tell(&["pool", "create", "q", &path]),
        4,
        "belongs to pool p",
    );
}

#[test]
fn what_is_mounted_is_refused_even_by_force() {
    if !possible("what_is_mounted_is_refused_even_by_force") {
        return;
    }
    let appliance = Appliance::started(&[]);
    let mounted = FileSystem::make(&appliance.path("image"), &appliance.path("mounted"), SIZE_BYTES);
    let found = must(
        "findmnt",
        &["-n", "-o", "SOURCE", mounted.path.to_str().expect("UTF-8")],
    );
    let device = found.trim();
    let words = format!("{device} is in use: mounted at {}", mounted.path.display());
    refused(&appliance.tell(&["pool", "create", "p", device]), 4, &words);
    refused(
        &appliance.tell(&["pool", "create", "p", device, "--force", device]),
        4,
        &words,
    );
    let shown = appliance.run(&["device", "show", device]);
    assert_eq!(member(&shown, "/used_by/0/kind"), "mount");
    assert_eq!(
        member(&shown, "/used_by/0/name"),
        mounted.path.to_str().expect("UTF-8")
    );
}

#[test]
fn what_has_partitions_is_refused_and_they_go_with_force() {
    if !possible("what_has_partitions_is_refused_and_they_go_with_force") {
        return;
    }
    let appliance = Appliance::started(&[]);
    let file = sparse(&appliance.path("disk"));
    // One partition of Linux from sector 2048 on.
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..16].copy_from_slice(&65536u32.to_le_bytes());
    file.write_all_at(&entry, 446).expect("written");
    file.write_all_at(&[0x55, 0xaa], 510).expect("written");
    let old = (SIZE_BYTES - (64 << 10), [0xee; 8192]);
    file.write_all_at(&old.1, old.0).expect("written");
    let path = appliance.path_text("disk");
    let found = must("losetup", &["--find", "--show", "--partscan", &path]);
    let device = Loop {
        device: found.trim().into(),
    };
    // As the kernel does it itself, where it knows such tables.
    run("addpart", &[device.path(), "1", "2048", "65536"]);
    let partition = format!("{}p1", name(&device));
    let shown = appliance.run(&["device", "show", name(&device)]);
    assert_eq!(list(&shown, "/partitions"), [json!(partition)]);
    refused(
        &appliance.tell(&["pool", "create", "p", device.path()]),
        4,
        "an MBR partition table",
    );
    appliance.run(&["pool", "create", "p", device.path(), "--force", device.path()]);
    let shown = appliance.run(&["device", "show", name(&device)]);
    assert_eq!(
        list(&shown, "/partitions").len(),
        0,
        "nobody can mount them any more"
    );
    let mut wiped = old.1;
    file.read_exact_at(&mut wiped, old.0).expect("read");
    assert!(wiped == [0; 8192], "old marks at the end are zeros");
    appliance.run(&["pool", "close", "p"]);
}
