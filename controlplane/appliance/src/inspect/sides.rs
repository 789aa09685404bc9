//! Pools with mirrors: each side is looked at as if it were alone, and both are written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::label::{MirrorLabel, PoolDevices};
use crate::state::MirrorNotes;
use stillpoint_hw::device::{Opener, PoolFiles};
use stillpoint_processor::mirror::{MirroredOpener, SideAt, Sides};
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

/// Both sides at once, as opening the pool reads them: of each page the newer one.
pub(super) fn both(devices: &PoolDevices) -> Option<Vec<Sides>> {
    let label = devices.mirrors.as_ref()?;
    Some(label.sides(&[]))
}

/// Refuses to mend a pool of which a side is out or not there: it would not get what is mended on the other.
///
/// # Errors
/// Conflict, naming the sides.
pub(super) fn check_all_there(devices: &PoolDevices) -> Result<()> {
    let Some(label) = &devices.mirrors else {
        return Ok(());
    };
    let lacking = devices.lacking();
    let why = |at: SideAt| match label.out_since(at) {
        0 if lacking.contains(&at) => Some(format!("{at} is not among the devices that were named")),
        0 => None,
        _ => Some(format!("{at} is out")),
    };
    let all: Vec<String> = label.all().filter_map(why).collect();
    if all.is_empty() {
        return Ok(());
    }
    let message = format!(
        "pool {} is not repaired without a side of its mirrors: {}",
        devices.name,
        all.join("; ")
    );
    Err(Error::conflict(message).hint(
        "name all devices of the pool; a side that is out gets in sync while the pool is open with it (stillpoint pool open); \
         --degraded repairs what is there, and then everything is copied to the side that is not",
    ))
}

/// Goes by what is there; gives whether the labels say otherwise.
///
/// # Errors
/// Neither side of a device is there.
pub(super) fn do_without(devices: &mut PoolDevices) -> Result<bool> {
    let lacking = devices.lacking();
    let Some(label) = devices.mirrors.as_ref().filter(|_| !lacking.is_empty()) else {
        return Ok(false);
    };
    // One more may be on what is not there, after a crash.
    let sequence = label.sequence() + 2;
    let label = label.with_missing(&lacking, sequence).map_err(|device| {
        Error::failure(format!(
            "neither side of device {} of pool {} is there",
            device.0, devices.name
        ))
    })?;
    devices.mirrors = Some(label);
    Ok(true)
}

/// Before something is written the labels say that it is on what is there alone: a side that is not there lacks everything from then on.
///
/// # Errors
/// If a label cannot be written.
pub(super) fn tell_labels(devices: &PoolDevices, files: &Arc<PoolFiles>) -> Result<()> {
    let Some(label) = &devices.mirrors else {
        return Ok(());
    };
    let written = label.write(&devices.layout, files, devices.in_sync());
    written.map_err(|failed| {
        let texts = failed
            .iter()
            .map(|(at, error)| format!("writing the label of {at}: {error}"));
        Error::failure(texts.collect::<Vec<_>>().join("; "))
    })
}

/// What the daemon that has the pool otherwise knows of its labels. It is not running, or the pool is closed there.
pub(super) struct Daemon {
    notes: Option<MirrorNotes>,
    directory: PathBuf,
    /// The sequence of the labels as they were found.
    found: u64,
}

impl Daemon {
    /// # Errors
    /// Failure if what it remembers cannot be read.
    pub(super) fn of(devices: &PoolDevices, directory: &Path) -> Result<Self> {
        let label = devices.mirrors.as_ref();
        let notes = match label {
            Some(_) => MirrorNotes::of_daemon(directory, &devices.id_text())?,
            None => None,
        };
        Ok(Self {
            notes,
            directory: directory.to_owned(),
            found: label.map_or(0, MirrorLabel::sequence),
        })
    }

    fn is_newest(&self, pool: &str) -> bool {
        let seen = self.notes.as_ref().map(|notes| notes.newest_sequence(pool));
        seen.is_none_or(|seen| self.found >= seen)
    }

    /// Refuses sides that missed what was written last: mended, they would pass for the newest.
    ///
    /// # Errors
    /// Failure, naming the sides that are missing.
    pub(super) fn check_newest(&self, devices: &PoolDevices, accept_loss: bool) -> Result<()> {
        let Some(label) = &devices.mirrors else {
            return Ok(());
        };
        let missing = label.all().filter(|at| !devices.is_there(*at));
        let missing: Vec<String> = missing.map(|at| at.to_string()).collect();
        if missing.is_empty() || accept_loss || self.is_newest(&devices.id_text()) {
            return Ok(());
        }
        let message = format!(
            "pool {} was used without the sides that were named, and those that were used were not: {}",
            devices.name,
            missing.join("; ")
        );
        Err(Error::failure(message).hint(
            "name these; --accept-loss repairs what is there as it was before, and gives up what was written since",
        ))
    }

    /// Keeps how new the labels are that were just written; else a side that was not there could be opened alone, as if it were as new.
    /// Gives what there is to say if nobody can be told.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn note(&self, devices: &PoolDevices) -> Result<Option<String>> {
        let Some(label) = &devices.mirrors else {
            return Ok(None);
        };
        let (pool, sequence) = (devices.id_text(), label.sequence());
        let Some(notes) = &self.notes else {
            return Ok(Some(format!(
                "{} knows nothing of this pool: open it with the sides that were repaired (stillpoint pool open) before the others are \
                 there; --state-dir names where its daemon remembers pools",
                self.directory.display()
            )));
        };
        match self.is_newest(&pool) {
            true => notes.note_sequence(&pool, sequence)?,
            // What was written since was given up.
            false => notes.begin_again(&pool, sequence)?,
        }
        Ok(None)
    }
}

/// What is told of sides that are out or not there.
pub(super) fn not_looked_at(devices: &PoolDevices) -> Vec<String> {
    let Some(label) = &devices.mirrors else {
        return Vec::new();
    };
    let out = label.all().filter(|&at| label.out_since(at) > 0);
    out.map(|at| {
        let why = if devices.is_there(at) { "out" } else { "not there" };
        format!("{at} is {why}, and was not looked at")
    })
    .collect()
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
