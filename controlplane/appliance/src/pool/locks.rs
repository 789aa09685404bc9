//! Locks of snapshots, and the time they end by.
//!
//! A lock ends by the highest wall time that the pool has ever seen: neither a restart nor a clock that is set back brings
//! back an earlier time. That time is durable in the catalog: it is written with each change of a lock, when a pool with
//! locks is opened, and once a minute while one of them holds. Snapshots carry it too, in their time stamps.

use std::time::Duration;

use super::{Pool, time_text, wall_ns};
use crate::api::model::LockSnapshot;
use crate::catalog::Change;
use crate::error::{Error, Result};
use crate::events::EventKind;
use stillpoint_coordinator::Marks;

/// How often the highest wall time is made durable while a lock holds.
const PAUSE: Duration = Duration::from_secs(60);
/// A lock lasts for so long at most: what is beyond is more likely a mistake, and could not be undone.
pub const LOCK_NS_MAX: u64 = 100 * 366 * 24 * 3600 * 1_000_000_000;

impl Pool {
    /// The time that locks end by: nanoseconds since the Unix epoch, never earlier than it ever was in this pool.
    #[must_use]
    pub fn time_of_locks(&self) -> u64 {
        self.catalog().saw_time(wall_ns())
    }

    /// Locks a snapshot for all its volumes, or locks it for longer: nothing deletes it until then.
    ///
    /// # Errors
    /// Not found; usage for a time that cannot be; conflict if it is locked for longer already.
    pub async fn lock_snapshot(&self, volume: &str, snapshot: &str, request: &LockSnapshot) -> Result<()> {
        let _gate = self.gate.write().await;
        let mut found = self.snapshot(volume, snapshot)?;
        let now = self.time_of_locks();
        let until = match (request.until_ns, request.for_ns) {
            (Some(until), None) => until,
            (None, Some(length)) => now.saturating_add(length),
            _ => return Err(Error::usage("a lock has an end: give either until_ns or for_ns")),
        };
        let name = format!("{volume}@{snapshot}");
        let before = found.marks.locked_until_ns;
        if until <= now {
            return Err(Error::usage(format!(
                "a lock of {name} until {} would have ended: it is {}",
                time_text(until),
                time_text(now)
            ))
            .hint("give a later date, or a duration as 30d"));
        }
        if until - now > LOCK_NS_MAX {
            return Err(Error::usage(format!(
                "a lock of {name} until {} lasts for more than 100 years",
                time_text(until)
            ))
            .hint("nobody can shorten a lock; it can be made longer when it is needed longer"));
        }
        if until < before {
            return Err(
                Error::conflict(format!("snapshot {name} is locked until {}", time_text(before)))
                    .hint("a lock can be made longer, but neither shorter nor undone, by nobody"),
            );
        }
        found.marks = Marks {
            locked_until_ns: until,
            ..found.marks
        };
        self.change([
            Change::put_marks(found.snapshot, found.marks),
            Change::put_highest_time(now),
        ])
        .await?;
        self.catalog().put_snapshot(found);
        self.locked.notify_one();
        self.tell(
            EventKind::SnapshotLocked,
            &name,
            format!("locked until {}", time_text(until)),
        );
        Ok(())
    }

    /// Keeps the highest wall time durable while a lock holds. Without locks it sleeps until there is one.
    pub(super) async fn keep_time(&self) {
        loop {
            let now = self.time_of_locks();
            if self.catalog().lock_end() > now {
                tokio::time::sleep(PAUSE).await;
                if let Err(error) = self
                    .change([Change::put_highest_time(self.time_of_locks())])
                    .await
                {
                    tracing::warn!(pool = self.name(), "the time could not be made durable: {error}");
                }
            } else {
                self.locked.notified().await;
            }
        }
    }
}
