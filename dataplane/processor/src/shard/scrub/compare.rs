//! What a scrub has read is compared with what the map says; of a mirror, both sides, and what one has damaged is written
//! to it from the other.
//!
//! ```text
//! read ─┬─ of no mirror, or one side is out: compare
//!       └─ of side s: read the other side, into the second half of the buffer
//!                     ─> compare both ─> repair First ─> repair Second ─> go on
//! ```

use stillpoint_ondisk::crc32c;
use stillpoint_ondisk::map_page::MapPage;

use super::super::read::push_transfer;
use super::super::repair::{Look, Place, places_of, push_block};
use super::super::{Shard, Tag, only_buffer};
use super::Expected;
use crate::BLOCK_BYTES;
use crate::command::ScrubDamage;
use crate::marks::{Mark, mark};
use crate::ports::{Buffer, BufferPool, DeviceError, LogTail, Operation, Side};

impl<T: LogTail> Shard<T> {
    /// Reads what is expected into the operation's buffer, from this block of it on.
    pub(super) fn issue_scrub_read(&mut self, mut operation: Box<Operation>, into: usize) {
        let expected = &self.scrub.expected;
        let count = expected.len();
        let mut start = 0;
        while start < count {
            let first = expected[start].address();
            let follows = |&i: &usize| expected[i].address() == first.plus((i - start) as u64);
            let end = start + 1 + (start + 1..count).take_while(follows).count();
            let (offset, length) = ((into + start) * BLOCK_BYTES, (end - start) * BLOCK_BYTES);
            push_transfer(&mut operation, first, 0, offset, length);
            start = end;
        }
        let scrub = &mut self.scrub;
        let cost_ns =
            (count * BLOCK_BYTES) as u128 * 1_000_000_000 / u128::from(scrub.status.rate_bytes_per_s);
        scrub.next_ns = scrub.next_ns.max(self.now.monotonic_ns) + cost_ns as u64;
        self.issue(operation);
    }

    /// What was read is compared; then the scrub goes on.
    pub(in crate::shard) fn scrub_read_done(
        &mut self,
        look: Look,
        operation: &mut Operation,
        buffers: &mut impl BufferPool,
    ) {
        let buffer = only_buffer(operation);
        if self.scrub.forget {
            return self.scrub_goes_on(buffer, buffers);
        }
        let expected = &self.scrub.expected;
        let blocks = matches!(expected[0], Expected::Block { .. });
        let failed = operation.result.is_err() || !operation.failures.is_empty();
        if failed && expected.len() > 1 && blocks {
            // Which of them was it?
            self.scrub.singly = expected.len();
            return self.scrub_goes_on(buffer, buffers);
        }
        if look.asked().is_some() {
            self.compare_sides(look, operation, buffer.bytes());
            self.scrub_looked();
            return self.scrub_repairs(look, buffer, buffers);
        }
        let was_mirrored = core::mem::replace(&mut self.scrub.mirrored, operation.side.is_some());
        if let Some(again) = look.again(operation) {
            if was_mirrored {
                let answered = places_of(operation).map(|(_, failed)| !failed);
                self.scrub.of_asked.clear();
                self.scrub.of_asked.extend(answered);
                mark(Mark::ScrubOtherSide);
                let mut second = self.operation_of(operation.kind, Tag::Scrub, again);
                second.side = again.asked().map(Side::other);
                second.buffers.push(buffer);
                return self.issue_scrub_read(second, self.scrub.expected.len());
            }
            // There is another side, and no room for it in the buffer: once more, with room.
            return self.scrub_goes_on(buffer, buffers);
        }
        self.compare(operation.result.err(), buffer.bytes());
        self.scrub_looked();
        self.scrub_goes_on(buffer, buffers);
    }

    fn scrub_looked(&mut self) {
        let scrub = &mut self.scrub;
        scrub.singly = scrub.singly.saturating_sub(scrub.expected.len());
        scrub.status.position = scrub.then;
    }

    fn scrub_goes_on(&mut self, buffer: Buffer, buffers: &mut impl BufferPool) {
        buffers.give(buffer);
        let scrub = &mut self.scrub;
        (scrub.in_flight, scrub.forget) = (false, false);
        scrub.expected.clear();
        scrub.to_repair.iter_mut().for_each(Vec::clear);
        self.progress = true;
    }

    fn is_sound(&self, expected: &Expected, bytes: &[u8]) -> bool {
        match expected {
            Expected::Block { crc32c: wanted, .. } => crc32c(bytes) == *wanted,
            Expected::Page(page) => MapPage::parse(bytes, self.layout.pool, &page.identity).is_ok(),
        }
    }

    fn compare(&mut self, failed: Option<DeviceError>, bytes: &[u8]) {
        let expected = core::mem::take(&mut self.scrub.expected);
        for (expected, bytes) in expected.iter().zip(bytes.chunks_exact(BLOCK_BYTES)) {
            self.scrub.status.checked_blocks += 1;
            if failed.is_some() || !self.is_sound(expected, bytes) {
                self.scrub_found_at(expected, failed);
            }
        }
        self.scrub.expected = expected;
    }

    fn scrub_found_at(&mut self, expected: &Expected, device_error: Option<DeviceError>) {
        self.scrub_found(ScrubDamage {
            view: self.scrub.view.expect("a read is about a view"),
            map_level: expected.map_level(),
            first: expected.first_block(),
            address: expected.address(),
            device_error,
        });
    }

    /// Compares what both sides have; notes what is to be repaired. A side that cannot read a block has it damaged.
    fn compare_sides(&mut self, look: Look, second: &Operation, bytes: &[u8]) {
        let asked = look.asked().expect("a second look");
        let other = asked.other();
        // The other side may have gone out meanwhile: then the mirror read the first once more, or nothing.
        let both = second.result.is_ok() && second.side == Some(other);
        let of_other: Vec<bool> = places_of(second).map(|(_, failed)| both && !failed).collect();
        let of_asked = core::mem::take(&mut self.scrub.of_asked);
        let expected = core::mem::take(&mut self.scrub.expected);
        let count = expected.len();
        self.scrub.status.checked_blocks += count as u64;
        for (side, read) in [(asked, &of_asked), (other, &of_other)] {
            let read = read.iter().filter(|&&read| read).count() as u64;
            self.scrub.status.sides[side.index()].read_blocks += read;
        }
        let block = |number: usize| &bytes[number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES];
        for (number, expected) in expected.iter().enumerate() {
            let first_sound = self.is_sound(expected, block(number));
            let second_sound = second.result.is_ok() && self.is_sound(expected, block(count + number));
            let asked_damaged = !(of_asked[number] && first_sound);
            let other_damaged = both && !(of_other[number] && second_sound);
            if !first_sound && !second_sound {
                self.scrub.not_repaired(asked, 1);
                if both {
                    self.scrub.not_repaired(other, 1);
                }
                self.scrub_found_at(expected, None);
                continue;
            }
            let from = if first_sound { number } else { count + number };
            for (side, damaged) in [(asked, asked_damaged), (other, other_damaged)] {
                if damaged {
                    self.scrub.to_repair[side.index()].push((number, from));
                }
            }
        }
        self.scrub.expected = expected;
        self.scrub.of_asked = of_asked;
    }

    /// Writes what a side has damaged from where it is sound in the buffer.
    fn scrub_repairs(&mut self, look: Look, buffer: Buffer, buffers: &mut impl BufferPool) {
        let found = Side::BOTH
            .into_iter()
            .find(|side| !self.scrub.to_repair[side.index()].is_empty());
        let Some(side) = found else {
            return self.scrub_goes_on(buffer, buffers);
        };
        let mut repair = self.repair(Tag::ScrubRepair, look.at(side));
        let scrub = &mut self.scrub;
        for (number, from) in scrub.to_repair[side.index()].drain(..) {
            push_block(
                &mut repair,
                Place {
                    address: scrub.expected[number].address(),
                    buffer: 0,
                    offset_bytes: (from * BLOCK_BYTES) as u32,
                },
            );
        }
        repair.buffers.push(buffer);
        self.issue(repair);
    }

    /// A repair has ended: the other side's follows, or the scrub goes on.
    pub(in crate::shard) fn scrub_repair_done(
        &mut self,
        look: Look,
        operation: &mut Operation,
        buffers: &mut impl BufferPool,
    ) {
        let buffer = only_buffer(operation);
        self.repaired(look, operation);
        self.scrub_repairs(look, buffer, buffers);
    }
}
