//! Taking a snapshot keeps nobody waiting: writes are held for microseconds at most, reads of what nobody writes never, and
//! a hold that lasts too long ends by itself.

#![allow(clippy::print_stdout, reason = "figures worth reading")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::support::nbd::Connection;
use crate::support::{Appliance, list, number};
use stillpoint_simulator::random::Random;

const BLOCK: u64 = 4096;
/// Blocks of the volume; the first half is written all the time, the other one only read.
const BLOCKS: u64 = 4096;
const HOLD_LIMIT_NS: u64 = 2_000_000_000;
/// Snapshots that are taken, and snapshots that may hold for no time at all.
const SNAPSHOTS: u64 = 50;
const TOO_STRICT: u64 = 5;

/// Tells the clients to end, also when the test fails before it would have told them.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn write_until(stop: &AtomicBool, mut connection: Connection, seed: u64, answered: &AtomicU64) {
    let mut random = Random::new(seed);
    while !stop.load(Ordering::SeqCst) {
        let block = random.below(BLOCKS / 2);
        let written = connection.write(block * BLOCK, &[seed as u8; BLOCK as usize], false);
        written.unwrap_or_else(|error| panic!("{error}"));
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

fn read_until(stop: &AtomicBool, mut connection: Connection, answered: &AtomicU64) {
    let mut random = Random::new(9);
    while !stop.load(Ordering::SeqCst) {
        let block = BLOCKS / 2 + random.below(BLOCKS / 2);
        let bytes = connection.read(block * BLOCK, BLOCK as usize);
        let bytes = bytes.unwrap_or_else(|error| panic!("{error}"));
        assert!(bytes.iter().all(|&byte| byte == 7), "block {block}");
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

/// V4: everybody is answered while snapshots are taken, no answer is held beyond the limit, and when the limit is too
/// strict for any snapshot there is none, and the clients go on.
#[test]
fn clients_go_on_while_snapshots_are_taken_and_holds_end_by_themselves() {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("tank", 2, "1GiB", &[]);
    let volume = ["volume", "create", "disk", "--size", "16MiB"];
    appliance.run(&[&volume[..], &["--object-size", "1MiB"]].concat());
    appliance.run(&["export", "create", "disk"]);
    let filled = appliance
        .connect("disk")
        .write(0, &vec![7; (BLOCKS * BLOCK) as usize], false);
    filled.unwrap_or_else(|error| panic!("{error}"));
    let (stop, written, read) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (mut held, mut longest_ns) = (0, 0);
    thread::scope(|scope| {
        let _ending = Ending(&stop);
        for seed in 1..=4 {
            let (connection, stop, written) = (appliance.connect("disk"), &stop, &written);
            scope.spawn(move || write_until(stop, connection, seed, written));
        }
        let connection = appliance.connect("disk");
        scope.spawn(|| read_until(&stop, connection, &read));
        let clients_go_on = || {
            let count = || [written.load(Ordering::SeqCst), read.load(Ordering::SeqCst)];
            let before = count();
            appliance.wait_until("readers and writers are answered", || {
                count().iter().zip(before).all(|(now, before)| *now > before + 1)
            });
        };
        for at in 0..SNAPSHOTS {
            let told = appliance.run(&["snapshot", "create", &format!("disk@{at}"), "--hold-limit", "2s"]);
            assert!(number(&told, "/hold_ns_max") <= HOLD_LIMIT_NS, "{told}");
            assert!(number(&told, "/answer_held_ns_max") <= HOLD_LIMIT_NS, "{told}");
            held += number(&told, "/answers_held");
            longest_ns = longest_ns.max(number(&told, "/answer_held_ns_max"));
            clients_go_on();
        }
        for _ in 0..TOO_STRICT {
            let told = appliance.tell(&["snapshot", "create", "disk@never", "--hold-limit", "1ns"]);
            assert_eq!(told.code, 1, "{}", told.errors);
            assert!(told.errors.contains("--hold-limit"), "{}", told.errors);
            clients_go_on();
        }
    });
    let left = appliance.run(&["snapshot", "list", "disk"]);
    assert_eq!(list(&left, "").len() as u64, SNAPSHOTS, "half of one is none");
    println!(
        "{SNAPSHOTS} snapshots while {} writes and {} reads were answered: {held} answers held, the longest for {:.1} us",
        written.load(Ordering::SeqCst),
        read.load(Ordering::SeqCst),
        longest_ns as f64 / 1e3
    );
    appliance.stop();
}
