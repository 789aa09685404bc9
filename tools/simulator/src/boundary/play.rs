//! Playing a script: which step may begin when, and who looks at what between two of them.

use super::rig::{Checked, Rig, broken};
use super::script::{Script, Step};
use crate::stamp::SECTORS_PER_BLOCK;

/// Where a script stands.
#[derive(Debug)]
pub(crate) struct Player<'a> {
    script: &'a Script,
    next: usize,
}

impl<'a> Player<'a> {
    /// At the beginning.
    pub(crate) fn new(script: &'a Script) -> Self {
        Self { script, next: 0 }
    }

    /// Plays on to the end. `observe` sees every moment before a write or a flush of the devices ends, and the last one;
    /// it may stop the play.
    pub(crate) fn play(
        &mut self,
        rig: &mut Rig,
        mut observe: impl FnMut(&mut Rig) -> Checked<bool>,
    ) -> Checked {
        loop {
            while self.begin_next(rig)? {}
            rig.turns()?;
            rig.see_snapshots()?;
            if self.begin_next(rig)? {
                continue;
            }
            if !rig.changes_in_flight().is_empty() {
                if !observe(rig)? {
                    return Ok(());
                }
                rig.complete_one();
            } else if self.next == self.script.steps.len() && rig.is_answered() {
                observe(rig)?;
                return Ok(());
            } else if !rig.wait() {
                return broken(rig.describe_hang());
            }
        }
    }

    /// Begins the next step if it may begin now.
    fn begin_next(&mut self, rig: &mut Rig) -> Checked<bool> {
        let Some(step) = self.script.steps.get(self.next) else {
            return Ok(false);
        };
        if !self.may_begin(rig, step) {
            return Ok(false);
        }
        self.next += 1;
        begin(rig, step)?;
        Ok(true)
    }

    fn may_begin(&self, rig: &Rig, step: &Step) -> bool {
        let room = rig.operations.len() < self.script.depth;
        match step {
            Step::Write {
                volume,
                sector,
                sectors,
                ..
            } => {
                let blocks = sector / SECTORS_PER_BLOCK..(sector + sectors).div_ceil(SECTORS_PER_BLOCK);
                room && rig.job.is_none() && !rig.is_busy(*volume, &blocks)
            }
            Step::Discard {
                volume,
                block,
                blocks,
                ..
            } => room && rig.job.is_none() && !rig.is_busy(*volume, &(*block..block + blocks)),
            Step::Flush { .. } => room && rig.job.is_none(),
            Step::Checkpoint | Step::Snapshot { .. } => rig.job.is_none() && rig.taking.is_none(),
            Step::CreateVolume { .. }
            | Step::Resize { .. }
            | Step::DeleteVolume { .. }
            | Step::DeleteSnapshot { .. }
            | Step::Promote { .. } => rig.is_answered(),
            Step::Clone { .. } | Step::RollBack { .. } => rig.is_answered() && rig.unseen.is_empty(),
            Step::Drain => rig.is_quiet(),
            Step::Idle => rig.is_quiet() && !rig.is_waiting(),
        }
    }
}

/// Begins a step. One that needs what an error left in doubt is passed over.
fn begin(rig: &mut Rig, step: &Step) -> Checked {
    match step {
        Step::CreateVolume { blocks } => {
            rig.doing = "volume create";
            rig.create_volume(*blocks);
        }
        Step::Resize { volume, blocks } if rig.is_usable(*volume) => {
            rig.doing = "volume resize";
            rig.resize_volume(*volume, *blocks);
        }
        Step::DeleteVolume { volume } if rig.is_usable(*volume) && !rig.history.owns_snapshots(*volume) => {
            rig.doing = "volume delete";
            rig.delete_volume(*volume);
        }
        Step::Write {
            volume,
            sector,
            sectors,
            fua,
        } if rig.may_write(*volume, *sector, *sectors) => {
            rig.doing = "write";
            rig.send_write(*volume, *sector, *sectors, *fua)?;
        }
        Step::Discard {
            volume,
            block,
            blocks,
            fua,
        } if rig.may_write(*volume, block * SECTORS_PER_BLOCK, blocks * SECTORS_PER_BLOCK) => {
            rig.doing = "discard";
            rig.send_discard(*volume, *block, *blocks, *fua)?;
        }
        Step::Flush { volume } if rig.is_usable(*volume) => {
            rig.doing = "flush";
            rig.send_flush(*volume)?;
        }
        Step::Snapshot { volumes } => {
            rig.doing = "snapshot create";
            if volumes.iter().all(|volume| rig.is_usable(*volume)) {
                rig.take_snapshot(volumes)?;
            } else {
                rig.skip_snapshot();
            }
        }
        Step::DeleteSnapshot { snapshot } if rig.has_snapshot(*snapshot) => {
            rig.doing = "snapshot delete";
            rig.delete_snapshot(*snapshot);
        }
        Step::Clone { volume, snapshot } => {
            rig.doing = "clone";
            rig.make_volume_of(*volume, *snapshot, None);
        }
        Step::RollBack { volume, of, snapshot } => {
            rig.doing = "rollback";
            rig.make_volume_of(*of, *snapshot, Some(*volume));
        }
        Step::Promote { volume } if rig.is_usable(*volume) => {
            rig.doing = "promotion";
            rig.promote(*volume);
        }
        Step::Checkpoint => {
            rig.doing = "checkpoint";
            rig.checkpoint();
        }
        _ => {}
    }
    Ok(())
}
