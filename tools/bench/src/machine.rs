//! The machine that a run ran on, as the kernel tells it in `/proc` and `/sys`. What it does not tell is left out.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The kernel's name, release and version.
    pub kernel: String,
    /// The processor's model.
    pub cpu: String,
    /// Logical processors that this process may use.
    pub cpus: usize,
    /// How their clocks are governed; empty if the kernel has no say in it (most virtual machines).
    pub governor: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// What requests went to in the end, as far as it is known.
    pub devices: Vec<Device>,
}

/// A file or block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its path.
    pub path: String,
    /// Past the page cache or through it.
    pub direct: bool,
    /// Of a file: its file system.
    pub filesystem: Option<String>,
    /// The disk behind, as the kernel calls it.
    pub disk: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// `write back` (it has a volatile cache) or `write through`.
    pub write_cache: Option<String>,
    /// Schedulers, the chosen one in brackets.
    pub scheduler: Option<String>,
    /// It turns.
    pub rotational: Option<bool>,
}

impl Machine {
    /// This one. `devices` are paths, each with whether it is used past the page cache.
    #[must_use]
    pub fn this(devices: &[(PathBuf, bool)]) -> Self {
        let kernel = ["ostype", "osrelease", "version"]
            .map(|name| line(&PathBuf::from("/proc/sys/kernel").join(name)).unwrap_or_default());
        Self {
            kernel: kernel.join(" ").trim().to_owned(),
            cpu: named("/proc/cpuinfo", "model name").unwrap_or_default(),
            cpus: stillpoint_hw::topology::allowed_cores().len(),
            governor: line(Path::new("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
                .unwrap_or_default(),
            memory_bytes: memory_bytes().unwrap_or(0),
            devices: devices
                .iter()
                .map(|(path, direct)| Device::at(path, *direct))
                .collect(),
        }
    }
}

impl Device {
    fn at(path: &Path, direct: bool) -> Self {
        let mut device = Self {
            path: path.display().to_string(),
            direct,
            ..Self::default()
        };
        let Ok(metadata) = fs::metadata(path) else {
            return device;
        };
        let disk = if metadata.file_type().is_block_device() {
            disk_of(metadata.rdev())
        } else {
            let mount = mount_of(metadata.dev());
            let source = mount.as_ref().and_then(|(_, source)| disk_named(source));
            device.filesystem = mount.map(|(kind, _)| kind);
            disk_of(metadata.dev()).or(source)
        };
        let Some(disk) = disk else {
            return device;
        };
        device.disk = disk.file_name().map(|name| name.to_string_lossy().into_owned());
        device.model = line(&disk.join("device/model"));
        device.write_cache = line(&disk.join("queue/write_cache"));
        device.scheduler = line(&disk.join("queue/scheduler"));
        device.rotational = line(&disk.join("queue/rotational")).map(|text| text == "1");
        device
    }
}

/// The disk of a device number in `/sys`; of a partition, the disk it is on.
fn disk_of(number: u64) -> Option<PathBuf> {
    let major = (number >> 8) & 0xfff | (number >> 32) & !0xfff;
    let minor = number & 0xff | (number >> 12) & !0xff;
    whole(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))
}

/// The disk of this path in `/dev`.
fn disk_named(source: &str) -> Option<PathBuf> {
    let name = Path::new(source).strip_prefix("/dev").ok()?;
    whole(&Path::new("/sys/class/block").join(name))
}

fn whole(place: &Path) -> Option<PathBuf> {
    let place = fs::canonicalize(place).ok()?;
    match place.join("partition").exists() {
        true => place.parent().map(Path::to_owned),
        false => Some(place),
    }
}

/// Kind and source of the file system with this device number.
fn mount_of(number: u64) -> Option<(String, String)> {
    let major = (number >> 8) & 0xfff | (number >> 32) & !0xfff;
    let minor = number & 0xff | (number >> 12) & !0xff;
    let wanted = format!("{major}:{minor}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(wanted.as_str()))?;
    let (_, behind) = line.split_once(" - ")?;
    let mut words = behind.split(' ');
    Some((words.next()?.to_owned(), words.next()?.to_owned()))
}

fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn named(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_bytes() -> Option<u64> {
    let text = named("/proc/meminfo", "MemTotal")?;
    let kib: u64 = text.trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let nowhere = PathBuf::from("/nowhere/at/all");
        let machine = Machine::this(&[(file.path().to_owned(), true), (nowhere, false)]);
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
        assert!(machine.cpus > 0 && machine.memory_bytes > 1 << 20);
        assert!(machine.devices[0].filesystem.is_some() && machine.devices[0].direct);
        assert_eq!(machine.devices[1].disk, None);
    }
}
