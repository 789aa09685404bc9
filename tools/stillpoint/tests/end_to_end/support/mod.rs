//! What the end-to-end tests share: the real program in a directory of its own, a client, a load, a clock-free
//! judgement of what clients saw.

pub mod block;
pub mod branches;
pub mod foreign;
pub mod good_client;
pub mod history;
pub mod load;
pub mod mounts;
pub mod nbd;
pub mod nbdkit;
pub mod process;
pub mod raw;
pub mod volatile_disk;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long the harness waits for something that a hang would keep from ever happening. No test is about time:
/// this is far beyond what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const GLANCE: Duration = Duration::from_millis(2);

/// A `stillpoint serve` in a directory of its own, with its sockets, its state and its pools there. Dropped, it
/// leaves nothing behind: no process, no file, whatever happened to the test.
pub struct Appliance {
    directory: TempDir,
    /// On tmpfs, if this machine has it where it usually is.
    tails: Option<TempDir>,
    daemon: Mutex<Option<Child>>,
    /// What the daemon is a process of.
    program: PathBuf,
}

/// What a command of the command line gave.
#[derive(Debug)]
pub struct Told {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it printed, as JSON; null if that was nothing.
    pub json: Value,
    /// What it said on standard error.
    pub errors: String,
}

/// Exit code of a command that found no daemon.
const UNREACHABLE: i32 = 5;

impl Appliance {
    /// A new directory; nothing runs yet.
    pub fn new() -> Self {
        Self::of_program(env!("CARGO_BIN_EXE_stillpoint").into())
    }

    /// The same, whose daemon is to be another program.
    pub fn of_program(program: PathBuf) -> Self {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("stillpoint-test-");
        Self {
            directory: builder.tempdir().expect("a temporary directory"),
            tails: builder.tempdir_in("/dev/shm").ok(),
            daemon: Mutex::new(None),
            program,
        }
    }

    /// A new directory, and the daemon started in it with these further arguments of `serve`.
    pub fn started(arguments: &[&str]) -> Self {
        let appliance = Self::new();
        appliance.start(arguments);
        appliance
    }

    /// A path in the appliance's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text, for command lines.
    pub fn path_text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// Where log tails lie, as the daemon is told unless the test says otherwise.
    pub fn tail_directory(&self) -> String {
        match &self.tails {
            Some(tails) => tails.path().to_str().expect("a path in UTF-8").to_owned(),
            None => "none".to_owned(),
        }
    }

    /// Where NBD clients connect.
    pub fn nbd_socket(&self) -> PathBuf {
        self.path("run/nbd.sock")
    }

    /// The NBD URI of an export, for foreign clients.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path_text("run/nbd.sock"))
    }

    /// Starts the daemon and waits until it takes commands. Call it from the thread of the test.
    pub fn start(&self, arguments: &[&str]) {
        self.start_with(arguments, &[]);
    }

    /// The same, with environment variables.
    pub fn start_with(&self, arguments: &[&str], environment: &[(&str, &str)]) {
        self.spawn(arguments, environment);
        // A connection alone says nothing: the sockets of a process that was killed listen on for a moment. And the
        // daemon listens before it opens its pools; this is answered when they are open.
        self.wait_until("the daemon answers", || {
            let told = self.tell(&["status"]);
            assert!(
                told.code == 0 || told.code == UNREACHABLE,
                "stillpoint status: {}",
                told.errors
            );
            told.code == 0
        });
    }

    /// The same, with a wall clock that is so many seconds ahead, or behind.
    pub fn start_with_clock(&self, arguments: &[&str], ahead_s: i64) {
        let shim = self.path_text("clock.so");
        if !self.path("clock.so").exists() {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/end_to_end/support/clock.c");
            foreign::must("cc", &["-shared", "-fPIC", "-O1", "-o", &shim, source]);
        }
        let ahead = ahead_s.to_string();
        self.start_with(
            arguments,
            &[("LD_PRELOAD", &shim), ("STILLPOINT_TEST_CLOCK_S", &ahead)],
        );
    }

    /// Where commands go.
    pub fn control_socket(&self) -> PathBuf {
        self.path("run/control.sock")
    }

    /// Starts the daemon and does not wait.
    pub fn spawn(&self, arguments: &[&str], environment: &[(&str, &str)]) {
        let mut daemon = self.daemon();
        assert!(daemon.is_none(), "one daemon at a time");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("daemon.log"))
            .expect("a log file");
        let mut command = Command::new(&self.program);
        command.arg("serve");
        command.arg("--state-dir").arg(self.path("state"));
        command.arg("--run-dir").arg(self.path("run"));
        if let Some(tails) = &self.tails
            && !arguments.contains(&"--tail-dir")
        {
            command.arg("--tail-dir").arg(tails.path());
        }
        let spawned = command
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        *daemon = Some(spawned.expect("the program starts"));
    }

    /// Waits until `done` says so; panics if the daemon ends first, or if it takes for ever.
    pub fn wait_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            if let Some(child) = self.daemon().as_mut()
                && let Some(status) = child.try_wait().expect("a child of ours")
            {
                panic!("the daemon ended ({status}) before {what}");
            }
            assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
            thread::sleep(GLANCE);
        }
    }

    /// Waits until the daemon has ended by itself; panics if it does not.
    pub fn wait_for_the_end(&self) -> std::process::ExitStatus {
        let mut child = self.daemon().take().expect("a daemon runs");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                return status;
            }
            if start.elapsed() >= PATIENCE {
                child.kill().expect("a child of ours");
                child.wait().expect("a child of ours");
                panic!("the daemon did not end within {PATIENCE:?}");
            }
            thread::sleep(GLANCE);
        }
    }

    /// The daemon's process number.
    pub fn pid(&self) -> u32 {
        self.daemon().as_ref().expect("a daemon runs").id()
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&self) {
        let mut child = self.daemon().take().expect("a daemon runs");
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
    }

    /// Kills the daemon if one runs.
    pub fn end(&self) {
        if let Some(mut child) = self.daemon().take() {
            // It may have ended by itself; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// How many log tails there are.
    pub fn tails(&self) -> usize {
        let tails = self.tails.as_ref().expect("tmpfs at /dev/shm");
        fs::read_dir(tails.path()).expect("a directory of ours").count()
    }

    /// What a power cut does to the log tails: they are gone. Only while no daemon runs.
    pub fn lose_tails(&self) {
        assert!(self.daemon().is_none(), "the daemon has its tails mapped");
        let tails = self.tails.as_ref().expect("tmpfs at /dev/shm");
        for tail in fs::read_dir(tails.path()).expect("a directory of ours").flatten() {
            fs::remove_file(tail.path()).expect("a file of ours");
        }
    }

    /// Asks the daemon to stop as a service manager does, and waits until it did; it must say success.
    pub fn stop(&self) {
        let mut child = self.daemon().take().expect("a daemon runs");
        let asked = Command::new("kill").arg(child.id().to_string()).status();
        assert!(asked.expect("kill runs").success(), "the daemon took no signal");
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                break status;
            }
            if start.elapsed() >= PATIENCE {
                child.kill().expect("a child of ours");
                child.wait().expect("a child of ours");
                panic!("the daemon did not stop within {PATIENCE:?}");
            }
            thread::sleep(GLANCE);
        };
        assert!(status.success(), "the daemon stopped with {status}");
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> Value {
        let told = self.tell(arguments);
        assert_eq!(
            told.code,
            0,
            "stillpoint {}: {}",
            arguments.join(" "),
            told.errors
        );
        told.json
    }

    /// Runs a command.
    pub fn tell(&self, arguments: &[&str]) -> Told {
        let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
            .args(arguments)
            .arg("--socket")
            .arg(self.control_socket())
            .args(["-o", "json"])
            .stdin(Stdio::null())
            .output()
            .expect("the program starts");
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let json = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}")),
        };
        Told {
            code: output.status.code().unwrap_or(-1),
            json,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Checks all structures and checksums on the devices of a pool while no daemon has it. What is wrong, in words.
    pub fn check_devices(&self, devices: &[&str]) -> Result<(), String> {
        let tails = self.tail_directory();
        let told = self.tell(&[&["inspect", "--check", "--tail-dir", &tails], devices].concat());
        match told.code {
            0 => Ok(()),
            _ => Err(format!("inspect --check: {} {:#}", told.errors, told.json)),
        }
    }

    /// Makes a pool of sparse files in the appliance's directory: `<name>-0`, `<name>-1`, ...
    pub fn create_pool(&self, name: &str, devices: usize, size: &str, more: &[&str]) {
        let paths: Vec<String> = (0..devices)
            .map(|device| self.path_text(&format!("{name}-{device}")))
            .collect();
        let mut arguments = vec!["pool", "create", name];
        arguments.extend(paths.iter().map(String::as_str));
        arguments.extend(["--size", size]);
        arguments.extend(more);
        self.run(&arguments);
    }

    /// A connection to an export, as soon as there is one.
    pub fn connect(&self, export: &str) -> nbd::Connection {
        let mut connection = None;
        self.wait_until("the export answers", || {
            connection = nbd::Connection::open(&self.nbd_socket(), export).ok();
            connection.is_some()
        });
        connection.expect("it was waited for")
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(60);
            eprintln!("--- end of the daemon's log ---\n{}", lines[from..].join("\n"));
        }
    }
}

/// How much of something a test does: what the environment says for its long form, or `short`.
pub fn setting(name: &str, short: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a whole number")),
        Err(_) => short,
    }
}

/// A member of a JSON value that must be there.
pub fn member<'a>(value: &'a Value, path: &str) -> &'a Value {
    value
        .pointer(path)
        .unwrap_or_else(|| panic!("no {path} in {value:#}"))
}

/// A whole number in a JSON value that must be there.
pub fn number(value: &Value, path: &str) -> u64 {
    let found = member(value, path);
    found
        .as_u64()
        .unwrap_or_else(|| panic!("{path} is {found}, not a whole number"))
}

/// A list in a JSON value that must be there; the path `""` is the value itself.
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    let found = member(value, path);
    found
        .as_array()
        .unwrap_or_else(|| panic!("{path} is {found}, not a list"))
}
