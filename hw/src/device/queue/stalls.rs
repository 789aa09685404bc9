//! What devices have not answered.

use super::Devices;
use stillpoint_processor::ports::OperationKind;

/// A device that is in a place of a pool, or was and still has to answer something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Occupant {
    /// The place.
    pub place: usize,
    /// The how-manieth device there, so that one that has left is not taken for the one in its place.
    pub nth: u32,
}

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

    /// Puts here, in no order, each device of which there is something, those that have left their place too: whoever asked them
    /// waits. Nobody waits for the end of a discard that is advice. To be asked now and then: it looks at all that is in flight.
    /// True only where [`Self::set_now`] is called before each [`Self::start`].
    pub fn unanswered(&self, oldest: &mut Vec<(Occupant, Unanswered)>) {
        oldest.clear();
        for slot in &self.slots {
            let (Some(operation), Some(since_ns)) = (&slot.operation, slot.started_ns) else {
                continue;
            };
            let kind = operation.kind;
            if kind == OperationKind::Discard && self.advice {
                continue;
            }
            let asked = Unanswered { since_ns, kind };
            for part in slot.parts.iter().filter(|part| !part.ended) {
                let device = self.targets.at(part.target).occupant;
                match oldest.iter_mut().find(|(known, _)| *known == device) {
                    Some((_, known)) if known.since_ns <= since_ns => {}
                    Some((_, known)) => *known = asked,
                    None => oldest.push((device, asked)),
                }
            }
        }
    }
}
