//! Damage that a device does without saying so: rot, and writes that never happened. It must be told from what a
//! crash leaves behind.

use stillpoint_ondisk::log::LogPage;
use stillpoint_ondisk::page;

use super::*;

/// What the next process finds: the layout, the device, the log tail.
struct Found {
    layout: Layout,
    device: MemoryDevice,
    tail: MemoryTail,
}

impl Found {
    fn of(rig: Rig) -> Self {
        let layout = rig.layout.clone();
        let (device, mut shards) = rig.processor.into_parts(&mut Pool::default());
        let tail = shards.pop().expect("one shard").into_tail();
        Self { layout, device, tail }
    }

    fn without_tail(mut self) -> Self {
        self.tail = MemoryTail::default();
        self
    }

    fn with_bytes(&self, bytes: Vec<u8>) -> Self {
        let device = MemoryDevice {
            bytes,
            ..MemoryDevice::default()
        };
        Self {
            layout: self.layout.clone(),
            device,
            tail: MemoryTail::default(),
        }
    }

    /// Places of the sound log pages, by sequence.
    fn log_pages(&self) -> Vec<usize> {
        let start = self.layout.log_start_block(0) as usize;
        let mut pages: Vec<(u64, usize)> = (start..start + self.layout.log_pages as usize)
            .filter_map(|block| {
                let page = LogPage::any(&self.device.bytes[block * BLOCK..][..BLOCK], self.layout.pool, 0)?;
                Some((page.sequence.get(), block * BLOCK))
            })
            .collect();
        pages.sort_unstable();
        pages.into_iter().map(|(_, at)| at).collect()
    }

    /// The first block of the device that holds this.
    fn block_of(&self, content: [u8; BLOCK]) -> usize {
        let mut blocks = self.device.bytes.chunks_exact(BLOCK);
        blocks.position(|block| block == content).expect("it was written")
    }

    fn open(mut self) -> Result<Rig, OpenError> {
        let now = Now::default();
        Shard::open(
            &self.layout,
            ShardIndex(0),
            &mut self.device,
            self.tail.clone(),
            options(),
            now,
        )?;
        let device = MemoryDevice {
            bytes: self.device.bytes,
            ..MemoryDevice::default()
        };
        Ok(Rig::open(self.layout, device, self.tail, options()))
    }
}

fn flush(rig: &mut Rig) {
    let answer = rig.ask(LIVE, RequestKind::Flush, 0, 0, None);
    assert_eq!(answer.result, Ok(()));
}

/// A rig that has made a checkpoint and then five flushed writes, a log page each.
fn rig_with_a_log() -> Rig {
    let mut rig = Rig::new(64 << 20);
    rig.used_blocks();
    for number in 0..5 {
        rig.write(number * BLOCK, &[number as u8 + 1; BLOCK]);
        flush(&mut rig);
    }
    rig
}

fn wait_for_the_mark(rig: &mut Rig) {
    let due_ns = rig
        .processor
        .next_deadline_ns()
        .expect("the last flush is to be marked");
    rig.now.monotonic_ns = due_ns;
    rig.settle();
    assert_eq!(rig.processor.next_deadline_ns(), None, "once");
}

#[test]
fn a_damaged_page_in_the_middle_of_the_log_is_not_its_end() {
    let pages = Found::of(rig_with_a_log()).log_pages();
    // The last page but one is the last that another page calls durable.
    for &at in &pages[pages.len() - 5..pages.len() - 1] {
        let mut found = Found::of(rig_with_a_log()).without_tail();
        found.device.bytes[at + 100] ^= 1;
        let opened = found.open().map(drop);
        assert!(
            matches!(opened, Err(OpenError::LogLost { tail: false, .. })),
            "{at}: {opened:?}"
        );
    }
}

#[test]
fn damage_to_the_last_flushed_page_is_told_by_the_mark_after_it() {
    let mut rig = rig_with_a_log();
    wait_for_the_mark(&mut rig);
    let mut found = Found::of(rig).without_tail();
    let pages = found.log_pages();
    let (last, mark) = (pages[pages.len() - 2], pages[pages.len() - 1]);
    let sound = found.device.bytes.clone();
    found.device.bytes[last + 100] ^= 1;
    let opened = found.with_bytes(found.device.bytes.clone()).open().map(drop);
    assert!(matches!(opened, Err(OpenError::LogLost { .. })), "{opened:?}");
    // The mark itself holds no record, and nothing is lost with it.
    let mut found = found.with_bytes(sound);
    found.device.bytes[mark + 100] ^= 1;
    let mut rig = found.open().expect("opens");
    assert_eq!(rig.read(LIVE, 4 * BLOCK, BLOCK), [5; BLOCK]);
}

#[test]
fn after_a_kill_the_log_tail_stands_in_for_the_last_page() {
    let mut found = Found::of(rig_with_a_log());
    let last = *found.log_pages().last().expect("pages");
    found.device.bytes[last + 100] ^= 1;
    let mut rig = found.open().expect("opens");
    for number in 0..5 {
        assert_eq!(rig.read(LIVE, number * BLOCK, BLOCK), [number as u8 + 1; BLOCK]);
    }
}

#[test]
fn after_a_kill_the_log_tail_tells_that_a_page_before_it_is_damaged() {
    let mut rig = Rig::new(64 << 20);
    rig.used_blocks();
    let pages = |rig: &Rig| rig.processor.shards()[0].status().log_pages;
    let before = pages(&rig);
    // Records that fill the tail's segments twice and are written without a flush.
    for number in 0..6000 {
        rig.write(number % 500 * BLOCK, &[number as u8; BLOCK]);
    }
    rig.settle();
    assert!(pages(&rig) > before + 60, "{} pages", pages(&rig) - before);
    let mut found = Found::of(rig);
    let written = found.log_pages();
    found.device.bytes[written[written.len() - 60] + 100] ^= 1;
    let opened = found.open().map(drop);
    assert!(
        matches!(opened, Err(OpenError::LogLost { tail: true, .. })),
        "{opened:?}"
    );
}

#[test]
fn data_that_a_mark_calls_durable_is_not_replaced_by_older_content() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    rig.used_blocks();
    rig.write(0, &[2; BLOCK]);
    flush(&mut rig);
    wait_for_the_mark(&mut rig);
    let found = Found::of(rig).without_tail();
    let data = found.block_of([2; BLOCK]);
    let mut bytes = found.device.bytes.clone();
    bytes[data * BLOCK] ^= 1;
    let mut rig = found.with_bytes(bytes).open().expect("opens");
    let answer = rig.ask(LIVE, RequestKind::Read, 0, BLOCK, None);
    assert_eq!(answer.result, Err(RequestError::Corrupt));
}

/// The flush is not yet marked: the log's last record may name data that a power cut took. Whether it did cannot be told
/// of a block that cannot be read.
#[test]
fn data_that_cannot_be_read_while_it_is_verified_is_not_replaced_by_older_content() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    rig.used_blocks();
    rig.write(0, &[2; BLOCK]);
    flush(&mut rig);
    let mut found = Found::of(rig).without_tail();
    found.device.unreadable = Some(found.block_of([2; BLOCK]) as u64);
    let mut rig = Rig::open(found.layout, found.device, found.tail, options());
    let answer = rig.ask(LIVE, RequestKind::Read, 0, BLOCK, None);
    assert_eq!(answer.result, Err(RequestError::Io));
    rig.processor.device_mut().unreadable = None;
    assert_eq!(rig.read(LIVE, 0, BLOCK), [2; BLOCK]);
}

#[test]
fn a_bitmap_page_older_than_the_last_checkpoint_is_refused() {
    let mut rig = Rig::new(64 << 20);
    rig.used_blocks();
    let before = rig.processor.device_mut().bytes.clone();
    rig.write(0, &[1; 64 * BLOCK]);
    rig.used_blocks();
    let found = Found::of(rig).without_tail();
    let bytes = &found.device.bytes;
    found.with_bytes(bytes.clone()).open().expect("sound");
    let mut tried = 0;
    for slot in 0..2 {
        let at = found.layout.bitmap_block(0, 0, 0, slot) as usize * BLOCK;
        let mut damaged = bytes.clone();
        damaged[at + 200] ^= 1;
        let mut lost = bytes.clone();
        lost[at..at + BLOCK].copy_from_slice(&before[at..at + BLOCK]);
        for bytes in [damaged, lost] {
            match found.with_bytes(bytes).open() {
                Err(OpenError::Damaged { what, .. }) => {
                    assert!(what.contains("space bitmap"), "{what}");
                    tried += 1;
                }
                Err(other) => panic!("{other}"),
                // The slot that the root does not count on.
                Ok(mut rig) => assert_eq!(rig.read(LIVE, 0, BLOCK), [1; BLOCK]),
            }
        }
    }
    assert_eq!(tried, 2, "the newest slot, damaged and lost");
}

/// An interrupted checkpoint leaves pages. The next life makes pages of the same generation at the same places; if the
/// write of one of them is lost, its parent must not take the old one for it.
#[test]
fn a_map_page_of_an_interrupted_checkpoint_is_never_taken_for_the_next_one() {
    let mut rig = Rig::new(64 << 20);
    rig.used_blocks();
    rig.write(0, &[2; BLOCK]);
    // This life begins with a checkpoint, and dies before it is durable.
    rig = rig.kill();
    rig.processor.device_mut().held = Some(OperationKind::Flush);
    (0..50).for_each(|_| rig.turn());
    rig.write(BLOCK, &[2; BLOCK]);
    let before = rig.processor.device_mut().bytes.clone();
    // So does this one, with another write to put into it.
    rig = rig.kill();
    rig.settle();
    let found = Found::of(rig).without_tail();
    let sound = |bytes: &[u8]| {
        [page::PageKind::Map, page::PageKind::Directory]
            .into_iter()
            .any(|kind| page::verify(bytes, kind, Some(found.layout.pool)).is_ok())
    };
    let mut stale = 0;
    for at in (0..before.len()).step_by(BLOCK) {
        let (old, new) = (&before[at..at + BLOCK], &found.device.bytes[at..at + BLOCK]);
        if old == new || !sound(old) || !sound(new) {
            continue;
        }
        stale += 1;
        let mut bytes = found.device.bytes.clone();
        bytes[at..at + BLOCK].copy_from_slice(old);
        let Ok(mut rig) = found.with_bytes(bytes).open() else {
            continue;
        };
        let answer = rig.ask(LIVE, RequestKind::Read, 0, 2 * BLOCK, None);
        match answer.result {
            Ok(()) => assert!(
                answer.buffer.expect("a buffer").bytes() == [2; 2 * BLOCK],
                "block {} of the device is stale",
                at / BLOCK
            ),
            Err(error) => assert_eq!(error, RequestError::Corrupt),
        }
    }
    assert!(stale > 0, "the second life used places of the first");
}
