//! The devices of a pool: plain files and block devices.
//!
//! [`DeviceFile`] opens and claims one; [`PoolFiles`] are those of one pool, shared by all processors.
//! [`Devices`] is one processor's way to them while serving, through its ring; [`Opener`] is for the
//! time before, with calls that wait. Devices that are NVMe namespaces can be served by commands of our own
//! ([`nvme::passthrough`]). [`MemoryDevice`] is none, for measuring what everything else costs.

mod file;
mod memory;
pub mod nvme;
mod opener;
mod parts;
mod queue;
#[cfg(test)]
mod tests;

pub use file::{DeviceFile, DeviceFileError, DeviceKind, Problem};
pub use memory::MemoryDevice;
pub use opener::Opener;
pub use queue::{DeviceFigures, Devices, OPERATIONS_MAX};

use std::path::Path;
use std::sync::{Arc, OnceLock};
use stillpoint_processor::ports::DeviceError;

/// The files and block devices of one pool, in label order.
#[derive(Debug)]
pub struct PoolFiles {
    files: Vec<DeviceFile>,
    /// The first flush that failed, on any processor.
    failed_flush: OnceLock<DeviceError>,
}

impl PoolFiles {
    /// These, in label order.
    #[must_use]
    pub fn new(files: Vec<DeviceFile>) -> Arc<Self> {
        Arc::new(Self {
            files,
            failed_flush: OnceLock::new(),
        })
    }

    /// A flush failed. What the devices had in their caches may be gone, and the kernel tells that once: no later flush of
    /// any processor may succeed until the pool is opened again.
    fn note_failed_flush(&self, error: DeviceError) {
        // The first one counts.
        let _ = self.failed_flush.set(error);
    }

    /// The error of the first flush that failed.
    fn failed_flush(&self) -> Option<DeviceError> {
        self.failed_flush.get().copied()
    }

    /// The same devices, those that are NVMe namespaces served by commands of our own where that is possible
    /// ([`DeviceFile::passthrough`], [`DeviceFile::refused`]). Others keep them as they are while somebody else has a hand on them.
    #[must_use]
    pub fn with_passthrough(self: Arc<Self>) -> Arc<Self> {
        match Arc::try_unwrap(self) {
            Ok(pool) => Self::new(pool.files.into_iter().map(DeviceFile::with_passthrough).collect()),
            Err(shared) => shared,
        }
    }

    /// Opens and claims all of these.
    ///
    /// # Errors
    /// The first that cannot be opened; those opened before are released.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Arc<Self>, DeviceFileError> {
        let files = paths
            .iter()
            .map(|path| DeviceFile::open(path.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self::new(files))
    }

    /// Opens all of these to read only, and claims them so that nobody may open them to write.
    ///
    /// # Errors
    /// The first that cannot be opened; those opened before are released.
    pub fn open_to_read(paths: &[impl AsRef<Path>]) -> Result<Arc<Self>, DeviceFileError> {
        let files = paths
            .iter()
            .map(|path| DeviceFile::open_to_read(path.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self::new(files))
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[DeviceFile] {
        &self.files
    }
}
