//! Opening the pools that were open when the appliance stopped, and those that are given.
//!
//! A device that does not answer holds up its own pool alone: all are asked for a sign of life at once, before anybody waits for one with
//! the structure in hand. What has not answered by then is not there; its pool is opened when it is (`returned.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::returned::{CLAIM_LIMIT, LOOK_LIMIT};
use super::{Appliance, Degraded};
use crate::error::{Error, ErrorKind, Result};
use crate::label;
use crate::patience::Awaited;
use crate::pool::Pool;

impl Appliance {
    /// Opens what is remembered, then what is given. A pool that cannot be opened is logged, listed as failed and tried again when its
    /// devices are there, or at the next start; it does not stop the others.
    pub async fn open_at_start(&self, given: &[Vec<PathBuf>]) {
        let known = self.state.pools();
        let remembered = known.iter().map(|pool| &pool.devices);
        let signs = self.ask_for_signs(remembered.chain(given).flatten());
        let until = Instant::now() + LOOK_LIMIT;
        let waits =
            |path: &Path| silence(path, LOOK_LIMIT).hint("the pool is opened when its devices answer");
        for pool in known {
            let opened = match signs.silent(&pool.devices, until).await {
                Some(path) => Err(waits(path)),
                None => self.open_answering(&pool.devices, Degraded::AsNew).await,
            };
            if let Err(error) = opened {
                self.not_opened(pool, error);
            }
        }
        for devices in given {
            if let Some(path) = signs.silent(devices, until).await {
                // Nor would it say whether it has another name.
                let absolute = devices.iter().map(std::path::absolute);
                let absolute = absolute.collect::<std::io::Result<_>>();
                let devices = absolute.unwrap_or_else(|_| devices.clone());
                self.given_not_opened(devices, waits(path)).await;
                continue;
            }
            let devices = match label::absolute(devices) {
                Ok(devices) => devices,
                Err(wrong) => {
                    tracing::error!("a pool that was given cannot be opened: {wrong}");
                    continue;
                }
            };
            match self.open_answering(&devices, Degraded::Refused).await {
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::Conflict && self.is_open(&devices) => {}
                Err(error) => self.given_not_opened(devices, error).await,
            }
        }
    }

    /// Opens a pool.
    ///
    /// # Errors
    /// Conflict if it is open already or a device is in use; failure if it cannot be read.
    pub async fn open_pool(&self, paths: &[PathBuf], degraded: Degraded) -> Result<Arc<Pool>> {
        self.check_answering(paths).await?;
        self.open_answering(paths, degraded).await
    }

    async fn open_answering(&self, paths: &[PathBuf], degraded: Degraded) -> Result<Arc<Pool>> {
        let structure = self.structure.lock().await;
        let pool = self.open_in_structure(paths, degraded).await?;
        drop(structure);
        self.pools_changed().await?;
        Ok(pool)
    }

    /// Refuses devices that do not answer, before anybody waits for them with the structure in hand.
    pub(super) async fn check_answering(&self, paths: &[PathBuf]) -> Result<()> {
        let signs = self.ask_for_signs(paths);
        match signs.silent(paths, Instant::now() + CLAIM_LIMIT).await {
            Some(path) => {
                Err(silence(path, CLAIM_LIMIT).hint("try again when it does; the kernel's log may say why"))
            }
            None => Ok(()),
        }
    }

    fn ask_for_signs<'a>(&self, paths: impl IntoIterator<Item = &'a PathBuf>) -> Awaited {
        // Whatever it says: that is told when it is read in earnest.
        self.asking.signs.ask(paths, |path| {
            let found = label::absolute([path]).and_then(|paths| label::look(&paths[0]));
            drop(found);
        })
    }

    /// Whether these devices make a pool that is open: it was remembered and given.
    fn is_open(&self, devices: &[PathBuf]) -> bool {
        self.pools().iter().any(|pool| {
            let known = pool.known().devices;
            devices.iter().all(|device| known.contains(device))
        })
    }
}

/// That a device does not answer.
fn silence(path: &Path, limit: Duration) -> Error {
    let (path, limit_s) = (path.display(), limit.as_secs());
    Error::failure(format!("{path} has not answered for {limit_s} s"))
}
