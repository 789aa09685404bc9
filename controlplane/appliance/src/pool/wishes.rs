//! Snapshots that clients ask for through their connections.
//!
//! A session is served by a poll loop and must not wait: it puts its wish into a bounded channel, and looks each turn whether it
//! was granted. Nobody need be left to look: a snapshot that was begun is taken all the same.

use std::sync::{Arc, Mutex, PoisonError};

use stillpoint_coordinator::{Marks, OverallSnapshot};
use stillpoint_export::{NotTaken, SnapshotTaker, SnapshotWish};
use stillpoint_processor::VolumeId;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Pool;
use crate::api::model::CreateSnapshot;
use crate::error::{Error, ErrorKind, Result};

/// Wishes of one pool that may wait; further ones are refused.
const WISHES_MAX: usize = 64;
/// So many are granted at a time.
const GRANTS_MAX: usize = 16;

/// The wishes that wait.
#[derive(Debug)]
pub(super) struct Wishes {
    sender: mpsc::Sender<Wish>,
    /// Until the task takes it.
    receiver: Mutex<Option<mpsc::Receiver<Wish>>>,
}

impl Default for Wishes {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WISHES_MAX);
        Self {
            sender,
            receiver: Mutex::new(Some(receiver)),
        }
    }
}

/// A snapshot that a client wants.
#[derive(Debug)]
struct Wish {
    volume: VolumeId,
    name: String,
    reply: oneshot::Sender<Outcome>,
}

type Outcome = Result<(), NotTaken>;

/// Takes snapshots of one volume for the clients of an export.
#[derive(Debug)]
pub struct VolumeTaker {
    volume: VolumeId,
    sender: mpsc::Sender<Wish>,
}

impl SnapshotTaker for VolumeTaker {
    fn begin(&self, name: &str) -> Result<Box<dyn SnapshotWish>, NotTaken> {
        let (reply, outcome) = oneshot::channel();
        let wish = Wish {
            volume: self.volume,
            name: name.to_owned(),
            reply,
        };
        match self.sender.try_send(wish) {
            Ok(()) => Ok(Box::new(Pending(outcome))),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NotTaken::Unable(format!(
                "{WISHES_MAX} snapshots that clients asked for are waiting already (try again)"
            ))),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(closing()),
        }
    }
}

fn closing() -> NotTaken {
    NotTaken::Unable("the pool is being closed (try again when it is open)".to_owned())
}

/// A wish, as its session sees it.
#[derive(Debug)]
struct Pending(oneshot::Receiver<Outcome>);

impl SnapshotWish for Pending {
    fn outcome(&mut self) -> Option<Outcome> {
        match self.0.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(closing())),
        }
    }
}

/// What a client is told.
fn told(error: &Error) -> NotTaken {
    let message = error.to_string();
    match error.kind {
        ErrorKind::Usage | ErrorKind::Conflict => NotTaken::Invalid(message),
        ErrorKind::NotFound | ErrorKind::NoSpace | ErrorKind::Failure | ErrorKind::Unavailable => {
            NotTaken::Unable(message)
        }
    }
}

impl Pool {
    /// For the clients of an export of this volume.
    #[must_use]
    pub fn snapshot_taker(&self, volume: VolumeId) -> VolumeTaker {
        VolumeTaker {
            volume,
            sender: self.wishes.sender.clone(),
        }
    }

    /// Starts the task that grants wishes.
    pub(super) fn start_granting(self: &Arc<Self>) {
        let mut receiver = self
            .wishes
            .receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let receiver = receiver.take().expect("tasks start once");
        let pool = self.clone();
        self.tasks.spawn(async move {
            pool.tasks.until_the_end(pool.grant_all(receiver)).await;
        });
    }

    async fn grant_all(&self, mut receiver: mpsc::Receiver<Wish>) {
        let turns = Arc::new(Semaphore::new(GRANTS_MAX));
        while let Ok(turn) = turns.clone().acquire_owned().await
            && let Some(wish) = receiver.recv().await
            && let Some(pool) = self.itself()
        {
            self.tasks.spawn(async move {
                pool.grant(wish).await;
                drop(turn);
            });
        }
    }

    async fn grant(&self, wish: Wish) {
        let outcome = self.take_for_client(wish.volume, &wish.name).await;
        let outcome = outcome.map(|_| ()).map_err(|error| told(&error));
        if wish.reply.send(outcome).is_err() {
            tracing::info!(
                pool = self.name(),
                "the client that asked for snapshot {} went away before the answer",
                wish.name
            );
        }
    }

    async fn take_for_client(&self, volume: VolumeId, name: &str) -> Result<OverallSnapshot> {
        let _gate = self.gate.read().await;
        let volume = self
            .catalog()
            .volume_by_id(volume)
            .map(|volume| volume.name.clone());
        let request = CreateSnapshot {
            volumes: vec![volume.ok_or_else(|| Error::not_found("the volume was deleted"))?],
            name: name.to_owned(),
            pool: None,
            hold_limit_ns: None,
        };
        self.take_snapshot(&request, Marks::default()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::snapshots;
    use stillpoint_coordinator::{SnapshotError, Step};
    use stillpoint_processor::ShardIndex;
    use stillpoint_processor::command::RefusedReason;

    fn taker() -> (VolumeTaker, mpsc::Receiver<Wish>) {
        let (sender, receiver) = mpsc::channel(WISHES_MAX);
        let volume = VolumeId(1);
        (VolumeTaker { volume, sender }, receiver)
    }

    #[test]
    fn a_wish_that_cannot_wait_is_refused_and_one_that_waits_is_answered_once() {
        let (taker, mut receiver) = taker();
        let mut wishes: Vec<Box<dyn SnapshotWish>> = (0..WISHES_MAX)
            .map(|number| taker.begin(&number.to_string()).expect("it may wait"))
            .collect();
        let refused = taker.begin("one more").expect_err("it may not");
        assert!(
            matches!(&refused, NotTaken::Unable(text) if text.contains("64 snapshots")),
            "{refused:?}"
        );
        assert_eq!(wishes[0].outcome(), None);
        let first = receiver.try_recv().expect("it waits");
        assert_eq!((first.volume, first.name.as_str()), (VolumeId(1), "0"));
        first.reply.send(Ok(())).expect("somebody listens");
        assert_eq!(wishes[0].outcome(), Some(Ok(())));
        assert!(taker.begin("one more").is_ok(), "there is room again");
    }

    #[test]
    fn wishes_of_a_pool_that_closes_are_refused() {
        let (taker, receiver) = taker();
        let mut wish = taker.begin("a").expect("it may wait");
        drop(receiver);
        let refused = Some(Err(closing()));
        assert_eq!(wish.outcome(), refused);
        assert_eq!(taker.begin("b").map(|_| ()), Err(closing()));
    }

    #[test]
    fn a_client_is_told_what_and_what_next() {
        let refused = |reason| SnapshotError::Refused {
            shard: ShardIndex(1),
            step: Step::Prepare,
            reason,
        };
        let in_doubt = SnapshotError::InDoubt {
            shard: ShardIndex(0),
            step_limit_ns: 1,
        };
        for (error, what, next) in [
            (
                refused(RefusedReason::NoSpace),
                "the pool is full",
                "(delete snapshots",
            ),
            (
                refused(RefusedReason::ShardStopped),
                "stopped writing",
                "(see the log",
            ),
            (refused(RefusedReason::Busy), "another snapshot", "(try again"),
            (in_doubt, "did not confirm", "(close the pool"),
        ] {
            match told(&snapshots::told(&error)) {
                NotTaken::Unable(text) => assert!(text.contains(what) && text.contains(next), "{text}"),
                NotTaken::Invalid(text) => panic!("another name would not help: {text}"),
            }
        }
        let taken = Error::conflict("v@a exists already").hint("choose another name");
        assert_eq!(
            told(&taken),
            NotTaken::Invalid("v@a exists already (choose another name)".to_owned())
        );
    }
}
