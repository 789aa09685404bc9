//! What becomes of the space of deleted snapshots.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::handlers::{Shared, finish};
use super::model;
use crate::error::{Error, Result};

pub(super) async fn show(
    State(appliance): Shared,
    Path((pool, snapshot)): Path<(String, String)>,
) -> Result<Json<model::DeletionInfo>> {
    let snapshot: u64 = snapshot
        .parse()
        .map_err(|_| Error::usage(format!("{snapshot:?} is no number of a snapshot")))?;
    Ok(Json(appliance.pool(&pool)?.deletion(snapshot).await?))
}

pub(super) async fn checkpoint(State(appliance): Shared, Path(name): Path<String>) -> Result<StatusCode> {
    finish(async move { appliance.pool(&name)?.checkpoint().await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
