//! Devices that do not answer: noticed while it lasts, and when it has ended.

use stillpoint_hw::device::{Occupant, Unanswered};
use stillpoint_processor::Now;

use crate::mailbox::Stall;

/// What has had no answer for so long is told. No sound device comes near it, and clients wait longer before they give up.
const STALL_NS: u64 = 1_000_000_000;
/// How often what is told is told again (the control plane may not have known the pool), and looked at for its end.
const AGAIN_NS: u64 = 100_000_000;
/// A loop that had no turn for so long was stopped, or had no core: that is no device's fault. It sleeps for half a second at most.
const AWAY_NS: u64 = 750_000_000;

/// What one loop knows of the devices of a pool.
#[derive(Debug)]
pub struct Stalls {
    /// Since when, on the wall clock, and what was asked.
    told: Vec<(Occupant, Stall)>,
    /// Memory for what is unanswered: none is asked for in a turn, unless more devices stall at once than ever had a place.
    oldest: Vec<(Occupant, Unanswered)>,
    /// The last turn.
    turned_ns: u64,
    /// The loop was there to see all answers from then on.
    there_since_ns: u64,
    next_look_ns: u64,
}

impl Stalls {
    /// Of a pool with so many places for devices.
    pub fn of_places(places: usize) -> Self {
        // Beside the device in a place one that has left it, mostly none.
        let devices = 2 * places;
        Self {
            told: Vec::with_capacity(devices),
            oldest: Vec::with_capacity(devices),
            turned_ns: 0,
            there_since_ns: 0,
            next_look_ns: 0,
        }
    }

    /// A turn, after answers were taken in. `unanswered` is asked only if it is time, and puts what it finds into a memory; `tell` gives
    /// whether there was room for what it is told.
    pub fn turn(
        &mut self,
        now: Now,
        unanswered: impl FnOnce(&mut Vec<(Occupant, Unanswered)>),
        mut tell: impl FnMut(Occupant, Stall) -> bool,
    ) {
        if now.monotonic_ns - self.turned_ns > AWAY_NS {
            self.there_since_ns = now.monotonic_ns;
        }
        self.turned_ns = now.monotonic_ns;
        if now.monotonic_ns < self.next_look_ns {
            return;
        }
        unanswered(&mut self.oldest);
        let Self { told, oldest, .. } = self;
        // What is asked from now on cannot be late before.
        let mut next_look_ns = now.monotonic_ns + STALL_NS;
        told.retain(|(device, _)| {
            let asked = oldest.iter().find(|(known, _)| known == device);
            let lasts = asked.is_some_and(|(_, asked)| asked.since_ns + STALL_NS <= now.monotonic_ns);
            lasts || !tell(*device, Stall::Ended)
        });
        for (device, asked) in oldest {
            let known = told.iter().position(|(known, _)| known == device);
            let there_since_ns = if known.is_some() { 0 } else { self.there_since_ns };
            let late_ns = asked.since_ns.max(there_since_ns) + STALL_NS;
            if late_ns > now.monotonic_ns {
                next_look_ns = next_look_ns.min(late_ns);
                continue;
            }
            let known = known.unwrap_or_else(|| {
                let stall = Stall::Lasts {
                    kind: asked.kind,
                    began_wall_ns: now.wall_ns - (now.monotonic_ns - asked.since_ns),
                };
                told.push((*device, stall));
                told.len() - 1
            });
            tell(*device, told[known].1);
        }
        if !told.is_empty() {
            next_look_ns = next_look_ns.min(now.monotonic_ns + AGAIN_NS);
        }
        self.next_look_ns = next_look_ns;
    }

    /// The monotonic time at which a turn is needed even if no device answers, if something is in flight.
    pub fn next_deadline_ns(&self) -> u64 {
        self.next_look_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::ports::OperationKind;

    const MS: u64 = 1_000_000;
    const EPOCH_NS: u64 = 1 << 60;

    /// A loop with two devices that turns each 100 ms, and what it told.
    struct Bench {
        stalls: Stalls,
        now_ms: u64,
        unanswered: [Option<u64>; 2],
        told: Vec<(u64, usize, Option<u64>)>,
        last: [Option<u64>; 2],
    }

    impl Default for Bench {
        fn default() -> Self {
            Self {
                stalls: Stalls::of_places(2),
                now_ms: 0,
                unanswered: [None; 2],
                told: Vec::new(),
                last: [None; 2],
            }
        }
    }

    impl Bench {
        fn turn(&mut self, has_room: bool) {
            let now = Now {
                monotonic_ns: self.now_ms * MS,
                wall_ns: EPOCH_NS + self.now_ms * MS,
            };
            let unanswered = self.unanswered;
            let unanswered = (0..).zip(unanswered).filter_map(|(place, since_ms)| {
                let asked = Unanswered {
                    since_ns: since_ms? * MS,
                    kind: OperationKind::Write,
                };
                Some((Occupant { place, nth: 1 }, asked))
            });
            let (told, last, now_ms) = (&mut self.told, &mut self.last, self.now_ms);
            self.stalls.turn(
                now,
                |oldest| {
                    oldest.clear();
                    oldest.extend(unanswered);
                },
                |Occupant { place, .. }, stall| {
                    let began_ms = match stall {
                        Stall::Lasts { began_wall_ns, .. } => Some((began_wall_ns - EPOCH_NS) / MS),
                        Stall::Ended => None,
                    };
                    if has_room && last[place] != began_ms {
                        last[place] = began_ms;
                        told.push((now_ms, place, began_ms));
                    }
                    has_room
                },
            );
        }

        fn until(&mut self, end_ms: u64) {
            while self.now_ms < end_ms {
                self.now_ms += 100;
                self.turn(true);
            }
        }

        fn told(&mut self) -> Vec<(u64, usize, Option<u64>)> {
            core::mem::take(&mut self.told)
        }
    }

    #[test]
    fn a_stall_is_told_after_a_second_while_it_lasts_and_when_it_has_ended() {
        let mut bench = Bench::default();
        bench.until(5_000);
        bench.unanswered[1] = Some(5_000);
        bench.until(5_900);
        assert_eq!(bench.told(), [], "it may answer in time");
        bench.until(8_000);
        assert_eq!(
            bench.told(),
            [(6_000, 1, Some(5_000))],
            "once, and nothing of the other one"
        );
        // What it was asked later is answered no sooner: the same stall.
        bench.unanswered[1] = Some(6_500);
        bench.until(9_000);
        assert_eq!(bench.told(), []);
        // What it is asked from now on it answers in time.
        bench.unanswered[1] = Some(8_900);
        bench.until(9_200);
        assert_eq!(bench.told(), [(9_100, 1, None)]);
        bench.unanswered[1] = Some(9_200);
        bench.until(10_500);
        assert_eq!(bench.told(), [(10_200, 1, Some(9_200))], "another one");
    }

    #[test]
    fn the_end_of_a_stall_is_told_when_there_is_room_for_it() {
        let mut bench = Bench {
            unanswered: [Some(0), None],
            ..Bench::default()
        };
        bench.until(1_000);
        assert_eq!(bench.told(), [(1_000, 0, Some(0))]);
        bench.unanswered[0] = None;
        for _ in 0..20 {
            bench.now_ms += 100;
            bench.turn(false);
        }
        bench.until(3_100);
        assert_eq!(bench.told(), [(3_100, 0, None)]);
    }

    #[test]
    fn a_loop_that_was_away_blames_no_device() {
        let mut bench = Bench::default();
        bench.until(2_000);
        bench.unanswered[0] = Some(2_000);
        bench.now_ms = 8_000;
        bench.until(8_800);
        assert_eq!(bench.told(), [], "the answer may be on its way");
        bench.until(9_500);
        assert_eq!(bench.told(), [(9_100, 0, Some(2_000))]);
    }

    #[test]
    fn the_loop_is_told_when_it_has_to_look_again() {
        let mut bench = Bench::default();
        bench.until(1_000);
        bench.unanswered = [Some(700), Some(400)];
        bench.stalls.next_look_ns = 0;
        bench.until(1_100);
        assert_eq!(bench.stalls.next_deadline_ns(), 1_400 * MS);
    }
}
