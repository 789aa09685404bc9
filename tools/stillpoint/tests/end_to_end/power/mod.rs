//! Power cuts below the real program. Its pool lies on disks with volatile caches (one as a file through FUSE, one as
//! a loop device over that); at the cut each write that was not flushed is kept, lost or torn, and the log tails are
//! gone. What must be there afterwards: on ext4, xfs and btrfs, files that were fsynced; on a volume without a file
//! system, what was acknowledged before a flush or with FUA; snapshots that were confirmed, as they were. And the
//! pool must pass its check before it is opened, and every file system its own. `STILLPOINT_CUTS` says how many cuts.

mod checks;
mod ledger;
mod machine;
mod raw;
mod volume;

use crate::support::mounts::{Kind, contained};
use crate::support::setting;
use machine::{Figures, Machine};

const CUTS: u64 = 8;

#[test]
fn fsynced_files_and_snapshots_survive_power_cuts() {
    contained("power::fsynced_files_and_snapshots_survive_power_cuts", || {
        let mut machine = Machine::new(Kind::all_here(), 1);
        let mut figures = Figures::default();
        for cut in 1..=setting("STILLPOINT_CUTS", CUTS) {
            machine.live_until_the_power_goes(&mut figures);
            while machine.toss() {
                machine.power_goes_while_recovering(&mut figures);
            }
            let complaints = machine.recover(&mut figures);
            assert!(
                complaints.is_empty(),
                "after cut {cut}:\n{}",
                complaints.join("\n")
            );
        }
        assert!(figures.lost.writes_torn > 0, "{figures:?} tore nothing");
        assert!(figures.lost.writes_lost > 0, "{figures:?} lost nothing");
        eprintln!(
            "{figures:#?}\n{} snapshots confirmed, {} flushes of disks; lost: 0",
            machine.snapshots_confirmed(),
            machine.flushes()
        );
    });
}

#[test]
fn a_disk_whose_flush_lies_is_found_out() {
    contained("power::a_disk_whose_flush_lies_is_found_out", || {
        let mut machine = Machine::new(Kind::all_here(), 2);
        machine.lie();
        let mut figures = Figures::default();
        machine.live_until_the_power_goes(&mut figures);
        let complaints = machine.recover(&mut figures);
        assert!(!complaints.is_empty(), "nobody noticed: {figures:#?}");
        let first = complaints[0].lines().next().unwrap_or_default();
        eprintln!("{} complaints, the first: {first}", complaints.len());
    });
}
