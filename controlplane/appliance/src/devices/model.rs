//! The JSON of devices. Sizes are bytes; fields are added, never renamed. What a device does not tell is `null`.

use serde::{Deserialize, Serialize};

/// GET `/v1/devices`, `/v1/devices/{name}`: a block device of the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// The kernel's name, as `nvme0n1`.
    pub name: String,
    /// Its path.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// The smallest transfer.
    pub logical_block_bytes: u64,
    /// What it writes at once.
    pub physical_block_bytes: u64,
    /// It cannot be written.
    pub read_only: bool,
    /// Model.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// The kernel's driver.
    pub driver: Option<String>,
    /// Whether what was written may be lost with the power before a flush.
    pub volatile_write_cache: Option<bool>,
    /// Whether single writes can be made durable (force unit access).
    pub fua: bool,
    /// Whether it takes discards (deallocate).
    pub discard: bool,
    /// Whether it writes zeros without being sent them.
    pub write_zeroes: bool,
    /// The longest transfer that the kernel passes on as one.
    pub transfer_bytes_max: u64,
    /// Hardware queues of the kernel's block layer.
    pub queues: u64,
    /// Whether the kernel can poll for completions.
    pub polled: bool,
    /// NUMA node that it is near to, on machines with several.
    pub numa_node: Option<u32>,
    /// Where it is plugged in.
    pub pci: Option<PciInfo>,
    /// What it is as an NVMe namespace.
    pub nvme: Option<NvmeInfo>,
    /// Its partitions.
    pub partitions: Vec<String>,
    /// Who uses it or one of its partitions.
    pub used_by: Vec<DeviceUse>,
    /// What the pool that lies on it does not use: it has become larger since the pool was made.
    #[serde(default)]
    pub unused_bytes: u64,
    /// Other paths, as `/dev/disk/by-id/...`, by which pools name it: what is told of these is told of it.
    #[serde(default)]
    pub pool_paths: Vec<String>,
    /// What lies on it, in words; `null` for nothing.
    pub content: Option<String>,
    /// Why what lies on it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_error: Option<String>,
}

/// Who uses a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceUse {
    /// `pool` (of this daemon), `mount`, `swap` or `holder` (device mapper, RAID).
    pub kind: String,
    /// The pool, the directory, the device that is used as swap, or the device made of it.
    pub name: String,
}

/// A PCI function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciInfo {
    /// Its address, as `0000:01:00.0`.
    pub address: String,
    /// The kernel's driver.
    pub driver: Option<String>,
    /// Speed of the link, as `16.0 GT/s PCIe`.
    pub link_speed: Option<String>,
    /// The best that the device can.
    pub link_speed_max: Option<String>,
    /// Lanes of the link.
    pub link_width: Option<u32>,
    /// The most that the device can.
    pub link_width_max: Option<u32>,
    /// Its interrupts.
    pub interrupts: Vec<InterruptInfo>,
}

/// An interrupt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptInfo {
    /// Its number.
    pub number: u32,
    /// The cores that handle it, as `0-3,8`.
    pub cores: String,
}

/// An NVMe namespace and its controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NvmeInfo {
    /// The controller, as `nvme0`.
    pub controller: String,
    /// Number of the namespace on it.
    pub namespace: Option<u32>,
    /// Path for commands of one's own (pass-through).
    pub generic: Option<String>,
    /// `pcie`, `tcp`...
    pub transport: Option<String>,
    /// Firmware revision.
    pub firmware: Option<String>,
    /// Globally unique identifier.
    pub nguid: Option<String>,
    /// IEEE identifier.
    pub eui64: Option<String>,
    /// Queues for input and output.
    pub queues: Option<u32>,
    /// Of these, polled ones.
    pub poll_queues: u32,
    /// Why poll queues are not used, if there are some and they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_queues_unused: Option<String>,
    /// What the device says about itself; `null` if it was not asked.
    pub identified: Option<IdentifiedInfo>,
    /// Why it was not asked, or did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identify_error: Option<String>,
}

/// What an NVMe device says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IdentifiedInfo {
    /// Version of the specification.
    pub version: String,
    /// Name of the subsystem.
    pub subsystem: String,
    /// The LBA formats.
    pub formats: Vec<FormatInfo>,
    /// The longest transfer (MDTS); `null`: no limit.
    pub transfer_bytes_max: Option<u64>,
    /// Whether it has a write cache that loses its content with the power.
    pub volatile_write_cache: bool,
    /// What is written whole or not at all if power fails.
    pub atomic_write_bytes: u64,
    /// Whether it takes Dataset Management (deallocate).
    pub deallocate: bool,
    /// Whether it takes Write Zeroes.
    pub write_zeroes: bool,
    /// Its health; `null` if it cannot be read.
    pub smart: Option<SmartInfo>,
    /// Why its health cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smart_error: Option<String>,
}

/// An LBA format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatInfo {
    /// Its number.
    pub index: u32,
    /// Bytes of a block.
    pub data_bytes: u32,
    /// Bytes of metadata of each block.
    pub metadata_bytes: u32,
    /// 0 is best.
    pub relative_performance: u8,
    /// Whether it is in use.
    pub in_use: bool,
}

/// The health of an NVMe device. Counters of bytes are exact to 512,000.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SmartInfo {
    /// What is critical, in words.
    pub warnings: Vec<String>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<i32>,
    /// Spare capacity left, percent.
    pub spare_percent: u8,
    /// Below this it is too little, percent.
    pub spare_threshold_percent: u8,
    /// How much of its life is used, percent.
    pub used_percent: u8,
    /// Read from it, ever.
    pub read_bytes: u64,
    /// Written to it, ever.
    pub written_bytes: u64,
    /// Hours that it was on.
    pub power_on_hours: u64,
    /// Power cycles.
    pub power_cycles: u64,
    /// Times it lost power without notice.
    pub unsafe_shutdowns: u64,
    /// Times it could not give back what was written.
    pub media_errors: u64,
    /// Entries that its error log ever had.
    pub error_log_entries: u64,
}
