//! The devices of a pool: plain files and block devices.
//!
//! [`DeviceFile`] opens and claims one; [`PoolFiles`] are those of one pool, shared by all processors.
//! [`Devices`] is one processor's way to them while serving, through its ring; [`Opener`] is for the
//! time before, with calls that wait. [`MemoryDevice`] is none, for measuring what everything else costs.

mod file;
mod memory;
pub mod nvme;
mod opener;
mod queue;
#[cfg(test)]
mod tests;

pub use file::{DeviceFile, DeviceFileError, DeviceKind, Problem};
pub use memory::MemoryDevice;
pub use opener::Opener;
pub use queue::{DeviceFigures, Devices, OPERATIONS_MAX};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// The files and block devices of one pool, in label order.
#[derive(Debug)]
pub struct PoolFiles {
    files: Vec<DeviceFile>,
    /// The errno of the first flush that failed, on any processor; 0 while none has.
    failed_flush: AtomicI32,
}

impl PoolFiles {
    /// These, in label order.
    #[must_use]
    pub fn new(files: Vec<DeviceFile>) -> Arc<Self> {
        Arc::new(Self {
            files,
            failed_flush: AtomicI32::new(0),
        })
    }

    /// A flush failed. What the devices had in their caches may be gone, and the kernel tells that once: no later flush of
    /// any processor may succeed until the pool is opened again.
    fn note_failed_flush(&self, errno: i32) {
        let _ = self
            .failed_flush
            .compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The errno of the first flush that failed.
    fn failed_flush(&self) -> Option<i32> {
        match self.failed_flush.load(Ordering::Acquire) {
            0 => None,
            errno => Some(errno),
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
