//! `stillpoint device`: asked of the daemon, which knows its pools; without one the machine is looked at from here.

use std::path::Path;

use crate::cli::{DeviceCommand, Global};
use crate::client::{Client, escape};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::Size;
use stillpoint_appliance::Error;
use stillpoint_appliance::devices::model::{BlockDevice, IdentifiedInfo, NvmeInfo, PciInfo, SmartInfo};
use stillpoint_appliance::devices::{self, block_name};

/// Does what is asked.
pub fn run(command: &DeviceCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        DeviceCommand::List => {
            let devices = match client.get("/v1/devices") {
                Err(Failure::Unreachable(_)) => devices::list(),
                answer => answer?,
            };
            output::print(global, &devices, |devices| list(devices))
        }
        DeviceCommand::Show { device } => {
            let name = name_of(device)?;
            let device = match client.get(&format!("/v1/devices/{}", escape(&name))) {
                Err(Failure::Unreachable(_)) => devices::show(&name)?,
                answer => answer?,
            };
            output::print(global, &device, show)
        }
    }
}

/// The name of a device that is given as one, or as a path, which may be a link (`/dev/disk/by-id/...`).
fn name_of(device: &Path) -> Result<String, Error> {
    let path = if device.components().count() > 1 {
        std::fs::canonicalize(device)
            .map_err(|error| Error::not_found(format!("{}: {error}", device.display())))?
    } else {
        device.to_owned()
    };
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(block_name)
        .ok_or_else(|| Error::usage(format!("{} is no name of a device", device.display())))
}

fn list(devices: &[BlockDevice]) -> String {
    let rows = devices.iter().map(|device| {
        vec![
            device.path.clone(),
            Size(device.size_bytes).to_string(),
            device.logical_block_bytes.to_string(),
            device.model.clone().unwrap_or_else(dash),
            device.serial.clone().unwrap_or_else(dash),
            device.driver.clone().unwrap_or_else(dash),
            device.numa_node.map_or_else(dash, |node| node.to_string()),
            celsius(device),
            use_text(device),
        ]
    });
    let columns = [
        "DEVICE", ">SIZE", ">BLOCK", "MODEL", "SERIAL", "DRIVER", ">NODE", ">TEMP", "USED BY",
    ];
    table(&columns, rows)
}

fn dash() -> String {
    "-".to_owned()
}

fn celsius(device: &BlockDevice) -> String {
    let identified = device.nvme.as_ref().and_then(|nvme| nvme.identified.as_ref());
    let degrees = identified.and_then(|found| found.smart.as_ref()?.temperature_celsius);
    degrees.map_or_else(dash, |degrees| format!("{degrees} °C"))
}

/// Who uses it; else what lies on it.
fn use_text(device: &BlockDevice) -> String {
    let uses = device.used_by.iter().map(|used| match used.kind.as_str() {
        "mount" => format!("mounted at {}", used.name),
        "holder" => format!("part of {}", used.name),
        kind => format!("{kind} {}", used.name),
    });
    let mut words: Vec<String> = uses.collect();
    if words.is_empty() {
        if !device.partitions.is_empty() {
            words.push(format!("has partitions: {}", device.partitions.join(", ")));
        } else if let Some(content) = &device.content {
            words.push(format!("holds {content}"));
        } else if device.content_error.is_some() {
            words.push("not readable".to_owned());
        }
    }
    output::list(&words)
}

fn yes(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}

fn show(device: &BlockDevice) -> String {
    let told = |text: &Option<String>| text.clone().unwrap_or_else(dash);
    let mut rows = vec![
        ("device", device.path.clone()),
        ("size", Size(device.size_bytes).to_string()),
        ("model", told(&device.model)),
        ("serial", told(&device.serial)),
        ("driver", told(&device.driver)),
        (
            "used by",
            match device.unused_bytes {
                0 => use_text(device),
                unused => format!("{}; {} of it are unused", use_text(device), Size(unused)),
            },
        ),
        ("in pools as", output::list(&device.pool_paths)),
        ("partitions", output::list(&device.partitions)),
        (
            "content",
            device
                .content_error
                .clone()
                .or_else(|| device.content.clone())
                .unwrap_or_else(dash),
        ),
        ("read-only", yes(device.read_only)),
        (
            "blocks",
            format!(
                "{} B, written {} B at once",
                device.logical_block_bytes, device.physical_block_bytes
            ),
        ),
        (
            "write cache",
            match device.volatile_write_cache {
                Some(true) => "volatile: a flush makes what was written durable".to_owned(),
                Some(false) => "none that loses anything".to_owned(),
                None => dash(),
            },
        ),
        ("FUA", yes(device.fua)),
        ("discard", yes(device.discard)),
        ("write zeroes", yes(device.write_zeroes)),
        ("longest transfer", Size(device.transfer_bytes_max).to_string()),
        ("queues", device.queues.to_string()),
        ("polled", yes(device.polled)),
        (
            "NUMA node",
            device.numa_node.map_or_else(dash, |node| node.to_string()),
        ),
    ];
    if let Some(pci) = &device.pci {
        pci_rows(pci, &mut rows);
    }
    if let Some(nvme) = &device.nvme {
        nvme_rows(nvme, &mut rows);
    }
    pairs(&rows)
}

fn pci_rows(pci: &PciInfo, rows: &mut Vec<(&'static str, String)>) {
    rows.push(("PCI address", pci.address.clone()));
    if let (Some(speed), Some(width)) = (&pci.link_speed, pci.link_width) {
        let best = match (&pci.link_speed_max, pci.link_width_max) {
            (Some(speed_max), Some(width_max)) if (speed_max, width_max) != (speed, width) => {
                format!(" (it can do {speed_max} x{width_max})")
            }
            _ => String::new(),
        };
        rows.push(("PCIe link", format!("{speed} x{width}{best}")));
    }
    let interrupts = pci
        .interrupts
        .iter()
        .map(|found| format!("{} on {}", found.number, found.cores));
    rows.push(("interrupts", output::list(&interrupts.collect::<Vec<_>>())));
}

fn nvme_rows(nvme: &NvmeInfo, rows: &mut Vec<(&'static str, String)>) {
    let told = |text: &Option<String>| text.clone().unwrap_or_else(dash);
    let number = nvme.namespace.map_or_else(dash, |number| number.to_string());
    rows.push((
        "NVMe controller",
        format!("{}, namespace {number}", nvme.controller),
    ));
    rows.push(("pass-through", told(&nvme.generic)));
    rows.push(("transport", told(&nvme.transport)));
    rows.push(("firmware", told(&nvme.firmware)));
    rows.push(("NGUID", told(&nvme.nguid)));
    rows.push(("EUI64", told(&nvme.eui64)));
    let queues = nvme.queues.map_or_else(dash, |queues| queues.to_string());
    rows.push((
        "I/O queues",
        match &nvme.poll_queues_unused {
            None => format!("{queues}, of these {} polled", nvme.poll_queues),
            Some(why) => format!(
                "{queues}, of these {} polled, which are not used: {why}",
                nvme.poll_queues
            ),
        },
    ));
    match (&nvme.identified, &nvme.identify_error) {
        (Some(found), _) => identified_rows(found, rows),
        (None, Some(error)) => rows.push(("identify", format!("not possible: {error}"))),
        (None, None) => {}
    }
}

fn identified_rows(found: &IdentifiedInfo, rows: &mut Vec<(&'static str, String)>) {
    let formats = found.formats.iter().map(|format| {
        let metadata = match format.metadata_bytes {
            0 => String::new(),
            bytes => format!(" + {bytes} B metadata"),
        };
        let used = if format.in_use { " (in use)" } else { "" };
        format!("{}: {} B{metadata}{used}", format.index, format.data_bytes)
    });
    rows.push(("NVMe version", found.version.clone()));
    rows.push(("subsystem", found.subsystem.clone()));
    rows.push(("LBA formats", output::list(&formats.collect::<Vec<_>>())));
    let longest = found
        .transfer_bytes_max
        .map_or_else(|| "no limit".to_owned(), |bytes| Size(bytes).to_string());
    rows.push(("MDTS", longest));
    rows.push(("volatile cache", yes(found.volatile_write_cache)));
    rows.push(("atomic write", Size(found.atomic_write_bytes).to_string()));
    rows.push(("deallocate", yes(found.deallocate)));
    rows.push(("zeroes command", yes(found.write_zeroes)));
    match (&found.smart, &found.smart_error) {
        (Some(smart), _) => smart_rows(smart, rows),
        (None, Some(reason)) => rows.push(("health", format!("cannot be read: {reason}"))),
        (None, None) => rows.push(("health", "not told".to_owned())),
    }
}

fn smart_rows(smart: &SmartInfo, rows: &mut Vec<(&'static str, String)>) {
    let health = match &smart.warnings[..] {
        [] => "good".to_owned(),
        warnings => format!("CRITICAL: {}", warnings.join(", ")),
    };
    rows.push(("health", health));
    let degrees = smart.temperature_celsius;
    rows.push((
        "temperature",
        degrees.map_or_else(dash, |degrees| format!("{degrees} °C")),
    ));
    rows.push((
        "wear",
        format!(
            "{}% used, {}% spare (threshold {}%)",
            smart.used_percent, smart.spare_percent, smart.spare_threshold_percent
        ),
    ));
    rows.push(("read", Size(smart.read_bytes).to_string()));
    rows.push(("written", Size(smart.written_bytes).to_string()));
    rows.push((
        "power",
        format!(
            "{} hours, {} cycles, {} without notice",
            smart.power_on_hours, smart.power_cycles, smart.unsafe_shutdowns
        ),
    ));
    rows.push((
        "errors",
        format!(
            "{} of the media, {} in the error log",
            smart.media_errors, smart.error_log_entries
        ),
    ));
}
