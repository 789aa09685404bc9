//! Cores: which of them this process may use, where they sit, and pinning a thread to one.
//!
//! Only cores that the process was allowed (`taskset`, cpusets, containers) are ever named: their numbers need
//! be neither dense nor start at 0.

use std::collections::BTreeSet;
use std::path::Path;

/// A logical core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Core {
    /// The kernel's number for it.
    pub number: u32,
    /// NUMA node, 0 if the machine does not say.
    pub node: u32,
    /// Socket.
    pub package: u32,
    /// Physical core within the socket; two logical cores that share it are hyper-threads.
    pub physical: u32,
}

/// The cores that this process may use, by number. Never empty where the kernel answers.
#[must_use]
pub fn allowed_cores() -> Vec<Core> {
    let root = Path::new("/sys/devices/system");
    let mut cores: Vec<Core> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .map(|id| describe(root, id.id as u32))
        .collect();
    cores.sort_unstable();
    cores
}

/// Where a core sits, as sysfs tells it.
fn describe(root: &Path, number: u32) -> Core {
    let directory = root.join(format!("cpu/cpu{number}"));
    let read = |name: &str| -> Option<u32> {
        let text = std::fs::read_to_string(directory.join("topology").join(name)).ok()?;
        text.trim().parse().ok()
    };
    let node = std::fs::read_dir(&directory).ok().and_then(|entries| {
        entries
            .flatten()
            .find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
    });
    Core {
        number,
        node: node.unwrap_or(0),
        package: read("physical_package_id").unwrap_or(0),
        physical: read("core_id").unwrap_or(number),
    }
}

/// Chooses cores for `count` processors: every physical core once before any hyper-thread, node by node. The first core
/// comes last of the physical ones: it is where systems put interrupts of devices with one queue, timers and what else is
/// pinned to nothing, and where the control plane and local clients find time. With more processors than cores the rest
/// get none: such threads run wherever there is time.
#[must_use]
pub fn place_processors(cores: &[Core], count: usize) -> Vec<Option<Core>> {
    let (mut first, second) = physical_first(cores);
    if !first.is_empty() {
        first.rotate_left(1);
    }
    let mut chosen: Vec<Option<Core>> = first.into_iter().chain(second).map(Some).take(count).collect();
    chosen.resize(count, None);
    chosen
}

/// How many processors these cores are good for: one per physical core, less one for the control plane and whatever else
/// the machine does; at least 1.
#[must_use]
pub fn processors_for(cores: &[Core]) -> usize {
    physical_cores(cores).saturating_sub(1).max(1)
}

/// How many physical cores these are.
#[must_use]
pub fn physical_cores(cores: &[Core]) -> usize {
    physical_first(cores).0.len()
}

/// One logical core of each physical one, node by node, and the others.
fn physical_first(cores: &[Core]) -> (Vec<Core>, Vec<Core>) {
    let mut order: Vec<Core> = cores.to_vec();
    order.sort_unstable_by_key(|core| (core.node, core.number));
    let mut seen = BTreeSet::new();
    order
        .into_iter()
        .partition(|core| seen.insert((core.package, core.physical)))
}

/// Pins the calling thread to a core; says whether that worked.
#[must_use]
pub fn pin_this_thread(core: Core) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId {
        id: core.number as usize,
    })
}

/// The core on which the calling thread runs at this moment.
#[must_use]
pub fn current_core() -> Option<u32> {
    // SAFETY: takes no argument and touches no memory of ours.
    u32::try_from(unsafe { libc::sched_getcpu() }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(number: u32, node: u32, package: u32, physical: u32) -> Core {
        Core {
            number,
            node,
            package,
            physical,
        }
    }

    #[test]
    fn a_pinned_thread_runs_on_its_core() {
        for core in allowed_cores() {
            std::thread::spawn(move || {
                assert!(pin_this_thread(core));
                assert_eq!(current_core(), Some(core.number));
            })
            .join()
            .expect("pinned");
        }
    }

    #[test]
    fn physical_cores_come_before_hyper_threads() {
        // Two nodes, two physical cores each; siblings are n and n + 4.
        let cores: Vec<Core> = (0..8).map(|n| core(n, n / 2 % 2, n / 2 % 2, n % 2)).collect();
        let numbers = |count| -> Vec<Option<u32>> {
            let placed = place_processors(&cores, count);
            placed.iter().map(|core| core.map(|core| core.number)).collect()
        };
        assert_eq!(numbers(3), [Some(1), Some(2), Some(3)]);
        assert_eq!(numbers(4), [Some(1), Some(2), Some(3), Some(0)]);
        assert_eq!(numbers(6)[4..], [Some(4), Some(5)]);
        assert_eq!(numbers(9)[8], None);
    }

    #[test]
    fn cores_that_are_not_allowed_are_never_chosen() {
        let cores = [core(3, 0, 0, 3), core(17, 1, 1, 1)];
        let placed = place_processors(&cores, 3);
        assert_eq!(placed, [Some(cores[1]), Some(cores[0]), None]);
        assert_eq!(place_processors(&[], 1), [None]);
    }

    #[test]
    fn one_physical_core_is_left_to_others() {
        let cores: Vec<Core> = (0..8).map(|n| core(n, 0, 0, n % 4)).collect();
        assert_eq!(processors_for(&cores), 3);
        assert_eq!(processors_for(&cores[..2]), 1);
        assert_eq!(processors_for(&cores[..1]), 1);
        assert_eq!(processors_for(&[]), 1);
    }

    #[test]
    fn a_machine_that_says_nothing_is_one_node() {
        let nothing = tempfile::tempdir().expect("a directory");
        assert_eq!(describe(nothing.path(), 5), core(5, 0, 0, 5));
    }
}
