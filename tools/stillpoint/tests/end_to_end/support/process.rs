//! What a process holds: memory and descriptors, as `/proc` tells it.

use std::fs;
use std::process::Command;

/// Resident memory in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a line about resident memory");
    let kib: u64 = line
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .expect("a number of KiB");
    kib << 10
}

/// Open descriptors.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process lives")
        .count()
}

/// Lets this process have as many descriptors as a crowd of clients needs.
pub fn allow_descriptors(count: u32) {
    let pid = std::process::id().to_string();
    let allowed = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={count}:")])
        .status();
    assert!(
        allowed.expect("prlimit runs").success(),
        "this test needs {count} descriptors: raise the hard limit (ulimit -Hn)"
    );
}
