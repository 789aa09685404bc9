//! What the crashes at every boundary find, whatever the choices at a crash are.

#![cfg(feature = "planted-bugs")]

use stillpoint_processor::PlantedBug;
use stillpoint_simulator::boundary::{Budget, LONG_PAGES, goes_wrong};
use stillpoint_simulator::canaries::with_planted;

/// A page of which sectors are missing must not count: any seed sees it.
#[test]
fn without_a_page_checksum_torn_log_pages_are_noticed() {
    for seed in 1..=8 {
        for (bug, found) in [(Some(PlantedBug::TornLogPageAccepted), true), (None, false)] {
            let noticed = with_planted(bug, || goes_wrong(LONG_PAGES, seed, Budget::SHORT));
            assert_eq!(noticed, found, "seed {seed}, {bug:?}");
        }
    }
}
