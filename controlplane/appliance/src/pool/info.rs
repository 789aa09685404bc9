//! What the API tells about a pool and the things in it.

use std::collections::BTreeMap;

use super::Pool;
use crate::api::model::{
    ChangeLogInfo, DeviceInfo, ExportInfo, HoldInfo, IntermediateSnapshotInfo, PointInTimeCopyInfo, PoolInfo,
    ShardInfo, ShareInfo, SnapshotInfo, SnapshotVolumeInfo, VolumeInfo,
};
use crate::catalog::{Catalog, Volume};
use crate::error::{Error, Result};
use crate::mailbox::ExportTable;
use stillpoint_coordinator::OverallSnapshot;
use stillpoint_hw::device::nvme::passthrough::Passthrough;
use stillpoint_hw::device::{DeviceFile, DeviceKind};
use stillpoint_processor::command::{EventKind, IntermediateSnapshotStatus, ShardStatus, VolumeShareStatus};
use stillpoint_processor::{BLOCK_BYTES, ShardCommand, ShardIndex, ShareBlock, View, VolumeId};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// The figures of every shard of a pool, in order.
pub type ShardFigures = Vec<ShardStatus>;

impl Pool {
    /// Asks every shard for its figures.
    ///
    /// # Errors
    /// If a processor has ended.
    pub async fn figures(&self) -> Result<ShardFigures> {
        self.refresh_sides().await;
        let events = self.ask_all(self.every_shard(|_| ShardCommand::Status)).await?;
        events
            .into_iter()
            .map(|(shard, kind)| match kind {
                EventKind::Status(status) => Ok(*status),
                EventKind::Failed(error) => Err(self.failed(shard, error)),
                other => Err(Error::failure(format!("shard {} answered {other:?}", shard.0))),
            })
            .collect()
    }

    /// The pool.
    #[must_use]
    pub fn info(&self, figures: &ShardFigures) -> PoolInfo {
        let sum = |blocks: fn(&ShardStatus) -> u64| figures.iter().map(blocks).sum::<u64>() * BLOCK;
        let (state, error) = self.condition();
        let lost = self.lost_devices();
        let catalog = self.catalog();
        let durable_writes = self.durable_writes();
        PoolInfo {
            name: self.name().to_owned(),
            state: state.to_owned(),
            error,
            id: self.devices.id_text(),
            shards: self.shard_count(),
            devices: self
                .files
                .present()
                .map(|(device, file)| DeviceInfo {
                    path: file.path().display().to_string(),
                    kind: match (file.kind(), file.passthrough()) {
                        (_, Some(_)) => "nvme".to_owned(),
                        (DeviceKind::File, None) => "file".to_owned(),
                        (DeviceKind::Block, None) => "block".to_owned(),
                    },
                    size_bytes: match file.size_bytes_now() {
                        0 => file.size_bytes(),
                        size_bytes => size_bytes,
                    },
                    pool_bytes: self.needed_bytes(device),
                    unused_bytes: self.unused_bytes(device, &file),
                    direct: file.is_direct(),
                    polled: file.is_polled(),
                    passthrough_refused: file.refused().map(str::to_owned),
                    durable_writes: durable_writes.is_ok(),
                    durable_writes_refused: match file.passthrough().map(Passthrough::durable_writes) {
                        Some(Err(why)) => Some(why.to_owned()),
                        Some(Ok(())) => durable_writes.err().map(str::to_owned),
                        None => None,
                    },
                    stalled_since_ns: self.stalled_since(device, &file),
                    lost_since_ns: lost.get(&device).map(|lost| lost.since_ns),
                })
                .collect(),
            known_devices: Vec::new(),
            total_bytes: sum(|shard| shard.total_blocks),
            used_bytes: sum(|shard| shard.used_blocks),
            pending_bytes: sum(|shard| shard.pending_blocks),
            volumes: catalog.volumes().count() as u64,
            snapshots: catalog.snapshots().count() as u64,
            recovery_ns: self.recovery_ns,
            sides: (0..self.side_places())
                .filter_map(|place| self.side_info(place))
                .collect(),
            remarks: self.remarks.clone(),
            scrub: super::scrub::describe(&catalog, figures),
        }
    }

    /// Whether single writes are made durable one by one where that spares a flush, or what of the pool as a whole is against it.
    fn durable_writes(&self) -> std::result::Result<(), &'static str> {
        let makes_them_durable = |file: &DeviceFile| {
            let namespace = file.passthrough();
            namespace.is_some_and(|namespace| namespace.durable_writes().is_ok())
        };
        if self.side_places() > 0 {
            Err("pools with mirrors are flushed")
        } else if (self.files.present()).all(|(_, file)| makes_them_durable(&file)) {
            Ok(())
        } else {
            Err("not all devices of the pool make single writes durable")
        }
    }

    /// The pool's volumes.
    #[must_use]
    pub fn volume_infos(&self, figures: &ShardFigures) -> Vec<VolumeInfo> {
        let catalog = self.catalog();
        catalog
            .volumes()
            .map(|volume| self.volume_info(&catalog, volume, figures))
            .collect()
    }

    fn volume_info(&self, catalog: &Catalog, volume: &Volume, figures: &ShardFigures) -> VolumeInfo {
        let shares = self.shares(volume, figures);
        VolumeInfo {
            name: volume.name.clone(),
            pool: self.name().to_owned(),
            id: volume.id.0,
            size_bytes: volume.size_bytes,
            block_bytes: volume.block_bytes,
            object_bytes: u64::from(volume.object_blocks) * BLOCK,
            mapped_bytes: shares.iter().map(|share| share.mapped_bytes).sum(),
            created_ns: volume.created_ns,
            origin: volume.origin.map(|origin| {
                catalog.view_name(View {
                    volume: origin.volume,
                    snapshot: Some(origin.snapshot),
                })
            }),
            change_log: volume
                .change_log
                .and_then(|log| Some(catalog.change_log_by_id(log)?.name.clone())),
            snapshots: catalog
                .snapshots_of(volume.id)
                .map(|snapshot| format!("{}@{}", volume.name, snapshot.name))
                .collect(),
            exports: catalog
                .exports()
                .filter(|export| export.view.volume == volume.id)
                .map(|export| export.name.clone())
                .collect(),
            shares,
        }
    }

    fn shares(&self, volume: &Volume, figures: &ShardFigures) -> Vec<ShareInfo> {
        let shards = (0..self.shard_count()).map(ShardIndex);
        shards
            .zip(figures)
            .map(|(shard, status)| {
                let is_it = |share: &&VolumeShareStatus| share.volume == volume.head;
                let found = status.volumes.iter().find(is_it);
                let share_blocks = volume.share_blocks(shard, self.shard_count());
                ShareInfo {
                    shard: shard.0,
                    processor: self.owners[usize::from(shard.0)].0,
                    objects: share_blocks.div_ceil(u64::from(volume.object_blocks)),
                    share_bytes: share_blocks * BLOCK,
                    mapped_bytes: found.map_or(0, |share| share.mapped_blocks * BLOCK),
                    epoch: found.map_or(0, |share| share.epoch),
                }
            })
            .collect()
    }

    /// The pool's snapshots, oldest first; of one volume, if one is given.
    #[must_use]
    pub fn snapshot_infos(&self, volume: Option<VolumeId>) -> Vec<SnapshotInfo> {
        let catalog = self.catalog();
        let info = |snapshot| self.snapshot_info(&catalog, snapshot, volume);
        match volume {
            Some(volume) => catalog.snapshots_of(volume).map(info).collect(),
            None => catalog.snapshots().map(info).collect(),
        }
    }

    fn snapshot_info(
        &self,
        catalog: &Catalog,
        snapshot: &OverallSnapshot,
        asked: Option<VolumeId>,
    ) -> SnapshotInfo {
        let volume = asked.unwrap_or(snapshot.volumes[0].owner);
        let holds = snapshot.holds.iter().enumerate().map(|(shard, hold)| HoldInfo {
            shard: shard as u16,
            hold_ns: hold.hold_ns,
            answers_held: hold.answers_held,
            answer_held_ns_max: hold.answer_held_ns_max,
        });
        let volumes = snapshot.volumes.iter().map(|of| SnapshotVolumeInfo {
            name: catalog.view_name(View {
                volume: of.owner,
                snapshot: None,
            }),
            size_bytes: of.size_bytes,
        });
        SnapshotInfo {
            name: catalog.view_name(View {
                volume,
                snapshot: Some(snapshot.snapshot),
            }),
            pool: self.name().to_owned(),
            id: snapshot.snapshot.0,
            volumes: volumes.collect(),
            time_stamp_ns: snapshot.time_stamp.0,
            locked_until_ns: snapshot.marks.locked_until_ns,
            schedule: catalog
                .schedule_by_id(snapshot.marks.schedule)
                .map(|schedule| schedule.name.clone()),
            durable_ns: snapshot.durable_ns,
            hold_ns_max: snapshot.hold_ns_max(),
            answers_held: snapshot.answers_held(),
            answer_held_ns_max: snapshot.answer_held_ns_max(),
            log_bytes: snapshot.written.log_bytes,
            metadata_bytes: snapshot.written.metadata_bytes,
            holds: holds.collect(),
            intermediate_snapshots: Vec::new(),
        }
    }

    /// One snapshot with its intermediate snapshots.
    ///
    /// # Errors
    /// Not found; if a shard cannot tell.
    pub async fn snapshot_details(&self, volume: &str, snapshot: &str) -> Result<SnapshotInfo> {
        let asked = self.volume(volume)?.id;
        let overall = self.snapshot(volume, snapshot)?;
        let mut intermediate = Vec::new();
        for of in &overall.volumes {
            let volume = of.volume;
            let events = self
                .ask_all(self.every_shard(|_| ShardCommand::ListSnapshots { volume }))
                .await?;
            let found: BTreeMap<ShardIndex, Vec<IntermediateSnapshotStatus>> = events
                .into_iter()
                .filter_map(|(shard, kind)| match kind {
                    EventKind::Snapshots(found) => Some((shard, found)),
                    _ => None,
                })
                .collect();
            let size_blocks = of.size_bytes.div_ceil(BLOCK);
            let catalog = self.catalog();
            let Some(row) = catalog.volume_by_id(of.owner) else {
                continue;
            };
            let placement = row.placement(self.shard_count());
            for (shard, statuses) in found {
                let Some(status) = statuses.iter().find(|status| status.snapshot == overall.snapshot) else {
                    continue;
                };
                let share_blocks = placement.share_blocks(shard, size_blocks);
                intermediate.push(IntermediateSnapshotInfo {
                    volume: row.name.clone(),
                    shard: shard.0,
                    processor: self.owners[usize::from(shard.0)].0,
                    objects: share_blocks.div_ceil(u64::from(row.object_blocks)),
                    first_object: placement.block_at(shard, ShareBlock(0)).0 / u64::from(row.object_blocks),
                    object_step: u64::from(self.shard_count()),
                    point_in_time_copy: PointInTimeCopyInfo {
                        epoch: status.epoch,
                        mapped_bytes: status.mapped_blocks * BLOCK,
                    },
                    change_log: ChangeLogInfo {
                        blocks: status.changed_blocks,
                        bytes: status.changed_blocks * BLOCK,
                        first_change_ns: status.first_change_ns,
                        last_change_ns: status.last_change_ns,
                    },
                });
            }
        }
        let catalog = self.catalog();
        let info = self.snapshot_info(&catalog, &overall, Some(asked));
        Ok(SnapshotInfo {
            intermediate_snapshots: intermediate,
            ..info
        })
    }

    /// The pool's exports; `uris` says where one of a name is reached.
    #[must_use]
    pub fn export_infos(&self, table: &ExportTable, uris: impl Fn(&str) -> Vec<String>) -> Vec<ExportInfo> {
        let catalog = self.catalog();
        catalog
            .exports()
            .filter_map(|export| {
                let host_view = catalog.host_view(export.view, export.read_only)?;
                let seats = table.seats(&export.name);
                Some(ExportInfo {
                    name: export.name.clone(),
                    view: catalog.view_name(export.view),
                    pool: self.name().to_owned(),
                    size_bytes: host_view.size_bytes,
                    block_bytes: host_view.block_bytes,
                    read_only: host_view.read_only,
                    allow_snapshots: export.allow_snapshots,
                    created_ns: export.created_ns,
                    connections: seats.map_or(0, |seats| seats.taken()),
                    connection_limit: seats.map_or(0, |seats| seats.limit()),
                    connections_refused: seats.map_or(0, |seats| seats.refused()),
                    uris: uris(&export.name),
                })
            })
            .collect()
    }

    /// The figures of the shards, each with its owner.
    #[must_use]
    pub fn shard_infos(&self, figures: ShardFigures) -> Vec<(u16, ShardInfo)> {
        let owners = self.owners.iter().map(|owner| owner.0);
        let shards = figures.into_iter().enumerate();
        owners
            .zip(shards.map(|(shard, status)| shard_info(self.name(), shard as u16, &status)))
            .collect()
    }
}

fn shard_info(pool: &str, shard: u16, status: &ShardStatus) -> ShardInfo {
    ShardInfo {
        pool: pool.to_owned(),
        shard,
        reads: status.reads,
        writes: status.writes,
        discards: status.discards,
        flushes: status.flushes,
        read_bytes: status.read_bytes,
        written_bytes: status.written_bytes,
        device_reads: status.device_reads,
        device_writes: status.device_writes,
        log_pages: status.log_pages,
        log_used_bytes: status.log_used_bytes,
        log_bytes: status.log_bytes,
        checkpoints: status.checkpoints,
        map_misses: status.map_misses,
        map_pages_cached: status.map_pages_cached,
        corrupt_blocks: status.corrupt_blocks,
        repaired_blocks: status.repaired_blocks,
        repair_failures: status.repair_failures,
        device_errors: status.device_errors,
        stopped: status.stopped,
        in_flight: status.in_flight,
        total_bytes: status.total_blocks * BLOCK,
        used_bytes: status.used_blocks * BLOCK,
        pending_bytes: status.pending_blocks * BLOCK,
    }
}
