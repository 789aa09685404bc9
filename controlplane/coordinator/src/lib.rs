//! Prepare, cut, release, combine: how one instant is fixed over many shards without stopping anyone.
//!
//! ```text
//! coordinator                shard 0            shard 1
//!   prepare  ------------------> reserve ----------> reserve
//!            <--- prepared ----- ------------------- -
//!   cut      ------------------> freeze, hold -----> freeze, hold     answers that depend on anything newer wait
//!            <--- taken -------- ------------------- -
//!   release  ------------------> answer -----------> answer           once *all* have answered taken
//!            <--- released(figures) ---------------- -
//!   persist  ------------------> log + flush ------> log + flush      beside the I/O
//!            <--- durable ------ ------------------- -
//!   commit   ------------------> catalog row                          the overall snapshot exists from here on
//!            <--- done --------- -
//! ```
//! Anything else that happens (a shard refuses, fails, stalls or released by itself at the deadline) leads to
//! *abort* on every shard, and to an error that names the shard and the reason.
//!
//! [`promotion`] says what a clone takes over from the volume it was made of. [`timing`] and [`retention`] say when a schedule is due, and which of its snapshots are kept.
//!
//! Everything here is pure: time comes in as [`Now`](stillpoint_processor::Now), commands to shards go out as
//! [`Action`]s, what shards tell comes in as events. The poll loop of processor 0 drives it, and the
//! simulator drives the very same types.

mod coordinator;
mod cut;
mod overall_snapshot;
pub mod promotion;
pub mod retention;
pub mod timing;

pub use coordinator::{ACTIVE_MAX, Action, Coordinator, QUEUE_MAX};
pub use overall_snapshot::{
    HOLD_NS_DEFAULT, Marks, OverallSnapshot, STEP_NS_DEFAULT, SnapshotError, SnapshotRequest, SnapshotVolume,
    Step, Written,
};

#[cfg(test)]
mod tests;
