//! The labels of a pool with mirrors: which sides of its devices are there, and which of them can be gone by.

mod history;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use history::UsedElsewhere;

use super::{PoolDevices, id_text};
use crate::error::{Error, Result};
use stillpoint_hw::device::{Opener, PoolFiles};
use stillpoint_ondisk::BLOCK_BYTES;
use stillpoint_ondisk::label::PoolLabel;
use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::DeviceIndex;
use stillpoint_processor::mirror::{SideAt, Sides};
use stillpoint_processor::ports::{DeviceError, OpenDevice, Side};

/// What the newest label says.
#[derive(Clone, Debug)]
pub struct MirrorLabel(Box<PoolLabel>);

impl MirrorLabel {
    /// How often the devices have changed.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.0.sequence.get()
    }

    /// Identity of a side.
    #[must_use]
    pub fn uuid(&self, at: SideAt) -> [u8; 16] {
        self.0.uuid(usize::from(at.device.0), at.side.index())
    }

    /// Since when a side is out; 0 while it is in sync.
    #[must_use]
    pub fn out_since(&self, at: SideAt) -> u64 {
        self.0.mirrors[usize::from(at.device.0)].out_since[at.side.index()].get()
    }

    /// The place that the device of a label has; `None` if another has it.
    fn place_of(&self, label: &PoolLabel) -> Option<SideAt> {
        let device = usize::from(label.device_index.get());
        let side = usize::from(label.side.get());
        let at = SideAt {
            device: DeviceIndex(device as u8),
            side: Side::BOTH[side],
        };
        let has_place = device < usize::from(self.0.device_count.get());
        (has_place && label.uuid(device, side) == self.uuid(at)).then_some(at)
    }

    /// All sides, in the order of their devices.
    pub fn all(&self) -> impl Iterator<Item = SideAt> + use<> {
        (0..self.0.device_count.get()).flat_map(|device| {
            Side::BOTH.map(|side| SideAt {
                device: DeviceIndex(device as u8),
                side,
            })
        })
    }

    /// Which sides of each device can be gone by. `went_missing`: those that are out only since the pool is being opened.
    #[must_use]
    pub fn sides(&self, went_missing: &[SideAt]) -> Vec<Sides> {
        let of_device = |device: u16| {
            let out = Side::BOTH.into_iter().find_map(|side| {
                let device = DeviceIndex(device as u8);
                let episode = self.out_since(SideAt { device, side });
                (episode > 0).then_some((side, episode))
            });
            match out {
                None => Sides::Both,
                Some((side, episode)) => {
                    let device = DeviceIndex(device as u8);
                    Sides::Only {
                        side: side.other(),
                        episode,
                        begins: went_missing.contains(&SideAt { device, side }),
                    }
                }
            }
        };
        (0..self.0.device_count.get()).map(of_device).collect()
    }

    /// The label that comes next, in which these sides are out as well.
    ///
    /// # Errors
    /// The device of which no side would be left.
    pub fn with_out(&self, sides: &[SideAt]) -> std::result::Result<Self, DeviceIndex> {
        let mut next = self.next();
        let sequence = next.0.sequence;
        for at in sides {
            let since = &mut next.0.mirrors[usize::from(at.device.0)].out_since;
            if since[at.side.other().index()].get() > 0 {
                return Err(at.device);
            }
            since[at.side.index()] = sequence;
        }
        Ok(next)
    }

    /// The same for sides that are not there when the pool is opened, with a number that no label has had.
    ///
    /// # Errors
    /// The device of which no side would be left.
    pub fn with_missing(&self, sides: &[SideAt], sequence: u64) -> std::result::Result<Self, DeviceIndex> {
        assert!(sequence > self.sequence(), "labels get newer");
        let mut before = self.clone();
        before.0.sequence = (sequence - 1).into();
        before.with_out(sides)
    }

    /// The label that comes next, in which this side is in sync.
    #[must_use]
    pub fn with_joined(&self, at: SideAt) -> Self {
        let mut next = self.next();
        next.0.mirrors[usize::from(at.device.0)].out_since[at.side.index()] = 0.into();
        next
    }

    /// The label that comes next, in which another device takes the place of a side, and is out.
    ///
    /// # Errors
    /// The device, if its other side is out.
    pub fn with_replaced(&self, at: SideAt, uuid: [u8; 16]) -> std::result::Result<Self, DeviceIndex> {
        let mut next = self.with_out(&[at])?;
        next.0.set_uuid(usize::from(at.device.0), at.side.index(), uuid);
        Ok(next)
    }

    /// The same label with a feature bit; it is no other one for that.
    #[must_use]
    pub fn with_incompatible(&self, bit: u64) -> Self {
        let mut same = self.clone();
        let before = same.0.features.incompatible.get();
        same.0.features.incompatible = (before | bit).into();
        same
    }

    fn next(&self) -> Self {
        let mut next = self.clone();
        next.0.sequence += 1;
        next
    }

    /// Writes it to these sides, both copies one after the other, and flushes each.
    ///
    /// # Errors
    /// The sides that failed. The others have it.
    pub fn write(
        &self,
        layout: &Layout,
        files: &Arc<PoolFiles>,
        sides: impl IntoIterator<Item = SideAt>,
    ) -> std::result::Result<(), Vec<(SideAt, DeviceError)>> {
        let mut opener = Opener::new(Arc::clone(files));
        let mut failed = Vec::new();
        for at in sides {
            let device = usize::from(at.device.0);
            let page = self.0.page_for(device, at.side.index());
            let written = [0, layout.label_copy_block(device)]
                .into_iter()
                .try_for_each(|block| {
                    opener.write(at.below(), block * BLOCK_BYTES as u64, &page)?;
                    opener.flush(at.below())
                });
            if let Err(error) = written {
                failed.push((at, error));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }
}

/// A label that was found, and where.
pub(super) type Found<'a> = (Box<PoolLabel>, &'a PathBuf);

/// The pool that these labels make. Sides that are not there have empty paths; those that were replaced are remarked.
///
/// # Errors
/// If the labels are of different pools, a side is there twice, sides were used without each other, or no side of a device can be gone by.
pub(super) fn read(
    labels: Vec<Found<'_>>,
    named: &[PathBuf],
    mut remarks: Vec<String>,
) -> Result<PoolDevices> {
    check_same_pool(&labels)?;
    let newest = labels.iter().max_by_key(|(label, _)| label.sequence.get());
    let (label, newest_path) = newest.expect("there is a label");
    let name = label.name().to_owned();
    let mut newest = MirrorLabel(label.clone());
    for (other, path) in &labels {
        if other.sequence != newest.0.sequence {
            continue;
        }
        newest.0.features.incompatible |= other.features.incompatible;
        if !newest.says_the_same(other) {
            return Err(apart(&name, newest_path, path));
        }
    }
    let mut paths = vec![PathBuf::new(); usize::from(newest.0.device_count.get()) * 2];
    let mut outdated = Vec::new();
    for (label, path) in &labels {
        let Some(at) = newest.place_of(label) else {
            // While the other side was out it was all there was of its device.
            let other = 1 - usize::from(label.side.get());
            if label.mirrors[usize::from(label.device_index.get())].out_since[other].get() > 0 {
                return Err(apart(&name, newest_path, path));
            }
            remarks.push(format!(
                "{} was replaced in this pool; it is not used",
                path.display()
            ));
            continue;
        };
        match newest.out_since(at) {
            0 if label.sequence == newest.0.sequence && label.features == newest.0.features => {}
            0 => outdated.push(at),
            _ => match newest.used_elsewhere(at, label) {
                None => {}
                Some(UsedElsewhere::Alone) => return Err(apart(&name, newest_path, path)),
                Some(used) => return Err(elsewhere(&name, used, newest_path, path)),
            },
        }
        let place = &mut paths[usize::from(at.below().0)];
        if !place.as_os_str().is_empty() {
            let message = format!("{at} of pool {name} is there more than once (a copy?)");
            return Err(Error::failure(message));
        }
        place.clone_from(path);
    }
    let layout = Layout::of(label).map_err(|damage| Error::failure(format!("label: {damage}")))?;
    let unplaced = named
        .iter()
        .filter(|path| !paths.contains(path))
        .cloned()
        .collect();
    let devices = PoolDevices {
        name,
        layout,
        paths,
        created_ns: label.created_ns.get(),
        remarks,
        unplaced,
        mirrors: Some(newest),
        outdated,
        went_missing: Vec::new(),
        has_doubtful: false,
    };
    match devices.without_any_side() {
        None => Ok(devices),
        Some(device) => Err(Error::failure(format!(
            "device {} of pool {}: neither of its sides that is there has everything that was written",
            device.0, devices.name
        ))
        .hint("name the devices of the pool that are missing")),
    }
}

fn check_same_pool(labels: &[Found<'_>]) -> Result<()> {
    let (one, one_path) = labels
        .iter()
        .max_by_key(|(label, _)| label.sequence.get())
        .expect("there is a label");
    let stranger = labels
        .iter()
        .find(|(label, _)| label.header.pool != one.header.pool);
    let Some((other, other_path)) = stranger else {
        return Ok(());
    };
    Err(Error::failure(format!(
        "{} belongs to pool {} ({}) and {} to pool {} ({})",
        one_path.display(),
        one.name(),
        id_text(&one.header.pool),
        other_path.display(),
        other.name(),
        id_text(&other.header.pool)
    )))
}

/// How a pool is opened whose devices have different histories.
const ONE_OF_TWO: &str = "open the pool with the one to keep alone (--degraded), then stillpoint pool replace puts the other in its place; \
     nothing was changed";

fn apart(pool: &str, one: &Path, other: &Path) -> Error {
    Error::failure(format!(
        "{} and {} of pool {pool} were used without each other: what was written to one is not on the other",
        one.display(),
        other.display()
    ))
    .hint(ONE_OF_TWO)
}

fn elsewhere(pool: &str, used: UsedElsewhere, newest: &Path, path: &Path) -> Error {
    Error::failure(format!(
        "{} was used {}: what was written to it may not be on {}, nor the other way round",
        path.display(),
        used.how(pool),
        newest.display()
    ))
    .hint(ONE_OF_TWO)
}

impl PoolDevices {
    /// A device of which no side that is in sync is there.
    fn without_any_side(&self) -> Option<DeviceIndex> {
        let label = self.mirrors.as_ref()?;
        let usable = |at: SideAt| label.out_since(at) == 0 && self.is_there(at);
        let mut firsts = label.all().filter(|at| at.side == Side::First);
        firsts
            .find(|&at| !usable(at) && !usable(at.other()))
            .map(|at| at.device)
    }

    /// Whether a side was found.
    #[must_use]
    pub fn is_there(&self, at: SideAt) -> bool {
        !self.paths[usize::from(at.below().0)].as_os_str().is_empty()
    }

    /// The sides that are in sync and were not found.
    #[must_use]
    pub fn lacking(&self) -> Vec<SideAt> {
        let Some(label) = &self.mirrors else {
            return Vec::new();
        };
        let lacks = |at: &SideAt| label.out_since(*at) == 0 && !self.is_there(*at);
        label.all().filter(lacks).collect()
    }

    /// The sides that are in sync and were found.
    #[must_use]
    pub fn in_sync(&self) -> Vec<SideAt> {
        let Some(label) = &self.mirrors else {
            return Vec::new();
        };
        let has = |at: &SideAt| label.out_since(*at) == 0 && self.is_there(*at);
        label.all().filter(has).collect()
    }
}

#[cfg(test)]
mod tests;
