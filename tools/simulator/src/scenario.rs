//! One run: what is planned from the seed, and how it goes.

use stillpoint_processor::marks::{self, Mark};
use stillpoint_processor::shard::ShardOptions;

use crate::device::DeviceHabits;
use crate::machine::Pace;
use crate::model::{Broken, Crash};
use crate::random::Random;
use crate::world::{Coverage, World};

/// Longer than anything takes.
const LONG_NS: u64 = 10_000_000_000;

/// What one run is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Shards of the pool.
    pub shards: u16,
    /// Size of each device.
    pub device_blocks: Vec<u64>,
    /// How the devices behave.
    pub habits: DeviceHabits,
    /// How fast things go.
    pub pace: Pace,
    /// Whether there is a log tail.
    pub tail: bool,
    /// What a shard is opened with.
    pub shard_options: ShardOptions,
    /// Memory for transfers, per processor.
    pub pool_bytes: usize,
    /// Clients, each with one operation at a time.
    pub clients: usize,
    /// The longest pause of a client.
    pub think_ns: u64,
    /// Operations of each life.
    pub operations: Vec<u64>,
    /// Volumes made at the start, and at most.
    pub volumes: usize,
    /// Volumes at most.
    pub volumes_max: usize,
    /// Bytes of a volume at most.
    pub volume_bytes_max: u64,
    /// Snapshots at most.
    pub snapshots_max: usize,
    /// How often the operator does something when a client does.
    pub operator_percent: u64,
    /// Writes with FUA.
    pub fua_percent: u64,
    /// The shortest time for which answers may be held.
    pub hold_ns_min: u64,
    /// The longest.
    pub hold_ns_max: u64,
    /// How long the coordinator waits for the other steps of a snapshot.
    pub step_limit_ns: u64,
    /// Out of a hundred flushes and writes with FUA that clients could send, how many they do.
    pub flushes_percent: u64,
    /// How often the coordinator dies in the middle of a snapshot.
    pub coordinator_death_percent: u64,
    /// Out of ten thousand device operations, how many fail.
    pub device_errors: u64,
    /// Whether device content has been damaged on purpose.
    pub corruption: bool,
    /// The load is made of reads and writes of whole blocks, which are checked as a history; crashes are kills.
    pub registers: bool,
    /// Whether there are change log volumes.
    pub change_logs: bool,
    /// The load through NBD sessions, beside the direct one.
    pub nbd: NbdPlan,
    /// Every device has two sides.
    pub mirrors: Option<MirrorPlan>,
}

/// What happens to the sides of mirrored devices.
#[derive(Clone, Debug)]
pub struct MirrorPlan {
    /// Sides are lost and come back.
    pub losses: bool,
    /// One side of each device rots, always the same: everything has to be answered all the same.
    pub rot: bool,
    /// The longest time between two of these.
    pub peace_ns: u64,
    /// So much longer operations take to fail on a lost side.
    pub hang_ns: u64,
    /// Out of a hundred sides that come back, how many are blank devices.
    pub replaced_percent: u64,
    /// The longest time that a label takes.
    pub label_ns: u64,
    /// Bytes per second that a processor copies at most; 0: no limit.
    pub rate_bytes_per_s: u64,
}

impl MirrorPlan {
    /// For every fourth seed, or for all. It has random numbers of its own, so that other seeds stay as they are.
    fn of(seed: u64, plan: &mut Plan, all: bool) -> Option<Self> {
        let mut random = Random::new(seed ^ 0x5EED_0F51_DE50_0000);
        if !random.percent(25) && !all {
            return None;
        }
        let kind = random.below(10);
        // Errors of both sides are those of any device: requests may fail.
        plan.device_errors = if kind == 9 {
            *random.pick(&[20, 100, 300])
        } else {
            0
        };
        Some(Self {
            losses: kind < 6,
            rot: (6..9).contains(&kind),
            peace_ns: *random.pick(&[50_000, 300_000, 2_000_000]),
            hang_ns: *random.pick(&[0, 0, 200_000, 3_000_000]),
            replaced_percent: *random.pick(&[0, 0, 20]),
            label_ns: *random.pick(&[1_000, 50_000, 1_000_000]),
            rate_bytes_per_s: *random.pick(&[0, 0, 2_000_000_000, 100_000_000]),
        })
    }
}

/// The clients of NBD.
#[derive(Clone, Debug)]
pub struct NbdPlan {
    /// How many, each with one connection at a time.
    pub clients: usize,
    /// Requests of one connection in flight at most.
    pub depth: u64,
    /// The longest pause of a client.
    pub think_ns: u64,
    /// Out of a thousand times that a client could send, how often it cuts its connection instead.
    pub cuts: u64,
    /// The shortest time between two movements of bytes.
    pub latency_ns: u64,
    /// Out of a thousand times that a client sends something, how often it then stops reading for long.
    pub deaf: u64,
    /// Sessions reply to a flush when the first shard has flushed.
    #[cfg(feature = "planted-bugs")]
    pub flushes_replied_early: bool,
}

impl NbdPlan {
    fn new(random: &mut Random) -> Self {
        Self {
            clients: *random.pick(&[0, 0, 1, 2, 6]),
            depth: *random.pick(&[1, 4, 4, 16, 16, 160]),
            think_ns: *random.pick(&[5_000, 50_000, 500_000]),
            cuts: *random.pick(&[0, 10, 50]),
            latency_ns: *random.pick(&[500, 5_000, 20_000]),
            deaf: *random.pick(&[0, 0, 5]),
            #[cfg(feature = "planted-bugs")]
            flushes_replied_early: false,
        }
    }
}

impl Plan {
    /// The plan for a seed.
    #[must_use]
    pub fn new(random: &mut Random) -> Self {
        let shards = random.between(1, 4) as u16;
        let devices = random.between(1, 3);
        let device_blocks = (0..devices)
            .map(|_| 257 + u64::from(shards) * random.between(1024, 1400) + random.below(8))
            .collect();
        let lives = random.between(1, 4);
        let message_ns = *random.pick(&[200, 1_000, 5_000]);
        let late = random.percent(30);
        let mut plan = Self {
            shards,
            device_blocks,
            habits: DeviceHabits {
                queue_depth: *random.pick(&[2, 8, 64]),
                latency_ns: *random.pick(&[2_000, 10_000, 50_000]),
                flush_ns: *random.pick(&[5_000, 50_000, 500_000]),
                durable_writes: false,
                read_errors: 0,
                write_errors: 0,
            },
            pace: Pace {
                message_ns,
                turn_ns: *random.pick(&[100, 500, 2_000]),
                late_turns: if late { 50 } else { 0 },
                late_ns: 3_000_000,
            },
            tail: random.percent(80),
            shard_options: ShardOptions {
                map_cache_pages: *random.pick(&[32, 64, 256, 4096]),
                in_flight_max: *random.pick(&[4, 32, 256]),
                #[cfg(feature = "planted-bugs")]
                planted_bug: None,
            },
            pool_bytes: *random.pick(&[6 << 20, 8 << 20, 16 << 20]),
            clients: random.between(1, 12) as usize,
            think_ns: *random.pick(&[0, 5_000, 50_000]),
            operations: (0..lives).map(|_| random.between(10, 250)).collect(),
            volumes: random.between(1, 3) as usize,
            volumes_max: 4,
            volume_bytes_max: *random.pick(&[300_000, 1_500_000, 3_000_000]),
            snapshots_max: *random.pick(&[2, 5, 12]),
            operator_percent: *random.pick(&[3, 10]),
            fua_percent: *random.pick(&[0, 10]),
            hold_ns_min: 20_000,
            hold_ns_max: *random.pick(&[100_000, 10_000_000]),
            coordinator_death_percent: *random.pick(&[0, 0, 10]),
            device_errors: *random.pick(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 20]),
            corruption: false,
            registers: false,
            nbd: NbdPlan::new(random),
            mirrors: None,
            step_limit_ns: *random.pick(&[LONG_NS, LONG_NS, LONG_NS, LONG_NS, LONG_NS, 500_000]),
            change_logs: random.percent(50),
            flushes_percent: 100,
        };
        if random.percent(3) {
            plan.make_lazy();
        }
        if random.percent(8) {
            plan.volume_bytes_max = 6_500_000;
        }
        plan.habits.durable_writes = random.percent(40);
        plan
    }

    /// Makes it a plan in which nobody but the shards themselves sees to it that the log is written.
    fn make_lazy(&mut self) {
        self.tail = true;
        self.operator_percent = 0;
        self.flushes_percent = 0;
        self.operations.truncate(1);
        self.volume_bytes_max = 3_000_000;
        self.device_blocks.iter_mut().for_each(|blocks| *blocks += 8000);
        self.operations
            .iter_mut()
            .for_each(|operations| *operations = 3000 + *operations * 10);
    }

    /// Makes it a plan for a history: a few blocks that many use at the same time, many snapshots, no way but the log
    /// tail to forget what was acknowledged.
    pub fn make_history(&mut self) {
        self.registers = true;
        self.tail = true;
        self.device_errors = 0;
        self.mirrors = self
            .mirrors
            .take()
            .filter(|mirrors| mirrors.losses || mirrors.rot);
        self.volumes = self.volumes.min(2);
        self.volume_bytes_max = self.volume_bytes_max.max(1_500_000);
        let room_blocks = u64::from(self.shards) * 3000;
        self.device_blocks
            .iter_mut()
            .for_each(|blocks| *blocks += room_blocks);
        self.operator_percent = 3;
        self.operations
            .iter_mut()
            .for_each(|operations| *operations = 500 + *operations * 6);
    }
}

/// What a seed is run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything that an appliance does.
    Appliance,
    /// A history of reads, writes and snapshots of whole blocks, see [`crate::history`].
    History,
    /// Everything, and every device has two sides.
    Mirrors,
}

impl Kind {
    /// What says so on the command line.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Self::Appliance => "",
            Self::History => "--histories ",
            Self::Mirrors => "--mirrors ",
        }
    }

    pub(crate) fn change(self, seed: u64, plan: &mut Plan) {
        match self {
            Self::Appliance => {}
            Self::History => plan.make_history(),
            Self::Mirrors => plan.mirrors = MirrorPlan::of(seed, plan, true),
        }
    }
}

/// What a seed stands for.
#[must_use]
pub fn plan_of(kind: Kind, seed: u64) -> Plan {
    let mut plan = Plan::new(&mut Random::new(seed));
    plan.mirrors = MirrorPlan::of(seed, &mut plan, false);
    kind.change(seed, &mut plan);
    plan
}

/// Runs a seed as one kind or the other.
///
/// # Errors
/// The first law that is broken.
pub fn run_kind(kind: Kind, seed: u64, trace: bool) -> Result<Coverage, Broken> {
    run_with(seed, trace, |plan| kind.change(seed, plan))
}

/// The branches of the shipping code that runs count when they reach them.
#[must_use]
pub fn branches() -> Vec<&'static str> {
    Mark::ALL.iter().map(|mark| mark.text()).collect()
}

/// Runs a seed from end to end.
///
/// # Errors
/// The first law that is broken.
pub fn run(seed: u64, trace: bool) -> Result<Coverage, Broken> {
    run_with(seed, trace, |_| {})
}

/// Runs a seed with changes to its plan.
///
/// # Errors
/// The first law that is broken.
pub fn run_with(seed: u64, trace: bool, change: impl FnOnce(&mut Plan)) -> Result<Coverage, Broken> {
    // What a run before this one left when it panicked.
    let _ = marks::take();
    let mut random = Random::new(seed);
    let mut plan = Plan::new(&mut random);
    plan.mirrors = MirrorPlan::of(seed, &mut plan, false);
    change(&mut plan);
    if trace {
        eprintln!("{plan:#?}");
    }
    let (lives, volumes) = (plan.operations.clone(), plan.volumes);
    let registers = plan.registers;
    let mut world = World::new(plan, random.fork(), trace)?;
    world.make_volumes(volumes)?;
    let last = lives.len() - 1;
    for (life, operations) in lives.into_iter().enumerate() {
        world.let_devices_fail(true);
        world.work(operations)?;
        // Half of the deaths come in the middle of everything, half when all is quiet; the last life may end well.
        let quiet = random.percent(30);
        if quiet {
            world.quiesce()?;
        }
        world.let_devices_fail(false);
        if life < last || !quiet || world.must_end_in_a_crash() {
            let crash = if random.percent(50) || registers {
                Crash::Kill
            } else {
                Crash::PowerCut
            };
            world.crash_and_recover(crash)?;
        }
    }
    world.make_whole()?;
    world.compare_everything()?;
    if registers {
        world.check_history()?;
    }
    world.audit_in_silence()?;
    if random.percent(10) {
        world.rot()?;
    } else {
        world.delete_everything()?;
    }
    Ok(world.into_coverage())
}
