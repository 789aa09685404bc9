//! Bugs and bad luck planted on purpose, to show that the end-to-end tests can fail. Compiled only with the feature
//! `planted-bugs`; `STILLPOINT_PLANTED_BUG` picks them, separated by commas.

use std::collections::VecDeque;

use stillpoint_processor::{Now, ShardCommand, ShardIndex, Ticket};

use crate::mailbox::PoolIndex;

/// Shards answer at once what they should hold until all shards have cut.
pub const ANSWERS_NOT_HELD: &str = "answers-not-held";
/// Each processor hears of a cut later than the one before it: bad luck, not a bug.
pub const LATE_CUTS: &str = "late-cuts";

/// How much later each processor hears of a cut: some times what a small write takes.
const LATE_NS: u64 = 1_500_000;

/// Whether this one was picked.
pub fn picked(bug: &str) -> bool {
    std::env::var("STILLPOINT_PLANTED_BUG").is_ok_and(|picked| picked.split(',').any(|picked| picked == bug))
}

type Command = Box<(PoolIndex, ShardIndex, Ticket, ShardCommand)>;

/// Cuts that are kept back on their way to this processor.
#[derive(Debug)]
pub struct LateCuts {
    /// For how long.
    late_ns: u64,
    kept: VecDeque<(u64, Command)>,
}

impl LateCuts {
    /// For the processor `index`.
    pub fn new(index: usize) -> Self {
        let late_ns = if picked(LATE_CUTS) {
            index as u64 * LATE_NS
        } else {
            0
        };
        Self {
            late_ns,
            kept: VecDeque::new(),
        }
    }

    /// Keeps the command back if it is a cut and cuts come late; gives it back otherwise.
    pub fn keep_back(&mut self, command: Command, now: Now) -> Option<Command> {
        if self.late_ns == 0 || !matches!(command.3, ShardCommand::Cut { .. }) {
            return Some(command);
        }
        self.kept.push_back((now.monotonic_ns + self.late_ns, command));
        None
    }

    /// The next one whose time has come.
    pub fn due(&mut self, now: Now) -> Option<Command> {
        self.kept
            .pop_front_if(|(due_ns, _)| *due_ns <= now.monotonic_ns)
            .map(|(_, command)| command)
    }

    /// Whether some are kept back: the loop must not sleep then.
    pub fn any(&self) -> bool {
        !self.kept.is_empty()
    }
}
