//! Pools that were given at the start and could not be opened: they wait for their devices as remembered ones do.
//!
//! Of what pool devices are only their labels tell. So as long as none of them is there, only their paths are known; with the first
//! label the pool has a name, is listed as failed, and is looked for by its labels (`returned.rs`). It is remembered when it was opened.

use std::path::{Path, PathBuf};

use super::returned::LOOK_LIMIT;
use super::{Appliance, FailedPool, GivenPool};
use crate::error::Error;
use crate::events::EventKind;
use crate::label::{self, Found, id_text};
use crate::state::KnownPool;

impl Appliance {
    /// A pool that was given could not be opened.
    pub(super) fn given_not_opened(&self, devices: Vec<PathBuf>, error: Error) {
        let paths: Vec<String> = devices.iter().map(|path| path.display().to_string()).collect();
        let text = format!(
            "a pool that was given cannot be opened: {error}; it is opened when its devices are there"
        );
        self.events
            .tell(EventKind::PoolNotOpened, "", &paths.join(","), text);
        self.lock().given.push(GivenPool { devices, error });
    }

    /// Looks whether one of the devices is there by now of pools of which nothing was known.
    pub(super) async fn look_for_given(&self) {
        let given = std::mem::take(&mut self.lock().given);
        let paths = given.iter().flat_map(|pool| pool.devices.iter().cloned());
        // What cannot be read is asked again; one that does not answer hides no other.
        let questions = paths.map(|path| (path.clone(), move || pool_of(&path)));
        let known = self.asking.given.ask(questions.collect(), LOOK_LIMIT).await;
        for pool in given {
            let found = pool.devices.iter().find_map(|path| known.get(path)?.clone());
            let mut pools = self.lock();
            let Some((name, id)) = found else {
                pools.given.push(pool);
                continue;
            };
            let mut open = pools.open.iter().flatten();
            if open.any(|pool| pool.devices.id_text() == id)
                || pools.failed.iter().any(|failed| failed.known.id == id)
            {
                continue; // it is remembered too, or was opened by hand
            }
            let known = KnownPool {
                name,
                id,
                devices: pool.devices,
            };
            pools.failed.push(FailedPool {
                known,
                error: pool.error,
                opening: false,
                given: true,
            });
        }
    }
}

/// Name and identity of the pool of a device.
fn pool_of(path: &Path) -> Option<(String, String)> {
    match label::look(path) {
        Ok(Found::Label { label, .. }) => Some((label.name().to_owned(), id_text(&label.header.pool))),
        _ => None,
    }
}
