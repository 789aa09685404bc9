//! Freeing what only a deleted snapshot or volume held: in the background, a bounded piece of work per turn,
//! resumable after a crash.
//!
//! Maps never share a place between different logical positions, and the maps that have a block hang together in the tree
//! of the share and its clones ([`crate::lineage`]). So a block (or map page) of snapshot `s` is held by nobody else
//! exactly if neither what `s` was made of nor what was made of `s` has it at the same position. The walk goes over the
//! leaves of `s` in order, skips every subtree that a neighbour shares, and frees the rest; the cursor is kept in the
//! directory row, so it moves with the same checkpoint as the bitmap. A snapshot of which several maps were made waits
//! until one at most is left: without it, what they share could not be told any more.
//!
//! While a snapshot is walked, a live map that was made of it may change. Ahead of the cursor a replaced block is left to the
//! walk, behind it the write frees it ([`VirtualVolume::free_rule`]).

mod plan;

use crate::lineage;
use crate::marks::{Mark, mark};
use std::collections::{BTreeSet, VecDeque};

use self::plan::{Chain, carry_out};
pub(super) use self::plan::{entry_at, leaves_of};
use super::deletions::Freed;
use super::loads::LEAVES_AHEAD;
use super::{Outcome, Shard};
use crate::command::{EventKind, Notice, Ticket};
use crate::ids::{SnapshotId, VolumeId};
use crate::map::{MapError, Root, TreeStats};
use crate::ports::LogTail;
use crate::request::RequestError;
use crate::space::Purpose;
use crate::virtual_volume::{VirtualVolume, snapshot_key, volume_key};
use stillpoint_ondisk::directory::RowKind;
use stillpoint_ondisk::map_page::ENTRIES;
use stillpoint_ondisk::record::Record;

/// Steps per turn while nobody else wants anything, or while space is short: a step compares one leaf, and passes by those
/// before it (or whole subtrees) that a neighbour shares.
const STEPS_ALONE: usize = 8;
/// Beside requests a step is taken for so many answers as so-manieths of the space can be had: each takes from the requests
/// what it takes, and the less room there is, the more the freeing has to keep up with who fills it. The walk makes no turns
/// of its own then, but goes along with those of the requests: a loop that turns and turns submits writes one by one that
/// would have gone together, and takes the core that a client may need.
const ANSWERS_PER_STEP_MAX: u64 = 128;
/// But a step is taken after this time at the latest, if there is a turn: few requests, of which one is always under way,
/// would hold it up for ever.
const STEP_NS_MAX: u64 = 2_000_000;
/// Nobody wants anything when no request is under way and none was answered for so long: a client that has all its answers
/// sends the next requests in a moment. It is more than a tick of the usual kernels, so that sleeping until then costs no
/// timer of its own.
const IDLE_NS: u64 = 5_000_000;
/// Space is short when less than this share of it can be had.
const SCARCE_SHARE: u64 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Snapshot(SnapshotId),
    Live,
}

#[derive(Clone, Copy, Debug)]
struct Walk {
    volume: VolumeId,
    target: Target,
}

#[derive(Clone, Copy, Debug)]
struct Resize {
    ticket: Option<Ticket>,
    volume: VolumeId,
    share_blocks: u64,
    /// First block still to be cleared, once the new size is logged.
    trimming: Option<u64>,
}

/// What the next step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// A map page, for the first resize.
    PageForResize,
    /// A map page, for the walk.
    PageForWalk,
    /// Room in the log, in the cache or in the pool.
    Room,
}

/// Background work of a shard.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    walk: Option<Walk>,
    resizes: VecDeque<Resize>,
    awake: bool,
    waits: Option<Waits>,
    /// Families with a map page that could not be read: what they hold stays allocated until the shard is opened again.
    unreadable: BTreeSet<VolumeId>,
    /// What the last walks freed.
    pub(super) freed: Freed,
    /// Requests that were answered since the last step.
    answers: usize,
    /// When the last request was answered.
    answered_ns: u64,
    /// When steps were last allowed.
    allowed_ns: u64,
}

impl Reclaim {
    /// A request was answered.
    pub(super) fn answered(&mut self, now_ns: u64) {
        self.answers += 1;
        self.answered_ns = now_ns;
    }

    /// There may be something to free.
    pub(super) fn wake(&mut self) {
        self.awake = true;
    }

    /// Whether a map page of this family could not be read.
    pub(super) fn is_unreadable(&self, family: VolumeId) -> bool {
        self.unreadable.contains(&family)
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.awake && self.walk.is_none() && self.resizes.is_empty()
    }

    /// Whether the next step waits for something.
    pub(super) fn is_waiting(&self) -> bool {
        self.waits.is_some()
    }

    /// There may be room again.
    pub(super) fn unstall(&mut self) {
        if self.waits == Some(Waits::Room) {
            self.waits = None;
        }
    }

    pub(super) fn resize(&mut self, ticket: Ticket, volume: VolumeId, share_blocks: u64) {
        self.resizes.push_back(Resize {
            ticket: Some(ticket),
            volume,
            share_blocks,
            trimming: None,
        });
    }

    /// After recovery: what lies beyond the end of a share, because a crash came between, is cleared again.
    pub(super) fn trim_again(&mut self, volume: VolumeId, share_blocks: u64) {
        self.resizes.push_back(Resize {
            ticket: None,
            volume,
            share_blocks,
            trimming: Some(share_blocks),
        });
    }
}

impl<T: LogTail> Shard<T> {
    pub(super) fn drive_reclaim(&mut self) {
        if self.stopped.is_some() {
            return self.fail_resizes();
        }
        let resizing = !self.reclaim.resizes.is_empty();
        for _ in 0..self.reclaim_steps().max(usize::from(resizing)) {
            if self.reclaim.is_idle() || self.reclaim.is_waiting() {
                return;
            }
            let resizes = !self.reclaim.resizes.is_empty();
            let step = if resizes {
                self.resize_step()
            } else {
                self.walk_step()
            };
            // Whatever it has to wait for is seen to earlier in a turn: there has to be another one.
            self.progress |= step.is_err() || resizes || self.reclaim_hurries();
            self.reclaim.waits = match step {
                Ok(()) => None,
                Err(Outcome::Map(MapError::Miss(page))) => {
                    mark(Mark::ReclaimPage);
                    self.loads.wait(page, super::loads::Waiter::Reclaim, true);
                    Some(if resizes {
                        Waits::PageForResize
                    } else {
                        Waits::PageForWalk
                    })
                }
                Err(Outcome::Map(MapError::CacheFull | MapError::NoSpace)) => {
                    mark(Mark::ReclaimWaits);
                    self.checkpoint.want();
                    Some(Waits::Room)
                }
                Err(_) => {
                    self.want_log_room();
                    Some(Waits::Room)
                }
            };
        }
    }

    /// Whether there is something to do that is worth a turn.
    pub(super) fn reclaim_is_ready(&self) -> bool {
        self.reclaim_goes_on() && (!self.reclaim.resizes.is_empty() || self.reclaim_hurries())
    }

    /// When the walk may go on without waiting for the turns of others, if it has to wait for that.
    pub(super) fn reclaim_deadline_ns(&self) -> Option<u64> {
        let waits = self.reclaim_goes_on() && !self.reclaim_is_ready() && self.slots.in_use() == 0;
        waits.then_some(self.reclaim.answered_ns + IDLE_NS)
    }

    fn reclaim_goes_on(&self) -> bool {
        !self.reclaim.is_idle() && !self.reclaim.is_waiting() && self.stopped.is_none()
    }

    /// Whether nobody else wants anything, or somebody waits for it.
    fn reclaim_hurries(&self) -> bool {
        let quiet_ns = self.now.monotonic_ns.saturating_sub(self.reclaim.answered_ns);
        (self.slots.in_use() == 0 && quiet_ns >= IDLE_NS)
            || self.room_in_parts(SCARCE_SHARE) == 0
            || self.directory.is_nearly_full()
            || self.change_logs.is_waited_for()
    }

    /// How many of so many equal parts of the space can be had.
    pub(super) fn room_in_parts(&self, parts: u64) -> u64 {
        let total_blocks = self.space.total_blocks();
        (u128::from(self.space.room(Purpose::Data)) * u128::from(parts) / u128::from(total_blocks)) as u64
    }

    fn reclaim_steps(&mut self) -> usize {
        let answers = core::mem::take(&mut self.reclaim.answers);
        if self.reclaim_hurries() {
            return STEPS_ALONE;
        }
        let per_step = self.room_in_parts(ANSWERS_PER_STEP_MAX).max(1) as usize;
        self.reclaim.answers = answers % per_step;
        let now_ns = self.now.monotonic_ns;
        let is_due = now_ns.saturating_sub(self.reclaim.allowed_ns) >= STEP_NS_MAX;
        let steps = (answers / per_step).clamp(usize::from(is_due), STEPS_ALONE);
        if steps > 0 {
            self.reclaim.allowed_ns = now_ns;
        }
        steps
    }

    fn fail_resizes(&mut self) {
        for resize in core::mem::take(&mut self.reclaim.resizes) {
            if resize.ticket.is_some() {
                self.event(resize.ticket, EventKind::Failed(RequestError::ShardStopped));
            }
        }
    }

    /// A page that the work waited for is there, or cannot be read: then this piece of work ends here.
    pub(super) fn reclaim_page_came(&mut self, result: Result<(), RequestError>) {
        let waits = self.reclaim.waits.take();
        let Err(error) = result else { return };
        match waits {
            Some(Waits::PageForResize) => {
                let resize = self.reclaim.resizes.pop_front();
                if let Some(ticket) = resize.and_then(|resize| resize.ticket) {
                    self.event(Some(ticket), EventKind::Failed(error));
                }
            }
            Some(Waits::PageForWalk) => {
                let walk = self.reclaim.walk.take();
                let family = walk.and_then(|walk| Some(self.volumes.get(&walk.volume)?.family));
                self.reclaim.unreadable.extend(family);
            }
            Some(Waits::Room) | None => unreachable!("reclaim waited for a page"),
        }
    }

    fn resize_step(&mut self) -> Result<(), Outcome> {
        let resize = self.reclaim.resizes[0];
        let Some(volume) = self
            .volumes
            .get_mut(&resize.volume)
            .filter(|volume| !volume.deleting)
        else {
            return self.resize_ends(resize, Err(RequestError::NotFound));
        };
        let Some(from) = resize.trimming else {
            let record = Record::VolumeResize {
                volume: volume.id.0,
                share_blocks: resize.share_blocks,
            };
            if !self.log.has_room(record.encoded_bytes()) {
                return Err(Outcome::LogRoom);
            }
            self.log.append(&record);
            volume.share_blocks = resize.share_blocks;
            volume.dirty = true;
            self.reclaim.resizes[0].trimming = Some(resize.share_blocks);
            return Ok(());
        };
        let end = (ENTRIES as u64).pow(u32::from(volume.root.level) + 1);
        if from >= end || volume.root.entry.address() == 0 {
            return self.resize_ends(resize, Ok(()));
        }
        let done = self.clear(resize.volume, from, end - from)?;
        mark(Mark::ResizeTrims);
        self.reclaim.resizes[0].trimming = Some(from + done);
        Ok(())
    }

    fn resize_ends(&mut self, resize: Resize, result: Result<(), RequestError>) -> Result<(), Outcome> {
        self.reclaim.resizes.pop_front();
        match (resize.ticket, result) {
            (Some(ticket), Ok(())) => self.event_when_durable(ticket, EventKind::Done),
            (Some(ticket), Err(error)) => self.event(Some(ticket), EventKind::Failed(error)),
            (None, _) => {}
        }
        Ok(())
    }

    fn walk_step(&mut self) -> Result<(), Outcome> {
        let unreadable = &self.reclaim.unreadable;
        let volumes = self
            .volumes
            .values()
            .filter(|volume| !unreadable.contains(&volume.family));
        let Some(walk) = self.reclaim.walk.or_else(|| next_walk(volumes)) else {
            self.reclaim.awake = false;
            return Ok(());
        };
        self.reclaim.walk = Some(walk);
        let volume = &self.volumes[&walk.volume];
        let chain = Chain::of(&self.volumes, volume, walk.target);
        let family = volume.family;
        #[cfg(feature = "planted-bugs")]
        let chain = chain.with_bug(self.options.planted_bug, walk.target);
        if chain.is_over() {
            self.walk_ends(walk);
            return Ok(());
        }
        let chain = chain.passing_by(&mut self.cache, family);
        let plan = match chain.plan(&mut self.cache, family) {
            Ok(plan) => plan,
            Err(error) => {
                self.fetch_ahead(&chain, family, &error);
                return Err(Outcome::Map(error));
            }
        };
        #[cfg(feature = "planted-bugs")]
        let plan = plan.with_bug(self.options.planted_bug);
        carry_out(&plan, &mut self.cache, &mut self.space);
        if let Target::Snapshot(snapshot) = walk.target {
            self.count_once(walk.volume, snapshot, plan.counted_twice);
            let freed = plan.blocks.len() + plan.pages.len();
            self.reclaim.freed.count(walk.volume, snapshot, freed as u64);
        }
        let volume = self.volumes.get_mut(&walk.volume).expect("looked up above");
        match walk.target {
            Target::Live => {
                volume.cursor_leaf = plan.next_leaf;
                volume.dirty = true;
            }
            Target::Snapshot(snapshot) => {
                let position = volume.snapshots.position(snapshot);
                let position = position.expect("a walked snapshot stays until it is freed");
                volume.snapshots.change(position).cursor_leaf = plan.next_leaf;
                lineage::note_walk(&mut self.volumes, walk.volume, position);
            }
        }
        Ok(())
    }

    /// Has the pages read that the next steps will ask for, beside the one that this step waits for.
    fn fetch_ahead(&mut self, chain: &Chain, family: VolumeId, error: &MapError) {
        let MapError::Miss(missed) = error else { return };
        if !self.has_room_to_fetch() {
            return;
        }
        let ahead = chain.pages_ahead(&mut self.cache, family, LEAVES_AHEAD);
        for page in ahead.into_iter().filter(|page| page.address != missed.address) {
            self.loads.fetch(page);
        }
    }

    fn walk_ends(&mut self, walk: Walk) {
        self.reclaim.walk = None;
        self.change_logs.count_again();
        match walk.target {
            Target::Live => {
                let volume = self.volumes.get_mut(&walk.volume);
                let volume = volume.expect("a walked volume stays until it is freed");
                volume.root = Root::default();
                volume.stats = TreeStats::default();
                volume.cursor_leaf = 0;
                volume.dirty = true;
                if !volume.snapshots.is_empty() {
                    mark(Mark::ReclaimHead);
                }
            }
            Target::Snapshot(snapshot) => {
                lineage::remove_snapshot(&mut self.volumes, walk.volume, snapshot);
                self.directory
                    .remove(RowKind::Snapshot, &snapshot_key(walk.volume, snapshot));
                self.notice(Notice::SnapshotFreed {
                    volume: walk.volume,
                    snapshot,
                });
            }
        }
        let volume = &self.volumes[&walk.volume];
        if volume.is_headless() && volume.snapshots.is_empty() {
            lineage::remove_share(&mut self.volumes, walk.volume);
            self.directory.remove(RowKind::Volume, &volume_key(walk.volume));
            self.notice(Notice::VolumeFreed { volume: walk.volume });
        }
    }
}

/// What to free next. A walk that has begun goes first, since its neighbours count on it; of a share the live map goes
/// next, then its snapshots, newest first if all of them go.
fn next_walk<'a>(volumes: impl Iterator<Item = &'a VirtualVolume> + Clone) -> Option<Walk> {
    let volumes = volumes.filter(|volume| volume.deleting || volume.snapshots.any_deleting());
    let begun = volumes
        .clone()
        .find_map(|volume| Some((volume, begun_in(volume)?)));
    let next = begun.or_else(|| {
        volumes
            .clone()
            .find_map(|volume| Some((volume, next_in(volume)?)))
    });
    next.map(|(volume, target)| Walk {
        volume: volume.id,
        target,
    })
}

fn begun_in(volume: &VirtualVolume) -> Option<Target> {
    if volume.deleting && volume.cursor_leaf > 0 && !volume.is_headless() {
        return Some(Target::Live);
    }
    let mut snapshots = volume.snapshots.iter();
    let begun = snapshots.find(|snapshot| snapshot.cursor_leaf > 0)?;
    Some(Target::Snapshot(begun.snapshot))
}

fn next_in(volume: &VirtualVolume) -> Option<Target> {
    if volume.deleting && (!volume.is_headless() || volume.snapshots.is_empty()) {
        return Some(Target::Live);
    }
    let may_go = |&position: &usize| {
        let is_free = lineage::children(volume, position) <= 1;
        if !is_free {
            mark(Mark::ReclaimBranch);
        }
        is_free
    };
    let mut positions = (0..volume.snapshots.len()).filter(|&position| volume.is_to_be_freed(position));
    let position = if volume.with_snapshots {
        positions.rev().find(may_go)
    } else {
        positions.find(may_go)
    };
    Some(Target::Snapshot(volume.snapshots[position?].snapshot))
}
