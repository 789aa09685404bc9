//! Another device in the place of a side.

use std::path::Path;

use super::back::check_size;
use super::{Pool, Sides};
use crate::api::model::ReplaceDevice;
use crate::error::{Error, Result};
use crate::label;
use crate::mailbox::MirrorChange;
use crate::{make, patience};
use stillpoint_hw::device::nvme::passthrough::DurableWrites;
use stillpoint_processor::DeviceIndex;
use stillpoint_processor::mirror::{SideAt, SideState};
use stillpoint_processor::ports::DeviceError;

impl Pool {
    /// Puts another device in the place of a side, and copies everything to it.
    ///
    /// # Errors
    /// Not found; conflict if the other side is not in sync, or the device is in use or not empty; usage if it is too small.
    pub(crate) async fn replace_side(
        &self,
        request: &ReplaceDevice,
        commands: Option<DurableWrites>,
    ) -> Result<()> {
        let sides = self.mirrored()?;
        let _gate = sides.gate.lock().await;
        let at = self.find_side(sides, &request.device)?;
        let has_other = {
            let mut known = sides.known();
            let other = known.record(at.other());
            other.state == SideState::InSync && other.lost.is_none()
        };
        if !has_other {
            let message = format!(
                "{} of pool {} is not in sync: {at} is all there is",
                at.other(),
                self.name()
            );
            return Err(Error::conflict(message).hint("stillpoint pool show tells how far it is"));
        }
        let size_blocks = self.devices.layout.devices[usize::from(at.device.0)].size_blocks;
        let (new, force) = (request.with.clone(), request.force);
        let (file, uuid) = patience::beside(move || {
            let file = make::claim_another(Path::new(&new), size_blocks, force)?;
            check_size(&file, size_blocks)?;
            make::wipe(&file).map_err(|error| Error::failure(format!("wiping {new}: {error}")))?;
            let uuid = make::random()?;
            Ok((file.served_by(commands), uuid))
        })
        .await?;
        if sides.known().record(at).state != SideState::Out {
            self.put_out(sides, vec![(at, DeviceError::Gone)]).await;
        }
        // Of an episode of its own, of which no page says that it lacks less than everything.
        let (label, targets) = {
            let known = sides.known();
            let label = known.label.with_replaced(at, uuid);
            (label, known.written())
        };
        let failed = |what: String| Error::failure(format!("replacing {at}: {what}"));
        let label = label.map_err(|_| failed(format!("{} has failed meanwhile", at.other())))?;
        let written = self.write_label(&label, targets).await;
        let episode = label.sequence();
        self.note_sequence(episode);
        sides.known().label = label.clone();
        // Before any device can be taken for the new one.
        self.change_mirrors(MirrorChange::Replaced { at, episode }).await;
        if let Err(others) = written {
            let texts = others
                .iter()
                .map(|(other, error)| format!("writing the label of {other}: {error}"));
            let text = texts.collect::<Vec<_>>().join("; ");
            self.put_out(sides, others).await;
            return Err(failed(text));
        }
        let place = usize::from(at.below().0);
        self.files.put(place, file);
        if let Err(others) = self.write_label(&label, vec![at]).await {
            drop(self.files.take(place));
            let error = others.first().map_or(DeviceError::Gone, |(_, error)| *error);
            return Err(failed(format!("{}: {error}", request.with)));
        }
        let file = self.files.take(place).expect("it was put there");
        let text = format!(
            "{} takes the place of {at}: everything is copied to it",
            request.with
        );
        self.attach(sides, at, file, text).await;
        Ok(())
    }

    fn find_side(&self, sides: &Sides, device: &str) -> Result<SideAt> {
        let wanted = label::absolute([device])?;
        let known = sides.known();
        let by_path = known
            .sides
            .iter()
            .find(|(_, record)| record.path.as_ref() == wanted.first());
        let by_number = || {
            let (number, side) = device.split_once('.')?;
            let place = number.parse::<u8>().ok()?.checked_mul(2)?
                + side.parse::<u8>().ok().filter(|side| *side < 2)?;
            let at = SideAt::of_below(DeviceIndex(place));
            known.sides.contains_key(&at).then_some(at)
        };
        by_path.map(|(at, _)| *at).or_else(by_number).ok_or_else(|| {
            Error::not_found(format!("{device} is no device of pool {}", self.name()))
                .hint("stillpoint pool show lists them; 0.1 is the second side of device 0")
        })
    }
}
