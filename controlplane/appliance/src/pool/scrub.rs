//! Scrubbing a pool while it is in use.

use super::Pool;
use crate::api::model::{ScrubInfo, ScrubPool};
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::inspect::FromCatalog;
use stillpoint_ondisk::Damage;
use stillpoint_ondisk::map_page::ENTRIES;
use stillpoint_processor::command::{ScrubDamage, ScrubState, ShardStatus};
use stillpoint_processor::shard::check::{Problem, Use, Why};
use stillpoint_processor::{BLOCK_BYTES, ShardCommand, ShardIndex};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Unless something is said: a terabyte takes five hours, and a disk hardly feels it.
const RATE_BYTES_PER_S_DEFAULT: u64 = 64 << 20;
/// Below it a step would take for ever.
const RATE_BYTES_PER_S_MIN: u64 = 4096;

impl Pool {
    /// Begins a scrub on all shards.
    ///
    /// # Errors
    /// Usage; conflict if one is running.
    pub async fn scrub(&self, request: &ScrubPool) -> Result<()> {
        let rate = request.rate_bytes_per_s.unwrap_or(RATE_BYTES_PER_S_DEFAULT);
        if rate < RATE_BYTES_PER_S_MIN {
            return Err(Error::usage(format!(
                "{rate} bytes a second: at least {RATE_BYTES_PER_S_MIN} are needed"
            )));
        }
        let _gate = self.gate.write().await;
        let figures = self.figures().await?;
        if figures
            .iter()
            .any(|shard| shard.scrub.state == ScrubState::Running)
        {
            return Err(Error::conflict(format!("pool {} is being scrubbed", self.name()))
                .hint(format!("stillpoint pool scrub {} --stop stops that", self.name())));
        }
        let rate_bytes_per_s = (rate / u64::from(self.shard_count())).max(1);
        self.run_all(self.every_shard(|_| ShardCommand::Scrub { rate_bytes_per_s }))
            .await
    }

    /// Stops the scrub, if one is running.
    ///
    /// # Errors
    /// If a processor has ended.
    pub async fn stop_scrub(&self) -> Result<()> {
        self.run_all(self.every_shard(|_| ShardCommand::StopScrub)).await
    }

    /// What a scrub found, with names.
    #[must_use]
    pub fn describe_scrub_damage(&self, shard: ShardIndex, damage: &ScrubDamage) -> String {
        describe_damage(&self.catalog(), shard, damage)
    }
}

/// The scrub of a pool, from the figures of its shards; `None` if there was none.
pub(super) fn describe(catalog: &Catalog, figures: &[ShardStatus]) -> Option<ScrubInfo> {
    let scrubs = || figures.iter().map(|shard| &shard.scrub);
    let is = |state: ScrubState| scrubs().any(|scrub| scrub.state == state);
    let state = if is(ScrubState::Running) {
        "running"
    } else if is(ScrubState::Stopped) {
        "stopped"
    } else if is(ScrubState::Done) {
        "done"
    } else {
        return None;
    };
    let ended_ns = scrubs().map(|scrub| scrub.ended_ns).max().unwrap_or(0);
    let shards = (0u16..).zip(figures);
    let damage = shards.flat_map(|(shard, status)| {
        let found = status.scrub.damage.iter();
        found.map(move |damage| describe_damage(catalog, ShardIndex(shard), damage))
    });
    Some(ScrubInfo {
        state: state.to_owned(),
        checked_bytes: scrubs().map(|scrub| scrub.checked_blocks).sum::<u64>() * BLOCK,
        used_bytes: figures.iter().map(|shard| shard.used_blocks).sum::<u64>() * BLOCK,
        damaged_blocks: scrubs().map(|scrub| scrub.damaged_blocks).sum(),
        damage: damage.collect(),
        started_ns: scrubs().map(|scrub| scrub.started_ns).max().unwrap_or(0),
        ended_ns: if state == "running" { 0 } else { ended_ns },
    })
}

fn describe_damage(catalog: &Catalog, shard: ShardIndex, damage: &ScrubDamage) -> String {
    let why = match damage.device_error {
        Some(error) => Why::Unreadable(error),
        None => Why::Damaged(Damage::Checksum),
    };
    let views = vec![damage.view];
    let address = damage.address;
    let problem = if let Some(level) = damage.map_level {
        let used = Use::MapPage {
            views,
            level,
            first: damage.first,
            blocks: (ENTRIES as u64).pow(u32::from(level) + 1),
        };
        Problem::MapPage { used, address, why }
    } else {
        let used = Use::Block {
            views,
            block: damage.first,
        };
        Problem::Data { used, address, why }
    };
    problem.describe(shard, &FromCatalog(catalog))
}
