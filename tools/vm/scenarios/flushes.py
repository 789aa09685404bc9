"""Which flushes are missing: everything a disk was told is recorded, and disks are made of it as power cuts leave them.

A disk with a volatile cache keeps what came before its last flush, and of the rest any part. So for every flush in the
record, and for random points between, an image is made; each must be sound, open, show every write and snapshot that had
been acknowledged as durable by then. The control forgets that there were flushes: then the same checks must find losses.
"""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from machine import devices, write_log
from machine.appliance import InGuest, OnHost, assert_sound
from machine.ledger import Ledger, Load

BLOCKS = 2048
IMAGE_BYTES = 256 << 20
ROUNDS = 5
REQUESTS_PER_ROUND = 50
BETWEEN_SHORT = 24
BETWEEN_LONG = 400
CONTROLS = 12


@dataclass
class Promise:
    """What had been acknowledged when so many entries were recorded."""

    entries: int
    durable: list
    snapshots: dict


def record(context, directory):
    """Runs a load with snapshots on a recorded disk; returns the promises in order, and the ledger at the end."""
    disk, log = directory / "disk.img", directory / "record"
    devices.make_image(disk, IMAGE_BYTES)
    devices.make_image(log, 1 << 20)
    write_log.copy_sparse(disk, directory / "base.img")
    recorder = {"driver": "blklogwrites", "log": "record", "log-sector-size": 512, "log-super-update-interval": 1}
    namespace = devices.Namespace(
        1, disk, layers=[recorder], more=[{"driver": "file", "filename": str(log), "node-name": "record"}]
    )
    controller = devices.Controller("R", [namespace], subsystem=False)
    ledger, promises, snapshots = Ledger(BLOCKS), [], {}

    def promise():
        promises.append(Promise(write_log.entry_count(log), list(ledger.durable), dict(snapshots)))

    with context.guest(controllers=[controller]) as guest:
        appliance = InGuest(guest)
        appliance.start()
        appliance.make("tank", "/dev/bay/R1", "data", f"{BLOCKS * 4096}")
        client = appliance.client("data")
        load = Load(client, ledger, context.random(), depth=6, flush_every=12, fua_every=9, on_durable=promise)
        promise()
        for number in range(ROUNDS * (4 if context.long else 1)):
            load.run(REQUESTS_PER_ROUND)
            if number % 2 == 0:
                # Nothing is under way, so the snapshot shows exactly what was acknowledged; it is durable when confirmed.
                guest.must(f"stillpoint snapshot create --hold-limit 2s data@s{number} >/dev/null")
                snapshots[f"s{number}"] = list(ledger.acknowledged)
                ledger.durable = list(ledger.acknowledged)
                promise()
        assert not load.errors, f"requests failed: {load.errors[:5]}"
        guest.must("stillpoint snapshot delete data@s0 >/dev/null")
        # Whether the deletion is durable by an earlier entry is left open.
        del snapshots["s0"]
        for old in promises:
            old.snapshots.pop("s0", None)
        promise()
        load.run(REQUESTS_PER_ROUND)
        guest.kill()
    return promises, ledger


def look(image, promise, ledger):
    """Raises AssertionError unless the image is sound and shows what was promised."""
    assert_sound(image)
    with OnHost(image) as appliance:
        volumes = json.loads(appliance.must("volume", "list", "--output", "json"))
        if promise is None:
            return
        assert [volume["name"] for volume in volumes] == ["data"], f"volumes: {volumes}"
        client = appliance.client("data")
        ledger.compare(client, promise.durable)
        client.close()
        for name, content in promise.snapshots.items():
            appliance.must("export", "create", f"data@{name}")
            client = appliance.client(f"data@{name}")
            found = ledger.found(client)
            client.close()
            assert found == content, f"snapshot {name} shows other writes than when it was taken"


class Points:
    """Makes images of points in the record, and looks at them two at a time."""

    def __init__(self, context, directory, promises, ledger):
        self.context, self.directory, self.promises, self.ledger = context, directory, promises, ledger
        self.entries = write_log.entries(directory / "record")
        self.first = promises[0].entries

    def promise_at(self, upto):
        """The last promise that was made when no more than so many entries were recorded."""
        return next((promise for promise in reversed(self.promises) if promise.entries <= upto), None)

    def check(self, points, flushes_count=True):
        """Looks at images of points, which are in order; returns what was wrong, as text.

        Without `flushes_count` anything since the pool was made may be missing, as if no flush had been recorded.
        """
        base = self.directory / f"base{flushes_count}.img"
        write_log.copy_sparse(self.directory / "base.img", base)
        replay = write_log.Replay(self.directory / "record", base)
        wrong = []
        try:
            with ThreadPoolExecutor(2) as pool:
                looks = []
                for number, upto in enumerate(points):
                    replay.forward(write_log.last_flush(self.entries, upto) if flushes_count else self.first)
                    image = self.directory / f"point{flushes_count}{number}.img"
                    write_log.copy_sparse(base, image)
                    replay.leave(upto, image, self.context.random(number))
                    looks.append(pool.submit(self.one, image, upto))
                    if number >= 2:
                        looks[number - 2].result()
                wrong = [text for text in (done.result() for done in looks) if text]
        finally:
            replay.close()
        return wrong

    def one(self, image, upto):
        try:
            look(image, self.promise_at(upto), self.ledger)
        except AssertionError as error:
            return f"power cut after entry {upto} of {len(self.entries)}: {error}"
        finally:
            image.unlink()
        return None


def power_cut_at_every_flush(context):
    random = context.random(7)
    with tempfile.TemporaryDirectory(prefix="stillpoint-vm.") as name:
        directory = Path(name)
        promises, ledger = record(context, directory)
        points = Points(context, directory, promises, ledger)
        total = len(points.entries)
        flushes = [n + 1 for n, entry in enumerate(points.entries) if entry.is_flush() and n >= points.first]
        assert flushes, f"nothing was flushed, although {len(promises)} times something was called durable"
        count = min(total - points.first, BETWEEN_LONG if context.long else BETWEEN_SHORT)
        between = random.sample(range(points.first, total + 1), count)
        wrong = points.check(sorted({*flushes, *between}))
        assert not wrong, f"{len(wrong)} points are wrong:\n" + "\n".join(wrong[:3])
        promised = f"{len(promises)} promises, {len(promises[-1].snapshots)} snapshots"
        looked = f"all {len(flushes)} flushes and {len(between)} points between looked at"
        context.say(f"{total} entries, {promised}; {looked}")
        controls = sorted(random.sample(range(total // 2, total + 1), CONTROLS))
        found = points.check(controls, flushes_count=False)
        assert found, f"{len(controls)} disks that ignore flushes lost nothing that these checks notice"
        context.say(f"control: of {len(controls)} disks that ignore flushes {len(found)} are found out")


TESTS = [power_cut_at_every_flush]
