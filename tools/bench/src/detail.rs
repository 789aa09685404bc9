//! What a report shows beyond the summary: curves, what happened when, stalls, snapshots, the machine.

use serde::Serialize;

use crate::figures::{Latency, Times};
use crate::machine::Machine;
use crate::run::Outcome;
use crate::schedule::Kind;
use crate::stalls::{Happening, Stalls};
use crate::timeline::{Pooled, ROWS, SLOT_NS_MIN, Timeline, row_begin_ns};

/// Version of [`Detail`] in JSON: it changes when a field changes its meaning or goes.
pub const VERSION: u32 = 1;
/// Columns of time at most.
pub const COLUMNS_MAX: usize = 300;
/// The kind of a happening that is a snapshot.
pub const SNAPSHOT: &str = "snapshot_taken";
/// So much before and after a snapshot is looked at, in milliseconds.
pub const AROUND_MS: usize = 50;
/// Snapshots that are listed at most; all of them are in [`Detail::around`].
pub const SNAPSHOTS_MAX: usize = 500;
/// Steps of a curve for each factor of ten of what is left above.
const CURVE_STEPS: u32 = 20;

/// See the module. All times in nanoseconds; positions in time count from the first moment of the run that counts.
#[derive(Clone, Debug, Serialize)]
pub struct Detail {
    /// [`VERSION`].
    pub version: u32,
    /// Of all requests but flushes, and of each kind that there was, if there were several.
    pub curves: Vec<Curve>,
    /// How long the run counted.
    pub time_ns: u64,
    /// The finest times that are told apart below.
    pub slot_ns: u64,
    /// Length of a column; the last may be cut short by the end.
    pub column_ns: u64,
    /// From the first to the last.
    pub columns: Vec<Column>,
    /// The shortest response of each row of the heatmap.
    pub heat_rows_ns: Vec<u64>,
    /// Column, row, requests; where there are any.
    pub heat: Vec<(u32, u32, u64)>,
    /// See [`Stalls`].
    pub stalls: Stalls,
    /// What the daemon says happened; `None` if it was not asked.
    pub happenings: Option<Vec<Happening>>,
    /// What was before and after each snapshot; the first [`SNAPSHOTS_MAX`].
    pub snapshots: Vec<Snapshot>,
    /// All snapshots together, for each millisecond from 50 before to 50 after; empty if there were none or slots are
    /// longer than a millisecond.
    pub around: Vec<Moment>,
    /// So much the wall clock moved against the monotonic one during the run: positions of happenings are not more exact.
    pub clock_moved_ns: u64,
    /// Where it ran.
    pub machine: Machine,
}

/// Percentiles of a kind of request.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// `all`, or a kind.
    pub what: &'static str,
    /// Requests.
    pub count: u64,
    /// From the intended start.
    pub response: Vec<Point>,
    /// From the real start.
    pub service: Vec<Point>,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// This share of the requests, from 0 to 1...
    pub quantile: f64,
    /// ...took no longer.
    pub ns: u64,
}

/// The requests that were to start in a column of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Column {
    /// When it begins.
    pub at_ns: u64,
    /// How many there were.
    pub started: u64,
    /// How many requests ended in it.
    pub ended: u64,
    /// Their mean response.
    pub mean_ns: f64,
    /// Half of them took no longer; to a quarter.
    pub p50_ns: u64,
    /// 99 of a hundred; to a quarter.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// A snapshot, and the 50 ms before and after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// What the daemon says of it.
    pub text: String,
    /// When it was asked for.
    pub began_ns: i64,
    /// From then until it was committed and told.
    pub took_ns: u64,
    /// Requests that were to start before, in 50 ms.
    pub before: Responses,
    /// Requests that were to start from then on, in 50 ms.
    pub after: Responses,
}

/// Responses of some requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Responses {
    /// How many.
    pub requests: u64,
    /// 99 of a hundred took no longer; to a quarter.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// A millisecond before or after snapshots, over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// The milliseconds from the snapshot to its begin.
    pub ms: i64,
    /// Half took no longer; to a quarter.
    pub p50_ns: u64,
    /// The rest is as in [`Responses`].
    #[serde(flatten)]
    pub responses: Responses,
}

impl Detail {
    /// Of a run with a timeline; `None` without.
    #[must_use]
    pub fn of(outcome: &Outcome, happenings: Option<Vec<Happening>>, machine: Machine) -> Option<Self> {
        let timeline = outcome.figures.timeline.as_ref()?;
        let told = happenings.as_deref().unwrap_or_default();
        let per_column = timeline.slot_count().div_ceil(COLUMNS_MAX).max(1);
        let pooled = columns(timeline, per_column);
        let column_ns = per_column as u64 * timeline.slot_ns();
        let (around, snapshots) = if timeline.slot_ns() == SLOT_NS_MIN {
            (around(timeline, told), snapshots(timeline, told))
        } else {
            (Vec::new(), Vec::new())
        };
        Some(Self {
            version: VERSION,
            curves: curves(outcome),
            time_ns: outcome.job.time_ns,
            slot_ns: timeline.slot_ns(),
            column_ns,
            columns: pooled
                .iter()
                .enumerate()
                .map(|(index, pooled)| column(index as u64 * column_ns, pooled))
                .collect(),
            heat_rows_ns: (0..ROWS).map(row_begin_ns).collect(),
            heat: heat(&pooled),
            stalls: Stalls::of(timeline, told),
            around,
            snapshots,
            happenings,
            clock_moved_ns: outcome.clock_moved_ns,
            machine,
        })
    }
}

fn curves(outcome: &Outcome) -> Vec<Curve> {
    let figures = &outcome.figures;
    let curve = |what, latency: &Latency| Curve {
        what,
        count: latency.response.len(),
        response: points(&latency.response),
        service: points(&latency.service),
    };
    let kinds = || {
        Kind::ALL
            .into_iter()
            .filter(|&kind| !figures.kind(kind).response.is_empty())
    };
    let mut curves = vec![curve("all", &figures.all())];
    if kinds().count() > 1 {
        curves.extend(kinds().map(|kind| curve(kind.word(), figures.kind(kind))));
    }
    curves
}

/// Up to 99.999%, as far as there are requests above; then the longest.
fn points(times: &Times) -> Vec<Point> {
    let mut points = Vec::new();
    if times.is_empty() {
        return points;
    }
    for step in 0..=5 * CURVE_STEPS {
        let left = 10f64.powf(-f64::from(step) / f64::from(CURVE_STEPS));
        if left * (times.len() as f64) < 1.0 {
            break;
        }
        let quantile = 1.0 - left;
        points.push(Point {
            quantile,
            ns: times.value_at_quantile(quantile),
        });
    }
    points.push(Point {
        quantile: 1.0,
        ns: times.max(),
    });
    points
}

fn columns(timeline: &Timeline, per_column: usize) -> Vec<Pooled> {
    (0..timeline.slot_count())
        .step_by(per_column)
        .map(|first| {
            let last = (first + per_column).min(timeline.slot_count());
            (first..last).map(|index| timeline.slot(index)).collect()
        })
        .collect()
}

fn column(at_ns: u64, pooled: &Pooled) -> Column {
    Column {
        at_ns,
        started: pooled.started,
        ended: pooled.ended,
        mean_ns: pooled.sum_ns as f64 / pooled.started.max(1) as f64,
        p50_ns: pooled.at_quantile(0.5),
        p99_ns: pooled.at_quantile(0.99),
        max_ns: pooled.max_ns,
    }
}

fn heat(columns: &[Pooled]) -> Vec<(u32, u32, u64)> {
    let cells = columns.iter().enumerate().flat_map(|(column, pooled)| {
        let rows = pooled.rows.iter().enumerate();
        rows.filter(|(_, count)| **count > 0)
            .map(move |(row, &count)| (column as u32, row as u32, count))
    });
    cells.collect()
}

fn responses(pooled: &Pooled) -> Responses {
    Responses {
        requests: pooled.started,
        p99_ns: pooled.at_quantile(0.99),
        max_ns: pooled.max_ns,
    }
}

fn of_snapshots(happenings: &[Happening]) -> impl Iterator<Item = &Happening> {
    happenings.iter().filter(|one| one.kind == SNAPSHOT)
}

/// The slot in which something began; `None` if that is outside of the run.
fn slot_of(timeline: &Timeline, began_ns: i64) -> Option<usize> {
    let index = usize::try_from(began_ns.div_euclid(timeline.slot_ns() as i64)).ok()?;
    (index < timeline.slot_count()).then_some(index)
}

fn snapshots(timeline: &Timeline, happenings: &[Happening]) -> Vec<Snapshot> {
    let found = of_snapshots(happenings).filter_map(|one| {
        let slot = slot_of(timeline, one.began_ns)?;
        let pooled = |slots: std::ops::Range<usize>| slots.map(|index| timeline.slot(index)).collect();
        Some(Snapshot {
            name: one.subject.clone(),
            text: one.text.clone(),
            began_ns: one.began_ns,
            took_ns: (one.ended_ns - one.began_ns).max(0) as u64,
            before: responses(&pooled(slot.saturating_sub(AROUND_MS)..slot)),
            after: responses(&pooled(slot..slot + AROUND_MS)),
        })
    });
    found.take(SNAPSHOTS_MAX).collect()
}

/// What requests took in each millisecond before and after all snapshots.
#[must_use]
pub fn around(timeline: &Timeline, happenings: &[Happening]) -> Vec<Moment> {
    let slots: Vec<usize> = of_snapshots(happenings)
        .filter_map(|one| slot_of(timeline, one.began_ns))
        .collect();
    if slots.is_empty() {
        return Vec::new();
    }
    (-(AROUND_MS as i64)..AROUND_MS as i64)
        .map(|ms| {
            let at = slots
                .iter()
                .filter_map(|&slot| usize::try_from(slot as i64 + ms).ok());
            let pooled: Pooled = at.map(|index| timeline.slot(index)).collect();
            Moment {
                ms,
                p50_ns: pooled.at_quantile(0.5),
                responses: responses(&pooled),
            }
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
