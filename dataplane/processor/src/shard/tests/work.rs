//! How much work a request is: not a measurement, a ceiling on device operations.

use super::*;

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
