//! Listing what changed since a snapshot, skipping whole subtrees that the two maps share ([`crate::map`]).
//!
//! The change log behind a snapshot is all that was born after its epoch; but which blocks lie in it is told by the
//! difference of the maps, since subtrees without any are not looked at. That also holds between two snapshots in
//! either order, and between volumes of one family.

use super::{Outcome, Shard, SlotId};
use crate::ids::ShareBlock;
use crate::map::Root;
use crate::ports::LogTail;
use crate::request::{Base, CHANGED, CHANGED_TO_HOLE, RequestError, View};
use crate::virtual_volume::ViewedMap;

/// Runs found per step.
const RUNS_PER_STEP: usize = 256;

impl<T: LogTail> Shard<T> {
    /// The map of a view and the map of the snapshot that it is compared with.
    pub(super) fn compared(&self, view: View, base: Base) -> Result<(ViewedMap, ViewedMap), RequestError> {
        let viewed = |view: View| {
            self.volumes
                .get(&view.volume)
                .and_then(|volume| volume.viewed(view))
        };
        let map = viewed(view).ok_or(RequestError::NotFound)?;
        let base = viewed(base.into()).filter(|base| base.family == map.family);
        Ok((map, base.ok_or(RequestError::NoBase)?))
    }

    pub(super) fn step_changes(&mut self, id: SlotId, base: Base) -> Outcome {
        for _ in 0..RUNS_PER_STEP {
            let (map, base) = match self.compared(self.slots[id].view, base) {
                Ok(both) => both,
                Err(error) => return Outcome::Answer(Err(error)),
            };
            let slot = &mut self.slots[id];
            let at = slot.first.0 + u64::from(slot.done_blocks);
            // The volume may have become smaller meanwhile.
            if at >= map.share_blocks {
                return Outcome::Answer(Err(RequestError::OutOfRange));
            }
            // Beyond its end the snapshot has nothing, whatever its map still holds there.
            let (against, end) = if at < base.share_blocks {
                (base.root, base.share_blocks.min(map.share_blocks))
            } else {
                (Root::default(), map.share_blocks)
            };
            let run = match self
                .cache
                .difference_at(map.family, &map.root, &against, ShareBlock(at))
            {
                Ok(run) => run,
                Err(error) => return Outcome::Map(error),
            };
            slot.max_birth = slot.max_birth.max(run.birth);
            let room = u64::from(u32::MAX - slot.done_blocks);
            let blocks = (run.end.min(end) - at).min(room) as u32;
            let state = match (run.changed, run.hole) {
                (false, _) => 0,
                (true, false) => CHANGED,
                (true, true) => CHANGED | CHANGED_TO_HOLE,
            };
            if !slot.note_run(blocks, state) {
                return Outcome::Answer(Ok(()));
            }
            slot.done_blocks += blocks;
            if slot.done_blocks >= slot.blocks {
                return Outcome::Answer(Ok(()));
            }
        }
        Outcome::Again
    }
}
