//! Commands of the control plane, in the order in which they come.

use super::Shard;
use crate::command::{EventKind, ShardCommand, Ticket};
use crate::ids::{SnapshotId, VolumeId};
use crate::lineage;
use crate::marks::{Mark, mark};
use crate::ports::LogTail;
use crate::request::RequestError;
use crate::virtual_volume::VirtualVolume;
use stillpoint_ondisk::directory::RowKind;
use stillpoint_ondisk::record::{CATALOG_KEY_BYTES_MAX, CATALOG_VALUE_BYTES_MAX, RECORD_BYTES_MAX, Record};

/// Commands run per turn.
const COMMANDS_PER_TURN: usize = 64;

impl<T: LogTail> Shard<T> {
    pub(super) fn run_commands(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            let Some((ticket, command)) = self.commands.pop_front() else {
                return;
            };
            self.command_waits = !self.run_command(ticket, &command);
            if self.command_waits {
                self.commands.push_front((ticket, command));
                return;
            }
            self.progress = true;
        }
    }

    /// False if it has to wait for room in the log.
    fn run_command(&mut self, ticket: Ticket, command: &ShardCommand) -> bool {
        match command {
            ShardCommand::Prepare { snapshot, volumes } => self.prepare(ticket, *snapshot, volumes),
            ShardCommand::Cut {
                snapshot,
                time_stamp,
                deadline_ns,
            } => {
                return self.cut(ticket, *snapshot, *time_stamp, *deadline_ns);
            }
            ShardCommand::Release { snapshot } => self.release(ticket, *snapshot),
            ShardCommand::Persist { snapshot } => self.persist(ticket, *snapshot),
            ShardCommand::Abort { snapshot } => return self.abort(ticket, *snapshot),
            ShardCommand::Checkpoint if self.stopped.is_some() => self.refuse(ticket),
            ShardCommand::Checkpoint => self.checkpoint.ask(ticket),
            ShardCommand::Scrub { rate_bytes_per_s } => {
                self.start_scrub(*rate_bytes_per_s);
                self.event(Some(ticket), EventKind::Done);
            }
            ShardCommand::StopScrub => {
                self.stop_scrub();
                self.event(Some(ticket), EventKind::Done);
            }
            ShardCommand::PauseScrub => {
                self.pause_scrub();
                self.event(Some(ticket), EventKind::Done);
            }
            ShardCommand::ResumeScrub { rate_bytes_per_s } => {
                self.resume_scrub(*rate_bytes_per_s);
                self.event(Some(ticket), EventKind::Done);
            }
            ShardCommand::RestoreScrub(status) => {
                self.restore_scrub(status.as_ref().clone());
                self.event(Some(ticket), EventKind::Done);
            }
            ShardCommand::Status => {
                let status = Box::new(self.status());
                self.event(Some(ticket), EventKind::Status(status));
            }
            ShardCommand::ListSnapshots { volume } => {
                let list = self
                    .volumes
                    .get(volume)
                    .map(VirtualVolume::snapshot_statuses)
                    .unwrap_or_default();
                self.event(Some(ticket), EventKind::Snapshots(list));
            }
            ShardCommand::Deletion { snapshot } => {
                let found = self.deletions(*snapshot);
                self.event(Some(ticket), EventKind::Deletion(found));
            }
            ShardCommand::SetChangeLog { .. }
            | ShardCommand::RemoveChangeLog { .. }
            | ShardCommand::AttachChangeLog { .. }
            | ShardCommand::RefuseChangeLog { .. } => {
                let kind = self.change_log_command(command);
                self.event(Some(ticket), kind);
            }
            logged => return self.run_logged(ticket, logged),
        }
        true
    }

    fn refuse(&mut self, ticket: Ticket) {
        self.event(Some(ticket), EventKind::Failed(RequestError::ShardStopped));
    }

    /// Commands that leave a record in the log.
    fn run_logged(&mut self, ticket: Ticket, command: &ShardCommand) -> bool {
        if self.stopped.is_some() {
            self.refuse(ticket);
            return true;
        }
        if !self.log.has_urgent_room(RECORD_BYTES_MAX) {
            self.want_log_room();
            return false;
        }
        match command {
            ShardCommand::CreateVolume { volume, .. } | ShardCommand::CloneVolume { volume, .. }
                if self.volumes.get(volume).is_some_and(|share| share.deleting) =>
            {
                // Numbers are not used again: this is a create that came after its delete.
                self.event(Some(ticket), EventKind::Failed(RequestError::NotFound));
                return true;
            }
            ShardCommand::CreateVolume { volume, share_blocks } => {
                if !self.directory_has_room() {
                    self.event(Some(ticket), EventKind::Failed(RequestError::NoSpace));
                    return true;
                }
                self.create_volume(*volume, *share_blocks);
            }
            ShardCommand::CloneVolume {
                volume,
                origin,
                snapshot,
            } => {
                if let Err(error) = self.clone_volume(*volume, *origin, *snapshot) {
                    self.event(Some(ticket), EventKind::Failed(error));
                    return true;
                }
            }
            ShardCommand::ResizeVolume { volume, share_blocks } => {
                self.reclaim.resize(ticket, *volume, *share_blocks);
                return true;
            }
            ShardCommand::DeleteVolume { volume } => {
                let share = self.volumes.get_mut(volume);
                if let Some(share) = share.filter(|share| !share.with_snapshots) {
                    (share.deleting, share.with_snapshots) = (true, true);
                    share.dirty = true;
                    self.log.append(&Record::VolumeDelete { volume: volume.0 });
                    self.reclaim.wake();
                    self.change_logs.count_again();
                }
            }
            ShardCommand::DeleteHead { volume } => {
                if let Some(share) = self.volumes.get_mut(volume).filter(|share| !share.deleting) {
                    share.deleting = true;
                    share.dirty = true;
                    self.log.append(&Record::HeadDelete { volume: volume.0 });
                    self.reclaim.wake();
                    self.change_logs.count_again();
                }
            }
            ShardCommand::DeleteSnapshot { volume, snapshot } => {
                self.drop_snapshot(*volume, *snapshot);
            }
            ShardCommand::CatalogPut { key, value } => {
                assert!(key.len() <= CATALOG_KEY_BYTES_MAX && value.len() <= CATALOG_VALUE_BYTES_MAX);
                if !self.directory_has_room()
                    || self.directory.put(RowKind::Catalog, key, value.clone()).is_err()
                {
                    self.event(Some(ticket), EventKind::Failed(RequestError::NoSpace));
                    return true;
                }
                self.log.append(&Record::CatalogPut { key, value });
                // A catalog row may take a page of its own.
                self.rows_made += 16;
            }
            ShardCommand::CatalogDelete { key } => {
                self.directory.remove(RowKind::Catalog, key);
                self.log.append(&Record::CatalogDelete { key });
            }
            other => unreachable!("{other:?} leaves no record"),
        }
        self.event_when_durable(ticket, EventKind::Done);
        true
    }

    /// Whether the directory and the next checkpoint would have space for one more changed directory page.
    fn directory_has_room(&self) -> bool {
        !self.directory.is_nearly_full()
            && self.space.free_blocks() > self.directory.pages_to_write() as u64 + 4
    }

    fn clone_volume(
        &mut self,
        volume: VolumeId,
        origin: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<(), RequestError> {
        if self.volumes.contains_key(&volume) {
            return Ok(());
        }
        if !self.directory_has_room() {
            return Err(RequestError::NoSpace);
        }
        lineage::clone(&mut self.volumes, volume, origin, snapshot).map_err(|_| RequestError::NotFound)?;
        #[cfg(feature = "planted-bugs")]
        if self.options.planted_bug == Some(crate::PlantedBug::CloneFreesOrigins)
            && let Some(origin) = self
                .volumes
                .get_mut(&volume)
                .and_then(|made| made.origin.as_mut())
        {
            origin.epoch = crate::ids::Epoch(0);
        }
        mark(Mark::VolumeCloned);
        self.log.append(&Record::VolumeClone {
            volume: volume.0,
            origin: origin.0,
            snapshot: snapshot.0,
        });
        self.rows_made += 1;
        // The snapshot may have been cut before all beyond the end of the share was cleared.
        let share_blocks = self.volumes[&volume].share_blocks;
        self.reclaim.trim_again(volume, share_blocks);
        Ok(())
    }

    fn create_volume(&mut self, volume: VolumeId, share_blocks: u64) {
        if self.volumes.contains_key(&volume) {
            return;
        }
        self.log.append(&Record::VolumeCreate {
            volume: volume.0,
            family: volume.0,
            share_blocks,
        });
        self.volumes
            .insert(volume, VirtualVolume::new(volume, volume, share_blocks));
        self.rows_made += 1;
    }
}
