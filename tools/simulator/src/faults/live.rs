//! A device that does one thing wrong while a script is played: whatever is answered without an error is right, then,
//! after a restart, and after some more work.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::fault::{Fault, KINDS, Kind};
use super::outcome::{Outcome, outcome, outcome_with};
use crate::boundary::choices::{Choice, Fate};
use crate::boundary::history::Life;
use crate::boundary::medium::{Image, Medium};
use crate::boundary::play::Player;
use crate::boundary::rig::{Checked, Rig, broken};
use crate::boundary::script::Script;
use crate::boundary::{script, script_of, start};
use crate::model::{Broken, Crash};
use crate::random::{Random, mix};
use crate::world::Coverage;

/// Faults of each script, at most: so many operations of a kind it has.
const FAULTS_PER_SCRIPT: u64 = 60;
/// Reads of opening a pool, about.
const OPEN_READS: u64 = 80;

/// A scene, and what a fault strikes in it.
type Counted = (u64, Option<u64>, &'static str);

thread_local! {
    /// How many operations that is.
    static COUNTS: RefCell<BTreeMap<Counted, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// The scripts made by hand that faults are tried in. Scripts that came later are not among them, so that a fault keeps
/// its number.
const SCRIPTS_BY_HAND: u64 = 7;

/// Plays the script of a fault's number with that fault, ends the life somehow, and looks at what is left.
///
/// # Errors
/// Wrong data, or a durability that was claimed and was not there.
pub fn run(number: u64) -> Result<Coverage, Broken> {
    let script_number = number / FAULTS_PER_SCRIPT;
    // A script made by hand every other time: they have all operations.
    let script = if script_number.is_multiple_of(2) {
        script_of(script_number / 2 % SCRIPTS_BY_HAND)
    } else {
        script::from_seed(script_number + SCRIPTS_BY_HAND)
    };
    let mut random = Random::new(mix(number ^ 0xFA_017));
    let mut coverage = Coverage::default();
    let scene = Scene {
        script: &script,
        interrupted_at: random.percent(40).then(|| random.below(40)),
    };
    // A kind of which the script has no operation gives way to the next one.
    for turn in 0..KINDS.len() as u64 {
        let (kind, name) = KINDS[((number + turn) % KINDS.len() as u64) as usize];
        let named = |Broken(why)| {
            Broken(format!(
                "fault {number} ({name}) in script {}: {why}",
                script.name
            ))
        };
        let count = scene.operations(kind).map_err(named)?;
        if count == 0 {
            continue;
        }
        let fault = Fault::new(kind, random.below(count), random.fork());
        let mut live = Live {
            scene: &scene,
            kind,
            random: random.fork(),
            coverage: &mut coverage,
        };
        live.run(fault).map_err(named)?;
        coverage.count("faults");
        coverage.count(name);
        if scene.interrupted_at.is_some() {
            coverage.count("faults in a life after a crash");
        }
        break;
    }
    Ok(coverage)
}

/// What goes on while the fault strikes.
struct Scene<'a> {
    script: &'a Script,
    /// The process is killed before so many writes and flushes have ended, and the script goes on in the next life.
    interrupted_at: Option<u64>,
}

impl Scene<'_> {
    /// How many operations a fault could strike.
    fn operations(&self, kind: Kind) -> Checked<u64> {
        if kind == Kind::OpenReadError {
            return Ok(OPEN_READS);
        }
        let known = (self.script.seed, self.interrupted_at, kind.strikes_what());
        if let Some(count) = COUNTS.with_borrow(|counts| counts.get(&known).copied()) {
            return Ok(count);
        }
        let fault = Fault::new(kind, u64::MAX, Random::new(0));
        let rig = self.play(Some(fault), false)?;
        let passed = rig.medium.borrow().fault.as_ref().map_or(0, Fault::passed);
        COUNTS.with_borrow_mut(|counts| counts.insert(known, passed));
        Ok(passed)
    }

    /// Plays the script to its end, and reads everything. All of it may be struck, from the last life's beginning on.
    fn play(&self, fault: Option<Fault>, faulty: bool) -> Checked<Rig> {
        let mut player = Player::new(self.script);
        let mut rig = start(self.script)?;
        if let Some(boundary) = self.interrupted_at {
            rig = self.interrupt(rig, &mut player, boundary)?;
        }
        rig.faulty = faulty;
        rig.medium.borrow_mut().fault = fault;
        player.play(&mut rig, |_| Ok(true))?;
        settle(&mut rig)?;
        rig.compare(None)?;
        Ok(rig)
    }

    /// Plays to a boundary, kills the process, and opens the pool again.
    fn interrupt(&self, mut rig: Rig, player: &mut Player<'_>, boundary: u64) -> Checked<Rig> {
        let mut left = boundary;
        player.play(&mut rig, |_| {
            let go_on = left > 0;
            left = left.saturating_sub(1);
            Ok(go_on)
        })?;
        let history = std::mem::take(&mut rig.history);
        let (layout, now_ns) = (rig.layout.clone(), rig.now_ns + 1_000_000);
        let (image, tails) = rig.die();
        let in_flight = image.in_flight.clone();
        let mut random = Random::new(self.script.seed ^ boundary);
        let caught = Choice::random(in_flight.len(), &mut random).apply_to_cache(&image, &in_flight);
        let medium = Rc::new(RefCell::new(Medium::new(caught)));
        let mut rig = Rig::open(&layout, &medium, tails, now_ns, random)
            .map_err(|error| Broken(format!("the pool does not open after a kill: {error}")))?;
        let state = rig.recovered(&history, Crash::Kill)?;
        rig.settle(&state);
        Ok(rig)
    }
}

/// Everything ends that was begun, and what waits for time happens.
fn settle(rig: &mut Rig) -> Checked {
    rig.finish(|_| Ok(()))?;
    while rig.wait() {
        rig.finish(|_| Ok(()))?;
    }
    Ok(())
}

struct Live<'a> {
    scene: &'a Scene<'a>,
    kind: Kind,
    random: Random,
    coverage: &'a mut Coverage,
}

impl Live<'_> {
    fn run(&mut self, fault: Fault) -> Checked {
        if self.kind == Kind::OpenReadError {
            let rig = self.scene.play(None, true)?;
            return self.end(rig, Some(fault));
        }
        let mut rig = self.scene.play(Some(fault), true)?;
        if !rig
            .medium
            .borrow()
            .fault
            .as_ref()
            .is_some_and(|fault| fault.struck)
        {
            return broken("the same script has fewer operations now");
        }
        if matches!(self.kind, Kind::FlushError | Kind::FlushForgets) {
            self.check_stopped(&mut rig)?;
        }
        rig.compare(None)?;
        self.end(rig, None)
    }

    /// After a failed flush the shard says that it stopped, and takes no write and no flush any more.
    fn check_stopped(&mut self, rig: &mut Rig) -> Checked {
        if rig.stopped.is_empty() {
            return broken("a flush failed, and no shard says that it stopped");
        }
        self.coverage.count("shards stopped by a failed flush");
        for shard in rig.shards() {
            let index = shard.index().0;
            if shard.status().stopped != rig.stopped.contains(&index) {
                return broken(format!("shard {index} says two things of whether it stopped"));
            }
        }
        let usable: Vec<(u32, u64)> = rig
            .history
            .volumes
            .values()
            .filter(|volume| volume.life == Life::There && volume.resizing.is_none())
            .map(|volume| (volume.id, volume.size))
            .collect();
        for (volume, size) in usable {
            let failures = rig.failures;
            rig.send_flush(volume)?;
            rig.drive()?;
            if rig.failures == failures {
                return broken("a flush of a volume with a stopped shard was acknowledged");
            }
            let block = self.random.below(size);
            let owner = rig.history.volumes[&volume]
                .placement
                .locate(stillpoint_processor::BlockIndex(block))
                .0;
            let failures = rig.failures;
            rig.send_write(volume, block * 8, 8, false)?;
            rig.drive()?;
            let refused = rig.failures > failures;
            if refused != rig.stopped.contains(&owner.0) {
                return broken(format!("a write to shard {} was refused: {refused}", owner.0));
            }
        }
        Ok(())
    }

    /// The life ends: well, by a kill, or with the power. What is left is right, or refused.
    fn end(&mut self, mut rig: Rig, fault: Option<Fault>) -> Checked {
        let how = self.random.below(3);
        if how == 0 {
            rig.checkpoint();
            rig.drive()?;
        }
        settle(&mut rig)?;
        let log_pages_hit = rig
            .medium
            .borrow()
            .fault
            .as_ref()
            .map_or(0, |fault| fault.log_pages_hit);
        let (history, now_ns) = (std::mem::take(&mut rig.history), rig.now_ns);
        let (image, tails) = rig.die();
        let (image, tails, crash) = if how < 2 {
            (image, Some(tails), self.crash_of_a_kill())
        } else {
            (self.power_cut(&image), None, Crash::PowerCut)
        };
        let at = |Broken(why)| Broken(format!("ended {}: {why}", HOW[how as usize]));
        let first = outcome_with(fault, &image, tails.clone(), &history, crash, now_ns);
        if first.is_err() && how == 2 && log_pages_hit >= 2 {
            // One write over several log pages may cover the last ones, and with them all that tells of the others; with
            // the log tail gone too there is nothing to know it by.
            self.coverage
                .count("ends of logs overwritten by one write before a power cut: not told");
            return Ok(());
        }
        let mut found = first.map_err(at)?;
        if self.kind == Kind::OpenReadError && found != Outcome::Right {
            // The device can read again.
            found = outcome(&image, tails, &history, crash, now_ns).map_err(at)?;
            self.coverage.count("pools refused once");
        }
        self.coverage.count(match found {
            Outcome::Right => "pools right after a fault",
            Outcome::RefusedOpen => "pools refused after a fault",
            Outcome::RefusedRead => "reads refused after a fault",
        });
        if !self.kind.is_silent() && self.kind != Kind::FlushForgets && found != Outcome::Right {
            return at_error(how, found);
        }
        Ok(())
    }

    /// What a kill leaves. A device that forgets what it was told to flush, and says so, may take what was only
    /// acknowledged with it; so may one that lost a write, of a shard without a log tail to tell.
    fn crash_of_a_kill(&self) -> Crash {
        if self.kind == Kind::FlushForgets || (self.kind.is_silent() && !self.scene.script.tail) {
            Crash::PowerCut
        } else {
            Crash::Kill
        }
    }

    /// A silent fault alone is enough: then the medium has everything else.
    fn power_cut(&mut self, image: &Image) -> Image {
        let at_risk = image.at_risk();
        let choice = if self.kind.is_silent() {
            Choice::all(Fate::Kept, at_risk.len())
        } else {
            match self.random.below(3) {
                0 => Choice::all(Fate::Lost, at_risk.len()),
                1 => Choice::all(Fate::Kept, at_risk.len()),
                _ => Choice::random(at_risk.len(), &mut self.random),
            }
        };
        choice.apply(image, &at_risk)
    }
}

fn at_error(how: u64, found: Outcome) -> Checked {
    broken(format!(
        "ended {}: an error that was told at once left damage: {found:?}",
        HOW[how as usize]
    ))
}

const HOW: [&str; 3] = ["well", "by a kill", "with the power"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_strikes_and_nothing_wrong_is_read() {
        let mut total = Coverage::default();
        for number in 0..240 {
            match run(number) {
                Ok(coverage) => total.merge(&coverage),
                Err(Broken(why)) => panic!("{why}"),
            }
        }
        for (_, name) in KINDS {
            assert!(
                total.0.get(name).is_some_and(|count| *count > 0),
                "{name} in {total:?}"
            );
        }
        for what in [
            "pools right after a fault",
            "reads refused after a fault",
            "shards stopped by a failed flush",
        ] {
            assert!(total.0.contains_key(what), "{what} in {total:?}");
        }
    }

    /// What each found is in the commit that added it.
    #[test]
    fn faults_that_found_bugs_find_nothing_any_more() {
        for number in [1281, 1633, 1882, 16_233] {
            if let Err(Broken(why)) = run(number) {
                panic!("{why}");
            }
        }
    }

    #[test]
    fn a_fault_gives_the_same_run_again() {
        for number in [9, 20] {
            assert_eq!(run(number), run(number));
        }
    }

    /// The checks can fail: a device that lies about a fault that is not there is found out by the histories alone.
    #[test]
    fn data_that_is_older_than_what_was_flushed_is_found() {
        let script = script_of(0);
        let mut rig = start(&script).expect("a pool");
        let before = rig.image().durable();
        Player::new(&script).play(&mut rig, |_| Ok(true)).expect("plays");
        let history = std::mem::take(&mut rig.history);
        let found = outcome(&before, None, &history, Crash::PowerCut, rig.now_ns);
        assert!(found.is_err(), "a pool of before the script holds nothing of it");
    }
}
