//! Change log volumes of a shard: what writes may add to the change logs, and who waits for room.
//!
//! A write of a share with a snapshot asks for a grant when it is about to be queued, so that what would be refused never
//! goes to a device. When it is applied it asks again if there was a cut in between: then its blocks may count that did
//! not before. As long as there is room for all its blocks nothing is looked up; only at the limit the map says which of
//! them have changed already and so need no more room.
//!
//! | no room | `FailWrites` | `DropOldest` |
//! |---|---|---|
//! | writes under way may turn out to need less | waits for them | waits for them |
//! | there is none | fails | waits, the control plane is asked to drop snapshots |
//! | waited for too long, or nothing can be dropped | fails | fails |
//!
//! Where the truth lies: the catalog. A shard is told when it is opened, and nothing of this is on its devices.

use std::collections::{BTreeMap, VecDeque};

use super::{Outcome, Shard, SlotId};
use crate::change_log_volume::{
    ChangeLogVolume, Grant, REFUSE_NS, Room, WAIT_NS_MAX, counts_before, recount,
};
use crate::command::{ChangeLogPartStatus, EventKind, Notice, ShardCommand};
use crate::ids::{ChangeLogId, SnapshotId, VolumeId};
use crate::map::LEAF_BLOCKS;
use crate::marks::{Mark, mark};
use crate::ports::LogTail;
use crate::request::RequestError;
use crate::space::DEVICES_ALL;
use crate::virtual_volume::VirtualVolume;

/// The change log volumes of a shard.
#[derive(Debug, Default)]
pub(super) struct ChangeLogs {
    volumes: BTreeMap<ChangeLogId, ChangeLogVolume>,
    /// Snapshots went, or shares were attached: what is counted has to be counted again.
    stale: bool,
}

impl ChangeLogs {
    /// Something has happened that no sum keeps up with.
    pub(super) fn count_again(&mut self) {
        self.stale = !self.volumes.is_empty();
    }

    /// The live map of a share has so many changed blocks more.
    #[inline]
    pub(super) fn changed(&mut self, share: &VirtualVolume, blocks: u64) {
        if share.is_logged
            && let Some(log) = share.change_log.and_then(|id| self.volumes.get_mut(&id))
        {
            log.used_blocks += blocks;
        }
    }

    /// When somebody has waited for long enough.
    pub(super) fn next_ns(&self) -> Option<u64> {
        let waiting = self.volumes.values().flat_map(|log| &log.waiting);
        waiting.map(|&(_, deadline_ns)| deadline_ns).min()
    }

    /// Writes wait for snapshots to go.
    pub(super) fn is_waited_for(&self) -> bool {
        self.volumes.values().any(|log| !log.waiting.is_empty())
    }

    pub(super) fn wake_all(&mut self, ready: &mut VecDeque<SlotId>) {
        for log in self.volumes.values_mut() {
            log.asked = false;
            ready.extend(log.waiting.drain(..).map(|(slot, _)| slot));
        }
    }

    pub(super) fn statuses(&self) -> Vec<ChangeLogPartStatus> {
        let volumes = self.volumes.iter();
        volumes.map(|(&id, log)| log.status(id)).collect()
    }
}

impl<T: LogTail> Shard<T> {
    pub(super) fn change_log_command(&mut self, command: &ShardCommand) -> EventKind {
        let logs = &mut self.change_logs;
        match *command {
            ShardCommand::SetChangeLog { change_log, part } => {
                let log = logs.volumes.entry(change_log);
                let log = log.or_insert_with(|| ChangeLogVolume::new(part));
                log.part = part;
                log.refuses_until_ns = 0;
                // Those who waited look at the new limit.
                log.asked = false;
                self.ready.extend(log.waiting.drain(..).map(|(slot, _)| slot));
            }
            ShardCommand::RemoveChangeLog { change_log } => {
                if let Some(mut log) = logs.volumes.remove(&change_log) {
                    self.ready.extend(log.waiting.drain(..).map(|(slot, _)| slot));
                }
                let shares = self.volumes.values_mut();
                for share in shares.filter(|share| share.change_log == Some(change_log)) {
                    (share.change_log, share.is_logged) = (None, false);
                }
            }
            ShardCommand::AttachChangeLog { volume, change_log } => {
                let is_there = change_log.is_none_or(|id| logs.volumes.contains_key(&id));
                let Some(share) = self.volumes.get_mut(&volume).filter(|_| is_there) else {
                    return EventKind::Failed(RequestError::NotFound);
                };
                (share.change_log, share.is_logged) = (change_log, false);
                // What waited for the old one has nothing to wait for.
                logs.wake_all(&mut self.ready);
            }
            ShardCommand::RefuseChangeLog { change_log } => {
                if let Some(log) = logs.volumes.get_mut(&change_log) {
                    log.refuses_until_ns = self.now.monotonic_ns + REFUSE_NS;
                    log.asked = false;
                    self.ready.extend(log.waiting.drain(..).map(|(slot, _)| slot));
                }
            }
            _ => unreachable!("not a command about change log volumes"),
        }
        logs.count_again();
        EventKind::Done
    }

    /// Sees to it that a write may change its blocks. `Err` if it has to wait, or cannot.
    #[inline]
    pub(super) fn grant_change(&mut self, id: SlotId) -> Result<(), Outcome> {
        if self.change_logs.volumes.is_empty() {
            return Ok(());
        }
        self.grant_logged(id)
    }

    fn grant_logged(&mut self, id: SlotId) -> Result<(), Outcome> {
        let slot = &self.slots[id];
        let share = self.volumes.get(&slot.view.volume);
        let Some((change_log, share)) = share.and_then(|share| Some((share.change_log?, share))) else {
            return Ok(());
        };
        if !share.is_logged {
            return Ok(());
        }
        if let Some((of, grant)) = slot.grant
            && of == change_log
            && (grant.epoch == share.epoch || grant.blocks == slot.blocks)
        {
            return Ok(());
        }
        self.settle_grant(id);
        let slot = &mut self.slots[id];
        let share = &self.volumes[&slot.view.volume];
        let log = self.change_logs.volumes.get_mut(&change_log);
        let log = log.expect("a share is attached to one that is there");
        // Blocks that were applied before a wait in between are in the map, and counted.
        let mut blocks = slot.blocks - slot.done_blocks;
        if log.room_for(blocks) != Room::Yes {
            let first = crate::ids::ShareBlock(slot.first.0 + u64::from(slot.done_blocks));
            let rule = share.free_rule();
            self.cache
                .lookup_run(share.family, &share.root, first, blocks, &mut slot.entries)
                .map_err(Outcome::Map)?;
            let unchanged = slot.entries.iter().zip(first.0..);
            let unchanged =
                unchanged.filter(|(entry, block)| rule.is_unchanged(entry.birth, block / LEAF_BLOCKS));
            blocks = unchanged.count() as u32;
        }
        let room = log.room_for(blocks);
        if room == Room::Yes {
            log.reserved_blocks += u64::from(blocks);
            let epoch = share.epoch;
            slot.grant = Some((change_log, Grant { blocks, epoch }));
            return Ok(());
        }
        Err(self.wait_for_room(id, change_log, blocks, room))
    }

    fn wait_for_room(&mut self, id: SlotId, change_log: ChangeLogId, blocks: u32, room: Room) -> Outcome {
        let now_ns = self.now.monotonic_ns;
        let log = self.change_logs.volumes.get_mut(&change_log);
        let log = log.expect("looked up before");
        let slot = &mut self.slots[id];
        if slot.room_deadline_ns == 0 {
            slot.room_deadline_ns = now_ns + WAIT_NS_MAX;
        }
        let may_wait = room == Room::Soon || log.waits_for_drop(blocks, now_ns);
        if !may_wait || slot.room_deadline_ns <= now_ns || self.stopped.is_some() {
            mark(Mark::ChangeLogFull);
            let tell = !core::mem::replace(&mut log.told_full, true);
            if tell && room == Room::No {
                self.notice(Notice::ChangeLogFull { change_log });
            }
            self.drop_extents(id);
            return Outcome::Answer(Err(RequestError::NoSpace));
        }
        mark(Mark::ChangeLogWaits);
        log.wait(id, slot.room_deadline_ns);
        if room == Room::No && !core::mem::replace(&mut log.asked, true) {
            self.notice(Notice::ChangeLogFull { change_log });
        }
        Outcome::Parked
    }

    /// A write is over, or its blocks are in the map: what it was granted and did not need is free again.
    #[inline]
    pub(super) fn settle_grant(&mut self, id: SlotId) {
        if let Some((change_log, grant)) = self.slots[id].grant.take()
            && let Some(log) = self.change_logs.volumes.get_mut(&change_log)
        {
            log.reserved_blocks -= u64::from(grant.blocks);
        }
    }

    /// The devices that the blocks of a write are placed on.
    pub(super) fn devices_for(&self, id: SlotId) -> u64 {
        let change_log = self.slots[id].grant.map(|(change_log, _)| change_log);
        let log = change_log.and_then(|change_log| self.change_logs.volumes.get(&change_log));
        log.map_or(DEVICES_ALL, |log| log.part.devices)
    }

    /// Counts the blocks of a write that found no place on these devices.
    pub(super) fn note_places(&mut self, id: SlotId, devices: u64) {
        let slot = &self.slots[id];
        let elsewhere = slot
            .extents
            .iter()
            .filter(|extent| devices >> extent.address.device().0 & 1 == 0);
        let blocks: u64 = elsewhere.map(|extent| u64::from(extent.blocks)).sum();
        let change_log = slot.grant.map(|(change_log, _)| change_log);
        if blocks > 0
            && let Some(log) = change_log.and_then(|change_log| self.change_logs.volumes.get_mut(&change_log))
        {
            mark(Mark::ChangeLogElsewhere);
            log.elsewhere_blocks += blocks;
        }
    }

    /// A walk has freed, or passed, positions that were in the log before a snapshot and in the one behind it.
    pub(super) fn count_once(&mut self, volume: VolumeId, snapshot: SnapshotId, blocks: u64) {
        if blocks == 0 {
            return;
        }
        let share = self.volumes.get_mut(&volume).expect("a walked volume");
        let position = share.snapshots.position(snapshot).expect("a walked snapshot");
        let log = &mut share.snapshots.change(position).before;
        let less = blocks.min(log.changed_blocks);
        log.changed_blocks -= less;
        let change_log = share.change_log;
        if let Some(id) = change_log.filter(|id| self.change_logs.volumes.contains_key(id))
            && !self.change_logs.stale
            && counts_before(&self.volumes, volume, position)
        {
            let log = self.change_logs.volumes.get_mut(&id).expect("filtered above");
            log.used_blocks -= less;
        }
    }

    /// Counts again if that is needed, tells what has become full or empty, wakes those who wait.
    pub(super) fn drive_change_logs(&mut self) {
        if self.change_logs.volumes.is_empty() {
            return;
        }
        if core::mem::take(&mut self.change_logs.stale) {
            for (&id, log) in &mut self.change_logs.volumes {
                log.used_blocks = recount(&mut self.volumes, id);
            }
        }
        let now_ns = self.now.monotonic_ns;
        for (&change_log, log) in &mut self.change_logs.volumes {
            if let Some(high) = log.level_changed() {
                self.events.push(crate::command::ShardEvent {
                    shard: self.shard,
                    ticket: None,
                    kind: EventKind::Notice(Notice::ChangeLogHigh { change_log, high }),
                });
            }
            let is_over = |&(_, deadline_ns): &(SlotId, u64)| deadline_ns <= now_ns;
            if log.is_worth_a_look() || log.waiting.iter().any(is_over) {
                log.asked = false;
                self.progress = true;
                self.ready.extend(log.waiting.drain(..).map(|(slot, _)| slot));
            }
        }
    }
}
