//! Cores: which of them this process may use, where they sit, and pinning a thread to one.
//!
//! Only cores that the process was allowed (`taskset`, cpusets, containers) are ever named: their numbers need
//! be neither dense nor start at 0.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let numbers: Vec<u32> = ids.into_iter().map(|id| id.id as u32).collect();
    cores_below(Path::new("/sys/devices/system"), &numbers)
}

/// These cores, by number, as a directory like `/sys/devices/system` describes them.
pub(crate) fn cores_below(root: &Path, numbers: &[u32]) -> Vec<Core> {
    let mut cores: Vec<Core> = numbers.iter().map(|&number| describe(root, number)).collect();
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

/// Chooses cores for `count` processors: every physical core once before any hyper-thread; of either kind those of the nodes
/// in `near` first, dealt out by how many devices lie near each, then the others node by node. The first core
/// comes last of the physical ones: it is where systems put interrupts of devices with one queue, timers and what else is
/// pinned to nothing, and where the control plane and local clients find time. With more processors than cores the rest
/// get none: such threads run wherever there is time.
///
/// `near` has the number of devices by NUMA node; on a machine of one node it changes nothing.
#[must_use]
pub fn place_processors(cores: &[Core], count: usize, near: &BTreeMap<u32, usize>) -> Vec<Option<Core>> {
    let (mut first, second) = physical_first(cores);
    let spared = (!first.is_empty()).then(|| first.remove(0));
    let order = (deal(first, near).into_iter())
        .chain(spared)
        .chain(deal(second, near));
    let mut chosen: Vec<Option<Core>> = order.map(Some).take(count).collect();
    chosen.resize(count, None);
    chosen
}

/// Chooses cores for `count` threads that load an appliance on the same machine: those that [`place_processors`] takes
/// last. The core that it spares comes first, then the hyper-threads of that one, which disturb no processor; then the
/// others from the end of its order. With more threads than cores the rest get none.
#[must_use]
pub fn place_clients(cores: &[Core], count: usize) -> Vec<Option<Core>> {
    let spared = physical_first(cores).0.first().copied();
    let mut order = place_processors(cores, cores.len(), &BTreeMap::new());
    order.reverse();
    let mut order: Vec<Core> = order.into_iter().flatten().collect();
    order.sort_by_key(|core| match spared {
        Some(spared) if *core == spared => 0,
        Some(spared) if (core.package, core.physical) == (spared.package, spared.physical) => 1,
        _ => 2,
    });
    let mut chosen: Vec<Option<Core>> = order.into_iter().map(Some).take(count).collect();
    chosen.resize(count, None);
    chosen
}

/// Cores of the nodes in `near` first, so that at any point the nodes have had cores in proportion to their devices as far
/// as they have some left; then the others, in the order that they have.
fn deal(cores: Vec<Core>, near: &BTreeMap<u32, usize>) -> Vec<Core> {
    let (close, others): (Vec<Core>, Vec<Core>) =
        (cores.into_iter()).partition(|core| near.get(&core.node).is_some_and(|&devices| devices > 0));
    let mut left: BTreeMap<u32, VecDeque<Core>> = BTreeMap::new();
    for core in close {
        left.entry(core.node).or_default().push_back(core);
    }
    let mut had: BTreeMap<u32, usize> = BTreeMap::new();
    let mut order = Vec::new();
    // The next core is for the node that would have the most devices for each of its cores after that; the lowest of equals.
    while let Some(node) = (left.keys().copied()).reduce(|best, other| {
        let cores_then = |node: u32| had.get(&node).copied().unwrap_or(0) + 1;
        let is_better = near[&other] * cores_then(best) > near[&best] * cores_then(other);
        if is_better { other } else { best }
    }) {
        *had.entry(node).or_default() += 1;
        if let Some(core) = left.get_mut(&node).and_then(VecDeque::pop_front) {
            order.push(core);
        }
        left.retain(|_, cores| !cores.is_empty());
    }
    order.extend(others);
    order
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

/// The shortest slice that the kernel grants, in nanoseconds.
pub const SLICE_NS_MIN: u64 = 100_000;

/// Asks the kernel for short slices of the core for the calling thread, in nanoseconds: where others want the core too, it
/// gets it sooner when it wakes up and gives it back sooner, while its share stays what it is. It takes no privilege. Returns
/// the slice that the thread has now.
///
/// Fair scheduling knows them from Linux 6.12 on; older kernels, and threads with real-time priority, stay as they are: `None`.
#[must_use]
pub fn ask_for_slices(slice_ns: u64) -> Option<u64> {
    let mut attributes = this_threads_attributes()?;
    let is_fair = matches!(
        i32::try_from(attributes.sched_policy),
        Ok(libc::SCHED_OTHER | libc::SCHED_BATCH)
    );
    // Kernels without slices say 0.
    if !is_fair || attributes.sched_runtime == 0 {
        return None;
    }
    attributes.sched_runtime = slice_ns;
    // SAFETY: the attributes are as long as their size says, and are only read; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    (result == 0)
        .then(this_threads_attributes)?
        .map(|now| now.sched_runtime)
}

fn this_threads_attributes() -> Option<libc::sched_attr> {
    // SAFETY: numbers alone, for which zeros are values.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as libc::c_uint;
    // SAFETY: the kernel writes no more than the size that it is told; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    (result == 0).then_some(attributes)
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
    fn a_thread_has_the_slices_that_it_asked_for_and_others_have_theirs() {
        let own = || this_threads_attributes().expect("the kernel tells").sched_runtime;
        let before = own();
        std::thread::spawn(move || match ask_for_slices(SLICE_NS_MIN) {
            Some(slice_ns) => {
                assert_eq!((slice_ns, own()), (SLICE_NS_MIN, SLICE_NS_MIN));
                assert!(before > SLICE_NS_MIN, "the default is {before} ns");
            }
            // An older kernel.
            None => assert_eq!(own(), before),
        })
        .join()
        .expect("asked");
        assert_eq!(own(), before);
    }

    #[test]
    fn physical_cores_come_before_hyper_threads() {
        // Two nodes, two physical cores each; siblings are n and n + 4.
        let cores: Vec<Core> = (0..8).map(|n| core(n, n / 2 % 2, n / 2 % 2, n % 2)).collect();
        let numbers = |count| -> Vec<Option<u32>> {
            let placed = place_processors(&cores, count, &BTreeMap::new());
            placed.iter().map(|core| core.map(|core| core.number)).collect()
        };
        assert_eq!(numbers(3), [Some(1), Some(2), Some(3)]);
        assert_eq!(numbers(4), [Some(1), Some(2), Some(3), Some(0)]);
        assert_eq!(numbers(6)[4..], [Some(4), Some(5)]);
        assert_eq!(numbers(9)[8], None);
    }

    /// The cores chosen for so many processors, on two nodes of four physical cores with two threads each; the
    /// siblings are n and n + 8, node 0 has 0 to 3 and 8 to 11.
    fn chosen(count: usize, near: &[(u32, usize)]) -> Vec<u32> {
        let cores: Vec<Core> = (0..16).map(|n| core(n, n / 4 % 2, n / 4 % 2, n % 4)).collect();
        let placed = place_processors(&cores, count, &near.iter().copied().collect());
        placed.into_iter().flatten().map(|core| core.number).collect()
    }

    #[test]
    fn cores_near_devices_come_first() {
        assert_eq!(chosen(4, &[]), [1, 2, 3, 4]);
        assert_eq!(chosen(4, &[(1, 3)]), [4, 5, 6, 7]);
        // Then the others: physical ones before threads, the first core last.
        assert_eq!(chosen(9, &[(1, 1)]), [4, 5, 6, 7, 1, 2, 3, 0, 12]);
        assert_eq!(chosen(4, &[(0, 2)]), [1, 2, 3, 4]);
        // A node that has no cores here, or no devices, changes nothing.
        assert_eq!(chosen(5, &[(7, 2), (1, 0)]), chosen(5, &[]));
    }

    #[test]
    fn nodes_get_processors_in_proportion_to_their_devices() {
        assert_eq!(chosen(2, &[(0, 1), (1, 1)]), [1, 4]);
        assert_eq!(chosen(6, &[(0, 4), (1, 4)]), [1, 4, 2, 5, 3, 6]);
        assert_eq!(chosen(4, &[(0, 1), (1, 3)]), [4, 5, 1, 6]);
        // Whatever lies where, all cores are chosen once.
        for near in [&[(0, 9), (1, 1)][..], &[(1, 5)], &[]] {
            let mut all = chosen(16, near);
            assert_eq!(all[7], 0, "the first core is the last of the physical ones");
            all.sort_unstable();
            assert_eq!(all, (0..16).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn on_one_node_nothing_changes() {
        let cores: Vec<Core> = (0..8).map(|n| core(n, 0, 0, n % 4)).collect();
        let near = BTreeMap::from([(0, 3)]);
        for count in 0..10 {
            let placed = place_processors(&cores, count, &near);
            assert_eq!(placed, place_processors(&cores, count, &BTreeMap::new()));
        }
    }

    #[test]
    fn clients_get_the_cores_that_processors_take_last() {
        let machine = |physical: u32, logical: u32| -> Vec<Core> {
            (0..logical).map(|n| core(n, 0, 0, n % physical)).collect()
        };
        let numbers = |placed: Vec<Option<Core>>| -> Vec<Option<u32>> {
            placed.iter().map(|core| core.map(|core| core.number)).collect()
        };
        for (physical, logical, expected) in [
            (2, 2, &[0, 1][..]),
            (4, 4, &[0, 3, 2, 1]),
            // The spared core, its hyper-thread, the threads of processors' cores, these cores.
            (4, 8, &[0, 4, 7, 6, 5, 3, 2, 1]),
            (8, 8, &[0, 7, 6, 5, 4, 3, 2, 1]),
            (8, 16, &[0, 8, 15, 14, 13, 12, 11, 10, 9, 7, 6, 5, 4, 3, 2, 1]),
        ] {
            let cores = machine(physical, logical);
            let expected: Vec<Option<u32>> = expected.iter().copied().map(Some).collect();
            assert_eq!(numbers(place_clients(&cores, cores.len())), expected);
            // As many processors as there are by default meet no client while there is another core.
            let processors = place_processors(&cores, processors_for(&cores), &BTreeMap::new());
            let clients = place_clients(&cores, cores.len() - processors.len());
            assert!(
                clients.iter().all(|client| !processors.contains(client)),
                "{clients:?} {processors:?}"
            );
        }
        assert_eq!(
            numbers(place_clients(&machine(2, 2), 3)),
            [Some(0), Some(1), None]
        );
        assert_eq!(place_clients(&[], 1), [None]);
    }

    #[test]
    fn cores_that_are_not_allowed_are_never_chosen() {
        let cores = [core(3, 0, 0, 3), core(17, 1, 1, 1)];
        let placed = place_processors(&cores, 3, &BTreeMap::new());
        assert_eq!(placed, [Some(cores[1]), Some(cores[0]), None]);
        assert_eq!(place_processors(&[], 1, &BTreeMap::new()), [None]);
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
