//! The directory: a shard's volumes and snapshots, and (on shard 0) the catalog of the pool, as a heap
//! of variable-length rows in 4 KiB pages.
//!
//! ```text
//! row: | kind u8 | reserved u8 | key length u16 | value length u16 | key ... | value ... |
//! ```

use crate::map_page::MapEntry;
use crate::page::{self, Damage, PageHeader, PageKind};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of rows in one page.
pub const PAYLOAD_BYTES: usize = 4032;
/// Bytes of a row besides its key and value.
pub const ROW_HEADER_BYTES: usize = 6;

/// A page of the directory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirectoryPage {
    /// Kind [`PageKind::Directory`].
    pub header: PageHeader,
    /// As in [`crate::map_page::MapPage`]: the low half is what the index page says in `check`.
    pub generation: U64,
    /// Position of this page in the directory.
    pub index: U32,
    /// The shard.
    pub shard: U16,
    /// Bytes of `payload` in use.
    pub used_bytes: U16,
    /// Zero.
    pub reserved: [u8; 16],
    /// Rows, one after the other.
    pub payload: [u8; PAYLOAD_BYTES],
}

const _: () = assert!(size_of::<DirectoryPage>() == page::PAGE_BYTES);

/// What a row describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RowKind {
    /// Key: volume (u32). Value: [`VolumeRow`], then [`OriginRow`] if the share was made of a snapshot.
    Volume = 1,
    /// Key: volume (u32), snapshot (u64). Value: [`SnapshotRow`].
    Snapshot = 2,
    /// Key and value belong to the control plane. On shard 0 only.
    Catalog = 3,
}

impl RowKind {
    fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Volume),
            2 => Some(Self::Snapshot),
            3 => Some(Self::Catalog),
            _ => None,
        }
    }
}

/// A shard's share of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VolumeRow {
    /// The volume whose pages this one may share.
    pub family: U32,
    /// Current epoch.
    pub epoch: U32,
    /// Root of the live map; `check` is the low half of its generation.
    pub root: MapEntry,
    /// Level of the root page.
    pub root_level: u8,
    /// 0 live, 1 to be freed with all its snapshots, 2 only the live map is to be freed or is gone.
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 7],
    /// Size of the share in blocks.
    pub share_blocks: U64,
    /// Blocks mapped in the live map.
    pub mapped_blocks: U64,
    /// Leaf from which freeing goes on, if `state` is not 0.
    pub cursor_leaf: U64,
    /// Changes since the newest cut: blocks written or discarded.
    pub changed_blocks: U64,
    /// First change since the newest cut, nanoseconds since the Unix epoch, 0 if none.
    pub first_change_ns: U64,
    /// Last change since the newest cut.
    pub last_change_ns: U64,
}

/// Where the chain of a share begins that was made of an intermediate snapshot of another share; it follows the
/// [`VolumeRow`] of such a share, in a pool with [`crate::label::FEATURE_CLONES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OriginRow {
    /// The share.
    pub volume: U32,
    /// Zero.
    pub reserved: [u8; 4],
    /// Its intermediate snapshot.
    pub snapshot: U64,
}

/// A shard's share of a snapshot: an intermediate snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SnapshotRow {
    /// Last epoch the snapshot holds.
    pub epoch: U32,
    /// Root of the frozen map: the point-in-time copy.
    pub root: MapEntry,
    /// Level of the root page.
    pub root_level: u8,
    /// 0 live, 1 to be freed.
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Size of the share in blocks when it was cut.
    pub share_blocks: U64,
    /// Blocks mapped in the frozen map.
    pub mapped_blocks: U64,
    /// Leaf from which freeing goes on, if `state` is 1.
    pub cursor_leaf: U64,
    /// Time stamp of the overall snapshot, nanoseconds since the Unix epoch.
    pub time_stamp_ns: U64,
    /// The closed change log between the snapshot before and this one: blocks written or discarded.
    pub changed_blocks: U64,
    /// Its first change, nanoseconds since the Unix epoch, 0 if none.
    pub first_change_ns: U64,
    /// Its last change.
    pub last_change_ns: U64,
}

/// A row as it lies in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// What it describes.
    pub kind: RowKind,
    /// Key, unique within its kind.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
}

impl Row<'_> {
    /// Bytes the row takes in a page.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        ROW_HEADER_BYTES + self.key.len() + self.value.len()
    }

    /// Writes the row to the start of `into`; gives the bytes used.
    pub fn encode(&self, into: &mut [u8]) -> usize {
        let length = self.encoded_bytes();
        into[0] = self.kind as u8;
        into[1] = 0;
        into[2..4].copy_from_slice(&(self.key.len() as u16).to_le_bytes());
        into[4..6].copy_from_slice(&(self.value.len() as u16).to_le_bytes());
        into[6..6 + self.key.len()].copy_from_slice(self.key);
        into[6 + self.key.len()..length].copy_from_slice(self.value);
        length
    }
}

impl DirectoryPage {
    /// Checks a page that was read back.
    ///
    /// # Errors
    /// [`Damage`] that names what is wrong.
    pub fn parse(
        bytes: &[u8],
        pool: [u8; 16],
        shard: u16,
        index: u32,
        generation: u32,
    ) -> Result<&Self, Damage> {
        page::verify(bytes, PageKind::Directory, Some(pool))?;
        let found = Self::ref_from_bytes(bytes).map_err(|_| Damage::Field("length"))?;
        if found.shard.get() != shard
            || found.index.get() != index
            || found.generation.get() as u32 != generation
        {
            return Err(Damage::Place);
        }
        if usize::from(found.used_bytes.get()) > PAYLOAD_BYTES {
            return Err(Damage::Field("used_bytes"));
        }
        Ok(found)
    }

    /// The rows of this page.
    ///
    /// # Errors
    /// [`Damage::Field`] if they do not fill `used_bytes` exactly.
    pub fn rows(&self) -> Result<Vec<Row<'_>>, Damage> {
        let mut rest = &self.payload[..usize::from(self.used_bytes.get())];
        let mut rows = Vec::new();
        while !rest.is_empty() {
            let (row, after) = split_row(rest).ok_or(Damage::Field("row"))?;
            rows.push(row);
            rest = after;
        }
        Ok(rows)
    }
}

fn split_row(bytes: &[u8]) -> Option<(Row<'_>, &[u8])> {
    let kind = RowKind::from_u8(*bytes.first()?)?;
    let key_bytes = usize::from(u16::from_le_bytes(bytes.get(2..4)?.try_into().ok()?));
    let value_bytes = usize::from(u16::from_le_bytes(bytes.get(4..6)?.try_into().ok()?));
    let end = ROW_HEADER_BYTES + key_bytes + value_bytes;
    let body = bytes.get(ROW_HEADER_BYTES..end)?;
    let (key, value) = body.split_at(key_bytes);
    Some((Row { kind, key, value }, &bytes[end..]))
}
