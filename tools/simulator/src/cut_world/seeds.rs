//! Random schedules: clients and snapshots, messages in any order, and a crash or a stall at one message of a cut, or at
//! two.

use stillpoint_coordinator::Coordinator;

use super::clients::{Clients, Does, Known, OBJECT_BLOCKS};
use super::ending::{compare_in_silence, crash_and_recover, settle, take, tell};
use super::plan::{Fault, Message, Met, Plan, message};
use super::stage::{Move, Stage};
use crate::device::CrashFate;
use crate::model::{Broken, Crash, Range};
use crate::random::Random;
use crate::stamp::SECTORS_PER_BLOCK;

/// A line that stands still until a time.
#[derive(Clone, Copy, Debug)]
struct Stall {
    until_ns: u64,
    shard: usize,
    /// Only its commands and events, or everything of the shard.
    all: bool,
}

struct Run {
    plan: Plan,
    random: Random,
    stage: Stage,
    clients: Clients,
    met: Met,
    snapshots_left: u64,
    operations_left: u64,
    messages: u64,
    stall: Option<Stall>,
    trace: bool,
    moves: Vec<Move>,
}

/// Runs a seed from end to end.
///
/// # Errors
/// The first law that is broken.
pub fn run(seed: u64, trace: bool) -> Result<Met, Broken> {
    run_with(seed, trace, |_| {})
}

/// Runs a seed with changes to its plan.
///
/// # Errors
/// The first law that is broken.
pub fn run_with(seed: u64, trace: bool, change: impl FnOnce(&mut Plan)) -> Result<Met, Broken> {
    let mut random = Random::new(seed);
    let mut plan = Plan::new(&mut random);
    change(&mut plan);
    if trace {
        eprintln!("{plan:#?}");
    }
    let mut stage = Stage::new(plan.props, random.fork())?;
    let blocks = u64::from(plan.props.shards) * u64::from(OBJECT_BLOCKS);
    let mut clients = Clients::new(&mut stage, plan.volumes, blocks, plan.clients, trace)?;
    if plan.clones {
        make_clones(&plan, &mut random, &mut stage, &mut clients)?;
    }
    let run = Run {
        snapshots_left: plan.snapshots,
        operations_left: plan.operations,
        plan,
        random,
        stage,
        clients,
        met: Met::default(),
        messages: 0,
        stall: None,
        trace,
        moves: Vec::new(),
    };
    run.go()
}

/// Writes something into each volume, takes a snapshot of all and clones it: from then on there are twice as many volumes.
fn make_clones(
    plan: &Plan,
    random: &mut Random,
    stage: &mut Stage,
    clients: &mut Clients,
) -> Result<(), Broken> {
    for volume in 0..plan.volumes {
        let sectors = clients.volumes[volume].model.sectors();
        let first = random.below(sectors / SECTORS_PER_BLOCK) * SECTORS_PER_BLOCK;
        let range = Range {
            first,
            count: SECTORS_PER_BLOCK,
        };
        let client = clients.idle.pop().expect("there are as many clients as volumes");
        clients.write(stage, client, volume, range, false);
        settle(stage, clients)?;
    }
    clients.ask(stage, (0..plan.volumes).collect(), plan.limits);
    settle(stage, clients)?;
    match clients.snapshots[&1].known {
        Known::There => clients.clone_all(stage, 1),
        // Its hold became too long.
        _ => Ok(()),
    }
}

impl Run {
    fn go(mut self) -> Result<Met, Broken> {
        loop {
            if let Some(end) = self.stage.vacate(self.stage.now_ns) {
                self.step(end)?;
            }
            if self.begin_something() {
                continue;
            }
            let Some(next) = self.pick() else {
                if self.jump_in_time()? {
                    continue;
                }
                break;
            };
            self.stage.now_ns += self.random.below(self.plan.step_ns + 1);
            let fault = match message(&self.stage, next) {
                Some(message) => self.fault_at(message),
                None => None,
            };
            match fault {
                Some((message, fault, after)) => {
                    if self.strike(message, fault, after, next)? {
                        return self.end();
                    }
                }
                None => self.step(next)?,
            }
        }
        if let Some(end) = self.stage.vacate(u64::MAX) {
            self.step(end)?;
        }
        settle(&mut self.stage, &mut self.clients)?;
        if self.stage.coordinator.is_some() {
            compare_in_silence(&mut self.stage, &mut self.clients)?;
        }
        if self.stage.coordinator.is_none() || self.random.percent(20) {
            let crash = if self.random.percent(50) {
                Crash::Kill
            } else {
                Crash::PowerCut
            };
            self.crash(crash)?;
        }
        self.end()
    }

    /// A client, or somebody who wants a snapshot, begins something. False if nobody does now.
    fn begin_something(&mut self) -> bool {
        if self.snapshots_left > 0 && self.random.percent(8) {
            self.snapshots_left -= 1;
            let mut volumes: Vec<usize> = (0..self.clients.volumes.len()).collect();
            self.random.shuffle(&mut volumes);
            volumes.truncate(self.random.between(1, volumes.len() as u64) as usize);
            return self.clients.ask(&mut self.stage, volumes, self.plan.limits);
        }
        if self.operations_left == 0 || self.clients.idle.is_empty() || self.random.percent(60) {
            return false;
        }
        self.operations_left -= 1;
        self.met.operations += 1;
        let at = self.random.below(self.clients.idle.len() as u64) as usize;
        let client = self.clients.idle.swap_remove(at);
        let volume = self.random.below(self.clients.volumes.len() as u64) as usize;
        let range = self.range(volume);
        let (stage, clients) = (&mut self.stage, &mut self.clients);
        match self.random.below(100) {
            0..60 => {
                let fua = self.random.percent(10);
                clients.write(stage, client, volume, range, fua);
            }
            60..92 => clients.send(stage, Some(client), Does::Read, volume, range),
            _ => clients.send(stage, Some(client), Does::Flush, volume, range),
        }
        true
    }

    /// Mostly one block; now and then some, over the end of an object, or a part of one.
    fn range(&mut self, volume: usize) -> Range {
        let sectors = self.clients.volumes[volume].model.sectors();
        let count = match self.random.below(100) {
            0..70 => SECTORS_PER_BLOCK,
            70..85 => self.random.between(1, 3) * SECTORS_PER_BLOCK,
            _ => self.random.between(1, 2 * SECTORS_PER_BLOCK),
        };
        let first = self.random.below(sectors - count + 1);
        let aligned = count.is_multiple_of(SECTORS_PER_BLOCK);
        Range {
            first: if aligned {
                first / SECTORS_PER_BLOCK * SECTORS_PER_BLOCK
            } else {
                first
            },
            count,
        }
    }

    /// What happens next; `None` if nothing can but for time.
    fn pick(&mut self) -> Option<Move> {
        self.moves.clear();
        self.stage.moves(&mut self.moves);
        if let Some(stall) = self.stall {
            if stall.until_ns <= self.stage.now_ns {
                self.stall = None;
            } else {
                self.moves.retain(|next| !stall.stops(&self.stage, *next));
            }
        }
        // Deadlines come also where messages move all the time.
        let now_ns = self.stage.now_ns;
        let late = (0..self.stage.shard_count()).find(|&shard| {
            self.stall.is_none_or(|stall| !stall.all || stall.shard != shard)
                && self.stage.deadline_ns(shard).is_some_and(|at_ns| at_ns <= now_ns)
        });
        if let Some(shard) = late {
            return Some(Move::Turn(shard));
        }
        self.stage.poll_coordinator();
        let other = |next: &Move| !matches!(next, Move::Command(_) | Move::Event(_));
        if self.moves.iter().any(other) && self.random.percent(self.plan.lazy_percent) {
            self.moves.retain(other);
        }
        (!self.moves.is_empty()).then(|| *self.random.pick(&self.moves))
    }

    fn step(&mut self, next: Move) -> Result<(), Broken> {
        take(&mut self.stage, &mut self.clients, next)
    }

    /// Time goes to whatever is waited for next. False if nothing is.
    fn jump_in_time(&mut self) -> Result<bool, Broken> {
        if self.operations_left > 0 && !self.clients.idle.is_empty() {
            return Ok(true);
        }
        if self.snapshots_left > 0 && self.stage.coordinator.is_some() {
            return Ok(true);
        }
        let stall = self.stall.filter(|stall| stall.until_ns > self.stage.now_ns);
        let awake = (0..self.stage.shard_count())
            .filter(|&shard| stall.is_none_or(|stall| !stall.all || stall.shard != shard));
        let holds = awake.filter_map(|shard| self.stage.deadline_ns(shard));
        let coordinator = self
            .stage
            .coordinator
            .as_ref()
            .and_then(Coordinator::next_deadline_ns);
        let next = holds
            .chain(coordinator)
            .chain(stall.map(|stall| stall.until_ns))
            .chain(self.stage.occupied_until_ns())
            .min();
        let Some(next_ns) = next else { return Ok(false) };
        self.stage.now_ns = self.stage.now_ns.max(next_ns);
        self.stage.poll_coordinator();
        tell(&mut self.stage, &mut self.clients)?;
        Ok(true)
    }

    /// Counts a message of a cut; gives what goes wrong at it.
    fn fault_at(&mut self, message: Message) -> Option<(Message, Fault, bool)> {
        let number = self.messages;
        self.messages += 1;
        let found = self.plan.faults.iter().find(|(_, at, _)| *at == number)?;
        Some((message, found.0, found.2))
    }

    /// Lets something go wrong at a message; true if that is the end of the run.
    fn strike(&mut self, message: Message, fault: Fault, after: bool, next: Move) -> Result<bool, Broken> {
        *self.met.faults.entry((message, fault)).or_default() += 1;
        if self.clients.volumes.len() > self.plan.volumes {
            *self.met.with_clones.entry(fault).or_default() += 1;
        }
        if self.trace {
            eprintln!(
                "  {fault:?} {} {message:?}",
                if after { "after" } else { "before" }
            );
        }
        if after {
            self.step(next)?;
        }
        let (Move::Command(shard) | Move::Event(shard)) = next else {
            unreachable!("messages of a cut are commands and events")
        };
        let late_ns = |limit_ns: u64| limit_ns + limit_ns / 2;
        let limits = self.plan.limits;
        let (for_ns, all) = match fault {
            Fault::Kill | Fault::PowerCut => {
                self.crash(if fault == Fault::Kill {
                    Crash::Kill
                } else {
                    Crash::PowerCut
                })?;
                return Ok(true);
            }
            Fault::CoordinatorDies => {
                self.stage.coordinator = None;
                return Ok(false);
            }
            Fault::LateForHold => (late_ns(limits.hold_ns), false),
            Fault::LateForStep => (late_ns(limits.step_ns), false),
            Fault::ShardStalls => (late_ns(limits.hold_ns), true),
            Fault::ShardRefuses => {
                let volumes = self.clients.volumes.iter().map(|volume| volume.view.view.volume);
                let until_ns = self.stage.now_ns + late_ns(limits.hold_ns);
                if self.stage.occupied_until_ns().is_none() {
                    let begin = self.stage.occupy(shard, volumes.collect(), until_ns);
                    self.step(begin)?;
                }
                return Ok(false);
            }
        };
        let until_ns = self.stage.now_ns + for_ns;
        self.stall = Some(Stall { until_ns, shard, all });
        Ok(false)
    }

    fn crash(&mut self, crash: Crash) -> Result<(), Broken> {
        let fates = [
            CrashFate::Lost,
            CrashFate::Kept,
            CrashFate::Mixed,
            CrashFate::Reordered,
            CrashFate::CutOff,
        ];
        let fate = *self.random.pick(&fates);
        let crash = match crash {
            Crash::Kill if !self.plan.props.tail => Crash::KillWithoutTail,
            other => other,
        };
        if self.trace {
            eprintln!("  {crash:?}, what was in flight is {fate:?}");
        }
        crash_and_recover(&mut self.stage, &mut self.clients, crash, fate)
    }

    fn end(mut self) -> Result<Met, Broken> {
        self.met.answers_held = self.clients.answers_held;
        self.met.refused = self.clients.refused;
        for snapshot in self.clients.snapshots.values() {
            let end = match snapshot.known {
                Known::There => "there",
                Known::NotThere => "not there",
                Known::InDoubt => "in doubt",
                Known::Asked => return Err(Broken("a snapshot was never answered".to_string())),
            };
            *self.met.ends.entry(end).or_default() += 1;
        }
        Ok(self.met)
    }
}

impl Stall {
    fn stops(&self, stage: &Stage, next: Move) -> bool {
        match next {
            Move::Command(shard) => shard == self.shard,
            Move::Event(shard) => shard == self.shard && !self.all,
            Move::Device(shard, _) | Move::Turn(shard) => self.all && shard == self.shard,
            Move::Request(index) => self.all && usize::from(stage.requests[index].shard.0) == self.shard,
            Move::Answer(_) => false,
        }
    }
}
