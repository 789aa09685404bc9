//! Where the time of requests goes: a histogram for each stage of their way and each kind of work.
//!
//! ```text
//!  receive      ring        map           device     log                       held        reply
//! |-----------|-----------|-------------|----------|-------------------------|-----------|----------------|
//! header came  handed out  the shard     operation  it came back              answered    let go           reply sent
//!                          took it       issued
//! |------------------------------------------- total -----------------------------------------------------|
//! ```
//! Every part of a request passes `ring` to `held`, the request as a whole `reply` and `total`. Nothing here looks at a
//! clock: the time is that of the turn of the poll loop in which something happened, so what two stages do in one turn
//! counts as nothing in the first of them, and the turn shows in the next stage that waits for something.
//!
//! Counting takes a few instructions, no allocation and no atomics: each shard and each poll loop has its own.

use crate::request::RequestKind;

/// Smallest step of a histogram: 16 ns.
const UNIT_BITS: u32 = 4;
/// Counters for each doubling, as a power of two: a counter is an eighth of what it counts wide, at most.
const STEP_BITS: u32 = 3;
/// Longest time that is told apart, in units: about 68 s in all. What is longer counts as that.
const UNITS_MAX: u64 = u32::MAX as u64;
/// Counters of a histogram.
pub const COUNTERS: usize = (32 - STEP_BITS as usize + 1) << STEP_BITS;

/// A stage of a request's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Its header was read; until it (or a part of it) is handed to a shard. A write's data arrive in this stage.
    Receive,
    /// Handed out; until the shard took it: the ring to its processor, and the backlog of a busy shard.
    Ring,
    /// Taken; until its device operation is issued: the map, map pages that have to be read, the rest of partly
    /// written blocks, room, and the batch.
    Map,
    /// With the device.
    Device,
    /// The device is done; until it is answered: map and log, and with FUA or flush until that is durable.
    Log,
    /// The answer was kept back by a cut.
    Held,
    /// Answered; until the last byte of the reply has left: the ring back, and replies before it.
    Reply,
    /// From the header until the last byte of the reply.
    Total,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Discards, and zeroes that become holes.
    Discard,
    /// Flushes.
    Flush,
    /// Questions about the map, and reading ahead.
    Query,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Self; 8] = [
        Self::Receive,
        Self::Ring,
        Self::Map,
        Self::Device,
        Self::Log,
        Self::Held,
        Self::Reply,
        Self::Total,
    ];

    /// Its name in figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Ring => "ring",
            Self::Map => "map",
            Self::Device => "device",
            Self::Log => "log",
            Self::Held => "held",
            Self::Reply => "reply",
            Self::Total => "total",
        }
    }
}

impl Work {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Discard, Self::Flush, Self::Query];

    /// What a part is about.
    #[inline]
    #[must_use]
    pub fn of(kind: RequestKind) -> Self {
        match kind {
            RequestKind::Read => Self::Read,
            RequestKind::Write { .. } => Self::Write,
            RequestKind::Discard { .. } => Self::Discard,
            RequestKind::Flush => Self::Flush,
            RequestKind::BlockStatus | RequestKind::Changes { .. } | RequestKind::Cache => Self::Query,
        }
    }

    /// Its name in figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Query => "query",
        }
    }
}

/// How often something took how long: [`COUNTERS`] counters whose width grows with what they count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    sum_ns: u64,
    counts: [u64; COUNTERS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            sum_ns: 0,
            counts: [0; COUNTERS],
        }
    }
}

#[inline]
fn counter_of(ns: u64) -> usize {
    let units = (ns >> UNIT_BITS).min(UNITS_MAX);
    // What is below the first doubling has counters like those of that one.
    let doubling = 63 - STEP_BITS - (units | 1 << STEP_BITS).leading_zeros();
    ((doubling as usize) << STEP_BITS) + (units >> doubling) as usize
}

/// The first time, in nanoseconds, that counts beyond this counter.
#[must_use]
pub fn counter_end_ns(counter: usize) -> u64 {
    let (doubling, step) = (counter >> STEP_BITS, (counter & ((1 << STEP_BITS) - 1)) as u64);
    let units = match doubling {
        0 => step + 1,
        _ => ((1 << STEP_BITS) + step + 1) << (doubling - 1),
    };
    units << UNIT_BITS
}

impl Histogram {
    /// Counts one.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.sum_ns = self.sum_ns.wrapping_add(ns);
        self.counts[counter_of(ns)] += 1;
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All together, in nanoseconds.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The counters that are not zero: the end of each in nanoseconds, and its count.
    pub fn counted(&self) -> impl Iterator<Item = (u64, u64)> {
        let counted = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(|(counter, count)| (counter_end_ns(counter), *count))
    }
}

/// A histogram for each stage and each kind of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    histograms: Box<[Histogram; HISTOGRAMS]>,
}

const HISTOGRAMS: usize = Stage::ALL.len() * Work::ALL.len();

impl Default for Stages {
    fn default() -> Self {
        Self {
            histograms: vec![Histogram::default(); HISTOGRAMS]
                .try_into()
                .expect("as many as there are"),
        }
    }
}

impl Stages {
    /// Counts a stage that began at `since_ns` and ends at `now_ns`. (Processors read the clock at different times of their
    /// turns: what seems to end before it began took no time.)
    #[inline]
    pub fn record(&mut self, stage: Stage, work: Work, since_ns: u64, now_ns: u64) {
        let histogram = &mut self.histograms[stage as usize * Work::ALL.len() + work as usize];
        if now_ns <= since_ns {
            // Most stages begin and end in one turn.
            histogram.counts[0] += 1;
        } else {
            histogram.record(now_ns - since_ns);
        }
    }

    /// Adds what others have counted.
    pub fn add(&mut self, other: &Self) {
        for (histogram, more) in self.histograms.iter_mut().zip(&*other.histograms) {
            histogram.add(more);
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, stage: Stage, work: Work) -> &Histogram {
        &self.histograms[stage as usize * Work::ALL.len() + work as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_one_counter_and_none_is_wide() {
        let mut begin_ns = 0;
        for counter in 0..COUNTERS {
            let end_ns = counter_end_ns(counter);
            assert!(end_ns > begin_ns, "counter {counter}");
            assert_eq!(counter_of(begin_ns), counter);
            assert_eq!(counter_of(end_ns - 1), counter);
            assert!(end_ns - begin_ns == 16 || (end_ns - begin_ns) * 8 <= begin_ns);
            begin_ns = end_ns;
        }
        assert_eq!(begin_ns, 1 << 36, "68 s are told apart");
        assert_eq!(counter_of(u64::MAX), COUNTERS - 1);
    }

    #[test]
    fn what_two_have_counted_adds_up() {
        let (mut one, mut other) = (Stages::default(), Stages::default());
        one.record(Stage::Map, Work::Read, 100, 1_100);
        other.record(Stage::Map, Work::Read, 100, 3_100);
        other.record(Stage::Map, Work::Write, 100, 50);
        one.add(&other);
        let reads = one.get(Stage::Map, Work::Read);
        assert_eq!((reads.count(), reads.sum_ns()), (2, 4_000));
        assert_eq!(reads.counted().collect::<Vec<_>>(), [(1_024, 1), (3_072, 1)]);
        assert_eq!(one.get(Stage::Map, Work::Write).sum_ns(), 0);
        assert_eq!(one.get(Stage::Device, Work::Read).count(), 0);
    }
}
