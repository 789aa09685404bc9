//! What devices have not answered.

use super::Devices;
use stillpoint_processor::ports::OperationKind;

/// The oldest of what a device was asked and has not answered; a part that is tried again counts from its first try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Since when, in monotonic nanoseconds.
    pub since_ns: u64,
    /// What it was asked.
    pub kind: OperationKind,
}

impl Devices {
    /// What is started from now on is started at this monotonic time.
    pub fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// By place, of each device of which there is something. To be asked now and then: it looks at all that is in flight.
    /// True only where [`Self::set_now`] is called before each [`Self::start`].
    #[must_use]
    pub fn unanswered(&self) -> Vec<Option<Unanswered>> {
        let mut oldest: Vec<Option<Unanswered>> = vec![None; self.targets.places().len()];
        for slot in &self.slots {
            let (Some(operation), Some(since_ns)) = (&slot.operation, slot.started_ns) else {
                continue;
            };
            for part in slot.parts.iter().filter(|part| !part.ended) {
                let mut places = self.targets.places().iter();
                let place = places.position(|&number| number == Some(part.target));
                let Some(place) = place else {
                    continue; // it has left, and nobody waits for its answers but the slot
                };
                if oldest[place].is_none_or(|known| since_ns < known.since_ns) {
                    let kind = operation.kind;
                    oldest[place] = Some(Unanswered { since_ns, kind });
                }
            }
        }
        oldest
    }
}
