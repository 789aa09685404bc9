//! The stale page: what one side of a mirrored device says that the other side lacks.
//!
//! One for each shard, on the side that is left, in a block of its own ([`crate::layout::Layout::stale_block`]). It is written
//! in place: a torn one is no page, and then everything counts as stale.

use crate::page::{self, Damage, PAGE_BYTES, PageHeader, PageKind};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Words of a page's bits.
pub const STALE_WORDS: usize = 504;
/// Regions that a page tells of at most.
pub const STALE_REGIONS_MAX: usize = STALE_WORDS * 64;
/// Blocks of a region at least (256 KiB).
pub const STALE_REGION_BLOCKS_MIN: u64 = 64;

/// What the other side of a mirrored device lacks of one shard's slice.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct StalePage {
    /// Kind [`PageKind::Stale`].
    pub header: PageHeader,
    /// Since when the other side is out: [`crate::label::MirrorRow::out_since`]. A page of another time says nothing.
    pub episode: U64,
    /// Blocks of a region: [`region_blocks`].
    pub region_blocks: U64,
    /// The shard.
    pub shard: U16,
    /// The mirrored device.
    pub device: U16,
    /// Zero.
    pub reserved: U32,
    /// Bit `b` of word `w` is region `w * 64 + b` of the slice, 1 = the other side may lack something of it.
    pub words: [U64; STALE_WORDS],
    /// Zero.
    pub reserved_b: [u8; 8],
}

const _: () = assert!(size_of::<StalePage>() == PAGE_BYTES);

/// Blocks of a region of a slice of `slice_blocks`: the least power of two, from [`STALE_REGION_BLOCKS_MIN`] on, for which one page has
/// bits enough.
#[must_use]
pub fn region_blocks(slice_blocks: u64) -> u64 {
    slice_blocks
        .div_ceil(STALE_REGIONS_MAX as u64)
        .next_power_of_two()
        .max(STALE_REGION_BLOCKS_MIN)
}

/// Regions of a slice of `slice_blocks`; the last one may be short.
#[must_use]
pub fn region_count(slice_blocks: u64) -> usize {
    slice_blocks.div_ceil(region_blocks(slice_blocks)) as usize
}

impl StalePage {
    /// A page that says nothing is stale, not sealed.
    #[must_use]
    pub fn new(pool: [u8; 16], episode: u64, shard: u16, device: u16, slice_blocks: u64) -> Box<Self> {
        let mut page = Box::new(Self::new_zeroed());
        page.header = PageHeader::new(PageKind::Stale, pool);
        page.episode = episode.into();
        page.region_blocks = region_blocks(slice_blocks).into();
        page.shard = shard.into();
        page.device = device.into();
        page
    }

    /// Reads a page and checks that it is of this place and this time, and names no region that the slice does not have.
    ///
    /// # Errors
    /// [`Damage`]; [`Damage::Place`] if it is a sound page of another place or time.
    pub fn parse(
        bytes: &[u8],
        pool: [u8; 16],
        episode: u64,
        shard: u16,
        device: u16,
        slice_blocks: u64,
    ) -> Result<Self, Damage> {
        page::verify(bytes, PageKind::Stale, Some(pool))?;
        let page = Self::read_from_bytes(bytes).expect("verified to be a whole page");
        if page.episode.get() != episode || page.shard.get() != shard || page.device.get() != device {
            return Err(Damage::Place);
        }
        if page.region_blocks.get() != region_blocks(slice_blocks) {
            return Err(Damage::Field("region_blocks"));
        }
        let regions = region_count(slice_blocks);
        let beyond = |(index, word): (usize, &U64)| match regions.saturating_sub(index * 64) {
            64.. => 0,
            left => word.get() >> left,
        };
        if page.words.iter().enumerate().any(|word| beyond(word) != 0) {
            return Err(Damage::Field("words"));
        }
        Ok(page)
    }
}
