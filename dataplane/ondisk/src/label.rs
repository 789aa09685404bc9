//! The pool label: what a device says about the pool it belongs to.

use crate::page::PageHeader;
use crate::{DEVICES_MAX, SHARDS_MAX, page};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One device in the label's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DeviceRow {
    /// Identity of the device within the pool.
    pub uuid: [u8; 16],
    /// Size used, in 4 KiB blocks, both labels included.
    pub size_blocks: U64,
    /// Blocks of this device that each shard owns.
    pub slice_blocks: U64,
}

/// One mirrored device in the label's table: what is known of its two sides. All zeros in pools without mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MirrorRow {
    /// Identity of the second side; that of the first is [`DeviceRow::uuid`].
    pub uuid: [u8; 16],
    /// For each side: 0 while it is in sync, else the label's `sequence` with which it went out.
    pub out_since: [U64; 2],
}

/// Feature flags in three grades, as in ext4: what an older program may do with a pool whose flags
/// it does not know.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FeatureFlags {
    /// Unknown bit set: do not open.
    pub incompatible: U64,
    /// Unknown bit set: open read-only.
    pub read_only_compatible: U64,
    /// Unknown bit set: ignore.
    pub compatible: U64,
}

/// Bit of [`FeatureFlags::incompatible`]: shares may have been made of snapshots (clones, rollbacks), so that maps of
/// several shares share pages.
pub const FEATURE_CLONES: u64 = 1;
/// Bit of [`FeatureFlags::incompatible`]: every device has two sides ([`MirrorRow`]). Set when the pool is made, or never.
pub const FEATURE_MIRRORS: u64 = 2;
/// All the bits of [`FeatureFlags::incompatible`] that this program knows.
pub const INCOMPATIBLE_KNOWN: u64 = FEATURE_CLONES | FEATURE_MIRRORS;
/// Devices of a pool with mirrors at most, each of two sides.
pub const MIRRORS_MAX: usize = 32;

/// The label at block 0 and at the last block of every device.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PoolLabel {
    /// Kind [`page::PageKind::PoolLabel`].
    pub header: PageHeader,
    /// Name of the pool, UTF-8, padded with zeros.
    pub name: [u8; 64],
    /// Feature flags.
    pub features: FeatureFlags,
    /// When the pool was made, nanoseconds since the Unix epoch.
    pub created_ns: U64,
    /// Raised each time the devices change, by one or more; a feature bit that is set does not count.
    pub sequence: U64,
    /// Devices in the pool.
    pub device_count: U16,
    /// This device's row in `devices`.
    pub device_index: U16,
    /// Shards in the pool, fixed when the pool is made.
    pub shard_count: U16,
    /// Which side of `device_index` this is, 0 or 1; 0 in pools without mirrors.
    pub side: U16,
    /// Pages of each shard's log ring.
    pub log_pages: U32,
    /// Zero.
    pub reserved_b: U32,
    /// The devices, `device_count` of them.
    pub devices: [DeviceRow; DEVICES_MAX],
    /// The sides of each device, in pools with mirrors.
    pub mirrors: [MirrorRow; MIRRORS_MAX],
    /// Zero.
    pub reserved: [u8; 872],
}

const _: () = assert!(size_of::<PoolLabel>() == page::PAGE_BYTES);

impl PoolLabel {
    /// Reads a label and checks every field.
    ///
    /// # Errors
    /// [`page::Damage`] that names what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, page::Damage> {
        page::verify(bytes, page::PageKind::PoolLabel, None)?;
        let label = Self::read_from_bytes(bytes).expect("verified to be a whole page");
        let devices = usize::from(label.device_count.get());
        if devices == 0 || devices > DEVICES_MAX {
            return Err(page::Damage::Field("device_count"));
        }
        if usize::from(label.device_index.get()) >= devices {
            return Err(page::Damage::Field("device_index"));
        }
        if label.shard_count.get() == 0 || label.shard_count.get() > SHARDS_MAX {
            return Err(page::Damage::Field("shard_count"));
        }
        if label.features.incompatible.get() & !INCOMPATIBLE_KNOWN != 0 {
            return Err(page::Damage::Feature("incompatible"));
        }
        // Version 1 cannot open a pool read-only, so the middle grade is refused as well: safe, if strict.
        if label.features.read_only_compatible.get() != 0 {
            return Err(page::Damage::Feature("read-only compatible"));
        }
        crate::layout::Layout::of(&label)?;
        label.check_mirrors(devices)?;
        Ok(label)
    }

    fn check_mirrors(&self, devices: usize) -> Result<(), page::Damage> {
        if !self.is_mirrored() {
            return Ok(());
        }
        let of_devices = &self.mirrors[..devices];
        if self.side.get() > 1 {
            return Err(page::Damage::Field("side"));
        }
        let both_out = |row: &MirrorRow| row.out_since.iter().all(|since| since.get() > 0);
        let not_yet = |row: &MirrorRow| row.out_since.iter().any(|since| *since > self.sequence);
        if of_devices.iter().any(|row| both_out(row) || not_yet(row)) {
            return Err(page::Damage::Field("out_since"));
        }
        Ok(())
    }

    /// Whether every device of the pool has two sides.
    #[must_use]
    pub fn is_mirrored(&self) -> bool {
        self.features.incompatible.get() & FEATURE_MIRRORS != 0
    }

    /// The page of this label with one more bit of [`FeatureFlags::incompatible`], sealed.
    #[must_use]
    pub fn with_incompatible(&self, bit: u64) -> Vec<u8> {
        let mut page = self.as_bytes().to_vec();
        let (label, _) = Self::mut_from_prefix(&mut page).expect("a whole page");
        label.features.incompatible |= U64::new(bit);
        page::seal(&mut page);
        page
    }

    /// Identity of a side of a device.
    #[must_use]
    pub fn uuid(&self, device: usize, side: usize) -> [u8; 16] {
        match side {
            0 => self.devices[device].uuid,
            _ => self.mirrors[device].uuid,
        }
    }

    /// Gives a side of a device an identity: another device takes its place.
    pub fn set_uuid(&mut self, device: usize, side: usize, uuid: [u8; 16]) {
        match side {
            0 => self.devices[device].uuid = uuid,
            _ => self.mirrors[device].uuid = uuid,
        }
    }

    /// The page of this label for a side of a device, sealed.
    #[must_use]
    pub fn page_for(&self, device: usize, side: usize) -> Vec<u8> {
        let mut page = self.as_bytes().to_vec();
        let (label, _) = Self::mut_from_prefix(&mut page).expect("a whole page");
        label.device_index = U16::new(device as u16);
        label.side = U16::new(side as u16);
        page::seal(&mut page);
        page
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|&b| b == 0).unwrap_or(self.name.len());
        core::str::from_utf8(&self.name[..end]).unwrap_or("?")
    }
}
