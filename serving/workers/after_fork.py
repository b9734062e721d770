"""What a fresh worker does to itself first: it dies with its supervisor, and dies tellingly."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any

from serving.workers.scoreboard import Row

FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def settle(parent: int, worker: int, row: Row, handled: Iterable[int]) -> None:
    """Make a forked process a worker. Called with the signals in `handled` blocked.

    Before anything is imported: a library's threads inherit what is blocked, and all have to.
    """
    _die_with(parent)
    _name(f"slipway-{worker}")
    signal.set_wakeup_fd(-1)
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to every process
    faulthandler.enable()  # for the stacks of a worker that is aborted because it is stuck
    signal.pthread_sigmask(signal.SIG_BLOCK, FAULTS)
    threading.Thread(target=_await_sent, args=(row,), daemon=True, name="signals").start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)


def _await_sent(row: Row) -> None:
    """Die of a deadly signal that somebody sent, noting that it was so.

    The kernel delivers a fault although it is blocked, and there the process ends. What can be
    waited for was sent by `kill`, and no model is to blame for it.
    """
    row.signalled(signal.sigwait(FAULTS))
    os.kill(os.getpid(), signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the supervisor ends, however it ends.

    Not SIGTERM: a stuck worker would keep the port, and the next server could not start. Where
    there is no such call (on a Mac), the worker leaves when its channel closes.
    """
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _name(name: str) -> None:
    """What `top` and `ps -o comm` show."""
    _prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def _prctl(option: int, value: Any) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
