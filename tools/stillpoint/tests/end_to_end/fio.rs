//! fio writes, discards and verifies, with each of its ways to know what it wrote.

use crate::support::foreign::must;
use crate::support::{Appliance, member, number};
use serde_json::Value;

/// What fio did in all its jobs.
struct Done {
    reads: u64,
    writes: u64,
    trims: u64,
}

fn fio(appliance: &Appliance, arguments: &[&str]) -> Done {
    let uri = format!("--uri={}", appliance.uri("disk"));
    let state = format!("--aux-path={}", appliance.path_text(""));
    let always = [
        "--name=verified",
        "--ioengine=nbd",
        &uri,
        &state,
        "--size=8m",
        "--numjobs=4",
        "--offset_increment=8m",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--thread",
        "--group_reporting",
        "--output-format=json",
    ];
    let told = must("fio", &[&always[..], arguments].concat());
    // What fio says besides comes before the JSON.
    let start = told.find('{').expect("JSON");
    let told: Value = serde_json::from_str(&told[start..]).expect("JSON");
    let job = member(&told, "/jobs/0");
    assert_eq!(number(job, "/error"), 0, "{arguments:?}");
    Done {
        reads: number(job, "/read/total_ios"),
        writes: number(job, "/write/total_ios"),
        trims: number(job, "/trim/total_ios"),
    }
}

fn appliance() -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 2, "512MiB", &["--shards", "3"]);
    let shape = ["--block-size", "512", "--object-size", "1MiB"];
    appliance.run(&[&["volume", "create", "disk", "--size", "32MiB"], &shape[..]].concat());
    appliance.run(&["export", "create", "disk"]);
    appliance
}

#[test]
fn every_way_of_fio_to_verify_finds_what_was_written() {
    let appliance = appliance();
    let modes: [&[&str]; 9] = [
        &[
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--verify=sha512",
            "--verify_interval=512",
        ],
        &[
            "--rw=randwrite",
            "--bs=16k",
            "--verify=xxhash",
            "--verify_backlog=32",
            "--verify_async=2",
        ],
        &[
            "--rw=randwrite",
            "--bsrange=4k-32k",
            "--verify=md5",
            "--verify_backlog=64",
        ],
        &[
            "--rw=randrw",
            "--bs=8k",
            "--verify=crc64",
            "--verify_offset=64",
            "--rwmixread=30",
        ],
        &["--rw=write", "--bs=128k", "--verify=sha3-256", "--fsync=8"],
        &["--rw=randwrite", "--bs=4k", "--verify=crc32c", "--fsync=16"],
        &[
            "--rw=randwrite",
            "--bs=4k",
            "--verify=sha256",
            "--norandommap",
            "--iodepth=1",
        ],
        &[
            "--rw=randwrite",
            "--bs=4k",
            "--verify=pattern",
            "--verify_pattern=%o\"still\"0x900d",
        ],
        &[
            "--rw=randwrite",
            "--bsrange=512-8k",
            "--verify=crc32",
            "--loops=3",
        ],
    ];
    for mode in modes {
        let done = fio(&appliance, &[&["--iodepth=16"], mode].concat());
        assert!(done.writes > 0 && done.reads > 0, "{mode:?} did nothing");
    }
}

#[test]
fn fio_finds_zeros_where_it_discarded_and_data_where_it_did_not() {
    let appliance = appliance();
    for order in ["trimwrite", "randtrimwrite"] {
        // One request in flight per connection: with more, this fio reads what it is just discarding.
        let order = format!("--rw={order}");
        let trims = [
            "--trim_percentage=50",
            "--trim_verify_zero=1",
            "--trim_backlog=64",
        ];
        let arguments = [
            &[&order[..], "--bs=4k", "--verify=crc32c", "--iodepth=1"],
            &trims[..],
        ];
        let done = fio(&appliance, &arguments.concat());
        assert!(
            done.trims > done.writes,
            "each block before its write, and many after it"
        );
        assert!(done.reads > 1000, "blocks were verified");
    }
    let mapped = number(&appliance.run(&["volume", "show", "disk"]), "/mapped_bytes");
    assert!(mapped < 32 << 20, "discarded blocks take no room");
    // Several in flight; verified afterwards, since nothing is discarded after it was written. Only if a block's write
    // is not sent before the answer to its discard, though: of two requests in flight either may come last.
    let several = [
        "--rw=randtrimwrite",
        "--bs=4k",
        "--verify=crc32c",
        "--iodepth=16",
        "--serialize_overlap=1",
    ];
    let done = fio(&appliance, &several);
    assert!(done.trims > 1000 && done.reads > 1000, "trims and reads");
}
