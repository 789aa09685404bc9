//! Listing what is mapped and what is a hole, skipping whole subtrees that are holes.

use super::{Outcome, Shard, SlotId};
use crate::ids::{ShareBlock, VolumeId};
use crate::map::{MapError, PageCache, Root};
use crate::ports::LogTail;
use crate::request::RequestError;
use stillpoint_ondisk::map_page::ENTRIES;

/// Runs found per step.
const RUNS_PER_STEP: usize = 256;

impl<T: LogTail> Shard<T> {
    pub(super) fn step_block_status(&mut self, id: SlotId) -> Outcome {
        for _ in 0..RUNS_PER_STEP {
            let slot = &mut self.slots[id];
            let Some(viewed) = self
                .volumes
                .get(&slot.view.volume)
                .and_then(|volume| volume.viewed(slot.view))
            else {
                return Outcome::Answer(Err(RequestError::NotFound));
            };
            let end = slot.first.0 + u64::from(slot.blocks);
            let at = ShareBlock(slot.first.0 + u64::from(slot.done_blocks));
            let run = match run_at(&mut self.cache, viewed.family, &viewed.root, at) {
                Ok(run) => run,
                Err(error) => return Outcome::Map(error),
            };
            slot.max_birth = slot.max_birth.max(run.birth);
            let blocks = run.end.min(end) - at.0;
            if !slot.note_run(blocks as u32, u32::from(run.is_hole)) {
                return Outcome::Answer(Ok(()));
            }
            slot.done_blocks += blocks as u32;
            if slot.done_blocks == slot.blocks {
                return Outcome::Answer(Ok(()));
            }
        }
        Outcome::Again
    }
}

impl super::Slot {
    /// Adds a run to the buffer, or makes the last one longer; false if there is no room for it.
    pub(super) fn note_run(&mut self, blocks: u32, state: u32) -> bool {
        let state = state.to_le_bytes();
        let used = self.valid_bytes as usize;
        let bytes = self
            .buffer
            .as_mut()
            .expect("a request for runs has a buffer")
            .bytes_mut();
        if used >= 8 && bytes[used - 4..used] == state {
            let last: [u8; 4] = bytes[used - 8..used - 4].try_into().expect("four bytes");
            let longer = u32::from_le_bytes(last) + blocks;
            bytes[used - 8..used - 4].copy_from_slice(&longer.to_le_bytes());
            return true;
        }
        let Some(room) = bytes.get_mut(used..used + 8) else {
            return false;
        };
        room[..4].copy_from_slice(&blocks.to_le_bytes());
        room[4..].copy_from_slice(&state);
        self.valid_bytes += 8;
        true
    }
}

struct Run {
    is_hole: bool,
    /// First block after the run, as far as one page tells.
    end: u64,
    birth: crate::ids::Epoch,
}

/// The run of mapped blocks or holes that begins at `block`: to its end, or to the end of its leaf.
fn run_at(cache: &mut PageCache, family: VolumeId, root: &Root, block: ShareBlock) -> Result<Run, MapError> {
    let mut entry = root.entry;
    let mut level = root.level;
    let covered = |level: u8| (ENTRIES as u64).pow(u32::from(level) + 1);
    if block.0 >= covered(level) {
        return Ok(Run {
            is_hole: true,
            end: u64::MAX,
            birth: crate::ids::Epoch(0),
        });
    }
    loop {
        let birth = crate::ids::Epoch(entry.birth.get());
        if entry.address() == 0 {
            let end = (block.0 / covered(level) + 1) * covered(level);
            return Ok(Run {
                is_hole: true,
                end,
                birth,
            });
        }
        let page = cache.page(family, level, block.0 / covered(level), &entry)?;
        if level == 0 {
            let start = (block.0 % ENTRIES as u64) as usize;
            let is_hole = page.entries[start].address() == 0;
            let same = page.entries[start..]
                .iter()
                .take_while(|entry| (entry.address() == 0) == is_hole);
            let (blocks, birth) = same.fold((0, 0), |(n, b), entry| (n + 1, entry.birth.get().max(b)));
            return Ok(Run {
                is_hole,
                end: block.0 + blocks,
                birth: crate::ids::Epoch(birth),
            });
        }
        level -= 1;
        entry = page.entries[(block.0 / covered(level)) as usize % ENTRIES];
    }
}
