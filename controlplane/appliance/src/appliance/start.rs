//! Opening the pools that were open when the appliance stopped, and those that are given.
//!
//! A device that does not answer holds up its own pool alone: all are asked for a sign of life at once, before anybody waits for one with
//! the structure in hand. What has not answered by then is not there; its pool is opened when it is (`returned.rs`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::returned::{CLAIM_LIMIT, LOOK_LIMIT};
use super::{Appliance, Degraded, FailedPool};
use crate::error::{Error, ErrorKind, Result};
use crate::label;
use crate::patience::{Awaited, Questions};
use crate::pool::Pool;
use crate::state::KnownPool;

impl Appliance {
    /// Opens what is remembered, then what is given. A pool that cannot be opened is logged, listed as failed and tried again when its
    /// devices are there, or at the next start; it does not stop the others.
    pub async fn open_at_start(&self, given: &[Vec<PathBuf>]) {
        let known = self.state.pools();
        self.begin_opening(&known);
        let remembered = known.iter().map(|pool| &pool.devices);
        let signs = self.ask_for_signs(remembered.chain(given).flatten());
        let until = Instant::now() + LOOK_LIMIT;
        let names = names_of(given).await;
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
        let mut silent = Vec::new();
        for (asked, named) in given.iter().zip(names) {
            let devices = match named {
                Ok(devices) => devices,
                Err(wrong) => {
                    tracing::error!("a pool that was given cannot be opened: {wrong}");
                    continue;
                }
            };
            if let Some(path) = signs.silent(asked, until).await {
                silent.push((devices, waits(path)));
                continue;
            }
            match self.open_answering(&devices, Degraded::Refused).await {
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::Conflict && self.is_open(&devices) => {}
                Err(error) => self.given_not_opened(devices, error),
            }
        }
        self.look_for_given().await;
        // These were waited for, and are looked for later.
        for (devices, error) in silent {
            self.given_not_opened(devices, error);
        }
    }

    /// Whatever becomes of the daemon meanwhile, no pool is forgotten that it has not come to yet.
    fn begin_opening(&self, known: &[KnownPool]) {
        let opening = known.iter().map(|known| FailedPool {
            known: known.clone(),
            error: Error::new(ErrorKind::Unavailable, "it is being opened"),
            opening: true,
            given: false,
        });
        self.lock().failed.extend(opening);
    }

    /// Opens a pool.
    ///
    /// # Errors
    /// Conflict if it is open already or a device is in use; failure if it cannot be read; unavailable if a device does not answer.
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

/// The paths of each of these pools as they are known later; of a file on a server that does not answer, what is said.
async fn names_of(pools: &[Vec<PathBuf>]) -> Vec<Result<Vec<PathBuf>>> {
    let asked: BTreeSet<PathBuf> = pools.iter().flatten().cloned().collect();
    let questions = (asked.into_iter()).map(|path| (path.clone(), move || label::absolute([path])));
    let names = Questions::default().ask(questions.collect(), LOOK_LIMIT).await;
    let name = |path: &PathBuf| match names.get(path) {
        Some(Ok(named)) => Ok(named[0].clone()),
        Some(Err(wrong)) => Err(wrong.clone()),
        None => Ok(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
    };
    pools
        .iter()
        .map(|devices| devices.iter().map(name).collect())
        .collect()
}

/// That a device does not answer.
pub(super) fn silence(path: &Path, limit: Duration) -> Error {
    let (path, limit_s) = (path.display(), limit.as_secs());
    Error::new(
        ErrorKind::Unavailable,
        format!("{path} has not answered for {limit_s} s"),
    )
}
