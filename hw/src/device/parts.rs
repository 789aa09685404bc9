//! Cutting transfers into what becomes one entry of a ring, or one command of a device.

use io_uring::types::Timespec;
use stillpoint_processor::ports::{Buffer, Segment, Transfer};

/// Bytes of a page of memory, as devices count them.
const PAGE_BYTES: usize = 4096;

/// What one entry takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes; a multiple of 4096.
    pub bytes: u64,
    /// Pieces of memory.
    pub vectors: usize,
    /// Pages of memory; each may be a piece of its own to the device.
    pub pages: usize,
}

impl Limits {
    /// Those of files: the kernel cuts what is too long for a device, but takes no more pieces (UIO_MAXIOV).
    pub const FILE: Self = Self {
        bytes: u64::MAX,
        vectors: 1024,
        pages: usize::MAX,
    };
}

/// What becomes one entry.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// The device that it goes to, as [`super::queue::targets::Targets`] counts them.
    pub target: usize,
    /// Which of its operation's transfers it is a part of.
    pub transfer: u32,
    pub offset_bytes: u64,
    pub left_bytes: u64,
    pub first_vector: usize,
    pub vector_count: usize,
    /// How often it was tried again, where that has an end.
    pub tries: u8,
    /// How long it has to wait before it is tried again, if it has to.
    pub pause: Option<Timespec>,
    /// It was last sent with a registered buffer.
    pub registered: bool,
    /// Of zeros: how many were last sent as data; 0: the device makes all of them by itself.
    pub step_bytes: u64,
    /// Its device has answered, or it did not get there.
    pub ended: bool,
}

impl Part {
    /// A part of a device's range that has no memory yet.
    pub fn of(target: usize, offset_bytes: u64, left_bytes: u64, first_vector: usize) -> Self {
        Self {
            target,
            transfer: 0,
            offset_bytes,
            left_bytes,
            first_vector,
            vector_count: 0,
            tries: 0,
            pause: None,
            registered: false,
            step_bytes: 0,
            ended: false,
        }
    }

    /// Whether it begins and ends at blocks of so many bytes.
    pub fn is_aligned(&self, block_bytes: u64) -> bool {
        (self.offset_bytes | self.left_bytes).is_multiple_of(block_bytes)
    }
}

/// Makes the parts of a read or write, and the vectors that they use.
pub(super) fn cut(
    target: usize,
    transfer: &Transfer,
    segments: &[Segment],
    buffers: &mut [Buffer],
    limits: Limits,
    parts: &mut Vec<Part>,
    vectors: &mut Vec<libc::iovec>,
) {
    let total: u64 = segments
        .iter()
        .map(|segment| u64::from(segment.length_bytes))
        .sum();
    assert!(
        total == transfer.length_bytes && total > 0,
        "segments add up to their transfer"
    );
    let mut part = Part::of(target, transfer.offset_bytes, 0, vectors.len());
    let mut pages = 0;
    for segment in segments {
        let start = segment.offset_bytes as usize;
        let memory = buffers[segment.buffer as usize].bytes_mut();
        let mut rest = &mut memory[start..start + segment.length_bytes as usize];
        while !rest.is_empty() {
            let address = rest.as_ptr() as usize;
            let fits = room(&part, pages, address, rest.len(), limits);
            if fits == 0 {
                parts.push(part);
                part = Part::of(target, part.offset_bytes + part.left_bytes, 0, vectors.len());
                pages = 0;
                continue;
            }
            let (piece, after) = rest.split_at_mut(fits);
            vectors.push(libc::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: piece.len(),
            });
            part.vector_count += 1;
            part.left_bytes += piece.len() as u64;
            pages += pages_of(address, piece.len());
            rest = after;
        }
    }
    parts.push(part);
}

/// How much of a piece of memory a part still takes. What is cut off is a multiple of a page long, and an empty part always
/// takes something.
fn room(part: &Part, pages: usize, address: usize, length: usize, limits: Limits) -> usize {
    if part.vector_count == limits.vectors {
        return 0;
    }
    let bytes = usize::try_from(limits.bytes - part.left_bytes).unwrap_or(usize::MAX);
    let pages_left = limits.pages.saturating_sub(pages);
    let in_pages = pages_left
        .saturating_mul(PAGE_BYTES)
        .saturating_sub(address % PAGE_BYTES);
    let fits = bytes.min(in_pages);
    if length <= fits {
        return length;
    }
    match fits / PAGE_BYTES * PAGE_BYTES {
        0 if part.vector_count == 0 => length.min(PAGE_BYTES),
        whole => whole,
    }
}

fn pages_of(address: usize, length: usize) -> usize {
    (address % PAGE_BYTES + length).div_ceil(PAGE_BYTES)
}

/// Makes the parts of a range without memory, none longer than `bytes_max`.
pub(super) fn cut_range(target: usize, transfer: &Transfer, bytes_max: u64, parts: &mut Vec<Part>) {
    let end_bytes = transfer.offset_bytes + transfer.length_bytes;
    let mut offset_bytes = transfer.offset_bytes;
    loop {
        let left_bytes = (end_bytes - offset_bytes).min(bytes_max);
        parts.push(Part::of(target, offset_bytes, left_bytes, 0));
        offset_bytes += left_bytes;
        if offset_bytes == end_bytes {
            return;
        }
    }
}

/// Moves the start of a part's memory on by `moved_bytes`.
pub(super) fn advance(vectors: &mut [libc::iovec], part: &mut Part, mut moved_bytes: usize) {
    while moved_bytes > 0 {
        let vector = &mut vectors[part.first_vector];
        let step = moved_bytes.min(vector.iov_len);
        vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(step).cast();
        vector.iov_len -= step;
        moved_bytes -= step;
        if vector.iov_len == 0 {
            part.first_vector += 1;
            part.vector_count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::ids::DeviceIndex;

    /// The parts of a write of these segments (offset and length in one buffer of 1 MiB): bytes and vectors of each.
    fn parts_of(segments: &[(u32, u32)], limits: Limits) -> Vec<(u64, Vec<usize>)> {
        // Aligned, as arenas are.
        let memory = Box::leak(vec![0u8; (1 << 20) + 4096].into_boxed_slice());
        let start = memory.as_ptr().align_offset(4096);
        let mut buffers = [Buffer::from_arena(&mut memory[start..start + (1 << 20)], 0)];
        let segments: Vec<Segment> = segments
            .iter()
            .map(|&(offset_bytes, length_bytes)| Segment {
                buffer: 0,
                offset_bytes,
                length_bytes,
            })
            .collect();
        let transfer = Transfer {
            device: DeviceIndex(0),
            offset_bytes: 1 << 30,
            length_bytes: segments
                .iter()
                .map(|segment| u64::from(segment.length_bytes))
                .sum(),
            first_segment: 0,
            segment_count: segments.len() as u32,
        };
        let (mut parts, mut vectors) = (Vec::new(), Vec::new());
        cut(
            0,
            &transfer,
            &segments,
            &mut buffers,
            limits,
            &mut parts,
            &mut vectors,
        );
        let mut at = transfer.offset_bytes;
        let mut memory_used = Vec::new();
        let described = parts.iter().map(|part| {
            assert_eq!(part.offset_bytes, at, "one part begins where the last one ends");
            at += part.left_bytes;
            let own = &vectors[part.first_vector..part.first_vector + part.vector_count];
            memory_used.extend(
                own.iter()
                    .map(|vector| (vector.iov_base as usize, vector.iov_len)),
            );
            let lengths: Vec<usize> = own.iter().map(|vector| vector.iov_len).collect();
            assert_eq!(lengths.iter().sum::<usize>() as u64, part.left_bytes);
            (part.left_bytes, lengths)
        });
        let described: Vec<_> = described.collect();
        assert_eq!(at, transfer.offset_bytes + transfer.length_bytes);
        // All of the memory, each byte once, in order.
        let base = buffers[0].bytes().as_ptr() as usize;
        let mut wanted = segments.iter().flat_map(|segment| {
            let start = base + segment.offset_bytes as usize;
            start..start + segment.length_bytes as usize
        });
        for (address, length) in memory_used {
            assert!((address..address + length).all(|byte| wanted.next() == Some(byte)));
        }
        assert!(wanted.next().is_none());
        described
    }

    const SMALL: Limits = Limits {
        bytes: 16 << 10,
        vectors: 8,
        pages: 8,
    };

    #[test]
    fn what_is_longer_than_a_device_takes_is_cut() {
        let all = parts_of(&[(0, 40 << 10)], SMALL);
        assert_eq!(
            all,
            [(16384, vec![16384]), (16384, vec![16384]), (8192, vec![8192])]
        );
        // In the middle of a segment.
        let some = parts_of(&[(0, 12 << 10), (65536, 12 << 10)], SMALL);
        assert_eq!(some, [(16384, vec![12288, 4096]), (8192, vec![8192])]);
        assert_eq!(
            parts_of(&[(4096, 16 << 10)], SMALL).len(),
            1,
            "as long as it takes"
        );
    }

    #[test]
    fn a_part_has_no_more_pages_and_pieces_than_a_device_takes() {
        let few_pages = Limits {
            bytes: 1 << 20,
            vectors: 1024,
            pages: 3,
        };
        let all = parts_of(&[(0, 20 << 10)], few_pages);
        assert_eq!(all, [(12288, vec![12288]), (8192, vec![8192])]);
        let few_pieces = Limits { vectors: 2, ..SMALL };
        let pieces: Vec<(u32, u32)> = (0..5).map(|number| (number * 8192, 4096)).collect();
        let all = parts_of(&pieces, few_pieces);
        assert_eq!(
            all,
            [(8192, vec![4096; 2]), (8192, vec![4096; 2]), (4096, vec![4096])]
        );
    }

    #[test]
    fn files_take_a_thousand_pieces_of_any_length() {
        let pieces: Vec<(u32, u32)> = (0..1500u32).map(|number| (number % 256 * 4096, 4096)).collect();
        let all = parts_of(&pieces, Limits::FILE);
        assert_eq!(
            all.iter().map(|(_, vectors)| vectors.len()).collect::<Vec<_>>(),
            [1024, 476]
        );
        assert_eq!(parts_of(&[(0, 1 << 20)], Limits::FILE).len(), 1);
    }

    #[test]
    fn memory_that_is_not_aligned_is_cut_at_whole_blocks() {
        let few_pages = Limits {
            bytes: 1 << 20,
            vectors: 1024,
            pages: 3,
        };
        // Three pages hold two blocks then.
        let all = parts_of(&[(512, 20 << 10)], few_pages);
        assert_eq!(
            all.iter().map(|part| part.0).collect::<Vec<_>>(),
            [8192, 8192, 4096]
        );
        let one_page = Limits {
            pages: 1,
            ..few_pages
        };
        assert_eq!(parts_of(&[(512, 8 << 10)], one_page).len(), 2, "it ends");
    }

    #[test]
    fn ranges_are_cut_too() {
        let transfer = Transfer {
            device: DeviceIndex(0),
            offset_bytes: 4096,
            length_bytes: 40960,
            first_segment: 0,
            segment_count: 0,
        };
        let mut parts = Vec::new();
        cut_range(0, &transfer, 16384, &mut parts);
        let ranges: Vec<_> = parts
            .iter()
            .map(|part| (part.offset_bytes, part.left_bytes))
            .collect();
        assert_eq!(ranges, [(4096, 16384), (20480, 16384), (36864, 8192)]);
        // A flush is a part without length.
        let flush = Transfer {
            length_bytes: 0,
            ..transfer
        };
        parts.clear();
        cut_range(0, &flush, 16384, &mut parts);
        assert_eq!(parts.len(), 1);
    }
}
