"""QEMU's record of what was written to a disk (blklogwrites), and what a power cut may leave of it.

The record is a superblock and entries, each of a sector with where, how much and what kind, then its data (the layout is
that of Linux's dm-log-writes, version 1). A disk with a volatile cache keeps everything up to the last flush that it
answered, and of what came after that any part: `leave` makes such a disk.
"""

import errno
import os
import struct
from dataclasses import dataclass

MAGIC = 0x6A736677736872
VERSION = 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
ZEROS = bytes(1 << 20)


@dataclass
class Entry:
    """A request as it reached the disk: offset and length in bytes, and where its data lies in the record."""

    offset: int
    length: int
    flags: int
    data_at: int

    def is_flush(self):
        return bool(self.flags & FLUSH)


def entry_count(path):
    """The entries that are in a record by now."""
    with open(path, "rb") as record:
        head = record.read(24)
    if len(head) < 24:
        return 0
    magic, version, count = struct.unpack("<QQQ", head)
    assert (magic, version) == (MAGIC, VERSION), f"{path} is no record: {magic:#x}, version {version}"
    return count


def entries(path):
    """All entries of a record, in order."""
    found = []
    with open(path, "rb") as record:
        _, _, count, sector = struct.unpack("<QQQI", record.read(28))
        at = sector
        for _ in range(count):
            record.seek(at)
            where, sectors, flags, mark_bytes = struct.unpack("<QQQQ", record.read(32))
            at += sector
            found.append(Entry(where * sector, sectors * sector, flags, at))
            if flags & MARK:
                at += (mark_bytes + sector - 1) // sector * sector
            elif not flags & DISCARD:
                at += sectors * sector
    return found


class Replay:
    """A disk as it was before the record began, brought forward entry by entry."""

    def __init__(self, record, disk):
        self.entries = entries(record)
        self.record = open(record, "rb")
        self.disk = open(disk, "r+b")
        self.done = 0

    def close(self):
        self.record.close()
        self.disk.close()

    def forward(self, count):
        """Carries out everything up to entry `count`."""
        for index in range(self.done, count):
            self.carry_out(self.entries[index], self.disk)
        self.done = max(self.done, count)
        self.disk.flush()

    def carry_out(self, entry, disk, keep=None):
        """One entry, or of its pieces of `keep[0]` bytes those for which `keep[1]()` holds."""
        if entry.flags & MARK or not entry.length:
            return
        piece, chosen = keep or (entry.length, lambda: True)
        for start in range(0, entry.length, piece):
            length = min(piece, entry.length - start)
            if chosen():
                self.write(entry, disk, start, length)

    def write(self, entry, disk, start, length):
        disk.seek(entry.offset + start)
        if entry.flags & DISCARD:
            for at in range(0, length, len(ZEROS)):
                disk.write(ZEROS[: min(len(ZEROS), length - at)])
        else:
            self.record.seek(entry.data_at + start)
            disk.write(self.record.read(length))

    def leave(self, upto, image, random):
        """Adds to `image`, a copy of the disk, some of what came after it up to entry `upto`, in pieces: whole requests,
        blocks or sectors, each kept or lost."""
        piece = random.choice((None, 4096, 512))
        share = random.random()
        with open(image, "r+b") as disk:
            for entry in self.entries[self.done:upto]:
                self.carry_out(entry, disk, (piece or max(entry.length, 1), lambda: random.random() < share))


def last_flush(found, upto):
    """The number of entries up to and with the last flush before entry `upto`."""
    return next((index + 1 for index in range(upto - 1, -1, -1) if found[index].is_flush()), 0)


def copy_sparse(source, target):
    """Copies a file, leaving out its holes. Raises OSError, also if the file becomes shorter meanwhile."""
    with open(source, "rb") as have, open(target, "wb") as want:
        size = os.fstat(have.fileno()).st_size
        want.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(have.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            end = os.lseek(have.fileno(), at, os.SEEK_HOLE)
            while at < end:
                copied = os.copy_file_range(have.fileno(), want.fileno(), end - at, at, at)
                if copied == 0:
                    raise OSError(errno.EIO, f"nothing to copy at {at} of {size} bytes", str(source))
                at += copied
