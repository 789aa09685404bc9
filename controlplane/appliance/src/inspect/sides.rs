//! Pools with mirrors: each side is looked at as if it were alone, and both are written.

use crate::error::{Error, Result};
use crate::label::PoolDevices;
use stillpoint_hw::device::Opener;
use stillpoint_processor::mirror::{MirroredOpener, Sides};
use stillpoint_processor::ports::{DeviceError, OpenDevice, Side, Transferred};
use stillpoint_processor::{DeviceIndex, ShardIndex};

/// Which sides are looked at, the first time and the second: all first sides, then all second ones; of a device of which one is
/// out, the other both times. Nothing without mirrors; no second time if it would be the same.
pub(super) fn views(devices: &PoolDevices) -> [Option<Vec<Sides>>; 2] {
    let Some(label) = &devices.mirrors else {
        return [None, None];
    };
    let [first, second] = Side::BOTH.map(|side| {
        let alone = |sides: Sides| match sides {
            Sides::Both => Sides::Only {
                side,
                episode: 0,
                begins: false,
            },
            only => only,
        };
        label.sides(&[]).into_iter().map(alone).collect::<Vec<_>>()
    });
    let is_another = first != second;
    [Some(first), is_another.then_some(second)]
}

/// The devices of a pool as its shards see them.
pub(super) enum Device {
    Plain(Opener),
    Mirrored(MirroredOpener<Opener>),
}

/// Does something with the devices of a shard, on both sides of those that have two, which are the same afterwards.
///
/// # Errors
/// A side that failed although the other did not.
pub(super) fn over<R>(
    devices: &PoolDevices,
    shard: ShardIndex,
    opener: Opener,
    act: impl FnOnce(&mut Device) -> R,
) -> Result<R> {
    let Some(label) = &devices.mirrors else {
        return Ok(act(&mut Device::Plain(opener)));
    };
    let opener = MirroredOpener::new(opener, &devices.layout, shard, label.sides(&[]), Side::First);
    let mut device = Device::Mirrored(opener);
    let result = act(&mut device);
    if let Device::Mirrored(opener) = device {
        let settled = opener.settle();
        settled.map_err(|failed| Error::failure(format!("repairing pool {}: {failed}", devices.name)))?;
    }
    Ok(result)
}

impl OpenDevice for Device {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        match self {
            Self::Plain(opener) => opener.read_all(reads),
            Self::Mirrored(opener) => opener.read_all(reads),
        }
    }

    fn read_other(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &mut [u8]) -> bool {
        match self {
            Self::Plain(opener) => opener.read_other(device, offset_bytes, bytes),
            Self::Mirrored(opener) => opener.read_other(device, offset_bytes, bytes),
        }
    }

    fn doubt(&mut self, device: DeviceIndex, first_block: u64, count: u64) {
        match self {
            Self::Plain(opener) => opener.doubt(device, first_block, count),
            Self::Mirrored(opener) => opener.doubt(device, first_block, count),
        }
    }

    fn write(
        &mut self,
        device: DeviceIndex,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> std::result::Result<(), DeviceError> {
        match self {
            Self::Plain(opener) => opener.write(device, offset_bytes, bytes),
            Self::Mirrored(opener) => opener.write(device, offset_bytes, bytes),
        }
    }

    fn flush(&mut self, device: DeviceIndex) -> std::result::Result<(), DeviceError> {
        match self {
            Self::Plain(opener) => opener.flush(device),
            Self::Mirrored(opener) => opener.flush(device),
        }
    }
}
