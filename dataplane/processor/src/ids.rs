//! Names, addresses and times that do not mix.

use core::fmt;

/// A virtual volume, numbered by the catalog, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);

/// An overall snapshot, numbered by the catalog, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

/// A change log volume, numbered by the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeLogId(pub u32);

/// A shard of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex(pub u16);

/// A device of a pool, in label order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceIndex(pub u8);

/// A counter per volume and shard that every cut raises by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(
            self.0
                .checked_add(1)
                .expect("four thousand million snapshots of one volume"),
        )
    }
}

/// A byte of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeOffset(pub u64);

/// A 4 KiB block of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

/// A 4 KiB block of one shard's share of a volume: the shard's objects laid end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareBlock(pub u64);

/// A 4 KiB block of a device: device in bits 40..48, block in bits 0..40. Zero is "nowhere": block 0 of
/// device 0 holds a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceAddress(pub u64);

impl DeviceAddress {
    /// No place: a hole.
    pub const NONE: Self = Self(0);

    /// Block `block` of `device`.
    #[must_use]
    pub fn new(device: DeviceIndex, block: u64) -> Self {
        debug_assert!(block < 1 << 40);
        Self(u64::from(device.0) << 40 | block)
    }

    /// The device.
    #[must_use]
    pub fn device(self) -> DeviceIndex {
        DeviceIndex((self.0 >> 40) as u8)
    }

    /// The block of the device.
    #[must_use]
    pub fn block(self) -> u64 {
        self.0 & ((1 << 40) - 1)
    }

    /// The byte of the device.
    #[must_use]
    pub fn offset_bytes(self) -> u64 {
        self.block() * crate::BLOCK_BYTES as u64
    }

    /// The address `blocks` further on the same device.
    #[must_use]
    pub fn plus(self, blocks: u64) -> Self {
        Self::new(self.device(), self.block() + blocks)
    }

    /// True for [`Self::NONE`].
    #[must_use]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {} block {}", self.device().0, self.block())
    }
}

/// What time it is, said by whoever drives a processor. The pure crates have no clock of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// A clock that never goes back, in nanoseconds from an unspecified start.
    pub monotonic_ns: u64,
    /// Nanoseconds since the Unix epoch.
    pub wall_ns: u64,
}

/// The time stamp of an overall snapshot: nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeStamp(pub u64);
