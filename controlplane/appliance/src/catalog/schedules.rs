//! Schedules of a pool: their rows, and which snapshots are theirs.

use std::collections::BTreeSet;

use super::{Catalog, Change};
use crate::error::{Error, Result};
use jiff::tz::TimeZone;
use stillpoint_coordinator::retention::Keep;
use stillpoint_coordinator::timing::{Timing, TimingError};
use stillpoint_ondisk::catalog::{Key, ScheduleHead, VERSION, Value, VolumeNumber};
use stillpoint_processor::{SnapshotId, VolumeId};

/// A schedule: when snapshots of which volumes are taken, and which of them are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Its number: schedules and snapshots have theirs from the same counter, and none is used twice.
    pub id: u64,
    /// Its name, unique in the pool.
    pub name: String,
    /// Its volumes, cut at one instant.
    pub volumes: Vec<VolumeId>,
    /// Its period; 0 if it has a cron line.
    pub period_ns: u64,
    /// Its cron line; empty if it has a period.
    pub cron: String,
    /// Name of the time zone of the cron line, and of the days and hours of retention.
    pub zone: String,
    /// Which of its snapshots are kept.
    pub keep: Keep,
    /// Whether it does nothing at present.
    pub paused: bool,
    /// How long answers may be held; 0 for the default.
    pub hold_limit_ns: u64,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// What was due up to here is dealt with. Durable with every change of the schedule; between them, its newest snapshot
    /// tells.
    pub done_ns: u64,
}

impl Schedule {
    /// Its time zone.
    ///
    /// # Errors
    /// Usage, if there is no time zone of this name.
    pub fn time_zone(&self) -> Result<TimeZone> {
        TimeZone::get(&self.zone).map_err(|_| {
            Error::usage(format!("{:?} is no time zone", self.zone))
                .hint("give the name of a place, as Europe/Berlin, or UTC")
        })
    }

    /// When it is due.
    ///
    /// # Errors
    /// Usage, saying what is wrong with the period, the cron line or the time zone.
    pub fn timing(&self) -> Result<Timing> {
        let zone = self.time_zone()?;
        let timing = if self.cron.is_empty() {
            Timing::every(self.period_ns)
        } else {
            Timing::cron(&self.cron, zone)
        };
        timing.map_err(|error| match error {
            TimingError::Period(_) => Error::usage(error.to_string()),
            TimingError::Line(why) => Error::usage(format!("{:?} is no cron line: {why}", self.cron)).hint(
                "minute, hour, day of the month, month, day of the week: \"30 2 * * *\" is every night at half past two",
            ),
        })
    }
}

impl Change {
    /// This schedule is in the catalog.
    #[must_use]
    pub fn put_schedule(schedule: &Schedule) -> Self {
        let [last, hourly, daily, weekly, monthly, yearly] = schedule.keep.0.map(Into::into);
        let head = ScheduleHead {
            version: VERSION.into(),
            name_bytes: 0.into(),
            cron_bytes: 0.into(),
            zone_bytes: 0.into(),
            volume_count: 0.into(),
            paused: schedule.paused.into(),
            reserved_a: 0,
            keep_last: last,
            keep_hourly: hourly,
            keep_daily: daily,
            keep_weekly: weekly,
            keep_monthly: monthly,
            keep_yearly: yearly,
            reserved_b: [0; 4],
            period_ns: schedule.period_ns.into(),
            hold_limit_ns: schedule.hold_limit_ns.into(),
            created_ns: schedule.created_ns.into(),
            done_ns: schedule.done_ns.into(),
            reserved_c: [0; 8],
        };
        let volumes: Vec<VolumeNumber> = schedule.volumes.iter().map(|volume| volume.0.into()).collect();
        Self::put(
            Key::Schedule(schedule.id),
            Value::Schedule(head, &volumes, [&schedule.name, &schedule.cron, &schedule.zone]),
        )
    }

    /// This schedule is not in the catalog.
    #[must_use]
    pub fn delete_schedule(id: u64) -> Self {
        Self::delete(Key::Schedule(id))
    }
}

/// A schedule from its row.
pub(super) fn from_row(
    id: u64,
    head: &ScheduleHead,
    volumes: &[VolumeNumber],
    [name, cron, zone]: [&str; 3],
) -> Schedule {
    let keep = [
        head.keep_last,
        head.keep_hourly,
        head.keep_daily,
        head.keep_weekly,
        head.keep_monthly,
        head.keep_yearly,
    ];
    Schedule {
        id,
        name: name.to_owned(),
        volumes: volumes.iter().map(|volume| VolumeId(volume.get())).collect(),
        period_ns: head.period_ns.get(),
        cron: cron.to_owned(),
        zone: zone.to_owned(),
        keep: Keep(keep.map(|count| count.get())),
        paused: head.paused != 0,
        hold_limit_ns: head.hold_limit_ns.get(),
        created_ns: head.created_ns.get(),
        done_ns: head.done_ns.get(),
    }
}

impl Catalog {
    /// All schedules, by number.
    pub fn schedules(&self) -> impl Iterator<Item = &Schedule> {
        self.schedules.values()
    }

    /// The schedule of this name.
    #[must_use]
    pub fn schedule(&self, name: &str) -> Option<&Schedule> {
        self.schedules.values().find(|schedule| schedule.name == name)
    }

    /// The schedule of this number.
    #[must_use]
    pub fn schedule_by_id(&self, id: u64) -> Option<&Schedule> {
        self.schedules.get(&id)
    }

    /// A schedule that is new, or changed.
    pub fn put_schedule(&mut self, schedule: Schedule) {
        self.schedules.insert(schedule.id, schedule);
    }

    /// A schedule that is gone. Its snapshots stay.
    pub fn remove_schedule(&mut self, id: u64) {
        self.schedules.remove(&id);
    }

    /// What was due of a schedule up to this time is dealt with.
    pub fn schedule_done(&mut self, id: u64, now_ns: u64) {
        if let Some(schedule) = self.schedules.get_mut(&id) {
            schedule.done_ns = now_ns;
        }
    }

    /// The snapshots that a schedule took, oldest first.
    pub fn snapshots_of_schedule(&self, id: u64) -> impl DoubleEndedIterator<Item = SnapshotId> + '_ {
        self.scheduled.get(&id).into_iter().flatten().copied()
    }

    /// How many these are.
    #[must_use]
    pub fn count_of_schedule(&self, id: u64) -> usize {
        self.scheduled.get(&id).map_or(0, BTreeSet::len)
    }

    /// What a schedule's newest snapshot tells about when it ran last.
    pub(super) fn learn_last_runs(&mut self) {
        for (id, schedule) in &mut self.schedules {
            let newest = self.scheduled.get(id).and_then(BTreeSet::last);
            if let Some(snapshot) = newest.and_then(|newest| self.snapshots.get(newest)) {
                schedule.done_ns = schedule.done_ns.max(snapshot.time_stamp.0);
            }
        }
    }

    /// A snapshot is in the catalog: it belongs to its schedule.
    pub(super) fn index_schedule(&mut self, schedule: u64, snapshot: SnapshotId) {
        if schedule != 0 {
            self.scheduled.entry(schedule).or_default().insert(snapshot);
        }
    }

    /// A snapshot is gone.
    pub(super) fn unindex_schedule(&mut self, schedule: u64, snapshot: SnapshotId) {
        if let Some(all) = self.scheduled.get_mut(&schedule) {
            all.remove(&snapshot);
            if all.is_empty() {
                self.scheduled.remove(&schedule);
            }
        }
    }
}
