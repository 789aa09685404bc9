//! What happens to the appliance: its processors, its pools, its catalog, its API.

pub mod mailbox;
