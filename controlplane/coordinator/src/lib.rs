//! Prepare, cut, release, combine: how one instant is fixed over many shards without stopping anyone.
//!
//! Everything here is pure: time comes in as [`Now`](stillpoint_processor::Now), commands to shards go out as
//! values, what shards tell comes in as events. The poll loop of processor 0 drives it, and the
//! simulator drives the very same types.

mod overall_snapshot;

pub use overall_snapshot::{
    HOLD_NS_DEFAULT, OverallSnapshot, STEP_NS_DEFAULT, SnapshotError, SnapshotRequest, SnapshotVolume, Step,
};
