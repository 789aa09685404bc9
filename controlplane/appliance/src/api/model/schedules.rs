//! What goes in and comes out about schedules.

use serde::{Deserialize, Serialize};

/// How many of a schedule's snapshots are kept: the newest ones, and one for each of the last hours, days and so on that
/// have any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepRules {
    /// The newest.
    #[serde(default)]
    pub last: u32,
    /// One for each hour.
    #[serde(default)]
    pub hourly: u32,
    /// One for each day.
    #[serde(default)]
    pub daily: u32,
    /// One for each week, which begins on Monday.
    #[serde(default)]
    pub weekly: u32,
    /// One for each month.
    #[serde(default)]
    pub monthly: u32,
    /// One for each year.
    #[serde(default)]
    pub yearly: u32,
}

/// POST `/v1/schedules`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSchedule {
    /// Its name; its snapshots are called by it and the time.
    pub name: String,
    /// The volumes, all of one pool, cut at one instant.
    pub volumes: Vec<String>,
    /// The pool; not needed if the volumes' names are unique.
    #[serde(default)]
    pub pool: Option<String>,
    /// Its period, whole seconds from 1 s to 30 d; or
    #[serde(default)]
    pub every_ns: Option<u64>,
    /// its cron line.
    #[serde(default)]
    pub cron: Option<String>,
    /// Time zone of the cron line and of the days that are kept, as `Europe/Berlin`; default UTC.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// What is kept.
    pub keep: KeepRules,
    /// How long answers may be held; default 10 ms.
    #[serde(default)]
    pub hold_limit_ns: Option<u64>,
}

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleInfo {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its number in the pool.
    pub id: u64,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// Its period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ns: Option<u64>,
    /// Its cron line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// Time zone of the cron line and of the days that are kept.
    pub time_zone: String,
    /// What is kept.
    pub keep: KeepRules,
    /// `active` or `paused`.
    pub state: String,
    /// When it was made.
    pub created_ns: u64,
    /// When it ran last since the pool was opened; 0 if it did not.
    pub last_run_ns: u64,
    /// Why the last run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The next five runs.
    pub next_runs_ns: Vec<u64>,
    /// Snapshots it took since the pool was opened.
    pub runs: u64,
    /// Due times since then that had no run.
    pub missed: u64,
    /// Runs since then that took no snapshot.
    pub failed: u64,
    /// Snapshots it deleted since then.
    pub pruned: u64,
    /// Snapshots of it that there are.
    pub snapshots: u64,
    /// Each of these, oldest first; only when one schedule is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<ScheduledSnapshotInfo>,
}

/// A snapshot of a schedule, as it will be when the next run has taken one more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledSnapshotInfo {
    /// `volume@name`, with the first of its volumes.
    pub name: String,
    /// Its time stamp.
    pub time_stamp_ns: u64,
    /// Whether the next run deletes it.
    pub pruned_next: bool,
    /// Otherwise why it stays: the rules, with the number it has in each, counted from the newest (`hourly 3`), or what
    /// else needs it.
    pub kept_by: Vec<String>,
}
