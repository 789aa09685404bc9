//! `stillpoint demo` as a user runs it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn the_demo_proves_its_snapshot_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["demo", "--processors", "2", "--connections", "2", "--depth", "4"])
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    for expected in [
        "the snapshot shows one instant",
        "before  writes",
        "during  reads",
        "after   writes",
        "P99.9",
        "stillpoint pool create",
    ] {
        assert!(said.contains(expected), "no {expected:?} in\n{said}");
    }
    let left: Vec<_> = std::fs::read_dir(scratch.path())
        .expect("it is there")
        .flatten()
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind_either() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let mut child = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["demo", "--processors", "2"])
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut said = String::new();
    let output = child.stdout.take().expect("a pipe");
    // Its first line says that the daemon runs.
    BufReader::new(output).read_line(&mut said).expect("text");
    assert!(said.starts_with("daemon:"), "{said}");
    let asked = Command::new("kill")
        .arg("-INT")
        .arg(child.id().to_string())
        .status();
    assert!(asked.expect("kill runs").success());
    assert_eq!(child.wait().expect("a child of ours").code(), Some(130));
    let left: Vec<_> = std::fs::read_dir(scratch.path())
        .expect("it is there")
        .flatten()
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_directory_that_exists_is_not_touched() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(scratch.path().join("mine"), "precious").expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["demo", "--dir"])
        .arg(scratch.path())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    assert!(!output.status.success());
    let mine = std::fs::read_to_string(scratch.path().join("mine")).expect("still there");
    assert_eq!(mine, "precious");
}
