//! A namespace that takes our own commands, past the kernel's block layer.

use super::admin::namespace_of;
use super::command::Command;
use super::kernel;
use super::ring::{CommandRing, Data, Ended};
use super::status;
use crate::device::parts::Limits;
use crate::discovery::{BlockDeviceInfo, Machine};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stillpoint_processor::BLOCK_BYTES;
use zerocopy::little_endian::U16;

/// Pieces of memory of one command at most, as for files.
const VECTORS_MAX: usize = 1024;

/// Whether single writes are made durable one by one (force unit access) where that spares a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DurableWrites {
    /// Where the controller says that it can, and nothing speaks against believing it.
    #[default]
    Auto,
    /// Where the controller says that it can: somebody vouches for it.
    Always,
    /// Nowhere.
    Never,
}

/// A namespace, opened for commands.
#[derive(Debug)]
pub struct Passthrough {
    file: File,
    path: PathBuf,
    pub(crate) namespace: u32,
    pub(crate) block_power: u32,
    pub(crate) limits: Limits,
    pub(crate) discards: bool,
    /// The longest range that one command makes zeros; 0: it has no such command.
    pub(crate) zero_bytes_max: u64,
    /// Zeros may be made by forgetting what was there.
    pub(crate) zeroes_deallocate: bool,
    /// What was written may be lost with the power before a flush.
    pub(crate) caches: bool,
    /// Whether writes are made durable one by one (force unit access), or why not.
    durable_writes: Result<(), &'static str>,
    pub(crate) retry_delays: RetryDelays,
    polled: bool,
}

/// Models that say that they can make single writes durable, and do not. With those it is left to flushes.
const IGNORING_FORCE: [&str; 1] = [
    // Emulated: the bit is not looked at (up to QEMU 10 at least).
    "QEMU NVMe Ctrl",
];

fn ignores_force(model: &str) -> bool {
    IGNORING_FORCE.contains(&model.trim())
}

/// Whether writes to a controller are made durable one by one, or why not. `claimed`: it says that it can.
fn durable_writes(
    wanted: DurableWrites,
    caches: bool,
    claimed: bool,
    model: &str,
    is_virtual: impl FnOnce() -> bool,
) -> Result<(), &'static str> {
    match wanted {
        _ if !caches => Err("it has no volatile write cache, so that nothing waits for a flush"),
        DurableWrites::Never => Err("durable-writes is never"),
        _ if !claimed => Err("it cannot make single writes durable"),
        DurableWrites::Always => Ok(()),
        DurableWrites::Auto if ignores_force(model) => {
            Err("its model says that it makes single writes durable, and does not")
        }
        DurableWrites::Auto if is_virtual() => Err(
            "this is a virtual machine, whose controllers may say that they make single writes durable, and not do it",
        ),
        DurableWrites::Auto => Ok(()),
    }
}

/// Whether the machine is said to be a virtual one, of which the controllers may be programs: several of these claim a cache and
/// do not look at the bit either, under names that nobody can list.
fn is_virtual() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| says_virtual(&text))
}

fn says_virtual(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.any(|line| line.split_whitespace().any(|flag| flag == "hypervisor"))
}

/// How long a controller wants commands to wait before they are tried again: CRDT1 to CRDT3, in units of 100 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetryDelays([u16; 3]);

impl RetryDelays {
    pub fn new(units: [u16; 3]) -> Self {
        Self(units)
    }

    /// The delay that goes with a status, if it says one.
    pub fn of(self, status: u16) -> Option<Duration> {
        let units = self.0[status::retry_delay(status)?];
        (units > 0).then(|| Duration::from_millis(100) * u32::from(units))
    }
}

impl Passthrough {
    /// The namespace behind a block device that is open and claimed; `None` if it is none. What it says and what it does has
    /// been tried: a block was read both ways.
    ///
    /// # Errors
    /// Why it cannot be had, in words: what lacks, and what brings it.
    pub(crate) fn open(path: &Path, block: &File, wanted: DurableWrites) -> Option<Result<Self, String>> {
        let info = Machine::here().block_device_at(path)?;
        info.nvme.as_ref()?;
        Some(Self::of(&info, block, wanted))
    }

    fn of(info: &BlockDeviceInfo, block: &File, wanted: DurableWrites) -> Result<Self, String> {
        let nvme = info.nvme.as_ref().ok_or("it is no namespace")?;
        if let Some(why) = kernel::refusal() {
            return Err(why);
        }
        // There the kernel waits, tries another path and sends again; for commands of ours it does none of it.
        if nvme.multipath || nvme.transport.as_deref() != Some("pcie") {
            return Err(
                "it may be reached by several paths or through a network, which the kernel's block layer looks after \
                 (nvme_core.multipath=N on the kernel's command line, if there is but one path)"
                    .to_owned(),
            );
        }
        let generic = nvme
            .generic
            .clone()
            .ok_or("the kernel has no generic device for it: use Linux 5.13 or newer")?;
        let identified = (nvme.identified.as_ref())
            .map_err(|unasked| format!("{} cannot be asked: {}", unasked.path.display(), unasked.reason))?;
        let format = identified.namespace.lba_format();
        let block_bytes = format.data_bytes();
        if format.metadata_bytes != 0 {
            let metadata = format.metadata_bytes.get();
            return Err(format!(
                "its blocks carry {metadata} bytes of metadata: format it without"
            ));
        }
        if u64::from(block_bytes) != info.logical_block_bytes || block_bytes as usize > BLOCK_BYTES {
            return Err(format!("it has blocks of {block_bytes} bytes"));
        }
        let open = OpenOptions::new().read(true).write(true).open(&generic);
        let file = open.map_err(|error| format!("{} cannot be opened: {error}", generic.display()))?;
        let namespace = namespace_of(&file).map_err(|error| format!("{}: {error}", generic.display()))?;
        if nvme.number != Some(namespace) {
            return Err(format!("{} is another namespace", generic.display()));
        }
        let caches = identified.controller.has_volatile_write_cache();
        let model = info.model.as_deref().unwrap_or_default();
        let mut found = Self {
            file,
            path: generic,
            namespace,
            block_power: block_bytes.ilog2(),
            limits: limits(info, identified.controller.transfer_bytes_max()),
            discards: identified.controller.deallocates(),
            zero_bytes_max: if identified.controller.writes_zeroes() {
                zero_bytes_max(info.write_zeroes_bytes_max, block_bytes)
            } else {
                0
            },
            zeroes_deallocate: identified.namespace.deallocates_zeroes(),
            caches,
            durable_writes: durable_writes(wanted, caches, info.fua, model, is_virtual),
            retry_delays: RetryDelays::new(identified.controller.retry_delays.map(U16::get)),
            polled: false,
        };
        found.try_out(block, false)?;
        if found.caches {
            found.try_flush()?;
        }
        // A driver without poll queues would take such a ring, and complete by interrupt what nobody then looks at.
        found.polled = info.polled && kernel::may_poll() && found.try_out(block, true).is_ok();
        Ok(found)
    }

    /// Reads the first block with a command, and compares it with what the block device says.
    fn try_out(&self, block: &File, polled: bool) -> Result<(), String> {
        #[repr(align(4096))]
        struct Block([u8; BLOCK_BYTES]);
        let (mut ours, mut theirs) = (
            Box::new(Block([0; BLOCK_BYTES])),
            Box::new(Block([0; BLOCK_BYTES])),
        );
        let mut ring = CommandRing::new(polled)
            .map_err(|error| format!("io_uring cannot send commands ({error}): use Linux 6.1 or newer"))?;
        let blocks = BLOCK_BYTES as u32 >> self.block_power;
        let command = Command::read(self.namespace, 0, blocks)
            .with_data(ours.0.as_mut_ptr() as usize, BLOCK_BYTES as u32);
        // SAFETY: `ours` is neither touched nor freed before `finish` has seen the command's end; if it fails, `ours` is leaked.
        unsafe { ring.push(self.as_raw_fd(), &command, Data::Plain(None), 0) };
        let mut ended: Vec<Ended> = Vec::new();
        if let Err(error) = ring.finish(&mut ended) {
            std::mem::forget(ours);
            return Err(format!("io_uring: {error}"));
        }
        match ended[0].result {
            0 => {}
            ..0 => {
                let error = std::io::Error::from_raw_os_error(-ended[0].result);
                return Err(format!("a read through {} failed: {error}", self.path.display()));
            }
            1.. => return Err(format!("a read failed: {}", status::text(ended[0].result as u16))),
        }
        let read = block.read_exact_at(&mut theirs.0, 0);
        read.map_err(|error| format!("a read of the block device failed: {error}"))?;
        if ours.0 != theirs.0 {
            return Err(format!(
                "{} and the block device show different things",
                self.path.display()
            ));
        }
        Ok(())
    }

    /// Flushes: who may read and write may be refused that, and would learn it from the first flush of a pool.
    fn try_flush(&self) -> Result<(), String> {
        let failed =
            |error: std::io::Error| format!("a flush through {} failed: {error}", self.path.display());
        let mut ring = CommandRing::new(false).map_err(failed)?;
        let command = Command::flush(self.namespace);
        // SAFETY: a flush has no memory.
        unsafe { ring.push(self.as_raw_fd(), &command, Data::Plain(None), 0) };
        let mut ended: Vec<Ended> = Vec::new();
        ring.finish(&mut ended).map_err(failed)?;
        match ended[0].result {
            0 => Ok(()),
            ..0 => Err(failed(std::io::Error::from_raw_os_error(-ended[0].result))),
            1.. => Err(format!(
                "a flush failed: {}",
                status::text(ended[0].result as u16)
            )),
        }
    }

    /// The character device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether completions are polled for.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.polled
    }

    /// Whether single writes are made durable one by one (force unit access) where that spares a flush.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn durable_writes(&self) -> Result<(), &'static str> {
        self.durable_writes
    }

    /// Bytes of a logical block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        1 << self.block_power
    }

    /// The longest transfer of one command.
    #[must_use]
    pub fn transfer_bytes_max(&self) -> u64 {
        self.limits.bytes
    }
}

impl AsRawFd for Passthrough {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// What one command takes: what the kernel passes on and the device takes, in whole blocks of ours.
fn limits(info: &BlockDeviceInfo, device_bytes_max: Option<u64>) -> Limits {
    // A command counts its blocks, of 512 bytes at least, with 16 bits.
    let counted = (1 << 16) * 512;
    let bytes = info
        .transfer_bytes_max
        .min(device_bytes_max.unwrap_or(u64::MAX))
        .min(counted);
    Limits {
        bytes: (bytes / BLOCK_BYTES as u64).max(1) * BLOCK_BYTES as u64,
        vectors: VECTORS_MAX,
        pages: (info.segments_max as usize).max(1),
    }
}

/// The longest range of one Write Zeroes command, in whole blocks of ours. The kernel's limit is that of the controller (WZSL, or MDTS where there
/// is none), and 0 for those whose command is known to be broken.
fn zero_bytes_max(kernel_bytes_max: u64, block_bytes: u32) -> u64 {
    let counted = (1 << 16) * u64::from(block_bytes);
    let bytes = kernel_bytes_max.min(counted);
    bytes - bytes % BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_have_limits_of_their_own() {
        assert_eq!(zero_bytes_max(0, 512), 0, "not to be used");
        assert_eq!(zero_bytes_max(2048, 512), 0, "less than a block of ours");
        assert_eq!(zero_bytes_max(32 << 10, 4096), 32 << 10);
        assert_eq!(
            zero_bytes_max(u64::MAX / 512 * 512, 512),
            32 << 20,
            "16 bits of blocks"
        );
        assert_eq!(zero_bytes_max(1 << 40, 4096), 256 << 20);
        assert_eq!(zero_bytes_max(10 << 9, 512), 4096);
    }

    #[test]
    fn who_vouches_for_a_controller_is_believed_and_a_controller_that_cannot_is_not_asked() {
        let emulated = "QEMU NVMe Ctrl";
        let found = |wanted, caches, claimed, model, is_virtual: bool| {
            durable_writes(wanted, caches, claimed, model, || is_virtual).map_err(|why| why.to_owned())
        };
        let refused = |wanted, caches, claimed, model, is_virtual, word: &str| {
            let why = found(wanted, caches, claimed, model, is_virtual).expect_err(word);
            assert!(why.contains(word), "{why}");
        };
        use DurableWrites::{Always, Auto, Never};
        assert_eq!(found(Auto, true, true, "Drive 9000", false), Ok(()));
        refused(Auto, true, true, "Drive 9000", true, "virtual machine");
        refused(Auto, true, true, emulated, false, "its model");
        assert_eq!(found(Always, true, true, emulated, true), Ok(()));
        refused(Never, true, true, "Drive 9000", false, "never");
        for wanted in [Auto, Always] {
            refused(wanted, true, false, "Drive 9000", false, "cannot");
        }
        for wanted in [Auto, Always, Never] {
            refused(
                wanted,
                false,
                true,
                "Drive 9000",
                false,
                "no volatile write cache",
            );
        }
    }

    #[test]
    fn a_model_that_only_says_it_makes_writes_durable_is_not_believed() {
        assert!(ignores_force("QEMU NVMe Ctrl") && ignores_force("QEMU NVMe Ctrl   "));
        assert!(!ignores_force("Drive 9000") && !ignores_force(""));
        assert!(says_virtual(
            "processor : 0\nflags\t\t: fpu sse2 hypervisor lahf_lm\n"
        ));
        assert!(!says_virtual(
            "processor : 0\nflags\t\t: fpu sse2\nmodel name : hypervisor\n"
        ));
    }
}
