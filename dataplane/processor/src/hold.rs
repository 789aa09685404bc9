//! A cut in progress on one shard, and the answers it holds.
//!
//! From its own cut on, a shard goes on executing requests, but keeps back the answers that depend on
//! anything newer than the cut: acknowledgements of writes applied after it, and reads that saw such a
//! write. They go out in order when the coordinator says so or when the deadline passes, whichever is first.

use std::collections::VecDeque;

use crate::command::HoldFigures;
use crate::ids::{Epoch, SnapshotId, VolumeId};
use crate::request::ShardAnswer;
use crate::stages::{Stage, Stages, Work};

/// Where a cut stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutPhase {
    /// Ready to cut.
    Prepared,
    /// Cut; answers are held.
    Holding,
    /// Released; the intermediate snapshot is not yet known to be committed.
    Released,
}

/// A cut in progress on one shard.
#[derive(Debug)]
pub struct CutInProgress {
    /// The overall snapshot.
    pub snapshot: SnapshotId,
    /// The volumes cut and, after the cut, the last epoch each frozen map holds.
    pub volumes: Vec<(VolumeId, Epoch)>,
    /// Where it stands.
    pub phase: CutPhase,
    /// When the hold ends by itself, on the monotonic clock.
    pub deadline_ns: u64,
    started_ns: u64,
    held: VecDeque<(ShardAnswer, Work)>,
    answers_held: u64,
    answer_held_ns_max: u64,
    log_bytes: u64,
    metadata_bytes: u64,
}

impl CutInProgress {
    /// A prepared cut.
    #[must_use]
    pub fn prepared(snapshot: SnapshotId, volumes: &[VolumeId]) -> Self {
        Self {
            snapshot,
            volumes: volumes.iter().map(|&volume| (volume, Epoch(0))).collect(),
            phase: CutPhase::Prepared,
            deadline_ns: u64::MAX,
            started_ns: 0,
            held: VecDeque::new(),
            answers_held: 0,
            answer_held_ns_max: 0,
            log_bytes: 0,
            metadata_bytes: 0,
        }
    }

    /// The cut of one volume takes so much of the log and of the directory.
    pub fn wrote(&mut self, log_bytes: usize, metadata_bytes: usize) {
        self.log_bytes += log_bytes as u64;
        self.metadata_bytes += metadata_bytes as u64;
    }

    /// The hold begins.
    pub fn begin(&mut self, now_ns: u64, deadline_ns: u64) {
        assert_eq!(self.phase, CutPhase::Prepared, "a cut is prepared first");
        self.phase = CutPhase::Holding;
        self.started_ns = now_ns;
        self.deadline_ns = deadline_ns;
    }

    /// Whether an answer about `volume` that depends on something born in `birth` has to wait.
    #[inline]
    #[must_use]
    pub fn holds(&self, volume: VolumeId, birth: Epoch) -> bool {
        self.phase == CutPhase::Holding
            && self
                .volumes
                .iter()
                .any(|&(v, epoch)| v == volume && birth > epoch)
    }

    /// Keeps an answer back that would have been let go now (`since_ns`).
    pub fn hold(&mut self, answer: ShardAnswer, work: Work) {
        self.answers_held += 1;
        self.held.push_back((answer, work));
    }

    /// Answers kept back now.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Ends the hold: the held answers go out in order.
    pub fn release(&mut self, now_ns: u64, stages: &mut Stages, out: &mut Vec<ShardAnswer>) -> HoldFigures {
        assert_eq!(self.phase, CutPhase::Holding, "only a hold is released");
        self.phase = CutPhase::Released;
        self.deadline_ns = u64::MAX;
        for (mut answer, work) in self.held.drain(..) {
            stages.record(Stage::Held, work, answer.since_ns, now_ns);
            self.answer_held_ns_max = self
                .answer_held_ns_max
                .max(now_ns.saturating_sub(answer.since_ns));
            answer.since_ns = now_ns;
            out.push(answer);
        }
        HoldFigures {
            hold_ns: now_ns.saturating_sub(self.started_ns),
            answers_held: self.answers_held,
            answer_held_ns_max: self.answer_held_ns_max,
            log_bytes: self.log_bytes,
            metadata_bytes: self.metadata_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Token;

    #[test]
    fn only_what_is_newer_than_the_cut_is_held_and_it_leaves_in_order() {
        let mut cut = CutInProgress::prepared(SnapshotId(1), &[VolumeId(7)]);
        assert!(!cut.holds(VolumeId(7), Epoch(9)));
        cut.volumes[0].1 = Epoch(4);
        cut.wrote(36, 90);
        cut.wrote(36, 90);
        cut.begin(100, 200);
        assert!(!cut.holds(VolumeId(7), Epoch(4)));
        assert!(!cut.holds(VolumeId(8), Epoch(9)));
        assert!(cut.holds(VolumeId(7), Epoch(5)));
        for (token, at) in [(1, 110), (2, 120)] {
            cut.hold(
                ShardAnswer {
                    token: Token(token),
                    result: Ok(()),
                    buffer: None,
                    valid_bytes: 0,
                    since_ns: at,
                },
                Work::Write,
            );
        }
        let (mut out, mut stages) = (Vec::new(), Stages::default());
        let figures = cut.release(150, &mut stages, &mut out);
        assert_eq!(stages.get(Stage::Held, Work::Write).sum_ns(), 70);
        assert!(out.iter().all(|answer| answer.since_ns == 150));
        assert_eq!(out.iter().map(|a| a.token.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(
            figures,
            HoldFigures {
                hold_ns: 50,
                answers_held: 2,
                answer_held_ns_max: 40,
                log_bytes: 72,
                metadata_bytes: 180,
            }
        );
        assert!(!cut.holds(VolumeId(7), Epoch(5)));
    }
}
