//! What this machine lacks for full speed or full safety, and how to mend each. Works without a daemon.

use std::fs;

use crate::api::model::{Finding, FindingState, PoolInfo};

/// Locked memory that registered buffers of one processor want, in bytes.
const LOCKED_BYTES_WANTED: u64 = 64 << 20;

/// Looks at the machine.
#[must_use]
pub fn machine() -> Vec<Finding> {
    vec![kernel(), governor(), locked_memory()]
}

/// Looks at the pools of a running daemon.
#[must_use]
pub fn pools(pools: &[PoolInfo]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pool in pools {
        let subject = format!("pool {}", pool.name);
        match &pool.error {
            Some(error) => {
                findings.push(problem(
                    &subject,
                    format!("not open: {error}"),
                    "see the message; then stillpoint pool open PATH...",
                ));
            }
            None => findings.push(ok(
                &subject,
                format!("open, {} shards, {} devices", pool.shards, pool.devices.len()),
            )),
        }
        for remark in pool.remarks.iter().filter(|_| pool.error.is_none()) {
            findings.push(note(&subject, remark.clone(), "stillpoint pool show tells more"));
        }
        for device in pool.devices.iter().filter(|device| !device.direct) {
            findings.push(note(
                &format!("device {}", device.path),
                "its file system has no direct I/O: data takes a detour through the page cache".to_owned(),
                "put the pool on a block device, or on ext4 or XFS",
            ));
        }
    }
    findings
}

fn finding(subject: &str, state: FindingState, message: String, mend: Option<String>) -> Finding {
    Finding {
        subject: subject.to_owned(),
        state,
        message,
        mend,
    }
}

fn ok(subject: &str, message: String) -> Finding {
    finding(subject, FindingState::Ok, message, None)
}

fn note(subject: &str, message: String, mend: &str) -> Finding {
    finding(subject, FindingState::Note, message, Some(mend.to_owned()))
}

fn problem(subject: &str, message: String, mend: &str) -> Finding {
    finding(subject, FindingState::Problem, message, Some(mend.to_owned()))
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Finding {
    const SUBJECT: &str = "kernel";
    let Some(release) = read("/proc/sys/kernel/osrelease") else {
        return note(SUBJECT, "its version cannot be read".to_owned(), "mount /proc");
    };
    match version(&release) {
        Some(found) if found < (5, 19) => problem(
            SUBJECT,
            format!("Linux {release} is too old"),
            "use Linux 5.19 or newer, best 6.1 or newer",
        ),
        Some(found) if found < (6, 1) => note(
            SUBJECT,
            format!("Linux {release} works; newer ones save CPU time per request"),
            "use Linux 6.1 or newer",
        ),
        _ => ok(SUBJECT, format!("Linux {release}")),
    }
}

/// Major and minor number of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn governor() -> Finding {
    const SUBJECT: &str = "frequency";
    match read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") {
        Some(governor) if governor != "performance" => note(
            SUBJECT,
            format!("the governor is {governor}: cores take time to get fast"),
            "cpupower frequency-set -g performance",
        ),
        Some(governor) => ok(SUBJECT, format!("the governor is {governor}")),
        None => ok(SUBJECT, "not in the hands of this system".to_owned()),
    }
}

fn locked_memory() -> Finding {
    const SUBJECT: &str = "locked memory";
    let limits = read("/proc/self/limits").unwrap_or_default();
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))
        .and_then(|rest| rest.split_whitespace().next().map(ToOwned::to_owned));
    match soft.as_deref() {
        Some("unlimited") => ok(SUBJECT, "no limit".to_owned()),
        Some(text) => match text.parse::<u64>() {
            Ok(bytes) if bytes < LOCKED_BYTES_WANTED => note(
                SUBJECT,
                format!(
                    "the limit is {} KiB: buffers may not be registered with the kernel",
                    bytes >> 10
                ),
                "ulimit -l unlimited, or LimitMEMLOCK=infinity in the service",
            ),
            _ => ok(SUBJECT, format!("the limit is {text} bytes")),
        },
        None => note(SUBJECT, "the limit cannot be read".to_owned(), "mount /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_understood() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.19-rc1"), Some((5, 19)));
        assert_eq!(version("6"), None);
        assert_eq!(version("x.y"), None);
    }

    #[test]
    fn whatever_is_not_as_it_should_be_says_how_to_mend_it() {
        let findings = machine();
        assert!(findings.len() >= 3);
        for finding in findings {
            assert_eq!(
                finding.state == FindingState::Ok,
                finding.mend.is_none(),
                "{finding:?}"
            );
            assert!(!finding.message.is_empty());
        }
    }
}
