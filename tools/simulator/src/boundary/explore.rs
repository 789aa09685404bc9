//! Every boundary of a script: the moment before a write or a flush of the devices ends. There the power is cut, with
//! every choice of what stays, or the process is killed; what is recovered is compared, and crashed again while it
//! recovers.

use std::cell::RefCell;
use std::rc::Rc;

use stillpoint_ondisk::layout::Layout;

use super::choices::{Budget, Choice, Fate, choices};
use super::history::History;
use super::medium::{Image, Medium};
use super::memory::Tail;
use super::operator::Purpose;
use super::play::Player;
use super::recover::State;
use super::rig::{Checked, Rig, broken};
use super::script::Script;
use crate::model::{Broken, Crash};
use crate::random::{Random, mix};
use crate::world::Coverage;

/// The time between two lives.
const BETWEEN_LIVES_NS: u64 = 1_000_000;

/// A moment at which a script was interrupted.
struct Moment<'a> {
    layout: &'a Layout,
    history: &'a History,
    now_ns: u64,
}

/// A script being explored.
pub(super) struct Explorer<'a> {
    script: &'a Script,
    budget: Budget,
    random: Random,
    pub(super) coverage: Coverage,
    /// The devices answer flushes and do nothing.
    pub(super) flush_lies: bool,
}

impl<'a> Explorer<'a> {
    pub(super) fn new(script: &'a Script, budget: Budget) -> Self {
        Self {
            script,
            budget,
            random: Random::new(mix(script.seed)),
            coverage: Coverage::default(),
            flush_lies: false,
        }
    }

    /// Plays the script and tries everything at each of its boundaries.
    pub(super) fn run(&mut self) -> Checked<Rig> {
        let mut rig = super::start(self.script)?;
        rig.medium.borrow_mut().flush_lies = self.flush_lies;
        let mut number = 0;
        Player::new(self.script).play(&mut rig, |rig| {
            self.count_boundary(rig);
            let at = |Broken(why)| Broken(format!("boundary {number} (during {}): {why}", rig.doing));
            self.cut_power(rig).map_err(at)?;
            self.kill(number).map_err(at)?;
            number += 1;
            Ok(true)
        })?;
        Ok(rig)
    }

    fn count_boundary(&mut self, rig: &Rig) {
        self.coverage.count("boundaries");
        let during = match rig.doing {
            "write" | "flush" | "discard" => "boundaries of log appends",
            "checkpoint" => "boundaries of checkpoints",
            "snapshot create" => "boundaries of snapshot create",
            "snapshot delete" => "boundaries of snapshot delete",
            "volume resize" => "boundaries of volume resize",
            "clone" => "boundaries of clones",
            "rollback" => "boundaries of rollbacks",
            "promotion" => "boundaries of promotions",
            "volume create" => "boundaries of volume create",
            _ => "boundaries of other steps",
        };
        self.coverage.count(during);
    }

    /// Row 4, and row 3 with the power gone at the first crash.
    fn cut_power(&mut self, rig: &Rig) -> Checked {
        let (image, moment) = (rig.image(), Moment::of(rig));
        let at_risk = image.at_risk();
        self.coverage.add("block writes at risk", at_risk.len() as u64);
        for choice in choices(at_risk.len(), self.budget, &mut self.random) {
            let left = choice.apply(&image, &at_risk);
            self.coverage.count("power cuts");
            moment
                .recover(left, self.no_tails(), Crash::PowerCut)
                .map_err(|Broken(why)| Broken(format!("power cut, {choice:?}: {why}")))?;
        }
        for fate in [Fate::Lost, Fate::Kept] {
            let choice = Choice::all(fate, at_risk.len());
            let left = choice.apply(&image, &at_risk);
            self.crash_again(&moment, &left, self.no_tails(), Crash::PowerCut)
                .map_err(|Broken(why)| Broken(format!("power cut, all {fate:?}, then again: {why}")))?;
            if at_risk.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn no_tails(&self) -> Vec<Tail> {
        vec![Tail(None); usize::from(self.script.shards)]
    }

    /// Row 3: recovers once more step by step, and crashes before every write and flush of that. What is recovered
    /// then must be what was recovered first.
    fn crash_again(&mut self, moment: &Moment<'_>, left: &Image, tails: Vec<Tail>, crash: Crash) -> Checked {
        let first = moment.recover(left.clone(), tails.clone(), crash)?;
        let medium = Rc::new(RefCell::new(Medium::new(left.clone())));
        let mut rig = moment.open(&medium, tails)?;
        rig.history = moment.history.clone();
        let commands = rig.decide()?;
        rig.begin(Purpose::Reconcile, vec![commands]);
        let mut step = 0;
        rig.finish(|rig| {
            step += 1;
            self.coverage.count("boundaries of recoveries");
            let image = rig.image();
            let at_risk = image.at_risk();
            let tried = [
                Choice::all(Fate::Lost, at_risk.len()),
                Choice::all(Fate::Kept, at_risk.len()),
                Choice::random(at_risk.len(), &mut self.random),
            ];
            let different = if at_risk.is_empty() { 1 } else { tried.len() };
            for choice in &tried[..different] {
                self.coverage.count("power cuts during recovery");
                let left = choice.apply(&image, &at_risk);
                let again = Moment {
                    now_ns: rig.now_ns + BETWEEN_LIVES_NS,
                    ..*moment
                };
                let state =
                    again
                        .recover(left, self.no_tails(), Crash::PowerCut)
                        .map_err(|Broken(why)| {
                            Broken(format!("recovery interrupted at step {step}, {choice:?}: {why}"))
                        })?;
                if state != first {
                    return broken(format!(
                        "recovery interrupted at step {step}, {choice:?}, gives another state: {}",
                        difference(&first, &state)
                    ));
                }
            }
            Ok(())
        })?;
        if rig.compare(Some(crash))? != first {
            return broken("recovering twice gives different states");
        }
        Ok(())
    }

    /// Plays to a boundary once more, and kills the process there: what was acknowledged is there, whatever becomes of
    /// the writes in flight.
    fn kill(&mut self, boundary: usize) -> Checked {
        let mut rig = super::start(self.script)?;
        let mut left = boundary;
        Player::new(self.script).play(&mut rig, |_| {
            let go_on = left > 0;
            left = left.saturating_sub(1);
            Ok(go_on)
        })?;
        let history = std::mem::take(&mut rig.history);
        let (layout, now_ns) = (rig.layout.clone(), rig.now_ns + BETWEEN_LIVES_NS);
        let (image, tails) = rig.die();
        let moment = Moment {
            layout: &layout,
            history: &history,
            now_ns,
        };
        let in_flight = image.in_flight.clone();
        let fates = [
            Choice::all(Fate::Lost, in_flight.len()),
            Choice::random(in_flight.len(), &mut self.random),
        ];
        let count = if in_flight.is_empty() { 1 } else { 2 };
        for choice in &fates[..count] {
            let caught = choice.apply_to_cache(&image, &in_flight);
            self.coverage.count("kills");
            let at = |Broken(why)| Broken(format!("kill, in flight {choice:?}: {why}"));
            self.crash_again(&moment, &caught, tails.clone(), Crash::Kill)
                .map_err(at)?;
            self.crash_while_opening(&moment, &caught, &tails).map_err(at)?;
        }
        Ok(())
    }

    /// Opening after a kill writes the log tail into the log: the process is killed, or the power cut, at each of these
    /// writes.
    fn crash_while_opening(&mut self, moment: &Moment<'_>, caught: &Image, tails: &[Tail]) -> Checked {
        let medium = Rc::new(RefCell::new(Medium::new(caught.clone())));
        drop(moment.open(&medium, tails.to_vec())?);
        let calls = medium.borrow().open_calls;
        for call in 0..calls {
            let medium = Rc::new(RefCell::new(Medium::new(caught.clone())));
            medium.borrow_mut().calls_left = Some(call);
            if moment.open(&medium, tails.to_vec()).is_ok() {
                return broken("a device that is gone was not missed");
            }
            self.coverage.count("crashes while opening");
            let image = medium.borrow().image();
            let at_risk = image.at_risk();
            let choice = match call % 3 {
                0 => Choice::all(Fate::Lost, at_risk.len()),
                1 => Choice::all(Fate::Kept, at_risk.len()),
                _ => Choice::random(at_risk.len(), &mut self.random),
            };
            let at = |Broken(why)| Broken(format!("opening interrupted at call {call}: {why}"));
            let left = choice.apply(&image, &at_risk);
            moment
                .recover(left, self.no_tails(), Crash::PowerCut)
                .map_err(at)?;
            if call == calls / 2 {
                moment.recover(image, tails.to_vec(), Crash::Kill).map_err(at)?;
            }
        }
        Ok(())
    }
}

impl Choice {
    /// The devices after a kill: what was completed stays, what was in flight is caught.
    pub(crate) fn apply_to_cache(&self, image: &Image, in_flight: &[super::medium::Write]) -> Image {
        let mut caught = image.clone();
        caught.in_flight.clear();
        let mut below = image.durable();
        for write in &image.pending {
            below.settle(write.place, Rc::clone(&write.page));
        }
        let landed = self.apply(&below, in_flight);
        for write in in_flight {
            let (before, after) = (below.durable_page(write.place), landed.durable_page(write.place));
            let same = match (before, after) {
                (Some(before), Some(after)) => Rc::ptr_eq(before, after),
                (before, after) => before.is_none() && after.is_none(),
            };
            if let (false, Some(after)) = (same, after) {
                caught.push_pending(write.place, Rc::clone(after));
            }
        }
        caught
    }
}

impl<'a> Moment<'a> {
    fn of(rig: &'a Rig) -> Self {
        Self {
            layout: &rig.layout,
            history: &rig.history,
            now_ns: rig.now_ns + BETWEEN_LIVES_NS,
        }
    }

    fn open(&self, medium: &Rc<RefCell<Medium>>, tails: Vec<Tail>) -> Checked<Rig> {
        Rig::open(self.layout, medium, tails, self.now_ns, Random::new(self.now_ns))
            .map_err(|error| Broken(format!("the pool does not open: {error}")))
    }

    /// Opens the pool and compares all of it.
    fn recover(&self, image: Image, tails: Vec<Tail>, crash: Crash) -> Checked<State> {
        let medium = Rc::new(RefCell::new(Medium::new(image)));
        medium.borrow_mut().instant = true;
        let mut rig = self.open(&medium, tails)?;
        if let Some(problem) = rig.unaccounted.first() {
            return broken(format!("space: {problem}"));
        }
        rig.recovered(self.history, crash)
    }
}

fn difference(first: &State, second: &State) -> String {
    for (id, blocks) in &first.volumes {
        let other = second.volumes.get(id);
        for (at, block) in blocks.iter().enumerate() {
            let found = other.and_then(|other| other.get(at));
            if found != Some(block) {
                return format!("volume {id} block {at}: {block:?}, then {found:?}");
            }
        }
    }
    "snapshots, or what exists".to_string()
}
