"""A device is pulled out under load, and put back."""

import errno

from machine import devices
from machine.appliance import InGuest
from machine.ledger import BLOCK_BYTES, Ledger, Load
from machine.nbd import Refused

from . import HANG_SECONDS, wait_for

BLOCKS = 2048


def pull_out(guest, serial):
    """Takes a controller out, as an operator does: the slot is asked to let it go."""
    qmp = guest.qmp()
    qmp.command("device_del", id=serial)
    qmp.wait_for("DEVICE_DELETED", device=serial)
    qmp.close()


def put_back(guest, controller):
    qmp = guest.qmp()
    qmp.command("device_add", **devices.alone(controller))
    qmp.close()
    found = f"until bays {controller.serial}1; do turns=$((turns + 1)); [ $turns -gt 300 ] && exit 1; usleep 100000; done"
    guest.must(f"turns=0; {found}")


def unplug_under_load(context):
    with context.guest() as guest:
        appliance = InGuest(guest)
        appliance.start()
        appliance.make("stays", "/dev/bay/A1", "here", "8MiB")
        appliance.make("goes", "/dev/bay/B1", "there", "8MiB")
        here = Load(appliance.client("here"), Ledger(BLOCKS), context.random(1))
        there = Load(appliance.client("there"), Ledger(BLOCKS), context.random(2))
        here.start()
        there.start()
        wait_for(lambda: here.flushes > 2 and there.flushes > 2, "the loads begin")
        pull_out(guest, "B")
        wait_for(lambda: len(there.errors) > 50, "requests to the device that is gone fail")
        seen = here.flushes
        wait_for(lambda: here.flushes > seen + 2, "requests to the other device are answered")
        here.stop()
        there.stop()
        assert not here.errors, f"errors on the device that stayed: {here.errors[:5]}"
        here.ledger.alive(here.client)
        numbers = sorted({number for number, _ in there.errors})
        context.say(f"pulled out: {len(there.errors)} requests failed with errno {numbers}, none hung; the other pool went on")
        assert numbers == [errno.EIO], "what lies on a lost device fails with EIO"

        told = appliance.events("shard_stopped")
        assert told and {event["pool"] for event in told} == {"goes"}, f"events: {told}"
        assert appliance.stopped("goes") and not appliance.stopped("stays")
        context.say(f"said by an event: {told[0]['text']}; and by status: shards {appliance.stopped('goes')} stopped")
        lost = appliance.client("there", HANG_SECONDS)
        for block in [block for block in range(BLOCKS) if there.ledger.acknowledged[block]][:50]:
            try:
                lost.read(block * BLOCK_BYTES, BLOCK_BYTES)
            except Refused as error:
                assert error.number == errno.EIO, f"block {block} of a device that is gone: {error}"
            else:
                raise AssertionError(f"block {block} of a device that is gone was read")
        lost.close()

        put_back(guest, next(controller for controller in guest.controllers if controller.serial == "B"))
        guest.must("stillpoint pool close goes && stillpoint pool open /dev/bay/B1 >/dev/null")
        client = appliance.client("there")
        there.ledger.alive(client)
        Load(client, there.ledger, context.random(3)).run(100)
        there.ledger.alive(client)
        appliance.stop()
        guest.must("stillpoint inspect --check /dev/bay/A1 && stillpoint inspect --check /dev/bay/B1")
        context.say("put back, closed and opened: everything acknowledged is there, writes go on, sound")


TESTS = [unplug_under_load]
