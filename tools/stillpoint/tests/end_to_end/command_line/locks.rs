//! Locks: nobody deletes a locked snapshot before its time, or shortens the lock.

use serde_json::json;

use super::{names, refused, with_volume};
use crate::support::{Appliance, member, number};

const DAY_S: i64 = 24 * 3600;
const DAY_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Until when a snapshot is locked.
fn locked_until(appliance: &Appliance, snapshot: &str) -> u64 {
    number(
        &appliance.run(&["snapshot", "show", snapshot]),
        "/locked_until_ns",
    )
}

#[test]
fn a_locked_snapshot_is_not_deleted_by_any_way() {
    let appliance = with_volume();
    appliance.run(&["volume", "create", "w", "--size", "4MiB"]);
    appliance.run(&["snapshot", "create", "v,w", "--name", "both"]);
    appliance.run(&["snapshot", "create", "v@free"]);
    assert_eq!(locked_until(&appliance, "v@both"), 0);
    appliance.run(&["snapshot", "lock", "w@both", "--until", "2101-02-03T04:05:06Z"]);
    assert_eq!(locked_until(&appliance, "v@both"), 4_136_846_706_000_000_000);
    let date = "locked until 2101-02-03T04:05:06Z";
    for name in ["v@both", "w@both"] {
        refused(&appliance.tell(&["snapshot", "delete", name]), 4, date);
    }
    for name in ["v", "w"] {
        refused(
            &appliance.tell(&["volume", "delete", name, "--with-snapshots"]),
            4,
            date,
        );
    }
    // Longer is possible, shorter is not; the same date changes nothing.
    for until in ["1d", "2101-02-03", "2101-02-03T04:05:05Z"] {
        let told = appliance.tell(&["snapshot", "lock", "v@both", "--until", until]);
        refused(&told, 4, date);
    }
    appliance.run(&["snapshot", "lock", "v@both", "--until", "2101-02-03T04:05:06Z"]);
    appliance.run(&["snapshot", "lock", "v@both", "--until", "2102-01-01"]);
    appliance.kill();
    appliance.start(&["--processors", "2"]);
    let date = "locked until 2102-01-01T00:00:00Z";
    refused(&appliance.tell(&["snapshot", "delete", "w@both"]), 4, date);
    appliance.stop();
    appliance.start(&["--processors", "2"]);
    refused(&appliance.tell(&["snapshot", "delete", "w@both"]), 4, date);
    appliance.run(&["snapshot", "delete", "v@free"]);
    assert_eq!(names(&appliance.run(&["snapshot", "list"])), ["v@both"]);
    let events = appliance.run(&["events", "--limit", "1000"]);
    assert!(events.to_string().contains("snapshot_deleted"));
}

#[test]
fn a_lock_that_cannot_be_is_refused_with_the_reason() {
    let appliance = with_volume();
    appliance.run(&["snapshot", "create", "v@a"]);
    let lock = |until: &str| appliance.tell(&["snapshot", "lock", "v@a", "--until", until]);
    for (until, words) in [
        ("tomorrow", "no point in time"),
        ("2027-01-01T00:00:00", "with Z or an offset"),
        ("2027-02-30", "no point in time"),
        ("2020-01-01", "would have ended"),
        ("0d", "would have ended"),
        ("2200-01-01", "100 years"),
    ] {
        refused(&lock(until), 2, words);
    }
    refused(
        &appliance.tell(&["snapshot", "lock", "v@b", "--until", "1d"]),
        3,
        "no snapshot v@b",
    );
    refused(
        &appliance.tell(&["snapshot", "lock", "v", "--until", "1d"]),
        2,
        "volume@name",
    );
    assert_eq!(locked_until(&appliance, "v@a"), 0);
    appliance.run(&["snapshot", "delete", "v@a"]);
}

#[test]
fn a_lock_ends_by_itself() {
    let appliance = with_volume();
    appliance.run(&["snapshot", "create", "v@a"]);
    appliance.run(&["snapshot", "lock", "v@a", "--until", "2s"]);
    refused(&appliance.tell(&["snapshot", "delete", "v@a"]), 4, "locked until");
    appliance.wait_until("the lock has ended", || {
        appliance.tell(&["snapshot", "delete", "v@a"]).code == 0
    });
    assert_eq!(appliance.run(&["snapshot", "list"]), json!([]));
}

#[test]
fn setting_the_clock_back_neither_shortens_a_lock_nor_brings_one_back() {
    let appliance = Appliance::new();
    let start = |ahead_s: i64| appliance.start_with_clock(&["--processors", "2"], ahead_s);
    start(0);
    appliance.create_pool("p", 1, "256MiB", &[]);
    appliance.run(&["volume", "create", "v", "--size", "16MiB"]);
    for name in ["v@a", "v@b"] {
        appliance.run(&["snapshot", "create", name]);
    }
    appliance.run(&["snapshot", "lock", "v@a", "--until", "10d"]);
    appliance.run(&["snapshot", "lock", "v@b", "--until", "40d"]);
    let until = locked_until(&appliance, "v@a");
    // Killed, and the clock goes back by 20 days.
    appliance.kill();
    start(-20 * DAY_S);
    refused(&appliance.tell(&["snapshot", "delete", "v@a"]), 4, "locked until");
    refused(
        &appliance.tell(&["snapshot", "lock", "v@a", "--until", "9d"]),
        4,
        "locked until",
    );
    assert_eq!(locked_until(&appliance, "v@a"), until);
    // A length of time counts from the highest time, not from the clock that was set back.
    appliance.run(&["snapshot", "lock", "v@a", "--until", "11d"]);
    let until = locked_until(&appliance, "v@a") - until;
    assert!((DAY_NS..DAY_NS + DAY_NS / 2).contains(&until), "{until}");
    // 20 days later one lock has ended; it does not come back with the clock.
    appliance.stop();
    start(20 * DAY_S);
    appliance.kill();
    start(0);
    let pool = appliance.run(&["pool", "show", "p"]);
    let remarks = member(&pool, "/remarks").to_string();
    assert!(remarks.contains("locks end by the highest time"), "{remarks}");
    refused(&appliance.tell(&["snapshot", "delete", "v@b"]), 4, "locked until");
    appliance.run(&["snapshot", "delete", "v@a"]);
    appliance.stop();
}
