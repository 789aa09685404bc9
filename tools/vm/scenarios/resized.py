"""Devices that get another size: while their pool is in use, and while they are out of the machine."""

import errno
import json
import tempfile
import time
from pathlib import Path

from machine import devices
from machine.appliance import InGuest
from machine.ledger import BLOCK_BYTES, Ledger, Load
from machine.nbd import Refused

from . import HANG_SECONDS, wait_for
from .unplug import controller, name_bays, pull_out, put_back, state

BLOCKS = 2048
FULL = 256 << 20
HALF = FULL // 2
# QEMU changes the size of such a disk while the guest has it, and tells it so; of an NVMe namespace it refuses to.
DISK = "/dev/vda"


def resize(guest, node, size_bytes):
    qmp = guest.qmp()
    qmp.command("block_resize", **{"node-name": node, "size": size_bytes})
    qmp.close()


def end_of(image):
    """What lies in the second half of an image, when nothing more comes."""
    with open(image, "rb") as file:
        before = None
        while True:
            file.seek(HALF)
            now = file.read()
            if now == before:
                return now
            before = now
            time.sleep(0.5)


def cut_off(guest, node, image):
    """Takes the second half of a device; returns it."""
    lost = end_of(image)
    resize(guest, node, HALF)
    return lost


def give_back(guest, node, image, lost):
    with open(image, "r+b") as file:
        file.seek(HALF)
        file.write(lost)
    resize(guest, node, FULL)


def told(appliance):
    return [event["text"] for event in appliance.events("device_resized")]


def each_is_answered(appliance, ledger):
    """Reads every block that was written: what is there, or EIO at once; returns how many failed."""
    client = appliance.client("data", HANG_SECONDS)
    failed = 0
    for block in [block for block in range(BLOCKS) if ledger.acknowledged[block]]:
        try:
            client.read(block * BLOCK_BYTES, BLOCK_BYTES)
        except Refused as error:
            assert error.number == errno.EIO, f"block {block} of a device that shrank: {error}"
            failed += 1
    client.close()
    return failed


def shrunk(context, appliance, ledger):
    wait_for(lambda: state(appliance, "tank")["state"] == "device_shrunk", "the state of the pool says it")
    info = state(appliance, "tank")
    for words in (DISK, str(HALF), str(FULL), "give it its size back"):
        assert words in info["error"], info
    assert any(f"it had {FULL} bytes and has {HALF} now" in text for text in told(appliance)), told(appliance)
    failed = each_is_answered(appliance, ledger)
    assert failed, "half of the device is gone and nothing that is asked"
    client = appliance.client("data", HANG_SECONDS)
    load = Load(client, ledger, context.random(2))
    load.run(200)
    client.close()
    assert load.errors and {number for number, _ in load.errors} == {errno.EIO}, load.errors[:5]
    return failed, len(load.errors)


def device_resized_in_use(context):
    with tempfile.TemporaryDirectory(prefix="stillpoint-vm.") as directory:
        image = Path(directory) / "V.img"
        devices.make_image(image, FULL)
        node = {"driver": "file", "filename": str(image), "discard": "unmap", "node-name": "V"}
        disk = ("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=V,id=V")
        with context.guest(qemu=disk) as guest:
            appliance = InGuest(guest)
            appliance.start()
            appliance.make("tank", DISK, "data", "8MiB")
            ledger = Ledger(BLOCKS)
            client = appliance.client("data")
            Load(client, ledger, context.random(1)).run(1500)
            client.flush()
            client.close()
            for life in (1, 2):
                lost = cut_off(guest, "V", image)
                reads, requests = shrunk(context, appliance, ledger)
                give_back(guest, "V", image, lost)
                wait_for(lambda: state(appliance, "tank")["state"] == "open", "with its size the pool is open again")
                client = appliance.client("data")
                ledger.alive(client)
                Load(client, ledger, context.random(2 + life)).run(300)
                ledger.alive(client)
                client.flush()
                client.close()
                context.say(f"shrunk: {reads} reads and {requests} requests failed with EIO; with its size: all there")
            grown = FULL + (64 << 20)
            client = appliance.client("data")
            load = Load(client, ledger, context.random(5))
            load.start()
            resize(guest, "V", grown)
            wait_for(lambda: any(f"has {grown} now" in text for text in told(appliance)), "it is told of")
            load.stop()
            assert not load.errors, f"a device that grew: {load.errors[:5]}"
            ledger.alive(client)
            client.close()
            (device,) = state(appliance, "tank")["devices"]
            assert device["unused_bytes"] == 64 << 20 and device["size_bytes"] == grown, device
            appliance.stop()
            guest.must(f"stillpoint inspect --check {DISK}")
            context.say("grown under load: no error, 64 MiB unused, sound")


def device_comes_back_smaller(context):
    with context.guest(image_bytes=FULL) as guest:
        image = guest.directory / "B1.img"
        appliance = InGuest(guest)
        appliance.start()
        device = guest.must("readlink /dev/bay/B1").strip()
        appliance.make("tank", device, "data", "8MiB")
        ledger = Ledger(BLOCKS)
        client = appliance.client("data")
        Load(client, ledger, context.random(1)).run(600)
        client.flush()
        client.close()
        end_of(image)
        pull_out(guest, "B")
        wait_for(lambda: state(appliance, "tank")["state"] == "device_lost", "it is gone")
        lost = cut_off(guest, "B1", image)
        put_back(guest, controller(guest, "B"))
        wait_for(lambda: any("not used" in text for text in told(appliance)), "it is too small, and that is told")
        (text,) = [text for text in told(appliance) if "not used" in text]
        assert str(HALF) in text and str(FULL) in text and "size back" in text, text
        assert state(appliance, "tank")["state"] == "device_lost", "it waits"
        pull_out(guest, "B")
        give_back(guest, "B1", image, lost)
        put_back(guest, controller(guest, "B"))
        wait_for(lambda: state(appliance, "tank")["state"] == "open", "with its size it is taken")
        client = appliance.client("data")
        ledger.alive(client)
        client.close()
        appliance.stop()
        name_bays(guest, controller(guest, "B"))
        guest.must("stillpoint inspect --check /dev/bay/B1")
        context.say(f"came back with {HALF} of {FULL} bytes: not taken, {text!r}; with its size: all there")


TESTS = [device_resized_in_use, device_comes_back_smaller]
