//! Whether a loop polls or sleeps when it finds nothing to do.
//!
//! Polling answers at once what comes soon; it also takes a core, and where clients or other processors want that core
//! (few cores, virtual machines, devices whose interrupts arrive elsewhere) it makes everything slower. Which of the two
//! holds cannot be known beforehand, so it is measured: a loop has a **habit**, and now and then spends an epoch of
//! [`SETTLE_NS`] and [`EPOCH_NS`] the other way, between two epochs spent by habit. A habit changes after [`WINS`] such
//! comparisons in a row: polling has to do at least a tenth more work to be worth a core, sleeping is taken up if it does
//! not do a twentieth less.
//!
//! ```text
//! habit   H H T H T H T H H H H ...      H: by habit   T: trial   (three trials won: the habit changes)
//! ```

/// Polling for less than this is not worth it.
const PATIENCE_NS_MIN: u64 = 1_000;
/// What is done first in an epoch does not count: the system's scheduler needs a while to put the clients where they run
/// best with a loop that polls, or with one that sleeps.
const SETTLE_NS: u64 = 40_000_000;
/// How long one way is then kept for a comparison.
const EPOCH_NS: u64 = 60_000_000;
/// An epoch that took longer had a pause in it; it compares with nothing.
const EPOCH_NS_MAX: u64 = 2 * EPOCH_NS;
/// An epoch with less work than this says nothing.
const WORK_MIN: u64 = 32;
/// Comparisons in a row that change a habit.
const WINS: u32 = 3;
/// Epochs between a comparison that confirmed the habit and the next one: trials take less than 2% of the time.
const REST_EPOCHS: u32 = 64;
/// The same when the load has changed: what was found out may not hold for this one.
const REST_EPOCHS_CHANGED: u32 = 2;
/// A load has changed if an epoch's work differs from that of the last one by this factor.
const CHANGE: f64 = 1.4;

/// The habit of one loop.
#[derive(Debug)]
pub struct Polling {
    rule: Rule,
    polls: bool,
    /// How long it polls without finding anything before it sleeps, while it polls at all: short sleeps make it as long
    /// as it may be, long ones make it shorter.
    patience_ns: u64,
    epoch: Epoch,
    /// Work per nanosecond in the last epochs, if they can be compared with the next: by habit, then in the trial.
    by_habit: Option<f64>,
    in_trial: Option<f64>,
    trial: bool,
    rest_epochs: u32,
    wins: u32,
    /// Epochs of rest after a trial that told nothing, because the load changed meanwhile: each time twice as many.
    rest_epochs_untold: u32,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Never,
    AtOnce,
    /// It is found out; one poll takes this long at most.
    Learn(u64),
}

/// What counts of an epoch.
#[derive(Debug)]
struct Epoch {
    /// When counting begins.
    began_ns: u64,
    work: u64,
}

impl Polling {
    /// For a loop that polls for `quiet_ns` at most before it sleeps; `None`: it never sleeps; 0: it sleeps at once.
    #[must_use]
    pub fn new(quiet_ns: Option<u64>, now_ns: u64) -> Self {
        let rule = match quiet_ns {
            None => Rule::Never,
            Some(0) => Rule::AtOnce,
            Some(limit_ns) => Rule::Learn(limit_ns),
        };
        Self {
            rule,
            polls: false,
            patience_ns: 0,
            epoch: Epoch {
                began_ns: now_ns,
                work: 0,
            },
            by_habit: None,
            in_trial: None,
            trial: false,
            rest_epochs: 0,
            wins: 0,
            rest_epochs_untold: 1,
        }
    }

    /// Whether a loop sleeps as soon as it has nothing to do, without a look round first.
    #[must_use]
    pub fn sleeps_at_once(&self) -> bool {
        match self.rule {
            Rule::Never => false,
            Rule::AtOnce => true,
            Rule::Learn(_) => !self.polls_now() || self.patience_ns == 0,
        }
    }

    /// Whether a loop that found nothing for `quiet_ns` sleeps now.
    #[must_use]
    pub fn is_over(&self, quiet_ns: u64) -> bool {
        self.rule != Rule::Never && (self.sleeps_at_once() || quiet_ns >= self.patience_ns)
    }

    /// Whether the habit is to poll.
    #[must_use]
    pub fn habit_is_to_poll(&self) -> bool {
        self.polls || self.rule == Rule::Never
    }

    fn polls_now(&self) -> bool {
        self.polls != self.trial
    }

    /// A sleep that was shorter than the longest poll need not have been: the next ones are polled for. After longer
    /// sleeps polling soon ends.
    pub fn slept(&mut self, slept_ns: u64) {
        if let Rule::Learn(limit_ns) = self.rule {
            self.patience_ns = match self.patience_ns / 4 {
                _ if slept_ns < limit_ns => limit_ns,
                0..PATIENCE_NS_MIN => 0,
                shorter_ns => shorter_ns,
            };
        }
    }

    /// Takes in that a turn did `work` (requests taken in or executed).
    pub fn worked(&mut self, now_ns: u64, work: u64) {
        let Rule::Learn(limit_ns) = self.rule else {
            return;
        };
        if now_ns < self.epoch.began_ns {
            return;
        }
        self.epoch.work += work;
        let took_ns = now_ns - self.epoch.began_ns;
        if took_ns < EPOCH_NS {
            return;
        }
        let work = self.epoch.work;
        self.epoch = Epoch {
            began_ns: now_ns + SETTLE_NS,
            work: 0,
        };
        let can_be_compared = work >= WORK_MIN && took_ns <= EPOCH_NS_MAX;
        self.epoch_over(can_be_compared.then_some(work as f64 / took_ns as f64));
        if self.polls_now() && self.patience_ns == 0 {
            self.patience_ns = limit_ns;
        }
    }

    /// Decides how the next epoch is spent. `rate` is the last one's, if it says anything.
    fn epoch_over(&mut self, rate: Option<f64>) {
        let Some(rate) = rate else {
            return self.compare_afresh();
        };
        if self.trial {
            self.in_trial = Some(rate);
            self.trial = false;
            return;
        }
        if let Some(before) = self.by_habit {
            let in_trial = self.in_trial.take();
            if rate > CHANGE * before || before > CHANGE * rate {
                self.load_changed();
                if in_trial.is_some() {
                    self.rest_epochs_untold = (2 * self.rest_epochs_untold).min(REST_EPOCHS);
                    self.rest_epochs = self.rest_epochs.max(self.rest_epochs_untold);
                }
            } else if let Some(in_trial) = in_trial {
                self.judge(in_trial, f64::midpoint(before, rate));
            }
        }
        self.by_habit = Some(rate);
        match self.rest_epochs.checked_sub(1) {
            Some(left) => self.rest_epochs = left,
            None => self.trial = true,
        }
    }

    fn judge(&mut self, in_trial: f64, by_habit: f64) {
        self.rest_epochs_untold = 1;
        let worth_it = if self.polls { 0.95 } else { 1.10 };
        if in_trial < worth_it * by_habit {
            self.wins = 0;
            self.rest_epochs = REST_EPOCHS;
            return;
        }
        self.wins += 1;
        if self.wins == WINS {
            self.polls = !self.polls;
            self.wins = 0;
            self.rest_epochs = REST_EPOCHS;
        }
    }

    fn load_changed(&mut self) {
        self.wins = 0;
        self.rest_epochs = self.rest_epochs.min(REST_EPOCHS_CHANGED);
    }

    /// Forgets what cannot be compared any more; the habit stays.
    fn compare_afresh(&mut self) {
        self.load_changed();
        self.trial = false;
        self.by_habit = None;
        self.in_trial = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_NS: u64 = 100_000;
    const TURN_NS: u64 = 100_000;
    const SECOND: u64 = 1_000_000_000 / TURN_NS;

    /// A loop in its world.
    struct Life {
        polling: Polling,
        now_ns: u64,
    }

    impl Life {
        fn new(quiet_ns: Option<u64>) -> Self {
            Self {
                polling: Polling::new(quiet_ns, 7),
                now_ns: 7,
            }
        }

        /// Does this much work in each turn, depending on whether it polls; gives in how many turns it did.
        fn live(&mut self, turns: u64, polling: u64, sleeping: u64) -> u64 {
            let mut polled = 0;
            for _ in 0..turns {
                self.now_ns += TURN_NS;
                let polls = !self.polling.sleeps_at_once();
                polled += u64::from(polls);
                self.polling
                    .worked(self.now_ns, if polls { polling } else { sleeping });
            }
            polled
        }
    }

    #[test]
    fn it_polls_where_polling_gets_more_done() {
        let mut life = Life::new(Some(LIMIT_NS));
        life.live(SECOND, 12, 10);
        assert!(life.polling.habit_is_to_poll());
        let polled = life.live(100 * SECOND, 12, 10);
        assert!(
            (97 * SECOND..100 * SECOND).contains(&polled),
            "trials are few: {polled}"
        );
    }

    #[test]
    fn it_sleeps_where_polling_gets_nothing_more_done() {
        for with_polling in [5, 10] {
            let mut life = Life::new(Some(LIMIT_NS));
            let polled = life.live(100 * SECOND, with_polling, 10);
            assert!(!life.polling.habit_is_to_poll());
            assert!((1..3 * SECOND).contains(&polled), "trials are few: {polled}");
        }
    }

    #[test]
    fn it_changes_its_mind_when_the_load_changes() {
        let mut life = Life::new(Some(LIMIT_NS));
        life.live(SECOND, 12, 10);
        assert!(life.polling.habit_is_to_poll());
        life.live(10 * SECOND, 10, 10);
        assert!(!life.polling.habit_is_to_poll());
        life.live(10 * SECOND, 12, 10);
        assert!(life.polling.habit_is_to_poll());
        life.live(2 * SECOND, 30, 30);
        assert!(
            !life.polling.habit_is_to_poll(),
            "seen in two seconds, as it is another load"
        );
    }

    #[test]
    fn a_load_that_never_holds_still_is_seldom_tried() {
        let mut life = Life::new(Some(LIMIT_NS));
        let mut polled = 0;
        for round in 0..2000_u64 {
            // As if at random, each for an epoch and what is left out between two. (Tried again at once, it would be half of the time.)
            let work = [10, 16, 24, 40, 60][(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % 5];
            polled += life.live((EPOCH_NS + SETTLE_NS) / TURN_NS, work, work);
        }
        let all = 2000 * (EPOCH_NS + SETTLE_NS) / TURN_NS;
        assert!(polled > 0 && polled < all / 4, "{polled} of {all} turns");
    }

    #[test]
    fn a_load_with_pauses_is_not_compared() {
        let mut life = Life::new(Some(LIMIT_NS));
        for _ in 0..100 {
            life.live(SECOND / 20, 12, 10);
            life.now_ns += 1_000_000_000;
        }
        assert!(!life.polling.habit_is_to_poll());
        assert_eq!(life.polling.wins, 0);
    }

    #[test]
    fn an_idle_loop_soon_sleeps_whatever_its_habit() {
        let mut life = Life::new(Some(LIMIT_NS));
        life.live(SECOND, 12, 10);
        let polling = &mut life.polling;
        assert!(!polling.is_over(LIMIT_NS - 1) && polling.is_over(LIMIT_NS));
        for _ in 0..5 {
            polling.slept(500_000_000);
        }
        assert!(polling.sleeps_at_once() && polling.is_over(0));
        polling.slept(LIMIT_NS - 1);
        assert!(!polling.is_over(LIMIT_NS - 1), "what it waited for came soon");
    }

    #[test]
    fn what_was_asked_for_is_done() {
        for (quiet_ns, polls) in [(None, true), (Some(0), false)] {
            let mut life = Life::new(quiet_ns);
            life.live(SECOND, if polls { 10 } else { 20 }, 15);
            life.polling.slept(1);
            assert_eq!(life.polling.habit_is_to_poll(), polls);
            assert_eq!(life.polling.sleeps_at_once(), !polls);
            assert_eq!(life.polling.is_over(u64::MAX), !polls);
        }
    }
}
