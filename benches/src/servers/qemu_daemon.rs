//! qemu-storage-daemon on a qcow2 image, told over QMP to put an overlay on it: external snapshots while a client writes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::{TakesSnapshots, fill, make_qcow2, make_qcow2_over, takes_direct};
use crate::Failure;
use crate::fio::Target;
use crate::process::{Process, Scratch};

/// An answer over QMP takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon, its image, and the overlays over it.
#[derive(Debug)]
pub struct QemuDaemon<'a> {
    scratch: &'a Scratch,
    base: PathBuf,
    aio: String,
    running: Option<Running>,
    overlays: Vec<PathBuf>,
}

#[derive(Debug)]
struct Running {
    process: Process,
    control: BufReader<UnixStream>,
}

impl<'a> QemuDaemon<'a> {
    /// Makes an image whose clusters are all there and were all written, and serves it.
    ///
    /// # Errors
    /// qemu is not there, or fails.
    pub fn start(size_bytes: u64, aio: &str, scratch: &'a Scratch) -> Result<Self, Failure> {
        let base = scratch.path("daemon-base.qcow2");
        make_qcow2(&base, size_bytes, scratch)?;
        // Native AIO needs O_DIRECT.
        let aio = if takes_direct(&base) || aio != "native" {
            aio
        } else {
            "threads"
        };
        let mut daemon = Self {
            scratch,
            base,
            aio: aio.into(),
            running: None,
            overlays: Vec::new(),
        };
        daemon.serve()?;
        let (socket, export) = daemon.target();
        fill(&Target::Nbd { socket, export }, size_bytes, scratch)?;
        Ok(daemon)
    }

    fn serve(&mut self) -> Result<(), Failure> {
        self.running = None;
        let (socket, control) = (self.target().0, self.scratch.path("qmp.sock"));
        for path in [&socket, &control] {
            let _ = fs::remove_file(path);
        }
        let image = json!({"driver": "qcow2", "node-name": "node-0", "file": self.file(&self.base)});
        let mut command = Command::new("qemu-storage-daemon");
        command
            .arg("--blockdev")
            .arg(image.to_string())
            .arg("--nbd-server")
            .arg(format!(
                "addr.type=unix,addr.path={},max-connections=0",
                socket.display()
            ))
            .args([
                "--export",
                "type=nbd,id=export,node-name=node-0,name=,writable=on",
            ])
            .arg("--chardev")
            .arg(format!(
                "socket,id=control,path={},server=on,wait=off",
                control.display()
            ))
            .args(["--monitor", "chardev=control"]);
        let process = Process::start("qemu-storage-daemon", &mut command, self.scratch)?;
        process.wait_until(|| socket.exists() && control.exists())?;
        let stream = UnixStream::connect(&control)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut running = Running {
            process,
            control: BufReader::new(stream),
        };
        running.ask(&json!({"execute": "qmp_capabilities"}))?;
        self.running = Some(running);
        Ok(())
    }

    fn file(&self, path: &Path) -> Value {
        json!({
            "driver": "file",
            "filename": path,
            "cache": {"direct": takes_direct(path)},
            "aio": self.aio,
        })
    }
}

impl Running {
    /// Sends a command; gives what it returned. Events in between are left out.
    fn ask(&mut self, command: &Value) -> Result<Value, Failure> {
        writeln!(self.control.get_mut(), "{command}")?;
        loop {
            let mut line = String::new();
            if self.control.read_line(&mut line)? == 0 {
                return Err(format!("qemu-storage-daemon hung up at {command}").into());
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if !answer["error"].is_null() {
                return Err(format!("qemu-storage-daemon, {command}: {}", answer["error"]).into());
            }
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
        }
    }
}

impl TakesSnapshots for QemuDaemon<'_> {
    fn name(&self) -> &str {
        "qcow2, external snapshots"
    }

    fn target(&self) -> (PathBuf, String) {
        (self.scratch.path("daemon.sock"), String::new())
    }

    fn process_id(&self) -> u32 {
        self.running.as_ref().map_or(0, |running| running.process.id())
    }

    fn take(&mut self, number: u32) -> Result<(), Failure> {
        let below = self.overlays.last().unwrap_or(&self.base);
        let overlay = self.scratch.path(&format!("overlay-{number}.qcow2"));
        make_qcow2_over(below, &overlay, self.scratch)?;
        let old = format!("node-{}", self.overlays.len());
        let new = format!("node-{}", self.overlays.len() + 1);
        let add = json!({
            "execute": "blockdev-add",
            "arguments": {"driver": "qcow2", "node-name": new, "file": self.file(&overlay), "backing": null},
        });
        let snapshot = json!({
            "execute": "blockdev-snapshot",
            "arguments": {"node": old, "overlay": new},
        });
        self.overlays.push(overlay);
        let running = self.running.as_mut().ok_or("qemu-storage-daemon does not run")?;
        running.ask(&add)?;
        running.ask(&snapshot)?;
        Ok(())
    }

    /// What was written to the overlays goes with them.
    fn forget_all(&mut self) -> Result<(), Failure> {
        self.running = None;
        for overlay in self.overlays.drain(..) {
            fs::remove_file(overlay)?;
        }
        self.serve()
    }
}
