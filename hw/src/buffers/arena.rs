//! One mapping of memory, and the way home for its buffers.

use super::{CHUNK_BYTES, PIECE_BYTES_MIN};
use core::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which pages back an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Reserved huge pages (`vm.nr_hugepages`).
    Huge,
    /// Transparent huge pages, as far as the kernel finds them.
    TransparentHuge,
    /// Ordinary pages of 4 KiB.
    Plain,
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Huge => "huge pages",
            Self::TransparentHuge => "transparent huge pages",
            Self::Plain => "plain pages",
        })
    }
}

/// An arena could not be mapped.
#[derive(Debug)]
pub struct ArenaError {
    /// Bytes asked for.
    pub bytes: usize,
    /// What the kernel said.
    pub source: io::Error,
}

impl fmt::Display for ArenaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot map {} MiB for buffers: {}; use a smaller arena or raise the limit on address space",
            self.bytes >> 20,
            self.source
        )
    }
}

impl std::error::Error for ArenaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Memory of one processor's buffers. While there is a pool over it, or any buffer of it, it is not unmapped: buffers
/// are `'static`.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    pages: PageKind,
    claimed: AtomicBool,
    /// One bit per 4 KiB: the piece that starts here was given back on another thread.
    returned: Box<[AtomicU64]>,
    any_returned: AtomicBool,
}

// SAFETY: the arena itself only hands out addresses; who may touch which piece is decided by its one
// owner (`claim`), and what threads share here (`returned`, `any_returned`) is atomic.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps an arena of `bytes`, a multiple of [`CHUNK_BYTES`]: huge pages if reserved, else transparent
    /// huge pages, else plain ones.
    pub(super) fn map(bytes: usize) -> Result<Self, ArenaError> {
        assert!(bytes.is_multiple_of(CHUNK_BYTES));
        const HUGE_PAGE_BYTES: usize = 2 << 20;
        let huge = bytes
            .is_multiple_of(HUGE_PAGE_BYTES)
            // With the reservation: without it a lack of huge pages would show as SIGBUS, later.
            .then(|| anonymous(bytes, libc::MAP_HUGETLB).ok())
            .flatten();
        let (base, pages) = match huge {
            Some(base) => (base, PageKind::Huge),
            None => {
                // One huge page more than needed, so that the arena can begin at a huge page's boundary.
                let raw = anonymous(bytes + HUGE_PAGE_BYTES, libc::MAP_NORESERVE)
                    .map_err(|source| ArenaError { bytes, source })?;
                let skip = raw.as_ptr().align_offset(HUGE_PAGE_BYTES);
                // SAFETY: `skip` is less than HUGE_PAGE_BYTES, which was mapped beyond `bytes`.
                let base = unsafe { raw.add(skip) };
                (base, advise_huge(base, bytes))
            }
        };
        let words = (bytes / PIECE_BYTES_MIN).div_ceil(64);
        Ok(Self {
            base,
            bytes,
            pages,
            claimed: AtomicBool::new(false),
            returned: (0..words).map(|_| AtomicU64::new(0)).collect(),
            any_returned: AtomicBool::new(false),
        })
    }

    /// Which pages it has.
    #[must_use]
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Whether all of `length_bytes` from `address` on lie in it.
    #[must_use]
    pub fn contains(&self, address: usize, length_bytes: usize) -> bool {
        address
            .checked_sub(self.address())
            .is_some_and(|offset| offset + length_bytes <= self.bytes)
    }

    pub(super) fn claim(&self) {
        assert!(
            !self.claimed.swap(true, Ordering::AcqRel),
            "an arena has one owner"
        );
    }

    /// Its pool is gone, and so are all buffers of it: it may have another pool, or be unmapped.
    pub(super) fn unclaim(&self) {
        self.claimed.store(false, Ordering::Release);
    }

    /// The memory of a piece.
    ///
    /// # Safety
    /// Nobody else may hold any of these bytes until the slice came back.
    pub(super) unsafe fn piece(&self, offset_bytes: usize, length_bytes: usize) -> &'static mut [u8] {
        assert!(offset_bytes + length_bytes <= self.bytes);
        // SAFETY: within the mapping, which is not unmapped while any piece is out and was zeroed by the kernel; unique by
        // the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(offset_bytes), length_bytes) }
    }

    /// Marks the piece that starts at `address` as given back, on any thread.
    pub(super) fn send_home(&self, address: usize) {
        let page = (address - self.address()) / PIECE_BYTES_MIN;
        let before = self.returned[page / 64].fetch_or(1 << (page % 64), Ordering::Release);
        assert!(before & 1 << (page % 64) == 0, "a buffer comes back once");
        self.any_returned.store(true, Ordering::Release);
    }

    /// Whether anything was sent home that was not collected.
    pub(super) fn has_returned(&self) -> bool {
        self.any_returned.load(Ordering::Relaxed)
    }

    /// Calls `back` with the offset of every piece that was sent home. Only the owner calls this.
    pub(super) fn collect(&self, mut back: impl FnMut(usize)) {
        self.any_returned.swap(false, Ordering::AcqRel);
        for (index, word) in self.returned.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::Acquire);
            while bits != 0 {
                back((index * 64 + bits.trailing_zeros() as usize) * PIECE_BYTES_MIN);
                bits &= bits - 1;
            }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.claimed.load(Ordering::Acquire) {
            // SAFETY: the mapping is ours, and there is no buffer of it (`claim`, `unclaim`). (A ring that
            // registered it keeps its pages for itself.)
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        }
    }
}

pub(crate) fn anonymous(bytes: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: a new private mapping at an address of the kernel's choice disturbs nothing.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
}

/// Asks for transparent huge pages; says what will come of it.
pub(crate) fn advise_huge(base: NonNull<u8>, bytes: usize) -> PageKind {
    // SAFETY: advice on a mapping of our own.
    let advised = unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) } == 0;
    let never = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .map_or(true, |setting| setting.contains("[never]"));
    if advised && !never {
        PageKind::TransparentHuge
    } else {
        PageKind::Plain
    }
}
