//! What the shards say together: the catalog against the shares and the intermediate snapshots.

use super::model::ProblemInfo;
use super::shards::CheckedPool;
use crate::catalog::{Catalog, reconcile};
use crate::label::PoolDevices;
use crate::mailbox::RecoveredShard;
use stillpoint_processor::{ShardCommand, ShardIndex};

/// Reads the catalog, and compares it with the shards as opening the pool does.
pub(super) fn check(devices: &PoolDevices, checked: &mut CheckedPool) {
    let recovered: Vec<RecoveredShard> = (0u16..)
        .zip(checked.judged())
        .filter_map(|(shard, checked)| {
            let found = checked.found.as_ref()?;
            Some(RecoveredShard {
                shard: ShardIndex(shard),
                volumes: found.volumes.clone(),
                snapshots: found.snapshots.clone(),
                catalog: found.catalog.clone(),
                log_records: found.recovery.log_records,
                tail_records: found.recovery.tail_records,
                recovery_ns: 0,
                remarks: Vec::new(),
            })
        })
        .collect();
    let Some(first) = recovered.first().filter(|first| first.shard == ShardIndex(0)) else {
        let message = "shard 0 holds the catalog and cannot be read: volumes and snapshots have no names";
        checked.told.push(message.to_owned());
        return;
    };
    let mut catalog = match Catalog::load(&first.catalog, devices.layout.shard_count) {
        Ok((catalog, _)) => catalog,
        Err(error) => {
            let problem = ProblemInfo::damage("catalog", Some(0), error.message);
            checked.of_pool.push(problem);
            return;
        }
    };
    let as_found = catalog.clone();
    let mending = reconcile(&mut catalog, &recovered);
    let damage = mending.damage.into_iter();
    checked
        .of_pool
        .extend(damage.map(|message| ProblemInfo::damage("snapshot", None, message)));
    checked.told.extend(mending.remarks);
    for (shard, command) in mending.commands {
        let what = match command {
            ShardCommand::DeleteSnapshot { volume, snapshot } => {
                checked
                    .unconfirmed
                    .entry(shard)
                    .or_default()
                    .push((volume, snapshot));
                format!(
                    "intermediate snapshot {} of volume {} was never confirmed",
                    snapshot.0, volume.0
                )
            }
            ShardCommand::DeleteVolume { volume } => {
                format!("volume {} is not in the catalog any more", volume.0)
            }
            ShardCommand::CreateVolume { volume, .. } => format!("volume {} has no share yet", volume.0),
            ShardCommand::ResizeVolume { volume, .. } => {
                format!("the share of volume {} has its old size", volume.0)
            }
            other => format!("{other:?}"),
        };
        checked
            .told
            .push(format!("shard {}: {what}; opening the pool mends that", shard.0));
    }
    checked.catalog = Some(as_found);
}
