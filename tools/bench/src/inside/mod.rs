//! The data plane in this process, without a protocol: real shards on a pool of its own, over a file, a block device or
//! memory, driven as a poll loop of the daemon drives them.
//!
//! ```text
//! Inside::make ──> pool, shards, one volume, written from end to end
//!   Inside::take_place ──> Station (a thread's ring, devices, processor) ──turn──> answers
//!     <── Station::leave: the shards stay for the next run
//! ```
//! There is one shard for each thread, and each thread asks for blocks of its own shard. The volume's blocks lie on them
//! in equal parts; what of an address is beyond the part is taken modulo.

mod pool;
mod station;

pub use pool::{Inside, Options, Place};
pub use station::{Medium, Station};
