//! Schedules: what is due is taken, what the rules no longer keep goes, and nothing else does.
//! `STILLPOINT_SCHEDULE_SECONDS` says for how long there is a snapshot each second at full load.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::nbd::Connection;
use crate::support::{Appliance, Told, list, member, number, setting};
use serde_json::Value;
use stillpoint_simulator::random::Random;

const PROCESSORS: &[&str] = &["--processors", "2"];
const HOUR_S: i64 = 3600;

/// A pool `p` with volumes `a` and `b`, both exported.
fn with_volumes() -> Appliance {
    with_volumes_in("256MiB", "64MiB")
}

/// The same; the size of each of the pool's two devices, and of each volume.
fn with_volumes_in(device: &str, volume: &str) -> Appliance {
    let appliance = Appliance::new();
    appliance.start_with_clock(PROCESSORS, 0);
    appliance.create_pool("p", 2, device, &[]);
    for name in ["a", "b"] {
        let create = ["volume", "create", name, "--size", volume];
        appliance.run(&[&create[..], &["--object-size", "1MiB"]].concat());
        appliance.run(&["export", "create", name]);
    }
    appliance
}

/// Makes a schedule; holds may be long on a busy machine.
fn create(appliance: &Appliance, name: &str, more: &[&str]) -> Value {
    let create = ["schedule", "create", name, "--hold-limit", "2s"];
    appliance.run(&[&create[..], more].concat())
}

fn show(appliance: &Appliance, name: &str) -> Value {
    appliance.run(&["schedule", "show", name])
}

fn texts(values: &Value, path: &str, field: &str) -> Vec<String> {
    list(values, path)
        .iter()
        .map(|value| member(value, field).as_str().expect("a text").to_owned())
        .collect()
}

/// The snapshots of a volume, oldest first.
fn snapshots(appliance: &Appliance, volume: &str) -> Vec<String> {
    texts(&appliance.run(&["snapshot", "list", volume]), "", "/name")
}

/// Texts of the events of a kind.
fn events(appliance: &Appliance, kind: &str) -> Vec<String> {
    let all = appliance.run(&["events", "--limit", "1000"]);
    list(&all, "/events")
        .iter()
        .filter(|event| member(event, "/kind") == kind)
        .map(|event| format!("{}: {}", event["subject"], event["text"]))
        .collect()
}

#[track_caller]
fn refused(told: &Told, code: i32, words: &str) {
    assert_eq!(told.code, code, "{}", told.errors);
    assert!(
        told.errors.contains(words),
        "{words:?} is not in: {}",
        told.errors
    );
}

fn wait_for_runs(appliance: &Appliance, schedule: &str, runs: u64) {
    appliance.wait_until("the schedule has run", || {
        number(&show(appliance, schedule), "/runs") >= runs
    });
}

/// Nothing is left to prune: only what the rules keep is there.
fn wait_for_snapshots(appliance: &Appliance, schedule: &str, count: u64) {
    appliance.wait_until("the schedule has pruned", || {
        number(&show(appliance, schedule), "/snapshots") == count
    });
}

/// V16: snapshots are made again and again, and those that the rules do not keep go.
#[test]
fn a_run_is_one_cut_of_all_volumes_and_old_ones_go() {
    let appliance = with_volumes();
    appliance.run(&["snapshot", "create", "a@mine", "--hold-limit", "2s"]);
    create(
        &appliance,
        "often",
        &["--volumes", "a,b", "--every", "1s", "--keep", "last=3"],
    );
    wait_for_runs(&appliance, "often", 6);
    appliance.run(&["schedule", "pause", "often"]);
    wait_for_snapshots(&appliance, "often", 3);
    let of_a = snapshots(&appliance, "a");
    assert_eq!(of_a.len(), 4, "{of_a:?}");
    assert_eq!(of_a[0], "a@mine", "what the schedule did not take stays");
    let newest = appliance.run(&["snapshot", "show", &of_a[3]]);
    assert_eq!(texts(&newest, "/volumes", "/name"), ["a", "b"]);
    assert_eq!(member(&newest, "/schedule"), "often");
    let time = of_a[3]
        .strip_prefix("a@often-")
        .expect("named after the schedule");
    assert!(time.len() == 16 && time.ends_with('Z'), "{time}");
    let shown = show(&appliance, "often");
    assert_eq!(number(&shown, "/failed"), 0);
    assert_eq!(number(&shown, "/pruned"), number(&shown, "/runs") - 3);
    assert!(!events(&appliance, "schedule_ran").is_empty());
    assert!(!events(&appliance, "snapshot_pruned").is_empty());
    // Whose a snapshot is, is known also after a crash; and the schedule goes on.
    appliance.kill();
    appliance.start_with_clock(PROCESSORS, 0);
    assert_eq!(member(&show(&appliance, "often"), "/state"), "paused");
    appliance.run(&["schedule", "resume", "often"]);
    wait_for_runs(&appliance, "often", 4);
    appliance.run(&["schedule", "pause", "often"]);
    wait_for_snapshots(&appliance, "often", 3);
    let later = snapshots(&appliance, "b");
    assert!(later.iter().all(|name| !of_a.contains(&name.replace("b@", "a@"))));
    appliance.stop();
}

#[test]
fn what_the_next_run_prunes_is_shown_before() {
    let appliance = with_volumes();
    let made = create(
        &appliance,
        "rare",
        &["--volumes", "a", "--every", "30d", "--keep", "last=2,daily=1"],
    );
    let next: Vec<u64> = list(&made, "/next_runs_ns")
        .iter()
        .map(|ns| ns.as_u64().expect("a time"))
        .collect();
    let period_ns = 30 * 24 * 3600 * 1_000_000_000;
    assert_eq!(next.len(), 5);
    assert!(
        next.iter().all(|ns| ns % period_ns == 0),
        "in phase with the clock: {next:?}"
    );
    assert!(next.windows(2).all(|pair| pair[1] == pair[0] + period_ns));
    for _ in 0..2 {
        appliance.run(&["schedule", "run", "rare"]);
    }
    let shown = show(&appliance, "rare");
    let pruned = |shown: &Value| -> Vec<bool> {
        list(shown, "/kept")
            .iter()
            .map(|kept| member(kept, "/pruned_next") == true)
            .collect()
    };
    assert_eq!(pruned(&shown), [true, false]);
    assert_eq!(
        member(&shown, "/kept/1/kept_by/0"),
        "last 2",
        "it will be the second"
    );
    let names = texts(&shown, "/kept", "/name");
    appliance.run(&["schedule", "run", "rare"]);
    wait_for_snapshots(&appliance, "rare", 2);
    let left = snapshots(&appliance, "a");
    assert!(!left.contains(&names[0]) && left.contains(&names[1]), "{left:?}");
    appliance.stop();
}

#[test]
fn what_is_locked_or_exported_or_cloned_is_kept_and_told() {
    let appliance = with_volumes();
    create(
        &appliance,
        "rare",
        &["--volumes", "a,b", "--every", "30d", "--keep", "last=1"],
    );
    let take = || {
        let taken = appliance.run(&["schedule", "run", "rare"]);
        member(&taken, "/name").as_str().expect("a name").to_owned()
    };
    let exported = take();
    appliance.run(&["export", "create", &exported, "--name", "old"]);
    let locked = take();
    appliance.run(&["snapshot", "lock", &locked, "--until", "30d"]);
    let cloned = take();
    appliance.run(&["volume", "clone", &cloned, "c"]);
    let plain = take();
    take();
    wait_for_snapshots(&appliance, "rare", 4);
    let left = snapshots(&appliance, "a");
    assert!(left.contains(&exported) && left.contains(&locked) && !left.contains(&plain));
    let told = events(&appliance, "snapshot_kept");
    assert_eq!(told.len(), 3, "each is told once: {told:?}");
    assert!(
        left.contains(&cloned) && told[2].contains("has clones: c"),
        "{told:?}"
    );
    assert!(
        told[0].contains("exported as old") && told[1].contains("locked until"),
        "{told:?}"
    );
    let shown = show(&appliance, "rare").to_string();
    assert!(
        shown.contains("exported as old") && shown.contains("locked until"),
        "{shown}"
    );
    appliance.run(&["export", "delete", "old"]);
    take();
    wait_for_snapshots(&appliance, "rare", 3);
    assert!(!snapshots(&appliance, "a").contains(&exported));
    assert_eq!(events(&appliance, "snapshot_kept").len(), 3);
    appliance.stop();
}

#[test]
fn after_downtime_there_is_one_run_for_all_that_were_missed() {
    let appliance = with_volumes();
    let daily = ["--volumes", "a", "--every", "1h", "--keep", "last=10"];
    create(&appliance, "hourly", &daily);
    let by_cron = ["--volumes", "b", "--cron", "0 * * * *", "--keep", "last=10"];
    create(
        &appliance,
        "cron",
        &[&by_cron[..], &["--time-zone", "Europe/Berlin"]].concat(),
    );
    appliance.run(&["schedule", "run", "hourly"]);
    let first = snapshots(&appliance, "a");
    appliance.kill();
    // Ten hours later.
    appliance.start_with_clock(PROCESSORS, 10 * HOUR_S);
    for name in ["hourly", "cron"] {
        wait_for_runs(&appliance, name, 1);
        let shown = show(&appliance, name);
        assert_eq!(number(&shown, "/runs"), 1, "{shown}");
        // Ten due times went by, and the one of the run, unless the test began just before or after a full hour.
        assert!((8..=10).contains(&number(&shown, "/missed")), "{shown}");
    }
    let told = events(&appliance, "schedule_missed");
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(snapshots(&appliance, "a").len(), first.len() + 1);
    // What is due while a schedule is paused is not missed.
    appliance.run(&["schedule", "pause", "hourly"]);
    appliance.stop();
    appliance.start_with_clock(PROCESSORS, 20 * HOUR_S);
    appliance.run(&["schedule", "resume", "hourly"]);
    wait_for_runs(&appliance, "cron", 1);
    let shown = show(&appliance, "hourly");
    assert_eq!((number(&shown, "/runs"), number(&shown, "/missed")), (0, 0));
    appliance.stop();
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_a_schedule() {
    let appliance = with_volumes();
    create(
        &appliance,
        "often",
        &["--volumes", "a", "--every", "1s", "--keep", "last=100"],
    );
    wait_for_runs(&appliance, "often", 2);
    appliance.stop();
    let before = snapshots_of_stopped(&appliance, -100 * 24 * HOUR_S);
    wait_for_runs(&appliance, "often", 2);
    let after = snapshots(&appliance, "a");
    assert!(
        after.len() >= before.len() && after.starts_with(&before[..2]),
        "{before:?} {after:?}"
    );
    appliance.stop();
}

/// Starts the daemon with another clock; the snapshots that are there.
fn snapshots_of_stopped(appliance: &Appliance, ahead_s: i64) -> Vec<String> {
    appliance.start_with_clock(PROCESSORS, ahead_s);
    snapshots(appliance, "a")
}

#[test]
fn a_deleted_schedule_leaves_its_snapshots_to_nobody() {
    let appliance = with_volumes();
    let rare = ["--volumes", "a,b", "--every", "30d", "--keep", "last=1"];
    create(&appliance, "rare", &rare);
    appliance.run(&["schedule", "run", "rare"]);
    let old = snapshots(&appliance, "a");
    refused(
        &appliance.tell(&[
            "schedule",
            "create",
            "rare",
            "--volumes",
            "a",
            "--every",
            "1d",
            "--keep",
            "last=1",
        ]),
        4,
        "exists already",
    );
    appliance.run(&["export", "delete", "a"]);
    refused(
        &appliance.tell(&["volume", "delete", "a", "--with-snapshots"]),
        4,
        "in schedule rare",
    );
    appliance.run(&["schedule", "delete", "rare"]);
    create(&appliance, "rare", &rare);
    for _ in 0..2 {
        appliance.run(&["schedule", "run", "rare"]);
    }
    wait_for_snapshots(&appliance, "rare", 1);
    let all = snapshots(&appliance, "a");
    assert!(all.len() == 2 && all[0] == old[0], "{all:?}");
    assert_eq!(list(&appliance.run(&["schedule", "list"]), "").len(), 1);
    appliance.run(&["schedule", "delete", "rare"]);
    appliance.run(&["volume", "delete", "a", "--with-snapshots"]);
    appliance.stop();
}

#[test]
fn a_schedule_that_cannot_be_is_refused_with_the_reason() {
    let appliance = with_volumes();
    let tell = |more: &[&str]| appliance.tell(&[&["schedule", "create", "s"][..], more].concat());
    let keep = ["--keep", "last=1"];
    let base = ["--volumes", "a", "--every", "1h"];
    for (more, code, words) in [
        (&[&base[..]].concat()[..], 2, "--keep"),
        (
            &[&base[..], &["--keep", "last=0"]].concat(),
            2,
            "no snapshot at all",
        ),
        (&[&base[..], &["--keep", "secondly=3"]].concat(), 2, "is no rule"),
        (
            &[&base[..], &["--keep", "last=100001"]].concat(),
            2,
            "at most 100000",
        ),
        (&[&["--volumes", "a"], &keep[..]].concat(), 2, "--every"),
        (
            &[&base[..], &keep, &["--cron", "* * * * *"]].concat(),
            2,
            "cannot be used with",
        ),
        (
            &[&["--volumes", "a", "--every", "0s"], &keep[..]].concat(),
            2,
            "from 1 s to 30 d",
        ),
        (
            &[&["--volumes", "a", "--every", "31d"], &keep[..]].concat(),
            2,
            "from 1 s to 30 d",
        ),
        (
            &[&["--volumes", "a", "--every", "soon"], &keep[..]].concat(),
            2,
            "no length of time",
        ),
        (
            &[&["--volumes", "a", "--cron", "61 * * * *"], &keep[..]].concat(),
            2,
            "no cron line",
        ),
        (
            &[&["--volumes", "a", "--cron", ""], &keep[..]].concat(),
            2,
            "empty",
        ),
        (
            &[&["--volumes", "a", "--cron", "0 0 30 2 *"], &keep[..]].concat(),
            2,
            "never comes",
        ),
        (
            &[&base[..], &keep, &["--time-zone", "Atlantis"]].concat(),
            2,
            "no time zone",
        ),
        (
            &[&["--volumes", "c", "--every", "1h"], &keep[..]].concat(),
            3,
            "no volume c",
        ),
        (
            &[&["--volumes", "a,c", "--every", "1h"], &keep[..]].concat(),
            3,
            "no volume c",
        ),
        (
            &[&["--volumes", "a,a", "--every", "1h"], &keep[..]].concat(),
            2,
            "named twice",
        ),
        (
            &[&base[..], &keep, &["--hold-limit", "6s"]].concat(),
            2,
            "hold limit",
        ),
    ] {
        refused(&tell(more), code, words);
    }
    let long = "x".repeat(105);
    for (name, words) in [("a/b", "'/'"), (long.as_str(), "at most 104")] {
        let create = [
            "schedule",
            "create",
            name,
            "--volumes",
            "a",
            "--every",
            "1h",
            "--keep",
            "last=1",
        ];
        refused(&appliance.tell(&create), 2, words);
    }
    for command in ["show", "pause", "resume", "run", "delete"] {
        refused(&appliance.tell(&["schedule", command, "s"]), 3, "no schedule s");
    }
    assert_eq!(list(&appliance.run(&["schedule", "list"]), "").len(), 0);
    appliance.stop();
}

/// Writers at full speed; what their writes took, in microseconds.
struct Writers<'a> {
    stop: &'a AtomicBool,
    written: &'a AtomicU64,
}

impl Writers<'_> {
    fn run(&self, mut connection: Connection, seed: u64) -> Vec<u32> {
        let mut random = Random::new(seed);
        let blocks = connection.export.size_bytes / 4096;
        let mut took_us = Vec::new();
        let mut bytes = vec![0; 4096];
        while !self.stop.load(Ordering::Relaxed) {
            let block = random.below(blocks);
            bytes[..8].copy_from_slice(&random.below(u64::MAX).to_le_bytes());
            let start = Instant::now();
            connection
                .write(block * 4096, &bytes, false)
                .unwrap_or_else(|error| panic!("{error}"));
            took_us.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
            self.written.fetch_add(1, Ordering::Relaxed);
        }
        took_us
    }
}

fn percentiles(mut took_us: Vec<u32>) -> String {
    took_us.sort_unstable();
    let at = |per_mille: usize| took_us[(took_us.len() - 1) * per_mille / 1000];
    format!(
        "{} writes: p50 {} µs, p99 {} µs, p99.9 {} µs, longest {} µs",
        took_us.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    )
}

fn resident_bytes(appliance: &Appliance) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", appliance.pid())).expect("the daemon runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("a line");
    let word = line.split_whitespace().nth(1).expect("a value");
    word.parse::<u64>().expect("a number") << 10
}

/// Writes for so long; the latencies.
fn load(appliance: &Appliance, time: Duration, mut each_second: impl FnMut()) -> Vec<u32> {
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let writers = Writers {
        stop: &stop,
        written: &written,
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|seed| {
                let connection = appliance.connect(if seed % 2 == 0 { "a" } else { "b" });
                let writers = &writers;
                scope.spawn(move || writers.run(connection, seed))
            })
            .collect();
        let start = Instant::now();
        while start.elapsed() < time {
            thread::sleep(Duration::from_secs(1));
            each_second();
        }
        stop.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a writer does not panic"))
            .collect()
    })
}

/// Resident memory after the warm-up may grow by so much.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

/// V16: one each second, beside a full load.
#[test]
fn every_second_at_full_load_no_cut_is_missed_and_memory_is_constant() {
    let seconds = setting("STILLPOINT_SCHEDULE_SECONDS", 25);
    // Room for what all snapshots hold if every block is written between any two of them.
    let appliance = with_volumes_in("1GiB", "32MiB");
    let without = load(&appliance, Duration::from_secs(seconds.min(30) / 3), || ());
    create(
        &appliance,
        "often",
        &["--volumes", "a,b", "--every", "1s", "--keep", "last=5"],
    );
    let start = Instant::now();
    let mut resident = Vec::new();
    let mut seen = BTreeSet::new();
    let with = load(&appliance, Duration::from_secs(seconds), || {
        resident.push(resident_bytes(&appliance));
        seen.extend(snapshots(&appliance, "a"));
    });
    appliance.run(&["schedule", "pause", "often"]);
    let lasted = start.elapsed().as_secs();
    wait_for_snapshots(&appliance, "often", 5);
    let shown = show(&appliance, "often");
    let half = resident.len() / 2;
    let warm = resident[..half].iter().max().expect("some");
    let later = resident[half..].iter().max().expect("some");
    eprintln!("without snapshots: {}", percentiles(without));
    eprintln!("a snapshot of two volumes each second: {}", percentiles(with));
    eprintln!(
        "{} runs in {lasted} s, {} missed, {} failed, {} pruned; resident at most {} KiB in the first half, {} KiB in the second",
        number(&shown, "/runs"),
        number(&shown, "/missed"),
        number(&shown, "/failed"),
        number(&shown, "/pruned"),
        warm >> 10,
        later >> 10
    );
    assert_eq!(
        number(&shown, "/missed"),
        0,
        "{:?}",
        events(&appliance, "schedule_missed")
    );
    assert_eq!(
        number(&shown, "/failed"),
        0,
        "{:?}",
        events(&appliance, "schedule_failed")
    );
    assert!(
        number(&shown, "/runs") + 1 >= lasted,
        "{} in {lasted} s",
        number(&shown, "/runs")
    );
    assert_eq!(number(&shown, "/pruned"), number(&shown, "/runs") - 5);
    // Each second has its snapshot: as many names as there were seconds, none twice. What was looked at each second saw nearly all.
    assert!(
        seen.len() as u64 + 2 >= number(&shown, "/runs"),
        "{} names",
        seen.len()
    );
    assert!(
        later.saturating_sub(*warm) <= GROWTH_BYTES_MAX,
        "resident memory grew from {warm} to {later} bytes"
    );
    appliance.stop();
}
