"""The guest's NVMe controllers, as arguments for QEMU.

Each controller sits in a slot (a PCIe root port) of its own, so that it can be taken out. Its serial number is its name,
and names the links in /dev/bay of the guest.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_BYTES = 1 << 30


@dataclass
class Namespace:
    """A namespace: an image file, its LBA size in bytes, and layers above the file, lowest first.

    A layer is a dictionary as QMP's blockdev-add takes it, without its node-name and without its child "file" or "image",
    which `child` names; `more` are nodes of its own that the layer refers to.
    """

    nsid: int
    image: Path
    lba_bytes: int = 512
    layers: list = field(default_factory=list)
    child: str = "file"
    more: list = field(default_factory=list)


@dataclass
class Controller:
    """A controller: its serial number, namespaces, largest transfer (2^mdts pages of 4 KiB), pairs of queues.

    One without a subsystem has exactly one namespace, and can come back by QMP's device_add after a device_del.
    """

    serial: str
    namespaces: list
    mdts: int = 5
    queues: int = 4
    subsystem: bool = True


def default_controllers(directory, image_bytes=IMAGE_BYTES, images=None):
    """Two controllers over new sparse files: A with 512, 4096 and 512-byte LBAs, 128 KiB at most; B with 4096 and 32 KiB.

    `images` names existing files to be used instead, as {"A1": path}.
    """

    def namespace(name, lba_bytes):
        path = (images or {}).get(name)
        if path is None:
            path = Path(directory) / f"{name}.img"
            if not path.exists():
                make_image(path, image_bytes)
        return Namespace(int(name[1:]), Path(path), lba_bytes)

    return [
        Controller("A", [namespace("A1", 512), namespace("A2", 4096), namespace("A3", 512)], mdts=5),
        Controller("B", [namespace("B1", 4096)], mdts=3, subsystem=False),
    ]


def make_image(path, image_bytes):
    """Makes a sparse file."""
    with open(path, "wb") as file:
        file.truncate(image_bytes)


def bays(controllers):
    """The names in /dev/bay that must be there before a command runs."""
    return [f"{controller.serial}{namespace.nsid}" for controller in controllers for namespace in controller.namespaces]


def block_nodes(name, namespace):
    """The nodes under a namespace, lowest first; the last one is what the namespace is on, and has its name."""
    nodes = [*namespace.more]
    lowest = {"driver": "file", "filename": str(namespace.image), "discard": "unmap"}
    chain = [lowest, *namespace.layers]
    for index, node in enumerate(chain):
        last = index == len(chain) - 1
        node = {**node, "node-name": name if last else f"{name}-{index}"}
        if index > 0:
            node[namespace.child] = f"{name}-{index - 1}"
        nodes.append(node)
    return nodes


def arguments(controllers):
    """QEMU's arguments for all controllers."""
    out = []
    for number, controller in enumerate(controllers, 1):
        serial = controller.serial
        out += ["-device", f"pcie-root-port,id=slot{serial},chassis={number},slot={number}"]
        for namespace in controller.namespaces:
            for node in block_nodes(f"{serial}{namespace.nsid}", namespace):
                out += ["-blockdev", json.dumps(node)]
        device = {
            "driver": "nvme",
            "id": serial,
            "serial": serial,
            "bus": f"slot{serial}",
            "mdts": controller.mdts,
            "max_ioqpairs": controller.queues,
        }
        if controller.subsystem:
            out += ["-device", f"nvme-subsys,id=subsystem{serial},nqn=nqn.2024-01.org.stillpoint:{serial}"]
            out += ["-device", json.dumps({**device, "subsys": f"subsystem{serial}"})]
            for namespace in controller.namespaces:
                out += ["-device", json.dumps(namespace_device(serial, namespace))]
        else:
            out += ["-device", json.dumps(alone(controller))]
    return out


def sizes(namespace):
    return {"logical_block_size": namespace.lba_bytes, "physical_block_size": namespace.lba_bytes}


def namespace_device(serial, namespace):
    name = f"{serial}{namespace.nsid}"
    return {"driver": "nvme-ns", "id": f"ns{name}", "bus": serial, "drive": name, "nsid": namespace.nsid, **sizes(namespace)}


def alone(controller):
    """A controller with its one namespace, as device_add takes it."""
    (namespace,) = controller.namespaces
    return {
        "driver": "nvme",
        "id": controller.serial,
        "serial": controller.serial,
        "bus": f"slot{controller.serial}",
        "mdts": controller.mdts,
        "max_ioqpairs": controller.queues,
        "drive": f"{controller.serial}{namespace.nsid}",
        **sizes(namespace),
    }
