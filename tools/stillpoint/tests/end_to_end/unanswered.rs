//! Files whose server does not answer any more: even to ask for their size takes for ever. Whoever has nothing to do with them
//! must not notice.

use std::fs;
use std::thread;
use std::time::Duration;

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
                appliance.run(&["pool", "close", "p"]);
                appliance.run(&["pool", "open", &appliance.path_text("p-0")]);
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
