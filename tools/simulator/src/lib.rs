//! The shipping data plane and coordinator over simulated devices, messages and time, replayed from a seed.
//!
//! ```text
//! scenario ─ plans a run from a seed
//!   world ─ clients and control plane: send, check every answer, crash, recover, compare
//!     model ─ what may be seen: the laws I1, I2, I3, I6, I7 over the history of every sector
//!     history ─ the same question to whole histories of blocks: registers, and snapshots that are prefixes
//!     machine ─ one life of the appliance: messages, turns, the coordinator
//!       stillpoint-processor, stillpoint-coordinator, stillpoint-export ─ the code that ships
//!         device, memory ─ write caches that forget, log tails that outlive a kill
//!         network ─ connections that split, join, delay and lose bytes
//!
//! boundary ─ a crash before every write and flush of short scripts, with every choice of what it leaves
//! cut_world ─ the cut alone: small, in random and in all orders
//! faults ─ devices that do one thing wrong, and every field of every structure flipped
//! canaries ─ planted bugs, each of which the checks above must find
//! ```
//! Everything is decided by one [`random::Random`]; the same seed and the same code give the same run.

pub mod boundary;
#[cfg(feature = "planted-bugs")]
pub mod canaries;
pub mod cut_world;
pub mod device;
pub mod faults;
pub mod history;
pub mod machine;
pub mod memory;
pub mod model;
pub mod network;
pub mod random;
pub mod report;
mod rows;
pub mod scenario;
pub mod stamp;
pub mod world;
