//! The charts of a report.

use super::plot::{Plot, Scale};
use super::{at, time};
use crate::detail::{AROUND_MS, Column, Curve, Detail, Point};
use crate::stalls::Happening;

/// Strengths of colour in a heatmap.
const LEVELS: usize = 8;
/// Events that are marked at most.
const MARKS_MAX: usize = 500;

/// Percentiles up to 99.999%, both axes in factors.
pub fn curve(curve: &Curve) -> String {
    let shown = |points: &[Point]| -> Vec<Point> {
        points
            .iter()
            .copied()
            .filter(|point| point.quantile <= 0.999_990_1)
            .collect()
    };
    let (response, service) = (shown(&curve.response), shown(&curve.service));
    let all = || response.iter().chain(&service).map(|point| point.ns as f64);
    let low = all().fold(f64::INFINITY, f64::min).min(1e9);
    let y = Scale::factors(low, all().fold(1.0, f64::max));
    let mut plot = Plot::new(Scale::even(0.0, 5.0), y);
    plot.grid_y_times();
    let marks = [
        (0.0, "0%"),
        (std::f64::consts::LOG10_2, "50%"),
        (1.0, "90%"),
        (2.0, "99%"),
        (3.0, "99.9%"),
        (4.0, "99.99%"),
        (5.0, "99.999%"),
    ];
    plot.grid_x(&marks.map(|(place, label)| (place, label.to_owned())));
    let place = |point: &Point| -(1.0 - point.quantile).max(1e-9).log10();
    let line = |points: &[Point]| -> Vec<_> {
        points
            .iter()
            .map(|point| Some((place(point), point.ns as f64)))
            .collect()
    };
    plot.line("first", "response", line(&response));
    plot.line("second", "service", line(&service));
    for (one, other) in response.iter().zip(&service) {
        let says = format!(
            "{:.4}%: response {}, service {}",
            one.quantile * 100.0,
            time(one.ns as f64),
            time(other.ns as f64)
        );
        plot.tip(place(one) - 0.025, place(one) + 0.025, &says);
    }
    plot.svg("percentiles of response and service time")
}

/// Time from left to right.
fn over_time(detail: &Detail, y: Scale) -> Plot {
    Plot::new(Scale::even(0.0, detail.time_ns as f64 / 1e9), y)
}

fn stalls(plot: &mut Plot, detail: &Detail) {
    for stall in &detail.stalls.list {
        let says = format!(
            "stall at {} of {}: {}",
            at(stall.began_ns as i64),
            time((stall.ended_ns - stall.began_ns) as f64),
            stall.meanwhile.join(", ")
        );
        plot.band(
            "stall",
            stall.began_ns as f64 / 1e9,
            stall.ended_ns as f64 / 1e9,
            &says,
        );
    }
}

fn marks(plot: &mut Plot, detail: &Detail) {
    let happenings = detail.happenings.as_deref().unwrap_or_default();
    let inside = |one: &&Happening| one.ended_ns >= 0;
    for one in happenings.iter().filter(inside).take(MARKS_MAX) {
        let says = format!("{}: {} {}", at(one.began_ns), one.kind, one.subject);
        let class = match one.kind.as_str() {
            crate::detail::SNAPSHOT => "mark snapshot",
            _ => "mark",
        };
        plot.mark(class, one.began_ns as f64 / 1e9, &says);
    }
}

/// Time from left to right, response time from below.
pub fn heatmap(detail: &Detail) -> String {
    let rows = || detail.heat.iter().map(|cell| cell.1 as usize);
    let begin_ns = |row: usize| match row {
        0 => 500.0,
        row => detail.heat_rows_ns.get(row).map_or(100e9, |&ns| ns as f64),
    };
    let y = Scale::factors(
        begin_ns(rows().min().unwrap_or(0)),
        begin_ns(rows().max().unwrap_or(0) + 1),
    );
    let mut plot = over_time(detail, y);
    plot.grid_y_times();
    plot.grid_x_round(|seconds| format!("{seconds} s"));
    stalls(&mut plot, detail);
    let most = detail.heat.iter().map(|cell| cell.2).max().unwrap_or(1) as f64;
    let level = |count: u64| ((count as f64).ln() / (most + 1.0).ln() * LEVELS as f64) as usize;
    let column_s = detail.column_ns as f64 / 1e9;
    for strength in 0..LEVELS {
        let of_strength = detail.heat.iter().filter(|cell| level(cell.2) == strength);
        let cells = of_strength.map(|&(column, row, _)| {
            let (left, row) = (f64::from(column) * column_s, row as usize);
            (left, left + column_s, begin_ns(row), begin_ns(row + 1))
        });
        let cells: Vec<_> = cells.collect();
        plot.cells(&format!("heat h{strength}"), cells);
    }
    marks(&mut plot, detail);
    for column in detail.columns.iter().filter(|column| column.started > 0) {
        let from = column.at_ns as f64 / 1e9;
        let says = format!(
            "{}: {} requests, p50 {}, p99 {}, longest {}",
            at(column.at_ns as i64),
            column.started,
            time(column.p50_ns as f64),
            time(column.p99_ns as f64),
            time(column.max_ns as f64)
        );
        plot.tip(from, from + column_s, &says);
    }
    plot.svg("response times over time")
}

/// Requests a second, over time.
pub fn throughput(detail: &Detail) -> String {
    let column_s = detail.column_ns as f64 / 1e9;
    let rate = |column: &Column, count: u64| {
        let left_ns = detail
            .time_ns
            .saturating_sub(column.at_ns)
            .clamp(1, detail.column_ns);
        count as f64 * 1e9 / left_ns as f64
    };
    let columns = detail.columns.iter();
    let most = columns.map(|column| rate(column, column.started.max(column.ended)));
    let mut plot = over_time(detail, Scale::even(0.0, most.fold(1.0, f64::max) * 1.05));
    plot.grid_y(|value| format!("{value}"));
    plot.grid_x_round(|seconds| format!("{seconds} s"));
    stalls(&mut plot, detail);
    let line = |of: fn(&Column) -> u64| -> Vec<_> {
        let columns = detail.columns.iter();
        columns
            .map(|column| {
                Some((
                    column.at_ns as f64 / 1e9 + column_s / 2.0,
                    rate(column, of(column)),
                ))
            })
            .collect()
    };
    plot.line("third", "were to start", line(|column| column.started));
    plot.line("first", "ended", line(|column| column.ended));
    marks(&mut plot, detail);
    for column in &detail.columns {
        let from = column.at_ns as f64 / 1e9;
        let says = format!(
            "{}: {:.0} a second ended, {:.0} were to start",
            at(column.at_ns as i64),
            rate(column, column.ended),
            rate(column, column.started)
        );
        plot.tip(from, from + column_s, &says);
    }
    plot.svg("requests a second over time")
}

/// All snapshots together: the milliseconds before and after.
pub fn around(detail: &Detail) -> String {
    let known = || {
        detail
            .around
            .iter()
            .filter(|moment| moment.responses.requests > 0)
    };
    let low = known().map(|moment| moment.p50_ns).min().unwrap_or(1000);
    let high = known()
        .map(|moment| moment.responses.max_ns)
        .max()
        .unwrap_or(1000);
    let edge = AROUND_MS as f64;
    let mut plot = Plot::new(Scale::even(-edge, edge), Scale::factors(low as f64, high as f64));
    plot.grid_y_times();
    plot.grid_x_round(|ms| format!("{ms} ms"));
    plot.band("cut", 0.0, 0.0, "the snapshot is asked for");
    let line = |of: fn(&crate::detail::Moment) -> u64| -> Vec<_> {
        let moments = detail.around.iter();
        moments
            .map(|moment| {
                let known = moment.responses.requests > 0;
                known.then(|| (moment.ms as f64 + 0.5, of(moment) as f64))
            })
            .collect()
    };
    plot.line("second", "longest", line(|moment| moment.responses.max_ns));
    plot.line("third", "p99", line(|moment| moment.responses.p99_ns));
    plot.line("first", "p50", line(|moment| moment.p50_ns));
    for moment in known() {
        let says = format!(
            "{} ms: {} requests, p50 {}, p99 {}, longest {}",
            moment.ms,
            moment.responses.requests,
            time(moment.p50_ns as f64),
            time(moment.responses.p99_ns as f64),
            time(moment.responses.max_ns as f64)
        );
        plot.tip(moment.ms as f64, moment.ms as f64 + 1.0, &says);
    }
    format!(
        "<p>Responses of the requests that were to start in each millisecond before and after the moment at which a snapshot \
         was asked for, all snapshots together.</p>\n{}",
        plot.svg("response times around snapshots")
    )
}
