//! Rows of the catalog as the control plane writes and reads them.

use std::collections::{BTreeMap, BTreeSet};

use stillpoint_coordinator::promotion::Origin;
use stillpoint_ondisk::catalog::{self, Key, SnapshotHead, SnapshotVolumeRow, Value, VolumeHead, VolumeMore};
use stillpoint_processor::host_view::Placement;
use stillpoint_processor::{ShardCommand, ShardIndex, SnapshotId, VolumeId};

use crate::model::Broken;

/// What a row says of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its number.
    pub row: u32,
    /// The shares that have its live map.
    pub head: u32,
    /// Its size.
    pub size_bytes: u64,
    /// What it was cloned from: volume and snapshot.
    pub origin: Option<(u32, u64)>,
    /// Its change log volume, 0 if none.
    pub change_log: u32,
}

/// A volume in a snapshot, as the row says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The shares that were cut.
    pub shares: u32,
    /// The volume whose snapshot it is.
    pub owner: u32,
    /// Its size then.
    pub size_bytes: u64,
}

/// What the catalog says.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Volumes, by number.
    pub volumes: BTreeMap<u32, VolumeRow>,
    /// Snapshots with their volumes.
    pub snapshots: BTreeMap<u64, Vec<Member>>,
    /// Change log volumes: what a shard's part may hold, and whether the oldest snapshots are dropped.
    pub change_logs: BTreeMap<u32, (u64, bool)>,
    /// The snapshot and the key of each row of figures.
    pub figures: Vec<(u64, Vec<u8>)>,
}

impl Rows {
    /// Reads all rows.
    ///
    /// # Errors
    /// One that is damaged, or that nobody writes here.
    pub fn read(catalog: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, Broken> {
        let mut rows = Self::default();
        for (key, value) in catalog {
            let decoded = Key::decode(key).and_then(|key| Ok((key, Value::decode(key, value)?)));
            match decoded.map_err(|damage| Broken(format!("a catalog row is damaged: {damage}")))? {
                (Key::Volume(row), Value::Volume(head, more, _)) => {
                    let more = more.unwrap_or(VolumeMore {
                        head: row.into(),
                        ..VolumeMore::default()
                    });
                    let origin = (more.origin_volume.get(), more.origin_snapshot.get());
                    let volume = VolumeRow {
                        row,
                        head: more.head.get(),
                        size_bytes: head.size_bytes.get(),
                        origin: (origin.0 != 0).then_some(origin),
                        change_log: more.change_log.get(),
                    };
                    rows.volumes.insert(row, volume);
                }
                (Key::Snapshot(id), Value::Snapshot(_, volumes, _)) => {
                    rows.snapshots
                        .insert(id, volumes.iter().map(Member::of).collect());
                }
                (Key::ChangeLog(id), Value::ChangeLog(head, _)) => {
                    let drops = head.when_full == 1;
                    rows.change_logs.insert(id, (head.size_bytes.get(), drops));
                }
                (Key::Figures { snapshot, .. }, _) => rows.figures.push((snapshot, key.clone())),
                (other, _) => return Err(Broken(format!("a row that nobody wrote: {other:?}"))),
            }
        }
        Ok(rows)
    }
}

impl Member {
    fn of(row: &SnapshotVolumeRow) -> Self {
        let shares = row.volume.get();
        Self {
            shares,
            owner: match row.owner.get() {
                0 => shares,
                owner => owner,
            },
            size_bytes: row.size_bytes.get(),
        }
    }
}

impl VolumeRow {
    /// The command that writes it.
    pub fn put(&self, placement: Placement, block_bytes: u32) -> (ShardIndex, ShardCommand) {
        let head = VolumeHead {
            version: catalog::VERSION.into(),
            name_bytes: 0.into(),
            rotation: placement.rotation.into(),
            reserved: [0; 2],
            block_bytes: block_bytes.into(),
            object_blocks: placement.object_blocks.into(),
            size_bytes: self.size_bytes.into(),
            created_ns: 0.into(),
        };
        let is_more = self.head != self.row || self.origin.is_some() || self.change_log != 0;
        let (volume, snapshot) = self.origin.unwrap_or_default();
        let more = is_more.then(|| VolumeMore {
            head: self.head.into(),
            origin_volume: volume.into(),
            origin_snapshot: snapshot.into(),
            change_log: self.change_log.into(),
            ..VolumeMore::default()
        });
        let key = Key::Volume(self.row).encode();
        let value = Value::Volume(head, more, &format!("volume-{}", self.row)).encode();
        (ShardIndex(0), ShardCommand::CatalogPut { key, value })
    }
}

/// The command that writes a snapshot's row again: others have become owners of it.
pub fn put_snapshot(id: u64, members: &[Member], shard_count: u16) -> (ShardIndex, ShardCommand) {
    let volumes: Vec<SnapshotVolumeRow> = members
        .iter()
        .map(|member| SnapshotVolumeRow {
            volume: member.shares.into(),
            owner: if member.owner == member.shares {
                0
            } else {
                member.owner
            }
            .into(),
            size_bytes: member.size_bytes.into(),
        })
        .collect();
    let head = SnapshotHead {
        version: catalog::VERSION.into(),
        name_bytes: 0.into(),
        volume_count: 0.into(),
        shard_count: shard_count.into(),
        time_stamp_ns: id.into(),
        durable_ns: 0.into(),
    };
    let key = Key::Snapshot(id).encode();
    let value = Value::Snapshot(head, &volumes, &format!("snapshot-{id}")).encode();
    (ShardIndex(0), ShardCommand::CatalogPut { key, value })
}

/// What a volume was cloned from, as promotions have it.
pub fn origin((volume, snapshot): (u32, u64)) -> Origin {
    Origin {
        volume: VolumeId(volume),
        snapshot: SnapshotId(snapshot),
    }
}

/// The snapshots that a live map descends from. `origin_of`: what shares were made of; `snapshots_in`: the snapshots
/// that shares have.
pub fn path<I: Iterator<Item = u64>>(
    head: u32,
    origin_of: impl Fn(u32) -> Option<(u32, u64)>,
    snapshots_in: impl Fn(u32) -> I,
) -> BTreeSet<(u32, u64)> {
    let mut path = BTreeSet::new();
    let mut next = Some((head, u64::MAX));
    while let Some((shares, last)) = next {
        path.extend(
            snapshots_in(shares)
                .filter(|id| *id <= last)
                .map(|id| (shares, id)),
        );
        next = origin_of(shares);
    }
    path
}

/// The same, as promotions have it.
pub fn knots(path: &BTreeSet<(u32, u64)>) -> BTreeSet<(VolumeId, SnapshotId)> {
    let knots = path
        .iter()
        .map(|&(shares, id)| (VolumeId(shares), SnapshotId(id)));
    knots.collect()
}
