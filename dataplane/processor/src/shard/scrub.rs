//! Scrubbing: every block that is in use, live or of a snapshot, is read and compared with its checksum, beside the I/O
//! and at a limited rate.
//!
//! The walk goes over the volumes, the views of each (snapshots, oldest first, then the live map) and the leaves of each
//! view. What a view shares with the one before was read there and is passed by. Map pages on the way are read from the
//! device too, once a checkpoint has written them. One read is in flight at a time; a turn looks at a few leaves.
//!
//! What changes while it runs needs no care: what is written behind the cursor is newer than the scrub, what is freed
//! while it is being read is not used again before the read has ended (I5).

use stillpoint_ondisk::crc32c;
use stillpoint_ondisk::map_page::{ENTRIES, MapEntry, MapPage, MapPageIdentity};

use super::read::push_transfer;
use super::reclaim::{entry_at, leaves_of};
use super::{Shard, Tag, only_buffer};
use crate::BLOCK_BYTES;
use crate::command::{Notice, ScrubDamage, ScrubState, ScrubStatus};
use crate::ids::{DeviceAddress, ShareBlock, VolumeId};
use crate::intermediate_snapshot::IntermediateSnapshot;
use crate::map::{MapError, PageRef, Root};
use crate::ports::{BufferPool, DeviceError, LogTail, Operation, OperationKind};
use crate::request::{RequestError, View};
use crate::virtual_volume::VirtualVolume;

/// Leaves or subtrees looked at per turn.
const STEPS_PER_TURN: usize = 8;
/// Blocks of one read at most (256 KiB): short enough to stay out of the way.
const READ_BLOCKS_MAX: usize = 64;
/// Damaged blocks that are remembered; all are counted and told.
pub const REMEMBERED_MAX: usize = 32;

/// Where the scrub is: the next block to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    volume: u32,
    /// Epoch of the snapshot, the highest for the live map.
    epoch: u32,
    leaf: u64,
    /// The pages that lead to this leaf were read.
    pages_read: bool,
    slot: usize,
}

const LIVE: u32 = u32::MAX;
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
    rate_bytes_per_s: u64,
    /// Not before this time, by the monotonic clock.
    next_ns: u64,
    position: Position,
    /// What is being read, in the order of the buffer; empty if nothing is.
    expected: Vec<Expected>,
    view: Option<View>,
    /// Where the scrub goes on when the read has ended.
    then: Position,
    /// A read of several blocks failed: so many are read one by one now.
    singly: usize,
    waits_for_page: bool,
}

impl Scrub {
    pub(super) fn status(&self) -> ScrubStatus {
        self.status.clone()
    }

    fn is_running(&self) -> bool {
        self.status.state == ScrubState::Running
    }

    fn is_waiting(&self) -> bool {
        self.waits_for_page || !self.expected.is_empty()
    }

    /// Whether the next step waits for nothing but a turn.
    pub(super) fn is_ready(&self, now_ns: u64) -> bool {
        self.is_running() && !self.is_waiting() && self.next_ns <= now_ns
    }

    /// When the next step may be taken, if it waits for nothing else.
    pub(super) fn next_ns(&self) -> Option<u64> {
        (self.is_running() && !self.is_waiting()).then_some(self.next_ns)
    }
}

/// What a look at the position came to.
enum Look {
    /// Nothing to read up to here.
    Pass(Position),
    /// These are to be read; then the scrub goes on there.
    Read(View, Position),
    /// Everything was looked at.
    End,
}

impl<T: LogTail> Shard<T> {
    /// Begins a scrub, from the start, whatever one that is running has done.
    pub(super) fn start_scrub(&mut self, rate_bytes_per_s: u64) {
        let scrub = &mut self.scrub;
        scrub.status = ScrubStatus {
            state: ScrubState::Running,
            started_ns: self.now.wall_ns,
            ..ScrubStatus::default()
        };
        scrub.rate_bytes_per_s = rate_bytes_per_s.max(1);
        scrub.next_ns = self.now.monotonic_ns;
        scrub.position = Position::default();
        scrub.then = Position::default();
        scrub.singly = 0;
        self.progress = true;
    }

    /// Ends a scrub that is running; a read that is in flight still counts for nothing.
    pub(super) fn stop_scrub(&mut self) {
        if self.scrub.is_running() {
            self.scrub_ends(ScrubState::Stopped);
        }
    }

    fn scrub_ends(&mut self, state: ScrubState) {
        self.scrub.status.state = state;
        self.scrub.status.ended_ns = self.now.wall_ns;
        self.progress = true;
    }

    pub(super) fn drive_scrub(&mut self, buffers: &mut impl BufferPool) {
        for _ in 0..STEPS_PER_TURN {
            if !self.scrub.is_ready(self.now.monotonic_ns) {
                return;
            }
            self.progress = true;
            match self.look() {
                Ok(Look::Pass(position)) => self.scrub.position = position,
                Ok(Look::End) => self.scrub_ends(ScrubState::Done),
                Ok(Look::Read(view, then)) => {
                    if !self.issue_scrub(view, then, buffers) {
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

    /// What is at the position; fills `expected` with what is to be read.
    fn look(&mut self) -> Result<Look, MapError> {
        let at = self.scrub.position;
        let live = |volume: &&VirtualVolume| !volume.with_snapshots;
        let Some(volume) = self
            .volumes
            .range(VolumeId(at.volume)..)
            .map(|(_, v)| v)
            .find(live)
        else {
            return Ok(Look::End);
        };
        let at = if volume.id.0 == at.volume {
            at
        } else {
            Position::default()
        };
        let mut chain = volume.snapshots.iter().filter(|snapshot| !snapshot.deleting);
        let before = chain
            .clone()
            .take_while(|snapshot| snapshot.copy.epoch.0 < at.epoch)
            .last();
        let found = chain.find(|snapshot| snapshot.copy.epoch.0 >= at.epoch);
        let (root, epoch, snapshot) = match found {
            Some(found) => (found.copy.root, found.copy.epoch.0, Some(found.snapshot)),
            None if volume.deleting => (Root::default(), LIVE, None),
            None => (volume.root, LIVE, None),
        };
        let view = View {
            volume: volume.id,
            snapshot,
        };
        let start = Position {
            volume: volume.id.0,
            epoch,
            ..Position::default()
        };
        if at.volume != volume.id.0 || at.epoch != epoch {
            // Where the scrub was is gone, or at its end: the next view begins.
            return Ok(Look::Pass(start));
        }
        if root.entry.address() == 0 || at.leaf >= leaves_of(root.level) {
            let next = match (epoch.checked_add(1), volume.id.0.checked_add(1)) {
                (Some(epoch), _) => Position { epoch, ..start },
                (None, Some(volume)) => Position {
                    volume,
                    ..Position::default()
                },
                (None, None) => return Ok(Look::End),
            };
            return Ok(Look::Pass(next));
        }
        let before = before.or_else(|| self.origin_looked_at(volume));
        let before = before.map(|snapshot| snapshot.copy.root);
        let family = volume.family;
        self.look_at_leaf(view, family, root, before, at)
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
        view: View,
        family: VolumeId,
        root: Root,
        before: Option<Root>,
        at: Position,
    ) -> Result<Look, MapError> {
        let (mut level, mut entry) = (root.level, root.entry);
        self.scrub.expected.clear();
        loop {
            let index = at.leaf / leaves_of(level);
            let end = Position {
                leaf: (index + 1) * leaves_of(level),
                pages_read: false,
                slot: 0,
                ..at
            };
            let other = entry_at(&mut self.cache, family, before.as_ref(), level, index);
            let other = other.inspect_err(|_| self.scrub.expected.clear())?;
            if entry.address() == 0 || other.is_some_and(|other| other.address() == entry.address()) {
                return Ok(self.pass_or_read(view, end));
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
                    let then = Position {
                        pages_read: true,
                        ..at
                    };
                    return Ok(Look::Read(view, then));
                }
                let slot = self.expect_blocks(&entries, others.as_ref(), at);
                let rest = Position {
                    pages_read: true,
                    slot,
                    ..at
                };
                let then = if slot == ENTRIES { end } else { rest };
                return Ok(self.pass_or_read(view, then));
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
        at: Position,
    ) -> usize {
        let scrub = &mut self.scrub;
        let blocks_max = if scrub.singly > 0 { 1 } else { READ_BLOCKS_MAX };
        for (slot, entry) in entries.iter().enumerate().skip(at.slot) {
            if entry.address() == 0 || others.is_some_and(|others| others[slot].address() == entry.address())
            {
                continue;
            }
            if scrub.expected.len() >= blocks_max {
                return slot;
            }
            scrub.expected.push(Expected::Block {
                address: DeviceAddress(entry.address()),
                crc32c: entry.check.get(),
                block: ShareBlock(at.leaf * ENTRIES as u64 + slot as u64),
            });
        }
        ENTRIES
    }

    fn pass_or_read(&self, view: View, then: Position) -> Look {
        if self.scrub.expected.is_empty() {
            Look::Pass(then)
        } else {
            Look::Read(view, then)
        }
    }

    /// Reads what is expected; false if there is no buffer now.
    fn issue_scrub(&mut self, view: View, then: Position, buffers: &mut impl BufferPool) -> bool {
        let count = self.scrub.expected.len();
        let Some(buffer) = buffers.take(count * BLOCK_BYTES) else {
            self.scrub.expected.clear();
            self.short_of_buffers = true;
            return false;
        };
        let mut operation = self.operation(OperationKind::Read, Tag::Scrub);
        operation.buffers.push(buffer);
        let mut start = 0;
        while start < count {
            let first = self.scrub.expected[start].address();
            let follows = |&i: &usize| self.scrub.expected[i].address() == first.plus((i - start) as u64);
            let end = start + 1 + (start + 1..count).take_while(follows).count();
            push_transfer(
                &mut operation,
                first,
                0,
                start * BLOCK_BYTES,
                (end - start) * BLOCK_BYTES,
            );
            start = end;
        }
        let scrub = &mut self.scrub;
        scrub.view = Some(view);
        scrub.then = then;
        let cost_ns = (count * BLOCK_BYTES) as u64 * 1_000_000_000 / scrub.rate_bytes_per_s;
        scrub.next_ns = scrub.next_ns.max(self.now.monotonic_ns) + cost_ns;
        self.issue(operation);
        true
    }
}

impl<T: LogTail> Shard<T> {
    /// What was read is compared; then the scrub goes on.
    pub(super) fn scrub_read_done(&mut self, operation: &mut Operation, buffers: &mut impl BufferPool) {
        let buffer = only_buffer(operation);
        let expected = core::mem::take(&mut self.scrub.expected);
        if self.scrub.is_running() {
            let blocks = matches!(expected[0], Expected::Block { .. });
            if operation.result.is_err() && expected.len() > 1 && blocks {
                // Which of them was it?
                self.scrub.singly = expected.len();
            } else {
                self.compare(&expected, operation.result.err(), buffer.bytes());
                self.scrub.singly = self.scrub.singly.saturating_sub(expected.len());
                self.scrub.position = self.scrub.then;
            }
        }
        buffers.give(buffer);
        // The memory is used again.
        self.scrub.expected = expected;
        self.scrub.expected.clear();
    }

    fn compare(&mut self, expected: &[Expected], failed: Option<DeviceError>, bytes: &[u8]) {
        let view = self.scrub.view.expect("a read is about a view");
        for (expected, bytes) in expected.iter().zip(bytes.chunks_exact(BLOCK_BYTES)) {
            self.scrub.status.checked_blocks += 1;
            let sound = match expected {
                Expected::Block { crc32c: wanted, .. } => crc32c(bytes) == *wanted,
                Expected::Page(page) => MapPage::parse(bytes, self.layout.pool, &page.identity).is_ok(),
            };
            if failed.is_some() || !sound {
                self.scrub_found(ScrubDamage {
                    view,
                    map_level: expected.map_level(),
                    first: expected.first_block(),
                    address: expected.address(),
                    device_error: failed,
                });
            }
        }
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
        let at = self.scrub.position;
        let view = View {
            volume: VolumeId(at.volume),
            snapshot: self.volumes.get(&VolumeId(at.volume)).and_then(|volume| {
                let mut snapshots = volume.snapshots.iter();
                snapshots
                    .find(|found| found.copy.epoch.0 == at.epoch)
                    .map(|found| found.snapshot)
            }),
        };
        let expected = Expected::Page(page);
        self.scrub_found(ScrubDamage {
            view,
            map_level: Some(page.identity.level),
            first: expected.first_block(),
            address: page.address,
            device_error: (error == RequestError::Io).then_some(DeviceError::Os(EIO)),
        });
        let pages = leaves_of(page.identity.level);
        self.scrub.position = Position {
            leaf: (at.leaf / pages + 1) * pages,
            pages_read: false,
            slot: 0,
            ..at
        };
    }
}
