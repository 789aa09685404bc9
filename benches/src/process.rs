//! Processes and scratch files that never outlive the bench: whatever ends it (the end, an error, a panic, ctrl-C),
//! its children are killed by their ids and its scratch directories removed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;

/// How often a wait looks again: long enough to cost nothing beside what is measured.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Registry {
    children: Vec<Arc<Mutex<Child>>>,
    /// Directories that something is mounted on, oldest first.
    mounts: Vec<PathBuf>,
    scratch: Vec<PathBuf>,
    /// Numbers of zram devices.
    zrams: Vec<u32>,
    /// Everything was cleaned up; nothing may be started any more.
    closed: bool,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with_registry<R>(run: impl FnOnce(&mut Registry) -> R) -> R {
    run(lock(&REGISTRY).get_or_insert_default())
}

/// Makes panics, SIGINT, SIGTERM and SIGHUP clean up. To be called first.
pub fn clean_up_always() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        clean_up();
    }));
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime for signals");
        let number = runtime.block_on(ending_signal());
        clean_up();
        std::process::exit(128 + number);
    });
}

async fn ending_signal() -> i32 {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).expect("a signal can be listened to");
    let mut interrupt = listen(SignalKind::interrupt());
    let mut terminate = listen(SignalKind::terminate());
    let mut hangup = listen(SignalKind::hangup());
    tokio::select! {
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    }
}

/// Kills every child that still runs, unmounts what is mounted and removes every scratch directory.
pub fn clean_up() {
    let (children, mounts, scratch, zrams) = with_registry(|registry| {
        registry.closed = true;
        (
            std::mem::take(&mut registry.children),
            std::mem::take(&mut registry.mounts),
            std::mem::take(&mut registry.scratch),
            std::mem::take(&mut registry.zrams),
        )
    });
    for child in children {
        kill(&child);
    }
    for directory in mounts.iter().rev() {
        unmount(directory);
    }
    for directory in scratch {
        let _ = fs::remove_dir_all(directory);
    }
    zrams.into_iter().for_each(crate::zram::remove);
}

/// A zram device that is to be removed whatever ends the bench.
pub(crate) fn remember_zram(number: u32) {
    with_registry(|registry| registry.zrams.push(number));
}

/// It is removed already.
pub(crate) fn forget_zram(number: u32) {
    with_registry(|registry| registry.zrams.retain(|&other| other != number));
}

fn kill(child: &Mutex<Child>) {
    let mut child = lock(child);
    // Both fail only for a process that has ended.
    let _ = child.kill();
    let _ = child.wait();
}

/// A directory for sockets and images, removed at the end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new directory in `parent`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(parent: &Path) -> Result<Self, Failure> {
        let made = tempfile::Builder::new()
            .prefix("stillpoint-bench-")
            .tempdir_in(parent)
            .map_err(|error| format!("no scratch directory in {}: {error}", parent.display()))?;
        let path = made.keep();
        with_registry(|registry| registry.scratch.push(path.clone()));
        Ok(Self(path))
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        with_registry(|registry| registry.scratch.retain(|path| *path != self.0));
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An image that is mounted through a loop device until this is dropped.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts the file system in `image` on `directory`, which is made.
    ///
    /// # Errors
    /// Not allowed (it takes root and loop devices), or no file system that the kernel knows.
    pub fn new(image: &Path, directory: &Path, scratch: &Scratch) -> Result<Self, Failure> {
        fs::create_dir(directory)?;
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(image).arg(directory);
        run("mount", &mut command, scratch)?;
        with_registry(|registry| registry.mounts.push(directory.to_path_buf()));
        Ok(Self(directory.to_path_buf()))
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        with_registry(|registry| registry.mounts.retain(|path| *path != self.0));
        unmount(&self.0);
    }
}

/// The loop device goes with it.
fn unmount(directory: &Path) {
    let ended = Command::new("umount").arg(directory).status();
    if !ended.is_ok_and(|status| status.success()) {
        let _ = Command::new("umount").arg("--lazy").arg(directory).status();
    }
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Arc<Mutex<Child>>,
    log: PathBuf,
}

impl Process {
    /// Starts a command whose output and errors go to a file in `scratch`.
    ///
    /// # Errors
    /// The program is not there.
    pub fn start(name: &str, command: &mut Command, scratch: &Scratch) -> Result<Self, Failure> {
        let log = scratch.path(&format!("{name}.log"));
        let out = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let both = out.try_clone()?;
        command.stdin(Stdio::null()).stdout(out).stderr(both);
        let child = with_registry(|registry| -> Result<_, Failure> {
            if registry.closed {
                return Err("the bench is ending".into());
            }
            let child = command
                .spawn()
                .map_err(|error| format!("{name} ({:?}) does not start: {error}", command.get_program()))?;
            let child = Arc::new(Mutex::new(child));
            registry.children.push(Arc::clone(&child));
            Ok(child)
        })?;
        Ok(Self {
            name: name.into(),
            child,
            log,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// There is no `kill`.
    pub fn terminate(&self) -> Result<(), Failure> {
        Command::new("kill").arg(self.id().to_string()).status()?;
        Ok(())
    }

    /// What it has printed.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn ended(&self) -> Result<Option<ExitStatus>, Failure> {
        let ended = lock(&self.child).try_wait()?;
        while ended.is_some() && with_registry(|registry| registry.closed) {
            // Killed because a signal came: its thread ends the bench, and this one has nothing to complain about.
            thread::park();
        }
        Ok(ended)
    }

    /// Waits until it ends well.
    ///
    /// # Errors
    /// It failed, or did not end in time.
    pub fn wait(&self, limit: Duration) -> Result<(), Failure> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("{}: {status}: {}", self.name, self.printed()).into()),
                None => thread::sleep(LOOK_AGAIN),
            }
        }
        Err(format!("{} did not end within {limit:?}: {}", self.name, self.printed()).into())
    }

    /// Waits until `is_ready` says so.
    ///
    /// # Errors
    /// It ended first, or took longer than 20 s.
    pub fn wait_until(&self, is_ready: impl Fn() -> bool) -> Result<(), Failure> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if is_ready() {
                return Ok(());
            }
            if let Some(status) = self.ended()? {
                return Err(format!("{} ended early: {status}: {}", self.name, self.printed()).into());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Err(format!("{} is not ready after 20 s: {}", self.name, self.printed()).into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        kill(&self.child);
        with_registry(|registry| {
            registry.children.retain(|child| !Arc::ptr_eq(child, &self.child));
        });
    }
}

/// Runs a command to its end; gives what it printed.
///
/// # Errors
/// It failed or took longer than two minutes.
pub fn run(name: &str, command: &mut Command, scratch: &Scratch) -> Result<String, Failure> {
    let process = Process::start(name, command, scratch)?;
    process.wait(Duration::from_secs(120))?;
    Ok(process.printed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_is_gone_and_so_is_its_scratch() {
        let parent = tempfile::tempdir().expect("a directory");
        let scratch = Scratch::new(parent.path()).expect("scratch");
        let process = Process::start("sleep", Command::new("sleep").arg("1000"), &scratch).expect("starts");
        let proc = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
        drop(scratch);
        assert_eq!(fs::read_dir(parent.path()).expect("is there").count(), 0);
    }

    #[test]
    fn a_command_that_fails_says_what_it_printed() {
        let parent = tempfile::tempdir().expect("a directory");
        let scratch = Scratch::new(parent.path()).expect("scratch");
        let error = run("ls", Command::new("ls").arg("/no/such/place"), &scratch).expect_err("fails");
        assert!(error.to_string().contains("/no/such/place"), "{error}");
    }
}
