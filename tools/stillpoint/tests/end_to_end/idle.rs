//! An idle appliance leaves the cores to others; one that is told to never sleeps.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::nbd::Connection;
use crate::support::{Appliance, list, number};

/// CPU time of a process, user and system, in clock ticks.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // The name of the program is in parentheses and may hold anything; what follows are numbers.
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 1..]
        .split_whitespace()
        .collect();
    let field = |index: usize| fields[index].parse::<u64>().expect("a number");
    // utime and stime, fields 14 and 15 of proc(5); the first one here is field 3.
    field(11) + field(12)
}

/// Clock ticks per second of `/proc`; Linux has used 100 on every architecture for decades (USER_HZ).
const TICKS_PER_S: u64 = 100;

fn with_open_connection(arguments: &[&str]) -> (Appliance, Connection) {
    let appliance = Appliance::started(arguments);
    appliance.create_pool("p", 2, "256MiB", &[]);
    appliance.run(&["volume", "create", "v", "--size", "64MiB"]);
    appliance.run(&["export", "create", "v"]);
    let mut connection = appliance.connect("v");
    let worked = connection
        .write(0, &[7; 65536], false)
        .and_then(|()| connection.flush());
    worked.unwrap_or_else(|error| panic!("{error}"));
    appliance.run(&["snapshot", "create", "v@s", "--hold-limit", "2s"]);
    (appliance, connection)
}

#[test]
fn an_idle_appliance_uses_under_two_percent_of_a_core() {
    let (appliance, mut connection) = with_open_connection(&["--processors", "2"]);
    // What the work above left to do in the background is not idleness.
    thread::sleep(Duration::from_secs(2));
    let before = cpu_ticks(appliance.pid());
    let start = Instant::now();
    thread::sleep(Duration::from_secs(5));
    // CPU time, not wall time: a loaded machine makes the sleep longer and does not add to it.
    let used = cpu_ticks(appliance.pid()) - before;
    let percent = used as f64 * 100.0 / (start.elapsed().as_secs_f64() * TICKS_PER_S as f64);
    eprintln!("idle, with an open connection: {percent:.2}% of a core");
    assert!(
        percent < 2.0,
        "{used} ticks of CPU time while idle, {percent:.2}% of a core"
    );
    let read = connection
        .read(0, 65536)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read, [7; 65536], "and it is still there");
    appliance.stop();
}

#[test]
fn busy_polling_never_sleeps_and_adaptive_polling_does() {
    for (poll, sleeps) in [("busy", false), ("adaptive", true)] {
        let (appliance, _connection) = with_open_connection(&["--processors", "2", "--poll", poll]);
        let turns = |field: &str| -> Vec<u64> {
            let status = appliance.run(&["status"]);
            list(&status, "/processors")
                .iter()
                .map(|of| number(of, field))
                .collect()
        };
        let before = turns("/turns");
        appliance.wait_until(
            "the idle processors have slept, or turned round and round",
            || {
                let slept = turns("/sleeps").iter().all(|&sleeps| sleeps > 10);
                slept
                    || turns("/turns")
                        .iter()
                        .zip(&before)
                        .all(|(now, before)| now - before > 10_000)
            },
        );
        let counts = turns("/sleeps");
        assert!(
            counts.iter().all(|&count| (count > 0) == sleeps),
            "--poll {poll}: slept {counts:?} times"
        );
        appliance.stop();
    }
}
