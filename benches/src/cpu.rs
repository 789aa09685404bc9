//! CPU time and memory of a process, from `/proc/PID`.

use crate::Failure;
use std::fs;

/// Clock ticks per second of the figures in `/proc`: USER_HZ, 100 on every Linux port that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time that the process and all its threads, ended ones included, have used, in seconds.
///
/// # Errors
/// The process is gone.
pub fn used_seconds(pid: u32) -> Result<f64, Failure> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    ticks(&stat)
        .map(|ticks| ticks as f64 / TICKS_PER_SECOND)
        .ok_or_else(|| format!("{path}: not in the form of proc(5)").into())
}

/// Resident memory of the process in bytes: `VmRSS` of proc(5).
///
/// # Errors
/// The process is gone.
pub fn resident_bytes(pid: u32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .ok_or_else(|| format!("{path}: no VmRSS").into())
}

/// Fields 14 (utime) and 15 (stime); field 2 is a name in brackets that may contain anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_moves_no_field() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 4 0 100";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (cut"), None);
    }

    #[test]
    fn this_process_has_a_time_and_memory() {
        assert!(used_seconds(std::process::id()).is_ok());
        assert!(resident_bytes(std::process::id()).expect("there is memory") > 1 << 16);
    }
}
