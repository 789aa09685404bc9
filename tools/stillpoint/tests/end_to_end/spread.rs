//! The objects of one volume are spread over all processors, each does its share, and each has its core.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use crate::support::history::History;
use crate::support::load::Load;
use crate::support::{Appliance, list, member, number};
use serde_json::Value;

fn with_volume(arguments: &[&str], shards: &str) -> Appliance {
    let appliance = Appliance::started(arguments);
    appliance.create_pool("p", 1, "512MiB", &["--shards", shards]);
    let volume = ["volume", "create", "v", "--size", "24MiB"];
    appliance.run(&[&volume[..], &["--block-size", "512", "--object-size", "1MiB"]].concat());
    appliance.run(&["export", "create", "v"]);
    appliance
}

/// Works on all of the volume; gives `status` after it.
fn work(appliance: &Appliance) -> Value {
    let history = Arc::new(History::new(1, 24 << 20));
    let load = Load::start(&appliance.nbd_socket(), "v", 6, &history, 1, 7);
    load.wait_for_answers(4000);
    let status = appliance.run(&["status"]);
    load.finish();
    status
}

/// Parts of requests that the shards of each processor have done.
fn parts(status: &Value) -> Vec<u64> {
    let done = |processor: &Value| -> u64 {
        let shards = list(processor, "/shards").iter();
        shards
            .map(|shard| number(shard, "/reads") + number(shard, "/writes"))
            .sum()
    };
    list(status, "/processors").iter().map(done).collect()
}

/// V1: the objects of a volume lie on all processors, and each does its share.
#[test]
fn each_processor_owns_its_share_of_a_volume_and_does_its_share_of_the_work() {
    let appliance = with_volume(&["--processors", "3"], "3");
    let volume = appliance.run(&["volume", "show", "v"]);
    let shares = list(&volume, "/shares");
    let owners: BTreeSet<u64> = shares.iter().map(|share| number(share, "/processor")).collect();
    assert_eq!(owners, BTreeSet::from([0, 1, 2]));
    for share in shares {
        assert_eq!(number(share, "/objects"), 8, "of 24 objects: {share}");
        assert_eq!(number(share, "/share_bytes"), 8 << 20);
    }

    let status = work(&appliance);
    let parts = parts(&status);
    let all: u64 = parts.iter().sum();
    // The load goes to random places, half of it to the first two objects; a third each would be fair.
    assert!(parts.iter().all(|&done| done * 10 > all), "parts done: {parts:?}");
    let requests: u64 = list(&status, "/processors")
        .iter()
        .map(|of| number(of, "/requests"))
        .sum();
    assert!(requests >= 4000, "{requests} requests were counted");

    let volume = appliance.run(&["volume", "show", "v"]);
    for share in list(&volume, "/shares") {
        assert!(number(share, "/mapped_bytes") > 0, "nothing of the data: {share}");
    }
    appliance.stop();
}

/// V3, V5: each processor keeps the part of its own objects, and logs their changes.
#[test]
fn a_snapshot_is_spread_as_its_volume_is() {
    let appliance = with_volume(&["--processors", "2"], "2");
    work(&appliance);
    appliance.run(&["snapshot", "create", "v@s", "--hold-limit", "2s"]);
    let snapshot = appliance.run(&["snapshot", "show", "v@s"]);
    let intermediate = list(&snapshot, "/intermediate_snapshots");
    let owners: Vec<u64> = intermediate.iter().map(|of| number(of, "/processor")).collect();
    assert_eq!(owners, [0, 1]);
    for of in intermediate {
        assert_eq!(number(of, "/objects"), 12);
        assert!(number(of, "/point_in_time_copy/mapped_bytes") > 0);
        assert_eq!(number(of, "/change_log/blocks"), 0, "nothing was written since");
    }
    let mut connection = appliance.connect("v");
    let wrote = connection
        .write(0, &[1; 4096], false)
        .and_then(|()| connection.write(1 << 20, &[1; 8192], false));
    wrote.unwrap_or_else(|error| panic!("{error}"));
    let snapshot = appliance.run(&["snapshot", "show", "v@s"]);
    let mut changed: Vec<u64> = list(&snapshot, "/intermediate_snapshots")
        .iter()
        .map(|of| number(of, "/change_log/blocks"))
        .collect();
    changed.sort_unstable();
    assert_eq!(changed, [1, 2], "each shard logs the changes of its own objects");
    appliance.stop();
}

#[test]
fn a_pool_opens_with_more_and_with_fewer_processors_and_all_of_them_work() {
    let appliance = with_volume(&["--processors", "2"], "4");
    appliance.stop();
    for (processors, working) in [("4", 4), ("1", 1), ("3", 3), ("6", 4)] {
        appliance.start(&["--processors", processors]);
        let mut connection = appliance.connect("v");
        let trimmed = connection.trim(0, 24 << 20);
        trimmed.unwrap_or_else(|error| panic!("{error}"));
        drop(connection);
        let parts = parts(&work(&appliance));
        assert_eq!(
            parts.iter().filter(|&&done| done > 0).count(),
            working,
            "parts done: {parts:?}"
        );
        appliance.stop();
    }
}

#[test]
fn processors_are_pinned_to_cores_of_their_own() {
    let appliance = Appliance::started(&["--processors", "2"]);
    let status = appliance.run(&["status"]);
    let cores: Vec<Option<u64>> = list(&status, "/processors")
        .iter()
        .map(|of| member(of, "/core").as_u64())
        .collect();
    if allowed_cores("self").len() < 2 {
        eprintln!("one core is allowed: nothing to pin to; status says {cores:?}");
        return;
    }
    let pinned: BTreeSet<u64> = cores.iter().copied().map(|core| core.expect("a core")).collect();
    assert_eq!(pinned.len(), 2, "cores of their own: {cores:?}");
    let tasks = fs::read_dir(format!("/proc/{}/task", appliance.pid())).expect("the process lives");
    let single: BTreeSet<u64> = tasks
        .map(|task| task.expect("a thread").path().display().to_string())
        .map(|task| allowed_cores(task.trim_start_matches("/proc/")))
        .filter(|allowed| allowed.len() == 1)
        .flatten()
        .collect();
    assert_eq!(
        single, pinned,
        "what the kernel says of the threads, and what status says"
    );
    appliance.stop();
}

/// Cores that a process or thread may run on, as the kernel tells (`0-2,5`).
fn allowed_cores(task: &str) -> Vec<u64> {
    let status = fs::read_to_string(format!("/proc/{task}/status")).expect("the thread lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let mut cores = Vec::new();
    for range in line.expect("the kernel tells").trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let parse = |text: &str| text.parse::<u64>().expect("a number");
        cores.extend(parse(first)..=parse(last));
    }
    cores
}
