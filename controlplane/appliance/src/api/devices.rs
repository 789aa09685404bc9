//! The block devices of the machine.

use axum::Json;
use axum::extract::{Path as Part, State};
use tokio::sync::Mutex;

use super::handlers::Shared;
use crate::appliance::Appliance;
use crate::devices::{self, PoolOn, model::BlockDevice};
use crate::error::Result;
use crate::patience;

/// Held while all devices are looked at. A disk that does not answer holds up one look, however many ask and give up meanwhile, and
/// not a thread for each of them.
static LOOK: Mutex<()> = Mutex::const_new(());

pub(super) async fn list(State(appliance): Shared) -> Result<Json<Vec<BlockDevice>>> {
    let alone = LOOK.lock().await;
    let find = move || {
        let found = devices::list();
        drop(alone);
        Ok(found)
    };
    look(&appliance, find).await.map(Json)
}

pub(super) async fn show(State(appliance): Shared, Part(name): Part<String>) -> Result<Json<BlockDevice>> {
    let mut found = look(&appliance, move || {
        devices::show(&name).map(|device| vec![device])
    })
    .await?;
    Ok(Json(found.remove(0)))
}

/// Devices may take their time to answer: the control plane goes on meanwhile.
async fn look(
    appliance: &Appliance,
    find: impl FnOnce() -> Result<Vec<BlockDevice>> + Send + 'static,
) -> Result<Vec<BlockDevice>> {
    let pools = appliance.pools();
    let pools = pools.iter().map(|pool| PoolOn {
        name: pool.name().to_owned(),
        devices: pool.unused(),
        known: pool.known_in_dev(),
    });
    let pools: Vec<PoolOn> = pools.collect();
    patience::beside(move || {
        let mut found = find()?;
        devices::add_pools(&mut found, &pools);
        Ok(found)
    })
    .await
}
