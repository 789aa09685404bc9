//! Scrubbing a pool while it is in use.
//!
//! Each shard scrubs what it has. What is known of these scrubs lies in the catalog: written when one begins, is paused,
//! resumed or stopped, every few seconds while one is running, when it has ended, and when the pool is closed. So a scrub goes on
//! when the pool is opened again, also after a crash, and its report stays until the next one begins.

use std::time::{Duration, Instant};

use super::Pool;
use crate::api::model::{ResumeScrub, ScrubInfo, ScrubPool, ScrubSideInfo};
use crate::catalog::{Catalog, Change};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::inspect::FromCatalog;
use stillpoint_ondisk::Damage;
use stillpoint_ondisk::map_page::ENTRIES;
use stillpoint_processor::command::{ScrubDamage, ScrubSide, ScrubState, ScrubStatus, ShardStatus};
use stillpoint_processor::ports::Side;
use stillpoint_processor::shard::check::{Problem, Use, Why};
use stillpoint_processor::{BLOCK_BYTES, ShardCommand, ShardIndex};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Unless something is said: a terabyte takes five hours, and a disk hardly feels it.
const RATE_BYTES_PER_S_DEFAULT: u64 = 64 << 20;
/// Below it a step would take for ever.
const RATE_BYTES_PER_S_MIN: u64 = 4096;
/// How often a scrub is looked at while it is running, so that its end is known and durable soon...
const LOOK: Duration = Duration::from_secs(1);
/// ...and how often it is made durable how far it has come: as often as a disk may well be woken.
const KEEP: Duration = Duration::from_secs(5);

/// What the control plane has to do for the scrubs of a pool.
#[derive(Debug, Default)]
pub(super) struct Scrubs {
    /// Held from asking the shards until what they said is durable, so that nothing older follows something newer.
    keeping: tokio::sync::Mutex<()>,
    /// A scrub was begun or resumed.
    runs: tokio::sync::Notify,
}

/// What a pool's scrub is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Running,
    Paused,
    Stopped,
    Done,
}

impl Stands {
    /// `None` if there was none.
    fn of<'a>(scrubs: impl Iterator<Item = &'a ScrubStatus> + Clone) -> Option<Self> {
        let is = |state: ScrubState| scrubs.clone().any(|scrub| scrub.state == state);
        if is(ScrubState::Running) {
            Some(Self::Running)
        } else if is(ScrubState::Paused) {
            Some(Self::Paused)
        } else if is(ScrubState::Stopped) {
            Some(Self::Stopped)
        } else {
            is(ScrubState::Done).then_some(Self::Done)
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Done => "done",
        }
    }
}

impl Pool {
    /// Begins a scrub on all shards.
    ///
    /// # Errors
    /// Usage; conflict if one is running or paused.
    pub async fn scrub(&self, request: &ScrubPool) -> Result<()> {
        let rate = request.rate_bytes_per_s.unwrap_or(RATE_BYTES_PER_S_DEFAULT);
        let rate_bytes_per_s = self.shard_rate(rate)?;
        let _gate = self.gate.write().await;
        let name = self.name();
        match self.scrub_stands().await? {
            Some(Stands::Running) => Err(Error::conflict(format!("pool {name} is being scrubbed"))
                .hint(format!("stillpoint pool scrub {name} --stop stops that"))),
            Some(Stands::Paused) => Err(Error::conflict(format!("a scrub of pool {name} is paused")).hint(
                format!("stillpoint pool scrub {name} --resume lets it go on, --stop ends it"),
            )),
            Some(Stands::Stopped | Stands::Done) | None => {
                // The end of the one before may not have been told yet.
                self.scrub_changed().await;
                self.run_all(self.every_shard(|_| ShardCommand::Scrub { rate_bytes_per_s }))
                    .await?;
                self.tell(EventKind::ScrubStarted, "", "a scrub begins");
                self.scrubs.runs.notify_one();
                self.scrub_changed().await;
                Ok(())
            }
        }
    }

    /// Lets the scrub that is running rest.
    ///
    /// # Errors
    /// Conflict if none is running.
    pub async fn pause_scrub(&self) -> Result<()> {
        let _gate = self.gate.write().await;
        if self.scrub_stands().await? != Some(Stands::Running) {
            return Err(Error::conflict(format!(
                "no scrub of pool {} is running",
                self.name()
            )));
        }
        self.run_all(self.every_shard(|_| ShardCommand::PauseScrub))
            .await?;
        self.tell(EventKind::ScrubPaused, "", "the scrub is paused");
        self.scrub_changed().await;
        Ok(())
    }

    /// Lets the scrub that is paused go on where it was.
    ///
    /// # Errors
    /// Usage; conflict if none is paused.
    pub async fn resume_scrub(&self, request: &ResumeScrub) -> Result<()> {
        let rate = request.rate_bytes_per_s.map(|rate| self.shard_rate(rate));
        let rate_bytes_per_s = rate.transpose()?;
        let _gate = self.gate.write().await;
        if self.scrub_stands().await? != Some(Stands::Paused) {
            return Err(Error::conflict(format!(
                "no scrub of pool {} is paused",
                self.name()
            )));
        }
        self.run_all(self.every_shard(|_| ShardCommand::ResumeScrub { rate_bytes_per_s }))
            .await?;
        self.tell(EventKind::ScrubResumed, "", "the scrub goes on");
        self.scrubs.runs.notify_one();
        self.scrub_changed().await;
        Ok(())
    }

    /// Stops the scrub, if one is running or paused.
    ///
    /// # Errors
    /// If a processor has ended.
    pub async fn stop_scrub(&self) -> Result<()> {
        self.run_all(self.every_shard(|_| ShardCommand::StopScrub))
            .await?;
        self.scrub_changed().await;
        Ok(())
    }

    /// The part of a shard.
    fn shard_rate(&self, rate: u64) -> Result<u64> {
        if rate < RATE_BYTES_PER_S_MIN {
            return Err(Error::usage(format!(
                "{rate} bytes a second: at least {RATE_BYTES_PER_S_MIN} are needed"
            )));
        }
        Ok((rate / u64::from(self.shard_count())).max(1))
    }

    /// Keeps a change that somebody asked for. A pool that stopped writing can be scrubbed all the same.
    async fn scrub_changed(&self) {
        if let Err(error) = self.keep_scrubs().await {
            self.warn_of_scrub(&error);
        }
    }

    /// Keeps how far a scrub has come, before the pool is closed.
    pub async fn keep_scrubs_at_the_end(&self) {
        self.scrub_changed().await;
    }

    fn warn_of_scrub(&self, error: &Error) {
        tracing::warn!(
            pool = self.name(),
            "how the scrub stands is not kept, it will not go on after a restart: {error}"
        );
    }

    async fn scrub_stands(&self) -> Result<Option<Stands>> {
        let figures = self.figures().await?;
        Ok(Stands::of(figures.iter().map(|shard| &shard.scrub)))
    }

    /// Tells the shards of a pool that is being opened what the catalog says of their scrubs: those that were running go on.
    pub(super) async fn restore_scrubs(&self) -> Result<()> {
        let scrubs = self.catalog().scrubs().to_vec();
        let stands = Stands::of(scrubs.iter());
        let commands = (0..).map(ShardIndex).zip(scrubs).map(|(shard, scrub)| {
            let command = ShardCommand::RestoreScrub(Box::new(scrub));
            (shard, command)
        });
        self.run_all(commands).await?;
        if stands == Some(Stands::Running) {
            self.tell(EventKind::ScrubResumed, "", "the scrub goes on where it was");
            self.scrubs.runs.notify_one();
        }
        Ok(())
    }

    /// Makes durable how the scrubs stand; gives whether one is running. Nothing is written if nothing has changed.
    ///
    /// # Errors
    /// If a shard cannot tell, or the catalog cannot be written.
    async fn keep_scrubs(&self) -> Result<bool> {
        let _keeping = self.scrubs.keeping.lock().await;
        let figures = self.figures().await?;
        let now: Vec<ScrubStatus> = figures.iter().map(|shard| shard.scrub.clone()).collect();
        let Some(stands) = Stands::of(now.iter()) else {
            return Ok(false);
        };
        let before = self.catalog().scrubs().to_vec();
        self.change(Change::put_scrubs(&before, &now)).await?;
        let was = Stands::of(before.iter());
        self.catalog().put_scrubs(now);
        if matches!(was, Some(Stands::Running | Stands::Paused)) {
            self.tell_scrub_end(stands, &figures);
        }
        Ok(stands == Stands::Running)
    }

    fn tell_scrub_end(&self, stands: Stands, figures: &[ShardStatus]) {
        let info = describe(&self.catalog(), figures);
        let Some(info) = info.filter(|_| matches!(stands, Stands::Done | Stands::Stopped)) else {
            return;
        };
        let repaired: u64 = info.sides.iter().map(|side| side.repaired_blocks).sum();
        let text = format!(
            "the scrub is {}: {} bytes checked, {} blocks damaged, {repaired} repaired",
            info.state, info.checked_bytes, info.damaged_blocks
        );
        self.tell(EventKind::ScrubEnded, "", text);
    }

    /// Keeps durable how far a scrub has come, while one is running. Otherwise it sleeps until there is one.
    pub(super) async fn watch_scrubs(&self) {
        loop {
            self.scrubs.runs.notified().await;
            let (mut kept, mut warned) = (None::<Instant>, false);
            loop {
                tokio::time::sleep(LOOK).await;
                let is_recent = kept.is_some_and(|kept| kept.elapsed() < KEEP);
                if is_recent && matches!(self.scrub_stands().await, Ok(Some(Stands::Running))) {
                    continue;
                }
                kept = Some(Instant::now());
                match self.keep_scrubs().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) if !warned => {
                        self.warn_of_scrub(&error);
                        warned = true;
                    }
                    Err(_) => {}
                }
            }
        }
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
    let stands = Stands::of(scrubs())?;
    let sum = |figure: fn(&ScrubStatus) -> u64| scrubs().map(figure).sum::<u64>();
    let latest = |figure: fn(&ScrubStatus) -> u64| scrubs().map(figure).max().unwrap_or(0);
    let shards = (0u16..).zip(figures);
    let damage = shards.flat_map(|(shard, status)| {
        let found = status.scrub.damage.iter();
        found.map(move |damage| describe_damage(catalog, ShardIndex(shard), damage))
    });
    let checked_bytes = sum(|scrub| scrub.checked_blocks) * BLOCK;
    let running_ns = latest(|scrub| scrub.running_ns);
    let per_second = u128::from(checked_bytes) * 1_000_000_000 / u128::from(running_ns.max(1));
    let has_ended = matches!(stands, Stands::Done | Stands::Stopped);
    let sides = Side::BOTH.map(|side| {
        let sum = |figure: fn(&ScrubSide) -> u64| {
            scrubs()
                .map(|scrub| figure(&scrub.sides[side.index()]))
                .sum::<u64>()
        };
        ScrubSideInfo {
            side: side.to_string(),
            read_bytes: sum(|side| side.read_blocks) * BLOCK,
            repaired_blocks: sum(|side| side.repaired_blocks),
            unrepaired_blocks: sum(|side| side.unrepaired_blocks),
        }
    });
    let is_mirrored = scrubs().any(|scrub| scrub.sides != [ScrubSide::default(); 2]);
    Some(ScrubInfo {
        state: stands.word().to_owned(),
        checked_bytes,
        used_bytes: figures.iter().map(|shard| shard.used_blocks).sum::<u64>() * BLOCK,
        damaged_blocks: sum(|scrub| scrub.damaged_blocks),
        damage: damage.collect(),
        started_ns: latest(|scrub| scrub.started_ns),
        ended_ns: if has_ended {
            latest(|scrub| scrub.ended_ns)
        } else {
            0
        },
        running_ns,
        rate_bytes_per_s: sum(|scrub| scrub.rate_bytes_per_s),
        checked_bytes_per_s: u64::try_from(per_second).unwrap_or(u64::MAX),
        sides: if is_mirrored { sides.to_vec() } else { Vec::new() },
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
