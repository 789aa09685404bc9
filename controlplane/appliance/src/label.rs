//! Finding out which pool some devices make.

mod mirrors;

pub use mirrors::MirrorLabel;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use stillpoint_hw::device::{DeviceFile, DeviceFileError, Opener, PoolFiles};
use stillpoint_hw::discovery::nvme::block_path;
use stillpoint_hw::files::forget_cached;
use stillpoint_ondisk::label::PoolLabel;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::{BLOCK_BYTES, Damage, PAGE_BYTES};
use stillpoint_processor::DeviceIndex;
use stillpoint_processor::mirror::SideAt;
use stillpoint_processor::ports::{DeviceError, OpenDevice, Transferred};

/// A whole pool, as the labels of its devices describe it.
#[derive(Clone, Debug)]
pub struct PoolDevices {
    /// The pool's name.
    pub name: String,
    /// Where things lie.
    pub layout: Layout,
    /// The devices, in label order; with mirrors, both sides of each in turn, and nothing for a side that is not there.
    pub paths: Vec<PathBuf>,
    /// When the pool was made, nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// What an operator should know about the labels.
    pub remarks: Vec<String>,
    /// Paths that were named and have no place in it.
    pub unplaced: Vec<PathBuf>,
    /// What the newest label says of the sides, in a pool with mirrors.
    pub mirrors: Option<MirrorLabel>,
    /// Sides that are there and in sync, and whose own labels do not say so yet.
    pub outdated: Vec<SideAt>,
    /// Sides that were in sync by the newest labels that there were, until they were found missing now.
    pub went_missing: Vec<SideAt>,
    /// A device that was named is there, and its label cannot be used: what else it has lost nobody knows.
    pub has_doubtful: bool,
}

impl PoolDevices {
    /// The device, as shards number them, of a place in [`Self::paths`].
    #[must_use]
    pub fn device_of(&self, place: usize) -> usize {
        if self.layout.mirrored { place / 2 } else { place }
    }

    /// Opens and claims those that are there, with `open`.
    ///
    /// # Errors
    /// The first that cannot be opened; those opened before are released.
    pub fn claim(
        &self,
        open: impl Fn(&Path) -> std::result::Result<DeviceFile, DeviceFileError>,
    ) -> std::result::Result<Arc<PoolFiles>, DeviceFileError> {
        let is_there = |path: &&PathBuf| !path.as_os_str().is_empty();
        let one = |path: &PathBuf| Some(path).filter(is_there).map(|path| open(path)).transpose();
        let files = self
            .paths
            .iter()
            .map(one)
            .collect::<std::result::Result<_, _>>()?;
        Ok(PoolFiles::with_missing(files))
    }

    /// Its identity as 32 hexadecimal digits.
    #[must_use]
    pub fn id_text(&self) -> String {
        id_text(&self.layout.pool)
    }
}

/// An identity as 32 hexadecimal digits.
#[must_use]
pub fn id_text(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same paths, whatever the working directory will be. An NVMe namespace is named by its block device.
///
/// # Errors
/// Usage, if one is empty.
pub fn absolute(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Vec<PathBuf>> {
    let one = |path: &Path| {
        std::path::absolute(path)
            .map(|path| block_path(&path))
            .map_err(|error| Error::usage(format!("{:?} is no path of a device: {error}", path.display())))
    };
    paths.into_iter().map(|path| one(path.as_ref())).collect()
}

/// Refuses devices that have become smaller than the pool that lies on them.
///
/// # Errors
/// Failure, naming the device and both sizes.
pub fn check_sizes(devices: &PoolDevices, files: &PoolFiles) -> Result<()> {
    for (device, file) in files.present() {
        let layout = &devices.layout.devices[devices.device_of(device)];
        if file.size_blocks() < layout.size_blocks {
            let needed_bytes = layout.size_blocks * BLOCK_BYTES as u64;
            return Err(too_small(
                file.path(),
                file.size_bytes(),
                &devices.name,
                needed_bytes,
            ));
        }
    }
    Ok(())
}

/// The size that a device had when the pool was made on it.
#[must_use]
pub fn needed_bytes(label: &PoolLabel) -> u64 {
    let device = usize::from(label.device_index.get());
    label.devices[device].size_blocks.get() * BLOCK_BYTES as u64
}

/// That a device has become smaller than the pool that lies on it.
pub(crate) fn too_small(path: &Path, size_bytes: u64, pool: &str, needed_bytes: u64) -> Error {
    Error::failure(format!(
        "{} has {size_bytes} bytes; pool {pool} was made when it had {needed_bytes}",
        path.display(),
    ))
    .hint("give the device its size back; nothing was changed")
}

/// What lies at the start of a device.
#[derive(Debug)]
pub enum Found {
    /// A pool's label.
    Label {
        /// The label.
        label: Box<PoolLabel>,
        /// What is wrong with the first label, if this is its copy at the end of the device.
        first_damaged: Option<Damage>,
        /// The size of the device.
        size_bytes: u64,
    },
    /// Zeros, in the first block and the last.
    Nothing,
    /// Something else.
    Other,
    /// A label that cannot be used.
    Damaged(Damage),
}

/// So much around a label is forgotten before it is read: no folio of the page cache is larger.
const FORGOTTEN_BYTES: u64 = 4 << 20;

/// Looks at the labels of a device: the first, or its copy in the last block if the first is damaged. If either says that
/// a newer program is needed, that counts.
///
/// # Errors
/// If the device cannot be read.
pub fn look(path: &Path) -> Result<Found> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let size_bytes = (&file).seek(SeekFrom::End(0));
    let size_bytes = size_bytes.map_err(|error| unreadable(path, &error))?;
    // It is the device that is to answer, and not the memory of what it said before.
    forget_cached(&file, 0, FORGOTTEN_BYTES);
    let last_piece = size_bytes.saturating_sub(1) / FORGOTTEN_BYTES;
    forget_cached(&file, last_piece * FORGOTTEN_BYTES, 0);
    look_in(&file, path)
}

/// That a device cannot be read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Failure,
    };
    Error::new(kind, format!("cannot read {}: {error}", path.display()))
}

/// The same of an open file, which errors call `path`.
///
/// # Errors
/// If the device cannot be read.
pub fn look_in(mut file: &File, path: &Path) -> Result<Found> {
    let cannot = |error: std::io::Error| unreadable(path, &error);
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(cannot)?;
    if size_bytes < 2 * PAGE_BYTES as u64 {
        return Ok(Found::Nothing);
    }
    let last_bytes = (size_bytes / BLOCK_BYTES as u64 - 1) * BLOCK_BYTES as u64;
    let mut damage = None;
    let mut zeros = true;
    let mut sound = None;
    for offset_bytes in [0, last_bytes] {
        let mut page = [0; PAGE_BYTES];
        file.read_exact_at(&mut page, offset_bytes).map_err(cannot)?;
        match PoolLabel::parse(&page) {
            Ok(label) => {
                let first_damaged = (offset_bytes > 0).then_some(damage.unwrap_or(Damage::Magic));
                let label = Box::new(label);
                sound = sound.or(Some(Found::Label {
                    label,
                    first_damaged,
                    size_bytes,
                }));
            }
            // A newer program has begun to change this pool: what the other label says is past.
            Err(newer @ (Damage::Version(_) | Damage::Feature(_))) => return Ok(Found::Damaged(newer)),
            Err(Damage::Magic) => zeros &= page.iter().all(|&byte| byte == 0),
            Err(found) => damage = damage.or(Some(found)),
        }
    }
    Ok(match (sound, damage) {
        (Some(label), _) => label,
        (None, Some(damage)) => Found::Damaged(damage),
        (None, None) if zeros => Found::Nothing,
        (None, None) => Found::Other,
    })
}

/// Sets a bit of the features that programs which do not know it must not open the pool with, in both labels of every
/// device, and flushes them. Does nothing where it is set. A crash in between leaves some labels with it, which count.
///
/// # Errors
/// Failure, naming the device.
pub fn set_incompatible(devices: &PoolDevices, files: &Arc<PoolFiles>, bit: u64) -> Result<()> {
    let mut opener = Opener::new(files.clone());
    for copy in [false, true] {
        for (number, path) in devices.paths.iter().enumerate() {
            let device = DeviceIndex(number as u8);
            let block = if copy {
                devices.layout.label_copy_block(number)
            } else {
                0
            };
            let offset_bytes = block * BLOCK_BYTES as u64;
            let failed = |what: &str, error: DeviceError| {
                Error::failure(format!("{what} the label of {}: {error}", path.display()))
            };
            let mut page = [0; PAGE_BYTES];
            let mut reads = [Transferred {
                device,
                offset_bytes,
                bytes: &mut page,
                result: Ok(()),
            }];
            opener.read_all(&mut reads);
            reads[0].result.map_err(|error| failed("reading", error))?;
            let label = PoolLabel::parse(&page).map_err(|damage| {
                Error::failure(format!("a label of {} is damaged: {damage}", path.display()))
                    .hint("close the pool; stillpoint inspect --repair writes it from the other")
            })?;
            if label.features.incompatible.get() & bit != 0 {
                continue;
            }
            opener
                .write(device, offset_bytes, &label.with_incompatible(bit))
                .and_then(|()| opener.flush(device))
                .map_err(|error| failed("writing", error))?;
        }
    }
    Ok(())
}

/// The pool that these devices make, whatever their order.
///
/// # Errors
/// If one is not readable or not a pool's, they are of different pools, or one is missing or given twice.
pub fn read(paths: &[PathBuf]) -> Result<PoolDevices> {
    let mut labels = Vec::with_capacity(paths.len());
    let mut remarks = Vec::new();
    let mut failure = None;
    let mut has_doubtful = false;
    for path in paths {
        match read_label(path, &mut remarks) {
            Ok(label) => labels.push((label, path)),
            Err(error) => {
                has_doubtful |= error.kind != ErrorKind::NotFound;
                failure = failure.or(Some(error));
            }
        }
    }
    if !labels.is_empty() && labels.iter().all(|(label, _)| label.is_mirrored()) {
        // Without one of its sides a pool goes on.
        remarks.extend(failure.map(|error| error.to_string()));
        let devices = mirrors::read(labels, paths, remarks)?;
        return Ok(PoolDevices {
            has_doubtful,
            ..devices
        });
    }
    match failure {
        Some(error) => Err(error),
        None => whole(labels, remarks),
    }
}

/// The label of a device.
fn read_label(path: &Path, remarks: &mut Vec<String>) -> Result<Box<PoolLabel>> {
    let shown = path.display();
    match look(path)? {
        Found::Label {
            label,
            first_damaged,
            size_bytes,
        } => {
            if let Some(damage) = first_damaged {
                remarks.push(format!("first label of {shown}: {damage}; its copy was used"));
            }
            match needed_bytes(&label) {
                needed if size_bytes < needed => Err(too_small(path, size_bytes, label.name(), needed)),
                _ => Ok(label),
            }
        }
        Found::Nothing | Found::Other => Err(Error::failure(format!("{shown} belongs to no pool"))
            .hint("stillpoint pool create NAME PATH... makes one")),
        Found::Damaged(newer @ (Damage::Version(_) | Damage::Feature(_))) => {
            Err(Error::failure(format!("{shown}: {newer}")).hint("nothing was changed"))
        }
        Found::Damaged(damage) => Err(Error::failure(format!(
            "both labels of {shown} are damaged: {damage}"
        ))),
    }
}

/// The pool that these labels make, all of whose devices have to be there.
fn whole(mut labels: Vec<(Box<PoolLabel>, &PathBuf)>, remarks: Vec<String>) -> Result<PoolDevices> {
    labels.sort_by_key(|(label, _)| label.device_index.get());
    let Some((first, first_path)) = labels.first() else {
        return Err(Error::usage("a pool has at least one device"));
    };
    let count = usize::from(first.device_count.get());
    for (label, path) in &labels {
        if label.header.pool != first.header.pool {
            return Err(Error::failure(format!(
                "{} belongs to pool {} and {} to pool {}",
                first_path.display(),
                first.name(),
                path.display(),
                label.name()
            )));
        }
        if label.sequence != first.sequence || label.devices != first.devices {
            return Err(Error::failure(format!(
                "the labels of {} and {} are of different times",
                first_path.display(),
                path.display()
            )));
        }
    }
    for index in 0..count {
        match labels
            .iter()
            .filter(|(label, _)| usize::from(label.device_index.get()) == index)
            .count()
        {
            1 => {}
            0 => {
                return Err(Error::failure(format!(
                    "device {} of {count} of pool {} is missing",
                    index + 1,
                    first.name()
                ))
                .hint("name all devices of the pool"));
            }
            _ => {
                return Err(Error::failure(format!(
                    "device {} of pool {} is there more than once (a copy?)",
                    index + 1,
                    first.name()
                )));
            }
        }
    }
    let layout = Layout::of(first).map_err(|damage| Error::failure(format!("label: {damage}")))?;
    Ok(PoolDevices {
        name: first.name().to_owned(),
        layout,
        paths: labels.iter().map(|(_, path)| (*path).clone()).collect(),
        created_ns: first.created_ns.get(),
        remarks,
        unplaced: Vec::new(),
        mirrors: None,
        outdated: Vec::new(),
        went_missing: Vec::new(),
        has_doubtful: false,
    })
}
