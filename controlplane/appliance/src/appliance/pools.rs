//! Making, opening and closing pools.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Appliance, FailedPool};
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
use stillpoint_hw::device::{DeviceFileError, PoolFiles, Problem};
use stillpoint_processor::ShardIndex;

impl Appliance {
    /// Opens the pools that were open when the appliance stopped. One that cannot be opened is logged, listed as
    /// failed and tried again at the next start; it does not stop the others.
    pub async fn open_known_pools(&self) {
        for known in self.state.pools() {
            let opened = self.open_pool(&known.devices).await;
            if let Err(error) = opened {
                self.events
                    .tell(EventKind::PoolNotOpened, &known.name, "", error.to_string());
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
        let pool = self.open(devices, self.as_served(files)).await?;
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
        let devices = label::read(&label::absolute(paths)?)?;
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
        let claim = || PoolFiles::open(&devices.paths).map_err(|error| device_error(&error));
        let files = patience::unless_in_use(claim).await?;
        label::check_sizes(&devices, &files)?;
        let pool = self.open(devices, self.as_served(files)).await?;
        self.lock()
            .failed
            .retain(|failed| failed.known.id != pool.devices.id_text());
        drop(structure);
        self.pools_changed().await?;
        Ok(pool)
    }

    fn as_served(&self, files: Arc<PoolFiles>) -> Arc<PoolFiles> {
        if !self.options.nvme_passthrough {
            return files;
        }
        let files = files.with_passthrough();
        for file in files.all() {
            let path = file.path().display();
            match (file.passthrough(), file.refused()) {
                (Some(namespace), _) => tracing::info!(
                    "{path}: NVMe commands through {}, at most {} bytes each{}",
                    namespace.path().display(),
                    namespace.transfer_bytes_max(),
                    if namespace.is_polled() { ", polled" } else { "" }
                ),
                (None, Some(reason)) => tracing::info!("{path}: served as a block device: {reason}"),
                (None, None) => {}
            }
        }
        files
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
        match Pool::start(opened, self.mailboxes.clone(), self.events.clone()).await {
            Ok(pool) => {
                let pool = Arc::new(pool);
                for remark in &pool.remarks {
                    pool.tell(EventKind::PoolRemark, "", remark);
                }
                let opened = format!("open, with {} shards", pool.shard_count());
                pool.tell(EventKind::PoolOpened, "", opened);
                let mut pools = self.lock();
                let place = usize::from(index.0);
                if pools.open.len() <= place {
                    pools.open.resize_with(place + 1, || None);
                }
                pools.open[place] = Some(pool.clone());
                pool.start_tasks();
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
            match answer.await.map_err(|_| MailboxError::Ended)? {
                Ok(recovered) => shards.extend(recovered),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            return Err(Error::failure(error.to_string()).hint(format!(
                "stillpoint inspect --check {} says what is damaged",
                devices.name
            )));
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
        pool.end_tasks().await;
        let _quiet = pool.quiet().await;
        self.lock().open[usize::from(pool.index.0)] = None;
        self.publish().await?;
        self.close_shards(pool.index).await;
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
            scrub: None,
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
