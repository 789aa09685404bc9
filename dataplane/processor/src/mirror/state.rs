//! The states of the sides: what changes them, and what follows.

use std::collections::VecDeque;

use super::copy::{Copying, Pass};
use super::note::Page;
use super::regions::{Cut, Regions};
use super::table::{SlotId, Table, blocks_of};
use super::{MirrorNotice, MirrorStatus, SideAt, SideState, StaleAt};
use crate::BLOCK_BYTES;
use crate::ids::{DeviceIndex, ShardIndex};
use crate::marks::{Mark, mark};
use crate::ports::{Buffer, DeviceError, Operation, Side};
use stillpoint_ondisk::layout::Layout;

/// A side, as a processor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    InSync,
    /// It failed here, and the labels do not say so yet.
    Failing,
    Out,
    Resync,
}

/// What a failure of a side comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing: the side went out and joined again since.
    Old,
    /// The other side has it.
    Missed,
    /// No side has it.
    Fatal,
}

/// A device with two sides.
#[derive(Debug)]
pub(super) struct Device {
    pub sides: [State; 2],
    /// Nothing can be promised any more.
    pub lost: Option<DeviceError>,
    /// Since when the side that is not in sync is out.
    pub episode: u64,
    /// The change of sides with which each side was last given writes again: what was started before says nothing of it.
    pub since: [u64; 2],
    /// The last change of its sides.
    pub changed: u64,
    /// The flush to both sides that makes [`Slice::recent`]`[1]` known to be flushed.
    pub flush: Option<SlotId>,
    pub pass: Pass,
    pub copied_bytes: [u64; 2],
    pub repaired_reads: [u64; 2],
}

impl Device {
    pub(super) fn is_failing(&self) -> bool {
        self.sides.contains(&State::Failing)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.sides == [State::InSync; 2]
    }

    pub(super) fn is_in_sync(&self, side: Side) -> bool {
        self.sides[side.index()] == State::InSync
    }

    /// The side that is out or being resynchronised, if the other is in sync.
    pub(super) fn behind(&self) -> Option<Side> {
        Side::BOTH.into_iter().find(|side| {
            matches!(self.sides[side.index()], State::Out | State::Resync) && self.is_in_sync(side.other())
        })
    }

    /// The side that is being resynchronised.
    pub(super) fn resyncing(&self) -> Option<Side> {
        self.behind()
            .filter(|side| self.sides[side.index()] == State::Resync)
    }
}

/// What one shard has on a device.
#[derive(Debug)]
pub(super) struct Slice {
    pub cut: Cut,
    pub shard: ShardIndex,
    pub device: usize,
    /// Written, and not known to be flushed on both sides: since the flush that is in flight was started, and before.
    pub recent: [Regions; 2],
    /// What the side that is not in sync lacks.
    pub to_copy: Regions,
    /// Of it, what could not be read in this pass.
    pub skipped: Regions,
    /// What the side in sync says that the other lacks, for good.
    pub noted: Regions,
    pub page: Page,
}

impl Slice {
    /// Nothing says any more what was flushed: what is recent counts as lacking.
    fn recent_is_lacking(&mut self) {
        self.to_copy.make_room(self.cut.count());
        for recent in &mut self.recent {
            self.to_copy.add(recent);
            recent.clear();
        }
    }

    fn make_room(&mut self) {
        let count = self.cut.count();
        for regions in [
            &mut self.to_copy,
            &mut self.skipped,
            &mut self.noted,
            &mut self.page.says,
        ] {
            regions.make_room(count);
        }
    }
}

/// The mirrors of one processor.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) pool: [u8; 16],
    pub(super) devices: Vec<Device>,
    shards: Vec<ShardIndex>,
    /// Position in `shards`, by shard.
    positions: Vec<Option<usize>>,
    /// Shard by shard, device by device.
    pub(super) slices: Vec<Slice>,
    /// Block of each shard's stale page, by position.
    pub(super) stale_blocks: Vec<u64>,
    pub(super) table: Table,
    /// Not started yet.
    pub(super) waiting: VecDeque<SlotId>,
    /// Something that operations wait for may have come true.
    pub(super) look_again: bool,
    /// Started, and there was no room below.
    pub(super) ready: VecDeque<SlotId>,
    /// Done on one side only, and the labels do not say so yet.
    pub(super) kept: Vec<SlotId>,
    pub(super) completed: Vec<Box<Operation>>,
    pub(super) returned: Vec<Box<Operation>>,
    /// Operations of its own that are not in use, some with a buffer to give back.
    pub(super) spare: Vec<Box<Operation>>,
    /// There are such buffers.
    pub(super) has_buffers: bool,
    /// For a stale page when there is no other, and its size; 0 until there was one to keep.
    pub(super) reserve: Option<Buffer>,
    pub(super) reserve_bytes: usize,
    notices: VecDeque<MirrorNotice>,
    /// Operations below, by side.
    pub(super) busy: Vec<u32>,
    /// Which side is asked if both are as busy.
    pub(super) next_side: Side,
    /// Changes of sides so far.
    pub(super) generation: u64,
    pub(super) copying: Option<Copying>,
    pub(super) rate_bytes_per_s: u64,
    /// No chunk is begun before.
    pub(super) copy_from_ns: u64,
    /// There was no buffer; to be tried again.
    pub(super) retry_ns: Option<u64>,
    pub(super) now_ns: u64,
    #[cfg(feature = "planted-bugs")]
    pub(super) bug: Option<crate::PlantedBug>,
}

impl Mirror {
    pub(super) fn new(
        layout: &Layout,
        sides: &[[SideState; 2]],
        shards: &[ShardIndex],
        stale: Vec<StaleAt>,
    ) -> Self {
        assert_eq!(sides.len(), layout.devices.len(), "the sides of every device");
        let devices = sides.iter().map(|&sides| Device {
            sides: sides.map(State::from),
            lost: None,
            episode: 0,
            since: [0; 2],
            changed: 0,
            flush: None,
            pass: Pass::default(),
            copied_bytes: [0; 2],
            repaired_reads: [0; 2],
        });
        let last = shards.iter().map(|shard| usize::from(shard.0)).max();
        let mut positions = vec![None; last.map_or(0, |last| last + 1)];
        for (position, shard) in shards.iter().enumerate() {
            positions[usize::from(shard.0)] = Some(position);
        }
        let mut mirror = Self {
            pool: layout.pool,
            devices: devices.collect(),
            shards: shards.to_vec(),
            positions,
            slices: slices(layout, shards),
            stale_blocks: shards.iter().map(|shard| layout.stale_block(shard.0)).collect(),
            table: Table::default(),
            waiting: VecDeque::new(),
            look_again: false,
            ready: VecDeque::new(),
            kept: Vec::new(),
            completed: Vec::with_capacity(256),
            returned: Vec::with_capacity(256),
            spare: Vec::new(),
            has_buffers: false,
            reserve: None,
            reserve_bytes: 0,
            notices: VecDeque::new(),
            busy: vec![0; sides.len() * 2],
            next_side: Side::First,
            generation: 0,
            copying: None,
            rate_bytes_per_s: 0,
            copy_from_ns: 0,
            retry_ns: None,
            now_ns: 0,
            #[cfg(feature = "planted-bugs")]
            bug: None,
        };
        mirror.take_in(stale);
        mirror
    }

    /// What the stale pages said of the sides that are not in sync.
    fn take_in(&mut self, stale: Vec<StaleAt>) {
        for (number, device) in self.devices.iter().enumerate() {
            assert!(
                device.sides.contains(&State::InSync),
                "M1: device {number} has no side in sync"
            );
            if device.is_whole() {
                continue;
            }
            for slice in self.slices.iter_mut().filter(|slice| slice.device == number) {
                slice.make_room();
                let regions = slice.cut.count();
                slice.to_copy.set_all(0..regions);
                // A page that cannot be read now may be read next time, and say less.
                slice.page.is_there = true;
                slice.page.is_due = true;
            }
        }
        for found in stale {
            let number = usize::from(found.at.device.0);
            if self.devices[number].behind() != Some(found.at.side) {
                continue;
            }
            self.devices[number].episode = found.episode;
            let slices = self.slices.iter_mut();
            let mut of_shard = slices.filter(|slice| slice.device == number && slice.shard == found.shard);
            if let (Some(slice), Some(words)) = (of_shard.next(), found.words) {
                slice.page.is_due = false;
                for regions in [&mut slice.to_copy, &mut slice.noted] {
                    regions.clear();
                    regions.add_words(&words);
                }
            }
        }
    }

    /// A change of a device's sides.
    fn changed(&mut self, device: usize) {
        self.generation += 1;
        let changed = &mut self.devices[device];
        changed.changed = self.generation;
        changed.flush = None;
        changed.pass = Pass::default();
        if self
            .copying
            .as_ref()
            .is_some_and(|copying| copying.device == device)
        {
            self.copying = None;
        }
        self.look_again = true;
    }

    pub(super) fn slices_of(&mut self, device: usize) -> impl Iterator<Item = &mut Slice> {
        let devices = self.devices.len();
        self.slices.iter_mut().skip(device).step_by(devices)
    }

    /// Position of a shard's slice of a device.
    pub(super) fn slice_at(&self, shard: ShardIndex, device: usize) -> usize {
        let position = self.positions.get(usize::from(shard.0)).copied().flatten();
        position.expect("a shard of this processor") * self.devices.len() + device
    }

    /// The shard under which the mirrors' own operations go.
    pub(super) fn any_shard(&self) -> ShardIndex {
        self.shards.first().copied().unwrap_or(ShardIndex(0))
    }

    /// A side failed something that was started at `generation`: from now on it is failing, if the other one makes up for it.
    pub(super) fn failed(
        &mut self,
        device: usize,
        side: Side,
        error: DeviceError,
        generation: u64,
    ) -> Failure {
        let of_device = &mut self.devices[device];
        let is_old = generation < of_device.since[side.index()];
        if is_old && of_device.is_in_sync(side) {
            // What was written then was copied before it joined, and flushed.
            mark(Mark::MirrorOldFailure);
            return Failure::Old;
        }
        if !of_device.is_in_sync(side.other()) {
            mark(Mark::MirrorBothFailed);
            return Failure::Fatal;
        }
        let state = of_device.sides[side.index()];
        if !is_old && matches!(state, State::InSync | State::Resync) {
            mark(match state {
                State::Resync => Mark::MirrorFailedAgain,
                _ => Mark::MirrorSideFailed,
            });
            of_device.sides[side.index()] = State::Failing;
            self.changed(device);
            let at = side_at(device, side);
            self.notices.push_back(MirrorNotice::SideFailed { at, error });
        }
        Failure::Missed
    }

    pub(super) fn out(&mut self, at: SideAt, episode: u64) {
        let number = usize::from(at.device.0);
        let (side, other) = (at.side.index(), at.side.other().index());
        let device = &mut self.devices[number];
        match device.sides[other] {
            State::InSync => {}
            // This processor saw the other side fail, and the labels stay with that one.
            State::Failing => {
                mark(Mark::MirrorOtherStays);
                device.sides[other] = State::InSync;
            }
            State::Out | State::Resync => return,
        }
        if device.sides[side] == State::InSync {
            mark(Mark::MirrorOutUnseen);
        }
        let is_same = device.episode == episode;
        device.sides[side] = State::Out;
        device.episode = episode;
        self.changed(number);
        for slice in self.slices_of(number) {
            slice.make_room();
            slice.recent_is_lacking();
            slice.skipped.clear();
            slice.noted.clear();
            slice.page.is_there &= is_same;
            slice.page.is_due = true;
        }
        let Self {
            table,
            slices,
            devices,
            positions,
            ..
        } = self;
        for slot in table.writing() {
            for transfer in &slot.transfers {
                if usize::from(transfer.device.0) == number
                    && let Some(position) = positions.get(usize::from(slot.shard.0)).copied().flatten()
                {
                    let slice = &mut slices[position * devices.len() + number];
                    slice.to_copy.set_all(slice.cut.regions(&blocks_of(transfer)));
                }
            }
        }
    }

    pub(super) fn lost(&mut self, device: DeviceIndex, error: DeviceError) {
        self.devices[usize::from(device.0)].lost = Some(error);
        self.look_again = true;
    }

    /// As [`Self::out`] since `episode`, and it lacks everything: no page of this episode may ever say less before it is copied.
    pub(super) fn replaced(&mut self, at: SideAt, episode: u64) {
        self.out(at, episode);
        let number = usize::from(at.device.0);
        if self.devices[number].behind() != Some(at.side) {
            return;
        }
        mark(Mark::MirrorReplaced);
        for slice in self.slices_of(number) {
            let regions = slice.cut.count();
            slice.to_copy.set_all(0..regions);
        }
    }

    pub(super) fn resync(&mut self, at: SideAt) {
        let (number, side) = (usize::from(at.device.0), at.side.index());
        if self.devices[number].behind() != Some(at.side) {
            return;
        }
        self.devices[number].sides[side] = State::Resync;
        self.changed(number);
        let generation = self.generation;
        self.devices[number].since[side] = generation;
        for slice in self.slices_of(number) {
            slice.recent_is_lacking();
            slice.skipped.clear();
        }
    }

    pub(super) fn joined(&mut self, at: SideAt) {
        let number = usize::from(at.device.0);
        let device = &mut self.devices[number];
        if device.resyncing() != Some(at.side) || !device.pass.is_told {
            mark(Mark::MirrorJoinedTooLate);
            return;
        }
        device.sides[at.side.index()] = State::InSync;
        self.changed(number);
        for slice in self.slices_of(number) {
            assert!(slice.to_copy.is_empty(), "M5: nothing is left to copy");
            // No flush is known of any more that these would have to wait for.
            let [newer, older] = &mut slice.recent;
            newer.make_room(slice.cut.count());
            newer.add(older);
            older.clear();
            slice.noted.clear();
            (slice.page.is_there, slice.page.is_due) = (false, false);
        }
    }

    pub(super) fn tell(&mut self, notice: MirrorNotice) {
        self.notices.push_back(notice);
    }

    pub(super) fn take_notice(&mut self) -> Option<MirrorNotice> {
        self.notices.pop_front()
    }

    pub(super) fn status(&self) -> Vec<MirrorStatus> {
        let sides = (0..self.devices.len()).flat_map(|device| Side::BOTH.map(|side| (device, side)));
        sides.map(|(device, side)| self.status_of(device, side)).collect()
    }

    fn status_of(&self, number: usize, side: Side) -> MirrorStatus {
        let device = &self.devices[number];
        let state = match device.sides[side.index()] {
            State::InSync => SideState::InSync,
            State::Failing | State::Out => SideState::Out,
            State::Resync => SideState::Resync,
        };
        let (mut regions_left, mut bytes_left) = (0, 0);
        if device.behind() == Some(side) {
            for slice in self.slices.iter().filter(|slice| slice.device == number) {
                let regions = slice.to_copy.count();
                let blocks = (regions * slice.cut.region_blocks()).min(slice.cut.slice_blocks());
                regions_left += regions;
                bytes_left += blocks * BLOCK_BYTES as u64;
            }
        }
        MirrorStatus {
            at: side_at(number, side),
            state,
            regions_left,
            bytes_left,
            copied_bytes: device.copied_bytes[side.index()],
            repaired_reads: device.repaired_reads[side.index()],
        }
    }

    /// Nothing is in the table, and no buffer is kept.
    pub(super) fn is_quiet(&self) -> bool {
        self.table.in_use() == 0 && self.completed.is_empty() && !self.has_buffers
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn plant(&mut self, bug: Option<crate::PlantedBug>) {
        self.bug = bug;
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn planted(&self, bug: crate::PlantedBug) -> bool {
        self.bug == Some(bug)
    }
}

/// A side of a device by its number.
pub(super) fn side_at(device: usize, side: Side) -> SideAt {
    SideAt {
        device: DeviceIndex(device as u8),
        side,
    }
}

/// The slices of these shards, shard by shard.
fn slices(layout: &Layout, shards: &[ShardIndex]) -> Vec<Slice> {
    let devices = || 0..layout.devices.len();
    let of_shards = shards
        .iter()
        .flat_map(|&shard| devices().map(move |device| (shard, device)));
    let mut slices: Vec<Slice> = of_shards
        .map(|(shard, device)| Slice {
            cut: Cut::new(
                layout.slice_start_block(shard.0, device),
                layout.devices[device].slice_blocks,
            ),
            shard,
            device,
            recent: Default::default(),
            to_copy: Regions::default(),
            skipped: Regions::default(),
            noted: Regions::default(),
            page: Page::default(),
        })
        .collect();
    for slice in &mut slices {
        let count = slice.cut.count();
        slice.recent.iter_mut().for_each(|recent| recent.make_room(count));
    }
    slices
}

impl From<SideState> for State {
    fn from(state: SideState) -> Self {
        match state {
            SideState::InSync => Self::InSync,
            SideState::Out => Self::Out,
            SideState::Resync => Self::Resync,
        }
    }
}
