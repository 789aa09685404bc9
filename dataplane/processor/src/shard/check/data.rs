//! Reading the data that maps refer to, and comparing it with its checksums.

use stillpoint_ondisk::{Damage, crc32c};

use super::report::{Problem, Why};
use super::walk::{DataBlock, Walk, read_blocks};
use crate::BLOCK_BYTES;
use crate::ports::{DeviceError, OpenDevice, Transferred};

/// Blocks read at once (8 MiB).
pub(super) const BLOCKS_AT_ONCE: usize = 2048;
/// Blocks of one transfer at most (1 MiB).
const RUN_BLOCKS_MAX: usize = 256;

impl<D: OpenDevice> Walk<'_, D> {
    /// Reads and checks the blocks that are waiting.
    pub(super) fn read_pending(&mut self) {
        let mut blocks = core::mem::take(&mut self.pending);
        blocks.sort_by_key(|block| block.address);
        let mut memory = vec![0; blocks.len() * BLOCK_BYTES];
        let mut results = read_runs(self.device, &blocks, &mut memory);
        for (number, (block, bytes)) in blocks
            .iter()
            .zip(memory.chunks_exact_mut(BLOCK_BYTES))
            .enumerate()
        {
            if results[number].is_err() {
                // A run fails as a whole: which of its blocks was it?
                let alone = read_blocks(self.device, [block.address].into_iter(), bytes);
                results[number] = alone[0];
            }
            self.report.figures.verified_blocks += 1;
            let why = match results[number] {
                Err(error) => Why::Unreadable(error),
                Ok(()) if crc32c(bytes) == block.crc32c => continue,
                Ok(()) => Why::Damaged(Damage::Checksum),
            };
            let used = self.data_use(block);
            self.problem(Problem::Data {
                used,
                address: block.address,
                why,
            });
        }
        blocks.clear();
        self.pending = blocks;
    }
}

/// Reads blocks in the order of their places; those that follow each other go as one. A result for each block.
fn read_runs(
    device: &mut impl OpenDevice,
    blocks: &[DataBlock],
    mut memory: &mut [u8],
) -> Vec<Result<(), DeviceError>> {
    let mut reads: Vec<Transferred<'_>> = Vec::new();
    for run in blocks.chunk_by(|a, b| a.address.0 + 1 == b.address.0) {
        for piece in run.chunks(RUN_BLOCKS_MAX) {
            let (bytes, rest) = memory.split_at_mut(piece.len() * BLOCK_BYTES);
            memory = rest;
            reads.push(Transferred {
                device: piece[0].address.device(),
                offset_bytes: piece[0].address.offset_bytes(),
                bytes,
                result: Ok(()),
            });
        }
    }
    device.read_all(&mut reads);
    let results = reads
        .iter()
        .flat_map(|read| std::iter::repeat_n(read.result, read.bytes.len() / BLOCK_BYTES));
    results.collect()
}
