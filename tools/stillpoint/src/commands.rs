//! One module per command.

pub mod changelog;
pub mod changes;
pub mod completions;
pub mod console;
pub mod deletion;
pub mod device;
pub mod doctor;
pub mod events;
pub mod export;
pub mod group;
pub mod host;
pub mod inspect;
pub mod pool;
pub mod schedule;
pub mod serve;
pub mod snapshot;
pub mod stats;
pub mod status;
pub mod volume;
