//! A pool is damaged in one place at a time: the damage is told as what it is, and mended if it can be.

use super::super::check::*;
use super::rig::{BLOCK, LIVE, MemoryDevice, Pool, Rig, VOLUME, options};
use crate::ShardCommand;
use crate::command::EventKind;
use crate::ids::{DeviceAddress, Now, ShardIndex, SnapshotId};
use crate::ports::MemoryTail;
use crate::request::{RequestKind, View};
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::map_page::MapPage;
use stillpoint_ondisk::page::seal;
use zerocopy::{FromBytes, IntoBytes};

const POOL_BYTES: usize = 64 << 20;
const NOW: Now = Now {
    monotonic_ns: 9,
    wall_ns: 9_000,
};

/// What a killed process left.
struct Left {
    layout: Layout,
    device: MemoryDevice,
    tail: MemoryTail,
}

impl Left {
    fn check(&mut self, depth: Depth) -> CheckedShard {
        let before = self.device.bytes.clone();
        let checked = check_shard(
            &self.layout,
            ShardIndex(0),
            &mut self.device,
            &mut self.tail,
            depth,
            NOW,
        );
        assert!(self.device.bytes == before, "a check writes nothing");
        checked
    }

    /// The kinds of problems that a full check finds.
    fn kinds(&mut self) -> Vec<&'static str> {
        let report = self.check(Depth::Data).report;
        report.counts.iter().map(|(kind, _)| *kind).collect()
    }

    fn mend(&mut self) -> Vec<String> {
        let mends = self.check(Depth::Data).mends;
        carry_out(&mends, &mut self.device).expect("written");
        mends.into_iter().map(|mend| mend.what).collect()
    }

    fn open(self) -> Rig {
        Rig::open(self.layout, self.device, self.tail, options())
    }

    fn page(&mut self, block: u64) -> &mut [u8] {
        &mut self.device.bytes[block as usize * BLOCK..][..BLOCK]
    }

    fn flip(&mut self, block: u64) {
        self.page(block)[777] ^= 0x10;
    }

    fn header(&self, copy: u64) -> ShardHeader {
        let block = self.layout.header_block(0, copy) as usize;
        let bytes = &self.device.bytes[block * BLOCK..][..BLOCK];
        ShardHeader::parse(bytes, self.layout.pool, 0).expect("sound")
    }

    /// The copy of the header that counts.
    fn root_copy(&self) -> u64 {
        u64::from(self.header(1).generation.get() > self.header(0).generation.get())
    }

    /// Blocks of map leaves that say of themselves that they cover share block 0.
    fn first_leaves(&self) -> Vec<u64> {
        let start = self.layout.data_start_block(0, 0);
        let end = self.layout.label_copy_block(0);
        let is_leaf = |block: &u64| {
            let bytes = &self.device.bytes[*block as usize * BLOCK..][..BLOCK];
            let verified = stillpoint_ondisk::page::verify(
                bytes,
                stillpoint_ondisk::PageKind::Map,
                Some(self.layout.pool),
            );
            let page = MapPage::ref_from_bytes(bytes).expect("a page");
            verified.is_ok() && page.level == 0 && page.index.get() == 0 && page.volume.get() == VOLUME.0
        };
        (start..end).filter(is_leaf).collect()
    }
}

pub(super) fn pattern(seed: u8) -> Vec<u8> {
    (0..BLOCK).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect()
}

/// Two snapshots, one that is being freed, discards, overwrites, a log that was not checkpointed and a log tail.
pub(super) fn worked() -> Rig {
    let mut rig = Rig::new(POOL_BYTES);
    for block in 0..700 {
        rig.write(block * BLOCK, &pattern(block as u8));
    }
    rig.snapshot(1);
    for block in 100..400 {
        rig.write(block * BLOCK, &pattern(block as u8 ^ 0x55));
    }
    rig.snapshot(2);
    let discard = rig.ask(
        LIVE,
        RequestKind::Discard { fua: false },
        500 * BLOCK,
        50 * BLOCK,
        None,
    );
    assert_eq!(discard.result, Ok(()));
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    rig.write(300_000 * BLOCK, &pattern(9));
    for block in 0..20 {
        rig.write(block * BLOCK, &pattern(block as u8 ^ 0xAA));
    }
    rig
}

fn left(rig: Rig) -> Left {
    let (device, mut shards) = rig.processor.into_parts(&mut Pool::default());
    Left {
        layout: rig.layout,
        device: MemoryDevice {
            bytes: device.bytes,
            ..MemoryDevice::default()
        },
        tail: shards.pop().expect("one shard").into_tail(),
    }
}

/// What was checkpointed, with nothing in the log behind it.
fn at_rest() -> Left {
    let mut rig = worked();
    for _ in 0..2 {
        assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
        rig.settle();
    }
    left(rig)
}

fn expect_content(rig: &mut Rig) {
    assert!(rig.read(LIVE, 0, BLOCK) == pattern(0xAA));
    expect_content_but_first(rig);
}

/// What [`worked`] wrote, without the first block.
fn expect_content_but_first(rig: &mut Rig) {
    for block in [3, 19, 20, 99, 100, 399, 400, 499, 699] {
        let seed = match block {
            0..20 => block as u8 ^ 0xAA,
            100..400 => block as u8 ^ 0x55,
            _ => block as u8,
        };
        assert!(
            rig.read(LIVE, block * BLOCK, BLOCK) == pattern(seed),
            "block {block}"
        );
    }
    assert!(rig.read(LIVE, 520 * BLOCK, BLOCK) == [0; BLOCK]);
    assert!(rig.read(LIVE, 300_000 * BLOCK, BLOCK) == pattern(9));
    let first = View {
        volume: VOLUME,
        snapshot: Some(SnapshotId(1)),
    };
    assert!(rig.read(first, 150 * BLOCK, BLOCK) == pattern(150));
}

#[test]
fn a_killed_shard_is_clean_with_its_log_and_its_tail() {
    let mut left = left(worked());
    let checked = left.check(Depth::Data);
    assert!(checked.report.problems.is_empty(), "{}", checked.report);
    assert!(checked.mends.is_empty());
    let figures = checked.report.figures;
    assert_eq!(figures.tail_records + figures.log_records, 21);
    assert_eq!(figures.data_blocks, figures.verified_blocks);
    // 700 blocks, 300 of them and 20 of them in two versions, and one far away.
    assert_eq!(figures.data_blocks, 700 + 300 + 20 + 1);
    let found = checked.found.expect("told");
    assert_eq!(found.volumes[0].mapped_blocks, 700 - 50 + 1);
    assert_eq!(found.snapshots[0].1.len(), 2);
    let metadata = left.check(Depth::Metadata).report.figures;
    assert_eq!((metadata.data_blocks, metadata.verified_blocks), (1021, 0));
    // Without the tail the records are not there, and nothing else is wrong.
    left.tail = MemoryTail::default();
    assert!(left.check(Depth::Data).report.is_clean());
}

#[test]
fn an_open_shard_is_clean_after_every_kind_of_work() {
    let mut rig = worked().kill();
    for step in 0..6 {
        match step {
            0 => {}
            1 => {
                let snapshot = SnapshotId(1);
                let delete = ShardCommand::DeleteSnapshot {
                    volume: VOLUME,
                    snapshot,
                };
                assert_eq!(rig.command(delete), EventKind::Done);
            }
            2 => rig.settle(),
            3 => {
                let resize = ShardCommand::ResizeVolume {
                    volume: VOLUME,
                    share_blocks: 300,
                };
                assert_eq!(rig.command(resize), EventKind::Done);
            }
            4 => {
                assert_eq!(
                    rig.command(ShardCommand::DeleteVolume { volume: VOLUME }),
                    EventKind::Done
                );
            }
            _ => rig.settle(),
        }
        let mut left = left(rig);
        let report = left.check(Depth::Data).report;
        assert!(report.problems.is_empty(), "step {step}: {report}");
        rig = left.open();
        let (mut device, mut shards) = rig.processor.into_parts(&mut Pool::default());
        let report = shards[0].check(&mut device, true);
        assert!(report.problems.is_empty(), "step {step}, opened: {report}");
        let (layout, tail) = (rig.layout, shards.pop().expect("one shard").into_tail());
        rig = Left { layout, device, tail }.open();
    }
}

#[test]
fn a_flipped_bit_of_data_is_told_with_everyone_who_sees_it() {
    let mut left = at_rest();
    let leaf = left.first_leaves()[0];
    let page = MapPage::read_from_bytes(left.page(leaf)).expect("a page");
    let place = DeviceAddress(page.entries[50].address());
    left.flip(place.block());
    let checked = left.check(Depth::Data);
    let [Problem::Data { used, address, .. }] = &checked.report.problems[..] else {
        panic!("{}", checked.report)
    };
    assert_eq!(*address, place);
    let Use::Block { views, block } = used else {
        panic!("{used:?}")
    };
    assert_eq!(
        (views.len(), block.0),
        (3, 50),
        "two snapshots and the volume: {views:?}"
    );
    assert!(checked.mends.is_empty(), "data is nowhere else");
    assert!(
        left.check(Depth::Metadata).report.is_clean(),
        "data is not looked at"
    );
}

#[test]
fn a_damaged_map_page_is_told_and_nothing_is_freed_because_of_it() {
    let mut left = at_rest();
    for leaf in left.first_leaves() {
        left.flip(leaf);
    }
    let checked = left.check(Depth::Data);
    assert!(checked.report.has("map_page"), "{}", checked.report);
    assert!(checked.mends.is_empty(), "what the page refers to is not known");
    assert!(!checked.report.has("leaked"), "{}", checked.report);
}

#[test]
fn a_damaged_copy_of_the_header_is_written_from_the_other() {
    let mut left = at_rest();
    let spare = 1 - left.root_copy();
    left.flip(left.layout.header_block(0, spare));
    assert_eq!(left.kinds(), ["shard_header"]);
    left.mend();
    assert_eq!(left.kinds(), [] as [&str; 0]);
    expect_content(&mut left.open());
}

#[test]
fn without_a_sound_header_nothing_can_be_done() {
    let mut left = at_rest();
    for copy in 0..2 {
        left.flip(left.layout.header_block(0, copy));
    }
    let checked = left.check(Depth::Data);
    assert!(checked.report.has("root") && checked.mends.is_empty() && checked.found.is_none());
}

#[test]
fn a_damaged_bitmap_is_written_from_the_maps() {
    let mut left = at_rest();
    for slot in 0..2 {
        left.flip(left.layout.bitmap_block(0, 0, 0, slot));
    }
    assert_eq!(left.kinds(), ["bitmap"]);
    let mut other = left.check(Depth::Data);
    assert_eq!(
        other.report.figures.verified_blocks,
        other.report.figures.data_blocks
    );
    other.mends.clear();
    left.mend();
    assert_eq!(left.kinds(), [] as [&str; 0]);
    expect_content(&mut left.open());
}

#[test]
fn a_bitmap_is_mended_below_a_log_that_is_not_checkpointed() {
    let mut left = left(worked());
    for slot in 0..2 {
        left.flip(left.layout.bitmap_block(0, 0, 0, slot));
    }
    assert_eq!(left.kinds(), ["bitmap"]);
    left.mend();
    assert_eq!(left.kinds(), [] as [&str; 0]);
    let mut rig = left.open();
    expect_content(&mut rig);
    let used = rig.used_blocks();
    assert_eq!(used, worked().used_blocks(), "nothing leaked");
}

/// Changes the bits of the bitmap that counts, and seals it again.
fn set_bit(left: &mut Left, block: u64, used: bool) {
    let bit = (block - left.layout.slice_start_block(0, 0)) as usize;
    for slot in 0..2 {
        let at = left.layout.bitmap_block(0, 0, 0, slot);
        let page = left.page(at);
        if page[..7] != *b"STILLPT" {
            continue;
        }
        let byte = &mut page[64 + bit / 8];
        *byte = *byte & !(1 << (bit % 8)) | u8::from(used) << (bit % 8);
        seal(page);
    }
    reseal_headers(left);
}

/// The header says which bitmap pages it counts on, or (0) does not.
fn reseal_headers(left: &mut Left) {
    for copy in 0..2 {
        let mut header = left.header(copy);
        header.bitmap_check = 0.into();
        seal(header.as_mut_bytes());
        let block = left.layout.header_block(0, copy);
        left.page(block).copy_from_slice(header.as_bytes());
    }
}

#[test]
fn leaked_blocks_are_counted_and_freed() {
    let mut left = at_rest();
    let free_at_end = left.layout.label_copy_block(0) - 9;
    for block in [0, 1, 2, 5] {
        set_bit(&mut left, free_at_end + block, true);
    }
    let checked = left.check(Depth::Metadata);
    assert_eq!(checked.report.count("leaked"), 4, "{}", checked.report);
    assert_eq!(checked.report.problems.len(), 2, "two runs: {}", checked.report);
    left.mend();
    assert_eq!(left.kinds(), [] as [&str; 0]);
    let used = left.open().used_blocks();
    assert_eq!(used, at_rest().open().used_blocks());
}

#[test]
fn blocks_in_use_that_count_as_free_are_told_and_marked() {
    let mut left = at_rest();
    let leaf = left.first_leaves()[0];
    let page = MapPage::read_from_bytes(left.page(leaf)).expect("a page");
    set_bit(
        &mut left,
        DeviceAddress(page.entries[50].address()).block(),
        false,
    );
    assert_eq!(left.kinds(), ["unmarked"]);
    left.mend();
    assert_eq!(left.kinds(), [] as [&str; 0]);
    expect_content(&mut left.open());
}

#[test]
fn a_block_that_is_used_twice_is_told_with_both_uses() {
    let mut left = at_rest();
    let leaves = left.first_leaves();
    for leaf in leaves {
        let mut page = MapPage::read_from_bytes(left.page(leaf)).expect("a page");
        page.entries[60] = page.entries[61];
        seal(page.as_mut_bytes());
        left.page(leaf).copy_from_slice(page.as_bytes());
    }
    let checked = left.check(Depth::Metadata);
    let doubles: Vec<_> = checked
        .report
        .problems
        .iter()
        .filter_map(|problem| match problem {
            Problem::DoublyUsed { uses, .. } => Some(uses.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(doubles.len(), 1, "{}", checked.report);
    let blocks: Vec<u64> = doubles[0]
        .iter()
        .map(|used| match used {
            Use::Block { block, .. } => block.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(blocks, [60, 61]);
    // The block that used to be there is used by nobody now.
    assert_eq!(checked.report.count("leaked"), 1, "{}", checked.report);
    let text = format!("{}", checked.report);
    assert!(
        text.contains("used more than once") && text.contains("block 61"),
        "{text}"
    );
}

#[test]
fn a_damaged_directory_ends_the_check_of_its_shard() {
    let mut left = at_rest();
    let root = left.header(left.root_copy());
    left.flip(DeviceAddress(root.directory_index[0].address()).block());
    let checked = left.check(Depth::Data);
    assert_eq!(checked.report.problems.len(), 1, "{}", checked.report);
    assert!(checked.report.has("root") && checked.mends.is_empty());
}

#[test]
fn a_log_that_breaks_off_is_cut_only_if_that_is_asked_for() {
    let mut rig = worked();
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    rig.settle();
    for round in 0..4 {
        rig.write(round * BLOCK, &pattern(0xC0 + round as u8));
        let flush = rig.ask(LIVE, RequestKind::Flush, 0, 0, None);
        assert_eq!(flush.result, Ok(()));
    }
    let mut left = left(rig);
    left.tail = MemoryTail::default();
    let root = left.header(left.root_copy());
    let ring = u64::from(left.layout.log_pages);
    let second = (root.log_sequence.get() + 1) % ring;
    left.flip(left.layout.log_start_block(0) + second);
    let checked = left.check(Depth::Data);
    assert_eq!(left.kinds(), ["log"], "{}", checked.report);
    let [mend] = &checked.mends[..] else {
        panic!("{:?}", checked.mends)
    };
    assert!(mend.loses && mend.what.contains("are lost"), "{}", mend.what);
    carry_out(&checked.mends, &mut left.device).expect("written");
    assert_eq!(left.kinds(), [] as [&str; 0]);
    let mut rig = left.open();
    assert!(rig.read(LIVE, 0, BLOCK) == pattern(0xC0), "before the damage");
    assert!(rig.read(LIVE, BLOCK, BLOCK) == pattern(1 ^ 0xAA), "behind it");
    expect_content_but_first(&mut rig);
}

#[test]
fn deleted_by_the_log_a_snapshot_is_gone_when_the_shard_is_opened() {
    let mut left = left(worked());
    let before = left.check(Depth::Structures).found.expect("told").snapshots[0]
        .1
        .len();
    let gone = [(VOLUME, SnapshotId(1))];
    delete_snapshots(
        &left.layout,
        ShardIndex(0),
        &mut left.device,
        &mut left.tail,
        &gone,
        NOW,
    )
    .expect("logged");
    let checked = left.check(Depth::Data);
    assert!(checked.report.problems.is_empty(), "{}", checked.report);
    let after = checked.found.expect("told").snapshots[0].1.clone();
    assert_eq!((before, after.len()), (2, 2), "it is there until it is freed");
    assert!(after[0].deleting && !after[1].deleting);
    let mut rig = left.open();
    rig.settle();
    assert_eq!(rig.read(LIVE, 0, BLOCK), pattern(0xAA));
    assert_eq!(rig.processor.shards()[0].status().volumes[0].snapshots, 1);
}
