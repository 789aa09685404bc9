//! A file on btrfs, on a loop device over a file beside everybody else's; snapshots are copies of it that share all blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Listen, QemuNbd, TakesSnapshots, make_written_file};
use crate::Failure;
use crate::fio::Target;
use crate::process::{self, Mount, Scratch};

/// The server, and the file system below it.
#[derive(Debug)]
pub struct Reflinked<'a> {
    scratch: &'a Scratch,
    /// Dropped before the mount: it has a file open there.
    server: QemuNbd,
    mount: Mount,
    copies: Vec<PathBuf>,
}

impl<'a> Reflinked<'a> {
    /// Makes the file system with one file, written from end to end, and serves that with qemu-nbd.
    ///
    /// # Errors
    /// Not root, no loop devices, no btrfs, or a program is missing.
    pub fn start(size_bytes: u64, aio: &str, scratch: &'a Scratch) -> Result<Self, Failure> {
        let image = scratch.path("btrfs.img");
        make_written_file(&image, size_bytes * 4 + (512 << 20), scratch)?;
        process::run(
            "mkfs.btrfs",
            Command::new("mkfs.btrfs").arg("-q").arg(&image),
            scratch,
        )?;
        let mount = Mount::new(&image, &scratch.path("btrfs"), scratch)?;
        go_direct(mount.directory(), scratch)?;
        let file = mount.directory().join("volume.img");
        make_written_file(&file, size_bytes, scratch)?;
        let server = QemuNbd::start("qemu-nbd-btrfs", &file, "raw", aio, Listen::Unix, scratch)?;
        Ok(Self {
            scratch,
            server,
            mount,
            copies: Vec::new(),
        })
    }
}

/// Past the page cache of the file system below, as all others.
fn go_direct(directory: &Path, scratch: &Scratch) -> Result<(), Failure> {
    let mut find = Command::new("findmnt");
    find.args(["-no", "SOURCE", "--mountpoint"]).arg(directory);
    let device = process::run("findmnt", &mut find, scratch)?;
    let mut set = Command::new("losetup");
    set.args(["--direct-io=on", device.trim()]);
    process::run("losetup", &mut set, scratch).map(drop)
}

impl TakesSnapshots for Reflinked<'_> {
    fn name(&self) -> &str {
        "btrfs, reflinks of a file"
    }

    fn target(&self) -> (PathBuf, String) {
        match &self.server.target {
            Target::Nbd { socket, export } => (socket.clone(), export.clone()),
            other => unreachable!("qemu-nbd was started on a unix socket, not {other}"),
        }
    }

    fn process_id(&self) -> u32 {
        self.server.process_id()
    }

    fn take(&mut self, number: u32) -> Result<(), Failure> {
        let file = self.mount.directory().join("volume.img");
        let copy = self.mount.directory().join(format!("snapshot-{number}.img"));
        let mut command = Command::new("cp");
        command.arg("--reflink=always").arg(file).arg(&copy);
        process::run("cp", &mut command, self.scratch)?;
        self.copies.push(copy);
        Ok(())
    }

    fn forget_all(&mut self) -> Result<(), Failure> {
        for copy in self.copies.drain(..) {
            fs::remove_file(copy)?;
        }
        let mut command = Command::new("btrfs");
        command.args(["filesystem", "sync"]).arg(self.mount.directory());
        process::run("btrfs", &mut command, self.scratch).map(drop)
    }
}
