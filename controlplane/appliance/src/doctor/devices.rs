//! What the NVMe devices of this machine lack for full speed.

use super::{note, ok, problem};
use crate::api::model::Finding;
use stillpoint_hw::discovery::{BlockDeviceInfo, Namespace, Pci};
use stillpoint_hw::topology::Core;

/// Looks at the NVMe devices among these, for processors on these cores.
pub fn look(devices: &[BlockDeviceInfo], processors: &[Core]) -> Vec<Finding> {
    let namespaces = devices
        .iter()
        .filter_map(|device| Some((device, device.nvme.as_ref()?)));
    namespaces
        .flat_map(|(device, nvme)| {
            let found = [
                Some(queues(device, nvme, processors.len())),
                node(device, processors),
                device.pci.as_ref().and_then(|pci| interrupts(device, pci)),
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

fn queues(device: &BlockDeviceInfo, nvme: &Namespace, processors: usize) -> Finding {
    let queues = nvme.queues.unwrap_or(0);
    if device.polled && nvme.poll_queues > 0 {
        let polled = nvme.poll_queues;
        return ok(
            &subject(device),
            format!("{queues} queues, {polled} of them polled"),
        );
    }
    note(
        &subject(device),
        "no poll queues: each completion is an interrupt".to_owned(),
        &format!(
            "give the kernel nvme.poll_queues={0} (or `options nvme poll_queues={0}` in /etc/modprobe.d, if the driver is a \
             module) and boot",
            processors.max(1)
        ),
    )
}

fn node(device: &BlockDeviceInfo, processors: &[Core]) -> Option<Finding> {
    let node = device.numa_node?;
    if processors.is_empty() || processors.iter().any(|core| core.node == node) {
        return None;
    }
    Some(note(
        &subject(device),
        format!("it is near NUMA node {node}, and no processor is: data takes a detour"),
        &format!("let the daemon have cores of node {node} (taskset, AllowedCPUs= in its unit)"),
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
    use stillpoint_hw::discovery::Machine;

    /// A machine of files with one namespace: near node 1, interrupts 40 to 42 on these cores.
    fn machine(polled: bool, cores: [&str; 3]) -> Vec<BlockDeviceInfo> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        let file = |path: &str, content: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
            fs::write(path, content).expect("written");
        };
        let pci = "sys/devices/pci0000:00/0000:01:00.0";
        let home = format!("{pci}/nvme/nvme0");
        file(&format!("{home}/queue_count"), "5");
        file(&format!("{home}/nvme0n1/size"), "2048");
        file(
            &format!("{home}/nvme0n1/queue/io_poll"),
            if polled { "1" } else { "0" },
        );
        file("sys/module/nvme/parameters/poll_queues", "2");
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
        Machine::at(root).block_devices()
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
        let findings = look(&machine(false, ["0", "3", "3"]), &[core(0), core(0)]);
        let messages: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
        for (words, mend) in [
            ("no poll queues", "nvme.poll_queues=2"),
            ("near NUMA node 1", "cores of node 1"),
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
        let findings = look(&machine(true, ["0", "0", "1"]), &[core(1)]);
        let good: Vec<_> = findings
            .iter()
            .filter(|finding| finding.state == FindingState::Ok)
            .collect();
        assert_eq!(good[0].message, "4 queues, 2 of them polled");
        // The link stays what it is.
        assert_eq!((good.len(), findings.len()), (1, 2));
        assert!(look(&[], &[core(0)]).is_empty());
    }
}
