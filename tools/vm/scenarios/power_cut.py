"""The machine is killed under load and started again on what is on its disks; the same with controllers that are trusted."""

import tempfile
import time

from machine import commands, devices
from machine.appliance import InGuest, assert_sound
from machine.ledger import Ledger, Load

from . import wait_for

BLOCKS = 4096
LOAD_SECONDS = (1.5, 4)


def load_until_cut(context, guest, ledger, cut, look):
    """A load, and QEMU killed in the middle of it; just before, somebody may look."""
    client = InGuest(guest).client("data")
    load = Load(client, ledger, context.random(cut), depth=16, fua_every=11)
    load.start()
    time.sleep(context.random(100 + cut).uniform(*LOAD_SECONDS))
    # A busy host may not have come to one yet. A load that failed ends by itself.
    wait_for(lambda: load.flushes > 0 or not load.thread.is_alive(), "a flush is answered")
    look(guest)
    guest.kill()
    load.stop()
    assert load.flushes > 0, f"no flush in {load.sent} requests: nothing is tested"
    assert not load.errors, f"requests failed before the power went: {load.errors[:5]}"
    context.say(f"cut {cut}: {load.writes} writes and {load.flushes} flushes answered, {len(load.under_way)} under way")


def kill_and_reopen(context, options="", begin=lambda guest: None, look=lambda guest: None, cuts=1):
    """Boots, runs a load, kills QEMU; several times. `begin` is called before the load, `look` just before the end."""
    ledger = Ledger(BLOCKS)
    cuts = 8 if context.long else cuts
    with tempfile.TemporaryDirectory(prefix="stillpoint-vm.") as images:
        paths = [f"{images}/A2.img", f"{images}/B1.img"]
        for cut in range(cuts + 1):
            with context.guest(controllers=devices.default_controllers(images)) as guest:
                appliance = InGuest(guest)
                appliance.start(options)
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
                    begin(guest)
                    load_until_cut(context, guest, ledger, cut, look)
            assert_sound(*paths)


def kill_the_machine_under_load(context):
    kill_and_reopen(context)


def kill_the_machine_whose_controllers_are_trusted(context):
    """Headers of checkpoints and pages of logs are written with FUA, beside a load, while snapshots come and go."""

    def begin(guest):
        shown = InGuest(guest).json("pool show tank")["devices"]
        assert all(device["durable_writes"] and "durable_writes_refused" not in device for device in shown), shown
        said = [finding["message"] for finding in InGuest(guest).json("doctor")["findings"]]
        assert len([message for message in said if "single writes are made durable" in message]) == 2, said
        commands.watch(guest, commands.WRITE, commands.FLUSH)
        # Deleting one ends with a checkpoint.
        guest.must(
            "(boot=$(date +%s); number=0; while :; do stillpoint snapshot create --hold-limit 2s data@s${boot}n$number"
            " && stillpoint snapshot delete --wait data@s${boot}n$number; number=$((number + 1)); done) >/run/snapshots.log 2>&1 &"
        )
        wait_for(lambda: guest.must("grep -c deleted /run/snapshots.log || true").strip() != "0", "a snapshot was deleted")

    def look(guest):
        found = commands.seen(guest)
        durable = [command for command in found if command.control & commands.FUA]
        flushes = [command for command in found if command.opcode == commands.FLUSH]
        written = len(found) - len(flushes)
        assert len(durable) > 4, f"hardly a write has FUA: {durable}"
        assert flushes and len(durable) < written, "data is flushed, and not written with FUA"
        context.say(f"{written} writes, {len(durable)} of them with FUA, {len(flushes)} flushes")

    kill_and_reopen(context, "--durable-writes always", begin, look, cuts=1)


def nobody_else_is_trusted(context):
    """Without being told to, the emulated controllers are flushed, and no command has FUA."""
    with context.guest() as guest:
        appliance = InGuest(guest)
        for options in ("", "--durable-writes never"):
            appliance.start(options)
            commands.watch(guest, commands.WRITE, commands.FLUSH)
            if not options:
                appliance.make("tank", "/dev/bay/A2 /dev/bay/B1", "data", "16MiB")
            guest.must("stillpoint snapshot create data@s >/dev/null; stillpoint snapshot delete --wait data@s >/dev/null")
            found = commands.seen(guest)
            assert [command for command in found if command.opcode == commands.FLUSH], f"{options}: nothing was flushed"
            assert [command for command in found if command.opcode == commands.WRITE], f"{options}: nothing was written"
            assert not [command for command in found if command.control & commands.FUA], f"{options}: writes with FUA"
            refused = {device["durable_writes_refused"] for device in appliance.json("pool show tank")["devices"]}
            assert len(refused) == 1 and ("never" if options else "its model") in refused.pop(), refused
            appliance.stop()


TESTS = [kill_the_machine_under_load, kill_the_machine_whose_controllers_are_trusted, nobody_else_is_trusted]
