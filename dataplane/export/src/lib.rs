//! Block protocols as pure state machines: bytes on one side, requests to shards on the other.
//!
//! Nothing here does a system call. A poll loop (or the simulator, or a test) moves the bytes: it asks a
//! session where the next bytes are wanted and what is to be sent, and carries requests to shards and answers
//! back. Each protocol is a folder: [`nbd`] is the first.

pub mod export_table;
pub mod nbd;
pub mod seats;
pub mod snapshot_names;
pub mod snapshot_taker;

pub use export_table::{Export, ExportTable, PoolIndex};
pub use seats::{Seat, Seats};
pub use snapshot_names::{Busy, SnapshotNames};
pub use snapshot_taker::{NotTaken, SnapshotTaker, SnapshotWish};
