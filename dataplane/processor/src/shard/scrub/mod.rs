//! Scrubbing: every block that is in use, live or of a snapshot, is read and compared with its checksum, beside the I/O
//! and at a limited rate.
//!
//! The walk (walk.rs) goes over the volumes, the views of each and the leaves of each view. What a view shares with the one
//! before was read there and is passed by. Map pages on the way are read from the device too, once a checkpoint has
//! written them. One read is in flight at a time; a turn looks at a few leaves. Of a mirror both sides are read, and what
//! one of them has damaged is written to it from the other (compare.rs).
//!
//! A scrub can be paused, and what is known of it ([`ScrubStatus`]) is all that it needs to go on after the shard was
//! opened again: the control plane keeps it.
//!
//! What changes while it runs needs no care: what is written behind the cursor is newer than the scrub, what is freed
//! while it is being read is not used again before the read, or a repair, has ended (I5).

mod compare;
mod walk;

use super::reclaim::leaves_of;
use super::{Shard, Tag};
use crate::BLOCK_BYTES;
use crate::command::{Notice, ScrubDamage, ScrubPosition, ScrubState, ScrubStatus};
use crate::ids::{DeviceAddress, ShareBlock};
use crate::map::{MapError, PageRef};
use crate::ports::{BufferPool, DeviceError, LogTail, OperationKind, Side};
use crate::request::{RequestError, View};
use stillpoint_ondisk::map_page::ENTRIES;
use walk::Look;

/// Leaves or subtrees looked at per turn.
const STEPS_PER_TURN: usize = 8;
/// Blocks of one read at most (256 KiB): short enough to stay out of the way. Of a mirror half of that from each side.
const READ_BLOCKS_MAX: usize = 64;
/// Damaged blocks that are remembered; all are counted and told.
pub const REMEMBERED_MAX: usize = stillpoint_ondisk::catalog::SCRUB_DAMAGE_MAX;
/// errno: a device could not read.
const EIO: i32 = 5;

/// A block that is being read.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Block {
        address: DeviceAddress,
        crc32c: u32,
        block: ShareBlock,
    },
    Page(PageRef),
}

impl Expected {
    fn address(&self) -> DeviceAddress {
        match self {
            Self::Block { address, .. } => *address,
            Self::Page(page) => page.address,
        }
    }

    fn map_level(&self) -> Option<u8> {
        match self {
            Self::Block { .. } => None,
            Self::Page(page) => Some(page.identity.level),
        }
    }

    /// The first block of the share that it is about.
    fn first_block(&self) -> ShareBlock {
        match self {
            Self::Block { block, .. } => *block,
            Self::Page(page) => {
                let blocks = leaves_of(page.identity.level) * ENTRIES as u64;
                ShareBlock(page.identity.index * blocks)
            }
        }
    }
}

/// The scrub of a shard, running or not.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    status: ScrubStatus,
    /// Since when it runs, by the monotonic clock.
    running_since_ns: u64,
    /// Not before this time, by the monotonic clock.
    next_ns: u64,
    /// What is being read, in the order of the buffer.
    expected: Vec<Expected>,
    view: Option<View>,
    /// Where the scrub goes on when the read has ended.
    then: ScrubPosition,
    /// A read, or a repair that follows from it, is in flight.
    in_flight: bool,
    /// What is in flight counts for nothing: the scrub was stopped since, or begun anew.
    forget: bool,
    /// A read of several blocks failed: so many are read one by one now.
    singly: usize,
    /// The last read was of a mirror with both sides in sync.
    mirrored: bool,
    /// Of a mirror: whether the side that was asked first answered, for each of `expected`; the other one did if it failed.
    of_asked: Vec<bool>,
    /// What is to be written again, by side: the place in `expected`, and the block of the buffer that has it sound.
    to_repair: [Vec<(usize, usize)>; 2],
    waits_for_page: bool,
}

impl Scrub {
    pub(super) fn status(&self, now_ns: u64) -> ScrubStatus {
        ScrubStatus {
            running_ns: self.running_ns(now_ns),
            ..self.status.clone()
        }
    }

    fn running_ns(&self, now_ns: u64) -> u64 {
        let since_ns = match self.is_running() {
            true => now_ns.saturating_sub(self.running_since_ns),
            false => 0,
        };
        self.status.running_ns + since_ns
    }

    fn is_running(&self) -> bool {
        self.status.state == ScrubState::Running
    }

    /// It is running, or may yet.
    fn is_going_on(&self) -> bool {
        matches!(self.status.state, ScrubState::Running | ScrubState::Paused)
    }

    fn is_waiting(&self) -> bool {
        self.waits_for_page || self.in_flight
    }

    /// Whether the next step waits for nothing but a turn.
    pub(super) fn is_ready(&self, now_ns: u64) -> bool {
        self.is_running() && !self.is_waiting() && self.next_ns <= now_ns
    }

    /// When the next step may be taken, if it waits for nothing else.
    pub(super) fn next_ns(&self) -> Option<u64> {
        (self.is_running() && !self.is_waiting()).then_some(self.next_ns)
    }

    /// The shard wrote blocks to a side that had them damaged.
    pub(super) fn repaired(&mut self, side: Side, blocks: u64) {
        if self.is_going_on() {
            self.status.sides[side.index()].repaired_blocks += blocks;
        }
    }

    /// The shard could not write blocks to a side that has them damaged.
    pub(super) fn not_repaired(&mut self, side: Side, blocks: u64) {
        if self.is_going_on() {
            self.status.sides[side.index()].unrepaired_blocks += blocks;
        }
    }
}

impl<T: LogTail> Shard<T> {
    /// Begins a scrub, from the start, whatever one that is running has done.
    pub(super) fn start_scrub(&mut self, rate_bytes_per_s: u64) {
        self.restore_scrub(ScrubStatus {
            state: ScrubState::Running,
            rate_bytes_per_s,
            started_ns: self.now.wall_ns,
            ..ScrubStatus::default()
        });
    }

    /// Takes over what is known of a scrub; one that was running goes on.
    pub(super) fn restore_scrub(&mut self, status: ScrubStatus) {
        let scrub = &mut self.scrub;
        scrub.status = status;
        scrub.status.rate_bytes_per_s = scrub.status.rate_bytes_per_s.max(1);
        scrub.forget = scrub.in_flight;
        scrub.singly = 0;
        self.scrub_runs();
    }

    fn scrub_runs(&mut self) {
        self.scrub.next_ns = self.now.monotonic_ns;
        self.scrub.running_since_ns = self.now.monotonic_ns;
        self.progress = true;
    }

    /// Lets a scrub that is running rest; a read that is in flight counts for nothing and is made again.
    pub(super) fn pause_scrub(&mut self) {
        if self.scrub.is_running() {
            self.scrub_rests(ScrubState::Paused);
        }
    }

    /// Lets a scrub that was paused go on, at another rate if one is given.
    pub(super) fn resume_scrub(&mut self, rate_bytes_per_s: Option<u64>) {
        if self.scrub.status.state != ScrubState::Paused {
            return;
        }
        if let Some(rate) = rate_bytes_per_s {
            self.scrub.status.rate_bytes_per_s = rate.max(1);
        }
        self.scrub.status.state = ScrubState::Running;
        self.scrub_runs();
    }

    /// Ends a scrub that is running or paused.
    pub(super) fn stop_scrub(&mut self) {
        if self.scrub.is_going_on() {
            self.scrub_ends(ScrubState::Stopped);
        }
    }

    fn scrub_rests(&mut self, state: ScrubState) {
        let scrub = &mut self.scrub;
        scrub.status.running_ns = scrub.running_ns(self.now.monotonic_ns);
        scrub.status.state = state;
        scrub.forget = scrub.in_flight;
        self.progress = true;
    }

    fn scrub_ends(&mut self, state: ScrubState) {
        self.scrub_rests(state);
        self.scrub.status.ended_ns = self.now.wall_ns;
    }

    pub(super) fn drive_scrub(&mut self, buffers: &mut impl BufferPool) {
        for _ in 0..STEPS_PER_TURN {
            if !self.scrub.is_ready(self.now.monotonic_ns) {
                return;
            }
            self.progress = true;
            match self.look() {
                Ok(Look::Pass(position)) => self.scrub.status.position = position,
                Ok(Look::End) => self.scrub_ends(ScrubState::Done),
                Ok(Look::Read(then)) => {
                    self.scrub.then = then;
                    if !self.issue_scrub(buffers) {
                        return;
                    }
                }
                Err(MapError::Miss(page)) => {
                    self.scrub.waits_for_page = true;
                    self.loads.wait(page, super::loads::Waiter::Scrub(page), true);
                }
                Err(error) => unreachable!("looking changes nothing: {error:?}"),
            }
        }
    }

    /// Reads what is expected; false if there is no buffer now. Of a mirror the buffer has room for both sides.
    fn issue_scrub(&mut self, buffers: &mut impl BufferPool) -> bool {
        let sides = if self.scrub.mirrored { 2 } else { 1 };
        let Some(buffer) = buffers.take(sides * self.scrub.expected.len() * BLOCK_BYTES) else {
            self.scrub.expected.clear();
            self.short_of_buffers = true;
            return false;
        };
        let mut operation = self.operation(OperationKind::Read, Tag::Scrub);
        operation.side = self.scrub.mirrored.then_some(Side::First);
        operation.buffers.push(buffer);
        self.scrub.in_flight = true;
        self.issue_scrub_read(operation, 0);
        true
    }

    fn scrub_found(&mut self, damage: ScrubDamage) {
        if damage.device_error.is_none() {
            self.status.corrupt_blocks += 1;
        }
        let status = &mut self.scrub.status;
        status.damaged_blocks += 1;
        if status.damage.len() < REMEMBERED_MAX {
            status.damage.push(damage);
        }
        self.notice(Notice::Scrub(damage));
    }

    /// A map page that the scrub waited for is there, or cannot be read: then what it leads to cannot be looked at.
    pub(super) fn scrub_page_came(&mut self, page: PageRef, result: Result<(), RequestError>) {
        self.scrub.waits_for_page = false;
        let Err(error) = result else { return };
        if !self.scrub.is_running() {
            return;
        }
        let expected = Expected::Page(page);
        self.scrub_found(ScrubDamage {
            view: self.scrub.view.expect("a page is about a view"),
            map_level: Some(page.identity.level),
            first: expected.first_block(),
            address: page.address,
            device_error: (error == RequestError::Io).then_some(DeviceError::Os(EIO)),
        });
        let at = self.scrub.status.position;
        let pages = leaves_of(page.identity.level);
        self.scrub.status.position = ScrubPosition {
            leaf: (at.leaf / pages + 1) * pages,
            pages_read: false,
            slot: 0,
            ..at
        };
    }
}
