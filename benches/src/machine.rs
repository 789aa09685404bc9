//! The machine that figures belong to.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// What a reader has to know beside the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Device and type of the file system under the images.
    pub file_system: String,
    /// Versions of the peers.
    pub versions: Vec<String>,
    /// Load average when the bench began: what else ran.
    pub load: String,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn look(backing: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after_colon = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = after_colon(&read("/proc/meminfo"), "MemTotal");
        let memory_kib = memory.and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
        Self {
            cpu: after_colon(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib.unwrap_or(0) * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            file_system: first_line(
                Command::new("findmnt")
                    .args(["-no", "FSTYPE,SOURCE", "-T"])
                    .arg(backing),
            ),
            versions: vec![
                first_line(Command::new("qemu-nbd").arg("--version")),
                first_line(Command::new("nbdkit").arg("--version")),
                first_line(Command::new("fio").arg("--version")),
            ],
            load: read("/proc/loadavg")
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cores of {}, {} GiB of memory, Linux {}, images on {}; {}; load at the start {}",
            self.cores,
            self.cpu,
            self.memory_bytes.div_ceil(1 << 30),
            self.kernel,
            self.file_system,
            self.versions.join(", "),
            self.load,
        )
    }
}

/// The first line that a command prints, its blanks folded; "unknown" if it cannot be run.
fn first_line(command: &mut Command) -> String {
    let printed = command.output().ok();
    let printed = printed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = printed.as_deref().and_then(|text| text.lines().next());
    line.map_or_else(
        || "unknown".into(),
        |line| line.split_whitespace().collect::<Vec<_>>().join(" "),
    )
}
