//! What happens to the appliance: its processors, its pools, its catalog, its API.

pub mod api;
pub mod appliance;
pub mod catalog;
pub mod console;
pub mod daemon;
pub mod devices;
pub mod directories;
pub mod doctor;
pub mod error;
pub mod events;
pub mod inspect;
pub mod label;
pub mod mailbox;
mod make;
pub mod name;
mod notices;
mod patience;
pub mod poll_loop;
pub mod pool;
pub mod state;

pub use appliance::{Appliance, ListenerUri, Options};
pub use error::{Error, ErrorKind, Result};
pub use events::{EventKind, Events};
