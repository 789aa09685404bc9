//! What is to be done to a target.

use std::fmt;

/// Smallest unit of an address and of a length, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Longest request, in bytes: one buffer of the arenas.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests that one thread may have with the target at a time.
pub const IN_FLIGHT_MAX: usize = 4096;
/// Threads of one run.
pub const THREADS_MAX: usize = 256;
/// Longest run, ramp included, in nanoseconds: a year.
pub const TIME_NS_MAX: u64 = 366 * 24 * 3600 * 1_000_000_000;
/// Intervals of all threads of one run at most: each has a histogram of its own.
pub const INTERVALS_MAX: u64 = 20_000;
/// Sum of the shares of all lengths at most.
pub const SHARES_MAX: u64 = 1_000_000;
/// Most requests a second of one run: the clock of an open loop counts in nanoseconds.
pub const RATE_IOPS_MAX: f64 = 100e6;

/// Whether requests discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discards {
    /// None does.
    None,
    /// All do.
    Only,
    /// Each discards, and a write to the same place follows.
    BeforeWrites,
}

/// What writes write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// Data.
    Data,
    /// Zeros, which are not sent where the target makes them by itself.
    Zeroes,
}

/// How addresses follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// One after the other; each thread in a part of its own.
    Sequential,
    /// Anywhere, each address as likely as another. (An address may come twice before another comes once.)
    Uniform,
    /// A few addresses often, most of them rarely: the n-th most frequent is `n^-exponent` as frequent as the first.
    /// Where these lie is scattered.
    Zipf(f64),
}

/// When requests start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Whenever an earlier one has ended: so many are with the target at any time, for each thread.
    Closed {
        /// Requests of each thread.
        in_flight: usize,
    },
    /// At times of their own, whatever the target does.
    Open {
        /// Requests a second of all threads.
        rate_iops: f64,
        /// How these are spread over the second.
        arrivals: Arrivals,
        /// So many are with the target at most, for each thread. Further ones start later, and the time they waited
        /// counts.
        in_flight_max: usize,
    },
}

/// How the starts of an open loop are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// Evenly.
    Fixed,
    /// As of many clients that know nothing of each other.
    Poisson,
}

/// What a thread does while there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It looks again at once: exact, and takes a core.
    Spin,
    /// It sleeps until something has ended or shortly before something is to start: for machines whose cores the target needs.
    /// Being woken counts as the target's time.
    Nap,
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// What it is called.
    pub name: String,
    /// Of a hundred requests, how many are reads; the others write. Without meaning if there are discards.
    pub read_percent: u32,
    /// See [`Discards`].
    pub discards: Discards,
    /// See [`WriteMode`].
    pub write_mode: WriteMode,
    /// Each write is durable when it ends (force unit access).
    pub durable_writes: bool,
    /// After so many writes of a thread a flush follows. It takes a place in flight, and has none in the rate.
    pub flush_every: Option<u32>,
    /// See [`Order`].
    pub order: Order,
    /// Lengths in bytes, and how often each comes compared with the others.
    pub lengths: Vec<(u32, u32)>,
    /// See [`Load`].
    pub load: Load,
    /// Threads, each with a connection or a queue of its own.
    pub threads: usize,
    /// See [`Idle`].
    pub idle: Idle,
    /// How long it counts.
    pub time_ns: u64,
    /// How long it runs before that.
    pub ramp_ns: u64,
    /// First byte used of the target.
    pub offset_bytes: u64,
    /// Bytes used of the target; `None`: up to its end.
    pub size_bytes: Option<u64>,
    /// What is written can be told from everything else, and is compared when it is read.
    pub verify: bool,
    /// The same seed makes the same requests.
    pub seed: u64,
    /// Length of the intervals whose requests are also kept apart, if they are.
    pub interval_ns: Option<u64>,
    /// What happened when is kept, so that a report can show it.
    pub timeline: bool,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            name: "job".to_owned(),
            read_percent: 100,
            discards: Discards::None,
            write_mode: WriteMode::Data,
            durable_writes: false,
            flush_every: None,
            order: Order::Uniform,
            lengths: vec![(4096, 1)],
            load: Load::Closed { in_flight: 1 },
            threads: 1,
            idle: Idle::Spin,
            time_ns: 10_000_000_000,
            ramp_ns: 0,
            offset_bytes: 0,
            size_bytes: None,
            verify: false,
            seed: 1,
            interval_ns: None,
            timeline: false,
        }
    }
}

/// A job that cannot be done: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadJob(pub String);

impl fmt::Display for BadJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadJob {}

impl Job {
    /// Whether it changes what it is run against.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.read_percent < 100 || self.discards != Discards::None
    }

    /// The longest request, in bytes.
    #[must_use]
    pub fn length_bytes_max(&self) -> u32 {
        self.lengths.iter().map(|&(bytes, _)| bytes).max().unwrap_or(0)
    }

    /// Requests of one thread with the target at a time at most.
    #[must_use]
    pub fn in_flight_max(&self) -> usize {
        match self.load {
            Load::Closed { in_flight } => in_flight,
            Load::Open { in_flight_max, .. } => in_flight_max,
        }
    }

    /// Says whether it can be done.
    ///
    /// # Errors
    /// [`BadJob`] names the first thing that is wrong.
    pub fn check(&self) -> Result<(), BadJob> {
        let bad = |what: String| Err(BadJob(what));
        if self.read_percent > 100 {
            return bad(format!(
                "{}% of requests cannot be reads: give 0 to 100",
                self.read_percent
            ));
        }
        if self.lengths.is_empty() || self.lengths.iter().all(|&(_, share)| share == 0) {
            return bad("no request has a length: give --bs".into());
        }
        if self
            .lengths
            .iter()
            .map(|&(_, share)| u64::from(share))
            .sum::<u64>()
            > SHARES_MAX
        {
            return bad(format!(
                "the shares of lengths add up to more than {SHARES_MAX}: give percents"
            ));
        }
        for &(bytes, _) in &self.lengths {
            let whole = u64::from(bytes).is_multiple_of(SECTOR_BYTES);
            if bytes == 0 || !whole || bytes > REQUEST_BYTES_MAX {
                return bad(format!(
                    "a request of {bytes} bytes is not possible: give a multiple of {SECTOR_BYTES} up to {REQUEST_BYTES_MAX}"
                ));
            }
        }
        if !(1..=THREADS_MAX).contains(&self.threads) {
            return bad(format!(
                "{} threads are not possible: give 1 to {THREADS_MAX}",
                self.threads
            ));
        }
        if !(1..=IN_FLIGHT_MAX).contains(&self.in_flight_max()) {
            return bad(format!(
                "{} requests in flight are not possible: give 1 to {IN_FLIGHT_MAX}",
                self.in_flight_max()
            ));
        }
        if let Load::Open { rate_iops, .. } = self.load
            && !(rate_iops > 0.0 && rate_iops <= RATE_IOPS_MAX)
        {
            return bad(format!(
                "a rate of {rate_iops} requests a second is not possible: give one up to {RATE_IOPS_MAX:.0}"
            ));
        }
        if let Order::Zipf(exponent) = self.order
            && !(exponent > 0.0 && exponent <= 10.0)
        {
            return bad(format!(
                "a Zipf exponent of {exponent} is not possible: give one above 0 and up to 10, 1.1 say"
            ));
        }
        if self.time_ns == 0 || self.interval_ns == Some(0) {
            return bad("a run of no time measures nothing: give --runtime 10s, say".into());
        }
        if self.time_ns.saturating_add(self.ramp_ns) > TIME_NS_MAX {
            return bad(
                "a run of more than a year is not possible: give a shorter --runtime or --ramp-time".into(),
            );
        }
        if let Some(interval_ns) = self.interval_ns
            && self.time_ns / interval_ns * self.threads as u64 > INTERVALS_MAX
        {
            return bad(format!(
                "more than {INTERVALS_MAX} intervals of all threads are not possible: give a longer --interval"
            ));
        }
        if self.flush_every == Some(0) {
            return bad("a flush after 0 writes is not possible: give --fsync 1 or more".into());
        }
        let no_write = self.read_percent == 100 && self.discards != Discards::BeforeWrites;
        if self.flush_every.is_some() && (no_write || self.discards == Discards::Only) {
            return bad("nothing is written that could be flushed: leave --fsync out, or write".into());
        }
        let writes_nothing = no_write || self.discards == Discards::Only;
        if self.durable_writes && writes_nothing {
            return bad("nothing is written that could be durable: leave --writefua out, or write".into());
        }
        if self.write_mode == WriteMode::Zeroes && writes_nothing {
            return bad("nothing is written that could be zeros: leave --write-mode out, or write".into());
        }
        if self.verify && self.discards != Discards::None {
            return bad(
                "what is discarded may read as anything: leave --verify out, or give --rw randwrite or randrw".into(),
            );
        }
        if self.verify && !self.writes() {
            return bad("nothing is written that could be verified: give --rw randwrite or randrw".into());
        }
        if self.verify && self.lengths.len() > 1 {
            return bad("what is verified is written in requests of one length: give one --bs".into());
        }
        Ok(())
    }

    /// First byte and length of what is used of a target of `target_bytes`.
    ///
    /// # Errors
    /// [`BadJob`] if the target is too small, or an address is no whole sector.
    pub fn area(&self, target_bytes: u64) -> Result<(u64, u64), BadJob> {
        let left_bytes = target_bytes.saturating_sub(self.offset_bytes);
        let size_bytes = self.size_bytes.unwrap_or(left_bytes);
        if size_bytes > left_bytes {
            return Err(BadJob(format!(
                "the target has {target_bytes} bytes; {size_bytes} from {} on are beyond its end: give a smaller --size",
                self.offset_bytes
            )));
        }
        if !self.offset_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(BadJob(format!(
                "{} is no multiple of {SECTOR_BYTES}: give another --offset",
                self.offset_bytes
            )));
        }
        // Addresses lie on a grid of the shortest requests, and the longest has to fit into what each thread has of it.
        let unit_bytes = self
            .lengths
            .iter()
            .map(|&(bytes, _)| u64::from(bytes))
            .min()
            .unwrap_or(1);
        let units = size_bytes / unit_bytes / self.threads as u64;
        if units < u64::from(self.length_bytes_max()).div_ceil(unit_bytes) {
            return Err(BadJob(format!(
                "{size_bytes} bytes are too few for {} threads with requests of {} bytes: give a larger --size",
                self.threads,
                self.length_bytes_max()
            )));
        }
        Ok((self.offset_bytes, size_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_said() {
        assert_eq!(Job::default().check(), Ok(()));
        type Spoil = fn(&mut Job);
        let wrong: [(Spoil, &str); 22] = [
            (|job| job.read_percent = 101, "101%"),
            (|job| job.lengths.clear(), "--bs"),
            (|job| job.lengths = vec![(1000, 1)], "1000 bytes"),
            (|job| job.lengths = vec![(2 << 20, 1)], "2097152 bytes"),
            (|job| job.threads = 0, "0 threads"),
            (|job| job.load = Load::Closed { in_flight: 5000 }, "5000 requests"),
            (
                |job| {
                    job.load = Load::Open {
                        rate_iops: f64::NAN,
                        arrivals: Arrivals::Fixed,
                        in_flight_max: 1,
                    };
                },
                "a rate of NaN",
            ),
            (|job| job.order = Order::Zipf(-1.0), "exponent of -1"),
            (|job| job.time_ns = 0, "--runtime"),
            (|job| job.time_ns = u64::MAX, "more than a year"),
            (|job| job.ramp_ns = u64::MAX, "more than a year"),
            (|job| job.interval_ns = Some(1), "--interval"),
            (|job| job.verify = true, "nothing is written"),
            (|job| job.flush_every = Some(0), "--fsync 1"),
            (|job| job.flush_every = Some(1), "nothing is written"),
            (
                |job| (job.flush_every, job.read_percent, job.discards) = (Some(1), 0, Discards::Only),
                "nothing is written",
            ),
            (|job| job.durable_writes = true, "--writefua"),
            (|job| job.write_mode = WriteMode::Zeroes, "--write-mode"),
            (
                |job| (job.durable_writes, job.read_percent, job.discards) = (true, 0, Discards::Only),
                "--writefua",
            ),
            (
                |job| (job.verify, job.discards) = (true, Discards::Only),
                "may read as anything",
            ),
            (|job| job.lengths = vec![(4096, u32::MAX), (8192, 1)], "percents"),
            (
                |job| {
                    (job.verify, job.read_percent) = (true, 50);
                    job.lengths = vec![(4096, 1), (8192, 1)];
                },
                "one --bs",
            ),
        ];
        for (spoil, said) in wrong {
            let mut job = Job::default();
            spoil(&mut job);
            let BadJob(message) = job.check().expect_err(said);
            assert!(message.contains(said), "{message}");
        }
    }

    #[test]
    fn an_area_lies_within_its_target() {
        let mut job = Job::default();
        assert_eq!(job.area(1 << 20), Ok((0, 1 << 20)));
        job.offset_bytes = 4096;
        assert_eq!(job.area(1 << 20), Ok((4096, (1 << 20) - 4096)));
        job.size_bytes = Some(1 << 20);
        assert!(job.area(1 << 20).is_err());
        job.size_bytes = Some(4096);
        job.threads = 2;
        assert!(job.area(1 << 20).is_err(), "half a request for each");
        let uneven = Job {
            lengths: vec![(4096, 1), (6144, 1)],
            ..Job::default()
        };
        assert!(uneven.area(6144).is_err(), "the grid has one place");
        assert_eq!(uneven.area(8192), Ok((0, 8192)));
        assert!(job.area(0).is_err());
    }
}
