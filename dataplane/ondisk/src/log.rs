//! The log page: a batch of records in a shard's log ring.

use crate::page::{self, Damage, PageHeader, PageKind};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of records in one page.
pub const PAYLOAD_BYTES: usize = 4032;

/// Page `sequence` lies at `sequence % log_pages` of the ring. Pages are chained by CRC, so that a
/// page left over from an earlier life of the ring is never taken for the next one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LogPage {
    /// Kind [`PageKind::Log`].
    pub header: PageHeader,
    /// Position in the endless log.
    pub sequence: U64,
    /// LSN of the first record.
    pub first_lsn: U64,
    /// Every record below this LSN, with the data it names, was durable when this page was written.
    pub durable_lsn: U64,
    /// CRC32C (header field) of page `sequence - 1`.
    pub previous_crc32c: U32,
    /// The shard.
    pub shard: U16,
    /// Bytes of `payload` in use.
    pub used_bytes: U16,
    /// Records, one after the other; a record does not straddle pages.
    pub payload: [u8; PAYLOAD_BYTES],
}

const _: () = assert!(size_of::<LogPage>() == page::PAGE_BYTES);

impl LogPage {
    /// A sound page of this shard's log, whichever page it is.
    #[must_use]
    pub fn any(bytes: &[u8], pool: [u8; 16], shard: u16) -> Option<&Self> {
        page::verify(bytes, PageKind::Log, Some(pool)).ok()?;
        Self::ref_from_bytes(bytes)
            .ok()
            .filter(|log| log.shard.get() == shard)
    }

    /// Checks a page against the place it was read from and the page before it.
    ///
    /// # Errors
    /// [`Damage`]; the first page that is not accepted is the end of the log, unless another page says that more was
    /// durable.
    pub fn parse(
        bytes: &[u8],
        pool: [u8; 16],
        shard: u16,
        sequence: u64,
        previous_crc32c: u32,
    ) -> Result<&Self, Damage> {
        page::verify(bytes, PageKind::Log, Some(pool))?;
        let log = Self::ref_from_bytes(bytes).map_err(|_| Damage::Field("length"))?;
        if log.shard.get() != shard
            || log.sequence.get() != sequence
            || log.previous_crc32c.get() != previous_crc32c
        {
            return Err(Damage::Place);
        }
        if usize::from(log.used_bytes.get()) > PAYLOAD_BYTES {
            return Err(Damage::Field("used_bytes"));
        }
        Ok(log)
    }
}
