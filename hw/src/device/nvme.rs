//! NVMe: the bytes of its commands and answers, and admin commands through the kernel.
//!
//! | module | what |
//! |---|---|
//! | [`identify`] | what a controller and a namespace say about themselves |
//! | [`smart`] | the log of a device's health |
//! | [`command`] | commands as the kernel takes them |
//! | `kernel` | kernels whose answers cannot be trusted |
//! | [`passthrough`] | a namespace that takes our own commands |
//! | `ring` | the rings that they go through |
//! | [`status`] | how commands end |
//! | [`admin`] | identify and logs of a device of this machine |
//!
//! Sections are those of the NVM Express Base Specification 2.0 and the NVM Command Set Specification 1.0.

pub mod admin;
pub mod command;
pub mod identify;
pub(super) mod kernel;
pub mod passthrough;
pub(crate) mod ring;
pub mod smart;
pub mod status;

pub use kernel::polling_refusal;
