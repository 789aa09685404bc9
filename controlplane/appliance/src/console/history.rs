//! Figures of the last ten minutes: what the daemon counts, taken apart second by second.
//!
//! Times are milliseconds since the Unix epoch: a browser has nanoseconds only to 256 of them, and would ask for the wrong points.
//! They are kept here and not in the page, so that a page that is loaded again, or was in the background, lacks nothing.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::api::model::{EventList, StageInfo, StatusInfo};

/// Points that are kept: ten minutes.
pub(super) const POINTS_MAX: usize = 600;

/// Less time than this makes no point: what came in it counts to the next one.
const ELAPSED_NS_MIN: u64 = 500_000_000;

/// What the daemon said at one moment.
#[derive(Debug, Deserialize)]
pub(super) struct Sample {
    pub(super) status: StatusInfo,
    pub(super) stages: Vec<StageInfo>,
    pub(super) events: EventList,
}

/// GET `/history`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    /// Only points behind this one; 0: all.
    #[serde(default)]
    pub(super) after_ms: u64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct HistoryInfo {
    /// Oldest first.
    pub(super) points: Vec<Point>,
    /// If the daemon does not answer.
    pub(super) away: Option<AwayInfo>,
    /// The newest event, when it was asked last: a page that has it need not ask for events. So no page keeps a connection waiting for
    /// them, of which a browser has six for all its tabs.
    pub(super) newest: Option<NewestEvent>,
}

/// Which event is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct NewestEvent {
    /// Its number; 0 if there is none.
    pub(super) last: u64,
    /// When the daemon started, in whole milliseconds: numbers began anew then.
    pub(super) started_ms: u64,
}

/// Since when the daemon does not answer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct AwayInfo {
    pub(super) since_ms: u64,
    pub(super) why: String,
}

/// A second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Point {
    /// Its end.
    pub(super) time_ms: u64,
    /// `None`: the daemon did not answer, or had just been started.
    pub(super) figures: Option<Figures>,
}

/// What happened in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Figures {
    pub(super) read: KindFigures,
    pub(super) write: KindFigures,
    /// Requests of clients that each processor took, a second.
    pub(super) processors_per_s: Vec<u64>,
}

/// Reads, or writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct KindFigures {
    pub(super) per_s: u64,
    pub(super) bytes_per_s: u64,
    /// Half of them took less, from the request to the reply; `None`: there were none.
    pub(super) p50_ns: Option<u64>,
    /// 99 of 100 took less.
    pub(super) p99_ns: Option<u64>,
}

/// The last ten minutes.
#[derive(Debug, Default)]
pub(super) struct History {
    points: VecDeque<Point>,
    last: Option<Counters>,
    away: Option<AwayInfo>,
    newest: Option<NewestEvent>,
}

/// What was counted since the daemon started.
#[derive(Debug)]
struct Counters {
    pid: u32,
    uptime_ns: u64,
    read: KindCounters,
    write: KindCounters,
    processors: Vec<u64>,
}

#[derive(Debug, Default)]
struct KindCounters {
    bytes: u64,
    /// How many took less than that many nanoseconds, and not less than the one before.
    counted: BTreeMap<u64, u64>,
}

impl History {
    /// Adds what the daemon said, or why it did not.
    pub(super) fn add(&mut self, now_ms: u64, sample: Result<Sample, String>) {
        let figures = match sample {
            Ok(sample) => {
                self.away = None;
                self.newest = Some(NewestEvent {
                    last: sample.events.last,
                    started_ms: sample.events.started_ns / 1_000_000,
                });
                let counters = Counters::of(&sample);
                if self.last.as_ref().is_some_and(|last| counters.is_too_near(last)) {
                    return;
                }
                let figures = self.last.as_ref().and_then(|last| counters.since(last));
                self.last = Some(counters);
                figures
            }
            Err(why) => {
                self.last = None;
                let since_ms = self.away.as_ref().map_or(now_ms, |away| away.since_ms);
                self.away = Some(AwayInfo { since_ms, why });
                None
            }
        };
        // A clock that was set back would have the page wait for points that it has never seen.
        if self.points.back().is_some_and(|last| last.time_ms >= now_ms) {
            self.points.clear();
        }
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        let time_ms = now_ms;
        self.points.push_back(Point { time_ms, figures });
    }

    /// The points behind one; all, if it is not one of the past.
    pub(super) fn after(&self, after_ms: u64) -> HistoryInfo {
        let newest_ms = self.points.back().map_or(0, |point| point.time_ms);
        let after_ms = if after_ms > newest_ms { 0 } else { after_ms };
        let points = self.points.iter().filter(|point| point.time_ms > after_ms);
        HistoryInfo {
            points: points.cloned().collect(),
            away: self.away.clone(),
            newest: self.newest,
        }
    }
}

impl Counters {
    /// Whether the answer before was so late that hardly any time is between the two. What is counted in an answer is some time older
    /// than its time; with little time in between, that would make a peak of nothing.
    fn is_too_near(&self, last: &Self) -> bool {
        let elapsed_ns = self.uptime_ns.checked_sub(last.uptime_ns);
        self.pid == last.pid && elapsed_ns.is_some_and(|elapsed_ns| elapsed_ns < ELAPSED_NS_MIN)
    }

    fn of(sample: &Sample) -> Self {
        let Sample { status, stages, .. } = sample;
        let shards = || status.processors.iter().flat_map(|processor| &processor.shards);
        let kind = |kind: &str, bytes: u64| {
            let mut counted: BTreeMap<u64, u64> = BTreeMap::new();
            let totals = stages
                .iter()
                .filter(|info| info.kind == kind && info.stage == "total");
            for (end_ns, count) in totals.flat_map(|info| &info.counted) {
                *counted.entry(*end_ns).or_default() += count;
            }
            KindCounters { bytes, counted }
        };
        Self {
            pid: status.pid,
            uptime_ns: status.uptime_ns,
            read: kind("read", shards().map(|shard| shard.read_bytes).sum()),
            write: kind("write", shards().map(|shard| shard.written_bytes).sum()),
            processors: status
                .processors
                .iter()
                .map(|processor| processor.requests)
                .collect(),
        }
    }

    /// What came in between; `None` if it was another daemon.
    fn since(&self, last: &Self) -> Option<Figures> {
        let elapsed_ns = self.uptime_ns.checked_sub(last.uptime_ns).filter(|&ns| ns > 0)?;
        if self.pid != last.pid || self.processors.len() != last.processors.len() {
            return None;
        }
        let per_s = |count: u64| (u128::from(count) * 1_000_000_000 / u128::from(elapsed_ns)) as u64;
        let processors = self.processors.iter().zip(&last.processors);
        Some(Figures {
            read: self.read.since(&last.read, per_s),
            write: self.write.since(&last.write, per_s),
            processors_per_s: processors
                .map(|(now, then)| per_s(now.saturating_sub(*then)))
                .collect(),
        })
    }
}

impl KindCounters {
    fn since(&self, last: &Self, per_s: impl Fn(u64) -> u64) -> KindFigures {
        let difference = |(end_ns, count): (&u64, &u64)| {
            let then = last.counted.get(end_ns).copied().unwrap_or(0);
            (*end_ns, count.saturating_sub(then))
        };
        let counted: Vec<(u64, u64)> = self.counted.iter().map(difference).collect();
        let total = counted.iter().map(|(_, count)| count).sum();
        KindFigures {
            per_s: per_s(total),
            // A pool that was closed takes what it counted along.
            bytes_per_s: per_s(self.bytes.saturating_sub(last.bytes)),
            p50_ns: below(&counted, total, 50),
            p99_ns: below(&counted, total, 99),
        }
    }
}

/// The time that so many of a hundred took less than.
fn below(counted: &[(u64, u64)], total: u64, percent: u64) -> Option<u64> {
    let wanted = (u128::from(total) * u128::from(percent)).div_ceil(100) as u64;
    let mut seen = 0;
    counted.iter().find_map(|&(end_ns, count)| {
        seen += count;
        (count > 0 && seen >= wanted).then_some(end_ns)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECOND_MS: u64 = 1_000;
    const SECOND_NS: u64 = 1_000_000_000;

    /// A daemon of one processor that has read so often, in 1 us or 50 us.
    fn sample(pid: u32, uptime_ns: u64, fast: u64, slow: u64) -> Result<Sample, String> {
        let requests = fast + slow;
        let shard = json!({"pool": "p", "shard": 0, "reads": requests, "writes": 0, "discards": 0, "flushes": 0,
            "read_bytes": requests * 4096, "written_bytes": 0, "device_reads": 0, "device_writes": 0, "log_pages": 0,
            "log_used_bytes": 0, "log_bytes": 0, "checkpoints": 0, "map_misses": 0, "map_pages_cached": 0,
            "corrupt_blocks": 0, "device_errors": 0, "stopped": false, "in_flight": 0, "total_bytes": 0,
            "used_bytes": 0, "pending_bytes": 0});
        let processor = json!({"processor": 0, "core": 0, "sessions": 1, "late": 0, "requests": requests,
            "forwarded": 0, "turns": 0, "sleeps": 0, "polls": false, "ring_enters": 0, "buffer_bytes_used": 0,
            "buffer_bytes": 0, "buffer_memory": "", "shards": [shard]});
        let status = json!({"version": "", "pid": pid, "uptime_ns": uptime_ns, "listeners": [], "connections": 0,
            "connection_limit": 0, "connections_refused": 0, "processors": [processor], "pools": []});
        let counted = [(1_000, fast), (50_000, slow)];
        let stages = json!([{"processor": 0, "kind": "read", "stage": "total", "count": requests, "sum_ns": 0,
            "counted": counted}, {"processor": 0, "kind": "read", "stage": "device", "count": 7, "sum_ns": 0,
            "counted": [(9, 7)]}]);
        let events = json!({"events": [], "last": requests, "started_ns": u64::from(pid) * SECOND_NS});
        Ok(
            serde_json::from_value(json!({"status": status, "stages": stages, "events": events}))
                .expect("a sample"),
        )
    }

    #[test]
    fn a_second_has_what_was_counted_in_it() {
        let mut history = History::default();
        history.add(SECOND_MS, sample(1, 5 * SECOND_NS, 1_000, 0));
        history.add(3 * SECOND_MS, sample(1, 7 * SECOND_NS, 1_196, 4));
        let info = history.after(0);
        assert_eq!(info.points[0].figures, None, "there was nothing to compare with");
        let figures = info.points[1].figures.clone().expect("figures");
        let read = KindFigures {
            per_s: 100,
            bytes_per_s: 409_600,
            p50_ns: Some(1_000),
            p99_ns: Some(50_000),
        };
        assert_eq!(
            figures,
            Figures {
                read,
                write: KindFigures::default(),
                processors_per_s: vec![100]
            }
        );
        history.add(4 * SECOND_MS, sample(1, 8 * SECOND_NS, 1_196, 4));
        let idle = history.after(3 * SECOND_MS).points;
        assert_eq!(idle.len(), 1, "only what is behind");
        let read = &idle[0].figures.as_ref().expect("figures").read;
        assert_eq!((read.per_s, read.p50_ns, read.p99_ns), (0, None, None));
    }

    #[test]
    fn an_answer_that_came_late_makes_no_peak_of_the_next() {
        let mut history = History::default();
        history.add(SECOND_MS, sample(1, 5 * SECOND_NS, 1_000, 0));
        history.add(2 * SECOND_MS, sample(1, 7 * SECOND_NS - 1, 1_010, 0));
        history.add(3 * SECOND_MS, sample(1, 7 * SECOND_NS, 1_190, 0));
        history.add(4 * SECOND_MS, sample(1, 8 * SECOND_NS - 1, 1_200, 0));
        let points = history.after(SECOND_MS).points;
        let reads: Vec<_> = points
            .iter()
            .map(|point| {
                (
                    point.time_ms,
                    point.figures.as_ref().map(|figures| figures.read.per_s),
                )
            })
            .collect();
        assert_eq!(reads, [(2 * SECOND_MS, Some(5)), (4 * SECOND_MS, Some(190))]);
    }

    #[test]
    fn the_newest_event_is_known_even_when_a_second_makes_no_point() {
        let newest = |last, started_ms| Some(NewestEvent { last, started_ms });
        let mut history = History::default();
        assert_eq!(history.after(0).newest, None);
        history.add(SECOND_MS, sample(1, 5 * SECOND_NS, 3, 0));
        assert_eq!(history.after(0).newest, newest(3, SECOND_MS));
        history.add(2 * SECOND_MS, sample(1, 5 * SECOND_NS + 1, 4, 0));
        let too_near = history.after(0);
        assert_eq!(
            (too_near.points.len(), too_near.newest),
            (1, newest(4, SECOND_MS))
        );
        // It counts anew.
        history.add(3 * SECOND_MS, Err("gone".to_owned()));
        history.add(4 * SECOND_MS, sample(2, SECOND_NS, 1, 0));
        assert_eq!(history.after(0).newest, newest(1, 2 * SECOND_MS));
    }

    #[test]
    fn another_daemon_is_not_compared_with_the_one_before() {
        let mut history = History::default();
        history.add(SECOND_MS, sample(1, 5 * SECOND_NS, 1_000, 0));
        history.add(2 * SECOND_MS, sample(2, 6 * SECOND_NS, 2_000, 0));
        history.add(3 * SECOND_MS, sample(2, SECOND_NS, 3_000, 0));
        assert!(
            history
                .after(0)
                .points
                .iter()
                .all(|point| point.figures.is_none())
        );
    }

    #[test]
    fn a_daemon_that_is_away_is_a_gap_and_comes_back() {
        let mut history = History::default();
        history.add(SECOND_MS, sample(1, 5 * SECOND_NS, 0, 0));
        for second in 2..=4 {
            history.add(second * SECOND_MS, Err(format!("no {second}")));
        }
        let away = AwayInfo {
            since_ms: 2 * SECOND_MS,
            why: "no 4".to_owned(),
        };
        assert_eq!(history.after(0).away, Some(away));
        history.add(5 * SECOND_MS, sample(1, 9 * SECOND_NS, 500, 0));
        history.add(6 * SECOND_MS, sample(1, 10 * SECOND_NS, 600, 0));
        let info = history.after(3 * SECOND_MS);
        assert_eq!(info.away, None);
        let reads = info
            .points
            .iter()
            .map(|point| point.figures.as_ref().map(|figures| figures.read.per_s));
        assert_eq!(reads.collect::<Vec<_>>(), [None, None, Some(100)]);
    }

    #[test]
    fn ten_minutes_are_kept_and_a_clock_that_is_set_back_begins_anew() {
        let mut history = History::default();
        for second in 1..=700 {
            history.add(second * SECOND_MS, Err(String::new()));
        }
        let points = history.after(0).points;
        assert_eq!((points.len(), points[0].time_ms), (POINTS_MAX, 101 * SECOND_MS));
        history.add(50 * SECOND_MS, Err(String::new()));
        let points = history.after(700 * SECOND_MS).points;
        assert_eq!((points.len(), points[0].time_ms), (1, 50 * SECOND_MS));
    }
}
