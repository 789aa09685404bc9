//! Retention: which of a schedule's snapshots are kept, and why.
//!
//! Grandfather, father, son, as restic and borg count: each rule looks at the snapshots from the newest to the oldest. It
//! keeps the newest one of each hour (day, week, month, year) that has any, until it has kept as many as it says; hours
//! without a snapshot do not count. `last` keeps the newest ones whatever their time. A rule that has not kept as many as it
//! says when it comes to the oldest snapshot keeps that one too: so the history grows until it is as long as the rule. A
//! snapshot is kept if at least one rule keeps it.
//!
//! Hours and days are those of the schedule's time zone; weeks begin on Monday.

use core::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The newest.
    Last,
    /// One for each hour.
    Hourly,
    /// One for each day.
    Daily,
    /// One for each week.
    Weekly,
    /// One for each month.
    Monthly,
    /// One for each year.
    Yearly,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Last,
        Self::Hourly,
        Self::Daily,
        Self::Weekly,
        Self::Monthly,
        Self::Yearly,
    ];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

/// How many snapshots each rule keeps, in the order of [`Rule::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep(pub [u32; 6]);

impl Keep {
    /// How many this rule keeps.
    #[must_use]
    pub fn of(&self, rule: Rule) -> u32 {
        self.0[rule as usize]
    }

    /// How many all rules keep together at most.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|&count| u64::from(count)).sum()
    }
}

/// Why a snapshot is kept: for each rule that does, the how-manieth of that rule it is, counted from the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict([u32; 6]);

impl Verdict {
    /// Whether any rule keeps it.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.0.iter().any(|&number| number > 0)
    }

    /// The rules that keep it, with its number in each.
    pub fn reasons(&self) -> impl Iterator<Item = (Rule, u32)> + '_ {
        Rule::ALL
            .into_iter()
            .map(|rule| (rule, self.0[rule as usize]))
            .filter(|&(_, number)| number > 0)
    }
}

/// Judges snapshots by their time stamps, in nanoseconds since the Unix epoch, oldest first.
#[must_use]
pub fn judge(keep: &Keep, zone: &TimeZone, time_stamps_ns: &[u64]) -> Vec<Verdict> {
    let mut verdicts = vec![Verdict::default(); time_stamps_ns.len()];
    for rule in Rule::ALL {
        let (mut kept, mut newer) = (0, None);
        for (index, &time_stamp_ns) in time_stamps_ns.iter().enumerate().rev() {
            if kept == keep.of(rule) {
                break;
            }
            let of = slot(rule, zone, time_stamp_ns, index);
            if newer != Some(of) || index == 0 {
                kept += 1;
                verdicts[index].0[rule as usize] = kept;
                newer = Some(of);
            }
        }
    }
    verdicts
}

/// The hour (day, ...) of a snapshot, as a number that no other one has.
fn slot(rule: Rule, zone: &TimeZone, time_stamp_ns: u64, index: usize) -> i64 {
    let Ok(stamp) = Timestamp::from_nanosecond(i128::from(time_stamp_ns)) else {
        // Beyond what a calendar can say (the year 9999): each for itself.
        return index as i64;
    };
    let local_s = || stamp.as_second() + i64::from(zone.to_offset(stamp).seconds());
    let local_day = || local_s().div_euclid(24 * 3600);
    let month = || {
        let date = zone.to_datetime(stamp).date();
        i64::from(date.year()) * 12 + i64::from(date.month()) - 1
    };
    match rule {
        Rule::Last => index as i64,
        Rule::Hourly => local_s().div_euclid(3600),
        Rule::Daily => local_day(),
        // The first of January 1970 was a Thursday.
        Rule::Weekly => (local_day() + 3).div_euclid(7),
        Rule::Monthly => month(),
        Rule::Yearly => month().div_euclid(12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn ns(text: &str) -> u64 {
        let stamp: Timestamp = text.parse().expect("a time");
        stamp.as_nanosecond() as u64
    }

    fn keep(last: u32, hourly: u32, daily: u32, weekly: u32, monthly: u32, yearly: u32) -> Keep {
        Keep([last, hourly, daily, weekly, monthly, yearly])
    }

    /// Which of these are kept, by their place.
    fn kept(keep: &Keep, stamps: &[u64]) -> Vec<usize> {
        let verdicts = judge(keep, &TimeZone::UTC, stamps);
        (0..stamps.len())
            .filter(|&index| verdicts[index].is_kept())
            .collect()
    }

    #[test]
    fn the_newest_of_each_hour_is_kept_and_hours_without_one_do_not_count() {
        let stamps: Vec<u64> = [
            "2026-11-22T01:10:00Z",
            "2026-11-22T01:50:00Z",
            "2026-11-22T02:10:00Z",
            "2026-11-22T02:50:00Z",
            "2026-11-22T07:10:00Z",
            "2026-11-22T07:50:00Z",
        ]
        .map(ns)
        .to_vec();
        assert_eq!(kept(&keep(0, 1, 0, 0, 0, 0), &stamps), [5]);
        assert_eq!(kept(&keep(0, 2, 0, 0, 0, 0), &stamps), [3, 5]);
        assert_eq!(kept(&keep(0, 3, 0, 0, 0, 0), &stamps), [1, 3, 5]);
        assert_eq!(
            kept(&keep(0, 4, 0, 0, 0, 0), &stamps),
            [0, 1, 3, 5],
            "the rule has room left: the oldest stays"
        );
        assert_eq!(kept(&keep(2, 0, 0, 0, 0, 0), &stamps), [4, 5]);
        assert_eq!(kept(&keep(2, 2, 0, 0, 0, 0), &stamps), [3, 4, 5]);
        assert_eq!(kept(&keep(0, 0, 0, 0, 0, 0), &stamps), [] as [usize; 0]);
    }

    #[test]
    fn weeks_begin_on_monday_and_years_on_the_first_of_january() {
        let stamps: Vec<u64> = [
            "2026-12-27T12:00:00Z", // Sunday
            "2026-12-28T12:00:00Z", // Monday of the week that ends with the third of January
            "2026-12-31T23:59:59Z",
            "2027-01-01T00:00:00Z",
            "2027-01-03T12:00:00Z", // Sunday
            "2027-01-04T12:00:00Z",
        ]
        .map(ns)
        .to_vec();
        assert_eq!(kept(&keep(0, 0, 0, 2, 0, 0), &stamps), [4, 5]);
        assert_eq!(kept(&keep(0, 0, 0, 3, 0, 0), &stamps), [0, 4, 5]);
        assert_eq!(kept(&keep(0, 0, 0, 0, 1, 0), &stamps), [5]);
        assert_eq!(kept(&keep(0, 0, 0, 0, 2, 0), &stamps), [2, 5]);
        assert_eq!(kept(&keep(0, 0, 0, 0, 0, 2), &stamps), [2, 5]);
    }

    #[test]
    fn days_are_those_of_the_time_zone() {
        // Berlin: UTC+1 in winter; the clock goes forward on 2027-03-28 at 02:00 and back on 2027-10-31 at 03:00.
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone");
        let stamps = [
            ns("2027-03-27T22:30:00Z"), // 23:30 on the 27th
            ns("2027-03-27T23:30:00Z"), // 00:30 on the 28th
            ns("2027-03-28T21:30:00Z"), // 23:30 on the 28th, in summer time
            ns("2027-03-28T22:30:00Z"), // 00:30 on the 29th
        ];
        let verdicts = judge(&keep(0, 0, 3, 0, 0, 0), &berlin, &stamps);
        let kept: Vec<bool> = verdicts.iter().map(Verdict::is_kept).collect();
        assert_eq!(kept, [true, false, true, true]);
        // The hour that is there twice counts once: it has one name.
        let twice = [
            ns("2027-10-31T00:30:00Z"),
            ns("2027-10-31T01:30:00Z"),
            ns("2027-10-31T02:30:00Z"),
        ];
        let verdicts = judge(&keep(0, 2, 0, 0, 0, 0), &berlin, &twice);
        let kept: Vec<bool> = verdicts.iter().map(Verdict::is_kept).collect();
        assert_eq!(kept, [false, true, true]);
    }

    #[test]
    fn a_long_life_comes_to_what_the_rules_say() {
        let keep = keep(60, 24, 7, 4, 12, 0);
        let mut stamps: Vec<u64> = Vec::new();
        // Every 10 minutes for 400 days; pruned after each.
        let start = ns("2026-01-01T00:00:00Z");
        for run in 0..400 * 144u64 {
            stamps.push(start + run * 600 * S);
            let verdicts = judge(&keep, &TimeZone::UTC, &stamps);
            let mut verdicts = verdicts.iter();
            stamps.retain(|_| verdicts.next().expect("one each").is_kept());
        }
        assert!(
            stamps.len() as u64 <= keep.total() && stamps.len() > 90,
            "{}",
            stamps.len()
        );
        let verdicts = judge(&keep, &TimeZone::UTC, &stamps);
        for rule in Rule::ALL {
            let of_rule = verdicts
                .iter()
                .filter(|verdict| verdict.reasons().any(|(of, _)| of == rule))
                .count();
            assert_eq!(of_rule as u32, keep.of(rule), "{rule}");
        }
    }

    proptest! {
        #[test]
        fn laws_of_any_history(
            mut stamps in prop::collection::vec(0u64..4_000_000_000 * S, 0..60),
            step in prop_oneof![Just(1u64), Just(1000), Just(1_000_000)],
            counts in prop::array::uniform6(0u32..5),
        ) {
            stamps.iter_mut().for_each(|stamp| *stamp /= step);
            stamps.sort_unstable();
            let keep = Keep(counts);
            let verdicts = judge(&keep, &TimeZone::UTC, &stamps);
            for rule in Rule::ALL {
                let numbers: Vec<u32> = verdicts
                    .iter()
                    .rev()
                    .flat_map(|verdict| verdict.reasons().filter(|&(of, _)| of == rule))
                    .map(|(_, number)| number)
                    .collect();
                let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
                prop_assert_eq!(&numbers, &expected, "numbered from the newest");
                prop_assert!(numbers.len() as u32 <= keep.of(rule));
            }
            if keep.total() > 0 && !stamps.is_empty() {
                prop_assert!(verdicts[stamps.len() - 1].is_kept(), "the newest stays");
            }
            // What stays, stays when nothing is added.
            let left: Vec<u64> = stamps
                .iter()
                .zip(&verdicts)
                .filter(|(_, verdict)| verdict.is_kept())
                .map(|(&stamp, _)| stamp)
                .collect();
            prop_assert!(judge(&keep, &TimeZone::UTC, &left).iter().all(Verdict::is_kept));
            // A rule that keeps more keeps the same ones too.
            let more = Keep(counts.map(|count| count + 1));
            let with_more = judge(&more, &TimeZone::UTC, &stamps);
            for (few, many) in verdicts.iter().zip(&with_more) {
                prop_assert!(!few.is_kept() || many.is_kept());
            }
        }
    }
}
