//! A shard over a device in memory: one request at a time, to pin down what each part promises. Schedules, crashes and
//! faults are the simulator's.

mod adverse;
mod background;
mod change_logs;
mod changes;
mod check;
mod clones;
mod damage;
mod deletions;
mod discards;
mod durably;
mod mirrors;
mod over_mirrors;
mod rig;
mod scrub;
mod scrub_mirrors;
mod two_sides;
mod work;

use rig::*;

use super::*;
use crate::ids::{SnapshotId, TimeStamp};
use crate::ports::MemoryTail;
use crate::request::{Token, View};
#[test]
fn what_was_written_is_read_and_holes_are_zero() {
    let mut rig = Rig::new(64 << 20);
    rig.write(3 * BLOCK, &[7; 2 * BLOCK]);
    assert_eq!(rig.read(LIVE, 3 * BLOCK, 2 * BLOCK), [7; 2 * BLOCK]);
    assert_eq!(rig.read(LIVE, 0, BLOCK), [0; BLOCK]);
    assert_eq!(rig.read(LIVE, 2 * BLOCK, 2 * BLOCK)[..BLOCK], [0; BLOCK]);
}

#[test]
fn a_partial_write_keeps_the_rest_of_its_blocks() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; 4 * BLOCK]);
    rig.write(BLOCK + 512, &[2; BLOCK]);
    rig.write(9 * BLOCK + 1024, &[3; 512]);
    let read = rig.read(LIVE, 0, 4 * BLOCK);
    assert_eq!(read[..BLOCK + 512], [1; BLOCK + 512]);
    assert_eq!(read[BLOCK + 512..2 * BLOCK + 512], [2; BLOCK]);
    assert_eq!(read[2 * BLOCK + 512..], [1; 2 * BLOCK - 512]);
    let fresh = rig.read(LIVE, 9 * BLOCK, BLOCK);
    assert_eq!((fresh[1023], fresh[1024], fresh[1535], fresh[1536]), (0, 3, 3, 0));
}

#[test]
fn acknowledged_writes_survive_a_kill_flushed_or_not() {
    let mut rig = Rig::new(64 << 20);
    for i in 0..200 {
        rig.write(i * BLOCK, &[i as u8 + 1; BLOCK]);
    }
    for round in 0..3 {
        rig = rig.kill();
        for i in 0..200 {
            assert_eq!(
                rig.read(LIVE, i * BLOCK, BLOCK),
                [i as u8 + 1; BLOCK],
                "block {i}, round {round}"
            );
        }
        rig.write(500 * BLOCK, &[round; BLOCK]);
    }
}

#[test]
fn a_snapshot_keeps_its_content_through_overwrites_discards_kills_and_checkpoints() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; 8 * BLOCK]);
    let before = rig.snapshot(1);
    rig.write(BLOCK, &[2; BLOCK]);
    let discarded = rig.ask(
        LIVE,
        RequestKind::Discard { fua: false },
        4 * BLOCK,
        2 * BLOCK,
        None,
    );
    assert_eq!(discarded.result, Ok(()));
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    for i in 0..600 {
        rig.write((i % 8) * BLOCK, &[i as u8; BLOCK]);
    }
    rig = rig.kill();
    assert_eq!(rig.read(before, 0, 8 * BLOCK), [1; 8 * BLOCK]);
    assert_eq!(rig.read(LIVE, 0, BLOCK), [(592 % 256) as u8; BLOCK]);
    let refused = rig.ask(
        before,
        RequestKind::Write { fua: false },
        0,
        BLOCK,
        Some(&[9; BLOCK]),
    );
    assert_eq!(refused.result, Err(RequestError::ReadOnly));
}

#[test]
fn deleting_snapshots_in_any_order_gives_all_their_space_back() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3], [2, 3, 1]] {
        let mut rig = Rig::new(64 << 20);
        for i in 0..64 {
            rig.write(i * 40 * BLOCK, &[1; BLOCK]);
        }
        let baseline = rig.used_blocks();
        for snapshot in 1..=3u64 {
            rig.snapshot(snapshot);
            for i in 0..64 {
                if (i as u64).is_multiple_of(snapshot + 1) {
                    rig.write(i * 40 * BLOCK, &[snapshot as u8 + 1; BLOCK]);
                }
            }
        }
        assert!(rig.used_blocks() > baseline + 60);
        for snapshot in order {
            let delete = ShardCommand::DeleteSnapshot {
                volume: VOLUME,
                snapshot: SnapshotId(snapshot),
            };
            assert_eq!(rig.command(delete), EventKind::Done);
            rig.settle();
            rig = rig.kill();
        }
        rig.settle();
        assert_eq!(rig.used_blocks(), baseline, "order {order:?}");
    }
}

#[test]
fn a_deleted_volume_gives_everything_back() {
    let mut rig = Rig::new(64 << 20);
    let baseline = rig.used_blocks();
    let other = View {
        volume: VolumeId(2),
        snapshot: None,
    };
    let create = ShardCommand::CreateVolume {
        volume: VolumeId(2),
        share_blocks: 1 << 16,
    };
    assert_eq!(rig.command(create), EventKind::Done);
    for i in 0..300 {
        let data = [i as u8; BLOCK];
        let answer = rig.ask(
            other,
            RequestKind::Write { fua: false },
            i * 7 * BLOCK,
            BLOCK,
            Some(&data),
        );
        assert_eq!(answer.result, Ok(()));
    }
    assert!(rig.used_blocks() > baseline + 300);
    assert_eq!(
        rig.command(ShardCommand::DeleteVolume { volume: VolumeId(2) }),
        EventKind::Done
    );
    rig.settle();
    assert_eq!(rig.used_blocks(), baseline);
    let gone = rig.ask(other, RequestKind::Read, 0, BLOCK, None);
    assert_eq!(gone.result, Err(RequestError::NotFound));
}

#[test]
fn a_full_pool_says_so_still_reads_and_discarding_makes_room() {
    let mut rig = Rig::new(16 << 20);
    let mut written = 0;
    let full = loop {
        let data = [written as u8; 16 * BLOCK];
        let offset = written * 16 * BLOCK;
        let answer = rig.ask(
            LIVE,
            RequestKind::Write { fua: false },
            offset,
            data.len(),
            Some(&data),
        );
        match answer.result {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, RequestError::NoSpace);
    assert!(written > 100, "{written}");
    for i in 0..written {
        assert_eq!(rig.read(LIVE, i * 16 * BLOCK, BLOCK), [i as u8; BLOCK]);
    }
    let discarded = rig.ask(
        LIVE,
        RequestKind::Discard { fua: false },
        0,
        64 * 16 * BLOCK,
        None,
    );
    assert_eq!(discarded.result, Ok(()));
    for i in 0..60 {
        rig.write(i * 16 * BLOCK, &[0x55; 16 * BLOCK]);
    }
    rig = rig.kill();
    assert_eq!(rig.read(LIVE, 0, BLOCK), [0x55; BLOCK]);
}

#[test]
fn a_shrunk_volume_reads_zeros_when_it_grows_again() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    rig.write(5000 * BLOCK, &[2; BLOCK]);
    for share_blocks in [1000, 1 << 20] {
        let resize = ShardCommand::ResizeVolume {
            volume: VOLUME,
            share_blocks,
        };
        assert_eq!(rig.command(resize), EventKind::Done);
        rig = rig.kill();
    }
    assert_eq!(rig.read(LIVE, 0, BLOCK), [1; BLOCK]);
    assert_eq!(rig.read(LIVE, 5000 * BLOCK, BLOCK), [0; BLOCK]);
}

#[test]
fn rot_is_an_error_and_never_data() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[0xAB; BLOCK]);
    rig.settle();
    let needle = [0xAB; BLOCK];
    let device = rig.processor.device_mut();
    let place = device
        .bytes
        .chunks_exact(BLOCK)
        .position(|block| block == needle)
        .expect("the block");
    device.bytes[place * BLOCK + 100] ^= 1;
    let answer = rig.ask(LIVE, RequestKind::Read, 0, BLOCK, None);
    assert_eq!(answer.result, Err(RequestError::Corrupt));
}

#[test]
fn a_hold_ends_at_its_deadline_without_a_coordinator() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    let snapshot = SnapshotId(5);
    rig.command(ShardCommand::Prepare {
        snapshot,
        volumes: vec![VOLUME],
    });
    let deadline_ns = rig.now.monotonic_ns + 50_000;
    rig.command(ShardCommand::Cut {
        snapshot,
        time_stamp: TimeStamp(1),
        deadline_ns,
    });
    rig.send(request(
        LIVE,
        RequestKind::Write { fua: false },
        0,
        BLOCK,
        Some(&[2; BLOCK]),
    ));
    let answered_at = loop {
        rig.turn();
        if rig.outbox.answers.pop().is_some() {
            break rig.now.monotonic_ns;
        }
    };
    assert!((deadline_ns..deadline_ns + 2_000).contains(&answered_at));
    let persisted = rig.command(ShardCommand::Persist { snapshot });
    assert!(matches!(persisted, EventKind::Refused { .. }));
    rig.settle();
    assert_eq!(
        rig.command(ShardCommand::ListSnapshots { volume: VOLUME }),
        EventKind::Snapshots(Vec::new())
    );
}

#[test]
fn reads_of_older_data_are_not_held_and_reads_of_newer_data_are() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    rig.write(BLOCK, &[1; BLOCK]);
    let snapshot = SnapshotId(5);
    rig.command(ShardCommand::Prepare {
        snapshot,
        volumes: vec![VOLUME],
    });
    rig.command(ShardCommand::Cut {
        snapshot,
        time_stamp: TimeStamp(1),
        deadline_ns: u64::MAX,
    });
    rig.send(request(
        LIVE,
        RequestKind::Write { fua: false },
        0,
        BLOCK,
        Some(&[2; BLOCK]),
    ));
    for _ in 0..10 {
        rig.turn();
    }
    assert!(rig.outbox.answers.is_empty(), "the acknowledgement is held");
    assert_eq!(rig.read(LIVE, BLOCK, BLOCK), [1; BLOCK]);
    rig.send(request(LIVE, RequestKind::Read, 0, BLOCK, None));
    for _ in 0..10 {
        rig.turn();
    }
    assert!(rig.outbox.answers.is_empty(), "the read of newer data is held");
    let EventKind::Released(figures) = rig.command(ShardCommand::Release { snapshot }) else {
        panic!("released")
    };
    assert_eq!(figures.answers_held, 2);
    assert_eq!(rig.outbox.answers.len(), 2);
}

#[test]
fn block_status_lists_what_is_mapped() {
    let mut rig = Rig::new(64 << 20);
    rig.write(10 * BLOCK, &[1; 5 * BLOCK]);
    rig.write(700 * BLOCK, &[1; BLOCK]);
    let answer = rig.ask(LIVE, RequestKind::BlockStatus, 0, 2000 * BLOCK, None);
    let bytes = &answer.buffer.expect("a buffer").bytes()[..answer.valid_bytes as usize].to_vec();
    let words: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes(w.try_into().expect("four")))
        .collect();
    assert_eq!(words, [10, 1, 5, 0, 685, 1, 1, 0, 1299, 1]);
}
