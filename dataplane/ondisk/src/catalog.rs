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

mod scrubs;

pub use scrubs::{
    SCRUB_DAMAGE_MAX, SCRUB_DATA, SCRUB_SHARDS_MAX, ScrubDamageRow, ScrubHead, ScrubRow, ScrubSideRow,
};

use crate::page::Damage;
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

/// The key of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The counters.
    Counters,
    /// An export.
    Export(u32),
    /// Figures of a snapshot.
    Figures {
        /// The snapshot.
        snapshot: u64,
        /// The first shard that the row is about.
        first_shard: u16,
    },
    /// The highest wall time.
    HighestTime,
    /// A change log volume.
    ChangeLog(u32),
    /// Marks of a snapshot.
    Marks(u64),
    /// A schedule.
    Schedule(u64),
    /// A named group of volumes.
    Group(u64),
    /// How the scrubs of some consecutive shards stand.
    Scrubs {
        /// The first of them.
        first_shard: u16,
    },
    /// What the scrub of this shard found.
    ScrubDamage(u16),
    /// A snapshot.
    Snapshot(u64),
    /// A volume.
    Volume(u32),
}

impl Key {
    /// The bytes of the key.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Counters => vec![b'C'],
            Self::Export(export) => [&b"E"[..], &export.to_be_bytes()].concat(),
            Self::Figures {
                snapshot,
                first_shard,
            } => [&b"F"[..], &snapshot.to_be_bytes(), &first_shard.to_be_bytes()].concat(),
            Self::Schedule(schedule) => [&b"G"[..], &schedule.to_be_bytes()].concat(),
            Self::HighestTime => vec![b'H'],
            Self::Group(group) => [&b"N"[..], &group.to_be_bytes()].concat(),
            Self::ChangeLog(log) => [&b"L"[..], &log.to_be_bytes()].concat(),
            Self::Scrubs { first_shard } => [&b"R"[..], &first_shard.to_be_bytes()].concat(),
            Self::ScrubDamage(shard) => [&b"D"[..], &shard.to_be_bytes()].concat(),
            Self::Marks(snapshot) => [&b"M"[..], &snapshot.to_be_bytes()].concat(),
            Self::Snapshot(snapshot) => [&b"S"[..], &snapshot.to_be_bytes()].concat(),
            Self::Volume(volume) => [&b"V"[..], &volume.to_be_bytes()].concat(),
        }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`Damage::Field`] if no version writes such a key.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        const BAD: Damage = Damage::Field("catalog key");
        let (&kind, rest) = bytes.split_first().ok_or(BAD)?;
        let key = match (kind, rest.len()) {
            (b'C', 0) => Self::Counters,
            (b'E', 4) => Self::Export(u32::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'F', 10) => Self::Figures {
                snapshot: u64::from_be_bytes(rest[..8].try_into().map_err(|_| BAD)?),
                first_shard: u16::from_be_bytes(rest[8..].try_into().map_err(|_| BAD)?),
            },
            (b'G', 8) => Self::Schedule(u64::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'N', 8) => Self::Group(u64::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'R', 2) => Self::Scrubs {
                first_shard: u16::from_be_bytes(rest.try_into().map_err(|_| BAD)?),
            },
            (b'D', 2) => Self::ScrubDamage(u16::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'H', 0) => Self::HighestTime,
            (b'L', 4) => Self::ChangeLog(u32::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'M', 8) => Self::Marks(u64::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'S', 8) => Self::Snapshot(u64::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'V', 4) => Self::Volume(u32::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            _ => return Err(BAD),
        };
        Ok(key)
    }
}

/// A value as it was read: its head, its table, its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Under [`Key::Counters`].
    Counters(CounterRow),
    /// Under [`Key::Export`].
    Export(ExportHead, &'a str),
    /// Under [`Key::Figures`].
    Figures(FiguresHead, &'a [HoldRow]),
    /// Under [`Key::HighestTime`].
    HighestTime(HighestTimeRow),
    /// Under [`Key::ChangeLog`].
    ChangeLog(ChangeLogHead, &'a str),
    /// Under [`Key::Marks`].
    Marks(MarksRow),
    /// Under [`Key::Group`].
    Group(GroupHead, &'a [VolumeNumber], &'a str),
    /// Under [`Key::Schedule`]: its volumes; its name, cron line and time zone.
    Schedule(ScheduleHead, &'a [VolumeNumber], [&'a str; 3]),
    /// Under [`Key::Scrubs`].
    Scrubs(ScrubHead, &'a [ScrubRow]),
    /// Under [`Key::ScrubDamage`].
    ScrubDamage(ScrubHead, &'a [ScrubDamageRow]),
    /// Under [`Key::Snapshot`].
    Snapshot(SnapshotHead, &'a [SnapshotVolumeRow], &'a str),
    /// Under [`Key::Volume`].
    Volume(VolumeHead, Option<VolumeMore>, &'a str),
}

impl<'a> Value<'a> {
    /// Reads the value under `key` and checks that it can be.
    ///
    /// # Errors
    /// [`Damage::Version`] if a newer program wrote it, [`Damage::Field`] naming what is wrong.
    pub fn decode(key: Key, bytes: &'a [u8]) -> Result<Self, Damage> {
        match bytes.get(..2).map(|v| u16::from_le_bytes([v[0], v[1]])) {
            Some(VERSION) => {}
            Some(VERSION_VOLUME_MORE) if matches!(key, Key::Volume(_)) => {}
            Some(version) if version > VERSION => return Err(Damage::Version(version)),
            _ => return Err(Damage::Field("catalog value version")),
        }
        Ok(match key {
            Key::Counters => Self::Counters(whole::<CounterRow>(bytes)?),
            Key::Export(_) => {
                let (row, rest) = head::<ExportHead>(bytes)?;
                let name = name(rest, row.name_bytes, EXPORT_NAME_BYTES_MAX)?;
                if row.read_only > 1 {
                    return Err(Damage::Field("read_only"));
                }
                if row.allow_snapshots > 1 {
                    return Err(Damage::Field("allow_snapshots"));
                }
                Self::Export(row, name)
            }
            Key::Figures { .. } => {
                let (row, rest) = head::<FiguresHead>(bytes)?;
                let (rows, rest) = table::<HoldRow>(rest, row.count, FIGURES_MAX)?;
                if !rest.is_empty() {
                    return Err(Damage::Field("catalog value length"));
                }
                Self::Figures(row, rows)
            }
            Key::HighestTime => Self::HighestTime(whole::<HighestTimeRow>(bytes)?),
            Key::Schedule(_) => schedule(bytes)?,
            Key::Group(_) => {
                let (row, rest) = head::<GroupHead>(bytes)?;
                let (volumes, rest) = table::<U32>(rest, row.volume_count, GROUP_MAX)?;
                Self::Group(row, volumes, name(rest, row.name_bytes, NAME_BYTES_MAX)?)
            }
            Key::ChangeLog(_) => {
                let (row, rest) = head::<ChangeLogHead>(bytes)?;
                let name = name(rest, row.name_bytes, NAME_BYTES_MAX)?;
                if row.when_full > 1 {
                    return Err(Damage::Field("when_full"));
                }
                if row.size_bytes.get() == 0 || !row.size_bytes.get().is_multiple_of(4096) {
                    return Err(Damage::Field("size_bytes"));
                }
                Self::ChangeLog(row, name)
            }
            Key::Scrubs { .. } => scrubs::decode(bytes)?,
            Key::ScrubDamage(_) => scrubs::decode_damage(bytes)?,
            Key::Marks(_) => Self::Marks(whole::<MarksRow>(bytes)?),
            Key::Snapshot(_) => {
                let (row, rest) = head::<SnapshotHead>(bytes)?;
                let (volumes, rest) = table::<SnapshotVolumeRow>(rest, row.volume_count, GROUP_MAX)?;
                let name = name(rest, row.name_bytes, NAME_BYTES_MAX)?;
                Self::Snapshot(row, volumes, name)
            }
            Key::Volume(_) => {
                let (row, rest) = head::<VolumeHead>(bytes)?;
                let (more, rest) = if row.version.get() == VERSION_VOLUME_MORE {
                    let (more, rest) = head::<VolumeMore>(rest)?;
                    (Some(more), rest)
                } else {
                    (None, rest)
                };
                let name = name(rest, row.name_bytes, NAME_BYTES_MAX)?;
                check_volume(&row)?;
                Self::Volume(row, more, name)
            }
        })
    }

    /// The bytes of the value; lengths in its head are set here.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let version = VERSION.into();
        let length = |bytes: usize| U16::from(u16::try_from(bytes).expect("limits are below 64 Ki"));
        match *self {
            Self::Counters(row) => CounterRow { version, ..row }.as_bytes().to_vec(),
            Self::Export(row, name) => {
                let name_bytes = length(name.len());
                let row = ExportHead {
                    version,
                    name_bytes,
                    ..row
                };
                [row.as_bytes(), name.as_bytes()].concat()
            }
            Self::Figures(row, rows) => {
                assert!(!rows.is_empty() && rows.len() <= FIGURES_MAX);
                let count = length(rows.len());
                let row = FiguresHead {
                    version,
                    count,
                    ..row
                };
                [row.as_bytes(), rows.as_bytes()].concat()
            }
            Self::HighestTime(row) => HighestTimeRow { version, ..row }.as_bytes().to_vec(),
            Self::Group(row, volumes, name) => {
                assert!(!volumes.is_empty() && volumes.len() <= GROUP_MAX);
                let row = GroupHead {
                    version,
                    name_bytes: length(name.len()),
                    volume_count: length(volumes.len()),
                    ..row
                };
                [row.as_bytes(), volumes.as_bytes(), name.as_bytes()].concat()
            }
            Self::Schedule(row, volumes, [name, cron, zone]) => {
                assert!(!volumes.is_empty() && volumes.len() <= GROUP_MAX);
                let row = ScheduleHead {
                    version,
                    name_bytes: length(name.len()),
                    cron_bytes: length(cron.len()),
                    zone_bytes: length(zone.len()),
                    volume_count: length(volumes.len()),
                    ..row
                };
                let texts = [name.as_bytes(), cron.as_bytes(), zone.as_bytes()].concat();
                [row.as_bytes(), volumes.as_bytes(), &texts].concat()
            }
            Self::ChangeLog(row, name) => {
                let name_bytes = length(name.len());
                let row = ChangeLogHead {
                    version,
                    name_bytes,
                    ..row
                };
                [row.as_bytes(), name.as_bytes()].concat()
            }
            Self::Scrubs(row, rows) => {
                assert!(!rows.is_empty() && rows.len() <= SCRUB_SHARDS_MAX);
                let count = length(rows.len());
                let row = ScrubHead {
                    version,
                    count,
                    ..row
                };
                [row.as_bytes(), rows.as_bytes()].concat()
            }
            Self::ScrubDamage(row, rows) => {
                assert!(!rows.is_empty() && rows.len() <= SCRUB_DAMAGE_MAX);
                let count = length(rows.len());
                let row = ScrubHead {
                    version,
                    count,
                    ..row
                };
                [row.as_bytes(), rows.as_bytes()].concat()
            }
            Self::Marks(row) => MarksRow { version, ..row }.as_bytes().to_vec(),
            Self::Snapshot(row, volumes, name) => {
                assert!(!volumes.is_empty() && volumes.len() <= GROUP_MAX);
                let (name_bytes, volume_count) = (length(name.len()), length(volumes.len()));
                let row = SnapshotHead {
                    version,
                    name_bytes,
                    volume_count,
                    ..row
                };
                [row.as_bytes(), volumes.as_bytes(), name.as_bytes()].concat()
            }
            Self::Volume(row, more, name) => {
                let name_bytes = length(name.len());
                let row = VolumeHead {
                    version: more.map_or(version, |_| VERSION_VOLUME_MORE.into()),
                    name_bytes,
                    ..row
                };
                let more = more.as_ref().map_or(&[][..], |more| more.as_bytes());
                [row.as_bytes(), more, name.as_bytes()].concat()
            }
        }
    }
}

fn schedule(bytes: &[u8]) -> Result<Value<'_>, Damage> {
    let (row, rest) = head::<ScheduleHead>(bytes)?;
    let (volumes, rest) = table::<U32>(rest, row.volume_count, GROUP_MAX)?;
    let at = |length: U16, bytes: &[u8]| usize::from(length.get()).min(bytes.len());
    let (name_bytes, rest) = rest.split_at(at(row.name_bytes, rest));
    let (cron_bytes, rest) = rest.split_at(at(row.cron_bytes, rest));
    let texts = [
        name(name_bytes, row.name_bytes, NAME_BYTES_MAX)?,
        match row.cron_bytes.get() {
            0 => "",
            _ => name(cron_bytes, row.cron_bytes, CRON_BYTES_MAX)?,
        },
        name(rest, row.zone_bytes, ZONE_BYTES_MAX)?,
    ];
    if row.paused > 1 {
        return Err(Damage::Field("paused"));
    }
    if (row.period_ns.get() == 0) == (row.cron_bytes.get() == 0) {
        return Err(Damage::Field("period_ns"));
    }
    Ok(Value::Schedule(row, volumes, texts))
}

fn check_volume(row: &VolumeHead) -> Result<(), Damage> {
    let block_bytes = row.block_bytes.get();
    if block_bytes != 512 && block_bytes != 4096 {
        return Err(Damage::Field("block_bytes"));
    }
    if row.object_blocks.get() < 256 || !row.object_blocks.get().is_power_of_two() {
        return Err(Damage::Field("object_blocks"));
    }
    if row.size_bytes.get() == 0 || !row.size_bytes.get().is_multiple_of(block_bytes.into()) {
        return Err(Damage::Field("size_bytes"));
    }
    Ok(())
}

fn head<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<(T, &[u8]), Damage> {
    T::read_from_prefix(bytes).map_err(|_| Damage::Field("catalog value length"))
}

/// A value that is a head and nothing else.
fn whole<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<T, Damage> {
    match head::<T>(bytes)? {
        (row, []) => Ok(row),
        _ => Err(Damage::Field("catalog value length")),
    }
}

fn table<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
    count: U16,
    count_max: usize,
) -> Result<(&[T], &[u8]), Damage> {
    let count = usize::from(count.get());
    if count == 0 || count > count_max {
        return Err(Damage::Field("catalog table length"));
    }
    <[T]>::ref_from_prefix_with_elems(bytes, count).map_err(|_| Damage::Field("catalog value length"))
}

fn name(bytes: &[u8], length: U16, length_max: usize) -> Result<&str, Damage> {
    if bytes.is_empty() || bytes.len() != usize::from(length.get()) || bytes.len() > length_max {
        return Err(Damage::Field("name_bytes"));
    }
    core::str::from_utf8(bytes).map_err(|_| Damage::Field("name"))
}

#[cfg(test)]
mod tests;
