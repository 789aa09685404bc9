//! What the labels of a pool with mirrors have to say before it is opened.
//!
//! ```text
//! as found -> not older than what was seen, or somebody wants it -> the same on all that are in sync -> what is missing is out -> opened
//! ```
//! The newest label may be on one side only, after a crash. Nothing rests on it, nor is another one made, before all sides that are in
//! sync have it. If that side is missing, the others get a number that it cannot have.

use std::sync::Arc;

use super::Appliance;
use crate::error::{Error, Result};
use crate::label::PoolDevices;
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
        let seen = self.state.sequences().of(&devices.id_text());
        let label = devices.mirrors.as_ref();
        label.is_some_and(|label| label.sequence() >= seen)
    }

    /// Refuses to go on without sides that were in sync, and with sides that missed what was written last.
    pub(super) fn check_degraded(&self, devices: &PoolDevices, degraded: Degraded) -> Result<()> {
        let Some(label) = &devices.mirrors else {
            return Ok(());
        };
        let (pool, id, sequence) = (&devices.name, devices.id_text(), label.sequence());
        if degraded == Degraded::Allowed {
            return self.state.sequences().begin_again(&id, sequence);
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
        Ok(devices)
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
        self.state
            .sequences()
            .reserve(&devices.id_text(), label.sequence())
    }
}

/// Has the labels say that these sides are out. Gives what they say then, and the device of the last one.
pub(super) async fn put_out(
    mut devices: PoolDevices,
    files: Arc<PoolFiles>,
    sides: Vec<SideAt>,
    sequence: u64,
) -> Result<(PoolDevices, Option<Arc<DeviceFile>>)> {
    patience::beside(move || {
        let label = devices.mirrors.as_ref().expect("a pool with mirrors has one");
        let only =
            |device: DeviceIndex| Error::failure(format!("neither side of device {} can be used", device.0));
        let label = label.with_missing(&sides, sequence).map_err(only)?;
        let mut file = None;
        for at in &sides {
            let place = usize::from(at.below().0);
            file = files.take(place).or(file);
            let path = std::mem::take(&mut devices.paths[place]);
            if !path.as_os_str().is_empty() {
                devices.unplaced.push(path);
            }
        }
        devices.mirrors = Some(label.clone());
        let written = label.write(&devices.layout, &files, devices.in_sync());
        written.map_err(|failed| {
            let texts = failed
                .iter()
                .map(|(at, error)| format!("writing the label of {at}: {error}"));
            Error::failure(texts.collect::<Vec<_>>().join("; "))
        })?;
        Ok((devices, file))
    })
    .await
}
