//! The two halves of a round. What is done beside the load is the same in both: a thread wakes at the same moments and asks
//! the appliance for something, in the one half for a snapshot, in the other to be told something that it knows. After each half
//! the shards are brought to a checkpoint. Whatever differs then is the snapshots' doing.
//!
//! ```text
//!          round 0                                round 1
//! warm up, without, checkpoint, with, checkpoint, with, checkpoint, without, checkpoint, ...
//! ```

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{CreateSnapshot, DeletionInfo, EventList, SnapshotInfo, VolumeInfo};
use stillpoint_bench::job::Job;
use stillpoint_bench::run::{Outcome, run};
use stillpoint_bench::target::Opened;

use super::{failed, since_1970};
use crate::cli::Global;
use crate::client::{Client, escape, with_query};
use crate::exit::Failure;

/// How often it is looked whether a deletion has ended.
const GLANCE: Duration = Duration::from_millis(5);
/// How long is waited for what deleted snapshots had to come free.
const FREED: Duration = Duration::from_secs(60);
/// What comes before the first round, at most.
const WARM_UP_NS: u64 = 1_000_000_000;

/// What the halves ask of an appliance.
pub trait Appliance: Sync {
    /// Asks for something that changes nothing.
    fn look(&self) -> Result<(), Failure>;
    /// Takes a snapshot of this name.
    fn take(&self, name: String) -> Result<SnapshotInfo, Failure>;
    /// Deletes it, and waits until what it had is free.
    fn delete(&self, info: &SnapshotInfo) -> Result<(), Failure>;
    /// Brings the shards to a checkpoint.
    fn checkpoint(&self) -> Result<(), Failure>;
}

/// A moment in a half at which something was asked for.
#[derive(Clone, Debug)]
pub struct Moment {
    /// When that was, in nanoseconds since 1970.
    wall_ns: u64,
    /// The snapshot, if it was one.
    pub taken: Option<SnapshotInfo>,
}

impl Moment {
    /// When it was, from the first moment of a run that counts on.
    pub fn position_ns(&self, outcome: &Outcome) -> i64 {
        self.wall_ns.wrapping_sub(outcome.began_wall_ns) as i64
    }
}

/// Runs halves.
#[derive(Debug)]
pub struct Halves<'a, A> {
    /// Whom the snapshots are asked of.
    pub appliance: &'a A,
    /// From one to the next.
    pub every: Duration,
    /// None are taken in either half.
    pub control: bool,
    /// Part of the names, so that two runs do not meet.
    pub mark: u64,
}

/// How the thread beside the load asks.
type Ask<'a> = &'a (dyn Fn(usize) -> Result<Option<SnapshotInfo>, Failure> + Sync);

impl<A: Appliance> Halves<'_, A> {
    /// A half that does not count, so that the first that does finds what the others find.
    pub fn warm_up(&self, job: &Job, target: &Opened) -> Result<(), Failure> {
        let short = Job {
            time_ns: job.time_ns.min(WARM_UP_NS),
            ..job.clone()
        };
        self.without(&short, target).map(drop)
    }

    /// Both halves of a round, without and with, and the moments of the other; its snapshots are gone when it returns, and
    /// what they had is free.
    pub fn round(
        &self,
        number: u32,
        job: &Job,
        target: &Opened,
    ) -> Result<(Outcome, Outcome, Vec<Moment>), Failure> {
        let before = match number.is_multiple_of(2) {
            true => Some(self.without(job, target)?),
            false => None,
        };
        let (with, moments) = if self.control {
            self.half(job, target, &|_| self.appliance.look().map(|()| None))?
        } else {
            self.half(job, target, &|index| {
                let name = format!("bench-{}-{number}-{index}", self.mark);
                self.appliance.take(name).map(Some)
            })?
        };
        let without = match before {
            Some(before) => before,
            None => self.without(job, target)?,
        };
        Ok((without, with, moments))
    }

    fn without(&self, job: &Job, target: &Opened) -> Result<Outcome, Failure> {
        let (outcome, _) = self.half(job, target, &|_| self.appliance.look().map(|()| None))?;
        Ok(outcome)
    }

    /// The job, and the thread beside it; gives the moments in the time that counts.
    fn half(&self, job: &Job, target: &Opened, ask: Ask<'_>) -> Result<(Outcome, Vec<Moment>), Failure> {
        let (over, until) = channel();
        let (outcome, (moments, trouble)) = thread::scope(|scope| {
            let beside = scope.spawn(|| self.ask(ask, until));
            let outcome = run(job, target);
            drop(over);
            (outcome, beside.join().expect("no panic"))
        });
        // Whatever went wrong, what was taken goes.
        let taken = moments.iter().filter_map(|moment| moment.taken.as_ref());
        let deleted: Vec<Result<(), Failure>> = taken.map(|info| self.appliance.delete(info)).collect();
        let outcome = outcome.map_err(failed)?;
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        deleted.into_iter().collect::<Result<(), Failure>>()?;
        self.appliance.checkpoint()?;
        let counts = |moment: &Moment| (0..job.time_ns as i64).contains(&moment.position_ns(&outcome));
        let moments = moments.into_iter().filter(counts).collect();
        Ok((outcome, moments))
    }

    /// Asks once in each interval, in its middle, until the run is over. It sleeps in between, in one piece.
    fn ask(&self, ask: Ask<'_>, until: Receiver<()>) -> (Vec<Moment>, Option<Failure>) {
        let mut moments = Vec::new();
        let mut due = Instant::now() + self.every / 2;
        loop {
            match until.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return (moments, None),
            }
            let wall_ns = since_1970();
            match ask(moments.len()) {
                Ok(taken) => moments.push(Moment {
                    wall_ns: taken.as_ref().map_or(wall_ns, |info| info.time_stamp_ns),
                    taken,
                }),
                Err(failure) => return (moments, Some(failure)),
            }
            due = (due + self.every).max(Instant::now());
        }
    }
}

/// The daemon of `--socket`.
#[derive(Debug)]
pub struct Daemon {
    client: Client,
    volumes: Vec<String>,
    pool: String,
}

impl Daemon {
    /// For snapshots of these volumes.
    ///
    /// # Errors
    /// There is no daemon, or no such volume.
    pub fn of(global: &Global, volumes: Vec<String>, pool: Option<&str>) -> Result<Self, Failure> {
        let client = Client::new(global);
        let mut of_volumes = None;
        for name in &volumes {
            let path = format!("/v1/volumes/{}", escape(name));
            let info: VolumeInfo = client.get(&with_query(&path, &[("pool", pool)]))?;
            of_volumes = Some(info.pool);
        }
        let pool = of_volumes.ok_or_else(|| Error::usage("no volume: name one with --volume"))?;
        Ok(Self {
            client,
            volumes,
            pool,
        })
    }

    fn of_pool(&self) -> String {
        format!("/v1/pools/{}", escape(&self.pool))
    }
}

impl Appliance for Daemon {
    fn look(&self) -> Result<(), Failure> {
        let _: EventList = self
            .client
            .get(&with_query("/v1/events", &[("limit", Some("1"))]))?;
        Ok(())
    }

    fn take(&self, name: String) -> Result<SnapshotInfo, Failure> {
        let request = CreateSnapshot {
            volumes: self.volumes.clone(),
            name,
            pool: Some(self.pool.clone()),
            hold_limit_ns: None,
        };
        self.client.post("/v1/snapshots", &request)
    }

    fn delete(&self, info: &SnapshotInfo) -> Result<(), Failure> {
        let pool = [("pool", Some(info.pool.as_str()))];
        let path = format!("/v1/snapshots/{}", escape(&info.name));
        self.client.delete(&with_query(&path, &pool))?;
        let begun = Instant::now();
        loop {
            let path = format!("{}/deletions/{}", self.of_pool(), info.id);
            let state: DeletionInfo = self.client.get(&path)?;
            if state.state != "going" {
                return Ok(());
            }
            if begun.elapsed() > FREED {
                let message = format!(
                    "snapshot {} is deleted, and its space does not come free",
                    info.name
                );
                return Err(Error::failure(message)
                    .hint("see `stillpoint events --background`")
                    .into());
            }
            thread::sleep(GLANCE);
        }
    }

    fn checkpoint(&self) -> Result<(), Failure> {
        self.client.post(&format!("{}/checkpoint", self.of_pool()), &())
    }
}

#[cfg(test)]
mod tests;
