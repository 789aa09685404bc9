"""Reads, writes and flushes that a device fails: errors reach the client, nothing hangs, nothing acknowledged is lost."""

import errno
import mmap
import tempfile
from pathlib import Path

from machine import devices, nbd
from machine.appliance import InGuest
from machine.ledger import BLOCK_BYTES, Ledger, Load, content
from machine.nbd import Refused

BLOCKS = 2048


class Faults:
    """A namespace whose device can be told to fail, while it is in use."""

    def __init__(self, guest, name):
        self.guest, self.name = guest, name

    def over(self, node):
        qmp = self.guest.qmp()
        qmp.command("blockdev-reopen", options=[{"driver": "raw", "node-name": self.name, "file": node}])
        return qmp

    def inject(self, kind, sector=None, once=False):
        """Every request of a kind (read, write, flush) fails, or those that touch a sector, or only the next one."""
        where = {} if sector is None else {"sector": sector}
        rules = [{"event": "none", "iotype": kind, "errno": errno.EIO, "once": once, **where}]
        self.insert({"driver": "blkdebug", "inject-error": rules}, child="image")

    def insert(self, layer, child="file"):
        """Puts a layer of QEMU under the namespace."""
        qmp = self.guest.qmp()
        qmp.command("blockdev-add", **{**layer, "node-name": "faulty", child: f"{self.name}-0"})
        qmp.close()
        self.over("faulty").close()

    def heal(self):
        qmp = self.over(f"{self.name}-0")
        qmp.command("blockdev-del", **{"node-name": "faulty"})
        qmp.close()


def refused(action):
    """Whether a request fails with EIO; any other failure is raised."""
    try:
        action()
    except Refused as error:
        if error.number != errno.EIO:
            raise
        return True
    return False


def writes_fail(context, client, ledger, faults):
    """Writes fail while the device fails them; afterwards the same blocks are written."""
    load = Load(client, ledger, context.random(2), flush_every=1 << 30)
    faults.inject("write")
    load.run(40)
    faults.heal()
    assert load.errors and {number for number, _ in load.errors} == {errno.EIO}, f"failed: {load.errors[:5]} of 40"
    ledger.alive(client)
    again = Load(client, ledger, context.random(2))
    again.run(120)
    assert not again.errors, f"after the device is sound again requests fail: {again.errors[:5]}"
    ledger.alive(client)
    context.say(f"{len(load.errors)} of 40 writes failed while the device failed them; none later, nothing lost")


def reads_fail(context, client, ledger, faults):
    faults.inject("read")
    failed = sum(refused(lambda: client.read(block * BLOCK_BYTES, BLOCK_BYTES)) for block in range(0, BLOCKS, 64))
    faults.heal()
    written = sum(ledger.acknowledged[block] > 0 for block in range(0, BLOCKS, 64))
    assert failed == written, f"{failed} of {written} reads of what is on the device failed"
    ledger.alive(client)
    context.say(f"{failed} reads failed while the device failed them; later the same blocks are there")


def one_sector_fails(context, image, client, ledger, faults):
    """One sector cannot be read: the block that lies there is an error, all others are there."""
    before = [client.read(block * BLOCK_BYTES, BLOCK_BYTES) for block in range(BLOCKS)]
    marker = content(BLOCKS, 1)
    client.write(0, marker)
    client.flush()
    with open(image, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as disk:
        place = disk.find(marker)
    assert place > 0 and place % 512 == 0, "the block is not on the device"
    faults.inject("read", sector=place // 512 + 3)
    assert refused(lambda: client.read(0, BLOCK_BYTES)), "a bad sector was read"
    others = [client.read(block * BLOCK_BYTES, BLOCK_BYTES) for block in range(1, BLOCKS)]
    assert others == before[1:], "other blocks are not what they were"
    # A write goes to another place, so that it needs no repair.
    ledger.sent[0] += 1
    client.write(0, content(0, ledger.sent[0]))
    ledger.acknowledged[0] = ledger.sent[0]
    assert client.read(0, BLOCK_BYTES) == content(0, ledger.sent[0])
    faults.heal()
    context.say(f"one bad sector: its block is an error, {len(others)} others are there, a write mends it")


def flushes_fail(context, guest, appliance, client, ledger, faults):
    """After a failed flush nobody knows what the device kept: writes stop, reads go on, the pool can be opened again."""
    load = Load(client, ledger, context.random(4), flush_every=1 << 30)
    load.run(60)
    # Only one, as QEMU flushes itself when the fault is taken out.
    faults.inject("flush", once=True)
    assert refused(client.flush), "a flush was answered that the device failed"
    faults.heal()
    assert refused(client.flush), "a second flush was answered although what the first was to keep may be lost"
    assert refused(lambda: client.write(0, content(0, ledger.sent[0]))), "a write was answered after a failed flush"
    ledger.alive(client)
    assert appliance.events("shard_stopped") and appliance.stopped("tank"), "nothing is said of it"
    # The device is there, so nobody opens the pool again by himself.
    (info,) = [info for info in appliance.json("pool list") if info["name"] == "tank"]
    assert info["state"] == "stopped" and "flush" in info["error"], f"told of it: {info}"
    client.close()
    guest.must("stillpoint pool close tank && stillpoint pool open /dev/bay/A1 >/dev/null")
    client = appliance.client("data")
    ledger.alive(client)
    Load(client, ledger, context.random(5)).run(60)
    client.flush()
    ledger.alive(client)
    client.close()
    context.say("a failed flush: errors and an event, reads go on; closed and opened, everything acknowledged is there")


def nothing_is_wiped(context, guest, faults):
    """A pool on two devices, of which the second takes no writes, is not made, and the first keeps what it held."""
    guest.must("stillpoint pool create old /dev/bay/B1 >/dev/null && stillpoint pool close old")
    faults.inject("write")
    status, output = guest.run("stillpoint pool create new /dev/bay/B1 /dev/bay/A1 --force /dev/bay/B1")
    faults.heal()
    assert status != 0 and b"A1 cannot be written" in output, f"a pool on a device that fails writes: {status}, {output}"
    guest.must("stillpoint pool open /dev/bay/B1 >/dev/null && stillpoint pool close old")
    context.say("a pool on two devices, the second of which fails writes: refused, and what the first held is there")


def injected_errors(context):
    with tempfile.TemporaryDirectory(prefix="stillpoint-vm.") as name:
        image, other = Path(name) / "A1.img", Path(name) / "B1.img"
        devices.make_image(image, 256 << 20)
        devices.make_image(other, 256 << 20)
        # A layer that does nothing, and under which another one can be put.
        namespace = devices.Namespace(1, image, layers=[{"driver": "raw"}])
        controllers = [
            devices.Controller("A", [namespace], subsystem=False),
            devices.Controller("B", [devices.Namespace(1, other)], subsystem=False),
        ]
        # Without this the kernel asks five times before it believes an error.
        with context.guest(controllers=controllers, kernel_arguments="nvme_core.max_retries=0") as guest:
            appliance = InGuest(guest)
            appliance.start()
            faults = Faults(guest, "A1")
            nothing_is_wiped(context, guest, faults)
            appliance.make("tank", "/dev/bay/A1", "data", f"{BLOCKS * BLOCK_BYTES}")
            client, ledger = appliance.client("data"), Ledger(BLOCKS)
            Load(client, ledger, context.random(1)).run(600)
            reads_fail(context, client, ledger, faults)
            one_sector_fails(context, image, client, ledger, faults)
            writes_fail(context, client, ledger, faults)
            flushes_fail(context, guest, appliance, client, ledger, faults)
            appliance.stop()
            guest.must("stillpoint inspect --check /dev/bay/A1")


TESTS = [injected_errors]
