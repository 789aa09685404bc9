//! Scrubbing: everything is read once, damage is found and named, the rate is kept, and work beside it raises no alarm.

use super::check::{pattern, worked};
use super::rig::{BLOCK, LIVE, Rig, VOLUME};
use crate::ShardCommand;
use crate::command::{EventKind, Notice, ScrubDamage, ScrubState, ScrubStatus};
use crate::ids::{DeviceAddress, ShareBlock, SnapshotId};
use crate::ports::OperationKind;
use crate::request::View;
use stillpoint_ondisk::PageKind;
use stillpoint_ondisk::map_page::MapPage;
use zerocopy::FromBytes;

/// Fast enough not to count.
pub(super) const AT_ONCE: u64 = u64::MAX;

pub(super) fn status(rig: &Rig) -> ScrubStatus {
    rig.processor.shards()[0].status().scrub
}

pub(super) fn begin(rig: &mut Rig, rate_bytes_per_s: u64) {
    assert_eq!(
        rig.command(ShardCommand::Scrub { rate_bytes_per_s }),
        EventKind::Done
    );
}

/// Scrubs to the end; gives what it came to and what was told meanwhile.
pub(super) fn scrub(rig: &mut Rig) -> (ScrubStatus, Vec<ScrubDamage>) {
    begin(rig, AT_ONCE);
    to_the_end(rig)
}

fn to_the_end(rig: &mut Rig) -> (ScrubStatus, Vec<ScrubDamage>) {
    for _ in 0..100_000 {
        rig.turn();
        if status(rig).state == ScrubState::Done {
            let events = rig.outbox.events.drain(..);
            let told = events.filter_map(|event| match event.kind {
                EventKind::Notice(Notice::Scrub(damage)) => Some(damage),
                _ => None,
            });
            let told = told.collect();
            return (status(rig), told);
        }
    }
    panic!("a scrub that never ends: {:?}", status(rig));
}

/// Everything is on the device.
fn settled() -> Rig {
    let mut rig = worked();
    for _ in 0..2 {
        assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
        rig.settle();
    }
    rig
}

fn flip(rig: &mut Rig, block: u64) {
    rig.processor.device_mut().bytes[block as usize * BLOCK + 99] ^= 1;
}

/// Where a block of this content lies.
fn find(rig: &mut Rig, wanted: &[u8]) -> u64 {
    let bytes = &rig.processor.device_mut().bytes;
    bytes
        .chunks_exact(BLOCK)
        .position(|block| block == wanted)
        .expect("somewhere") as u64
}

#[test]
fn every_block_and_every_page_is_read_once() {
    let mut rig = settled();
    let used = rig.processor.shards()[0].status().used_blocks;
    let directory_pages = 2;
    for _ in 0..2 {
        let (status, told) = scrub(&mut rig);
        assert_eq!((status.damaged_blocks, told), (0, vec![]));
        assert_eq!(status.checked_blocks, used - directory_pages);
        assert!(status.started_ns > 0 && status.ended_ns >= status.started_ns);
    }
    // The same after a restart, with nothing in memory.
    let mut rig = rig.kill();
    assert_eq!(scrub(&mut rig).0.checked_blocks, used - directory_pages);
}

/// Content that no other block has.
fn unique(number: u64) -> Vec<u8> {
    let mut bytes = pattern(7);
    bytes[..8].copy_from_slice(&(number << 32 | 0xDEAD_BEEF).to_le_bytes());
    bytes
}

/// Block 1000 is shown by snapshot 3 and the volume, 1001 by the volume, 1002 by the snapshot; 1003 was never damaged.
fn with_unique_blocks() -> Rig {
    let mut rig = settled();
    for block in [1000, 1002, 1003] {
        rig.write(block as usize * BLOCK, &unique(block));
    }
    rig.snapshot(3);
    rig.write(1001 * BLOCK, &unique(1001));
    rig.write(1002 * BLOCK, &unique(9));
    rig
}

const THIRD: View = View {
    volume: VOLUME,
    snapshot: Some(SnapshotId(3)),
};

#[test]
fn damage_is_named_by_who_shows_it() {
    let mut rig = with_unique_blocks();
    for block in 1000..1003 {
        let place = find(&mut rig, &unique(block));
        flip(&mut rig, place);
    }
    let (status, told) = scrub(&mut rig);
    assert_eq!((status.damaged_blocks, status.damage.clone()), (3, told.clone()));
    let found: Vec<(View, u64)> = told.iter().map(|damage| (damage.view, damage.first.0)).collect();
    assert_eq!(found, [(THIRD, 1000), (THIRD, 1002), (LIVE, 1001)]);
    assert!(
        told.iter()
            .all(|damage| damage.map_level.is_none() && damage.device_error.is_none())
    );
    assert_eq!(rig.processor.shards()[0].status().corrupt_blocks, 3);
}

#[test]
fn a_damaged_map_page_is_found_in_memory_or_not() {
    for restart in [false, true] {
        let mut rig = settled();
        let pool = rig.layout.pool;
        let bytes = &rig.processor.device_mut().bytes;
        let is_leaf_of_live = |block: &usize| {
            let bytes = &bytes[block * BLOCK..][..BLOCK];
            let sound = stillpoint_ondisk::page::verify(bytes, PageKind::Map, Some(pool)).is_ok();
            let page = MapPage::ref_from_bytes(bytes).expect("a page");
            // The block far away is the only one in its leaf.
            sound && page.level == 0 && page.index.get() == 300_000 / 256
        };
        let leaf = (0..bytes.len() / BLOCK).rfind(is_leaf_of_live).expect("written");
        if restart {
            rig = rig.kill();
        }
        flip(&mut rig, leaf as u64);
        let (status, told) = scrub(&mut rig);
        assert_eq!(status.damaged_blocks, 1, "restart {restart}: {told:?}");
        assert_eq!(told[0].map_level, Some(0));
        assert_eq!(told[0].address, DeviceAddress(leaf as u64));
        assert_eq!(told[0].first, ShareBlock(300_000 / 256 * 256));
        assert_eq!(told[0].view, LIVE);
    }
}

#[test]
fn a_block_that_cannot_be_read_is_told_alone() {
    let mut rig = with_unique_blocks();
    let place = find(&mut rig, &unique(1000));
    rig.processor.device_mut().unreadable = Some(place);
    let (status, told) = scrub(&mut rig);
    assert_eq!(status.damaged_blocks, 1, "{told:?}");
    assert_eq!(told[0].address, DeviceAddress(place));
    assert!(told[0].device_error.is_some() && told[0].map_level.is_none());
}

#[test]
fn the_rate_is_kept_and_a_scrub_can_be_stopped() {
    let mut rig = settled();
    let rate = 100 << 20;
    begin(&mut rig, rate);
    let start_ns = rig.now.monotonic_ns;
    // A turn of the rig takes a microsecond.
    for _ in 0..20_000 {
        rig.turn();
        let elapsed_ns = rig.now.monotonic_ns - start_ns;
        let allowed = rate * elapsed_ns / 1_000_000_000 + (2 * 64 * BLOCK) as u64;
        let checked = status(&rig).checked_blocks * BLOCK as u64;
        assert!(checked <= allowed, "{checked} bytes after {elapsed_ns} ns");
    }
    let found = status(&rig);
    assert_eq!(found.state, ScrubState::Running);
    assert!(
        found.checked_blocks * BLOCK as u64 > rate / 100,
        "it goes on: {found:?}"
    );
    assert!(
        rig.processor.next_deadline_ns().is_some(),
        "somebody has to wake it"
    );
    assert_eq!(rig.command(ShardCommand::StopScrub), EventKind::Done);
    rig.settle();
    let stopped = status(&rig);
    assert_eq!(stopped.state, ScrubState::Stopped);
    assert_eq!(rig.processor.next_deadline_ns(), None);
    for _ in 0..1000 {
        rig.turn();
    }
    assert_eq!(status(&rig).checked_blocks, stopped.checked_blocks);
}

#[test]
fn work_beside_it_raises_no_alarm_and_a_scrub_ends_all_the_same() {
    let mut rig = settled();
    begin(&mut rig, 2 << 30);
    let mut ended = 0;
    for step in 0..400usize {
        let block = step * 37 % 700;
        rig.write(block * BLOCK, &pattern(step as u8));
        match step % 50 {
            10 => {
                rig.snapshot(10 + step as u64);
            }
            20 => {
                let oldest = rig.processor.shards()[0]
                    .shares()
                    .next()
                    .and_then(|volume| volume.snapshots.iter().find(|snapshot| !snapshot.deleting))
                    .map(|snapshot| snapshot.snapshot);
                if let Some(snapshot) = oldest {
                    let delete = ShardCommand::DeleteSnapshot {
                        volume: VOLUME,
                        snapshot,
                    };
                    assert_eq!(rig.command(delete), EventKind::Done);
                }
            }
            30 => assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done),
            _ => {}
        }
        for _ in 0..50 {
            rig.turn();
        }
        if status(&rig).state == ScrubState::Done {
            assert_eq!(status(&rig).damaged_blocks, 0);
            ended += 1;
            begin(&mut rig, 2 << 30);
        }
    }
    assert!(ended > 0, "{:?}", status(&rig));
    let delete = ShardCommand::DeleteVolume { volume: VOLUME };
    assert_eq!(rig.command(delete), EventKind::Done);
    let (last, told) = scrub(&mut rig);
    assert_eq!((last.damaged_blocks, told), (0, vec![]));
}

#[test]
fn one_read_of_a_scrub_is_in_flight_at_a_time() {
    let mut rig = settled();
    rig.processor.device_mut().held = Some(OperationKind::Read);
    begin(&mut rig, AT_ONCE);
    let mut most = 0;
    for _ in 0..200 {
        rig.turn();
        most = most.max(rig.processor.device_mut().waiting.len());
    }
    assert_eq!(most, 1);
}

/// A volume of 700 blocks that no other block looks like, with a scrub that has read some of them.
fn in_the_middle() -> Rig {
    let mut rig = Rig::new(64 << 20);
    for block in 0..700 {
        rig.write(block as usize * BLOCK, &unique(block));
    }
    rig.used_blocks();
    begin(&mut rig, 1 << 30);
    while status(&rig).checked_blocks < 100 {
        rig.turn();
    }
    assert!(status(&rig).checked_blocks < 300, "{:?}", status(&rig));
    rig
}

#[test]
fn a_snapshot_taken_meanwhile_hides_nothing_from_a_scrub() {
    let mut rig = in_the_middle();
    rig.snapshot(1);
    // Only the snapshot has the one; both have the other.
    for block in [600, 650] {
        let place = find(&mut rig, &unique(block));
        flip(&mut rig, place);
    }
    rig.write(600 * BLOCK, &unique(9999));
    assert!(status(&rig).checked_blocks < 500, "{:?}", status(&rig));
    let (_, told) = to_the_end(&mut rig);
    let found: Vec<u64> = told.iter().map(|damage| damage.first.0).collect();
    assert_eq!(found, [600, 650], "{told:?}");
}

#[test]
fn snapshots_that_come_and_go_do_not_let_a_scrub_begin_again() {
    let mut rig = in_the_middle();
    let used = rig.processor.shards()[0].status().used_blocks;
    let mut last = None;
    for number in 1.. {
        if status(&rig).state == ScrubState::Done {
            break;
        }
        rig.snapshot(number);
        rig.write(0, &pattern(number as u8));
        if let Some(snapshot) = last.replace(SnapshotId(number)) {
            let delete = ShardCommand::DeleteSnapshot {
                volume: VOLUME,
                snapshot,
            };
            assert_eq!(rig.command(delete), EventKind::Done);
        }
        for _ in 0..20 {
            rig.turn();
        }
        assert!(number < 1000, "{:?}", status(&rig));
    }
    let found = status(&rig);
    assert_eq!(found.damaged_blocks, 0);
    assert!((690..used + 20).contains(&found.checked_blocks), "{found:?}");
}

#[test]
fn a_scrub_that_was_paused_goes_on_where_it_was() {
    let mut rig = in_the_middle();
    // With a read in flight: it is made again.
    rig.processor.device_mut().held = Some(OperationKind::Read);
    (0..10_000).for_each(|_| rig.turn());
    assert_eq!(rig.processor.device_mut().waiting.len(), 1);
    assert_eq!(rig.command(ShardCommand::PauseScrub), EventKind::Done);
    rig.processor.device_mut().held = None;
    rig.settle();
    let paused = status(&rig);
    assert_eq!(paused.state, ScrubState::Paused);
    assert!(paused.running_ns > 0);
    (0..1000).for_each(|_| rig.turn());
    assert_eq!(status(&rig), paused, "it rests");
    let resume = ShardCommand::ResumeScrub {
        rate_bytes_per_s: Some(AT_ONCE),
    };
    assert_eq!(rig.command(resume), EventKind::Done);
    let (done, _) = to_the_end(&mut rig);
    assert_eq!(
        (done.rate_bytes_per_s, done.started_ns),
        (AT_ONCE, paused.started_ns)
    );
    let all = scrub(&mut rig).0;
    assert_eq!(
        done.checked_blocks, all.checked_blocks,
        "nothing twice, nothing left out"
    );
    // Of a scrub that has ended there is nothing to pause, to resume or to stop.
    for command in [
        ShardCommand::PauseScrub,
        ShardCommand::StopScrub,
        resume_as_before(),
    ] {
        assert_eq!(rig.command(command), EventKind::Done);
        assert_eq!(status(&rig), all);
    }
    // One that is paused can be stopped.
    begin(&mut rig, 4096);
    for command in [
        ShardCommand::PauseScrub,
        ShardCommand::StopScrub,
        resume_as_before(),
    ] {
        assert_eq!(rig.command(command), EventKind::Done);
    }
    assert_eq!(status(&rig).state, ScrubState::Stopped);
}

fn resume_as_before() -> ShardCommand {
    ShardCommand::ResumeScrub {
        rate_bytes_per_s: None,
    }
}

#[test]
fn a_scrub_goes_on_after_a_kill_with_what_was_known_of_it() {
    let mut rig = with_unique_blocks();
    rig.used_blocks();
    let all = scrub(&mut rig).0.checked_blocks;
    let early = find(&mut rig, &unique(1000));
    flip(&mut rig, early);
    begin(&mut rig, 1 << 30);
    while status(&rig).damaged_blocks == 0 {
        rig.turn();
    }
    let known = status(&rig);
    assert!(known.checked_blocks < all, "{known:?}");
    let late = find(&mut rig, &unique(1001));
    for pause in [false, true] {
        rig = rig.kill();
        if !pause {
            flip(&mut rig, late);
        }
        let state = if pause {
            ScrubState::Paused
        } else {
            ScrubState::Running
        };
        let saved = Box::new(ScrubStatus {
            state,
            ..known.clone()
        });
        assert_eq!(rig.command(ShardCommand::RestoreScrub(saved)), EventKind::Done);
        if pause {
            (0..1000).for_each(|_| rig.turn());
            assert_eq!(status(&rig).checked_blocks, known.checked_blocks);
            assert_eq!(rig.command(resume_as_before()), EventKind::Done);
        }
        let (done, told) = to_the_end(&mut rig);
        assert_eq!((done.damaged_blocks, told.len()), (2, 1));
        assert_eq!(
            done.damage
                .iter()
                .map(|damage| damage.first.0)
                .collect::<Vec<_>>(),
            [1000, 1001]
        );
        assert_eq!(done.checked_blocks, all);
        assert_eq!(done.started_ns, known.started_ns);
        assert!(done.running_ns > known.running_ns);
    }
}
