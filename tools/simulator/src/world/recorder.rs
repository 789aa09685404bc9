//! Runs whose load is whole blocks with a value of their own: what is kept of them, and what they do.

use stillpoint_processor::marks;

use super::looks::Look;
use super::operations::Does;
use super::{Checked, Coverage, State, World, broken};
use crate::history::{Figures, History, Moment};
use crate::model::{Range, Tick};
use crate::stamp::{SECTOR_BYTES, SECTORS_PER_BLOCK, Shown};

/// Blocks of an object.
const OBJECT_BLOCKS: u64 = 256;
/// Blocks at the start of an object that most requests are for.
const HOT_BLOCKS: u64 = 4;

/// The history so far, and when its ticks were.
#[derive(Debug)]
pub struct Recorder {
    history: History,
    /// Simulated time by tick.
    ns: Vec<u64>,
    /// Operations of clients that were done.
    operations: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            history: History::default(),
            ns: vec![0],
            operations: 0,
        }
    }
}

impl Recorder {
    /// The next tick is now.
    pub fn tick(&mut self, ns: u64) {
        self.ns.push(ns);
    }

    fn at(&self, tick: Tick) -> Moment {
        let ns = self.ns[tick as usize];
        Moment { tick, ns }
    }

    /// Everything that goes on ends.
    pub fn crash(&mut self, tick: Tick) {
        self.history.crash(self.at(tick));
    }

    /// A snapshot is asked for.
    pub fn snapshot_asked(&mut self, snapshot: u64, tick: Tick) {
        self.history.snapshot_asked(snapshot, self.at(tick));
    }

    /// The command came back.
    pub fn snapshot_answered(&mut self, snapshot: u64, tick: Tick) {
        self.history.snapshot_answered(snapshot, self.at(tick));
    }

    /// An operation of a client was done.
    pub fn done(&mut self) {
        self.operations += 1;
    }
}

impl World {
    /// Does something with the history, if one is kept.
    pub(super) fn record(&mut self, what: impl FnOnce(&mut Recorder)) {
        if let Some(recorder) = &mut self.recorder {
            what(recorder);
        }
    }

    /// A client sends a write.
    pub(super) fn write_sent(&mut self, number: Shown, client: usize, volume: u32, range: Range, sent: Tick) {
        let Some(recorder) = &mut self.recorder else {
            let target = self.volumes.get_mut(&volume).expect("volumes stay known");
            return target.model.write_sent(number, range);
        };
        let blocks = range.first / SECTORS_PER_BLOCK..(range.first + range.count) / SECTORS_PER_BLOCK;
        let sent = recorder.at(sent);
        recorder
            .history
            .write_sent(number, client as u32, volume, blocks, sent);
    }

    /// A write was answered, or takes no effect any more.
    pub(super) fn write_ended(&mut self, number: Shown, acknowledged: bool, durable: bool, tick: Tick) {
        self.writes.end(number, acknowledged, durable, tick);
        self.record(|recorder| {
            let at = recorder.at(tick);
            recorder.history.write_ended(number, acknowledged, at);
        });
    }

    /// Whole blocks were read from sector `first` on.
    pub(super) fn record_look(
        &mut self,
        look: Look,
        volume: u32,
        first: u64,
        bytes: &[u8],
        sent: Tick,
        ended: Tick,
    ) -> Checked {
        let block_bytes = SECTOR_BYTES * SECTORS_PER_BLOCK as usize;
        let mut values = Vec::with_capacity(bytes.len() / block_bytes);
        for (number, block) in (first / SECTORS_PER_BLOCK..).zip(bytes.chunks_exact(block_bytes)) {
            let model = &self.volumes[&volume].model;
            let mut value = None;
            for (sector, bytes) in (number * SECTORS_PER_BLOCK..).zip(block.chunks_exact(SECTOR_BYTES)) {
                let shown = model.shown(sector, bytes)?;
                if value.is_some_and(|value| value != shown) {
                    return broken(format!(
                        "block {number} of volume {volume} is a mixture of {value:?} and {shown}"
                    ));
                }
                value = Some(shown);
            }
            values.extend(value);
        }
        let recorder = self.recorder.as_mut().expect("a history is kept");
        let first = first / SECTORS_PER_BLOCK;
        match look {
            Look::Live | Look::Recovered(_) => {
                let (sent, ended) = (recorder.at(sent), recorder.at(ended));
                recorder.history.read(volume, first, &values, sent, ended);
                Ok(())
            }
            Look::Snapshot(id) | Look::First(id) => {
                recorder.history.snapshot_read(id, volume, first, &values)
            }
        }
    }

    /// One more operation of a client on whole blocks.
    pub(super) fn send_to_registers(&mut self, client: usize) -> bool {
        if self.random.percent(8) && self.send_snapshot_read(client) {
            return true;
        }
        let volumes = self.volumes.values();
        let usable = volumes.filter(|volume| volume.state == State::There);
        let usable: Vec<u32> = usable.map(|volume| volume.id).collect();
        if usable.is_empty() {
            return false;
        }
        let volume = *self.random.pick(&usable);
        let (offset, length) = self.range_of_registers(volume, None);
        let does = match self.random.below(100) {
            0..50 => Does::Write {
                number: self.writes.send(false, self.tick + 1),
                fua: self.random.percent(self.plan.fua_percent) && self.flushes(),
            },
            50..92 => Does::Read(Look::Live),
            92..98 if self.flushes() => Does::Flush,
            _ => Does::Cache,
        };
        self.send(Some(client), does, volume, None, offset, length);
        true
    }

    /// A range of whole blocks: mostly one of few, so that requests meet, and now and then over two objects.
    pub(super) fn range_of_registers(&mut self, volume: u32, size_bytes: Option<u64>) -> (u64, u64) {
        const BLOCK: u64 = SECTOR_BYTES as u64 * SECTORS_PER_BLOCK;
        let blocks = size_bytes.unwrap_or(self.volumes[&volume].size_bytes) / BLOCK;
        let object = self.random.below(blocks.div_ceil(OBJECT_BLOCKS)) * OBJECT_BLOCKS;
        let (first, count) = match self.random.below(100) {
            0..75 => (object + self.random.below(HOT_BLOCKS), self.random.between(1, 2)),
            75..85 => (
                object.saturating_sub(HOT_BLOCKS / 2),
                self.random.between(1, HOT_BLOCKS),
            ),
            85..97 => (
                object + self.random.below(OBJECT_BLOCKS),
                self.random.between(1, 16),
            ),
            _ => (object, self.random.between(1, OBJECT_BLOCKS + HOT_BLOCKS)),
        };
        let first = first.min(blocks - 1);
        (first * BLOCK, count.min(blocks - first) * BLOCK)
    }

    /// Whether the history so far may have happened.
    ///
    /// # Errors
    /// What cannot have happened.
    pub fn check_history(&mut self) -> Checked {
        let Some(recorder) = &self.recorder else {
            return Ok(());
        };
        let Figures {
            block_operations,
            registers,
            snapshots,
        } = recorder.history.check()?;
        let operations = recorder.operations;
        self.coverage.add("history: operations", operations);
        self.coverage
            .add("history: reads and writes of a block", block_operations);
        self.coverage.add("history: blocks that are registers", registers);
        self.coverage
            .add("history: snapshots that are prefixes", snapshots);
        Ok(())
    }

    /// Ends the run: what it came across.
    #[must_use]
    pub fn into_coverage(mut self) -> Coverage {
        self.coverage.add("operations", self.operations_sent);
        let counts = self.devices.counts();
        self.coverage.add("device reads", counts.reads);
        self.coverage.add("device writes", counts.writes);
        self.coverage.add("device flushes", counts.flushes);
        self.coverage
            .add("device operations that were made to fail", counts.failed);
        for (mark, count) in marks::take() {
            if count > 0 {
                self.coverage.add(mark.text(), count);
            }
        }
        self.coverage
    }
}
