//! Devices that make single writes durable: flushes are spared where there is nothing else for them to do.

use super::*;

/// A shard with a volume, over a device that loses what was neither flushed nor written durably.
fn rig(durable_writes: bool) -> Rig {
    let mut rig = Rig::new(64 << 20);
    let device = rig.processor.device_mut();
    device.durable_writes = durable_writes;
    device.unflushed = Some(Vec::new());
    rig
}

fn write(rig: &mut Rig, block: usize, fill: u8, fua: bool) {
    let kind = RequestKind::Write { fua };
    let answer = rig.ask(LIVE, kind, block * BLOCK, BLOCK, Some(&[fill; BLOCK]));
    assert_eq!(answer.result, Ok(()));
}

/// Flushes and durable writes that the device got while `act` ran.
fn counted(rig: &mut Rig, act: impl FnOnce(&mut Rig)) -> (u64, u64) {
    let before = rig.processor.device_mut().counts;
    act(rig);
    let after = rig.processor.device_mut().counts;
    (after.0 - before.0, after.1 - before.1)
}

fn discard(rig: &mut Rig, block: usize) {
    let kind = RequestKind::Discard { fua: true };
    let answer = rig.ask(LIVE, kind, block * BLOCK, BLOCK, None);
    assert_eq!(answer.result, Ok(()));
}

#[test]
fn records_alone_need_no_flush_and_survive_a_power_cut() {
    for (durable_writes, counts) in [(true, (0, 20)), (false, (20, 0))] {
        let mut rig = rig(durable_writes);
        (0..40).for_each(|block| write(&mut rig, block, 7, false));
        write(&mut rig, 40, 7, true);
        let counted = counted(&mut rig, |rig| (0..20).for_each(|block| discard(rig, block)));
        assert_eq!(counted, counts);
        let mut rig = rig.cut_power(|_| false);
        for block in 0..41 {
            let expected = if block < 20 { 0 } else { 7 };
            assert_eq!(rig.read(LIVE, block * BLOCK, BLOCK), [expected; BLOCK]);
        }
    }
}

#[test]
fn data_has_its_flush() {
    let mut rig = rig(true);
    for block in [0, 9, 10] {
        write(&mut rig, block, 1, false);
    }
    let counts = counted(&mut rig, |rig| write(rig, 1, 2, true));
    assert_eq!(counts, (1, 0));
    // The flush made all of it durable. Then data comes before the record that waits.
    let counts = counted(&mut rig, |rig| discard(rig, 9));
    assert_eq!(counts, (0, 1));
    write(&mut rig, 2, 3, false);
    let counts = counted(&mut rig, |rig| discard(rig, 10));
    assert_eq!(counts, (1, 0), "its log page has the record of the write too");
    let mut rig = rig.cut_power(|_| false);
    for block in 0..3 {
        assert_eq!(rig.read(LIVE, block * BLOCK, BLOCK), [block as u8 + 1; BLOCK]);
    }
}

#[test]
fn a_snapshot_of_what_is_durable_needs_no_flush() {
    let mut rig = rig(true);
    write(&mut rig, 0, 1, true);
    let counts = counted(&mut rig, |rig| _ = rig.snapshot(1));
    assert_eq!(counts.0, 0);
    write(&mut rig, 0, 2, true);
    discard(&mut rig, 0);
    let mut rig = rig.cut_power(|_| false);
    assert_eq!(rig.read(LIVE, 0, BLOCK), [0; BLOCK]);
    let snapshot = View {
        volume: VOLUME,
        snapshot: Some(SnapshotId(1)),
    };
    assert_eq!(rig.read(snapshot, 0, BLOCK), [1; BLOCK]);
}

#[test]
fn the_header_of_a_checkpoint_is_written_durably_behind_the_flush_of_its_pages() {
    for (durable_writes, flushes) in [(true, 1), (false, 2)] {
        let mut rig = rig(durable_writes);
        (0..50).for_each(|block| write(&mut rig, block, 7, false));
        let counts = counted(&mut rig, |rig| {
            assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
        });
        assert_eq!(counts.0, flushes);
        let mut rig = rig.cut_power(|_| false);
        for block in 0..50 {
            assert_eq!(rig.read(LIVE, block * BLOCK, BLOCK), [7; BLOCK]);
        }
    }
}

#[test]
fn a_durable_write_that_fails_stops_the_shard() {
    let mut rig = rig(true);
    write(&mut rig, 0, 1, true);
    rig.processor.device_mut().failing = Some(OperationKind::Write);
    let kind = RequestKind::Discard { fua: true };
    let answer = rig.ask(LIVE, kind, 0, BLOCK, None);
    assert_eq!(answer.result, Err(RequestError::ShardStopped));
}
