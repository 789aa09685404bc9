"""The tests in the machine, by name. Each takes a `Context`, and fails by an exception."""

import random
import time
from dataclasses import dataclass

from machine import children
from machine.guest import DEFAULT_KERNEL, Guest

HANG_SECONDS = 90


def wait_for(condition, what):
    """Waits until `condition` holds; raises AssertionError after so long that it never will."""
    until = time.monotonic() + HANG_SECONDS
    while not condition():
        children.check()
        assert time.monotonic() < until, f"{what}: not within {HANG_SECONDS} s"
        time.sleep(0.1)


@dataclass
class Context:
    """How tests are run: the long form or the short one, the seed, and where to say what was seen."""

    long: bool
    seed: int
    say: object
    kernel: str = DEFAULT_KERNEL

    def guest(self, **options):
        """A guest with the kernel of this run; see `Guest`."""
        return Guest(kernel=self.kernel, **options)

    def random(self, salt=0):
        return random.Random(self.seed * 1_000_003 + salt)
