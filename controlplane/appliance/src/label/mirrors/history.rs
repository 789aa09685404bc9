//! Which devices of a pool with mirrors have a history that the label which counts does not know.
//!
//! A change of labels is written to one side after the other, and raises their sequence. A crash in between leaves some with the next
//! label and the others with the one before. Nothing rests on it then: opening the pool gives the newest that is there to all that are in
//! sync, before anything else. If just those are missing that have it, the others get a number that no label has had: so a side that a crash
//! made later is older than what comes then, and as it was left.
//!
//! | a side that is out since `n`, by the label that counts; its own label | it |
//! |---|---|
//! | says that its other side is out, or is another device | was used without the other one that is here |
//! | has a sequence below `n`, or is the one that put it in its place | is as it was left |
//! | anything else | was used elsewhere after it went out here |

use super::MirrorLabel;
use stillpoint_ondisk::label::PoolLabel;
use stillpoint_processor::mirror::SideAt;

/// What was done with a side that is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UsedElsewhere {
    /// It was all there was of its device.
    Alone,
    /// Another device was its other side.
    WithAnother,
    /// Labels were changed after it went out here.
    Later,
}

impl UsedElsewhere {
    /// In words that follow "was used".
    pub(crate) fn how(self, pool: &str) -> String {
        match self {
            Self::Alone => format!("without the other side of pool {pool}"),
            Self::WithAnother => format!("as a part of pool {pool} with another device as its other side"),
            Self::Later => format!("as a part of pool {pool} elsewhere after it went out here"),
        }
    }
}

impl MirrorLabel {
    /// Whether a side that is out, by this label, has in `its` own label what it was left with.
    pub(crate) fn used_elsewhere(&self, at: SideAt, its: &PoolLabel) -> Option<UsedElsewhere> {
        let (device, side) = (usize::from(at.device.0), at.side.index());
        let other = at.side.other().index();
        let its_out_since = its.mirrors[device].out_since.map(|since| since.get());
        let (sequence, episode) = (its.sequence.get(), self.out_since(at));
        if its_out_since[other] > 0 {
            Some(UsedElsewhere::Alone)
        } else if its.uuid(device, other) != self.uuid(at.other()) {
            Some(UsedElsewhere::WithAnother)
        } else if sequence >= episode && its_out_since[side] != episode {
            Some(UsedElsewhere::Later)
        } else {
            None
        }
    }

    /// Whether both say the same of all devices.
    pub(super) fn says_the_same(&self, label: &PoolLabel) -> bool {
        self.0.sequence == label.sequence
            && self.0.mirrors == label.mirrors
            && self.0.devices == label.devices
    }
}
