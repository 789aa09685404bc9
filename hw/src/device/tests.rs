//! Operations over files, from submission to completion.

mod places;
mod zeroes;

use super::*;
use crate::buffers::{Arenas, CHUNK_BYTES, ProcessorBuffers};
use crate::ring::{Ring, RingOptions};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use stillpoint_processor::ids::DeviceIndex;
use stillpoint_processor::ports::*;

/// One processor's devices, ring and buffers over files in a temporary directory.
struct Bench {
    ring: Ring,
    files: Arc<PoolFiles>,
    devices: Devices,
    buffers: ProcessorBuffers,
    paths: Vec<PathBuf>,
    _directory: tempfile::TempDir,
}

pub(super) fn directory_on(root: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("stillpoint-hw-")
        .tempdir_in(root)
        .expect("a temporary directory")
}

fn bench_in(directory: tempfile::TempDir, options: RingOptions, registered: bool) -> Bench {
    let paths: Vec<PathBuf> = (0..2)
        .map(|n| directory.path().join(format!("device{n}")))
        .collect();
    let files = paths
        .iter()
        .map(|path| DeviceFile::create(path, 16 << 20).expect("a sparse file"))
        .collect();
    let mut ring = Ring::new(options).expect("io_uring");
    let arenas = Arenas::map(1, 8 * CHUNK_BYTES).expect("an arena");
    if registered {
        ring.register_arenas(&arenas).expect("enough locked memory");
    }
    let files = PoolFiles::new(files);
    let devices = Devices::new(Arc::clone(&files), Arc::clone(&arenas), 3, &mut ring);
    Bench {
        ring,
        files,
        devices,
        buffers: arenas.pool(0),
        paths,
        _directory: directory,
    }
}

/// On the disk (O_DIRECT) and on tmpfs; with every feature and with none.
fn benches() -> Vec<Bench> {
    let plain = RingOptions {
        plain: true,
        ..RingOptions::default()
    };
    vec![
        bench_in(directory_on("/var/tmp"), RingOptions::default(), false),
        bench_in(directory_on("/dev/shm"), RingOptions::default(), false),
        bench_in(directory_on("/var/tmp"), plain, false),
    ]
}

impl Bench {
    fn operation(&mut self, kind: OperationKind, tag: u64, pieces: &[(u8, u64, &[usize])]) -> Box<Operation> {
        let mut operation = Operation::new();
        operation.kind = kind;
        operation.tag = tag;
        for &(device, offset_bytes, lengths) in pieces {
            let first_segment = operation.segments.len() as u32;
            for &length in lengths {
                let buffer = operation.buffers.len() as u32;
                operation
                    .buffers
                    .push(self.buffers.take(length).expect("enough buffers"));
                operation.segments.push(Segment {
                    buffer,
                    offset_bytes: 0,
                    length_bytes: length as u32,
                });
            }
            operation.transfers.push(Transfer {
                device: DeviceIndex(device),
                offset_bytes,
                length_bytes: lengths.iter().sum::<usize>() as u64,
                first_segment,
                segment_count: lengths.len() as u32,
            });
        }
        operation
    }

    /// Submits and waits for `count` operations to come back.
    fn run(&mut self, count: usize) -> Vec<Box<Operation>> {
        let mut back = Vec::new();
        let mut completions = Vec::new();
        while back.len() < count {
            self.devices.start(&mut self.ring);
            self.devices.poll(&mut back);
            if back.len() >= count {
                break;
            }
            self.ring.wait(None).expect("the ring works");
            self.ring.reap(&mut completions);
            completions
                .drain(..)
                .for_each(|completion| self.devices.complete(completion));
        }
        back
    }

    fn submit(&mut self, operation: Box<Operation>) {
        assert!(self.devices.submit(operation).is_ok(), "there is room");
    }

    /// Takes a device out of its place.
    fn pull(&self, device: usize) -> Arc<DeviceFile> {
        self.files.take(device).expect("there")
    }

    /// Opens it anew; nobody may have it any more.
    fn put_back(&self, device: usize) {
        let file = DeviceFile::open(&self.paths[device]).expect("everybody has let go of it");
        self.files.put(device, file);
    }

    #[allow(clippy::boxed_local)]
    fn give_back(&mut self, mut operation: Box<Operation>) {
        for buffer in operation.buffers.drain(..) {
            self.buffers.give(buffer);
        }
    }
}

fn fill(buffer: &mut Buffer, seed: u64) {
    for (index, word) in buffer.bytes_mut().chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed.wrapping_mul(0x9e37_79b9) ^ index as u64).to_le_bytes());
    }
}

#[test]
fn what_was_written_32_deep_at_random_is_read_back() {
    for mut bench in benches() {
        let places = 64u64;
        for round in 0..4u64 {
            for half in [0, 32] {
                for n in half..half + 32u64 {
                    let place = n * 29 % places;
                    let mut write = bench.operation(
                        OperationKind::Write,
                        place,
                        &[((place % 2) as u8, place * 16384, &[4096, 8192])],
                    );
                    write
                        .buffers
                        .iter_mut()
                        .for_each(|buffer| fill(buffer, place + round * 1000));
                    bench.submit(write);
                }
                for operation in bench.run(32) {
                    assert_eq!(operation.result, Ok(()));
                    bench.give_back(operation);
                }
            }
            for n in 0..32u64 {
                let place = n * 43 % places;
                let read = bench.operation(
                    OperationKind::Read,
                    place,
                    &[((place % 2) as u8, place * 16384, &[8192, 4096])],
                );
                bench.submit(read);
            }
            for operation in bench.run(32) {
                assert_eq!(operation.result, Ok(()));
                let mut expected = [Buffer::owned(4096), Buffer::owned(8192)];
                expected
                    .iter_mut()
                    .for_each(|buffer| fill(buffer, operation.tag + round * 1000));
                let expected: Vec<u8> = expected
                    .iter()
                    .flat_map(|buffer| buffer.bytes().to_vec())
                    .collect();
                let mut found = operation.buffers[0].bytes()[..8192].to_vec();
                found.extend_from_slice(&operation.buffers[1].bytes()[..4096]);
                assert_eq!(found, expected);
                bench.give_back(operation);
            }
        }
        assert_eq!(bench.devices.in_flight(), 0);
        assert_eq!(bench.devices.figures().errors, 0);
        assert_eq!(bench.buffers.figures().out_bytes, 0);
    }
}

#[test]
fn registered_memory_carries_single_and_vectored_transfers() {
    let mut bench = bench_in(directory_on("/var/tmp"), RingOptions::default(), true);
    let mut write = bench.operation(
        OperationKind::Write,
        7,
        &[(0, 0, &[4096]), (1, 65536, &[4096, 65536, 4096])],
    );
    write
        .buffers
        .iter_mut()
        .zip(1..)
        .for_each(|(buffer, seed)| fill(buffer, seed));
    bench.submit(write);
    let written = bench.run(1).pop().expect("one");
    assert_eq!(written.result, Ok(()));
    let flush = bench.operation(OperationKind::Flush, 8, &[(0, 0, &[]), (1, 0, &[])]);
    bench.submit(flush);
    assert_eq!(bench.run(1)[0].result, Ok(()));
    let file = File::open(&bench.paths[1]).expect("the file");
    let mut found = vec![0; 4096 + 65536 + 4096];
    file.read_exact_at(&mut found, 65536).expect("as long as written");
    assert_eq!(found[..4096], written.buffers[1].bytes()[..4096]);
    assert_eq!(found[4096..4096 + 65536], written.buffers[2].bytes()[..65536]);
    assert_eq!(found[4096 + 65536..], written.buffers[3].bytes()[..4096]);
}

#[test]
fn after_a_failed_flush_no_flush_of_that_device_succeeds_on_any_processor() {
    for mut bench in benches() {
        let flush = |bench: &mut Bench, devices: &[u8]| {
            let pieces: Vec<(u8, u64, &[usize])> =
                devices.iter().map(|&device| (device, 0, &[][..])).collect();
            let flush = bench.operation(OperationKind::Flush, 8, &pieces);
            bench.submit(flush);
            bench.run(1)[0].result
        };
        assert_eq!(flush(&mut bench, &[0, 1]), Ok(()));
        // As another processor's ring would be told.
        let failing = bench.files.get(0).expect("there");
        failing.note_failed_flush(DeviceError::Os(5));
        failing.note_failed_flush(DeviceError::Os(28));
        for devices in [&[0][..], &[0, 1], &[1, 0]] {
            let failed = flush(&mut bench, devices);
            assert_eq!(failed, Err(DeviceError::Os(5)), "the first error stays");
        }
        assert_eq!(flush(&mut bench, &[1]), Ok(()), "the other one did not fail");
        // Opened again, it is as good as new.
        drop(failing);
        bench.pull(0);
        bench.devices.detach(0, &mut bench.ring);
        bench.put_back(0);
        bench.devices.attach(0, &mut bench.ring);
        assert_eq!(flush(&mut bench, &[0, 1]), Ok(()));
    }
}

#[test]
fn an_operation_over_several_devices_comes_back_once() {
    for mut bench in benches() {
        let write = bench.operation(
            OperationKind::Write,
            1,
            &[(0, 0, &[4096]), (1, 0, &[4096]), (0, 1 << 20, &[65536])],
        );
        bench.submit(write);
        let back = bench.run(1);
        assert_eq!((back.len(), back[0].tag, back[0].result), (1, 1, Ok(())));
        assert_eq!(bench.devices.figures().writes, 3);
        let mut more = Vec::new();
        bench.devices.poll(&mut more);
        assert!(more.is_empty());
    }
}

#[test]
fn a_durable_write_is_done_like_any_other_and_counted() {
    for mut bench in benches() {
        assert!(!bench.devices.writes_durably(), "files do that by flushing");
        let mut write = bench.operation(
            OperationKind::Write,
            1,
            &[(0, 8192, &[4096, 8192]), (1, 0, &[4096])],
        );
        write.durable = true;
        for (seed, buffer) in (7..).zip(&mut write.buffers) {
            fill(buffer, seed);
        }
        bench.submit(write);
        let back = bench.run(1);
        assert_eq!(back[0].result, Ok(()));
        let figures = bench.devices.figures();
        assert_eq!(
            (figures.writes, figures.durable_writes, figures.flushes),
            (2, 2, 0)
        );
        let read = bench.operation(
            OperationKind::Read,
            2,
            &[(0, 8192, &[4096, 8192]), (1, 0, &[4096])],
        );
        bench.submit(read);
        let read = bench.run(1);
        let pairs = back[0].buffers.iter().zip(&read[0].buffers);
        for ((written, read), length) in pairs.zip([4096, 8192, 4096]) {
            assert!(
                written.bytes()[..length] == read.bytes()[..length],
                "what was written is read"
            );
        }
        let mut next = back.into_iter().next().expect("one");
        bench.buffers.give(next.buffers.pop().expect("a buffer"));
        next.buffers
            .drain(..)
            .for_each(|buffer| bench.buffers.give(buffer));
        next.clear();
        assert!(!next.durable, "the next use of an operation is none");
    }
}

#[test]
fn an_operation_names_the_transfers_that_failed_and_the_others_are_done() {
    for mut bench in benches() {
        let mut write = bench.operation(OperationKind::Write, 1, &[(1, 4096, &[4096])]);
        write.buffers[0].bytes_mut()[..4096].fill(7);
        bench.submit(write);
        assert_eq!(bench.run(1)[0].result, Ok(()));
        let pieces: [(u8, u64, &[usize]); 4] = [
            (0, 32 << 20, &[4096]),
            (1, 4096, &[4096]),
            (0, (16 << 20) - 4096, &[4096, 4096]),
            (0, 0, &[4096]),
        ];
        let reads = bench.operation(OperationKind::Read, 2, &pieces);
        bench.submit(reads);
        let mut read = bench.run(1).remove(0);
        assert_eq!(read.result, Err(DeviceError::Short));
        read.failures.sort_by_key(|(transfer, _)| *transfer);
        assert_eq!(read.failures, [(0, DeviceError::Short), (2, DeviceError::Short)]);
        assert_eq!(read.buffers[1].bytes()[..4096], [7; 4096]);
    }
}

#[test]
fn a_read_across_the_end_of_the_file_is_short_and_one_beyond_fails() {
    for mut bench in benches() {
        let across = bench.operation(OperationKind::Read, 1, &[(0, (16 << 20) - 4096, &[4096, 4096])]);
        bench.submit(across);
        assert_eq!(bench.run(1)[0].result, Err(DeviceError::Short));
        let beyond = bench.operation(OperationKind::Read, 2, &[(0, 32 << 20, &[4096])]);
        bench.submit(beyond);
        assert_eq!(bench.run(1)[0].result, Err(DeviceError::Short));
        assert_eq!(bench.devices.figures().short_transfers, 1);
    }
}

#[test]
fn one_failing_transfer_fails_the_operation_and_the_others_still_end() {
    let mut bench = bench_in(directory_on("/var/tmp"), RingOptions::default(), false);
    // A write beyond the largest file offset fails in any file system.
    let write = bench.operation(
        OperationKind::Write,
        1,
        &[(0, 0, &[4096]), (1, (i64::MAX as u64) & !4095, &[4096])],
    );
    bench.submit(write);
    let back = bench.run(1);
    assert!(
        matches!(back[0].result, Err(DeviceError::Os(_))),
        "{:?}",
        back[0].result
    );
    assert_eq!(bench.devices.in_flight(), 0);
}

#[test]
fn a_full_queue_gives_the_operation_back() {
    let mut bench = bench_in(directory_on("/dev/shm"), RingOptions::default(), false);
    for tag in 0..OPERATIONS_MAX as u64 {
        let operation = bench.operation(OperationKind::Read, tag, &[(0, tag * 4096, &[4096])]);
        bench.submit(operation);
    }
    let operation = bench.operation(OperationKind::Read, 9999, &[(0, 0, &[4096])]);
    let Err(Full(back)) = bench.devices.submit(operation) else {
        panic!("a limit holds");
    };
    assert_eq!(back.tag, 9999);
    let mut tags: Vec<u64> = bench
        .run(OPERATIONS_MAX)
        .iter()
        .map(|operation| operation.tag)
        .collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..OPERATIONS_MAX as u64));
    bench.submit(back);
    assert_eq!(bench.run(1)[0].result, Ok(()));
}

#[test]
fn memory_of_operations_in_flight_outlives_their_devices() {
    let mut bench = bench_in(directory_on("/var/tmp"), RingOptions::default(), false);
    for tag in 0..32 {
        let read = bench.operation(OperationKind::Read, tag, &[(0, tag * 65536, &[65536])]);
        bench.submit(read);
    }
    bench.devices.start(&mut bench.ring);
    bench.ring.submit().expect("submitted");
    let Bench {
        ring,
        devices,
        buffers,
        ..
    } = bench;
    drop(devices);
    drop(ring);
    assert_eq!(
        buffers.figures().out_bytes,
        32 * 65536,
        "leaked, not handed out again"
    );
}

#[test]
fn the_opener_reads_many_writes_and_says_where_it_failed() {
    let directory = directory_on("/var/tmp");
    let files: Vec<DeviceFile> = (0..2)
        .map(|n| DeviceFile::create(&directory.path().join(format!("{n}")), 4 << 20).expect("made"))
        .collect();
    let mut opener = Opener::new(PoolFiles::new(files));
    let pattern: Vec<u8> = (0..(2 << 20) + 4096).map(|n| (n / 4096 % 251) as u8).collect();
    opener.write(DeviceIndex(1), 4096, &pattern).expect("written");
    opener.flush(DeviceIndex(1)).expect("flushed");
    let mut found = vec![0; pattern.len()];
    let mut reads: Vec<Transferred<'_>> = found
        .chunks_mut(4096)
        .enumerate()
        .map(|(n, bytes)| Transferred {
            device: DeviceIndex(1),
            offset_bytes: 4096 + n as u64 * 4096,
            bytes,
            result: Err(DeviceError::Gone),
        })
        .collect();
    opener.read_all(&mut reads);
    assert!(reads.iter().all(|read| read.result.is_ok()));
    assert_eq!(found, pattern);
    let mut bytes = [0; 8192];
    let mut beyond = [Transferred {
        device: DeviceIndex(0),
        offset_bytes: (4 << 20) - 4096,
        bytes: &mut bytes,
        result: Ok(()),
    }];
    opener.read_all(&mut beyond);
    assert_eq!(beyond[0].result, Err(DeviceError::Short));
    assert_eq!(
        opener.write(DeviceIndex(9), 0, &[0; 4096]),
        Err(DeviceError::Gone)
    );
}
