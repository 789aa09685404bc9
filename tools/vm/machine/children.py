"""Processes that do not outlive this one, and an end in order when it is told to end.

A process started by `start` is killed by the kernel when the thread that started it ends, so also by a SIGKILL here. On
SIGINT, SIGTERM and SIGHUP (`end_in_order`) the main thread gets an exception; where other threads wait for what those
processes do, `end_all` makes them all fail, and their `with` blocks remove their files.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import weakref

PR_SET_PDEATHSIG = 1
# Looked up here: between fork and exec, a lock that another thread held at the fork is never given back.
PRCTL = ctypes.CDLL(None).prctl
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

lock = threading.Lock()
live = weakref.WeakSet()
ending = threading.Event()


class Ending(Exception):
    """This run was told to end; nothing new is begun."""


def check():
    """Raises Ending if this run was told to end: for those who wait for something in turns."""
    if ending.is_set():
        raise Ending("this run was told to end")


def start(command, **options):
    """A process as by `subprocess.Popen`, which ends no later than the thread that starts it. Raises Ending."""
    parent = os.getpid()

    def die_with_parent():
        PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with lock:
        check()
        process = subprocess.Popen(command, preexec_fn=die_with_parent, **options)
        live.add(process)
    return process


def run(command, seconds, **options):
    """(exit status, standard output, standard error as text) of a command. Raises subprocess.TimeoutExpired, and Ending."""
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            process.kill()
            raise
    return process.returncode, out, err


def end_all():
    """Kills every process that is left; from now on `start` and `check` raise Ending."""
    with lock:
        ending.set()
        for process in live:
            process.kill()


def end_in_order():
    """Makes the signals an exception of the main thread, with the exit status of a shell; once, so that a second one does
    not disturb the end. One that is ignored (nohup) stays so."""

    def told(number, _):
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        sys.exit(128 + number)

    for one in SIGNALS:
        if signal.getsignal(one) != signal.SIG_IGN:
            signal.signal(one, told)
