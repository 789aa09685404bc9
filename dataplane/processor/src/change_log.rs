//! The change log: what was written to a volume after a cut.
//!
//! With redirect-on-write the change log needs no place of its own to look in: a block belongs to the
//! change log behind snapshot `s` exactly when its birth epoch is newer than the epoch of `s`, and the one
//! map lookup that a read makes anyway answers both "did it change since?" and "where is it?".
//! What is kept beside the map is the accounting.

use crate::ids::Epoch;

/// The accounting of what was written after one cut and before the next, on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeLog {
    /// Blocks that differ from the map that was frozen: each counts once, however often it is written.
    pub changed_blocks: u64,
    /// First change, nanoseconds since the Unix epoch; 0 if there was none.
    pub first_change_ns: u64,
    /// Last change.
    pub last_change_ns: u64,
}

impl ChangeLog {
    /// Whether a block born in `birth` was written after a snapshot of `epoch`: the question that a read
    /// asks of the change log first.
    #[inline]
    #[must_use]
    pub fn holds(birth: Epoch, epoch: Epoch) -> bool {
        birth > epoch
    }

    /// Notes a change at `wall_ns`.
    #[inline]
    pub fn note(&mut self, wall_ns: u64) {
        if self.first_change_ns == 0 {
            self.first_change_ns = wall_ns;
        }
        self.last_change_ns = self.last_change_ns.max(wall_ns);
    }

    /// Takes over an older log when the snapshot between the two is gone. Blocks changed in both were taken out of the older
    /// one by the walk that freed the snapshot, but for some that were written and discarded between the same two cuts.
    pub fn absorb_older(&mut self, older: Self) {
        self.changed_blocks += older.changed_blocks;
        if older.first_change_ns != 0 {
            self.first_change_ns = older.first_change_ns;
        }
        self.last_change_ns = self.last_change_ns.max(older.last_change_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_the_frozen_epoch_is_not_in_the_change_log() {
        assert!(!ChangeLog::holds(Epoch(4), Epoch(4)));
        assert!(ChangeLog::holds(Epoch(5), Epoch(4)));
    }

    #[test]
    fn absorbing_keeps_the_outer_times() {
        let older = ChangeLog {
            changed_blocks: 2,
            first_change_ns: 10,
            last_change_ns: 20,
        };
        let mut newer = ChangeLog {
            changed_blocks: 3,
            first_change_ns: 30,
            last_change_ns: 40,
        };
        newer.absorb_older(older);
        assert_eq!(
            newer,
            ChangeLog {
                changed_blocks: 5,
                first_change_ns: 10,
                last_change_ns: 40
            }
        );
    }
}
