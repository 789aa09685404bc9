//! What processors tell without being asked: of mirrors and stalls to the pool, of shards as events.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::appliance::Appliance;
use crate::events::{EventKind, When};
use crate::mailbox::{LoopNotice, ShardNotice};
use crate::pool::Pool;
use stillpoint_processor::ShardIndex;
use stillpoint_processor::command::Notice;

/// Tells everything that comes, until nobody is left to say anything.
pub async fn tell_all(appliance: Arc<Appliance>, mut notices: mpsc::Receiver<LoopNotice>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            LoopNotice::Shard(notice) => of_shard(&appliance, &notice),
            LoopNotice::Mirror {
                pool,
                processor,
                pass,
                notice,
            } => {
                let appliance = appliance.clone();
                tokio::spawn(async move { appliance.mirror_told(pool, processor, pass, notice).await });
            }
            LoopNotice::Stall {
                pool,
                processor,
                device,
                stall,
            } => {
                // Of a pool that is being opened it is told again.
                if let Some(pool) = appliance.pool_in_place(pool) {
                    pool.stall_told(processor, device, stall);
                }
            }
        }
    }
}

/// The pool knows before anybody reads of it.
fn of_shard(appliance: &Appliance, told: &ShardNotice) {
    let ShardNotice { pool, shard, notice } = told;
    let is_open = appliance.pools().iter().any(|open| open.index == *pool);
    if !is_open && notice.is_background() {
        return; // it goes without saying while a pool is opened or closed
    }
    let name = appliance.name_in_place(*pool).unwrap_or_default();
    let pool = appliance.pool_in_place(*pool);
    match (notice, &pool) {
        (Notice::Stopped { operation, error }, Some(pool)) => pool.shard_stopped(*shard, operation, *error),
        (Notice::ChangeLogFull { .. } | Notice::ChangeLogHigh { .. }, Some(pool)) => {
            pool.change_log_notice(*shard, notice);
        }
        _ => {}
    }
    if let Some((kind, when, text)) = in_words(pool.as_deref(), *shard, notice) {
        let subject = format!("shard {}", shard.0);
        appliance.events().tell_of(kind, when, &name, &subject, text);
    }
}

/// The event of a notice; `None` if it is none, or the pool tells it.
fn in_words(pool: Option<&Pool>, shard: ShardIndex, notice: &Notice) -> Option<(EventKind, When, String)> {
    let (kind, text) = match notice {
        Notice::Corrupt { address } => (EventKind::BlockCorrupt, format!("checksum mismatch at {address}")),
        Notice::Repaired {
            address,
            blocks,
            side,
        } => (
            EventKind::BlockRepaired,
            format!(
                "{address}, {side}: {blocks} damaged blocks written again from the {}",
                side.other()
            ),
        ),
        Notice::NotRepaired {
            address,
            blocks,
            side,
            error,
        } => {
            let why = error.map_or_else(
                || "no memory at present, they are repaired when they are read again".to_owned(),
                |error| error.to_string(),
            );
            let text = format!(
                "{address}, {side}: {blocks} damaged blocks answered from the {}, not written again: {why}",
                side.other()
            );
            (EventKind::BlockNotRepaired, text)
        }
        Notice::Scrub(damage) => {
            let what = pool.map_or_else(
                || damage.address.to_string(),
                |pool| pool.describe_scrub_damage(shard, damage),
            );
            (EventKind::ScrubDamage, what)
        }
        Notice::Stopped { operation, error } => (
            EventKind::ShardStopped,
            format!("stopped writing: {operation}: {error}"),
        ),
        Notice::Checkpointed {
            began_wall_ns,
            ended_wall_ns,
        } => {
            let when = When {
                began_ns: Some(*began_wall_ns),
                time_ns: *ended_wall_ns,
            };
            return Some((
                EventKind::Checkpointed,
                when,
                "a checkpoint is durable".to_owned(),
            ));
        }
        Notice::SnapshotFreed { volume, snapshot } => {
            let (volume, snapshot) = (volume.0, snapshot.0);
            (
                EventKind::SnapshotFreed,
                format!("freed what only snapshot number {snapshot} of volume number {volume} had"),
            )
        }
        Notice::VolumeFreed { volume } => {
            let pool = pool.map(Pool::name);
            tracing::debug!(pool, shard = shard.0, volume = volume.0, "volume freed");
            return None;
        }
        Notice::ChangeLogFull { .. } | Notice::ChangeLogHigh { .. } => return None,
    };
    Some((kind, When::now(), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::ports::DeviceError;

    #[test]
    fn what_a_shard_tells_while_its_pool_is_opened_has_the_name_of_the_pool() {
        let directory = tempfile::tempdir().expect("a directory");
        let appliance = crate::appliance::without_processors(directory.path());
        let stopped = Notice::Stopped {
            operation: "writing the log",
            error: DeviceError::Gone,
        };
        let checkpointed = Notice::Checkpointed {
            began_wall_ns: 1,
            ended_wall_ns: 2,
        };
        let place = crate::mailbox::PoolIndex(0);
        appliance.begin_try(place, "p");
        for notice in [checkpointed, stopped] {
            let shard = ShardIndex(1);
            of_shard(
                &appliance,
                &ShardNotice {
                    pool: place,
                    shard,
                    notice,
                },
            );
        }
        let events = appliance.events().list(None, 10, false).events;
        let told: Vec<_> = (events.iter())
            .map(|event| (event.kind.as_str(), event.pool.as_str(), event.subject.as_str()))
            .collect();
        assert_eq!(told, [("shard_stopped", "p", "shard 1")]);
    }
}
