//! One simulated device's content: what is durable, what reads see, and the writes between the two.

use std::hash::{Hash, Hasher};
use std::rc::Rc;

use stillpoint_processor::BLOCK_BYTES;
use stillpoint_processor::ports::Operation;

use crate::random::Random;

/// Bytes that a device writes as a whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// The content of a block.
pub(crate) type Page = Rc<[u8; BLOCK_BYTES]>;

/// A block of zeros.
pub(super) fn zero_page() -> Page {
    Rc::new([0; BLOCK_BYTES])
}

/// What happens to writes that a crash catches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashFate {
    /// All of them are lost.
    Lost,
    /// All of them are kept.
    Kept,
    /// Each for itself, in their order: lost, kept or torn.
    Mixed,
    /// Each for itself, in any order: lost, kept or torn.
    Reordered,
    /// Each block of them is cut off somewhere: its first sectors are kept, the others lost.
    CutOff,
}

/// One device.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Survives a power cut. `None`: never written, reads as zeros.
    durable: Vec<Option<Page>>,
    /// What reads see.
    current: Vec<Option<Page>>,
    /// Writes that are in `current` only, in order.
    unflushed: Vec<(u64, u64, Page)>,
    /// Block writes so far.
    writes: u64,
}

impl Disk {
    /// A blank device.
    #[must_use]
    pub fn new(size_blocks: u64) -> Self {
        let blank = vec![None; size_blocks as usize];
        Self {
            durable: blank.clone(),
            current: blank,
            unflushed: Vec::new(),
            writes: 0,
        }
    }

    /// Its size in blocks.
    #[must_use]
    pub fn size_blocks(&self) -> u64 {
        self.current.len() as u64
    }

    /// Block writes completed so far: what a flush sent now will cover.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Reads a block.
    pub fn read(&self, block: u64, into: &mut [u8]) {
        match &self.current[block as usize] {
            Some(page) => into.copy_from_slice(&page[..]),
            None => into.fill(0),
        }
    }

    /// Which blocks were written, and the CRC of each.
    pub(super) fn hash_content(&self, hasher: &mut impl Hasher) {
        for (block, page) in self.current.iter().enumerate() {
            if let Some(page) = page {
                (block, stillpoint_ondisk::crc32c(&page[..])).hash(hasher);
            }
        }
    }

    pub(super) fn write(&mut self, block: u64, page: Page) {
        self.current[block as usize] = Some(Rc::clone(&page));
        self.unflushed.push((self.writes, block, page));
        self.writes += 1;
    }

    /// The same, past the cache: what waits there for this block is older.
    pub(super) fn write_durably(&mut self, block: u64, page: Page) {
        self.unflushed.retain(|(_, waiting, _)| *waiting != block);
        self.durable[block as usize] = Some(Rc::clone(&page));
        self.current[block as usize] = Some(page);
        self.writes += 1;
    }

    /// Makes the first `covered` block writes durable.
    pub fn flush(&mut self, covered: u64) {
        let end = self.unflushed.partition_point(|entry| entry.0 < covered);
        for (_, block, page) in self.unflushed.drain(..end) {
            self.durable[block as usize] = Some(page);
        }
    }

    /// Flips bits of a block, durably.
    pub fn corrupt(&mut self, block: u64, byte: usize, flip: u8) {
        for side in [&mut self.durable, &mut self.current] {
            let mut page = side[block as usize]
                .as_ref()
                .map_or([0; BLOCK_BYTES], |page| **page);
            page[byte] ^= flip;
            side[block as usize] = Some(Rc::new(page));
        }
    }

    /// Applies a crash; `in_flight` are the block writes that had not completed.
    pub(super) fn crash(
        &mut self,
        power_cut: bool,
        fate: CrashFate,
        in_flight: Vec<(u64, Page)>,
        random: &mut Random,
    ) {
        if !power_cut {
            for (block, page) in in_flight {
                if let Some(page) = survive(fate, &self.current[block as usize], page, random) {
                    self.write(block, page);
                }
            }
            return;
        }
        let completed = std::mem::take(&mut self.unflushed);
        let mut caught: Vec<(u64, Page)> = completed
            .into_iter()
            .map(|(_, block, page)| (block, page))
            .collect();
        caught.extend(in_flight);
        if fate == CrashFate::Reordered {
            random.shuffle(&mut caught);
        }
        for (block, page) in caught {
            let place = &mut self.durable[block as usize];
            if let Some(page) = survive(fate, place, page, random) {
                *place = Some(page);
            }
        }
        self.current = self.durable.clone();
    }
}

/// What a write that a crash caught leaves behind over `before`.
fn survive(fate: CrashFate, before: &Option<Page>, page: Page, random: &mut Random) -> Option<Page> {
    match fate {
        CrashFate::Lost => None,
        CrashFate::Kept => Some(page),
        CrashFate::CutOff => {
            let mut torn = before.as_ref().map_or([0; BLOCK_BYTES], |before| **before);
            let kept_bytes =
                random.between(1, (BLOCK_BYTES / SECTOR_BYTES - 1) as u64) as usize * SECTOR_BYTES;
            torn[..kept_bytes].copy_from_slice(&page[..kept_bytes]);
            Some(Rc::new(torn))
        }
        CrashFate::Mixed | CrashFate::Reordered => match random.below(5) {
            0 | 1 => None,
            2 | 3 => Some(page),
            _ => {
                let mut torn = before.as_ref().map_or([0; BLOCK_BYTES], |before| **before);
                for (new, old) in page
                    .chunks_exact(SECTOR_BYTES)
                    .zip(torn.chunks_exact_mut(SECTOR_BYTES))
                {
                    if random.percent(50) {
                        old.copy_from_slice(new);
                    }
                }
                Some(Rc::new(torn))
            }
        },
    }
}

/// Calls `take` with device, block and content for each block of a write.
pub(crate) fn each_page(operation: &Operation, mut take: impl FnMut(usize, u64, Page)) {
    for index in 0..operation.transfers.len() {
        each_page_of(operation, index, &mut take);
    }
}

/// The same for one of its transfers.
pub(super) fn each_page_of(operation: &Operation, index: usize, mut take: impl FnMut(usize, u64, Page)) {
    let transfer = &operation.transfers[index];
    let mut block = transfer.offset_bytes / BLOCK_BYTES as u64;
    let first = transfer.first_segment as usize;
    for segment in &operation.segments[first..first + transfer.segment_count as usize] {
        let start = segment.offset_bytes as usize;
        let bytes = operation.buffers[segment.buffer as usize].bytes();
        for chunk in bytes[start..start + segment.length_bytes as usize].chunks_exact(BLOCK_BYTES) {
            let page: &[u8; BLOCK_BYTES] = chunk.try_into().expect("chunks of a block");
            take(usize::from(transfer.device.0), block, Rc::new(*page));
            block += 1;
        }
    }
}
