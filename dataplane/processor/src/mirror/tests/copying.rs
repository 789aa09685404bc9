//! What is noted of a side that is out, and copied to it when it is back.

use super::*;

#[test]
fn a_region_is_noted_for_good_before_it_is_written() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.run();
    rig.write(0, 700, 9);
    // The page, then its flush, then the write.
    rig.turn();
    let kinds = |rig: &Rig| -> Vec<OperationKind> {
        rig.room
            .borrow()
            .in_flight
            .iter()
            .map(|(_, operation, _)| operation.kind)
            .collect()
    };
    assert_eq!(kinds(&rig), [OperationKind::Write]);
    assert_eq!(
        rig.room.borrow().in_flight[0].1.transfers[0].offset_bytes,
        BLOCK_BYTES as u64
    );
    rig.room.borrow_mut().finish_all();
    rig.turn();
    assert_eq!(kinds(&rig), [OperationKind::Flush]);
    rig.room.borrow_mut().finish_all();
    rig.turn();
    let offset_bytes = rig.room.borrow().in_flight[0].1.transfers[0].offset_bytes;
    assert_eq!(offset_bytes, rig.block(0, 0, 700) * BLOCK_BYTES as u64);
    rig.room.borrow_mut().finish_all();
    assert_eq!(rig.turn().len(), 1);
    // The next writes there need no page.
    rig.write(0, 701, 9);
    rig.write(0, 64 * 12, 9);
    assert_eq!(rig.room.borrow().in_flight.len(), 2);
    rig.run();
    rig.mirrors.give_back(&mut rig.pool);
    assert_eq!(rig.pool.outside, 0);
}

#[test]
fn a_side_that_comes_back_gets_what_it_lacks_and_joins() {
    let mut rig = Rig::new(1);
    rig.write(1, 900, 3);
    rig.run();
    rig.flush();
    rig.run();
    rig.write(1, 100, 4);
    rig.run();
    rig.without_second();
    for block in [5, 300, 301, 1023] {
        rig.write(0, block, block);
        rig.run();
    }
    rig.come_back(SECOND);
    assert_eq!(rig.stamp(1, 1, 100), 0, "it was not flushed");
    rig.mirrors.resync(SECOND);
    // Reads go on from the first alone; writes go to both.
    rig.read(0, 300, Some(Side::Second));
    rig.write(0, 64 * 9, 11);
    let completed = rig.run();
    assert_eq!(completed.len(), 2);
    let read = completed
        .iter()
        .find(|operation| operation.kind == OperationKind::Read);
    assert_eq!(
        read.map(|read| (stamps(read), read.side)),
        Some((vec![300], None))
    );
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
    let status = rig.status(SECOND);
    assert_eq!(
        (status.state, status.regions_left, status.bytes_left),
        (SideState::Resync, 0, 0)
    );
    // Regions 0, 4 and 15 of shard 0, region 1 of shard 1.
    assert_eq!(status.copied_bytes, 4 * 64 * BLOCK_BYTES as u64);
    rig.mirrors.joined(SECOND);
    assert_eq!(rig.status(SECOND).state, SideState::InSync);
    for (shard, block, stamp) in [
        (0, 0, 1),
        (0, 5, 5),
        (0, 301, 301),
        (0, 1023, 1023),
        (1, 100, 4),
        (0, 576, 11),
    ] {
        assert_eq!(rig.stamp(1, shard, block), stamp);
    }
    assert_eq!(rig.stamp(1, 1, 900), 3, "it was there all the time");
    rig.read(0, 5, Some(Side::Second));
    assert_eq!(rig.one().side, Some(Side::Second));
}

#[test]
fn another_device_gets_everything() {
    let mut rig = Rig::new(1);
    rig.write(1, 900, 3);
    rig.run();
    rig.without_second();
    rig.come_back(SECOND);
    rig.mirrors.replaced(SECOND, 7);
    rig.mirrors.resync(SECOND);
    assert_eq!(
        rig.status(SECOND).bytes_left,
        2 * SLICE_BLOCKS * BLOCK_BYTES as u64
    );
    rig.run();
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
    assert_eq!(rig.stamp(1, 1, 900), 3);
}

/// What the old device lacked is not what the new one lacks, whenever the pages are read.
#[test]
fn from_the_first_page_on_another_device_lacks_everything() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(0, 300, 1);
    rig.run();
    rig.mirrors.replaced(SECOND, 7);
    rig.write(0, 301, 2);
    rig.run();
    let words = rig.stale(SECOND, 0, 7).expect("a page of this episode");
    let regions: u32 = words.iter().map(|word| word.count_ones()).sum();
    assert_eq!(u64::from(regions), SLICE_BLOCKS / 64, "all of them");
}

#[test]
fn copying_keeps_to_its_rate_and_waits_for_buffers() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(0, 500, 1);
    rig.run();
    rig.come_back(SECOND);
    // A chunk each second.
    rig.mirrors.set_rate(64 * BLOCK_BYTES as u64);
    rig.mirrors.resync(SECOND);
    rig.pool.is_dry = true;
    rig.turn();
    assert!(!rig.mirrors.has_ready_work(), "no buffer");
    rig.now_ns = rig.mirrors.next_deadline_ns().expect("to be tried again");
    rig.pool.is_dry = false;
    let begun_ns = rig.now_ns;
    rig.run();
    assert_eq!(rig.status(SECOND).regions_left, 1);
    assert_eq!(rig.mirrors.next_deadline_ns(), Some(begun_ns + 1_000_000_000));
    rig.now_ns = begun_ns + 1_000_000_000;
    rig.run();
    assert_eq!(rig.status(SECOND).regions_left, 0);
    assert!(matches!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { .. })
    ));
}

#[test]
fn writes_and_the_chunk_they_overlap_wait_for_each_other() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.run();
    rig.write(0, 1, 21);
    rig.come_back(SECOND);
    rig.mirrors.resync(SECOND);
    rig.turn();
    // The write is in flight, to the first side alone: the chunk waits for it.
    assert_eq!(rig.room.borrow().in_flight.len(), 1);
    assert!(!rig.mirrors.has_ready_work());
    // And this one for the chunk.
    rig.write(0, 2, 22);
    assert_eq!(rig.room.borrow().in_flight.len(), 1);
    rig.room.borrow_mut().finish_all();
    assert_eq!(rig.turn().len(), 1);
    rig.turn();
    assert_eq!(rig.room.borrow().in_flight[0].1.kind, OperationKind::Read);
    assert_eq!(rig.one().result, Ok(()));
    assert_eq!([rig.stamp(1, 0, 1), rig.stamp(1, 0, 2)], [21, 22]);
}

#[test]
fn without_memory_writes_are_noted_all_the_same_and_wait_for_no_chunk() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.run();
    rig.pool.is_dry = true;
    // A page each, one after the other.
    rig.write(0, 500, 1);
    rig.write(1, 500, 1);
    assert_eq!(rig.run().len(), 2);
    // Chunk and write wait for each other; without memory for the chunk the write goes on.
    rig.write(0, 1, 21);
    rig.come_back(SECOND);
    rig.mirrors.resync(SECOND);
    rig.turn();
    rig.write(0, 2, 22);
    assert_eq!(rig.run().len(), 2);
    assert_eq!(rig.status(SECOND).copied_bytes, 0);
}

#[test]
fn what_cannot_be_copied_keeps_the_side_out_until_it_can() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(0, 500, 1);
    rig.run();
    rig.come_back(SECOND);
    let block = rig.block(0, 0, 0);
    rig.room.borrow_mut().disks[0].unreadable.insert(block);
    rig.mirrors.resync(SECOND);
    rig.run();
    let told = MirrorNotice::CannotCopy {
        at: SECOND,
        offset_bytes: block * BLOCK_BYTES as u64,
        error: DeviceError::Os(5),
    };
    assert_eq!(
        (rig.mirrors.take_notice(), rig.mirrors.take_notice()),
        (Some(told), None)
    );
    assert_eq!(rig.status(SECOND).regions_left, 1, "the rest is there");
    rig.mirrors.joined(SECOND);
    assert_eq!(rig.status(SECOND).state, SideState::Resync, "nobody may say so");
    rig.room.borrow_mut().disks[0].unreadable.clear();
    rig.mirrors.resync(SECOND);
    rig.run();
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
}

#[test]
fn a_side_that_fails_again_goes_out_again() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(0, 500, 1);
    rig.run();
    rig.come_back(SECOND);
    rig.mirrors.resync(SECOND);
    rig.run();
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
    rig.lose(SECOND);
    rig.write(0, 900, 2);
    assert!(rig.run().is_empty(), "the labels may say in sync by now");
    assert!(matches!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::SideFailed { .. })
    ));
    rig.mirrors.joined(SECOND);
    assert!(rig.run().is_empty(), "too late");
    rig.mirrors.out(SECOND, 9);
    assert_eq!(rig.one().result, Ok(()));
    rig.run();
    // What was copied and flushed is not lacking, but what was written since is.
    let words = rig.stale(SECOND, 0, 9).expect("a page");
    assert_eq!(words[0] >> 14 & 1, 1);
    assert_eq!(words[0] & 1, 0);
}

#[test]
fn a_pool_goes_on_from_the_stale_pages() {
    let mut rig = Rig::new(1);
    rig.without_second();
    rig.write(1, 640, 6);
    rig.run();
    let stale: Vec<StaleAt> = (0..SHARDS)
        .map(|shard| {
            let mut port = Port {
                room: Rc::clone(&rig.room),
                index: 9,
            };
            load_stale(&mut port, &rig.layout, ShardIndex(shard), SECOND, 5)
        })
        .collect();
    let sides = [[SideState::InSync, SideState::Out]];
    let mut again = Rig::over(Rc::clone(&rig.room), rig.layout.clone(), &sides, stale);
    again.come_back(SECOND);
    again.mirrors.resync(SECOND);
    let left = again.status(SECOND).regions_left;
    assert!(
        (2..=20).contains(&left),
        "{left}: what was noted, and not everything"
    );
    again.run();
    assert_eq!(
        again.mirrors.take_notice(),
        Some(MirrorNotice::Resynced { at: SECOND })
    );
    assert_eq!([again.stamp(1, 0, 0), again.stamp(1, 1, 640)], [1, 6]);
    // Without pages everything is copied.
    let all = Rig::over(Rc::clone(&rig.room), rig.layout.clone(), &sides, Vec::new());
    assert_eq!(all.status(SECOND).regions_left, 2 * SLICE_BLOCKS / 64);
}
