//! Change log volumes: one function per method and path.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::extract::{Body, Query};
use super::handlers::{Created, Shared, finish, pools_of, volume_info};
use super::model;
use crate::appliance::Appliance;
use crate::error::{Error, Result};
use crate::pool::{Pool, no_change_log};

/// The pool that has this change log volume.
fn pool_of(appliance: &Appliance, name: &str, pool: Option<&str>) -> Result<Arc<Pool>> {
    let mut found: Vec<Arc<Pool>> = pools_of(appliance, pool)?
        .into_iter()
        .filter(|pool| pool.change_log(name).is_ok())
        .collect();
    match found.len() {
        0 => Err(no_change_log(name)),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<&str> = found.iter().map(|pool| pool.name()).collect();
            Err(Error::conflict(format!(
                "pools {} each have a change log volume {name}",
                names.join(", ")
            ))
            .hint("give --pool NAME"))
        }
    }
}

async fn details(pool: &Pool, name: &str) -> Result<model::ChangeLogVolumeInfo> {
    let infos = pool.change_log_infos(&pool.figures().await?);
    let found = infos.into_iter().find(|info| info.name == name);
    found.ok_or_else(|| no_change_log(name))
}

pub(super) async fn list(
    State(appliance): Shared,
    Query(query): Query<model::Query>,
) -> Result<Json<Vec<model::ChangeLogVolumeInfo>>> {
    let mut infos = Vec::new();
    for pool in pools_of(&appliance, query.pool.as_deref())? {
        infos.extend(pool.change_log_infos(&pool.figures().await?));
    }
    infos.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
    Ok(Json(infos))
}

pub(super) async fn create(
    State(appliance): Shared,
    Body(request): Body<model::CreateChangeLog>,
) -> Result<Created<model::ChangeLogVolumeInfo>> {
    let made = finish(async move {
        let pool = appliance.pool_or_only(request.pool.as_deref())?;
        pool.create_change_log(&request).await?;
        details(&pool, &request.name).await
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

pub(super) async fn show(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<Json<model::ChangeLogVolumeInfo>> {
    let pool = pool_of(&appliance, &name, query.pool.as_deref())?;
    Ok(Json(details(&pool, &name).await?))
}

pub(super) async fn resize(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
    Body(request): Body<model::ResizeChangeLog>,
) -> Result<Json<model::ChangeLogVolumeInfo>> {
    let resized = finish(async move {
        let pool = pool_of(&appliance, &name, query.pool.as_deref())?;
        pool.resize_change_log(&name, request.size_bytes).await?;
        details(&pool, &name).await
    });
    Ok(Json(resized.await?))
}

pub(super) async fn delete(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<StatusCode> {
    finish(async move {
        let pool = pool_of(&appliance, &name, query.pool.as_deref())?;
        pool.delete_change_log(&name).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn set_volume(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
    Body(request): Body<model::SetVolume>,
) -> Result<Json<model::VolumeInfo>> {
    let set = finish(async move {
        let pool = appliance.pool_of_volume(&name, query.pool.as_deref())?;
        pool.set_volume(&name, &request).await?;
        volume_info(&pool, &name).await
    });
    Ok(Json(set.await?))
}
