//! What was measured: how long requests took, for the whole run and for each interval.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest time that is told apart from longer ones.
pub const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// A request that started so much after its time, though the target had room for it, started late: the generator did not
/// keep up.
pub const LATE_NS: u64 = 100_000;
/// Of a hundred requests, so many may start late before a run is not to be trusted.
pub const LATE_PERCENT_MAX: f64 = 1.0;

/// Times of 1 ns to 60 s, to three digits.
pub type Times = Histogram<u64>;

/// The same for an interval; it grows as it must.
pub type IntervalTimes = Histogram<u32>;

/// An empty one.
#[must_use]
pub fn times() -> Times {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("sensible bounds")
}

fn interval_times() -> IntervalTimes {
    Histogram::new(3).expect("a sensible number of digits")
}

/// The two sides of how long a request took.
#[derive(Clone, Debug)]
pub struct Latency {
    /// From its intended start to its end: what whoever asked had to wait.
    pub response: Times,
    /// From its real start to its end: what the target took.
    pub service: Times,
}

impl Latency {
    fn new() -> Self {
        Self {
            response: times(),
            service: times(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.response.add(&other.response).expect("the same bounds");
        self.service.add(&other.service).expect("the same bounds");
    }
}

/// What one thread, or all of them, measured.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Of reads.
    pub reads: Latency,
    /// Of writes.
    pub writes: Latency,
    /// Responses of each interval, from the first that counts.
    pub intervals: Vec<IntervalTimes>,
    /// Bytes read and written.
    pub bytes: u64,
    /// Requests that failed, and how the first of them did.
    pub errors: u64,
    /// See `errors`.
    pub first_error: Option<String>,
    /// Requests that started late by the generator's fault: see [`LATE_NS`].
    pub late: u64,
    /// How late the latest of these was.
    pub late_ns_max: u64,
    /// Requests that waited for room, as many as possible being with the target.
    pub waited_for_room: u64,
    /// Requests that were to start in the time that counts and never did: the target did not come that far.
    pub not_started: u64,
    /// Blocks whose content was compared.
    pub verified: u64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            reads: Latency::new(),
            writes: Latency::new(),
            intervals: Vec::new(),
            bytes: 0,
            errors: 0,
            first_error: None,
            late: 0,
            late_ns_max: 0,
            waited_for_room: 0,
            not_started: 0,
            verified: 0,
        }
    }
}

impl Figures {
    /// Takes in a request that ended well. `interval` is that of its intended start, if these are kept apart.
    pub fn ended(
        &mut self,
        read: bool,
        length_bytes: u32,
        response_ns: u64,
        service_ns: u64,
        interval: Option<usize>,
    ) {
        let latency = if read { &mut self.reads } else { &mut self.writes };
        latency.response.saturating_record(response_ns);
        latency.service.saturating_record(service_ns);
        if let Some(interval) = interval {
            while self.intervals.len() <= interval {
                self.intervals.push(interval_times());
            }
            let of_interval = response_ns.clamp(1, LATENCY_NS_MAX);
            self.intervals[interval].record(of_interval).expect("it grows");
        }
        self.bytes += u64::from(length_bytes);
    }

    /// Takes in one that failed.
    pub fn failed(&mut self, error: String) {
        self.errors += 1;
        self.first_error.get_or_insert(error);
    }

    /// Adds what another thread measured at the same time.
    pub fn add(&mut self, other: &Self) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        while self.intervals.len() < other.intervals.len() {
            self.intervals.push(interval_times());
        }
        for (mine, theirs) in self.intervals.iter_mut().zip(&other.intervals) {
            mine.add(theirs).expect("it grows");
        }
        self.bytes += other.bytes;
        self.errors += other.errors;
        if let Some(error) = &other.first_error {
            self.first_error.get_or_insert_with(|| error.clone());
        }
        self.late += other.late;
        self.late_ns_max = self.late_ns_max.max(other.late_ns_max);
        self.waited_for_room += other.waited_for_room;
        self.not_started += other.not_started;
        self.verified += other.verified;
    }

    /// Requests that ended well.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.reads.response.len() + self.writes.response.len()
    }

    /// Reads and writes together.
    #[must_use]
    pub fn all(&self) -> Latency {
        let mut all = self.reads.clone();
        all.add(&self.writes);
        all
    }

    /// Whether the figures can be trusted.
    #[must_use]
    pub fn verdict(&self, time: Duration) -> Verdict {
        if let Some(error) = &self.first_error {
            return Verdict::Failed(format!("{} requests failed, the first: {error}", self.errors));
        }
        let requests = self.requests();
        if requests == 0 {
            return Verdict::Failed(format!("no request ended within {time:?}"));
        }
        let late_percent = self.late as f64 * 100.0 / requests as f64;
        if late_percent > LATE_PERCENT_MAX {
            return Verdict::Failed(format!(
                "the generator did not keep up: {late_percent:.1}% of requests started more than {} us late, the latest by \
                 {:.1} ms; use a lower --rate-iops, more --numjobs, or cores that nobody else uses",
                LATE_NS / 1000,
                self.late_ns_max as f64 / 1e6
            ));
        }
        if self.not_started > 0 {
            return Verdict::Overloaded(format!(
                "the target did not keep up: {} requests were still waiting for room at the end; the response times are \
                 those of a queue that grows",
                self.not_started
            ));
        }
        Verdict::Sound
    }
}

/// Whether figures can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They can.
    Sound,
    /// They can, but they depend on how long the run took.
    Overloaded(String),
    /// They cannot.
    Failed(String),
}

impl Verdict {
    /// Why they cannot.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Failed(why) => Some(why),
            Self::Sound | Self::Overloaded(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let mut one = Figures::default();
        one.ended(true, 4096, 1000, 500, Some(0));
        one.ended(false, 4096, 3000, 500, Some(2));
        let mut two = Figures::default();
        two.ended(true, 8192, 5000, 2000, Some(1));
        two.failed("no".into());
        one.add(&two);
        assert_eq!((one.requests(), one.bytes, one.errors), (3, 16384, 1));
        assert_eq!(one.reads.response.len(), 2);
        assert_eq!(
            one.intervals.iter().map(IntervalTimes::len).collect::<Vec<_>>(),
            [1, 1, 1]
        );
        assert_eq!(one.all().response.max(), times_of(5000));
        assert_eq!(one.first_error.as_deref(), Some("no"));
    }

    fn times_of(ns: u64) -> u64 {
        let mut one = times();
        one.record(ns).expect("in bounds");
        one.max()
    }

    #[test]
    fn late_starts_spoil_a_run_and_an_overloaded_target_is_named() {
        let second = Duration::from_secs(1);
        let mut figures = Figures::default();
        assert!(
            matches!(figures.verdict(second), Verdict::Failed(_)),
            "nothing ended"
        );
        for _ in 0..1000 {
            figures.ended(true, 4096, 1000, 1000, Some(0));
        }
        figures.late = 10;
        assert_eq!(figures.verdict(second), Verdict::Sound);
        figures.not_started = 1;
        assert!(matches!(figures.verdict(second), Verdict::Overloaded(_)));
        figures.late = 11;
        assert!(matches!(figures.verdict(second), Verdict::Failed(why) if why.contains("1.1%")));
        figures.failed("EIO".into());
        assert!(matches!(figures.verdict(second), Verdict::Failed(why) if why.contains("EIO")));
    }
}
