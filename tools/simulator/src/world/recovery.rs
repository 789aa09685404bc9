//! Making a pool, and what happens at the end of a life: crash, open, reconcile with the catalog, compare.

use std::collections::{BTreeMap, BTreeSet};

use stillpoint_processor::format::{PoolSpec, make_pool};
use stillpoint_processor::shard::{OpenError, RecoveryReport};
use stillpoint_processor::{Now, Shard, ShardCommand, ShardIndex, SnapshotId, VolumeId};

use super::exports::Exports;
use super::hosts::Hosts;
use super::jobs::Purpose;
use super::looks::Look;
use super::sides::Pairs;
use super::{Checked, Coverage, State, World, broken};
use crate::device::{CrashFate, Devices};
use crate::machine::{Below, Machine, WALL_START_NS};
use crate::memory::{SimulatedTail, TailShelf};
use crate::model::{Broken, Crash, Range, Writes};
use crate::random::Random;
use crate::rows::{Rows, VolumeRow};
use crate::scenario::Plan;

type Opened = Vec<(Shard<SimulatedTail>, RecoveryReport)>;

impl World {
    /// Makes a pool as planned and opens it.
    ///
    /// # Errors
    /// If that is refused.
    pub fn new(plan: Plan, mut random: Random, trace: bool) -> Checked<Self> {
        let sides = if plan.mirrors.is_some() { 2 } else { 1 };
        let sizes_blocks: Vec<u64> = plan
            .device_blocks
            .iter()
            .flat_map(|&blocks| vec![blocks; sides])
            .collect();
        let devices = Devices::new(&sizes_blocks, plan.habits, random.fork());
        let spec = PoolSpec {
            pool: *b"a simulated pool",
            name: "simulated".to_string(),
            shard_count: plan.shards,
            created_ns: WALL_START_NS,
            devices: (0..)
                .zip(&plan.device_blocks)
                .map(|(i, &blocks)| ([i; 16], blocks))
                .collect(),
            second_sides: match &plan.mirrors {
                Some(_) => (100..).map(|i| [i; 16]).take(plan.device_blocks.len()).collect(),
                None => Vec::new(),
            },
        };
        let layout = make_pool(&mut devices.open_port(None), &spec)
            .map_err(|error| Broken(format!("the pool cannot be made: {error}")))?;
        let tails: Vec<TailShelf> = (0..plan.shards).map(|_| TailShelf::default()).collect();
        let machine = {
            let below = Below {
                devices: &devices,
                sides: None,
            };
            Machine::new(Vec::new(), 0, 0, below, plan.pace, 0, random.fork())
        };
        let pairs = plan.mirrors.as_ref().map(|of_plan| {
            devices.fail_in_parts();
            Pairs::new(of_plan, plan.device_blocks.len(), random.fork())
        });
        let mut world = Self {
            layout,
            devices,
            tails,
            machine,
            tick: 0,
            writes: Writes::default(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            operations: BTreeMap::new(),
            operations_sent: 0,
            jobs: BTreeMap::new(),
            jobs_begun: 0,
            promoting: false,
            change_logs: BTreeMap::new(),
            attached: BTreeMap::new(),
            making_room: BTreeSet::new(),
            discarded: BTreeSet::new(),
            has_dropped: false,
            next_volume: 1,
            next_snapshot: 1,
            snapshots_asked: 0,
            statuses: BTreeMap::new(),
            open_calls: 0,
            coordinator_dies_after: None,
            idle_clients: Vec::new(),
            exports: Exports::default(),
            hosts: Hosts::new(&plan.nbd),
            pairs,
            recorder: plan.registers.then(Box::default),
            coverage: Coverage::default(),
            random,
            plan,
            trace,
        };
        let opened = world
            .open_shards(None)
            .map_err(|error| Broken(format!("a new pool does not open: {error}")))?;
        world.start(opened);
        Ok(world)
    }

    fn open_shards(&mut self, calls: Option<u64>) -> Result<Opened, String> {
        self.label_what_is_missing();
        let options = self.plan.shard_options;
        let now_ns = self.machine.now().monotonic_ns;
        let now = Now {
            monotonic_ns: now_ns,
            wall_ns: WALL_START_NS + now_ns,
        };
        let mut port = self.devices.open_port(calls);
        let mut opened = Vec::new();
        for shard in self.shards() {
            let tail = self.tails[usize::from(shard.0)].take(self.plan.tail);
            let mut opener = self.opener(port, shard);
            let shard = Shard::open(&self.layout, shard, &mut opener, tail, options, now);
            let (shard, report) = shard.map_err(|error: OpenError| error.to_string())?;
            self.coverage.add(
                "mirrors: pages that were not the same on both sides",
                opener.differences(),
            );
            port = opener.settle()?;
            opened.push((shard, report));
        }
        self.open_calls = port.calls();
        Ok(opened)
    }

    /// Starts a life with these shards.
    fn start(&mut self, opened: Opened) {
        let mut shards = Vec::new();
        for (shard, report) in opened {
            self.trace(|| format!("open   shard {}: {report:?}", shard.index().0));
            self.coverage.add("log records replayed", report.log_records);
            self.coverage
                .add("log tail records replayed", report.tail_records);
            self.coverage
                .add("blocks dropped in recovery", report.dropped_blocks);
            self.has_dropped |= report.dropped_blocks > 0;
            shards.push(shard);
        }
        let sides = self.begin_sides();
        let devices = self.devices.clone();
        let below = Below {
            devices: &devices,
            sides: sides.as_ref(),
        };
        let processors = self.random.between(1, u64::from(self.plan.shards).min(3)) as usize;
        let now_ns = self.machine.now().monotonic_ns;
        let random = self.random.fork();
        let (pool_bytes, pace) = (self.plan.pool_bytes, self.plan.pace);
        self.machine = Machine::new(shards, processors, pool_bytes, below, pace, now_ns, random);
        self.next_mischief();
        #[cfg(feature = "planted-bugs")]
        if self.plan.nbd.flushes_replied_early {
            self.machine.plant_early_flush_replies();
        }
    }

    /// Ends this life, opens the pool again and compares everything with the model.
    pub fn crash_and_recover(&mut self, crash: Crash) -> Checked {
        self.die(crash)?;
        let were_cut = match crash {
            Crash::PowerCut => {
                self.find_the_other_sides();
                false
            }
            Crash::Kill | Crash::KillWithoutTail => self.cut_power_of_sides(),
        };
        let mut worst = match crash {
            Crash::Kill if !self.plan.tail => Crash::KillWithoutTail,
            other => other,
        };
        let mut calls = None;
        if self.random.percent(30) {
            calls = Some(self.random.below(self.open_calls * 2 + 2));
        }
        let mut opened = loop {
            match self.open_shards(calls) {
                Ok(opened) => break opened,
                Err(error) if calls.is_some() => {
                    self.trace(|| format!("crash  while opening: {error}"));
                    self.coverage.count("crashes during recovery");
                    let next = if self.random.percent(50) && !self.plan.registers {
                        Crash::PowerCut
                    } else {
                        Crash::Kill
                    };
                    self.crash_devices(next);
                    if next == Crash::PowerCut {
                        worst = Crash::PowerCut;
                    }
                    calls = None;
                }
                Err(error) => return broken(format!("the pool does not open after {crash:?}: {error}")),
            }
        };
        self.account(&mut opened)?;
        if were_cut {
            let mut shards: Vec<_> = opened.iter_mut().map(|(shard, _)| shard).collect();
            self.check_each_side(&mut shards)?;
        }
        let mending = self.compare_with_catalog(&opened)?;
        self.start(opened);
        let logs = self.tell_all_change_logs();
        self.begin(Purpose::Reconcile, vec![mending, logs]);
        self.settle()?;
        self.forget_what_lies_beyond_the_ends();
        // Snapshots first: they are compared with the history up to the crash, which the volumes then close.
        self.send_snapshot_looks();
        self.settle()?;
        self.send_volume_looks(Look::Recovered(worst));
        self.settle()
    }

    /// Accounts for every block of a pool that was just opened: it is used once, or free.
    fn account(&mut self, opened: &mut Opened) -> Checked {
        for (shard, _) in opened {
            let mut opener = self.opener(self.devices.open_port(None), shard.index());
            let report = shard.check(&mut opener, false);
            if !report.is_clean() {
                return broken(format!(
                    "space of shard {} after a recovery: {:?}",
                    shard.index().0,
                    report.problems
                ));
            }
        }
        self.coverage.count("recoveries with all space accounted for");
        Ok(())
    }

    /// Damages blocks of maps, directories and data, and reads everything, then once more after a restart. What is
    /// read is right or refused (I4); a pool that does not open says why.
    ///
    /// # Errors
    /// Wrong data.
    pub fn rot(&mut self) -> Checked {
        self.plan.corruption = true;
        for _ in 0..self.random.between(1, 30) {
            let shard = self.random.below(u64::from(self.layout.shard_count)) as u16;
            let device = self.random.below(self.layout.devices.len() as u64) as usize;
            let start = self.layout.data_start_block(shard, device);
            let end = self.layout.slice_start_block(shard, device) + self.layout.devices[device].slice_blocks;
            // Space is given out from the start.
            let block = self.random.between(start, (start + 200).min(end - 1));
            let (byte, bit) = (self.random.below(4096) as usize, self.random.below(8));
            self.devices
                .corrupt(self.sound_side(device), block, byte, 1 << bit);
        }
        self.compare_everything()?;
        self.die(Crash::Kill)?;
        let opened = match self.open_shards(None) {
            Ok(opened) => opened,
            Err(error) => {
                self.trace(|| format!("refuse {error}"));
                self.coverage.count("damaged pools refused");
                return Ok(());
            }
        };
        let mending = self.compare_with_catalog(&opened)?;
        self.start(opened);
        let logs = self.tell_all_change_logs();
        self.begin(Purpose::Reconcile, vec![mending, logs]);
        self.settle()?;
        self.compare_everything()
    }

    fn die(&mut self, crash: Crash) -> Checked {
        self.hosts_hear_the_last()?;
        let tick = self.tick();
        self.trace(|| format!("crash  {crash:?}"));
        self.coverage.count(match crash {
            Crash::Kill | Crash::KillWithoutTail => "kills",
            Crash::PowerCut => "power cuts",
        });
        self.writes.crash(tick);
        self.record(|recorder| recorder.crash(tick));
        self.operations.clear();
        self.jobs.clear();
        self.idle_clients.clear();
        (self.snapshots_asked, self.coordinator_dies_after, self.promoting) = (0, None, false);
        for volume in self.volumes.values_mut() {
            (volume.in_flight, volume.job, volume.resizing) = (0, false, false);
            (volume.rolls_back_to, volume.rolls_back_now) = (None, false);
        }
        self.forget_change_log_jobs();
        for snapshot in self.snapshots.values_mut() {
            snapshot.bounds.answered = snapshot.bounds.answered.min(tick);
            (snapshot.cloning, snapshot.ends_with) = (0, None);
        }
        let (devices, pace, now_ns) = (
            self.devices.clone(),
            self.plan.pace,
            self.machine.now().monotonic_ns,
        );
        // The processors go, and their log tails back to the shelves.
        let below = Below {
            devices: &devices,
            sides: None,
        };
        self.machine = Machine::new(Vec::new(), 0, 0, below, pace, now_ns, self.random.fork());
        self.crash_devices(crash);
        Ok(())
    }

    fn crash_devices(&mut self, crash: Crash) {
        let fates = [
            CrashFate::Lost,
            CrashFate::Kept,
            CrashFate::Mixed,
            CrashFate::Reordered,
            CrashFate::CutOff,
        ];
        let fate = *self.random.pick(&fates);
        self.devices.crash(crash == Crash::PowerCut, fate);
        if crash == Crash::PowerCut {
            for tail in &mut self.tails {
                *tail = TailShelf::default();
            }
        }
    }

    /// Decides by the catalog what exists, checks it against what was confirmed (I8), and gives the commands that
    /// put the rest right.
    fn compare_with_catalog(&mut self, opened: &Opened) -> Checked<Vec<(ShardIndex, ShardCommand)>> {
        let mut commands = Vec::new();
        let rows = Rows::read(&opened[0].0.catalog())?;
        for (snapshot, key) in &rows.figures {
            if !rows.snapshots.contains_key(snapshot) {
                let key = key.clone();
                commands.push((ShardIndex(0), ShardCommand::CatalogDelete { key }));
            }
        }
        self.decide_volumes(&rows.volumes)?;
        self.decide_snapshots(&rows.snapshots.keys().copied().collect())?;
        self.decide_owners(&rows)?;
        self.decide_change_logs(&rows)?;
        for (shard, _) in opened {
            self.compare_shares(shard, &mut commands)?;
        }
        Ok(commands)
    }

    /// What a shrinking that a crash interrupted has cut off must never be seen again.
    fn forget_what_lies_beyond_the_ends(&mut self) {
        let tick = self.tick();
        let Self { volumes, writes, .. } = self;
        for volume in volumes.values_mut() {
            let (first, end) = (volume.sectors(), volume.model.sectors());
            if first < end {
                let zeros = writes.send(true, tick);
                volume.model.write_sent(
                    zeros,
                    Range {
                        first,
                        count: end - first,
                    },
                );
                writes.end(zeros, true, true, tick);
            }
        }
    }

    fn decide_volumes(&mut self, rows: &BTreeMap<u32, VolumeRow>) -> Checked {
        for volume in self.volumes.values_mut() {
            // In the middle of a rollback it is one of the two, but it is there.
            let rolled_back = volume.state == State::Asked && volume.replaces.is_some();
            if rolled_back && !rows.contains_key(&volume.row) {
                return broken(format!("volume {} is lost in a rollback", volume.row));
            }
            let row = rows.get(&volume.row).filter(|row| row.head == volume.id);
            match (volume.state, row) {
                (State::There, None) => return broken(format!("volume {} is lost", volume.id)),
                (State::Gone, Some(_)) => return broken(format!("volume {} came back", volume.id)),
                (_, Some(&VolumeRow { size_bytes, .. })) => {
                    if rolled_back {
                        self.coverage.count("rollbacks that a crash let come true");
                    }
                    volume.state = State::There;
                    (volume.size_bytes, volume.shown_bytes) = (size_bytes, size_bytes);
                }
                (_, None) => volume.state = State::Gone,
            }
        }
        match rows.values().find(|row| !self.volumes.contains_key(&row.head)) {
            Some(row) => broken(format!("volume {} was never made", row.head)),
            None => Ok(()),
        }
    }

    fn decide_snapshots(&mut self, rows: &BTreeSet<u64>) -> Checked {
        for snapshot in self.snapshots.values_mut() {
            let row = rows.contains(&snapshot.id);
            snapshot.state = match (snapshot.state, row) {
                (State::There, false) => return broken(format!("I8: snapshot {} is lost", snapshot.id)),
                (State::Gone, true) => return broken(format!("I8: snapshot {} came back", snapshot.id)),
                (_, true) => State::There,
                (_, false) => State::Gone,
            };
        }
        match rows.iter().find(|id| !self.snapshots.contains_key(id)) {
            Some(id) => broken(format!("snapshot {id} was never asked for")),
            None => Ok(()),
        }
    }

    /// Whether the catalog has a snapshot in these shares.
    pub(super) fn has_snapshots_in(&self, volume: u32) -> bool {
        self.snapshots.values().any(|snapshot| {
            snapshot.state == State::There && snapshot.volumes.iter().any(|(id, _)| *id == volume)
        })
    }

    /// What one shard holds besides, or instead of, what the catalog says.
    fn compare_shares(
        &mut self,
        shard: &Shard<SimulatedTail>,
        commands: &mut Vec<(ShardIndex, ShardCommand)>,
    ) -> Checked {
        let index = shard.index();
        let mut give = |command| commands.push((index, command));
        let mut held = BTreeSet::new();
        let mut orphans = 0;
        for share in shard.shares() {
            let volume = share.id;
            held.insert(volume.0);
            let known = self.volumes.get(&volume.0);
            match known.filter(|known| known.state == State::There) {
                Some(known) => {
                    let share_blocks = known
                        .placement
                        .share_blocks(index, known.size_bytes.div_ceil(4096));
                    if share_blocks != share.share_blocks {
                        give(ShardCommand::ResizeVolume { volume, share_blocks });
                    }
                }
                None if !self.has_snapshots_in(volume.0) => {
                    give(ShardCommand::DeleteVolume { volume });
                    continue;
                }
                None if !share.deleting => give(ShardCommand::DeleteHead { volume }),
                None => {}
            }
            for found in share.snapshots.iter().filter(|found| !found.deleting) {
                let snapshot = found.snapshot;
                if self
                    .snapshots
                    .get(&snapshot.0)
                    .is_none_or(|known| known.state != State::There)
                {
                    orphans += 1;
                    give(ShardCommand::DeleteSnapshot { volume, snapshot });
                }
            }
        }
        for volume in self
            .volumes
            .values()
            .filter(|volume| volume.state == State::There)
        {
            if !held.contains(&volume.id) {
                if volume.origin.is_some() {
                    return broken(format!(
                        "shard {} lost its share of volume {}",
                        index.0, volume.id
                    ));
                }
                let share_blocks = volume
                    .placement
                    .share_blocks(index, volume.size_bytes.div_ceil(4096));
                give(ShardCommand::CreateVolume {
                    volume: VolumeId(volume.id),
                    share_blocks,
                });
            }
        }
        self.coverage
            .add("intermediate snapshots without a commit record", orphans);
        for snapshot in self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.state == State::There)
        {
            for (volume, _) in &snapshot.volumes {
                let id = SnapshotId(snapshot.id);
                let share = shard.shares().find(|share| share.id.0 == *volume);
                if !share.is_some_and(|share| share.snapshots.iter().any(|s| s.snapshot == id && !s.deleting))
                {
                    return broken(format!(
                        "I8: shard {} lost its part of snapshot {}",
                        index.0, snapshot.id
                    ));
                }
            }
        }
        Ok(())
    }
}
