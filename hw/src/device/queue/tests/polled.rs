use super::*;
use crate::device::queue::polled::reads_polled;
use crate::discovery::Polled;

/// The devices of a pool of one file whose completions are polled for, whether its file system can that or not.
fn polled_in(place: &Path) -> (Devices, Ring, tempfile::TempDir) {
    let (devices, ring, directory) = one_file_as(place, |file| file.with_polled(Polled::up_to(4096)));
    assert!(devices.targets.at(0).polled.is_some(), "a ring that is polled");
    (devices, ring, directory)
}

/// Has an operation done by whatever rings it goes through; gives it back, and whether it had to be polled for.
fn done(devices: &mut Devices, ring: &mut Ring, operation: Box<Operation>) -> (Box<Operation>, bool) {
    assert!(devices.submit(operation).is_ok());
    devices.start(ring);
    let polled = devices.must_be_polled();
    assert_eq!(devices.may_sleep(ring), !polled, "nothing would wake who sleeps");
    let (mut completions, mut back) = (Vec::new(), Vec::new());
    while back.is_empty() {
        ring.submit().expect("the ring works");
        ring.reap(&mut completions);
        for completion in completions.drain(..) {
            devices.complete(completion);
        }
        devices.poll(&mut back);
        devices.start(ring);
    }
    assert_eq!((devices.in_kernel, devices.must_be_polled()), (0, false));
    (back.remove(0), polled)
}

/// The file systems that are there: of the usual ones the kernel polls for some, and in memory for none.
fn places() -> impl Iterator<Item = std::path::PathBuf> {
    let memory = Path::new("/dev/shm").to_owned();
    [std::env::temp_dir(), memory]
        .into_iter()
        .filter(|place| place.is_dir())
}

#[test]
fn reads_and_writes_are_polled_for_and_go_the_other_way_where_the_kernel_does_not() {
    for place in places() {
        let (mut devices, mut ring, _directory) = polled_in(&place);
        let file = devices.files.get(0).expect("in its place");
        let can = reads_polled(&*file);
        let mut write = read();
        write.kind = OperationKind::Write;
        write.buffers[0].bytes_mut().fill(7);
        let (write, polled) = done(&mut devices, &mut ring, write);
        assert_eq!((write.result, polled), (Ok(()), true), "{place:?}");
        assert_eq!(
            devices.targets.at(0).polled.is_some(),
            can,
            "{place:?}: it was tried once"
        );
        assert_eq!(file.is_polled(), can, "{place:?}: and everybody can see it");
        let (back, polled) = done(&mut devices, &mut ring, read());
        assert_eq!((back.result, polled), (Ok(()), can), "{place:?}");
        let DeviceFigures { reads, writes, .. } = devices.figures();
        assert_eq!((reads, writes), (1, 1), "{place:?}: each was done once");
        assert!(back.buffers[0].bytes().iter().all(|&byte| byte == 7));
        drop(file);
        devices.close(&mut ring);
    }
}

#[test]
fn what_may_need_a_flush_or_is_long_or_is_no_transfer_is_not_polled_for() {
    for place in places() {
        let (mut devices, mut ring, _directory) = polled_in(&place);
        let mut durable = read();
        (durable.kind, durable.durable) = (OperationKind::Write, true);
        let mut flush = Operation::new();
        flush.transfers.push(transfer(0));
        let mut zeros = Operation::new();
        zeros.kind = OperationKind::WriteZeroes;
        zeros.transfers.push(transfer(4096));
        zeros.transfers[0].segment_count = 0;
        let mut long = read();
        long.segments.push(long.segments[0]);
        long.transfers[0] = Transfer {
            segment_count: 2,
            ..transfer(8192)
        };
        for operation in [durable, flush, zeros, long] {
            let kind = operation.kind;
            let (operation, polled) = done(&mut devices, &mut ring, operation);
            assert_eq!(
                (operation.result, polled),
                (Ok(()), false),
                "{kind:?} in {place:?}"
            );
        }
        assert!(devices.targets.at(0).polled.is_some());
        devices.close(&mut ring);
    }
}

#[test]
fn what_cannot_be_read_is_not_polled_for() {
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    assert!(!reads_polled(&reader));
}

#[test]
fn a_device_whose_ring_cannot_be_made_is_not_called_polled() {
    let (mut devices, mut ring, _directory) = polled_in(&std::env::temp_dir());
    let file = devices.files.get(0).expect("in its place");
    assert!(file.is_polled());
    // There is no room in the ring for so many.
    assert!(!devices.make_polled(usize::MAX, &file));
    assert!(!file.is_polled());
    drop(file);
    devices.close(&mut ring);
}
