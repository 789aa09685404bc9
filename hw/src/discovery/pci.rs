//! Where a device is plugged in.

use super::Machine;
use super::sysfs::{Directory, file_name};
use std::path::Path;

/// A PCI function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pci {
    /// Its address, as `0000:01:00.0`.
    pub address: String,
    /// The kernel's driver of it.
    pub driver: Option<String>,
    /// Speed of the link, as `16.0 GT/s PCIe`, and the best that the device can.
    pub link_speed: Option<String>,
    /// See [`Self::link_speed`].
    pub link_speed_max: Option<String>,
    /// Lanes of the link, and the most that the device can.
    pub link_width: Option<u32>,
    /// See [`Self::link_width`].
    pub link_width_max: Option<u32>,
    /// NUMA node, if the machine has several.
    pub numa_node: Option<u32>,
    /// Its message-signalled interrupts.
    pub interrupts: Vec<Interrupt>,
}

/// An interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its number.
    pub number: u32,
    /// The cores that handle it, as `0-3,8`.
    pub cores: String,
}

impl Pci {
    /// The function that a directory of sysfs lies in, if any.
    pub(super) fn above(machine: &Machine, path: &Path) -> Option<Self> {
        let (path, address) = path.ancestors().find_map(|above| {
            let name = file_name(above)?;
            is_address(&name).then_some((above, name))
        })?;
        let function = Directory::new(path.to_owned());
        let lanes = |name: &str| function.text(name)?.parse().ok();
        Some(Self {
            address,
            driver: function.below("driver").link_name(),
            // Devices that are part of the chipset, and those of virtual machines, have no link to speak of.
            link_speed: speed(&function, "current_link_speed"),
            link_speed_max: speed(&function, "max_link_speed"),
            link_width: lanes("current_link_width").filter(|&lanes| lanes > 0),
            link_width_max: lanes("max_link_width").filter(|&lanes| lanes > 0 && lanes < 255),
            numa_node: function.node("numa_node"),
            interrupts: interrupts(machine, &function),
        })
    }

    /// Whether the link is slower or narrower than the device can.
    #[must_use]
    pub fn link_is_reduced(&self) -> bool {
        let narrower = matches!((self.link_width, self.link_width_max), (Some(now), Some(max)) if now < max);
        let slower = match (&self.link_speed, &self.link_speed_max) {
            (Some(now), Some(max)) => transfers(now) < transfers(max),
            _ => false,
        };
        narrower || slower
    }
}

/// Whether a name is that of a function: `0000:01:00.0`.
fn is_address(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() >= 12
        && bytes.iter().filter(|&&byte| byte == b':').count() == 2
        && bytes[bytes.len() - 2] == b'.'
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte))
}

fn speed(function: &Directory, name: &str) -> Option<String> {
    function.text(name).filter(|text| !text.starts_with("Unknown"))
}

/// The number in `16.0 GT/s PCIe`, in tenths.
fn transfers(speed: &str) -> Option<u64> {
    let number: f64 = speed.split_whitespace().next()?.parse().ok()?;
    Some((number * 10.0) as u64)
}

fn interrupts(machine: &Machine, function: &Directory) -> Vec<Interrupt> {
    let mut numbers: Vec<u32> = (function.below("msi_irqs").names().iter())
        .filter_map(|name| name.parse().ok())
        .collect();
    numbers.sort_unstable();
    let cores = |number: u32| {
        let of = |name: &str| machine.proc(&format!("irq/{number}/{name}"));
        let cores = of("effective_affinity_list").or_else(|| of("smp_affinity_list"));
        cores.unwrap_or_default().trim().to_owned()
    };
    let with_cores = numbers.into_iter().map(|number| Interrupt {
        number,
        cores: cores(number),
    });
    with_cores.collect()
}
