//! Sides that are there again: whether they are what was left, and that they get what they lack.

use std::path::Path;
use std::sync::Arc;

use super::{Pool, SideState, Sides};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::label::{self, Found, MirrorLabel};
use crate::mailbox::MirrorChange;
use crate::patience;
use crate::pool::wall_ns;
use stillpoint_hw::device::DeviceFile;
use stillpoint_hw::device::nvme::passthrough::DurableWrites;
use stillpoint_processor::DeviceIndex;
use stillpoint_processor::mirror::SideAt;

impl Pool {
    /// The places of sides that are out and not there.
    pub(crate) fn sides_missing(&self) -> Vec<usize> {
        let Some(sides) = self.sides() else {
            return Vec::new();
        };
        let out = sides.known().in_state(SideState::Out).into_iter();
        out.map(|at| usize::from(at.below().0))
            .filter(|&place| self.files.get(place).is_none())
            .collect()
    }

    /// The device of a side that is out is not there.
    pub(crate) fn side_went(&self, place: usize) {
        if let Some(sides) = self.sides() {
            let at = SideAt::of_below(DeviceIndex(place as u8));
            sides.known().record(at).stayed = false;
        }
    }

    /// Whether the device of a side failed without going away.
    pub(crate) fn side_stayed(&self, place: usize) -> bool {
        let at = SideAt::of_below(DeviceIndex(place as u8));
        self.sides().is_some_and(|sides| sides.known().record(at).stayed)
    }

    /// A device with the label of a side that is out is there: what it lacks is copied to it.
    ///
    /// # Errors
    /// Conflict if somebody has it, or it was used without the other side; failure if it is no device of this pool.
    pub(crate) async fn side_returned(
        &self,
        place: usize,
        path: &Path,
        commands: Option<DurableWrites>,
    ) -> Result<()> {
        let sides = self.mirrored()?;
        let _gate = sides.gate.lock().await;
        let at = SideAt::of_below(DeviceIndex(place as u8));
        let label = {
            let mut known = sides.known();
            if known.record(at).state != SideState::Out {
                return Ok(());
            }
            if known.record(at.other()).lost.is_some() {
                return Err(Error::conflict(format!(
                    "{} is lost: there is nothing to copy from, and the pool is opened again when it is back",
                    at.other()
                )));
            }
            known.label.clone()
        };
        let (pool, layout) = (self.name().to_owned(), self.devices.layout.clone());
        let path = path.to_owned();
        let file = patience::beside(move || {
            let file = DeviceFile::open(&path).map_err(|error| crate::appliance::device_error(&error))?;
            check_returned(&file, &pool, at, &label)?;
            check_size(&file, layout.devices[usize::from(at.device.0)].size_blocks)?;
            Ok(file.served_by(commands))
        });
        let file = file.await?;
        let text = format!("{at} is back: what it lacks is copied to it");
        self.attach(sides, at, Arc::new(file), text).await;
        Ok(())
    }

    /// Has every processor copy to a side that is in its place now. The gate is held.
    pub(super) async fn attach(&self, sides: &Sides, at: SideAt, file: Arc<DeviceFile>, text: String) {
        let path = file.path().to_owned();
        self.files.put_shared(usize::from(at.below().0), file);
        let pass = {
            let mut known = sides.known();
            let pass = known.begin_pass(at);
            let record = known.record(at);
            record.state = SideState::Resync;
            record.path = Some(path.clone());
            record.since_ns = wall_ns();
            record.attached = pass;
            record.was_cut_off = false;
            pass
        };
        self.tell(EventKind::DeviceReturned, &path.display().to_string(), text);
        self.change_mirrors(MirrorChange::Attach { at, pass }).await;
    }

    /// Tries again what could not be copied, and devices that failed and are there; `rate_bytes_per_s` counts from now on.
    ///
    /// # Errors
    /// Usage without mirrors.
    pub(crate) async fn resync(
        &self,
        rate_bytes_per_s: Option<u64>,
        commands: Option<DurableWrites>,
    ) -> Result<()> {
        let sides = self.mirrored()?;
        if let Some(bytes_per_s) = rate_bytes_per_s {
            sides.known().rate_bytes_per_s = bytes_per_s;
            self.set_resync_rate().await;
        }
        {
            let _gate = sides.gate.lock().await;
            let again = sides.known().in_state(SideState::Resync);
            for at in again {
                let pass = sides.known().begin_pass(at);
                self.change_mirrors(MirrorChange::Again { at, pass }).await;
            }
        }
        for place in self.sides_missing() {
            let at = SideAt::of_below(DeviceIndex(place as u8));
            let path = sides.known().record(at).path.clone();
            if let Some(path) = path {
                self.side_returned(place, &path, commands).await?;
            }
        }
        Ok(())
    }
}

/// Whether what is there is the side that is out, as it was left.
fn check_returned(file: &DeviceFile, pool: &str, at: SideAt, label: &MirrorLabel) -> Result<()> {
    let path = file.path();
    let shown = path.display();
    let found = file.read_anywhere(|file| label::look_in(file, path));
    let found = found.map_err(|error| Error::failure(format!("cannot read {shown}: {error}")))??;
    let Found::Label { label: its, .. } = found else {
        return Err(Error::failure(format!("{shown} has no label of pool {pool}")));
    };
    let (device, side) = (usize::from(at.device.0), at.side.index());
    let place = (usize::from(its.device_index.get()), usize::from(its.side.get()));
    if place != (device, side) || its.uuid(device, side) != label.uuid(at) {
        return Err(Error::failure(format!("{shown} is not {at} of pool {pool}")));
    }
    let Some(used) = label.used_elsewhere(at, &its) else {
        return Ok(());
    };
    let how = used.how(pool);
    let message = format!("{shown} was used {how}: what was written to it is not here");
    Err(Error::conflict(message).hint(format!(
        "stillpoint pool replace {pool} {device}.{side} {shown} --force gives up what is on it"
    )))
}

pub(super) fn check_size(file: &DeviceFile, size_blocks: u64) -> Result<()> {
    if file.size_blocks() >= size_blocks {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{} has {} bytes; {} are needed",
        file.path().display(),
        file.size_bytes(),
        size_blocks * stillpoint_processor::BLOCK_BYTES as u64
    )))
}
