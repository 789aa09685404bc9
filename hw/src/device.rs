//! The devices of a pool: plain files and block devices.
//!
//! [`DeviceFile`] opens and claims one; [`PoolFiles`] are the places for those of one pool, shared by all processors.
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
pub use queue::{DeviceFigures, Devices, OPERATIONS_MAX, Occupant, Unanswered};

use nvme::passthrough::DurableWrites;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places of one pool for files and block devices, in label order. A device may be put into an empty one and be taken out
/// again while others are served: see [`Devices::attach`] and [`Devices::detach`].
#[derive(Debug)]
pub struct PoolFiles {
    /// Looked at when devices come and go, never on the path of a request.
    places: Vec<Mutex<Option<Arc<DeviceFile>>>>,
}

impl PoolFiles {
    /// These, in label order.
    #[must_use]
    pub fn new(files: Vec<DeviceFile>) -> Arc<Self> {
        Self::with_missing(files.into_iter().map(Some).collect())
    }

    /// The same where some may be missing: their places are empty.
    #[must_use]
    pub fn with_missing(files: Vec<Option<DeviceFile>>) -> Arc<Self> {
        let place = |file: Option<DeviceFile>| Mutex::new(file.map(Arc::new));
        Arc::new(Self {
            places: files.into_iter().map(place).collect(),
        })
    }

    /// The same devices, each served in the fastest way there is ([`DeviceFile::served_by`]). Those on which somebody else has a hand
    /// stay as they are.
    #[must_use]
    pub fn served_by(self: Arc<Self>, commands: Option<DurableWrites>) -> Arc<Self> {
        for place in &self.places {
            let mut place = lock(place);
            let served = place.take().map(|file| match Arc::try_unwrap(file) {
                Ok(file) => Arc::new(file.served_by(commands)),
                Err(shared) => shared,
            });
            *place = served;
        }
        self
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

    /// How many places there are, empty ones too.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// What is in a place; `None` if it is empty, or there is no such place.
    #[must_use]
    pub fn get(&self, device: usize) -> Option<Arc<DeviceFile>> {
        lock(self.places.get(device)?).clone()
    }

    /// Puts a device into its place, which is empty.
    pub fn put(&self, device: usize, file: DeviceFile) {
        self.put_shared(device, Arc::new(file));
    }

    /// The same of one that others may have too.
    pub fn put_shared(&self, device: usize, file: Arc<DeviceFile>) {
        let before = lock(&self.places[device]).replace(file);
        assert!(before.is_none(), "a place is emptied before it is used again");
    }

    /// Takes a device out of its place. Its file is closed when the last of those who have it has let go.
    pub fn take(&self, device: usize) -> Option<Arc<DeviceFile>> {
        lock(self.places.get(device)?).take()
    }

    /// The devices that are there, each with its place.
    pub fn present(&self) -> impl Iterator<Item = (usize, Arc<DeviceFile>)> + '_ {
        (0..self.places.len()).filter_map(|device| Some((device, self.get(device)?)))
    }
}

fn lock(place: &Mutex<Option<Arc<DeviceFile>>>) -> MutexGuard<'_, Option<Arc<DeviceFile>>> {
    // Nothing panics while it has one.
    place.lock().unwrap_or_else(PoisonError::into_inner)
}
