//! Laws of due times, with clocks that jump and days that have no two o'clock.

use super::*;
use proptest::prelude::*;

fn ns(text: &str) -> u64 {
    let stamp: Timestamp = text.parse().expect("a time");
    stamp.as_nanosecond() as u64
}

fn text(ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(ns))
        .expect("a time")
        .to_string()
}

/// Central European time: summer time begins on 2027-03-28 at 01:00 UTC, ends on 2027-10-31 at 01:00 UTC.
fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone")
}

fn cron(line: &str, zone: TimeZone) -> Timing {
    Timing::cron(line, zone).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn next(timing: &Timing, from: &str, count: usize) -> Vec<String> {
    let mut at = ns(from);
    (0..count)
        .map_while(|_| {
            at = timing.next_after(at)?;
            Some(text(at))
        })
        .collect()
}

#[test]
fn every_so_often_is_in_phase_with_the_clock() {
    let quarter = Timing::every(900 * S).expect("a period");
    assert_eq!(
        next(&quarter, "2026-11-22T10:15:00Z", 3),
        [
            "2026-11-22T10:30:00Z",
            "2026-11-22T10:45:00Z",
            "2026-11-22T11:00:00Z"
        ]
    );
    let second = Timing::every(S).expect("a period");
    assert_eq!(
        next(&second, "2026-11-22T10:15:00.999999999Z", 1),
        ["2026-11-22T10:15:01Z"]
    );
    for period_ns in [0, 1, S / 2, S + 1, PERIOD_NS_MAX + S, u64::MAX] {
        assert!(Timing::every(period_ns).is_err(), "{period_ns}");
    }
    assert_eq!(second.next_after(u64::MAX), None);
}

#[test]
fn a_cron_line_is_read_by_the_wall_clock_of_its_zone() {
    let nightly = cron("30 2 * * *", berlin());
    assert_eq!(
        next(&nightly, "2026-11-22T10:00:00Z", 2),
        ["2026-11-23T01:30:00Z", "2026-11-24T01:30:00Z"]
    );
    let office = cron("0 9-17/4 * * MON-FRI", TimeZone::UTC);
    assert_eq!(
        next(&office, "2026-11-20T14:00:00Z", 3),
        [
            "2026-11-20T17:00:00Z",
            "2026-11-23T09:00:00Z",
            "2026-11-23T13:00:00Z"
        ]
    );
    let seconds = cron("*/20 * * * * *", TimeZone::UTC);
    assert_eq!(
        next(&seconds, "2026-11-22T10:00:00.5Z", 1),
        ["2026-11-22T10:00:20Z"]
    );
}

#[test]
fn a_night_without_that_hour_has_its_run_and_a_night_with_two_has_one() {
    let nightly = cron("30 2 * * *", berlin());
    assert_eq!(
        next(&nightly, "2027-03-27T12:00:00Z", 2),
        ["2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"],
        "02:30 is left out: at 03:00, when the clock has gone forward"
    );
    assert_eq!(
        next(&nightly, "2027-10-30T12:00:00Z", 2),
        ["2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"],
        "02:30 is there twice: at the first of them"
    );
    let hourly = cron("0 * * * *", berlin());
    assert_eq!(
        next(&hourly, "2027-10-30T23:30:00Z", 4),
        [
            "2027-10-31T00:00:00Z",
            "2027-10-31T01:00:00Z",
            "2027-10-31T02:00:00Z",
            "2027-10-31T03:00:00Z"
        ],
        "an hourly one goes on every hour"
    );
    assert_eq!(
        next(&hourly, "2027-03-27T23:30:00Z", 3),
        [
            "2027-03-28T00:00:00Z",
            "2027-03-28T01:00:00Z",
            "2027-03-28T02:00:00Z"
        ]
    );
}

#[test]
fn what_is_no_cron_line_is_refused_and_what_never_comes_is_never_due() {
    for line in [
        "",
        "* * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * * * * * *",
        "every day",
        "5-1 * * * *",
        "*/0 * * * *",
        "99999999999999999999 * * * *",
    ] {
        assert!(Timing::cron(line, TimeZone::UTC).is_err(), "{line:?}");
    }
    let never = cron("0 0 30 2 *", TimeZone::UTC);
    assert_eq!(never.next_after(ns("2026-11-22T00:00:00Z")), None);
    assert_eq!(never.look(&mut 0, S), Look::Never);
    assert_eq!(never.count(0, u64::MAX), 0);
}

#[test]
fn after_downtime_there_is_one_run_and_the_rest_is_missed() {
    let minutely = Timing::every(60 * S).expect("a period");
    let mut done = ns("2026-11-22T10:00:00Z");
    let now = ns("2026-11-22T10:30:20Z");
    assert_eq!(minutely.look(&mut done, now), Look::Run { missed: 29 });
    assert_eq!(done, now);
    let due_ns = ns("2026-11-22T10:31:00Z");
    assert_eq!(
        minutely.look(&mut done, now),
        Look::Wait { due_ns },
        "and then in phase"
    );
    let nightly = cron("0 3 * * *", TimeZone::UTC);
    let mut done = ns("2026-11-22T10:00:00Z");
    let due_ns = ns("2026-11-23T03:00:00Z");
    assert_eq!(nightly.look(&mut done, now), Look::Wait { due_ns });
    let days_later = ns("2026-11-26T12:00:00Z");
    assert_eq!(nightly.look(&mut done, days_later), Look::Run { missed: 3 });
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_the_runs() {
    let minutely = Timing::every(60 * S).expect("a period");
    let mut done = ns("2026-11-22T10:00:00Z");
    let due_ns = ns("2026-11-22T08:01:00Z");
    let now = ns("2026-11-22T08:00:30Z");
    assert_eq!(minutely.look(&mut done, now), Look::Wait { due_ns });
    assert_eq!(minutely.look(&mut done, due_ns), Look::Run { missed: 0 });
}

#[test]
fn a_clock_that_is_adjusted_runs_nothing_twice() {
    let second = Timing::every(S).expect("a period");
    let mut done = ns("2026-11-22T10:00:00Z");
    let now = done + S + S / 1000;
    assert_eq!(second.look(&mut done, now), Look::Run { missed: 0 });
    let due_ns = ns("2026-11-22T10:00:02Z");
    assert_eq!(second.look(&mut done, now - S / 500), Look::Wait { due_ns });
}

#[test]
fn counting_ends_somewhere() {
    let second = Timing::every(S).expect("a period");
    assert_eq!(second.count(0, u64::MAX), MISSED_MAX);
    assert_eq!(second.look(&mut 0, 1000 * S), Look::Run { missed: 999 });
}

#[test]
fn names_of_runs_say_the_second_and_are_in_the_order_of_time() {
    assert_eq!(
        run_name("nightly", ns("2026-11-22T10:15:00.7Z")),
        "nightly-20261122T101500Z"
    );
    let names: Vec<String> = (0..100)
        .map(|s| run_name("n", ns("2026-12-31T23:59:00Z") + s * S))
        .collect();
    assert!(names.is_sorted_by(|a, b| a < b));
}

fn timings() -> impl Strategy<Value = Timing> {
    let every = (1u64..10_000).prop_map(|s| Timing::every(s * S).expect("a period"));
    let lines = [
        "* * * * *",
        "*/7 * * * *",
        "0 */3 * * *",
        "30 2 * * *",
        "*/10 * * * * *",
    ];
    let by_cron = (prop::sample::select(lines.to_vec()), any::<bool>())
        .prop_map(|(line, utc)| cron(line, if utc { TimeZone::UTC } else { berlin() }));
    prop_oneof![every, by_cron]
}

proptest! {
    /// Whatever the pauses between two looks, each due time is run or missed, and none twice.
    #[test]
    fn every_due_time_is_run_or_missed_once(
        timing in timings(),
        // Around the end of summer time.
        start_s in 1_824_900_000u64..1_825_000_000,
        steps_s in prop::collection::vec(prop_oneof![0u64..5, 0u64..600, 0u64..9_000], 1..60),
    ) {
        let start = start_s * S;
        let (mut done, mut now) = (start, start);
        let (mut dealt_with, mut due) = (0, 0);
        for step_s in steps_s {
            due += timing.count(now, now + step_s * S);
            now += step_s * S;
            match timing.look(&mut done, now) {
                Look::Run { missed } => dealt_with += 1 + missed,
                Look::Wait { due_ns } => {
                    prop_assert!(due_ns > now);
                    prop_assert_eq!(Some(due_ns), timing.next_after(now));
                }
                Look::Never => prop_assert!(false, "these are always due again"),
            }
        }
        prop_assert_eq!(dealt_with, due);
    }

    /// Whatever the clock did: from then on what is due next by its time is run, at that time.
    #[test]
    fn a_clock_that_jumps_never_stops_a_schedule(
        timing in timings(),
        nows_s in prop::collection::vec(1_824_900_000u64..1_825_000_000, 1..30),
    ) {
        let mut done = nows_s[0] * S;
        for now in nows_s.into_iter().map(|s| s * S) {
            if let Look::Wait { due_ns } = timing.look(&mut done, now) {
                prop_assert!(Some(due_ns) <= timing.next_after(now + SLEW_NS));
                prop_assert_eq!(timing.look(&mut done, due_ns), Look::Run { missed: 0 });
            }
        }
    }

    #[test]
    fn any_text_is_refused_or_a_line(line in "[-0-9*/,A-Z# ?LW@]{0,40}") {
        if let Ok(timing) = Timing::cron(&line, TimeZone::UTC)
            && let Some(next) = timing.next_after(1_700_000_000 * S)
        {
            prop_assert!(next > 1_700_000_000 * S);
        }
    }
}
