//! What the labels of a pool with mirrors have to say before it is opened.
//!
//! ```text
//! as found -> not older than what was seen, or somebody wants it -> the same on all that are in sync -> what is missing is out
//!          -> what was too small lacks everything -> opened
//! ```
//! The newest label may be on one side only, after a crash. Nothing rests on it, nor is another one made, before all sides that are in
//! sync have it. If that side is missing, the others get a number that it cannot have.

use std::sync::Arc;

use super::Appliance;
use crate::error::{Error, Result};
use crate::label::{self, PoolDevices};
use crate::patience;
use stillpoint_hw::device::{DeviceFile, PoolFiles};
use stillpoint_processor::DeviceIndex;
use stillpoint_processor::mirror::SideAt;

/// Whether a pool may be opened without sides of mirrors that were in sync when it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Degraded {
    /// No.
    Refused,
    /// Yes, whatever the labels are.
    Allowed,
    /// Yes, if the labels are not older than the newest that was seen: else what was written last lies on what is missing.
    AsNew,
}

impl Appliance {
    /// Whether no newer labels of the pool were seen here than those that were read.
    pub(super) fn is_newest(&self, devices: &PoolDevices) -> bool {
        let seen = self.state.mirrors().newest_sequence(&devices.id_text());
        let label = devices.mirrors.as_ref();
        label.is_some_and(|label| label.sequence() >= seen)
    }

    /// Refuses to go on without sides that were in sync, and with sides that missed what was written last.
    pub(super) fn check_degraded(&self, devices: &PoolDevices, degraded: Degraded) -> Result<()> {
        let Some(label) = &devices.mirrors else {
            return Ok(());
        };
        let (pool, id, sequence) = (&devices.name, devices.id_text(), label.sequence());
        let left = self.left_of_cut_off(devices);
        if degraded == Degraded::Allowed {
            for at in left {
                // It counts as it is.
                self.forget_cut_off(devices, at)?;
            }
            return self.state.mirrors().begin_again(&id, sequence);
        }
        if let Some(at) = left.first() {
            let path = devices.paths[usize::from(at.below().0)].display();
            return Err(Error::failure(format!(
                "{at} of pool {pool} ({path}) was too small for a while: what lay behind its end is lost, and the other side, \
                 which has it, is missing"
            ))
            .hint("bring that one back; --degraded opens the pool with what is left, and gives up the rest"));
        }
        let missing = label.all().filter(|at| !devices.is_there(*at));
        let missing = missing.map(|at| at.to_string()).collect::<Vec<_>>().join("; ");
        if !missing.is_empty() && !self.is_newest(devices) {
            return Err(Error::failure(format!(
                "pool {pool} was used without the sides that are there now, and those that were used are missing: {missing}"
            ))
            .hint("bring these back; --degraded opens the pool as it was before, and gives up what was written since"));
        }
        if !devices.lacking().is_empty() && degraded == Degraded::Refused {
            return Err(Error::failure(format!(
                "of pool {pool} are missing: {missing}, of which some were in sync when it was closed{}",
                (devices.remarks.iter())
                    .map(|remark| format!("; {remark}"))
                    .collect::<String>()
            ))
            .hint("name all devices of the pool; --degraded opens it without those that are missing"));
        }
        Ok(())
    }

    /// Has the labels say what is there, before anybody goes by them. `is_newest`: no newer ones were seen here when they were read.
    pub(super) async fn settle_labels(
        &self,
        mut devices: PoolDevices,
        files: &Arc<PoolFiles>,
        is_newest: bool,
    ) -> Result<PoolDevices> {
        let lacking = devices.lacking();
        devices = self.bring_up_to_date(devices, files).await?;
        if !lacking.is_empty() {
            let sequence = self.unused_sequence(&devices)?;
            (devices, _) = put_out(devices, Arc::clone(files), lacking.clone(), sequence).await?;
            if is_newest && !devices.has_doubtful {
                devices.went_missing = lacking;
            }
        }
        let cut_off = self.cut_off(&devices);
        if !cut_off.is_empty() {
            // In an episode of its own, of which no page says that less is lacking.
            devices.went_missing.retain(|at| !cut_off.contains(at));
            let sequence = self.unused_sequence(&devices)?;
            devices = say_out(devices, Arc::clone(files), cut_off.clone(), sequence).await?;
            for at in cut_off {
                self.forget_cut_off(&devices, at)?;
            }
        }
        Ok(devices)
    }

    /// The sides that were too small, and of which no label says so.
    fn cut_off(&self, devices: &PoolDevices) -> Vec<SideAt> {
        let Some(label) = &devices.mirrors else {
            return Vec::new();
        };
        let noted = self.state.mirrors().cut_off(&devices.id_text());
        let is_noted = |at: &SideAt| noted.contains(&label::id_text(&label.uuid(*at)));
        label.all().filter(is_noted).collect()
    }

    /// Those of them that are all there is of their device.
    fn left_of_cut_off(&self, devices: &PoolDevices) -> Vec<SideAt> {
        let in_sync = devices.in_sync();
        let mut left = self.cut_off(devices);
        left.retain(|at| in_sync.contains(at) && !in_sync.contains(&at.other()));
        left
    }

    fn forget_cut_off(&self, devices: &PoolDevices, at: SideAt) -> Result<()> {
        let label = devices.mirrors.as_ref().expect("it has sides");
        let side = label::id_text(&label.uuid(at));
        self.state.mirrors().forget_cut_off(&devices.id_text(), &side)
    }

    /// Has all sides that are in sync say what the newest label says. Those that do not take it are out.
    async fn bring_up_to_date(
        &self,
        mut devices: PoolDevices,
        files: &Arc<PoolFiles>,
    ) -> Result<PoolDevices> {
        let outdated = core::mem::take(&mut devices.outdated);
        let Some(label) = devices.mirrors.clone().filter(|_| !outdated.is_empty()) else {
            return Ok(devices);
        };
        let (layout, all) = (devices.layout.clone(), Arc::clone(files));
        let written = patience::beside(move || Ok(label.write(&layout, &all, outdated)));
        let Err(failed) = written.await? else {
            return Ok(devices);
        };
        let remarks = failed
            .iter()
            .map(|(at, error)| format!("{at} is out: its label cannot be written: {error}"));
        devices.remarks.extend(remarks);
        let failed = failed.into_iter().map(|(at, _)| at).collect();
        let sequence = self.unused_sequence(&devices)?;
        let (devices, _) = put_out(devices, Arc::clone(files), failed, sequence).await?;
        Ok(devices)
    }

    /// A number for the next label that no label here has had, also none that a crash left on devices that are missing now.
    pub(super) fn unused_sequence(&self, devices: &PoolDevices) -> Result<u64> {
        let label = devices.mirrors.as_ref().expect("a pool with mirrors has one");
        self.state.mirrors().reserve(&devices.id_text(), label.sequence())
    }
}

/// Has the labels say that these sides are out, and does without them. Gives what they say then, and the device of the last one.
pub(super) async fn put_out(
    mut devices: PoolDevices,
    files: Arc<PoolFiles>,
    sides: Vec<SideAt>,
    sequence: u64,
) -> Result<(PoolDevices, Option<Arc<DeviceFile>>)> {
    let mut file = None;
    for at in &sides {
        let place = usize::from(at.below().0);
        file = files.take(place).or(file);
        let path = core::mem::take(&mut devices.paths[place]);
        if !path.as_os_str().is_empty() {
            devices.unplaced.push(path);
        }
    }
    let devices = say_out(devices, files, sides, sequence).await?;
    Ok((devices, file))
}

/// Has the labels say that these sides are out from now on.
async fn say_out(
    mut devices: PoolDevices,
    files: Arc<PoolFiles>,
    sides: Vec<SideAt>,
    sequence: u64,
) -> Result<PoolDevices> {
    patience::beside(move || {
        let label = devices.mirrors.as_ref().expect("a pool with mirrors has one");
        let only =
            |device: DeviceIndex| Error::failure(format!("neither side of device {} can be used", device.0));
        let label = label.with_missing(&sides, sequence).map_err(only)?;
        devices.mirrors = Some(label.clone());
        let written = label.write(&devices.layout, &files, devices.in_sync());
        written.map_err(|failed| {
            let texts = failed
                .iter()
                .map(|(at, error)| format!("writing the label of {at}: {error}"));
            Error::failure(texts.collect::<Vec<_>>().join("; "))
        })?;
        Ok(devices)
    })
    .await
}
