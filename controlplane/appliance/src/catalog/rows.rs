//! From rows to the catalog and back.

use std::collections::BTreeMap;

use super::{Catalog, Counters, ExportRow, Origin, Volume};
use crate::error::{Error, Result};
use stillpoint_coordinator::{Marks, OverallSnapshot, SnapshotVolume, Written};
use stillpoint_ondisk::catalog::{
    CounterRow, ExportHead, HighestTimeRow, Key, SnapshotHead, SnapshotVolumeRow, VERSION, Value, VolumeHead,
    VolumeMore,
};
use stillpoint_processor::command::HoldFigures;
use stillpoint_processor::{ChangeLogId, ShardCommand, SnapshotId, TimeStamp, View, VolumeId};

/// One change of one row, to be made durable by shard 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The row is this now.
    Put {
        /// Which row.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// The row is gone.
    Delete {
        /// Which row.
        key: Vec<u8>,
    },
}

impl Change {
    pub(super) fn put(key: Key, value: Value<'_>) -> Self {
        Self::Put {
            key: key.encode(),
            value: value.encode(),
        }
    }

    pub(super) fn delete(key: Key) -> Self {
        Self::Delete { key: key.encode() }
    }

    pub(super) fn put_counters(counters: &Counters) -> Self {
        let row = CounterRow {
            version: VERSION.into(),
            reserved: [0; 2],
            next_volume: counters.reserved_volume.into(),
            next_export: counters.reserved_export.into(),
            next_snapshot: counters.reserved_snapshot.into(),
        };
        Self::put(Key::Counters, Value::Counters(row))
    }

    /// This volume is in the catalog.
    #[must_use]
    pub fn put_volume(volume: &Volume) -> Self {
        let head = VolumeHead {
            version: VERSION.into(),
            name_bytes: 0.into(),
            rotation: volume.rotation.into(),
            reserved: [0; 2],
            block_bytes: volume.block_bytes.into(),
            object_blocks: volume.object_blocks.into(),
            size_bytes: volume.size_bytes.into(),
            created_ns: volume.created_ns.into(),
        };
        let more = VolumeMore {
            head: volume.head.0.into(),
            origin_volume: volume.origin.map_or(0, |origin| origin.volume.0).into(),
            origin_snapshot: volume.origin.map_or(0, |origin| origin.snapshot.0).into(),
            change_log: volume.change_log.map_or(0, |log| log.0).into(),
            ..VolumeMore::default()
        };
        let more = volume.is_more().then_some(more);
        Self::put(Key::Volume(volume.id.0), Value::Volume(head, more, &volume.name))
    }

    /// This volume is not in the catalog.
    #[must_use]
    pub fn delete_volume(id: VolumeId) -> Self {
        Self::delete(Key::Volume(id.0))
    }

    /// This snapshot is in the catalog (only to take a volume out of it: new ones are put by the coordinator).
    #[must_use]
    pub fn put_snapshot(snapshot: &OverallSnapshot) -> Self {
        let volumes: Vec<SnapshotVolumeRow> = snapshot
            .volumes
            .iter()
            .map(|of| SnapshotVolumeRow {
                volume: of.volume.0.into(),
                owner: of.owner_row().into(),
                size_bytes: of.size_bytes.into(),
            })
            .collect();
        let head = SnapshotHead {
            version: VERSION.into(),
            name_bytes: 0.into(),
            volume_count: 0.into(),
            shard_count: (snapshot.holds.len() as u16).into(),
            time_stamp_ns: snapshot.time_stamp.0.into(),
            durable_ns: snapshot.durable_ns.into(),
        };
        Self::put(
            Key::Snapshot(snapshot.snapshot.0),
            Value::Snapshot(head, &volumes, &snapshot.name),
        )
    }

    /// This is known of a snapshot beside its commit record.
    #[must_use]
    pub fn put_marks(snapshot: SnapshotId, marks: Marks) -> Self {
        let (key, value) = marks.row(snapshot);
        Self::Put { key, value }
    }

    /// This is the highest wall time ever seen, nanoseconds since the Unix epoch.
    #[must_use]
    pub fn put_highest_time(time_ns: u64) -> Self {
        let row = HighestTimeRow {
            version: VERSION.into(),
            reserved: [0; 6],
            time_ns: time_ns.into(),
        };
        Self::put(Key::HighestTime, Value::HighestTime(row))
    }

    /// This snapshot is not in the catalog: its commit record first, then its figures and marks.
    #[must_use]
    pub fn delete_snapshot(snapshot: &OverallSnapshot) -> Vec<Self> {
        let id = snapshot.snapshot.0;
        let figures = (0..snapshot.holds.len())
            .step_by(stillpoint_ondisk::catalog::FIGURES_MAX)
            .map(|first| {
                Self::delete(Key::Figures {
                    snapshot: id,
                    first_shard: first as u16,
                })
            });
        let marks = (!snapshot.marks.is_empty()).then(|| Self::delete(Key::Marks(id)));
        [Self::delete(Key::Snapshot(id))]
            .into_iter()
            .chain(figures)
            .chain(marks)
            .collect()
    }

    /// This export is in the catalog.
    #[must_use]
    pub fn put_export(export: &ExportRow) -> Self {
        let head = ExportHead {
            version: VERSION.into(),
            name_bytes: 0.into(),
            volume: export.view.volume.0.into(),
            snapshot: export.view.snapshot.map_or(0, |snapshot| snapshot.0).into(),
            read_only: export.read_only.into(),
            allow_snapshots: export.allow_snapshots.into(),
            reserved: [0; 6],
            created_ns: export.created_ns.into(),
        };
        Self::put(Key::Export(export.id), Value::Export(head, &export.name))
    }

    /// This export is not in the catalog.
    #[must_use]
    pub fn delete_export(id: u32) -> Self {
        Self::delete(Key::Export(id))
    }

    /// The command for shard 0.
    #[must_use]
    pub fn command(self) -> ShardCommand {
        match self {
            Self::Put { key, value } => ShardCommand::CatalogPut { key, value },
            Self::Delete { key } => ShardCommand::CatalogDelete { key },
        }
    }
}

impl Catalog {
    /// The catalog that these rows make, and what is left over in them from snapshots that were never committed.
    ///
    /// # Errors
    /// Failure, if a row cannot be read: a catalog is not opened in part.
    pub fn load(rows: &BTreeMap<Vec<u8>, Vec<u8>>, shard_count: u16) -> Result<(Self, Vec<Change>)> {
        let mut catalog = Self {
            shard_count,
            ..Self::default()
        };
        let mut figures = Vec::new();
        let mut marks = Vec::new();
        for (key_bytes, bytes) in rows {
            let unreadable = |damage: stillpoint_ondisk::Damage| {
                Error::failure(format!(
                    "catalog row {:?}: {damage}",
                    key_bytes.escape_ascii().to_string()
                ))
                .hint("nothing was changed; a newer program may be needed")
            };
            let key = Key::decode(key_bytes).map_err(unreadable)?;
            match Value::decode(key, bytes).map_err(unreadable)? {
                Value::Counters(row) => catalog.counters = counters(row),
                Value::Export(head, name) => {
                    let Key::Export(id) = key else {
                        unreachable!("decoded by its key")
                    };
                    catalog.put_export(export(id, &head, name));
                }
                Value::Figures(head, rows) => {
                    let Key::Figures {
                        snapshot,
                        first_shard,
                    } = key
                    else {
                        unreachable!("decoded by its key")
                    };
                    figures.push((SnapshotId(snapshot), first_shard, head, rows));
                }
                Value::HighestTime(row) => {
                    catalog.saw_time(row.time_ns.get());
                }
                Value::Group(head, volumes, name) => {
                    let Key::Group(id) = key else {
                        unreachable!("decoded by its key")
                    };
                    catalog.put_group(super::groups::from_row(id, &head, volumes, name));
                }
                Value::Schedule(head, volumes, texts) => {
                    let Key::Schedule(id) = key else {
                        unreachable!("decoded by its key")
                    };
                    catalog.put_schedule(super::schedules::from_row(id, &head, volumes, texts));
                }
                Value::ChangeLog(head, name) => {
                    let Key::ChangeLog(id) = key else {
                        unreachable!("decoded by its key")
                    };
                    catalog.put_change_log(super::change_logs::from_row(id, &head, name));
                }
                Value::Scrubs(_, rows) => {
                    let Key::Scrubs { first_shard } = key else {
                        unreachable!("decoded by its key")
                    };
                    catalog.load_scrubs(first_shard, rows);
                }
                Value::ScrubDamage(_, rows) => {
                    let Key::ScrubDamage(shard) = key else {
                        unreachable!("decoded by its key")
                    };
                    catalog.load_scrub_damage(shard, rows);
                }
                Value::Marks(row) => {
                    let Key::Marks(id) = key else {
                        unreachable!("decoded by its key")
                    };
                    let found = Marks {
                        schedule: row.schedule.get(),
                        locked_until_ns: row.locked_until_ns.get(),
                    };
                    marks.push((SnapshotId(id), found));
                }
                Value::Snapshot(head, volumes, name) => {
                    let Key::Snapshot(id) = key else {
                        unreachable!("decoded by its key")
                    };
                    catalog.put_snapshot(snapshot(id, &head, volumes, name));
                }
                Value::Volume(head, more, name) => {
                    let Key::Volume(id) = key else {
                        unreachable!("decoded by its key")
                    };
                    catalog.put_volume(volume(id, &head, more, name));
                }
            }
        }
        catalog.check_numbers()?;
        let mut left_over = Vec::new();
        for (id, first_shard, head, rows) in figures {
            match catalog.snapshots.get_mut(&id) {
                Some(snapshot) => {
                    snapshot.written = snapshot.written.and(&head);
                    let holds = snapshot.holds.iter_mut().skip(usize::from(first_shard));
                    for (hold, row) in holds.zip(rows) {
                        *hold = HoldFigures {
                            hold_ns: row.hold_ns.get(),
                            answers_held: row.answers_held.get(),
                            answer_held_ns_max: row.answer_held_ns_max.get(),
                            ..HoldFigures::default()
                        };
                    }
                }
                None => left_over.push(Change::delete(Key::Figures {
                    snapshot: id.0,
                    first_shard,
                })),
            }
        }
        for (id, marks) in marks {
            match catalog.snapshots.get(&id).cloned() {
                Some(snapshot) => catalog.put_snapshot(OverallSnapshot { marks, ..snapshot }),
                None => left_over.push(Change::delete(Key::Marks(id.0))),
            }
        }
        catalog.learn_last_runs();
        Ok((catalog, left_over))
    }

    /// A number that is in use and not reserved would be given out twice.
    fn check_numbers(&self) -> Result<()> {
        let volume = self
            .volumes
            .values()
            .any(|volume| volume.id.max(volume.head).0 >= self.counters.next_volume)
            || self
                .change_logs
                .keys()
                .any(|id| id.0 >= self.counters.next_volume);
        let snapshot = self
            .snapshots
            .keys()
            .last()
            .is_some_and(|id| id.0 >= self.counters.next_snapshot);
        let export = self
            .exports
            .keys()
            .last()
            .is_some_and(|&id| id >= self.counters.next_export);
        let schedule = self
            .schedules
            .keys()
            .last()
            .is_some_and(|&id| id >= self.counters.next_snapshot);
        let group = self
            .groups
            .keys()
            .last()
            .is_some_and(|&id| id >= self.counters.next_snapshot);
        if volume || snapshot || export || schedule || group {
            return Err(Error::failure(
                "the catalog uses numbers that its counters have not given out",
            ));
        }
        Ok(())
    }
}

fn counters(row: CounterRow) -> Counters {
    let (volume, export) = (row.next_volume.get(), row.next_export.get());
    let snapshot = row.next_snapshot.get();
    Counters {
        next_volume: volume,
        next_export: export,
        next_snapshot: snapshot,
        reserved_volume: volume,
        reserved_export: export,
        reserved_snapshot: snapshot,
    }
}

fn volume(id: u32, head: &VolumeHead, more: Option<VolumeMore>, name: &str) -> Volume {
    let more = more.unwrap_or(VolumeMore {
        head: id.into(),
        ..VolumeMore::default()
    });
    let origin_volume = more.origin_volume.get();
    Volume {
        id: VolumeId(id),
        name: name.to_owned(),
        size_bytes: head.size_bytes.get(),
        block_bytes: head.block_bytes.get(),
        object_blocks: head.object_blocks.get(),
        rotation: head.rotation.get(),
        created_ns: head.created_ns.get(),
        head: VolumeId(more.head.get()),
        origin: (origin_volume != 0).then_some(Origin {
            volume: VolumeId(origin_volume),
            snapshot: SnapshotId(more.origin_snapshot.get()),
        }),
        change_log: (more.change_log.get() != 0).then_some(ChangeLogId(more.change_log.get())),
    }
}

fn export(id: u32, head: &ExportHead, name: &str) -> ExportRow {
    let snapshot = head.snapshot.get();
    ExportRow {
        id,
        name: name.to_owned(),
        view: View {
            volume: VolumeId(head.volume.get()),
            snapshot: (snapshot != 0).then_some(SnapshotId(snapshot)),
        },
        read_only: head.read_only != 0,
        allow_snapshots: head.allow_snapshots != 0,
        created_ns: head.created_ns.get(),
    }
}

fn snapshot(id: u64, head: &SnapshotHead, volumes: &[SnapshotVolumeRow], name: &str) -> OverallSnapshot {
    OverallSnapshot {
        snapshot: SnapshotId(id),
        name: name.to_owned(),
        time_stamp: TimeStamp(head.time_stamp_ns.get()),
        volumes: volumes
            .iter()
            .map(|of| SnapshotVolume {
                volume: VolumeId(of.volume.get()),
                owner: VolumeId(match of.owner.get() {
                    0 => of.volume.get(),
                    owner => owner,
                }),
                size_bytes: of.size_bytes.get(),
            })
            .collect(),
        marks: Marks::default(),
        holds: vec![HoldFigures::default(); usize::from(head.shard_count.get())],
        durable_ns: head.durable_ns.get(),
        written: Written::default(),
    }
}
