//! What was measured: how long requests took, for the whole run and for each interval.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::job::Job;
use crate::schedule::Kind;
use crate::timeline::Timeline;

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

/// A request that ended well.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// What it did.
    pub kind: Kind,
    /// Its length.
    pub length_bytes: u32,
    /// When it was to start, from the first moment that counts on.
    pub intended_ns: u64,
    /// From its intended start to its end.
    pub response_ns: u64,
    /// From its real start to its end.
    pub service_ns: u64,
}

/// What one thread, or all of them, measured.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Of each of [`Kind::ALL`].
    by_kind: [Latency; 4],
    /// Length of `intervals`, if these are kept apart.
    interval_ns: Option<u64>,
    /// What happened when, if that is kept. Without flushes.
    pub timeline: Option<Timeline>,
    /// Sum of all responses of [`Self::all`], in nanoseconds.
    pub response_ns_sum: u128,
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
            by_kind: Kind::ALL.map(|_| Latency::new()),
            interval_ns: None,
            timeline: None,
            response_ns_sum: 0,
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
    /// For a thread of this job.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        Self {
            interval_ns: job.interval_ns,
            timeline: job.timeline.then(|| Timeline::new(job)),
            ..Self::default()
        }
    }

    /// Takes in a request that ended well.
    pub fn ended(&mut self, ended: Ended) {
        let latency = &mut self.by_kind[ended.kind as usize];
        latency.response.saturating_record(ended.response_ns);
        latency.service.saturating_record(ended.service_ns);
        if ended.kind == Kind::Flush {
            return;
        }
        self.response_ns_sum += u128::from(ended.response_ns);
        if let Some(interval_ns) = self.interval_ns {
            let interval = (ended.intended_ns / interval_ns) as usize;
            while self.intervals.len() <= interval {
                self.intervals.push(interval_times());
            }
            let of_interval = ended.response_ns.clamp(1, LATENCY_NS_MAX);
            self.intervals[interval].record(of_interval).expect("it grows");
        }
        if let Some(timeline) = &mut self.timeline {
            timeline.ended(ended.intended_ns, ended.response_ns);
        }
        self.bytes += u64::from(ended.length_bytes);
    }

    /// Takes in one that failed.
    pub fn failed(&mut self, error: String) {
        self.errors += 1;
        self.first_error.get_or_insert(error);
    }

    /// Adds what another thread measured at the same time.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.by_kind.iter_mut().zip(&other.by_kind) {
            mine.add(theirs);
        }
        match (&mut self.timeline, &other.timeline) {
            (Some(mine), Some(theirs)) => mine.add(theirs),
            (mine @ None, theirs) => mine.clone_from(theirs),
            (Some(_), None) => {}
        }
        self.interval_ns = self.interval_ns.or(other.interval_ns);
        self.response_ns_sum += other.response_ns_sum;
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

    /// Requests of this kind.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> &Latency {
        &self.by_kind[kind as usize]
    }

    /// Requests that ended well; flushes are no requests of their own.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let requests = self.by_kind[..Kind::Flush as usize].iter();
        requests.map(|latency| latency.response.len()).sum()
    }

    /// Reads, writes and discards together.
    #[must_use]
    pub fn all(&self) -> Latency {
        let mut all = self.kind(Kind::Read).clone();
        all.add(self.kind(Kind::Write));
        all.add(self.kind(Kind::Discard));
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
            return Verdict::GeneratorLate(format!(
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
    /// They cannot: requests started late, and not for want of room at the target.
    GeneratorLate(String),
    /// They cannot.
    Failed(String),
}

impl Verdict {
    /// Why they cannot.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Failed(why) | Self::GeneratorLate(why) => Some(why),
            Self::Sound | Self::Overloaded(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(kind: Kind, length_bytes: u32, intended_ns: u64, response_ns: u64) -> Ended {
        Ended {
            kind,
            length_bytes,
            intended_ns,
            response_ns,
            service_ns: response_ns / 2,
        }
    }

    #[test]
    fn threads_add_up() {
        let job = Job {
            interval_ns: Some(1_000_000),
            timeline: true,
            ..Job::default()
        };
        let mut one = Figures::of(&job);
        one.ended(ended(Kind::Read, 4096, 0, 1000));
        one.ended(ended(Kind::Write, 4096, 2_000_000, 3000));
        one.ended(ended(Kind::Flush, 0, 2_000_000, 9000));
        let mut two = Figures::of(&job);
        two.ended(ended(Kind::Discard, 8192, 1_000_000, 5000));
        two.failed("no".into());
        let mut sum = Figures::default();
        sum.add(&one);
        sum.add(&two);
        let one = sum;
        assert_eq!((one.requests(), one.bytes, one.errors), (3, 16384, 1));
        assert_eq!(one.response_ns_sum, 9000);
        assert_eq!(Kind::ALL.map(|kind| one.kind(kind).response.len()), [1, 1, 1, 1]);
        let timeline = one.timeline.as_ref().expect("kept");
        assert_eq!(timeline.slots().map(|(_, slot)| slot.started).sum::<u32>(), 3);
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
            figures.ended(ended(Kind::Read, 4096, 0, 1000));
        }
        figures.late = 10;
        assert_eq!(figures.verdict(second), Verdict::Sound);
        figures.not_started = 1;
        assert!(matches!(figures.verdict(second), Verdict::Overloaded(_)));
        figures.late = 11;
        assert!(matches!(figures.verdict(second), Verdict::GeneratorLate(why) if why.contains("1.1%")));
        figures.failed("EIO".into());
        assert!(matches!(figures.verdict(second), Verdict::Failed(why) if why.contains("EIO")));
    }
}
