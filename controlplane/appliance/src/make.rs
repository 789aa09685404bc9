//! Making a pool: devices that are free, an identity, then what `processor::format` writes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::model::CreatePool;
use crate::appliance::device_error;
use crate::devices::content::{self, Content};
use crate::error::{Error, Result};
use crate::label::{self, PoolDevices};
use crate::pool::wall_ns;
use stillpoint_hw::device::{DeviceFile, DeviceFileError, Opener, PoolFiles, Problem};
use stillpoint_hw::discovery::Machine;
use stillpoint_ondisk::{DEVICES_MAX, SHARDS_MAX};
use stillpoint_processor::format::{self, FormatError, PoolSpec};

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
    if request.mirror && !count.is_multiple_of(2) {
        return Err(Error::usage(format!(
            "{count} devices: mirrors are made of pairs, the first with the second, the third with the fourth"
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
    let files = claim(request, &paths, &forced, &mut made)?;
    let spec = spec(request, shard_count, &files)?;
    let not_made = |error: FormatError| {
        let message = format!("making pool {}: {error}", request.name);
        match error {
            FormatError::Layout(_) | FormatError::Name => Error::usage(message),
            FormatError::Device { .. } => Error::failure(message),
        }
    };
    // Nothing is wiped for a pool that cannot be.
    format::plan(&spec).map_err(not_made)?;
    check_writable(&files)?;
    for (_, file) in files.present() {
        if request.force || forced.iter().any(|path| path == file.path()) {
            wipe(&file)
                .map_err(|error| Error::failure(format!("wiping {}: {error}", file.path().display())))?;
        }
    }
    let layout = format::make_pool(&mut Opener::new(files.clone()), &spec).map_err(not_made)?;
    made.0.clear();
    if layout.mirrored {
        return Ok((label::read(&paths)?, files));
    }
    let devices = PoolDevices {
        name: request.name.clone(),
        layout,
        paths,
        created_ns: spec.created_ns,
        remarks: Vec::new(),
        unplaced: Vec::new(),
        mirrors: None,
        outdated: Vec::new(),
        went_missing: Vec::new(),
        has_doubtful: false,
    };
    Ok((devices, files))
}

/// Opens and claims a device. What looks at disks that have just been written (udev) has a lock on them for a moment.
fn open_unless_probed(path: &Path) -> Result<DeviceFile, DeviceFileError> {
    const TRIES: u32 = 25;
    const PAUSE: Duration = Duration::from_millis(20);
    for _ in 1..TRIES {
        match DeviceFile::open(path) {
            Err(error) if matches!(error.problem, Problem::InUse { holder: Some(_) }) => thread::sleep(PAUSE),
            opened => return opened,
        }
    }
    DeviceFile::open(path)
}

/// The devices, claimed; those that do not exist are made.
fn claim(
    request: &CreatePool,
    paths: &[PathBuf],
    forced: &[PathBuf],
    made: &mut MadeFiles,
) -> Result<Arc<PoolFiles>> {
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        if path.exists() {
            files.push(claim_existing(path, request.force || forced.contains(path))?);
        } else {
            check_place(path)?;
            let Some(size_bytes) = request.size_bytes else {
                return Err(Error::not_found(format!("{} does not exist", path.display()))
                    .hint("give --size to make sparse files"));
            };
            files.push(DeviceFile::create(path, size_bytes).map_err(|error| device_error(&error))?);
            made.0.push(path.clone());
        }
    }
    Ok(PoolFiles::new(files))
}

fn claim_existing(path: &Path, force: bool) -> Result<DeviceFile> {
    check_unused(path)?;
    if !force {
        check_empty(path, content::look(path)?)?;
    }
    let file = open_unless_probed(path).map_err(|error| device_error(&error))?;
    if !force {
        check_claimed(&file)?;
    }
    Ok(file)
}

/// Claims a device that is to take the place of another; a file that does not exist is made, of `size_blocks`.
///
/// # Errors
/// Conflict if it is in use, or holds something and is not `force`d.
pub fn claim_another(path: &Path, size_blocks: u64, force: bool) -> Result<DeviceFile> {
    let path = label::absolute([path])?.remove(0);
    if path.exists() {
        return claim_existing(&path, force);
    }
    check_place(&path)?;
    DeviceFile::create(&path, size_blocks * stillpoint_processor::BLOCK_BYTES as u64)
        .map_err(|error| device_error(&error))
}

/// Refuses to make a file where devices are: it would be one in memory, made of a device's name that is misspelt or gone.
fn check_place(path: &Path) -> Result<()> {
    if path.starts_with("/dev") && !path.starts_with("/dev/shm") {
        return Err(Error::not_found(format!("{} does not exist", path.display()))
            .hint("there is no such device: `stillpoint device list` names those that are there"));
    }
    Ok(())
}

fn spec(request: &CreatePool, shard_count: u16, files: &PoolFiles) -> Result<PoolSpec> {
    let sizes: Vec<u64> = files.present().map(|(_, file)| file.size_blocks()).collect();
    let sides = if request.mirror { 2 } else { 1 };
    let device = |sizes: &[u64]| Ok((random()?, sizes.iter().copied().min().unwrap_or(0)));
    let devices = sizes.chunks(sides).map(device);
    let second_sides = sizes.chunks(sides).filter(|sides| sides.len() == 2);
    Ok(PoolSpec {
        pool: random()?,
        name: request.name.clone(),
        shard_count,
        created_ns: wall_ns(),
        devices: devices.collect::<Result<_>>()?,
        second_sides: second_sides.map(|_| random()).collect::<Result<_>>()?,
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

/// Looks once more at what is ours now: until it was claimed, others could write to it or put something else in its place.
fn check_claimed(file: &DeviceFile) -> Result<()> {
    check_empty(file.path(), content::look_claimed(file)?)
}

/// Refuses a device that holds something.
fn check_empty(path: &Path, content: Content) -> Result<()> {
    let shown = path.display();
    let force = format!("--force {shown} destroys it");
    let (message, hint) = match content {
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

/// Finds out whether all devices take writes before the first of them loses what it holds: by writing once more what is there
/// already, at the places that are written next.
fn check_writable(files: &PoolFiles) -> Result<()> {
    for (_, file) in files.present() {
        file.rewrite_ends().map_err(|error| {
            Error::failure(format!(
                "{} cannot be written: {error}; no device was changed",
                file.path().display()
            ))
        })?;
    }
    Ok(())
}

/// Takes the marks of what lay there away, so that nobody finds two things on the device, and its partitions out of the
/// kernel's table.
pub(crate) fn wipe(file: &DeviceFile) -> io::Result<()> {
    let length = file.size_bytes().min(content::END_BYTES as u64);
    file.write_zeros(0, length as usize)?;
    file.write_zeros(file.size_bytes() - length, length as usize)?;
    file.forget_partitions();
    Ok(())
}

pub(crate) fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::failure(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::label::Found;
    use std::os::unix::fs::FileExt;

    const MIB: usize = 1 << 20;

    fn request(path: &Path) -> CreatePool {
        CreatePool {
            name: "p".to_owned(),
            devices: vec![path.display().to_string()],
            size_bytes: None,
            shards: Some(2),
            mirror: false,
            force: false,
            force_devices: vec![path.display().to_string()],
        }
    }

    #[test]
    fn nothing_is_wiped_for_a_pool_that_cannot_be() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let too_small = (3 * MIB, request(&path));
        let mut named_too_long = (64 * MIB, request(&path));
        named_too_long.1.name = "p".repeat(format::NAME_BYTES_MAX + 1);
        let mut of_too_many_shards = (64 * MIB, request(&path));
        of_too_many_shards.1.shards = Some(256);
        for (size_bytes, request) in [too_small, named_too_long, of_too_many_shards] {
            let held = vec![b'x'; size_bytes];
            std::fs::write(&path, &held).expect("written");
            let refused = make_pool(&request, 2).expect_err("cannot be");
            assert_eq!(refused.kind, ErrorKind::Usage, "{}", refused.message);
            assert!(
                std::fs::read(&path).expect("there") == held,
                "{}",
                refused.message
            );
        }
    }

    #[test]
    fn both_ends_are_wiped_up_to_the_last_byte() {
        for size_bytes in [
            64 * MIB,
            64 * MIB + 512,
            64 * MIB + 60 * 1024 + 1536,
            64 * MIB + 7,
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("disk");
            std::fs::write(&path, vec![b'x'; size_bytes]).expect("written");
            drop(make_pool(&request(&path), 2).expect("a pool"));
            assert!(matches!(label::look(&path), Ok(Found::Label { .. })));
            let file = File::open(&path).expect("there");
            assert_eq!(file.metadata().expect("there").len(), size_bytes as u64);
            // Before the second label, and after it.
            let label = size_bytes / 4096 * 4096 - 4096;
            let before = size_bytes - MIB;
            for (start, end) in [(before, label), (label + 4096, size_bytes)] {
                let mut rest = vec![1; end - start];
                file.read_exact_at(&mut rest, start as u64).expect("there");
                assert!(
                    rest.iter().all(|&byte| byte == 0),
                    "{start} to {end} of {size_bytes}"
                );
            }
        }
    }

    #[test]
    fn what_came_between_the_look_and_the_claim_is_seen() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![b'x'; MIB]).expect("written");
        let claimed = DeviceFile::open(&path).expect("free");
        // The name leads to something empty; what is claimed is not.
        std::fs::rename(&path, directory.path().join("moved")).expect("renamed");
        std::fs::write(&path, vec![0; MIB]).expect("written");
        check_empty(&path, content::look(&path).expect("readable")).expect("empty");
        let refused = check_claimed(&claimed).expect_err("not empty");
        assert_eq!(refused.kind, ErrorKind::Conflict, "{}", refused.message);
        // And what is written to it after it was claimed.
        let claimed = DeviceFile::open(&path).expect("free");
        check_claimed(&claimed).expect("empty");
        let written = File::options().write(true).open(&path).expect("there");
        written.write_all_at(b"EFI PART", 512).expect("written");
        let refused = check_claimed(&claimed).expect_err("not empty");
        assert!(
            refused.message.contains("a GPT partition table"),
            "{}",
            refused.message
        );
    }
}
