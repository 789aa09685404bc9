//! Devices that come and go, and places that are empty.

use super::*;

#[test]
fn what_is_asked_of_an_empty_place_ends_at_once_and_the_others_go_on() {
    for mut bench in benches() {
        bench.pull(0);
        bench.devices.detach(0, &mut bench.ring);
        bench.devices.detach(0, &mut bench.ring);
        for (tag, kind) in [
            OperationKind::Read,
            OperationKind::Write,
            OperationKind::Flush,
            OperationKind::Discard,
        ]
        .into_iter()
        .enumerate()
        {
            let lengths: &[usize] = match kind {
                OperationKind::Read | OperationKind::Write => &[4096],
                _ => &[],
            };
            let operation = bench.operation(kind, tag as u64, &[(0, 0, lengths)]);
            bench.submit(operation);
            // Nothing goes to the kernel.
            let mut back = Vec::new();
            bench.devices.poll(&mut back);
            let advice = kind == OperationKind::Discard;
            let wanted = if advice { Ok(()) } else { Err(DeviceError::Gone) };
            assert_eq!(back[0].result, wanted, "{kind:?}");
        }
        let mut both = bench.operation(OperationKind::Write, 9, &[(0, 0, &[4096]), (1, 8192, &[4096])]);
        fill(&mut both.buffers[1], 77);
        bench.submit(both);
        let back = bench.run(1);
        assert_eq!(back[0].result, Err(DeviceError::Gone));
        assert_eq!(back[0].failures, [(0, DeviceError::Gone)]);
        let mut written = [0; 4096];
        let file = File::open(&bench.paths[1]).expect("there");
        file.read_exact_at(&mut written, 8192).expect("read");
        assert_eq!(
            written[..],
            back[0].buffers[1].bytes()[..4096],
            "the other one was done"
        );
        assert_eq!(bench.devices.in_flight(), 0);
    }
}

#[test]
fn a_device_leaves_while_it_works_and_comes_back() {
    for mut bench in benches() {
        let registered = bench.ring.file_slots_free();
        for tag in 0..64 {
            let read = bench.operation(
                OperationKind::Read,
                tag,
                &[((tag % 2) as u8, tag * 4096, &[65536])],
            );
            bench.submit(read);
            if tag == 31 {
                // These are in the kernel when it leaves, the others wait.
                bench.devices.start(&mut bench.ring);
                bench.ring.submit().expect("submitted");
            }
        }
        let left = bench.pull(0);
        bench.devices.detach(0, &mut bench.ring);
        let mut back = bench.run(64);
        for operation in back.drain(..) {
            let refused = operation.tag % 2 == 0 && operation.tag > 31;
            let wanted = if refused { Err(DeviceError::Gone) } else { Ok(()) };
            assert_eq!(operation.result, wanted, "{}", operation.tag);
            bench.give_back(operation);
        }
        bench.devices.start(&mut bench.ring);
        assert_eq!(Arc::strong_count(&left), 1, "everybody has let go of it");
        assert!(bench.ring.file_slots_free() >= registered);
        drop(left);
        bench.put_back(0);
        let refused = bench.operation(OperationKind::Read, 1, &[(0, 0, &[4096])]);
        bench.submit(refused);
        assert_eq!(
            bench.run(1)[0].result,
            Err(DeviceError::Gone),
            "not served before it is attached"
        );
        bench.devices.attach(0, &mut bench.ring);
        bench.devices.attach(0, &mut bench.ring);
        let write = bench.operation(OperationKind::Write, 1, &[(0, 0, &[4096]), (1, 0, &[4096])]);
        bench.submit(write);
        assert_eq!(bench.run(1)[0].result, Ok(()));
        assert_eq!(bench.ring.file_slots_free(), registered);
    }
}

#[test]
fn a_device_that_works_while_another_takes_its_place_ends_what_it_began() {
    let mut bench = bench_in(directory_on("/var/tmp"), RingOptions::default(), false);
    // One page cache read of a pipe's worth would end at once; a queue of large ones does not.
    for tag in 0..16 {
        let read = bench.operation(OperationKind::Read, tag, &[(0, tag * 65536, &[65536])]);
        bench.submit(read);
    }
    bench.devices.start(&mut bench.ring);
    bench.ring.submit().expect("submitted");
    let left = bench.pull(0);
    let other = bench.paths[0].with_extension("other");
    let new = DeviceFile::create(&other, 16 << 20).expect("made");
    bench.files.put(0, new);
    // What is in the place now is served; what was there before leaves.
    bench.devices.attach(0, &mut bench.ring);
    let mut write = bench.operation(OperationKind::Write, 99, &[(0, 0, &[4096])]);
    fill(&mut write.buffers[0], 5);
    bench.submit(write);
    let back = bench.run(17);
    assert!(back.iter().all(|operation| operation.result.is_ok()));
    bench.devices.start(&mut bench.ring);
    assert_eq!(Arc::strong_count(&left), 1);
    let read = |path: &Path| std::fs::read(path).expect("read")[..4096].to_vec();
    assert!(read(&bench.paths[0]).iter().all(|&byte| byte == 0));
    let mut wanted = Buffer::owned(4096);
    fill(&mut wanted, 5);
    assert_eq!(read(&other), wanted.bytes());
}

#[test]
fn a_pool_may_be_opened_with_places_that_are_empty() {
    let directory = directory_on("/var/tmp");
    let path = directory.path().join("there");
    let there = DeviceFile::create(&path, 16 << 20).expect("made");
    let files = PoolFiles::with_missing(vec![None, Some(there), None]);
    assert_eq!(files.places(), 3);
    let present: Vec<usize> = files.present().map(|(device, _)| device).collect();
    assert_eq!(present, [1]);
    assert!(files.get(0).is_none() && files.get(1).is_some() && files.get(9).is_none());
    let mut opener = Opener::new(Arc::clone(&files));
    let mut bytes = [[1; 4096]; 2];
    let mut reads: Vec<Transferred<'_>> = bytes
        .iter_mut()
        .zip(0..)
        .map(|(bytes, device)| Transferred {
            device: DeviceIndex(device),
            offset_bytes: 0,
            bytes,
            result: Ok(()),
        })
        .collect();
    opener.read_all(&mut reads);
    assert_eq!(
        [reads[0].result, reads[1].result],
        [Err(DeviceError::Gone), Ok(())]
    );
    assert_eq!(
        opener.write(DeviceIndex(2), 0, &[0; 4096]),
        Err(DeviceError::Gone)
    );
    assert_eq!(opener.flush(DeviceIndex(0)), Err(DeviceError::Gone));
    opener.flush(DeviceIndex(1)).expect("it is there");
    drop(files.take(1));
    assert!(files.take(1).is_none());
    assert_eq!(opener.flush(DeviceIndex(1)), Err(DeviceError::Gone));
    files.put(1, DeviceFile::open(&path).expect("nobody has it any more"));
    opener.flush(DeviceIndex(1)).expect("there again");
}
