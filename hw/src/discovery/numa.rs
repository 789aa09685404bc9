//! Which NUMA nodes devices lie near to. Asks no device: sysfs says it.

use super::sysfs::Directory;
use super::{Machine, Pci, Usage, nvme, usage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Devices that are made of others, which are made of others: so often at most.
const LAYERS_MAX: usize = 8;

impl Machine {
    /// How many devices lie near each NUMA node, of those that these paths lead to: a block device, a partition, either
    /// device of an NVMe namespace, what is made of several (md, dm: each counts), or a file on one of these. What does not
    /// say where it lies counts nowhere.
    #[must_use]
    pub fn nodes_of(&self, paths: &[PathBuf]) -> BTreeMap<u32, usize> {
        count(paths.iter().flat_map(|path| self.nodes_of_path(path)))
    }

    /// The same of the NVMe namespaces that nobody uses.
    #[must_use]
    pub fn nodes_of_free_namespaces(&self) -> BTreeMap<u32, usize> {
        let names = self.sys("block").names();
        let of_name = |name: &String| {
            let block = self.sys("block").below(name);
            let is_shown = block.number("hidden") != Some(1) && block.number("size").unwrap_or(0) > 0;
            let is_free = name.starts_with("nvme") && is_shown && !Usage::of(self, &block, name).is_in_use();
            if is_free {
                self.nodes_of_block(&block.resolved(), LAYERS_MAX)
            } else {
                Vec::new()
            }
        };
        count(names.iter().flat_map(of_name))
    }

    /// The cores of a NUMA node, as `0-3,8`; `None` if it has none, or is none.
    #[must_use]
    pub fn cores_of_node(&self, node: u32) -> Option<String> {
        self.sys("devices/system/node")
            .below(&format!("node{node}"))
            .text("cpulist")
    }

    fn nodes_of_path(&self, path: &Path) -> Vec<u32> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let Ok(metadata) = std::fs::metadata(nvme::block_path(path)) else {
            return Vec::new();
        };
        let number = match metadata.file_type().is_block_device() {
            true => metadata.rdev(),
            false => metadata.dev(),
        };
        let block = self.sys("dev/block").below(&usage::number_text(number));
        self.nodes_of_block(&block.resolved(), LAYERS_MAX)
    }

    /// Of a disk or a partition, by its real directory; of what it is made of, so many layers down at most.
    fn nodes_of_block(&self, block: &Path, layers: usize) -> Vec<u32> {
        let own = Directory::new(block.to_owned());
        let disk = match block.parent() {
            Some(disk) if own.below("partition").exists() => Directory::new(disk.to_owned()),
            _ => own,
        };
        let home = match nvme::controller_at(&disk.below("device").resolved()) {
            // A namespace of several controllers lies below none of them.
            Some(controller) => self.sys("class/nvme").below(&controller).resolved(),
            None => disk.resolved(),
        };
        if let Some(pci) = Pci::above(self, &home) {
            return pci.numa_node.into_iter().collect();
        }
        let lower = disk.below("slaves");
        let names = if layers > 0 { lower.names() } else { Vec::new() };
        let of_lower = |name: &String| self.nodes_of_block(&lower.below(name).resolved(), layers - 1);
        names.iter().flat_map(of_lower).collect()
    }
}

fn count(nodes: impl Iterator<Item = u32>) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for node in nodes {
        *counts.entry(node).or_insert(0) += 1;
    }
    counts
}
