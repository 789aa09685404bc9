//! The map page: 256 entries of a volume's radix tree, leaf or interior.

use crate::page::{self, Damage, PageHeader, PageKind};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entries of one page. A leaf covers 1 MiB, level 1 covers 256 MiB, level 2 64 GiB, level 3 16 TiB.
pub const ENTRIES: usize = 256;
/// Levels of a tree at most: level 4 covers 4 PiB of one shard's share.
pub const LEVEL_MAX: u8 = 4;

/// Where a block or a child page lies and what it must be.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct MapEntry {
    /// Device address, 48 bits: device in the highest 8, block of that device in the lower 40. 0 = hole.
    pub address: [u8; 6],
    /// In a leaf: CRC32C of the block. In an interior page: low 32 bits of the child's `generation`.
    pub check: U32,
    /// Epoch in which the block was written (or the hole was made), or the child page was made.
    pub birth: U32,
    /// Zero in version 1.
    pub flags: u8,
}

const _: () = assert!(size_of::<MapEntry>() == 15);

impl MapEntry {
    /// An entry.
    #[inline]
    #[must_use]
    pub fn new(address: u64, check: u32, birth: u32) -> Self {
        let bytes = address.to_le_bytes();
        debug_assert!(address < 1 << 48);
        Self {
            address: [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]],
            check: check.into(),
            birth: birth.into(),
            flags: 0,
        }
    }

    /// The device address; 0 is a hole.
    #[inline]
    #[must_use]
    pub fn address(&self) -> u64 {
        let a = self.address;
        u64::from_le_bytes([a[0], a[1], a[2], a[3], a[4], a[5], 0, 0])
    }
}

/// One page of a map, or one directory index page (volume [`DIRECTORY_VOLUME`], level 1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MapPage {
    /// Kind [`PageKind::Map`].
    pub header: PageHeader,
    /// Position within its level: (first block covered) / (blocks covered).
    pub index: U64,
    /// Low half: what the parent's entry says in `check`, never the same in two lives of the pool; high half: the low
    /// half of the checkpoint generation that wrote this page.
    pub generation: U64,
    /// The volume.
    pub volume: U32,
    /// Epoch in which this page was made.
    pub birth: U32,
    /// The shard.
    pub shard: U16,
    /// 0 = leaf.
    pub level: u8,
    /// Zero.
    pub reserved_a: [u8; 5],
    /// The entries.
    pub entries: [MapEntry; ENTRIES],
    /// Zero.
    pub reserved_b: [u8; 192],
}

const _: () = assert!(size_of::<MapPage>() == page::PAGE_BYTES);

/// `volume` of directory index pages.
pub const DIRECTORY_VOLUME: u32 = u32::MAX;

/// What a map page must say of itself to be the one its parent points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPageIdentity {
    /// The shard.
    pub shard: u16,
    /// The volume. A page shared by a clone carries the volume that wrote it.
    pub volume: u32,
    /// 0 = leaf.
    pub level: u8,
    /// Position within its level.
    pub index: u64,
    /// Low 32 bits of the generation.
    pub generation: u32,
}

impl MapPage {
    /// Checks a page that was read back against what its parent says.
    ///
    /// # Errors
    /// [`Damage`] that names what is wrong.
    pub fn parse<'a>(
        bytes: &'a [u8],
        pool: [u8; 16],
        identity: &MapPageIdentity,
    ) -> Result<&'a Self, Damage> {
        page::verify(bytes, PageKind::Map, Some(pool))?;
        let map = Self::ref_from_bytes(bytes).map_err(|_| Damage::Field("length"))?;
        let found = MapPageIdentity {
            shard: map.shard.get(),
            volume: map.volume.get(),
            level: map.level,
            index: map.index.get(),
            generation: map.generation.get() as u32,
        };
        if found == *identity {
            Ok(map)
        } else {
            Err(Damage::Place)
        }
    }
}
