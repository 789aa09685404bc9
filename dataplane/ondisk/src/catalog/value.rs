//! Values: read and checked, and written.

use super::{
    CRON_BYTES_MAX, ChangeLogHead, CounterRow, EXPORT_NAME_BYTES_MAX, ExportHead, FIGURES_MAX, FiguresHead,
    GROUP_MAX, GroupHead, HighestTimeRow, HoldRow, Key, MarksRow, NAME_BYTES_MAX, SCRUB_DAMAGE_MAX,
    SCRUB_SHARDS_MAX, ScheduleHead, ScrubDamageRow, ScrubHead, ScrubRow, SnapshotHead, SnapshotVolumeRow,
    VERSION, VERSION_VOLUME_MORE, VolumeHead, VolumeMore, VolumeNumber, ZONE_BYTES_MAX, scrubs,
};
use crate::page::Damage;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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

pub(super) fn head<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<(T, &[u8]), Damage> {
    T::read_from_prefix(bytes).map_err(|_| Damage::Field("catalog value length"))
}

/// A value that is a head and nothing else.
fn whole<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<T, Damage> {
    match head::<T>(bytes)? {
        (row, []) => Ok(row),
        _ => Err(Damage::Field("catalog value length")),
    }
}

pub(super) fn table<T: FromBytes + KnownLayout + Immutable + Unaligned>(
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
