//! Deleting a snapshot and waiting for its space; and deleting that is interrupted.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::{Appliance, list, member, number};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// What is read of maps is read from the device: freeing takes its time.
const ARGUMENTS: [&str; 4] = ["--processors", "2", "--map-cache", "8MiB"];

/// Of the pool `tank`: bytes in use, and bytes that come free with the next checkpoint.
fn used(appliance: &Appliance) -> (u64, u64) {
    let pool = appliance.run(&["pool", "show", "tank"]);
    (number(&pool, "/used_bytes"), number(&pool, "/pending_bytes"))
}

/// An appliance with a volume `disk` that is exported.
fn appliance(size: &str) -> Appliance {
    let appliance = Appliance::started(&ARGUMENTS);
    appliance.create_pool("tank", 1, "1GiB", &[]);
    appliance.run(&[
        "volume",
        "create",
        "disk",
        "--size",
        size,
        "--object-size",
        "1MiB",
    ]);
    appliance.run(&["export", "create", "disk"]);
    appliance
}

#[test]
fn who_waits_for_a_deletion_can_use_the_space_when_it_returns() {
    let appliance = appliance("64MiB");
    let mut connection = appliance.connect("disk");
    let mut fill = |byte: u8| {
        for offset in (0..64 * MIB).step_by(1 << 20) {
            let written = connection.write(offset, &vec![byte; 1 << 20], false);
            written.unwrap_or_else(|error| panic!("{error}"));
        }
    };
    fill(1);
    appliance.run(&["snapshot", "create", "disk@s", "--hold-limit", "2s"]);
    fill(2);
    let (before, _) = used(&appliance);
    let ended = appliance.run(&["snapshot", "delete", "disk@s", "--wait"]);
    let (after, pending) = used(&appliance);
    assert_eq!(member(&ended, "/state"), "gone");
    assert_eq!(
        (number(&ended, "/shares_left"), number(&ended, "/left_bytes")),
        (0, 0)
    );
    let freed = number(&ended, "/freed_bytes");
    assert!((64 * MIB..66 * MIB).contains(&freed), "{freed}");
    assert!(
        after + 64 * MIB <= before,
        "{before} bytes in use before, {after} after"
    );
    assert!(pending < MIB, "{pending} bytes have to wait for a checkpoint");
    appliance.stop();
}

#[test]
fn a_deletion_that_cannot_end_soon_says_so_and_what_is_not_there_is_refused() {
    let appliance = appliance("64MiB");
    let write = |offset: u64| {
        let written = appliance.connect("disk").write(offset, &[1; BLOCK], false);
        written.unwrap_or_else(|error| panic!("{error}"));
    };
    write(0);
    appliance.run(&["snapshot", "create", "disk@a", "--hold-limit", "2s"]);
    write(MIB);
    appliance.run(&["snapshot", "create", "disk@b", "--hold-limit", "2s"]);
    // From then on two maps are made of `a`: that of `b`, and the volume's.
    appliance.run(&["volume", "rollback", "disk@a", "--force"]);
    let waits = appliance.run(&["snapshot", "delete", "disk@a", "--wait"]);
    assert_eq!(member(&waits, "/state"), "branches", "{waits:#}");
    assert!(number(&waits, "/shares_left") > 0);
    // When what follows in one branch goes, so does `a`.
    for name in ["disk@b", "disk@before-a"] {
        let ended = appliance.run(&["snapshot", "delete", name, "--wait"]);
        assert_eq!(member(&ended, "/state"), "gone", "{name}: {ended:#}");
    }
    let told = appliance.tell(&["snapshot", "delete", "disk@a", "--wait"]);
    assert_eq!(told.code, 3, "{}", told.errors);
    appliance.stop();
    let device = appliance.path_text("tank-0");
    appliance
        .check_devices(&[&device])
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Deletes a snapshot and waits, in another process.
fn waiting(appliance: &Appliance, snapshot: &str) -> Child {
    let command = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["snapshot", "delete", snapshot, "--wait", "--socket"])
        .arg(appliance.control_socket())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    command.expect("the program starts")
}

#[test]
fn a_deletion_that_is_killed_in_its_middle_is_gone_on_with() {
    const LEAVES: u64 = 12_000;
    let appliance = appliance("16GiB");
    let mut interrupted = 0;
    for round in 0..8 {
        // One block in each MiB: the map is large, and most of the way is ahead for long.
        let mut connection = appliance.connect("disk");
        for pass in 0..2 {
            for leaf in 0..LEAVES {
                connection
                    .send_write(leaf * MIB, &[round * 2 + pass + 1; BLOCK])
                    .unwrap_or_else(|error| panic!("{error}"));
                if leaf % 64 == 63 || leaf + 1 == LEAVES {
                    for _ in 0..=leaf % 64 {
                        connection
                            .await_answer()
                            .unwrap_or_else(|error| panic!("{error}"));
                    }
                }
            }
            if pass == 0 {
                appliance.run(&["snapshot", "create", "disk@s", "--hold-limit", "2s"]);
            }
        }
        drop(connection);
        let (before, _) = used(&appliance);
        let mut child = waiting(&appliance, "disk@s");
        let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut seen = Vec::new();
        for line in lines.map_while(Result::ok) {
            seen.push(line);
            // It has begun and not ended.
            if seen
                .iter()
                .any(|line| line.starts_with("freeing:") && !line.contains(" 0 B freed"))
            {
                break;
            }
        }
        appliance.kill();
        let status = child.wait().expect("a child of ours");
        interrupted += u64::from(!status.success());
        appliance.start(&ARGUMENTS);
        assert!(list(&appliance.run(&["snapshot", "list"]), "").is_empty());
        // What was freed is not told any more, but the space has to come back by itself.
        appliance.wait_until("the space is back", || {
            let (now, _) = used(&appliance);
            now + LEAVES * BLOCK as u64 <= before
        });
        appliance.stop();
        let device = appliance.path_text("tank-0");
        appliance
            .check_devices(&[&device])
            .unwrap_or_else(|error| panic!("{error}"));
        appliance.start(&ARGUMENTS);
        if interrupted >= 2 {
            appliance.stop();
            return;
        }
    }
    panic!("only {interrupted} of 8 deletions were interrupted");
}

/// Many at once, and all of them or none.
#[test]
fn several_are_deleted_with_one_command_or_none_of_them() {
    let appliance = appliance("16MiB");
    appliance.run(&["volume", "create", "other", "--size", "16MiB"]);
    for name in ["disk@a", "disk@b", "disk,other@both", "disk@kept"] {
        appliance.run(&["snapshot", "create", name, "--hold-limit", "2s"]);
    }
    let names = || {
        let found = appliance.run(&["snapshot", "list", "disk"]);
        let mut names: Vec<String> = (list(&found, "").iter())
            .map(|snapshot| member(snapshot, "/name").as_str().expect("a name").to_owned())
            .collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(), ["disk@a", "disk@b", "disk@both", "disk@kept"]);
    appliance.run(&["snapshot", "lock", "disk@kept", "--until", "1d"]);
    for (last, why) in [
        ("disk@nowhere", "there is no snapshot disk@nowhere"),
        ("disk@kept", "locked"),
        ("disk", "volume@name"),
    ] {
        let told = appliance.tell(&["snapshot", "delete", "disk@a", "disk@b", last]);
        assert_ne!(told.code, 0, "{last}");
        assert!(told.errors.contains(why), "{last}: {}", told.errors);
        assert_eq!(names(), ["disk@a", "disk@b", "disk@both", "disk@kept"], "{last}");
    }
    // What was taken of two volumes is one snapshot, however often it is named.
    appliance.run(&[
        "snapshot",
        "delete",
        "disk@a",
        "disk@both",
        "other@both",
        "disk@a",
    ]);
    assert_eq!(names(), ["disk@b", "disk@kept"]);
    appliance.kill();
    appliance.start(&ARGUMENTS);
    assert_eq!(names(), ["disk@b", "disk@kept"]);
}
