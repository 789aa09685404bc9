//! Opening one file or block device, for this process alone.

use super::nvme::kernel;
use super::nvme::passthrough::{DurableWrites, Passthrough};
use super::queue::polled::reads_polled;
use crate::discovery::{Machine, Polled};
use crate::files::forget_cached;
use core::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use stillpoint_processor::BLOCK_BYTES;
use stillpoint_processor::ports::DeviceError;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A plain file.
    File,
    /// A block device.
    Block,
}

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// A file or block device, opened and claimed.
#[derive(Debug)]
pub struct DeviceFile {
    /// Locked, and in every ring that sends to the device: after `kill -9` the lock ends only when the kernel has torn down
    /// those rings, and with them whatever was on its way.
    file: File,
    /// Of a block device: opened with `O_EXCL`, against mounts and volume managers. No ring has it.
    exclusive: Option<File>,
    path: PathBuf,
    kind: DeviceKind,
    size_bytes: u64,
    /// Of a file: its size when it was asked for last.
    known_bytes: AtomicU64,
    /// The size that was told of last.
    told_bytes: AtomicU64,
    direct: bool,
    passthrough: Option<Passthrough>,
    refused: Option<String>,
    polled: Option<Polled>,
    /// See [`Self::note_not_polled`].
    not_polled: AtomicBool,
    /// The first flush that failed, on any processor.
    failed_flush: OnceLock<DeviceError>,
    /// How it refused to make zeros by itself, on any processor.
    refused_zeroes: OnceLock<DeviceError>,
}

/// A device could not be opened.
#[derive(Debug)]
pub struct DeviceFileError {
    /// The device.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a device.
#[derive(Debug)]
pub enum Problem {
    /// It cannot be opened.
    Open(io::Error),
    /// It can be read but not written.
    ReadOnly,
    /// It is there already.
    Exists,
    /// It is neither a plain file nor a block device.
    NotADevice,
    /// Somebody has it: another daemon, a mount, a volume manager.
    InUse {
        /// The process that holds it, if known.
        holder: Option<String>,
    },
    /// It could not be made as large as asked.
    Size {
        /// Bytes asked for.
        size_bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Its sectors are larger than a block.
    SectorSize(u64),
}

impl fmt::Display for DeviceFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.problem {
            Problem::Open(error) => write!(f, "cannot open {path}: {error}"),
            Problem::ReadOnly => write!(f, "{path} is read-only; a pool has to be writable"),
            Problem::Exists => write!(f, "{path} exists already; choose another name or remove it"),
            Problem::NotADevice => write!(f, "{path} is neither a plain file nor a block device"),
            Problem::InUse { holder: Some(holder) } => {
                write!(f, "{path} is in use by {holder}; stop that first")
            }
            Problem::InUse { holder: None } => {
                write!(
                    f,
                    "{path} is in use (another daemon, a mount or a volume manager); stop that first"
                )
            }
            Problem::Size { size_bytes, source } => {
                write!(f, "{path} cannot be made {size_bytes} bytes large: {source}")
            }
            Problem::SectorSize(bytes) => {
                write!(
                    f,
                    "{path} has sectors of {bytes} bytes; at most {BLOCK_BYTES} are supported"
                )
            }
        }
    }
}

impl std::error::Error for DeviceFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.problem {
            Problem::Open(source) | Problem::Size { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl DeviceFile {
    /// Opens and claims an existing file or block device.
    ///
    /// It is claimed by an exclusive lock (`flock`), and a block device also as a mount claims it (`O_EXCL`). The lock ends
    /// with this value, or after the process when nothing that it had begun can reach the device any more.
    ///
    /// # Errors
    /// [`DeviceFileError`].
    pub fn open(path: &Path) -> Result<Self, DeviceFileError> {
        Self::open_for(path, Access::Write)
    }

    /// The same, to read only. A file is locked so that others may read it too, and nobody may open it to write.
    ///
    /// # Errors
    /// [`DeviceFileError`].
    pub fn open_to_read(path: &Path) -> Result<Self, DeviceFileError> {
        Self::open_for(path, Access::Read)
    }

    fn open_for(path: &Path, access: Access) -> Result<Self, DeviceFileError> {
        open(path, access).map_err(|problem| DeviceFileError {
            path: path.to_owned(),
            problem,
        })
    }

    /// Makes a sparse file of `size_bytes` and claims it.
    ///
    /// # Errors
    /// [`DeviceFileError`], if the file exists already among others.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self, DeviceFileError> {
        let named = |problem| DeviceFileError {
            path: path.to_owned(),
            problem,
        };
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let file = made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => named(Problem::Exists),
            _ => named(Problem::Open(error)),
        })?;
        if let Err(source) = file.set_len(size_bytes) {
            // Nothing of use was made; if it cannot be removed, the message still names it.
            let _ = std::fs::remove_file(path);
            return Err(named(Problem::Size { size_bytes, source }));
        }
        drop(file);
        Self::open(path)
    }

    /// Its path, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Its size in bytes when it was opened.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Its size in bytes by now. Of a block device the kernel tells it without asking anybody: one that was taken out has none. Of a
    /// file it is what [`Self::ask_size`] found last.
    #[must_use]
    pub fn size_bytes_now(&self) -> u64 {
        match self.kind {
            DeviceKind::File => self.known_bytes.load(Ordering::Relaxed),
            DeviceKind::Block => size_now(&self.file).unwrap_or(0),
        }
    }

    /// Finds out the size of a file. Its file system may be one that asks somebody who does not answer: this may never return.
    pub fn ask_size(&self) {
        if self.kind == DeviceKind::File {
            let size_bytes = self.file.metadata().map_or(0, |metadata| metadata.len());
            self.known_bytes.store(size_bytes, Ordering::Relaxed);
        }
    }

    /// Its size before and now, if it has changed since this was asked last, or since it was opened.
    #[must_use]
    pub fn resized(&self) -> Option<(u64, u64)> {
        let now = self.size_bytes_now();
        let before = self.told_bytes.swap(now, Ordering::Relaxed);
        (before != now).then_some((before, now))
    }

    /// Its size in whole blocks of 4096 bytes when it was opened.
    #[must_use]
    pub fn size_blocks(&self) -> u64 {
        self.size_bytes / BLOCK_BYTES as u64
    }

    /// Whether transfers go past the page cache (O_DIRECT). Some file systems cannot.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The same, served in the fastest way there is: by commands of our own if they are wanted and it is an NVMe namespace that takes
    /// them (see [`Self::refused`] for why not), and polled if its driver has poll queues.
    #[must_use]
    pub fn served_by(mut self, commands: Option<DurableWrites>) -> Self {
        match commands.and_then(|durable_writes| Passthrough::open(&self.path, &self.file, durable_writes)) {
            Some(Ok(passthrough)) => self.passthrough = Some(passthrough),
            Some(Err(reason)) => self.refused = Some(reason),
            None => {}
        }
        if self.passthrough.is_none() && self.direct && kernel::may_poll() {
            let opened = self.file.metadata().ok();
            let number = opened.filter(|opened| opened.file_type().is_block_device());
            let polled = number.and_then(|opened| Machine::here().polled_of(opened.rdev()));
            // What would be cut is not even tried: it may never end.
            let is_whole = |polled: &Polled| polled.takes(0, BLOCK_BYTES as u64);
            self.polled = polled.filter(|polled| is_whole(polled) && reads_polled(&self.file));
        }
        self
    }

    /// Whether completions of its reads and writes are polled for, on all processors that have it.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        let can = match &self.passthrough {
            Some(passthrough) => passthrough.is_polled(),
            None => self.polled.is_some(),
        };
        can && !self.not_polled.load(Ordering::Relaxed)
    }

    /// Some processor could not make a ring that polls for them, or the kernel does not poll after all.
    pub(super) fn note_not_polled(&self) {
        self.not_polled.store(true, Ordering::Relaxed);
    }

    /// The same, polled for in this way, whether the kernel can or not.
    #[cfg(test)]
    pub(super) fn with_polled(mut self, polled: Polled) -> Self {
        self.polled = Some(polled);
        self
    }

    /// Of what is served as a block device: what is polled for, if anything is.
    pub(super) fn polled(&self) -> Option<Polled> {
        self.polled
    }

    /// The namespace that takes our own commands.
    #[must_use]
    pub fn passthrough(&self) -> Option<&Passthrough> {
        self.passthrough.as_ref()
    }

    /// Why a namespace does not take our own commands and is served as a block device.
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Reads with `read` from what is claimed here, whatever its path leads to by now, in pieces of any length at any place.
    ///
    /// # Errors
    /// If it cannot be opened once more.
    pub fn read_anywhere<T>(&self, read: impl FnOnce(&File) -> T) -> io::Result<T> {
        let file = open_again(&self.file, false, Access::Read)?;
        let result = read(&file);
        // NVMe commands of our own pass the cache by, and it would keep showing others what lay there before.
        forget_cached(&file, 0, 0);
        Ok(result)
    }

    /// Makes any `length_bytes` at any `offset_bytes` zeros, and flushes them. A block device is told so without being sent them, if it
    /// can (NVMe: Write Zeroes).
    ///
    /// # Errors
    /// What the system said; then some may be written.
    pub fn write_zeros(&self, offset_bytes: u64, length_bytes: usize) -> io::Result<()> {
        let file = open_again(&self.file, false, Access::Write)?;
        if !(self.kind == DeviceKind::Block && zero_range(&file, offset_bytes, length_bytes)) {
            file.write_all_at(&vec![0; length_bytes], offset_bytes)?;
        }
        file.sync_data()?;
        forget_cached(&file, 0, 0);
        Ok(())
    }

    /// Writes what the first and the last block of 4096 bytes hold to them once more, and flushes: whether it takes writes.
    ///
    /// # Errors
    /// What the system said; nothing is changed in any case.
    pub fn rewrite_ends(&self) -> io::Result<()> {
        let last = self.size_blocks().saturating_sub(1) * BLOCK_BYTES as u64;
        let file = open_again(&self.file, self.direct, Access::Write)?;
        let mut block = Box::new(AlignedBlock([0; BLOCK_BYTES]));
        for offset_bytes in [0, last] {
            file.read_exact_at(&mut block.0, offset_bytes)?;
            file.write_all_at(&block.0, offset_bytes)?;
        }
        file.sync_data()
    }

    /// Has the kernel read the partition table anew: the partitions of what was overwritten go, as far as nobody uses them.
    /// What has no partitions takes no notice.
    pub fn forget_partitions(&self) {
        const BLKRRPART: libc::Ioctl = 0x125f;
        if let Some(exclusive) = &self.exclusive {
            // Only who has it for himself may.
            // SAFETY: takes no argument and touches no memory of ours.
            unsafe { libc::ioctl(exclusive.as_raw_fd(), BLKRRPART) };
        }
    }

    /// Why what ends at `end_bytes` cannot be reached, if the size of a block device says so: it has become smaller, or was taken out
    /// and has no bytes left. The kernel then fails writes with ENOSPC, as if it were full.
    pub(crate) fn out_of_reach(&self, end_bytes: u64) -> Option<DeviceError> {
        match self.kind {
            DeviceKind::File => None,
            DeviceKind::Block => match self.size_bytes_now() {
                0 => Some(DeviceError::Gone),
                size_bytes => (size_bytes < end_bytes).then_some(DeviceError::Shrunk),
            },
        }
    }

    /// Whether a block device has no bytes any more: it was taken out.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.out_of_reach(1).is_some()
    }

    /// A flush failed. What the device had in its cache may be gone, and the kernel tells that once: no later flush of
    /// any processor may succeed until the device is opened again.
    pub(crate) fn note_failed_flush(&self, error: DeviceError) {
        // The first one counts.
        let _ = self.failed_flush.set(error);
    }

    /// The error of the first flush that failed.
    pub(crate) fn failed_flush(&self) -> Option<DeviceError> {
        self.failed_flush.get().copied()
    }

    /// It does not make zeros by itself, whatever it says: they are written to it from now on.
    pub(crate) fn note_refused_zeroes(&self, error: DeviceError) {
        // The first one counts.
        let _ = self.refused_zeroes.set(error);
    }

    /// How it refused to make zeros by itself. Zeros are written to it since.
    #[must_use]
    pub fn refused_zeroes(&self) -> Option<DeviceError> {
        self.refused_zeroes.get().copied()
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        // By hand: an old kernel's ring may go on to have the file. Should it fail, the lock ends with the ring.
        let _ = self.file.unlock();
    }
}

impl AsRawFd for DeviceFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn open(path: &Path, access: Access) -> Result<DeviceFile, Problem> {
    let metadata = std::fs::metadata(path).map_err(Problem::Open)?;
    let kind = if metadata.file_type().is_block_device() {
        DeviceKind::Block
    } else if metadata.is_file() {
        DeviceKind::File
    } else {
        return Err(Problem::NotADevice);
    };
    let (opened, direct) = open_direct(path, kind, access)?;
    let (file, exclusive) = match kind {
        DeviceKind::File => (opened, None),
        DeviceKind::Block => {
            let file = open_again(&opened, direct, access).map_err(Problem::Open)?;
            (file, Some(opened))
        }
    };
    claim(&file, &metadata, access)?;
    let size_bytes = match kind {
        DeviceKind::File => file.metadata().map_err(Problem::Open)?.len(),
        DeviceKind::Block => block_device_bytes(&file)?,
    };
    Ok(DeviceFile {
        file,
        exclusive,
        path: path.to_owned(),
        kind,
        size_bytes,
        known_bytes: AtomicU64::new(size_bytes),
        told_bytes: AtomicU64::new(size_bytes),
        direct,
        passthrough: None,
        refused: None,
        polled: None,
        not_polled: AtomicBool::new(false),
        failed_flush: OnceLock::new(),
        refused_zeroes: OnceLock::new(),
    })
}

/// The same file once more, whatever its name leads to by now. For the rings of a block device it is not the exclusive one: that would last as
/// long as a ring has the file, which before Linux 6.3 may be a second longer than a pool is open. Where /proc is missing it is the
/// given one, under another number.
fn open_again(file: &File, direct: bool, access: Access) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match OpenOptions::new()
        .read(true)
        .write(access == Access::Write)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => file.try_clone(),
        opened => opened,
    }
}

/// Opens with O_DIRECT where that works with blocks of 4096 bytes, else without.
fn open_direct(path: &Path, kind: DeviceKind, access: Access) -> Result<(File, bool), Problem> {
    let exclusive = match kind {
        DeviceKind::Block => libc::O_EXCL,
        DeviceKind::File => 0,
    };
    let attempt = |flags| {
        OpenOptions::new()
            .read(true)
            .write(access == Access::Write)
            .custom_flags(exclusive | flags)
            .open(path)
    };
    let in_use = |error: io::Error| match error.raw_os_error() {
        Some(libc::EBUSY) => Problem::InUse { holder: None },
        Some(libc::EROFS | libc::EACCES | libc::EPERM) if File::open(path).is_ok() => Problem::ReadOnly,
        _ => Problem::Open(error),
    };
    match attempt(libc::O_DIRECT) {
        Ok(file) if reads_a_block(&file) => Ok((file, true)),
        Ok(file) => {
            drop(file); // a block device must be given up before it can be claimed again
            attempt(0).map(|file| (file, false)).map_err(in_use)
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            attempt(0).map(|file| (file, false)).map_err(in_use)
        }
        Err(error) => Err(in_use(error)),
    }
}

/// A block as O_DIRECT wants it.
#[repr(align(4096))]
pub(super) struct AlignedBlock(pub [u8; BLOCK_BYTES]);

/// Whether the file accepts a read of one aligned block: some accept O_DIRECT and then want more than that.
fn reads_a_block(file: &File) -> bool {
    let mut block = Box::new(AlignedBlock([0; BLOCK_BYTES]));
    file.read_at(&mut block.0, 0)
        .map_or_else(|error| error.raw_os_error() != Some(libc::EINVAL), |_| true)
}

fn claim(file: &File, metadata: &std::fs::Metadata, access: Access) -> Result<(), Problem> {
    let locked = match access {
        Access::Write => file.try_lock(),
        Access::Read => file.try_lock_shared(),
    };
    match locked {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(Problem::InUse {
            holder: holder(metadata),
        }),
        Err(std::fs::TryLockError::Error(error)) => Err(Problem::Open(error)),
    }
}

/// Who holds the lock on a file, as /proc/locks tells it.
fn holder(metadata: &std::fs::Metadata) -> Option<String> {
    let place = format!(
        "{:02x}:{:02x}:{}",
        libc::major(metadata.dev()),
        libc::minor(metadata.dev()),
        metadata.ino()
    );
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let line = locks
        .lines()
        .find(|line| line.split_whitespace().any(|word| word == place))?;
    let process: u32 = line.split_whitespace().nth(4)?.parse().ok()?;
    if process == std::process::id() {
        return Some("this very process: it was named twice".to_owned());
    }
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(format!("process {process} ({})", name.trim()))
}

/// Has the kernel make a range of a block device zeros, with the command that the device has for it or by writing them. Not what is not
/// in whole sectors.
fn zero_range(file: &File, offset_bytes: u64, length_bytes: usize) -> bool {
    // Not KEEP_SIZE: with it the kernel passes by in silence what lies past the end of a device that has shrunk.
    let mode = libc::FALLOC_FL_ZERO_RANGE;
    let (Ok(offset), Ok(length)) = (i64::try_from(offset_bytes), i64::try_from(length_bytes)) else {
        return false;
    };
    // SAFETY: touches no memory of ours.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) == 0 }
}

/// The size of a block device in bytes; `None`, with the reason in errno, if it does not say.
fn size_now(file: &File) -> Option<u64> {
    const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
    let mut size_bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 to its argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size_bytes) };
    (result == 0).then_some(size_bytes)
}

fn block_device_bytes(file: &File) -> Result<u64, Problem> {
    const BLKSSZGET: libc::Ioctl = 0x1268;
    const BLKROGET: libc::Ioctl = 0x125e;
    let mut read_only: libc::c_int = 0;
    // The kernel lets a read-only device be opened to write, and fails the writes.
    // SAFETY: BLKROGET writes one int to its argument.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET, &raw mut read_only) } == 0 && read_only != 0 {
        return Err(Problem::ReadOnly);
    }
    let size_bytes = size_now(file).ok_or_else(|| Problem::Open(io::Error::last_os_error()))?;
    let mut sector_bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int to its argument.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut sector_bytes) } != 0 {
        return Err(Problem::Open(io::Error::last_os_error()));
    }
    if sector_bytes as usize > BLOCK_BYTES {
        return Err(Problem::SectorSize(sector_bytes as u64));
    }
    Ok(size_bytes)
}

#[cfg(test)]
mod tests;
