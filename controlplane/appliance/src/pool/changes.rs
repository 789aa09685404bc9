//! What changed between a snapshot and something later: each shard is asked for its share of the runs, and what they tell
//! is put together in the order of the volume, while it is being sent.
//!
//! A share is asked about in a few slices, not object by object: an answer covers what fits into its buffer, which in a
//! thin volume with few changes is all of it. All slices are asked about at once, so that map pages that have to be read
//! from the devices are read side by side. So much is in memory at a time: a buffer and its runs per slice.

use std::collections::VecDeque;

use super::Pool;
use crate::error::{Error, Result};
use crate::mailbox::{MailboxError, ToProcessor};
use crate::name::ViewName;
use stillpoint_processor::host_view::{HostView, Placement};
use stillpoint_processor::ports::Buffer;
use stillpoint_processor::{
    BLOCK_BYTES, Base, CHANGED, CHANGED_TO_HOLE, RequestKind, ShardAnswer, ShardIndex, ShardRequest,
    ShareBlock, TimeStamp, Token,
};
use tokio::sync::oneshot;

/// Memory for one answer of a shard: 4,096 runs.
const ANSWER_BYTES: usize = 32 << 10;
/// Slices of a share.
const SLICES: u64 = 16;
/// Blocks of a slice at least: 1 GiB.
const SLICE_BLOCKS_MIN: u64 = 1 << 18;

/// Two views that can be compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The earlier one.
    pub base: Base,
    /// The later one.
    pub view: HostView,
    /// `volume@snapshot` of the earlier one.
    pub from: String,
    /// `volume` or `volume@snapshot` of the later one.
    pub to: String,
}

/// A range of a volume that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRange {
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes.
    pub length_bytes: u64,
    /// Whether it is a hole now.
    pub hole: bool,
}

impl Pool {
    /// Finds what is to be compared: a snapshot, and a later one or (without `to`) the volume as it is.
    ///
    /// # Errors
    /// Not found; usage if the two are not of one volume or the first is later than the second.
    pub fn compare(&self, volume: &str, snapshot: &str, to: Option<&ViewName>) -> Result<Comparison> {
        let from = format!("{volume}@{snapshot}");
        let live = ViewName {
            volume: volume.to_owned(),
            snapshot: None,
        };
        let to = to.unwrap_or(&live);
        let earlier = self.snapshot(volume, snapshot)?;
        let id = self.volume(volume)?.id;
        let of = earlier.volumes.iter().find(|of| of.owner == id);
        let base = Base {
            volume: of.expect("the snapshot was found by its volume").volume,
            snapshot: earlier.snapshot,
        };
        let later = match &to.snapshot {
            Some(snapshot) => self.snapshot(&to.volume, snapshot)?.time_stamp,
            None => TimeStamp(u64::MAX),
        };
        let view = self.view(to)?;
        if !self.catalog().are_related(view.volume, id) {
            return Err(Error::usage(format!("{from} and {to} are not of one volume"))
                .hint("a snapshot is compared with a later one of its volume or of a clone, or with these as they are"));
        }
        if later < earlier.time_stamp {
            return Err(
                Error::usage(format!("{to} is older than {from}")).hint(format!("compare {to} with {from}"))
            );
        }
        let host_view = self.catalog().host_view(view, true);
        Ok(Comparison {
            base,
            view: host_view.ok_or_else(|| Error::not_found(format!("{to} is gone")))?,
            from,
            to: to.to_string(),
        })
    }

    fn ask(&self, request: ShardRequest) -> Result<oneshot::Receiver<ShardAnswer>> {
        let (reply, answer) = oneshot::channel();
        let (pool, shard) = (self.index, request.shard);
        let request = Box::new(request);
        self.owner(shard)
            .send(ToProcessor::Ask { pool, request, reply })?;
        Ok(answer)
    }
}

/// The ranges that changed, while they are found.
#[derive(Debug)]
pub struct Changes {
    comparison: Comparison,
    merge: Merge,
    /// What was found last, if it has not been told: what follows may belong to it.
    pending: Option<ChangedRange>,
}

impl Changes {
    /// From the start.
    #[must_use]
    pub fn new(comparison: Comparison) -> Self {
        let volume_blocks = comparison.view.size_bytes.div_ceil(BLOCK_BYTES as u64);
        Self {
            merge: Merge::new(comparison.view.placement, volume_blocks, SLICE_BLOCKS_MIN),
            comparison,
            pending: None,
        }
    }

    /// The next range, in the order of the volume; `None` at the end. `pool` is the one they are of.
    ///
    /// # Errors
    /// What a shard says: the snapshot or the volume was deleted meanwhile, a map page cannot be read.
    pub async fn next(&mut self, pool: &Pool) -> Result<Option<ChangedRange>> {
        loop {
            self.ask(pool).await?;
            let Some(range) = self.merge.next() else {
                return Ok(self.pending.take());
            };
            match &mut self.pending {
                Some(last) if joins(last, &range) => last.length_bytes += range.length_bytes,
                pending => {
                    if let Some(last) = pending.replace(range) {
                        return Ok(Some(last));
                    }
                }
            }
        }
    }

    /// Asks about those slices of which nothing more is known, all at once, until something is known of each.
    async fn ask(&mut self, pool: &Pool) -> Result<()> {
        while self.merge.slices.iter().any(Slice::is_unknown) {
            let slices = self.merge.slices.iter().enumerate();
            let unknown = slices.filter(|(_, slice)| slice.is_unknown());
            let asked: Vec<_> = unknown
                .map(|(place, slice)| (place, pool.ask(slice.request(&self.comparison))))
                .collect();
            for (place, answer) in asked {
                let answer: ShardAnswer = answer?.await.map_err(|_| MailboxError::Ended)?;
                let slice = &mut self.merge.slices[place];
                if let Err(error) = answer.result {
                    let Comparison { from, to, .. } = &self.comparison;
                    let failed = pool.failed(slice.shard, error);
                    return Err(failed.while_doing(format_args!("changes from {from} to {to}")));
                }
                slice.take_in(&answer);
            }
        }
        Ok(())
    }
}

fn joins(last: &ChangedRange, next: &ChangedRange) -> bool {
    last.offset_bytes + last.length_bytes == next.offset_bytes && last.hole == next.hole
}

/// What is known of a slice of one shard's share.
#[derive(Debug)]
struct Slice {
    shard: ShardIndex,
    /// First block behind it.
    end: u64,
    /// First block of which nothing is known.
    known: u64,
    /// Runs that changed: first block, first block behind it, whether it is a hole.
    runs: VecDeque<(u64, u64, bool)>,
}

impl Slice {
    fn is_unknown(&self) -> bool {
        self.runs.is_empty() && self.known < self.end
    }

    fn request(&self, comparison: &Comparison) -> ShardRequest {
        ShardRequest {
            token: Token::default(),
            shard: self.shard,
            view: comparison.view.view,
            kind: RequestKind::Changes {
                base: comparison.base,
            },
            first: ShareBlock(self.known),
            blocks: u32::try_from(self.end - self.known).unwrap_or(u32::MAX),
            skip_bytes: 0,
            length_bytes: 0,
            buffer: Some(Buffer::owned(ANSWER_BYTES)),
            since_ns: 0,
        }
    }

    fn take_in(&mut self, answer: &ShardAnswer) {
        let bytes = answer.buffer.as_ref().map_or(&[][..], Buffer::bytes);
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        for pair in bytes[..answer.valid_bytes as usize].chunks_exact(8) {
            let (first, state) = (self.known, word(&pair[4..]));
            self.known = (first + u64::from(word(&pair[..4]))).min(self.end);
            if state & CHANGED != 0 {
                let hole = state & CHANGED_TO_HOLE != 0;
                self.runs.push_back((first, self.known, hole));
            }
        }
    }
}

/// The shares of a volume, read in the order of the volume.
#[derive(Debug)]
struct Merge {
    placement: Placement,
    volume_blocks: u64,
    slices: Vec<Slice>,
}

impl Merge {
    fn new(placement: Placement, volume_blocks: u64, slice_blocks_min: u64) -> Self {
        let shards = (0..placement.shard_count).map(ShardIndex);
        let slices = shards.flat_map(|shard| {
            let blocks = placement.share_blocks(shard, volume_blocks);
            let length = blocks.div_ceil(SLICES).max(slice_blocks_min);
            let firsts = (0..SLICES).map(move |slice| slice * length);
            firsts
                .take_while(move |&first| first < blocks)
                .map(move |first| Slice {
                    shard,
                    end: blocks.min(first + length),
                    known: first,
                    runs: VecDeque::new(),
                })
        });
        Self {
            placement,
            volume_blocks,
            slices: slices.collect(),
        }
    }

    /// The next range, at most to the end of its object; `None` at the end. Something is known of every slice.
    fn next(&mut self) -> Option<ChangedRange> {
        let placement = self.placement;
        let heads = self.slices.iter_mut().filter_map(|slice| {
            let &(first, ..) = slice.runs.front()?;
            Some((placement.block_at(slice.shard, ShareBlock(first)), slice))
        });
        let (block, slice) = heads.min_by_key(|(block, _)| *block)?;
        let (first, end, hole) = slice.runs.front_mut().expect("it was looked at");
        let object = u64::from(placement.object_blocks);
        let blocks = (*end).min((*first / object + 1) * object) - *first;
        let hole = *hole;
        *first += blocks;
        if first == end {
            slice.runs.pop_front();
        }
        let blocks = blocks.min(self.volume_blocks - block.0);
        Some(ChangedRange {
            offset_bytes: block.0 * BLOCK_BYTES as u64,
            length_bytes: blocks * BLOCK_BYTES as u64,
            hole,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(runs: &[(u32, u32)]) -> ShardAnswer {
        let words = runs.iter().flat_map(|&(blocks, state)| [blocks, state]);
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let mut buffer = Buffer::owned(ANSWER_BYTES);
        buffer.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
        ShardAnswer {
            token: Token::default(),
            result: Ok(()),
            buffer: Some(buffer),
            valid_bytes: bytes.len() as u32,
            since_ns: 0,
        }
    }

    #[test]
    fn runs_of_all_shares_come_in_the_order_of_the_volume() {
        let placement = Placement {
            shard_count: 3,
            rotation: 2,
            object_blocks: 256,
        };
        let volume_blocks = 256 * 10 + 7;
        // Every block has a state; the shares tell theirs in runs, a few at a time.
        let state = |block: u64| [0, CHANGED, CHANGED, CHANGED | CHANGED_TO_HOLE][(block / 171) as usize % 4];
        let mut merge = Merge::new(placement, volume_blocks, 300);
        assert_eq!(merge.slices.len(), 10, "shares of 775, 768 and 1,024 blocks");
        let mut told = vec![0; volume_blocks as usize];
        let mut at = 0;
        loop {
            while let Some(slice) = merge.slices.iter_mut().find(|slice| slice.is_unknown()) {
                let end = slice.end.min(slice.known + 100);
                let blocks =
                    (slice.known..end).map(|place| placement.block_at(slice.shard, ShareBlock(place)));
                let mut runs: Vec<(u32, u32)> = blocks.map(|block| (1, state(block.0))).collect();
                runs.dedup_by(|next, last| {
                    let same = next.1 == last.1;
                    last.0 += u32::from(same);
                    same
                });
                // The last run of a slice may be told beyond its end.
                runs.last_mut().expect("a block at least").0 += u32::from(end == slice.end) * 99;
                slice.take_in(&answer(&runs));
            }
            let Some(range) = merge.next() else { break };
            assert!(range.offset_bytes >= at, "in order");
            at = range.offset_bytes + range.length_bytes;
            for block in range.offset_bytes / 4096..at / 4096 {
                told[block as usize] = CHANGED | if range.hole { CHANGED_TO_HOLE } else { 0 };
            }
        }
        let expected: Vec<u32> = (0..volume_blocks).map(state).collect();
        assert!(told == expected);
    }
}
