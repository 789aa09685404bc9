//! How much work a request is: not a measurement, a ceiling on device operations.

use super::*;
use crate::shard::durability::UNFLUSHED_BYTES_MAX;

#[test]
fn small_writes_that_arrive_together_go_to_the_device_as_one() {
    let mut rig = Rig::new(64 << 20);
    rig.settle();
    let before = rig.processor.shards()[0].status();
    for i in 0..64 {
        rig.send(request(
            LIVE,
            RequestKind::Write { fua: false },
            i * 331 * BLOCK,
            BLOCK,
            Some(&[1; BLOCK]),
        ));
    }
    rig.settle();
    let after = rig.processor.shards()[0].status();
    assert_eq!(after.writes - before.writes, 64);
    assert_eq!(after.device_writes - before.device_writes, 1);
}

#[test]
fn what_nobody_flushes_is_flushed_before_comparing_two_sides_takes_long() {
    const PART: usize = 256 * BLOCK;
    const PARTS: usize = 2 * (UNFLUSHED_BYTES_MAX as usize / PART);
    let most_unflushed = |mirrored| {
        let mut rig = Rig::new(64 << 20);
        rig.layout.mirrored = mirrored;
        rig = rig.kill();
        let parts = (0..PARTS).map(|part| {
            rig.write(part % 8 * PART, &vec![part as u8 | 1; PART]);
            rig.processor.shards()[0].durability.unflushed_bytes()
        });
        parts.max().expect("there are some")
    };
    let slack = 4 * PART as u64;
    assert!(most_unflushed(true) <= UNFLUSHED_BYTES_MAX + slack);
    assert!(
        most_unflushed(false) > UNFLUSHED_BYTES_MAX + slack,
        "it is not asked for"
    );
}
