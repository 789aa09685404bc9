use stillpoint_processor::ports::{
    BlockDevice, Buffer, DeviceError, OpenDevice, Operation, OperationKind, Segment, Transfer, Transferred,
};
use stillpoint_processor::{BLOCK_BYTES, DeviceIndex};

use super::disk::SECTOR_BYTES;
use super::{CrashFate, DeviceHabits, Devices, Port};
use crate::random::Random;

fn devices(seed: u64) -> Devices {
    Devices::new(&[16, 16], DeviceHabits::default(), Random::new(seed))
}

fn operation(kind: OperationKind, device: u8, block: u64, bytes: &[u8]) -> Box<Operation> {
    let mut operation = Operation::new();
    operation.kind = kind;
    operation.transfers.push(Transfer {
        device: DeviceIndex(device),
        offset_bytes: block * BLOCK_BYTES as u64,
        length_bytes: bytes.len() as u64,
        first_segment: 0,
        segment_count: u32::from(!bytes.is_empty()),
    });
    if !bytes.is_empty() {
        operation.segments.push(Segment {
            buffer: 0,
            offset_bytes: 0,
            length_bytes: bytes.len() as u32,
        });
        let mut buffer = Buffer::owned(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        operation.buffers.push(buffer);
    }
    operation
}

/// Runs an operation to its end.
fn run(devices: &Devices, port: &mut Port, operation: Box<Operation>) -> Box<Operation> {
    port.submit(operation).expect("room");
    let due = devices.next_completion_ns().expect("in flight");
    devices.advance(due);
    let mut completed = Vec::new();
    port.poll(&mut completed);
    assert_eq!(completed.len(), 1);
    completed.remove(0)
}

fn write(devices: &Devices, port: &mut Port, block: u64, fill: u8) {
    run(
        devices,
        port,
        operation(OperationKind::Write, 0, block, &[fill; BLOCK_BYTES]),
    );
}

fn peek(devices: &Devices, block: u64) -> Vec<u8> {
    let mut bytes = vec![0xEE; BLOCK_BYTES];
    devices.peek(0, block, &mut bytes);
    bytes
}

#[test]
fn a_read_sees_the_completed_write() {
    let devices = devices(1);
    let mut port = devices.port();
    write(&devices, &mut port, 3, 7);
    let read = run(
        &devices,
        &mut port,
        operation(OperationKind::Read, 0, 3, &[0; BLOCK_BYTES]),
    );
    assert_eq!(read.result, Ok(()));
    assert_eq!(read.buffers[0].bytes(), [7; BLOCK_BYTES]);
}

#[test]
fn nothing_completes_before_its_time() {
    let devices = devices(1);
    let mut port = devices.port();
    let write = operation(OperationKind::Write, 0, 0, &[1; BLOCK_BYTES]);
    port.submit(write).expect("room");
    let due = devices.next_completion_ns().expect("in flight");
    assert!(devices.advance(due - 1).is_empty());
    assert_eq!(peek(&devices, 0), [0; BLOCK_BYTES]);
    assert_eq!(devices.advance(due), [0]);
    assert_eq!(peek(&devices, 0), [1; BLOCK_BYTES]);
}

#[test]
fn a_full_queue_gives_the_operation_back() {
    let habits = DeviceHabits {
        queue_depth: 2,
        ..DeviceHabits::default()
    };
    let devices = Devices::new(&[16], habits, Random::new(1));
    let mut port = devices.port();
    for _ in 0..2 {
        port.submit(operation(OperationKind::Read, 0, 0, &[0; BLOCK_BYTES]))
            .expect("room");
    }
    let refused = port.submit(operation(OperationKind::Read, 0, 5, &[0; BLOCK_BYTES]));
    assert_eq!(refused.expect_err("full").0.transfers[0].offset_bytes, 5 * 4096);
    assert_eq!(devices.counts().full, 1);
}

#[test]
fn a_power_cut_loses_what_was_not_flushed_and_keeps_what_was() {
    let devices = devices(1);
    let mut port = devices.port();
    write(&devices, &mut port, 0, 1);
    run(&devices, &mut port, operation(OperationKind::Flush, 0, 0, &[]));
    write(&devices, &mut port, 0, 2);
    write(&devices, &mut port, 1, 2);
    devices.crash(true, CrashFate::Lost);
    assert_eq!(peek(&devices, 0), [1; BLOCK_BYTES]);
    assert_eq!(peek(&devices, 1), [0; BLOCK_BYTES]);
}

#[test]
fn a_flush_does_not_cover_writes_that_complete_after_it_was_sent() {
    let devices = devices(1);
    let mut port = devices.port();
    port.submit(operation(OperationKind::Flush, 0, 0, &[]))
        .expect("room");
    // Many tries, so that one completes before the flush does.
    for block in 0..16 {
        let write = operation(OperationKind::Write, 0, block, &[9; BLOCK_BYTES]);
        port.submit(write).expect("room");
    }
    while let Some(due) = devices.next_completion_ns() {
        devices.advance(due);
    }
    devices.crash(true, CrashFate::Lost);
    assert!((0..16).all(|block| peek(&devices, block) == [0; BLOCK_BYTES]));
}

#[test]
fn a_flush_of_one_device_does_not_cover_another() {
    let devices = devices(1);
    let mut port = devices.port();
    write(&devices, &mut port, 0, 1);
    run(&devices, &mut port, operation(OperationKind::Flush, 1, 0, &[]));
    devices.crash(true, CrashFate::Lost);
    assert_eq!(peek(&devices, 0), [0; BLOCK_BYTES]);
}

#[test]
fn a_kill_keeps_completed_writes_and_a_later_power_cut_may_still_lose_them() {
    let devices = devices(1);
    let mut port = devices.port();
    write(&devices, &mut port, 0, 1);
    devices.crash(false, CrashFate::Lost);
    assert_eq!(peek(&devices, 0), [1; BLOCK_BYTES]);
    devices.crash(true, CrashFate::Lost);
    assert_eq!(peek(&devices, 0), [0; BLOCK_BYTES]);
}

/// Which of `outcomes` the crash of an old and a new write of one block leaves, over many seeds.
fn outcomes(power_cut: bool, fate: CrashFate, in_flight: bool) -> Vec<&'static str> {
    let mut seen = Vec::new();
    for seed in 0..400 {
        let devices = devices(seed);
        let mut port = devices.port();
        write(&devices, &mut port, 0, 1);
        if in_flight {
            let second = operation(OperationKind::Write, 0, 0, &[2; BLOCK_BYTES]);
            port.submit(second).expect("room");
        } else {
            write(&devices, &mut port, 0, 2);
        }
        devices.crash(power_cut, fate);
        let bytes = peek(&devices, 0);
        for sector in bytes.chunks(SECTOR_BYTES) {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "sectors are never torn"
            );
        }
        let all = |fill| bytes.iter().all(|byte| *byte == fill);
        seen.push(if all(0) {
            "none"
        } else if all(1) {
            "old"
        } else if all(2) {
            "new"
        } else {
            "torn"
        });
    }
    seen.sort_unstable();
    seen.dedup();
    seen
}

#[test]
fn each_fate_leaves_all_it_should_and_nothing_else() {
    assert_eq!(outcomes(true, CrashFate::Lost, false), ["none"]);
    assert_eq!(outcomes(true, CrashFate::Kept, false), ["new"]);
    let all = ["new", "none", "old", "torn"];
    assert_eq!(outcomes(true, CrashFate::Mixed, false), all);
    assert_eq!(outcomes(true, CrashFate::Reordered, true), all);
    assert_eq!(outcomes(true, CrashFate::CutOff, false), ["torn"]);
    assert_eq!(outcomes(false, CrashFate::Mixed, false), ["new"]);
    assert_eq!(outcomes(false, CrashFate::Mixed, true), ["new", "old", "torn"]);
    assert_eq!(outcomes(false, CrashFate::Lost, true), ["old"]);
}

#[test]
fn the_same_seed_completes_in_the_same_order() {
    let order = |seed| {
        let devices = devices(seed);
        let mut port = devices.port();
        for block in 0..16 {
            let mut write = operation(OperationKind::Write, 0, block, &[9; BLOCK_BYTES]);
            write.tag = block;
            port.submit(write).expect("room");
        }
        let mut completed = Vec::new();
        while let Some(due) = devices.next_completion_ns() {
            devices.advance(due);
            port.poll(&mut completed);
        }
        completed
            .iter()
            .map(|operation| operation.tag)
            .collect::<Vec<_>>()
    };
    assert_eq!(order(5), order(5));
    assert_ne!(order(5), (0..16).collect::<Vec<_>>(), "latencies differ");
    assert_ne!(order(5), order(6));
}

#[test]
fn an_open_port_that_stops_stays_stopped() {
    let devices = devices(1);
    let mut port = devices.open_port(Some(2));
    assert_eq!(port.write(DeviceIndex(0), 0, &[1; BLOCK_BYTES]), Ok(()));
    assert_eq!(port.flush(DeviceIndex(0)), Ok(()));
    assert_eq!(
        port.write(DeviceIndex(0), 0, &[2; BLOCK_BYTES]),
        Err(DeviceError::Gone)
    );
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut reads = [Transferred {
        device: DeviceIndex(0),
        offset_bytes: 0,
        bytes: &mut bytes,
        result: Ok(()),
    }];
    port.read_all(&mut reads);
    assert_eq!(reads[0].result, Err(DeviceError::Gone));
    devices.crash(true, CrashFate::Lost);
    assert_eq!(peek(&devices, 0), [1; BLOCK_BYTES], "flushed before it stopped");
}

#[test]
fn failing_devices_fail_about_as_often_as_told() {
    let habits = DeviceHabits {
        write_errors: 5000,
        ..DeviceHabits::default()
    };
    let devices = Devices::new(&[16], habits, Random::new(1));
    let mut port = devices.port();
    let failed = (0..400)
        .filter(|_| {
            let write = operation(OperationKind::Write, 0, 0, &[1; BLOCK_BYTES]);
            run(&devices, &mut port, write).result.is_err()
        })
        .count();
    assert!((150..250).contains(&failed), "{failed}");
    assert_eq!(devices.counts().failed, failed as u64);
}

#[test]
fn damage_is_there_after_a_power_cut() {
    let devices = devices(1);
    devices.corrupt(0, 4, 100, 0x10);
    devices.crash(true, CrashFate::Lost);
    assert_eq!(peek(&devices, 4)[100], 0x10);
}

#[test]
fn a_lost_device_does_nothing_more_and_what_it_was_asked_before_it_came_back_fails() {
    let devices = devices(1);
    let mut port = devices.port();
    write(&devices, &mut port, 1, 7);
    run(&devices, &mut port, operation(OperationKind::Flush, 0, 0, &[]));
    write(&devices, &mut port, 1, 8);
    // To both devices from the same memory, as mirrors do it.
    let mut both = operation(OperationKind::Write, 0, 2, &[9; BLOCK_BYTES]);
    let second = Transfer {
        device: DeviceIndex(1),
        ..both.transfers[0]
    };
    both.transfers.push(second);
    port.submit(both).expect("room");
    devices.lose(0, 1_000_000);
    let mut buffer = [0; BLOCK_BYTES];
    let mut reads = [Transferred {
        device: DeviceIndex(0),
        offset_bytes: 0,
        bytes: &mut buffer,
        result: Ok(()),
    }];
    devices.open_port(None).read_all(&mut reads);
    assert_eq!(reads[0].result, Err(DeviceError::Gone));
    devices.bring_back(0, Some(CrashFate::Lost));
    assert_eq!(
        peek(&devices, 1),
        [7; BLOCK_BYTES],
        "what it had not flushed is lost"
    );
    let due = devices.next_completion_ns().expect("in flight");
    assert!(due > 1_000_000, "it hangs");
    devices.advance(due);
    let mut completed = Vec::new();
    port.poll(&mut completed);
    assert_eq!(completed[0].result, Err(DeviceError::Gone));
    assert_eq!(completed[0].failures, [(0, DeviceError::Gone)]);
    assert_eq!(peek(&devices, 2), [0; BLOCK_BYTES]);
    let mut bytes = vec![0; BLOCK_BYTES];
    devices.peek(1, 2, &mut bytes);
    assert_eq!(bytes, [9; BLOCK_BYTES]);
    write(&devices, &mut port, 2, 5);
    assert_eq!(peek(&devices, 2), [5; BLOCK_BYTES]);
    // Another device in its place is blank.
    devices.lose(0, 0);
    devices.bring_back(0, None);
    assert_eq!(peek(&devices, 1), [0; BLOCK_BYTES]);
}
