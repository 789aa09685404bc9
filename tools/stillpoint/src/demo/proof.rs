//! What a snapshot has to show, given what the clients saw.
//!
//! The load keeps a history: for every write the block, when it was sent, when its acknowledgement came. A
//! snapshot shows one instant exactly if
//!
//! 1. every write acknowledged before the command was given is in it,
//! 2. no write sent after the command had returned is in it,
//! 3. if a write is in it, so is every write that was acknowledged before that one was sent.
//!
//! Writes to one block never overlap, so the number in a block tells which of its writes are in the snapshot: all
//! up to that number.

use super::stamp::{self, BLOCK_BYTES};

/// A write, as its client saw it. Times are nanoseconds since the start of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The block, counted over the whole volume.
    pub block: u64,
    /// Just before it was sent.
    pub sent_ns: u64,
    /// Just after its acknowledgement was read; `u64::MAX` if there was none.
    pub acknowledged_ns: u64,
}

/// The writes of all lanes. Write number `n` of a lane is its element `n - 1`; number 0 is the block's first
/// content, written before the load.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The writes of each lane, in the order in which they were sent. Block `b` belongs to lane `b % lanes`.
    pub lanes: Vec<Vec<Write>>,
}

/// When the snapshot was ordered and when the command returned, on the clock of the history.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Just before the request was sent.
    pub given_ns: u64,
    /// Just after the answer was read.
    pub returned_ns: u64,
}

/// What a snapshot that passed contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Writes of the load that are in it.
    pub writes_in: u64,
    /// Writes of the load that are not.
    pub writes_out: u64,
    /// Pairs that would have shown a cut that is not one instant: writes that are out, sent before the command
    /// returned.
    pub close_calls: u64,
}

/// Why a snapshot does not show one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A block holds what no client wrote there.
    Broken {
        /// The block.
        block: u64,
    },
    /// A block holds a write that was never sent.
    Unknown {
        /// The block.
        block: u64,
        /// The number it shows.
        sequence: u64,
    },
    /// A write is missing that was acknowledged before the command was given.
    Lost {
        /// The block.
        block: u64,
    },
    /// A write is in it that was sent after the command had returned.
    Late {
        /// The block.
        block: u64,
    },
    /// A write is missing although one is in it that was sent after its acknowledgement.
    Gap {
        /// The block of the missing write.
        missing: u64,
        /// The block of the later one.
        later: u64,
    },
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken { block } => write!(f, "block {block} holds what no client wrote there"),
            Self::Unknown { block, sequence } => {
                write!(f, "block {block} holds write {sequence}, which was never sent")
            }
            Self::Lost { block } => write!(
                f,
                "block {block} misses a write that was acknowledged before the snapshot was ordered"
            ),
            Self::Late { block } => write!(
                f,
                "block {block} has a write that was sent after the snapshot command had returned"
            ),
            Self::Gap { missing, later } => write!(
                f,
                "block {missing} misses a write that was acknowledged before the write in block {later} was sent"
            ),
        }
    }
}

/// The numbers of the writes that `bytes` (blocks from `first_block` on) show, appended to `numbers`.
///
/// # Errors
/// [`Flaw::Broken`].
pub fn read_numbers(bytes: &[u8], first_block: u64, numbers: &mut Vec<u64>) -> Result<(), Flaw> {
    for (block, bytes) in (first_block..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
        numbers.push(stamp::read(bytes, block).map_err(|_| Flaw::Broken { block })?);
    }
    Ok(())
}

/// Checks the numbers that a snapshot shows in its blocks.
///
/// # Errors
/// The first [`Flaw`].
pub fn check(numbers: &[u64], history: &History, command: Command) -> Result<Shown, Flaw> {
    let lanes = history.lanes.len() as u64;
    let mut newest: Option<Write> = None;
    for (block, &sequence) in (0u64..).zip(numbers) {
        if sequence == 0 {
            continue;
        }
        let lane = &history.lanes[(block % lanes) as usize];
        let write = lane
            .get(sequence as usize - 1)
            .filter(|write| write.block == block)
            .ok_or(Flaw::Unknown { block, sequence })?;
        if write.sent_ns > command.returned_ns {
            return Err(Flaw::Late { block });
        }
        if newest.is_none_or(|newest| newest.sent_ns < write.sent_ns) {
            newest = Some(*write);
        }
    }
    let mut shown = Shown::default();
    for lane in &history.lanes {
        for (write, number) in lane.iter().zip(1u64..) {
            if number <= numbers[write.block as usize] {
                shown.writes_in += 1;
                continue;
            }
            shown.writes_out += 1;
            shown.close_calls += u64::from(write.sent_ns < command.returned_ns);
            if write.acknowledged_ns < command.given_ns {
                return Err(Flaw::Lost { block: write.block });
            }
            if let Some(newest) = newest
                && write.acknowledged_ns < newest.sent_ns
            {
                return Err(Flaw::Gap {
                    missing: write.block,
                    later: newest.block,
                });
            }
        }
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(block: u64, sent_ns: u64, acknowledged_ns: u64) -> Write {
        Write {
            block,
            sent_ns,
            acknowledged_ns,
        }
    }

    const COMMAND: Command = Command {
        given_ns: 100,
        returned_ns: 200,
    };

    /// Two lanes; block 0 belongs to the first, block 1 to the second.
    fn history(first: &[Write], second: &[Write]) -> History {
        History {
            lanes: vec![first.to_vec(), second.to_vec()],
        }
    }

    #[test]
    fn a_prefix_passes() {
        let history = history(
            &[write(0, 10, 20), write(0, 110, 120)],
            &[write(1, 130, 140), write(1, 210, 220)],
        );
        let shown = check(&[2, 1], &history, COMMAND).expect("an instant");
        assert_eq!((shown.writes_in, shown.writes_out), (3, 1));
        let shown = check(&[1, 0], &history, COMMAND).expect("an earlier instant");
        assert_eq!((shown.writes_in, shown.close_calls), (1, 2));
    }

    #[test]
    fn writes_under_way_together_may_go_either_way() {
        let history = history(&[write(0, 110, 130)], &[write(1, 120, 140)]);
        for numbers in [[0, 0], [1, 0], [0, 1], [1, 1]] {
            assert!(check(&numbers, &history, COMMAND).is_ok(), "{numbers:?}");
        }
    }

    #[test]
    fn each_flaw_is_found() {
        let chain = history(&[write(0, 110, 120)], &[write(1, 130, 140)]);
        assert_eq!(
            check(&[0, 1], &chain, COMMAND),
            Err(Flaw::Gap { missing: 0, later: 1 })
        );
        let early = history(&[write(0, 10, 20)], &[]);
        assert_eq!(check(&[0, 0], &early, COMMAND), Err(Flaw::Lost { block: 0 }));
        let late = history(&[write(0, 210, 220)], &[]);
        assert_eq!(check(&[1, 0], &late, COMMAND), Err(Flaw::Late { block: 0 }));
        assert_eq!(
            check(&[2, 0], &late, COMMAND),
            Err(Flaw::Unknown {
                block: 0,
                sequence: 2
            })
        );
        let mut numbers = Vec::new();
        assert_eq!(
            read_numbers(&[0; BLOCK_BYTES], 5, &mut numbers),
            Err(Flaw::Broken { block: 5 })
        );
    }
}
