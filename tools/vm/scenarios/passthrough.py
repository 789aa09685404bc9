"""NVMe namespaces served by commands of our own: every LBA size and a small MDTS, polled and with interrupts; what happens
when such commands cannot be had; zeros and single writes that are durable; and the figures that the devices give of themselves."""

import json

from machine import commands
from machine.appliance import InGuest, assert_sound
from machine.ledger import Ledger, Load

BLOCKS = 4096
REQUESTS = 400


def served(appliance, pool, kind, polled):
    """The devices of a pool are served so."""
    devices = appliance.json(f"pool show {pool}")["devices"]
    found = {(device["kind"], device["polled"]) for device in devices}
    assert found == {(kind, polled)}, f"served as {found}: {devices}"


def kernel_polls(guest):
    """Whether the kernel may be asked to poll for commands: Linux 6.5 or newer."""
    major, minor = guest.release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 5)


def load(context, appliance, salt, ledger):
    """A load on `data`; everything is there."""
    client = appliance.client("data")
    work = Load(client, ledger, context.random(salt), fua_every=17)
    work.run(REQUESTS)
    assert not work.errors, f"requests failed: {work.errors[:5]}"
    ledger.alive(client)
    client.close()
    context.say(f"{work.writes} writes, {work.flushes} flushes, all there")


def long_requests(context, guest):
    """Requests of 1 MiB on a volume of their own, which are many commands, and discards; read again and compared."""
    guest.must(
        "set -e; stillpoint volume create long --pool tank --size 64MiB >/dev/null; stillpoint export create long >/dev/null;"
        "stillpoint bench run nbd://127.0.0.1/long --rw randrw --bs 1M --iodepth 3 --runtime 1500ms --verify --fsync 5;"
        "stillpoint bench run nbd://127.0.0.1/long --rw randtrim --bs 1M --iodepth 3 --runtime 500ms;"
        "stillpoint pool scrub tank --wait"
    )
    context.say("requests of 1 MiB and discards: what was read is what was written")


def passthrough(context, polled):
    arguments = f"nvme.poll_queues={1 if polled else 0}"
    with context.guest(kernel_arguments=arguments) as guest:
        polled = polled and kernel_polls(guest)
        appliance = InGuest(guest)
        appliance.start()
        # 512 and 4096-byte LBAs and the small MDTS in one pool; a namespace may be named by either of its devices.
        appliance.make("tank", "/dev/bay/A1-generic /dev/bay/A2 /dev/bay/B1-generic", "data", "16MiB", "--block-size 512")
        served(appliance, "tank", "nvme", polled)
        ledger = Ledger(BLOCKS)
        for life, end in enumerate((appliance.kill, appliance.stop)):
            load(context, appliance, life, ledger)
            if life == 0:
                long_requests(context, guest)
                completions(context, guest, polled)
                if not polled:
                    affinity(appliance, guest)
            end()
            appliance.start()
            served(appliance, "tank", "nvme", polled)
            client = appliance.client("data")
            ledger.alive(client)
            client.close()
        idle(context, guest)
        guest.must("stillpoint pool close tank")
        appliance.stop()
        guest.end()
        assert_sound(*(guest.directory / f"{bay}.img" for bay in ("A1", "A2", "B1")))


def interrupts(guest):
    """How often each I/O queue interrupted each core, as {queue: [times on core 0, ...]}."""
    lines = guest.must("grep -E 'nvme[0-9]+q[1-9]' /proc/interrupts").splitlines()
    rows = [line.split() for line in lines]
    return {row[-1]: [int(times) for times in row[1:] if times.isdecimal()][:2] for row in rows}


def completions(context, guest, polled):
    """Reads from the devices interrupt nobody if they are polled for, and else the core that submits to their queue."""
    guest.must(
        "set -e; stillpoint volume create whole --pool tank --size 16MiB >/dev/null; stillpoint export create whole >/dev/null;"
        "stillpoint bench run nbd://127.0.0.1/whole --rw write --bs 1M --iodepth 2 --runtime 1s"
    )
    before = interrupts(guest)
    read = "stillpoint bench run nbd://127.0.0.1/whole --rw randread --bs 4k --iodepth 4 --runtime 2s --output json"
    reads = json.loads(guest.must(read))["requests"]
    grown = {queue: [now - then for now, then in zip(times, before[queue])] for queue, times in interrupts(guest).items()}
    times = sum(sum(by_core) for by_core in grown.values())
    # With two cores each has a queue of its own.
    elsewhere = [queue for queue, by_core in grown.items() if by_core[2 - int(queue[-1])]]
    assert not elsewhere, f"interrupts of other cores than submitted: {grown}"
    assert reads > 50 and (times < reads / 20 if polled else times > reads / 20), f"{times} interrupts, {reads} reads: {grown}"
    context.say(f"{reads} reads, {times} interrupts, none of a core that did not submit: {grown}")


def affinity(appliance, guest):
    """Doctor has nothing to say of interrupts but where the kernel was told to leave completions where they arrive."""
    told = lambda: [one["mend"] for one in appliance.json("doctor")["findings"] if "completions are handled" in one["message"]]
    assert not told() and "interrupts disturb" not in guest.must("stillpoint doctor || true")
    device = guest.must("basename $(readlink -f /dev/bay/B1)").strip()
    setting = f"/sys/block/{device}/queue/rq_affinity"
    before = guest.must(f"cat {setting}; echo 0 >{setting}").strip()
    assert told() == [f"echo 2 > {setting}"], told()
    guest.must(f"echo {before} >{setting}")


def idle(context, guest):
    """A processor that waits for nothing sleeps: the rings of commands do not keep it awake."""
    ticks = "awk '{print $14 + $15}' /proc/$(cat /run/daemon.pid)/stat"
    used = int(guest.must(f"sleep 1; before=$({ticks}); sleep 2; echo $(($({ticks}) - before))"))
    # A hundred ticks are a second; one loop that spins would take 200.
    assert used < 100, f"{used} ticks of 200 while there was nothing to do"
    context.say(f"idle: {used} ticks of 200")


def passthrough_polled(context):
    # An old kernel has the queues, but must not be asked to poll.
    passthrough(context, True)


def passthrough_with_interrupts(context):
    passthrough(context, False)


def what_has_no_commands_is_a_block_device(context):
    """With several paths, or without its character device, a namespace is served as a block device, and doctor says why."""
    with context.guest(kernel_arguments="nvme_core.multipath=Y") as guest:
        appliance = InGuest(guest)
        listed = [device["path"] for device in appliance.json("device list") if device["nvme"]]
        assert len(listed) == 4, f"{listed}: each namespace once, and no paths to it"
        guest.must("rm $(readlink -f /dev/bay/B1-generic)")
        appliance.start()
        # A1 is in a subsystem, which may have more controllers than the one that is there; B1 is not.
        appliance.make("tank", "/dev/bay/A1 /dev/bay/B1", "data", "16MiB")
        # The driver has poll queues for block devices as well.
        polled = kernel_polls(guest)
        served(appliance, "tank", "block", polled)
        load(context, appliance, 1, Ledger(BLOCKS))
        completions(context, guest, polled)
        idle(context, guest)
        told = [finding for finding in appliance.json("doctor")["findings"] if "block device, not by NVMe" in finding["message"]]
        messages = [finding["message"] for finding in told]
        for words in ("several paths", "cannot be opened"):
            assert len([message for message in messages if words in message]) == 1, messages
        context.say("; ".join(messages))
        appliance.stop()
        # Asked for, it is one too, and nothing is lacking.
        appliance.start("--nvme block")
        served(appliance, "tank", "block", polled)
        assert not [finding for finding in appliance.json("doctor")["findings"] if "not by NVMe" in finding["message"]]
        guest.must("stillpoint pool close tank")
        appliance.stop()


def devices_tell_what_they_are(context):
    with context.guest() as guest:
        appliance = InGuest(guest)
        listed = {device["path"]: device for device in appliance.json("device list")}
        namespaces = [device for device in listed.values() if device["nvme"]]
        assert len(namespaces) == 4, f"{sorted(listed)}: each namespace once, and no paths to it"
        found = {}
        for bay, serial, nsid, lba, longest in (("A1", "A", 1, 512, 128), ("A2", "A", 2, 4096, 128), ("B1", "B", 1, 4096, 32)):
            device = appliance.json(f"device show /dev/bay/{bay}")
            nvme, said = device["nvme"], device["nvme"]["identified"]
            assert device["serial"] == serial and nvme["namespace"] == nsid, device
            assert device["logical_block_bytes"] == lba and device["size_bytes"] == 1 << 30, device
            assert [form["data_bytes"] for form in said["formats"] if form["in_use"]] == [lba], said["formats"]
            assert said["transfer_bytes_max"] == longest << 10 == device["transfer_bytes_max"], device
            assert said["deallocate"] and said["write_zeroes"] and said["volatile_write_cache"], said
            assert said["smart"]["temperature_celsius"] == 50 and not said["smart"]["warnings"], said["smart"]
            unused = nvme.get("poll_queues_unused")
            assert kernel_polls(guest) == (unused is None) and (unused is None or "6.5" in unused), nvme
            assert nvme["queues"] == 3 and nvme["poll_queues"] == 1 and device["polled"], nvme
            assert device["pci"]["address"].startswith("0000:") and device["pci"]["driver"] == "nvme", device["pci"]
            generic = guest.must(f"readlink -f /dev/bay/{bay}-generic").strip()
            assert nvme["generic"] == generic and appliance.json(f"device show {generic}")["name"] == device["name"]
            found[bay] = nvme["controller"]
        assert found["A1"] == found["A2"] != found["B1"], found
        taken(context, guest)


def taken(context, guest):
    """What is mounted is taken by nobody, and neither by a bench; what holds a file system only by force."""
    guest.must("mkfs.ext4 -q /dev/bay/B1; mkdir /run/mounted; mount /dev/bay/B1 /run/mounted")
    appliance = InGuest(guest)
    appliance.start()
    for command, words in (
        ("pool create p /dev/bay/B1", "mounted at /run/mounted"),
        ("pool create p /dev/bay/B1-generic --force /dev/bay/B1-generic", "mounted at /run/mounted"),
        ("bench run nvme:/dev/bay/B1-generic --rw randwrite --runtime 1s", "in use"),
    ):
        status, output = guest.run(f"stillpoint {command} 2>&1")
        assert status != 0 and words in output.decode(), f"{command}: {status} {output.decode()}"
    guest.must("umount /run/mounted")
    status, output = guest.run("stillpoint pool create p /dev/bay/B1 2>&1")
    assert status == 4 and "holds an ext2, ext3 or ext4 file system" in output.decode(), output.decode()
    guest.must("stillpoint pool create p /dev/bay/B1-generic --force /dev/bay/B1-generic")
    for options in ("--rw randwrite --bs 4k --verify", "--rw randread --bs 512", "--rw randread --bs 300k"):
        guest.must(f"stillpoint bench run nvme:/dev/bay/A1-generic {options} --iodepth 4 --runtime 400ms --size 64M")
    context.say("a mounted namespace is refused; bench reads and writes one by commands, of any length")
    appliance.stop()


MIB = 1 << 20
# Bytes of each LBA, and the longest transfer, by bay.
LIMITS = {"A1": (512, 128 << 10), "A2": (4096, 128 << 10), "B1": (4096, 32 << 10)}


def told(guest, bay):
    """What its controller was told of a namespace, as (opcode, first byte, bytes, bits), by the commands that are watched."""
    lba_bytes, _ = LIMITS[bay]
    disk = guest.must(f"basename $(readlink -f /dev/bay/{bay})").strip()
    found = commands.seen(guest)
    assert found and {command.disk for command in found} == {disk}, f"{bay} is {disk}: {found[:5]}"
    return [(one.opcode, one.first_block * lba_bytes, one.blocks * lba_bytes, one.control) for one in found]


def bench(guest, target, options, milliseconds=400):
    guest.must(f"stillpoint bench run {target} --iodepth 4 --runtime {milliseconds}ms {options}")


def zeros_by_commands(context, guest, bay):
    """Zeros within the MiB 4 to 10 of a namespace that is full of x; returns what of it became zeros, as {offset: bytes}."""
    lba_bytes, longest = LIMITS[bay]
    zeroed = {}
    for durable in (False, True):
        commands.watch(guest, commands.WRITE, commands.WRITE_ZEROES)
        options = f"--rw write --write-mode zeroes --bs 300k --offset 4M --size 6M --verify {'--writefua' * durable}"
        # Zeros are fast, and what the kernel shows of so many commands takes it longer to write than all the rest.
        bench(guest, f"nvme:/dev/bay/{bay}-generic", options, milliseconds=100)
        found = told(guest, bay)
        assert {opcode for opcode, *_ in found} == {commands.WRITE_ZEROES}, f"{bay}: zeros were sent"
        for _, first, length, control in found:
            assert 4 * MIB <= first < first + length <= 10 * MIB and length <= longest, f"{bay}: {length} bytes at {first}"
            # What is deallocated reads as zeros there, but it does not say that Write Zeroes can deallocate.
            assert control == (commands.FUA if durable else 0), f"{bay}: {control:#x}"
            zeroed[first] = length
    assert max(zeroed.values()) == longest, f"{bay}: none is as long as it may be"
    context.say(f"{bay}: {sum(zeroed.values()) >> 10} KiB of zeros by commands of at most {longest >> 10} KiB, with FUA and without")
    return zeroed


def durable_writes_by_commands(guest, bay):
    """Writes from MiB 12 on, with FUA and without; the bench compares what it reads."""
    for durable in (True, False):
        commands.watch(guest, commands.WRITE)
        options = f"--rw randrw --bs 64k --offset 12M --size 2M --verify {'--writefua' * durable}"
        bench(guest, f"nvme:/dev/bay/{bay}-generic", options)
        controls = {control for _, _, _, control in told(guest, bay)}
        assert controls == {commands.FUA if durable else 0}, f"{bay}: writes with {controls}"


def by_the_kernel(context, guest):
    """The same words for a block device, and what is wiped at both ends when a pool takes a device: the kernel sends the commands."""
    for mode in ("write", "zeroes"):
        commands.watch(guest, commands.WRITE, commands.WRITE_ZEROES)
        bench(guest, "/dev/bay/A1", f"--rw randwrite --write-mode {mode} --writefua --bs 16k --offset 12M --size 2M --verify")
        found = told(guest, "A1")
        # Zeros that have to be durable are sent.
        assert {(opcode, control) for opcode, _, _, control in found} == {(commands.WRITE, commands.FUA)}, found[:5]
    commands.watch(guest, commands.WRITE, commands.WRITE_ZEROES)
    bench(guest, "/dev/bay/A1", "--rw randwrite --write-mode zeroes --bs 16k --offset 12M --size 2M --verify")
    found = told(guest, "A1")
    assert {opcode for opcode, _, _, _ in found} == {commands.WRITE_ZEROES}, found[:5]
    guest.must("mkfs.ext4 -q -E nodiscard /dev/bay/A2")
    commands.watch(guest, commands.WRITE_ZEROES)
    appliance = InGuest(guest)
    appliance.start()
    guest.must("stillpoint pool create taken /dev/bay/A2 --force /dev/bay/A2 >/dev/null")
    ends = [(first, length) for _, first, length, _ in told(guest, "A2")]
    appliance.stop()
    longest = LIMITS["A2"][1]
    assert sorted(ends) == [(at, longest) for end in (0, 1023 * MIB) for at in range(end, end + MIB, longest)], ends
    context.say("RWF_DSYNC is FUA on a block device; a pool's device is wiped at both ends by Write Zeroes")


def zeros_and_durable_writes(context):
    machine = context.guest()
    for bay in LIMITS:
        with open(machine.directory / f"{bay}.img", "r+b") as image:
            image.write(b"x" * (16 * MIB))
    with machine as guest:
        zeroed = {bay: zeros_by_commands(context, guest, bay) for bay in LIMITS}
        for bay in LIMITS:
            durable_writes_by_commands(guest, bay)
        context.say("writes have FUA if they are to, and no other has; what was read is what was written")
        by_the_kernel(context, guest)
        guest.end()
        # What was told is what is there, and nothing beside it.
        for bay in ("A1", "B1"):
            with open(guest.directory / f"{bay}.img", "rb") as image:
                image.seek(2 * MIB)
                found = image.read(10 * MIB)
            expected = bytearray(b"x" * (10 * MIB))
            for first, length in zeroed[bay].items():
                expected[first - 2 * MIB : first - 2 * MIB + length] = bytes(length)
            assert found == expected, f"{bay}: other bytes are zeros than its controller was told"


TESTS = [
    passthrough_polled,
    passthrough_with_interrupts,
    what_has_no_commands_is_a_block_device,
    devices_tell_what_they_are,
    zeros_and_durable_writes,
]
