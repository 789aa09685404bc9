//! The cut, alone and small: the shipping coordinator and the shipping shards on tiny devices, with nothing between
//! them but messages. Whoever drives it picks which message moves next, so it can be driven by a seed or through every
//! order there is.
//!
//! | file | what it does |
//! |---|---|
//! | `stage.rs` | shards, coordinator, devices, and every message between them: picks nothing by itself |
//! | `tail.rs` | a log tail of a few kilobytes |
//! | `clients.rs` | clients that write, read and flush, and what they know; every answer is checked |
//! | `ending.rs` | crash, recovery, and what must be there then: all of a snapshot or no trace of it |
//! | `plan.rs` | what a random schedule is like, what goes wrong in it, and what was met |
//! | `seeds.rs` | random schedules, with a crash or a stall at one message or two |
//! | `small.rs` | one state of the small scope: what can happen next |
//! | `small_scope.rs` | every order of a few writes and one snapshot |
//!
//! The oracle is [`crate::model`], the same as for whole appliances: a snapshot shows one instant (I7), holds every
//! write that was acknowledged before it was asked for and none that was sent after it was confirmed; holds end by
//! their deadline also when the coordinator is gone (I9); a snapshot exists whole or leaves no trace (I8).

mod clients;
mod ending;
pub mod plan;
mod seeds;
mod small;
pub mod small_scope;
mod stage;
mod tail;

pub use plan::Met;
pub use seeds::{run, run_with};
