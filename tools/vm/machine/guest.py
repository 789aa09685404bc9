"""A guest: QEMU started, commands run in it, its end. QEMU ends with this process, however that ends."""

import base64
import contextlib
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from . import children, devices, initramfs, packages

DEFAULT_KERNEL = "6.12"
BOOT_SECONDS = 90
# What a boot may take, from the start of QEMU to that of the first command.
BOOT_SECONDS_MAX = 20
NBD_PORT = 10809
# What the kernel would do at every boot, and nothing here asks for: its ciphers for keys, certificates of modules, types for
# BPF. Names that a kernel does not have are ignored.
NOT_BEGUN = "init_encrypted,jent_mod_init,crypto_kdf108_init,load_system_certificate_list,bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init"
# norandmaps: QEMU translates a program again if it lies at another address than the last time. io_timeout: now and then QEMU does not
# fetch a command (4 of 112 runs of `inspect` met that); the kernel sends it again after two such times, which are 30 s by default.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic mitigations=off no_timer_check tsc=reliable random.trust_cpu=on "
    f"norandmaps cryptomgr.notests lsm=capability initcall_blacklist={NOT_BEGUN} "
    "rdinit=/init nvme.poll_queues=1 nvme_core.multipath=N nvme_core.io_timeout=10"
)


# How long the boots of this process took, in seconds.
boots = []


class GuestDied(Exception):
    """QEMU ended, or the guest did, before the command; the text has the end of the console."""


class TimedOut(Exception):
    """A command, or the boot, took longer than it may; the text has the end of the console."""


def stillpoint():
    """The program under test: $STILLPOINT, or the one that was built last."""
    return Path(os.environ.get("STILLPOINT") or packages.CACHE.parent / "debug" / "stillpoint")


class Qmp:
    """A connection to QEMU's monitor."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rw")
        self.events = []
        json.loads(self.file.readline())
        self.command("qmp_capabilities")

    def read(self):
        line = self.file.readline()
        if not line:
            raise GuestDied("QEMU closed its monitor")
        return json.loads(line)

    def command(self, name, **arguments):
        """Runs a command; returns what it returns, or raises RuntimeError with QEMU's words."""
        self.file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = self.read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait_for(self, event, **data):
        """Waits until an event with this data was seen."""

        def wanted(seen):
            return seen["event"] == event and data.items() <= seen.get("data", {}).items()

        while not any(wanted(seen) for seen in self.events):
            answer = self.read()
            if "event" in answer:
                self.events.append(answer)

    def close(self):
        self.file.close()
        self.socket.close()


class Guest:
    """A guest that runs until the `with` block ends.

    kernel: what `packages.matches` takes. controllers: of `devices`; None for the default ones in `directory`.
    files: {path in the guest: bytes, or path here}. programs: paths here, put into PATH with their libraries, beside
    stillpoint. directory: where sockets and images lie; a temporary one if None. port: on 127.0.0.1, leads to the guest's
    port for NBD; a free one if None, see `port`.
    """

    def __init__(self, kernel=DEFAULT_KERNEL, memory_mib=1024, cpus=2, controllers=None, files=None, programs=(),
                 qemu=(), kernel_arguments="", directory=None, port=None, qmp=None, image_bytes=devices.IMAGE_BYTES,
                 say=lambda text: None):
        self.temporary = None
        if directory is None:
            self.temporary = tempfile.TemporaryDirectory(prefix="stillpoint-vm.")
            directory = self.temporary.name
        self.directory = Path(directory)
        self.kernel, self.memory_mib, self.cpus = kernel, memory_mib, cpus
        self.controllers = controllers
        if controllers is None:
            self.controllers = devices.default_controllers(self.directory, image_bytes)
        self.files, self.programs, self.extra, self.kernel_arguments = files or {}, programs, qemu, kernel_arguments
        self.host_port = port
        self.qmp_path = Path(qmp) if qmp else self.directory / "qmp.sock"
        self.say = say
        self.process = None
        self.line = None
        self.buffer = b""
        self.boot_seconds = None

    def __enter__(self):
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.end()
        finally:
            self.close()

    def boot(self):
        """Starts QEMU and waits until the guest takes commands."""
        initrd = self.directory / "initramfs"
        with packages.locked(self.say):
            kernel = self.assemble(initrd)
        began = time.monotonic()
        self.start_qemu(kernel, initrd)
        self.line = self.connect(self.directory / "line.sock")
        self.read_until(b"machine ready\n", time.monotonic() + BOOT_SECONDS, None)
        self.boot_seconds = time.monotonic() - began
        boots.append(self.boot_seconds)

    def assemble(self, initrd):
        """Writes the root of this boot, and makes what is missing for it; returns the kernel's path."""
        packages.prepare_programs(self.say)
        release, kernel = packages.prepare_kernel(self.kernel, self.say)
        self.release = release
        files = {"/etc/machine/bays": " ".join(devices.bays(self.controllers)).encode(), **self.files}
        segments = [
            initramfs.tools_segment(),
            initramfs.modules_segment(release, kernel),
            initramfs.program_segment({"stillpoint": stillpoint(), **{path.name: path for path in self.programs}}),
        ]
        initramfs.assemble(initrd, segments, files)
        return initramfs.uncompressed_kernel(release, kernel)

    def command_line(self, kernel, initrd):
        data = packages.UNPACKED / "usr/share"
        command = [packages.find("qemu-system-x86_64")]
        if data.exists():
            command += ["-L", data / "qemu", "-L", data / "seabios"]
        # QEMU 7.2 spoils the flags after cmpxchg16b, and kernels that use it panic.
        cpu = "max,la57=off,cx16=off"
        # A thread for each processor takes a fifth more of the host's time.
        command += ["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", cpu, "-smp", str(self.cpus)]
        command += ["-m", str(self.memory_mib), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-kernel", kernel, "-initrd", initrd, "-append", f"{KERNEL_ARGUMENTS} {self.kernel_arguments}".strip()]
        command += ["-chardev", f"file,id=console,path={self.directory}/console.log", "-serial", "chardev:console"]
        line = f"socket,id=line,path={self.directory}/line.sock,server=on,wait=on"
        command += ["-chardev", line, "-serial", "chardev:line"]
        command += ["-qmp", f"unix:{self.qmp_path},server=on,wait=off"]
        # Port 0: the host's kernel chooses one that is free.
        forward = f"hostfwd=tcp:127.0.0.1:{self.host_port or 0}-:{NBD_PORT}"
        command += ["-netdev", f"user,id=net,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
        return [str(word) for word in [*command, *devices.arguments(self.controllers), *self.extra]]

    def start_qemu(self, kernel, initrd):
        log = open(self.directory / "qemu.log", "wb")
        with log:
            self.process = children.start(
                self.command_line(kernel, initrd), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=packages.environment(),
            )

    def connect(self, path):
        """Connects to a socket of QEMU, which may not be there yet."""
        until = time.monotonic() + 30
        while True:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(path))
                return line
            except OSError:
                line.close()
                if self.process.poll() is not None:
                    raise GuestDied(f"QEMU did not start: {self.log()}") from None
                if time.monotonic() > until:
                    raise TimedOut(f"QEMU did not open {path}: {self.log()}") from None
                time.sleep(0.02)

    def log(self):
        """What QEMU said, and the end of the guest's console."""
        text = ""
        for name in ("qemu.log", "console.log"):
            with contextlib.suppress(OSError):
                lines = (self.directory / name).read_text(errors="replace").splitlines()
                text += "\n".join(["", f"-- {name}", *lines[-25:]])
        return text

    def read_until(self, end, deadline, sink):
        """Reads up to `end`; what is before it goes to `sink` as it comes, or is returned."""
        kept = b""
        while True:
            at = self.buffer.find(end)
            if at >= 0:
                before, self.buffer = self.buffer[:at], self.buffer[at + len(end):]
            else:
                # The last bytes may be the first ones of the end.
                held = next((n for n in range(len(end) - 1, 0, -1) if self.buffer.endswith(end[:n])), 0)
                cut = len(self.buffer) - held
                before, self.buffer = self.buffer[:cut], self.buffer[cut:]
            if sink is None:
                kept += before
            elif before:
                sink(before)
            if at >= 0:
                return kept
            self.line.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.line.recv(65536)
            except socket.timeout:
                raise TimedOut(f"no end in time{self.log()}") from None
            except OSError as error:
                raise GuestDied(f"{error}{self.log()}") from None
            if not data:
                raise GuestDied(f"the guest ended by itself{self.log()}")
            self.buffer += data

    def run(self, script, seconds=120, sink=None):
        """Runs a shell script in the guest; returns (exit status, output), or gives the output to `sink` as it comes.

        Raises TimedOut after `seconds`, and GuestDied.
        """
        mark = secrets.token_hex(8)
        deadline = time.monotonic() + seconds
        encoded = base64.b64encode(script.encode()).decode()
        self.line.settimeout(seconds)
        try:
            self.line.sendall(f"{mark} {encoded}\n".encode())
        except OSError as error:
            raise GuestDied(f"{error}{self.log()}") from None
        output = self.read_until(f"\n{mark} ".encode(), deadline, sink)
        status = self.read_until(b"\n", deadline, None)
        return int(status), output

    def must(self, script, seconds=120):
        """Runs a script; returns its output as text; raises AssertionError with the output if it fails."""
        status, output = self.run(script, seconds)
        text = output.decode(errors="replace")
        assert status == 0, f"exit status {status} of: {script.strip()}\n{text}"
        return text

    @property
    def port(self):
        """The port of 127.0.0.1 here that leads to the guest's port for NBD; asked of QEMU's monitor if none was given."""
        if self.host_port is None:
            qmp = self.qmp()
            text = qmp.command("human-monitor-command", **{"command-line": "info usernet"})
            qmp.close()
            found = re.search(rf"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{NBD_PORT}\s", text)
            assert found, f"QEMU leads no port to the guest's {NBD_PORT}: {text}"
            self.host_port = int(found[1])
        return self.host_port

    def qmp(self):
        """A new connection to the monitor; QEMU has one at a time."""
        return Qmp(self.qmp_path)

    def end(self):
        """Ends the guest in order: everything is written to the images."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.line.sendall(b"end\n")
            self.process.wait(30)

    def kill(self):
        """Cuts the power: QEMU is killed where it stands."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self):
        """Ends whatever is left, and removes the temporary directory."""
        self.kill()
        if self.line is not None:
            self.line.close()
        if self.temporary is not None:
            self.temporary.cleanup()
            self.temporary = None


def script_of(command):
    """A command of one word is a script, one of several is run as it is."""
    return command[0] if len(command) == 1 else shlex.join(command)
