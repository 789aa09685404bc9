"""The tests in the machine, by name. Each takes a `Context`, and fails by an exception."""

import random
from dataclasses import dataclass

from machine.guest import DEFAULT_KERNEL, Guest


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
