"""The commands that the guest's kernel hands to its NVMe controllers, those of programs among them, as its own event shows them.

QEMU's events do not show the bits beside opcode and range, and its controllers do not look at force unit access: what can be
seen is what the controller was told, and not what it made of it.
"""

import re
from dataclasses import dataclass

TRACING = "/sys/kernel/debug/tracing"
EVENT = f"{TRACING}/events/nvme/nvme_setup_cmd"
# Opcodes of input and output, and bits of the upper half of dword 12: NVM Command Set Specification 1.0, section 3.2.
FLUSH, WRITE, READ, WRITE_ZEROES = 0, 1, 2, 8
OPCODES = {"write": WRITE, "read": READ, "write_zeroes": WRITE_ZEROES, "flush": FLUSH}
FUA = 1 << 14
DEALLOCATE = 1 << 9
# How often, the kernel's name of the namespace, the opcode's name, the range.
LINE = re.compile(r"(\d+) (\w+) (\w+) (.*)")
RANGE = re.compile(r"slba=(\d+), len=(\d+), ctrl=0x([0-9a-f]+)")
# The line to the guest is slow: the same commands are counted there.
COUNT = (
    r"sed -n -e 's/, dsmgmt.*/)/' -e 's/.*: disk=\([a-z0-9]*\), qid=.*cmd=(nvme_cmd_\([a-z_]*\) \(.*\))$/\1 \2 \3/p' trace"
    " | sort | uniq -c"
)


@dataclass
class Command:
    """A command: the kernel's name of the namespace, the opcode, first block and number of blocks, and the bits."""

    disk: str
    opcode: int
    first_block: int = 0
    blocks: int = 0
    control: int = 0


def watch(guest, *opcodes):
    """Begins to keep commands with these opcodes; what was kept before is forgotten."""
    wanted = " || ".join(f"opcode == {opcode}" for opcode in opcodes)
    guest.must(
        f"cd {TRACING} && echo 0 >tracing_on && echo 16384 >buffer_size_kb && echo 'qid > 0 && ({wanted})' >{EVENT}/filter &&"
        f"echo 1 >{EVENT}/enable && echo >trace && echo 1 >tracing_on"
    )


def seen(guest):
    """The commands since `watch`, or since this was asked last, each as often as it was given; in no order."""
    text = guest.must(f"cd {TRACING} && echo 0 >tracing_on && {COUNT} && echo >trace && echo 1 >tracing_on")
    found = []
    for count, disk, name, words in LINE.findall(text):
        if name not in OPCODES:
            continue
        where = RANGE.match(words)
        if where is None:
            command = Command(disk, OPCODES[name])
        else:
            first, less_one, control = int(where[1]), int(where[2]), int(where[3], 16)
            command = Command(disk, OPCODES[name], first, less_one + 1, control)
        found += [command] * int(count)
    return found
