"""What was written to a volume and what was acknowledged of it, block by block, and a load that keeps it.

Each write of a block has a number, and its content follows from block and number: what is found says which write it is
of. At most one write of a block is under way, so the numbers found tell what was lost:

| found | is |
|---|---|
| less than what was durable (a flush ended that began after the write was acknowledged, or FUA) | lost, always |
| less than what was acknowledged | lost, unless the power was cut |
| more than what was sent, another block's, anything else | damage |
"""

import hashlib
import struct
import threading

from . import nbd

BLOCK_BYTES = 4096
READ_BLOCKS = 64


def content(block, number):
    """What write `number` puts into a block: zeros for none."""
    if number == 0:
        return bytes(BLOCK_BYTES)
    head = struct.pack("<QQ", block, number)
    return (head + hashlib.blake2b(head, digest_size=48).digest()) * (BLOCK_BYTES // 64)


class Ledger:
    """The numbers of a volume of so many blocks."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.sent = [0] * blocks
        self.acknowledged = [0] * blocks
        self.durable = [0] * blocks

    def found(self, client):
        """The numbers that a volume or a snapshot shows; None for a block that holds no write of its own."""
        numbers = []
        for first in range(0, self.blocks, READ_BLOCKS):
            count = min(READ_BLOCKS, self.blocks - first)
            data = client.read(first * BLOCK_BYTES, count * BLOCK_BYTES)
            for index in range(count):
                piece = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
                number = struct.unpack_from("<QQ", piece)[1]
                numbers.append(number if piece == content(first + index, number) else None)
        return numbers

    def compare(self, client, least):
        """Raises AssertionError unless each block shows a write no older than `least` has it; returns what it shows."""
        numbers = self.found(client)
        wrong = [
            f"block {block}: at least {least[block]}, at most {self.sent[block]}, found {number}"
            for block, number in enumerate(numbers)
            if number is None or not least[block] <= number <= self.sent[block]
        ]
        assert not wrong, f"{len(wrong)} blocks are lost or damaged: {'; '.join(wrong[:5])}"
        return numbers

    def after_power_cut(self, client):
        """Compares with what was durable; what is found is the truth from now on."""
        self.acknowledged = self.compare(client, self.durable)
        self.durable = list(self.acknowledged)

    def alive(self, client):
        """Compares with what was acknowledged."""
        self.compare(client, self.acknowledged)


class Load:
    """Writes and flushes with several requests in flight; what fails is kept in `errors` as (errno, kind).

    on_durable is called after each flush or FUA write that was answered, with the ledger up to date. rest_seconds: between
    requests, where a load is to be under way for long and others want the processors.
    """

    def __init__(self, client, ledger, random, depth=8, flush_every=24, fua_every=0, on_durable=lambda: None,
                 rest_seconds=0):
        self.client, self.ledger, self.random = client, ledger, random
        self.rest_seconds = rest_seconds
        self.depth, self.flush_every, self.fua_every, self.on_durable = depth, flush_every, fua_every, on_durable
        self.under_way = {}
        self.busy = set()
        self.errors = []
        self.writes = self.flushes = 0
        self.sent = 0
        self.stopping = threading.Event()
        self.thread = None
        self.failure = None

    def send(self):
        self.sent += 1
        ledger = self.ledger
        if self.sent % self.flush_every == 0:
            handle = self.client.send(nbd.FLUSH)
            self.under_way[handle] = (nbd.FLUSH, None, list(ledger.acknowledged), False)
            return
        block = self.random.randrange(ledger.blocks)
        while block in self.busy:
            block = self.random.randrange(ledger.blocks)
        fua = bool(self.fua_every) and self.sent % self.fua_every == 0
        ledger.sent[block] += 1
        self.busy.add(block)
        data = content(block, ledger.sent[block])
        handle = self.client.send(nbd.WRITE, block * BLOCK_BYTES, data=data, flags=nbd.FUA if fua else 0)
        self.under_way[handle] = (nbd.WRITE, block, ledger.sent[block], fua)

    def receive(self):
        handle, error, _ = self.client.receive()
        kind, block, value, fua = self.under_way.pop(handle)
        self.busy.discard(block)
        if error:
            self.errors.append((error, kind))
        elif kind == nbd.FLUSH:
            self.flushes += 1
            self.ledger.durable = [max(pair) for pair in zip(self.ledger.durable, value)]
            self.on_durable()
        else:
            self.writes += 1
            self.ledger.acknowledged[block] = value
            if fua:
                self.ledger.durable[block] = value
                self.on_durable()

    def run(self, requests):
        """Sends so many requests and waits for all answers."""
        goal = self.sent + requests
        while self.sent < goal or self.under_way:
            while self.sent < goal and len(self.under_way) < self.depth:
                self.send()
            self.receive()

    def forever(self):
        try:
            while not self.stopping.is_set():
                while len(self.under_way) < self.depth:
                    self.send()
                self.receive()
                if self.rest_seconds:
                    self.stopping.wait(self.rest_seconds)
            self.run(0)
        except nbd.Lost:
            pass
        except BaseException as error:
            self.failure = error

    def start(self):
        """Runs in a thread until `stop`, or until the connection is lost."""
        self.stopping.clear()
        self.thread = threading.Thread(target=self.forever, daemon=True)
        self.thread.start()

    def stop(self):
        """Waits for all answers; raises what went wrong in the thread: TimeoutError if an answer never came."""
        self.stopping.set()
        self.thread.join()
        if self.failure is not None:
            raise self.failure
