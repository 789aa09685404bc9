//! What takes a hand inside: pauses, devices that keep all, and those that are polled.

mod polled;

use super::*;
use crate::buffers::CHUNK_BYTES;
use crate::device::DeviceFile;
use crate::device::nvme::ring::Ended;
use crate::ring::RingOptions;
use commands::Namespace;
use io_uring::types::Timespec;
use std::path::Path;
use std::time::Duration;
use stillpoint_processor::ids::DeviceIndex;
use stillpoint_processor::ports::{Buffer, Segment, Transfer};

/// The devices of a pool of one file, and their ring.
fn one_file() -> (Devices, Ring, tempfile::TempDir) {
    one_file_in(&std::env::temp_dir())
}

/// The same, on the file system there.
fn one_file_in(place: &Path) -> (Devices, Ring, tempfile::TempDir) {
    one_file_as(place, |file| file)
}

/// The same, served in this way.
fn one_file_as(
    place: &Path,
    served: impl FnOnce(DeviceFile) -> DeviceFile,
) -> (Devices, Ring, tempfile::TempDir) {
    let directory = tempfile::tempdir_in(place).expect("a directory");
    let file = DeviceFile::create(&directory.path().join("device"), 1 << 20).expect("made");
    let file = served(file);
    let mut ring = Ring::new(RingOptions::default()).expect("io_uring");
    let arenas = Arenas::map(1, CHUNK_BYTES).expect("memory");
    let devices = Devices::new(PoolFiles::new(vec![file]), arenas, 0, &mut ring);
    (devices, ring, directory)
}

fn read() -> Box<Operation> {
    let memory = Box::leak(vec![0u8; 3 * 4096].into_boxed_slice());
    let start = memory.as_ptr().align_offset(4096);
    let mut read = Operation::new();
    read.kind = OperationKind::Read;
    read.buffers
        .push(Buffer::from_arena(&mut memory[start..start + 4096], 0));
    read.segments.push(Segment {
        buffer: 0,
        offset_bytes: 0,
        length_bytes: 4096,
    });
    read.transfers.push(transfer(4096));
    read
}

fn transfer(length_bytes: u64) -> Transfer {
    Transfer {
        device: DeviceIndex(0),
        offset_bytes: 0,
        length_bytes,
        first_segment: 0,
        segment_count: u32::from(length_bytes > 0),
    }
}

/// Waits for one completion, and has it taken in.
fn complete_one(devices: &mut Devices, ring: &mut Ring) {
    let mut completions = Vec::new();
    while completions.is_empty() {
        ring.wait(None).expect("the ring works");
        ring.reap(&mut completions);
    }
    completions
        .drain(..)
        .for_each(|completion| devices.complete(completion));
}

/// A read that is to wait for a while before it is tried, begun.
fn read_after_a_pause(devices: &mut Devices, ring: &mut Ring) {
    assert!(devices.submit(read()).is_ok());
    let (slot, part) = devices.ready[0];
    let piece = &mut devices.slots[slot as usize].parts[part as usize];
    piece.pause = Some(Timespec::from(Duration::from_millis(20)));
    devices.start(ring);
    assert_eq!((devices.in_kernel, devices.figures.reads), (1, 0), "it waits");
}

#[test]
fn what_waits_before_it_is_tried_again_blocks_nobody_and_is_done_afterwards() {
    let (mut devices, mut ring, _directory) = one_file();
    let begun = std::time::Instant::now();
    read_after_a_pause(&mut devices, &mut ring);
    complete_one(&mut devices, &mut ring);
    assert!(begun.elapsed() >= Duration::from_millis(20));
    assert_eq!((devices.in_kernel, devices.ready.len()), (0, 1));
    devices.start(&mut ring);
    assert_eq!(devices.figures.reads, 1);
    complete_one(&mut devices, &mut ring);
    let mut back = Vec::new();
    devices.poll(&mut back);
    assert_eq!(back[0].result, Ok(()));
    devices.close(&mut ring);
}

#[test]
fn what_waits_when_its_device_leaves_ends_without_it() {
    let (mut devices, mut ring, _directory) = one_file();
    read_after_a_pause(&mut devices, &mut ring);
    devices.detach(0, &mut ring);
    assert!(devices.targets.at(0).in_kernel > 0, "the device is still held");
    complete_one(&mut devices, &mut ring);
    let mut back = Vec::new();
    devices.poll(&mut back);
    assert_eq!(back[0].result, Err(DeviceError::Gone));
    devices.start(&mut ring);
    assert!(devices.targets.number_of(DeviceIndex(0)).is_none() && !devices.targets.someone_left());
    assert_eq!(Arc::strong_count(&devices.files.get(0).expect("in its place")), 2);
    devices.close(&mut ring);
}

#[test]
fn what_the_kernel_never_does_fails_after_half_a_minute_of_pauses() {
    let (mut devices, ring, _directory) = one_file();
    for (busy, progress) in [(libc::EAGAIN, false), (libc::EINTR, true)] {
        assert!(devices.submit(read()).is_ok());
        let (slot, part) = devices.ready.pop_front().expect("it is ready");
        let mut waited = Duration::ZERO;
        let mut tries = 0;
        loop {
            devices.moved(slot, part, -busy);
            if devices.ready.pop_front().is_none() {
                break;
            }
            let piece = &mut devices.slots[slot as usize].parts[part as usize];
            assert!(piece.pause.take().is_some(), "nobody tries without a pause");
            waited += busy_pause(piece.tries - 1);
            tries += 1;
            if progress && tries == 20 {
                // What gets on, however slowly, is not given up.
                devices.moved(slot, part, 512);
                assert!(devices.ready.pop_front().is_some());
            }
            assert!(tries < 100, "it ends");
        }
        let expected = usize::from(BUSY_TRIES_MAX) + if progress { 20 } else { 0 };
        assert_eq!(tries, expected);
        assert!(
            waited > Duration::from_secs(20) && waited < Duration::from_secs(60),
            "{waited:?}"
        );
        let mut back = Vec::new();
        devices.poll(&mut back);
        assert_eq!(back[0].result, Err(DeviceError::Os(busy)));
        assert_eq!(back[0].failures, [(0, DeviceError::Os(busy))]);
    }
    assert_eq!(devices.in_flight(), 0);
    drop(ring);
}

#[test]
fn zeros_are_cut_as_the_namespace_takes_them_and_written_when_it_refuses_the_command() {
    // Invalid opcode, invalid field.
    for status in [0x001, 0x002] {
        zeros_that_are_refused(status);
    }
}

fn zeros_that_are_refused(status: u16) {
    let (mut devices, mut ring, _directory) = one_file();
    let mut namespace = Namespace::out_of_reach(true);
    namespace.zero_bytes_max = 32 << 10;
    let target = devices.targets.at_mut(0);
    (target.namespace, target.zeroes) = (Some(namespace), true);
    let mut zeros = Operation::new();
    zeros.kind = OperationKind::WriteZeroes;
    zeros.transfers.push(transfer(100 << 10));
    zeros.transfers[0].segment_count = 0;
    assert!(devices.submit(zeros).is_ok());
    let (slot, part) = devices.ready[3];
    let parts = &devices.slots[slot as usize].parts;
    let ranges: Vec<_> = (parts.iter())
        .map(|part| (part.offset_bytes >> 10, part.left_bytes >> 10))
        .collect();
    assert_eq!(ranges, [(0, 32), (32, 32), (64, 32), (96, 4)]);
    // The first three are done by it; then it does not know the command.
    for (slot, part) in devices.ready.drain(..3).collect::<Vec<_>>() {
        devices.zeroed_by_command(slot, part, None);
    }
    devices.ready.clear();
    let refused = status::error(status);
    devices.zeroed_by_command(slot, part, Some(refused));
    assert_eq!(devices.ready.pop_front(), Some((slot, part)));
    // All who have the device know it, also those who attach it from now on.
    assert!(!devices.targets.at(0).makes_zeroes());
    let file = devices.files.get(0).expect("in its place");
    assert_eq!(file.refused_zeroes(), Some(refused));
    drop(file);
    // Written in two steps.
    for step_bytes in [1024, 3072] {
        assert_eq!(devices.in_flight(), 1);
        devices.slots[slot as usize].parts[part as usize].step_bytes = step_bytes;
        devices.zeroed_by_command(slot, part, None);
        devices.ready.clear();
    }
    let mut back = Vec::new();
    devices.poll(&mut back);
    assert_eq!((back[0].result, devices.figures.written_bytes), (Ok(()), 4096));
    // The next ones are not cut for a command that it does not have.
    back[0].transfers[0].length_bytes = 100 << 10;
    assert!(devices.submit(back.remove(0)).is_ok());
    assert_eq!(devices.ready.drain(..).count(), 1);
    devices.detach(0, &mut ring);
    devices.close(&mut ring);
}

#[test]
fn a_flush_goes_to_no_device_that_keeps_all_without() {
    let (mut devices, mut ring, _directory) = one_file();
    devices.targets.at_mut(0).namespace = Some(Namespace::out_of_reach(false));
    let mut flush = Operation::new();
    flush.transfers.push(transfer(0));
    assert!(devices.submit(flush).is_ok());
    let mut back = Vec::new();
    devices.poll(&mut back);
    assert_eq!((back[0].result, devices.figures.flushes), (Ok(()), 0));
    assert!(devices.ready.is_empty() && devices.in_flight() == 0);
    assert!(
        !devices.targets.at(0).writes_durably(),
        "there a flush costs nothing"
    );
    // With a cache that could lose it, one would be sent; and a durable write costs less.
    devices.targets.at_mut(0).namespace = Some(Namespace::out_of_reach(true));
    assert!(devices.targets.at(0).writes_durably());
    assert!(devices.submit(back.remove(0)).is_ok());
    assert_eq!(devices.ready.len(), 1);
    devices.detach(0, &mut ring);
    devices.close(&mut ring);
}

/// The flush was another processor's: nothing of it came through this queue.
#[test]
fn a_durable_write_does_not_count_where_a_flush_has_failed() {
    for namespace in [None, Some(true)] {
        let (mut devices, mut ring, _directory) = one_file();
        devices.targets.at_mut(0).namespace = namespace.map(Namespace::out_of_reach);
        let written = |devices: &mut Devices, durable: bool| {
            let mut write = read();
            (write.kind, write.durable) = (OperationKind::Write, durable);
            assert!(devices.submit(write).is_ok());
            let (slot, part) = devices.ready.pop_front().expect("it is ready");
            // The device has done it.
            if namespace.is_some() {
                devices.in_kernel += 1;
                devices.targets.at_mut(0).in_kernel += 1;
                let mark = command_mark(slot, part);
                devices.part_ended(Ended { mark, result: 0 });
            } else {
                devices.moved(slot, part, 4096);
            }
            let mut back = Vec::new();
            devices.poll(&mut back);
            back[0].result
        };
        assert_eq!(written(&mut devices, true), Ok(()));
        let file = devices.files.get(0).expect("in its place");
        file.note_failed_flush(DeviceError::Os(5));
        assert_eq!(written(&mut devices, true), Err(DeviceError::Os(5)));
        assert_eq!(written(&mut devices, false), Ok(()), "it promises nothing");
        devices.detach(0, &mut ring);
        devices.close(&mut ring);
    }
}

/// What the devices in two places, and the first one's successor, have not answered.
fn unanswered(devices: &Devices) -> [Option<(u64, OperationKind)>; 3] {
    let mut found = Vec::new();
    devices.unanswered(&mut found);
    [(0, 1), (1, 1), (0, 2)].map(|(place, nth)| {
        let of = found
            .iter()
            .position(|(device, _)| *device == Occupant { place, nth });
        of.map(|at| found.swap_remove(at).1)
            .map(|asked| (asked.since_ns, asked.kind))
    })
}

/// A pool of two files.
fn two_files() -> (Devices, Ring, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name| DeviceFile::create(&directory.path().join(name), 1 << 20).expect("made");
    let mut ring = Ring::new(RingOptions::default()).expect("io_uring");
    let arenas = Arenas::map(1, CHUNK_BYTES).expect("memory");
    let files = PoolFiles::new(vec![file("first"), file("second")]);
    (Devices::new(files, arenas, 0, &mut ring), ring, directory)
}

/// Has this operation started at a time; gives its slot. The kernel gets nothing of it: the answers come from the test.
fn started(devices: &mut Devices, ring: &mut Ring, operation: Box<Operation>, now_ns: u64) -> u32 {
    assert!(devices.submit(operation).is_ok());
    let (slot, _) = devices.ready[0];
    devices.set_now(now_ns);
    devices.start(ring);
    slot
}

#[test]
fn what_a_device_has_not_answered_is_known_with_its_place_and_since_when() {
    let (mut devices, mut ring, _directory) = two_files();
    assert_eq!(unanswered(&devices), [None; 3]);
    // A read of the first, and later a flush of both.
    let read_slot = started(&mut devices, &mut ring, read(), 5);
    let mut flush = Operation::new();
    let of = |device| Transfer {
        device: DeviceIndex(device),
        ..transfer(0)
    };
    flush.transfers = vec![of(0), of(1)];
    assert!(devices.submit(flush).is_ok());
    let (flush_slot, _) = devices.ready[0];
    let read = Some((5, OperationKind::Read));
    assert_eq!(
        unanswered(&devices),
        [read, None, None],
        "the flush was not started"
    );
    devices.set_now(7);
    devices.start(&mut ring);
    let flush = Some((7, OperationKind::Flush));
    assert_eq!(unanswered(&devices), [read, flush, None]);
    // What is tried again is not asked anew.
    devices.came_back(read_slot, 0);
    devices.moved(read_slot, 0, -libc::EAGAIN);
    devices.set_now(9);
    devices.start(&mut ring);
    assert_eq!(unanswered(&devices), [read, flush, None]);
    devices.came_back(read_slot, 0);
    devices.moved(read_slot, 0, 4096);
    assert_eq!(unanswered(&devices), [flush, flush, None]);
    devices.came_back(flush_slot, 0);
    devices.flushed(flush_slot, 0, None);
    assert_eq!(
        unanswered(&devices),
        [None, flush, None],
        "one of two devices has answered"
    );
    devices.came_back(flush_slot, 1);
    devices.flushed(flush_slot, 1, Some(DeviceError::Gone));
    assert_eq!(unanswered(&devices), [None; 3], "an error is an answer");
}

#[test]
fn what_a_device_that_has_left_its_place_has_not_answered_is_waited_for_all_the_same() {
    let (mut devices, mut ring, directory) = two_files();
    let first = started(&mut devices, &mut ring, read(), 5);
    devices.detach(0, &mut ring);
    let asked = |since_ns| Some((since_ns, OperationKind::Read));
    assert_eq!(
        unanswered(&devices),
        [asked(5), None, None],
        "who asked it still waits"
    );
    // It is not the one that takes its place.
    let other = DeviceFile::create(&directory.path().join("other"), 1 << 20).expect("made");
    drop(devices.files.take(0));
    devices.files.put(0, other);
    devices.attach(0, &mut ring);
    assert_eq!(unanswered(&devices), [asked(5), None, None]);
    let second = started(&mut devices, &mut ring, read(), 8);
    assert_eq!(unanswered(&devices), [asked(5), None, asked(8)]);
    devices.came_back(first, 0);
    devices.moved(first, 0, 4096);
    assert_eq!(unanswered(&devices), [None, None, asked(8)]);
    devices.came_back(second, 0);
    devices.moved(second, 0, 4096);
    assert_eq!(unanswered(&devices), [None; 3]);
}

#[test]
fn nobody_waits_for_advice() {
    for (advice, expected) in [(true, None), (false, Some((5, OperationKind::Discard)))] {
        let (mut devices, mut ring, _directory) = two_files();
        devices.advice = advice;
        let mut discard = Operation::new();
        discard.kind = OperationKind::Discard;
        discard.transfers.push(transfer(4096));
        discard.transfers[0].segment_count = 0;
        let slot = started(&mut devices, &mut ring, discard, 5);
        assert_eq!(unanswered(&devices), [expected, None, None]);
        devices.came_back(slot, 0);
        devices.discarded(slot, 0, None);
        assert_eq!(unanswered(&devices), [None; 3]);
    }
}
