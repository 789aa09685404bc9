"""A side of a mirror is pulled out under load, fails, rots or is replaced: clients see nothing of it, and it gets what it lacks."""

import json
import mmap
from pathlib import Path
from tempfile import TemporaryDirectory

from machine import devices
from machine.appliance import InGuest, assert_sound
from machine.ledger import BLOCK_BYTES, Ledger, Load, content

from . import wait_for
from .device_errors import Faults
from .unplug import controller, name_bays, pull_out, put_back

BLOCKS = 4096
BLOCKS_FAILING = 768
DEVICE_BYTES = 1 << 30
DEVICE_BYTES_FAILING = 128 << 20
# What a side lacks after some seconds is a small part of it.
COPIED_BYTES_MAX = DEVICE_BYTES // 8
SIDES = ("A", "B")


def pool(appliance):
    return appliance.json("pool show tank")


def states(appliance):
    return [side["state"] for side in pool(appliance)["sides"]]


def is_whole(appliance):
    info = pool(appliance)
    return info["state"] == "open" and [side["state"] for side in info["sides"]] == ["in_sync", "in_sync"]


def started(appliance, options, blocks=BLOCKS):
    """A pool with two sides, A and B, and a volume in it."""
    appliance.start(options)
    paths = [appliance.guest.must(f"readlink /dev/bay/{serial}1").strip() for serial in SIDES]
    appliance.make("tank", f"--mirror {' '.join(paths)}", "data", f"{blocks * BLOCK_BYTES}")
    assert is_whole(appliance), pool(appliance)
    return paths


def goes_on(load, what):
    """The load does not stop and sees no error."""
    seen = load.flushes
    wait_for(lambda: load.flushes > seen + 5 or load.errors or load.failure, what)
    assert not load.errors and not load.failure, f"{what}: {load.errors[:5]} {load.failure}"


def goes_out(context, appliance, load, serial, path):
    """Pulls a side out under load: it is told, and no client sees it."""
    number = SIDES.index(serial)
    before = len(appliance.events("mirror_side_out"))
    goes_on(load, "the load is under way")
    pull_out(appliance.guest, serial)
    goes_on(load, f"the load goes on without {serial}")
    wait_for(lambda: states(appliance)[number] == "out", "the side is said to be out")
    info = pool(appliance)
    side, other = info["sides"][number], info["sides"][1 - number]
    assert info["state"] == "degraded" and other["state"] == "in_sync", info
    assert side["why"] and side["since_ns"] > 0, f"no reason is given: {side}"
    told = appliance.events("mirror_side_out")[before:]
    assert [(event["pool"], event["subject"]) for event in told] == [("tank", path)], f"events: {told}"
    assert not appliance.events("mirror_lost") and not appliance.stopped("tank")
    goes_on(load, f"the load goes on after {serial} is out")
    context.say(f"{serial} ({path}) pulled out: {info['state']}, side {number} out ({side['why']}); no request failed")


def comes_back(context, appliance, serial, path_before):
    """Puts a side back, and waits until it has everything; nobody asks for it. Returns its path."""
    number = SIDES.index(serial)
    joined = len(appliance.events("mirror_joined"))
    copied_before = pool(appliance)["sides"][number]["copied_bytes"]
    put_back(appliance.guest, controller(appliance.guest, serial))
    wait_for(lambda: is_whole(appliance), f"{serial} is back and has everything")
    assert len(appliance.events("mirror_joined")) == joined + 1, appliance.events("mirror_joined")
    side = pool(appliance)["sides"][number]
    copied = side["copied_bytes"] - copied_before
    assert 0 < copied < COPIED_BYTES_MAX, f"{copied} bytes of {DEVICE_BYTES} were copied: {side}"
    assert side["left_bytes"] == 0, side
    sizes = f"{copied >> 10} KiB of {DEVICE_BYTES >> 20} MiB copied"
    context.say(f"{serial} put back, was {path_before}, is {side['path']}: {sizes}")
    return side["path"]


def everything_is_there(appliance, ledger):
    client = appliance.client("data")
    ledger.alive(client)
    client.close()


def expect_alone(context, appliance, ledger, what):
    """Everything acknowledged is there, and there is one side only, which takes writes."""
    info = pool(appliance)
    found = [side["state"] for side in info.get("sides", [])]
    assert info["state"] == "degraded" and found == ["out", "in_sync"], f"{what}: {info}"
    everything_is_there(appliance, ledger)
    context.say(f"{what}: everything acknowledged is there, on the side alone that had been away")


def pulled_in_turn(context, guest, options):
    appliance, ledger = InGuest(guest), Ledger(BLOCKS)
    a, b = started(appliance, options)
    first = Load(appliance.client("data"), ledger, context.random(1), fua_every=17)
    first.run(2000)
    first.start()
    # Somebody holds the controller: it comes back under another name.
    guest.must("sleep 100000 </dev/bay/B >/dev/null 2>&1 &")
    goes_out(context, appliance, first, "B", b)
    before, b = b, comes_back(context, appliance, "B", b)
    assert b != before, f"{b} is the old name"
    goes_out(context, appliance, first, "A", a)
    first.stop()
    assert not first.errors, first.errors[:5]
    context.say(f"{first.writes} writes and {first.flushes} flushes, none failed")
    expect_alone(context, appliance, ledger, "A pulled out")

    # Its log tails in memory stay, so what was acknowledged is there.
    second = Load(appliance.client("data"), ledger, context.random(2), fua_every=17)
    second.start()
    goes_on(second, "the load goes on")
    appliance.kill()
    second.stop()
    appliance.start(options)
    expect_alone(context, appliance, ledger, "killed, and started without A")

    # Nobody asks for anything when the last one comes.
    a = comes_back(context, appliance, "A", a)
    everything_is_there(appliance, ledger)
    third = Load(appliance.client("data"), ledger, context.random(3), fua_every=17)
    third.run(500)
    assert not third.errors, third.errors[:5]
    pull_out(guest, "B")
    wait_for(lambda: states(appliance) == ["in_sync", "out"], "a loss is seen without a request")
    everything_is_there(appliance, ledger)
    comes_back(context, appliance, "B", b)
    everything_is_there(appliance, ledger)
    appliance.guest.must("stillpoint pool close tank")
    appliance.stop()
    for serial in SIDES:
        name_bays(guest, controller(guest, serial))
    guest.must("stillpoint inspect --check /dev/bay/A1 /dev/bay/B1")


def singles(directory, serials, size_bytes, layers=()):
    """Controllers that can be pulled out, with a namespace each; A's has these layers."""
    for serial in serials:
        devices.make_image(directory / f"{serial}1.img", size_bytes)
    namespaces = [
        devices.Namespace(1, directory / f"{serial}1.img", layers=list(layers) if serial == "A" else [])
        for serial in serials
    ]
    return [devices.Controller(serial, [one], subsystem=False) for serial, one in zip(serials, namespaces)]


def mirror_sides_are_pulled_out(context):
    for options in ("", "--nvme block") if context.long else ("",):
        with TemporaryDirectory(prefix="stillpoint-vm.") as name:
            with context.guest(controllers=singles(Path(name), SIDES, DEVICE_BYTES)) as guest:
                pulled_in_turn(context, guest, options)
            assert_sound(*(Path(name) / f"{serial}1.img" for serial in SIDES))
            context.say("inspect --check finds nothing, in the guest and on the images")


def reads_fail(context, appliance, load, faults):
    """Every read of A fails for a while: B answers, and A stays in sync, or is out."""
    faults.inject("read")
    for _ in range(2):
        everything_is_there(appliance, load.ledger)
        load.run(200)
    faults.heal()
    assert not load.errors, f"clients see errors of one side: {load.errors[:5]}"
    side, other = pool(appliance)["sides"]
    assert side["repaired_reads"] > 0 or side["state"] != "in_sync", side
    assert other["state"] == "in_sync" and other["repaired_reads"] == 0, other
    context.say(f"A failed reads: {side['repaired_reads']} answered by B, {side['state']}; no request failed")
    taken_back(appliance)


def writes_fail(context, appliance, load, faults):
    """Every write to A fails: it is out, the load goes on, and A is taken back when somebody says so."""
    faults.inject("write")
    load.start()
    wait_for(lambda: states(appliance) == ["out", "in_sync"], "a side that fails writes is out")
    goes_on(load, "the load goes on without A")
    faults.heal()
    why = pool(appliance)["sides"][0]["why"]
    goes_on(load, "A is sound again")
    assert states(appliance)[0] == "out", "a side that failed and did not go is not taken back by itself"
    taken_back(appliance)
    goes_on(load, "A has everything again")
    load.stop()
    context.say(f"A failed writes: out ({why}); taken back by pool resync; no request failed")


def taken_back(appliance):
    appliance.guest.must("stillpoint pool resync tank --wait >/dev/null")
    assert is_whole(appliance), pool(appliance)


class Rot:
    """Blocks of an export, and where an image has them, of which the host makes something else."""

    def __init__(self, image, ledger, blocks):
        self.image, self.right = image, {}
        with open(image, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as disk:
            for block in blocks:
                data = content(block, ledger.acknowledged[block])
                place = disk.find(data)
                assert place > 0, f"block {block} is not on {image}"
                self.right[place] = data
        with open(image, "r+b", buffering=0) as file:
            for place in self.right:
                file.seek(place + 1000)
                file.write(b"rot")

    def is_mended(self):
        with open(self.image, "rb") as file:
            return all(file.seek(place) == place and file.read(BLOCK_BYTES) == data for place, data in self.right.items())


def scrub(appliance, options):
    return json.loads(appliance.guest.must(f"stillpoint pool scrub tank {options} --output json"))


def rots(context, appliance, image, ledger):
    """Bytes of A change while nobody looks: B answers and A is mended, by who reads, and by a scrub that is paused and outlives the daemon."""
    written = [block for block in range(BLOCKS_FAILING) if ledger.acknowledged[block]]
    read, unread = written[:8], written[8:24]
    client = appliance.client("data")
    rot = Rot(image, ledger, read)

    def is_mended_by_reads():
        # Reads go to the sides in turn: an odd number, so that the next time each goes to the other one.
        for block in (*read, read[0]):
            found = client.read(block * BLOCK_BYTES, BLOCK_BYTES)
            assert found == content(block, ledger.acknowledged[block]), f"block {block}"
        return rot.is_mended()

    wait_for(is_mended_by_reads, "what was read is right again on A")
    client.close()
    assert appliance.events("block_repaired") and not appliance.events("block_corrupt"), "it is told"
    context.say(f"{len(read)} blocks rotted on A: answered from B, and written again on A when they were read")

    rot = Rot(image, ledger, unread)
    scrub(appliance, "--rate 128KiB/s")
    wait_for(lambda: scrub(appliance, "--status")["checked_bytes"] > 0, "it reads")
    scrub(appliance, "--pause")
    paused = scrub(appliance, "--status")
    assert paused["state"] == "paused" and paused["checked_bytes"] < paused["used_bytes"], paused
    appliance.kill()
    appliance.start()
    after = scrub(appliance, "--status")
    assert (after["state"], after["checked_bytes"]) == ("paused", paused["checked_bytes"]), f"{paused}, then {after}"
    scrub(appliance, "--resume --rate 64MiB/s")
    report = scrub(appliance, "--status --wait")
    assert report["state"] == "done" and report["started_ns"] == paused["started_ns"], report
    assert report["checked_bytes"] > paused["checked_bytes"] and report["damaged_blocks"] == 0, report
    repaired = {side["side"]: side["repaired_blocks"] for side in report["sides"]}
    assert repaired == {"first side": len(unread), "second side": 0}, report
    assert rot.is_mended(), "what the scrub found is right again on A"
    context.say(
        f"{len(unread)} more: paused after {paused['checked_bytes']} bytes, still so after kill -9, resumed: {repaired} repaired"
    )


def replaced(context, appliance, load, before, new):
    """Another device takes the place of B under load; everything on it comes from A."""
    load.start()
    goes_on(load, "the load is under way")
    appliance.guest.must(f"stillpoint pool replace tank {before} {new} >/dev/null")
    goes_on(load, "the load goes on while all is copied")
    wait_for(lambda: is_whole(appliance), "the new device has everything")
    load.stop()
    assert not load.errors, load.errors[:5]
    side = pool(appliance)["sides"][1]
    assert side["path"] == new and side["copied_bytes"] > 0, side
    context.say(f"{before} replaced by {new} under load: {side['copied_bytes'] >> 20} MiB copied, no request failed")


def mirror_side_fails(context):
    """Reads of A fail, then writes, then its bytes rot; then another device takes the place of B, and A goes."""
    with TemporaryDirectory(prefix="stillpoint-vm.") as name:
        # A layer that does nothing, and under which another one can be put.
        controllers = singles(Path(name), (*SIDES, "C"), DEVICE_BYTES_FAILING, layers=[{"driver": "raw"}])
        # Without this the kernel asks five times before it believes an error.
        with context.guest(controllers=controllers, kernel_arguments="nvme_core.max_retries=0") as guest:
            appliance, ledger = InGuest(guest), Ledger(BLOCKS_FAILING)
            _, b = started(appliance, "", BLOCKS_FAILING)
            load = Load(appliance.client("data"), ledger, context.random(1), fua_every=17)
            load.run(1500)
            faults = Faults(guest, "A1")
            reads_fail(context, appliance, load, faults)
            writes_fail(context, appliance, load, faults)
            load.client.flush()
            rots(context, appliance, Path(name) / "A1.img", ledger)
            load = Load(appliance.client("data"), ledger, context.random(2), fua_every=17)
            replaced(context, appliance, load, b, "/dev/bay/C1")
            # What the others have now must be right by itself.
            pull_out(guest, "A")
            wait_for(lambda: states(appliance) == ["out", "in_sync"], "A is out")
            everything_is_there(appliance, ledger)
            appliance.stop()
            context.say("A pulled out: everything is there on the new device alone")


TESTS = [mirror_sides_are_pulled_out, mirror_side_fails]
