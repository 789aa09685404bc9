//! Where things lie, derived from the pool label alone.
//!
//! ```text
//! device:      | label | pad to 1 MiB | slice of shard 0 | slice of shard 1 | ... | label copy |
//! home slice:  | header A | header B | bitmap slots (2 per page) | log ring | data ...         |
//! other slice: | data ...                                                                      |
//! ```
//! A shard's home slice lies on device `shard % device_count`, so that logs are spread.

use crate::label::{MIRRORS_MAX, PoolLabel};
use crate::page::Damage;
use crate::{BLOCK_BYTES, bitmap};

/// Blocks before the first slice of a device: 1 MiB, for alignment.
pub const FIRST_SLICE_BLOCK: u64 = 256;
/// First block of the stale pages, of which a mirrored device has one for each shard.
pub const FIRST_STALE_BLOCK: u64 = 1;
/// Shards of a pool with mirrors at most: each has a block before the first slice.
pub const MIRRORED_SHARDS_MAX: u16 = (FIRST_SLICE_BLOCK - FIRST_STALE_BLOCK) as u16;
/// Shard header copies at the start of a home slice.
pub const HEADER_COPIES: u64 = 2;
/// The smallest log ring, in pages.
pub const LOG_PAGES_MIN: u32 = 64;
/// The largest log ring, in pages (256 MiB).
pub const LOG_PAGES_MAX: u32 = 65_536;
/// The largest log ring of a new pool, in pages (64 MiB). Opening a shard reads all of its ring, to tell the end of the log from
/// damage, and what a larger one saves is a checkpoint now and then.
pub const LOG_PAGES_NEW_MAX: u32 = 16_384;
/// The smallest slice, in blocks (4 MiB): below it nothing useful fits beside the log.
pub const SLICE_BLOCKS_MIN: u64 = 1024;
/// Blocks of one device at most: 40 bits of a device address.
pub const DEVICE_BLOCKS_MAX: u64 = 1 << 40;

/// One device's share of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLayout {
    /// Size used, in blocks.
    pub size_blocks: u64,
    /// Blocks of each shard's slice.
    pub slice_blocks: u64,
}

/// The layout of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Identity of the pool.
    pub pool: [u8; 16],
    /// Shards in the pool.
    pub shard_count: u16,
    /// Pages of each shard's log ring.
    pub log_pages: u32,
    /// The devices, in label order. With mirrors, each of them is two.
    pub devices: Vec<DeviceLayout>,
    /// Whether every device has two sides.
    pub mirrored: bool,
}

impl Layout {
    /// Derives and checks the layout that a label describes.
    ///
    /// # Errors
    /// [`Damage::Field`] if the sizes cannot be.
    pub fn of(label: &PoolLabel) -> Result<Self, Damage> {
        let devices: Vec<DeviceLayout> = label.devices[..usize::from(label.device_count.get())]
            .iter()
            .map(|row| DeviceLayout {
                size_blocks: row.size_blocks.get(),
                slice_blocks: row.slice_blocks.get(),
            })
            .collect();
        let layout = Self {
            pool: label.header.pool,
            shard_count: label.shard_count.get(),
            log_pages: label.log_pages.get(),
            devices,
            mirrored: label.is_mirrored(),
        };
        layout.check()?;
        Ok(layout)
    }

    /// The layout for a new pool: equal slices, a log of 1/64 of the home slice, but of [`LOG_PAGES_MIN`] pages at least and of
    /// [`LOG_PAGES_NEW_MAX`] at most.
    ///
    /// # Errors
    /// [`Damage::Field`] naming `size_blocks` if a device is too small for this many shards.
    pub fn plan(pool: [u8; 16], shard_count: u16, device_sizes_blocks: &[u64]) -> Result<Self, Damage> {
        let devices: Vec<DeviceLayout> = device_sizes_blocks
            .iter()
            .map(|&size_blocks| DeviceLayout {
                size_blocks,
                slice_blocks: size_blocks.saturating_sub(FIRST_SLICE_BLOCK + 1)
                    / u64::from(shard_count.max(1)),
            })
            .collect();
        let smallest = devices.iter().map(|d| d.slice_blocks).min().unwrap_or(0);
        let log_pages = (smallest / 64).clamp(u64::from(LOG_PAGES_MIN), u64::from(LOG_PAGES_NEW_MAX)) as u32;
        let layout = Self {
            pool,
            shard_count,
            log_pages,
            devices,
            mirrored: false,
        };
        layout.check()?;
        Ok(layout)
    }

    /// The same, each device of which has two sides of this size.
    ///
    /// # Errors
    /// [`Damage::Field`] if there are more than [`MIRRORS_MAX`] devices or [`MIRRORED_SHARDS_MAX`] shards.
    pub fn with_mirrors(mut self) -> Result<Self, Damage> {
        self.mirrored = true;
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), Damage> {
        if self.devices.is_empty() || self.devices.len() > crate::DEVICES_MAX {
            return Err(Damage::Field("device_count"));
        }
        if self.shard_count == 0 || self.shard_count > crate::SHARDS_MAX {
            return Err(Damage::Field("shard_count"));
        }
        if self.mirrored && self.devices.len() > MIRRORS_MAX {
            return Err(Damage::Field("device_count"));
        }
        if self.mirrored && self.shard_count > MIRRORED_SHARDS_MAX {
            return Err(Damage::Field("shard_count"));
        }
        if self.log_pages < LOG_PAGES_MIN || self.log_pages > LOG_PAGES_MAX {
            return Err(Damage::Field("log_pages"));
        }
        for device in &self.devices {
            let slices = device.slice_blocks.checked_mul(u64::from(self.shard_count));
            let end = slices.and_then(|blocks| blocks.checked_add(FIRST_SLICE_BLOCK + 1));
            if device.size_blocks > DEVICE_BLOCKS_MAX || end.is_none_or(|end| end > device.size_blocks) {
                return Err(Damage::Field("slice_blocks"));
            }
            if device.slice_blocks < SLICE_BLOCKS_MIN {
                return Err(Damage::Field("size_blocks"));
            }
        }
        for shard in 0..self.shard_count {
            let home = self.home(shard);
            let slice = self.devices[home].slice_blocks;
            if self.data_start_block(shard, home) - self.slice_start_block(shard, home) >= slice {
                return Err(Damage::Field("log_pages"));
            }
        }
        Ok(())
    }

    /// The device on which `shard` keeps its header, bitmap and log.
    #[must_use]
    pub fn home(&self, shard: u16) -> usize {
        usize::from(shard) % self.devices.len()
    }

    /// First block of `shard`'s slice on `device`.
    #[must_use]
    pub fn slice_start_block(&self, shard: u16, device: usize) -> u64 {
        FIRST_SLICE_BLOCK + u64::from(shard) * self.devices[device].slice_blocks
    }

    /// Block of shard header copy 0 or 1.
    #[must_use]
    pub fn header_block(&self, shard: u16, copy: u64) -> u64 {
        assert!(copy < HEADER_COPIES);
        self.slice_start_block(shard, self.home(shard)) + copy
    }

    /// Bitmap pages that describe one shard's slice on `device`.
    #[must_use]
    pub fn bitmap_pages(&self, device: usize) -> u64 {
        self.devices[device]
            .slice_blocks
            .div_ceil(bitmap::BLOCKS_PER_PAGE as u64)
    }

    /// Block, on the home device, of slot 0 or 1 of the bitmap page `page` that describes `device`.
    #[must_use]
    pub fn bitmap_block(&self, shard: u16, device: usize, page: u64, slot: u64) -> u64 {
        assert!(slot < 2 && page < self.bitmap_pages(device));
        let before: u64 = (0..device).map(|d| self.bitmap_pages(d)).sum();
        self.header_block(shard, 0) + HEADER_COPIES + (before + page) * 2 + slot
    }

    /// First block of the log ring, on the home device.
    #[must_use]
    pub fn log_start_block(&self, shard: u16) -> u64 {
        let bitmaps: u64 = (0..self.devices.len()).map(|d| self.bitmap_pages(d)).sum();
        self.header_block(shard, 0) + HEADER_COPIES + bitmaps * 2
    }

    /// First block of `shard`'s slice on `device` that holds data or map pages.
    #[must_use]
    pub fn data_start_block(&self, shard: u16, device: usize) -> u64 {
        if device == self.home(shard) {
            self.log_start_block(shard) + u64::from(self.log_pages)
        } else {
            self.slice_start_block(shard, device)
        }
    }

    /// Block of the second copy of the label.
    #[must_use]
    pub fn label_copy_block(&self, device: usize) -> u64 {
        self.devices[device].size_blocks - 1
    }

    /// Block, on each side of a mirrored device, of the page in which it says what the other side lacks of `shard`'s slice.
    #[must_use]
    pub fn stale_block(&self, shard: u16) -> u64 {
        assert!(self.mirrored && shard < self.shard_count);
        FIRST_STALE_BLOCK + u64::from(shard)
    }

    /// Bytes of the pool that hold data or map pages.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        (0..self.shard_count)
            .flat_map(|shard| (0..self.devices.len()).map(move |device| (shard, device)))
            .map(|(shard, device)| {
                self.slice_start_block(shard, device) + self.devices[device].slice_blocks
                    - self.data_start_block(shard, device)
            })
            .sum::<u64>()
            * BLOCK_BYTES as u64
    }
}
