//! Interleavings, faults and shortages, each set up by hand.

use super::*;

pub(super) fn small_cache() -> ShardOptions {
    ShardOptions {
        map_cache_pages: 32,
        ..ShardOptions::default()
    }
}

pub(super) const LEAF: usize = 256 * BLOCK;

fn write_request(offset: usize, data: &[u8]) -> ShardRequest {
    request(
        LIVE,
        RequestKind::Write { fua: false },
        offset,
        data.len(),
        Some(data),
    )
}

#[test]
fn a_checkpoint_knows_the_root_that_an_unfinished_write_moved() {
    let mut rig = Rig::with(64 << 20, small_cache());
    for leaf in 0..64 {
        rig.write(leaf * LEAF, &[leaf as u8 + 1; BLOCK]);
    }
    let used = rig.used_blocks();
    // The write copies the root and then waits for its leaf, while a checkpoint goes by.
    rig.processor.device_mut().held = Some(OperationKind::Read);
    rig.send(write_request(0, &[0xFF; BLOCK]));
    for _ in 0..10 {
        rig.turn();
    }
    assert!(rig.outbox.answers.is_empty(), "it waits for its leaf");
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    rig = rig.kill();
    rig.write(LEAF, &[0xEE; BLOCK]);
    assert_eq!(rig.read(LIVE, 0, BLOCK), [1; BLOCK]);
    assert_eq!(rig.used_blocks(), used);
}

#[test]
fn a_shard_that_stops_answers_the_writes_that_were_still_merging() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; BLOCK]);
    rig.processor.device_mut().held = Some(OperationKind::Read);
    rig.send(write_request(512, &[2; 512]));
    rig.turn();
    rig.processor.device_mut().failing = Some(OperationKind::Flush);
    rig.send(request(LIVE, RequestKind::Flush, 0, 0, None));
    for _ in 0..10 {
        rig.turn();
    }
    assert_eq!(
        rig.outbox.answers.pop().expect("the flush").result,
        Err(RequestError::ShardStopped)
    );
    rig.processor.device_mut().held = None;
    rig.settle();
    assert_eq!(
        rig.outbox.answers.pop().expect("the write").result,
        Err(RequestError::ShardStopped)
    );
}

/// A rig with 64 written leaves, none of them in its cache.
fn rig_with_a_cold_cache() -> Rig {
    let mut rig = Rig::new(64 << 20);
    for leaf in 0..64 {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    rig.used_blocks();
    rig = rig.kill();
    rig.settle();
    rig
}

#[test]
fn everybody_gets_on_while_requests_hold_all_buffers() {
    let mut rig = rig_with_a_cold_cache();
    rig.pool.dry = true;
    for leaf in 0..64 {
        let mut write = write_request(leaf * LEAF + BLOCK - 512, &[2; 1024]);
        write.kind = RequestKind::Write { fua: true };
        rig.send(write);
    }
    rig.settle();
    assert_eq!(rig.outbox.answers.len(), 64);
    assert!(rig.outbox.answers.iter().all(|answer| answer.result.is_ok()));
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
}

#[test]
fn whoever_waits_for_a_buffer_is_ready_work() {
    let mut rig = rig_with_a_cold_cache();
    rig.pool.dry = true;
    rig.processor.device_mut().held = Some(OperationKind::Read);
    // The pages above the leaves are there after the first read; each leaf takes a buffer of the few kept ones.
    rig.send(request(LIVE, RequestKind::Read, 0, BLOCK, None));
    for _ in 0..3 {
        rig.processor.device_mut().held = None;
        rig.turn();
        rig.processor.device_mut().held = Some(OperationKind::Read);
        rig.turn();
    }
    for leaf in 1..32 {
        rig.send(request(LIVE, RequestKind::Read, leaf * LEAF, BLOCK, None));
    }
    for _ in 0..10 {
        rig.turn();
    }
    assert!(rig.processor.has_ready_work());
    rig.processor.device_mut().held = None;
    rig.settle();
    assert!(!rig.processor.has_ready_work());
    assert_eq!(rig.outbox.answers.len(), 32);
}

#[test]
fn a_volume_that_is_being_deleted_is_not_cut() {
    let mut rig = Rig::new(64 << 20);
    let baseline = rig.used_blocks();
    for i in 0..64 {
        rig.write(i * 1000 * BLOCK, &[1; BLOCK]);
    }
    let snapshot = SnapshotId(5);
    rig.command(ShardCommand::Prepare {
        snapshot,
        volumes: vec![VOLUME],
    });
    assert_eq!(
        rig.command(ShardCommand::DeleteVolume { volume: VOLUME }),
        EventKind::Done
    );
    let cut = rig.command(ShardCommand::Cut {
        snapshot,
        time_stamp: TimeStamp(1),
        deadline_ns: u64::MAX,
    });
    assert!(matches!(cut, EventKind::Refused { .. }), "{cut:?}");
    assert_eq!(rig.command(ShardCommand::Abort { snapshot }), EventKind::Aborted);
    rig.settle();
    rig = rig.kill();
    rig.settle();
    assert!(rig.used_blocks() <= baseline);
}

/// Bytes that one interior page of level 1 covers.
const REGION: usize = 256 * LEAF;

pub(super) fn wide_volume(rig: &mut Rig) -> View {
    let volume = VolumeId(2);
    let share_blocks = 1 << 28;
    assert_eq!(
        rig.command(ShardCommand::CreateVolume { volume, share_blocks }),
        EventKind::Done
    );
    View {
        volume,
        snapshot: None,
    }
}

#[test]
fn requests_that_need_more_map_pages_than_the_cache_holds_all_get_on() {
    let mut rig = Rig::with(64 << 20, small_cache());
    let view = wide_volume(&mut rig);
    let kind = RequestKind::Write { fua: false };
    for i in 0..500 {
        let answer = rig.ask(view, kind, i * REGION, BLOCK, Some(&[i as u8; BLOCK]));
        assert_eq!(answer.result, Ok(()));
    }
    rig.used_blocks();
    for i in 0..500 {
        rig.send(request(view, RequestKind::Read, i * REGION, BLOCK, None));
        rig.send(request(
            view,
            kind,
            i * REGION + BLOCK,
            BLOCK,
            Some(&[i as u8; BLOCK]),
        ));
    }
    rig.settle();
    assert_eq!(rig.outbox.answers.len(), 1000);
    assert!(rig.outbox.answers.iter().all(|answer| answer.result.is_ok()));
}

#[test]
fn recovery_ends_when_the_log_touches_more_than_the_cache_holds() {
    let mut rig = Rig::with(64 << 20, ShardOptions::default());
    for leaf in 0..300 {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    rig.used_blocks();
    // The first 4096 records make most of the cache dirty, the rest needs more than is left of it.
    for i in 0..4096 {
        rig.write(i % 212 * LEAF, &[2; BLOCK]);
    }
    for leaf in 212..272 {
        rig.write(leaf * LEAF, &[2; BLOCK]);
    }
    rig.options.map_cache_pages = 256;
    rig = rig.kill();
    for leaf in 0..272 {
        assert_eq!(rig.read(LIVE, leaf * LEAF, BLOCK), [2; BLOCK]);
    }
}

fn discard_request(offset: usize, length: usize) -> ShardRequest {
    request(LIVE, RequestKind::Discard { fua: false }, offset, length, None)
}

/// Writes a block to every leaf of 0..4000, many at the same time, until the pool is full; gives those that fitted.
fn fill_leaves(rig: &mut Rig) -> Vec<usize> {
    let mut written = Vec::new();
    for first in (0..4000).step_by(1000) {
        for leaf in first..first + 1000 {
            let mut write = write_request(leaf * LEAF, &[leaf as u8; BLOCK]);
            write.token = Token(leaf as u64);
            rig.send(write);
        }
        rig.settle();
        for answer in rig.outbox.answers.drain(..) {
            match answer.result {
                Ok(()) => written.push(answer.token.0 as usize),
                Err(error) => assert_eq!(error, RequestError::NoSpace),
            }
        }
    }
    written
}

#[test]
fn a_pool_full_of_small_scattered_writes_takes_any_number_of_discards() {
    for pool_bytes in [8 << 20, 16 << 20] {
        let mut rig = Rig::new(pool_bytes);
        let written = fill_leaves(&mut rig);
        assert!(written.len() < 4000, "the pool is full");
        for snapshot in [false, true] {
            if snapshot {
                rig.snapshot(1);
            }
            let some = written.iter().skip(usize::from(snapshot)).step_by(2);
            let asked = some.clone().count();
            for &leaf in some {
                rig.send(discard_request(leaf * LEAF, BLOCK));
                if rig.processor.shards()[0].status().in_flight == 1000 {
                    rig.settle();
                }
            }
            rig.settle();
            assert_eq!(rig.outbox.answers.len(), asked);
            for answer in rig.outbox.answers.drain(..) {
                assert_eq!(answer.result, Ok(()), "snapshot: {snapshot}");
            }
        }
        rig = rig.kill();
        assert!(!rig.processor.shards()[0].status().stopped);
        for &leaf in &written {
            assert_eq!(rig.read(LIVE, leaf * LEAF, BLOCK), [0; BLOCK]);
        }
        let delete = ShardCommand::DeleteSnapshot {
            volume: VOLUME,
            snapshot: SnapshotId(1),
        };
        assert_eq!(rig.command(delete), EventKind::Done);
        rig.settle();
        let rewritten = fill_leaves(&mut rig).len();
        assert!(
            rewritten * 10 >= written.len() * 9,
            "{rewritten} of {}",
            written.len()
        );
    }
}

#[test]
fn a_header_that_cannot_be_read_is_not_passed_over_for_the_older_one() {
    for copy in 0..2 {
        let rig = Rig::new(16 << 20);
        let layout = rig.layout.clone();
        let (mut device, _) = rig.processor.into_parts(&mut Pool::default());
        device.unreadable = Some(layout.header_block(0, copy));
        let opened = Shard::open(
            &layout,
            ShardIndex(0),
            &mut device,
            MemoryTail::default(),
            ShardOptions::default(),
            Now::default(),
        );
        assert!(matches!(opened, Err(OpenError::Device { .. })), "copy {copy}");
    }
}

#[test]
fn log_pages_of_a_life_before_the_power_cut_never_chain_on_again() {
    let create = |number| ShardCommand::CreateVolume {
        volume: VolumeId(number),
        share_blocks: 1,
    };
    let mut rig = Rig::new(64 << 20);
    rig.used_blocks();
    rig.processor.device_mut().unflushed = Some(Vec::new());
    rig = rig.cut_power(|_| true);
    rig.settle();
    // Two log pages without a flush: the first is lost with the power, the second is not.
    let end = rig.processor.shards()[0].status().log_used_bytes as usize;
    rig.processor.device_mut().held = Some(OperationKind::Flush);
    for number in [7, 8] {
        rig.processor
            .command(ShardIndex(0), Ticket(99), create(number), rig.now);
        for _ in 0..10 {
            rig.turn();
        }
    }
    let written = rig.processor.device_mut().unflushed.as_ref().expect("remembered");
    let places: Vec<usize> = written.iter().map(|(at, ..)| *at).collect();
    assert_eq!((end, places.len()), (0, 2));
    rig = rig.cut_power(|at| at == places[1]);
    // The same again.
    assert_eq!(rig.command(create(7)), EventKind::Done);
    rig = rig.cut_power(|_| true);
    let volumes: Vec<u32> = rig.processor.shards()[0]
        .shares()
        .map(|share| share.id.0)
        .collect();
    assert_eq!(volumes, [1, 7]);
}

/// A flush that fails may have lost anything that no flush has covered, and the next one would not say so: nothing is
/// called durable any more, by any shard on these devices, until the pool is opened again.
#[test]
fn a_failed_flush_stops_writes_and_nothing_is_called_durable_afterwards() {
    let mut rig = Rig::with(64 << 20, ShardOptions::default());
    rig.write(0, &[1; BLOCK]);
    let flush = |rig: &mut Rig| rig.ask(LIVE, RequestKind::Flush, 0, 0, None).result;
    assert_eq!(flush(&mut rig), Ok(()));
    rig.processor.device_mut().unflushed = Some(Vec::new());
    rig.write(BLOCK, &[2; BLOCK]);

    rig.processor.device_mut().failing = Some(OperationKind::Flush);
    assert_eq!(flush(&mut rig), Err(RequestError::ShardStopped));
    let stopped = rig.outbox.events.iter().any(|event| {
        let error = DeviceError::Os(5);
        event.kind
            == EventKind::Notice(Notice::Stopped {
                operation: "flush",
                error,
            })
    });
    assert!(stopped, "an operator is told: {:?}", rig.outbox.events);
    assert!(rig.processor.shards()[0].status().stopped);

    // The device works again. Nobody is told that it does not matter.
    rig.processor.device_mut().failing = None;
    assert_eq!(flush(&mut rig), Err(RequestError::ShardStopped));
    let fua = RequestKind::Write { fua: true };
    for kind in [fua, RequestKind::Write { fua: false }] {
        let write = rig.ask(LIVE, kind, 2 * BLOCK, BLOCK, Some(&[3; BLOCK]));
        assert_eq!(write.result, Err(RequestError::ShardStopped), "{kind:?}");
    }
    let discard = RequestKind::Discard { fua: true };
    assert_eq!(
        rig.ask(LIVE, discard, 0, BLOCK, None).result,
        Err(RequestError::ShardStopped)
    );
    let stopped = EventKind::Failed(RequestError::ShardStopped);
    assert_eq!(rig.command(ShardCommand::Checkpoint), stopped);
    let (key, value) = (vec![1], vec![2]);
    assert_eq!(rig.command(ShardCommand::CatalogPut { key, value }), stopped);
    let (snapshot, volumes) = (SnapshotId(1), vec![VOLUME]);
    let reason = crate::command::RefusedReason::ShardStopped;
    assert_eq!(
        rig.command(ShardCommand::Prepare { snapshot, volumes }),
        EventKind::Refused { reason }
    );
    assert_eq!(
        rig.read(LIVE, BLOCK, BLOCK),
        [2; BLOCK],
        "what is there can be read"
    );

    // What was called durable is there after a power cut that leaves nothing else, and the pool works again.
    let mut rig = rig.cut_power(|_| false);
    assert_eq!(rig.read(LIVE, 0, BLOCK), [1; BLOCK]);
    assert_eq!(rig.read(LIVE, BLOCK, BLOCK), [0; BLOCK]);
    rig.write(0, &[4; BLOCK]);
    assert_eq!(flush(&mut rig), Ok(()));
}

/// Two flushes are under way, of what was written before them and of what was written between; the first fails.
#[test]
fn a_flush_that_ends_well_after_another_failed_is_not_called_durable() {
    let mut rig = Rig::with(64 << 20, ShardOptions::default());
    rig.write(0, &[1; BLOCK]);
    rig.processor.device_mut().held = Some(OperationKind::Flush);
    rig.send(request(LIVE, RequestKind::Flush, 0, 0, None));
    rig.turn();
    rig.send(request(
        LIVE,
        RequestKind::Write { fua: true },
        BLOCK,
        BLOCK,
        Some(&[2; BLOCK]),
    ));
    for _ in 0..5 {
        rig.turn();
    }
    assert!(rig.outbox.answers.is_empty(), "both wait");
    rig.processor.device_mut().held = None;
    rig.processor.device_mut().failing = Some(OperationKind::Flush);
    rig.turn();
    rig.processor.device_mut().failing = None;
    rig.settle();
    let answers: Vec<_> = rig.outbox.answers.iter().map(|answer| answer.result).collect();
    assert_eq!(answers, [Err(RequestError::ShardStopped); 2]);
}
