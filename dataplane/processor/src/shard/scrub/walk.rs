//! The walk of a scrub: what there is to read, view after view and leaf after leaf.
//!
//! The views of a volume are its snapshots from before the walk of this volume began, oldest first, and then the **last
//! view**: what was the live map when it began. If a snapshot is taken meanwhile, that is the last view, from the leaf where the
//! walk is: what was in use at the beginning is frozen there, whatever is written to the live map since. If that snapshot
//! is deleted, the next one takes its place, or the live map: what these have more is newer than the scrub.

use stillpoint_ondisk::map_page::{ENTRIES, MapEntry, MapPageIdentity};

use super::super::Shard;
use super::super::reclaim::{entry_at, leaves_of};
use super::{Expected, READ_BLOCKS_MAX};
use crate::command::ScrubPosition;
use crate::ids::{DeviceAddress, ShareBlock, VolumeId};
use crate::intermediate_snapshot::IntermediateSnapshot;
use crate::map::{MapError, PageRef, Root};
use crate::ports::LogTail;
use crate::request::View;
use crate::virtual_volume::VirtualVolume;

/// What a look at the position came to.
pub(super) enum Look {
    /// Nothing to read up to here.
    Pass(ScrubPosition),
    /// What is expected is to be read; then the scrub goes on there.
    Read(ScrubPosition),
    /// Everything was looked at.
    End,
}

/// Where the scrub goes on at the end of a view.
fn after_view(at: ScrubPosition) -> Look {
    if at.epoch < at.until {
        return Look::Pass(ScrubPosition {
            epoch: at.epoch + 1,
            leaf: 0,
            pages_read: false,
            slot: 0,
            ..at
        });
    }
    let Some(volume) = at.volume.checked_add(1) else {
        return Look::End;
    };
    Look::Pass(ScrubPosition {
        volume,
        ..ScrubPosition::default()
    })
}

impl<T: LogTail> Shard<T> {
    /// What is at the position; fills `expected` with what is to be read.
    pub(super) fn look(&mut self) -> Result<Look, MapError> {
        let at = self.scrub.status.position;
        let live = |volume: &&VirtualVolume| !volume.with_snapshots;
        let Some(volume) = self
            .volumes
            .range(VolumeId(at.volume)..)
            .map(|(_, v)| v)
            .find(live)
        else {
            return Ok(Look::End);
        };
        let start = ScrubPosition {
            volume: volume.id.0,
            until: volume.epoch.0,
            ..ScrubPosition::default()
        };
        if at.until == 0 || volume.id.0 != at.volume {
            return Ok(Look::Pass(start));
        }
        let start = ScrubPosition {
            until: at.until,
            ..start
        };
        let mut chain = volume.snapshots.iter().filter(|snapshot| !snapshot.deleting);
        let before = chain
            .clone()
            .take_while(|snapshot| snapshot.copy.epoch.0 < at.epoch)
            .last();
        let found = chain.find(|snapshot| snapshot.copy.epoch.0 >= at.epoch);
        let is_last = at.epoch >= at.until;
        if !is_last {
            // Where the scrub was is gone, or at its end: the next view begins.
            let next = found.map_or(at.until, |found| found.copy.epoch.0).min(at.until);
            if next != at.epoch {
                return Ok(Look::Pass(ScrubPosition { epoch: next, ..start }));
            }
        }
        let root = match found {
            Some(found) => found.copy.root,
            None if volume.deleting => Root::default(),
            None => volume.root,
        };
        let view = View {
            volume: volume.id,
            snapshot: found.map(|found| found.snapshot),
        };
        if root.entry.address() == 0 || at.leaf >= leaves_of(root.level) {
            return Ok(after_view(at));
        }
        let before = before.or_else(|| self.origin_looked_at(volume));
        let before = before.map(|snapshot| snapshot.copy.root);
        let family = volume.family;
        self.scrub.view = Some(view);
        self.look_at_leaf(family, root, before, at)
    }

    /// The snapshot that a share was made of, if the scrub looks at it too.
    fn origin_looked_at(&self, volume: &VirtualVolume) -> Option<&IntermediateSnapshot> {
        let origin = volume.origin?;
        let share = &self.volumes[&origin.volume];
        let position = share.snapshots.position(origin.snapshot)?;
        (!share.is_to_be_freed(position)).then(|| &share.snapshots[position])
    }

    /// Goes down to the leaf at the position, past what the view before has too.
    fn look_at_leaf(
        &mut self,
        family: VolumeId,
        root: Root,
        before: Option<Root>,
        at: ScrubPosition,
    ) -> Result<Look, MapError> {
        let (mut level, mut entry) = (root.level, root.entry);
        self.scrub.expected.clear();
        loop {
            let index = at.leaf / leaves_of(level);
            let end = ScrubPosition {
                leaf: (index + 1) * leaves_of(level),
                pages_read: false,
                slot: 0,
                ..at
            };
            let other = entry_at(&mut self.cache, family, before.as_ref(), level, index);
            let other = other.inspect_err(|_| self.scrub.expected.clear())?;
            if entry.address() == 0 || other.is_some_and(|other| other.address() == entry.address()) {
                return Ok(self.pass_or_read(end));
            }
            let page = self.cache.page(family, level, index, &entry);
            let entries = match page {
                Ok(page) => page.entries,
                Err(error) => {
                    self.scrub.expected.clear();
                    return Err(error);
                }
            };
            let is_first = !at.pages_read && at.leaf.is_multiple_of(leaves_of(level));
            if is_first && self.cache.is_durable(DeviceAddress(entry.address())) {
                self.scrub.expected.push(Expected::Page(PageRef {
                    address: DeviceAddress(entry.address()),
                    identity: MapPageIdentity {
                        shard: self.shard.0,
                        volume: family.0,
                        level,
                        index,
                        generation: entry.check.get(),
                    },
                }));
            }
            if level == 0 {
                let others = match &other {
                    Some(other) => match self.cache.page(family, 0, index, other) {
                        Ok(page) => Some(page.entries),
                        Err(error) => {
                            self.scrub.expected.clear();
                            return Err(error);
                        }
                    },
                    None => None,
                };
                if !self.scrub.expected.is_empty() {
                    let then = ScrubPosition {
                        pages_read: true,
                        ..at
                    };
                    return Ok(Look::Read(then));
                }
                let slot = self.expect_blocks(&entries, others.as_ref(), at);
                let rest = ScrubPosition {
                    pages_read: true,
                    slot,
                    ..at
                };
                let then = if slot as usize == ENTRIES { end } else { rest };
                return Ok(self.pass_or_read(then));
            }
            level -= 1;
            entry = entries[(at.leaf / leaves_of(level)) as usize % ENTRIES];
        }
    }

    /// Adds blocks of a leaf to what is read, as many as one read takes; gives the slot after them.
    fn expect_blocks(
        &mut self,
        entries: &[MapEntry; ENTRIES],
        others: Option<&[MapEntry; ENTRIES]>,
        at: ScrubPosition,
    ) -> u32 {
        let scrub = &mut self.scrub;
        let blocks_max = match (scrub.singly, scrub.mirrored) {
            (0, false) => READ_BLOCKS_MAX,
            (0, true) => READ_BLOCKS_MAX / 2,
            _ => 1,
        };
        for (slot, entry) in entries.iter().enumerate().skip(at.slot as usize) {
            if entry.address() == 0 || others.is_some_and(|others| others[slot].address() == entry.address())
            {
                continue;
            }
            if scrub.expected.len() >= blocks_max {
                return slot as u32;
            }
            scrub.expected.push(Expected::Block {
                address: DeviceAddress(entry.address()),
                crc32c: entry.check.get(),
                block: ShareBlock(at.leaf * ENTRIES as u64 + slot as u64),
            });
        }
        ENTRIES as u32
    }

    fn pass_or_read(&self, then: ScrubPosition) -> Look {
        if self.scrub.expected.is_empty() {
            Look::Pass(then)
        } else {
            Look::Read(then)
        }
    }
}
