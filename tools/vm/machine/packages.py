"""Debian packages, downloaded and unpacked below `target/vm`, not installed.

Installing QEMU would replace the machine's qemu-utils by those of QEMU's version (or take them away), would need root,
and would leave a kernel package in /boot. Unpacked, nothing changes outside the tree and `cargo clean` removes it all.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from . import children

TREE = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("CARGO_TARGET_DIR", TREE / "target")) / "vm"
UNPACKED = CACHE / "unpacked"
KERNELS = CACHE / "kernels"

# What QEMU and the guest need, and the package it comes in. What the machine has already is taken from there.
PACKAGE_OF = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "kmod": "kmod",
    "nvme": "nvme-cli",
    "nbd-client": "nbd-client",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "zstd": "zstd",
}
BIN_DIRECTORIES = ("usr/bin", "usr/sbin", "bin", "sbin", "usr/libexec")
# A mirror that does not answer is asked again, ever later.
PATIENTLY = ("-o", "Acquire::Retries=6", "-o", "Acquire::http::Timeout=60", "-o", "Acquire::https::Timeout=60")
LIBRARY_DIRECTORIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")


class Unavailable(Exception):
    """Something that the packages of this machine do not offer; the text says what, and what to do."""


@contextlib.contextmanager
def locked(say):
    """While it is held nobody else, in this process or another, changes what is below `target/vm`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        turns = 0
        while True:
            try:
                # In turns, as a thread that waits in the kernel cannot be told to end.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                children.check()
                turns += 1
                if turns == 100:
                    say(f"waiting for another run, which prepares {CACHE}")
                time.sleep(0.05)
        yield


def output_of(command):
    """Standard output of a command as text; `Unavailable` with its last error lines if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


def library_path():
    """The unpacked libraries, for LD_LIBRARY_PATH."""
    return ":".join(str(UNPACKED / directory) for directory in LIBRARY_DIRECTORIES)


def environment():
    """The environment in which unpacked programs find their libraries."""
    return {**os.environ, "LD_LIBRARY_PATH": library_path()}


def find(program):
    """The path of a program: an unpacked one, else the machine's; None if neither is there."""
    for directory in BIN_DIRECTORIES:
        path = UNPACKED / directory / program
        if path.exists():
            return path
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return Path(path) if path else None


def refresh_lists():
    """`apt-get update`, as root; the one step that needs it, and only on a machine whose lists are empty or old. A mirror
    that does not answer is asked again."""
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    if as_root and not shutil.which("sudo"):
        raise Unavailable("the package lists are missing or too old; please run as root: apt-get update")
    output_of([*as_root, "apt-get", *PATIENTLY, "update", "-q"])


def with_fresh_lists(attempt):
    """What `attempt` returns. If something is `Unavailable`, as lists that are old name what is gone, they are refreshed
    and it is called again: it chooses by the lists and downloads what it chose."""
    try:
        return attempt()
    except Unavailable as error:
        try:
            refresh_lists()
        except Unavailable as why:
            raise Unavailable(f"{error}; {why}") from None
        return attempt()


def download(packages, into):
    """Downloads packages into a directory, which is new."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    command = ["apt-get", *PATIENTLY, "download", "-q", *packages]
    done = subprocess.run(command, cwd=into, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command)} failed: {done.stderr.strip()[-600:]}")


def closure(packages):
    """The packages that are missing on this machine for these ones to work, these included.

    Asks apt what it would install; what it would only upgrade is there and will do.
    """
    plan = output_of(["apt-get", "--simulate", "--no-install-recommends", "install", *packages])
    return re.findall(r"^Inst (\S+) \(", plan, re.MULTILINE)


def unpack(archives, into):
    """Unpacks packages into a directory that appears only when all of them are in it."""
    partial = into.with_name(into.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for archive in sorted(archives):
        partial.mkdir(parents=True, exist_ok=True)
        output_of(["dpkg-deb", "--extract", archive, partial])
    if into.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(into)


def prepare_programs(say):
    """Makes `find` succeed for every program of `PACKAGE_OF`."""
    missing = sorted({package for program, package in PACKAGE_OF.items() if find(program) is None})
    if not missing:
        return
    if UNPACKED.exists():
        shutil.rmtree(UNPACKED)
        missing = sorted({package for program, package in PACKAGE_OF.items() if find(program) is None})
    say(f"unpacking {' '.join(missing)}")
    archives = CACHE / "archives"
    with_fresh_lists(lambda: download(closure(missing), archives))
    unpack(archives.glob("*.deb"), UNPACKED)
    shutil.rmtree(archives)
    still = [program for program in PACKAGE_OF if find(program) is None]
    if still:
        raise Unavailable(f"packages {' '.join(missing)} hold no {', '.join(still)}; look at {UNPACKED}")


def version_key(release):
    """Kernel releases in the order of their versions: `6.12.117+deb12-cloud-amd64` is [6, 12, 117, 12]."""
    return [int(number) for number in re.findall(r"\d+", release.split("-cloud")[0])]


def matches(release, wanted):
    """Whether a kernel release is what was asked for: `newest`, a version as `6.12`, or the release itself."""
    return wanted == "newest" or release == wanted or version_key(release)[: wanted.count(".") + 1] == version_key(wanted)


def offered_kernels():
    """Releases of the kernels for virtual machines that the package lists offer."""
    names = output_of(["apt-cache", "search", "--names-only", r"^linux-image-[0-9].*-cloud-amd64$"])
    return re.findall(r"^linux-image-(\d+\.\d+\.\S+-cloud-amd64) ", names, re.MULTILINE)


def newest_kernel_offered():
    """The newest release of the package lists, or None."""
    return max(offered_kernels(), key=version_key, default=None)


def prepare_kernel(wanted, say):
    """Returns (release, directory) of the newest kernel that matches; downloads it unless one is there already."""
    here = [path.name for path in KERNELS.glob("*-cloud-amd64")] if KERNELS.exists() else []
    good_enough = (newest_kernel_offered() or wanted) if wanted == "newest" else wanted
    release = newest(here, good_enough)
    if release is None:
        archives = CACHE / "archives-kernel"
        release = with_fresh_lists(lambda: download_kernel(wanted, archives, say))
        unpack(archives.glob("*.deb"), KERNELS / release)
        shutil.rmtree(archives)
    return release, KERNELS / release


def newest(releases, wanted):
    """The newest release that is what was asked for, or None."""
    return max((release for release in releases if matches(release, wanted)), key=version_key, default=None)


def download_kernel(wanted, archives, say):
    """Downloads the newest kernel of the package lists that matches; returns its release. Raises Unavailable if the lists
    have none, or one that is gone."""
    offered = offered_kernels()
    if not offered:
        raise Unavailable("the package lists have no kernel for virtual machines (linux-image-...-cloud-amd64)")
    release = newest(offered, wanted)
    if release is None:
        raise Unavailable(f"no package has a kernel {wanted}; there are {', '.join(sorted(offered, key=version_key))}")
    say(f"unpacking kernel {release}")
    download([f"linux-image-{release}"], archives)
    return release
