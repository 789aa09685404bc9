//! Devices of which the last side is lost: the pool goes on with the others, and is opened again when that side is back.
//!
//! No label is made then for the other side of such a device: none could be written where it counts, and the last side would be older than
//! the labels are known to be. What there is to say is kept for the next opening.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Sides;
use crate::events::EventKind;
use crate::mailbox::MirrorChange;
use crate::pool::losses::Lost;
use crate::pool::{Pool, wall_ns};
use stillpoint_processor::mirror::{SideAt, SideState};
use stillpoint_processor::ports::DeviceError;

impl Pool {
    /// The last sides that are gone or have become too small, until the pool is opened again. One that failed and stayed is not among them.
    pub(in crate::pool) fn lost_sides(&self) -> BTreeMap<usize, Lost> {
        let Some(sides) = self.sides() else {
            return BTreeMap::new();
        };
        let known = sides.known();
        let lost = known.sides.iter().filter_map(|(at, record)| {
            let place = usize::from(at.below().0);
            let lost = record.lost?;
            (lost.size_bytes < self.needed_bytes(place)).then_some((place, lost))
        });
        lost.collect()
    }

    /// Of a pool with mirrors: where each side is or was, by place; empty if that is not known.
    pub(crate) fn placed_sides(&self) -> Vec<PathBuf> {
        let Some(sides) = self.sides() else {
            return Vec::new();
        };
        let known = sides.known();
        let paths = known.sides.values().map(|record| record.path.clone());
        paths.map(Option::unwrap_or_default).collect()
    }

    /// Sides that are not there may come back by these names.
    pub(crate) fn remember_names(&self, names: Vec<PathBuf>) {
        if let Some(sides) = self.sides() {
            sides.known().names.extend(names);
        }
    }

    /// Nothing is left of a device: tells of it.
    pub(super) fn lose_last(&self, sides: &Sides, at: SideAt, error: DeviceError) {
        let place = usize::from(at.below().0);
        let lost = Lost {
            since_ns: wall_ns(),
            size_bytes: self.size_bytes_now(place),
        };
        let mend = match lost.size_bytes < self.needed_bytes(place) {
            true => "the pool is opened again by itself when it is there and whole again",
            false => "when a side that had everything is whole again, stillpoint pool close and pool open",
        };
        let text = format!(
            "{}: {error}, and the other side is out: what lies on this device fails; {mend}",
            self.sides_text(at.device, Some(at.side))
        );
        sides.known().record(at).lost = Some(lost);
        self.tell(EventKind::MirrorLost, &at.to_string(), text);
    }

    /// A side failed that is out by the labels, and nothing is left of the other: no label can say more. The gate is held.
    pub(super) async fn give_up(&self, sides: &Sides, at: SideAt, error: DeviceError) {
        let failed = self.seen_failing(&[(at, error)]).remove(0);
        let episode = {
            let mut known = sides.known();
            if failed.is_cut_off {
                self.note_cut_off(known.label.uuid(at));
            }
            let record = known.record(at);
            if record.state == SideState::Out {
                return;
            }
            record.state = SideState::Out;
            record.why = Some(error.to_string());
            record.stayed = failed.stayed;
            record.since_ns = wall_ns();
            record.done.clear();
            known.label.out_since(at)
        };
        let place = usize::from(at.below().0);
        drop(self.files.take(place));
        self.change_mirrors(MirrorChange::Out { at, episode }).await;
    }

    /// The size of what is in a place, 0 if nothing is.
    pub(super) fn size_bytes_now(&self, place: usize) -> u64 {
        self.files.get(place).map_or(0, |file| file.size_bytes_now())
    }
}
