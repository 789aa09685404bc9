//! Where the time of requests goes, as the command line, the API and the metrics say it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::with_volume;
use crate::support::{Appliance, list, member, number};

/// Requests that were counted in a stage, over all processors.
fn count(appliance: &Appliance, kind: &str, stage: &str) -> u64 {
    let infos = appliance.run(&["stats"]);
    let same = |info: &&serde_json::Value| info["kind"] == kind && info["stage"] == stage;
    let found = list(&infos, "").iter().filter(same);
    found
        .map(|info| {
            let counted = list(info, "/counted").iter();
            let sum: u64 = counted.map(|pair| number(pair, "/1")).sum();
            assert_eq!(sum, number(info, "/count"), "{info}");
            sum
        })
        .sum()
}

fn metrics(appliance: &Appliance) -> String {
    let mut stream = UnixStream::connect(appliance.path("run/control.sock")).expect("connected");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("answered");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("text/plain"),
        "{head}"
    );
    body.to_owned()
}

#[test]
fn every_request_is_counted_once_in_each_stage_that_it_passes() {
    let appliance = with_volume();
    appliance.run(&["export", "create", "v"]);
    let mut connection = appliance.connect("v");
    // Objects of 1 MiB on two processors: half of them go through the ring.
    for object in 0..8 {
        connection
            .write(object << 20, &[7; 4096], false)
            .expect("written");
        connection.read(object << 20, 4096).expect("read");
        connection.read((object << 20) + 8192, 4096).expect("a hole");
    }
    connection.trim(0, 4096).expect("discarded");
    connection.flush().expect("flushed");
    // A reply counts when the processor has seen that it left.
    appliance.wait_until("the last reply is counted", || {
        count(&appliance, "flush", "total") == 1
    });
    for (kind, stage, expected) in [
        ("write", "receive", 8),
        ("write", "ring", 8),
        ("write", "map", 8),
        ("write", "device", 8),
        ("write", "log", 8),
        ("write", "reply", 8),
        ("write", "total", 8),
        ("read", "map", 16),
        ("read", "device", 8),
        ("read", "log", 0),
        ("read", "total", 16),
        ("read", "held", 0),
        ("discard", "map", 1),
        ("discard", "total", 1),
        ("flush", "device", 0),
        ("flush", "log", 2),
        ("flush", "total", 1),
    ] {
        assert_eq!(count(&appliance, kind, stage), expected, "{kind} {stage}");
    }
    let text = metrics(&appliance);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(
            name.starts_with("stillpoint_") && value.parse::<f64>().is_ok(),
            "{line}"
        );
    }
    let writes = |text: &str| -> u64 {
        let lines = text.lines().filter(|line| {
            line.starts_with("stillpoint_stage_seconds_count")
                && line.contains("kind=\"write\",stage=\"device\"")
        });
        lines
            .map(|line| {
                line.rsplit_once(' ')
                    .expect("a value")
                    .1
                    .parse::<u64>()
                    .expect("a count")
            })
            .sum()
    };
    assert_eq!(writes(&text), 8);
    let status = appliance.run(&["status"]);
    assert_eq!(number(member(&status, "/processors/0/shards/0"), "/writes"), 4);
    assert!(
        text.contains("stillpoint_shard_writes_total{pool=\"p\",shard=\"0\"} 4\n"),
        "{text}"
    );
    appliance.run(&["pool", "close", "p"]);
    assert_eq!(
        writes(&metrics(&appliance)),
        8,
        "a closed pool does not take its past along"
    );
    let during = appliance.run(&["stats", "--during", "10ms"]);
    assert_eq!(list(&during, "").len(), 0, "nothing happens meanwhile: {during}");
}
