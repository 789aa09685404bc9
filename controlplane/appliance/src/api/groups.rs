//! Named groups of volumes: one function per method and path.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::extract::{Body, Query};
use super::handlers::{Created, Shared, finish, pools_of};
use super::model;
use crate::error::{Error, Result};
use crate::pool::{GROUP_PREFIX, no_group};

pub(super) async fn list(
    State(appliance): Shared,
    Query(query): Query<model::Query>,
) -> Result<Json<Vec<model::GroupInfo>>> {
    let pools = pools_of(&appliance, query.pool.as_deref())?;
    let mut infos: Vec<_> = pools.iter().flat_map(|pool| pool.group_infos()).collect();
    infos.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
    Ok(Json(infos))
}

pub(super) async fn create(
    State(appliance): Shared,
    Body(request): Body<model::CreateGroup>,
) -> Result<Created<model::GroupInfo>> {
    let made = finish(async move {
        let Some(first) = request.volumes.first() else {
            return Err(Error::usage("a group has at least one volume"));
        };
        let pool = appliance.pool_of_members(first, request.pool.as_deref())?;
        pool.create_group(&request).await?;
        let infos = pool.group_infos();
        infos
            .into_iter()
            .find(|info| info.name == request.name)
            .ok_or_else(|| no_group(&request.name))
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

pub(super) async fn delete(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<StatusCode> {
    finish(async move {
        let pool = appliance.pool_of_members(&format!("{GROUP_PREFIX}{name}"), query.pool.as_deref())?;
        pool.delete_group(&name).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
