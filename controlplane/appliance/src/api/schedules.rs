//! Schedules: one function per method and path.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::extract::{Body, Query};
use super::handlers::{Created, Shared, finish, pools_of};
use super::model;
use crate::appliance::Appliance;
use crate::error::{Error, Result};
use crate::pool::{Pool, no_schedule};

/// The pool that has this schedule.
fn pool_of_schedule(appliance: &Appliance, name: &str, pool: Option<&str>) -> Result<Arc<Pool>> {
    let mut found: Vec<Arc<Pool>> = pools_of(appliance, pool)?
        .into_iter()
        .filter(|pool| pool.schedule(name).is_ok())
        .collect();
    match found.len() {
        0 => Err(no_schedule(name)),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<&str> = found.iter().map(|pool| pool.name()).collect();
            Err(
                Error::conflict(format!("pools {} each have a schedule {name}", names.join(", ")))
                    .hint("give --pool NAME"),
            )
        }
    }
}

pub(super) async fn list(
    State(appliance): Shared,
    Query(query): Query<model::Query>,
) -> Result<Json<Vec<model::ScheduleInfo>>> {
    let pools = pools_of(&appliance, query.pool.as_deref())?;
    let mut infos: Vec<_> = pools.iter().flat_map(|pool| pool.schedule_infos()).collect();
    infos.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
    Ok(Json(infos))
}

pub(super) async fn create(
    State(appliance): Shared,
    Body(request): Body<model::CreateSchedule>,
) -> Result<Created<model::ScheduleInfo>> {
    let made = finish(async move {
        let Some(first) = request.volumes.first() else {
            return Err(Error::usage("a schedule has at least one volume"));
        };
        let pool = appliance.pool_of_members(first, request.pool.as_deref())?;
        pool.create_schedule(&request).await?;
        pool.schedule_details(&request.name)
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

pub(super) async fn show(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<Json<model::ScheduleInfo>> {
    let pool = pool_of_schedule(&appliance, &name, query.pool.as_deref())?;
    Ok(Json(pool.schedule_details(&name)?))
}

pub(super) async fn delete(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<StatusCode> {
    finish(async move {
        let pool = pool_of_schedule(&appliance, &name, query.pool.as_deref())?;
        pool.delete_schedule(&name).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn pause(
    appliance: Shared,
    name: Path<String>,
    query: Query<model::Query>,
) -> Result<Json<model::ScheduleInfo>> {
    set_paused(appliance, name, query, true).await
}

pub(super) async fn resume(
    appliance: Shared,
    name: Path<String>,
    query: Query<model::Query>,
) -> Result<Json<model::ScheduleInfo>> {
    set_paused(appliance, name, query, false).await
}

async fn set_paused(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
    paused: bool,
) -> Result<Json<model::ScheduleInfo>> {
    let set = finish(async move {
        let pool = pool_of_schedule(&appliance, &name, query.pool.as_deref())?;
        pool.pause_schedule(&name, paused).await?;
        pool.schedule_details(&name)
    });
    Ok(Json(set.await?))
}

pub(super) async fn run(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<Created<model::SnapshotInfo>> {
    let taken = finish(async move {
        let pool = pool_of_schedule(&appliance, &name, query.pool.as_deref())?;
        let overall = pool.run_schedule(&name).await?;
        let first = pool.volume_name(overall.volumes[0].owner);
        pool.snapshot_details(&first, &overall.name).await
    });
    Ok((StatusCode::CREATED, Json(taken.await?)))
}
