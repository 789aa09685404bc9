//! Discarding: a few leaves per turn, so that 100 GiB of it delays nobody.
//!
//! A discard goes on in steps. The first comes as with any request; those that follow wait here for their turn, which comes
//! with what others have answered, or, if nobody wants anything, at once.

use core::ops::Range;
use std::collections::VecDeque;

use super::loads::LEAVES_AHEAD;
use super::reclaim::entry_at;
use super::{Outcome, Shard, SlotId};
use crate::ids::{ShareBlock, VolumeId};
use crate::map::{MapError, PageRef};
use crate::marks::{Mark, mark};
use crate::ports::LogTail;
use crate::request::{RequestError, RequestKind};
use crate::space::Purpose;
use crate::stages::Stage;
use stillpoint_ondisk::map_page::ENTRIES;
use stillpoint_ondisk::record::Record;

/// Leaves cleared per step while nobody else wants anything, and discards that take a step in one turn then.
const LEAVES_ALONE: usize = 16;
const STEPS_ALONE: usize = 2;
/// Beside other requests a step clears one leaf (hundreds of blocks to free, and it may have to be read from the device), and so
/// many requests are answered for each step: it takes as long as a few of them. The steps make no turns of their own then: a loop
/// that turns and turns submits writes one by one that would have gone together.
const LEAVES_BESIDE: usize = 1;
const ANSWERS_PER_STEP: usize = 64;
/// Steps of one turn at most, however much was answered in the one before.
const STEPS_BESIDE_MAX: usize = 8;
/// So many steps are taken after this time at the latest, and others count as being there for so long after their last answer: a
/// client that waits for an answer sends its next request soon.
const STEP_NS: u64 = 2_000_000;
const STEPS_DUE: usize = 2;
/// Space is short when less than this share of it can be had.
const SCARCE_SHARE: u64 = 16;

/// Discards that have more to do.
#[derive(Debug, Default)]
pub(super) struct Discards {
    /// Those whose next step waits for its turn.
    waiting: VecDeque<SlotId>,
    /// Discards among the requests that are being worked on.
    in_use: usize,
    /// Other requests that were answered since the last step.
    answers: usize,
    /// When the last one was, and when steps were last allowed.
    answered_ns: Option<u64>,
    allowed_ns: u64,
}

impl Discards {
    /// A discard was taken.
    pub(super) fn taken(&mut self) {
        self.in_use += 1;
    }

    /// A request was answered.
    pub(super) fn answered(&mut self, kind: RequestKind, now_ns: u64) {
        if matches!(kind, RequestKind::Discard { .. }) {
            self.in_use -= 1;
        } else {
            self.answers += 1;
            self.answered_ns = Some(now_ns);
        }
    }

    /// Whether nobody else wants anything; `in_use` requests are being worked on.
    fn is_alone(&self, in_use: usize, now_ns: u64) -> bool {
        let long_ago = |at_ns: u64| now_ns.saturating_sub(at_ns) >= STEP_NS;
        self.in_use == in_use && self.answered_ns.is_none_or(long_ago)
    }

    /// When the next step is due although nothing happens.
    pub(super) fn next_ns(&self, now_ns: u64) -> Option<u64> {
        let due_ns = self.allowed_ns.saturating_add(STEP_NS).max(now_ns + 1);
        (!self.waiting.is_empty()).then_some(due_ns)
    }
}

impl<T: LogTail> Shard<T> {
    /// Whether a step would be taken in a turn that nothing else makes.
    pub(super) fn discards_are_ready(&self) -> bool {
        !self.discards.waiting.is_empty() && self.discards_are_alone()
    }

    /// Space that is short comes back with the discards, so that nobody is waited for then; nor when all are refused.
    fn discards_are_alone(&self) -> bool {
        let now_ns = self.now.monotonic_ns;
        (self.no_space_since.is_some() && self.room_in_parts(SCARCE_SHARE) == 0)
            || self.stopped.is_some()
            || self.discards.is_alone(self.slots.in_use(), now_ns)
    }

    /// Lets some of those go on that wait for it.
    pub(super) fn drive_discards(&mut self) {
        if self.discards.waiting.is_empty() {
            self.discards.answers = 0;
            return;
        }
        let now_ns = self.now.monotonic_ns;
        let alone = self.discards_are_alone();
        let discards = &mut self.discards;
        let earned = (discards.answers / ANSWERS_PER_STEP).min(STEPS_BESIDE_MAX);
        let due = now_ns.saturating_sub(discards.allowed_ns) >= STEP_NS;
        let steps = if alone {
            STEPS_ALONE
        } else {
            earned.max(if due { STEPS_DUE } else { 0 })
        };
        if steps == 0 {
            return;
        }
        discards.answers = 0;
        discards.allowed_ns = now_ns;
        for _ in 0..steps {
            let Some(id) = self.discards.waiting.pop_front() else {
                break;
            };
            self.ready.push_back(id);
        }
    }

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
        let alone = self.discards_are_alone();
        let leaves = if alone { LEAVES_ALONE } else { LEAVES_BESIDE };
        let done = match self.clear_leaves(volume, first, end - first, leaves) {
            Ok(done) => done,
            Err(outcome) => {
                if let Outcome::Map(MapError::Miss(missed)) = &outcome {
                    self.fetch_leaves(volume, first..end, missed);
                }
                return outcome;
            }
        };
        let slot = &mut self.slots[id];
        slot.max_birth = self.volumes[&volume].epoch;
        slot.done_blocks += done as u32;
        if slot.done_blocks < slot.blocks {
            mark(Mark::DiscardInSteps);
            // Before the others: those that came first end first, and do not all wait until the end of all.
            self.discards.waiting.push_front(id);
            return Outcome::Parked;
        }
        self.status.discards += 1;
        self.enter(id, Stage::Log);
        self.changed(id, fua)
    }

    /// Has the leaves read that the next steps will ask for, beside the one that this step waits for.
    fn fetch_leaves(&mut self, volume: VolumeId, blocks: Range<u64>, missed: &PageRef) {
        let Some(volume) = self.volumes.get(&volume) else {
            return;
        };
        if missed.identity.level > 0 || !self.has_room_to_fetch() {
            return;
        }
        let leaves = blocks.start / ENTRIES as u64..blocks.end.div_ceil(ENTRIES as u64);
        for leaf in leaves.take(LEAVES_AHEAD) {
            let cache = &mut self.cache;
            match entry_at(cache, volume.family, Some(&volume.root), 0, leaf) {
                Ok(None) => {}
                Ok(Some(entry)) => {
                    if let Err(MapError::Miss(page)) = cache.page(volume.family, 0, leaf, &entry)
                        && page.address != missed.address
                    {
                        self.loads.fetch(page);
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Makes holes of some of `count` blocks from `first`, and logs it; gives how many from the start on are done.
    pub(super) fn clear(&mut self, volume: VolumeId, first: u64, count: u64) -> Result<u64, Outcome> {
        self.clear_leaves(volume, first, count, LEAVES_ALONE)
    }

    /// The same, in `leaves` leaves at most.
    fn clear_leaves(
        &mut self,
        volume: VolumeId,
        first: u64,
        count: u64,
        leaves: usize,
    ) -> Result<u64, Outcome> {
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
            .clear_leaf_range(&mut tree, ShareBlock(first), count, leaves);
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
