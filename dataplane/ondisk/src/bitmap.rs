//! The space bitmap: one bit per block of a shard's slice of one device, 1 = in use.

use crate::page::{self, Damage, PageHeader, PageKind};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 64-bit words of one page.
pub const WORDS_PER_PAGE: usize = 504;
/// Blocks that one page describes (126 MiB of a device).
pub const BLOCKS_PER_PAGE: usize = WORDS_PER_PAGE * 64;

/// A page has two slots; a checkpoint writes the slot that the last durable checkpoint does not use.
/// On opening, the slot with the highest generation not above the shard header's is the valid one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BitmapPage {
    /// Kind [`PageKind::Bitmap`].
    pub header: PageHeader,
    /// Checkpoint generation that wrote this page.
    pub generation: U64,
    /// Position of this page within the device's bitmap.
    pub index: U64,
    /// The shard.
    pub shard: U16,
    /// The device described.
    pub device: U16,
    /// Bits set in `words`.
    pub used_blocks: U32,
    /// Zero.
    pub reserved: [u8; 8],
    /// Bit `b` of word `w` is block `index * BLOCKS_PER_PAGE + w * 64 + b` of the slice.
    pub words: [U64; WORDS_PER_PAGE],
}

const _: () = assert!(size_of::<BitmapPage>() == page::PAGE_BYTES);

/// What [`crate::header::ShardHeader::bitmap_check`] says of bitmap pages with these CRCs, in order: never 0.
#[must_use]
pub fn check_of(page_crcs: impl IntoIterator<Item = u32>) -> u32 {
    let bytes: Vec<u8> = page_crcs.into_iter().flat_map(u32::to_le_bytes).collect();
    crate::crc32c(&bytes).max(1)
}

impl BitmapPage {
    /// Checks a page that was read from the slot of (`shard`, `device`, `index`).
    ///
    /// # Errors
    /// [`Damage`] that names what is wrong.
    pub fn parse(bytes: &[u8], pool: [u8; 16], shard: u16, device: u16, index: u64) -> Result<&Self, Damage> {
        page::verify(bytes, PageKind::Bitmap, Some(pool))?;
        let bitmap = Self::ref_from_bytes(bytes).map_err(|_| Damage::Field("length"))?;
        if bitmap.shard.get() != shard || bitmap.device.get() != device || bitmap.index.get() != index {
            return Err(Damage::Place);
        }
        Ok(bitmap)
    }
}
