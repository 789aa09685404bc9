"""The daemon: in a guest, where the host reaches its exports, and on the host, to look at images."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from . import children, nbd
from .guest import NBD_PORT, stillpoint


class InGuest:
    """The daemon in a guest, with its usual directories."""

    def __init__(self, guest):
        self.guest = guest

    def start(self, options="", before=""):
        """Starts the daemon (by the command `before`) and waits until it answers; it opens the pools that were open before."""
        self.guest.must(
            f"""
            {before} stillpoint serve --processors 2 --buffer-memory 16MiB --nbd-tcp 0.0.0.0:{NBD_PORT} {options} \\
                >>/run/daemon.log 2>&1 &
            echo $! >/run/daemon.pid
            turns=0
            until stillpoint status >/dev/null 2>&1; do
                turns=$((turns + 1))
                [ $turns -gt 100 ] && {{ cat /run/daemon.log; exit 1; }}
                usleep 100000
            done
            """
        )

    def make(self, pool, devices, volume, size, options=""):
        """A pool on devices (words), with an exported volume."""
        self.guest.must(
            f"set -e; stillpoint pool create {pool} {devices} --shards 2 >/dev/null;"
            f"stillpoint volume create {volume} --pool {pool} --size {size} {options} >/dev/null;"
            f"stillpoint export create {volume} >/dev/null"
        )

    def client(self, export, seconds=60):
        """A connection from the host."""
        return nbd.Client(("127.0.0.1", self.guest.port), export, seconds)

    def stop(self):
        """Ends it in order."""
        self.guest.must("pid=$(cat /run/daemon.pid); kill $pid; while [ -e /proc/$pid ]; do usleep 50000; done")

    def kill(self):
        """kill -9: its log tail in memory stays."""
        self.guest.must("pid=$(cat /run/daemon.pid); kill -9 $pid; while [ -e /proc/$pid ]; do usleep 50000; done")

    def json(self, command):
        """What a command says, as data."""
        return json.loads(self.guest.must(f"stillpoint {command} --output json"))

    def events(self, kind):
        """What the daemon told of this kind, oldest first."""
        return [event for event in self.json("events --after 0")["events"] if event["kind"] == kind]

    def stopped(self, pool):
        """The shards of a pool that stopped writing."""
        shards = [shard for processor in self.json("status")["processors"] for shard in processor["shards"]]
        return [shard["shard"] for shard in shards if shard["pool"] == pool and shard["stopped"]]


def inspect(*images):
    """(exit status, text) of `stillpoint inspect --check` over images on the host: 0 says that nothing is damaged."""
    command = [stillpoint(), "inspect", "--check", "--tail-dir", "none", *images]
    status, out, err = children.run(command, 300)
    return status, out + err


def assert_sound(*images):
    """Raises AssertionError with what `inspect --check` says if it finds damage."""
    status, text = inspect(*images)
    assert status == 0, f"inspect --check of {', '.join(map(str, images))}: exit status {status}\n{text[-2000:]}"


class OnHost:
    """A daemon on the host that has opened a pool from images; use it with `with`."""

    def __init__(self, *images):
        self.images = images
        self.temporary = tempfile.TemporaryDirectory(prefix="stillpoint-vm.")
        self.directory = Path(self.temporary.name)
        self.process = None

    def __enter__(self):
        log = open(self.directory / "daemon.log", "wb")
        command = [stillpoint(), "serve", "--socket", self.directory / "control.sock", "--run-dir", self.directory]
        command += ["--state-dir", self.directory / "state", "--tail-dir", "none", "--processors", "1", "--no-pin"]
        command += ["--pool", ",".join(map(str, self.images))]
        with log:
            self.process = children.start(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait(self):
        """Until the pool is open; AssertionError with the daemon's log if it cannot be."""
        until = time.monotonic() + 60
        while True:
            status, out, _ = self.tell("pool", "list", "--output", "json")
            pools = json.loads(out) if status == 0 else []
            states = [pool["state"] for pool in pools]
            if states and "opening" not in states:
                assert states == ["open"], f"the pool does not open: {states}\n{self.log()}"
                return
            assert self.process.poll() is None and time.monotonic() < until, f"no pool opens\n{self.log()}"
            time.sleep(0.02)

    def tell(self, *words):
        """Runs a command of the command line; returns (exit status, standard output, standard error)."""
        environment = {**os.environ, "STILLPOINT_SOCKET": str(self.directory / "control.sock")}
        return children.run([stillpoint(), *words], 120, env=environment)

    def must(self, *words):
        status, out, err = self.tell(*words)
        assert status == 0, f"stillpoint {' '.join(words)}: {err}\n{self.log()}"
        return out

    def client(self, export):
        return nbd.Client(str(self.directory / "nbd.sock"), export)

    def log(self):
        return (self.directory / "daemon.log").read_text(errors="replace")[-3000:]

    def __exit__(self, *_):
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.temporary.cleanup()
