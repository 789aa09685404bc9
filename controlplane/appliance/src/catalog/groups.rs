//! Named groups of volumes: their rows.

use super::{Catalog, Change};
use stillpoint_ondisk::catalog::{GroupHead, Key, VERSION, Value, VolumeNumber};
use stillpoint_processor::VolumeId;

/// A named group of volumes, which are cut together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its number, from the counter of snapshots.
    pub id: u64,
    /// Its name, unique in the pool.
    pub name: String,
    /// Its volumes.
    pub volumes: Vec<VolumeId>,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: u64,
}

impl Change {
    /// This group is in the catalog.
    #[must_use]
    pub fn put_group(group: &Group) -> Self {
        let head = GroupHead {
            version: VERSION.into(),
            name_bytes: 0.into(),
            volume_count: 0.into(),
            reserved: [0; 2],
            created_ns: group.created_ns.into(),
        };
        let volumes: Vec<VolumeNumber> = group.volumes.iter().map(|volume| volume.0.into()).collect();
        Self::put(Key::Group(group.id), Value::Group(head, &volumes, &group.name))
    }

    /// This group is not in the catalog.
    #[must_use]
    pub fn delete_group(id: u64) -> Self {
        Self::delete(Key::Group(id))
    }
}

/// A group from its row.
pub(super) fn from_row(id: u64, head: &GroupHead, volumes: &[VolumeNumber], name: &str) -> Group {
    Group {
        id,
        name: name.to_owned(),
        volumes: volumes.iter().map(|volume| VolumeId(volume.get())).collect(),
        created_ns: head.created_ns.get(),
    }
}

impl Catalog {
    /// All groups, by number.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// The group of this name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.values().find(|group| group.name == name)
    }

    /// A group that is new.
    pub fn put_group(&mut self, group: Group) {
        self.groups.insert(group.id, group);
    }

    /// A group that is gone.
    pub fn remove_group(&mut self, id: u64) {
        self.groups.remove(&id);
    }
}
