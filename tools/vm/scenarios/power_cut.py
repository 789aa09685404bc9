"""The machine is killed under load and started again on what is on its disks."""

import tempfile
import time

from machine import devices
from machine.appliance import InGuest, assert_sound
from machine.ledger import Ledger, Load

from . import wait_for

BLOCKS = 4096
LOAD_SECONDS = (1.5, 4)


def load_until_cut(context, guest, ledger, cut):
    """A load, and QEMU killed in the middle of it."""
    client = InGuest(guest).client("data")
    load = Load(client, ledger, context.random(cut), depth=16, fua_every=11)
    load.start()
    time.sleep(context.random(100 + cut).uniform(*LOAD_SECONDS))
    # A busy host may not have come to one yet. A load that failed ends by itself.
    wait_for(lambda: load.flushes > 0 or not load.thread.is_alive(), "a flush is answered")
    guest.kill()
    load.stop()
    assert load.flushes > 0, f"no flush in {load.sent} requests: nothing is tested"
    assert not load.errors, f"requests failed before the power went: {load.errors[:5]}"
    context.say(f"cut {cut}: {load.writes} writes and {load.flushes} flushes answered, {len(load.under_way)} under way")


def kill_the_machine_under_load(context):
    ledger = Ledger(BLOCKS)
    cuts = 8 if context.long else 2
    with tempfile.TemporaryDirectory(prefix="stillpoint-vm.") as images:
        paths = [f"{images}/A2.img", f"{images}/B1.img"]
        for cut in range(cuts + 1):
            with context.guest(controllers=devices.default_controllers(images)) as guest:
                appliance = InGuest(guest)
                appliance.start()
                if cut == 0:
                    appliance.make("tank", "/dev/bay/A2 /dev/bay/B1", "data", "16MiB")
                else:
                    guest.must("stillpoint pool open /dev/bay/A2 /dev/bay/B1 >/dev/null")
                    client = appliance.client("data")
                    ledger.after_power_cut(client)
                    client.close()
                if cut == cuts:
                    appliance.stop()
                    guest.must("stillpoint inspect --check /dev/bay/A2 /dev/bay/B1")
                else:
                    load_until_cut(context, guest, ledger, cut)
            assert_sound(*paths)


TESTS = [kill_the_machine_under_load]
