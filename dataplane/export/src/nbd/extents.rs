//! The extents of one block status reply, merged as the parts come in.

use super::contexts::Context;

/// Bytes of the reply's memory: the context and at most 8,191 extents. A client asks again from where a reply
/// ends.
pub(super) const REPLY_BYTES: usize = 64 << 10;
const EXTENT_BYTES: usize = 8;
const CONTEXT_BYTES: usize = 4;

/// Builds the payload of a `BLOCK_STATUS` chunk in a buffer: `context u32`, then `length u32 | state u32` each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extents {
    count: usize,
    last_length: u32,
    last_state: u32,
}

impl Extents {
    /// Bytes of the payload so far.
    pub(super) fn payload_bytes(&self) -> usize {
        CONTEXT_BYTES + self.count * EXTENT_BYTES
    }

    /// Adds a run; false if it does not fit any more (or is a second extent and there may be just one).
    fn push(&mut self, memory: &mut [u8], context: u32, length: u32, state: u32, one: bool) -> bool {
        if self.count > 0 && self.last_state == state {
            self.last_length += length;
        } else {
            let full = self.payload_bytes() + EXTENT_BYTES > REPLY_BYTES;
            if full || (one && self.count > 0) {
                return false;
            }
            self.count += 1;
            self.last_length = length;
            self.last_state = state;
        }
        let at = self.payload_bytes() - EXTENT_BYTES;
        memory[..CONTEXT_BYTES].copy_from_slice(&context.to_be_bytes());
        memory[at..at + 4].copy_from_slice(&self.last_length.to_be_bytes());
        memory[at + 4..at + 8].copy_from_slice(&state.to_be_bytes());
        true
    }

    /// Adds what a shard said of `length_bytes` bytes that begin `skip_bytes` into its first block: pairs of
    /// little-endian u32 (blocks, state), the last one perhaps longer than that. True if that covered all of it and
    /// more may follow.
    pub(super) fn add(
        &mut self,
        memory: &mut [u8],
        context: &Context,
        pairs: &[u8],
        skip_bytes: u32,
        length_bytes: u32,
        one: bool,
    ) -> bool {
        let end = u64::from(skip_bytes) + u64::from(length_bytes);
        let mut position = 0u64;
        let mut covered = u64::from(skip_bytes);
        for pair in pairs.chunks_exact(8) {
            let word = |at: usize| u32::from_le_bytes(pair[at..at + 4].try_into().expect("four bytes"));
            position += u64::from(word(0)) * stillpoint_processor::BLOCK_BYTES as u64;
            let upto = position.min(end);
            if upto <= covered {
                continue;
            }
            let state = context.state(word(4));
            if !self.push(memory, context.id, (upto - covered) as u32, state, one) {
                return false;
            }
            covered = upto;
        }
        assert!(self.count > 0, "a shard says something of every range");
        covered == end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocation() -> Context {
        let data = [&[0; 4][..], &[0, 0, 0, 1, 0, 0, 0, 15], b"base:allocation"].concat();
        let queries = super::super::contexts::Queries::parse(&data, true).expect("it is well-formed");
        queries.select(None).expect("nobody is busy").remove(0)
    }

    fn pairs(runs: &[(u32, u32)]) -> Vec<u8> {
        runs.iter()
            .flat_map(|(blocks, state)| [blocks.to_le_bytes(), state.to_le_bytes()])
            .flatten()
            .collect()
    }

    fn read(memory: &[u8], extents: &Extents) -> Vec<(u32, u32)> {
        assert_eq!(memory[..4], allocation().id.to_be_bytes());
        memory[4..extents.payload_bytes()]
            .chunks_exact(8)
            .map(|e| {
                (
                    u32::from_be_bytes(e[..4].try_into().expect("4")),
                    u32::from_be_bytes(e[4..].try_into().expect("4")),
                )
            })
            .collect()
    }

    #[test]
    fn runs_of_neighbouring_parts_become_one_extent() {
        let mut memory = vec![0; REPLY_BYTES];
        let mut extents = Extents::default();
        assert!(extents.add(
            &mut memory,
            &allocation(),
            &pairs(&[(1, 0), (3, 1)]),
            512,
            4 * 4096 - 512,
            false
        ));
        assert!(extents.add(
            &mut memory,
            &allocation(),
            &pairs(&[(2, 1), (1, 0)]),
            0,
            2 * 4096 + 100,
            false
        ));
        assert_eq!(
            read(&memory, &extents),
            [(4096 - 512, 0), (5 * 4096, 3), (100, 0)]
        );
    }

    #[test]
    fn one_extent_is_one_extent() {
        let mut memory = vec![0; REPLY_BYTES];
        let mut extents = Extents::default();
        assert!(!extents.add(
            &mut memory,
            &allocation(),
            &pairs(&[(1, 1), (1, 0)]),
            0,
            8192,
            true
        ));
        assert_eq!(read(&memory, &extents), [(4096, 3)]);
    }

    #[test]
    fn a_full_reply_ends_early_and_a_short_answer_too() {
        let mut memory = vec![0; REPLY_BYTES];
        let mut extents = Extents::default();
        let runs: Vec<_> = (0..10_000).map(|i| (1, i % 2)).collect();
        assert!(!extents.add(&mut memory, &allocation(), &pairs(&runs), 0, 10_000 * 4096, false));
        assert_eq!(read(&memory, &extents).len(), 8191);
        let mut extents = Extents::default();
        assert!(!extents.add(&mut memory, &allocation(), &pairs(&[(1, 0)]), 0, 8192, false));
    }
}
