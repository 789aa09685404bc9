//! The log tail: the newest records, in a file on tmpfs, so that they survive kill -9 before they
//! reach the device.
//!
//! ```text
//! | header page | segment 0 | segment 1 |
//! ```
//! Records are appended to one segment; when its records have been written to the log ring the segment
//! is started anew, while the other one fills. A segment starts with a [`SegmentHeader`] that says where
//! in the log its first record belongs; a segment that does not fit the log is ignored. It has no length
//! field: its records run up to the first that is not sound or whose LSN is not one more than the one before.

use crate::page::{self, Damage, PageHeader, PageKind};
use zerocopy::little_endian::{U16, U32, U64};
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

/// The start of a segment: the place in the log at which its records go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentHeader {
    /// CRC32C of the rest of this header.
    pub crc32c: U32,
    /// CRC32C of the log page before `sequence`.
    pub previous_crc32c: U32,
    /// Sequence of the log page that the segment's first record will go to.
    pub sequence: U64,
    /// LSN of the segment's first record.
    pub first_lsn: U64,
    /// Records from here on were logged since the power came on, so the data they name is on the devices or in their
    /// caches. What older records name may have been lost with the power, unless they are known to be durable.
    pub trusted_lsn: U64,
}

impl SegmentHeader {
    /// A header with its CRC.
    #[must_use]
    pub fn new(sequence: u64, previous_crc32c: u32, first_lsn: u64, trusted_lsn: u64) -> Self {
        let mut header = Self {
            crc32c: 0.into(),
            previous_crc32c: previous_crc32c.into(),
            sequence: sequence.into(),
            first_lsn: first_lsn.into(),
            trusted_lsn: trusted_lsn.into(),
        };
        header.crc32c = crate::crc32c(&header.as_bytes()[4..]).into();
        header
    }

    /// The header at the start of a segment, if there is a sound one.
    #[must_use]
    pub fn parse(segment: &[u8]) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(segment).ok()?;
        (header.crc32c.get() == crate::crc32c(&header.as_bytes()[4..])).then_some(header)
    }
}
