"""The README's quick start on NVMe, word for word: its commands are read out of README.md and run, each in a shell of its
own, and what they print has to be what stands there."""

import re
import tempfile
from pathlib import Path

from machine import packages
from machine.appliance import assert_sound
from machine.devices import Controller, Namespace, make_image

from . import wait_for

SECTION = "Quick start on NVMe"
PROMPT = "# "
IMAGE_BYTES = 4 << 30
# The two controllers are looked for side by side: which of them is nvme0 is not known. So they differ in nothing else.
SERIALS = ("S4EMUL0R1", "S4EMUL0R2")
# What another machine, or another run, has otherwise. Everything else is a claim: names, states, whole numbers.
OWN = (
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"\b(?=\w*\d)[A-Z0-9]{8,}\b"), "SERIAL"),
    (re.compile(r"\b\d+(\.\d+)? (ns|µs|ms|s)\b"), "TIME"),
    (re.compile(r"^(used|free soon) +\d.*"), r"\1 SPACE"),
)


def console_blocks(text, section):
    """The console blocks of a section of a Markdown text, as lists of lines."""
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no section {section}"
    return [block.splitlines() for block in re.findall(r"^```console\n(.*?)^```$", found[1], re.MULTILINE | re.DOTALL)]


def commands_of(lines):
    """[(command, the lines below it)] of a console block."""
    commands = []
    for line in lines:
        if line.startswith(PROMPT):
            commands.append((line.removeprefix(PROMPT), []))
        else:
            assert commands, f"README.md: {line!r} comes before a command"
            commands[-1][1].append(line)
    return commands


def claims(lines):
    """What is claimed by lines of output: the words, without what every machine has of its own, and without empty lines."""
    told = []
    for line in lines:
        for pattern, name in OWN:
            line = pattern.sub(name, line)
        if line.strip():
            told.append(" ".join(line.split()))
    return told


def drives(directory):
    """Two controllers with a namespace each."""
    made = []
    for serial in SERIALS:
        image = Path(directory) / f"{serial}1.img"
        make_image(image, IMAGE_BYTES)
        made.append(Controller(serial, [Namespace(1, image)], subsystem=False))
    return made


def quick_start_of_the_readme(context):
    daemon, session = map(commands_of, console_blocks((packages.TREE / "README.md").read_text(), SECTION))
    assert len(daemon) == 1, f"more than the daemon in the first terminal: {daemon}"
    with tempfile.TemporaryDirectory(prefix="stillpoint-vm.") as directory:
        controllers = drives(directory)
        with context.guest(controllers=controllers, directory=directory) as guest:
            guest.must(f"{daemon[0][0]} >/run/daemon.log 2>&1 & echo $! >/run/daemon.pid")
            wait_for(lambda: guest.run("grep -q ready /run/daemon.log")[0] == 0, "the daemon is not ready")
            for command, told in session:
                printed = guest.must(command).splitlines()
                assert claims(printed) == claims(told), "\n".join(
                    [f"{command}: README.md says", *told, "and it printed", *printed]
                )
            guest.must(
                "umount /mnt/data /mnt/noon && e2fsck -fn /dev/nbd0 && nbd-client -d /dev/nbd0 && nbd-client -d /dev/nbd1 || exit 1;"
                "pid=$(cat /run/daemon.pid); kill $pid; while [ -e /proc/$pid ]; do usleep 50000; done"
            )
            guest.end()
        assert_sound(*(controller.namespaces[0].image for controller in controllers))
    context.say(f"{len(session)} commands on kernel {guest.release}, each printed what README.md says")


TESTS = [quick_start_of_the_readme]
