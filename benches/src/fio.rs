//! fio as the load generator: the same job against every server, and against the raw file.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::Failure;
use crate::process::{Process, Scratch};

/// What fio does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Job {
    /// fio's `rw`.
    pub pattern: &'static str,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests in flight.
    pub depth: u32,
}

impl Job {
    /// A short name, also of the row.
    #[must_use]
    pub fn name(&self) -> String {
        let what = match self.pattern {
            "randread" => "random read",
            "randwrite" => "random write",
            "read" => "sequential read",
            "write" => "sequential write",
            other => other,
        };
        let size = match self.block_bytes {
            bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
            bytes => format!("{} KiB", bytes >> 10),
        };
        format!("{size} {what}, depth {}", self.depth)
    }
}

/// What fio works on.
#[derive(Clone, Debug)]
pub enum Target {
    /// An export behind a unix socket, through fio's nbd engine.
    Nbd {
        /// The socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
    /// An export behind TCP, likewise.
    NbdTcp {
        /// Where the server listens.
        address: SocketAddr,
        /// The export's name.
        export: String,
    },
    /// A file or device, through io_uring.
    File {
        /// Its path.
        path: PathBuf,
        /// Past the page cache.
        direct: bool,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd { socket, export } => write!(f, "nbd+unix:///{export}?socket={}", socket.display()),
            Self::NbdTcp { address, export } => write!(f, "nbd://{address}/{export}"),
            Self::File { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// How long a run lasts.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// For a time, over and over.
    For(Duration),
    /// The whole target, once.
    Once,
}

/// What came out of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Requests completed.
    pub requests: u64,
    /// Per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Median time of a request.
    pub p50_us: f64,
    /// 99 of 100 requests are faster.
    pub p99_us: f64,
    /// 999 of 1000 requests are faster.
    pub p99_9_us: f64,
    /// The slowest request.
    pub max_us: f64,
    /// CPU time of fio itself, user and system.
    pub client_cpu_s: f64,
}

/// fio at work.
#[derive(Debug)]
pub struct Running {
    process: Process,
    what: String,
    output: PathBuf,
    writes: bool,
    limit: Duration,
}

impl Running {
    /// Waits for its end.
    ///
    /// # Errors
    /// fio fails, finds an error, or prints what cannot be understood.
    pub fn measured(self) -> Result<Measured, Failure> {
        let name = |error: Failure| -> Failure { format!("{}: {error}", self.what).into() };
        self.process.wait(self.limit).map_err(name)?;
        let text = fs::read_to_string(&self.output)
            .map_err(|error| format!("{}: {error}", self.output.display()))?;
        parse(&text, self.writes).map_err(name)
    }
}

/// Runs a job.
///
/// # Errors
/// As [`start`] and [`Running::measured`].
pub fn run(
    job: Job,
    target: &Target,
    size_bytes: u64,
    extent: Extent,
    scratch: &Scratch,
) -> Result<Measured, Failure> {
    start(job, target, size_bytes, extent, scratch)?.measured()
}

/// Starts a job.
///
/// # Errors
/// fio is not there.
pub fn start(
    job: Job,
    target: &Target,
    size_bytes: u64,
    extent: Extent,
    scratch: &Scratch,
) -> Result<Running, Failure> {
    let output = scratch.path("fio.json");
    let _ = fs::remove_file(&output);
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--numjobs=1", "--norandommap", "--randrepeat=0"])
        .args(["--output-format=json", "--percentile_list=50:99:99.9"])
        .arg(format!("--output={}", output.display()))
        .arg(format!("--rw={}", job.pattern))
        .arg(format!("--bs={}", job.block_bytes))
        .arg(format!("--iodepth={}", job.depth))
        .arg(format!("--size={size_bytes}"));
    match target {
        Target::Nbd { .. } | Target::NbdTcp { .. } => {
            command.arg("--ioengine=nbd").arg(format!("--uri={target}"))
        }
        Target::File { path, direct } => command
            .arg("--ioengine=io_uring")
            .arg(format!("--direct={}", u8::from(*direct)))
            .arg(format!("--filename={}", escaped(path))),
    };
    let mut limit = Duration::from_secs(300);
    if let Extent::For(time) = extent {
        command
            .arg("--time_based")
            .arg(format!("--runtime={}ms", time.as_millis()));
        limit = time + Duration::from_secs(60);
    }
    Ok(Running {
        process: Process::start("fio", &mut command, scratch)?,
        what: format!("{} on {target}", job.name()),
        output,
        writes: job.pattern.contains("write"),
        limit,
    })
}

/// fio takes a colon in a file name for a separator.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(':', "\\:")
}

/// Reads fio's JSON, before which some engines print lines of their own.
fn parse(text: &str, writes: bool) -> Result<Measured, Failure> {
    let start = text
        .find('{')
        .ok_or_else(|| format!("fio printed no JSON: {text}"))?;
    let value: Value =
        serde_json::from_str(&text[start..]).map_err(|error| format!("fio's JSON: {error}"))?;
    let job = &value["jobs"][0];
    if job["error"].as_i64() != Some(0) {
        return Err(format!("fio reports error {}", job["error"]).into());
    }
    let side = &job[if writes { "write" } else { "read" }];
    let number =
        |value: &Value, what: &str| value.as_f64().ok_or_else(|| format!("fio's JSON has no {what}"));
    let percentile =
        |name: &str| -> Result<f64, String> { Ok(number(&side["clat_ns"]["percentile"][name], name)? / 1e3) };
    let cpu_percent = number(&job["usr_cpu"], "usr_cpu")? + number(&job["sys_cpu"], "sys_cpu")?;
    let runtime_s = number(&job["job_runtime"], "job_runtime")? / 1e3;
    Ok(Measured {
        requests: number(&side["total_ios"], "total_ios")? as u64,
        iops: number(&side["iops"], "iops")?,
        bytes_per_second: number(&side["bw_bytes"], "bw_bytes")?,
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
        p99_9_us: percentile("99.900000")?,
        max_us: number(&side["clat_ns"]["max"], "clat_ns.max")? / 1e3,
        client_cpu_s: cpu_percent / 100.0 * runtime_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"fio: a line of an engine
{"jobs": [{"error": 0, "usr_cpu": 5.0, "sys_cpu": 15.0, "job_runtime": 2000,
 "read": {"total_ios": 1000, "iops": 500.5, "bw_bytes": 2048000,
  "clat_ns": {"max": 9000, "percentile": {"50.000000": 1500, "99.000000": 2500, "99.900000": 3500}}},
 "write": {}}]}"#;

    #[test]
    fn figures_are_found_behind_what_the_engine_prints() {
        let measured = parse(SAMPLE, false).expect("is understood");
        assert_eq!(measured.requests, 1000);
        assert_eq!((measured.p50_us, measured.p99_us), (1.5, 2.5));
        assert_eq!((measured.p99_9_us, measured.max_us), (3.5, 9.0));
        assert!((measured.client_cpu_s - 0.4).abs() < 1e-9);
    }

    #[test]
    fn an_error_of_fio_and_a_missing_side_are_errors() {
        assert!(parse(&SAMPLE.replace("\"error\": 0", "\"error\": 5"), false).is_err());
        assert!(parse(SAMPLE, true).is_err());
        assert!(parse("", false).is_err());
    }
}
