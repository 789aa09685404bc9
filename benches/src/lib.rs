//! What the benches share: processes that never outlive them, fio as the load generator, figures and tables.
//!
//! | bench | question |
//! |---|---|
//! | `side_by_side` | How does Stillpoint compare, in this process with the bare device, and over NBD with qemu-nbd and nbdkit? Which goals are met? |
//! | `snapshots` | What do snapshots cost those who write meanwhile, here and with qcow2 and btrfs? What do they cost themselves, a thousand deletions, a change log volume? |
//! | `crowd` | What does a crowd of idle, slow, non-reading and connecting clients cost a good one? |
//! | `restart` | How soon does a pool with very much mapped answer again, what memory does it take, what do reads cost without its map in memory, and a large discard? |
//! | `scale` | Do snapshots cost the same however many there are, and however large their volume is? |
//! | `micro` | What do the parts cost: checksum, ring, a shard over memory? |

pub mod api;
pub mod cases;
pub mod contest;
pub mod cpu;
pub mod crowd;
pub mod diverged;
pub mod fio;
pub mod frame;
pub mod good_client;
pub mod machine;
pub mod mapped_pool;
pub mod memory_device;
pub mod nbd_load;
pub mod prices;
pub mod process;
pub mod reader;
pub mod report;
pub mod rounds;
pub mod servers;
pub mod stats;
pub mod table;
pub mod windows;
pub mod writer;
pub mod zram;

/// What goes wrong in a bench: a sentence that names the thing.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
