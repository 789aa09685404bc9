//! What becomes of a pool on devices that did something wrong: it shows what it should, or says that it cannot.

use std::cell::RefCell;
use std::rc::Rc;

use crate::boundary::history::History;
use crate::boundary::layout_of;
use crate::boundary::medium::{Image, Medium};
use crate::boundary::memory::Tail;
use crate::boundary::rig::{Checked, Rig};
use crate::faults::Fault;
use crate::model::Crash;
use crate::random::Random;

/// The time between two lives.
const BETWEEN_LIVES_NS: u64 = 1_000_000;

/// What came of it; wrong data is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Right,
    /// The pool does not open.
    RefusedOpen,
    /// Some blocks are refused.
    RefusedRead,
}

/// Opens the pool that lies there, reads all of it, goes on working with it, reads it again, and once more in the
/// next life. Whatever is not refused must be right.
pub(crate) fn outcome(
    image: &Image,
    tails: Option<Vec<Tail>>,
    history: &History,
    crash: Crash,
    now_ns: u64,
) -> Checked<Outcome> {
    outcome_with(None, image, tails, history, crash, now_ns)
}

/// The same, with something that goes wrong in the first of the two lives.
pub(crate) fn outcome_with(
    fault: Option<Fault>,
    image: &Image,
    tails: Option<Vec<Tail>>,
    history: &History,
    crash: Crash,
    now_ns: u64,
) -> Checked<Outcome> {
    let Some(layout) = layout_of(image) else {
        return Ok(Outcome::RefusedOpen);
    };
    let no_tails = || vec![Tail(None); usize::from(layout.shard_count)];
    let open = |image: Image, tails, now_ns, fault| {
        let medium = Rc::new(RefCell::new(Medium::new(image)));
        medium.borrow_mut().instant = true;
        medium.borrow_mut().fault = fault;
        let opened = Rig::open(&layout, &medium, tails, now_ns, Random::new(now_ns));
        opened.ok().map(|mut rig| {
            rig.faulty = true;
            rig
        })
    };
    let tails = tails.unwrap_or_else(no_tails);
    let Some(mut rig) = open(image.clone(), tails, now_ns + BETWEEN_LIVES_NS, fault) else {
        return Ok(Outcome::RefusedOpen);
    };
    let state = rig.recovered(history, crash)?;
    rig.settle(&state);
    rig.work_a_little()?;
    rig.compare(None)?;
    let (history, now_ns) = (std::mem::take(&mut rig.history), rig.now_ns);
    let (image, _) = rig.die();
    let Some(mut next) = open(image, no_tails(), now_ns + BETWEEN_LIVES_NS, None) else {
        return Ok(Outcome::RefusedOpen);
    };
    next.recovered(&history, Crash::PowerCut)?;
    Ok(if state.refused() > 0 {
        Outcome::RefusedRead
    } else {
        Outcome::Right
    })
}

impl Rig {
    /// Writes here and there, flushes, makes a checkpoint: what is damaged must not spread.
    pub(crate) fn work_a_little(&mut self) -> Checked {
        let volumes: Vec<(u32, u64)> = self
            .history
            .volumes
            .values()
            .map(|volume| (volume.id, volume.size))
            .collect();
        for (volume, size) in volumes {
            for block in [0, size / 2] {
                if self.may_write(volume, block * 8, 8) {
                    self.send_write(volume, block * 8, 8, false)?;
                    self.drive()?;
                }
            }
        }
        for _ in 0..2 {
            self.checkpoint();
            self.drive()?;
        }
        self.finish(|_| Ok(()))
    }
}
