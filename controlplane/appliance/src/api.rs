//! The API: HTTP and JSON on the control socket. The command line is its first client.
//!
//! | method and path | does |
//! |---|---|
//! | GET, POST `/v1/pools` | lists, makes |
//! | POST `/v1/pools/open` | opens |
//! | GET `/v1/pools/{pool}`, POST `/v1/pools/{pool}/close` | shows, closes |
//! | POST `/v1/pools/{pool}/replace` | puts another device in the place of a side of a mirror |
//! | POST `/v1/pools/{pool}/resync` | tries again to give sides what they lack, and says how fast |
//! | POST, DELETE `/v1/pools/{pool}/scrub` | begins, stops reading and comparing everything |
//! | POST `/v1/pools/{pool}/scrub/pause`, `/resume` | lets that rest, lets it go on where it was |
//! | GET, POST `/v1/volumes` | lists, makes |
//! | GET, DELETE `/v1/volumes/{volume}`, POST `/v1/volumes/{volume}/resize` | shows, deletes, resizes |
//! | GET, POST `/v1/snapshots` | lists, takes |
//! | GET, DELETE `/v1/snapshots/{volume@name}` | shows, deletes |
//! | POST `/v1/snapshots/delete` | deletes several of a pool at once, or none |
//! | POST `/v1/snapshots/{volume@name}/lock` | locks: nobody deletes it until then |
//! | GET `/v1/snapshots/{volume@name}/changes` | what changed since, as lines of JSON while it is found |
//! | GET, POST `/v1/groups`, DELETE `/v1/groups/{group}` | lists, makes, deletes named groups of volumes |
//! | GET, POST `/v1/schedules` | lists, makes |
//! | GET, DELETE `/v1/schedules/{schedule}` | shows (with what is kept, and why), deletes |
//! | POST `/v1/schedules/{schedule}/pause`, `/resume`, `/run` | stops it for a while, lets it go on, runs it now |
//! | GET, POST `/v1/changelogs` | lists, makes |
//! | GET, DELETE `/v1/changelogs/{changelog}`, POST `/v1/changelogs/{changelog}/resize` | shows, deletes, resizes |
//! | POST `/v1/volumes/{volume}/set` | sets its change log volume |
//! | GET, POST `/v1/exports`, DELETE `/v1/exports/{export}` | lists, makes, deletes |
//! | GET `/v1/devices`, `/v1/devices/{name}` | the block devices of the machine: what they are, who uses them |
//! | GET `/v1/events` | what happened; waits for something to happen |
//! | GET `/v1/status`, GET `/v1/doctor` | figures, findings |
//! | GET `/v1/stages` | where the time of requests goes: a histogram for each stage |
//! | GET `/metrics` | all figures, as text for Prometheus |
//!
//! What is not a success has the body `{"kind", "message", "hint"}` ([`Error`]). A request that changes something is
//! finished even if its client goes away.

mod change_logs;
mod changes;
mod deletions;
mod devices;
pub(crate) mod extract;
mod groups;
mod handlers;
pub mod model;
mod schedules;
mod stages;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};

use crate::appliance::Appliance;
use crate::error::{Error, ErrorKind};

/// The routes of the API.
pub fn router(appliance: Arc<Appliance>) -> Router {
    Router::new()
        .route("/v1/pools", get(handlers::list_pools).post(handlers::create_pool))
        .route("/v1/pools/open", post(handlers::open_pool))
        .route("/v1/pools/{pool}", get(handlers::show_pool))
        .route("/v1/pools/{pool}/close", post(handlers::close_pool))
        .route("/v1/pools/{pool}/replace", post(handlers::replace_device))
        .route("/v1/pools/{pool}/resync", post(handlers::resync_pool))
        .route(
            "/v1/pools/{pool}/scrub",
            post(handlers::scrub_pool).delete(handlers::stop_scrub),
        )
        .route("/v1/pools/{pool}/scrub/pause", post(handlers::pause_scrub))
        .route("/v1/pools/{pool}/scrub/resume", post(handlers::resume_scrub))
        .route("/v1/pools/{pool}/checkpoint", post(deletions::checkpoint))
        .route("/v1/pools/{pool}/deletions/{snapshot}", get(deletions::show))
        .route(
            "/v1/volumes",
            get(handlers::list_volumes).post(handlers::create_volume),
        )
        .route(
            "/v1/volumes/{volume}",
            get(handlers::show_volume).delete(handlers::delete_volume),
        )
        .route("/v1/volumes/{volume}/resize", post(handlers::resize_volume))
        .route("/v1/volumes/{volume}/set", post(change_logs::set_volume))
        .route("/v1/changelogs", get(change_logs::list).post(change_logs::create))
        .route(
            "/v1/changelogs/{changelog}",
            get(change_logs::show).delete(change_logs::delete),
        )
        .route("/v1/changelogs/{changelog}/resize", post(change_logs::resize))
        .route("/v1/volumes/{volume}/clone", post(handlers::clone_volume))
        .route("/v1/volumes/{volume}/promote", post(handlers::promote_volume))
        .route("/v1/volumes/{volume}/rollback", post(handlers::rollback_volume))
        .route(
            "/v1/snapshots",
            get(handlers::list_snapshots).post(handlers::create_snapshot),
        )
        .route(
            "/v1/snapshots/{snapshot}",
            get(handlers::show_snapshot).delete(handlers::delete_snapshot),
        )
        .route("/v1/snapshots/delete", post(handlers::delete_snapshots))
        .route("/v1/snapshots/{snapshot}/lock", post(handlers::lock_snapshot))
        .route("/v1/snapshots/{snapshot}/changes", get(changes::snapshot_changes))
        .route("/v1/groups", get(groups::list).post(groups::create))
        .route("/v1/groups/{group}", delete(groups::delete))
        .route("/v1/schedules", get(schedules::list).post(schedules::create))
        .route(
            "/v1/schedules/{schedule}",
            get(schedules::show).delete(schedules::delete),
        )
        .route("/v1/schedules/{schedule}/pause", post(schedules::pause))
        .route("/v1/schedules/{schedule}/resume", post(schedules::resume))
        .route("/v1/schedules/{schedule}/run", post(schedules::run))
        .route(
            "/v1/exports",
            get(handlers::list_exports).post(handlers::create_export),
        )
        .route("/v1/exports/{export}", delete(handlers::delete_export))
        .route("/v1/devices", get(devices::list))
        .route("/v1/devices/{name}", get(devices::show))
        .route("/v1/events", get(handlers::events))
        .route("/v1/status", get(handlers::status))
        .route("/v1/stages", get(stages::show))
        .route("/metrics", get(stages::metrics))
        .route("/v1/doctor", get(handlers::doctor))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(appliance)
}

async fn no_such_path() -> Error {
    Error::not_found("the API has no such path")
}

async fn no_such_method() -> Error {
    Error::usage("the API has no such method on this path")
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if self.kind == ErrorKind::Failure {
            tracing::warn!("{self}");
        }
        let status = StatusCode::from_u16(self.kind.status()).expect("a status code");
        (status, axum::Json(self)).into_response()
    }
}
