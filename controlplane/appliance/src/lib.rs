//! What happens to the appliance: its processors, its pools, its catalog, its API.

pub mod catalog;
pub mod error;
pub mod mailbox;
pub mod name;

pub use error::{Error, ErrorKind, Result};
