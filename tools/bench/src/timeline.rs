//! What happened when: for each slot of time, a millisecond if there is room, how long the requests took that were to start
//! in it.

use crate::job::Job;

/// The shortest slot.
pub const SLOT_NS_MIN: u64 = 1_000_000;
/// Slots of all threads of a run at most, 240 bytes each; a longer run has longer slots.
pub const SLOTS_MAX: u64 = 1 << 20;
/// Rows of a slot: below 1 us, and four for each factor of two up to a minute.
pub const ROWS: usize = 106;
/// Slots that come into memory together.
const CHUNK: usize = 256;

/// The requests that were to start in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// How many there were, of those that ended well.
    pub started: u32,
    /// How many requests ended in this slot, whenever they were to start.
    pub ended: u32,
    /// The longest response.
    pub max_ns: u64,
    /// Sum of all responses.
    pub sum_ns: u64,
    /// How many responses fell into each row: see [`row_of`].
    pub rows: [u16; ROWS],
}

impl Slot {
    /// Nothing.
    pub const EMPTY: Self = Self {
        started: 0,
        ended: 0,
        max_ns: 0,
        sum_ns: 0,
        rows: [0; ROWS],
    };

    fn add(&mut self, other: &Self) {
        self.started += other.started;
        self.ended += other.ended;
        self.max_ns = self.max_ns.max(other.max_ns);
        self.sum_ns += other.sum_ns;
        for (mine, theirs) in self.rows.iter_mut().zip(other.rows) {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// The row of a response: 0 below a microsecond; each further one is a quarter of a factor of two.
#[must_use]
pub fn row_of(ns: u64) -> usize {
    // 1 us is 8 of these, so that the three highest bits of any of them say the row.
    let eighths = ns / 125;
    if eighths < 8 {
        return 0;
    }
    let octave = 63 - eighths.leading_zeros();
    let quarter = (eighths >> (octave - 2)) & 3;
    (1 + (octave as usize - 3) * 4 + quarter as usize).min(ROWS - 1)
}

/// The shortest response of a row, in nanoseconds.
#[must_use]
pub fn row_begin_ns(row: usize) -> u64 {
    match row {
        0 => 0,
        row => (1000 << ((row - 1) / 4)) * (4 + (row as u64 - 1) % 4) / 4,
    }
}

/// All slots of a run.
#[derive(Clone, Debug)]
pub struct Timeline {
    slot_ns: u64,
    count: usize,
    chunks: Vec<Option<Box<[Slot]>>>,
}

impl Timeline {
    /// For a thread of this job. Threads of one job have the same slots.
    #[must_use]
    pub fn new(job: &Job) -> Self {
        let per_thread = (SLOTS_MAX / job.threads as u64).max(1);
        let slot_ns = job
            .time_ns
            .div_ceil(per_thread)
            .next_multiple_of(SLOT_NS_MIN)
            .max(SLOT_NS_MIN);
        let count = job.time_ns.div_ceil(slot_ns) as usize;
        Self {
            slot_ns,
            count,
            chunks: vec![None; count.div_ceil(CHUNK)],
        }
    }

    /// Length of a slot.
    #[must_use]
    pub fn slot_ns(&self) -> u64 {
        self.slot_ns
    }

    /// How many slots there are.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.count
    }

    /// Takes in a request; its intended start counts from the first moment of the run that counts.
    pub fn ended(&mut self, intended_ns: u64, response_ns: u64) {
        if let Some(slot) = self.slot_mut((intended_ns / self.slot_ns) as usize) {
            slot.started += 1;
            slot.max_ns = slot.max_ns.max(response_ns);
            slot.sum_ns += response_ns;
            let row = &mut slot.rows[row_of(response_ns)];
            *row = row.saturating_add(1);
        }
        if let Some(slot) = self.slot_mut(((intended_ns + response_ns) / self.slot_ns) as usize) {
            slot.ended += 1;
        }
    }

    fn slot_mut(&mut self, index: usize) -> Option<&mut Slot> {
        if index >= self.count {
            return None;
        }
        let chunk = self.chunks[index / CHUNK].get_or_insert_with(|| vec![Slot::EMPTY; CHUNK].into());
        Some(&mut chunk[index % CHUNK])
    }

    /// One slot, empty if it is beyond the end.
    #[must_use]
    pub fn slot(&self, index: usize) -> &Slot {
        match self.chunks.get(index / CHUNK) {
            Some(Some(chunk)) => &chunk[index % CHUNK],
            _ => &Slot::EMPTY,
        }
    }

    /// All slots, each with when it begins.
    pub fn slots(&self) -> impl Iterator<Item = (u64, &Slot)> {
        (0..self.count).map(|index| (index as u64 * self.slot_ns, self.slot(index)))
    }

    /// Adds what another thread saw.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.slot_ns, other.slot_ns, "threads of one job");
        for (mine, theirs) in self.chunks.iter_mut().zip(&other.chunks) {
            match (mine, theirs) {
                (Some(mine), Some(theirs)) => {
                    mine.iter_mut()
                        .zip(theirs)
                        .for_each(|(mine, theirs)| mine.add(theirs));
                }
                (mine @ None, theirs) => mine.clone_from(theirs),
                (Some(_), None) => {}
            }
        }
    }
}

/// Several slots together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooled {
    /// Requests that were to start in them.
    pub started: u64,
    /// Requests that ended in them.
    pub ended: u64,
    /// The longest response.
    pub max_ns: u64,
    /// Sum of all responses.
    pub sum_ns: u128,
    /// Responses in each row.
    pub rows: [u64; ROWS],
}

impl Default for Pooled {
    fn default() -> Self {
        Self {
            started: 0,
            ended: 0,
            max_ns: 0,
            sum_ns: 0,
            rows: [0; ROWS],
        }
    }
}

impl Pooled {
    /// Takes in a slot.
    pub fn add(&mut self, slot: &Slot) {
        self.started += u64::from(slot.started);
        self.ended += u64::from(slot.ended);
        self.max_ns = self.max_ns.max(slot.max_ns);
        self.sum_ns += u128::from(slot.sum_ns);
        for (mine, &theirs) in self.rows.iter_mut().zip(&slot.rows) {
            *mine += u64::from(theirs);
        }
    }

    /// So many of them took no longer than this, to about a fifth: the end of a row, or the longest response. 0 if there
    /// are none.
    #[must_use]
    pub fn at_quantile(&self, quantile: f64) -> u64 {
        let all: u64 = self.rows.iter().sum();
        let wanted = ((all as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (row, &count) in self.rows.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return row_begin_ns(row + 1).min(self.max_ns);
            }
        }
        0
    }
}

impl<'a> FromIterator<&'a Slot> for Pooled {
    fn from_iter<I: IntoIterator<Item = &'a Slot>>(slots: I) -> Self {
        let mut pooled = Self::default();
        slots.into_iter().for_each(|slot| pooled.add(slot));
        pooled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_each_other_and_hold_what_falls_into_them() {
        assert_eq!((row_of(0), row_of(999), row_of(1000)), (0, 0, 1));
        for row in 0..ROWS - 1 {
            let (begin_ns, end_ns) = (row_begin_ns(row), row_begin_ns(row + 1));
            assert!(begin_ns < end_ns);
            assert_eq!((row_of(begin_ns), row_of(end_ns - 1)), (row, row), "{begin_ns}");
        }
        assert!(row_begin_ns(ROWS - 1) >= 60_000_000_000);
        assert_eq!(row_of(u64::MAX), ROWS - 1);
    }

    #[test]
    fn requests_are_found_where_they_were_to_start_and_where_they_ended() {
        let job = Job {
            time_ns: 10_500_000,
            ..Job::default()
        };
        let mut one = Timeline::new(&job);
        one.ended(0, 500);
        one.ended(2_900_000, 5_000_000);
        let mut two = Timeline::new(&job);
        two.ended(2_000_000, 1_000_000);
        two.ended(10_400_000, 9_000_000);
        one.add(&two);
        assert_eq!((one.slot_ns(), one.slot_count()), (1_000_000, 11));
        let all: Vec<(u32, u32, u64)> = one
            .slots()
            .map(|(_, slot)| (slot.started, slot.ended, slot.max_ns))
            .collect();
        assert_eq!(all[0], (1, 1, 500));
        assert_eq!(all[2], (2, 0, 5_000_000));
        assert_eq!((all[3].1, all[7].1), (1, 1));
        assert_eq!(all[10], (1, 0, 9_000_000), "it ended beyond the end");
        let pooled: Pooled = one.slots().map(|(_, slot)| slot).collect();
        assert_eq!((pooled.started, pooled.max_ns), (4, 9_000_000));
        assert!((500..=1000).contains(&pooled.at_quantile(0.25)));
        assert!((1_000_000..=1_250_000).contains(&pooled.at_quantile(0.5)));
        assert_eq!(pooled.at_quantile(1.0), 9_000_000);
        assert_eq!(Pooled::default().at_quantile(0.99), 0);
    }

    #[test]
    fn a_long_run_has_longer_slots_and_no_more_memory() {
        let job = Job {
            time_ns: 86_400_000_000_000,
            threads: 4,
            ..Job::default()
        };
        let timeline = Timeline::new(&job);
        assert!(timeline.slot_count() as u64 * 4 <= SLOTS_MAX);
        assert_eq!(timeline.slot_ns() % SLOT_NS_MIN, 0);
    }
}
