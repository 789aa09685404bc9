//! The pool, and the daemon that has it open now and then.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Data, map_everything};
use crate::Failure;
use crate::frame::say;
use crate::process::{self, Scratch};
use crate::servers::{Daemon, POOL, VOLUME};

/// How long a clean stop may take.
const STOP_MAX: Duration = Duration::from_secs(60);
/// What a pool needs besides what is mapped: log, bitmaps, maps, and what waits for a checkpoint.
const ROOM_BYTES: u64 = 4 << 30;

/// The largest pool that is checked when it is made.
const CHECKED_GIB_MAX: u64 = 64;
/// The same for pools of which all data is read, block by block.
const DATA_CHECKED_GIB_MAX: u64 = 16;

/// What is made and how it is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// GiB mapped in the pool whose data is left out.
    pub mapped_gib: u64,
    /// GiB of the pool whose data is written.
    pub real_gib: u64,
    /// Restarts, runs or discards of each kind.
    pub rounds: u32,
    /// Of each run.
    pub time: Duration,
    /// GiB that are discarded beside other writes.
    pub discard_gib: u64,
    /// Of the pools, if not as many as processors.
    pub shards: Option<u16>,
    /// More options of `stillpoint serve`.
    pub serve_options: Vec<String>,
}

/// Whether data is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The file is sparse where data would be.
    DataLeftOut,
    /// All is there.
    Real,
}

/// A pool that is mapped from end to end; its daemon is not running.
pub struct MappedPool {
    /// Whether its data is there.
    pub kind: Kind,
    /// GiB of its volume.
    pub mapped_gib: u64,
    /// What its file takes.
    pub disk_bytes: u64,
    /// How long mapping took.
    pub filling: Duration,
    program: PathBuf,
    serve_options: Vec<String>,
    scratch: Scratch,
    tail: Scratch,
}

impl MappedPool {
    /// Makes the pool with the daemon, and maps all of its volume.
    ///
    /// # Errors
    /// A command fails, or the disk is full.
    pub fn make(settings: &Settings, program: &Path, backing: &Path, kind: Kind) -> Result<Self, Failure> {
        let scratch = Scratch::new(backing)?;
        let tail = Scratch::new(Path::new("/dev/shm"))?;
        let mapped_gib = match kind {
            Kind::DataLeftOut => settings.mapped_gib,
            Kind::Real => settings.real_gib,
        };
        let mut pool = Self {
            kind,
            mapped_gib,
            disk_bytes: 0,
            filling: Duration::ZERO,
            program: program.to_path_buf(),
            serve_options: settings.serve_options.clone(),
            scratch,
            tail,
        };
        say(&format!("a pool with {mapped_gib} GiB mapped: {kind:?}"));
        let file = pool.file();
        let bytes = mapped_gib << 30;
        File::create_new(&file)?.set_len(bytes + bytes / 16 + ROOM_BYTES)?;
        let path = file.display().to_string();
        let size = bytes.to_string();
        let daemon = pool.start(&[])?;
        let mut create = vec!["pool", "create", POOL, &path, "--force", &path];
        let shards = settings.shards.map(|shards| shards.to_string());
        if let Some(shards) = &shards {
            create.extend(["--shards", shards]);
        }
        pool.command(&daemon, &create)?;
        pool.command(&daemon, &["volume", "create", VOLUME, "--size", &size])?;
        pool.command(&daemon, &["export", "create", VOLUME])?;
        daemon.stop(STOP_MAX)?;
        let data = match kind {
            Kind::DataLeftOut => Data::LeftOut,
            Kind::Real => Data::Kept,
        };
        let filled = map_everything(&file, data)?;
        pool.filling = filled.took;
        pool.disk_bytes = file.metadata()?.blocks() * 512;
        say(&format!(
            "{} blocks mapped in {:.0} s; {:.1} GiB on the disk, {:.1} GiB written",
            filled.blocks,
            filled.took.as_secs_f64(),
            pool.disk_bytes as f64 / f64::from(1 << 30),
            filled.written_bytes as f64 / f64::from(1 << 30),
        ));
        pool.check(&path)?;
        Ok(pool)
    }

    /// Has the product look for damage, where that does not take long.
    fn check(&self, path: &str) -> Result<(), Failure> {
        let depth = match self.kind {
            Kind::Real if self.mapped_gib <= DATA_CHECKED_GIB_MAX => "--check",
            Kind::Real | Kind::DataLeftOut => "--metadata-only",
        };
        if self.mapped_gib <= CHECKED_GIB_MAX {
            let mut command = Command::new(&self.program);
            command
                .args(["inspect", depth, "--tail-dir"])
                .arg(self.tail.path("tails"))
                .arg(path);
            process::run("inspect", &mut command, &self.scratch)?;
            say(&format!("inspect {depth} finds nothing wrong"));
        }
        Ok(())
    }

    /// The file that the pool lies in.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.scratch.path("pool.img")
    }

    /// What it is called in tables.
    #[must_use]
    pub fn name(&self) -> String {
        match self.kind {
            Kind::DataLeftOut => format!("{} GiB mapped, data left out", self.mapped_gib),
            Kind::Real => format!("{} GiB written", self.mapped_gib),
        }
    }

    /// Starts the daemon, with these options too, and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, more: &[&str]) -> Result<Daemon, Failure> {
        Daemon::start(&self.program, &self.options(more), &self.scratch, &self.tail)
    }

    /// Starts the daemon and does not wait; gives the instant before.
    ///
    /// # Errors
    /// It does not start.
    pub fn spawn(&self) -> Result<(Instant, Daemon), Failure> {
        let begun = Instant::now();
        let daemon = Daemon::spawn(&self.program, &self.options(&[]), &self.scratch, &self.tail)?;
        Ok((begun, daemon))
    }

    fn options(&self, more: &[&str]) -> Vec<String> {
        let more = more.iter().map(|&option| option.to_owned());
        self.serve_options.iter().cloned().chain(more).collect()
    }

    /// Runs a command of the command line.
    ///
    /// # Errors
    /// It fails.
    pub fn command(&self, daemon: &Daemon, arguments: &[&str]) -> Result<String, Failure> {
        daemon.command(arguments, &self.scratch)
    }

    /// Stops the daemon and waits for its end; gives how long it took.
    ///
    /// # Errors
    /// It does not end, or badly.
    pub fn stop(daemon: Daemon) -> Result<Duration, Failure> {
        let begun = Instant::now();
        daemon.stop(STOP_MAX)?;
        Ok(begun.elapsed())
    }
}
