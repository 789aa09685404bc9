//! Discarding: a few leaves per turn, so that 100 GiB of it delays nobody.

use super::{Outcome, Shard, SlotId};
use crate::ids::{ShareBlock, VolumeId};
use crate::marks::{Mark, mark};
use crate::ports::LogTail;
use crate::request::{RequestError, RequestKind};
use crate::space::Purpose;
use crate::stages::Stage;
use stillpoint_ondisk::record::Record;

/// Leaves cleared per step.
const LEAVES_PER_STEP: usize = 16;

impl<T: LogTail> Shard<T> {
    pub(super) fn step_discard(&mut self, id: SlotId) -> Outcome {
        let slot = &self.slots[id];
        let volume = slot.view.volume;
        let RequestKind::Discard { fua } = slot.kind else {
            unreachable!("only discards are discarded")
        };
        if self.stopped.is_some() {
            return Outcome::Answer(Err(RequestError::ShardStopped));
        }
        let end = slot.first.0 + u64::from(slot.blocks);
        if self
            .volumes
            .get(&volume)
            .is_some_and(|volume| end > volume.share_blocks)
        {
            return Outcome::Answer(Err(RequestError::OutOfRange));
        }
        let first = slot.first.0 + u64::from(slot.done_blocks);
        let done = match self.clear(volume, first, end - first) {
            Ok(done) => done,
            Err(outcome) => return outcome,
        };
        let slot = &mut self.slots[id];
        slot.max_birth = self.volumes[&volume].epoch;
        slot.done_blocks += done as u32;
        if slot.done_blocks < slot.blocks {
            mark(Mark::DiscardInSteps);
            return Outcome::Again;
        }
        self.status.discards += 1;
        self.enter(id, Stage::Log);
        self.changed(id, fua)
    }

    /// Makes holes of some of `count` blocks from `first`, and logs it; gives how many from the start on are done.
    pub(super) fn clear(&mut self, volume: VolumeId, first: u64, count: u64) -> Result<u64, Outcome> {
        let Some(volume) = self.volumes.get_mut(&volume).filter(|volume| !volume.deleting) else {
            return Err(Outcome::Answer(Err(RequestError::NotFound)));
        };
        let (id, birth) = (volume.id.0, volume.epoch.0);
        if !self.log.has_room(
            Record::Discard {
                volume: id,
                birth,
                first,
                count,
            }
            .encoded_bytes(),
        ) {
            return Err(Outcome::LogRoom);
        }
        let (root, stats) = (volume.root, volume.stats);
        let mut tree = volume.tree(&mut self.space, Purpose::Metadata);
        let done = self
            .cache
            .clear_leaf_range(&mut tree, ShareBlock(first), count, LEAVES_PER_STEP);
        // Even a try that ends in an error may have moved the root.
        volume.dirty |= volume.root != root;
        let done = done.map_err(Outcome::Map)?;
        assert!(done > 0 && done <= count, "a step goes forward");
        // Never refused: what makes room has to work when there is none.
        #[cfg(feature = "planted-bugs")]
        if self.options.planted_bug == Some(crate::PlantedBug::ChangeLogForgetsDiscards) {
            volume.stats.changed_blocks = stats.changed_blocks;
        }
        self.change_logs
            .changed(volume, volume.stats.changed_blocks - stats.changed_blocks);
        if volume.stats.mapped_blocks == stats.mapped_blocks {
            // Nothing but holes: nothing changed.
            mark(Mark::DiscardOfHoles);
            return Ok(done);
        }
        #[cfg(feature = "planted-bugs")]
        if self.options.planted_bug == Some(crate::PlantedBug::DiscardNotLogged) {
            Self::note_change(volume, self.now);
            return Ok(done);
        }
        self.log.append(&Record::Discard {
            volume: id,
            birth,
            first,
            count: done,
        });
        Self::note_change(volume, self.now);
        Ok(done)
    }
}
