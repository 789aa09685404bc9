//! Every byte that Stillpoint keeps on a device, defined once.
//!
//! All integers are little-endian, every structure starts with (or carries) a version and a CRC32C,
//! and every structure is drawn in `docs/on-disk-format.md`. Nothing here does I/O.
//!
//! | structure | where | module |
//! |---|---|---|
//! | pool label | block 0 and the last block of every device | [`label`] |
//! | shard header | two alternating copies at the start of a shard's home slice | [`header`] |
//! | space bitmap page | two alternating slots per page in the home slice | [`bitmap`] |
//! | log page, log record | the log ring in the home slice; records also in the log tail | [`log`], [`record`] |
//! | map page | anywhere in the shard's data area | [`map_page`] |
//! | directory page | anywhere in the shard's data area | [`directory`] |
//! | stale page | near the start of one side of a mirrored device | [`stale`] |
//! | log tail | a file on tmpfs, not on a device | [`tail`] |
//! | catalog row | in directory pages of shard 0, as key and value | [`catalog`] |

pub mod bitmap;
pub mod catalog;
pub mod checksum;
pub mod directory;
pub mod header;
pub mod label;
pub mod layout;
pub mod log;
pub mod map_page;
pub mod page;
pub mod record;
pub mod stale;
pub mod tail;
#[cfg(test)]
mod tests;

pub use checksum::crc32c;
pub use page::{Damage, PAGE_BYTES, PageHeader, PageKind};

/// Size of a block and of every metadata page, in bytes.
pub const BLOCK_BYTES: usize = 4096;
/// Devices in one pool at most.
pub const DEVICES_MAX: usize = 64;
/// Shards in one pool at most.
pub const SHARDS_MAX: u16 = 256;
