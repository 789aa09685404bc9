//! A shard's share of a virtual volume: its live map, its epoch, its intermediate snapshots.

use stillpoint_ondisk::directory::{OriginRow, ROW_HEADER_BYTES, SnapshotRow, VolumeRow};
use stillpoint_ondisk::map_page::LEVEL_MAX;
use zerocopy::{FromBytes, IntoBytes};

use crate::change_log::ChangeLog;
use crate::command::{IntermediateSnapshotStatus, VolumeShareStatus};
use crate::ids::{ChangeLogId, Epoch, SnapshotId, TimeStamp, VolumeId};
use crate::intermediate_snapshot::{IntermediateSnapshot, PointInTimeCopy};
use crate::lineage::Origin;
use crate::map::{FreeRule, Passed, Root, TreeMut, TreeStats};
use crate::request::View;
use crate::snapshot_chain::SnapshotChain;
use crate::space::{Purpose, Space};

/// Values of [`VolumeRow::state`].
const STATE_LIVE: u8 = 0;
const STATE_TO_BE_FREED: u8 = 1;
const STATE_HEADLESS: u8 = 2;

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
    /// Where the chain begins, if this share was made of a snapshot.
    pub origin: Option<Origin>,
    /// The live map is to be freed, or has been.
    pub deleting: bool,
    /// So are all the snapshots. Only with `deleting`.
    pub with_snapshots: bool,
    /// First leaf of the live map that has not been freed yet, when `deleting`.
    pub cursor_leaf: u64,
    /// Where its change logs are placed. Not in the row: the catalog has it.
    pub change_log: Option<ChangeLogId>,
    /// What is written now counts there: there is a snapshot before it.
    pub is_logged: bool,
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
            origin: None,
            deleting: false,
            with_snapshots: false,
            cursor_leaf: 0,
            change_log: None,
            is_logged: false,
            dirty: true,
        }
    }

    /// Whether the live map is gone.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.deleting && self.root.entry.address() == 0
    }

    /// Whether the snapshot at this position of the chain is to be freed.
    #[must_use]
    pub fn is_to_be_freed(&self, position: usize) -> bool {
        self.with_snapshots || self.snapshots[position].deleting
    }

    /// The map that `view` shows; `None` if it is not there (any more).
    #[must_use]
    pub fn viewed(&self, view: View) -> Option<ViewedMap> {
        match view.snapshot {
            None if self.deleting => None,
            None => Some(ViewedMap {
                root: self.root,
                family: self.family,
                share_blocks: self.share_blocks,
            }),
            Some(snapshot) => {
                let position = self.snapshots.position(snapshot)?;
                if self.is_to_be_freed(position) {
                    return None;
                }
                let copy = &self.snapshots[position].copy;
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
        let Some(newest) = self.snapshots.last() else {
            return FreeRule {
                newest: self.origin.map(|origin| origin.epoch),
                passed: self.origin.and_then(|origin| origin.passed),
            };
        };
        let before = self.snapshots.iter().rev().nth(1).map(|before| before.copy.epoch);
        let passed = (newest.cursor_leaf > 0).then(|| Passed {
            cursor_leaf: newest.cursor_leaf,
            newest: before.or(self.origin.map(|origin| origin.epoch)),
        });
        FreeRule {
            newest: Some(newest.copy.epoch),
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
            clones: Vec::new(),
            dirty: true,
        });
        self.epoch = self.epoch.next();
        self.stats.changed_blocks = 0;
        self.is_logged = self.change_log.is_some();
        self.changes = ChangeLog::default();
        self.dirty = true;
    }

    /// The directory row of the share.
    #[must_use]
    pub fn row(&self) -> VolumeRow {
        VolumeRow {
            family: self.family.0.into(),
            epoch: self.epoch.0.into(),
            root: self.root.entry,
            root_level: self.root.level,
            state: match (self.deleting, self.with_snapshots) {
                (false, _) => STATE_LIVE,
                (true, true) => STATE_TO_BE_FREED,
                (true, false) => STATE_HEADLESS,
            },
            reserved: [0; 7],
            share_blocks: self.share_blocks.into(),
            mapped_blocks: self.stats.mapped_blocks.into(),
            cursor_leaf: self.cursor_leaf.into(),
            changed_blocks: self.stats.changed_blocks.into(),
            first_change_ns: self.changes.first_change_ns.into(),
            last_change_ns: self.changes.last_change_ns.into(),
        }
    }

    /// The bytes of the row: with the origin, if there is one.
    #[must_use]
    pub fn row_bytes(&self) -> Vec<u8> {
        let mut bytes = self.row().as_bytes().to_vec();
        if let Some(origin) = self.origin {
            let row = OriginRow {
                volume: origin.volume.0.into(),
                reserved: [0; 4],
                snapshot: origin.snapshot.0.into(),
            };
            bytes.extend_from_slice(row.as_bytes());
        }
        bytes
    }

    /// The share that a directory row describes, without its snapshots; `None` if it is not a row. The epoch of the origin
    /// is not known before all shares are [linked](crate::lineage::link).
    #[must_use]
    pub fn from_row(key: &[u8], value: &[u8]) -> Option<Self> {
        let id = VolumeId(u32::from_le_bytes(key.try_into().ok()?));
        let (row, origin) = VolumeRow::read_from_prefix(value).ok()?;
        if row.root_level > LEVEL_MAX || row.state > STATE_HEADLESS {
            return None;
        }
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
        volume.deleting = row.state != STATE_LIVE;
        volume.with_snapshots = row.state == STATE_TO_BE_FREED;
        volume.cursor_leaf = row.cursor_leaf.get();
        if !origin.is_empty() {
            let row = OriginRow::read_from_bytes(origin).ok()?;
            volume.origin = Some(Origin {
                volume: VolumeId(row.volume.get()),
                snapshot: SnapshotId(row.snapshot.get()),
                epoch: Epoch(0),
                passed: None,
            });
        }
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
            headless: self.deleting,
            origin: self.origin.map(|origin| (origin.volume, origin.snapshot)),
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
            .enumerate()
            .map(|(position, (snapshot, log))| IntermediateSnapshotStatus {
                snapshot: snapshot.snapshot,
                epoch: snapshot.copy.epoch.0,
                time_stamp: snapshot.time_stamp,
                mapped_blocks: snapshot.copy.mapped_blocks,
                changed_blocks: log.changed_blocks,
                first_change_ns: log.first_change_ns,
                last_change_ns: log.last_change_ns,
                deleting: self.is_to_be_freed(position),
            })
            .collect()
    }
}

/// Key of a volume's row.
#[must_use]
pub fn volume_key(volume: VolumeId) -> [u8; 4] {
    volume.0.to_le_bytes()
}

/// Bytes of a snapshot's row in the directory, key and header included.
pub const SNAPSHOT_ROW_BYTES: usize = ROW_HEADER_BYTES + 12 + size_of::<SnapshotRow>();

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
            clones: Vec::new(),
            dirty: false,
        };
        Some((volume, found))
    }
}
