//! Bodies of the API: JSON that is to become a request.

use core::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stillpoint_appliance::api::model::{
    CreateChangeLog, CreateExport, CreateGroup, CreatePool, CreateSchedule, CreateSnapshot, CreateVolume,
    DeleteSnapshots, EventsQuery, LockSnapshot, OpenPool, Query, ResizeChangeLog, ResizeVolume, ResumeScrub,
    ScrubPool, SetVolume,
};
use stillpoint_appliance::name;

pub(super) fn bodies(data: &[u8]) {
    body::<OpenPool>(data);
    body::<ResizeVolume>(data);
    body::<ScrubPool>(data);
    body::<ResumeScrub>(data);
    body::<Query>(data);
    body::<EventsQuery>(data);
    body::<DeleteSnapshots>(data);
    body::<LockSnapshot>(data);
    body::<CreateSchedule>(data);
    body::<CreateGroup>(data);
    body::<CreateChangeLog>(data);
    body::<ResizeChangeLog>(data);
    body::<SetVolume>(data);
    if let Some(request) = body::<CreatePool>(data) {
        let _ = name::check_pool(&request.name);
    }
    if let Some(request) = body::<CreateVolume>(data) {
        let _ = name::check("volume", &request.name);
    }
    if let Some(request) = body::<CreateSnapshot>(data) {
        let _ = name::check("snapshot", &request.name);
    }
    body::<CreateExport>(data);
}

/// What is understood is understood again when it is written.
fn body<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let request: T = serde_json::from_slice(data).ok()?;
    let again = serde_json::to_vec(&request).expect("plain data");
    let read: T = serde_json::from_slice(&again).expect("what was written can be read");
    assert_eq!(read, request);
    Some(request)
}
