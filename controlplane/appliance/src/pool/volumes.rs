//! Making, resizing and deleting volumes. The catalog row comes first; [`reconcile`](crate::catalog::reconcile) says what mends a
//! crash between two steps.

use super::change_logs::half_done;
use super::{Pool, wall_ns};
use crate::api::model::{CreateVolume, ResizeVolume};
use crate::catalog::{Catalog, Change, Volume, has_volume};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::name;
use std::collections::BTreeMap;
use stillpoint_coordinator::OverallSnapshot;
use stillpoint_ondisk::label::FEATURE_CLONES;
use stillpoint_processor::{BLOCK_BYTES, ShardCommand, SnapshotId, View, VolumeId};

/// A volume's size in bytes at most: 1 PiB.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Size of an object unless a volume says otherwise: 64 MiB.
pub const OBJECT_BYTES_DEFAULT: u64 = 64 << 20;
/// Size of an object at least: 1 MiB.
pub const OBJECT_BYTES_MIN: u64 = 1 << 20;
/// Size of an object at most: 1 GiB.
pub const OBJECT_BYTES_MAX: u64 = 1 << 30;

impl Pool {
    /// Makes a volume.
    ///
    /// # Errors
    /// Usage for a bad name or size, conflict if the name is taken, no space.
    pub async fn create_volume(&self, request: &CreateVolume) -> Result<()> {
        name::check("volume", &request.name)?;
        let block_bytes = request.block_bytes.unwrap_or(BLOCK_BYTES as u32);
        if block_bytes != 512 && block_bytes != 4096 {
            return Err(Error::usage(format!(
                "block size {block_bytes}: only 512 and 4096 are possible"
            )));
        }
        check_size(request.size_bytes)?;
        let object_blocks = object_blocks(request.object_bytes.unwrap_or(OBJECT_BYTES_DEFAULT))?;
        let _gate = self.gate.write().await;
        if self.catalog().volume(&request.name).is_some() {
            return Err(Error::conflict(format!("volume {} exists already", request.name)));
        }
        let change_log = self.find_change_log(request.change_log.as_deref())?;
        if change_log.is_some() {
            self.set_feature(FEATURE_CLONES).await?;
        }
        let id = self.number(Catalog::next_volume).await?;
        let volume = Volume {
            id,
            name: request.name.clone(),
            size_bytes: request.size_bytes,
            block_bytes,
            object_blocks,
            rotation: (id.0 % u32::from(self.shard_count())) as u16,
            created_ns: wall_ns(),
            head: id,
            origin: None,
            change_log,
        };
        self.change([Change::put_volume(&volume)]).await?;
        let made = self.run_all(self.every_shard(|shard| ShardCommand::CreateVolume {
            volume: id,
            share_blocks: volume.share_blocks(shard, self.shard_count()),
        }));
        if let Err(error) = made.await {
            self.change([Change::delete_volume(id)]).await?;
            self.run_all(self.every_shard(|_| ShardCommand::DeleteVolume { volume: id }))
                .await?;
            return Err(error.while_doing(format_args!("creating volume {}", request.name)));
        }
        let before = self.catalog().shares_of_change_logs();
        self.catalog().put_volume(volume);
        let attached = self.attach_change_logs(&before).await;
        let text = format!("made, {} bytes", request.size_bytes);
        self.tell(EventKind::VolumeCreated, &request.name, text);
        attached.map_err(|error| half_done(&error, format_args!("volume {} is made", request.name)))
    }

    /// What a volume would be after a resize; refuses what is not allowed.
    ///
    /// # Errors
    /// Not found, usage for a bad size, conflict for shrinking without `force`.
    pub fn plan_resize(&self, volume: &str, request: &ResizeVolume) -> Result<Volume> {
        let old = self.volume(volume)?;
        check_size(request.size_bytes)?;
        if request.size_bytes < old.size_bytes && !request.force {
            return Err(Error::conflict(format!(
                "volume {volume} has {} bytes; {} would cut off its end",
                old.size_bytes, request.size_bytes
            ))
            .hint("give --force if what lies there is not needed"));
        }
        Ok(Volume {
            size_bytes: request.size_bytes,
            ..old
        })
    }

    /// Gives a volume the size that was planned.
    ///
    /// # Errors
    /// If a shard cannot.
    pub async fn resize_volume(&self, volume: &Volume) -> Result<()> {
        self.change([Change::put_volume(volume)]).await?;
        self.catalog().put_volume(volume.clone());
        self.run_all(self.every_shard(|shard| ShardCommand::ResizeVolume {
            volume: volume.head,
            share_blocks: volume.share_blocks(shard, self.shard_count()),
        }))
        .await?;
        let text = format!("has {} bytes now", volume.size_bytes);
        self.tell(EventKind::VolumeResized, &volume.name, text);
        Ok(())
    }

    /// Deletes a volume; its space comes free in the background.
    ///
    /// # Errors
    /// Not found, conflict if it is in a schedule or group or has exports, or snapshots that are locked, or any and `with_snapshots` is not given.
    pub async fn delete_volume(&self, volume: &str, with_snapshots: bool) -> Result<()> {
        let _gate = self.gate.write().await;
        let id = self.volume(volume)?.id;
        let now = self.time_of_locks();
        let (changes, snapshots, rest) = {
            let catalog = self.catalog();
            let schedules: Vec<&str> = catalog
                .schedules()
                .filter(|schedule| schedule.volumes.contains(&id))
                .map(|schedule| schedule.name.as_str())
                .collect();
            if !schedules.is_empty() {
                return Err(Error::conflict(format!(
                    "volume {volume} is in schedule {}",
                    schedules.join(", ")
                ))
                .hint("delete the schedule first: stillpoint schedule delete NAME; its snapshots stay"));
            }
            let groups: Vec<&str> = catalog
                .groups()
                .filter(|group| group.volumes.contains(&id))
                .map(|group| group.name.as_str())
                .collect();
            if !groups.is_empty() {
                return Err(
                    Error::conflict(format!("volume {volume} is in group {}", groups.join(", ")))
                        .hint("delete the group first: stillpoint group delete NAME; its volumes stay"),
                );
            }
            let exports: Vec<&str> = catalog
                .exports()
                .filter(|export| export.view.volume == id)
                .map(|export| export.name.as_str())
                .collect();
            if !exports.is_empty() {
                return Err(Error::conflict(format!(
                    "volume {volume} is exported as {}",
                    exports.join(", ")
                ))
                .hint("delete the exports first: stillpoint export delete NAME"));
            }
            let snapshots: Vec<_> = catalog.snapshots_of(id).cloned().collect();
            if !snapshots.is_empty() && !with_snapshots {
                return Err(
                    Error::conflict(format!("volume {volume} has {} snapshots", snapshots.len()))
                        .hint("delete them first, or give --with-snapshots"),
                );
            }
            for snapshot in &snapshots {
                catalog.check_removal(snapshot, Some(id), now)?;
                let others = |clone: &&Volume| clone.id != id;
                refuse_clones(
                    &format!("{volume}@{}", snapshot.name),
                    catalog.clones_of(snapshot.snapshot).filter(others),
                )
                .map_err(|error| {
                    error.hint("delete them first, or promote one: stillpoint volume promote NAME")
                })?;
            }
            let mut changes = Vec::new();
            let mut mended = Vec::new();
            for snapshot in &snapshots {
                let mut rest = snapshot.clone();
                rest.volumes.retain(|of| of.owner != id);
                if rest.volumes.is_empty() {
                    changes.extend(Change::delete_snapshot(snapshot));
                } else {
                    changes.push(Change::put_snapshot(&rest));
                }
                mended.push(rest);
            }
            changes.push(Change::delete_volume(id));
            (changes, snapshots, mended)
        };
        let head = self.volume(volume)?.head;
        let before = self.catalog().shares_of_change_logs();
        self.change(changes).await?;
        {
            let mut catalog = self.catalog();
            for snapshot in rest {
                if snapshot.volumes.is_empty() {
                    catalog.remove_snapshot(snapshot.snapshot);
                } else {
                    catalog.put_snapshot(snapshot);
                }
            }
            assert!(catalog.snapshots().all(|snapshot| !has_volume(snapshot, id)));
            catalog.remove_volume(id);
        }
        // Snapshots in its shares that are a clone's now count where the clone's changes do, and no longer where its own did.
        let told = self.attach_change_logs(&before).await;
        let gone = gone_from_shards(&self.catalog(), id, head, &snapshots);
        let commands: Vec<_> = gone
            .into_iter()
            .flat_map(|command| self.every_shard(move |_| command.clone()).collect::<Vec<_>>())
            .collect();
        self.free(commands).await;
        self.tell(EventKind::VolumeDeleted, volume, "deleted");
        told.map_err(|error| half_done(&error, format_args!("volume {volume} is deleted")))
    }

    /// Tells shards to free what the catalog no longer has. What fails here is mended when the pool is opened again.
    pub(super) async fn free(
        &self,
        commands: impl IntoIterator<Item = (stillpoint_processor::ShardIndex, ShardCommand)>,
    ) {
        if let Err(error) = self.run_all(commands).await {
            tracing::warn!(
                pool = self.name(),
                "space will come free when the pool is opened again: {error}"
            );
        }
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// Not found.
    pub fn volume(&self, volume: &str) -> Result<Volume> {
        self.catalog()
            .volume(volume)
            .cloned()
            .ok_or_else(|| no_volume(volume))
    }

    /// The name of the volume of this number; `?` if there is none.
    #[must_use]
    pub fn volume_name(&self, volume: VolumeId) -> String {
        self.catalog().view_name(View {
            volume,
            snapshot: None,
        })
    }

    /// The number of the volume of this name, if there is one.
    #[must_use]
    pub fn has_volume(&self, volume: &str) -> Option<VolumeId> {
        self.catalog().volume(volume).map(|volume| volume.id)
    }
}

/// What every shard has to free when a volume and these snapshots of it are no longer in the catalog. Shares that have
/// nothing else go as a whole.
fn gone_from_shards(
    catalog: &Catalog,
    volume: VolumeId,
    head: VolumeId,
    snapshots: &[OverallSnapshot],
) -> Vec<ShardCommand> {
    let mut gone: BTreeMap<VolumeId, Vec<SnapshotId>> = BTreeMap::from([(head, Vec::new())]);
    for snapshot in snapshots {
        for of in snapshot.volumes.iter().filter(|of| of.owner == volume) {
            gone.entry(of.volume).or_default().push(snapshot.snapshot);
        }
    }
    let mut commands = Vec::new();
    for (shares, snapshots) in gone {
        if catalog.volume_of_head(shares).is_none() && !catalog.has_snapshots_in(shares) {
            commands.push(ShardCommand::DeleteVolume { volume: shares });
            continue;
        }
        if shares == head {
            commands.push(ShardCommand::DeleteHead { volume: shares });
        }
        commands.extend(
            snapshots
                .into_iter()
                .map(|snapshot| ShardCommand::DeleteSnapshot {
                    volume: shares,
                    snapshot,
                }),
        );
    }
    commands
}

/// Refuses to delete a snapshot that has clones.
///
/// # Errors
/// Conflict, naming them.
pub(super) fn refuse_clones<'a>(snapshot: &str, clones: impl Iterator<Item = &'a Volume>) -> Result<()> {
    let names: Vec<&str> = clones.map(|clone| clone.name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "snapshot {snapshot} has clones: {}",
        names.join(", ")
    )))
}

/// There is no such volume.
#[must_use]
pub fn no_volume(volume: &str) -> Error {
    Error::not_found(format!("there is no volume {volume}")).hint("stillpoint volume list shows all")
}

/// A volume ends where a block ends, also if its sectors are smaller: shrinking never leaves half a block behind, which
/// would show its old content when the volume grows again.
fn check_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
        return Err(Error::usage(format!(
            "{size_bytes} bytes is no size for a volume: from {BLOCK_BYTES} to {VOLUME_BYTES_MAX} are possible"
        )));
    }
    if !size_bytes.is_multiple_of(BLOCK_BYTES as u64) {
        let rounded = size_bytes.next_multiple_of(BLOCK_BYTES as u64);
        return Err(Error::usage(format!(
            "{size_bytes} bytes is not a multiple of {BLOCK_BYTES}, the unit of space"
        ))
        .hint(format!("the next is {rounded}")));
    }
    Ok(())
}

fn object_blocks(object_bytes: u64) -> Result<u32> {
    if !object_bytes.is_power_of_two() || !(OBJECT_BYTES_MIN..=OBJECT_BYTES_MAX).contains(&object_bytes) {
        return Err(Error::usage(format!(
            "object size {object_bytes}: powers of two from 1 MiB to 1 GiB are possible"
        )));
    }
    Ok((object_bytes / BLOCK_BYTES as u64) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_ends_where_a_block_ends() {
        assert!(check_size(8192).is_ok());
        for size_bytes in [0, 512, 8192 + 512, VOLUME_BYTES_MAX + 4096] {
            assert!(check_size(size_bytes).is_err(), "{size_bytes}");
        }
    }
}
