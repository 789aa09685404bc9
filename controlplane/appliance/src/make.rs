//! Making a pool: devices that are free, an identity, then what `processor::format` writes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::model::CreatePool;
use crate::appliance::device_error;
use crate::devices::content::{self, Content};
use crate::error::{Error, Result};
use crate::label::{self, PoolDevices};
use crate::pool::wall_ns;
use stillpoint_hw::device::{DeviceFile, Opener, PoolFiles};
use stillpoint_hw::discovery::Machine;
use stillpoint_ondisk::{BLOCK_BYTES, DEVICES_MAX, SHARDS_MAX};
use stillpoint_processor::DeviceIndex;
use stillpoint_processor::format::{self, FormatError, PoolSpec};
use stillpoint_processor::ports::{DeviceError, OpenDevice};

/// Fewer are not made unless asked for: a pool made on one processor is to be of use to two later on.
const SHARDS_MIN: usize = 2;

/// Makes a pool on the devices of `request`, one shard per processor, at least [`SHARDS_MIN`], unless it says otherwise. The devices are
/// claimed from here on.
///
/// # Errors
/// Usage, conflict if a device is in use or not empty, no space, failure. Files that were made are removed again.
pub fn make_pool(request: &CreatePool, processors: usize) -> Result<(PoolDevices, Arc<PoolFiles>)> {
    let count = request.devices.len();
    if count == 0 || count > DEVICES_MAX {
        return Err(Error::usage(format!(
            "{count} devices: from 1 to {DEVICES_MAX} are possible"
        )));
    }
    let shard_count = request
        .shards
        .unwrap_or_else(|| u16::try_from(processors.max(SHARDS_MIN)).unwrap_or(SHARDS_MAX));
    if shard_count == 0 || shard_count > SHARDS_MAX {
        return Err(Error::usage(format!(
            "{shard_count} shards: from 1 to {SHARDS_MAX} are possible"
        )));
    }
    let paths = label::absolute(request.devices.iter())?;
    let forced = label::absolute(request.force_devices.iter())?;
    if let Some(other) = forced.iter().find(|path| !paths.contains(path)) {
        return Err(Error::usage(format!(
            "{} is to be overwritten, but is none of the devices",
            other.display()
        )));
    }
    let mut made = MadeFiles(Vec::new());
    let mut files = Vec::with_capacity(count);
    for path in &paths {
        if path.exists() {
            check_unused(path)?;
            if !request.force && !forced.contains(path) {
                check_empty(path)?;
            }
            files.push(DeviceFile::open(path).map_err(|error| device_error(&error))?);
        } else {
            let Some(size_bytes) = request.size_bytes else {
                return Err(Error::not_found(format!("{} does not exist", path.display()))
                    .hint("give --size to make sparse files"));
            };
            files.push(DeviceFile::create(path, size_bytes).map_err(|error| device_error(&error))?);
            made.0.push(path.clone());
        }
    }
    let files = PoolFiles::new(files);
    let spec = spec(request, shard_count, &files)?;
    for (index, path) in (0u8..).zip(&paths) {
        if request.force || forced.contains(path) {
            wipe(&files, DeviceIndex(index))
                .map_err(|error| Error::failure(format!("wiping {}: {error}", path.display())))?;
        }
    }
    let layout = format::make_pool(&mut Opener::new(files.clone()), &spec).map_err(|error| {
        let message = format!("making pool {}: {error}", request.name);
        match error {
            FormatError::Layout(_) | FormatError::Name => Error::usage(message),
            FormatError::Device { .. } => Error::failure(message),
        }
    })?;
    made.0.clear();
    let devices = PoolDevices {
        name: request.name.clone(),
        layout,
        paths,
        created_ns: spec.created_ns,
        remarks: Vec::new(),
    };
    Ok((devices, files))
}

fn spec(request: &CreatePool, shard_count: u16, files: &PoolFiles) -> Result<PoolSpec> {
    let devices = files.all().iter().map(|file| Ok((random()?, file.size_blocks())));
    Ok(PoolSpec {
        pool: random()?,
        name: request.name.clone(),
        shard_count,
        created_ns: wall_ns(),
        devices: devices.collect::<Result<_>>()?,
    })
}

/// Files that this command made; removed if it fails.
struct MadeFiles(Vec<PathBuf>);

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!("{} was made and cannot be removed: {error}", path.display());
            }
        }
    }
}

/// Refuses a device that somebody uses at this moment: force cannot help, the kernel keeps it for them.
fn check_unused(path: &Path) -> Result<()> {
    let used = Machine::here().block_device_at(path);
    let Some(holder) = used.and_then(|device| device.usage.holder_text()) else {
        return Ok(());
    };
    let message = format!("{} is in use: {holder}", path.display());
    Err(Error::conflict(message).hint("stop that first; stillpoint device show tells more"))
}

/// Refuses a device that holds something.
fn check_empty(path: &Path) -> Result<()> {
    let shown = path.display();
    let force = format!("--force {shown} destroys it");
    let (message, hint) = match content::look(path)? {
        Content::Nothing => {
            let partitions = Machine::here()
                .block_device_at(path)
                .map(|device| device.usage.partitions);
            match partitions {
                Some(partitions) if !partitions.is_empty() => (
                    format!("{shown} has partitions: {}", partitions.join(", ")),
                    format!("{force} and what is in them"),
                ),
                _ => return Ok(()),
            }
        }
        Content::Pool(name) => (
            format!("{shown} belongs to pool {name}"),
            format!("stillpoint pool open PATH... opens it; {force}"),
        ),
        Content::DamagedLabel(damage) => (format!("{shown} holds a pool's label: {damage}"), force),
        Content::Known(what) => (format!("{shown} holds {what}"), force),
        Content::Unknown => (format!("{shown} is not empty"), force),
    };
    Err(Error::conflict(message).hint(hint))
}

/// Takes the marks of what lay there away, so that nobody finds two things on the device, and its partitions out of the
/// kernel's table.
fn wipe(files: &Arc<PoolFiles>, device: DeviceIndex) -> Result<(), DeviceError> {
    let file = &files.all()[usize::from(device.0)];
    let whole_bytes = file.size_blocks() * BLOCK_BYTES as u64;
    let mut opener = Opener::new(files.clone());
    let mut zeros = |offset_bytes: u64, length_bytes: usize| {
        let length = whole_bytes.min(length_bytes as u64) as usize;
        let start = offset_bytes.min(whole_bytes - length as u64);
        opener.write(device, start, &vec![0; length])
    };
    zeros(0, content::FRONT_BYTES)?;
    zeros(whole_bytes, content::BACK_BYTES)?;
    opener.flush(device)?;
    file.forget_partitions();
    Ok(())
}

fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::failure(format!("no random numbers: {error}")))?;
    Ok(bytes)
}
