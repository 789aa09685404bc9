"""Devices that do not answer: for some seconds, until the kernel resets the controller, and until it gives the controller up."""

import errno
import tempfile
from pathlib import Path

from machine import devices
from machine.appliance import InGuest
from machine.ledger import BLOCK_BYTES, Ledger, Load

from . import wait_for
from .device_errors import Faults
from .unplug import controller, name_bays, state

BLOCKS = 512
IMAGE_BYTES = 256 << 20
# Of the pool on A, of the one on B, and of the one whose sides are C and D.
EXPORTS = ("here", "there", "mirrored")
DEAF = ("B", "D")
# What the kernel gives a device for a command; after as much again it resets the controller, and at once if that says that it failed.
TIMEOUT_SECONDS = 4
KERNEL = f"nvme_core.io_timeout={TIMEOUT_SECONDS} nvme_core.admin_timeout={TIMEOUT_SECONDS}"


def resets(guest):
    return int(guest.must("dmesg | grep 'controller is down; will reset' | wc -l"))


class Deaf:
    """A controller that fetches no command and ends none: it may not use the bus. A reset by the kernel gives it the bus back."""

    def __init__(self, guest, serial):
        self.guest, self.serial = guest, serial
        self.address = guest.must(f"basename $(readlink -f /sys/class/nvme/$(basename $(readlink /dev/bay/{serial}))/device)").strip()
        # Memory on, bus master off: PCI Local Bus Specification 3.0, section 6.2.2.
        # What is written before them cannot be changed; without them the shell would need another program to get there.
        self.take_bus = f"printf 'same\\002\\004' >/sys/bus/pci/devices/{self.address}/config"

    def begin(self):
        self.guest.must(self.take_bus)

    def begin_for_good(self):
        """Whatever the kernel does about it."""
        self.guest.must(f"(while :; do {self.take_bus}; usleep 5000; done) & echo $! >/run/deaf.{self.serial}")

    def come_back(self):
        """The kernel begins anew with it, as with a drive that was put in."""
        remove = f"echo 1 >/sys/bus/pci/devices/{self.address}/remove"
        self.guest.must(f"kill $(cat /run/deaf.{self.serial}); {remove}; echo 1 >/sys/bus/pci/rescan")


def silent(appliance, pool):
    """The devices of a pool that do not answer, as it says."""
    return [device["path"] for device in appliance.json(f"pool show {pool}")["devices"] if "stalled_since_ns" in device]


def told(appliance, kind, pool):
    return [event for event in appliance.events(kind) if event["pool"] == pool]


class Stalls:
    """What is told of the two pools from now on."""

    def __init__(self, appliance):
        self.appliance = appliance
        self.began, self.ended = self.count("device_stalled"), self.count("device_stall_ended")

    def count(self, kind):
        events = self.appliance.events(kind)
        return {pool: len([event for event in events if event["pool"] == pool]) for pool in ("goes", "both")}

    def are_told(self):
        began = self.count("device_stalled")
        return all(began[pool] > self.began[pool] for pool in began)

    def have_ended(self):
        ended = self.count("device_stall_ended")
        return all(ended[pool] > self.ended[pool] and not silent(self.appliance, pool) for pool in ended)


def goes_on(load, what):
    seen = load.flushes
    wait_for(lambda: load.flushes > seen + 3 or load.errors or load.failure, what)
    assert not load.errors and not load.failure, f"{what}: {load.errors[:5]} {load.failure}"


def kernel_says(guest, words):
    """Whether they are on the console: to look there takes nothing of the guest's time."""
    return words in (guest.directory / "console.log").read_text(errors="replace")


def kernel_waits(guest, bay, seconds):
    """What the kernel gives a device for a command that is sent from now on."""
    guest.must(f"echo {seconds * 1000} >/sys/block/$(basename $(readlink -f /dev/bay/{bay}))/queue/io_timeout")


def answers_late(context, guest, appliance, here, there):
    """A device does not answer for longer than it takes to look at everything; then until the kernel has asked for an abort, in vain."""
    faults = Faults(guest, "B1")
    mute = {"driver": "throttle", "throttle-group": "mute"}
    # A reset while requests wait in QEMU would never end: it must not come, however busy the host is.
    kernel_waits(guest, "B1", 600)
    goes_on(there, "what was given less time is answered")
    faults.insert(mute)
    wait_for(lambda: silent(appliance, "goes"), "that a device does not answer is told while it lasts")
    (path,) = silent(appliance, "goes")
    (event,) = told(appliance, "device_stalled", "goes")
    assert event["subject"] == path and event["began_ns"] < event["time_ns"], event
    assert not told(appliance, "device_stall_ended", "goes"), "it lasts"
    status, findings = guest.run("stillpoint doctor")
    assert status != 0 and f"device {path}".encode() in findings and b"has not answered" in findings, findings
    seen = there.flushes
    goes_on(here, "the other pool goes on")
    assert there.flushes == seen and not there.errors, "what waits for a device has no answer and no error"
    faults.heal()
    wait_for(lambda: not silent(appliance, "goes"), "the end is told")
    (ended,) = told(appliance, "device_stall_ended", "goes")
    assert (ended["subject"], ended["began_ns"]) == (path, event["began_ns"]), ended
    goes_on(there, "all of it was answered")

    kernel_waits(guest, "B1", TIMEOUT_SECONDS)
    goes_on(there, "what was given more time is answered")
    faults.insert(mute)
    wait_for(lambda: kernel_says(guest, "aborting"), "the kernel asks for an abort")
    faults.heal()
    goes_on(there, "all of it was answered")
    wait_for(lambda: len(told(appliance, "device_stall_ended", "goes")) == 2, "the end is told")
    assert len(told(appliance, "device_stalled", "goes")) == 2 and not resets(guest), "silent twice, and not reset"
    context.say(f"silent, and silent until the kernel asked for an abort: {event['text']!r}, {ended['text']!r}; no error")


def is_reset(context, guest, appliance, deaf, loads):
    """Commands are lost; the kernel resets the controllers, and they are sent again: of a pool without mirrors, and of a side."""
    before = resets(guest)
    stalls = Stalls(appliance)
    for one in deaf:
        one.begin()
    wait_for(stalls.are_told, "both are told")
    goes_on(loads[0], "the other pool goes on")
    wait_for(stalls.have_ended, "both answer when they were reset")
    assert resets(guest) == before + 2, "each was reset once"
    for load in loads:
        goes_on(load, "what was lost was sent again")
    assert state(appliance, "both")["state"] == "open" and not appliance.events("mirror_side_out"), state(appliance, "both")
    context.say("two controllers reset by the kernel: no request failed, and the side is still in sync")


def is_given_up(context, guest, appliance, deaf, loads):
    """The resets help nothing: the devices are lost, and come back."""
    here, there, both = loads
    stalls = Stalls(appliance)
    for one in deaf:
        one.begin_for_good()
    wait_for(stalls.are_told, "both are told")
    goes_on(here, "the other pool goes on")
    wait_for(lambda: state(appliance, "goes")["state"] == "device_lost", "the kernel gives it up, and it is lost")
    wait_for(lambda: state(appliance, "both")["state"] == "degraded", "the side is out")
    wait_for(lambda: there.errors, "what lies on it fails")
    assert {number for number, _ in there.errors} == {errno.EIO}, there.errors[:5]
    wait_for(stalls.have_ended, "nothing waits for them any more")
    goes_on(here, "the other pool goes on without it")
    goes_on(both, "the mirror goes on with one side")
    (lost,) = appliance.events("device_lost")
    (out,) = appliance.events("mirror_side_out")
    assert (lost["pool"], out["pool"]) == ("goes", "both"), f"{lost} {out}"
    for one in deaf:
        one.come_back()
    wait_for(lambda: state(appliance, "goes")["state"] == "open", "its pool is opened again by itself")
    wait_for(lambda: state(appliance, "both")["state"] == "open", "the side is in sync again")
    context.say(f"two controllers given up by the kernel: {lost['subject']} lost, {out['subject']} out; back by themselves")


def is_silent_at_the_start(context, guest, appliance, deaf):
    """The daemon is started while a device does not answer: the other pools are served, and its own when it answers."""
    appliance.stop()
    # Clearly longer than the daemon's 5 s; a controller that says that it failed is reset after the first wait.
    kernel_waits(guest, "B1", 9)
    deaf.begin()
    before = resets(guest)
    appliance.start()
    found = {info["name"]: info["state"] for info in appliance.json("pool list")}
    assert found.pop("goes") in ("failed", "open") and found == {"stays": "open", "both": "open"}, found
    (event,) = told(appliance, "pool_not_opened", "goes")
    assert "has not answered" in event["text"], event
    wait_for(lambda: state(appliance, "goes")["state"] == "open", "its pool is opened by itself")
    assert resets(guest) == before + 1, "it answered when the kernel had reset it"
    kernel_waits(guest, "B1", TIMEOUT_SECONDS)
    context.say("silent at the start of the daemon: the others were served, and its pool when the kernel had reset it")


def begin(context, appliance, ledgers):
    """A load on each export; all of them are under way."""
    # Most of the time they wait for the kernel to lose its patience.
    seldom = {"flush_every": 8, "rest_seconds": 0.01}
    loads = [Load(appliance.client(one), ledgers[one], context.random(salt), **seldom) for salt, one in enumerate(ledgers)]
    for load in loads:
        load.start()
    for load in loads:
        goes_on(load, "the loads begin")
    return loads


def loses_the_bus(context, guest, appliance, loads):
    """Both controllers, until they are reset, and until they are given up; the loads end with it."""
    deaf = [Deaf(guest, serial) for serial in DEAF]
    is_reset(context, guest, appliance, deaf, loads)
    is_given_up(context, guest, appliance, deaf, loads)
    for export, load in zip(EXPORTS, loads):
        load.stop()
        assert not load.errors or export == "there", f"{export}: {load.errors[:5]}"
    for serial in DEAF:
        name_bays(guest, controller(guest, serial))


def everything_is_there(appliance, ledgers):
    for export, ledger in ledgers.items():
        client = appliance.client(export)
        ledger.alive(client)
        client.close()


def devices_that_do_not_answer(context):
    with tempfile.TemporaryDirectory(prefix="stillpoint-vm.") as name:
        controllers = []
        for serial in "ABCD":
            image = Path(name) / f"{serial}1.img"
            devices.make_image(image, IMAGE_BYTES)
            # A layer that does nothing, and under which another one can be put.
            namespace = devices.Namespace(1, image, layers=[{"driver": "raw"}])
            controllers.append(devices.Controller(serial, [namespace], subsystem=False))
        mute = ["-object", "throttle-group,id=mute,x-bps-total=1"]
        with context.guest(controllers=controllers, qemu=mute, kernel_arguments=KERNEL) as guest:
            appliance = InGuest(guest)
            appliance.start()
            appliance.make("stays", "/dev/bay/A1", "here", f"{BLOCKS * BLOCK_BYTES}")
            appliance.make("goes", "/dev/bay/B1", "there", f"{BLOCKS * BLOCK_BYTES}")
            appliance.make("both", "--mirror /dev/bay/C1 /dev/bay/D1", "mirrored", f"{BLOCKS * BLOCK_BYTES}")
            ledgers = {export: Ledger(BLOCKS) for export in EXPORTS}
            loads = begin(context, appliance, ledgers)
            answers_late(context, guest, appliance, *loads[:2])
            loses_the_bus(context, guest, appliance, loads)
            is_silent_at_the_start(context, guest, appliance, Deaf(guest, "B"))
            everything_is_there(appliance, ledgers)
            appliance.stop()
            appliance.start("--nvme block")
            for pool in ("stays", "goes", "both"):
                kinds = {device["kind"] for device in appliance.json(f"pool show {pool}")["devices"]}
                assert kinds == {"block"}, f"{pool}: {kinds}"
            loses_the_bus(context, guest, appliance, begin(context, appliance, ledgers))
            everything_is_there(appliance, ledgers)
            appliance.stop()
            context.say("by commands of our own, then as block devices: everything acknowledged is there")


TESTS = [devices_that_do_not_answer]
