//! Rows of the catalog that say how the scrub of each shard stands, and what it found.

use super::Value;
use super::value::{head, table};
use crate::page::Damage;
use crate::record::CATALOG_VALUE_BYTES_MAX;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Shards in one `R` row at most.
pub const SCRUB_SHARDS_MAX: usize = 16;
/// Damaged blocks in one `D` row at most.
pub const SCRUB_DAMAGE_MAX: usize = 32;
/// [`ScrubDamageRow::map_level`] of a block of data.
pub const SCRUB_DATA: u8 = u8::MAX;

const _: () = assert!(
    size_of::<ScrubHead>() + SCRUB_SHARDS_MAX * size_of::<ScrubRow>() <= CATALOG_VALUE_BYTES_MAX
        && size_of::<ScrubHead>() + SCRUB_DAMAGE_MAX * size_of::<ScrubDamageRow>() <= CATALOG_VALUE_BYTES_MAX
);

/// The head of an `R` and of a `D` row.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ScrubHead {
    /// [`super::VERSION`].
    pub version: U16,
    /// Entries that follow.
    pub count: U16,
    /// Zero.
    pub reserved: [u8; 4],
}

/// How the scrub of one shard stands.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ScrubRow {
    /// 0 there was none, 1 running, 2 paused, 3 done, 4 stopped.
    pub state: u8,
    /// 1 if the map pages that lead to `leaf` were read.
    pub pages_read: u8,
    /// Zero.
    pub reserved: [u8; 6],
    /// The next share to look at,
    pub volume: U32,
    /// the epoch of its snapshot; from `until` on it is the live map,
    pub epoch: U32,
    /// the epoch of the live map when the scrub came to the share, 0 if it has not,
    pub until: U32,
    /// the entry of the leaf,
    pub slot: U32,
    /// the leaf of the map.
    pub leaf: U64,
    /// Bytes a second that are read at most.
    pub rate_bytes_per_s: U64,
    /// When it began, nanoseconds since the Unix epoch.
    pub started_ns: U64,
    /// When it ended, 0 if it has not.
    pub ended_ns: U64,
    /// How long it was running.
    pub running_ns: U64,
    /// Blocks and map pages that were read and compared.
    pub checked_blocks: U64,
    /// Those that are damaged.
    pub damaged_blocks: U64,
    /// What it came to on each side of mirrors.
    pub sides: [ScrubSideRow; 2],
}

/// What the scrub of one shard came to on one side of mirrors.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ScrubSideRow {
    /// Blocks and map pages that were read from it.
    pub read_blocks: U64,
    /// Those that were damaged and written again.
    pub repaired_blocks: U64,
    /// Those that stay damaged.
    pub unrepaired_blocks: U64,
}

/// A damaged block or map page that a scrub found.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ScrubDamageRow {
    /// The share that shows it.
    pub volume: U32,
    /// It is a map page of this level; [`SCRUB_DATA`] for data.
    pub map_level: u8,
    /// 0 its checksum does not match; it cannot be read: 1 an errno, 2 a short transfer, 3 the device is gone, 4 an NVMe
    /// status.
    pub error: u8,
    /// Zero.
    pub reserved_a: [u8; 2],
    /// The oldest snapshot that shows it, 0 if only the live map does.
    pub snapshot: U64,
    /// First block of the share that it is about.
    pub first: U64,
    /// Where it lies.
    pub address: U64,
    /// The errno or NVMe status.
    pub code: U32,
    /// Zero.
    pub reserved_b: [u8; 4],
}

/// Highest value of [`ScrubRow::state`], and of [`ScrubDamageRow::error`].
const STATE_MAX: u8 = 4;
const ERROR_MAX: u8 = 4;

pub(super) fn decode(bytes: &[u8]) -> Result<Value<'_>, Damage> {
    let (row, rest) = head::<ScrubHead>(bytes)?;
    let (rows, rest) = table::<ScrubRow>(rest, row.count, SCRUB_SHARDS_MAX)?;
    if !rest.is_empty() {
        return Err(Damage::Field("catalog value length"));
    }
    for row in rows {
        if row.state > STATE_MAX {
            return Err(Damage::Field("state"));
        }
        if row.pages_read > 1 {
            return Err(Damage::Field("pages_read"));
        }
    }
    Ok(Value::Scrubs(row, rows))
}

pub(super) fn decode_damage(bytes: &[u8]) -> Result<Value<'_>, Damage> {
    let (row, rest) = head::<ScrubHead>(bytes)?;
    let (rows, rest) = table::<ScrubDamageRow>(rest, row.count, SCRUB_DAMAGE_MAX)?;
    if !rest.is_empty() {
        return Err(Damage::Field("catalog value length"));
    }
    if rows.iter().any(|row| row.error > ERROR_MAX) {
        return Err(Damage::Field("error"));
    }
    Ok(Value::ScrubDamage(row, rows))
}
