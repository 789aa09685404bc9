//! The second look: what one side of a mirror has damaged is asked of the other side, and written back from there.
//!
//! | what came back | then |
//! |---|---|
//! | sound | answered |
//! | damaged, of a side that has another one (`Operation::side`) | the damaged blocks are read from the other side |
//! | sound, of the other side, for the one that was asked failed (`Operation::failures`) | answered, and written to that one |
//! | damaged, of the other side in the same way | read once more from the one that failed, each block for itself |
//! | an error of both sides | read once more, each block for itself |
//! | a second look: sound | answered, and written to the side that was asked first |
//! | a second look: damaged | `Corrupt`, as without a mirror; what was sound of it is written back all the same |
//!
//! Nothing is written to a side that did not match its checksum: the mirror below, which knows no checksums, leaves
//! repairs to the shard. Second looks ask for each block on its own, so that one that cannot be read takes no other with it.
//!
//! A second look and a repair are about a place that may have been freed since the first look. They count among the reads
//! in flight where the first look counted, also if a checkpoint became durable in between: the place is not used
//! again before they have come back (I5), so that a repair never hits what was written there later.
//!
//! A repair has memory of its own. If there is none, or [`REPAIRS_MAX`] are under way, the block stays damaged on its side
//! until it is read again.

use super::read::push_transfer;
use super::{Shard, Tag, give_all};
use crate::BLOCK_BYTES;
use crate::command::Notice;
use crate::ids::DeviceAddress;
use crate::marks::{Mark, mark};
use crate::ports::{BufferPool, DeviceError, LogTail, Operation, OperationKind, Side, Transfer};

/// Repairs of what requests found under way at most: each holds memory that requests need too.
pub(super) const REPAIRS_MAX: usize = 8;

/// Where a read counts, and which look it is; packed into [`Operation::tag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    half: usize,
    asked: Option<Side>,
    /// A first look: both sides failed, and each block is read for itself. A second look: what is damaged after it came from
    /// this side already, and is asked of the other one.
    more: bool,
}

impl Look {
    /// A first look.
    pub(super) fn first(half: usize) -> Self {
        Self {
            half,
            asked: None,
            more: false,
        }
    }

    /// The half of `reads_in_flight` in which it counts.
    pub(super) fn half(self) -> usize {
        self.half
    }

    /// A second look or a repair: the side that was asked first, which had it damaged.
    pub(super) fn asked(self) -> Option<Side> {
        self.asked
    }

    /// The same about this side.
    pub(super) fn at(self, side: Side) -> Self {
        Self {
            asked: Some(side),
            ..self
        }
    }

    /// The second look of a scrub, which reads the other side whatever came; `None` if this was one, or there is no other.
    pub(super) fn again(self, came: &Operation) -> Option<Self> {
        if self.asked.is_some() || came.result.is_err() {
            return None;
        }
        came.side.map(|side| self.at(side))
    }

    /// Four bits.
    pub(super) fn bits(self) -> u64 {
        let asked = match self.asked {
            None => 0,
            Some(Side::First) => 1,
            Some(Side::Second) => 2,
        };
        u64::from(self.more) << 3 | asked << 1 | self.half as u64
    }

    pub(super) fn of_bits(bits: u64) -> Self {
        Self {
            half: (bits & 1) as usize,
            asked: match bits >> 1 & 3 {
                0 => None,
                1 => Some(Side::First),
                2 => Some(Side::Second),
                other => panic!("an operation came back with the unknown look {other}"),
            },
            more: bits >> 3 & 1 == 1,
        }
    }
}

/// What a look of a request came to.
#[derive(Debug)]
pub(super) enum Judged {
    /// All blocks are what the map says.
    Sound,
    /// This has to be read; it has the buffers.
    Again(Box<Operation>),
    /// This block, if not more, is damaged on every side that there is.
    Damaged(DeviceAddress),
    /// It could not be read.
    Unreadable,
}

/// A block of an operation: where it lies, in which buffer, and at which byte of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: DeviceAddress,
    pub(super) buffer: u32,
    pub(super) offset_bytes: u32,
}

impl Place {
    /// Its content.
    pub(super) fn bytes(self, of: &Operation) -> &[u8] {
        let from = self.offset_bytes as usize;
        &of.buffers[self.buffer as usize].bytes()[from..from + BLOCK_BYTES]
    }
}

/// The repairs under way.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    in_flight: usize,
    /// What a second look found sound: memory that is used again.
    sound: Vec<Place>,
}

impl<T: LogTail> Shard<T> {
    /// A read of these blocks, each for itself, into the buffers that they came in; of the other side than the one that was
    /// asked, if one was.
    fn read_again(
        &mut self,
        tag: Tag,
        look: Look,
        came: &mut Operation,
        places: impl Fn(&Operation, &mut dyn FnMut(Place)),
    ) -> Judged {
        mark(Mark::SecondLook);
        let mut operation = self.operation_of(OperationKind::Read, tag, look);
        operation.side = look.asked.map(Side::other);
        places(came, &mut |place| push_alone(&mut operation, place));
        operation.buffers.append(&mut came.buffers);
        Judged::Again(operation)
    }

    /// A write to the side that was asked first; empty.
    pub(super) fn repair(&mut self, tag: Tag, look: Look) -> Box<Operation> {
        let mut operation = self.operation_of(OperationKind::Write, tag, look);
        operation.side = look.asked;
        operation
    }

    /// Looks through what came back of a request's read: `all` its blocks, or some of them if it is not the first look. What
    /// a side lacks and is sound here is written back to it, from memory of its own: the request's goes to its client.
    pub(super) fn judge<I: Iterator<Item = Place>>(
        &mut self,
        tag: Tag,
        look: Look,
        came: &mut Operation,
        buffers: &mut impl BufferPool,
        all: impl Fn() -> I,
        is_sound: impl Fn(Place, &Operation) -> bool,
    ) -> Judged {
        match look.asked {
            None => self.judge_first(tag, look, came, buffers, is_sound),
            Some(_) => self.judge_second(tag, look, came, buffers, all, is_sound),
        }
    }

    fn judge_first(
        &mut self,
        tag: Tag,
        look: Look,
        came: &mut Operation,
        buffers: &mut impl BufferPool,
        is_sound: impl Fn(Place, &Operation) -> bool,
    ) -> Judged {
        let Some(side) = came.side else {
            return judge_alone(came, is_sound);
        };
        if came.result.is_err() {
            let is_run = |transfer: &Transfer| transfer.length_bytes > BLOCK_BYTES as u64;
            if look.more || !came.transfers.iter().any(is_run) {
                return Judged::Unreadable;
            }
            let singly = Look { more: true, ..look };
            return self.read_again(tag, singly, came, |came, take| {
                places_of(came).for_each(|(place, _)| take(place));
            });
        }
        let mut sound = core::mem::take(&mut self.repairs.sound);
        // Damaged ones: of the side that was asked, of the other one because that failed.
        let (mut of_asked, mut of_other) = (false, false);
        for (place, failed) in places_of(came) {
            match (is_sound(place, came), failed) {
                (true, false) => {}
                (true, true) => sound.push(place),
                (false, false) => of_asked = true,
                (false, true) => of_other = true,
            }
        }
        self.copy_back(look.at(side), came, &sound, buffers);
        sound.clear();
        self.repairs.sound = sound;
        if !of_asked && !of_other {
            return Judged::Sound;
        }
        let again = Look {
            half: look.half,
            asked: Some(if of_asked { side } else { side.other() }),
            more: of_asked && of_other,
        };
        self.read_again(tag, again, came, |came, take| {
            let of_this = places_of(came).filter(|&(place, failed)| {
                // Those of the other side follow when these have come.
                failed != of_asked && !is_sound(place, came)
            });
            of_this.for_each(|(place, _)| take(place));
        })
    }

    fn judge_second<I: Iterator<Item = Place>>(
        &mut self,
        tag: Tag,
        look: Look,
        came: &mut Operation,
        buffers: &mut impl BufferPool,
        all: impl Fn() -> I,
        is_sound: impl Fn(Place, &Operation) -> bool,
    ) -> Judged {
        let mut sound = core::mem::take(&mut self.repairs.sound);
        let mut damaged = None;
        for (place, _) in places_of(came) {
            if came.result.is_ok() && is_sound(place, came) {
                sound.push(place);
            } else {
                damaged = damaged.or(Some(place.address));
            }
        }
        self.copy_back(look, came, &sound, buffers);
        sound.clear();
        self.repairs.sound = sound;
        let asked = look.asked.expect("a second look");
        if look.more && all().any(|place| !is_sound(place, came)) {
            let last = Look {
                asked: Some(asked.other()),
                more: false,
                ..look
            };
            return self.read_again(tag, last, came, |came, take| {
                let rest = all().filter(|&place| !is_sound(place, came));
                rest.for_each(take);
            });
        }
        damaged.map_or(Judged::Sound, Judged::Damaged)
    }

    fn copy_back(&mut self, look: Look, came: &Operation, sound: &[Place], buffers: &mut impl BufferPool) {
        let Some(first) = sound.first() else { return };
        let room = self.repairs.in_flight < REPAIRS_MAX;
        let buffer = room.then(|| buffers.take(sound.len() * BLOCK_BYTES)).flatten();
        let Some(mut buffer) = buffer else {
            mark(Mark::RepairNoBuffer);
            return self.not_repaired(look, first.address, sound.len() as u64, None);
        };
        let mut repair = self.repair(Tag::Repair, look);
        for (number, place) in sound.iter().enumerate() {
            let to = number * BLOCK_BYTES;
            buffer.bytes_mut()[to..to + BLOCK_BYTES].copy_from_slice(place.bytes(came));
            push_block(
                &mut repair,
                Place {
                    address: place.address,
                    buffer: 0,
                    offset_bytes: to as u32,
                },
            );
        }
        repair.buffers.push(buffer);
        self.repairs.in_flight += 1;
        self.issue(repair);
    }

    pub(super) fn repair_done(
        &mut self,
        look: Look,
        operation: &mut Operation,
        buffers: &mut impl BufferPool,
    ) {
        self.repairs.in_flight -= 1;
        give_all(operation, buffers);
        self.repaired(look, operation);
    }

    /// A repair came back: counts and tells what came of it.
    pub(super) fn repaired(&mut self, look: Look, operation: &Operation) {
        let transfers = &operation.transfers;
        let address = transfers
            .first()
            .map(address_of)
            .expect("a repair writes something");
        let bytes: u64 = transfers.iter().map(|transfer| transfer.length_bytes).sum();
        let blocks = bytes / BLOCK_BYTES as u64;
        match operation.result {
            Err(error) => self.not_repaired(look, address, blocks, Some(error)),
            Ok(()) => {
                mark(Mark::Repaired);
                let side = look.asked.expect("a repair is of a side");
                self.status.repaired_blocks += blocks;
                self.scrub.repaired(side, blocks);
                self.notice(Notice::Repaired {
                    address,
                    blocks,
                    side,
                });
            }
        }
    }

    fn not_repaired(&mut self, look: Look, address: DeviceAddress, blocks: u64, error: Option<DeviceError>) {
        let side = look.asked.expect("a repair is of a side");
        self.status.repair_failures += blocks;
        self.scrub.not_repaired(side, blocks);
        self.notice(Notice::NotRepaired {
            address,
            blocks,
            side,
            error,
        });
    }
}

fn address_of(transfer: &Transfer) -> DeviceAddress {
    DeviceAddress::new(transfer.device, transfer.offset_bytes / BLOCK_BYTES as u64)
}

/// What came back where there is no other side.
fn judge_alone(came: &Operation, is_sound: impl Fn(Place, &Operation) -> bool) -> Judged {
    if came.result.is_err() {
        return Judged::Unreadable;
    }
    let damaged = places_of(came).find(|&(place, _)| !is_sound(place, came));
    damaged.map_or(Judged::Sound, |(place, _)| Judged::Damaged(place.address))
}

/// The blocks of an operation whose transfers have one segment each; and whether the side that was asked failed them and
/// the other one answered.
pub(super) fn places_of(operation: &Operation) -> impl Iterator<Item = (Place, bool)> {
    (0..).zip(&operation.transfers).flat_map(|(number, transfer)| {
        let segment = &operation.segments[transfer.first_segment as usize];
        let blocks = transfer.length_bytes / BLOCK_BYTES as u64;
        let failed = operation.failures.iter().any(|&(failed, _)| failed == number);
        (0..blocks).map(move |block| {
            let place = Place {
                address: address_of(transfer).plus(block),
                buffer: segment.buffer,
                offset_bytes: segment.offset_bytes + block as u32 * BLOCK_BYTES as u32,
            };
            (place, failed)
        })
    })
}

/// Adds a block as a transfer of its own.
fn push_alone(operation: &mut Operation, place: Place) {
    push_transfer(
        operation,
        place.address,
        place.buffer,
        place.offset_bytes as usize,
        BLOCK_BYTES,
    );
}

/// Adds a block; it becomes part of the last transfer if it follows it on the device and in memory.
pub(super) fn push_block(operation: &mut Operation, place: Place) {
    let bytes = BLOCK_BYTES as u32;
    if let (Some(transfer), Some(segment)) = (operation.transfers.last_mut(), operation.segments.last_mut())
        && address_of(transfer).plus(transfer.length_bytes / BLOCK_BYTES as u64) == place.address
        && segment.buffer == place.buffer
        && segment.offset_bytes + segment.length_bytes == place.offset_bytes
    {
        transfer.length_bytes += u64::from(bytes);
        segment.length_bytes += bytes;
        return;
    }
    push_alone(operation, place);
}
