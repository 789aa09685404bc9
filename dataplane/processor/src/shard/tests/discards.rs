//! Large discards: they take their time when others want something, and always end.

use super::adverse::LEAF;
use super::*;

const DISCARD: RequestKind = RequestKind::Discard { fua: false };

/// A rig whose volume has so many leaves mapped, one block each.
fn rig_with_leaves(leaves: usize) -> Rig {
    let mut rig = Rig::new(64 << 20);
    for leaf in 0..leaves {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    rig
}

fn mapped_blocks(rig: &Rig) -> u64 {
    let mut shares = rig.processor.shards()[0].shares();
    shares.next().expect("one volume").stats.mapped_blocks
}

#[test]
fn a_large_discard_takes_a_leaf_for_every_64_answers_and_hurries_when_nobody_else_is_there() {
    let leaves = 200;
    let mut rig = rig_with_leaves(leaves + 1);
    rig.send(request(LIVE, DISCARD, 0, leaves * LEAF, None));
    for _ in 0..1280 {
        assert_eq!(rig.read(LIVE, leaves * LEAF, BLOCK), [1; BLOCK]);
    }
    let cleared = leaves as u64 + 1 - mapped_blocks(&rig);
    assert!((15..25).contains(&cleared), "{cleared} leaves for 1280 answers");
    // Those who wanted something may come back soon; then nobody does.
    rig.now.monotonic_ns += 2_000_000;
    let mut turns = 0;
    while rig.outbox.answers.is_empty() {
        rig.turn();
        turns += 1;
        assert!(rig.processor.has_ready_work() || !rig.outbox.answers.is_empty());
    }
    assert!(turns < 20, "{turns} turns for what was left");
    assert_eq!(mapped_blocks(&rig), 1);
}

#[test]
fn the_leaves_that_a_discard_needs_are_read_together() {
    let options = ShardOptions {
        map_cache_pages: 4096,
        ..options()
    };
    let mut rig = Rig::with(64 << 20, options);
    for leaf in 0..40 {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
    let mut rig = rig.kill();
    // What lies above the leaves is there then.
    assert_eq!(rig.read(LIVE, 39 * LEAF, BLOCK), [1; BLOCK]);
    rig.processor.device_mut().held = Some(OperationKind::Read);
    rig.send(request(LIVE, DISCARD, 0, 30 * LEAF, None));
    rig.turn();
    rig.turn();
    let device = rig.processor.device_mut();
    assert_eq!(device.waiting.len(), 16);
    device.held = None;
    let waiting = core::mem::take(&mut device.waiting);
    for mut operation in waiting {
        device.run(&mut operation);
        device.done.push_back(operation);
    }
    for _ in 0..100 {
        rig.now.monotonic_ns += 2_000_000;
        rig.turn();
    }
    assert_eq!((rig.outbox.answers.len(), mapped_blocks(&rig)), (1, 10));
}

#[test]
fn a_discard_goes_on_beside_a_request_that_is_never_answered() {
    let mut rig = rig_with_leaves(12);
    rig.processor.device_mut().held = Some(OperationKind::Read);
    rig.send(request(LIVE, RequestKind::Read, 11 * LEAF, BLOCK, None));
    rig.send(request(LIVE, DISCARD, 0, 10 * LEAF, None));
    for _ in 0..40 {
        rig.turn();
        if let Some(answer) = rig.outbox.answers.pop() {
            assert_eq!(answer.result, Ok(()));
            assert_eq!(mapped_blocks(&rig), 2);
            return;
        }
        let next_ns = rig.processor.next_deadline_ns().expect("the next step is due");
        rig.now.monotonic_ns = rig.now.monotonic_ns.max(next_ns);
    }
    panic!("the discard does not end");
}

#[test]
fn a_discard_that_waits_for_its_turn_is_refused_when_the_shard_stops() {
    let mut rig = rig_with_leaves(50);
    rig.processor.device_mut().held = Some(OperationKind::Read);
    rig.send(request(LIVE, RequestKind::Read, 49 * LEAF, BLOCK, None));
    rig.send(request(LIVE, DISCARD, 0, 40 * LEAF, None));
    rig.turn();
    rig.processor.device_mut().failing = Some(OperationKind::Flush);
    rig.send(request(LIVE, RequestKind::Flush, 0, 0, None));
    for _ in 0..20 {
        rig.turn();
    }
    let results: Vec<_> = rig.outbox.answers.iter().map(|answer| answer.result).collect();
    assert_eq!(results, [Err(RequestError::ShardStopped); 2]);
}

#[test]
fn holes_cost_a_discard_no_steps_of_their_own() {
    let mut rig = Rig::new(64 << 20);
    for leaf in [199, 210] {
        rig.write(leaf * LEAF, &[1; BLOCK]);
    }
    assert_eq!(rig.read(LIVE, 210 * LEAF, BLOCK), [1; BLOCK], "others are there");
    rig.send(request(LIVE, DISCARD, 0, 200 * LEAF, None));
    rig.turn();
    rig.now.monotonic_ns += 1;
    rig.turn();
    assert_eq!(
        rig.outbox.answers.len(),
        1,
        "as many that are not there, and a leaf"
    );
    assert_eq!(mapped_blocks(&rig), 1);
}
