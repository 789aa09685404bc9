//! Change log volumes of a pool: their rows, and which shares they are for.

use std::collections::BTreeMap;

use super::{Catalog, Change, Volume};
use stillpoint_ondisk::catalog::{ChangeLogHead, Key, VERSION, Value};
use stillpoint_processor::command::{ChangeLogPart, WhenFull};
use stillpoint_processor::space::DEVICES_ALL;
use stillpoint_processor::{BLOCK_BYTES, ChangeLogId, ShardIndex, VolumeId};

/// A change log volume: what the change logs of the volumes that name it may hold together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeLogVolume {
    /// Its number: volumes and change log volumes have theirs from the same counter, and none is used twice.
    pub id: ChangeLogId,
    /// Its name, unique in the pool.
    pub name: String,
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Devices that its blocks are placed on: bit `i` is device `i`; 0 for all.
    pub devices: u64,
    /// What happens when it is full.
    pub when_full: WhenFull,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: u64,
}

impl ChangeLogVolume {
    /// A shard's part: all are equal, to a block.
    #[must_use]
    pub fn part(&self, shard: ShardIndex, shard_count: u16) -> ChangeLogPart {
        let blocks = self.size_bytes / BLOCK_BYTES as u64;
        let count = u64::from(shard_count);
        ChangeLogPart {
            limit_blocks: blocks / count + u64::from(u64::from(shard.0) < blocks % count),
            devices: if self.devices == 0 {
                DEVICES_ALL
            } else {
                self.devices
            },
            when_full: self.when_full,
        }
    }
}

impl Change {
    /// This change log volume is in the catalog.
    #[must_use]
    pub fn put_change_log(log: &ChangeLogVolume) -> Self {
        let head = ChangeLogHead {
            version: VERSION.into(),
            name_bytes: 0.into(),
            when_full: match log.when_full {
                WhenFull::FailWrites => 0,
                WhenFull::DropOldest => 1,
            },
            reserved_a: [0; 3],
            devices: log.devices.into(),
            size_bytes: log.size_bytes.into(),
            created_ns: log.created_ns.into(),
            reserved_b: [0; 16],
        };
        Self::put(Key::ChangeLog(log.id.0), Value::ChangeLog(head, &log.name))
    }

    /// This change log volume is not in the catalog.
    #[must_use]
    pub fn delete_change_log(id: ChangeLogId) -> Self {
        Self::delete(Key::ChangeLog(id.0))
    }
}

/// A change log volume from its row.
pub(super) fn from_row(id: u32, head: &ChangeLogHead, name: &str) -> ChangeLogVolume {
    ChangeLogVolume {
        id: ChangeLogId(id),
        name: name.to_owned(),
        size_bytes: head.size_bytes.get(),
        devices: head.devices.get(),
        when_full: match head.when_full {
            0 => WhenFull::FailWrites,
            _ => WhenFull::DropOldest,
        },
        created_ns: head.created_ns.get(),
    }
}

impl Catalog {
    /// All change log volumes, by number.
    pub fn change_logs(&self) -> impl Iterator<Item = &ChangeLogVolume> {
        self.change_logs.values()
    }

    /// The change log volume of this name.
    #[must_use]
    pub fn change_log(&self, name: &str) -> Option<&ChangeLogVolume> {
        self.change_logs.values().find(|log| log.name == name)
    }

    /// The change log volume of this number.
    #[must_use]
    pub fn change_log_by_id(&self, id: ChangeLogId) -> Option<&ChangeLogVolume> {
        self.change_logs.get(&id)
    }

    /// A change log volume that is new, or changed.
    pub fn put_change_log(&mut self, log: ChangeLogVolume) {
        self.change_logs.insert(log.id, log);
    }

    /// A change log volume that is gone.
    pub fn remove_change_log(&mut self, id: ChangeLogId) {
        self.change_logs.remove(&id);
    }

    /// The volumes that name this change log volume.
    pub fn volumes_of_change_log(&self, id: ChangeLogId) -> impl Iterator<Item = &Volume> {
        self.volumes
            .values()
            .filter(move |volume| volume.change_log == Some(id))
    }

    /// The change log volume of every share that has one: a volume's live map, and what its snapshots lie in. Where shares have
    /// snapshots of several volumes (after a promotion), whose live map they have decides.
    #[must_use]
    pub fn shares_of_change_logs(&self) -> BTreeMap<VolumeId, ChangeLogId> {
        let mut shares = BTreeMap::new();
        if self.change_logs.is_empty() {
            return shares;
        }
        for of in self.snapshots.values().flat_map(|snapshot| &snapshot.volumes) {
            let owner = self.volumes.get(&of.owner);
            if let Some(log) = owner.and_then(|owner| owner.change_log) {
                shares.entry(of.volume).or_insert(log);
            }
        }
        for volume in self.volumes.values() {
            match volume.change_log {
                Some(log) => {
                    shares.insert(volume.head, log);
                }
                None => {
                    shares.remove(&volume.head);
                }
            }
        }
        shares
    }
}
