//! Files whose server does not answer any more: even to ask for their size takes for ever. Whoever has nothing to do with them
//! must not notice.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::support::foreign::must;
use crate::support::mounts::{Fuse, contained};
use crate::support::{Appliance, list, member};
use serde_json::Value;

const PROCESSORS: [&str; 2] = ["--processors", "2"];

fn state(appliance: &Appliance, pool: &str) -> Value {
    let pools = appliance.run(&["pool", "list"]);
    let mut pools = list(&pools, "").iter();
    let pool = pools.find(|known| member(known, "/name") == pool);
    member(pool.expect("it is known"), "/state").clone()
}

#[test]
fn a_server_that_does_not_answer_keeps_no_other_pool_from_coming_back() {
    contained(
        "unanswered::a_server_that_does_not_answer_keeps_no_other_pool_from_coming_back",
        || {
            let appliance = Appliance::started(&PROCESSORS);
            appliance.create_pool("p", 1, "128MiB", &[]);
            let served = appliance.path("served");
            fs::create_dir(&served).expect("a directory of ours");
            let remote = served.join("nbd");
            let remote_text = remote.to_str().expect("a path in UTF-8");
            appliance.run(&["pool", "create", "remote", remote_text, "--size", "128MiB"]);
            appliance.stop();
            let (device, away) = (appliance.path("p-0"), appliance.path("away"));
            for (from, to) in [(&device, &away), (&remote, &appliance.path("remote-away"))] {
                fs::rename(from, to).expect("taken out");
            }
            // Something else is there in the second one's place, which is looked at again and again.
            let server = Fuse::mount(&served, 1, &["[", "nbdkit", "memory", "128M", "]"]);
            appliance.start(&PROCESSORS);
            for pool in ["p", "remote"] {
                assert_eq!(state(&appliance, pool), "failed");
            }
            server.freeze();
            // Some looks, of which one does not end.
            thread::sleep(Duration::from_secs(5));
            fs::rename(&away, &device).expect("put back");
            appliance.wait_until("the pool is opened by itself", || {
                state(&appliance, "p") == "open"
            });
            assert_eq!(state(&appliance, "remote"), "failed");
            // Nor does it keep the daemon from stopping.
            appliance.stop();
            server.thaw();
        },
    );
}

#[test]
fn a_server_that_does_not_answer_at_the_start_keeps_no_other_pool_closed() {
    contained(
        "unanswered::a_server_that_does_not_answer_at_the_start_keeps_no_other_pool_closed",
        || {
            let appliance = Appliance::started(&PROCESSORS);
            let served = appliance.path("served");
            fs::create_dir(&served).expect("a directory of ours");
            let remote = served.join("nbd");
            let remote_text = remote.to_str().expect("a path in UTF-8");
            // It is the first to be opened.
            let here = appliance.path_text("here");
            let mirror = [
                "pool",
                "create",
                "both",
                "--mirror",
                remote_text,
                &here,
                "--size",
                "128MiB",
            ];
            appliance.run(&mirror);
            appliance.create_pool("p", 1, "128MiB", &[]);
            appliance.stop();
            let away = appliance.path("away");
            fs::rename(&remote, &away).expect("taken out");
            let server = Fuse::mount(&served, 1, &["[", "nbdkit", "memory", "128M", "]"]);
            server.freeze();
            appliance.start(&PROCESSORS);
            assert_eq!(state(&appliance, "p"), "open");
            assert_eq!(state(&appliance, "both"), "failed");
            let told = appliance.tell(&["pool", "show", "both"]);
            let reason = format!("{remote_text} has not answered");
            assert!(told.json.to_string().contains(&reason), "{told:?}");
            appliance.wait_until("the mirror is opened with the side that answers", || {
                state(&appliance, "both") == "degraded"
            });
            // By hand it is no different, and others are not kept waiting.
            let by_hand = thread::scope(|threads| {
                let by_hand = threads.spawn(|| appliance.tell(&["pool", "open", remote_text]));
                thread::sleep(Duration::from_secs(1));
                appliance.run(&["pool", "close", "p"]);
                appliance.run(&["pool", "open", &appliance.path_text("p-0")]);
                assert!(!by_hand.is_finished(), "it waits");
                server.thaw();
                by_hand.join().expect("it does not panic")
            });
            assert_ne!(by_hand.code, 0, "no pool lies there: {by_hand:?}");
            drop(server);
            fs::rename(&away, &remote).expect("put back");
            appliance.wait_until("the side is taken back when it answers", || {
                state(&appliance, "both") == "open"
            });
            appliance.stop();
        },
    );
}

/// A pool `first`, and a pool `second`, one side of which is a pipe that nobody writes to: who opens it waits.
fn with_a_silent_side() -> (Appliance, PathBuf) {
    let appliance = Appliance::started(&PROCESSORS);
    appliance.create_pool("first", 1, "128MiB", &[]);
    let silent = appliance.path("silent");
    let (silent_text, other) = (appliance.path_text("silent"), appliance.path_text("other"));
    let mirror = ["pool", "create", "second", "--mirror", &silent_text, &other];
    appliance.run(&[&mirror[..], &["--size", "128MiB"]].concat());
    appliance.stop();
    fs::rename(&silent, appliance.path("away")).expect("taken out");
    must("mkfifo", &[&silent_text]);
    (appliance, silent)
}

/// It answers, and is no device; then what was taken out is back.
fn put_back(appliance: &Appliance, silent: &Path) {
    let both_ways = fs::File::options().read(true).write(true).open(silent);
    drop(both_ways.expect("whoever waits goes on"));
    fs::remove_file(silent).expect("a pipe of ours");
    fs::rename(appliance.path("away"), silent).expect("put back");
}

#[test]
fn a_side_that_is_there_and_silent_at_the_start_is_found_by_its_name_later() {
    let (appliance, silent) = with_a_silent_side();
    appliance.start(&PROCESSORS);
    assert_eq!(state(&appliance, "second"), "failed");
    appliance.wait_until("it is opened with the side that answers", || {
        state(&appliance, "second") == "degraded"
    });
    put_back(&appliance, &silent);
    appliance.wait_until("the side is taken back", || state(&appliance, "second") == "open");
    appliance.stop();
}

#[test]
fn a_start_that_is_cut_short_forgets_no_pool_and_can_be_ended() {
    let (appliance, silent) = with_a_silent_side();
    let log = || fs::read_to_string(appliance.path("daemon.log")).expect("a log");
    let before = log().matches("pool_opened").count();
    let begin = || {
        let logged = log().len();
        appliance.spawn(&PROCESSORS, &[]);
        appliance.wait_until("the first pool is open", || {
            log()[logged..].contains("pool_opened")
        });
    };
    begin();
    appliance.kill();
    begin();
    assert_eq!(
        log().matches("pool_opened").count(),
        before + 2,
        "the second one is silent"
    );
    // Told to stop it ends what it has begun; told twice it does not.
    let (heard, over) = ("a second signal stops at once", "has not answered");
    let told = |words: &str| log().matches(words).count();
    let heard_before = told(heard);
    let terminate = || must("kill", &["-TERM", &appliance.pid().to_string()]);
    terminate();
    appliance.wait_until("it has heard", || told(heard) > heard_before);
    terminate();
    let ended = appliance.wait_for_the_end();
    assert!(
        ended.code() == Some(1) || told(over) > 0,
        "{ended}: it was in the middle of it"
    );
    fs::remove_file(&silent).expect("a pipe of ours");
    fs::rename(appliance.path("away"), &silent).expect("put back");
    appliance.start(&PROCESSORS);
    for pool in ["first", "second"] {
        assert_eq!(state(&appliance, pool), "open", "it is known still");
    }
    appliance.stop();
}
