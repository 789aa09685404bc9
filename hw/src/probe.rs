//! What this machine offers, what it lacks, what that costs and how to mend it: what `doctor` prints.
//!
//! Everything found lacking here has a fallback that is chosen by itself at start, except io_uring as such.

use crate::buffers::{Arenas, CHUNK_BYTES, PageKind};
use crate::device::{DeviceFile, DeviceKind};
use crate::ring::{Ring, RingError, RingFeatures, RingOptions};
use crate::tail::{boot_id, tail_directory};
use crate::topology::allowed_cores;
use core::fmt;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As good as it gets.
    Good,
    /// It works, but not at full speed or not with full comfort.
    Lacking,
    /// Stillpoint does not run.
    Missing,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Lacking => "lacking",
            Self::Missing => "missing",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How good it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What the lack means; empty if nothing is lacking.
    pub effect: &'static str,
    /// How to mend it; empty if nothing is lacking.
    pub mend: String,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Good,
            found: found.into(),
            effect: "",
            mend: String::new(),
        }
    }

    fn lacking(
        what: &'static str,
        found: impl Into<String>,
        effect: &'static str,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            what,
            state: State::Lacking,
            found: found.into(),
            effect,
            mend: mend.into(),
        }
    }
}

/// What was found on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The findings, in the order of their weight.
    pub findings: Vec<Finding>,
}

impl Probe {
    /// Looks at the machine. `arena_bytes` is the memory for buffers of each of `processors`.
    #[must_use]
    pub fn run(processors: usize, arena_bytes: usize) -> Self {
        let mut findings = Vec::new();
        match Ring::new(RingOptions::default()) {
            Ok(ring) => {
                findings.push(Finding::good("io_uring", "allowed, all operations are there"));
                findings.push(ring_flags(ring.features()));
                findings.push(registered_files(ring.features()));
                findings.push(registered_buffers(processors, arena_bytes));
            }
            Err(error) => findings.push(no_ring(&error)),
        }
        findings.push(pages(arena_bytes));
        findings.push(tail());
        findings.push(cores(processors));
        Self { findings }
    }

    /// Adds what is to be said about an open device.
    pub fn add_device(&mut self, device: &DeviceFile) {
        let path = device.path().display();
        self.findings.push(if device.is_direct() {
            let kind = match device.kind() {
                DeviceKind::Block => "block device",
                DeviceKind::File => "file",
            };
            Finding::good("device", format!("{path}: {kind}, O_DIRECT"))
        } else {
            Finding::lacking(
                "device",
                format!("{path}: its file system has no O_DIRECT"),
                "data is copied through the page cache and costs memory twice",
                "put the pool on a block device, ext4 or XFS",
            )
        });
    }

    /// The worst state found.
    #[must_use]
    pub fn worst(&self) -> State {
        self.findings
            .iter()
            .map(|finding| finding.state)
            .max()
            .unwrap_or(State::Good)
    }
}

fn no_ring(error: &RingError) -> Finding {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let setting = match disabled.trim() {
        "" | "0" => String::new(),
        other => format!(" (kernel.io_uring_disabled={other})"),
    };
    Finding {
        what: "io_uring",
        state: State::Missing,
        found: format!("{error}{setting}"),
        effect: "Stillpoint does not run without io_uring",
        mend:
            "sysctl -w kernel.io_uring_disabled=0; in a container allow io_uring_setup, io_uring_enter and \
               io_uring_register in the seccomp profile"
                .to_owned(),
    }
}

fn ring_flags(features: RingFeatures) -> Finding {
    const WHAT: &str = "io_uring task run";
    if features.single_issuer && features.defer_taskrun && features.taskrun_flag {
        return Finding::good(WHAT, "single issuer, deferred, with flag");
    }
    let found = if features.coop_taskrun {
        "cooperative (SINGLE_ISSUER and DEFER_TASKRUN are missing)"
    } else {
        "by interrupt (COOP_TASKRUN and DEFER_TASKRUN are missing)"
    };
    Finding::lacking(
        WHAT,
        found,
        "completions interrupt the poll loop: less throughput per core",
        "use Linux 6.1 or newer",
    )
}

fn registered_files(features: RingFeatures) -> Finding {
    const WHAT: &str = "registered files";
    if features.registered_files {
        return Finding::good(WHAT, "yes");
    }
    let effect = "every device operation looks its file up";
    Finding::lacking(WHAT, "no", effect, "use Linux 5.19 or newer")
}

/// Whether the limit on locked memory lets every ring register the arenas of all processors.
fn registered_buffers(processors: usize, arena_bytes: usize) -> Finding {
    const WHAT: &str = "registered buffers";
    let Some(limit_bytes) = locked_memory_limit() else {
        return Finding::good(WHAT, "no limit on locked memory");
    };
    let needed_bytes = (processors * processors) as u64 * arena_bytes as u64;
    let found = format!("limit on locked memory {} KiB", limit_bytes >> 10);
    if needed_bytes <= limit_bytes {
        return Finding::good(WHAT, found);
    }
    Finding::lacking(
        WHAT,
        found,
        "the kernel pins the pages of each transfer anew: a few percent more CPU per operation",
        format!(
            "raise the limit to {} KiB (LimitMEMLOCK= in a unit file, ulimit -l) or give CAP_IPC_LOCK",
            needed_bytes >> 10
        ),
    )
}

/// The limit on locked memory in bytes; `None`: no limit for this process.
fn locked_memory_limit() -> Option<u64> {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    if capabilities & 1 << CAP_IPC_LOCK != 0 {
        return None;
    }
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: fills in the structure.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn pages(arena_bytes: usize) -> Finding {
    const WHAT: &str = "buffer memory";
    let effect = "more misses of the address cache";
    let kind = Arenas::map(1, arena_bytes.max(CHUNK_BYTES)).map(|arenas| arenas.all()[0].pages());
    match kind {
        Ok(PageKind::Huge) => Finding::good(WHAT, "huge pages"),
        Ok(PageKind::TransparentHuge) => Finding::good(WHAT, "transparent huge pages"),
        Ok(PageKind::Plain) => Finding::lacking(
            WHAT,
            "plain pages",
            effect,
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, or reserve huge pages with \
             vm.nr_hugepages",
        ),
        Err(error) => Finding::lacking(WHAT, error.to_string(), effect, "free memory"),
    }
}

fn tail() -> Finding {
    const WHAT: &str = "log tail";
    const EFFECT: &str = "every write waits for a log write before it is acknowledged";
    if let Err(error) = boot_id() {
        return Finding::lacking(WHAT, format!("no boot id: {error}"), EFFECT, "mount /proc");
    }
    match tail_directory() {
        Ok(path) => Finding::good(WHAT, format!("{} (tmpfs)", path.display())),
        Err(error) => Finding::lacking(
            WHAT,
            format!(
                "{}: cannot {}: {}",
                error.path.display(),
                error.action,
                error.source
            ),
            EFFECT,
            "mount a tmpfs on /run or /dev/shm that this user can write to",
        ),
    }
}

fn cores(processors: usize) -> Finding {
    const WHAT: &str = "cores";
    let cores = allowed_cores();
    let numbers: Vec<String> = cores.iter().map(|core| core.number.to_string()).collect();
    let found = format!("{} allowed ({})", cores.len(), numbers.join(","));
    if cores.len() >= processors {
        return Finding::good(WHAT, found);
    }
    Finding::lacking(
        WHAT,
        found,
        "some processors are not pinned and share cores",
        format!(
            "allow {processors} cores or start with --processors {}",
            cores.len().max(1)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lack_says_what_it_means_and_how_to_mend_it() {
        let probe = Probe::run(10_000, CHUNK_BYTES);
        assert!(probe.findings.len() >= 4);
        for finding in &probe.findings {
            assert!(!finding.found.is_empty());
            let told = !finding.effect.is_empty() && !finding.mend.is_empty();
            assert_eq!(told, finding.state != State::Good, "{finding:?}");
        }
        // Nobody has ten thousand cores.
        assert_eq!(probe.worst(), State::Lacking);
    }

    #[test]
    fn a_forbidden_ring_is_told_as_such() {
        let error = RingError::Forbidden(std::io::Error::from_raw_os_error(libc::EPERM));
        let finding = no_ring(&error);
        assert_eq!(finding.state, State::Missing);
        assert!(finding.mend.contains("io_uring_disabled"));
    }

    #[test]
    fn old_kernels_are_told_what_they_lack() {
        let finding = ring_flags(RingFeatures {
            coop_taskrun: true,
            taskrun_flag: true,
            ..RingFeatures::default()
        });
        assert_eq!(finding.state, State::Lacking);
        assert!(finding.found.contains("DEFER_TASKRUN"));
    }
}
