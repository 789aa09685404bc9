"""The guest's root: archives in the format of the kernel (cpio "newc"), written one behind the other.

The kernel unpacks all of them over each other, so what seldom changes (tools, modules) is packed once and kept, and only
the program under test is packed again. Unpacking takes about a second for 100 MB in an emulated guest.
"""

import hashlib
import lzma
import os
import shutil
import stat
import subprocess
from pathlib import Path

from . import packages

GUEST = Path(__file__).resolve().parents[1] / "guest"
SEGMENTS = packages.CACHE / "segments"
TOOLS = ("busybox", "nvme", "kmod", "nbd-client", "mkfs.ext4", "e2fsck")
# Started by other names; kmod looks at the name it was started by.
OTHER_NAMES = {"kmod": ("modprobe", "insmod", "rmmod", "lsmod", "modinfo")}
MODULES = (
    "nvme nbd ext4 xfs crc32c_generic crc32c-intel virtio_pci virtio_net virtio_blk dm-mod dm-flakey dm-log-writes ublk_drv"
).split()


class Archive:
    """Files for the guest, as bytes of one cpio archive."""

    def __init__(self):
        self.parts = []
        self.directories = set()

    def add(self, path, mode, data=b""):
        """Adds an entry; `path` is absolute in the guest. Directories above it come before it."""
        self.make_directory(os.path.dirname(path))
        self.entry(path, mode, data)

    def make_directory(self, path):
        if path not in self.directories and path != "/":
            self.make_directory(os.path.dirname(path))
            self.directories.add(path)
            self.entry(path, stat.S_IFDIR | 0o755)

    def entry(self, path, mode, data=b""):
        name = path.lstrip("/").encode() + b"\0"
        fields = (len(self.parts) + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self.parts.append(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))

    def file(self, path, data, mode=0o644):
        self.add(path, stat.S_IFREG | mode, data)

    def link(self, path, to):
        self.add(path, stat.S_IFLNK | 0o777, to.encode())

    def to_bytes(self):
        self.entry("/TRAILER!!!", stat.S_IFREG)
        data = b"".join(self.parts)
        return data + bytes(-len(data) % 512)


def shared_libraries(program):
    """The libraries that a program is linked with, as {name in the guest: path here}."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, env=packages.environment())
    found = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if "=>" in words and words[-1] == "found":
            raise packages.Unavailable(f"{program} needs {words[0]}, which is not on this machine")
        path = words[2] if "=>" in words else words[0]
        if path.startswith("/"):
            # The loader stays where the program looks for it.
            at = path if "ld-linux" in path else "/lib/x86_64-linux-gnu/" + os.path.basename(path)
            found[at] = path
    return found


def without_symbols(path):
    """The bytes of a program or library without its debug symbols, which would only take time to load."""
    strip = shutil.which("strip")
    if strip is None:
        return Path(path).read_bytes()
    stripped = SEGMENTS / "stripped"
    done = subprocess.run([strip, "--strip-unneeded", "-o", stripped, path], capture_output=True)
    data = stripped.read_bytes() if done.returncode == 0 else Path(path).read_bytes()
    stripped.unlink(missing_ok=True)
    return data


def add_programs(archive, programs):
    """Adds programs ({name: path here}) to /usr/bin of the guest, with their libraries."""
    libraries = {}
    for name, path in programs.items():
        archive.file("/usr/bin/" + name, without_symbols(path), 0o755)
        libraries.update(shared_libraries(path))
    for at, path in sorted(libraries.items()):
        archive.file(at, without_symbols(os.path.realpath(path)), 0o755)


def cached(name, key, build):
    """The path of a segment that is built once for a key; older ones of that name are removed.

    The caller holds `packages.locked`, and keeps it until it has read the segment.
    """
    SEGMENTS.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = SEGMENTS / f"{name}.{digest}.cpio"
    if not path.exists():
        partial = SEGMENTS / "partial"
        partial.write_bytes(build())
        for old in SEGMENTS.glob(f"{name}.*.cpio"):
            old.unlink(missing_ok=True)
        partial.rename(path)
    return path


def identity(path):
    """What changes when a file is another one."""
    about = os.stat(path)
    return (str(path), about.st_size, about.st_mtime_ns)


def tools_segment():
    """The tools, busybox among them, and the program that the kernel starts."""
    programs = {tool: packages.find(tool) for tool in TOOLS}
    init = GUEST / "init"
    key = [Path(__file__).read_bytes(), init.read_bytes(), *map(identity, programs.values())]
    return cached("tools", key, lambda: pack_tools(programs, init))


def pack_tools(programs, init):
    archive = Archive()
    for directory in ("/proc", "/sys", "/dev", "/tmp", "/run", "/mnt", "/root", "/etc", "/usr/bin", "/usr/sbin", "/lib64"):
        archive.make_directory(directory)
    for name in ("bin", "sbin"):
        archive.link("/" + name, "usr/bin")
    own = set(programs)
    for names in OTHER_NAMES.values():
        own.update(names)
    for applet in sorted(set(packages.output_of([programs["busybox"], "--list"]).split()) - own):
        archive.link("/usr/bin/" + applet, "busybox")
    add_programs(archive, programs)
    for program, names in OTHER_NAMES.items():
        for name in names:
            archive.link("/usr/bin/" + name, program)
    archive.file("/etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
    archive.file("/etc/group", b"root:x:0:\n")
    archive.file("/etc/hosts", b"127.0.0.1 localhost\n")
    archive.file("/etc/mke2fs.conf", Path("/etc/mke2fs.conf").read_bytes() if os.path.exists("/etc/mke2fs.conf") else b"")
    archive.link("/etc/mtab", "/proc/mounts")
    archive.file("/init", init.read_bytes(), 0o755)
    return archive.to_bytes()


def modules_segment(release, kernel):
    """The modules of `MODULES`, what they depend on, and their index. What is built into the kernel is left out."""
    return cached(f"modules-{release}", [Path(__file__).read_bytes(), release], lambda: pack_modules(release, kernel))


def kmod(name, *arguments):
    command = [name, *map(str, arguments)]
    return subprocess.run(
        command, executable=packages.find("kmod"), capture_output=True, text=True, env=packages.environment()
    ).stdout


def pack_modules(release, kernel):
    kmod("depmod", "-b", kernel, release)
    paths = set()
    for module in MODULES:
        for line in kmod("modprobe", "-d", kernel, "-S", release, "--show-depends", module).splitlines():
            words = line.split()
            if words[0] == "insmod":
                paths.add(Path(words[1]))
    root = packages.CACHE / f"modules.{os.getpid()}"
    source = Path("lib/modules") / release
    try:
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            (root / source).mkdir(parents=True, exist_ok=True)
            shutil.copy(kernel / source / name, root / source / name)
        for path in paths:
            to = root / source / path.relative_to(kernel / source).with_suffix("")
            if path.suffix == ".ko":
                to = to.with_suffix(".ko")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(uncompressed(path))
        kmod("depmod", "-b", root, release)
        archive = Archive()
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            archive.file("/" + str(path.relative_to(root)), path.read_bytes())
        return archive.to_bytes()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def uncompressed(path):
    """A module's bytes, whether it is compressed or not."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run([packages.find("zstd"), "-dqc", path], stdout=subprocess.PIPE, check=True).stdout
    return data


def uncompressed_kernel(release, kernel):
    """The path of the kernel as an ELF file: it starts several seconds sooner than one that unpacks itself."""
    plain = kernel / "vmlinux"
    if plain.exists():
        return plain
    packed = (kernel / "boot" / f"vmlinuz-{release}").read_bytes()
    formats = (
        (b"\xfd7zXZ\x00", ["xz", "-dcq", "--single-stream"]),
        (b"\x28\xb5\x2f\xfd", ["zstd", "-dcq"]),
        (b"\x02\x21\x4c\x18", ["lz4", "-dcq"]),
    )
    for magic, command in formats:
        program = packages.find(command[0])
        at = packed.find(magic) if program else -1
        while at >= 0:
            # What follows the compressed part makes the program fail after it has written all of it.
            command[0] = program
            done = subprocess.run(command, input=packed[at:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if done.stdout[:4] == b"\x7fELF":
                partial = plain.with_suffix(".partial")
                partial.write_bytes(done.stdout)
                partial.rename(plain)
                return plain
            at = packed.find(magic, at + 1)
    return kernel / "boot" / f"vmlinuz-{release}"


def program_segment(programs):
    """The programs under test ({name: path here}), with their libraries."""
    key = [(name, *identity(path)) for name, path in programs.items()]
    return cached("program", key, lambda: pack_programs(programs))


def pack_programs(programs):
    archive = Archive()
    add_programs(archive, programs)
    return archive.to_bytes()


def assemble(to, segments, files):
    """Writes the initramfs of one boot: segments (paths), then `files` as {path in the guest: bytes, path here}."""
    archive = Archive()
    for at, content in files.items():
        if isinstance(content, bytes):
            archive.file(at, content)
        else:
            archive.file(at, Path(content).read_bytes(), 0o755 if os.access(content, os.X_OK) else 0o644)
    with open(to, "wb") as out:
        for segment in segments:
            with open(segment, "rb") as part:
                shutil.copyfileobj(part, out)
        out.write(archive.to_bytes())
