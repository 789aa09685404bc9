//! The block devices of this machine: what they are, who uses them, what lies on them.

pub mod content;
pub mod model;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use model::{
    BlockDevice, DeviceUse, FormatInfo, IdentifiedInfo, InterruptInfo, NvmeInfo, PciInfo, SmartInfo,
};
use stillpoint_hw::device::nvme::polling_refusal;
use stillpoint_hw::device::nvme::smart::SmartLog;
use stillpoint_hw::discovery::nvme::Identified;
pub use stillpoint_hw::discovery::nvme::block_name;
use stillpoint_hw::discovery::{BlockDeviceInfo, Machine, Namespace, Pci, Usage};

/// What an NVMe data unit is: a thousand blocks of 512 bytes.
const DATA_UNIT_BYTES: u128 = 512_000;

/// All block devices. Reads from each and asks NVMe devices, so it may take a moment.
#[must_use]
pub fn list() -> Vec<BlockDevice> {
    Machine::here().block_devices().iter().map(describe).collect()
}

/// One of them, by its name in `/dev`; the name of its generic character device (`ng0n1`) will do too.
///
/// # Errors
/// Not found.
pub fn show(name: &str) -> Result<BlockDevice> {
    let block = block_name(name);
    let found = Machine::here().block_device(&block);
    found.map(|info| describe(&info)).ok_or_else(|| {
        Error::not_found(format!("there is no block device {block:?}"))
            .hint("stillpoint device list shows those there are; a partition is shown with its device")
    })
}

/// A pool of this daemon.
#[derive(Clone, Debug)]
pub struct PoolOn {
    /// Its name.
    pub name: String,
    /// The paths of its block devices, and how much of each it does not use, in bytes.
    pub devices: Vec<(PathBuf, u64)>,
    /// Paths by which it knows its devices, also those that it does without.
    pub known: Vec<PathBuf>,
}

/// Adds the pools that lie on these devices.
pub fn add_pools(devices: &mut [BlockDevice], pools: &[PoolOn]) {
    let machine = Machine::here();
    for pool in pools {
        for (path, unused_bytes) in &pool.devices {
            for device in found_at(&machine, devices, path) {
                device.used_by.insert(0, used("pool", &pool.name));
                device.unused_bytes = *unused_bytes;
                add_path(device, path);
            }
        }
        for path in &pool.known {
            found_at(&machine, devices, path).for_each(|device| add_path(device, path));
        }
    }
}

/// Those of these devices that a path leads to.
fn found_at<'a>(
    machine: &Machine,
    devices: &'a mut [BlockDevice],
    path: &Path,
) -> impl Iterator<Item = &'a mut BlockDevice> {
    let name = machine.block_name_at(path);
    devices
        .iter_mut()
        .filter(move |device| Some(&device.name) == name.as_ref())
}

fn add_path(device: &mut BlockDevice, path: &Path) {
    let path = path.display().to_string();
    if path != device.path && !device.pool_paths.contains(&path) {
        device.pool_paths.push(path);
    }
}

fn used(kind: &str, name: &str) -> DeviceUse {
    DeviceUse {
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

fn describe(info: &BlockDeviceInfo) -> BlockDevice {
    let (content, content_error) = match content::look(&info.path) {
        Ok(content) => (content.text(), None),
        Err(error) => (None, Some(error.message)),
    };
    BlockDevice {
        name: info.name.clone(),
        path: info.path.display().to_string(),
        size_bytes: info.size_bytes,
        logical_block_bytes: info.logical_block_bytes,
        physical_block_bytes: info.physical_block_bytes,
        read_only: info.read_only,
        model: info.model.clone(),
        serial: info.serial.clone(),
        driver: info.driver.clone(),
        volatile_write_cache: info.volatile_write_cache,
        fua: info.fua,
        discard: info.discard_bytes_max > 0,
        write_zeroes: info.write_zeroes_bytes_max > 0,
        transfer_bytes_max: info.transfer_bytes_max,
        queues: info.queue_cores.len() as u64,
        polled: info.polled,
        numa_node: info.numa_node,
        pci: info.pci.as_ref().map(describe_pci),
        nvme: info.nvme.as_ref().map(describe_nvme),
        partitions: info.usage.partitions.clone(),
        used_by: uses(&info.usage),
        unused_bytes: 0,
        pool_paths: Vec::new(),
        content,
        content_error,
    }
}

fn uses(usage: &Usage) -> Vec<DeviceUse> {
    let mounts = usage.mounts.iter().map(|mount| used("mount", &mount.path));
    let swaps = usage.swaps.iter().map(|device| used("swap", device));
    let holders = usage.holders.iter().map(|holder| used("holder", holder));
    mounts.chain(swaps).chain(holders).collect()
}

fn describe_pci(pci: &Pci) -> PciInfo {
    let interrupts = pci.interrupts.iter().map(|interrupt| InterruptInfo {
        number: interrupt.number,
        cores: interrupt.cores.clone(),
    });
    PciInfo {
        address: pci.address.clone(),
        driver: pci.driver.clone(),
        link_speed: pci.link_speed.clone(),
        link_speed_max: pci.link_speed_max.clone(),
        link_width: pci.link_width,
        link_width_max: pci.link_width_max,
        interrupts: interrupts.collect(),
    }
}

fn describe_nvme(nvme: &Namespace) -> NvmeInfo {
    let (identified, identify_error) = match &nvme.identified {
        Ok(identified) => (Some(describe_identified(identified)), None),
        Err(unasked) => (
            None,
            Some(format!("{}: {}", unasked.path.display(), unasked.reason)),
        ),
    };
    NvmeInfo {
        controller: nvme.controller.clone(),
        namespace: nvme.number,
        generic: nvme.generic.as_ref().map(|path| path.display().to_string()),
        transport: nvme.transport.clone(),
        firmware: nvme.firmware.clone(),
        nguid: nvme.nguid.clone(),
        eui64: nvme.eui64.clone(),
        queues: nvme.queues,
        poll_queues: nvme.poll_queues,
        poll_queues_unused: polling_refusal().filter(|_| nvme.poll_queues > 0),
        identified,
        identify_error,
    }
}

fn describe_identified(identified: &Identified) -> IdentifiedInfo {
    let Identified {
        controller,
        namespace,
        smart,
    } = identified;
    let in_use = namespace.format_index();
    let formats = namespace.lba_formats().iter().enumerate();
    let formats = formats.map(|(index, format)| FormatInfo {
        index: index as u32,
        data_bytes: format.data_bytes(),
        metadata_bytes: u32::from(format.metadata_bytes.get()),
        relative_performance: format.performance & 3,
        in_use: index == in_use,
    });
    IdentifiedInfo {
        version: controller.version_text(),
        subsystem: identified.subsystem(),
        // Formats that the device does not support have no size.
        formats: formats.filter(|format| format.data_bytes > 0).collect(),
        transfer_bytes_max: controller.transfer_bytes_max(),
        volatile_write_cache: controller.has_volatile_write_cache(),
        atomic_write_bytes: namespace.atomic_bytes(controller),
        deallocate: controller.deallocates(),
        write_zeroes: controller.writes_zeroes(),
        smart: smart.as_deref().ok().map(describe_smart),
        smart_error: smart.as_ref().err().cloned(),
    }
}

fn describe_smart(log: &SmartLog) -> SmartInfo {
    let short = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
    let bytes = |units: u128| short(units.saturating_mul(DATA_UNIT_BYTES));
    SmartInfo {
        warnings: log.warnings().iter().map(|&warning| warning.to_owned()).collect(),
        temperature_celsius: log.celsius(),
        spare_percent: log.spare_percent,
        spare_threshold_percent: log.spare_threshold_percent,
        used_percent: log.used_percent,
        read_bytes: bytes(log.data_units_read.get()),
        written_bytes: bytes(log.data_units_written.get()),
        power_on_hours: short(log.power_on_hours.get()),
        power_cycles: short(log.power_cycles.get()),
        unsafe_shutdowns: short(log.unsafe_shutdowns.get()),
        media_errors: short(log.media_errors.get()),
        error_log_entries: short(log.error_log_entries.get()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_hw::device::nvme::identify::{IDENTIFY_BYTES, IdentifyController, IdentifyNamespace};

    #[test]
    fn why_the_health_of_a_device_cannot_be_read_is_told() {
        let bytes = [0; IDENTIFY_BYTES];
        let told = describe_identified(&Identified {
            controller: Box::new(IdentifyController::read(&bytes).expect("the right size")),
            namespace: Box::new(IdentifyNamespace::read(&bytes).expect("the right size")),
            smart: Err("Invalid Log Page".to_owned()),
        });
        assert_eq!(told.smart, None);
        assert_eq!(told.smart_error.as_deref(), Some("Invalid Log Page"));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(
            show("no-such-device").expect_err("none").kind,
            crate::ErrorKind::NotFound
        );
    }
}
