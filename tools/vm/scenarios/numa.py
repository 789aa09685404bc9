"""A machine of two NUMA nodes: processors are placed near the devices of pools, and doctor says which device has none near."""

import tempfile
from pathlib import Path

from machine.appliance import InGuest
from machine.devices import IMAGE_BYTES, make_image

# Cores 0 and 1 on node 0, 2 and 3 on node 1; a bus of each node with a slot.
NODES = ((0, "0-1"), (1, "2-3"))
MEMORY_MIB = 1024


def two_nodes(directory):
    """QEMU's arguments for two nodes with a drive near each; their serial numbers are N0 and N1."""
    out = []
    for node, cores in NODES:
        image = Path(directory) / f"N{node}.img"
        make_image(image, IMAGE_BYTES)
        out += ["-object", f"memory-backend-ram,id=memory{node},size={MEMORY_MIB // len(NODES)}M"]
        out += ["-numa", f"node,nodeid={node},memdev=memory{node},cpus={cores}"]
        out += ["-device", f"pxb-pcie,id=bus{node},bus_nr={64 * (node + 1)},numa_node={node},bus=pcie.0"]
        out += ["-device", f"pcie-root-port,id=slot{node},bus=bus{node},chassis={node + 1}"]
        out += ["-blockdev", f"driver=file,filename={image},node-name=drive{node},discard=unmap"]
        out += ["-device", f"nvme,id=nvme{node},serial=N{node},bus=slot{node},drive=drive{node},max_ioqpairs=8"]
    return out


def cores(appliance):
    """The cores of the processors, in order."""
    return [processor["core"] for processor in appliance.json("status")["processors"]]


def mismatches(appliance):
    """{device: what to do} of those that doctor says are far from all processors."""
    findings = appliance.json("doctor")["findings"]
    return {finding["subject"].split()[-1]: finding["mend"] for finding in findings if "NUMA node" in finding["message"]}


def processors_are_near_their_devices(context):
    with tempfile.TemporaryDirectory(prefix="stillpoint-vm.") as directory:
        with context.guest(
            controllers=[], qemu=two_nodes(directory), directory=directory, cpus=4, memory_mib=MEMORY_MIB
        ) as guest:
            near(context, guest)


def near(context, guest):
    guest.must("turns=0; until [ -e /sys/block/nvme1n1 ]; do turns=$((turns + 1)); [ $turns -lt 100 ] && usleep 100000; done")
    guest.must("bays N01 N11")
    appliance = InGuest(guest)
    far, close = (guest.must(f"readlink -f /dev/bay/N{node}1").strip() for node in (0, 1))
    for device, node in ((far, 0), (close, 1)):
        found = appliance.json(f"device show {device}")
        assert found["numa_node"] == node, found

    # No pool yet: a drive on each node that nobody uses, and a processor for each.
    appliance.start()
    assert cores(appliance) == [1, 2], cores(appliance)
    assert mismatches(appliance) == {}
    guest.must(f"stillpoint pool create tank {close}")
    appliance.stop()
    # Started again, both are on the node of the pool.
    appliance.start()
    assert cores(appliance) == [2, 3], cores(appliance)
    told = mismatches(appliance)
    assert list(told) == [far] and "start the daemon again" in told[far], told
    appliance.stop()
    # With the cores of the other node alone, that is where they are, and doctor says which cores would be near.
    appliance.start(before="taskset 3")
    assert cores(appliance) == [1, 0], cores(appliance)
    told = mismatches(appliance)
    assert list(told) == [close] and "cores of node 1, which are 2-3" in told[close], told
    appliance.stop()
    context.say(f"a pool on node 1: processors on cores 2 and 3; allowed cores 0 and 1 alone: {told[close]}")


TESTS = [processors_are_near_their_devices]
