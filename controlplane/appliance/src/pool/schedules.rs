//! Making, changing and showing schedules. [`schedule_runs`](super::schedule_runs) carries them out.

use super::{Pool, time_text, wall_ns};
use crate::api::model::{CreateSchedule, KeepRules, ScheduleInfo, ScheduledSnapshotInfo};
use crate::catalog::{Catalog, Change, Schedule};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::name;
use crate::pool::snapshots::HOLD_NS_MAX;
use crate::pool::volumes::refuse_clones;
use stillpoint_coordinator::OverallSnapshot;
use stillpoint_coordinator::retention::{Keep, Verdict, judge};
use stillpoint_ondisk::catalog::{CRON_BYTES_MAX, NAME_BYTES_MAX};
use stillpoint_processor::View;

/// Schedules of a pool at most.
pub const SCHEDULES_MAX: usize = 256;
/// Snapshots that all rules of a schedule keep together at most.
pub const KEEP_MAX: u64 = 100_000;
/// What a run adds to the name of its schedule: `-20261122T101500Z`, and a number if the clock was set back.
const RUN_BYTES: usize = 24;
/// How many next runs are shown.
const NEXT_RUNS: usize = 5;

impl Pool {
    /// Makes a schedule; it runs for the first time when it is due next.
    ///
    /// # Errors
    /// Usage, naming what cannot be; not found; conflict if the name is taken.
    pub async fn create_schedule(&self, request: &CreateSchedule) -> Result<()> {
        name::check("schedule", &request.name)?;
        if request.name.len() > NAME_BYTES_MAX - RUN_BYTES {
            return Err(Error::usage(format!(
                "the name of the schedule has {} bytes: at most {} are possible, its snapshots add the time to it",
                request.name.len(),
                NAME_BYTES_MAX - RUN_BYTES
            )));
        }
        let keep = keep(&request.keep)?;
        let _gate = self.gate.write().await;
        let volumes = self.group(&request.volumes)?;
        let now = wall_ns();
        let mut schedule = Schedule {
            id: 0,
            name: request.name.clone(),
            volumes: volumes.iter().map(|of| of.owner).collect(),
            period_ns: request.every_ns.unwrap_or(0),
            cron: request.cron.as_deref().unwrap_or_default().trim().to_owned(),
            zone: request.time_zone.clone().unwrap_or_else(|| "UTC".to_owned()),
            keep,
            paused: false,
            hold_limit_ns: request.hold_limit_ns.unwrap_or(0),
            created_ns: now,
            done_ns: now,
        };
        check_timing(request, &schedule, now)?;
        {
            let catalog = self.catalog();
            if catalog.schedule(&schedule.name).is_some() {
                return Err(
                    Error::conflict(format!("schedule {} exists already", schedule.name))
                        .hint("choose another name, or delete that schedule first: its snapshots stay"),
                );
            }
            if catalog.schedules().count() >= SCHEDULES_MAX {
                return Err(Error::conflict(format!(
                    "pool {} has {SCHEDULES_MAX} schedules, which is the limit",
                    self.name()
                ))
                .hint("one schedule can take several volumes"));
            }
        }
        schedule.id = self.number(Catalog::next_snapshot).await?.0;
        self.change([Change::put_schedule(&schedule)]).await?;
        let id = schedule.id;
        self.catalog().put_schedule(schedule);
        self.tell(EventKind::ScheduleCreated, &request.name, "made");
        self.start_schedule(id);
        Ok(())
    }

    /// Stops a schedule for a while, or lets it go on: what was due meanwhile is not made up for.
    ///
    /// # Errors
    /// Not found; if it cannot be made durable.
    pub async fn pause_schedule(&self, name: &str, paused: bool) -> Result<()> {
        let _gate = self.gate.write().await;
        let mut schedule = self.schedule(name)?;
        if schedule.paused == paused {
            return Ok(());
        }
        schedule.paused = paused;
        schedule.done_ns = wall_ns();
        self.change([Change::put_schedule(&schedule)]).await?;
        let id = schedule.id;
        self.catalog().put_schedule(schedule);
        if paused {
            self.tell(EventKind::SchedulePaused, name, "paused");
        } else {
            self.tell(EventKind::ScheduleResumed, name, "goes on");
        }
        self.schedule_changed(id);
        Ok(())
    }

    /// Deletes a schedule. Its snapshots stay, and nothing prunes them any more.
    ///
    /// # Errors
    /// Not found; if it cannot be made durable.
    pub async fn delete_schedule(&self, name: &str) -> Result<()> {
        let _gate = self.gate.write().await;
        let id = self.schedule(name)?.id;
        self.change([Change::delete_schedule(id)]).await?;
        let left = {
            let mut catalog = self.catalog();
            catalog.remove_schedule(id);
            catalog.count_of_schedule(id)
        };
        self.schedule_changed(id);
        self.tell(
            EventKind::ScheduleDeleted,
            name,
            format!("deleted; its {left} snapshots stay"),
        );
        Ok(())
    }

    /// The schedule of this name.
    ///
    /// # Errors
    /// Not found.
    pub fn schedule(&self, name: &str) -> Result<Schedule> {
        self.catalog()
            .schedule(name)
            .cloned()
            .ok_or_else(|| no_schedule(name))
    }

    /// The pool's schedules, by name.
    #[must_use]
    pub fn schedule_infos(&self) -> Vec<ScheduleInfo> {
        let schedules: Vec<Schedule> = self.catalog().schedules().cloned().collect();
        schedules
            .iter()
            .map(|schedule| self.schedule_info(schedule))
            .collect()
    }

    /// A schedule, with each of its snapshots: why it is kept, or that the next run prunes it.
    ///
    /// # Errors
    /// Not found.
    pub fn schedule_details(&self, name: &str) -> Result<ScheduleInfo> {
        let schedule = self.schedule(name)?;
        let mut info = self.schedule_info(&schedule);
        let next = info.next_runs_ns.first().copied();
        let of_next = next.unwrap_or_else(wall_ns);
        let verdicts = self.judge_schedule(&schedule, Some(of_next));
        let now = self.time_of_locks();
        let catalog = self.catalog();
        for (id, verdict) in verdicts {
            let Some(snapshot) = catalog.snapshot_by_id(id) else {
                continue;
            };
            let mut kept_by: Vec<String> = verdict
                .reasons()
                .map(|(rule, number)| format!("{rule} {number}"))
                .collect();
            let name = catalog.view_name(View {
                volume: snapshot.volumes[0].owner,
                snapshot: Some(id),
            });
            if let Err(error) = check_pruning(&catalog, snapshot, now) {
                let known = format!("snapshot {name} ");
                let why = error.message.strip_prefix(&known).unwrap_or(&error.message);
                kept_by.push(why.to_owned());
            }
            info.kept.push(ScheduledSnapshotInfo {
                name,
                time_stamp_ns: snapshot.time_stamp.0,
                pruned_next: kept_by.is_empty(),
                kept_by,
            });
        }
        Ok(info)
    }

    /// A schedule's snapshots, oldest first, with what its rules say of each; as if one more had been taken at `next_ns`.
    pub(super) fn judge_schedule(
        &self,
        schedule: &Schedule,
        next_ns: Option<u64>,
    ) -> Vec<(stillpoint_processor::SnapshotId, Verdict)> {
        let Ok(zone) = schedule.time_zone() else {
            return Vec::new();
        };
        let (ids, mut stamps): (Vec<_>, Vec<u64>) = {
            let catalog = self.catalog();
            catalog
                .snapshots_of_schedule(schedule.id)
                .filter_map(|id| Some((id, catalog.snapshot_by_id(id)?.time_stamp.0)))
                .unzip()
        };
        stamps.extend(next_ns);
        ids.into_iter()
            .zip(judge(&schedule.keep, &zone, &stamps))
            .collect()
    }

    fn schedule_info(&self, schedule: &Schedule) -> ScheduleInfo {
        let timing = schedule.timing();
        let mut next_runs_ns = Vec::new();
        let now = wall_ns();
        if let (Ok(timing), false) = (&timing, schedule.paused) {
            let mut at = schedule.done_ns.min(now);
            while next_runs_ns.len() < NEXT_RUNS
                && let Some(next) = timing.next_after(at)
            {
                next_runs_ns.push(next);
                at = next;
            }
        }
        let figures = self.schedule_figures(schedule.id);
        let catalog = self.catalog();
        let volumes = schedule.volumes.iter().map(|&volume| {
            catalog.view_name(View {
                volume,
                snapshot: None,
            })
        });
        let [last, hourly, daily, weekly, monthly, yearly] = schedule.keep.0;
        ScheduleInfo {
            name: schedule.name.clone(),
            pool: self.name().to_owned(),
            id: schedule.id,
            volumes: volumes.collect(),
            every_ns: (schedule.period_ns > 0).then_some(schedule.period_ns),
            cron: (!schedule.cron.is_empty()).then(|| schedule.cron.clone()),
            time_zone: schedule.zone.clone(),
            keep: KeepRules {
                last,
                hourly,
                daily,
                weekly,
                monthly,
                yearly,
            },
            state: if schedule.paused { "paused" } else { "active" }.to_owned(),
            created_ns: schedule.created_ns,
            last_run_ns: figures.last_run_ns,
            last_error: figures
                .last_error
                .or_else(|| timing.err().map(|error| error.to_string())),
            next_runs_ns,
            runs: figures.runs,
            missed: figures.missed,
            failed: figures.failed,
            pruned: figures.pruned,
            snapshots: catalog.count_of_schedule(schedule.id) as u64,
            kept: Vec::new(),
        }
    }
}

/// Whether a snapshot may be pruned: nothing needs it.
///
/// # Errors
/// Conflict if it is locked or exported or has clones.
pub(super) fn check_pruning(catalog: &Catalog, snapshot: &OverallSnapshot, now_ns: u64) -> Result<()> {
    catalog.check_removal(snapshot, None, now_ns)?;
    let name = catalog.view_name(View {
        volume: snapshot.volumes[0].owner,
        snapshot: Some(snapshot.snapshot),
    });
    refuse_clones(&name, catalog.clones_of(snapshot.snapshot))
}

/// There is no such schedule.
#[must_use]
pub fn no_schedule(name: &str) -> Error {
    Error::not_found(format!("there is no schedule {name}")).hint("stillpoint schedule list shows all")
}

fn keep(rules: &KeepRules) -> Result<Keep> {
    let keep = Keep([
        rules.last,
        rules.hourly,
        rules.daily,
        rules.weekly,
        rules.monthly,
        rules.yearly,
    ]);
    match keep.total() {
        0 => Err(Error::usage("the schedule would keep no snapshot at all")
            .hint("say how many are kept, as in --keep last=60,hourly=24,daily=7")),
        total if total > KEEP_MAX => Err(Error::usage(format!(
            "the schedule would keep {total} snapshots: at most {KEEP_MAX} are possible"
        ))),
        _ => Ok(keep),
    }
}

/// Whether the schedule can be carried out, and will be.
fn check_timing(request: &CreateSchedule, schedule: &Schedule, now: u64) -> Result<()> {
    if request.every_ns.is_some() == request.cron.is_some() {
        return Err(Error::usage(format!("when is schedule {} due?", schedule.name))
            .hint("give either a period (--every 15m) or a cron line (--cron '30 2 * * *')"));
    }
    if schedule.cron.len() > CRON_BYTES_MAX {
        return Err(Error::usage(format!(
            "the cron line has {} bytes: at most {CRON_BYTES_MAX} are possible",
            schedule.cron.len()
        )));
    }
    if schedule.hold_limit_ns > HOLD_NS_MAX {
        return Err(Error::usage(format!(
            "a hold limit of {} ns: from 1 to {HOLD_NS_MAX} are possible",
            schedule.hold_limit_ns
        )));
    }
    if request.cron.is_some() && schedule.cron.is_empty() {
        return Err(
            Error::usage("the cron line is empty").hint("\"30 2 * * *\" is every night at half past two")
        );
    }
    if schedule.timing()?.next_after(now).is_none() {
        return Err(Error::usage(format!(
            "{:?} never comes after {}",
            schedule.cron,
            time_text(now)
        ))
        .hint("is there such a day in that month?"));
    }
    Ok(())
}
