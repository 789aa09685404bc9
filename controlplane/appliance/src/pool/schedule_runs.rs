//! Carrying schedules out: one task for each sleeps until it is due, takes the snapshot, and has pruned what the rules no
//! longer keep.
//!
//! A schedule never has two runs at a time: what is due while one is going counts as missed, and is told. What was due while
//! nobody could run it (the appliance was down, the clock was set forward) leads to one run at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::schedules::check_pruning;
use super::{Pool, wall_ns};
use crate::api::model::CreateSnapshot;
use crate::catalog::Schedule;
use crate::error::{Error, Result};
use crate::events::EventKind;
use stillpoint_coordinator::timing::{Look, Timing, run_name};
use stillpoint_coordinator::{Marks, OverallSnapshot};
use stillpoint_processor::{SnapshotId, View, VolumeId};
use tokio::time::Instant;

/// A task that waits for something far away looks at the clock so often: it may have been set.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(300);
/// What goes wrong at every run is told so often at most.
const TELL_PAUSE: Duration = Duration::from_secs(60);
/// Snapshots that have the name of a run already, until it is given up: the clock was set back again and again.
const NAMES_MAX: u32 = 1000;

/// What a schedule did since the pool was opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) runs: u64,
    pub(super) missed: u64,
    pub(super) failed: u64,
    pub(super) pruned: u64,
    pub(super) last_run_ns: u64,
    pub(super) last_error: Option<String>,
}

/// A schedule at work.
#[derive(Debug, Default)]
pub(super) struct Runner {
    /// It was paused, resumed or deleted.
    changed: tokio::sync::Notify,
    /// Held while a run is going.
    going: tokio::sync::Mutex<()>,
    pruning: AtomicBool,
    figures: Mutex<Figures>,
    complaints: Mutex<Complaints>,
}

/// What was told already.
#[derive(Debug, Default)]
struct Complaints {
    missed: Seldom,
    failed: Seldom,
    /// Snapshots that the rules no longer keep, and that could not be deleted.
    kept: BTreeSet<SnapshotId>,
}

/// Something that may happen very often.
#[derive(Debug, Default)]
struct Seldom {
    told: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// It happened so often; gives how often since that was told, if it is time to tell again.
    fn count(&mut self, times: u64, now: Instant) -> Option<u64> {
        self.untold += times;
        if self.untold == 0 || self.told.is_some_and(|told| now < told + TELL_PAUSE) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts the task of a schedule.
    pub(super) fn start_schedule(&self, id: u64) {
        // Not there: the pool is being opened or closed, and starts its schedules itself or not at all.
        let Some(pool) = self.itself() else { return };
        let runner = Arc::new(Runner::default());
        lock(&self.runners).insert(id, runner.clone());
        self.tasks
            .spawn(async move { pool.keep_schedule(id, &runner).await });
    }

    /// A schedule was paused, resumed or deleted: its task looks again.
    pub(super) fn schedule_changed(&self, id: u64) {
        if let Some(runner) = self.runner(id) {
            runner.changed.notify_one();
        }
    }

    /// What a schedule did since the pool was opened.
    pub(super) fn schedule_figures(&self, id: u64) -> Figures {
        self.runner(id)
            .map_or_else(Figures::default, |runner| lock(&runner.figures).clone())
    }

    fn runner(&self, id: u64) -> Option<Arc<Runner>> {
        lock(&self.runners).get(&id).cloned()
    }

    /// Runs a schedule now, whether or not it is due or paused.
    ///
    /// # Errors
    /// Not found; conflict if a run of it is going; what taking the snapshot says.
    pub async fn run_schedule(&self, name: &str) -> Result<OverallSnapshot> {
        let schedule = self.schedule(name)?;
        let runner = self.runner(schedule.id).ok_or_else(|| {
            Error::new(
                crate::ErrorKind::Unavailable,
                format!("pool {} is being closed", self.name()),
            )
        })?;
        let Ok(_going) = runner.going.try_lock() else {
            return Err(
                Error::conflict(format!("a run of schedule {name} is going")).hint("wait until it is done")
            );
        };
        let run = self.run(&schedule, &runner, wall_ns()).await;
        self.prune_in_the_background(schedule.id, &runner);
        run
    }

    /// The task of a schedule.
    async fn keep_schedule(&self, id: u64, runner: &Arc<Runner>) {
        loop {
            let Some(mut schedule) = self.catalog().schedule_by_id(id).cloned() else {
                lock(&self.runners).remove(&id);
                return;
            };
            let timing = schedule.timing();
            if let Err(error) = &timing {
                // It could be made once: the database of time zones is another one now.
                self.tell(EventKind::ScheduleFailed, &schedule.name, error.to_string());
            }
            let now = wall_ns();
            let look = match (&timing, schedule.paused) {
                (Ok(timing), false) => timing.look(&mut schedule.done_ns, now),
                _ => Look::Never,
            };
            self.catalog().schedule_done(id, schedule.done_ns);
            let pause = match look {
                Look::Run { missed } => {
                    if self.tasks.are_ending() {
                        return;
                    }
                    if let Ok(timing) = &timing {
                        self.run_due(&schedule, timing, runner, now, missed).await;
                    }
                    continue;
                }
                Look::Wait { due_ns } => Some(Duration::from_nanos(due_ns - now).min(LOOK_AT_CLOCK)),
                Look::Never => None,
            };
            let wait = async {
                match pause {
                    Some(pause) => drop(tokio::time::timeout(pause, runner.changed.notified()).await),
                    None => runner.changed.notified().await,
                }
            };
            if self.tasks.until_the_end(wait).await.is_none() {
                return;
            }
        }
    }

    /// A run for a due time; further ones that went by before it are missed, and so are those that go by until it is done.
    async fn run_due(
        &self,
        schedule: &Schedule,
        timing: &Timing,
        runner: &Arc<Runner>,
        now: u64,
        missed: u64,
    ) {
        if missed > 0 {
            self.missed(
                schedule,
                runner,
                missed,
                "nobody could run it; one run now stands for all",
            );
        }
        let Ok(_going) = runner.going.try_lock() else {
            self.missed(schedule, runner, 1, "a run that was asked for was still going");
            return;
        };
        // Told by the run itself.
        let _ = self.run(schedule, runner, now).await;
        let after = wall_ns();
        let overrun = timing.count(now, after);
        if overrun > 0 {
            self.catalog().schedule_done(schedule.id, after);
            self.missed(schedule, runner, overrun, "the run before was still going");
        }
        self.prune_in_the_background(schedule.id, runner);
    }

    fn missed(&self, schedule: &Schedule, runner: &Runner, missed: u64, why: &str) {
        lock(&runner.figures).missed += missed;
        if let Some(times) = lock(&runner.complaints).missed.count(missed, Instant::now()) {
            self.tell(
                EventKind::ScheduleMissed,
                &schedule.name,
                format!("{times} runs were missed: {why}"),
            );
        }
    }

    /// Takes the snapshot of a run. The caller holds `going`.
    async fn run(&self, schedule: &Schedule, runner: &Runner, now: u64) -> Result<OverallSnapshot> {
        let taken = self.take_scheduled(schedule, now).await;
        let mut figures = lock(&runner.figures);
        figures.last_run_ns = now;
        match &taken {
            Ok(overall) => {
                figures.runs += 1;
                figures.last_error = None;
                drop(figures);
                let text = format!("took {}", overall.name);
                self.tell(EventKind::ScheduleRan, &schedule.name, text);
            }
            Err(error) => {
                figures.failed += 1;
                figures.last_error = Some(error.to_string());
                drop(figures);
                if let Some(times) = lock(&runner.complaints).failed.count(1, Instant::now()) {
                    let text = format!("{times} runs failed, the last one because: {error}");
                    self.tell(EventKind::ScheduleFailed, &schedule.name, text);
                }
            }
        }
        taken
    }

    async fn take_scheduled(&self, schedule: &Schedule, now: u64) -> Result<OverallSnapshot> {
        let request = {
            let catalog = self.catalog();
            let volume_name = |&volume: &VolumeId| {
                catalog.view_name(View {
                    volume,
                    snapshot: None,
                })
            };
            let name = run_name(&schedule.name, now);
            let is_free = |name: &str| {
                let mut volumes = schedule.volumes.iter();
                volumes.all(|&volume| catalog.snapshot(volume, name).is_none())
            };
            let name = if is_free(&name) {
                name
            } else {
                let mut others = (2..NAMES_MAX).map(|number| format!("{name}.{number}"));
                others.find(|name| is_free(name)).unwrap_or(name)
            };
            CreateSnapshot {
                volumes: schedule.volumes.iter().map(volume_name).collect(),
                name,
                pool: None,
                hold_limit_ns: (schedule.hold_limit_ns > 0).then_some(schedule.hold_limit_ns),
            }
        };
        let marks = Marks {
            schedule: schedule.id,
            locked_until_ns: 0,
        };
        let _gate = self.gate.read().await;
        self.take_snapshot(&request, marks).await
    }

    /// Prunes, unless that is going on: then it sees this run's snapshot, or the next run's pruning does.
    fn prune_in_the_background(&self, id: u64, runner: &Arc<Runner>) {
        let Some(pool) = self.itself() else { return };
        if runner.pruning.swap(true, Ordering::AcqRel) {
            return;
        }
        let runner = runner.clone();
        self.tasks.spawn(async move {
            pool.prune(id, &runner).await;
            runner.pruning.store(false, Ordering::Release);
        });
    }

    /// Deletes the snapshots of a schedule that its rules no longer keep, oldest first, one at a time.
    async fn prune(&self, id: u64, runner: &Runner) {
        let Some(schedule) = self.catalog().schedule_by_id(id).cloned() else {
            return;
        };
        let to_go: Vec<SnapshotId> = self
            .judge_schedule(&schedule, None)
            .into_iter()
            .filter(|(_, verdict)| !verdict.is_kept())
            .map(|(snapshot, _)| snapshot)
            .collect();
        lock(&runner.complaints).kept.retain(|kept| to_go.contains(kept));
        for snapshot in to_go {
            if self.tasks.are_ending() {
                return;
            }
            match self.prune_one(snapshot, &schedule).await {
                Ok(true) => lock(&runner.figures).pruned += 1,
                Ok(false) => {}
                Err(error) => {
                    if lock(&runner.complaints).kept.insert(snapshot) {
                        let text = format!("no rule keeps it, but it stays: {error}");
                        self.tell(EventKind::SnapshotKept, &schedule.name, text);
                    }
                }
            }
        }
    }

    /// Whether it was there to be deleted.
    async fn prune_one(&self, snapshot: SnapshotId, schedule: &Schedule) -> Result<bool> {
        let _gate = self.gate.write().await;
        let Some(found) = self.catalog().snapshot_by_id(snapshot).cloned() else {
            return Ok(false);
        };
        let now = self.time_of_locks();
        check_pruning(&self.catalog(), &found, now)?;
        let name = self.catalog().view_name(View {
            volume: found.volumes[0].owner,
            snapshot: Some(snapshot),
        });
        self.remove_snapshot(&found).await?;
        let text = format!("pruned by schedule {}", schedule.name);
        self.tell(EventKind::SnapshotPruned, &name, text);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_all_the_time_is_told_once_in_a_while() {
        let mut seldom = Seldom::default();
        let start = Instant::now();
        assert_eq!(seldom.count(0, start), None);
        assert_eq!(seldom.count(2, start), Some(2));
        assert_eq!(seldom.count(1, start + TELL_PAUSE / 2), None);
        assert_eq!(seldom.count(1, start + TELL_PAUSE), Some(2));
    }
}
