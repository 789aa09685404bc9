//! What is asked of two sides, and what becomes of it when one fails.

use super::*;

#[test]
fn a_write_goes_to_both_sides_and_a_read_to_one() {
    let mut rig = Rig::new(2);
    let tag = rig.write(1, 10, 77);
    let written = rig.one();
    assert_eq!((written.tag, written.result, written.side), (tag, Ok(()), None));
    assert_eq!(
        (written.transfers.len(), written.transfers[0].device),
        (1, DeviceIndex(0))
    );
    assert_eq!([rig.stamp(0, 1, 10), rig.stamp(1, 1, 10)], [77, 77]);
    let mut served = [0; 2];
    for _ in 0..10 {
        rig.read(1, 10, None);
        let read = rig.one();
        assert_eq!(stamps(&read), [77]);
        served[read.side.expect("there is another").index()] += 1;
    }
    assert_eq!(served, [5, 5], "both have a share");
    rig.read(1, 10, Some(Side::Second));
    assert_eq!(rig.one().side, Some(Side::Second));
    assert!(rig.mirrors.is_quiet());
    // A repair goes to one.
    let mut repair = operation(OperationKind::Write, 1, 0, 0, rig.block(1, 0, 10), 1);
    put_stamp(&mut repair, 0, 78);
    repair.side = Some(Side::First);
    rig.submit(repair);
    assert_eq!(rig.one().result, Ok(()));
    assert_eq!([rig.stamp(0, 1, 10), rig.stamp(1, 1, 10)], [78, 77]);
}

#[test]
fn the_less_busy_side_is_asked() {
    let mut rig = Rig::new(1);
    for _ in 0..4 {
        rig.read(0, 1, Some(Side::Second));
    }
    for _ in 0..4 {
        rig.read(0, 1, None);
    }
    let of_first = |(_, read, _): &&(usize, Box<Operation>, u64)| read.transfers[0].device.0 == 0;
    assert_eq!(rig.room.borrow().in_flight.iter().filter(of_first).count(), 4);
    assert_eq!(rig.run().len(), 8);
}

#[test]
fn a_full_queue_gives_the_operation_back_as_it_was() {
    let mut rig = Rig::new(1);
    rig.room.borrow_mut().depth = 0;
    for kind in [OperationKind::Write, OperationKind::Read, OperationKind::Flush] {
        let count = u64::from(kind != OperationKind::Flush);
        let mut sent = operation(kind, 1, 99, 0, rig.block(1, 0, 3) * count, count);
        sent.side = None;
        let Err(Full(back)) = rig.mirrors.submit(sent) else {
            panic!("there is no room");
        };
        assert_eq!(
            (back.tag, back.kind, back.side, back.transfers.len()),
            (99, kind, None, 1)
        );
        assert_eq!(back.transfers[0].device, DeviceIndex(0));
    }
    assert!(rig.mirrors.is_quiet());
}

#[test]
fn an_answer_that_rests_on_one_side_waits_for_the_labels() {
    let mut rig = Rig::new(1);
    rig.lose(SECOND);
    rig.write(0, 3, 7);
    assert!(rig.run().is_empty(), "kept back");
    assert!(!rig.mirrors.is_quiet());
    let notice = rig.mirrors.take_notice();
    let error = DeviceError::Gone;
    assert_eq!(notice, Some(MirrorNotice::SideFailed { at: SECOND, error }));
    assert_eq!(rig.mirrors.take_notice(), None, "told once");
    // What comes meanwhile waits too, but reads do not.
    rig.write(1, 70, 8);
    rig.flush();
    rig.read(0, 3, None);
    let read = rig.one();
    assert_eq!(
        (read.kind, stamps(&read), read.side),
        (OperationKind::Read, vec![7], None)
    );
    rig.mirrors.out(SECOND, 5);
    let answered = rig.run();
    assert_eq!(answered.len(), 3);
    assert!(answered.iter().all(|operation| operation.result.is_ok()));
    assert_eq!([rig.stamp(0, 0, 3), rig.stamp(0, 1, 70)], [7, 8]);
    assert_eq!(rig.status(SECOND).state, SideState::Out);
    // Region 1 of shard 1, and what lies ahead of it.
    assert_eq!(rig.stale(SECOND, 0, 5).expect("a page")[0] & 1, 1);
    assert_eq!(rig.stale(SECOND, 1, 5).expect("a page")[0] & 2, 2);
    assert_eq!(rig.stale(SECOND, 1, 6), None, "of another time");
}

#[test]
fn when_both_sides_fail_the_error_is_told() {
    let mut rig = Rig::new(1);
    for disk in &mut rig.room.borrow_mut().disks {
        disk.fails = Some(OperationKind::Write);
    }
    rig.write(0, 3, 7);
    assert_eq!(rig.one().result, Err(DeviceError::Os(5)));
    // The last one fails.
    let mut alone = Rig::new(1);
    alone.without_second();
    alone.room.borrow_mut().disks[0].fails = Some(OperationKind::Flush);
    alone.flush();
    assert_eq!(alone.one().result, Err(DeviceError::Os(5)));
    assert_eq!(alone.mirrors.take_notice(), None, "there is nothing to change");
    alone.room.borrow_mut().disks[0].fails = Some(OperationKind::Write);
    alone.write(1, 500, 1);
    assert_eq!(alone.one().result, Err(DeviceError::Os(5)), "nor can it be noted");
    alone.room.borrow_mut().disks[0].fails = None;
    alone.write(1, 500, 1);
    assert_eq!(alone.one().result, Ok(()), "noted at the second try");
}

#[test]
fn labels_that_cannot_be_written_end_the_waiting() {
    let mut rig = Rig::new(1);
    rig.lose(SECOND);
    rig.write(0, 3, 7);
    assert!(rig.run().is_empty());
    rig.flush();
    rig.mirrors.lost(DeviceIndex(0), DeviceError::Os(28));
    let answers = rig.run();
    assert_eq!(answers.len(), 2);
    assert!(
        answers
            .iter()
            .all(|operation| operation.result == Err(DeviceError::Os(28)))
    );
    rig.read(0, 3, None);
    assert_eq!(rig.one().result, Ok(()));
}

#[test]
fn the_labels_decide_if_two_processors_saw_different_sides_fail() {
    let mut rig = Rig::new(1);
    rig.lose(SECOND);
    rig.write(0, 3, 7);
    assert!(rig.run().is_empty());
    // Another processor saw the first side fail, and it is that one that the labels say is out.
    rig.come_back(SECOND);
    rig.mirrors.out(FIRST, 5);
    assert_eq!(
        rig.one().result,
        Err(DeviceError::Gone),
        "the side that stays lacks it"
    );
    rig.write(0, 3, 8);
    assert_eq!(rig.one().result, Ok(()));
    assert_eq!(rig.stamp(1, 0, 3), 8);
}

#[test]
fn what_one_side_cannot_read_the_other_answers_and_the_shard_is_told() {
    let mut rig = Rig::new(1);
    rig.write(0, 3, 7);
    rig.run();
    let block = rig.block(0, 0, 3);
    let error = DeviceError::Os(5);
    rig.room.borrow_mut().disks[1].unreadable.insert(block);
    rig.read(0, 3, Some(Side::Second));
    let read = rig.one();
    assert_eq!(
        (read.result, stamps(&read), read.kind),
        (Ok(()), vec![7], OperationKind::Read)
    );
    assert_eq!(
        (read.side, &read.failures[..]),
        (Some(Side::Second), &[(0, error)][..])
    );
    // Nothing is written that nobody has looked at.
    assert!(rig.room.borrow().disks[1].unreadable.contains(&block));
    assert_eq!(rig.mirrors.take_notice(), None);
    assert_eq!(rig.status(SECOND).repaired_reads, 0);
    // The shard has, and writes it.
    rig.repair(0, 3, 7, Side::Second);
    assert_eq!(rig.one().result, Ok(()));
    assert!(rig.room.borrow().disks[1].unreadable.is_empty());
    assert_eq!(rig.status(SECOND).repaired_reads, 1);
    // Both cannot.
    for disk in &mut rig.room.borrow_mut().disks {
        disk.unreadable.insert(block);
    }
    rig.read(0, 3, None);
    let read = rig.one();
    assert_eq!((read.result, &read.failures[..]), (Err(error), &[][..]));
    // It cannot be written back: that side is out.
    rig.room.borrow_mut().disks[1].fails = Some(OperationKind::Write);
    rig.repair(0, 3, 7, Side::Second);
    assert_eq!(rig.one().result, Err(error));
    assert_eq!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::SideFailed { at: SECOND, error })
    );
}

#[test]
fn a_read_that_a_side_fails_goes_to_the_other_at_once_and_back_only_if_that_fails_too() {
    let mut rig = Rig::new(1);
    rig.write(0, 3, 7);
    rig.run();
    let block = rig.block(0, 0, 3);
    let asked = |rig: &Rig| {
        let room = rig.room.borrow();
        let reads = room.in_flight.iter().map(|(_, read, _)| {
            assert_eq!(read.kind, OperationKind::Read);
            (read.transfers[0].device.0, read.is_tried_once)
        });
        reads.collect::<Vec<_>>()
    };
    let fail = |rig: &Rig, below: usize| {
        let mut room = rig.room.borrow_mut();
        room.disks[below].unreadable.insert(block);
        room.finish_all();
        room.disks[below].unreadable.clear();
    };
    rig.read(0, 3, Some(Side::Second));
    assert_eq!(asked(&rig), [(1, true)], "nobody waits for its tries");
    fail(&rig, 1);
    assert!(rig.turn().is_empty());
    assert_eq!(asked(&rig), [(0, false)], "there is no third side");
    fail(&rig, 0);
    assert!(rig.turn().is_empty());
    assert_eq!(asked(&rig), [(1, false)], "now it may take its time");
    let read = rig.one();
    assert_eq!((read.result, stamps(&read)), (Ok(()), vec![7]));
    assert_eq!(&read.failures[..], &[][..], "it has it, after all");
    // Alone there is nothing else to ask.
    rig.without_second();
    rig.run();
    rig.read(0, 3, None);
    assert_eq!(asked(&rig), [(0, false)]);
    assert_eq!(rig.one().result, Ok(()));
}

/// The second side is lost, comes back and joins while something that was asked of it before has not ended.
fn second_joins_again(rig: &mut Rig) {
    let old = rig.room.borrow_mut().in_flight.pop().expect("in flight");
    rig.lose(SECOND);
    rig.mirrors.out(SECOND, 5);
    rig.run();
    rig.come_back(SECOND);
    rig.mirrors.resync(SECOND);
    rig.run();
    rig.mirrors.joined(SECOND);
    assert_eq!(rig.status(SECOND).state, SideState::InSync);
    rig.room.borrow_mut().in_flight.push((old.0, old.1, 0b10));
}

#[test]
fn what_a_side_failed_before_it_joined_again_is_not_held_against_it() {
    let mut rig = Rig::new(1);
    rig.write(1, 3, 7);
    rig.run();
    rig.flush();
    second_joins_again(&mut rig);
    // And now the first side is lost, on which it had not ended either.
    rig.lose(FIRST);
    assert!(rig.run().is_empty());
    rig.mirrors.take_notice();
    assert!(matches!(
        rig.mirrors.take_notice(),
        Some(MirrorNotice::SideFailed { at: FIRST, .. })
    ));
    rig.mirrors.out(FIRST, 6);
    assert_eq!(
        rig.one().result,
        Ok(()),
        "the second had flushed all of it before it joined"
    );

    let mut rig = Rig::new(1);
    rig.write(1, 3, 7);
    rig.run();
    rig.read(1, 3, Some(Side::Second));
    second_joins_again(&mut rig);
    rig.lose(FIRST);
    rig.mirrors.out(FIRST, 6);
    let read = rig.one();
    assert_eq!(
        (read.result, stamps(&read)),
        (Ok(()), vec![7]),
        "it is asked again"
    );
}

#[test]
fn what_a_side_says_after_it_went_out_is_not_believed() {
    let mut rig = Rig::new(1);
    rig.write(1, 3, 7);
    rig.run();
    rig.read(1, 3, Some(Side::Second));
    rig.mirrors.out(SECOND, 5);
    // It is there again, without what it had not flushed, and only now does what it was asked.
    rig.come_back(SECOND);
    assert_eq!(rig.stamp(1, 1, 3), 0);
    rig.mirrors.resync(SECOND);
    assert_eq!(stamps(&rig.one()), [7]);
}

#[test]
fn without_mirrors_everything_passes_through() {
    let layout = layout(1);
    let room = Room::new(1, layout.devices[0].size_blocks);
    let mut plain = Mirrors::plain(Port {
        room: Rc::clone(&room),
        index: 0,
    });
    let mut write = operation(OperationKind::Write, 0, 3, 0, 300, 1);
    put_stamp(&mut write, 0, 5);
    plain.submit(write).expect("room");
    room.borrow_mut().finish_all();
    let mut completed = Vec::new();
    plain.poll(&mut completed);
    assert_eq!(
        (
            completed.len(),
            completed[0].tag,
            room.borrow().disks[0].stamp(300)
        ),
        (1, 3, 5)
    );
    assert!(plain.is_quiet() && !plain.has_ready_work() && plain.status().is_empty());
    assert!(!plain.turn(Now::default(), &mut Pool::default()));
}
