//! Which block devices this machine has, what they are and who uses them: from sysfs and procfs, and for NVMe from what
//! the devices say about themselves.
//!
//! | module | what |
//! |---|---|
//! | [`usage`] | partitions, volume managers, mounts and swap |
//! | [`nvme`] | the namespace and its controller |
//! | [`pci`] | where it is plugged in: link, NUMA node, interrupts |
//! | `numa` | the NUMA nodes of paths, whatever these lead to |
//!
//! What a device or a kernel does not tell is `None`, not a failure: a list of devices always comes.

mod numa;
pub mod nvme;
pub mod pci;
mod sysfs;
#[cfg(test)]
mod tests;
pub mod usage;

pub use nvme::Namespace;
pub use pci::{Interrupt, Pci};
pub use usage::Usage;

use std::path::{Path, PathBuf};
use sysfs::Directory;

/// A machine whose devices are looked for: this one, or what looks like one.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
}

/// A block device.
#[derive(Clone, Debug)]
pub struct BlockDeviceInfo {
    /// The kernel's name, as `nvme0n1`.
    pub name: String,
    /// Its path, as `/dev/nvme0n1`.
    pub path: PathBuf,
    /// Its size; 0 if there is nothing in it (a loop device without a file).
    pub size_bytes: u64,
    /// The smallest transfer.
    pub logical_block_bytes: u64,
    /// What it writes at once.
    pub physical_block_bytes: u64,
    /// It cannot be written.
    pub read_only: bool,
    /// Model, if it tells.
    pub model: Option<String>,
    /// Serial number, if it tells.
    pub serial: Option<String>,
    /// The kernel's driver.
    pub driver: Option<String>,
    /// Whether what was written may be lost with the power before a flush.
    pub volatile_write_cache: Option<bool>,
    /// Whether single writes can be made durable.
    pub fua: bool,
    /// The longest discard; 0: none.
    pub discard_bytes_max: u64,
    /// The longest write of zeros that need not be sent; 0: none.
    pub write_zeroes_bytes_max: u64,
    /// The longest transfer that the kernel passes on as one.
    pub transfer_bytes_max: u64,
    /// Pieces of memory of one transfer at most.
    pub segments_max: u64,
    /// The cores that submit to each hardware queue, as `0-3,8`, in the order of queues. A core can be in two: one with an interrupt,
    /// then one that is polled.
    pub queue_cores: Vec<String>,
    /// Where the kernel handles a completion (`rq_affinity`): 0 where its interrupt is, 1 on a core that shares a cache with the one that
    /// submitted, 2 on that very one.
    pub completion_affinity: Option<u64>,
    /// Whether the kernel can poll for completions.
    pub polled: bool,
    /// NUMA node that it is near to, if the machine has several.
    pub numa_node: Option<u32>,
    /// Where it is plugged in.
    pub pci: Option<Pci>,
    /// Who uses it.
    pub usage: Usage,
    /// What it is as a namespace of an NVMe controller.
    pub nvme: Option<Namespace>,
}

/// What the kernel polls for: what it need not cut into several requests. The others it completes by interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// Bytes of a request at most.
    bytes_max: u64,
    /// No request crosses a multiple of so many bytes of the disk; 0: all may.
    chunk_bytes: u64,
    /// Where a partition begins on its disk.
    start_bytes: u64,
}

/// A block device, or a partition of one, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockNode {
    /// Its path, as `/dev/nvme0n1`.
    pub path: PathBuf,
    /// What is another one for another device of this name, or one of another size.
    pub mark: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        Self::at(Path::new("/"))
    }

    /// The one whose `sys`, `proc` and `dev` lie in `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Its block devices that have a size, without partitions, by name. The paths to a namespace of several controllers are
    /// hidden: nobody can open them.
    #[must_use]
    pub fn block_devices(&self) -> Vec<BlockDeviceInfo> {
        let names = self.sys("block").names();
        let found = names.iter().filter_map(|name| self.block_device(name));
        let is_shown = |device: &BlockDeviceInfo| {
            device.size_bytes > 0 && self.sys("block").below(&device.name).number("hidden") != Some(1)
        };
        let mut found: Vec<_> = found.filter(is_shown).collect();
        found.sort_by_cached_key(|device| natural(&device.name));
        found
    }

    /// The block device of this name (`nvme0n1`), whatever its size; `None` if there is none.
    #[must_use]
    pub fn block_device(&self, name: &str) -> Option<BlockDeviceInfo> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return None;
        }
        let block = self.sys("block").below(name);
        if !block.exists() {
            return None;
        }
        let (queue, device) = (block.below("queue"), block.below("device"));
        let nvme = Namespace::of(self, &block);
        let home = match &nvme {
            // A namespace of several controllers lies below none of them.
            Some(nvme) => self.sys("class/nvme").below(&nvme.controller).resolved(),
            None => device.resolved(),
        };
        let pci = Pci::above(self, &home);
        let own = |name: &str| device.text(name);
        Some(BlockDeviceInfo {
            name: name.to_owned(),
            path: Path::new("/dev").join(name),
            size_bytes: block.number("size").unwrap_or(0) * SECTOR_BYTES,
            logical_block_bytes: queue.number("logical_block_size").unwrap_or(SECTOR_BYTES),
            physical_block_bytes: queue.number("physical_block_size").unwrap_or(SECTOR_BYTES),
            read_only: block.number("ro") == Some(1),
            model: nvme
                .as_ref()
                .map_or_else(|| own("model"), |nvme| nvme.model.clone()),
            serial: match &nvme {
                Some(nvme) => nvme.serial.clone(),
                None => own("serial").or_else(|| block.text("serial")),
            },
            driver: match &nvme {
                Some(_) => Some("nvme".to_owned()),
                None => device.below("driver").link_name(),
            },
            volatile_write_cache: queue.text("write_cache").map(|text| text == "write back"),
            fua: queue.number("fua") == Some(1),
            discard_bytes_max: queue.number("discard_max_bytes").unwrap_or(0),
            write_zeroes_bytes_max: queue.number("write_zeroes_max_bytes").unwrap_or(0),
            transfer_bytes_max: queue.number("max_hw_sectors_kb").unwrap_or(0) * 1024,
            segments_max: queue.number("max_segments").unwrap_or(0),
            queue_cores: queue_cores(&block.below("mq")),
            completion_affinity: queue.number("rq_affinity"),
            polled: queue.number("io_poll") == Some(1),
            numa_node: pci.as_ref().and_then(|pci| pci.numa_node),
            pci,
            usage: Usage::of(self, &block, name),
            nvme,
        })
    }

    /// The block device that a path is, by its number: whatever links lead there. A partition has no own; `None` then, and
    /// for what is no block device.
    #[must_use]
    pub fn block_device_at(&self, path: &Path) -> Option<BlockDeviceInfo> {
        self.block_device(&self.block_name_at(path)?)
    }

    /// The name of that device. Asks nothing of it.
    #[must_use]
    pub fn block_name_at(&self, path: &Path) -> Option<String> {
        let block = self.block_directory_at(path)?;
        let name = block.file_name()?.to_str()?;
        (self.sys("block").below(name).exists()).then(|| name.to_owned())
    }

    /// Where the kernel tells of the block device at a path; of a partition, below its disk.
    fn block_directory_at(&self, path: &Path) -> Option<PathBuf> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let metadata = std::fs::metadata(path).ok()?;
        if !metadata.file_type().is_block_device() {
            return None;
        }
        Some(self.block_directory(metadata.rdev()))
    }

    /// The same for the block device of this number.
    fn block_directory(&self, number: u64) -> PathBuf {
        let number = usage::number_text(number);
        self.sys("dev/block").below(&number).resolved()
    }

    /// What the kernel polls for of all that is read and written through the block device of this number, which may be a partition;
    /// `None`: nothing. Asks nothing of the device. (A path may lead to another one by now than to the one that was opened.)
    #[must_use]
    pub fn polled_of(&self, number: u64) -> Option<Polled> {
        Polled::of(&Directory::new(self.block_directory(number)))
    }

    /// What can be opened as a block device and has a size: disks and their partitions. Asks no device.
    #[must_use]
    pub fn block_nodes(&self) -> Vec<BlockNode> {
        let mut nodes = Vec::new();
        for name in self.sys("block").names() {
            let disk = self.sys("block").below(&name);
            // Raised each time that a disk comes or its content is changed for another (Linux 5.15).
            let sequence = disk.number("diskseq").unwrap_or(0);
            let mut add = |directory: &Directory, name: &str| {
                let size = directory.number("size").unwrap_or(0);
                let number = directory.text("dev").unwrap_or_default();
                if size > 0 && directory.number("hidden") != Some(1) {
                    nodes.push(BlockNode {
                        path: self.device_file(name),
                        mark: format!("{number}:{sequence}:{size}"),
                    });
                }
            };
            add(&disk, &name);
            for part in disk.names().iter().filter(|part| part.starts_with(&name)) {
                let directory = disk.below(part);
                if directory.below("partition").exists() {
                    add(&directory, part);
                }
            }
        }
        nodes
    }

    fn sys(&self, path: &str) -> Directory {
        Directory::new(self.root.join("sys").join(path))
    }

    fn proc(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join("proc").join(path)).ok()
    }

    fn device_file(&self, name: &str) -> PathBuf {
        self.root.join("dev").join(name)
    }
}

impl BlockDeviceInfo {
    /// The interrupt of the queue that a core submits to; `None` if that is not known. A controller's first interrupt is for its
    /// administration.
    #[must_use]
    pub fn interrupt_for(&self, core: u32) -> Option<&Interrupt> {
        let queue = self.queue_cores.iter().position(|cores| is_among(cores, core))?;
        self.pci.as_ref()?.interrupts.get(queue + 1)
    }
}

/// Whether a core is among these, as `0-3,8` or `0, 1, 2`.
#[must_use]
pub fn is_among(cores: &str, core: u32) -> bool {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    cores.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first), number(last));
        first.is_some_and(|first| first <= core) && last.is_some_and(|last| core <= last)
    })
}

fn queue_cores(queues: &Directory) -> Vec<String> {
    let cores = |number: usize| queues.below(&number.to_string()).text("cpu_list");
    let all = 0..queues.names().len();
    all.map(|number| cores(number).unwrap_or_default()).collect()
}

impl Polled {
    /// Whatever is not longer than this.
    #[cfg(test)]
    pub(crate) fn up_to(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            chunk_bytes: 0,
            start_bytes: 0,
        }
    }

    fn of(block: &Directory) -> Option<Self> {
        let is_partition = block.below("partition").exists();
        let queue = block.below(if is_partition { "../queue" } else { "queue" });
        // What device mapper cuts where its targets meet, or at stripes, stands nowhere here.
        if queue.number("io_poll") != Some(1) || block.below("dm").exists() {
            return None;
        }
        let transfer_bytes = queue.number("max_sectors_kb")? << 10;
        // What does not begin with a page is in one page more than it has.
        let segments_bytes = queue.number("max_segments")?.saturating_sub(1) * PAGE_BYTES;
        Some(Self {
            bytes_max: transfer_bytes.min(segments_bytes),
            chunk_bytes: queue.number("chunk_sectors").unwrap_or(0) * SECTOR_BYTES,
            start_bytes: block.number("start").unwrap_or(0) * SECTOR_BYTES,
        })
    }

    /// Whether it polls for this range of the block device.
    #[must_use]
    pub fn takes(&self, offset_bytes: u64, length_bytes: u64) -> bool {
        let first_byte = self.start_bytes + offset_bytes;
        let chunk = |byte: u64| byte.checked_div(self.chunk_bytes);
        (1..=self.bytes_max).contains(&length_bytes)
            && chunk(first_byte) == chunk(first_byte + length_bytes - 1)
    }
}

/// Bytes of a page of memory.
const PAGE_BYTES: u64 = 4096;

/// What sysfs counts sizes in, whatever the device.
const SECTOR_BYTES: u64 = 512;

/// A name cut into words and numbers, so that `nvme10n1` comes after `nvme9n1`.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let word_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        let number_end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(number_end);
        parts.push((word.to_owned(), number.parse().unwrap_or(0)));
        rest = after;
    }
    parts
}
