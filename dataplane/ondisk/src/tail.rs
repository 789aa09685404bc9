//! The log tail: the newest records, in a file on tmpfs, so that they survive kill -9 before they
//! reach the device.
//!
//! ```text
//! | header page | segment 0 | segment 1 |
//! ```
//! Records are appended to one segment; when its records have been written to the log ring the segment
//! is started anew, while the other one fills. A segment has no length field: its records run from its
//! start up to the first that is not sound or whose LSN is not one more than the one before.

use crate::page::{self, Damage, PageHeader, PageKind};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of one segment.
pub const SEGMENT_BYTES: usize = 512 * 1024;
/// Bytes of the whole file.
pub const FILE_BYTES: usize = page::PAGE_BYTES + 2 * SEGMENT_BYTES;

/// The first page of the file: what it belongs to. A tail of another pool, shard or boot is ignored.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TailHeader {
    /// Kind [`PageKind::TailHeader`].
    pub header: PageHeader,
    /// The kernel's boot id: a tail of an earlier boot did not survive a power cut.
    pub boot: [u8; 16],
    /// The shard.
    pub shard: U16,
    /// Zero.
    pub reserved_a: U16,
    /// [`SEGMENT_BYTES`].
    pub segment_bytes: U32,
    /// Zero.
    pub reserved: [u8; 4040],
}

const _: () = assert!(size_of::<TailHeader>() == page::PAGE_BYTES);

impl TailHeader {
    /// A sealed header page.
    #[must_use]
    pub fn new(pool: [u8; 16], boot: [u8; 16], shard: u16) -> Self {
        let mut header = Self {
            header: PageHeader::new(PageKind::TailHeader, pool),
            boot,
            shard: shard.into(),
            reserved_a: 0.into(),
            segment_bytes: (SEGMENT_BYTES as u32).into(),
            reserved: [0; 4040],
        };
        page::seal(header.as_mut_bytes());
        header
    }

    /// Checks that a tail belongs to this pool, shard and boot.
    ///
    /// # Errors
    /// [`Damage`] that names what does not fit.
    pub fn check(bytes: &[u8], pool: [u8; 16], boot: [u8; 16], shard: u16) -> Result<(), Damage> {
        page::verify(bytes, PageKind::TailHeader, Some(pool))?;
        let header = Self::ref_from_bytes(bytes).map_err(|_| Damage::Field("length"))?;
        if header.boot != boot || header.shard.get() != shard {
            return Err(Damage::Place);
        }
        if header.segment_bytes.get() as usize != SEGMENT_BYTES {
            return Err(Damage::Field("segment_bytes"));
        }
        Ok(())
    }
}
