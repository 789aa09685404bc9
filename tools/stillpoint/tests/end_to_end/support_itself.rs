//! The tests' own tools, tested against a server that nobody here wrote: a load that finds no fault with a good
//! server, and does find fault with one that loses or mixes up what was written.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use crate::support::Appliance;
use crate::support::history::History;
use crate::support::load::Load;
use crate::support::nbd::Connection;
use crate::support::nbdkit::Nbdkit;
use stillpoint_simulator::model::Range;
use stillpoint_simulator::stamp::{self, SECTOR_BYTES, Shown};

const SIZE: u64 = 8 << 20;

#[test]
fn a_daemon_has_started_when_it_answers_not_when_somebody_listens() {
    let appliance = Appliance::new();
    let control = appliance.control_socket();
    std::fs::create_dir(control.parent().expect("a directory")).expect("made");
    // As a process does whose sockets outlive it for a moment.
    let ghost = UnixListener::bind(&control).expect("bound");
    let fading = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(ghost);
    });
    appliance.start(&[]);
    assert_eq!(appliance.run(&["pool", "list"]), serde_json::json!([]));
    fading.join().expect("no panic");
}

#[test]
fn a_good_server_has_nothing_to_fear() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("nbd.sock");
    let _nbdkit = Nbdkit::start(&socket, &["memory", "8M"]);
    let history = Arc::new(History::new(1, SIZE));
    let load = Load::start(&socket, "", 3, &history, 1, 42);
    load.wait_for_answers(3000);
    load.finish();
    let all = Connection::open(&socket, "").expect("it answers").read_all();
    let all = all.unwrap_or_else(|error| panic!("{error}"));
    history.crashed();
    assert_eq!(history.recovered(&all), Ok(()));
    let changed: Vec<u8> = all.iter().map(|byte| byte ^ 1).collect();
    assert!(history.recovered(&changed).is_err());
}

#[test]
#[should_panic(expected = "must not be seen")]
fn a_server_that_forgets_writes_is_found_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("nbd.sock");
    // Every connection has a disk of its own: what one writes, the others do not see.
    let _nbdkit = Nbdkit::start(
        &socket,
        &["tmpdisk", "size=8M", "command=truncate -s $size $disk"],
    );
    let history = Arc::new(History::new(1, SIZE));
    let load = Load::start(&socket, "", 3, &history, 1, 42);
    load.wait_for_answers(1000);
    load.finish();
}

/// A volume of eight sectors, for the laws of the history.
const SMALL: usize = 8 * SECTOR_BYTES;

fn wrote(history: &History, volume: &mut [u8], first: usize, count: usize) -> Shown {
    let range = Range {
        first: first as u64,
        count: count as u64,
    };
    let number = history.write_sent(false, range);
    let bytes = &mut volume[first * SECTOR_BYTES..(first + count) * SECTOR_BYTES];
    stamp::fill(number, 1, first as u64, bytes);
    number
}

#[test]
fn a_lost_acknowledged_write_is_found() {
    let history = History::new(1, SMALL as u64);
    let mut volume = vec![0; SMALL];
    let number = wrote(&history, &mut volume, 2, 3);
    history.write_acknowledged(number, false);
    history.crashed();
    assert!(history.recovered(&vec![0; SMALL]).is_err());
    assert_eq!(history.recovered(&volume), Ok(()));
}

#[test]
fn a_power_cut_may_take_only_what_was_not_flushed() {
    // Sector 0 is written before a flush is sent, 1 is acknowledged after that, 2 is written with FUA.
    for (lost, allowed) in [(0, false), (1, true), (2, false)] {
        let history = History::with_power_cuts(1, SMALL as u64);
        let mut volume = vec![0; SMALL];
        let numbers = [0, 1, 2].map(|sector| wrote(&history, &mut volume, sector, 1));
        history.write_acknowledged(numbers[0], false);
        let flush = history.now();
        history.write_acknowledged(numbers[1], false);
        history.flushed(flush);
        history.write_acknowledged(numbers[2], true);
        history.crashed();
        volume[lost * SECTOR_BYTES..(lost + 1) * SECTOR_BYTES].fill(0);
        assert_eq!(history.recovered(&volume).is_ok(), allowed, "sector {lost} lost");
    }
}

#[test]
fn a_write_in_flight_at_the_crash_is_there_or_not_and_stays_so() {
    for there in [false, true] {
        let history = History::new(1, SMALL as u64);
        let mut volume = vec![0; SMALL];
        wrote(&history, &mut volume, 0, 8);
        let found = if there { volume.clone() } else { vec![0; SMALL] };
        let other = if there { vec![0; SMALL] } else { volume };
        history.crashed();
        assert_eq!(history.recovered(&found), Ok(()));
        let now = history.now();
        assert_eq!(history.read_answered(0, &found, now), Ok(()));
        assert!(history.read_answered(0, &other, now).is_err());
    }
}

#[test]
fn a_snapshot_with_the_second_write_but_not_the_first_is_found() {
    let history = History::new(1, SMALL as u64);
    let mut volume = vec![0; SMALL];
    let sent = history.now();
    let first = wrote(&history, &mut volume, 0, 1);
    history.write_acknowledged(first, false);
    let with_first = volume.clone();
    let second = wrote(&history, &mut volume, 4, 1);
    history.write_acknowledged(second, false);
    let answered = history.now();
    let mut only_second = volume.clone();
    only_second[..SECTOR_BYTES].fill(0);
    for whole in [&vec![0; SMALL], &with_first, &volume] {
        let content = history.first_look(whole, sent, answered).expect("one instant");
        assert_eq!(history.next_look(whole, &content), Ok(()));
        assert!(history.next_look(&only_second, &content).is_err());
    }
    assert!(history.first_look(&only_second, sent, answered).is_err());
}

#[test]
fn a_snapshot_without_what_was_acknowledged_before_it_is_found() {
    let history = History::new(1, SMALL as u64);
    let mut volume = vec![0; SMALL];
    let first = wrote(&history, &mut volume, 0, 1);
    history.write_acknowledged(first, false);
    let sent = history.now();
    let answered = history.now();
    assert!(history.first_look(&vec![0; SMALL], sent, answered).is_err());
    assert!(history.first_look(&volume, sent, answered).is_ok());
}
