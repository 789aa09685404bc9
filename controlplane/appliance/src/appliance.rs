//! The appliance: processors, pools, exports.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::api::model::{CreatePool, PoolInfo, ResizeVolume};
use crate::error::{Error, ErrorKind, Result};
use crate::label::{self, PoolDevices};
use crate::mailbox::{
    Export, ExportTable, Mailbox, PoolIndex, PoolOptions, PoolPart, ProcessorIndex, RecoveredShard,
    ToProcessor,
};
use crate::make;
use crate::name;
use crate::pool::{OpenedPool, Pool, no_export, no_volume};
use crate::state::{KnownPool, State};
use stillpoint_hw::device::{DeviceFileError, PoolFiles, Problem};
use stillpoint_processor::ShardIndex;
use tokio::sync::oneshot;

/// How the appliance does things.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the pools that are open are remembered.
    pub state_directory: PathBuf,
    /// How pools are opened.
    pub pool: PoolOptions,
    /// Memory for buffers of each processor.
    pub buffer_bytes: u64,
    /// Where NBD clients connect, as URIs without an export name.
    pub listeners: Vec<ListenerUri>,
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

/// A pool that is remembered and could not be opened.
#[derive(Clone, Debug)]
pub struct FailedPool {
    /// What is remembered.
    pub known: KnownPool,
    /// Why it could not be opened.
    pub error: Error,
}

#[derive(Debug, Default)]
struct Pools {
    /// By place.
    open: Vec<Option<Arc<Pool>>>,
    failed: Vec<FailedPool>,
}

/// The appliance.
#[derive(Debug)]
pub struct Appliance {
    options: Options,
    state: State,
    started: Instant,
    mailboxes: Arc<[Mailbox]>,
    pools: Mutex<Pools>,
    /// Held while a pool is made, opened or closed.
    structure: tokio::sync::Mutex<()>,
    /// Held while the table of exports is on its way: tables arrive in the order in which they were made.
    publishing: tokio::sync::Mutex<()>,
}

impl Appliance {
    /// An appliance on these processors, without pools.
    ///
    /// # Errors
    /// If the state directory cannot be used.
    pub fn new(options: Options, mailboxes: Arc<[Mailbox]>) -> Result<Self> {
        let state = State::open(&options.state_directory)?;
        Ok(Self {
            options,
            state,
            started: Instant::now(),
            mailboxes,
            pools: Mutex::default(),
            structure: tokio::sync::Mutex::new(()),
            publishing: tokio::sync::Mutex::new(()),
        })
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

    fn lock(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pools that are open.
    #[must_use]
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.lock().open.iter().flatten().cloned().collect()
    }

    /// The pools that could not be opened.
    #[must_use]
    pub fn failed_pools(&self) -> Vec<FailedPool> {
        self.lock().failed.clone()
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

    /// Opens the pools that were open when the appliance stopped. One that cannot be opened is logged, listed as
    /// failed and tried again at the next start; it does not stop the others.
    pub async fn open_known_pools(&self) {
        for known in self.state.pools() {
            let opened = self.open_pool(&known.devices).await;
            if let Err(error) = opened {
                tracing::error!(pool = known.name, "cannot be opened: {error}");
                self.lock().failed.push(FailedPool { known, error });
            }
        }
    }

    /// Makes a pool and opens it.
    ///
    /// # Errors
    /// Usage, conflict if the name is taken or a device in use or not empty, failure.
    pub async fn create_pool(&self, request: &CreatePool) -> Result<Arc<Pool>> {
        name::check_pool(&request.name)?;
        let structure = self.structure.lock().await;
        if self.knows(|known| known.name == request.name) {
            return Err(Error::conflict(format!("pool {} exists already", request.name)));
        }
        let (devices, files) = make::make_pool(request, self.mailboxes.len())?;
        let pool = self.open(devices, files).await?;
        drop(structure);
        self.pools_changed().await?;
        Ok(pool)
    }

    /// Opens a pool.
    ///
    /// # Errors
    /// Conflict if it is open already or a device is in use; failure if it cannot be read.
    pub async fn open_pool(&self, paths: &[PathBuf]) -> Result<Arc<Pool>> {
        let structure = self.structure.lock().await;
        let devices = label::read(paths)?;
        let taken =
            |pool: &Arc<Pool>| pool.name() == devices.name || pool.devices.layout.pool == devices.layout.pool;
        if let Some(pool) = self.pools().iter().find(|pool| taken(pool)) {
            return Err(if pool.devices.layout.pool == devices.layout.pool {
                Error::conflict(format!("pool {} is open already", pool.name()))
            } else {
                Error::conflict(format!("another pool of the name {} is open", devices.name))
                    .hint("close that one first: stillpoint pool close NAME")
            });
        }
        let files = PoolFiles::open(&devices.paths).map_err(|error| device_error(&error))?;
        let pool = self.open(devices, files).await?;
        self.lock()
            .failed
            .retain(|failed| failed.known.id != pool.devices.id_text());
        drop(structure);
        self.pools_changed().await?;
        Ok(pool)
    }

    /// Opens the shards on their processors, then the catalog.
    async fn open(&self, devices: PoolDevices, files: Arc<PoolFiles>) -> Result<Arc<Pool>> {
        let index = self.free_place();
        let processors = self.mailboxes.len() as u16;
        let owners: Vec<ProcessorIndex> = (0..devices.layout.shard_count)
            .map(|shard| ProcessorIndex(shard % processors))
            .collect();
        let name = devices.name.clone();
        let shards = match self.open_shards(index, &devices, &files, &owners).await {
            Ok(shards) => shards,
            Err(error) => {
                self.close_shards(index).await;
                return Err(error.while_doing(format_args!("opening pool {name}")));
            }
        };
        let opened = OpenedPool {
            index,
            devices,
            files,
            owners,
            shards,
        };
        match Pool::start(opened, self.mailboxes.clone()).await {
            Ok(pool) => {
                let pool = Arc::new(pool);
                for remark in &pool.remarks {
                    tracing::warn!(pool = name, "{remark}");
                }
                tracing::info!(pool = name, shards = pool.shard_count(), "open");
                let mut pools = self.lock();
                let place = usize::from(index.0);
                if pools.open.len() <= place {
                    pools.open.resize_with(place + 1, || None);
                }
                pools.open[place] = Some(pool.clone());
                Ok(pool)
            }
            Err(error) => {
                self.close_shards(index).await;
                Err(error.while_doing(format_args!("opening pool {name}")))
            }
        }
    }

    fn free_place(&self) -> PoolIndex {
        let pools = self.lock();
        let place = pools
            .open
            .iter()
            .position(Option::is_none)
            .unwrap_or(pools.open.len());
        PoolIndex(place as u16)
    }

    async fn open_shards(
        &self,
        index: PoolIndex,
        devices: &PoolDevices,
        files: &Arc<PoolFiles>,
        owners: &[ProcessorIndex],
    ) -> Result<Vec<RecoveredShard>> {
        let mut answers = Vec::new();
        for (processor, mailbox) in self.mailboxes.iter().enumerate() {
            let owned = (0..devices.layout.shard_count)
                .map(ShardIndex)
                .filter(|shard| usize::from(owners[usize::from(shard.0)].0) == processor);
            let part = Box::new(PoolPart {
                name: devices.name.clone(),
                layout: devices.layout.clone(),
                files: files.clone(),
                shards: owned.collect(),
                owners: owners.to_vec(),
                options: self.options.pool.clone(),
            });
            let (reply, answer) = oneshot::channel();
            mailbox.send(ToProcessor::OpenPool {
                pool: index,
                part,
                reply,
            })?;
            answers.push(answer);
        }
        let mut shards = Vec::new();
        let mut failure = None;
        for answer in answers {
            match answer.await.map_err(|_| crate::mailbox::MailboxError::Ended)? {
                Ok(recovered) => shards.extend(recovered),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            return Err(Error::failure(error.to_string()));
        }
        shards.sort_by_key(|shard| shard.shard);
        let all = (0..devices.layout.shard_count).map(ShardIndex);
        assert!(
            shards.iter().map(|shard| shard.shard).eq(all),
            "every shard has one owner"
        );
        Ok(shards)
    }

    /// Closes a pool on every processor; one where it is not open answers at once.
    async fn close_shards(&self, pool: PoolIndex) {
        let answers: Vec<_> = self
            .mailboxes
            .iter()
            .filter_map(|mailbox| {
                let (reply, answer) = oneshot::channel();
                mailbox.send(ToProcessor::ClosePool { pool, reply }).ok()?;
                Some(answer)
            })
            .collect();
        for answer in answers {
            if let Ok(Err(error)) = answer.await {
                tracing::error!("closing a pool: {error}; the log will be replayed when it is opened");
            }
        }
    }

    /// Closes a pool, and forgets it: it is not opened again at the next start.
    ///
    /// # Errors
    /// Not found.
    pub async fn close_pool(&self, name: &str) -> Result<()> {
        let structure = self.structure.lock().await;
        let forgotten = {
            let mut pools = self.lock();
            let before = pools.failed.len();
            pools.failed.retain(|failed| failed.known.name != name);
            pools.failed.len() < before
        };
        if !forgotten {
            let pool = self.pool(name)?;
            self.shut(&pool).await?;
        }
        drop(structure);
        self.state.save(&self.known_pools())
    }

    /// Ends the sessions of a pool, then closes it.
    async fn shut(&self, pool: &Arc<Pool>) -> Result<()> {
        let _quiet = pool.quiet().await;
        self.lock().open[usize::from(pool.index.0)] = None;
        self.publish().await?;
        self.close_shards(pool.index).await;
        tracing::info!(pool = pool.name(), "closed");
        Ok(())
    }

    /// Closes all pools, without forgetting them.
    pub async fn stop(&self) {
        let _structure = self.structure.lock().await;
        for pool in self.pools() {
            if let Err(error) = self.shut(&pool).await {
                tracing::error!(pool = pool.name(), "closing: {error}");
            }
        }
    }

    fn knows(&self, is_it: impl Fn(&KnownPool) -> bool) -> bool {
        self.known_pools().iter().any(is_it)
    }

    fn known_pools(&self) -> Vec<KnownPool> {
        let open = self.pools().into_iter().map(|pool| KnownPool {
            name: pool.name().to_owned(),
            id: pool.devices.id_text(),
            devices: pool.devices.paths.clone(),
        });
        open.chain(self.failed_pools().into_iter().map(|failed| failed.known))
            .collect()
    }

    async fn pools_changed(&self) -> Result<()> {
        self.state.save(&self.known_pools())?;
        self.publish().await
    }

    /// Sends the table of exports to all processors; when this returns, no session shows anything else.
    ///
    /// # Errors
    /// If a processor has ended.
    pub async fn publish(&self) -> Result<()> {
        let _publishing = self.publishing.lock().await;
        let table = Arc::new(self.export_table());
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
            answer.await.map_err(|_| crate::mailbox::MailboxError::Ended)?;
        }
        Ok(())
    }

    /// All exports. Where two pools bring the same name, that of the later one is `pool/name`.
    fn export_table(&self) -> ExportTable {
        let mut all: Vec<Export> = Vec::new();
        for pool in self.pools() {
            for mut export in pool.exports() {
                if all.iter().any(|other| other.name == export.name) {
                    export.name = format!("{}/{}", pool.name(), export.name);
                    tracing::warn!(export = export.name, "the name is taken by another pool");
                }
                all.push(export);
            }
        }
        ExportTable::new(all)
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

    /// What is known of a pool that could not be opened.
    #[must_use]
    pub fn failed_info(failed: &FailedPool) -> PoolInfo {
        PoolInfo {
            name: failed.known.name.clone(),
            state: "failed".to_owned(),
            error: Some(failed.error.to_string()),
            id: failed.known.id.clone(),
            shards: 0,
            devices: Vec::new(),
            total_bytes: 0,
            used_bytes: 0,
            pending_bytes: 0,
            volumes: 0,
            snapshots: 0,
            recovery_ns: 0,
            remarks: failed
                .known
                .devices
                .iter()
                .map(|path| format!("device {}", path.display()))
                .collect(),
        }
    }
}

/// What the control plane says about a device that cannot be opened.
pub(crate) fn device_error(error: &DeviceFileError) -> Error {
    let kind = match &error.problem {
        Problem::InUse { .. } | Problem::Exists => ErrorKind::Conflict,
        Problem::Open(source) if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        Problem::NotADevice | Problem::SectorSize(_) => ErrorKind::Usage,
        Problem::Size { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ErrorKind::NoSpace
        }
        Problem::Open(_) | Problem::Size { .. } => ErrorKind::Failure,
    };
    Error::new(kind, error.to_string())
}
