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
    """Puts a controller back; it has its name in /dev/bay only after `name_bays`."""
    qmp = guest.qmp()
    qmp.command("device_add", **devices.alone(controller))
    qmp.close()


def name_bays(guest, controller):
    """Gives the namespaces their names in /dev/bay again."""
    found = f"until bays {controller.serial}1; do turns=$((turns + 1)); [ $turns -gt 300 ] && exit 1; usleep 100000; done"
    guest.must(f"turns=0; {found}")


def controller(guest, serial):
    return next(controller for controller in guest.controllers if controller.serial == serial)


def state(appliance, pool):
    (info,) = [info for info in appliance.json("pool list") if info["name"] == pool]
    return info


def lost_is_told(context, appliance, there, device):
    wait_for(lambda: len(there.errors) > 50, "requests to the device that is gone fail")
    numbers = sorted({number for number, _ in there.errors})
    assert numbers == [errno.EIO], "what lies on a lost device fails with EIO"
    told = appliance.events("shard_stopped")
    assert told and {event["pool"] for event in told} == {"goes"}, f"events: {told}"
    assert appliance.stopped("goes") and not appliance.stopped("stays")
    wait_for(lambda: state(appliance, "goes")["state"] == "device_lost", "the state of the pool says it")
    info = state(appliance, "goes")
    assert info["devices"][0]["lost_since_ns"] > 0 and device in info["error"], f"told of it: {info}"
    (lost,) = appliance.events("device_lost")
    assert (lost["pool"], lost["subject"]) == ("goes", device), f"event: {lost}"
    assert state(appliance, "stays")["state"] == "open"
    context.say(f"{len(there.errors)} requests failed with errno {numbers}, none hung; {device} is gone, say event and state")


def reads_fail_at_once(appliance, ledger):
    lost = appliance.client("there", HANG_SECONDS)
    for block in [block for block in range(BLOCKS) if ledger.acknowledged[block]][:50]:
        try:
            lost.read(block * BLOCK_BYTES, BLOCK_BYTES)
        except Refused as error:
            assert error.number == errno.EIO, f"block {block} of a device that is gone: {error}"
        else:
            raise AssertionError(f"block {block} of a device that is gone was read")
    return lost


def comes_back(context, guest, appliance, ledger, salt):
    """Puts B back, and waits until its pool is open: nobody else closes or opens anything."""
    before = len(appliance.events("device_returned"))
    put_back(guest, controller(guest, "B"))
    wait_for(lambda: len(appliance.events("device_returned")) > before, "the device is recognised")
    wait_for(lambda: state(appliance, "goes")["state"] == "open", "its pool is open again")
    client = appliance.client("there")
    ledger.alive(client)
    Load(client, ledger, context.random(salt)).run(100)
    ledger.alive(client)
    client.close()
    return state(appliance, "goes")["devices"][0]["path"]


def unplug_and_return(context, options):
    with context.guest() as guest:
        appliance = InGuest(guest)
        appliance.start(options)
        device = guest.must("readlink /dev/bay/B1").strip()
        appliance.make("stays", "/dev/bay/A1", "here", "8MiB")
        appliance.make("goes", device, "there", "8MiB")
        here = Load(appliance.client("here"), Ledger(BLOCKS), context.random(1))
        there = Load(appliance.client("there"), Ledger(BLOCKS), context.random(2))
        here.start()
        there.start()
        wait_for(lambda: here.flushes > 2 and there.flushes > 2, "the loads begin")
        pull_out(guest, "B")
        lost_is_told(context, appliance, there, device)
        idle = reads_fail_at_once(appliance, there.ledger)
        seen = here.flushes
        wait_for(lambda: here.flushes > seen + 2, "requests to the other device are answered")

        # Both loads go on, and a client that asks nothing is there too.
        back = comes_back(context, guest, appliance, there.ledger, 3)
        there.stop()
        idle.close()
        context.say(f"put back, now {back}: opened by itself, everything acknowledged is there, writes go on")

        # Without a request that could fail.
        pull_out(guest, "B")
        wait_for(lambda: state(appliance, "goes")["state"] == "device_lost", "a loss is seen without a request")
        again = comes_back(context, guest, appliance, there.ledger, 4)
        context.say(f"the same without a request, now {again}")

        # Not there when the daemon starts.
        here.stop()
        assert not here.errors, f"errors on the device that stayed: {here.errors[:5]}"
        here.ledger.alive(here.client)
        appliance.stop()
        pull_out(guest, "B")
        appliance.start(options)
        assert state(appliance, "goes")["state"] == "failed" and state(appliance, "stays")["state"] == "open"
        put_back(guest, controller(guest, "B"))
        wait_for(lambda: state(appliance, "goes")["state"] == "open", "a pool that was not opened is, when its device comes")
        client = appliance.client("there")
        there.ledger.alive(client)
        client.close()
        appliance.stop()
        name_bays(guest, controller(guest, "B"))
        guest.must("stillpoint inspect --check /dev/bay/A1 && stillpoint inspect --check /dev/bay/B1")
        context.say("not there at the start: opened when it came; all sound")


def unplug_under_load(context):
    for options in ("", "--nvme block") if context.long else ("",):
        unplug_and_return(context, options)


TESTS = [unplug_under_load]
