//! A shard's share of a virtual volume: its live map, its epoch, its intermediate snapshots.

use stillpoint_ondisk::directory::{SnapshotRow, VolumeRow};
use stillpoint_ondisk::map_page::LEVEL_MAX;
use zerocopy::FromBytes;

use crate::change_log::ChangeLog;
use crate::command::{IntermediateSnapshotStatus, VolumeShareStatus};
use crate::ids::{Epoch, SnapshotId, TimeStamp, VolumeId};
use crate::intermediate_snapshot::{IntermediateSnapshot, PointInTimeCopy};
use crate::map::{FreeRule, Passed, Root, TreeMut, TreeStats};
use crate::request::View;
use crate::snapshot_chain::SnapshotChain;
use crate::space::{Purpose, Space};

/// A shard's share of a volume.
///
/// Invariant: every epoch in `snapshots` is below `epoch`.
#[derive(Debug)]
pub struct VirtualVolume {
    /// The volume.
    pub id: VolumeId,
    /// The volume whose pages this one may share.
    pub family: VolumeId,
    /// What is written now is born in this epoch.
    pub epoch: Epoch,
    /// Root of the live map.
    pub root: Root,
    /// Size of the share.
    pub share_blocks: u64,
    /// Counters that the map keeps: blocks mapped, blocks changed since the newest cut.
    pub stats: TreeStats,
    /// Times of the changes since the newest cut; the blocks are in `stats`.
    pub changes: ChangeLog,
    /// Oldest first.
    pub snapshots: SnapshotChain,
    /// To be freed.
    pub deleting: bool,
    /// First leaf of the live map that has not been freed yet, when `deleting`.
    pub cursor_leaf: u64,
    /// The directory row is older than this.
    pub dirty: bool,
}

/// What a view of a volume leads to.
#[derive(Clone, Copy, Debug)]
pub struct ViewedMap {
    /// Root of the map.
    pub root: Root,
    /// The family, for the identity of its pages.
    pub family: VolumeId,
    /// Blocks of the share.
    pub share_blocks: u64,
}

impl VirtualVolume {
    /// An empty share.
    #[must_use]
    pub fn new(id: VolumeId, family: VolumeId, share_blocks: u64) -> Self {
        Self {
            id,
            family,
            epoch: Epoch(1),
            root: Root::default(),
            share_blocks,
            stats: TreeStats::default(),
            changes: ChangeLog::default(),
            snapshots: SnapshotChain::default(),
            deleting: false,
            cursor_leaf: 0,
            dirty: true,
        }
    }

    /// The map that `view` shows; `None` if it is not there (any more).
    #[must_use]
    pub fn viewed(&self, view: View) -> Option<ViewedMap> {
        if self.deleting {
            return None;
        }
        match view.snapshot {
            None => Some(ViewedMap {
                root: self.root,
                family: self.family,
                share_blocks: self.share_blocks,
            }),
            Some(snapshot) => {
                let found = &self.snapshots[self.snapshots.position(snapshot)?];
                if found.deleting {
                    return None;
                }
                let copy = &found.copy;
                Some(ViewedMap {
                    root: copy.root,
                    family: self.family,
                    share_blocks: copy.share_blocks,
                })
            }
        }
    }

    /// Which replaced blocks and pages nobody else holds. A newest snapshot that is being freed lets go of the leaves
    /// that the walk has passed, also when the walk rests.
    #[must_use]
    pub fn free_rule(&self) -> FreeRule {
        let newest = self.snapshots.last();
        let passed = newest
            .filter(|s| s.deleting && s.cursor_leaf > 0)
            .map(|s| Passed {
                cursor_leaf: s.cursor_leaf,
                newest: self.snapshots.iter().rev().nth(1).map(|before| before.copy.epoch),
            });
        FreeRule {
            newest: newest.map(|s| s.copy.epoch),
            passed,
        }
    }

    /// The live map, to be changed with pages of this purpose.
    pub fn tree<'a>(&'a mut self, space: &'a mut Space, purpose: Purpose) -> TreeMut<'a> {
        let free = self.free_rule();
        TreeMut {
            family: self.family,
            root: &mut self.root,
            epoch: self.epoch,
            free,
            space,
            purpose,
            stats: &mut self.stats,
        }
    }

    /// Freezes the map as it is: O(1).
    pub fn cut(&mut self, snapshot: SnapshotId, time_stamp: TimeStamp) {
        let before = ChangeLog {
            changed_blocks: self.stats.changed_blocks,
            ..self.changes
        };
        self.snapshots.push(IntermediateSnapshot {
            snapshot,
            time_stamp,
            copy: PointInTimeCopy {
                root: self.root,
                epoch: self.epoch,
                share_blocks: self.share_blocks,
                mapped_blocks: self.stats.mapped_blocks,
            },
            before,
            deleting: false,
            cursor_leaf: 0,
            dirty: true,
        });
        self.epoch = self.epoch.next();
        self.stats.changed_blocks = 0;
        self.changes = ChangeLog::default();
        self.dirty = true;
    }

    /// Takes a freed snapshot out of the chain; its change log joins the next one.
    pub fn remove_snapshot(&mut self, snapshot: SnapshotId) {
        let Some(position) = self.snapshots.position(snapshot) else {
            return;
        };
        let removed = self.snapshots.remove(position);
        if position < self.snapshots.len() {
            let next = self.snapshots.change(position);
            next.before.absorb_older(removed.before);
        } else {
            let mut log = ChangeLog {
                changed_blocks: self.stats.changed_blocks,
                ..self.changes
            };
            log.absorb_older(removed.before);
            self.stats.changed_blocks = log.changed_blocks;
            self.changes = log;
            self.dirty = true;
        }
    }

    /// The directory row of the share.
    #[must_use]
    pub fn row(&self) -> VolumeRow {
        VolumeRow {
            family: self.family.0.into(),
            epoch: self.epoch.0.into(),
            root: self.root.entry,
            root_level: self.root.level,
            state: u8::from(self.deleting),
            reserved: [0; 7],
            share_blocks: self.share_blocks.into(),
            mapped_blocks: self.stats.mapped_blocks.into(),
            cursor_leaf: self.cursor_leaf.into(),
            changed_blocks: self.stats.changed_blocks.into(),
            first_change_ns: self.changes.first_change_ns.into(),
            last_change_ns: self.changes.last_change_ns.into(),
        }
    }

    /// The share that a directory row describes, without its snapshots; `None` if it is not a row.
    #[must_use]
    pub fn from_row(key: &[u8], value: &[u8]) -> Option<Self> {
        let id = VolumeId(u32::from_le_bytes(key.try_into().ok()?));
        let row = VolumeRow::read_from_bytes(value)
            .ok()
            .filter(|row| row.root_level <= LEVEL_MAX)?;
        let mut volume = Self::new(id, VolumeId(row.family.get()), row.share_blocks.get());
        volume.epoch = Epoch(row.epoch.get());
        volume.root = Root {
            entry: row.root,
            level: row.root_level,
        };
        volume.stats.mapped_blocks = row.mapped_blocks.get();
        volume.stats.changed_blocks = row.changed_blocks.get();
        volume.changes.first_change_ns = row.first_change_ns.get();
        volume.changes.last_change_ns = row.last_change_ns.get();
        volume.deleting = row.state != 0;
        volume.cursor_leaf = row.cursor_leaf.get();
        volume.dirty = false;
        Some(volume)
    }

    /// Figures for the control plane.
    #[must_use]
    pub fn status(&self) -> VolumeShareStatus {
        VolumeShareStatus {
            volume: self.id,
            share_blocks: self.share_blocks,
            mapped_blocks: self.stats.mapped_blocks,
            epoch: self.epoch.0,
            snapshots: self.snapshots.len() as u64,
        }
    }

    /// The share's intermediate snapshots, each with the change log that belongs to it.
    #[must_use]
    pub fn snapshot_statuses(&self) -> Vec<IntermediateSnapshotStatus> {
        let own = ChangeLog {
            changed_blocks: self.stats.changed_blocks,
            ..self.changes
        };
        let behind = self.snapshots.iter().skip(1).map(|next| next.before).chain([own]);
        self.snapshots
            .iter()
            .zip(behind)
            .map(|(snapshot, log)| IntermediateSnapshotStatus {
                snapshot: snapshot.snapshot,
                epoch: snapshot.copy.epoch.0,
                time_stamp: snapshot.time_stamp,
                mapped_blocks: snapshot.copy.mapped_blocks,
                changed_blocks: log.changed_blocks,
                first_change_ns: log.first_change_ns,
                last_change_ns: log.last_change_ns,
                deleting: snapshot.deleting,
            })
            .collect()
    }
}

/// Key of a volume's row.
#[must_use]
pub fn volume_key(volume: VolumeId) -> [u8; 4] {
    volume.0.to_le_bytes()
}

/// Key of a snapshot's row.
#[must_use]
pub fn snapshot_key(volume: VolumeId, snapshot: SnapshotId) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&volume.0.to_le_bytes());
    key[4..].copy_from_slice(&snapshot.0.to_le_bytes());
    key
}

impl IntermediateSnapshot {
    /// The directory row.
    #[must_use]
    pub fn row(&self) -> SnapshotRow {
        SnapshotRow {
            epoch: self.copy.epoch.0.into(),
            root: self.copy.root.entry,
            root_level: self.copy.root.level,
            state: u8::from(self.deleting),
            reserved: [0; 3],
            share_blocks: self.copy.share_blocks.into(),
            mapped_blocks: self.copy.mapped_blocks.into(),
            cursor_leaf: self.cursor_leaf.into(),
            time_stamp_ns: self.time_stamp.0.into(),
            changed_blocks: self.before.changed_blocks.into(),
            first_change_ns: self.before.first_change_ns.into(),
            last_change_ns: self.before.last_change_ns.into(),
        }
    }

    /// The volume and the snapshot that a directory row describes; `None` if it is not a row.
    #[must_use]
    pub fn from_row(key: &[u8], value: &[u8]) -> Option<(VolumeId, Self)> {
        let key: &[u8; 12] = key.try_into().ok()?;
        let volume = VolumeId(u32::from_le_bytes(key[..4].try_into().ok()?));
        let snapshot = SnapshotId(u64::from_le_bytes(key[4..].try_into().ok()?));
        let row = SnapshotRow::read_from_bytes(value)
            .ok()
            .filter(|row| row.root_level <= LEVEL_MAX)?;
        let found = Self {
            snapshot,
            time_stamp: TimeStamp(row.time_stamp_ns.get()),
            copy: PointInTimeCopy {
                root: Root {
                    entry: row.root,
                    level: row.root_level,
                },
                epoch: Epoch(row.epoch.get()),
                share_blocks: row.share_blocks.get(),
                mapped_blocks: row.mapped_blocks.get(),
            },
            before: ChangeLog {
                changed_blocks: row.changed_blocks.get(),
                first_change_ns: row.first_change_ns.get(),
                last_change_ns: row.last_change_ns.get(),
            },
            deleting: row.state != 0,
            cursor_leaf: row.cursor_leaf.get(),
            dirty: false,
        };
        Some((volume, found))
    }
}
