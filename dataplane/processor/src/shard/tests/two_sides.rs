//! Opening a shard whose devices have two sides, after a crash that left them different.

use proptest::collection::vec;
use proptest::prelude::*;
use stillpoint_ondisk::stale::{StalePage, region_blocks};
use zerocopy::IntoBytes;

use super::rig::*;
use super::*;
use crate::format::{PoolSpec, make_pool};
use crate::mirror::{MirroredOpener, SideFailed, Sides};
use crate::ports::{MemoryTail, OpenDevice, Side, Transferred};

const POOL_BYTES: usize = 16 << 20;
const BLOCKS: usize = 24;

/// Two sides in memory.
struct TwoSides {
    bytes: [Vec<u8>; 2],
    /// A side that cannot be written.
    read_only: Option<usize>,
    /// Blocks that a side cannot read.
    unreadable: [Vec<u64>; 2],
    writes: usize,
}

impl TwoSides {
    fn new(bytes: [Vec<u8>; 2]) -> Self {
        Self {
            bytes,
            read_only: None,
            unreadable: [Vec::new(), Vec::new()],
            writes: 0,
        }
    }
}

impl OpenDevice for TwoSides {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        for read in reads {
            let side = usize::from(read.device.0);
            let first = read.offset_bytes / BLOCK as u64;
            let blocks = first..first + (read.bytes.len() / BLOCK) as u64;
            if self.unreadable[side].iter().any(|block| blocks.contains(block)) {
                read.result = Err(DeviceError::Os(5));
                continue;
            }
            let at = read.offset_bytes as usize;
            read.bytes
                .copy_from_slice(&self.bytes[side][at..at + read.bytes.len()]);
        }
    }

    fn write(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let side = usize::from(device.0);
        if self.read_only == Some(side) {
            return Err(DeviceError::Os(5));
        }
        self.writes += 1;
        self.bytes[side][offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self, _device: DeviceIndex) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// An empty pool of one shard: its layout and what one side holds. The sides differ in their labels alone.
pub(super) fn made() -> (Layout, Vec<u8>) {
    let mut sides = TwoSides::new([vec![0; POOL_BYTES], vec![0; POOL_BYTES]]);
    let spec = PoolSpec {
        pool: [3; 16],
        name: String::from("test"),
        shard_count: 1,
        created_ns: 1,
        devices: vec![([1; 16], (POOL_BYTES / BLOCK) as u64)],
        second_sides: vec![[2; 16]],
    };
    let layout = make_pool(&mut sides, &spec).expect("a pool");
    let [first, second] = sides.bytes;
    let labels = [0..BLOCK, POOL_BYTES - BLOCK..POOL_BYTES];
    let differ = |at: &usize| first[*at] != second[*at];
    let elsewhere = (0..POOL_BYTES).filter(differ);
    assert!(
        elsewhere
            .into_iter()
            .all(|at| labels.iter().any(|label| label.contains(&at))),
        "only the labels are not the same"
    );
    (layout, first)
}

fn open_mirrored(
    layout: &Layout,
    sides: TwoSides,
    states: Sides,
    preferred: Side,
) -> (RecoveryReport, Result<TwoSides, SideFailed>) {
    open_mirrored_with(layout, sides, states, preferred, MemoryTail::default())
}

fn open_mirrored_with(
    layout: &Layout,
    sides: TwoSides,
    states: Sides,
    preferred: Side,
    tail: MemoryTail,
) -> (RecoveryReport, Result<TwoSides, SideFailed>) {
    let mut opener = MirroredOpener::new(sides, layout, ShardIndex(0), vec![states], preferred);
    let now = Now {
        monotonic_ns: 1,
        wall_ns: 77_000,
    };
    let opened = Shard::open(layout, ShardIndex(0), &mut opener, tail, options(), now);
    let (_, report) = opened.expect("opens");
    let settled = opener.settle();
    (report, settled)
}

fn content_of(layout: &Layout, bytes: Vec<u8>) -> Vec<u8> {
    let device = MemoryDevice {
        bytes,
        ..MemoryDevice::default()
    };
    let mut rig = Rig::open(layout.clone(), device, MemoryTail::default(), options());
    rig.read(LIVE, 0, BLOCKS * BLOCK)
}

/// Writes that were not flushed: where, what was there, what came.
type Unflushed = Vec<(usize, Vec<u8>, Vec<u8>)>;

/// Runs `writes` (block, fill; a flush after those that say so) on one device; gives what was durable there, the writes that were
/// not flushed, and the content as of the last flush.
fn life(layout: &Layout, bytes: Vec<u8>, writes: &[(usize, u8, bool)]) -> (Vec<u8>, Unflushed, Vec<u8>) {
    let lived = life_with_tail(layout, bytes, writes);
    (lived.durable_bytes, lived.unflushed, lived.durable)
}

/// What a life leaves.
struct Lived {
    durable_bytes: Vec<u8>,
    unflushed: Unflushed,
    /// The content as of the last flush, and in the end.
    durable: Vec<u8>,
    content: Vec<u8>,
    tail: MemoryTail,
}

/// The same; also the content in the end, and the log tail.
fn life_with_tail(layout: &Layout, bytes: Vec<u8>, writes: &[(usize, u8, bool)]) -> Lived {
    let device = MemoryDevice {
        bytes,
        unflushed: Some(Vec::new()),
        ..MemoryDevice::default()
    };
    let mut rig = Rig::open(layout.clone(), device, MemoryTail::default(), options());
    let made = rig.command(ShardCommand::CreateVolume {
        volume: VOLUME,
        share_blocks: 1 << 10,
    });
    assert_eq!(made, EventKind::Done);
    let flush = |rig: &mut Rig| assert_eq!(rig.ask(LIVE, RequestKind::Flush, 0, 0, None).result, Ok(()));
    flush(&mut rig);
    let (mut content, mut durable) = (vec![0; BLOCKS * BLOCK], vec![0; BLOCKS * BLOCK]);
    for &(block, fill, flushed) in writes {
        content[block * BLOCK..][..BLOCK].fill(fill);
        rig.write(block * BLOCK, &vec![fill; BLOCK]);
        if flushed {
            flush(&mut rig);
            durable.clone_from(&content);
        }
    }
    let (mut device, mut shards) = rig.processor.into_parts(&mut Pool::default());
    let tail = shards.pop().expect("one shard").into_tail();
    let unflushed = device.unflushed.take().expect("writes are remembered");
    for (at, before, _) in unflushed.iter().rev() {
        device.bytes[*at..at + before.len()].copy_from_slice(before);
    }
    Lived {
        durable_bytes: device.bytes,
        unflushed,
        durable,
        content,
        tail,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Of what was not flushed, each side has kept something else.
    #[test]
    fn what_a_crash_left_different_is_the_same_when_the_shard_is_open(
        writes in vec((0..BLOCKS, 1..255u8, prop::bool::weighted(0.2)), 1..40),
        kept in [vec(any::<bool>(), 64), vec(any::<bool>(), 64)],
        second in any::<bool>(),
    ) {
        let (layout, empty) = made();
        let (durable_bytes, unflushed, durable) = life(&layout, empty, &writes);
        let side = |kept: &[bool]| {
            let mut bytes = durable_bytes.clone();
            for ((at, _, after), _) in unflushed.iter().zip(kept.iter().cycle()).filter(|(_, kept)| **kept) {
                bytes[*at..at + after.len()].copy_from_slice(after);
            }
            bytes
        };
        let sides = TwoSides::new([side(&kept[0]), side(&kept[1])]);
        let preferred = if second { Side::Second } else { Side::First };
        let (_, settled) = open_mirrored(&layout, sides, Sides::Both, preferred);
        let [first, second] = settled.expect("both can be written").bytes;
        let seen = content_of(&layout, first);
        prop_assert!(seen == content_of(&layout, second), "each side alone shows the same");
        for (block, (found, durable)) in seen.chunks(BLOCK).zip(durable.chunks(BLOCK)).enumerate() {
            let fill = found[0];
            prop_assert!(found.iter().all(|byte| *byte == fill), "block {block} is a mixture");
            let later = writes.iter().any(|(at, written, _)| (*at, *written) == (block, fill));
            prop_assert!(fill == durable[0] || later, "block {block} has {fill}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The process was killed, and at the same moment one side lost what was in its cache. The tail fits: no power was lost, as far as
    /// it can tell. Everything that was acknowledged is on the other side.
    #[test]
    fn what_a_side_lost_with_its_cache_beside_a_kill_comes_from_the_other(
        writes in vec((0..BLOCKS, 1..255u8, prop::bool::weighted(0.2)), 1..40),
        kept in vec(any::<bool>(), 64),
        loser in any::<bool>(),
        second in any::<bool>(),
    ) {
        let (layout, empty) = made();
        let Lived { durable_bytes, unflushed, content, tail, .. } = life_with_tail(&layout, empty, &writes);
        let loser = usize::from(loser);
        let side = |number: usize| {
            let mut bytes = durable_bytes.clone();
            for ((at, _, after), kept) in unflushed.iter().zip(kept.iter().cycle()) {
                if number != loser || *kept {
                    bytes[*at..at + after.len()].copy_from_slice(after);
                }
            }
            bytes
        };
        let sides = TwoSides::new([side(0), side(1)]);
        let preferred = if second { Side::Second } else { Side::First };
        let (report, settled) = open_mirrored_with(&layout, sides, Sides::Both, preferred, tail);
        prop_assert!(report.tail_fitted && report.dropped_blocks == 0, "{report:?}");
        for bytes in settled.expect("both can be written").bytes {
            prop_assert!(content_of(&layout, bytes) == content, "each side alone has all that was acknowledged");
        }
    }
}

#[test]
fn what_neither_side_has_any_more_of_what_was_acknowledged_is_an_error() {
    let (layout, empty) = made();
    let writes = [(3, 7, true), (4, 8, false)];
    let Lived {
        durable_bytes,
        unflushed,
        tail,
        ..
    } = life_with_tail(&layout, empty, &writes);
    assert!(!unflushed.is_empty());
    let sides = TwoSides::new([durable_bytes.clone(), durable_bytes]);
    let (report, settled) = open_mirrored_with(&layout, sides, Sides::Both, Side::First, tail.clone());
    assert_eq!(
        (report.verified_blocks, report.dropped_blocks),
        (2, 0),
        "{report:?}"
    );
    for bytes in settled.expect("both can be written").bytes {
        let device = MemoryDevice {
            bytes,
            ..MemoryDevice::default()
        };
        let mut rig = Rig::open(layout.clone(), device, tail.clone(), options());
        assert_eq!(rig.read(LIVE, 3 * BLOCK, BLOCK)[0], 7);
        let read = rig.ask(LIVE, RequestKind::Read, 4 * BLOCK, BLOCK, None);
        assert!(read.result.is_err(), "older content would be a silent loss");
    }
}

/// Copies the regions that a page says are stale.
fn copy_stale(layout: &Layout, page: &StalePage, from: &[u8], to: &mut [u8]) -> u64 {
    let slice_blocks = layout.devices[0].slice_blocks;
    let of_region = region_blocks(slice_blocks);
    let start = layout.slice_start_block(0, 0);
    let mut copied = 0;
    for region in 0..slice_blocks.div_ceil(of_region) {
        let word = page.words[(region / 64) as usize].get();
        if word >> (region % 64) & 1 == 1 {
            let end = ((region + 1) * of_region).min(slice_blocks);
            let bytes = (start + region * of_region) as usize * BLOCK..(start + end) as usize * BLOCK;
            to[bytes.clone()].copy_from_slice(&from[bytes]);
            copied += 1;
        }
    }
    copied
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A crash left the sides different, and one of them is missing then. When it is back and was copied what is noted, it shows the
    /// same as the other, which recovered alone.
    #[test]
    fn what_a_side_may_lack_that_is_missing_at_the_start_is_noted(
        writes in vec((0..BLOCKS, 1..255u8, prop::bool::weighted(0.2)), 1..40),
        kept in [vec(any::<bool>(), 64), vec(any::<bool>(), 64)],
        second in any::<bool>(),
    ) {
        const EPISODE: u64 = 9;
        let (layout, empty) = made();
        let (durable_bytes, unflushed, _) = life(&layout, empty, &writes);
        let side = |kept: &[bool]| {
            let mut bytes = durable_bytes.clone();
            for ((at, _, after), _) in unflushed.iter().zip(kept.iter().cycle()).filter(|(_, kept)| **kept) {
                bytes[*at..at + after.len()].copy_from_slice(after);
            }
            bytes
        };
        let mut bytes = kept.map(|kept| side(&kept));
        let there = if second { Side::Second } else { Side::First };
        let mut missing = core::mem::take(&mut bytes[there.other().index()]);
        let only = Sides::Only { side: there, episode: EPISODE, begins: true };
        let (_, settled) = open_mirrored(&layout, TwoSides::new(bytes), only, Side::First);
        let mut bytes = settled.expect("it can be written").bytes;
        let whole = core::mem::take(&mut bytes[there.index()]);
        let at = layout.stale_block(0) as usize * BLOCK;
        let slice_blocks = layout.devices[0].slice_blocks;
        let page = StalePage::parse(&whole[at..at + BLOCK], [3; 16], EPISODE, 0, 0, slice_blocks);
        let copied = copy_stale(&layout, &page.expect("a page of this episode"), &whole, &mut missing);
        prop_assert!(copied < slice_blocks / region_blocks(slice_blocks) / 2, "{copied} regions are not little");
        prop_assert!(content_of(&layout, whole) == content_of(&layout, missing), "each side alone shows the same");
    }
}

#[test]
fn what_one_side_cannot_read_or_has_lost_comes_from_the_other() {
    let (layout, empty) = made();
    let (bytes, ..) = life(&layout, empty, &[(3, 7, true)]);
    let header = layout.header_block(0, 1);
    let log = layout.log_start_block(0);
    for preferred in Side::BOTH {
        let mut sides = TwoSides::new([bytes.clone(), bytes.clone()]);
        sides.unreadable[0] = vec![header];
        // Bits that flipped in the log of the other.
        sides.bytes[1][log as usize * BLOCK + 100] ^= 4;
        let (_, settled) = open_mirrored(&layout, sides, Sides::Both, preferred);
        let sides = settled.expect("both can be written");
        assert!(sides.bytes[0] == sides.bytes[1], "the same again");
        assert_eq!(content_of(&layout, sides.bytes[1].clone())[3 * BLOCK], 7);
    }
}

#[test]
fn a_side_that_cannot_be_mended_is_named() {
    let (layout, empty) = made();
    let (bytes, ..) = life(&layout, empty, &[(3, 7, true)]);
    let mut sides = TwoSides::new([bytes.clone(), bytes]);
    sides.bytes[1][layout.log_start_block(0) as usize * BLOCK + 100] ^= 4;
    sides.read_only = Some(1);
    let (_, settled) = open_mirrored(&layout, sides, Sides::Both, Side::First);
    let failed = settled.err().expect("the second side cannot be written");
    assert_eq!((failed.at.device, failed.at.side), (DeviceIndex(0), Side::Second));
}

#[test]
fn opening_with_one_side_touches_the_other_not_and_notes_what_it_lacks() {
    const EPISODE: u64 = 5;
    let only = Sides::Only {
        side: Side::Second,
        episode: EPISODE,
        begins: false,
    };
    let (layout, empty) = made();
    let page_of = |bytes: &[u8]| {
        let at = layout.stale_block(0) as usize * BLOCK;
        let slice_blocks = layout.devices[0].slice_blocks;
        StalePage::parse(&bytes[at..at + BLOCK], [3; 16], EPISODE, 0, 0, slice_blocks)
    };
    let mut bytes = empty.clone();
    let slice_blocks = layout.devices[0].slice_blocks;
    let mut page = StalePage::new([3; 16], EPISODE, 0, 0, slice_blocks);
    stillpoint_ondisk::page::seal(page.as_mut_bytes());
    let at = layout.stale_block(0) as usize * BLOCK;
    bytes[at..at + BLOCK].copy_from_slice(page.as_bytes());
    let sides = TwoSides::new([Vec::new(), bytes]);
    // What a tail brings back is written to the log; the page says so.
    let mut opener = MirroredOpener::new(sides, &layout, ShardIndex(0), vec![only], Side::First);
    let log = layout.log_start_block(0) * BLOCK as u64;
    opener.write(DeviceIndex(0), log, &[9; BLOCK]).expect("written");
    let sides = opener.settle().expect("it can be written");
    let page = page_of(&sides.bytes[1]).expect("a page of this episode");
    let regions: u32 = page.words.iter().map(|word| word.get().count_ones()).sum();
    assert_eq!(regions, 1);
    // Without a page nobody knows what it lacks, and nobody says so.
    let (bytes, ..) = life(&layout, empty, &[(3, 7, true)]);
    let (_, settled) = open_mirrored(&layout, TwoSides::new([Vec::new(), bytes]), only, Side::First);
    assert!(page_of(&settled.expect("it can be written").bytes[1]).is_err());
}
