//! A pool that is full: a write is refused, and everything else goes on. Reading, discarding, deleting and flushing
//! work, and give room again.

use crate::boundary::rig::{Checked, Rig, broken};
use crate::boundary::script::Script;
use crate::boundary::start;
use crate::faults::outcome::{Outcome, outcome};
use crate::model::{Broken, Crash};
use crate::random::{Random, mix};
use crate::world::Coverage;

/// Pools that are filled.
pub const POOLS: u64 = 16;
/// Blocks of the volume: more than the pool has.
const VOLUME_BLOCKS: u64 = 1600;

/// Fills a pool and empties it.
///
/// # Errors
/// Wrong data, or something that a full pool must do and did not.
pub fn run(number: u64) -> Result<Coverage, Broken> {
    let mut random = Random::new(mix(number ^ 0xF011));
    let script = Script {
        name: format!("full pool {number}"),
        seed: number,
        shards: 1,
        devices: vec![257 + 1024 + random.below(64)],
        tail: random.percent(50),
        durable_writes: false,
        depth: 1,
        steps: Vec::new(),
    };
    let mut coverage = Coverage::default();
    fill_and_empty(&script, &mut random, &mut coverage)
        .map_err(|Broken(why)| Broken(format!("{}: {why}", script.name)))?;
    coverage.count("pools filled");
    Ok(coverage)
}

fn fill_and_empty(script: &Script, random: &mut Random, coverage: &mut Coverage) -> Checked {
    let mut rig = start(script)?;
    rig.create_volume(VOLUME_BLOCKS);
    rig.drive()?;
    let snapshots = random.between(0, 2);
    for _ in 0..snapshots {
        fill(&mut rig, random, 20)?;
        rig.take_snapshot(&[1])?;
        rig.drive()?;
        rig.see_snapshots()?;
    }
    let refused = fill(&mut rig, random, u64::MAX)?;
    coverage.add("writes refused for lack of space", refused);
    rig.compare(None)?;
    for round in 0..2 {
        must(&mut rig, "flush", |rig| rig.send_flush(1))?;
        // Holes all over the volume: each of them needs map pages before it gives any room.
        for block in (round..VOLUME_BLOCKS).step_by(16) {
            must(&mut rig, "discard", |rig| rig.send_discard(1, block, 8, false))?;
        }
        rig.compare(None)?;
        if round < snapshots {
            must(&mut rig, "snapshot delete", |rig| {
                rig.delete_snapshot(round + 1);
                Ok(())
            })?;
        }
        must(&mut rig, "checkpoint", |rig| {
            rig.checkpoint();
            Ok(())
        })?;
        rig.finish(|_| Ok(()))?;
        let refused = fill(&mut rig, random, u64::MAX)?;
        coverage.add("writes refused for lack of space", refused);
    }
    let written = rig.history.writes;
    coverage.add("writes to full pools", u64::from(written));
    let crash = if random.percent(50) {
        Crash::Kill
    } else {
        Crash::PowerCut
    };
    let (history, now_ns) = (std::mem::take(&mut rig.history), rig.now_ns);
    let (image, tails) = rig.die();
    let (image, tails) = match crash {
        Crash::PowerCut => (image.durable(), None),
        _ => (image, Some(tails)),
    };
    match outcome(&image, tails, &history, crash, now_ns)? {
        Outcome::Right => Ok(()),
        other => broken(format!("after {crash:?} the full pool is {other:?}")),
    }
}

/// What a full pool must do.
fn must(rig: &mut Rig, what: &str, begin: impl FnOnce(&mut Rig) -> Checked) -> Checked {
    let failures = rig.failures;
    begin(rig)?;
    rig.drive()?;
    if rig.failures == failures {
        Ok(())
    } else {
        broken(format!("{what} failed on a full pool"))
    }
}

/// Writes until three writes in a row are refused, at most `most`; gives how many were refused.
fn fill(rig: &mut Rig, random: &mut Random, most: u64) -> Checked<u64> {
    rig.full = true;
    let (mut refused, mut in_a_row, mut done) = (0, 0, 0);
    while in_a_row < 3 && done < most {
        let blocks = random.between(1, 16);
        let block = random.below(VOLUME_BLOCKS - blocks + 1);
        let failures = rig.failures;
        rig.send_write(1, block * 8, blocks * 8, random.percent(10))?;
        rig.drive()?;
        done += 1;
        if rig.failures > failures {
            (refused, in_a_row) = (refused + 1, in_a_row + 1);
        } else {
            in_a_row = 0;
        }
    }
    rig.full = false;
    Ok(refused)
}
