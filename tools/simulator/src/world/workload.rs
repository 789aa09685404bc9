//! What the clients and the operator happen to want next.

use super::looks::Look;
use super::operations::Does;
use super::{Checked, State, Volume, World, broken};
use crate::device::DeviceHabits;
use crate::stamp::SECTOR_BYTES;

/// Jobs going on at the same time at most.
const JOBS_MAX: usize = 4;
/// Bytes of a block.
const BLOCK: u64 = 4096;

impl World {
    /// Lets the clients work until they have sent `operations` more.
    ///
    /// # Errors
    /// The first law that is broken.
    pub fn work(&mut self, operations: u64) -> Checked {
        let end = self.operations_sent + operations;
        for client in 0..self.plan.clients {
            self.think(client);
        }
        self.open_for_hosts();
        while self.operations_sent < end {
            while let Some(client) = self.idle_clients.pop() {
                if self.jobs.len() < JOBS_MAX && self.random.percent(self.plan.operator_percent) {
                    self.operate();
                }
                if !self.send_something(client) {
                    self.think(client);
                }
            }
            self.let_hosts_act()?;
            self.step()?;
        }
        Ok(())
    }

    /// Lets everything that was begun end; the clients begin nothing new.
    ///
    /// # Errors
    /// The first law that is broken.
    pub fn quiesce(&mut self) -> Checked {
        while !(self.operations.is_empty() && self.is_idle_but_for_clients() && self.snapshots_asked == 0) {
            self.step()?;
        }
        self.settle()?;
        self.idle_clients.clear();
        self.hosts.idle.clear();
        Ok(())
    }

    /// The client sends its next operation after a while.
    pub(super) fn think(&mut self, client: usize) {
        let delay_ns = self.random.between(200, 200 + self.plan.think_ns);
        self.machine.alarm(delay_ns, client as u64);
    }

    /// One more operation of a client; false if there is nothing it could do.
    fn send_something(&mut self, client: usize) -> bool {
        if self.plan.registers {
            return self.send_to_registers(client);
        }
        if self.random.percent(8) && self.send_snapshot_read(client) {
            return true;
        }
        let usable: Vec<u32> = self
            .volumes
            .values()
            .filter(|volume| volume.state == State::There && !volume.resizing)
            .map(|volume| volume.id)
            .collect();
        if usable.is_empty() {
            return false;
        }
        let volume = *self.random.pick(&usable);
        let (offset, length) = self.range(volume, None);
        let tick = self.tick;
        let does = match self.random.below(100) {
            0..45 => {
                let fua = self.random.percent(self.plan.fua_percent) && self.flushes();
                Does::Write {
                    number: self.writes.send(false, tick + 1),
                    fua,
                }
            }
            45..65 => Does::Read(Look::Live),
            65..75 if self.flushes() => Does::Flush,
            65..75 => Does::Cache,
            75..85 => return self.send_discard(client, volume, offset, length),
            85..90 => Does::WriteZeros {
                number: self.writes.send(true, tick + 1),
            },
            90..96 => Does::BlockStatus,
            _ => Does::Cache,
        };
        self.send(Some(client), does, volume, None, offset, length);
        true
    }

    /// Whether a client that could make something durable does.
    pub(super) fn flushes(&mut self) -> bool {
        self.random.percent(self.plan.flushes_percent)
    }

    fn send_discard(&mut self, client: usize, volume: u32, offset: u64, length: u64) -> bool {
        let end = (offset + length).next_multiple_of(BLOCK);
        let end = end.min(self.volumes[&volume].size_bytes / BLOCK * BLOCK);
        let start = offset / BLOCK * BLOCK;
        if start >= end {
            return false;
        }
        let fua = self.random.percent(self.plan.fua_percent) && self.flushes();
        let number = self.writes.send(true, self.tick + 1);
        self.send(
            Some(client),
            Does::Discard { number, fua },
            volume,
            None,
            start,
            end - start,
        );
        true
    }

    pub(super) fn send_snapshot_read(&mut self, client: usize) -> bool {
        let there: Vec<u64> = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.state == State::There)
            .map(|snapshot| snapshot.id)
            .collect();
        if there.is_empty() {
            return false;
        }
        let id = *self.random.pick(&there);
        let (volume, size_bytes) = *self.random.pick(&self.snapshots[&id].volumes);
        let (offset, length) = self.range(volume, Some(size_bytes));
        let does = Does::Read(Look::Snapshot(id));
        self.send(Some(client), does, volume, Some((id, size_bytes)), offset, length);
        true
    }

    /// A random range: mostly small, now and then spanning objects; often on a place that was used before.
    pub(super) fn range(&mut self, volume: u32, size_bytes: Option<u64>) -> (u64, u64) {
        if self.plan.registers {
            return self.range_of_registers(volume, size_bytes);
        }
        let target = &self.volumes[&volume];
        let unit = u64::from(target.block_bytes);
        let size = size_bytes.unwrap_or(target.size_bytes);
        let units = size / unit;
        let length = match self.random.below(100) {
            0..40 => 1,
            40..75 => self.random.between(1, (16_384 / unit).max(1)),
            75..95 => self.random.between(1, 65_536 / unit),
            _ => self.random.between(1, 1_500_000 / unit),
        };
        let length = length.min(units);
        let last = units - length;
        let first = if self.random.percent(30) {
            // A hot spot, so that operations meet.
            self.random.below(last.min(16) + 1)
        } else if self.random.percent(10) {
            // Across the end of an object.
            (1_048_576 / unit).saturating_sub(length / 2).min(last)
        } else {
            self.random.below(last + 1)
        };
        (first * unit, length * unit)
    }

    /// Something that an operator might do now.
    fn operate(&mut self) {
        if self.promoting {
            return;
        }
        let ready: Vec<u32> = self
            .volumes
            .values()
            .filter(|volume| volume.state == State::There && !volume.job)
            .map(|volume| volume.id)
            .collect();
        // Resizing is a write of zeros, which could be anybody's.
        // A history knows of no volume that begins with something.
        let kinds = if self.plan.registers {
            80
        } else if self.plan.change_logs {
            185
        } else {
            152
        };
        match self.random.below(kinds) {
            0..45 => self.operate_create_snapshot(ready),
            45..65 => {
                let there: Vec<u64> = self
                    .snapshots
                    .values()
                    .filter(|snapshot| snapshot.state == State::There && snapshot.cloning == 0)
                    .map(|snapshot| snapshot.id)
                    .collect();
                if !there.is_empty() {
                    let id = *self.random.pick(&there);
                    self.begin_delete_snapshot(id);
                }
            }
            65..80 => self.begin_checkpoint(),
            80..90 => {
                let idle = ready.iter().filter(|id| self.volumes[id].in_flight == 0);
                if let Some(&volume) = idle.clone().next() {
                    // Whole blocks: what a block holds beyond a size within it is not cleared.
                    let size = self.random.between(1, self.plan.volume_bytes_max / BLOCK) * BLOCK;
                    self.begin_resize_volume(volume, size);
                }
            }
            90..95 => {
                let live = self
                    .volumes
                    .values()
                    .filter(|volume| volume.state == State::There && !volume.is_clone())
                    .count();
                if live < self.plan.volumes_max {
                    self.begin_create_volume();
                }
            }
            95..100 => self.operate_delete_volume(&ready, |_| true),
            100..117 => self.operate_clone(),
            117..130 => self.operate_rollback(&ready),
            130..140 => self.operate_delete_volume(&ready, Volume::is_clone),
            140..152 => self.operate_promotion(),
            _ => self.operate_change_log(&ready),
        }
    }

    fn operate_create_snapshot(&mut self, mut ready: Vec<u32>) {
        let live = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.state == State::There)
            .count();
        if ready.is_empty() || live >= self.plan.snapshots_max || !self.machine.has_coordinator() {
            return;
        }
        self.random.shuffle(&mut ready);
        let count = self.random.between(1, ready.len() as u64) as usize;
        self.begin_create_snapshot(&ready[..count]);
        if self.random.percent(self.plan.coordinator_death_percent) {
            self.coordinator_dies_after = Some(self.random.below(40));
        }
    }

    /// Deletes everything and checks that all space came back.
    ///
    /// # Errors
    /// The first law that is broken.
    pub fn delete_everything(&mut self) -> Checked {
        let there = |state: State| state == State::There;
        let snapshots: Vec<u64> = self
            .snapshots
            .values()
            .filter(|s| there(s.state))
            .map(|s| s.id)
            .collect();
        snapshots
            .into_iter()
            .for_each(|id| self.begin_delete_snapshot(id));
        self.settle()?;
        let volumes: Vec<u32> = self
            .volumes
            .values()
            .filter(|v| there(v.state))
            .map(|v| v.id)
            .collect();
        volumes.into_iter().for_each(|id| self.begin_delete_volume(id));
        self.settle()?;
        self.audit_in_silence()?;
        self.begin_status();
        self.settle()?;
        for shard in self.shards() {
            let status = &self.statuses[&shard.0];
            let header = self.newest_header(shard)?;
            let directory =
                u64::from(header.directory_pages.get() + u32::from(header.directory_index_count.get()));
            if status.used_blocks != directory || status.pending_blocks != 0 {
                return broken(format!(
                    "space: with everything deleted shard {} uses {} blocks (and {} pending), its directory {directory}",
                    shard.0, status.used_blocks, status.pending_blocks
                ));
            }
            self.coverage.add("checkpoints", status.checkpoints);
            self.coverage.add("map pages read back", status.map_misses);
        }
        Ok(())
    }

    /// Makes checkpoints and audits what they left on the devices.
    ///
    /// # Errors
    /// The first law that is broken.
    pub fn audit_in_silence(&mut self) -> Checked {
        // What one checkpoint frees, the next one makes available.
        for _ in 0..3 {
            self.begin_checkpoint();
            self.settle()?;
        }
        self.audit()?;
        self.audit_other_sides()?;
        self.check_change_logs()
    }

    /// Compares all volumes and snapshots with what they must be, while nothing else goes on.
    ///
    /// # Errors
    /// The first law that is broken.
    pub fn compare_everything(&mut self) -> Checked {
        self.send_volume_looks(Look::Live);
        self.send_snapshot_looks();
        self.settle()?;
        self.send_change_looks();
        self.settle()
    }

    /// Makes the first volumes.
    ///
    /// # Errors
    /// The first law that is broken.
    pub fn make_volumes(&mut self, count: usize) -> Checked {
        for _ in 0..count {
            self.begin_create_volume();
        }
        self.settle()
    }

    /// Whether this life cannot go on as if nothing had happened: its coordinator is dead, or a shard may have
    /// stopped writing.
    #[must_use]
    pub fn must_end_in_a_crash(&self) -> bool {
        !self.machine.has_coordinator() || self.plan.device_errors > 0
    }

    /// Lets device operations fail as often as planned, or not at all.
    pub fn let_devices_fail(&mut self, fail: bool) {
        self.let_sides_fail(fail);
        let errors = if fail { self.plan.device_errors } else { 0 };
        self.devices.set_habits(DeviceHabits {
            read_errors: errors,
            write_errors: errors,
            ..self.plan.habits
        });
    }
}

const _: () = assert!(BLOCK.is_multiple_of(SECTOR_BYTES as u64));
