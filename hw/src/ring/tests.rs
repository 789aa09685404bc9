use super::*;

#[test]
fn every_set_of_flags_gives_a_ring_that_works() {
    for plain in [false, true] {
        let mut ring = Ring::new(RingOptions {
            plain,
            ..RingOptions::default()
        })
        .expect("io_uring is allowed here");
        assert_eq!(ring.features().registered_files, !plain);
        let before = ring.figures().enters;
        ring.submit().expect("nothing to do");
        assert_eq!(ring.figures().enters, before, "nothing to do is no system call");
        let started = std::time::Instant::now();
        ring.wait(Some(2_000_000)).expect("a timeout is no failure");
        assert!(started.elapsed().as_nanos() >= 2_000_000);
        assert!(!ring.has_completions());
    }
}

#[test]
fn marks_carry_owner_and_detail() {
    for owner in [
        Owner::Devices(0),
        Owner::Devices(255),
        Owner::Sockets,
        Owner::Wake,
        Owner::Bell(3),
    ] {
        let detail = 0xabcd_1234_5678;
        let data = mark(owner, detail);
        assert_eq!(data & ((1 << DETAIL_BITS) - 1), detail);
        let kind = data >> 56;
        assert_eq!(
            kind,
            match owner {
                Owner::Devices(_) => KIND_DEVICES,
                Owner::Sockets => KIND_SOCKETS,
                Owner::Wake => KIND_WAKE,
                Owner::Bell(_) => KIND_BELL,
            }
        );
    }
}
