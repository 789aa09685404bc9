"""Pools on NVMe block devices with LBAs of 512 and 4096 bytes: written through NBD, killed, restarted, verified, checked."""

from machine.appliance import InGuest, assert_sound
from machine.guest import BOOT_SECONDS_MAX
from machine.ledger import Ledger, Load

BLOCKS = 4096
REQUESTS = 600


def load_and_restart(context, guest, bay, volume_block):
    """A pool on one bay, a load, kill -9, another load, an orderly end, and a check of the device each time."""
    appliance = InGuest(guest)
    appliance.start()
    appliance.make("tank", f"/dev/bay/{bay}", "data", "16MiB", f"--block-size {volume_block}")
    ledger = Ledger(BLOCKS)
    for life, end in enumerate((appliance.kill, appliance.stop)):
        client = appliance.client("data")
        load = Load(client, ledger, context.random(life), fua_every=17)
        load.run(REQUESTS)
        assert not load.errors, f"requests failed: {load.errors[:5]}"
        ledger.alive(client)
        client.close()
        end()
        appliance.start()
        client = appliance.client("data")
        ledger.alive(client)
        client.close()
        context.say(f"{bay}: {load.writes} writes, {load.flushes} flushes, {end.__name__}, all there")
    guest.must("stillpoint pool close tank")
    context.say(guest.must(f"stillpoint inspect --check /dev/bay/{bay}").strip().splitlines()[-1])
    appliance.stop()


def pool_on_512_and_4096_byte_lbas(context):
    with context.guest() as guest:
        context.say(f"kernel {guest.release}, booted in {guest.boot_seconds:.1f} s")
        assert guest.boot_seconds < BOOT_SECONDS_MAX, f"it may take {BOOT_SECONDS_MAX} s"
        for bay, size in (("A1", "512"), ("A2", "4096"), ("B1", "4096")):
            found = guest.must(f"cat /sys/block/$(basename $(readlink /dev/bay/{bay}))/queue/logical_block_size").strip()
            assert found == size, f"{bay} has an LBA size of {found}"
        # The others have pools on 4096 bytes.
        bays = (("A1", 512), ("A2", 4096)) if context.long else (("A1", 512),)
        for bay, volume_block in bays:
            load_and_restart(context, guest, bay, volume_block)
        guest.end()
        for bay, _ in bays:
            assert_sound(guest.directory / f"{bay}.img")


TESTS = [pool_on_512_and_4096_byte_lbas]
