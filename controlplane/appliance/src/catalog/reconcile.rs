//! What a crash between two steps left behind, and how it is mended when the pool is opened.
//!
//! | found | because | mended by |
//! |---|---|---|
//! | a share that is no volume's head and has no snapshots in the catalog | crash during delete, clone or rollback (or a create that was undone) | deleting it |
//! | a live map that is no volume's head in a share with snapshots in the catalog | crash during rollback, or during delete after a promotion | deleting the live map |
//! | no share of a volume that is in the catalog | crash during create | creating it |
//! | a share of another size | crash during resize | resizing it |
//! | an intermediate snapshot that is not in the catalog (I8) | crash before the commit record, or during delete | deleting it |
//! | no intermediate snapshot of one that is in the catalog | damage: no order of steps leads here | a remark |
//! | a snapshot of a volume that is not in the catalog | crash during delete of the volume | taking the volume out of it |
//! | an export of something that is not in the catalog | crash during delete | deleting it |

use std::collections::BTreeSet;

use super::{Catalog, Change, Volume};
use crate::mailbox::RecoveredShard;
use stillpoint_processor::{ShardCommand, ShardIndex, SnapshotId, VolumeId};

/// What has to be done before the pool is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mending {
    /// Changes of the catalog, in order; made in memory already.
    pub changes: Vec<Change>,
    /// Commands to shards, in any order over shards, in order for each shard.
    pub commands: Vec<(ShardIndex, ShardCommand)>,
    /// What an operator should know.
    pub remarks: Vec<String>,
    /// What is lost: no order of steps leads here.
    pub damage: Vec<String>,
}

/// Compares the catalog with what the shards brought back, mends the catalog in memory, and says what else
/// has to be done. Doing it twice is harmless.
pub fn reconcile(catalog: &mut Catalog, shards: &[RecoveredShard]) -> Mending {
    let mut mending = Mending::default();
    mend_catalog(catalog, &mut mending);
    for shard in shards {
        mend_volumes(catalog, shard, &mut mending);
        mend_snapshots(catalog, shard, &mut mending);
    }
    mending
}

fn mend_catalog(catalog: &mut Catalog, mending: &mut Mending) {
    let volumes: BTreeSet<VolumeId> = catalog.volumes().map(|volume| volume.id).collect();
    for snapshot in catalog.snapshots().cloned().collect::<Vec<_>>() {
        let mut mended = snapshot.clone();
        mended.volumes.retain(|of| volumes.contains(&of.owner));
        if mended.volumes.is_empty() {
            mending.changes.extend(Change::delete_snapshot(&snapshot));
            catalog.remove_snapshot(snapshot.snapshot);
        } else if mended != snapshot {
            mending.changes.push(Change::put_snapshot(&mended));
            catalog.put_snapshot(mended);
        }
    }
    for export in catalog.exports().cloned().collect::<Vec<_>>() {
        if catalog.host_view(export.view, true).is_none() {
            mending.changes.push(Change::delete_export(export.id));
            mending.remarks.push(format!(
                "export {} showed something that is gone: removed",
                export.name
            ));
            catalog.remove_export(export.id);
        }
    }
}

fn mend_volumes(catalog: &Catalog, shard: &RecoveredShard, mending: &mut Mending) {
    let mut give = |command| mending.commands.push((shard.shard, command));
    for share in &shard.volumes {
        let volume = share.volume;
        let head = catalog.volume_of_head(volume);
        match head {
            None if !catalog.has_snapshots_in(volume) => give(ShardCommand::DeleteVolume { volume }),
            None if !share.headless => give(ShardCommand::DeleteHead { volume }),
            None => {}
            Some(row) => {
                let share_blocks = row.share_blocks(shard.shard, catalog.shard_count);
                if share_blocks != share.share_blocks {
                    give(ShardCommand::ResizeVolume { volume, share_blocks });
                }
            }
        }
    }
    let shares: BTreeSet<VolumeId> = shard.volumes.iter().map(|share| share.volume).collect();
    let has_share = |volume: &&Volume| shares.contains(&volume.head);
    for row in catalog.volumes().filter(|volume| !has_share(volume)) {
        if row.head != row.id || row.origin.is_some() {
            mending.damage.push(format!(
                "volume {} is damaged: shard {} has no share of it; what that shard held of it cannot be read",
                row.name, shard.shard.0
            ));
            continue;
        }
        let share_blocks = row.share_blocks(shard.shard, catalog.shard_count);
        give(ShardCommand::CreateVolume {
            volume: row.id,
            share_blocks,
        });
    }
}

fn mend_snapshots(catalog: &Catalog, shard: &RecoveredShard, mending: &mut Mending) {
    let committed = |volume: VolumeId, id| {
        let snapshot = catalog.snapshot_by_id(id);
        snapshot.is_some_and(|snapshot| snapshot.volumes.iter().any(|of| of.volume == volume))
    };
    for (volume, found) in &shard.snapshots {
        let volume = *volume;
        if catalog.volume_of_head(volume).is_none() && !catalog.has_snapshots_in(volume) {
            continue; // goes with its share
        }
        for share in found
            .iter()
            .filter(|share| !share.deleting && !committed(volume, share.snapshot))
        {
            let delete = ShardCommand::DeleteSnapshot {
                volume,
                snapshot: share.snapshot,
            };
            mending.commands.push((shard.shard, delete));
        }
    }
    let shares = shard.snapshots.iter().flat_map(|(volume, found)| {
        let there = found.iter().filter(|share| !share.deleting);
        there.map(|share| (*volume, share.snapshot))
    });
    let there: BTreeSet<(VolumeId, SnapshotId)> = shares.collect();
    for snapshot in catalog.snapshots() {
        for of in &snapshot.volumes {
            if !there.contains(&(of.volume, snapshot.snapshot)) {
                let name = catalog.view_name(stillpoint_processor::View {
                    volume: of.owner,
                    snapshot: Some(snapshot.snapshot),
                });
                mending.damage.push(format!(
                    "snapshot {name} is damaged: shard {} has no intermediate snapshot of it; \
                     what that shard held of it cannot be read",
                    shard.shard.0
                ));
            }
        }
    }
}
