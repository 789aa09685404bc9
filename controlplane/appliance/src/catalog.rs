//! The catalog of one pool, in memory: what the rows on shard 0 say, with lookups by name.
//!
//! The rows are the truth. Every change is first made durable as a row ([`Change`]) and then made here, so
//! that a crash between two steps leaves something that [`reconcile`] can mend when the pool is opened.

mod change_logs;
mod groups;
mod index;
mod lookup;
mod reconcile;
mod rows;
mod schedules;
mod scrubs;

pub use change_logs::ChangeLogVolume;
pub use groups::Group;
pub use index::VolumeSnapshots;
pub use reconcile::{Mending, reconcile};
pub use rows::Change;
pub use schedules::Schedule;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::pool::time_text;
use stillpoint_coordinator::OverallSnapshot;
pub use stillpoint_coordinator::promotion::Origin;
use stillpoint_processor::command::ScrubStatus;
use stillpoint_processor::host_view::{HostView, Placement};
use stillpoint_processor::{BLOCK_BYTES, ChangeLogId, ShardIndex, SnapshotId, TimeStamp, View, VolumeId};

/// Numbers that are reserved at a time, so that not every new thing writes the counters.
const VOLUMES_RESERVED: u32 = 16;
const EXPORTS_RESERVED: u32 = 16;
const SNAPSHOTS_RESERVED: u64 = 256;

/// A virtual volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its number.
    pub id: VolumeId,
    /// Its name, unique in the pool.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// Blocks (of 4 KiB) of one object.
    pub object_blocks: u32,
    /// Shard of object 0.
    pub rotation: u16,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// The shares that have its live map have this number. It is the volume's own, until it is rolled back.
    pub head: VolumeId,
    /// What it was cloned from.
    pub origin: Option<Origin>,
    /// Its change log volume.
    pub change_log: Option<ChangeLogId>,
}

impl Volume {
    /// Whether there is something about it that programs from before clones do not know.
    #[must_use]
    pub fn is_more(&self) -> bool {
        self.head != self.id || self.origin.is_some() || self.change_log.is_some()
    }

    /// How its objects are spread over the shards of its pool.
    #[must_use]
    pub fn placement(&self, shard_count: u16) -> Placement {
        Placement {
            shard_count,
            rotation: self.rotation,
            object_blocks: self.object_blocks,
        }
    }

    /// Blocks of `shard`'s share.
    #[must_use]
    pub fn share_blocks(&self, shard: ShardIndex, shard_count: u16) -> u64 {
        let blocks = self.size_bytes.div_ceil(BLOCK_BYTES as u64);
        self.placement(shard_count).share_blocks(shard, blocks)
    }
}

/// An export: a volume or a snapshot under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRow {
    /// Its number.
    pub id: u32,
    /// Its name, unique in the appliance.
    pub name: String,
    /// What it shows.
    pub view: View,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether clients may take snapshots; only of a volume that they may write to.
    pub allow_snapshots: bool,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: u64,
}

/// Numbers not used yet, and how far they are reserved on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    next_volume: u32,
    next_export: u32,
    next_snapshot: u64,
    reserved_volume: u32,
    reserved_export: u32,
    reserved_snapshot: u64,
}

/// The catalog of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Shards of the pool.
    pub shard_count: u16,
    counters: Counters,
    volumes: BTreeMap<VolumeId, Volume>,
    snapshots: BTreeMap<SnapshotId, OverallSnapshot>,
    index: index::SnapshotIndex,
    lookup: lookup::Lookup,
    exports: BTreeMap<u32, ExportRow>,
    schedules: BTreeMap<u64, Schedule>,
    change_logs: BTreeMap<ChangeLogId, ChangeLogVolume>,
    groups: BTreeMap<u64, Group>,
    scrubs: Vec<ScrubStatus>,
    /// The snapshots that each schedule took, also those of schedules that are gone.
    scheduled: BTreeMap<u64, BTreeSet<SnapshotId>>,
    /// The newest time stamp of a snapshot.
    newest_ns: u64,
    /// The highest wall time ever seen, nanoseconds since the Unix epoch.
    highest_ns: u64,
    /// When the last lock ends, or ended.
    lock_end_ns: u64,
    /// Names of snapshots that are being taken.
    pending: Vec<(VolumeId, String)>,
    /// A volume that is offered to nobody for a moment, although it has exports.
    pub withdrawn: Option<VolumeId>,
    /// Volumes of which only the next opening of the pool tells what they are; offered to nobody until then.
    pub in_doubt: Vec<VolumeId>,
}

impl Catalog {
    /// All volumes, by number.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }

    /// All overall snapshots, oldest first.
    pub fn snapshots(&self) -> impl Iterator<Item = &OverallSnapshot> {
        self.snapshots.values()
    }

    /// The newest time stamp that a snapshot has or had; 0 if there was none.
    #[must_use]
    pub fn newest_time_stamp(&self) -> TimeStamp {
        TimeStamp(self.newest_ns)
    }

    /// Takes note of the wall time; gives the highest ever seen.
    pub fn saw_time(&mut self, now_ns: u64) -> u64 {
        self.highest_ns = self.highest_ns.max(now_ns);
        self.highest_ns
    }

    /// When the last lock of a snapshot ends, or ended; 0 if there never was one.
    #[must_use]
    pub fn lock_end(&self) -> u64 {
        self.lock_end_ns
    }

    /// Whether a snapshot may go, or lose this volume, if this is the time. Whatever removes snapshots asks here first.
    ///
    /// # Errors
    /// Conflict if it is locked (with the date) or exported (with the names).
    pub fn check_removal(
        &self,
        snapshot: &OverallSnapshot,
        volume: Option<VolumeId>,
        now_ns: u64,
    ) -> Result<()> {
        let view = View {
            volume: volume.unwrap_or(snapshot.volumes[0].owner),
            snapshot: Some(snapshot.snapshot),
        };
        let until = snapshot.marks.locked_until_ns;
        if until > now_ns {
            return Err(Error::conflict(format!(
                "snapshot {} is locked until {}",
                self.view_name(view),
                time_text(until)
            ))
            .hint("nobody can delete it before, or shorten the lock"));
        }
        let exports: Vec<&str> = self
            .exports()
            .filter(|export| export.view.snapshot == view.snapshot)
            .filter(|export| volume.is_none_or(|volume| export.view.volume == volume))
            .map(|export| export.name.as_str())
            .collect();
        if !exports.is_empty() {
            return Err(Error::conflict(format!(
                "snapshot {} is exported as {}",
                self.view_name(view),
                exports.join(", ")
            ))
            .hint("delete the exports first: stillpoint export delete NAME"));
        }
        Ok(())
    }

    /// All exports, by number.
    pub fn exports(&self) -> impl Iterator<Item = &ExportRow> {
        self.exports.values()
    }

    /// The volume of this number.
    #[must_use]
    pub fn volume_by_id(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id)
    }

    /// The volume of this name.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.get(&self.lookup.volume(name)?)
    }

    /// The snapshots of a volume, oldest first.
    pub fn snapshots_of(&self, volume: VolumeId) -> impl Iterator<Item = &OverallSnapshot> {
        self.by_number(self.lookup.snapshots_of(volume))
    }

    fn by_number(&self, all: impl Iterator<Item = SnapshotId>) -> impl Iterator<Item = &OverallSnapshot> {
        all.filter_map(|id| self.snapshots.get(&id))
    }

    /// The snapshot of a volume by its name.
    #[must_use]
    pub fn snapshot(&self, volume: VolumeId, name: &str) -> Option<&OverallSnapshot> {
        self.snapshots.get(&self.index.find(volume, name)?)
    }

    /// The snapshot of this number.
    #[must_use]
    pub fn snapshot_by_id(&self, id: SnapshotId) -> Option<&OverallSnapshot> {
        self.snapshots.get(&id)
    }

    /// The volumes that were cloned from this snapshot.
    pub fn clones_of(&self, snapshot: SnapshotId) -> impl Iterator<Item = &Volume> {
        let clones = self.lookup.clones_of(snapshot);
        clones.filter_map(|id| self.volumes.get(&id))
    }

    /// The volume whose live map the shares of this number have.
    #[must_use]
    pub fn volume_of_head(&self, shares: VolumeId) -> Option<&Volume> {
        self.volumes.get(&self.lookup.head(shares)?)
    }

    /// Whether one volume was cloned from the other, or both from a third one, over any number of steps.
    #[must_use]
    pub fn are_related(&self, one: VolumeId, other: VolumeId) -> bool {
        let first = |mut id: VolumeId| {
            // A volume that was deleted is still where its clones came from. There are no more steps than volumes.
            for _ in 0..self.volumes.len() {
                let origin = self.volumes.get(&id).and_then(|volume| volume.origin);
                id = origin.map_or(id, |origin| origin.volume);
            }
            id
        };
        first(one) == first(other)
    }

    /// Whether the shares of this number have intermediate snapshots of snapshots that are there.
    #[must_use]
    pub fn has_snapshots_in(&self, shares: VolumeId) -> bool {
        self.lookup.snapshots_in(shares).next().is_some()
    }

    /// A volume whose objects lie as those of the shares of this number do.
    #[must_use]
    pub fn volume_of_shares(&self, shares: VolumeId) -> Option<&Volume> {
        let head = self.volume_of_head(shares);
        head.or_else(|| {
            let mut all = self.by_number(self.lookup.snapshots_in(shares));
            let of = all.next()?.volumes.iter().find(|of| of.volume == shares)?;
            self.volumes.get(&of.owner)
        })
    }

    /// The view of a volume that a view of shares is part of: shards know of their shares only.
    #[must_use]
    pub fn view_of_shares(&self, view: View) -> Option<View> {
        let volume = match view.snapshot {
            None => self.lookup.head(view.volume)?,
            Some(snapshot) => {
                let of = &self.snapshots.get(&snapshot)?.volumes;
                of.iter().find(|of| of.volume == view.volume)?.owner
            }
        };
        Some(View { volume, ..view })
    }

    /// The export of this name.
    #[must_use]
    pub fn export(&self, name: &str) -> Option<&ExportRow> {
        self.exports.values().find(|export| export.name == name)
    }

    /// `volume` or `volume@snapshot`, as this view is written.
    #[must_use]
    pub fn view_name(&self, view: View) -> String {
        let volume = self
            .volumes
            .get(&view.volume)
            .map_or("?", |volume| volume.name.as_str());
        match view.snapshot {
            None => volume.to_owned(),
            Some(id) => {
                let snapshot = self
                    .snapshots
                    .get(&id)
                    .map_or("?", |snapshot| snapshot.name.as_str());
                format!("{volume}@{snapshot}")
            }
        }
    }

    /// The snapshots of a volume by name, for sessions; what comes later shows up in it too.
    pub fn snapshot_names(&mut self, volume: VolumeId) -> VolumeSnapshots {
        self.index.of(volume).clone()
    }

    /// What a session of this view sees; `None` if it is not there.
    #[must_use]
    pub fn host_view(&self, view: View, read_only: bool) -> Option<HostView> {
        let volume = self.volumes.get(&view.volume)?;
        let (shares, size_bytes) = match view.snapshot {
            None => (volume.head, volume.size_bytes),
            Some(id) => {
                let snapshot = self.snapshots.get(&id)?;
                let of = snapshot.volumes.iter().find(|of| of.owner == volume.id)?;
                (of.volume, of.size_bytes)
            }
        };
        Some(HostView {
            view: View {
                volume: shares,
                ..view
            },
            placement: volume.placement(self.shard_count),
            size_bytes,
            block_bytes: volume.block_bytes,
            read_only: read_only || view.snapshot.is_some(),
        })
    }

    /// Keeps the name of a snapshot of these volumes free for the one that is being taken.
    ///
    /// # Errors
    /// Conflict if one of the volumes has or is getting a snapshot of this name.
    pub fn reserve_snapshot_name(&mut self, volumes: &[VolumeId], name: &str) -> Result<()> {
        for &volume in volumes {
            let shown = self.view_name(View {
                volume,
                snapshot: None,
            });
            if self.snapshot(volume, name).is_some() {
                return Err(Error::conflict(format!("{shown}@{name} exists already"))
                    .hint("choose another name, or delete that snapshot first"));
            }
            if self
                .pending
                .iter()
                .any(|(of, taken)| *of == volume && taken == name)
            {
                return Err(Error::conflict(format!("{shown}@{name} is being taken already")));
            }
        }
        self.pending
            .extend(volumes.iter().map(|&volume| (volume, name.to_owned())));
        Ok(())
    }

    /// Gives a reserved name free.
    pub fn free_snapshot_name(&mut self, volumes: &[VolumeId], name: &str) {
        self.pending
            .retain(|(volume, taken)| taken != name || !volumes.contains(volume));
    }

    /// A number for a new volume, and the change that has to be durable before it is used, if any.
    pub fn next_volume(&mut self) -> (VolumeId, Option<Change>) {
        let id = self.counters.next_volume.max(1);
        self.counters.next_volume = id + 1;
        let stale = id >= self.counters.reserved_volume;
        if stale {
            self.counters.reserved_volume = id + VOLUMES_RESERVED;
        }
        (VolumeId(id), self.counters_if(stale))
    }

    /// A number for a new export, and the change that has to be durable before it is used, if any.
    pub fn next_export(&mut self) -> (u32, Option<Change>) {
        let id = self.counters.next_export.max(1);
        self.counters.next_export = id + 1;
        let stale = id >= self.counters.reserved_export;
        if stale {
            self.counters.reserved_export = id + EXPORTS_RESERVED;
        }
        (id, self.counters_if(stale))
    }

    /// A number for a new snapshot, and the change that has to be durable before it is used, if any.
    pub fn next_snapshot(&mut self) -> (SnapshotId, Option<Change>) {
        let id = self.counters.next_snapshot.max(1);
        self.counters.next_snapshot = id + 1;
        let stale = id >= self.counters.reserved_snapshot;
        if stale {
            self.counters.reserved_snapshot = id + SNAPSHOTS_RESERVED;
        }
        (SnapshotId(id), self.counters_if(stale))
    }

    fn counters_if(&self, stale: bool) -> Option<Change> {
        stale.then(|| Change::put_counters(&self.counters))
    }

    /// The counters could not be made durable: the next number tries again.
    pub fn forget_reserved_numbers(&mut self) {
        self.counters.reserved_volume = self.counters.next_volume;
        self.counters.reserved_export = self.counters.next_export;
        self.counters.reserved_snapshot = self.counters.next_snapshot;
    }

    /// A volume that is new, or changed.
    pub fn put_volume(&mut self, volume: Volume) {
        self.lookup.put_volume(&volume, self.volumes.get(&volume.id));
        self.volumes.insert(volume.id, volume);
    }

    /// A volume that is gone. Its snapshots and exports have to be gone.
    pub fn remove_volume(&mut self, id: VolumeId) {
        if let Some(gone) = self.volumes.remove(&id) {
            self.lookup.remove_volume(&gone);
        }
        self.index.remove_volume(id);
    }

    /// A snapshot that is new, or changed.
    pub fn put_snapshot(&mut self, snapshot: OverallSnapshot) {
        self.highest_ns = self.highest_ns.max(snapshot.time_stamp.0);
        self.lock_end_ns = self.lock_end_ns.max(snapshot.marks.locked_until_ns);
        self.newest_ns = self.newest_ns.max(snapshot.time_stamp.0);
        self.index_schedule(snapshot.marks.schedule, snapshot.snapshot);
        let old = self.snapshots.get(&snapshot.snapshot);
        self.index.put(&snapshot, old);
        self.lookup.put_snapshot(&snapshot, old);
        self.snapshots.insert(snapshot.snapshot, snapshot);
    }

    /// A snapshot that is gone.
    pub fn remove_snapshot(&mut self, id: SnapshotId) {
        if let Some(gone) = self.snapshots.remove(&id) {
            self.index.remove(&gone);
            self.unindex_schedule(gone.marks.schedule, id);
            self.lookup.remove_snapshot(&gone);
        }
    }

    /// An export that is new.
    pub fn put_export(&mut self, export: ExportRow) {
        self.exports.insert(export.id, export);
    }

    /// An export that is gone.
    pub fn remove_export(&mut self, id: u32) {
        self.exports.remove(&id);
    }
}

/// Whether a snapshot has this volume.
#[must_use]
pub fn has_volume(snapshot: &OverallSnapshot, volume: VolumeId) -> bool {
    snapshot.volumes.iter().any(|of| of.owner == volume)
}

#[cfg(test)]
mod tests;
