//! The devices of an open pool that do not answer, as its processors tell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Pool, time_text};
use crate::events::{EventKind, When};
use crate::mailbox::{ProcessorIndex, Stall};
use stillpoint_hw::device::{DeviceFile, Occupant};
use stillpoint_processor::ports::OperationKind;

/// By place, those that have left theirs too.
#[derive(Debug, Default)]
pub(super) struct Stalls(Mutex<BTreeMap<Occupant, Stalled>>);

/// A device that does not answer.
#[derive(Debug)]
struct Stalled {
    /// As it was when that was told: a side of a mirror may leave its place meanwhile.
    path: String,
    began_ns: u64,
    /// Who waits for it.
    processors: BTreeSet<ProcessorIndex>,
}

impl Stalls {
    fn state(&self) -> MutexGuard<'_, BTreeMap<Occupant, Stalled>> {
        // A panic elsewhere does not make a device answer.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// What a processor tells of a device. The first that waits for it is told of, and when the last one does not any more.
    pub(crate) fn stall_told(&self, processor: ProcessorIndex, device: Occupant, stall: Stall) {
        let mut state = self.stalls.state();
        match stall {
            Stall::Lasts { kind, began_wall_ns } => {
                if let Some(known) = state.get_mut(&device) {
                    known.processors.insert(processor);
                    known.began_ns = known.began_ns.min(began_wall_ns);
                    return;
                }
                let path = self.path_in_place(device.place);
                let stalled = Stalled {
                    path: path.clone(),
                    began_ns: began_wall_ns,
                    processors: BTreeSet::from([processor]),
                };
                state.insert(device, stalled);
                let what = match kind {
                    OperationKind::Read => "read",
                    OperationKind::Write => "write",
                    OperationKind::Flush => "flush",
                    OperationKind::Discard => "discard",
                    OperationKind::WriteZeroes => "write of zeros",
                };
                let since = time_text(began_wall_ns);
                let text = format!("has not answered a {what} since {since}: requests that need it wait");
                self.tell_of(EventKind::DeviceStalled, When::since(began_wall_ns), &path, text);
            }
            Stall::Ended => {
                let Some(known) = state.get_mut(&device) else {
                    return;
                };
                known.processors.remove(&processor);
                if !known.processors.is_empty() {
                    return;
                }
                if let Some(ended) = state.remove(&device) {
                    self.tell_end(&ended);
                }
            }
        }
    }

    /// Its processors have closed the pool: nothing of it waits for any device.
    pub(crate) fn end_stalls(&self) {
        let all = std::mem::take(&mut *self.stalls.state());
        all.values().for_each(|ended| self.tell_end(ended));
    }

    fn tell_end(&self, ended: &Stalled) {
        let when = When::since(ended.began_ns);
        let took_s = when.time_ns.saturating_sub(ended.began_ns) as f64 / 1e9;
        let text = format!("nothing waits for it any more, after {took_s:.1} s");
        self.tell_of(EventKind::DeviceStallEnded, when, &ended.path, text);
    }

    /// The path of what is in a place, or was last.
    fn path_in_place(&self, place: usize) -> String {
        let path = self.files.get(place).map(|file| text_of(&file));
        path.or_else(|| self.side_info(place).and_then(|side| side.path))
            .unwrap_or_else(|| format!("place {place}"))
    }

    /// Since when the device in a place has not answered, if it does not. One that has left the place is another matter.
    pub(super) fn stalled_since(&self, place: usize, file: &DeviceFile) -> Option<u64> {
        let (state, path) = (self.stalls.state(), text_of(file));
        let of_it = state
            .iter()
            .filter(|(device, stalled)| device.place == place && stalled.path == path);
        of_it.map(|(_, stalled)| stalled.began_ns).min()
    }
}

fn text_of(file: &DeviceFile) -> String {
    file.path().display().to_string()
}
