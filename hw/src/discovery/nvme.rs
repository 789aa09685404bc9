//! NVMe namespaces and their controllers.

use super::Machine;
use super::sysfs::{Directory, file_name};
use crate::device::nvme::admin::Controller;
use crate::device::nvme::identify::{IdentifyController, IdentifyNamespace, identifier, text};
use crate::device::nvme::smart::SmartLog;
use std::io;
use std::path::{Path, PathBuf};

/// A namespace of an NVMe controller.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its number on the controller.
    pub number: Option<u32>,
    /// Its controller, as `nvme0`; the first if it has several.
    pub controller: String,
    /// Its character device for commands of one's own, as `/dev/ng0n1`, if there is one.
    pub generic: Option<PathBuf>,
    /// The kernel chooses among several paths to it (a multipath head), or would if there were more than one.
    pub multipath: bool,
    /// How the controller is reached: `pcie`, `tcp`...
    pub transport: Option<String>,
    /// Model, serial number and firmware of the controller.
    pub model: Option<String>,
    /// See [`Self::model`].
    pub serial: Option<String>,
    /// See [`Self::model`].
    pub firmware: Option<String>,
    /// Globally unique identifier, 32 hexadecimal digits.
    pub nguid: Option<String>,
    /// IEEE identifier, 16 hexadecimal digits.
    pub eui64: Option<String>,
    /// Queues for input and output that the driver uses.
    pub queues: Option<u32>,
    /// Of these, queues without interrupts, which are polled.
    pub poll_queues: u32,
    /// What controller and namespace say about themselves, or why they do not.
    pub identified: Result<Identified, Unasked>,
}

/// What controller and namespace say about themselves.
#[derive(Clone, Debug)]
pub struct Identified {
    /// The controller.
    pub controller: Box<IdentifyController>,
    /// The namespace.
    pub namespace: Box<IdentifyNamespace>,
    /// The health of the device, or why its log cannot be read.
    pub smart: Result<Box<SmartLog>, String>,
}

/// The device was not asked, or did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unasked {
    /// The character device of the controller.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

impl Namespace {
    /// The namespace that a block device is; `None` if it is none.
    pub(super) fn of(machine: &Machine, block: &Directory) -> Option<Self> {
        let parent = block.below("device").resolved();
        let controller = controller_at(&parent)?;
        let class = machine.sys("class/nvme").below(&controller);
        let number = block.number("nsid").map(|number| number as u32);
        let name = file_name(&block.resolved())?;
        let identified = identify(machine, &controller, number);
        let ids = identified.as_ref().ok().map(|found| &found.namespace);
        let plain = |name: &str| {
            let text = block.text(name)?.replace(['-', ' '], "").to_lowercase();
            text.bytes().any(|digit| digit != b'0').then_some(text)
        };
        // One of all queues is for administration.
        let queues = class
            .number("queue_count")
            .map(|count| (count as u32).saturating_sub(1));
        Some(Self {
            number,
            generic: generic(machine, &name),
            multipath: !file_name(&parent).is_some_and(|name| is_controller(&name)),
            transport: class.text("transport"),
            model: class.text("model"),
            serial: class.text("serial"),
            firmware: class.text("firmware_rev"),
            nguid: ids
                .and_then(|ids| identifier(&ids.nguid))
                .or_else(|| plain("nguid")),
            eui64: ids
                .and_then(|ids| identifier(&ids.eui64))
                .or_else(|| plain("eui")),
            poll_queues: poll_queues(machine, block, queues),
            queues,
            identified,
            controller,
        })
    }
}

/// The controller above a namespace: a directory named `nvme0`, or the first in that of a subsystem of several.
pub(super) fn controller_at(parent: &Path) -> Option<String> {
    let name = file_name(parent)?;
    if is_controller(&name) {
        return Some(name);
    }
    if !name.starts_with("nvme-subsys") {
        return None;
    }
    let names = Directory::new(parent.to_owned()).names();
    names.into_iter().find(|name| is_controller(name))
}

fn is_controller(name: &str) -> bool {
    let number = name.strip_prefix("nvme");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// The generic character device of a namespace: `nvme0n1` is `ng0n1`.
fn generic(machine: &Machine, block: &str) -> Option<PathBuf> {
    let name = format!("ng{}", block.strip_prefix("nvme")?);
    let there = machine.sys("class/nvme-generic").below(&name).exists();
    there.then(|| Path::new("/dev").join(name))
}

/// The name of the block device of a namespace, whichever of its two devices is named: `ng0n1` is `nvme0n1`. Others are
/// their own.
#[must_use]
pub fn block_name(name: &str) -> String {
    match name.strip_prefix("ng") {
        Some(numbers) if numbers.starts_with(|c: char| c.is_ascii_digit()) => format!("nvme{numbers}"),
        _ => name.to_owned(),
    }
}

/// The same of a path: the name is replaced in a path that leads to a character device of that name.
#[must_use]
pub fn block_path(path: &Path) -> PathBuf {
    use std::os::unix::fs::FileTypeExt;
    let is_generic = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_char_device());
    let real = if is_generic {
        std::fs::canonicalize(path)
    } else {
        Ok(path.to_owned())
    };
    let real = real.unwrap_or_else(|_| path.to_owned());
    match file_name(&real) {
        Some(name) if is_generic => real.with_file_name(block_name(&name)),
        _ => path.to_owned(),
    }
}

/// Queues that are polled: what the driver was asked for, as far as there are so many, if the kernel says that it polls.
fn poll_queues(machine: &Machine, block: &Directory, queues: Option<u32>) -> u32 {
    if block.below("queue").number("io_poll") != Some(1) {
        return 0;
    }
    let asked = machine
        .sys("module/nvme/parameters")
        .number("poll_queues")
        .unwrap_or(0);
    (asked as u32).min(queues.unwrap_or(u32::MAX))
}

fn identify(machine: &Machine, controller: &str, namespace: Option<u32>) -> Result<Identified, Unasked> {
    let path = machine.device_file(controller);
    let asked = || -> io::Result<Identified> {
        let device = Controller::open(&path)?;
        let number = namespace
            .ok_or_else(|| io::Error::other("the kernel does not tell the number of the namespace"))?;
        Ok(Identified {
            controller: Box::new(device.identify()?),
            namespace: Box::new(device.identify_namespace(number)?),
            smart: device.smart().map(Box::new).map_err(|error| error.to_string()),
        })
    };
    asked().map_err(|error| Unasked {
        reason: error.to_string(),
        path: path.clone(),
    })
}

impl Identified {
    /// The subsystem's name.
    #[must_use]
    pub fn subsystem(&self) -> String {
        text(&self.controller.subsystem)
    }
}
