//! The catalog: what the control plane knows of a pool, as rows that shard 0 keeps in its directory.
//!
//! A key is one letter and a number, big-endian, so that rows of a kind lie together and in order. A value is a
//! fixed head, then tables, then a name; it fills its bytes exactly.
//!
//! | key | value |
//! |---|---|
//! | `C` | [`CounterRow`]: numbers not used yet |
//! | `D`, shard u16 | [`ScrubHead`], [`ScrubDamageRow`] for each: what the scrub of the shard found |
//! | `E`, export u32 | [`ExportHead`], name |
//! | `F`, snapshot u64, first shard u16 | [`FiguresHead`], [`HoldRow`] per shard: what a snapshot cost |
//! | `G`, schedule u64 | [`ScheduleHead`], volume u32 for each, name, cron line, time zone |
//! | `H` | [`HighestTimeRow`]: the highest wall time ever seen |
//! | `L`, change log volume u32 | [`ChangeLogHead`], name |
//! | `M`, snapshot u64 | [`MarksRow`]: what is known of a snapshot beside its commit record |
//! | `N`, group u64 | [`GroupHead`], volume u32 for each, name |
//! | `R`, first shard u16 | [`ScrubHead`], [`ScrubRow`] per shard: how the scrub stands |
//! | `S`, snapshot u64 | [`SnapshotHead`], [`SnapshotVolumeRow`] per volume, name: the commit record |
//! | `V`, volume u32 | [`VolumeHead`], [`VolumeMore`] in version 2, name |
//!
//! The `F` rows and the `M` row of a snapshot are logged before its `S` row. One without the other is left over from a
//! snapshot that was never committed and is removed when the pool is opened.

mod key;
mod scrubs;
mod value;

pub use key::Key;
pub use scrubs::{
    SCRUB_DAMAGE_MAX, SCRUB_DATA, SCRUB_SHARDS_MAX, ScrubDamageRow, ScrubHead, ScrubRow, ScrubSideRow,
};
pub use value::Value;

use crate::record::CATALOG_VALUE_BYTES_MAX;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version of these structures. A higher one is refused.
pub const VERSION: u16 = 1;
/// The version of a volume's value with a [`VolumeMore`].
pub const VERSION_VOLUME_MORE: u16 = 2;
/// Volumes of one overall snapshot (consistency group) at most.
pub const GROUP_MAX: usize = 64;
/// Shards in one `F` row at most.
pub const FIGURES_MAX: usize = 64;
/// Bytes of a cron line at most.
pub const CRON_BYTES_MAX: usize = 256;
/// Bytes of the name of a time zone at most.
pub const ZONE_BYTES_MAX: usize = 64;
/// Bytes of the name of a volume or of a snapshot at most.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of the name of an export at most: `volume@snapshot` always fits.
pub const EXPORT_NAME_BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 1;

/// Numbers that were never given out. Written before the first of them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CounterRow {
    /// [`VERSION`].
    pub version: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// Volumes from this number on were never made.
    pub next_volume: U32,
    /// Exports from this number on were never made.
    pub next_export: U32,
    /// Snapshots from this number on were never asked for.
    pub next_snapshot: U64,
}

/// A virtual volume; [`VolumeMore`] follows in version 2, then the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VolumeHead {
    /// [`VERSION`] or [`VERSION_VOLUME_MORE`].
    pub version: U16,
    /// Bytes of the name.
    pub name_bytes: U16,
    /// Shard of object 0.
    pub rotation: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// Logical block size in bytes: 512 or 4096.
    pub block_bytes: U32,
    /// Blocks (of 4 KiB) of one object, a power of two.
    pub object_blocks: U32,
    /// Size in bytes, a multiple of the logical block size.
    pub size_bytes: U64,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: U64,
}

/// What only some volumes have. Its writer sets [`crate::label::FEATURE_CLONES`] first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct VolumeMore {
    /// The shares that have the live map: those of the volume of this number.
    pub head: U32,
    /// The volume it was cloned from, 0 if none.
    pub origin_volume: U32,
    /// The snapshot it was cloned from.
    pub origin_snapshot: U64,
    /// Its change log volume, 0 if none.
    pub change_log: U32,
    /// Zero.
    pub reserved: [u8; 12],
}

/// An overall snapshot; its volumes and its name follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SnapshotHead {
    /// [`VERSION`].
    pub version: U16,
    /// Bytes of the name.
    pub name_bytes: U16,
    /// Volumes.
    pub volume_count: U16,
    /// Shards that took part: all of the pool.
    pub shard_count: U16,
    /// The time stamp, nanoseconds since the Unix epoch.
    pub time_stamp_ns: U64,
    /// From the command to the last intermediate snapshot being durable.
    pub durable_ns: U64,
}

/// One volume of an overall snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SnapshotVolumeRow {
    /// The shares that have the intermediate snapshots: those of the volume of this number.
    pub volume: U32,
    /// The volume, if it is another one (it was rolled back since, or the snapshot went to a promoted clone); 0 if not.
    pub owner: U32,
    /// Its size in bytes when the snapshot was taken.
    pub size_bytes: U64,
}

/// What a snapshot cost on some consecutive shards; a [`HoldRow`] for each follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FiguresHead {
    /// [`VERSION`].
    pub version: U16,
    /// Shards.
    pub count: U16,
    /// What the snapshot put into the logs of these shards, in words of 8 bytes, rounded up; 0 if it is not known (programs
    /// before this field), 65,535 for that much or more.
    pub log_words: U16,
    /// What it put into their directories, in the same way. The rows of the catalog count in the first row of figures.
    pub metadata_words: U16,
}

impl FiguresHead {
    /// The head with these sums; its other fields are set when it is encoded.
    #[must_use]
    pub fn of(log_bytes: u64, metadata_bytes: u64) -> Self {
        let words = |bytes: u64| U16::from(bytes.div_ceil(8).min(u16::MAX.into()) as u16);
        Self {
            version: VERSION.into(),
            count: 0.into(),
            log_words: words(log_bytes),
            metadata_words: words(metadata_bytes),
        }
    }

    /// What the snapshot put into the logs, in bytes.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        8 * u64::from(self.log_words.get())
    }

    /// What it put into the directories, in bytes.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        8 * u64::from(self.metadata_words.get())
    }
}

/// What a snapshot cost on one shard.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct HoldRow {
    /// From the cut to the release.
    pub hold_ns: U64,
    /// Answers held.
    pub answers_held: U64,
    /// The longest that one answer was held.
    pub answer_held_ns_max: U64,
}

/// The number of a volume in the table of a schedule or group.
pub type VolumeNumber = U32;

/// A named group of volumes; its volumes (u32 each) and its name follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupHead {
    /// [`VERSION`].
    pub version: U16,
    /// Bytes of the name.
    pub name_bytes: U16,
    /// Volumes.
    pub volume_count: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: U64,
}

/// A schedule; its volumes (u32 each), its name, its cron line and the name of its time zone follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ScheduleHead {
    /// [`VERSION`].
    pub version: U16,
    /// Bytes of the name.
    pub name_bytes: U16,
    /// Bytes of the cron line, 0 if it has a period.
    pub cron_bytes: U16,
    /// Bytes of the name of the time zone.
    pub zone_bytes: U16,
    /// Volumes.
    pub volume_count: U16,
    /// 1 if it does nothing at present.
    pub paused: u8,
    /// Zero.
    pub reserved_a: u8,
    /// How many snapshots are kept: the newest,
    pub keep_last: U32,
    /// one for each hour,
    pub keep_hourly: U32,
    /// day,
    pub keep_daily: U32,
    /// week,
    pub keep_weekly: U32,
    /// month,
    pub keep_monthly: U32,
    /// year.
    pub keep_yearly: U32,
    /// Zero.
    pub reserved_b: [u8; 4],
    /// Its period, 0 if it has a cron line.
    pub period_ns: U64,
    /// How long answers may be held, 0 for the default.
    pub hold_limit_ns: U64,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: U64,
    /// What was due up to then was dealt with when this was written.
    pub done_ns: U64,
    /// Zero.
    pub reserved_c: [u8; 8],
}

/// The highest wall time that was ever seen: locks end by it, also if the clock was set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HighestTimeRow {
    /// [`VERSION`].
    pub version: U16,
    /// Zero.
    pub reserved: [u8; 6],
    /// Nanoseconds since the Unix epoch.
    pub time_ns: U64,
}

/// What is known of a snapshot beside its commit record. Without such a row: all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MarksRow {
    /// [`VERSION`].
    pub version: U16,
    /// Zero.
    pub reserved_a: [u8; 6],
    /// The schedule that took it; 0 if none did.
    pub schedule: U64,
    /// Until then it is not deleted, nanoseconds since the Unix epoch; 0 if it is not locked.
    pub locked_until_ns: U64,
    /// Zero.
    pub reserved_b: [u8; 24],
}

/// A change log volume; the name follows. Its writer sets [`crate::label::FEATURE_CLONES`] first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChangeLogHead {
    /// [`VERSION`].
    pub version: U16,
    /// Bytes of the name.
    pub name_bytes: U16,
    /// What happens when it is full: 0 writes fail, 1 the oldest snapshots are deleted.
    pub when_full: u8,
    /// Zero.
    pub reserved_a: [u8; 3],
    /// Devices that its blocks are placed on: bit `i` is device `i`; 0 for all.
    pub devices: U64,
    /// What its change logs may hold together, in bytes.
    pub size_bytes: U64,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: U64,
    /// Zero.
    pub reserved_b: [u8; 16],
}

/// A volume or snapshot offered under a name; the name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExportHead {
    /// [`VERSION`].
    pub version: U16,
    /// Bytes of the name.
    pub name_bytes: U16,
    /// The volume.
    pub volume: U32,
    /// The snapshot, 0 for the volume as it is.
    pub snapshot: U64,
    /// 1 if writes are refused.
    pub read_only: u8,
    /// 1 if clients may take snapshots. Programs that do not know it let none.
    pub allow_snapshots: u8,
    /// Zero.
    pub reserved: [u8; 6],
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: U64,
}

const _: () = assert!(
    size_of::<SnapshotHead>() + GROUP_MAX * size_of::<SnapshotVolumeRow>() + NAME_BYTES_MAX
        <= CATALOG_VALUE_BYTES_MAX
);
const _: () = assert!(
    size_of::<ScheduleHead>() + GROUP_MAX * 4 + NAME_BYTES_MAX + CRON_BYTES_MAX + ZONE_BYTES_MAX
        <= CATALOG_VALUE_BYTES_MAX
);
const _: () =
    assert!(size_of::<FiguresHead>() + FIGURES_MAX * size_of::<HoldRow>() <= CATALOG_VALUE_BYTES_MAX);

#[cfg(test)]
mod tests;
