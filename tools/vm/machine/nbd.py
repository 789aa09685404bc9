"""A client for NBD on the host, with several requests in flight: what it was told survives the machine it talks to."""

import errno
import socket
import struct

READ, WRITE, DISCONNECT, FLUSH, TRIM = 0, 1, 2, 3, 4
FUA = 1
OPTION_GO = 7
REPLY_ACK, REPLY_INFO, REPLY_ERROR = 1, 3, 1 << 31
FIXED_NEWSTYLE_NO_ZEROES = 3


class Lost(Exception):
    """The connection is gone."""


class Refused(Exception):
    """A request, or the export, was refused; `number` is the errno."""

    def __init__(self, number, what):
        super().__init__(f"{what}: {errno.errorcode.get(number, number)}")
        self.number = number


class Client:
    """One connection to one export. Offsets and lengths in bytes. Raises Lost and Refused."""

    def __init__(self, address, export, seconds=60):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(seconds)
        try:
            self.socket.connect(address)
            if family == socket.AF_INET:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            self.socket.close()
            raise Lost(str(error)) from None
        self.lengths = {}
        self.next = 0
        self.go(export)

    def take(self, length):
        """Exactly so many bytes."""
        parts, left = [], length
        while left:
            try:
                part = self.socket.recv(min(left, 1 << 20))
            except socket.timeout:
                # A request that is never answered is what these tests look for: no other way to lose a connection.
                raise TimeoutError(f"no answer; {len(self.lengths)} requests wait") from None
            except OSError as error:
                raise Lost(str(error)) from None
            if not part:
                raise Lost("closed by the other side")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def give(self, data):
        try:
            self.socket.sendall(data)
        except socket.timeout:
            raise TimeoutError(f"nothing is read; {len(self.lengths)} requests wait") from None
        except OSError as error:
            raise Lost(str(error)) from None

    def go(self, export):
        """Chooses the export; keeps its size."""
        greeting = self.take(18)
        if greeting[:16] != b"NBDMAGICIHAVEOPT":
            raise Lost(f"not an NBD server: {greeting!r}")
        name = export.encode()
        option = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.give(struct.pack(">I", FIXED_NEWSTYLE_NO_ZEROES))
        self.give(b"IHAVEOPT" + struct.pack(">II", OPTION_GO, len(option)) + option)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            payload = self.take(length)
            if kind == REPLY_INFO and payload[:2] == b"\0\0":
                self.size_bytes = struct.unpack(">Q", payload[2:10])[0]
            elif kind == REPLY_ACK:
                return
            elif kind & REPLY_ERROR:
                raise Refused(errno.ENOENT, f"export {export}: {payload.decode(errors='replace')}")

    def send(self, kind, offset=0, length=0, data=b"", flags=0):
        """Sends a request; returns its handle."""
        self.next += 1
        self.lengths[self.next] = length if kind == READ else 0
        header = struct.pack(">IHHQQI", 0x25609513, flags, kind, self.next, offset, len(data) or length)
        self.give(header + data)
        return self.next

    def receive(self):
        """The next reply: (handle, errno or 0, data of a read)."""
        _, error, handle = struct.unpack(">IIQ", self.take(16))
        length = self.lengths.pop(handle)
        return handle, error, self.take(length) if length and not error else b""

    def ask(self, kind, what, **request):
        self.send(kind, **request)
        _, error, data = self.receive()
        if error:
            raise Refused(error, what)
        return data

    def read(self, offset, length):
        return self.ask(READ, f"read of {length} at {offset}", offset=offset, length=length)

    def write(self, offset, data, flags=0):
        self.ask(WRITE, f"write of {len(data)} at {offset}", offset=offset, data=data, flags=flags)

    def flush(self):
        self.ask(FLUSH, "flush")

    def close(self):
        self.socket.close()
