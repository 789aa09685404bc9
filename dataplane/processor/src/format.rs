//! Making a pool: empty bitmaps, empty logs, shard headers, and last the labels that make it a pool.

use core::fmt;

use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::label::{DeviceRow, FEATURE_MIRRORS, FeatureFlags, MIRRORS_MAX, PoolLabel};
use stillpoint_ondisk::layout::{Layout, MIRRORED_SHARDS_MAX};
use stillpoint_ondisk::page::{self, Damage, PAGE_BYTES, PageHeader, PageKind};
use zerocopy::{FromZeros, IntoBytes};

use crate::BLOCK_BYTES;
use crate::ids::{DeviceIndex, ShardIndex};
use crate::ports::{DeviceError, OpenDevice, Side};
use crate::space::Space;

/// Generation of a shard header that was just made.
const FIRST_GENERATION: u64 = 1;
/// Bytes of a pool's name at most.
pub const NAME_BYTES_MAX: usize = 63;

/// What a new pool is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Identity, random.
    pub pool: [u8; 16],
    /// Name, at most [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Shards, fixed for the life of the pool.
    pub shard_count: u16,
    /// When it is made, nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Identity (random) and size in 4 KiB blocks of each device. With mirrors: identity of its first side, and size of the smaller one.
    pub devices: Vec<([u8; 16], u64)>,
    /// Identity (random) of the second side of each device; empty for a pool without mirrors. Device `d` then has the numbers `2 * d` and
    /// `2 * d + 1`, by side.
    pub second_sides: Vec<[u8; 16]>,
}

impl PoolSpec {
    fn sides(&self) -> &'static [Side] {
        if self.second_sides.is_empty() {
            &[Side::First]
        } else {
            &Side::BOTH
        }
    }
}

/// Why a pool was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// The devices do not allow this pool.
    Layout(Damage),
    /// The name is too long or empty.
    Name,
    /// A device failed.
    Device {
        /// The device's position.
        device: usize,
        /// How.
        error: DeviceError,
    },
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(Damage::Field("size_blocks" | "slice_blocks" | "log_pages")) => write!(
                f,
                "a device is too small: each needs {} MiB per shard and 2 MiB; use fewer shards or larger devices",
                (stillpoint_ondisk::layout::SLICE_BLOCKS_MIN * BLOCK_BYTES as u64) >> 20
            ),
            Self::Layout(Damage::Field("device_count")) => {
                write!(f, "too many devices: {MIRRORS_MAX} pairs are possible")
            }
            Self::Layout(Damage::Field("shard_count")) => {
                write!(
                    f,
                    "too many shards: {MIRRORED_SHARDS_MAX} are possible with mirrors"
                )
            }
            Self::Layout(damage) => write!(f, "the pool cannot be laid out: {damage}"),
            Self::Name => write!(f, "the pool's name must have 1 to {NAME_BYTES_MAX} bytes"),
            Self::Device { device, error } => write!(f, "device {device}: {error}"),
        }
    }
}

impl std::error::Error for FormatError {}

/// How this pool would lie on its devices. Nothing is written.
///
/// # Errors
/// [`FormatError::Name`] and [`FormatError::Layout`].
pub fn plan(spec: &PoolSpec) -> Result<Layout, FormatError> {
    if spec.name.is_empty() || spec.name.len() > NAME_BYTES_MAX {
        return Err(FormatError::Name);
    }
    let sizes: Vec<u64> = spec.devices.iter().map(|(_, blocks)| *blocks).collect();
    let layout = Layout::plan(spec.pool, spec.shard_count, &sizes).map_err(FormatError::Layout)?;
    if spec.second_sides.is_empty() {
        return Ok(layout);
    }
    assert_eq!(
        spec.second_sides.len(),
        spec.devices.len(),
        "each device has two sides"
    );
    layout.with_mirrors().map_err(FormatError::Layout)
}

/// Makes a pool on these devices. What was on them is lost. The labels are written last, so that a pool exists whole
/// or not at all.
///
/// # Errors
/// [`FormatError`]; then the devices hold no pool.
pub fn make_pool(device: &mut impl OpenDevice, spec: &PoolSpec) -> Result<Layout, FormatError> {
    let layout = plan(spec)?;
    let devices = spec.devices.len();
    let sides = spec.sides();
    let mut writer = Writer { device, sides };
    for index in 0..devices {
        writer.write(index, 0, &[0; PAGE_BYTES])?;
        writer.write(index, layout.label_copy_block(index), &[0; PAGE_BYTES])?;
    }
    for shard in 0..spec.shard_count {
        make_shard(&mut writer, &layout, ShardIndex(shard))?;
    }
    writer.flush_all(devices)?;
    for index in 0..devices {
        for &side in sides {
            let label = label_of(spec, &layout, index, side);
            writer.write_side(index, side, layout.label_copy_block(index), label.as_bytes())?;
            writer.write_side(index, side, 0, label.as_bytes())?;
        }
    }
    writer.flush_all(devices)?;
    Ok(layout)
}

struct Writer<'a, D> {
    device: &'a mut D,
    sides: &'static [Side],
}

impl<D: OpenDevice> Writer<'_, D> {
    /// On all sides.
    fn write(&mut self, device: usize, block: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let mut sides = self.sides.iter();
        sides.try_for_each(|&side| self.write_side(device, side, block, bytes))
    }

    fn write_side(&mut self, device: usize, side: Side, block: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let device = self.number(device, side);
        self.device
            .write(device, block * BLOCK_BYTES as u64, bytes)
            .map_err(|error| failed(device, error))
    }

    fn number(&self, device: usize, side: Side) -> DeviceIndex {
        DeviceIndex((device * self.sides.len() + side.index()) as u8)
    }

    fn flush_all(&mut self, devices: usize) -> Result<(), FormatError> {
        for device in 0..devices {
            for &side in self.sides {
                let device = self.number(device, side);
                self.device.flush(device).map_err(|error| failed(device, error))?;
            }
        }
        Ok(())
    }
}

fn failed(device: DeviceIndex, error: DeviceError) -> FormatError {
    FormatError::Device {
        device: usize::from(device.0),
        error,
    }
}

fn make_shard<D: OpenDevice>(
    writer: &mut Writer<'_, D>,
    layout: &Layout,
    shard: ShardIndex,
) -> Result<(), FormatError> {
    let home = layout.home(shard.0);
    let mut space = Space::new(layout, shard);
    space.begin_checkpoint();
    let mut page = [0; PAGE_BYTES];
    while let Some((device, index, slot)) = space.next_image(FIRST_GENERATION, &mut page) {
        let block = layout.bitmap_block(shard.0, usize::from(device.0), index, u64::from(slot));
        writer.write(home, block, &page)?;
    }
    writer.write(home, layout.log_start_block(shard.0), &[0; PAGE_BYTES])?;
    let mut header = ShardHeader::new_zeroed();
    header.header = PageHeader::new(PageKind::ShardHeader, layout.pool);
    header.generation = FIRST_GENERATION.into();
    header.shard = shard.0.into();
    header.log_lsn = 1.into();
    header.bitmap_check = space.bitmap_check().into();
    page::seal(header.as_mut_bytes());
    writer.write(
        home,
        layout.header_block(shard.0, 1 - FIRST_GENERATION % 2),
        &[0; PAGE_BYTES],
    )?;
    writer.write(
        home,
        layout.header_block(shard.0, FIRST_GENERATION % 2),
        header.as_bytes(),
    )
}

fn label_of(spec: &PoolSpec, layout: &Layout, index: usize, side: Side) -> Box<PoolLabel> {
    let mut label = Box::new(PoolLabel::new_zeroed());
    label.header = PageHeader::new(PageKind::PoolLabel, spec.pool);
    label.name[..spec.name.len()].copy_from_slice(spec.name.as_bytes());
    label.features = FeatureFlags::default();
    label.created_ns = spec.created_ns.into();
    label.sequence = 1.into();
    label.device_count = (spec.devices.len() as u16).into();
    label.device_index = (index as u16).into();
    label.side = (side.index() as u16).into();
    if layout.mirrored {
        label.features.incompatible = FEATURE_MIRRORS.into();
        for (row, uuid) in label.mirrors.iter_mut().zip(&spec.second_sides) {
            row.uuid = *uuid;
        }
    }
    label.shard_count = spec.shard_count.into();
    label.log_pages = layout.log_pages.into();
    for (row, ((uuid, size_blocks), device)) in label
        .devices
        .iter_mut()
        .zip(spec.devices.iter().zip(&layout.devices))
    {
        *row = DeviceRow {
            uuid: *uuid,
            size_blocks: (*size_blocks).into(),
            slice_blocks: device.slice_blocks.into(),
        };
    }
    page::seal(label.as_mut_bytes());
    label
}
