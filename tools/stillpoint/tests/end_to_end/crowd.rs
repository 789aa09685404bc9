//! Many clients, and such that take without giving: limits hold, who is refused is told, and the others notice
//! nothing.

use std::thread;
use std::time::Duration;

use crate::support::good_client::GoodClient;
use crate::support::nbd::Connection;
use crate::support::process::{allow_descriptors, descriptors, resident_bytes};
use crate::support::raw::{FLAGS, Raw, hello};
use crate::support::{Appliance, list, number};
use stillpoint_export::nbd::client::{ClientError, encode_option};
use stillpoint_export::nbd::wire::{RequestHeader, command, option, option_reply};

const MIB: u32 = 1 << 20;

/// A daemon with exports `good` and `other` of two volumes.
fn with_exports(arguments: &[&str]) -> Appliance {
    let appliance = Appliance::started(&[&["--processors", "2"], arguments].concat());
    appliance.create_pool("p", 1, "1GiB", &[]);
    for volume in ["alone", "crowded", "good", "other", "settled"] {
        appliance.run(&[
            "volume",
            "create",
            volume,
            "--size",
            "64MiB",
            "--object-size",
            "1MiB",
        ]);
        appliance.run(&["export", "create", volume]);
    }
    appliance
}

fn connections(appliance: &Appliance) -> u64 {
    number(&appliance.run(&["status"]), "/connections")
}

/// A figure of all processors together.
fn sum(appliance: &Appliance, path: &str) -> u64 {
    let status = appliance.run(&["status"]);
    list(&status, "/processors")
        .iter()
        .map(|of| number(of, path))
        .sum()
}

fn log_of(appliance: &Appliance) -> String {
    std::fs::read_to_string(appliance.path("daemon.log")).expect("the log")
}

#[test]
fn connections_beyond_the_limit_are_closed_and_come_free_again() {
    let appliance = with_exports(&["--connection-limit", "8"]);
    let open = || Connection::open(&appliance.nbd_socket(), "good");
    let mut inside: Vec<Connection> = (0..8).map(|_| open().expect("within the limit")).collect();
    assert_eq!(connections(&appliance), 8);
    for refused in 1..=3 {
        let heard = Raw::silent(&appliance.nbd_socket())
            .expect("the system connects")
            .rest();
        assert!(heard.is_empty(), "not even a greeting");
        let status = appliance.run(&["status"]);
        assert_eq!(number(&status, "/connections"), 8);
        assert_eq!(number(&status, "/connections_refused"), refused);
    }
    for connection in &mut inside {
        connection.read(0, 4096).unwrap_or_else(|error| panic!("{error}"));
    }
    inside.truncate(5);
    appliance.wait_until("three are gone", || connections(&appliance) == 5);
    inside.extend((0..3).map(|_| open().expect("there is room again")));
    assert_eq!(connections(&appliance), 8);
    drop(inside);
    appliance.wait_until("all are gone", || connections(&appliance) == 0);
    let log = log_of(&appliance);
    assert!(
        log.contains("8 connections are open, which is the limit"),
        "{log}"
    );
    appliance.stop();
}

#[test]
fn a_full_export_says_so_and_the_others_are_open() {
    let appliance = with_exports(&["--export-connection-limit", "3"]);
    let open = |export| Connection::open(&appliance.nbd_socket(), export);
    let figures = || {
        let exports = appliance.run(&["export", "list"]);
        let good = list(&exports, "").iter().find(|export| export["name"] == "good");
        let of = |path| number(good.expect("it is listed"), path);
        (of("/connections"), of("/connections_refused"))
    };
    let mut inside: Vec<Connection> = (0..3).map(|_| open("good").expect("within the limit")).collect();
    for refused in 1..=2 {
        match open("good") {
            Err(ClientError::Refused {
                option: option::GO,
                error: option_reply::ERR_POLICY,
                message,
            }) => assert!(message.contains("3 connections"), "{message}"),
            other => panic!("refused with the reason expected: {other:?}"),
        }
        assert_eq!(figures(), (3, refused));
    }
    let other = open("other").expect("it has a limit of its own");
    // A change of the exports does not forget who is connected.
    appliance.run(&["export", "create", "good", "--name", "zero"]);
    assert!(open("good").is_err());
    assert_eq!(figures(), (3, 3));
    inside.pop();
    appliance.wait_until("one is gone", || figures().0 == 2);
    inside.push(open("good").expect("there is room again"));
    drop((inside, other));
    appliance.wait_until("all are gone", || figures().0 == 0);
    appliance.stop();
}

#[test]
fn who_chooses_no_export_in_time_is_disconnected() {
    let appliance = with_exports(&["--handshake-limit", "300ms"]);
    let mut decided = appliance.connect("good");
    let socket = appliance.nbd_socket();
    let greeted = || Raw::open(&socket).expect("greeted");
    let with = |bytes: &[u8]| {
        let mut raw = greeted();
        raw.send(bytes);
        raw
    };
    let flags = FLAGS.to_be_bytes();
    let mut clients = vec![
        Raw::silent(&socket).expect("connected"),
        greeted(),
        with(&flags[..2]),
        with(&flags),
        with(&[&flags[..], &encode_option(option::LIST, &[])[..15]].concat()),
        with(&[&flags[..], &encode_option(option::LIST, &[])].concat()),
        with(&hello("good", true, &[])[..60]),
    ];
    // One that asks and asks, so that it is never silent, and one that takes no answers.
    let mut asking = with(&flags);
    for _ in 0..20 {
        asking.send(&encode_option(option::STARTTLS, &[]));
        thread::sleep(Duration::from_millis(20));
    }
    clients.push(asking);
    let count = clients.len() as u64;
    for client in &mut clients {
        client.rest(); // panics if the server does not hang up
    }
    assert_eq!(sum(&appliance, "/late"), count);
    appliance.wait_until("they are gone", || connections(&appliance) == 1);
    decided
        .read(0, 4096)
        .unwrap_or_else(|error| panic!("who has chosen may be idle for as long as it likes: {error}"));
    assert!(log_of(&appliance).contains("chose no export within 300 ms"));
    appliance.stop();
}

/// Clients that hold on to what they get: idle ones, ones that send a byte now and then, ones that never take an
/// answer, ones that connect and say nothing.
struct Crowd {
    idle: Vec<Connection>,
    slow: Vec<(Raw, Vec<u8>, usize)>,
    _non_reading: Vec<Raw>,
    connecting: Vec<Raw>,
}

impl Crowd {
    fn gather(appliance: &Appliance, connecting: usize) -> Self {
        let socket = appliance.nbd_socket();
        let chosen = || {
            let mut raw = Raw::open(&socket).expect("greeted");
            raw.send(&hello("other", true, &[]));
            raw
        };
        let slow = |index: u64| {
            let header = RequestHeader {
                flags: 0,
                command: command::WRITE,
                cookie: index,
                offset_bytes: (index % 64) * u64::from(MIB),
                length_bytes: MIB,
            };
            let bytes = [&header.encode()[..], &vec![7; MIB as usize]].concat();
            (chosen(), bytes, 0)
        };
        let non_reading = |index: u64| {
            let mut requests = Vec::new();
            for number in 0..500 {
                let header = RequestHeader {
                    flags: 0,
                    command: command::READ,
                    cookie: index << 32 | number,
                    offset_bytes: (number % 64) * u64::from(MIB),
                    length_bytes: MIB,
                };
                requests.extend(header.encode());
            }
            let mut raw = chosen();
            raw.send(&requests);
            raw
        };
        Self {
            idle: (0..300).map(|_| appliance.connect("other")).collect(),
            slow: (0..100).map(slow).collect(),
            _non_reading: (0..8).map(non_reading).collect(),
            connecting: (0..connecting)
                .map(|_| Raw::silent(&socket).expect("connected"))
                .collect(),
        }
    }

    /// Each slow client sends its header and a bit of its payload first, then a byte each time.
    fn dawdle(&mut self) {
        for (raw, bytes, sent) in &mut self.slow {
            let more = if *sent == 0 { 1000 } else { 1 };
            *sent += raw
                .send_some(&bytes[*sent..*sent + more])
                .expect("the server has patience with it");
        }
    }
}

#[test]
fn a_good_client_is_served_in_a_crowd() {
    let scale = std::env::var("STILLPOINT_CROWD").map_or(1000, |count| count.parse().expect("a number"));
    allow_descriptors(scale as u32 + 2000);
    let appliance = with_exports(&["--handshake-limit", "4s", "--connection-limit", "60000"]);
    let pid = appliance.pid();
    let served = |export, seed, requests| {
        let good = GoodClient::start(&appliance.nbd_socket(), export, seed);
        good.wait_for(requests);
        good.finish()
    };
    let alone = served("alone", 1, 3000);
    appliance.wait_until("nobody is connected", || connections(&appliance) == 0);
    let before = (descriptors(pid), sum(&appliance, "/buffer_bytes_used"));
    let resident = resident_bytes(pid);

    let good = GoodClient::start(&appliance.nbd_socket(), "crowded", 2);
    good.wait_for(1);
    let mut crowd = Crowd::gather(&appliance, scale);
    let mut most = 0;
    for _ in 0..30 {
        crowd.dawdle();
        good.wait_for(100);
        most = most.max(resident_bytes(pid));
    }
    for raw in &mut crowd.connecting {
        raw.rest(); // sent away at the end of its time
    }
    assert_eq!(sum(&appliance, "/late"), scale as u64);
    appliance.wait_until("the others are all still there", || {
        connections(&appliance) == 1 + 300 + 100 + 8
    });
    for connection in &mut crowd.idle {
        connection.read(0, 4096).unwrap_or_else(|error| panic!("{error}"));
    }
    crowd.dawdle();
    let crowded = good.finish();
    let settled = served("settled", 3, 3000);
    drop(crowd);
    appliance.wait_until("everybody is gone", || connections(&appliance) == 0);
    appliance.wait_until("everything is back", || {
        (descriptors(pid), sum(&appliance, "/buffer_bytes_used")) == before
    });
    let after = resident_bytes(pid);
    // How long they took is no figure of this test, which shares its cores with others: `benches` has one for that.
    eprintln!(
        "the good client: {} requests alone, {} in a crowd of 300 idle, 100 slow, 8 non-reading, {scale} connecting, \
         {} when the connecting ones are gone; none failed",
        alone.requests, crowded.requests, settled.requests
    );
    eprintln!(
        "resident memory: {} MiB before, {} MiB at most, {} MiB after",
        resident >> 20,
        most >> 20,
        after >> 20
    );
    // 64 MiB of buffers for each of two processors, and 128 KiB for each client.
    let bound = resident + (128 << 20) + (1409 + scale as u64) * (128 << 10);
    assert!(most <= bound, "{most} bytes resident, more than {bound}");
    appliance.stop();
}
