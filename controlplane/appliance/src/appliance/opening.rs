//! Pools while they are being opened, and what their mirrors say meanwhile.
//!
//! Shards that are open are at work while others still recover, and while the catalog is read. A side that fails then keeps answers back
//! that the opening may wait for, and other shards do not know of it. So the try ends: what was opened is closed, the labels
//! say that the side is out, and the pool is opened once more without it.
//!
//! ```text
//! a try begins -> shards open -> catalog -> in place: what was told meanwhile is told to the pool
//!                     │ a side fails
//!                     └> what is kept back fails -> closed -> labels: out -> another try
//! ```
//! What mirrors tell carries a number that no other try has had, so that nothing said in one counts in another.

use std::sync::Arc;

use tokio::sync::{Notify, oneshot};

use super::Appliance;
use crate::mailbox::{MailboxError, MirrorChange, PoolIndex, ProcessorIndex, ToProcessor};
use crate::pool::Pool;
use stillpoint_processor::mirror::{MirrorNotice, SideFailed};

/// A notice, who told it, and of which time that the side was attached.
pub(super) type Told = (ProcessorIndex, u64, MirrorNotice);

/// Passes of one try have these many numbers.
const PASSES_OF_A_TRY: u64 = 1 << 32;

/// A try to open a pool.
#[derive(Debug)]
pub(super) struct Opening {
    /// Of the pool.
    pub name: String,
    first_pass: u64,
    failed: Vec<SideFailed>,
    /// For the pool, when it is open.
    untold: Vec<Told>,
    /// It is given up.
    is_ending: bool,
    side_failed: Arc<Notify>,
}

impl Opening {
    /// Takes in what a mirror says. Gives the failure that nobody will do anything about any more.
    fn told(&mut self, told: Told) -> Option<SideFailed> {
        let (_, pass, notice) = told;
        if pass < self.first_pass {
            return None; // of a try that is over
        }
        match notice {
            MirrorNotice::SideFailed { at, error } if self.is_ending => Some(SideFailed { at, error }),
            MirrorNotice::SideFailed { at, error } => {
                self.failed.push(SideFailed { at, error });
                self.side_failed.notify_one();
                None
            }
            MirrorNotice::Resynced { .. } | MirrorNotice::CannotCopy { .. } => {
                self.untold.push(told);
                None
            }
        }
    }
}

impl Appliance {
    /// Begins a try to open a pool in this place; gives the number that what its mirrors tell carries at least.
    pub(crate) fn begin_try(&self, index: PoolIndex, name: &str) -> u64 {
        let mut pools = self.lock();
        pools.tries += 1;
        let first_pass = pools.tries * PASSES_OF_A_TRY;
        let opening = Opening {
            name: name.to_owned(),
            first_pass,
            failed: Vec::new(),
            untold: Vec::new(),
            is_ending: false,
            side_failed: Arc::default(),
        };
        pools.opening.insert(index, opening);
        first_pass
    }

    /// Waits until a side fails in this try.
    pub(super) async fn until_a_side_fails(&self, index: PoolIndex) -> SideFailed {
        loop {
            let side_failed = {
                let pools = self.lock();
                let opening = pools.opening.get(&index).expect("a try has begun");
                if let Some(failed) = opening.failed.first() {
                    return *failed;
                }
                Arc::clone(&opening.side_failed)
            };
            side_failed.notified().await;
        }
    }

    /// The pool is open from here on. Gives what its mirrors told meanwhile.
    ///
    /// # Errors
    /// The side that failed in this try.
    pub(super) fn put_in_place(&self, pool: &Arc<Pool>) -> Result<Vec<Told>, SideFailed> {
        let mut pools = self.lock();
        let opening = pools.opening.get_mut(&pool.index).expect("a try has begun");
        if let Some(failed) = opening.failed.first() {
            return Err(*failed);
        }
        let untold = core::mem::take(&mut opening.untold);
        pools.opening.remove(&pool.index);
        let place = usize::from(pool.index.0);
        if pools.open.len() <= place {
            pools.open.resize_with(place + 1, || None);
        }
        pools.open[place] = Some(Arc::clone(pool));
        Ok(untold)
    }

    /// Closes what a try has opened. What is kept back for a side that failed fails, or closing would wait for it.
    pub(super) async fn end_try(&self, index: PoolIndex) {
        let failed = match self.lock().opening.get_mut(&index) {
            None => Vec::new(),
            Some(opening) => {
                opening.is_ending = true;
                core::mem::take(&mut opening.failed)
            }
        };
        for failed in failed {
            self.lose(index, failed).await;
        }
        self.close_shards(index).await;
    }

    /// Something that the mirrors of a pool told, on which answers may wait.
    pub async fn mirror_told(
        &self,
        index: PoolIndex,
        processor: ProcessorIndex,
        pass: u64,
        notice: MirrorNotice,
    ) {
        let (pool, lost) = {
            let mut pools = self.lock();
            let mut known = pools.open.iter().flatten().chain(&pools.closing);
            match known.find(|pool| pool.index == index).cloned() {
                Some(pool) => (Some(pool), None),
                None => {
                    let opening = pools.opening.get_mut(&index);
                    (
                        None,
                        opening.and_then(|opening| opening.told((processor, pass, notice))),
                    )
                }
            }
        };
        if let Some(pool) = pool {
            return pool.mirror_told(processor, pass, notice).await;
        }
        if let Some(failed) = lost {
            self.lose(index, failed).await;
        }
    }

    /// Tells all processors that nothing can be promised of a device any more.
    async fn lose(&self, pool: PoolIndex, failed: SideFailed) {
        tracing::error!("{failed}: failed while its pool was opened");
        let change = MirrorChange::Lost {
            device: failed.at.device,
            error: failed.error,
        };
        for mailbox in self.mailboxes.iter() {
            loop {
                let (reply, _) = oneshot::channel();
                match mailbox.send(ToProcessor::Mirror { pool, change, reply }) {
                    // Closing waits for it: it is not given up.
                    Err(MailboxError::Full) => {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    }
                    Ok(()) | Err(MailboxError::Ended) => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
