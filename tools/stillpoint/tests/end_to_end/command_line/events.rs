//! Events: what happened, in order, and waiting for what comes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{refused, with_volume};
use crate::support::{Appliance, list, member, number};

/// Kind and subject of the events after a number.
fn after(appliance: &Appliance, number: u64) -> Vec<(String, String)> {
    let found = appliance.run(&["events", "--after", &number.to_string()]);
    let word = |event: &Value, path: &str| member(event, path).as_str().expect("a text").to_owned();
    list(&found, "/events")
        .iter()
        .map(|event| (word(event, "/kind"), word(event, "/subject")))
        .collect()
}

fn last(appliance: &Appliance) -> u64 {
    number(&appliance.run(&["events"]), "/last")
}

#[test]
fn what_happens_is_told_in_order() {
    let appliance = with_volume();
    let kinds = after(&appliance, 0);
    let expected = [("pool_opened", ""), ("volume_created", "v")];
    assert_eq!(
        kinds,
        expected.map(|(kind, subject)| (kind.to_owned(), subject.to_owned()))
    );
    let known = last(&appliance);
    appliance.run(&["snapshot", "create", "v@a"]);
    appliance.run(&["export", "create", "v@a", "--name", "frozen"]);
    appliance.run(&["export", "delete", "frozen"]);
    appliance.run(&["snapshot", "delete", "v@a"]);
    let told = appliance.tell(&["snapshot", "create", "v@b", "--hold-limit", "1ns"]);
    assert_eq!(told.code, 1);
    appliance.run(&["volume", "resize", "v", "--size", "32MiB"]);
    appliance.run(&["volume", "delete", "v"]);
    appliance.run(&["pool", "close", "p"]);
    let expected = [
        ("snapshot_taken", "v@a"),
        ("export_created", "v@a"),
        ("export_deleted", "frozen"),
        ("snapshot_deleted", "v@a"),
        ("snapshot_failed", "v@b"),
        ("volume_resized", "v"),
        ("volume_deleted", "v"),
        ("pool_closed", ""),
    ];
    assert_eq!(
        after(&appliance, known),
        expected.map(|(kind, subject)| (kind.to_owned(), subject.to_owned()))
    );
    let newest = appliance.run(&["events", "--limit", "2"]);
    let numbers: Vec<u64> = list(&newest, "/events")
        .iter()
        .map(|event| number(event, "/number"))
        .collect();
    // Between the two lie the checkpoints of the shards that were closed, which only those are told who ask.
    assert_eq!(numbers.len(), 2);
    assert!(
        numbers[0] < numbers[1] && numbers[1] == last(&appliance),
        "{numbers:?}"
    );
}

/// Ends a process even if the test panics.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_follower_hears_of_each_event_as_it_comes_and_of_the_end() {
    let appliance = with_volume();
    let child = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["events", "--follow", "-o", "json", "--after"])
        .arg(last(&appliance).to_string())
        .arg("--socket")
        .arg(appliance.control_socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut follower = Follower(child.expect("the program starts"));
    let mut lines = BufReader::new(follower.0.stdout.take().expect("piped")).lines();
    for name in ["v@a", "v@b"] {
        appliance.run(&["snapshot", "create", name]);
        let line = lines.next().expect("a line").expect("UTF-8");
        let event: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(member(&event, "/kind"), "snapshot_taken");
        assert_eq!(member(&event, "/subject"), name);
        assert_eq!(member(&event, "/pool"), "p");
    }
    appliance.stop();
    let status = follower.0.wait().expect("it ends");
    assert_eq!(status.code(), Some(5), "the daemon is gone");
}

#[test]
fn a_question_that_cannot_be_answered_says_why() {
    let appliance = with_volume();
    refused(&appliance.tell(&["events", "--limit", "0"]), 2, "1..=1000");
    refused(&appliance.tell(&["events", "--after", "x"]), 2, "invalid digit");
}
