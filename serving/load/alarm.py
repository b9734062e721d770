"""Being called at a moment, to some ten microseconds: event loops' timers know only milliseconds."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable

CLOCK_MONOTONIC = 1
ABSOLUTE = 1


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


class Alarm:
    """Calls `ring` at a time of `time.perf_counter`, set anew each time; the last one set counts.

    A timer descriptor on Linux, whose clock is `perf_counter`'s; the loop's own timer elsewhere.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._descriptor = -1
        self._handle: asyncio.TimerHandle | None = None
        if sys.platform == "linux":
            self._system = ctypes.CDLL(None, use_errno=True)
            flags = os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = self._system.timerfd_create(CLOCK_MONOTONIC, flags)
        if self._descriptor >= 0:
            loop.add_reader(self._descriptor, self._rang)

    def set(self, at: float) -> None:
        """Ring at that time, at once where it has passed."""
        if self._descriptor >= 0:
            at = max(at, 1e-9)  # zero would mean never
            when = _Timer(_Time(0, 0), _Time(int(at), int(at % 1 * 1e9)))
            self._system.timerfd_settime(self._descriptor, ABSOLUTE, ctypes.byref(when), None)
            return
        if self._handle:
            self._handle.cancel()
        self._handle = self._loop.call_later(max(0.0, at - time.perf_counter()), self._ring)

    def close(self) -> None:
        """Ring no more."""
        if self._handle:
            self._handle.cancel()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _rang(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:  # set anew between ringing and being heard
            return
        self._ring()
