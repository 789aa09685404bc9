//! A history of reads, writes and snapshots, and whether it may have happened.
//!
//! A second oracle beside [`crate::model`], that shares no code with it. Every write of a run has a value of its own,
//! stamped into all of its blocks ([`crate::stamp`]), which names its client and its place in what that client wrote.
//! The history keeps when each request was sent and when its answer was there, by the simulated clock; at the end
//! two questions are asked of it:
//!
//! - Is every 4 KiB block a register ([`registers`])? That is: can each read and write be given one instant between
//!   its sending and its answer, so that each read shows the write before it. A snapshot counts as a read of all
//!   blocks.
//! - Is every snapshot a consistent prefix ([`prefix`])? That is: one instant fits all of its blocks at once.

pub mod prefix;
pub mod registers;

use std::collections::BTreeMap;
use std::fmt;

use crate::model::Broken;
use crate::stamp::Shown;
use prefix::Bounds;
use registers::{Register, Span};

/// When something was sent or heard: `tick` orders all of it, `ns` is what the simulated clock said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Counts every sending and hearing of all clients.
    pub tick: u64,
    /// Simulated time.
    pub ns: u64,
}

impl Moment {
    /// Before everything.
    pub const START: Self = Self { tick: 0, ns: 0 };
    /// After everything.
    pub const NEVER: Self = Self {
        tick: u64::MAX,
        ns: u64::MAX,
    };
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NEVER {
            return f.write_str("never");
        }
        write!(f, "{} ns (tick {})", self.ns, self.tick)
    }
}

/// A block of a volume.
pub type Place = (u32, u64);

/// Who wrote a value: a client, and how many writes it had sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// The client.
    pub client: u32,
    /// Its writes, counted from 0.
    pub sequence: u32,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    author: Author,
    span: Span,
    acknowledged: bool,
}

#[derive(Debug, Default)]
struct Block {
    /// Values that were written to it.
    written: Vec<Shown>,
    /// What reads showed, and when.
    read: Vec<(Shown, Span)>,
}

#[derive(Debug)]
struct Taken {
    span: Span,
    content: BTreeMap<Place, Shown>,
}

/// What a history amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Reads and writes of single blocks that were given an instant.
    pub block_operations: u64,
    /// Blocks with at least one write.
    pub registers: u64,
    /// Snapshots that were looked at.
    pub snapshots: u64,
}

/// All that clients sent and heard.
#[derive(Debug, Default)]
pub struct History {
    writes: BTreeMap<Shown, Write>,
    sequences: BTreeMap<u32, u32>,
    blocks: BTreeMap<Place, Block>,
    snapshots: BTreeMap<u64, Taken>,
}

impl History {
    /// A client sends `value` to `blocks` of a volume.
    pub fn write_sent(
        &mut self,
        value: Shown,
        client: u32,
        volume: u32,
        blocks: std::ops::Range<u64>,
        at: Moment,
    ) {
        let sequence = self.sequences.entry(client).or_default();
        let write = Write {
            author: Author {
                client,
                sequence: *sequence,
            },
            span: Span {
                sent: at,
                ended: Moment::NEVER,
            },
            acknowledged: false,
        };
        *sequence += 1;
        let before = self.writes.insert(value, write);
        assert!(before.is_none() && value != 0, "values are unique");
        for block in blocks {
            self.blocks
                .entry((volume, block))
                .or_default()
                .written
                .push(value);
        }
    }

    /// A write was answered, or failed for good: it takes no effect after this.
    pub fn write_ended(&mut self, value: Shown, acknowledged: bool, at: Moment) {
        let write = self.writes.get_mut(&value).expect("it was sent");
        write.span.ended = at;
        write.acknowledged = acknowledged;
    }

    /// Everything that was sent and not answered ends here, one way or the other.
    pub fn crash(&mut self, at: Moment) {
        for write in self.writes.values_mut() {
            if write.span.ended == Moment::NEVER {
                write.span.ended = at;
            }
        }
        for taken in self.snapshots.values_mut() {
            if taken.span.ended == Moment::NEVER {
                taken.span.ended = at;
            }
        }
    }

    /// A read of consecutive blocks from `first` on was answered with these values.
    pub fn read(&mut self, volume: u32, first: u64, values: &[Shown], sent: Moment, ended: Moment) {
        for (block, &value) in (first..).zip(values) {
            let block = self.blocks.entry((volume, block)).or_default();
            block.read.push((value, Span { sent, ended }));
        }
    }

    /// A snapshot is asked for.
    pub fn snapshot_asked(&mut self, snapshot: u64, at: Moment) {
        let taken = Taken {
            span: Span {
                sent: at,
                ended: Moment::NEVER,
            },
            content: BTreeMap::new(),
        };
        self.snapshots.insert(snapshot, taken);
    }

    /// The command came back.
    pub fn snapshot_answered(&mut self, snapshot: u64, at: Moment) {
        self.snapshots
            .get_mut(&snapshot)
            .expect("it was asked for")
            .span
            .ended = at;
    }

    /// A snapshot was read.
    ///
    /// # Errors
    /// It showed something else before.
    pub fn snapshot_read(
        &mut self,
        snapshot: u64,
        volume: u32,
        first: u64,
        values: &[Shown],
    ) -> Result<(), Broken> {
        let taken = self.snapshots.get_mut(&snapshot).expect("it was asked for");
        for (block, &value) in (first..).zip(values) {
            let before = *taken.content.entry((volume, block)).or_insert(value);
            if before != value {
                return Err(Broken(format!(
                    "snapshot {snapshot} shows value {value} in block {block} of volume {volume}, and showed {before}"
                )));
            }
        }
        Ok(())
    }

    /// Asks both questions.
    ///
    /// # Errors
    /// What cannot have happened.
    pub fn check(&self) -> Result<Figures, Broken> {
        let mut figures = Figures::default();
        let mut registers = BTreeMap::new();
        for (&place, block) in &self.blocks {
            let register = self.register(place, block)?;
            register.check().map_err(|why| {
                let (volume, number) = place;
                Broken(format!(
                    "block {number} of volume {volume} is no register: {why}{}",
                    self.describe(block)
                ))
            })?;
            figures.block_operations += register.operations();
            figures.registers += u64::from(!block.written.is_empty());
            registers.insert(place, register);
        }
        for (id, taken) in &self.snapshots {
            if taken.content.is_empty() {
                continue;
            }
            let mut bounds = Bounds::new(taken.span);
            for (place, &value) in &taken.content {
                if let Some(register) = registers.get(place) {
                    bounds.narrow(*place, register, value);
                }
            }
            bounds
                .check()
                .map_err(|why| Broken(format!("snapshot {id} is no consistent prefix: {why}")))?;
            figures.snapshots += 1;
        }
        Ok(figures)
    }

    /// One block's part of the history. A snapshot is a read of all its blocks.
    fn register(&self, place: Place, block: &Block) -> Result<Register, Broken> {
        let mut register = Register::default();
        for &value in &block.written {
            let write = &self.writes[&value];
            register.write(value, write.span, write.acknowledged);
        }
        let shown = self
            .snapshots
            .values()
            .filter_map(|taken| Some((*taken.content.get(&place)?, taken.span)));
        for (value, span) in block.read.iter().copied().chain(shown) {
            register.read(value, span).map_err(|why| {
                let (volume, number) = place;
                Broken(format!("block {number} of volume {volume}: {why}"))
            })?;
        }
        register.finish();
        Ok(register)
    }

    fn describe(&self, block: &Block) -> String {
        let mut lines: Vec<(Moment, String)> = Vec::new();
        for value in &block.written {
            let Write {
                author,
                span,
                acknowledged,
            } = &self.writes[value];
            let text = format!(
                "write {value} (client {}, its {}.) until {}{}",
                author.client,
                author.sequence,
                span.ended,
                if *acknowledged { "" } else { ", not acknowledged" }
            );
            lines.push((span.sent, text));
        }
        for (value, span) in &block.read {
            lines.push((span.sent, format!("read of {value} until {}", span.ended)));
        }
        lines.sort();
        lines
            .iter()
            .map(|(at, text)| format!("\n    {at}: {text}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tick: u64) -> Moment {
        Moment { tick, ns: tick * 10 }
    }

    /// Two clients write to two blocks one after the other; what a snapshot in between shows.
    fn snapshot_of(first: Shown, second: Shown) -> Result<Figures, Broken> {
        let mut history = History::default();
        history.write_sent(1, 7, 1, 0..1, at(1));
        history.snapshot_asked(5, at(2));
        history.write_ended(1, true, at(3));
        history.write_sent(2, 8, 1, 1..2, at(4));
        history.write_ended(2, true, at(5));
        history.snapshot_answered(5, at(6));
        history
            .snapshot_read(5, 1, 0, &[first, second])
            .expect("the first look");
        history.check()
    }

    #[test]
    fn a_snapshot_shows_no_effect_without_its_cause() {
        for (first, second) in [(0, 0), (1, 0), (1, 2)] {
            let figures = snapshot_of(first, second).expect("a prefix");
            assert_eq!((figures.snapshots, figures.registers), (1, 2));
        }
        let broken = snapshot_of(0, 2).expect_err("the second write was sent after the first had ended");
        assert!(broken.0.contains("no consistent prefix"), "{}", broken.0);
    }

    #[test]
    fn a_snapshot_holds_what_came_before_it_and_nothing_that_came_after() {
        let mut history = History::default();
        history.write_sent(1, 7, 1, 0..1, at(1));
        history.write_ended(1, true, at(2));
        history.snapshot_asked(5, at(3));
        history.snapshot_answered(5, at(4));
        history.write_sent(2, 7, 1, 0..1, at(5));
        history.write_ended(2, true, at(6));
        for (shown, fits) in [(0, false), (1, true), (2, false)] {
            history.snapshots.get_mut(&5).expect("asked").content.clear();
            history.snapshot_read(5, 1, 0, &[shown]).expect("the first look");
            assert_eq!(history.check().is_ok(), fits, "{shown}");
        }
        assert!(
            history.snapshot_read(5, 1, 0, &[1]).is_err(),
            "it showed 2 before"
        );
    }

    #[test]
    fn a_write_that_a_crash_caught_is_there_or_not_but_does_not_come_later() {
        let history = |after: &[Shown]| {
            let mut history = History::default();
            history.write_sent(1, 7, 1, 0..1, at(1));
            history.crash(at(2));
            for (tick, &value) in (3..).step_by(2).zip(after) {
                history.read(1, 0, &[value], at(tick), at(tick + 1));
            }
            history.check()
        };
        assert!(history(&[0, 0]).is_ok());
        assert!(history(&[1, 1]).is_ok());
        assert!(history(&[0, 1]).is_err());
        assert!(history(&[1, 0]).is_err());
    }
}
