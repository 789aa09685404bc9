//! Taking and deleting snapshots.

use std::time::Duration;

use super::volumes::refuse_clones;
use super::{Pool, wall_ns};
use crate::api::model::CreateSnapshot;
use crate::catalog::{Catalog, Change};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{EventKind, When};
use crate::mailbox::ToProcessor;
use crate::name;
use stillpoint_coordinator::{
    HOLD_NS_DEFAULT, Marks, OverallSnapshot, STEP_NS_DEFAULT, SnapshotError, SnapshotRequest, SnapshotVolume,
};
use stillpoint_ondisk::catalog::GROUP_MAX;
use stillpoint_processor::command::RefusedReason;
use stillpoint_processor::{ShardCommand, VolumeId};

/// How often a snapshot is tried whose hold becomes too long.
const HOLD_TRIES: u32 = 4;
/// The pause before the second try; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a hold may be allowed to last: beyond it clients time out.
pub const HOLD_NS_MAX: u64 = 5_000_000_000;

impl Pool {
    /// Takes a snapshot; it is committed when this returns.
    ///
    /// # Errors
    /// Usage, not found, conflict if the name is taken; what the coordinator says.
    pub async fn create_snapshot(&self, request: &CreateSnapshot) -> Result<OverallSnapshot> {
        let _gate = self.gate.read().await;
        self.take_snapshot(request, Marks::default()).await
    }

    /// The same, for one who keeps volumes from being deleted and resized meanwhile; with what is to be known of it from
    /// its first moment on.
    pub(super) async fn take_snapshot(
        &self,
        request: &CreateSnapshot,
        marks: Marks,
    ) -> Result<OverallSnapshot> {
        name::check("snapshot", &request.name)?;
        let hold_limit_ns = request.hold_limit_ns.unwrap_or(HOLD_NS_DEFAULT);
        if hold_limit_ns == 0 || hold_limit_ns > HOLD_NS_MAX {
            return Err(Error::usage(format!(
                "a hold limit of {hold_limit_ns} ns: from 1 to {HOLD_NS_MAX} are possible"
            )));
        }
        let volumes = self.group(&request.volumes)?;
        let ids: Vec<VolumeId> = volumes.iter().map(|of| of.owner).collect();
        self.catalog().reserve_snapshot_name(&ids, &request.name)?;
        let result = self.cut_patiently(request, &volumes, marks, hold_limit_ns).await;
        let result = self.taken(request, &ids, result);
        match &result {
            Ok(overall) => {
                let held = overall.answers_held();
                let (hold_us, durable_us) = (overall.hold_ns_max() / 1000, overall.durable_ns / 1000);
                self.tell_of(
                    EventKind::SnapshotTaken,
                    When::since(overall.time_stamp.0),
                    &subject(request),
                    format!("taken, {held} answers held; hold {hold_us} us, durable in {durable_us} us"),
                );
            }
            Err(error) => self.tell(EventKind::SnapshotFailed, &subject(request), error.to_string()),
        }
        result
    }

    /// Puts a snapshot that was taken into the catalog; or its name is free again.
    fn taken(
        &self,
        request: &CreateSnapshot,
        ids: &[VolumeId],
        result: Result<OverallSnapshot, Refusal>,
    ) -> Result<OverallSnapshot> {
        let mut catalog = self.catalog();
        match result {
            Ok(overall) => {
                catalog.free_snapshot_name(ids, &request.name);
                catalog.put_snapshot(overall.clone());
                Ok(overall)
            }
            Err(Refusal::Coordinator(error @ SnapshotError::InDoubt { .. })) => {
                // The name stays taken: the snapshot may be there when the pool is opened again.
                Err(told(&error).while_doing(what(request)))
            }
            Err(refusal) => {
                catalog.free_snapshot_name(ids, &request.name);
                Err(match refusal {
                    Refusal::Coordinator(error) => told(&error).while_doing(what(request)),
                    Refusal::Before(error) => error,
                })
            }
        }
    }

    /// The volumes of these names (of a volume, or of a group after `group:`), each once.
    pub(super) fn group(&self, names: &[String]) -> Result<Vec<SnapshotVolume>> {
        let mut all = Vec::new();
        for name in names {
            all.extend(self.members(name)?);
        }
        if all.is_empty() || all.len() > GROUP_MAX {
            return Err(Error::usage(format!(
                "{} volumes: from 1 to {GROUP_MAX} are possible",
                all.len()
            )));
        }
        let mut volumes: Vec<SnapshotVolume> = Vec::with_capacity(all.len());
        for volume in all {
            if volumes.iter().any(|of| of.owner == volume.id) {
                return Err(Error::usage(format!("volume {} is named twice", volume.name)));
            }
            volumes.push(SnapshotVolume {
                volume: volume.head,
                owner: volume.id,
                size_bytes: volume.size_bytes,
            });
        }
        Ok(volumes)
    }

    /// Cuts, and tries again if a hold became too long: on a busy machine a processor may not have got its core in
    /// time. Each try holds for no longer than the limit, and the pauses let the clients go on.
    async fn cut_patiently(
        &self,
        request: &CreateSnapshot,
        volumes: &[SnapshotVolume],
        marks: Marks,
        hold_limit_ns: u64,
    ) -> Result<OverallSnapshot, Refusal> {
        let mut pause = RETRY_PAUSE;
        for _ in 1..HOLD_TRIES {
            match self.cut(request, volumes.to_vec(), marks, hold_limit_ns).await {
                Err(Refusal::Coordinator(SnapshotError::HoldExpired { shard, .. })) => {
                    tracing::info!(
                        pool = self.name(),
                        shard = shard.0,
                        "{}: held for too long, trying again",
                        what(request)
                    );
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                result => return result,
            }
        }
        self.cut(request, volumes.to_vec(), marks, hold_limit_ns).await
    }

    async fn cut(
        &self,
        request: &CreateSnapshot,
        volumes: Vec<SnapshotVolume>,
        marks: Marks,
        hold_limit_ns: u64,
    ) -> Result<OverallSnapshot, Refusal> {
        let snapshot = self
            .number(Catalog::next_snapshot)
            .await
            .map_err(Refusal::Before)?;
        let request = SnapshotRequest {
            snapshot,
            name: request.name.clone(),
            volumes,
            marks,
            shard_count: self.shard_count(),
            hold_limit_ns,
            step_limit_ns: STEP_NS_DEFAULT,
        };
        // Processor 0 runs the coordinators.
        let pool = self.index;
        let newest = self.catalog().newest_time_stamp();
        let answer = self.mailboxes[0]
            .ask(|reply| ToProcessor::CreateSnapshot {
                pool,
                request,
                newest,
                reply,
            })
            .await;
        answer
            .map_err(|error| Refusal::Before(error.into()))?
            .map_err(Refusal::Coordinator)
    }

    /// Deletes overall snapshots, each for all its volumes, all of them or none; their space comes free in the background.
    /// `names` are volumes and names of snapshots. Those that have clones go only with `defer`: they are gone at once, and
    /// their space comes free when one of what was made of each is left.
    ///
    /// # Errors
    /// Of the first that is not found, or is locked, exported or has clones; then all are still there. Or a shard stopped: then some
    /// may be gone, as after a crash.
    pub async fn delete_snapshots(&self, names: &[(String, String)], defer: bool) -> Result<()> {
        let _gate = self.gate.write().await;
        let began_ns = wall_ns();
        let now = self.time_of_locks();
        let mut found: Vec<OverallSnapshot> = Vec::with_capacity(names.len());
        for (volume, snapshot) in names {
            let one = self.snapshot(volume, snapshot)?;
            let catalog = self.catalog();
            catalog.check_removal(&one, None, now)?;
            if !defer {
                refuse_clones(&format!("{volume}@{snapshot}"), catalog.clones_of(one.snapshot)).map_err(
                    |error| {
                        error.hint(
                            "delete them first, or promote one (stillpoint volume promote NAME), or give --defer",
                        )
                    },
                )?;
            }
            found.push(one);
        }
        let mut told = names.iter().map(|(volume, name)| format!("{volume}@{name}"));
        let mut told: Vec<(OverallSnapshot, String)> = found.into_iter().zip(&mut told).collect();
        // One that was taken of several volumes may be named by each.
        told.sort_by_key(|(snapshot, _)| snapshot.snapshot);
        told.dedup_by_key(|(snapshot, _)| snapshot.snapshot);
        let (found, told): (Vec<OverallSnapshot>, Vec<String>) = told.into_iter().unzip();
        self.remove_snapshots(&found).await?;
        let when = When::since(began_ns);
        for name in told {
            self.tell_of(EventKind::SnapshotDeleted, when, &name, "deleted");
        }
        Ok(())
    }

    /// Takes a snapshot out of the catalog; its space comes free in the background. The caller holds the gate alone, and
    /// has asked [`Catalog::check_removal`].
    pub(super) async fn remove_snapshot(&self, found: &OverallSnapshot) -> Result<()> {
        self.remove_snapshots(std::slice::from_ref(found)).await
    }

    /// The same of several, which differ: durable together, so that many cost little more than one.
    async fn remove_snapshots(&self, found: &[OverallSnapshot]) -> Result<()> {
        self.change(found.iter().flat_map(Change::delete_snapshot))
            .await?;
        let mut commands = Vec::new();
        for one in found {
            self.catalog().remove_snapshot(one.snapshot);
            let snapshot = one.snapshot;
            for of in &one.volumes {
                let volume = of.volume;
                commands.extend(self.every_shard(move |_| ShardCommand::DeleteSnapshot { volume, snapshot }));
            }
        }
        self.free(commands).await;
        Ok(())
    }

    /// The snapshot of a volume by its name.
    ///
    /// # Errors
    /// Not found.
    pub fn snapshot(&self, volume: &str, snapshot: &str) -> Result<OverallSnapshot> {
        let id = self.volume(volume)?.id;
        self.catalog().snapshot(id, snapshot).cloned().ok_or_else(|| {
            Error::not_found(format!("there is no snapshot {volume}@{snapshot}"))
                .hint(format!("stillpoint snapshot list {volume} shows all"))
        })
    }
}

enum Refusal {
    Before(Error),
    Coordinator(SnapshotError),
}

fn what(request: &CreateSnapshot) -> String {
    format!("snapshot {}", subject(request))
}

fn subject(request: &CreateSnapshot) -> String {
    format!("{}@{}", request.volumes.join(","), request.name)
}

/// What is said of a cut that failed.
pub(super) fn told(error: &SnapshotError) -> Error {
    let (kind, hint) = match error {
        SnapshotError::Refused { reason, .. } => match reason {
            RefusedReason::NoSpace => (ErrorKind::NoSpace, "delete snapshots or volumes, or discard data"),
            RefusedReason::NoSuchVolume(_) => (ErrorKind::Failure, "close the pool and open it again"),
            RefusedReason::ShardStopped => (
                ErrorKind::Failure,
                "see the log; close the pool and open it again once the device works",
            ),
            RefusedReason::Busy | RefusedReason::Aborted => (ErrorKind::Unavailable, "try again"),
        },
        SnapshotError::HoldExpired { .. } => (
            ErrorKind::Failure,
            "it was tried 4 times; allow a longer hold with --hold-limit, or leave a core to each processor",
        ),
        SnapshotError::Failed { error: cause, .. } => {
            return Error {
                message: error.to_string(),
                ..Error::from(*cause)
            };
        }
        SnapshotError::Stalled { .. } => (ErrorKind::Failure, "see `stillpoint status` and the log"),
        SnapshotError::InDoubt { .. } => (ErrorKind::Failure, "close the pool and open it again"),
        SnapshotError::Busy { .. } => (ErrorKind::Unavailable, "try again when the others are done"),
        SnapshotError::ShuttingDown => return Error::new(ErrorKind::Unavailable, error.to_string()),
    };
    Error::new(kind, error.to_string()).hint(hint)
}
