//! One clock: what time it is, as the pure crates want to be told.

use std::time::{SystemTime, UNIX_EPOCH};
use stillpoint_processor::Now;

/// How long the distance between the two clocks is taken as constant.
const RESAMPLE_NS: u64 = 10_000_000;

/// Tells [`Now`] with one cheap clock reading (no system call); the wall clock is read only now and then, as
/// the distance between the two hardly moves.
#[derive(Debug)]
pub struct Clock {
    wall_minus_monotonic_ns: u64,
    sampled_ns: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock. All clocks of a machine agree, from one boot to the next.
    #[must_use]
    pub fn new() -> Self {
        let mut clock = Self {
            wall_minus_monotonic_ns: 0,
            sampled_ns: 0,
        };
        clock.sample(monotonic_ns());
        clock
    }

    /// The time.
    #[inline]
    #[must_use]
    pub fn now(&mut self) -> Now {
        let monotonic_ns = monotonic_ns();
        if monotonic_ns - self.sampled_ns > RESAMPLE_NS {
            self.sample(monotonic_ns);
        }
        Now {
            monotonic_ns,
            wall_ns: monotonic_ns.wrapping_add(self.wall_minus_monotonic_ns),
        }
    }

    fn sample(&mut self, monotonic_ns: u64) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ns = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        self.wall_minus_monotonic_ns = wall_ns.wrapping_sub(monotonic_ns);
        self.sampled_ns = monotonic_ns;
    }
}

/// Nanoseconds of the monotonic clock: never goes back, stands still while the machine is suspended.
#[inline]
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec; CLOCK_MONOTONIC is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_goes_back_and_agrees_with_the_wall() {
        let mut clock = Clock::new();
        let mut last = clock.now();
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now.monotonic_ns >= last.monotonic_ns);
            last = now;
        }
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos() as u64;
        assert!(
            last.wall_ns.abs_diff(wall) < 3_600_000_000_000,
            "{} {wall}",
            last.wall_ns
        );
    }
}
