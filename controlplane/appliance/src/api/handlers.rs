//! One function per method and path.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::extract::{Body, Query};
use super::model;
use crate::appliance::{Appliance, Degraded};
use crate::doctor;
use crate::error::{Error, Result};
use crate::events;
use crate::mailbox::ToProcessor;
use crate::name::ViewName;
use crate::patience;
use crate::pool::{Pool, ShardFigures};

pub(super) type Shared = State<Arc<Appliance>>;
pub(super) type Created<T> = (StatusCode, Json<T>);

/// Finishes what was begun even if the client goes away.
pub(super) async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::failure(format!(
            "the request ended before its time: {error}"
        ))),
    }
}

async fn pool_info(pool: &Pool) -> Result<model::PoolInfo> {
    pool.ask_sizes().await;
    Ok(pool.info(&pool.figures().await?))
}

pub(super) async fn list_pools(State(appliance): Shared) -> Result<Json<Vec<model::PoolInfo>>> {
    Ok(Json(all_pools(&appliance).await?))
}

async fn all_pools(appliance: &Appliance) -> Result<Vec<model::PoolInfo>> {
    // Both at the same moment: a pool may be opened while another is asked.
    let (open, failed) = (appliance.pools(), appliance.failed_pools());
    let mut infos = Vec::new();
    for pool in open {
        match figures(appliance, &pool).await? {
            Some(figures) => infos.push(pool.info(&figures)),
            None => infos.extend(failed_since(appliance, &pool)),
        }
    }
    infos.extend(failed.iter().map(Appliance::failed_info));
    Ok(infos)
}

/// The figures of a pool; `None` if it was closed while it was asked.
async fn figures(appliance: &Appliance, pool: &Arc<Pool>) -> Result<Option<ShardFigures>> {
    match pool.figures().await {
        Ok(figures) => Ok(Some(figures)),
        Err(error) if appliance.pools().iter().any(|open| Arc::ptr_eq(open, pool)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// What a pool that was closed meanwhile is now, if it is still known and not open.
fn failed_since(appliance: &Appliance, pool: &Pool) -> Option<model::PoolInfo> {
    let failed = appliance.failed_pools();
    let found = failed.iter().find(|failed| failed.known.name == pool.name());
    found.map(Appliance::failed_info)
}

pub(super) async fn create_pool(
    State(appliance): Shared,
    Body(request): Body<model::CreatePool>,
) -> Result<Created<model::PoolInfo>> {
    let made = finish(async move {
        let pool = appliance.create_pool(&request).await?;
        pool_info(&pool).await
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

pub(super) async fn open_pool(
    State(appliance): Shared,
    Body(request): Body<model::OpenPool>,
) -> Result<Json<model::PoolInfo>> {
    let opened = finish(async move {
        let paths: Vec<PathBuf> = request.devices.iter().map(PathBuf::from).collect();
        let degraded = match request.degraded {
            true => Degraded::Allowed,
            false => Degraded::Refused,
        };
        let pool = appliance.open_pool(&paths, degraded).await?;
        pool_info(&pool).await
    });
    Ok(Json(opened.await?))
}

pub(super) async fn show_pool(
    State(appliance): Shared,
    Path(name): Path<String>,
) -> Result<Json<model::PoolInfo>> {
    if let Some(failed) = appliance
        .failed_pools()
        .iter()
        .find(|failed| failed.known.name == name)
    {
        return Ok(Json(Appliance::failed_info(failed)));
    }
    Ok(Json(pool_info(&*appliance.pool(&name)?).await?))
}

pub(super) async fn close_pool(State(appliance): Shared, Path(name): Path<String>) -> Result<StatusCode> {
    finish(async move { appliance.close_pool(&name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn replace_device(
    State(appliance): Shared,
    Path(name): Path<String>,
    Body(request): Body<model::ReplaceDevice>,
) -> Result<Json<model::PoolInfo>> {
    let replaced = finish(async move {
        let pool = appliance.replace_device(&name, &request).await?;
        pool_info(&pool).await
    });
    Ok(Json(replaced.await?))
}

pub(super) async fn resync_pool(
    State(appliance): Shared,
    Path(name): Path<String>,
    Body(request): Body<model::ResyncPool>,
) -> Result<Json<model::PoolInfo>> {
    let begun = finish(async move {
        let pool = appliance.pool(&name)?;
        pool.resync(request.rate_bytes_per_s, appliance.nvme_commands())
            .await?;
        pool_info(&pool).await
    });
    Ok(Json(begun.await?))
}

pub(super) async fn scrub_pool(
    State(appliance): Shared,
    Path(name): Path<String>,
    Body(request): Body<model::ScrubPool>,
) -> Result<Json<model::PoolInfo>> {
    let begun = finish(async move {
        let pool = appliance.pool(&name)?;
        pool.scrub(&request).await?;
        pool_info(&pool).await
    });
    Ok(Json(begun.await?))
}

pub(super) async fn pause_scrub(
    State(appliance): Shared,
    Path(name): Path<String>,
) -> Result<Json<model::PoolInfo>> {
    let paused = finish(async move {
        let pool = appliance.pool(&name)?;
        pool.pause_scrub().await?;
        pool_info(&pool).await
    });
    Ok(Json(paused.await?))
}

pub(super) async fn resume_scrub(
    State(appliance): Shared,
    Path(name): Path<String>,
    Body(request): Body<model::ResumeScrub>,
) -> Result<Json<model::PoolInfo>> {
    let resumed = finish(async move {
        let pool = appliance.pool(&name)?;
        pool.resume_scrub(&request).await?;
        pool_info(&pool).await
    });
    Ok(Json(resumed.await?))
}

pub(super) async fn stop_scrub(State(appliance): Shared, Path(name): Path<String>) -> Result<StatusCode> {
    finish(async move { appliance.pool(&name)?.stop_scrub().await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn pools_of(appliance: &Appliance, name: Option<&str>) -> Result<Vec<Arc<Pool>>> {
    match name {
        Some(name) => Ok(vec![appliance.pool(name)?]),
        None => Ok(appliance.pools()),
    }
}

pub(super) async fn list_volumes(
    State(appliance): Shared,
    Query(query): Query<model::Query>,
) -> Result<Json<Vec<model::VolumeInfo>>> {
    let mut infos = Vec::new();
    for pool in pools_of(&appliance, query.pool.as_deref())? {
        infos.extend(pool.volume_infos(&pool.figures().await?));
    }
    infos.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
    Ok(Json(infos))
}

pub(super) async fn volume_info(pool: &Pool, name: &str) -> Result<model::VolumeInfo> {
    let infos = pool.volume_infos(&pool.figures().await?);
    infos
        .into_iter()
        .find(|info| info.name == name)
        .ok_or_else(|| crate::pool::no_volume(name))
}

pub(super) async fn create_volume(
    State(appliance): Shared,
    Body(request): Body<model::CreateVolume>,
) -> Result<Created<model::VolumeInfo>> {
    let made = finish(async move {
        let pool = appliance.pool_or_only(request.pool.as_deref())?;
        pool.create_volume(&request).await?;
        volume_info(&pool, &request.name).await
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

pub(super) async fn show_volume(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<Json<model::VolumeInfo>> {
    let pool = appliance.pool_of_volume(&name, query.pool.as_deref())?;
    Ok(Json(volume_info(&pool, &name).await?))
}

pub(super) async fn delete_volume(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<StatusCode> {
    finish(async move {
        let pool = appliance.pool_of_volume(&name, query.pool.as_deref())?;
        pool.delete_volume(&name, query.with_snapshots).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn resize_volume(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
    Body(request): Body<model::ResizeVolume>,
) -> Result<Json<model::VolumeInfo>> {
    let resized = finish(async move {
        let pool = appliance.pool_of_volume(&name, query.pool.as_deref())?;
        appliance.resize_volume(&pool, &name, &request).await?;
        volume_info(&pool, &name).await
    });
    Ok(Json(resized.await?))
}

pub(super) async fn clone_volume(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
    Body(request): Body<model::CloneVolume>,
) -> Result<Created<model::VolumeInfo>> {
    let made = finish(async move {
        let pool = appliance.pool_of_volume(&name, query.pool.as_deref())?;
        pool.clone_volume(&name, &request).await?;
        volume_info(&pool, &request.name).await
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

pub(super) async fn promote_volume(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<Json<model::VolumeInfo>> {
    let promoted = finish(async move {
        let pool = appliance.pool_of_volume(&name, query.pool.as_deref())?;
        pool.promote(&name).await?;
        appliance.publish().await?;
        volume_info(&pool, &name).await
    });
    Ok(Json(promoted.await?))
}

pub(super) async fn rollback_volume(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
    Body(request): Body<model::RollbackVolume>,
) -> Result<Json<model::SnapshotInfo>> {
    let rolled_back = finish(async move {
        let pool = appliance.pool_of_volume(&name, query.pool.as_deref())?;
        let safety = appliance.rollback_volume(&pool, &name, &request).await?;
        pool.snapshot_details(&name, &safety.name).await
    });
    Ok(Json(rolled_back.await?))
}

pub(super) async fn list_snapshots(
    State(appliance): Shared,
    Query(query): Query<model::Query>,
) -> Result<Json<Vec<model::SnapshotInfo>>> {
    let infos = match &query.volume {
        Some(volume) => {
            let pool = appliance.pool_of_volume(volume, query.pool.as_deref())?;
            pool.snapshot_infos(Some(pool.volume(volume)?.id))
        }
        None => pools_of(&appliance, query.pool.as_deref())?
            .iter()
            .flat_map(|pool| pool.snapshot_infos(None))
            .collect(),
    };
    Ok(Json(infos))
}

pub(super) async fn create_snapshot(
    State(appliance): Shared,
    Body(request): Body<model::CreateSnapshot>,
) -> Result<Created<model::SnapshotInfo>> {
    let taken = finish(async move {
        let Some(first) = request.volumes.first() else {
            return Err(Error::usage("a snapshot has at least one volume"));
        };
        let pool = appliance.pool_of_members(first, request.pool.as_deref())?;
        let overall = pool.create_snapshot(&request).await?;
        let first = pool.volume_name(overall.volumes[0].owner);
        pool.snapshot_details(&first, &request.name).await
    });
    Ok((StatusCode::CREATED, Json(taken.await?)))
}

/// `volume@snapshot`, both of them.
pub(super) fn snapshot_name(name: &str) -> Result<(String, String)> {
    let view: ViewName = name.parse()?;
    match view.snapshot {
        Some(snapshot) => Ok((view.volume, snapshot)),
        None => Err(Error::usage(format!("{name} is a volume")).hint("a snapshot is written volume@name")),
    }
}

pub(super) async fn show_snapshot(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<Json<model::SnapshotInfo>> {
    let (volume, snapshot) = snapshot_name(&name)?;
    let pool = appliance.pool_of_volume(&volume, query.pool.as_deref())?;
    Ok(Json(pool.snapshot_details(&volume, &snapshot).await?))
}

pub(super) async fn lock_snapshot(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
    Body(request): Body<model::LockSnapshot>,
) -> Result<Json<model::SnapshotInfo>> {
    let locked = finish(async move {
        let (volume, snapshot) = snapshot_name(&name)?;
        let pool = appliance.pool_of_volume(&volume, query.pool.as_deref())?;
        pool.lock_snapshot(&volume, &snapshot, &request).await?;
        pool.snapshot_details(&volume, &snapshot).await
    });
    Ok(Json(locked.await?))
}

pub(super) async fn delete_snapshot(
    State(appliance): Shared,
    Path(name): Path<String>,
    Query(query): Query<model::Query>,
) -> Result<StatusCode> {
    finish(async move {
        let (volume, snapshot) = snapshot_name(&name)?;
        let pool = appliance.pool_of_volume(&volume, query.pool.as_deref())?;
        pool.delete_snapshots(&[(volume, snapshot)], query.defer).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn delete_snapshots(
    State(appliance): Shared,
    Body(request): Body<model::DeleteSnapshots>,
) -> Result<StatusCode> {
    finish(async move {
        let names = request.snapshots.iter().map(|name| snapshot_name(name));
        let names: Vec<(String, String)> = names.collect::<Result<_>>()?;
        let Some((first, _)) = names.first() else {
            return Err(Error::usage("no snapshot is named").hint("a snapshot is written volume@name"));
        };
        let pool = appliance.pool_of_volume(first, request.pool.as_deref())?;
        for (volume, _) in &names {
            let other = appliance.pool_of_volume(volume, request.pool.as_deref())?;
            if other.name() != pool.name() {
                let (here, there) = (pool.name(), other.name());
                let what = format!("{first} is a volume of the pool {here}, {volume} one of {there}");
                return Err(Error::usage(what).hint("delete the snapshots of each pool on their own"));
            }
        }
        pool.delete_snapshots(&names, request.defer).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn exports_of(appliance: &Appliance, pool: &Pool) -> Vec<model::ExportInfo> {
    pool.export_infos(&appliance.exports(), |name| {
        appliance
            .listeners()
            .iter()
            .map(|listener| listener.of(name))
            .collect()
    })
}

pub(super) async fn list_exports(State(appliance): Shared) -> Json<Vec<model::ExportInfo>> {
    let mut infos: Vec<_> = appliance
        .pools()
        .iter()
        .flat_map(|pool| exports_of(&appliance, pool))
        .collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Json(infos)
}

pub(super) async fn create_export(
    State(appliance): Shared,
    Body(request): Body<model::CreateExport>,
) -> Result<Created<model::ExportInfo>> {
    let made = finish(async move {
        let view: ViewName = request.view.parse()?;
        let name = request.name.clone().unwrap_or_else(|| view.to_string());
        let pool = appliance.pool_of_volume(&view.volume, request.pool.as_deref())?;
        if let Ok(other) = appliance.pool_of_export(&name) {
            return Err(
                Error::conflict(format!("export {name} exists already in pool {}", other.name()))
                    .hint("choose another name with --name, or delete that export first"),
            );
        }
        pool.create_export(&request).await?;
        appliance.publish().await?;
        let infos = exports_of(&appliance, &pool);
        infos
            .into_iter()
            .find(|info| info.name == name)
            .ok_or_else(|| crate::pool::no_export(&name))
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

pub(super) async fn delete_export(State(appliance): Shared, Path(name): Path<String>) -> Result<StatusCode> {
    finish(async move {
        appliance.pool_of_export(&name)?.delete_export(&name).await?;
        appliance.publish().await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn status(State(appliance): Shared) -> Result<Json<model::StatusInfo>> {
    Ok(Json(status_info(&appliance).await?))
}

pub(super) async fn status_info(appliance: &Appliance) -> Result<model::StatusInfo> {
    let mut processors = Vec::new();
    for (index, mailbox) in appliance.mailboxes().iter().enumerate() {
        let status = mailbox.ask(|reply| ToProcessor::Status { reply }).await?;
        processors.push(model::ProcessorInfo {
            processor: index as u16,
            core: status.core,
            sessions: status.sessions,
            late: status.late,
            requests: status.requests,
            forwarded: status.forwarded,
            turns: status.turns,
            sleeps: status.sleeps,
            polls: status.polls,
            ring_enters: status.ring_enters,
            buffer_bytes_used: status.buffer_bytes_used,
            buffer_bytes: status.buffer_bytes,
            buffer_memory: status.buffer_memory.to_owned(),
            shards: Vec::new(),
        });
    }
    let (open, failed) = (appliance.pools(), appliance.failed_pools());
    let mut pools = Vec::new();
    for pool in open {
        let Some(figures) = figures(appliance, &pool).await? else {
            pools.extend(failed_since(appliance, &pool));
            continue;
        };
        pools.push(pool.info(&figures));
        for (owner, shard) in pool.shard_infos(figures) {
            processors[usize::from(owner)].shards.push(shard);
        }
    }
    pools.extend(failed.iter().map(Appliance::failed_info));
    Ok(model::StatusInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ns: appliance.uptime_ns(),
        listeners: appliance
            .listeners()
            .iter()
            .map(|listener| listener.of(""))
            .collect(),
        connections: appliance.connections().taken(),
        connection_limit: appliance.connections().limit(),
        connections_refused: appliance.connections().refused(),
        processors,
        pools,
    })
}

pub(super) async fn events(
    State(appliance): Shared,
    Query(query): Query<model::EventsQuery>,
) -> Result<Json<model::EventList>> {
    let limit = query.limit.unwrap_or(events::LIMIT_DEFAULT as u32);
    if limit == 0 || limit > events::LIMIT_MAX as u32 {
        return Err(Error::usage(format!(
            "a limit of {limit} events: from 1 to {} are possible",
            events::LIMIT_MAX
        ))
        .hint("ask again with `after`, the number of the last event of the answer"));
    }
    let wait = Duration::from_secs(query.wait_s.unwrap_or(0).into());
    if wait > events::WAIT_MAX {
        return Err(Error::usage(format!(
            "waiting for {} s: up to {} s are possible",
            wait.as_secs(),
            events::WAIT_MAX.as_secs()
        ))
        .hint("ask again when nothing came"));
    }
    let background = query.background.unwrap_or(false);
    if !wait.is_zero() {
        let Some(after) = query.after else {
            return Err(Error::usage("waiting for an event after which one?")
                .hint("give `after`, the number of the last event that is known, or 0"));
        };
        // Those of the background wake nobody, and are not waited for when some are there.
        let is_there = background && !appliance.events().list(Some(after), 1, true).events.is_empty();
        if !is_there {
            appliance.events().wait(after, wait).await;
        }
    }
    let list = appliance.events().list(query.after, limit as usize, background);
    Ok(Json(list))
}

pub(super) async fn doctor(State(appliance): Shared) -> Result<Json<model::DoctorInfo>> {
    let (processors, buffer_bytes) = (appliance.mailboxes().len(), appliance.buffer_bytes());
    let mut pinned = Vec::new();
    for mailbox in appliance.mailboxes() {
        let status = mailbox.ask(|reply| ToProcessor::Status { reply }).await?;
        pinned.extend(status.core);
    }
    let machine = patience::beside(move || Ok(doctor::machine(processors, buffer_bytes, Some(&pinned))));
    let mut findings = machine.await?;
    findings.extend(doctor::pools(&all_pools(&appliance).await?));
    Ok(Json(model::DoctorInfo { findings }))
}
