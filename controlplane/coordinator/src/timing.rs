//! When a schedule is due: every so often, or by a cron line; and what to do about due times that went by.
//!
//! Pure: the time comes in as wall time, nanoseconds since the Unix epoch, and it may jump.

use core::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A period at least: names of snapshots say the second.
pub const PERIOD_NS_MIN: u64 = S;
/// A period at most: 30 days.
pub const PERIOD_NS_MAX: u64 = 30 * 24 * 3600 * S;
/// Due times that went by are counted up to here.
pub const MISSED_MAX: u64 = 10_000;

/// A clock that goes back by no more than this is being adjusted: what ran does not run again.
const SLEW_NS: u64 = S;

const S: u64 = 1_000_000_000;

/// When a schedule is due.
#[derive(Clone, Debug)]
pub enum Timing {
    /// At every multiple of the period since the Unix epoch: every 15 minutes is at :00, :15, :30 and :45, whatever the
    /// time zone and whenever the schedule was made.
    Every {
        /// The period, whole seconds.
        period_ns: u64,
    },
    /// When the wall clock of a time zone shows what the line says.
    Cron {
        /// The line.
        line: Box<Cron>,
        /// Whose wall clock.
        zone: TimeZone,
    },
}

/// Why there is no such timing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimingError {
    /// The period is too short, too long, or not in whole seconds.
    Period(u64),
    /// The line cannot be read.
    Line(String),
}

impl fmt::Display for TimingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Period(ns) => write!(
                f,
                "every {} s: whole seconds from 1 s to 30 d are possible",
                *ns as f64 / 1e9
            ),
            Self::Line(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for TimingError {}

impl Timing {
    /// Every so often.
    ///
    /// # Errors
    /// [`TimingError::Period`].
    pub fn every(period_ns: u64) -> Result<Self, TimingError> {
        if !(PERIOD_NS_MIN..=PERIOD_NS_MAX).contains(&period_ns) || !period_ns.is_multiple_of(S) {
            return Err(TimingError::Period(period_ns));
        }
        Ok(Self::Every { period_ns })
    }

    /// By a cron line of five fields (minute, hour, day of month, month, day of week), or of six with seconds in front.
    ///
    /// # Errors
    /// [`TimingError::Line`] with what is wrong.
    pub fn cron(line: &str, zone: TimeZone) -> Result<Self, TimingError> {
        let parser = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build();
        match parser.parse(line) {
            Ok(line) => Ok(Self::Cron {
                line: Box::new(line),
                zone,
            }),
            Err(error) => Err(TimingError::Line(error.to_string())),
        }
    }

    /// The first due time after this one; `None` if there is none any more.
    #[must_use]
    pub fn next_after(&self, ns: u64) -> Option<u64> {
        match self {
            Self::Every { period_ns } => (ns / period_ns + 1).checked_mul(*period_ns),
            Self::Cron { line, zone } => {
                let now = Timestamp::from_nanosecond(i128::from(ns)).ok()?;
                let next = line
                    .find_next_occurrence(&now.to_zoned(zone.clone()), false)
                    .ok()?;
                u64::try_from(next.timestamp().as_nanosecond())
                    .ok()
                    .filter(|&next| next > ns)
            }
        }
    }

    /// How many due times are after `after` and not after `until`; [`MISSED_MAX`] if there are more.
    #[must_use]
    pub fn count(&self, after: u64, until: u64) -> u64 {
        match self {
            Self::Every { period_ns } => (until / period_ns)
                .saturating_sub(after / period_ns)
                .min(MISSED_MAX),
            Self::Cron { .. } => {
                let (mut count, mut at) = (0, after);
                while count < MISSED_MAX
                    && let Some(next) = self.next_after(at)
                    && next <= until
                {
                    (count, at) = (count + 1, next);
                }
                count
            }
        }
    }

    /// What to do now, if everything that was due up to `done_ns` is dealt with; a run deals with what is due up to now. A
    /// clock that was set back (by more than [`SLEW_NS`]) makes due again what is due next by the new time.
    #[must_use]
    pub fn look(&self, done_ns: &mut u64, now_ns: u64) -> Look {
        if *done_ns > now_ns.saturating_add(SLEW_NS) {
            *done_ns = now_ns;
        }
        match self.next_after(*done_ns) {
            None => Look::Never,
            Some(due_ns) if due_ns > now_ns => Look::Wait { due_ns },
            Some(due_ns) => {
                *done_ns = now_ns;
                Look::Run {
                    missed: self.count(due_ns, now_ns),
                }
            }
        }
    }
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing before this time.
    Wait {
        /// The next due time.
        due_ns: u64,
    },
    /// One run, now, for one due time.
    Run {
        /// So many further due times went by.
        missed: u64,
    },
    /// It is never due again.
    Never,
}

/// The name of the snapshot of a run: the schedule's and the time, in UTC, to the second.
#[must_use]
pub fn run_name(schedule: &str, now_ns: u64) -> String {
    match Timestamp::from_nanosecond(i128::from(now_ns)) {
        Ok(now) => format!("{schedule}-{}", now.strftime("%Y%m%dT%H%M%SZ")),
        Err(_) => format!("{schedule}-{now_ns}"),
    }
}

#[cfg(test)]
mod tests;
