//! The appliance: processors, pools, exports.

mod given;
mod labels;
mod opening;
mod pools;
mod returned;
mod start;
#[cfg(test)]
mod tests;

pub use labels::Degraded;
pub(crate) use pools::device_error;
#[cfg(test)]
pub(crate) use returned::PERIOD;
#[cfg(test)]
pub(crate) use tests::without_processors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::api::model::{ResizeVolume, RollbackVolume};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::mailbox::{Export, ExportTable, Mailbox, MailboxError, PoolIndex, PoolOptions, ToProcessor};
use crate::pool::{GROUP_PREFIX, Pool, no_export, no_group, no_volume};
use crate::state::{KnownPool, State};
use stillpoint_coordinator::OverallSnapshot;
use stillpoint_export::{Seats, SnapshotNames, SnapshotTaker};
use stillpoint_hw::device::nvme::passthrough::DurableWrites;
use stillpoint_processor::VolumeId;
use tokio::sync::oneshot;

/// How the appliance does things.
#[derive(Clone, Debug)]
pub struct Options {
    /// How pools are opened.
    pub pool: PoolOptions,
    /// Set if NVMe namespaces are served by commands of our own where that is possible; then, whether single writes are made durable.
    pub nvme_commands: Option<DurableWrites>,
    /// Memory for buffers of each processor.
    pub buffer_bytes: u64,
    /// Where NBD clients connect, as URIs without an export name.
    pub listeners: Vec<ListenerUri>,
    /// Connections of the whole appliance.
    pub connections: Arc<Seats>,
    /// Connections of one export at most.
    pub export_connection_limit: u32,
}

/// Where NBD clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerUri {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(std::net::SocketAddr),
}

impl ListenerUri {
    /// The NBD URI of an export.
    #[must_use]
    pub fn of(&self, export: &str) -> String {
        match self {
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

/// A pool that is remembered and could not be opened, or is being opened again.
#[derive(Clone, Debug)]
pub struct FailedPool {
    /// What is remembered.
    pub known: KnownPool,
    /// Why it could not be opened, or is not open now.
    pub error: Error,
    /// It is being opened again.
    pub opening: bool,
    /// It was given and never opened: it is not remembered, and opened only with all of its devices.
    pub given: bool,
}

/// A pool that was given, of which nothing is known but where its devices should be.
#[derive(Clone, Debug)]
pub(crate) struct GivenPool {
    devices: Vec<PathBuf>,
    error: Error,
}

#[derive(Debug, Default)]
struct Pools {
    /// By place.
    open: Vec<Option<Arc<Pool>>>,
    failed: Vec<FailedPool>,
    /// The devices of pools that were given, of which none has told yet of which pool it is.
    given: Vec<GivenPool>,
    /// Those whose sessions and shards are ending: their mirrors may still have something to say.
    closing: Vec<Arc<Pool>>,
    /// Those that are being opened, by place.
    opening: BTreeMap<PoolIndex, opening::Opening>,
    /// How often it was tried to open one.
    tries: u64,
}

/// The appliance.
#[derive(Debug)]
pub struct Appliance {
    options: Options,
    state: State,
    started: Instant,
    mailboxes: Arc<[Mailbox]>,
    events: Arc<Events>,
    pools: Mutex<Pools>,
    /// Held while a pool is made, opened or closed.
    structure: tokio::sync::Mutex<()>,
    /// Held while the table of exports is on its way: tables arrive in the order in which they were made.
    publishing: tokio::sync::Mutex<()>,
    /// The table that was sent last.
    exports: Mutex<Arc<ExportTable>>,
    /// While pools wait for devices.
    asking: returned::Asking,
}

impl Appliance {
    /// An appliance on these processors, without pools; `state` remembers those that were open.
    #[must_use]
    pub fn new(options: Options, state: State, mailboxes: Arc<[Mailbox]>) -> Self {
        Self {
            options,
            state,
            started: Instant::now(),
            mailboxes,
            events: Arc::default(),
            pools: Mutex::default(),
            structure: tokio::sync::Mutex::new(()),
            publishing: tokio::sync::Mutex::new(()),
            exports: Mutex::default(),
            asking: returned::Asking::default(),
        }
    }

    /// How long it has been running, in nanoseconds.
    #[must_use]
    pub fn uptime_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Where NBD clients connect.
    #[must_use]
    pub fn listeners(&self) -> &[ListenerUri] {
        &self.options.listeners
    }

    /// See [`Options::nvme_commands`].
    #[must_use]
    pub fn nvme_commands(&self) -> Option<DurableWrites> {
        self.options.nvme_commands
    }

    /// Memory for buffers of each processor.
    #[must_use]
    pub fn buffer_bytes(&self) -> u64 {
        self.options.buffer_bytes
    }

    /// The processors.
    #[must_use]
    pub fn mailboxes(&self) -> &[Mailbox] {
        &self.mailboxes
    }

    /// What happened.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The connections of the whole appliance.
    #[must_use]
    pub fn connections(&self) -> &Seats {
        &self.options.connections
    }

    /// The exports, as the processors have them or are about to.
    #[must_use]
    pub fn exports(&self) -> Arc<ExportTable> {
        Arc::clone(&self.exports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pools that are open.
    #[must_use]
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.lock().open.iter().flatten().cloned().collect()
    }

    /// The pool in a place, also while it is being closed.
    pub(crate) fn pool_in_place(&self, index: PoolIndex) -> Option<Arc<Pool>> {
        let pools = self.lock();
        let mut known = pools.open.iter().flatten().chain(&pools.closing);
        known.find(|pool| pool.index == index).cloned()
    }

    /// The name of the pool in a place, also while it is being opened or closed.
    pub(crate) fn name_in_place(&self, index: PoolIndex) -> Option<String> {
        let pool = self.pool_in_place(index).map(|pool| pool.name().to_owned());
        let opening = || {
            self.lock()
                .opening
                .get(&index)
                .map(|opening| opening.name.clone())
        };
        pool.or_else(opening)
    }

    /// The pools that could not be opened, or are on the way.
    #[must_use]
    pub fn failed_pools(&self) -> Vec<FailedPool> {
        let pools = self.lock();
        let is_open = |id: &str| (pools.open.iter().flatten()).any(|pool| pool.devices.id_text() == id);
        let failed = pools.failed.iter().filter(|failed| !is_open(&failed.known.id));
        failed.cloned().collect()
    }

    /// The open pool of this name.
    ///
    /// # Errors
    /// Not found; or why it could not be opened.
    pub fn pool(&self, name: &str) -> Result<Arc<Pool>> {
        if let Some(pool) = self.pools().into_iter().find(|pool| pool.name() == name) {
            return Ok(pool);
        }
        match self
            .failed_pools()
            .into_iter()
            .find(|failed| failed.known.name == name)
        {
            Some(failed) => Err(failed.error.while_doing(format_args!("pool {name} is not open"))),
            None => Err(Error::not_found(format!("there is no pool {name}"))
                .hint("stillpoint pool list shows all; stillpoint pool create NAME PATH... makes one")),
        }
    }

    /// The pool that is meant when a new thing is made: the one that is named, or the only one.
    ///
    /// # Errors
    /// Not found, or usage if there are several.
    pub fn pool_or_only(&self, name: Option<&str>) -> Result<Arc<Pool>> {
        if let Some(name) = name {
            return self.pool(name);
        }
        let mut pools = self.pools();
        match pools.len() {
            1 => Ok(pools.remove(0)),
            0 => Err(Error::not_found("no pool is open").hint(
                "stillpoint pool create NAME PATH... makes one, stillpoint pool open PATH... opens one",
            )),
            _ => {
                let names: Vec<&str> = pools.iter().map(|pool| pool.name()).collect();
                Err(
                    Error::usage(format!("which pool? There are {}", names.join(", ")))
                        .hint("give --pool NAME"),
                )
            }
        }
    }

    /// The pool that has this volume.
    ///
    /// # Errors
    /// Not found, or conflict if several pools have one of this name.
    pub fn pool_of_volume(&self, volume: &str, pool: Option<&str>) -> Result<Arc<Pool>> {
        if let Some(name) = pool {
            let pool = self.pool(name)?;
            pool.volume(volume)?;
            return Ok(pool);
        }
        let mut found: Vec<Arc<Pool>> = self
            .pools()
            .into_iter()
            .filter(|pool| pool.has_volume(volume).is_some())
            .collect();
        match found.len() {
            0 => Err(no_volume(volume)),
            1 => Ok(found.remove(0)),
            _ => {
                let names: Vec<&str> = found.iter().map(|pool| pool.name()).collect();
                Err(
                    Error::conflict(format!("pools {} each have a volume {volume}", names.join(", ")))
                        .hint("give --pool NAME"),
                )
            }
        }
    }

    /// The pool that has this volume, or this group after `group:`.
    ///
    /// # Errors
    /// Not found, or conflict if several pools have one of this name.
    pub fn pool_of_members(&self, name: &str, pool: Option<&str>) -> Result<Arc<Pool>> {
        let Some(group) = name.strip_prefix(GROUP_PREFIX) else {
            return self.pool_of_volume(name, pool);
        };
        let mut found: Vec<Arc<Pool>> = match pool {
            Some(name) => vec![self.pool(name)?],
            None => self.pools(),
        };
        found.retain(|pool| pool.has_members(name));
        match found.len() {
            0 => Err(no_group(group)),
            1 => Ok(found.remove(0)),
            _ => Err(
                Error::conflict(format!("{} pools each have a group {group}", found.len()))
                    .hint("give --pool NAME"),
            ),
        }
    }

    /// The pool that has this export.
    ///
    /// # Errors
    /// Not found.
    pub fn pool_of_export(&self, export: &str) -> Result<Arc<Pool>> {
        let has_it = |pool: &Arc<Pool>| pool.exports().iter().any(|found| found.name == export);
        self.pools()
            .into_iter()
            .find(has_it)
            .ok_or_else(|| no_export(export))
    }

    /// Sends the table of exports to all processors; when this returns, no session shows anything else.
    ///
    /// # Errors
    /// If a processor has ended.
    pub async fn publish(&self) -> Result<()> {
        let _publishing = self.publishing.lock().await;
        let table = self.export_table();
        let table = table.with_limit(self.options.export_connection_limit, &self.exports());
        let table = Arc::new(table);
        *self.exports.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&table);
        let mut answers = Vec::new();
        for mailbox in &*self.mailboxes {
            let (reply, answer) = oneshot::channel();
            mailbox.send(ToProcessor::Exports {
                table: table.clone(),
                reply,
            })?;
            answers.push(answer);
        }
        for answer in answers {
            answer.await.map_err(|_| MailboxError::Ended)?;
        }
        Ok(())
    }

    /// All exports. Where two pools bring the same name, that of the later one is `pool/name`.
    fn export_table(&self) -> ExportTable {
        let mut all: Vec<Export> = Vec::new();
        let mut allowed = BTreeSet::new();
        let pools = self.pools();
        for pool in &pools {
            for mut export in pool.exports() {
                let takes_snapshots = pool.allows_snapshots(&export.name);
                if all.iter().any(|other| other.name == export.name) {
                    export.name = format!("{}/{}", pool.name(), export.name);
                    tracing::warn!(export = export.name, "the name is taken by another pool");
                }
                if takes_snapshots {
                    allowed.insert(export.name.clone());
                }
                all.push(export);
            }
        }
        let pool_of = |export: &Export| pools.iter().find(|pool| pool.index == export.pool);
        let with_names = ExportTable::new(all).with_snapshots(|export| {
            let pool = pool_of(export)?;
            let mut catalog = pool.catalog();
            let volume = catalog.view_of_shares(export.host_view.view)?.volume;
            let names = catalog.snapshot_names(volume);
            Some(Arc::new(names) as Arc<dyn SnapshotNames>)
        });
        with_names.with_snapshot_takers(|export| {
            let pool = pool_of(export).filter(|_| allowed.contains(&export.name))?;
            let volume = pool.catalog().view_of_shares(export.host_view.view)?.volume;
            let taker = pool.snapshot_taker(volume);
            Some(Arc::new(taker) as Arc<dyn SnapshotTaker>)
        })
    }

    /// Makes a volume what it was at a snapshot; gives the snapshot of what it was before. Its clients are disconnected and
    /// may come back.
    ///
    /// # Errors
    /// Not found, conflict if clients are connected and it is not forced, no space.
    pub async fn rollback_volume(
        &self,
        pool: &Pool,
        volume: &str,
        request: &RollbackVolume,
    ) -> Result<OverallSnapshot> {
        let _quiet = pool.quiet().await;
        let id = pool.volume(volume)?.id;
        pool.snapshot(volume, &request.snapshot)?;
        if let Some(name) = &request.safety_name {
            crate::name::check("snapshot", name)?;
        }
        if !request.force {
            self.refuse_connected(pool, volume, id)?;
        }
        pool.catalog().withdrawn = Some(id);
        let withdrawn = self.publish().await;
        let result = match withdrawn {
            Ok(()) => {
                pool.roll_back(volume, &request.snapshot, request.safety_name.as_deref())
                    .await
            }
            Err(error) => Err(error),
        };
        pool.catalog().withdrawn = None;
        let published = self.publish().await;
        let safety = result?;
        published.map(|()| safety)
    }

    fn refuse_connected(&self, pool: &Pool, volume: &str, id: VolumeId) -> Result<()> {
        let table = self.exports();
        let catalog = pool.catalog();
        let of_volume = catalog
            .exports()
            .filter(|export| export.view.volume == id && export.view.snapshot.is_none());
        let connected: Vec<String> = of_volume
            .filter_map(|export| {
                let taken = table.seats(&export.name)?.taken();
                (taken > 0).then(|| format!("{} ({taken})", export.name))
            })
            .collect();
        if connected.is_empty() {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "clients are connected to volume {volume}, by the exports {}",
            connected.join(", ")
        ))
        .hint("disconnect them, or give --force, which does"))
    }

    /// Gives a volume a new size. A larger one is seen by clients that connect from then on; a smaller one ends the
    /// sessions first.
    ///
    /// # Errors
    /// Not found, usage, conflict.
    pub async fn resize_volume(&self, pool: &Pool, volume: &str, request: &ResizeVolume) -> Result<()> {
        let _quiet = pool.quiet().await;
        let old = pool.volume(volume)?;
        let new = pool.plan_resize(volume, request)?;
        if new.size_bytes < old.size_bytes {
            pool.catalog().put_volume(new.clone());
            self.publish().await?;
        }
        if let Err(error) = pool.resize_volume(&new).await {
            pool.catalog().put_volume(old);
            self.publish().await?;
            return Err(error);
        }
        self.publish().await
    }
}
