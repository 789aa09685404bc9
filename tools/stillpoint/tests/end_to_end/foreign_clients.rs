//! The NBD server against clients that nobody here wrote: nbdinfo, nbdcopy, qemu-img, qemu-io, fio.

use std::fs;
use std::path::Path;

use crate::support::foreign::{json, must, run};
use crate::support::{Appliance, list, member, number};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Size of the volume, and of the objects it is spread over the shards in.
const VOLUME_BYTES: u64 = 64 * MIB;

/// An appliance with the volume `disk` in small objects on two devices, exported.
fn appliance(block_size: &str) -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("tank", 2, "1GiB", &[]);
    let size = VOLUME_BYTES.to_string();
    appliance.run(&[
        "volume",
        "create",
        "disk",
        "--size",
        &size,
        "--block-size",
        block_size,
        "--object-size",
        "1MiB",
    ]);
    appliance.run(&["export", "create", "disk"]);
    appliance
}

fn snapshot(appliance: &Appliance, name: &str) {
    appliance.run(&["snapshot", "create", name]);
    appliance.run(&["export", "create", name]);
}

/// A file of bytes that do not repeat, with holes in it.
fn make_image(path: &Path, seed: u64) {
    let mut bytes = vec![0u8; VOLUME_BYTES as usize];
    let mut state = seed | 1;
    for (index, chunk) in bytes.chunks_exact_mut(64 << 10).enumerate() {
        if index % 5 == 4 {
            continue;
        }
        for word in chunk.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }
    fs::write(path, bytes).expect("room for an image");
}

fn same(one: &Path, other: &Path) {
    assert!(
        fs::read(one).expect("a file") == fs::read(other).expect("a file"),
        "{} and {} differ",
        one.display(),
        other.display()
    );
}

/// Extents as nbdinfo tells them: offset, length, and whether there is data.
fn map(uri: &str) -> Vec<(u64, u64, bool)> {
    let extents = json("nbdinfo", &["--map", "--json", uri]);
    let mut map: Vec<(u64, u64, bool)> = Vec::new();
    for extent in list(&extents, "") {
        let (offset, length) = (number(extent, "/offset"), number(extent, "/length"));
        let data = number(extent, "/type") & 1 == 0;
        match map.last_mut() {
            Some((from, so_far, same)) if *same == data => {
                assert_eq!(*from + *so_far, offset, "extents follow each other");
                *so_far += length;
            }
            _ => map.push((offset, length, data)),
        }
    }
    map
}

#[test]
fn nbdinfo_lists_the_exports_and_what_they_can_do() {
    let appliance = appliance("512");
    snapshot(&appliance, "disk@noon");
    let listed = json("nbdinfo", &["--list", "--json", &appliance.uri("")]);
    let exports = list(&listed, "/exports");
    let names: Vec<&Value> = exports
        .iter()
        .map(|export| member(export, "/export-name"))
        .collect();
    assert_eq!(names, ["disk", "disk@noon"]);

    let told = json("nbdinfo", &["--json", &appliance.uri("disk")]);
    assert_eq!(member(&told, "/protocol"), "newstyle-fixed");
    let disk = member(&told, "/exports/0");
    assert_eq!(number(disk, "/export-size"), VOLUME_BYTES);
    assert_eq!(number(disk, "/block_size_minimum"), 512);
    assert_eq!(number(disk, "/block_size_preferred"), 4096);
    assert_eq!(number(disk, "/block_size_maximum"), 32 * MIB);
    let contexts = [
        "base:allocation",
        "stillpoint:changes:noon",
        "qemu:dirty-bitmap:noon",
    ];
    assert_eq!(member(disk, "/contexts"), &serde_json::json!(contexts));
    for can in [
        "cache",
        "df",
        "fast_zero",
        "flush",
        "fua",
        "multi_conn",
        "trim",
        "zero",
    ] {
        assert_eq!(member(disk, &format!("/can_{can}")), true, "can_{can}");
    }
    assert_eq!(member(disk, "/is_read_only"), false);

    let told = json("nbdinfo", &["--json", &appliance.uri("disk@noon")]);
    let noon = member(&told, "/exports/0");
    assert_eq!(member(noon, "/is_read_only"), true);
    assert_eq!(number(noon, "/export-size"), VOLUME_BYTES);
    assert!(!run("nbdinfo", &[&appliance.uri("nothing")]).success);
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    let appliance = appliance("512");
    let uri = appliance.uri("disk");
    assert_eq!(map(&uri), [(0, VOLUME_BYTES, false)]);
    let writes = [
        (8192, 4096),
        (MIB - 4096, 8192),
        (3 * MIB, 5 * MIB),
        (VOLUME_BYTES - 4096, 4096),
    ];
    for (offset, length) in writes {
        let command = format!("write -P 0x5a {offset} {length}");
        must("qemu-io", &["-f", "raw", "-c", &command, &uri]);
    }
    snapshot(&appliance, "disk@noon");
    must("qemu-io", &["-f", "raw", "-c", "discard 3M 5M", &uri]);
    let whole: Vec<(u64, u64, bool)> = map(&appliance.uri("disk@noon"));
    let data: Vec<(u64, u64)> = whole
        .iter()
        .filter(|extent| extent.2)
        .map(|&(offset, length, _)| (offset, length))
        .collect();
    assert_eq!(data, writes);
    let end = whole.last().expect("extents");
    assert_eq!(end.0 + end.1, VOLUME_BYTES);
    let left: Vec<u64> = map(&uri)
        .iter()
        .filter(|extent| extent.2)
        .map(|extent| extent.0)
        .collect();
    assert_eq!(left, [8192, MIB - 4096, VOLUME_BYTES - 4096]);
}

#[test]
fn nbdcopy_copies_in_and_out_over_four_connections() {
    let appliance = appliance("4096");
    let (first, second, back) = (
        appliance.path("first"),
        appliance.path("second"),
        appliance.path("back"),
    );
    make_image(&first, 1);
    make_image(&second, 2);
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let uri = appliance.uri("disk");
    must("nbdcopy", &["--connections=4", "--flush", &text(&first), &uri]);
    snapshot(&appliance, "disk@noon");
    must("nbdcopy", &["--connections=4", "--flush", &text(&second), &uri]);
    for (export, expected) in [("disk", &second), ("disk@noon", &first)] {
        must(
            "nbdcopy",
            &["--connections=4", &appliance.uri(export), &text(&back)],
        );
        same(&back, expected);
    }
    // Requests of 32 MiB, the largest there are, and of an odd size.
    for request_size in ["33554432", "262144"] {
        let size = format!("--request-size={request_size}");
        must("nbdcopy", &[&size, "--connections=2", &text(&first), &uri]);
        must("nbdcopy", &[&size, "--connections=2", &uri, &text(&back)]);
        same(&back, &first);
    }
    let to_snapshot = run("nbdcopy", &[&text(&second), &appliance.uri("disk@noon")]);
    assert!(!to_snapshot.success, "a snapshot takes no writes");
    must(
        "nbdcopy",
        &["--connections=4", &appliance.uri("disk@noon"), &text(&back)],
    );
    same(&back, &first);
}

#[test]
fn qemu_img_converts_and_compares() {
    let appliance = appliance("512");
    let image = appliance.path_text("image");
    make_image(Path::new(&image), 3);
    let uri = appliance.uri("disk");
    let info = json("qemu-img", &["info", "--output=json", &uri]);
    assert_eq!(number(&info, "/virtual-size"), VOLUME_BYTES);
    // -n: the target exists; -W: writes may come out of order.
    must(
        "qemu-img",
        &["convert", "-n", "-W", "-f", "raw", "-O", "raw", &image, &uri],
    );
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    snapshot(&appliance, "disk@noon");
    must("qemu-io", &["-f", "raw", "-c", "write -P 1 12345 54321", &uri]);
    let differs = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    assert!(!differs.success, "{}", differs.text);
    let noon = appliance.uri("disk@noon");
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &noon]);
    let back = appliance.path_text("back.qcow2");
    must("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &noon, &back]);
    must(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", &image, &back],
    );
}

/// Runs qemu-io commands in one go; none may fail, nor any pattern.
fn qemu_io(uri: &str, commands: &[String]) {
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(uri);
    let said = must("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn qemu_io_reads_back_what_it_wrote_at_any_alignment() {
    let ranges = [
        (0u64, 4096u64),
        (512, 512),
        (4096 - 512, 1024),
        (100, 3000),
        (4095, 2),
        (MIB - 100, 200),
        (MIB - 512, 2 * MIB + 1024),
        (5 * MIB + 1, 3 * MIB + 77),
        (VOLUME_BYTES - 700, 700),
        (16 * MIB, 32 * MIB),
    ];
    for block_size in ["512", "4096"] {
        let appliance = appliance(block_size);
        let uri = appliance.uri("disk");
        for (index, (offset, length)) in ranges.into_iter().enumerate() {
            let (pattern, end) = (index + 1, offset + length);
            let before = offset - offset.min(600);
            let after = (VOLUME_BYTES - end).min(600);
            let mut commands = vec![
                format!("write -P 0xee 0 {VOLUME_BYTES}"),
                format!("write -P {pattern} {offset} {length}"),
                format!("read -P {pattern} {offset} {length}"),
            ];
            if offset > before {
                commands.push(format!("read -P 0xee {before} {}", offset - before));
            }
            if after > 0 {
                commands.push(format!("read -P 0xee {end} {after}"));
            }
            commands.extend([
                format!("write -z {offset} {length}"),
                format!("read -P 0 {offset} {length}"),
                // With -u the zeroes may become a hole.
                format!("write -P {pattern} {offset} {length}"),
                format!("write -z -u {offset} {length}"),
                format!("read -P 0 {offset} {length}"),
                // With -f it is durable when it returns.
                format!("write -f -P {pattern} {offset} {length}"),
                "flush".to_owned(),
                format!("read -P {pattern} {offset} {length}"),
            ]);
            if after > 0 {
                commands.push(format!("read -P 0xee {end} {after}"));
            }
            qemu_io(&uri, &commands);
        }
        qemu_io(
            &uri,
            &[
                "write -P 7 0 64k".to_owned(),
                "discard 4k 8k".to_owned(),
                "read -P 7 0 4k".to_owned(),
                "read -P 0 4k 8k".to_owned(),
                "read -P 7 12k 52k".to_owned(),
            ],
        );
    }
}

#[test]
fn fio_verifies_mixed_sizes_on_several_connections() {
    let appliance = appliance("512");
    let uri = format!("--uri={}", appliance.uri("disk"));
    let state = format!("--aux-path={}", appliance.path_text(""));
    for pattern in ["randwrite", "randrw"] {
        let result = must(
            "fio",
            &[
                "--name=verified",
                "--ioengine=nbd",
                &uri,
                &state,
                &format!("--rw={pattern}"),
                "--bsrange=512-1m",
                "--size=16m",
                "--numjobs=4",
                "--offset_increment=16m",
                "--iodepth=16",
                "--fsync=50",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--thread",
                "--group_reporting",
                "--output-format=json",
            ],
        );
        // What fio says besides comes before the JSON.
        let start = result.find('{').expect("JSON");
        let told: Value = serde_json::from_str(&result[start..]).expect("JSON");
        let job = member(&told, "/jobs/0");
        assert_eq!(number(job, "/error"), 0);
        assert!(number(job, "/write/total_ios") > 100);
        assert!(number(job, "/read/total_ios") > 100, "it was read back");
    }
}
