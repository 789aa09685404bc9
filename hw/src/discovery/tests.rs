//! Trees of sysfs as machines have them, made in a temporary directory.

use super::usage::Mount;
use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

/// A machine of files.
struct Tree {
    directory: TempDir,
}

impl Tree {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
        fs::write(path, content).expect("written");
    }

    /// A link from `path` to `target`, both in the tree.
    fn link(&self, path: &str, target: &str) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
        symlink(self.directory.path().join(target), path).expect("linked");
    }

    fn machine(&self) -> Machine {
        Machine::at(self.directory.path())
    }

    /// A controller at a PCI address with a namespace of 1 GiB; gives the namespace's directory.
    fn nvme(&self, controller: &str, address: &str, name: &str) -> String {
        let pci = format!("sys/devices/pci0000:00/0000:00:03.0/{address}");
        let home = format!("{pci}/nvme/{controller}");
        let block = format!("{home}/{name}");
        for (file, content) in [
            ("current_link_speed", "8.0 GT/s PCIe\n"),
            ("max_link_speed", "16.0 GT/s PCIe\n"),
            ("current_link_width", "4\n"),
            ("max_link_width", "4\n"),
            ("numa_node", "1\n"),
            ("msi_irqs/41", "msix\n"),
            ("msi_irqs/40", "msix\n"),
        ] {
            self.file(&format!("{pci}/{file}"), content);
        }
        self.file("proc/irq/40/effective_affinity_list", "0\n");
        self.file("proc/irq/41/smp_affinity_list", "2-3\n");
        self.link(&format!("{pci}/driver"), "sys/bus/pci/drivers/nvme");
        for (file, content) in [
            ("model", "Drive 9000                              \n"),
            ("serial", "S1\n"),
            ("firmware_rev", "1.0     \n"),
            ("transport", "pcie\n"),
            ("queue_count", "5\n"),
        ] {
            self.file(&format!("{home}/{file}"), content);
        }
        self.link(&format!("sys/class/nvme/{controller}"), &home);
        for (file, content) in [
            ("size", "2097152\n"),
            ("ro", "0\n"),
            ("dev", "259:0\n"),
            ("nsid", "3\n"),
            ("nguid", "01020304-0506-0708-090a-0b0c0d0e0f10\n"),
            ("eui", "00 00 00 00 00 00 00 00\n"),
            ("queue/logical_block_size", "4096\n"),
            ("queue/physical_block_size", "4096\n"),
            ("queue/write_cache", "write back\n"),
            ("queue/fua", "1\n"),
            ("queue/discard_max_bytes", "2199023255040\n"),
            ("queue/write_zeroes_max_bytes", "131072\n"),
            ("queue/max_hw_sectors_kb", "128\n"),
            ("queue/max_segments", "33\n"),
            ("queue/io_poll", "1\n"),
            ("queue/rq_affinity", "1\n"),
            ("mq/0/cpu_list", "0\n"),
            ("mq/1/cpu_list", "1\n"),
        ] {
            self.file(&format!("{block}/{file}"), content);
        }
        self.link(&format!("{block}/device"), &home);
        self.link(&format!("sys/block/{name}"), &block);
        self.file(
            &format!("sys/class/nvme-generic/{}/dev", name.replacen("nvme", "ng", 1)),
            "236:0\n",
        );
        self.file("sys/module/nvme/parameters/poll_queues", "2\n");
        block
    }
}

#[test]
fn lists_of_cores_are_read_however_they_are_written() {
    for (cores, among, others) in [
        ("0-3,8", &[0, 2, 3, 8][..], &[4, 7, 9][..]),
        ("0, 2, 11", &[0, 2, 11], &[1, 3, 12]),
        ("5", &[5], &[0, 4, 6, 55]),
        ("", &[], &[0]),
        ("0-,x", &[], &[0, 1]),
    ] {
        assert!(among.iter().all(|&core| is_among(cores, core)), "{cores}");
        assert!(!others.iter().any(|&core| is_among(cores, core)), "{cores}");
    }
}

#[test]
fn what_is_polled_for_is_told_by_the_disk_of_a_partition() {
    let tree = Tree::new();
    let block = tree.nvme("nvme0", "0000:01:00.0", "nvme0n1");
    let part = format!("{block}/nvme0n1p2");
    for (file, content) in [
        ("queue/max_sectors_kb", "64\n"),
        ("queue/chunk_sectors", "256\n"),
        ("nvme0n1p2/partition", "2\n"),
        ("nvme0n1p2/start", "2048\n"),
    ] {
        tree.file(&format!("{block}/{file}"), content);
    }
    let at = |path: &str| Polled::of(&Directory::new(tree.directory.path().join(path)));
    let disk = Polled {
        bytes_max: 64 << 10,
        chunk_bytes: 128 << 10,
        start_bytes: 0,
    };
    assert_eq!(at(&block), Some(disk));
    let start_bytes = 1 << 20;
    assert_eq!(at(&part), Some(Polled { start_bytes, ..disk }));
    tree.link("sys/dev/block/259:2", &part);
    let of = |minor| tree.machine().polled_of(libc::makedev(259, minor));
    assert_eq!([of(1), of(2)], [None, at(&part)]);
    // Fewer pieces of memory than bytes.
    tree.file(&format!("{block}/queue/max_segments"), "5\n");
    assert_eq!(at(&block).map(|polled| polled.bytes_max), Some(16 << 10));
    tree.file(&format!("{block}/dm/name"), "striped\n");
    assert_eq!(at(&block), None, "it may cut anywhere");
    tree.file(&format!("{block}/queue/io_poll"), "0\n");
    assert_eq!([at(&block), at(&part)], [None, None]);
}

#[test]
fn what_would_be_cut_is_not_polled_for() {
    let polled = Polled::up_to(128 << 10);
    assert!(polled.takes(4096, 128 << 10) && !polled.takes(4096, (128 << 10) + 512) && !polled.takes(0, 0));
    // A partition that begins at 1 MiB and a half chunk.
    let polled = Polled {
        chunk_bytes: 64 << 10,
        start_bytes: (1 << 20) + (32 << 10),
        ..polled
    };
    assert!(polled.takes(0, 32 << 10) && polled.takes(32 << 10, 64 << 10));
    assert!(!polled.takes(0, (32 << 10) + 512) && !polled.takes(28 << 10, 8 << 10));
}

#[test]
fn the_interrupt_of_a_core_is_that_of_its_queue() {
    let tree = Tree::new();
    tree.nvme("nvme0", "0000:01:00.0", "nvme0n1");
    for (number, cores) in [(40, "0"), (41, "5"), (42, "6")] {
        tree.file(
            &format!("sys/devices/pci0000:00/0000:00:03.0/0000:01:00.0/msi_irqs/{number}"),
            "msix\n",
        );
        tree.file(&format!("proc/irq/{number}/effective_affinity_list"), cores);
    }
    let devices = tree.machine().block_devices();
    let cores_for = |core| {
        devices[0]
            .interrupt_for(core)
            .map(|interrupt| interrupt.cores.as_str())
    };
    assert_eq!(
        [cores_for(0), cores_for(1), cores_for(2)],
        [Some("5"), Some("6"), None]
    );
}

#[test]
fn a_namespace_is_described_with_its_controller() {
    let tree = Tree::new();
    tree.nvme("nvme0", "0000:01:00.0", "nvme0n1");
    let devices = tree.machine().block_devices();
    let [device] = &devices[..] else {
        panic!("{devices:?}")
    };
    assert_eq!(device.path, Path::new("/dev/nvme0n1"));
    assert_eq!((device.size_bytes, device.logical_block_bytes), (1 << 30, 4096));
    assert_eq!(
        (device.model.as_deref(), device.serial.as_deref()),
        (Some("Drive 9000"), Some("S1"))
    );
    assert_eq!(device.volatile_write_cache, Some(true));
    assert!(device.fua && device.polled && !device.read_only);
    assert_eq!((device.transfer_bytes_max, device.segments_max), (128 << 10, 33));
    assert_eq!(
        (device.discard_bytes_max, device.write_zeroes_bytes_max),
        (2_199_023_255_040, 131_072)
    );
    assert_eq!(
        (&device.queue_cores[..], device.numa_node),
        (&["0".to_owned(), "1".to_owned()][..], Some(1))
    );
    assert_eq!(device.completion_affinity, Some(1));
    assert_eq!(device.usage, Usage::default());
    let nvme = device.nvme.as_ref().expect("a namespace");
    assert_eq!((nvme.controller.as_str(), nvme.number), ("nvme0", Some(3)));
    assert!(!nvme.multipath);
    assert_eq!(nvme.generic.as_deref(), Some(Path::new("/dev/ng0n1")));
    assert_eq!(
        (nvme.firmware.as_deref(), nvme.transport.as_deref()),
        (Some("1.0"), Some("pcie"))
    );
    assert_eq!((nvme.queues, nvme.poll_queues), (Some(4), 2));
    assert_eq!(nvme.nguid.as_deref(), Some("0102030405060708090a0b0c0d0e0f10"));
    assert_eq!(nvme.eui64, None, "all zeros");
    // Nothing answers for the controller here, and the list comes all the same.
    let unasked = nvme.identified.as_ref().expect_err("no device");
    assert!(unasked.path.ends_with("dev/nvme0"), "{unasked:?}");
}

#[test]
fn the_link_and_the_interrupts_are_those_of_the_function_above() {
    let tree = Tree::new();
    tree.nvme("nvme0", "0000:01:00.0", "nvme0n1");
    let device = tree.machine().block_device("nvme0n1").expect("there");
    let pci = device.pci.expect("plugged in");
    assert_eq!(
        (pci.address.as_str(), pci.driver.as_deref()),
        ("0000:01:00.0", Some("nvme"))
    );
    assert_eq!(pci.link_speed.as_deref(), Some("8.0 GT/s PCIe"));
    assert_eq!((pci.link_width, pci.link_width_max), (Some(4), Some(4)));
    assert!(pci.link_is_reduced(), "half the speed");
    let interrupts: Vec<_> = pci
        .interrupts
        .iter()
        .map(|irq| (irq.number, irq.cores.as_str()))
        .collect();
    assert_eq!(interrupts, [(40, "0"), (41, "2-3")]);
}

#[test]
fn a_namespace_of_a_subsystem_has_the_first_of_its_controllers() {
    let tree = Tree::new();
    let block = tree.nvme("nvme1", "0000:02:00.0", "nvme1n1");
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys4";
    tree.link(&format!("{subsystem}/nvme1"), "sys/class/nvme/nvme1");
    for (file, content) in [("size", "8\n"), ("hidden", "1\n")] {
        tree.file(&format!("{subsystem}/nvme1c1n1/{file}"), content);
    }
    tree.link("sys/block/nvme1c1n1", &format!("{subsystem}/nvme1c1n1"));
    fs::remove_file(tree.directory.path().join(&block).join("device")).expect("there");
    tree.link(&format!("{block}/device"), subsystem);
    let device = tree.machine().block_device("nvme1n1").expect("there");
    let nvme = device.nvme.expect("a namespace");
    assert_eq!((nvme.controller.as_str(), nvme.multipath), ("nvme1", true));
    assert_eq!(
        device.pci.expect("that of its controller").address,
        "0000:02:00.0"
    );
    assert_eq!(
        tree.machine().block_devices().len(),
        1,
        "its path is no device of its own"
    );
}

#[test]
fn without_poll_queues_there_are_none() {
    let tree = Tree::new();
    let block = tree.nvme("nvme0", "0000:01:00.0", "nvme0n1");
    tree.file(&format!("{block}/queue/io_poll"), "0\n");
    let device = tree.machine().block_device("nvme0n1").expect("there");
    assert!(!device.polled);
    assert_eq!(device.nvme.expect("a namespace").poll_queues, 0);
}

#[test]
fn who_uses_a_device_or_its_partitions_is_told() {
    let tree = Tree::new();
    let block = tree.nvme("nvme0", "0000:01:00.0", "nvme0n1");
    for (partition, number) in [
        ("nvme0n1p1", "259:1"),
        ("nvme0n1p2", "259:2"),
        ("nvme0n1p3", "259:3"),
    ] {
        tree.file(&format!("{block}/{partition}/partition"), "1\n");
        tree.file(&format!("{block}/{partition}/dev"), number);
    }
    tree.file(&format!("{block}/nvme0n1p2/holders/dm-0/dev"), "253:0\n");
    tree.file(
        "proc/self/mountinfo",
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
         30 22 259:1 / /srv/a\\040b rw shared:1 - xfs /dev/root rw\n\
         31 22 0:40 / /pool rw - btrfs /dev/nvme0n1 rw\n\
         32 22 0:41 / /tmp rw - tmpfs tmpfs rw\nnonsense\n",
    );
    tree.file(
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/nvme0n1p3 partition 1 0 -2\n",
    );
    let usage = tree.machine().block_device("nvme0n1").expect("there").usage;
    assert_eq!(usage.partitions, ["nvme0n1p1", "nvme0n1p2", "nvme0n1p3"]);
    assert_eq!(usage.holders, ["dm-0"]);
    assert_eq!(usage.swaps, ["nvme0n1p3"]);
    let mount = |device: &str, path: &str, file_system: &str| Mount {
        device: device.to_owned(),
        path: path.to_owned(),
        file_system: file_system.to_owned(),
    };
    assert_eq!(
        usage.mounts,
        [
            mount("nvme0n1p1", "/srv/a b", "xfs"),
            mount("nvme0n1", "/pool", "btrfs")
        ]
    );
    assert!(usage.is_in_use());
    let text = usage.holder_text().expect("in use");
    assert_eq!(
        text,
        "mounted at /srv/a b, mounted at /pool, swap (nvme0n1p3), part of dm-0"
    );
}

#[test]
fn plain_block_devices_tell_less() {
    let tree = Tree::new();
    tree.file("sys/block/loop0/size", "0\n");
    tree.file("sys/block/loop1/size", "2048\n");
    tree.file("sys/block/loop1/ro", "1\n");
    tree.file("sys/block/loop1/queue/logical_block_size", "512\n");
    let machine = tree.machine();
    let devices = machine.block_devices();
    let [device] = &devices[..] else {
        panic!("{devices:?}")
    };
    assert_eq!(
        (device.name.as_str(), device.size_bytes, device.read_only),
        ("loop1", 1 << 20, true)
    );
    assert!(device.nvme.is_none() && device.pci.is_none() && device.model.is_none());
    assert!(machine.block_device("loop0").is_some(), "named, it is shown");
    for wrong in ["loop2", "", "..", "loop1/queue"] {
        assert!(machine.block_device(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn nodes_are_disks_and_partitions_and_change_with_what_has_their_name() {
    let tree = Tree::new();
    tree.file("sys/block/loop0/size", "0\n");
    tree.file("sys/block/sda/size", "2048\n");
    tree.file("sys/block/sda/dev", "8:0\n");
    tree.file("sys/block/sda/diskseq", "7\n");
    tree.file("sys/block/sda/sda1/partition", "1\n");
    tree.file("sys/block/sda/sda1/size", "1024\n");
    tree.file("sys/block/sda/sda1/dev", "8:1\n");
    tree.file("sys/block/sda/sdaq/size", "1024\n");
    tree.file("sys/block/nvme0c0n1/size", "2048\n");
    tree.file("sys/block/nvme0c0n1/hidden", "1\n");
    let nodes = tree.machine().block_nodes();
    let names: Vec<_> = nodes.iter().filter_map(|node| node.path.file_name()).collect();
    assert_eq!(names, ["sda", "sda1"]);
    tree.file("sys/block/sda/diskseq", "8\n");
    let others = tree.machine().block_nodes();
    for (node, other) in nodes.iter().zip(&others) {
        assert_eq!(node.path, other.path);
        assert_ne!(node.mark, other.mark);
    }
}

#[test]
fn a_namespace_has_one_name() {
    use super::nvme::{block_name, block_path};
    assert_eq!(block_name("ng0n1"), "nvme0n1");
    assert_eq!(block_name("nvme0n1"), "nvme0n1");
    assert_eq!(block_name("ngrok"), "ngrok");
    assert_eq!(
        block_path(Path::new("/srv/ng0n1")),
        Path::new("/srv/ng0n1"),
        "no device"
    );
    assert_eq!(block_path(Path::new("/dev/null")), Path::new("/dev/null"));
}

#[test]
fn devices_come_in_the_order_of_their_numbers() {
    let tree = Tree::new();
    for name in ["nvme10n1", "nvme9n2", "sda", "nvme9n10"] {
        tree.file(&format!("sys/block/{name}/size"), "8\n");
    }
    let devices = tree.machine().block_devices();
    let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["nvme9n2", "nvme9n10", "nvme10n1", "sda"]);
    assert!(Machine::at(Path::new("/nowhere")).block_devices().is_empty());
}

/// The number of the device that a file of the tree lies on, as the tree names it.
fn number_of_files(tree: &Tree) -> String {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(tree.directory.path()).expect("there");
    usage::number_text(metadata.dev())
}

#[test]
fn what_lies_on_devices_is_near_their_nodes() {
    let tree = Tree::new();
    let first = tree.nvme("nvme0", "0000:01:00.0", "nvme0n1");
    let second = tree.nvme("nvme1", "0000:02:00.0", "nvme1n1");
    tree.file(
        "sys/devices/pci0000:00/0000:00:03.0/0000:02:00.0/numa_node",
        "0\n",
    );
    tree.file(&format!("{second}/nvme1n1p1/partition"), "1\n");
    // A file, on a device of two: a namespace, and a partition of another.
    tree.file("pool.img", "");
    let made = "sys/devices/virtual/block/md0";
    tree.file(&format!("{made}/size"), "8\n");
    tree.link(&format!("{made}/slaves/nvme0n1"), &first);
    tree.link(
        &format!("{made}/slaves/nvme1n1p1"),
        &format!("{second}/nvme1n1p1"),
    );
    let number = format!("sys/dev/block/{}", number_of_files(&tree));
    tree.link(&number, made);
    let file = tree.directory.path().join("pool.img");
    let near = |paths: &[&Path]| -> Vec<(u32, usize)> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
        tree.machine().nodes_of(&paths).into_iter().collect()
    };
    assert_eq!(near(&[&file]), [(0, 1), (1, 1)]);
    assert_eq!(near(&[&file, &file, Path::new("/nowhere")]), [(0, 2), (1, 2)]);
    // On a namespace itself; on one of several controllers, which lies below a subsystem.
    let lies_on = |block: &str| {
        fs::remove_file(tree.directory.path().join(&number)).expect("removed");
        tree.link(&number, block);
    };
    lies_on(&first);
    assert_eq!(near(&[&file]), [(1, 1)]);
    let head = "sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme2n1";
    tree.file(&format!("{head}/size"), "8\n");
    tree.link(
        "sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1",
        "sys/class/nvme/nvme1",
    );
    tree.link(
        &format!("{head}/device"),
        "sys/devices/virtual/nvme-subsystem/nvme-subsys1",
    );
    lies_on(head);
    assert_eq!(near(&[&file]), [(0, 1)]);
    // A machine of one node says -1.
    tree.file(
        "sys/devices/pci0000:00/0000:00:03.0/0000:01:00.0/numa_node",
        "-1\n",
    );
    lies_on(&first);
    assert_eq!(near(&[&file]), []);
    // What is made of itself ends somewhere.
    tree.link(&format!("{made}/slaves/md0"), made);
    lies_on(made);
    assert_eq!(near(&[&file])[0].0, 0);
}

#[test]
fn processors_are_placed_near_the_namespaces_that_nobody_uses() {
    let tree = Tree::new();
    // Cores 0 and 1 on node 0, 2 and 3 on node 1.
    for (number, node) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let core = format!("sys/devices/system/cpu/cpu{number}");
        tree.file(
            &format!("{core}/topology/physical_package_id"),
            &format!("{node}\n"),
        );
        tree.file(&format!("{core}/topology/core_id"), &format!("{number}\n"));
        tree.file(&format!("{core}/node{node}/cpulist"), "\n");
    }
    tree.file("sys/devices/system/node/node1/cpulist", "2-3\n");
    tree.file("sys/devices/system/node/node2/cpulist", "\n");
    tree.nvme("nvme0", "0000:01:00.0", "nvme0n1");
    let machine = tree.machine();
    let placed = |count: usize| -> Vec<u32> {
        let root = tree.directory.path().join("sys/devices/system");
        let cores = crate::topology::cores_below(&root, &[0, 1, 2, 3]);
        let near = machine.nodes_of_free_namespaces();
        let placed = crate::topology::place_processors(&cores, count, &near);
        placed.into_iter().flatten().map(|core| core.number).collect()
    };
    assert_eq!(placed(2), [2, 3]);
    assert_eq!(placed(4), [2, 3, 1, 0]);
    assert_eq!(machine.cores_of_node(1).as_deref(), Some("2-3"));
    assert_eq!((machine.cores_of_node(2), machine.cores_of_node(3)), (None, None));
    // Somebody has mounted it.
    tree.file(
        "proc/self/mountinfo",
        "30 22 259:0 / /srv rw - xfs /dev/nvme0n1 rw\n",
    );
    assert_eq!(placed(2), [1, 2]);
}
