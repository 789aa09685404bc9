//! The shard header: the root of everything a shard has made durable by a checkpoint.

use crate::map_page::MapEntry;
use crate::page::{self, Damage, PageHeader, PageKind};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Directory index pages at most; each points to [`crate::map_page::ENTRIES`] directory pages.
pub const DIRECTORY_INDEX_MAX: usize = 256;

/// Two alternating copies lie at the start of the home slice: generation `g` is written to copy `g % 2`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ShardHeader {
    /// Kind [`PageKind::ShardHeader`].
    pub header: PageHeader,
    /// Checkpoint generation, raised by one per checkpoint; 1 when the pool is made.
    pub generation: U64,
    /// The shard.
    pub shard: U16,
    /// Directory index pages in use.
    pub directory_index_count: U16,
    /// Directory pages in use.
    pub directory_pages: U32,
    /// Sequence of the first log page to replay; it lies at `sequence % log_pages` of the ring.
    pub log_sequence: U64,
    /// LSN of the first record to replay.
    pub log_lsn: U64,
    /// CRC32C of the log page before `log_sequence`.
    pub log_previous_crc32c: U32,
    /// CRC32C over the `header.crc32c` of every bitmap page that belongs to this checkpoint, device by device, page by
    /// page; 0 = not recorded (see [`crate::bitmap::check_of`]).
    pub bitmap_check: U32,
    /// Time of the checkpoint, nanoseconds since the Unix epoch.
    pub written_ns: U64,
    /// Zero.
    pub reserved_b: [u8; 128],
    /// Where the directory index pages lie; `check` is the generation they were written in.
    pub directory_index: [MapEntry; DIRECTORY_INDEX_MAX],
    /// Zero.
    pub reserved_c: [u8; 48],
}

const _: () = assert!(size_of::<ShardHeader>() == page::PAGE_BYTES);

impl ShardHeader {
    /// Reads a header and checks every field.
    ///
    /// # Errors
    /// [`Damage`] that names what is wrong.
    pub fn parse(bytes: &[u8], pool: [u8; 16], shard: u16) -> Result<Self, Damage> {
        page::verify(bytes, PageKind::ShardHeader, Some(pool))?;
        let header = Self::read_from_bytes(bytes).expect("verified to be a whole page");
        if header.shard.get() != shard {
            return Err(Damage::Place);
        }
        let indexes = usize::from(header.directory_index_count.get());
        let pages = header.directory_pages.get() as usize;
        if indexes > DIRECTORY_INDEX_MAX {
            return Err(Damage::Field("directory_index_count"));
        }
        if pages.div_ceil(crate::map_page::ENTRIES) != indexes {
            return Err(Damage::Field("directory_pages"));
        }
        if header.generation.get() == 0 {
            return Err(Damage::Field("generation"));
        }
        Ok(header)
    }
}
