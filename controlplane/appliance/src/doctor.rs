//! What this machine lacks for full speed or full safety, and how to mend each. Works without a daemon.

mod devices;

use std::collections::BTreeSet;
use std::fs;

use crate::api::model::{Finding, FindingState, PoolInfo};
use crate::pool::time_text;
use stillpoint_hw::discovery::Machine;
use stillpoint_hw::probe::{Probe, State};
use stillpoint_hw::topology::{self, Core};

/// Looks at the machine, for this many processors with this much memory for buffers each. `pinned` has the cores of the
/// processors that run and are pinned; `None`: none runs, and they are thought to be where they would be.
#[must_use]
pub fn machine(processors: usize, buffer_bytes: u64, pinned: Option<&[u32]>) -> Vec<Finding> {
    let probe = probe(processors, usize::try_from(buffer_bytes).unwrap_or(usize::MAX));
    let machine = Machine::here();
    let cores = topology::allowed_cores();
    let placed: Vec<Core> = match pinned {
        Some(pinned) => (cores.iter().copied())
            .filter(|core| pinned.contains(&core.number))
            .collect(),
        None => {
            let near = machine.nodes_of_free_namespaces();
            let placed = topology::place_processors(&cores, processors, &near);
            placed.into_iter().flatten().collect()
        }
    };
    let placement = devices::Placement {
        processors,
        placed: &placed,
        allowed: &cores,
    };
    let devices = devices::look(&machine, &placement);
    let rest = [kernel(), governor(&cores)].into_iter().chain(devices);
    probe.into_iter().chain(rest).collect()
}

/// What the machine layer says; on a thread of its own, as a ring belongs to the thread that made it.
fn probe(processors: usize, buffer_bytes: usize) -> Vec<Finding> {
    let probed = std::thread::spawn(move || Probe::run(processors, buffer_bytes)).join();
    let Ok(probe) = probed else {
        return vec![problem("machine", "the probe failed".to_owned(), "see the log")];
    };
    let told = probe.findings.into_iter().map(|found| {
        let state = match found.state {
            State::Good => FindingState::Ok,
            State::Lacking => FindingState::Note,
            State::Missing => FindingState::Problem,
        };
        let message = match found.effect {
            "" => found.found,
            effect => format!("{}: {effect}", found.found),
        };
        let mend = (state != FindingState::Ok).then_some(found.mend);
        finding(found.what, state, message, mend)
    });
    told.collect()
}

/// Looks at the pools of a running daemon.
#[must_use]
pub fn pools(pools: &[PoolInfo]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pool in pools {
        let subject = format!("pool {}", pool.name);
        match &pool.error {
            Some(error) if pool.state != "failed" => {
                let mend = "docs/hardware.md tells what is done by itself; stillpoint events tells more";
                findings.push(problem(&subject, error.clone(), mend));
            }
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
        for device in &pool.devices {
            let subject = format!("device {}", device.path);
            if device.unused_bytes > 0 {
                let (unused, of) = (device.unused_bytes, device.size_bytes);
                findings.push(note(
                    &subject,
                    format!("{unused} of its {of} bytes are unused: pool {} was made with less", pool.name),
                    "a pool keeps its size: to use all of the device, copy the volumes away and make the pool anew",
                ));
            }
            if let Some(since_ns) = device.stalled_since_ns {
                findings.push(problem(
                    &subject,
                    format!("has not answered since {}: requests of pool {} wait", time_text(since_ns), pool.name),
                    "the kernel takes back what it waits for (nvme_core.io_timeout), and its log says so; docs/hardware.md tells more",
                ));
            }
            if let Some(reason) = &device.passthrough_refused {
                findings.push(note(
                    &subject,
                    format!(
                        "served as a block device, not by NVMe commands of our own: {reason}{}",
                        if device.polled { "; polled" } else { "" }
                    ),
                    "docs/hardware.md tells what they need; it works without, at some cost in CPU time",
                ));
            } else if device.kind == "block" && device.polled {
                findings.push(ok(&subject, "served as a block device, polled".to_owned()));
            } else if device.kind == "nvme" {
                let how = if device.polled {
                    "polled"
                } else {
                    "with interrupts"
                };
                let durably = match &device.durable_writes_refused {
                    _ if device.durable_writes => {
                        "single writes are made durable (FUA) where that spares a flush".to_owned()
                    }
                    Some(reason) => format!("no single durable writes: {reason}"),
                    None => "no single durable writes".to_owned(),
                };
                let message = format!("served by NVMe commands of our own, {how}; {durably}");
                findings.push(ok(&subject, message));
            }
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

fn governor(cores: &[Core]) -> Finding {
    const SUBJECT: &str = "frequency";
    let of_core = |core: &Core| {
        let number = core.number;
        read(&format!(
            "/sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor"
        ))
    };
    let governors: BTreeSet<String> = cores.iter().filter_map(of_core).collect();
    let named = governors
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    match governors.iter().any(|governor| governor != "performance") {
        true => note(
            SUBJECT,
            format!("the governor is {named}: cores take time to get fast"),
            "cpupower frequency-set -g performance",
        ),
        false if named.is_empty() => ok(SUBJECT, "not in the hands of this system".to_owned()),
        false => ok(SUBJECT, format!("the governor is {named}")),
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
        let findings = machine(2, 2 << 20, None);
        assert!(findings.len() >= 5);
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
