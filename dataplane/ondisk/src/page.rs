//! What all 4 KiB metadata pages have in common: a 32-byte header, sealed by a CRC32C.

use core::fmt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of every metadata page, in bytes.
pub const PAGE_BYTES: usize = 4096;
/// Every metadata page starts with these bytes.
pub const MAGIC: [u8; 8] = *b"STILLPT\0";
/// The version of the structures in this crate. A higher one is refused.
pub const VERSION: u16 = 1;

/// What a metadata page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum PageKind {
    /// [`crate::label::PoolLabel`]
    PoolLabel = 1,
    /// [`crate::header::ShardHeader`]
    ShardHeader = 2,
    /// [`crate::bitmap::BitmapPage`]
    Bitmap = 3,
    /// [`crate::log::LogPage`]
    Log = 4,
    /// [`crate::map_page::MapPage`]
    Map = 5,
    /// [`crate::directory::DirectoryPage`]
    Directory = 6,
    /// [`crate::tail::TailHeader`]
    TailHeader = 7,
    /// [`crate::stale::StalePage`]
    Stale = 8,
}

/// The first 32 bytes of every metadata page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PageHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U16,
    /// A [`PageKind`].
    pub kind: U16,
    /// CRC32C of the whole page with this field zero.
    pub crc32c: U32,
    /// The pool this page belongs to.
    pub pool: [u8; 16],
}

impl PageHeader {
    /// A header for a page of `kind` in `pool`; the CRC is set by [`seal`].
    #[must_use]
    pub fn new(kind: PageKind, pool: [u8; 16]) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION.into(),
            kind: (kind as u16).into(),
            crc32c: 0.into(),
            pool,
        }
    }
}

/// Why a page was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The page does not start with [`MAGIC`]: nothing of ours was written here.
    Magic,
    /// The page was written by a newer version of this software.
    Version(u16),
    /// The bytes are not those that were written.
    Checksum,
    /// A sound page of another kind.
    Kind(u16),
    /// A sound page of another pool.
    Pool,
    /// A sound page from another place or another time (misdirected or lost write).
    Place,
    /// A field holds a value that no version writes.
    Field(&'static str),
    /// A feature flag is set that this version does not know and must not ignore.
    Feature(&'static str),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "no Stillpoint page here"),
            Self::Version(v) => {
                write!(
                    f,
                    "written by format version {v}, this program knows up to {VERSION}: use a newer program"
                )
            }
            Self::Checksum => write!(f, "checksum mismatch"),
            Self::Kind(k) => write!(f, "page of unexpected kind {k}"),
            Self::Pool => write!(f, "page of another pool"),
            Self::Place => write!(f, "page of another place or time"),
            Self::Field(name) => write!(f, "impossible value in field {name}"),
            Self::Feature(grade) => write!(
                f,
                "the pool uses {grade} features that this program does not know: use a newer program"
            ),
        }
    }
}

impl std::error::Error for Damage {}

const CRC_OFFSET: usize = 12;

fn page_crc(page: &[u8]) -> u32 {
    // The CRC field counts as zero; pages are small, so the copy of 4 KiB is the simplest right way
    // only for the first 16 bytes: checksum state is continued over the rest.
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&page[..CRC_OFFSET]);
    digest.update(&[0; 4]);
    digest.update(&page[CRC_OFFSET + 4..]);
    digest.finalize() as u32
}

/// Computes and stores the CRC of a whole page. `page` is 4096 bytes and starts with a [`PageHeader`].
pub fn seal(page: &mut [u8]) {
    assert_eq!(page.len(), PAGE_BYTES, "a metadata page is 4096 bytes");
    let crc = page_crc(page);
    page[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Whether this is a page of `pool`, of whatever kind, as it was written by this version or an older one.
#[must_use]
pub fn is_sound(page: &[u8], pool: [u8; 16]) -> bool {
    assert_eq!(page.len(), PAGE_BYTES, "a metadata page is 4096 bytes");
    let (header, _) = PageHeader::ref_from_prefix(page).expect("a page is longer than its header");
    header.magic == MAGIC
        && (1..=VERSION).contains(&header.version.get())
        && header.pool == pool
        && header.crc32c.get() == page_crc(page)
}

/// Checks magic, version, CRC, kind and pool of a page that was read back.
///
/// # Errors
/// The first [`Damage`] found. The version is looked at before the CRC, so that a newer pool is
/// refused as newer and not as damaged.
pub fn verify(page: &[u8], kind: PageKind, pool: Option<[u8; 16]>) -> Result<(), Damage> {
    assert_eq!(page.len(), PAGE_BYTES, "a metadata page is 4096 bytes");
    let (header, _) = PageHeader::ref_from_prefix(page).expect("a page is longer than its header");
    if header.magic != MAGIC {
        return Err(Damage::Magic);
    }
    if header.version.get() == 0 || header.version.get() > VERSION {
        return Err(Damage::Version(header.version.get()));
    }
    if header.crc32c.get() != page_crc(page) {
        return Err(Damage::Checksum);
    }
    if header.kind.get() != kind as u16 {
        return Err(Damage::Kind(header.kind.get()));
    }
    if pool.is_some_and(|pool| pool != header.pool) {
        return Err(Damage::Pool);
    }
    Ok(())
}
