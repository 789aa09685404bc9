//! What a thread asks for, and when: addresses, lengths, kinds and intended starts, all from a seed.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp1, Zipf};

use crate::job::{Arrivals, Discards, Job, Order};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Says that what is there is no longer needed.
    Discard,
    /// Makes what was written durable. It has no address and no length.
    Flush,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Discard, Self::Flush];

    /// In one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Flush => "flush",
        }
    }
}

/// A request: what is asked of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it does.
    pub kind: Kind,
    /// First byte on the target.
    pub offset_bytes: u64,
    /// Its length.
    pub length_bytes: u32,
}

/// The requests of one thread.
#[derive(Debug)]
pub struct Requests {
    random: SmallRng,
    read_percent: u32,
    discards: Discards,
    /// What was discarded last, to be written.
    discarded: Option<Request>,
    /// Lengths, and up to which number each comes.
    lengths: Vec<(u32, u32)>,
    /// Grid of the addresses: the shortest request.
    unit_bytes: u64,
    offset_bytes: u64,
    units: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Sequential {
        next_unit: u64,
    },
    Uniform,
    /// The odd factor that scatters the ranks, and their distribution.
    Zipf {
        scatter: u64,
        rank: Zipf<f64>,
    },
}

impl Requests {
    /// Those of thread `thread` of a job, in `size_bytes` from `offset_bytes` on.
    ///
    /// # Panics
    /// If the job was not checked.
    #[must_use]
    pub fn new(job: &Job, thread: usize, (offset_bytes, size_bytes): (u64, u64)) -> Self {
        let unit_bytes = job.lengths.iter().map(|&(bytes, _)| u64::from(bytes)).min();
        let unit_bytes = unit_bytes.expect("the job was checked");
        // Each thread has a part of its own if the order is sequential, or if it has to know what it wrote.
        let apart = job.order == Order::Sequential || job.verify;
        let units_of_all = size_bytes / unit_bytes;
        let (first, units) = if apart {
            let units = units_of_all / job.threads as u64;
            (thread as u64 * units, units)
        } else {
            (0, units_of_all)
        };
        let mut sum = 0;
        let lengths = job.lengths.iter().map(|&(bytes, share)| {
            sum += share;
            (bytes, sum)
        });
        Self {
            random: SmallRng::seed_from_u64(job.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ thread as u64),
            read_percent: job.read_percent,
            discards: job.discards,
            discarded: None,
            lengths: lengths.collect(),
            unit_bytes,
            offset_bytes: offset_bytes + first * unit_bytes,
            units,
            place: match job.order {
                Order::Sequential => Place::Sequential { next_unit: 0 },
                Order::Uniform => Place::Uniform,
                Order::Zipf(exponent) => Place::Zipf {
                    scatter: coprime(units),
                    rank: Zipf::new(units as f64, exponent).expect("the job was checked"),
                },
            },
        }
    }

    /// The next one.
    pub fn take(&mut self) -> Request {
        if let Some(discarded) = self.discarded.take() {
            return Request {
                kind: Kind::Write,
                ..discarded
            };
        }
        let read = match self.read_percent {
            _ if self.discards != Discards::None => false,
            100 => true,
            0 => false,
            percent => self.random.random_range(0..100) < percent,
        };
        let length_bytes = match self.lengths[..] {
            [(bytes, _)] => bytes,
            _ => {
                let all = self.lengths.last().expect("there is one").1;
                let number = self.random.random_range(0..all);
                let of = self.lengths.iter().find(|&&(_, up_to)| number < up_to);
                of.expect("below the sum").0
            }
        };
        let span = u64::from(length_bytes).div_ceil(self.unit_bytes);
        let places = self.units - span + 1;
        let unit = match &mut self.place {
            Place::Sequential { next_unit } => {
                if *next_unit >= places {
                    *next_unit = 0;
                }
                let unit = *next_unit;
                *next_unit += span;
                unit
            }
            Place::Uniform => self.random.random_range(0..places),
            Place::Zipf { scatter, rank } => {
                let rank = rank.sample(&mut self.random) as u64 - 1;
                let unit = u128::from(rank) * u128::from(*scatter) % u128::from(self.units);
                (unit as u64).min(places - 1)
            }
        };
        let request = Request {
            kind: match (self.discards, read) {
                (Discards::None, true) => Kind::Read,
                (Discards::None, false) => Kind::Write,
                (Discards::Only | Discards::BeforeWrites, _) => Kind::Discard,
            },
            offset_bytes: self.offset_bytes + unit * self.unit_bytes,
            length_bytes,
        };
        if self.discards == Discards::BeforeWrites {
            self.discarded = Some(request);
        }
        request
    }
}

/// A number that has no divisor in common with `count`, about 0.6 of it: multiples of it visit every place.
fn coprime(count: u64) -> u64 {
    let divisor = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let golden = (count as f64 * 0.618) as u64 | 1;
    (golden..)
        .find(|&number| divisor(number, count) == 1)
        .unwrap_or(1)
}

/// The intended starts of one thread of an open loop.
#[derive(Debug)]
pub struct Starts {
    random: SmallRng,
    arrivals: Arrivals,
    gap_ns: f64,
    next_ns: f64,
}

impl Starts {
    /// `rate_iops` is this thread's. The first start of thread `thread` of `threads` is that part of a gap after
    /// `begin_ns`.
    #[must_use]
    pub fn new(
        seed: u64,
        arrivals: Arrivals,
        rate_iops: f64,
        (thread, threads): (usize, usize),
        begin_ns: u64,
    ) -> Self {
        let gap_ns = 1e9 / rate_iops;
        let mut starts = Self {
            random: SmallRng::seed_from_u64(!seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ thread as u64),
            arrivals,
            gap_ns,
            next_ns: begin_ns as f64 + gap_ns * thread as f64 / threads as f64,
        };
        if arrivals == Arrivals::Poisson {
            starts.next_ns = begin_ns as f64;
            starts.pass();
        }
        starts
    }

    /// When the next one is to start.
    #[must_use]
    pub fn next_ns(&self) -> u64 {
        self.next_ns as u64
    }

    /// It is on its way: the one after it is the next.
    pub fn pass(&mut self) {
        let factor = match self.arrivals {
            Arrivals::Fixed => 1.0,
            Arrivals::Poisson => Distribution::<f64>::sample(&Exp1, &mut self.random),
        };
        self.next_ns += self.gap_ns * factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn requests(job: &Job, thread: usize, size_bytes: u64, count: usize) -> Vec<Request> {
        let mut requests = Requests::new(job, thread, (1 << 20, size_bytes));
        (0..count).map(|_| requests.take()).collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_requests_and_another_does_not() {
        let mut job = Job {
            read_percent: 70,
            lengths: vec![(4096, 1), (16384, 3)],
            ..Job::default()
        };
        let first = requests(&job, 0, 1 << 24, 1000);
        assert_eq!(requests(&job, 0, 1 << 24, 1000), first);
        assert_ne!(requests(&job, 1, 1 << 24, 1000), first);
        job.seed = 2;
        assert_ne!(requests(&job, 0, 1 << 24, 1000), first);
    }

    #[test]
    fn requests_lie_in_their_area_and_have_the_mix_that_was_asked_for() {
        for order in [Order::Uniform, Order::Sequential, Order::Zipf(1.2)] {
            let job = Job {
                read_percent: 30,
                order,
                lengths: vec![(4096, 1), (12288, 1)],
                threads: 3,
                ..Job::default()
            };
            let size = 1 << 22;
            let all: Vec<Request> = (0..3)
                .flat_map(|thread| requests(&job, thread, size, 4000))
                .collect();
            for request in &all {
                let end = request.offset_bytes + u64::from(request.length_bytes);
                assert!(request.offset_bytes >= 1 << 20 && end <= (1 << 20) + size);
                assert!(request.offset_bytes.is_multiple_of(4096));
            }
            let share = |is: fn(&Request) -> bool| all.iter().filter(|one| is(one)).count() as f64 / 12000.0;
            assert!((share(|one| one.kind == Kind::Read) - 0.3).abs() < 0.02);
            assert!((share(|one| one.length_bytes == 4096) - 0.5).abs() < 0.02);
        }
    }

    #[test]
    fn sequential_requests_cover_everything_once_before_they_begin_again() {
        let job = Job {
            order: Order::Sequential,
            threads: 2,
            ..Job::default()
        };
        let mut seen: Vec<u64> = (0..2)
            .flat_map(|thread| requests(&job, thread, 1 << 20, 128))
            .map(|one| one.offset_bytes)
            .collect();
        seen.sort_unstable();
        let all: Vec<u64> = (0..256).map(|block| (1 << 20) + block * 4096).collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn what_is_discarded_is_written_if_that_was_asked_for() {
        let of = |discards| {
            let job = Job {
                discards,
                ..Job::default()
            };
            requests(&job, 0, 1 << 24, 100)
        };
        assert!(of(Discards::Only).iter().all(|one| one.kind == Kind::Discard));
        for two in of(Discards::BeforeWrites).chunks(2) {
            assert_eq!((two[0].kind, two[1].kind), (Kind::Discard, Kind::Write));
            assert_eq!(two[0].offset_bytes, two[1].offset_bytes);
        }
    }

    #[test]
    fn a_few_addresses_come_often_with_zipf() {
        let job = Job {
            order: Order::Zipf(1.2),
            ..Job::default()
        };
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for request in requests(&job, 0, 1 << 26, 20_000) {
            *counts.entry(request.offset_bytes).or_default() += 1;
        }
        let mut often: Vec<u32> = counts.values().copied().collect();
        often.sort_unstable_by(|a, b| b.cmp(a));
        // The first is 2^1.2 times as frequent as the second.
        let ratio = f64::from(often[0]) / f64::from(often[1]);
        assert!((1.9..2.8).contains(&ratio), "{often:?}");
        assert!(often.len() > 1000, "and there are many");
    }

    #[test]
    fn starts_have_the_rate_that_was_asked_for() {
        for arrivals in [Arrivals::Fixed, Arrivals::Poisson] {
            let mut starts = Starts::new(1, arrivals, 10_000.0, (0, 1), 5);
            let times: Vec<u64> = (0..20_000)
                .map(|_| {
                    let at = starts.next_ns();
                    starts.pass();
                    at
                })
                .collect();
            assert!(times.is_sorted() && times[0] >= 5);
            let gaps: Vec<f64> = times.windows(2).map(|two| (two[1] - two[0]) as f64).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            assert!((mean - 100_000.0).abs() < 2_500.0, "{mean}");
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            let spread = variance.sqrt() / mean;
            let expected = if arrivals == Arrivals::Fixed { 0.0 } else { 1.0 };
            assert!((spread - expected).abs() < 0.05, "{spread}");
        }
    }
}
