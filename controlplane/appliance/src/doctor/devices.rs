//! What the NVMe devices of this machine lack for full speed.

use super::{note, ok, problem};
use crate::api::model::Finding;
use stillpoint_hw::device::nvme::polling_refusal;
use stillpoint_hw::discovery::{BlockDeviceInfo, Machine, Namespace, Pci, is_among};
use stillpoint_hw::topology::Core;

/// Where processors are.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// How many there are.
    pub processors: usize,
    /// The cores of those that are pinned.
    pub placed: &'a [Core],
    /// The cores that they could have.
    pub allowed: &'a [Core],
}

/// Looks at the NVMe devices of a machine.
pub fn look(machine: &Machine, placement: &Placement) -> Vec<Finding> {
    look_on(machine, placement, polling_refusal().as_deref())
}

/// The same on a kernel that is not asked to poll, for this reason.
fn look_on(machine: &Machine, placement: &Placement, no_polling: Option<&str>) -> Vec<Finding> {
    let devices = machine.block_devices();
    let namespaces = devices
        .iter()
        .filter_map(|device| Some((device, device.nvme.as_ref()?)));
    namespaces
        .flat_map(|(device, nvme)| {
            let found = [
                Some(queues(device, nvme, placement.processors, no_polling)),
                node(machine, device, placement),
                (device.pci.as_ref().and_then(|pci| interrupts(device, pci)))
                    .or_else(|| completions(device, placement.placed, no_polling.is_none())),
                device.pci.as_ref().and_then(|pci| link(device, pci)),
                health(device, nvme),
            ];
            found.into_iter().flatten()
        })
        .collect()
}

fn subject(device: &BlockDeviceInfo) -> String {
    format!("device {}", device.path.display())
}

fn queues(
    device: &BlockDeviceInfo,
    nvme: &Namespace,
    processors: usize,
    no_polling: Option<&str>,
) -> Finding {
    let queues = nvme.queues.unwrap_or(0);
    let polled = if device.polled { nvme.poll_queues } else { 0 };
    let found = format!("{queues} queues, {polled} of them polled");
    if let Some(why) = no_polling {
        let message = match polled {
            0 => format!("{queues} queues: each completion is an interrupt"),
            _ => format!("{found}, which are not used: {why}"),
        };
        let mend = "boot Linux 6.5 or newer, which can use poll queues";
        return note(&subject(device), message, mend);
    }
    if polled > 0 && polled as usize >= processors {
        return ok(&subject(device), found);
    }
    let message = match polled {
        0 => "no poll queues: each completion is an interrupt".to_owned(),
        _ => format!("{found}: {processors} processors share them"),
    };
    note(
        &subject(device),
        message,
        &format!(
            "give the kernel nvme.poll_queues={0} (or `options nvme poll_queues={0}` in /etc/modprobe.d, if the driver is a \
             module) and boot",
            processors.max(1)
        ),
    )
}

/// What others have mounted is no concern of processors.
fn node(machine: &Machine, device: &BlockDeviceInfo, placement: &Placement) -> Option<Finding> {
    let node = device.numa_node?;
    let is_near = |cores: &[Core]| cores.iter().any(|core| core.node == node);
    let is_of_others = !device.usage.mounts.is_empty() || !device.usage.swaps.is_empty();
    if is_of_others || placement.placed.is_empty() || is_near(placement.placed) {
        return None;
    }
    let mend = match machine.cores_of_node(node) {
        _ if is_near(placement.allowed) => format!(
            "cores of node {node} are allowed: if a pool lies on it, start the daemon again, for it chooses by its pools when it \
             starts; or give it more processors (--processors)"
        ),
        Some(cores) => format!(
            "let the daemon have cores of node {node}, which are {cores} (taskset, AllowedCPUs= in its unit)"
        ),
        None => format!("node {node} has no cores: put the device into a slot of a node that has"),
    };
    Some(note(
        &subject(device),
        format!("it is near NUMA node {node}, and no processor is: data takes a detour"),
        &mend,
    ))
}

/// The first interrupt is of the queue for administration; the others should be on cores of their own.
fn interrupts(device: &BlockDeviceInfo, pci: &Pci) -> Option<Finding> {
    let for_data = pci.interrupts.get(1..)?;
    let first = &for_data.first()?.cores;
    if for_data.len() < 2 || first.contains([',', '-']) || for_data.iter().any(|irq| irq.cores != *first) {
        return None;
    }
    Some(note(
        &subject(device),
        format!(
            "all {} interrupts of its queues go to core {first}",
            for_data.len()
        ),
        "spread them: /proc/irq/NUMBER/smp_affinity_list, or irqbalance; see that no irqaffinity= is on the kernel's command line",
    ))
}

/// Completions are handled by the core that submitted, if the interrupt of its queue is its own, or the kernel passes them on.
fn completions(device: &BlockDeviceInfo, placed: &[Core], may_poll: bool) -> Option<Finding> {
    if device.polled && may_poll {
        // Nothing but flushes comes by interrupt.
        return None;
    }
    if device.completion_affinity == Some(0) && !placed.is_empty() {
        let message = "its completions are handled by whichever core takes the interrupt (rq_affinity is 0)";
        let mend = format!("echo 2 > /sys/block/{}/queue/rq_affinity", device.name);
        return Some(note(&subject(device), message.to_owned(), &mend));
    }
    let elsewhere = placed.iter().filter_map(|core| {
        let interrupt = device.interrupt_for(core.number)?;
        let is_known = !interrupt.cores.is_empty();
        (is_known && !is_among(&interrupt.cores, core.number))
            .then(|| format!("those of core {} go to core {}", core.number, interrupt.cores))
    });
    let elsewhere: Vec<String> = elsewhere.collect();
    if elsewhere.is_empty() {
        return None;
    }
    Some(note(
        &subject(device),
        format!(
            "interrupts disturb cores that did not submit: {}",
            elsewhere.join(", ")
        ),
        "poll queues have none (nvme.poll_queues=N); else there are fewer queues than cores, or the interrupts were moved: \
         /proc/irq/NUMBER/smp_affinity_list, irqbalance, irqaffinity= on the kernel's command line",
    ))
}

fn link(device: &BlockDeviceInfo, pci: &Pci) -> Option<Finding> {
    if !pci.link_is_reduced() {
        return None;
    }
    let told = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
    let lanes = |lanes: Option<u32>| lanes.map_or_else(|| "?".to_owned(), |lanes| lanes.to_string());
    Some(note(
        &subject(device),
        format!(
            "its link runs at {} x{}; it can do {} x{}",
            told(&pci.link_speed),
            lanes(pci.link_width),
            told(&pci.link_speed_max),
            lanes(pci.link_width_max)
        ),
        "put it into a slot that has as much; see the firmware's settings for the slot",
    ))
}

fn health(device: &BlockDeviceInfo, nvme: &Namespace) -> Option<Finding> {
    let smart = nvme.identified.as_ref().ok()?.smart.as_ref().ok()?;
    match &smart.warnings()[..] {
        [] => None,
        warnings => Some(problem(
            &subject(device),
            format!("it warns: {}", warnings.join(", ")),
            "save what lies on it and replace it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::FindingState;
    use std::fs;
    use std::path::Path;
    use tempfile::TempDir;

    /// A machine of files with one namespace: near node 1, which has cores 8 to 15; interrupts 40 to 42 on these cores.
    fn machine(polled: bool, cores: [&str; 3]) -> (TempDir, Machine) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        let file = |path: &str, content: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
            fs::write(path, content).expect("written");
        };
        let pci = "sys/devices/pci0000:00/0000:01:00.0";
        let home = format!("{pci}/nvme/nvme0");
        file(&format!("{home}/nvme0n1/mq/0/cpu_list"), "0, 2");
        file(&format!("{home}/nvme0n1/mq/1/cpu_list"), "1, 3");
        file(&format!("{home}/queue_count"), "5");
        file(&format!("{home}/nvme0n1/size"), "2048");
        file(
            &format!("{home}/nvme0n1/queue/io_poll"),
            if polled { "1" } else { "0" },
        );
        file("sys/module/nvme/parameters/poll_queues", "2");
        file("sys/devices/system/node/node1/cpulist", "8-15\n");
        file(&format!("{pci}/numa_node"), "1");
        file(&format!("{pci}/current_link_width"), "2");
        file(&format!("{pci}/max_link_width"), "4");
        for (number, cores) in (40..).zip(cores) {
            file(&format!("{pci}/msi_irqs/{number}"), "msix");
            file(&format!("proc/irq/{number}/effective_affinity_list"), cores);
        }
        let link = |path: &str, target: &Path| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
            std::os::unix::fs::symlink(target, path).expect("linked");
        };
        link("sys/class/nvme/nvme0", &root.join(&home));
        link("sys/block/nvme0n1", &root.join(&home).join("nvme0n1"));
        link(&format!("{home}/nvme0n1/device"), &root.join(&home));
        let machine = Machine::at(root);
        (directory, machine)
    }

    fn placement<'a>(processors: usize, placed: &'a [Core], allowed: &'a [Core]) -> Placement<'a> {
        Placement {
            processors,
            placed,
            allowed,
        }
    }

    fn core(node: u32) -> Core {
        Core {
            number: 0,
            node,
            package: 0,
            physical: 0,
        }
    }

    #[test]
    fn what_a_device_lacks_is_told_with_what_brings_it() {
        let (_directory, machine) = machine(false, ["0", "3", "3"]);
        let findings = look_on(&machine, &placement(2, &[core(0), core(0)], &[core(0)]), None);
        let messages: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
        for (words, mend) in [
            ("no poll queues", "nvme.poll_queues=2"),
            ("near NUMA node 1", "cores of node 1, which are 8-15"),
            ("all 2 interrupts of its queues go to core 3", "smp_affinity_list"),
            ("its link runs at ? x2; it can do ? x4", "slot"),
        ] {
            let found = findings.iter().find(|finding| finding.message.contains(words));
            let found = found.unwrap_or_else(|| panic!("{words:?} is not in {messages:?}"));
            assert_eq!(found.state, FindingState::Note);
            assert_eq!(found.subject, "device /dev/nvme0n1");
            assert!(
                found.mend.as_ref().is_some_and(|text| text.contains(mend)),
                "{found:?}"
            );
        }
        assert_eq!(findings.len(), 4);
    }

    #[test]
    fn what_is_in_order_is_told_once() {
        let (_directory, machine) = machine(true, ["0", "0", "1"]);
        let findings = look_on(&machine, &placement(2, &[core(1)], &[core(1)]), None);
        let good: Vec<_> = findings
            .iter()
            .filter(|finding| finding.state == FindingState::Ok)
            .collect();
        assert_eq!(good[0].message, "4 queues, 2 of them polled");
        // The link stays what it is.
        assert_eq!((good.len(), findings.len()), (1, 2));
        let nothing = Machine::at(Path::new("/nowhere"));
        assert!(look_on(&nothing, &placement(1, &[core(0)], &[core(0)]), None).is_empty());
    }

    #[test]
    fn completions_that_disturb_other_cores_are_told_unless_they_are_polled_for() {
        let told = |polled: bool, cores: [&str; 3], affinity: &str, no_polling: Option<&str>| {
            let (directory, machine) = machine(polled, cores);
            let queue = directory.path().join("sys/block/nvme0n1/queue");
            fs::write(queue.join("rq_affinity"), affinity).expect("written");
            let findings = look_on(&machine, &placement(1, &[core(1)], &[core(1)]), no_polling);
            let of_completions =
                |finding: &Finding| finding.message.contains("interrupt") && finding.mend.is_some();
            let mut found = findings.into_iter().filter(of_completions);
            let first = found.find(|finding| !finding.message.contains("each completion is"));
            first.map(|finding| (finding.message, finding.mend.expect("a note says what to do")))
        };
        // The processor is on core 0, which submits to the first queue: the second interrupt.
        assert_eq!(told(false, ["3", "0", "1"], "1", None), None);
        assert_eq!(told(false, ["3", "0-1", "2"], "2", None), None);
        let (message, mend) = told(false, ["0", "2", "0"], "1", None).expect("told");
        assert!(message.contains("those of core 0 go to core 2"), "{message}");
        assert!(mend.contains("poll_queues"), "{mend}");
        assert_eq!(told(true, ["0", "2", "0"], "0", None), None);
        assert!(told(true, ["0", "2", "0"], "1", Some("it panics")).is_some());
        let (message, mend) = told(false, ["3", "0", "1"], "0", None).expect("told");
        assert!(message.contains("rq_affinity is 0"), "{message}");
        assert_eq!(mend, "echo 2 > /sys/block/nvme0n1/queue/rq_affinity");
    }

    #[test]
    fn a_device_without_a_processor_near_it_is_told_with_what_can_be_done() {
        let (directory, machine) = machine(true, ["0", "0", "1"]);
        let mend = |placed: &[Core], allowed: &[Core]| {
            let findings = look_on(&machine, &placement(1, placed, allowed), None);
            let found = findings
                .into_iter()
                .find(|finding| finding.message.contains("NUMA"));
            found.map(|finding| finding.mend.expect("a note says what to do"))
        };
        let told = mend(&[core(0)], &[core(0), core(1)]).expect("told");
        assert!(told.contains("start the daemon again"), "{told}");
        let told = mend(&[core(0)], &[core(0)]).expect("told");
        assert!(told.contains("node 1, which are 8-15"), "{told}");
        // Near it, or pinned nowhere.
        assert_eq!(mend(&[core(0), core(1)], &[core(0), core(1)]), None);
        assert_eq!(mend(&[], &[core(0)]), None);
        let root = directory.path();
        fs::write(root.join("sys/devices/system/node/node1/cpulist"), "\n").expect("written");
        let told = mend(&[core(0)], &[core(0)]).expect("told");
        assert!(told.contains("has no cores"), "{told}");
        // What others have mounted is theirs.
        let mounts = "30 22 259:1 / /srv rw - xfs /dev/nvme0n1 rw\n";
        fs::create_dir_all(root.join("proc/self")).expect("made");
        fs::write(root.join("proc/self/mountinfo"), mounts).expect("written");
        assert_eq!(mend(&[core(0)], &[core(0)]), None);
    }

    #[test]
    fn poll_queues_that_the_kernel_is_not_asked_for_are_told_with_the_reason() {
        for (polled, words) in [
            (true, "4 queues, 2 of them polled, which are not used: it panics"),
            (false, "each completion is an interrupt"),
        ] {
            let (_directory, machine) = machine(polled, ["0", "0", "1"]);
            let findings = look_on(&machine, &placement(1, &[core(1)], &[core(1)]), Some("it panics"));
            assert_eq!(findings[0].state, FindingState::Note);
            assert!(findings[0].message.contains(words), "{:?}", findings[0]);
            let mend = findings[0].mend.as_ref().expect("a note says what to do");
            assert!(mend.contains("Linux 6.5"), "{mend}");
        }
    }

    #[test]
    fn poll_queues_that_do_not_suffice_are_told() {
        let (_directory, machine) = machine(true, ["0", "0", "1"]);
        let findings = look_on(&machine, &placement(3, &[core(1)], &[core(1)]), None);
        let found = findings.iter().find(|finding| finding.message.contains("share"));
        let found = found.unwrap_or_else(|| panic!("{findings:?}"));
        assert_eq!(
            found.message,
            "4 queues, 2 of them polled: 3 processors share them"
        );
        let mend = found.mend.as_ref().expect("a note says what to do");
        assert!(mend.contains("nvme.poll_queues=3"), "{mend}");
    }
}
