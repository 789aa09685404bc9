//! Crashes at every boundary: short scripts are played over devices that remember which block writes no flush covered
//! yet; before each write or flush of a device ends, everything that a crash could leave at that moment is recovered
//! and compared.
//!
//! | file | what it does |
//! |---|---|
//! | `script.rs` | what is done: a few scripts made by hand, any number from seeds |
//! | `rig.rs`, `client.rs`, `operator.rs`, `play.rs` | one life of a pool, and a script played in it |
//! | `promotion.rs` | clones that take over the snapshots of what they were made of |
//! | `history.rs` | what the client was told, and so what may be there |
//! | `medium.rs`, `choices.rs`, `memory.rs` | devices, what a crash leaves of them, log tails |
//! | `recover.rs` | a pool after a crash: put right by its catalog, read, compared |
//! | `explore.rs` | every boundary, every choice, and again during the recovery |
//! | `create.rs` | the same while a pool is made |

pub(crate) mod choices;
mod client;
mod create;
mod explore;
pub(crate) mod history;
pub(crate) mod medium;
pub(crate) mod memory;
mod operator;
pub(crate) mod play;
mod promotion;
pub(crate) mod recover;
pub(crate) mod rig;
pub(crate) mod script;

use std::cell::RefCell;
use std::rc::Rc;

use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::format::{PoolSpec, make_pool};

use crate::machine::WALL_START_NS;
use crate::model::Broken;
use crate::random::{Random, mix};
use crate::world::Coverage;

pub use choices::Budget;
pub(crate) use create::layout_of;
use medium::{Image, Medium, Port};
use memory::Tail;
use rig::{Checked, Rig};
use script::Script;

/// Identity of the pools that scripts make.
pub(crate) const POOL: [u8; 16] = *b"a scripted pool.";

/// What a pool for a script is to be.
pub(crate) fn spec_of(script: &Script, pool: [u8; 16]) -> PoolSpec {
    PoolSpec {
        pool,
        name: "scripted".to_string(),
        shard_count: script.shards,
        created_ns: WALL_START_NS,
        devices: (0..)
            .zip(&script.devices)
            .map(|(index, &blocks)| ([index; 16], blocks))
            .collect(),
        second_sides: Vec::new(),
    }
}

/// Makes the pool of a script on blank devices and opens it.
pub(crate) fn start(script: &Script) -> Checked<Rig> {
    let image = Image::blank(&script.devices).with_durable_writes(script.durable_writes);
    let medium = Rc::new(RefCell::new(Medium::new(image)));
    let layout: Layout = make_pool(&mut Port(Rc::clone(&medium)), &spec_of(script, POOL))
        .map_err(|error| Broken(format!("the pool cannot be made: {error}")))?;
    let tail = if script.tail { Tail::empty() } else { Tail(None) };
    let tails = vec![tail; usize::from(script.shards)];
    Rig::open(&layout, &medium, tails, 0, Random::new(mix(script.seed)))
        .map_err(|error| Broken(format!("a new pool does not open: {error}")))
}

/// The number of a script whose log pages have records in several sectors.
pub const LONG_PAGES: u64 = 7;

/// How many scripts are made by hand: numbers from here on are seeds.
#[must_use]
pub fn scripts_by_hand() -> u64 {
    script::by_hand().len() as u64
}

/// The script of a number: those made by hand first, then one for each seed.
pub(crate) fn script_of(number: u64) -> Script {
    let by_hand = script::by_hand();
    match by_hand.get(number as usize) {
        Some(script) => script.clone(),
        None => script::from_seed(number),
    }
}

/// Whether the script of this number goes wrong somewhere, with another seed for what its crashes leave.
#[must_use]
pub fn goes_wrong(number: u64, seed: u64, budget: Budget) -> bool {
    let mut script = script_of(number);
    script.seed = seed;
    explore::Explorer::new(&script, budget).run().is_err()
}

/// Explores every boundary of a script, and of making its pool.
///
/// # Errors
/// The first thing that a recovery got wrong, with the boundary and what the crash left.
pub fn run(number: u64, budget: Budget) -> Result<Coverage, Broken> {
    let script = script_of(number);
    let named = |Broken(why)| Broken(format!("script {}: {why}", script.name));
    let mut explorer = explore::Explorer::new(&script, budget);
    let rig = explorer.run().map_err(named)?;
    let mut coverage = explorer.coverage;
    coverage.add("durable writes", rig.medium.borrow().written_durably);
    create::explore(&script, rig, budget, &mut coverage).map_err(named)?;
    coverage.count("scripts");
    Ok(coverage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_ondisk::log::LogPage;

    const SMALL: Budget = Budget {
        subsets: 6,
        exhaustive: 2,
    };

    #[test]
    fn the_scripts_made_by_hand_cross_a_boundary_of_every_operation() {
        let mut total = Coverage::default();
        for number in [0, 3, 4] {
            match run(number, SMALL) {
                Ok(coverage) => total.merge(&coverage),
                Err(Broken(why)) => panic!("{why}"),
            }
        }
        for what in [
            "boundaries of checkpoints",
            "boundaries of log appends",
            "boundaries of pool create",
            "boundaries of recoveries",
            "boundaries of snapshot create",
            "boundaries of snapshot delete",
            "boundaries of volume create",
            "boundaries of volume resize",
            "crashes while opening",
            "kills",
        ] {
            assert!(
                total.0.get(what).is_some_and(|count| *count > 0),
                "{what} in {total:?}"
            );
        }
    }

    /// The medium holds log pages whose records reach beyond the first sector, and they are at risk.
    #[test]
    fn the_script_of_long_pages_puts_pages_of_several_sectors_at_risk() {
        let script = script_of(LONG_PAGES);
        let mut longest_bytes = 0;
        let mut rig = start(&script).unwrap_or_else(|Broken(why)| panic!("{why}"));
        let layout = rig.layout.clone();
        let played = play::Player::new(&script).play(&mut rig, |rig| {
            let pages = rig.image().at_risk();
            let logged = pages
                .iter()
                .filter_map(|write| LogPage::any(&write.page[..], layout.pool, 0));
            longest_bytes = logged.fold(longest_bytes, |longest, page| longest.max(page.used_bytes.get()));
            Ok(true)
        });
        assert!(played.is_ok());
        assert!(longest_bytes > 3 * 512, "{longest_bytes} bytes of records");
    }

    /// Number of the script of clones.
    const CLONES: u64 = 8;

    #[test]
    fn the_scripts_of_clones_rollbacks_and_promotions_cross_their_boundaries() {
        for (number, what) in [
            (CLONES, "clone"),
            (CLONES + 1, "rollback"),
            (CLONES + 2, "promotion"),
        ] {
            let script = script_of(number);
            let mut rig = start(&script).unwrap_or_else(|Broken(why)| panic!("{why}"));
            let mut crossed = 0;
            let played = play::Player::new(&script).play(&mut rig, |rig| {
                crossed += u32::from(rig.doing == what);
                Ok(true)
            });
            assert!(played.is_ok(), "{played:?}");
            assert!(crossed > 1, "{crossed} boundaries during a {what}");
            assert!(rig.compare(None).is_ok());
        }
    }

    /// Crashes come while a deleted snapshot waits for one of its branches, and while it is being freed at last; and while
    /// shares without a live map lose their snapshots one by one.
    #[test]
    fn the_scripts_of_clones_and_promotions_are_interrupted_in_the_middle_of_deletions() {
        for (number, least) in [(CLONES, 10), (CLONES + 2, 10)] {
            let script = script_of(number);
            let mut rig = start(&script).unwrap_or_else(|Broken(why)| panic!("{why}"));
            let (mut waiting, mut headless) = (0, 0);
            let played = play::Player::new(&script).play(&mut rig, |rig| {
                let mut shares = rig.shards()[0].shares();
                waiting += u32::from(shares.any(|share| share.snapshots.iter().any(|found| found.deleting)));
                let mut shares = rig.shards()[0].shares();
                headless += u32::from(shares.any(|share| share.deleting && !share.snapshots.is_empty()));
                Ok(true)
            });
            assert!(played.is_ok(), "{played:?}");
            assert!(
                waiting >= least,
                "{waiting} boundaries while a snapshot is being deleted"
            );
            assert!(
                number == CLONES || headless >= least,
                "{headless} boundaries without a live map"
            );
        }
    }

    /// With them a header, and a page of the log, is durable without a flush after it: these boundaries are others.
    #[test]
    fn some_scripts_are_played_on_devices_that_make_single_writes_durable() {
        let durably: Vec<u64> = (0..scripts_by_hand())
            .filter(|&number| script_of(number).durable_writes)
            .collect();
        assert!(durably.len() > 1);
        for number in [1, durably[0], durably[1]] {
            let script = script_of(number);
            let mut rig = start(&script).unwrap_or_else(|Broken(why)| panic!("{why}"));
            let played = play::Player::new(&script).play(&mut rig, |_| Ok(true));
            assert!(played.is_ok(), "{played:?}");
            let written = rig.medium.borrow().written_durably;
            assert_eq!(written > 2, script.durable_writes, "{}: {written}", script.name);
        }
        let of_seeds = (scripts_by_hand()..50).filter(|&number| script_of(number).durable_writes);
        assert!(of_seeds.count() > 8);
    }

    #[test]
    fn a_device_whose_flush_does_nothing_is_found_out() {
        let script = script_of(0);
        let mut explorer = explore::Explorer::new(&script, SMALL);
        explorer.flush_lies = true;
        assert!(explorer.run().is_err(), "nobody noticed");
    }
}
