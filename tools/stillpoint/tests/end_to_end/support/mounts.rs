//! Exports as files (nbdfuse), files as block devices (loop), block devices as mounted file systems; all of them in
//! namespaces of the test's own, so that nothing stays mounted or running whatever becomes of the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Appliance;
use super::foreign::{must, run};

const PATIENCE: Duration = Duration::from_secs(60);
/// Set in the process that is inside the namespaces: the file that it makes at its end.
const INSIDE: &str = "STILLPOINT_TEST_INSIDE";

/// Runs the test of this name (with its module) in its own mount and process namespaces: what it mounts nobody else sees, and all of
/// it, and every process that it starts, ends with it. Where that is not allowed, says why and does nothing.
pub fn contained(test: &str, body: impl FnOnce()) {
    if let Some(mark) = std::env::var_os(INSIDE) {
        body();
        File::create(mark).expect("a file of ours");
        return;
    }
    if let Some(reason) = cannot_mount() {
        eprintln!("SKIPPED {test}: {reason}");
        return;
    }
    // Nothing is mounted in it out here, so it can always be removed.
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let mark = scratch.path().join("ended");
    let status = Command::new("unshare")
        .env("TMPDIR", scratch.path())
        .args(NAMESPACES)
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, &mark)
        .stdin(Stdio::null())
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{test} failed in its namespaces");
    assert!(mark.exists(), "there is no test {test}");
}

const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Why nothing can be mounted here; `None` if it can.
fn cannot_mount() -> Option<String> {
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if let Err(error) = File::options().read(true).write(true).open(device) {
            return Some(format!(
                "{device}: {error} (mounting wants root, FUSE and loop devices)"
            ));
        }
    }
    let mut alone = NAMESPACES.to_vec();
    alone.push("true");
    let ended = run("unshare", &alone);
    (!ended.success).then(|| format!("no namespaces of its own: {}", ended.text.trim()))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Unmounts; if something still holds it, it goes when that ends.
fn unmount(directory: &Path) -> Result<(), String> {
    let ended = run("umount", &[text(directory)]);
    if ended.success {
        return Ok(());
    }
    run("umount", &["--lazy", text(directory)]);
    Err(ended.text)
}

/// An NBD export as a file, by nbdfuse.
pub struct Fuse {
    directory: PathBuf,
    child: Child,
}

impl Fuse {
    /// Mounts it in `directory`, which is made if need be, as the file [`Self::file`]. `source` are the arguments
    /// of nbdfuse that say what it is; `connections` of them, if the source is a URI.
    pub fn mount(directory: &Path, connections: u32, source: &[&str]) -> Self {
        fs::create_dir_all(directory).expect("a directory of ours");
        // It has much to say when its server dies.
        let log_path = directory.with_extension("log");
        let log = File::create(&log_path).expect("a file of ours");
        let child = Command::new("nbdfuse")
            .arg(format!("--connections={connections}"))
            .arg(directory.join("nbd"))
            .args(source)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nbdfuse runs");
        let mut mounted = Self {
            directory: directory.to_owned(),
            child,
        };
        let start = Instant::now();
        while fs::metadata(mounted.file()).is_err() {
            if let Some(status) = mounted.child.try_wait().expect("a child of ours") {
                let told = fs::read_to_string(&log_path).unwrap_or_default();
                panic!("nbdfuse {}: {status}: {told}", source.join(" "));
            }
            assert!(start.elapsed() < PATIENCE, "nbdfuse mounts nothing");
            thread::sleep(Duration::from_millis(5));
        }
        mounted
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.directory.join("nbd")
    }

    /// From now on it answers nothing, as a server that is gone: who asks for the file, if only for its size, waits.
    pub fn freeze(&self) {
        must("kill", &["-STOP", &self.child.id().to_string()]);
    }

    /// It answers again.
    pub fn thaw(&self) {
        must("kill", &["-CONT", &self.child.id().to_string()]);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Who asks one that is frozen waits for ever, and so would who unmounts it: that is asked for, too.
        let _ = run("kill", &["-CONT", &self.child.id().to_string()]);
        // What it serves may be dead, or still in use; then the process has to go first.
        let _ = unmount(&self.directory);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file as a block device, past the page cache.
pub struct Loop {
    device: PathBuf,
    _open: File,
}

impl Loop {
    /// Attaches a file. A flush of the device is an `fsync` of the file.
    pub fn attach(file: &Path) -> Self {
        let told = must("losetup", &["--find", "--show", "--direct-io=on", text(file)]);
        let device = PathBuf::from(told.trim());
        let open = File::open(&device).expect("a loop device");
        // While it is open this only marks it: it goes when the last one closes it, even if that is a `kill -9`.
        must("losetup", &["--detach", text(&device)]);
        let name = device.file_name().expect("the name of a device");
        let direct = Path::new("/sys/block").join(name).join("loop/dio");
        let direct = fs::read_to_string(direct).expect("a loop device that is attached");
        assert_eq!(direct.trim(), "1", "{told}: transfers go through the page cache");
        Self { device, _open: open }
    }

    /// Its path.
    pub fn device(&self) -> &Path {
        &self.device
    }
}

/// An export as a block device; taken apart in this order.
pub struct Exported {
    device: Loop,
    _file: Fuse,
}

impl Exported {
    /// Over two connections.
    pub fn new(appliance: &Appliance, export: &str) -> Self {
        let directory = appliance.path(&format!("{export}-as-a-file"));
        let file = Fuse::mount(&directory, 2, &[&appliance.uri(export)]);
        Self {
            device: Loop::attach(&file.file()),
            _file: file,
        }
    }

    /// Its path.
    pub fn device(&self) -> &Path {
        self.device.device()
    }
}

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// As `mount` calls it.
    pub name: &'static str,
    make: &'static [&'static str],
    /// Only looks; fails if anything is wrong.
    check: &'static [&'static str],
}

/// Every kind fits into this.
pub const FILE_SYSTEM_BYTES: u64 = 320 << 20;

const KINDS: [Kind; 3] = [
    Kind {
        name: "ext4",
        make: &["mkfs.ext4", "-q", "-F"],
        check: &["fsck.ext4", "-fn"],
    },
    Kind {
        name: "xfs",
        make: &["mkfs.xfs", "-q", "-f"],
        check: &["xfs_repair", "-n"],
    },
    Kind {
        name: "btrfs",
        make: &["mkfs.btrfs", "-q", "-f"],
        check: &["btrfs", "check", "--readonly"],
    },
];

impl Kind {
    /// Those that this kernel can mount; says which it cannot.
    pub fn all_here() -> Vec<Self> {
        let here = |kind: &Kind| {
            // It may be a module, and then may have to be asked for; there may be no modprobe.
            let _ = Command::new("modprobe").args(["-q", kind.name]).status();
            let known = fs::read_to_string("/proc/filesystems").expect("/proc is mounted");
            let here = known
                .lines()
                .any(|line| line.split_whitespace().last() == Some(kind.name));
            if !here {
                eprintln!("left out: this kernel has no {}", kind.name);
            }
            here
        };
        KINDS.into_iter().filter(here).collect()
    }

    /// Makes one.
    pub fn make(&self, device: &Path) {
        must(self.make[0], &[&self.make[1..], &[text(device)]].concat());
    }

    /// Checks one that is not mounted, without mending anything.
    pub fn check(&self, device: &Path) -> Result<(), String> {
        let ended = run(self.check[0], &[&self.check[1..], &[text(device)]].concat());
        let told = format!("{}: {}", self.check.join(" "), ended.text);
        if ended.success { Ok(()) } else { Err(told) }
    }

    /// Mounts one, which recovers it if it was cut off.
    pub fn mount(&self, device: &Path, directory: &Path) -> Result<Mounted, String> {
        fs::create_dir_all(directory).expect("a directory of ours");
        if self.name == "btrfs" {
            // It remembers devices by the identity of the file system, and copies of one have the same.
            run("btrfs", &["device", "scan", "--forget"]);
        }
        let ended = run("mount", &["-t", self.name, text(device), text(directory)]);
        if !ended.success {
            return Err(format!("mount -t {}: {}", self.name, ended.text));
        }
        Ok(Mounted {
            directory: directory.to_owned(),
            mounted: true,
        })
    }
}

/// A mounted file system.
pub struct Mounted {
    directory: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// Where.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Unmounts it; it must not be in use.
    pub fn unmount(mut self) -> Result<(), String> {
        self.mounted = false;
        unmount(&self.directory)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            // The device under it may be dead.
            let _ = unmount(&self.directory);
        }
    }
}
