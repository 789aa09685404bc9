"""The kernel's own NBD client: a file system on a volume, on a snapshot that was taken while files were written, on a clone."""

from dataclasses import dataclass

from machine import packages
from machine.appliance import InGuest, assert_sound

# Numbered files, each written and synced before its number is noted where the power of this machine does not reach.
WRITER = """
number=0
while [ ! -e /run/writer.stop ]; do
    number=$((number + 1))
    yes "content of $number" | head -c $((number % 7 * 3000 + 1000)) >/run/content
    dd if=/run/content of=/mnt/file$number bs=64k conv=fsync 2>/dev/null || exit 1
    echo $number >/run/writer.done.new && mv /run/writer.done.new /run/writer.done
done
touch /run/writer.ended
"""
# Fails unless files 1 to $2 of directory $1 have their content.
VERIFIER = """
number=0
while [ $number -lt $2 ]; do
    number=$((number + 1))
    yes "content of $number" | head -c $((number % 7 * 3000 + 1000)) | cmp -s - $1/file$number || {
        echo "file$number of $2 in $1 is wrong"; ls -l $1/file$number; exit 1; }
done
"""
# A processor of an emulated machine may not get its turn for long.
SNAPSHOT = "stillpoint snapshot create --hold-limit 2s"
FILES = {"/root/writer": WRITER.encode(), "/root/verifier": VERIFIER.encode()}


@dataclass
class FileSystem:
    """How one is made, checked, and how a frozen snapshot of it is checked and mounted on a device that cannot be written."""

    name: str
    make: str
    check: str
    check_frozen: str
    mount_frozen: str
    volume: str


EXT4 = FileSystem("ext4", "mkfs.ext4 -q", "e2fsck -fn", "e2fsck -fn", "ro", "256MiB")
# A freeze leaves all data and metadata in place, but a log that wants to be replayed; the check complains of that, and a device
# that cannot be written does not allow it. The clone shows that it can be.
XFS = FileSystem("xfs", "mkfs.xfs -q", "xfs_repair -n", "true", "ro,norecovery", "512MiB")


class Mounts:
    """Exports on the kernel's block devices."""

    def __init__(self, guest):
        self.guest = guest
        guest.must("modprobe nbd nbds_max=8; mkdir -p /mnt /mnt2")

    def attach(self, device, export, how="-unix /run/stillpoint/nbd.sock"):
        self.guest.must(f"nbd-client {how} {device} -N {export} -C 2 -b 4096 >/dev/null && blockdev --getsize64 {device}")

    def detach(self, device):
        self.guest.must(f"nbd-client -d {device}")


def snapshots_under_writes(guest):
    """Starts the writer, and takes a frozen and a live snapshot; returns how many files were synced before each."""
    guest.must("sh /root/writer >/run/writer.log 2>&1 &")
    done = "cat /run/writer.done 2>/dev/null || echo 0"
    guest.must(f"until [ $({done}) -ge 20 ]; do usleep 20000; done", 60)
    # Frozen, the file system is whole on the volume: nothing is left to replay.
    frozen = guest.must(
        f"""
        set -e
        before=$({done})
        fsfreeze --freeze /mnt
        {SNAPSHOT} data@frozen >/dev/null
        fsfreeze --unfreeze /mnt
        echo $before
        """
    )
    guest.must(f"until [ $({done}) -ge {int(frozen) + 20} ]; do usleep 20000; done", 60)
    live = guest.must(f"set -e; before=$({done}); {SNAPSHOT} data@live >/dev/null; echo $before")
    guest.must(f"until [ $({done}) -ge {int(live) + 10} ]; do usleep 20000; done", 60)
    last = guest.must(f"touch /run/writer.stop; until [ -e /run/writer.ended ]; do usleep 20000; done; {done}", 60)
    return int(frozen), int(live), int(last)


def file_system(context, guest, kind):
    """mkfs, mount, write, snapshots meanwhile, unmount, fsck; then the snapshots."""
    mounts = Mounts(guest)
    mounts.attach("/dev/nbd0", "data")
    guest.must(f"{kind.make} /dev/nbd0 && mount -t {kind.name} /dev/nbd0 /mnt")
    frozen, live, last = snapshots_under_writes(guest)
    assert 20 <= frozen < live < last
    guest.must(f"sh /root/verifier /mnt {last} && umount /mnt && {kind.check} /dev/nbd0")
    mounts.detach("/dev/nbd0")

    # The frozen one is mounted as it is: on a device that cannot be written the kernel refuses one with a journal to replay.
    guest.must("stillpoint export create data@frozen >/dev/null")
    mounts.attach("/dev/nbd1", "data@frozen", "127.0.0.1 10809")
    assert guest.must("blockdev --getro /dev/nbd1").strip() == "1", "a snapshot is offered for writing"
    assert guest.run("dd if=/dev/zero of=/dev/nbd1 bs=4096 count=1 conv=fsync")[0] != 0, "a snapshot was written"
    mounted = f"mount -t {kind.name} -o {kind.mount_frozen} /dev/nbd1 /mnt"
    guest.must(f"{kind.check_frozen} /dev/nbd1 && {mounted} && sh /root/verifier /mnt {frozen} && umount /mnt")
    mounts.detach("/dev/nbd1")

    # The live one is what a power cut would have left: a clone of it replays the journal, and has all that was synced.
    guest.must("stillpoint volume clone data@live again >/dev/null && stillpoint export create again >/dev/null")
    mounts.attach("/dev/nbd2", "again")
    guest.must(
        f"mount -t {kind.name} /dev/nbd2 /mnt && sh /root/verifier /mnt {live} && umount /mnt && {kind.check} /dev/nbd2"
    )
    mounts.detach("/dev/nbd2")
    context.say(f"{last} files; {frozen} in the frozen snapshot, {live} in the live one; all clean")


def over_the_kernel_client(context, kind, programs=()):
    with context.guest(files=FILES, programs=programs) as guest:
        appliance = InGuest(guest)
        appliance.start()
        appliance.make("tank", "/dev/bay/A1 /dev/bay/B1", "data", kind.volume)
        file_system(context, guest, kind)
        appliance.stop()
        guest.must("stillpoint inspect --check /dev/bay/A1 /dev/bay/B1")
        guest.end()
        assert_sound(guest.directory / "A1.img", guest.directory / "B1.img")


def ext4_over_the_kernel_client(context):
    over_the_kernel_client(context, EXT4)


def xfs_over_the_kernel_client(context):
    over_the_kernel_client(context, XFS, [packages.find(program) for program in ("mkfs.xfs", "xfs_repair")])


TESTS = [ext4_over_the_kernel_client]
LONG_TESTS = [xfs_over_the_kernel_client]
