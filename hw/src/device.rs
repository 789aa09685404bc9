//! The devices of a pool: plain files and block devices.
//!
//! [`DeviceFile`] opens and claims one; [`PoolFiles`] are those of one pool, shared by all processors.
//! [`Devices`] is one processor's way to them while serving, through its ring; [`Opener`] is for the
//! time before, with calls that wait.

mod file;
mod opener;
mod queue;
#[cfg(test)]
mod tests;

pub use file::{DeviceFile, DeviceFileError, DeviceKind, Problem};
pub use opener::Opener;
pub use queue::{DeviceFigures, Devices, OPERATIONS_MAX};

use std::path::Path;
use std::sync::Arc;

/// The files and block devices of one pool, in label order.
#[derive(Debug)]
pub struct PoolFiles {
    files: Vec<DeviceFile>,
}

impl PoolFiles {
    /// These, in label order.
    #[must_use]
    pub fn new(files: Vec<DeviceFile>) -> Arc<Self> {
        Arc::new(Self { files })
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
