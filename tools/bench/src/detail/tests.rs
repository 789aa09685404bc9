use super::*;
use crate::figures::{Ended, Figures, Verdict};
use crate::job::Job;

const MS: u64 = 1_000_000;

/// Two seconds of 50 us; a snapshot at 1 s that makes the ten milliseconds from it on take 2 ms, and an event whose name
/// means no good.
pub(crate) fn outcome() -> (Outcome, Vec<Happening>) {
    let job = Job {
        name: "<job> & \"co\"".into(),
        time_ns: 2000 * MS,
        timeline: true,
        ..Job::default()
    };
    let mut figures = Figures::of(&job);
    for ms in 0..2000 {
        let response_ns = if (1000..1010).contains(&ms) {
            2 * MS
        } else {
            50_000
        };
        let kind = if ms % 4 == 0 { Kind::Write } else { Kind::Read };
        figures.ended(Ended {
            kind,
            length_bytes: 4096,
            intended_ns: ms * MS,
            response_ns,
            service_ns: response_ns / 2,
        });
    }
    let happening = |at_ms: i64, kind: &str, subject: &str| Happening {
        began_ns: at_ms * MS as i64,
        ended_ns: (at_ms + 3) * MS as i64,
        kind: kind.into(),
        subject: subject.into(),
        text: "taken <b>".into(),
    };
    let happenings = vec![
        happening(-500, SNAPSHOT, "vol@before"),
        happening(1000, SNAPSHOT, "vol@<script>alert(1)</script>"),
        happening(1500, "checkpointed", "shard 1"),
    ];
    let outcome = Outcome {
        job,
        figures,
        began_wall_ns: 1_700_000_000_000_000_000,
        clock_moved_ns: 0,
        cores: vec![None],
        verdict: Verdict::Sound,
    };
    (outcome, happenings)
}

#[test]
fn what_was_before_and_after_a_snapshot_is_told_apart() {
    let (outcome, happenings) = outcome();
    let detail = Detail::of(&outcome, Some(happenings), Machine::default()).expect("a timeline");
    assert_eq!(detail.snapshots.len(), 1, "the other was before the run");
    let one = &detail.snapshots[0];
    assert_eq!((one.before.requests, one.before.max_ns), (50, 50_000));
    assert_eq!((one.after.requests, one.after.max_ns), (50, 2 * MS));
    assert_eq!(one.took_ns, 3 * MS);
    assert_eq!(detail.around.len(), 100);
    assert_eq!(
        (detail.around[49].ms, detail.around[49].responses.max_ns),
        (-1, 50_000)
    );
    assert_eq!(
        (detail.around[50].ms, detail.around[50].responses.max_ns),
        (0, 2 * MS)
    );
    assert_eq!(detail.around[60].responses.max_ns, 50_000);
    assert_eq!(detail.stalls.found, 1);
    assert_eq!(
        detail.stalls.list[0].meanwhile,
        ["snapshot_taken vol@<script>alert(1)</script>"]
    );
}

#[test]
fn columns_and_cells_have_every_request_once() {
    let (outcome, _) = outcome();
    let detail = Detail::of(&outcome, None, Machine::default()).expect("a timeline");
    assert_eq!(
        detail.columns.iter().map(|column| column.started).sum::<u64>(),
        2000
    );
    assert_eq!(detail.heat.iter().map(|cell| cell.2).sum::<u64>(), 2000);
    assert!(detail.columns.len() <= COLUMNS_MAX);
    assert!(detail.happenings.is_none() && detail.around.is_empty());
    let kinds: Vec<_> = detail
        .curves
        .iter()
        .map(|curve| (curve.what, curve.count))
        .collect();
    assert_eq!(kinds, [("all", 2000), ("read", 1500), ("write", 500)]);
    let response = &detail.curves[0].response;
    assert!(response.is_sorted_by(|a, b| a.quantile < b.quantile && a.ns <= b.ns));
    assert_eq!(response.last().expect("points").quantile, 1.0);
}
