//! How many descriptors this process may have, and what the kernel keeps of files.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Raises the limit on open descriptors as far as this process may; gives what it is then.
///
/// Most systems start a process with 1024, for the sake of programs that use `select`, and let it have far more.
#[must_use]
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: fills in the structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return u64::MAX; // unknown: whoever asks for too many will be told
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads the structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return before;
    }
    limit.rlim_max
}

/// Drops what the page cache holds of `length_bytes` of a file from `offset_bytes` on; 0: to its end. What is read next comes from the
/// device, and not before it has answered. The cache keeps folios of up to some MiB, and forgets only whole ones.
pub fn forget_cached(file: &File, offset_bytes: u64, length_bytes: u64) {
    let (offset, length) = (offset_bytes.cast_signed(), length_bytes.cast_signed());
    // SAFETY: touches no memory of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, length, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const PAGE_BYTES: usize = 4096;
    /// The cache forgets no less than a folio.
    const UNIT_BYTES: usize = 4 << 20;

    /// Whether a page of a file can be read without asking a device.
    fn is_cached(file: &File, offset_bytes: usize) -> bool {
        let mut bytes = [0; PAGE_BYTES];
        let piece = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: PAGE_BYTES,
        };
        let offset = offset_bytes as i64;
        // SAFETY: the piece is memory of this function.
        let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const piece, 1, offset, libc::RWF_NOWAIT) };
        read == PAGE_BYTES as isize
    }

    fn is_on_tmpfs(file: &File) -> bool {
        let mut found = core::mem::MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: fills in the structure if it succeeds.
        let found = unsafe {
            assert_eq!(libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()), 0);
            found.assume_init()
        };
        found.f_type == libc::TMPFS_MAGIC
    }

    #[test]
    fn what_is_forgotten_is_read_from_the_device_and_nothing_else() {
        let file = tempfile::tempfile().expect("a file");
        if is_on_tmpfs(&file) {
            eprintln!("SKIPPED: a tmpfs is nothing but a cache");
            return;
        }
        file.write_all_at(&vec![7; 4 * UNIT_BYTES], 0).expect("room");
        file.sync_all().expect("written");
        let all =
            || [0, 1, 4].map(|quarter| is_cached(&file, (quarter * UNIT_BYTES).saturating_sub(PAGE_BYTES)));
        assert_eq!(all(), [true; 3]);
        forget_cached(&file, UNIT_BYTES as u64, 0);
        assert_eq!(all(), [true, true, false]);
        forget_cached(&file, 0, UNIT_BYTES as u64);
        // (What is asked for and not there the kernel begins to read.)
        assert_eq!(all()[..2], [false; 2]);
    }

    #[test]
    fn the_limit_is_raised_once_and_for_all() {
        let limit = raise_descriptor_limit();
        assert!(limit > 0);
        assert_eq!(raise_descriptor_limit(), limit);
        let said = std::fs::read_to_string("/proc/self/limits").expect("the limits");
        let line = said
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .expect("the line");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[3], words[4], "soft and hard: {line}");
    }
}
