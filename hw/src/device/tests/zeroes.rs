//! Zeros and discards.

use super::*;

/// An operation that makes these ranges of devices zeros.
fn zeros(ranges: &[(u8, u64, u64)]) -> Box<Operation> {
    let mut operation = Operation::new();
    operation.kind = OperationKind::WriteZeroes;
    let transfers = ranges
        .iter()
        .map(|&(device, offset_bytes, length_bytes)| Transfer {
            device: DeviceIndex(device),
            offset_bytes,
            length_bytes,
            first_segment: 0,
            segment_count: 0,
        });
    operation.transfers.extend(transfers);
    operation
}

#[test]
fn ranges_become_zeros_whether_the_device_does_that_by_itself_or_not() {
    const LENGTH: u64 = 200 << 10;
    for durable in [false, true] {
        for mut bench in benches() {
            for path in &bench.paths {
                let file = File::options().write(true).open(path).expect("there");
                file.write_all_at(&vec![7; 1 << 20], 0).expect("written");
            }
            let mut operation = zeros(&[(0, 4096, LENGTH), (1, 8192, 4096), (0, 512 << 10, 4096)]);
            operation.durable = durable;
            bench.submit(operation);
            let back = bench.run(1);
            assert_eq!(back[0].result, Ok(()));
            let figures = bench.devices.figures();
            // tmpfs does nothing by itself; what has to be durable is written.
            if durable || figures.writes > 0 {
                assert_eq!(figures.writes, LENGTH.div_ceil(64 << 10) + 2, "in pieces");
                assert_eq!(figures.written_bytes, LENGTH + 2 * 4096);
            }
            if durable {
                assert_eq!((figures.zeroes, figures.durable_writes), (0, figures.writes));
            } else {
                assert!((1..=3).contains(&figures.zeroes), "it is tried");
            }
            let held: Vec<Vec<u8>> = (bench.paths.iter())
                .map(|path| std::fs::read(path).expect("there"))
                .collect();
            for (number, ranges) in [
                (0, &[(4096, LENGTH), (512 << 10, 4096)][..]),
                (1, &[(8192, 4096)][..]),
            ] {
                let mut expected = vec![7; 1 << 20];
                for &(start, length) in ranges {
                    expected[start as usize..(start + length) as usize].fill(0);
                }
                assert!(held[number][..1 << 20] == expected, "device {number}");
                assert_eq!(held[number].len(), 16 << 20);
            }
        }
    }
}

#[test]
fn zeros_past_the_end_of_a_file_are_there_and_not_passed_by_in_silence() {
    for durable in [false, true] {
        for mut bench in benches() {
            let mut operation = zeros(&[(0, (16 << 20) - 4096, 8192)]);
            operation.durable = durable;
            bench.submit(operation);
            assert_eq!(bench.run(1)[0].result, Ok(()));
            let metadata = std::fs::metadata(&bench.paths[0]).expect("there");
            assert_eq!(metadata.len(), (16 << 20) + 4096);
        }
    }
}

#[test]
fn a_discard_makes_a_hole_and_too_many_are_skipped_as_advice() {
    use std::os::unix::fs::MetadataExt;
    let mut bench = bench_in(directory_on("/var/tmp"), RingOptions::default(), false);
    let write = bench.operation(OperationKind::Write, 1, &[(0, 0, &[CHUNK_BYTES])]);
    bench.submit(write);
    bench.run(1);
    let before = std::fs::metadata(&bench.paths[0]).expect("there").blocks();
    for tag in 0..8 {
        let mut discard = bench.operation(OperationKind::Discard, tag, &[(0, tag * 65536, &[])]);
        discard.transfers[0].length_bytes = 65536;
        bench.submit(discard);
    }
    assert!(bench.run(8).iter().all(|operation| operation.result.is_ok()));
    assert!(std::fs::metadata(&bench.paths[0]).expect("there").blocks() < before);
    assert_eq!(std::fs::metadata(&bench.paths[0]).expect("there").len(), 16 << 20);
    assert_eq!(bench.devices.figures().discards_skipped, 6);
}

#[test]
fn discards_that_are_requests_are_never_left_out() {
    use std::os::unix::fs::MetadataExt;
    let mut bench = bench_in(directory_on("/var/tmp"), RingOptions::default(), false);
    bench.devices = bench.devices.discards_are_requests();
    let write = bench.operation(OperationKind::Write, 1, &[(0, 0, &[CHUNK_BYTES])]);
    bench.submit(write);
    bench.run(1);
    for tag in 0..CHUNK_BYTES as u64 / 65536 {
        let mut discard = bench.operation(OperationKind::Discard, tag, &[(0, tag * 65536, &[])]);
        discard.transfers[0].length_bytes = 65536;
        bench.submit(discard);
    }
    let count = CHUNK_BYTES / 65536;
    assert!(bench.run(count).iter().all(|operation| operation.result.is_ok()));
    assert_eq!(bench.devices.figures().discards_skipped, 0);
    assert_eq!(std::fs::metadata(&bench.paths[0]).expect("there").blocks(), 0);
    // One of no length is no request that a device takes.
    let empty = bench.operation(OperationKind::Discard, 1, &[(0, 0, &[])]);
    bench.submit(empty);
    assert!(bench.run(1)[0].result.is_err());
}
