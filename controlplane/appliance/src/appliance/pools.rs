//! Making, opening and closing pools.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::labels::put_out;
use super::returned::CLAIM_LIMIT;
use super::start::silence;
use super::{Appliance, Degraded, FailedPool};
use crate::api::model::{CreatePool, PoolInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::events::EventKind;
use crate::label::{self, PoolDevices};
use crate::mailbox::{MailboxError, PoolIndex, PoolPart, ProcessorIndex, RecoveredShard, ToProcessor};
use crate::make;
use crate::name;
use crate::patience;
use crate::pool::{OpenedPool, Pool};
use crate::state::KnownPool;
use stillpoint_hw::device::{DeviceFile, DeviceFileError, PoolFiles, Problem};
use stillpoint_processor::ShardIndex;
use stillpoint_processor::mirror::SideFailed;

/// What may be copied to a side of a mirror that lacks something, in bytes a second.
const RESYNC_BYTES_PER_S_DEFAULT: u64 = 256 << 20;

impl Appliance {
    /// Makes a pool and opens it.
    ///
    /// # Errors
    /// Usage, conflict if the name is taken or a device in use or not empty, failure; unavailable if a device does not answer.
    pub async fn create_pool(&self, request: &CreatePool) -> Result<Arc<Pool>> {
        name::check_pool(&request.name)?;
        let named: Vec<PathBuf> = request.devices.iter().map(PathBuf::from).collect();
        self.check_answering(&named).await?;
        let structure = self.structure.lock().await;
        if self.knows(|known| known.name == request.name) {
            return Err(Error::conflict(format!("pool {} exists already", request.name)));
        }
        let (request, processors) = (request.clone(), self.mailboxes.len());
        let made = patience::beside(move || make::make_pool(&request, processors));
        let (devices, files) = made.await?;
        let pool = self.open(devices, self.as_served(files).await?).await?;
        drop(structure);
        self.pools_changed().await?;
        Ok(pool)
    }

    /// Opens a pool for who has the structure, and tells of the change.
    pub(super) async fn open_in_structure(&self, paths: &[PathBuf], degraded: Degraded) -> Result<Arc<Pool>> {
        let paths = paths.to_vec();
        let shown = paths.iter().map(|path| path.display().to_string());
        let what = format!("reading the labels of {}", shown.collect::<Vec<_>>().join(", "));
        let read = move || label::read(&label::absolute(paths)?);
        let devices = patience::beside_for(CLAIM_LIMIT, &what, read).await?;
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
        let files = patience::unless_in_use(|| claim(&devices)).await?;
        label::check_sizes(&devices, &files)?;
        let is_newest = self.is_newest(&devices);
        self.check_degraded(&devices, degraded)?;
        let devices = self.settle_labels(devices, &files, is_newest).await?;
        let pool = self.open(devices, self.as_served(files).await?).await?;
        self.lock()
            .failed
            .retain(|failed| failed.known.id != pool.devices.id_text());
        Ok(pool)
    }

    async fn as_served(&self, files: Arc<PoolFiles>) -> Result<Arc<PoolFiles>> {
        let commands = self.options.nvme_commands;
        let files = patience::beside(move || Ok(files.served_by(commands))).await?;
        for (_, file) in files.present() {
            let path = file.path().display();
            match (file.passthrough(), file.refused()) {
                (Some(namespace), _) => tracing::info!(
                    "{path}: NVMe commands through {}, at most {} bytes each{}; {}",
                    namespace.path().display(),
                    namespace.transfer_bytes_max(),
                    if namespace.is_polled() { ", polled" } else { "" },
                    match namespace.durable_writes() {
                        Ok(()) => "it is believed about FUA".to_owned(),
                        Err(reason) => format!("no FUA: {reason}"),
                    }
                ),
                (None, Some(reason)) => tracing::info!(
                    "{path}: served as a block device{}: {reason}",
                    if file.is_polled() { ", polled" } else { "" }
                ),
                (None, None) => {}
            }
        }
        Ok(files)
    }

    /// Opens the shards on their processors, then the catalog.
    async fn open(&self, devices: PoolDevices, files: Arc<PoolFiles>) -> Result<Arc<Pool>> {
        let index = self.free_place();
        let name = devices.name.clone();
        let opened = self.open_in_place(index, devices, files).await;
        if opened.is_err() {
            self.end_try(index).await;
            self.lock().opening.remove(&index);
        }
        opened.map_err(|error| error.while_doing(format_args!("opening pool {name}")))
    }

    /// The same in this place. After an error some of its shards may be open.
    async fn open_in_place(
        &self,
        index: PoolIndex,
        mut devices: PoolDevices,
        files: Arc<PoolFiles>,
    ) -> Result<Arc<Pool>> {
        loop {
            if let Some(label) = &devices.mirrors {
                // Before anybody goes by it.
                self.state
                    .mirrors()
                    .note_sequence(&devices.id_text(), label.sequence())?;
            }
            let failure = match self.try_to_open(index, &devices, &files).await {
                Ok(pool) => return Ok(pool),
                Err(failure) => failure,
            };
            let Some(failed) = failure.side else {
                return Err(failure.error);
            };
            // The pool opens without it.
            self.end_try(index).await;
            let sequence = self.unused_sequence(&devices)?;
            let (changed, file) = put_out(devices, Arc::clone(&files), vec![failed.at], sequence).await?;
            devices = changed;
            // What the first try wrote is noted by nobody who opens now.
            devices.went_missing.clear();
            let path = file.map_or_else(String::new, |file| file.path().display().to_string());
            devices.remarks.push(format!("{path} is out: {}", failed.error));
        }
    }

    async fn try_to_open(
        &self,
        index: PoolIndex,
        devices: &PoolDevices,
        files: &Arc<PoolFiles>,
    ) -> std::result::Result<Arc<Pool>, NotOpened> {
        let first_pass = self.begin_try(index, &devices.name);
        let processors = self.mailboxes.len() as u16;
        let owners: Vec<ProcessorIndex> = (0..devices.layout.shard_count)
            .map(|shard| ProcessorIndex(shard % processors))
            .collect();
        let shards = self
            .open_shards(index, first_pass, devices, files, &owners)
            .await?;
        let opened = OpenedPool {
            index,
            devices: devices.clone(),
            files: Arc::clone(files),
            owners,
            shards,
            resync_bytes_per_s: RESYNC_BYTES_PER_S_DEFAULT,
            notes: Arc::clone(self.state.mirrors()),
            first_pass,
        };
        let pool = tokio::select! {
            // Starting may wait for what is kept back then.
            biased;
            failed = self.until_a_side_fails(index) => return Err(failed.into()),
            pool = Pool::start(opened, self.mailboxes.clone(), self.events.clone()) => Arc::new(pool?),
        };
        let untold = self.put_in_place(&pool)?;
        for remark in &pool.remarks {
            pool.tell(EventKind::PoolRemark, "", remark);
        }
        let opened = format!("open, with {} shards", pool.shard_count());
        pool.tell(EventKind::PoolOpened, "", opened);
        pool.start_tasks();
        pool.set_resync_rate().await;
        for (processor, pass, notice) in untold {
            pool.mirror_told(processor, pass, notice).await;
        }
        Ok(pool)
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
        first_pass: u64,
        devices: &PoolDevices,
        files: &Arc<PoolFiles>,
        owners: &[ProcessorIndex],
    ) -> std::result::Result<Vec<RecoveredShard>, NotOpened> {
        let mut answers = Vec::new();
        for (processor, mailbox) in self.mailboxes.iter().enumerate() {
            let owned = (0..devices.layout.shard_count)
                .map(ShardIndex)
                .filter(|shard| usize::from(owners[usize::from(shard.0)].0) == processor);
            let part = Box::new(PoolPart {
                name: devices.name.clone(),
                layout: devices.layout.clone(),
                files: files.clone(),
                sides: devices
                    .mirrors
                    .as_ref()
                    .map(|label| label.sides(&devices.went_missing)),
                shards: owned.collect(),
                owners: owners.to_vec(),
                first_pass,
                options: self.options.pool.clone(),
            });
            let (reply, answer) = oneshot::channel();
            mailbox
                .send(ToProcessor::OpenPool {
                    pool: index,
                    part,
                    reply,
                })
                .map_err(Error::from)?;
            answers.push(answer);
        }
        let mut shards = Vec::new();
        let mut failure = None;
        for answer in answers {
            match answer.await.map_err(|_| Error::from(MailboxError::Ended))? {
                Ok(recovered) => shards.extend(recovered),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            let side = error.side;
            let hint = format!("stillpoint inspect --check {} says what is damaged", devices.name);
            let error = Error::failure(error.to_string()).hint(hint);
            return Err(NotOpened { error, side });
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
    pub(super) async fn close_shards(&self, pool: PoolIndex) {
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
    pub(super) async fn shut(&self, pool: &Arc<Pool>) -> Result<()> {
        pool.end_tasks().await;
        let _quiet = pool.quiet().await;
        pool.keep_scrubs_at_the_end().await;
        {
            let mut pools = self.lock();
            pools.open[usize::from(pool.index.0)] = None;
            pools.closing.push(pool.clone());
        }
        let published = self.publish().await;
        if published.is_ok() {
            self.close_shards(pool.index).await;
        }
        self.lock().closing.retain(|closing| closing.index != pool.index);
        pool.end_stalls();
        published?;
        pool.tell(EventKind::PoolClosed, "", "closed");
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
        let failed = self.failed_pools().into_iter().map(|failed| failed.known);
        self.known_pools()
            .into_iter()
            .chain(failed)
            .any(|known| is_it(&known))
    }

    /// What is to be remembered.
    pub(super) fn known_pools(&self) -> Vec<KnownPool> {
        let open = self.pools().into_iter().map(|pool| pool.known());
        let failed = self.failed_pools().into_iter().filter(|failed| !failed.given);
        open.chain(failed.map(|failed| failed.known)).collect()
    }

    pub(super) async fn pools_changed(&self) -> Result<()> {
        self.state.save(&self.known_pools())?;
        self.publish().await
    }

    /// What is known of a pool that could not be opened.
    #[must_use]
    pub fn failed_info(failed: &FailedPool) -> PoolInfo {
        let devices = failed.known.devices.iter();
        let known_devices: Vec<String> = devices.map(|path| path.display().to_string()).collect();
        PoolInfo {
            name: failed.known.name.clone(),
            state: if failed.opening { "opening" } else { "failed" }.to_owned(),
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
            sides: Vec::new(),
            remarks: known_devices
                .iter()
                .map(|path| format!("device {path}"))
                .collect(),
            known_devices,
            scrub: None,
        }
    }
}

/// Opens and claims the devices of a pool that are there, each by itself: one that does not answer goes on holding no other.
async fn claim(devices: &PoolDevices) -> Result<Arc<PoolFiles>> {
    let until = Instant::now() + CLAIM_LIMIT;
    let claims = devices.paths.iter().map(|path| {
        let is_there = !path.as_os_str().is_empty();
        let path = path.clone();
        is_there.then(|| tokio::task::spawn_blocking(move || DeviceFile::open(&path)))
    });
    // All have begun before one is waited for, and all have ended before another try begins.
    let claims: Vec<_> = claims.collect();
    let mut files = Vec::with_capacity(claims.len());
    for (claim, path) in claims.into_iter().zip(&devices.paths) {
        files.push(match claim {
            None => Ok(None),
            Some(claim) => match tokio::time::timeout_at(until, claim).await {
                // Whatever the others say: it is not tried again at once.
                Err(_) => return Err(silence(path, CLAIM_LIMIT)),
                Ok(Err(error)) => Err(Error::failure(format!("opening {}: {error}", path.display()))),
                Ok(Ok(opened)) => opened.map(Some).map_err(|error| device_error(&error)),
            },
        });
    }
    let files = files.into_iter().collect::<Result<_>>()?;
    Ok(PoolFiles::with_missing(files))
}

/// Why the shards of a pool were not opened.
struct NotOpened {
    error: Error,
    /// The side of a mirror that failed, if it was one.
    side: Option<SideFailed>,
}

impl From<Error> for NotOpened {
    fn from(error: Error) -> Self {
        Self { error, side: None }
    }
}

impl From<SideFailed> for NotOpened {
    fn from(failed: SideFailed) -> Self {
        Self {
            error: Error::failure(failed.to_string()),
            side: Some(failed),
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
        Problem::Open(_) | Problem::ReadOnly | Problem::Size { .. } => ErrorKind::Failure,
    };
    Error::new(kind, error.to_string())
}
