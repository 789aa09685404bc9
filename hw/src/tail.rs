//! The log tail of a shard: a file on tmpfs, mapped into memory. It outlives the process, not the power.
//!
//! A tail belongs to one pool, shard and boot ([`stillpoint_ondisk::tail::TailHeader`]); one that fits is kept, so
//! that recovery can replay it, any other is started anew.

use core::fmt;
use memmap2::MmapMut;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use stillpoint_ondisk::PAGE_BYTES;
use stillpoint_ondisk::tail::{FILE_BYTES, SEGMENT_BYTES, TailHeader};
use stillpoint_processor::ShardIndex;
use stillpoint_processor::ports::{LogTail, MemoryTail};
use zerocopy::IntoBytes;

/// Whether a tail was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailState {
    /// It fitted this pool, shard and boot: its records count.
    Kept,
    /// There was none, or one of another boot: it starts empty.
    Fresh,
    /// There is no tail at all: records are written to the log before the acknowledgement.
    None,
}

/// A shard's log tail: a file, or none.
#[derive(Debug, Default)]
pub struct FileTail {
    memory: Option<MmapMut>,
    path: PathBuf,
}

/// A log tail could not be had.
#[derive(Debug)]
pub struct TailError {
    /// The file or directory.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// What the system said.
    pub source: io::Error,
}

impl fmt::Display for TailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "log tail {}: cannot {}: {}; without it writes are acknowledged only after the log is written",
            self.path.display(),
            self.action,
            self.source
        )
    }
}

impl std::error::Error for TailError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl FileTail {
    /// No tail.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Opens or makes the tail of `shard` of `pool` in `directory`, which [`tail_directory`] chose.
    ///
    /// # Errors
    /// [`TailError`], among others if the tmpfs is full: its space is taken now, so that no store fails later.
    pub fn open(
        directory: &Path,
        pool: [u8; 16],
        boot: [u8; 16],
        shard: ShardIndex,
    ) -> Result<(Self, TailState), TailError> {
        let path = path_of(directory, pool, shard);
        let failed = |action| {
            let path = path.clone();
            move |source| TailError { path, action, source }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed("open the file"))?;
        let length = file.metadata().map_err(failed("look at the file"))?.len();
        if length != FILE_BYTES as u64 {
            file.set_len(0).map_err(failed("empty the file"))?;
            file.set_len(FILE_BYTES as u64).map_err(failed("size the file"))?;
        }
        reserve(&file).map_err(failed("take the space"))?;
        // SAFETY: the file is of this size and all its space is taken. Nobody else maps or cuts it: it is
        // named after the pool, whose devices this process has claimed, in a directory of this user alone.
        let mut memory = unsafe { MmapMut::map_mut(&file) }.map_err(failed("map the file"))?;
        let fits = length == FILE_BYTES as u64
            && TailHeader::check(&memory[..PAGE_BYTES], pool, boot, shard.0).is_ok();
        if !fits {
            memory.fill(0);
            memory[..PAGE_BYTES].copy_from_slice(TailHeader::new(pool, boot, shard.0).as_bytes());
        }
        let state = if fits { TailState::Kept } else { TailState::Fresh };
        let tail = Self {
            memory: Some(memory),
            path,
        };
        Ok((tail, state))
    }

    /// Removes the file of a tail that no recovery needs: its shard was closed with a checkpoint that holds everything.
    ///
    /// # Errors
    /// [`TailError`]; the file stays, which does no harm.
    pub fn remove(self) -> Result<(), TailError> {
        if self.memory.is_none() {
            return Ok(());
        }
        std::fs::remove_file(&self.path).map_err(|source| TailError {
            path: self.path,
            action: "remove the file",
            source,
        })
    }
}

/// A copy of the tail of `shard` of `pool` in `directory`, if there is one of this boot. Nothing is made or changed.
///
/// # Errors
/// [`TailError`] if there is one and it cannot be read.
pub fn read(
    directory: &Path,
    pool: [u8; 16],
    boot: [u8; 16],
    shard: ShardIndex,
) -> Result<Option<MemoryTail>, TailError> {
    let path = path_of(directory, pool, shard);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(TailError {
                path,
                action: "read the file",
                source,
            });
        }
    };
    if bytes.len() != FILE_BYTES || TailHeader::check(&bytes[..PAGE_BYTES], pool, boot, shard.0).is_err() {
        return Ok(None);
    }
    let mut tail = MemoryTail::default();
    for (index, segment) in bytes[PAGE_BYTES..].chunks_exact(SEGMENT_BYTES).enumerate() {
        tail.segment(index).copy_from_slice(segment);
    }
    Ok(Some(tail))
}

fn path_of(directory: &Path, pool: [u8; 16], shard: ShardIndex) -> PathBuf {
    let name: String = pool.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(format!("{name}-{}.tail", shard.0))
}

impl LogTail for FileTail {
    fn is_there(&self) -> bool {
        self.memory.is_some()
    }

    fn segment(&mut self, index: usize) -> &mut [u8] {
        let start = PAGE_BYTES + index * SEGMENT_BYTES;
        match &mut self.memory {
            Some(memory) => &mut memory[start..start + SEGMENT_BYTES],
            None => &mut [],
        }
    }
}

/// Where log tails may lie if nobody says where, best first: not all of these have to be there.
#[must_use]
pub fn tail_directories() -> Vec<PathBuf> {
    let run =
        std::env::var_os("XDG_RUNTIME_DIR").map(|directory| PathBuf::from(directory).join("stillpoint"));
    let others = [
        PathBuf::from("/run/stillpoint"),
        PathBuf::from(format!("/dev/shm/stillpoint-{}", user())),
    ];
    run.into_iter().chain(others).collect()
}

fn user() -> u32 {
    // SAFETY: takes no argument and cannot fail.
    unsafe { libc::geteuid() }
}

/// The directory for log tails: `$XDG_RUNTIME_DIR/stillpoint` or `/run/stillpoint` if it is on tmpfs and can be
/// written, else `/dev/shm/stillpoint-UID`.
///
/// # Errors
/// [`TailError`] about the last candidate if none will do.
pub fn tail_directory() -> Result<PathBuf, TailError> {
    let user = user();
    let mut last = None;
    for path in tail_directories() {
        match usable(&path, user) {
            Ok(()) => return Ok(path),
            Err((action, source)) => last = Some(TailError { path, action, source }),
        }
    }
    Err(last.expect("there is at least one candidate"))
}

/// Checks that a directory for log tails is on tmpfs, and this user's alone; makes it if it is not there.
///
/// # Errors
/// [`TailError`].
pub fn check_tail_directory(path: &Path) -> Result<(), TailError> {
    usable(path, user()).map_err(|(action, source)| TailError {
        path: path.to_owned(),
        action,
        source,
    })
}

fn usable(path: &Path, user: u32) -> Result<(), (&'static str, io::Error)> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let place = if path.exists() { path } else { parent };
    if !is_tmpfs(place).map_err(|error| ("look at it", error))? {
        return Err(("use it", io::Error::other("it is not on tmpfs")));
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(("make it", error)),
    }
    let metadata = std::fs::symlink_metadata(path).map_err(|error| ("look at it", error))?;
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o022 != 0 {
        return Err((
            "use it",
            io::Error::other("it must be a directory that only this user can write to"),
        ));
    }
    Ok(())
}

/// Whether a path is on tmpfs (or ramfs): memory that outlives the process.
///
/// # Errors
/// What the system said.
pub fn is_tmpfs(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let mut system = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs fills in the structure if it returns 0.
    if unsafe { libc::fstatfs(file.as_raw_fd(), system.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in, as above.
    let system = unsafe { system.assume_init() };
    const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;
    Ok(system.f_type == libc::TMPFS_MAGIC || system.f_type == RAMFS_MAGIC)
}

/// The kernel's id of this boot.
///
/// # Errors
/// What the system said, or `InvalidData`.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    parse_boot_id(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "boot_id is no UUID"))
}

fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text
        .trim()
        .chars()
        .filter(|&c| c != '-')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    (digits.len() == 32).then(|| bytes.try_into().expect("sixteen bytes"))
}

fn reserve(file: &File) -> io::Result<()> {
    // SAFETY: concerns the file alone.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, FILE_BYTES as libc::off_t) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: [u8; 16] = [7; 16];
    const SHARD: ShardIndex = ShardIndex(3);

    fn directory() -> tempfile::TempDir {
        tempfile::Builder::new()
            .prefix("stillpoint-hw-")
            .tempdir_in("/dev/shm")
            .expect("a directory on tmpfs")
    }

    #[test]
    fn a_tail_is_kept_only_for_its_own_pool_shard_and_boot() {
        let directory = directory();
        let boot = boot_id().expect("this machine has booted");
        let open = |pool, boot, shard| FileTail::open(directory.path(), pool, boot, shard).expect("a tail");
        let (mut tail, state) = open(POOL, boot, SHARD);
        assert_eq!(state, TailState::Fresh);
        assert!(tail.is_there());
        tail.segment(0).fill(1);
        tail.segment(1).fill(2);
        drop(tail);
        let look = |boot, shard| read(directory.path(), POOL, boot, shard).expect("it can be read");
        let mut copy = look(boot, SHARD).expect("it fits");
        assert!(copy.segment(0).iter().all(|&byte| byte == 1));
        assert!(copy.segment(1).iter().all(|&byte| byte == 2));
        assert!(look([0; 16], SHARD).is_none() && look(boot, ShardIndex(9)).is_none());
        let (mut other, state) = open([8; 16], boot, SHARD);
        assert_eq!(state, TailState::Fresh);
        assert!(other.segment(0).iter().all(|&byte| byte == 0));
        assert_eq!(open(POOL, boot, ShardIndex(4)).1, TailState::Fresh);
        let (mut tail, state) = open(POOL, boot, SHARD);
        assert_eq!(state, TailState::Kept);
        assert!(tail.segment(0).iter().all(|&byte| byte == 1));
        assert!(tail.segment(1).iter().all(|&byte| byte == 2));
        assert_eq!(tail.segment(1).len(), SEGMENT_BYTES);
        drop(tail);
        let (mut tail, state) = open(POOL, [0; 16], SHARD);
        assert_eq!(state, TailState::Fresh);
        assert!(tail.segment(0).iter().chain([0].iter()).all(|&byte| byte == 0));
        assert!(tail.segment(1).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_tail_of_another_size_starts_anew() {
        let directory = directory();
        drop(FileTail::open(directory.path(), POOL, [1; 16], SHARD).expect("a tail"));
        let path = std::fs::read_dir(directory.path())
            .expect("there")
            .next()
            .expect("one")
            .expect("entry")
            .path();
        std::fs::write(&path, b"cut").expect("written");
        let (mut tail, state) = FileTail::open(directory.path(), POOL, [1; 16], SHARD).expect("a tail");
        assert_eq!(state, TailState::Fresh);
        tail.segment(1)[SEGMENT_BYTES - 1] = 1;
    }

    #[test]
    fn only_tmpfs_will_do() {
        assert!(is_tmpfs(Path::new("/dev/shm")).expect("there"));
        let on_disk = tempfile::tempdir_in("/var/tmp").expect("a directory");
        assert!(!is_tmpfs(on_disk.path()).expect("there"));
        let error = check_tail_directory(&on_disk.path().join("tails")).expect_err("on a disk");
        assert!(error.to_string().contains("not on tmpfs"), "{error}");
        assert!(is_tmpfs(&tail_directory().expect("some directory")).expect("there"));
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = directory();
        let path = directory.path().join("open");
        std::fs::create_dir(&path).expect("made");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("set");
        let error = check_tail_directory(&path).expect_err("open to all");
        assert!(error.to_string().contains("only this user"), "{error}");
    }

    #[test]
    fn boot_ids_are_uuids() {
        assert_eq!(
            parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").map(|id| id[15]),
            Some(0xff)
        );
        assert_eq!(parse_boot_id("0011"), None);
        assert_eq!(parse_boot_id("zz112233-4455-6677-8899-aabbccddeeff"), None);
    }

    #[test]
    fn no_tail_is_empty() {
        let mut none = FileTail::none();
        assert!(!none.is_there());
        assert!(none.segment(0).is_empty() && none.segment(1).is_empty());
    }
}
