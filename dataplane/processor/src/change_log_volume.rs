//! The change log volume: how many blocks the change logs of some volumes may hold together, on one shard.
//!
//! What counts is a block that a volume wrote (or discarded) after its oldest snapshot, once for each change log that
//! has it. A write reserves its blocks before it is carried out and settles when they are in the map, so that writes
//! under way together cannot pass the limit.
//!
//! Invariant: `used_blocks` is what [`recount`] gives, after every step of the shard.

use std::collections::VecDeque;

use crate::command::{ChangeLogPart, ChangeLogPartStatus, WhenFull};
use crate::ids::{ChangeLogId, Epoch, VolumeId};
use crate::lineage::{Origin, Shares};

/// Writes wait for room so long at most.
pub const WAIT_NS_MAX: u64 = 10_000_000_000;
/// So long a change log volume whose snapshots cannot go refuses writes at once, before it asks again.
pub const REFUSE_NS: u64 = 1_000_000_000;
/// A change log volume that is fuller than this says so, once; in percent of its part.
pub const HIGH_PERCENT: u64 = 80;
/// Below this it may say so again.
pub const LOW_PERCENT: u64 = 75;

/// What a write has been granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Blocks that it may change.
    pub blocks: u32,
    /// In which epoch its blocks were looked up: later they may count again.
    pub epoch: Epoch,
}

/// Whether there is room for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Yes,
    /// There may be when writes under way have settled.
    Soon,
    /// There is none.
    No,
}

/// One shard's part of a change log volume.
#[derive(Debug)]
pub struct ChangeLogVolume {
    /// What the control plane said.
    pub part: ChangeLogPart,
    /// Blocks in its change logs.
    pub used_blocks: u64,
    /// Blocks of writes under way.
    pub reserved_blocks: u64,
    /// Requests that wait for room, and until when.
    pub waiting: VecDeque<(u32, u64)>,
    /// What was taken and what was reserved when the last of these began to wait.
    when_waiting: (u64, u64),
    /// Somebody was asked to make room.
    pub asked: bool,
    /// Nobody can make room until then: writes are refused at once.
    pub refuses_until_ns: u64,
    /// It was said that it is nearly full.
    pub told_high: bool,
    /// It was said that it is full.
    pub told_full: bool,
    /// Blocks that found no place on its devices, and went to others.
    pub elsewhere_blocks: u64,
}

impl ChangeLogVolume {
    /// Without any change log.
    #[must_use]
    pub fn new(part: ChangeLogPart) -> Self {
        Self {
            part,
            used_blocks: 0,
            reserved_blocks: 0,
            waiting: VecDeque::new(),
            when_waiting: (0, 0),
            asked: false,
            refuses_until_ns: 0,
            told_high: false,
            told_full: false,
            elsewhere_blocks: 0,
        }
    }

    /// Blocks in use or promised.
    #[must_use]
    pub fn taken_blocks(&self) -> u64 {
        self.used_blocks + self.reserved_blocks
    }

    /// Whether there is room for so many blocks more.
    #[must_use]
    pub fn room_for(&self, blocks: u32) -> Room {
        let blocks = u64::from(blocks);
        if blocks == 0 || self.taken_blocks() + blocks <= self.part.limit_blocks {
            Room::Yes
        } else if self.used_blocks + blocks <= self.part.limit_blocks {
            Room::Soon
        } else {
            Room::No
        }
    }

    /// Whether a write that finds no room waits until snapshots were dropped.
    #[must_use]
    pub fn waits_for_drop(&self, blocks: u32, now_ns: u64) -> bool {
        self.part.when_full == WhenFull::DropOldest
            && u64::from(blocks) <= self.part.limit_blocks
            && now_ns >= self.refuses_until_ns
    }

    /// A request waits.
    pub fn wait(&mut self, slot: u32, deadline_ns: u64) {
        self.waiting.push_back((slot, deadline_ns));
        self.when_waiting = (self.taken_blocks(), self.reserved_blocks);
    }

    /// Whether those who wait have to look again: there is more room, or fewer writes under way that could make some.
    #[must_use]
    pub fn is_worth_a_look(&self) -> bool {
        let (taken_blocks, reserved_blocks) = self.when_waiting;
        !self.waiting.is_empty()
            && (self.taken_blocks() < taken_blocks || self.reserved_blocks < reserved_blocks)
    }

    /// What a look at the levels has to say: `Some(true)` when it has become nearly full, `Some(false)` when it no
    /// longer is.
    pub fn level_changed(&mut self) -> Option<bool> {
        let parts = self.used_blocks * 100;
        if !self.told_high && parts >= self.part.limit_blocks * HIGH_PERCENT {
            self.told_high = true;
            return Some(true);
        }
        if self.told_high && parts < self.part.limit_blocks * LOW_PERCENT {
            (self.told_high, self.told_full) = (false, false);
            return Some(false);
        }
        None
    }

    /// Figures for the control plane.
    #[must_use]
    pub fn status(&self, change_log: ChangeLogId) -> ChangeLogPartStatus {
        ChangeLogPartStatus {
            change_log,
            limit_blocks: self.part.limit_blocks,
            used_blocks: self.used_blocks,
            waiting: self.waiting.len() as u64,
            is_short: self.asked && !self.waiting.is_empty(),
            elsewhere_blocks: self.elsewhere_blocks,
        }
    }
}

/// Blocks that the shares attached to `change_log` have in it; notes in each share whether what it writes counts.
pub fn recount(shares: &mut Shares, change_log: ChangeLogId) -> u64 {
    let attached: Vec<VolumeId> = shares
        .values()
        .filter(|share| share.change_log == Some(change_log))
        .map(|share| share.id)
        .collect();
    let mut used_blocks = 0;
    for id in attached {
        let (closed_blocks, is_counted) = closed_logs(shares, id);
        let share = shares.get_mut(&id).expect("listed above");
        share.is_logged = is_counted && !share.deleting;
        used_blocks += closed_blocks;
        if share.is_logged {
            used_blocks += share.stats.changed_blocks;
        }
    }
    used_blocks
}

/// The logs of a share that ended with a snapshot and count, and whether what is written now counts.
fn closed_logs(shares: &Shares, id: VolumeId) -> (u64, bool) {
    let share = &shares[&id];
    if share.with_snapshots {
        return (0, false);
    }
    let mut is_counted = follows_kept_snapshot(shares, id);
    let mut blocks = 0;
    for snapshot in share.snapshots.iter() {
        if is_counted {
            blocks += snapshot.before.changed_blocks;
        }
        is_counted |= !snapshot.deleting;
    }
    (blocks, is_counted)
}

/// Whether a share was made of a map that goes back to a snapshot of the same change log volume which stays: after a
/// rollback, what is written belongs to the change log of the snapshots before.
fn follows_kept_snapshot(shares: &Shares, id: VolumeId) -> bool {
    let change_log = shares[&id].change_log;
    let mut next = shares[&id].origin;
    while let Some(Origin { volume, snapshot, .. }) = next {
        let of = &shares[&volume];
        if of.change_log != change_log {
            return false;
        }
        let position = of.snapshots.position(snapshot).expect("an origin is there");
        let mut up_to = of.snapshots[..=position].iter();
        if !of.with_snapshots && up_to.any(|snapshot| !snapshot.deleting) {
            return true;
        }
        next = of.origin;
    }
    false
}

/// Whether the log that ended with a snapshot counts.
#[must_use]
pub fn counts_before(shares: &Shares, id: VolumeId, position: usize) -> bool {
    let share = &shares[&id];
    !share.with_snapshots
        && (share.snapshots[..position]
            .iter()
            .any(|snapshot| !snapshot.deleting)
            || follows_kept_snapshot(shares, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(limit_blocks: u64, when_full: WhenFull) -> ChangeLogVolume {
        ChangeLogVolume::new(ChangeLogPart {
            limit_blocks,
            devices: u64::MAX,
            when_full,
        })
    }

    #[test]
    fn room_ends_exactly_at_the_limit() {
        let mut log = volume(100, WhenFull::FailWrites);
        log.used_blocks = 90;
        assert_eq!(log.room_for(10), Room::Yes);
        assert_eq!(log.room_for(11), Room::No);
        log.reserved_blocks = 1;
        assert_eq!(log.room_for(10), Room::Soon);
        log.used_blocks = 200;
        assert_eq!(
            log.room_for(0),
            Room::Yes,
            "what has changed already may change again"
        );
    }

    #[test]
    fn levels_are_told_once_on_the_way_up_and_down() {
        let mut log = volume(100, WhenFull::FailWrites);
        let mut told = Vec::new();
        for used_blocks in [79, 80, 81, 76, 80, 75, 74, 70, 80] {
            log.used_blocks = used_blocks;
            told.extend(log.level_changed().map(|high| (used_blocks, high)));
        }
        assert_eq!(told, [(80, true), (74, false), (80, true)]);
    }

    #[test]
    fn only_a_log_that_can_be_emptied_is_waited_for() {
        let log = volume(100, WhenFull::DropOldest);
        assert!(log.waits_for_drop(100, 5));
        assert!(!log.waits_for_drop(101, 5), "larger than all of it");
        assert!(!volume(100, WhenFull::FailWrites).waits_for_drop(1, 5));
    }

    #[test]
    fn those_who_wait_are_woken_when_something_came_free_and_not_before() {
        let mut log = volume(100, WhenFull::DropOldest);
        log.used_blocks = 100;
        assert!(!log.is_worth_a_look(), "nobody waits");
        log.wait(1, 10);
        assert!(!log.is_worth_a_look());
        log.used_blocks = 99;
        assert!(log.is_worth_a_look());
        log.reserved_blocks = 5;
        log.wait(2, 10);
        (log.used_blocks, log.reserved_blocks) = (104, 0);
        assert!(log.is_worth_a_look(), "nothing under way can make room any more");
    }
}
