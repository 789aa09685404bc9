//! The checks can fail, and only when they should.

use super::{Crash, CutBounds, Range, VolumeModel, Writes};
use crate::stamp::{self, SECTOR_BYTES, Shown};

/// A volume of two sectors and its writes, with a tick that goes up at every step.
struct World {
    volume: VolumeModel,
    writes: Writes,
    tick: u64,
}

fn world() -> World {
    World {
        volume: VolumeModel::new(1, 2),
        writes: Writes::default(),
        tick: 0,
    }
}

impl World {
    fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn send(&mut self, sector: u64) -> Shown {
        let tick = self.tick();
        let number = self.writes.send(false, tick);
        self.volume.write_sent(
            number,
            Range {
                first: sector,
                count: 1,
            },
        );
        number
    }

    fn acknowledge(&mut self, number: Shown) {
        let tick = self.tick();
        self.writes.end(number, true, false, tick);
    }

    fn write(&mut self, sector: u64) -> Shown {
        let number = self.send(sector);
        self.acknowledge(number);
        number
    }

    fn flush(&mut self) {
        let tick = self.tick();
        self.writes.flushed(tick);
    }

    fn read(&mut self, sector: u64, shown: Shown) -> bool {
        let (sent, ended) = (self.tick(), self.tick());
        let bytes = bytes(sector, shown);
        self.volume
            .check_read(&self.writes, sector, &bytes, sent, ended)
            .is_ok()
    }

    fn recover(&mut self, crash: Crash, sector: u64, shown: Shown) -> bool {
        let tick = self.tick();
        self.writes.crash(tick);
        let (bytes, tick) = (bytes(sector, shown), self.tick());
        self.volume
            .check_recovered(&self.writes, crash, sector, &bytes, tick)
            .is_ok()
    }

    fn snapshot(&self, sent: u64, answered: u64, shown: [Shown; 2]) -> bool {
        let mut bounds = CutBounds::new(sent, answered);
        let mut content = Vec::new();
        (0..2).all(|sector| {
            let bytes = bytes(sector, shown[sector as usize]);
            self.volume
                .check_snapshot(&self.writes, sector, &bytes, &mut bounds, &mut content)
                .is_ok()
        }) && bounds.check().is_ok()
    }
}

fn bytes(sector: u64, shown: Shown) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR_BYTES];
    if shown != 0 {
        stamp::fill(shown, 1, sector, &mut bytes);
    }
    bytes
}

#[test]
fn an_acknowledged_write_is_seen_and_nothing_older() {
    let mut world = world();
    assert!(world.read(0, 0));
    let first = world.write(0);
    assert!(!world.read(0, 0));
    let second = world.write(0);
    assert!(!world.read(0, first));
    assert!(world.read(0, second));
}

#[test]
fn of_two_writes_at_the_same_time_either_may_win() {
    for winner in 0..2 {
        let mut world = world();
        let numbers = [world.send(0), world.send(0)];
        numbers.iter().for_each(|number| world.acknowledge(*number));
        assert!(world.read(0, numbers[winner]));
    }
}

#[test]
fn a_write_in_flight_may_be_seen_but_then_stays() {
    let mut world = world();
    let before = world.write(0);
    let number = world.send(0);
    assert!(world.read(0, before));
    assert!(world.read(0, number));
    assert!(!world.read(0, before));
}

#[test]
fn a_write_that_was_never_sent_to_that_place_is_not_seen() {
    let mut world = world();
    let number = world.write(0);
    assert!(!world.read(1, number));
}

#[test]
fn a_kill_loses_nothing_acknowledged() {
    let mut world = world();
    let first = world.write(0);
    assert!(!world.recover(Crash::Kill, 0, 0));
    assert!(world.recover(Crash::Kill, 0, first));
}

#[test]
fn without_a_tail_a_kill_may_lose_what_was_only_seen() {
    for (crash, may_lose) in [(Crash::Kill, false), (Crash::KillWithoutTail, true)] {
        let mut world = world();
        let first = world.write(0);
        let seen = world.send(0);
        assert!(world.read(0, seen));
        assert_eq!(world.recover(crash, 0, first), may_lose);
        assert!(!world.recover(crash, 0, 0));
    }
}

#[test]
fn a_power_cut_loses_nothing_durable() {
    let mut world = world();
    let first = world.write(0);
    world.flush();
    let second = world.write(0);
    assert!(!world.recover(Crash::PowerCut, 0, 0));
    assert!(world.recover(Crash::PowerCut, 0, first));
    assert!(
        !world.read(0, second),
        "what was not there after the power cut does not come back"
    );
    assert!(!world.recover(Crash::PowerCut, 0, second));
}

#[test]
fn what_was_found_after_a_power_cut_is_there_after_the_next() {
    let mut world = world();
    let first = world.write(0);
    world.flush();
    let second = world.write(0);
    assert!(world.recover(Crash::PowerCut, 0, second));
    assert!(!world.recover(Crash::PowerCut, 0, first));
    assert!(world.recover(Crash::PowerCut, 0, second));
}

#[test]
fn what_a_kill_kept_without_a_flush_a_power_cut_may_lose() {
    let mut world = world();
    let first = world.write(0);
    world.flush();
    let second = world.write(0);
    assert!(world.recover(Crash::Kill, 0, second));
    assert!(world.recover(Crash::PowerCut, 0, first));
}

#[test]
fn what_was_in_flight_at_a_kill_and_is_not_there_never_comes_back() {
    let mut world = world();
    let first = world.write(0);
    let lost = world.send(0);
    assert!(world.recover(Crash::Kill, 0, first));
    assert!(!world.read(0, lost));
    assert!(!world.recover(Crash::PowerCut, 0, lost));
}

#[test]
fn a_failed_write_may_have_happened_or_not_but_not_later() {
    let mut world = world();
    let first = world.write(0);
    let failed = world.send(0);
    let tick = world.tick();
    world.writes.end(failed, false, false, tick);
    assert!(world.read(0, first));
    let next = world.write(0);
    assert!(!world.read(0, failed));
    assert!(world.read(0, next));
}

#[test]
fn a_flush_covers_only_what_was_acknowledged_before_it_was_sent() {
    let mut world = world();
    let number = world.send(0);
    let sent = world.tick();
    world.acknowledge(number);
    world.writes.flushed(sent);
    assert!(world.recover(Crash::PowerCut, 0, 0));
}

#[test]
fn a_snapshot_shows_all_that_was_acknowledged_before_and_nothing_sent_after() {
    let mut world = world();
    let before = world.write(0);
    let (sent, answered) = (world.tick(), world.tick());
    let after = world.write(0);
    assert!(world.snapshot(sent, answered, [before, 0]));
    assert!(!world.snapshot(sent, answered, [0, 0]));
    assert!(!world.snapshot(sent, answered, [after, 0]));
}

#[test]
fn a_snapshot_that_shows_an_effect_shows_its_cause() {
    let mut world = world();
    let sent = world.tick();
    let cause = world.write(0);
    let effect = world.write(1);
    let answered = world.tick();
    assert!(world.snapshot(sent, answered, [0, 0]));
    assert!(world.snapshot(sent, answered, [cause, 0]));
    assert!(world.snapshot(sent, answered, [cause, effect]));
    assert!(!world.snapshot(sent, answered, [0, effect]));
}

#[test]
fn a_snapshot_that_shows_an_effect_of_a_read_shows_what_was_read() {
    let mut world = world();
    let sent = world.tick();
    let cause = world.send(0);
    assert!(world.read(0, cause), "in flight, but seen");
    let effect = world.write(1);
    world.acknowledge(cause);
    let answered = world.tick();
    assert!(!world.snapshot(sent, answered, [0, effect]));
    assert!(world.snapshot(sent, answered, [cause, effect]));
}

#[test]
fn a_hole_must_be_able_to_be_zeros() {
    let mut world = world();
    world.write(0);
    let (sent, ended) = (world.tick(), world.tick());
    let hole = |first| {
        world
            .volume
            .check_hole(&world.writes, Range { first, count: 1 }, sent, ended)
    };
    assert!(hole(0).is_err());
    assert!(hole(1).is_ok());
}
