"""Ends what runs too long: one thread per process looks at everything that runs, every so often.

The event loop cannot interrupt a model that runs in it, and no thread can interrupt a call into
ONNX Runtime; but ONNX Runtime looks at a flag between two operators, and any thread can set that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Protocol

from serving.telemetry import log

LOOK_SECONDS = 0.05
"""Between two looks; what runs too long is told to stop this much later at the most."""
QUIET_LOOKS = 20
"""Looks that found nothing running, after which the thread sleeps until something does."""
STUCK_EXIT = 70


class Stoppable(Protocol):
    """What is told to stop: ONNX Runtime's `RunOptions`, or anything with that one attribute."""

    terminate: bool


class Watchdog:
    """Everything that runs with a deadline, and the thread that ends it.

    To begin is one entry in `running`, to end is to remove it: 0.2 microseconds, no lock. Each run
    brings a flag of its own, so that one told to stop just as it ended harms none that follows.
    `stuck_seconds` after its end a run that would not stop is `stuck`, and `on_stuck` is told, once:
    an operator cannot be interrupted, so its thread is lost, and only a new process mends that.
    """

    def __init__(self, on_stuck: Callable[[float], None] | None = None) -> None:
        self.running: dict[int, tuple[float, float, Stoppable]] = {}
        self._on_stuck = on_stuck or _exit
        self._told: set[int] = set()
        self._asleep = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def begin(self, ends: float, stuck_seconds: float, flag: Stoppable) -> int:
        """Watch from now on: `flag` is set at `ends`, in seconds of `time.monotonic`.

        Returns what `end` wants. `stuck_seconds` 0: however long it goes on, nobody is told.
        """
        key = id(flag)
        self.running[key] = (ends, stuck_seconds, flag)
        if self._asleep or self._thread is None:
            self._awake()
        return key

    def end(self, key: int) -> None:
        """Watch no more."""
        del self.running[key]

    def overdue(self, now: float) -> float:
        """Seconds since the run that should have ended first was told to; 0 if none was."""
        return max((now - ends for ends, _, _ in self.running.copy().values()), default=0.0)

    def _awake(self) -> None:
        self._wake.set()
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        quiet = 0
        while True:
            time.sleep(LOOK_SECONDS)
            quiet = 0 if self._look(time.monotonic()) else quiet + 1
            if quiet < QUIET_LOOKS:
                continue
            # In this order: what begins from now on sees that it must wake us.
            self._wake.clear()
            self._asleep = True
            if not self.running:
                self._wake.wait()
            self._asleep = False
            quiet = 0

    def _look(self, now: float) -> bool:
        """Stop what is late; whether anything runs."""
        running = self.running.copy()  # in one step: others write meanwhile
        for key, (ends, stuck_seconds, flag) in running.items():
            if now < ends:
                continue
            flag.terminate = True
            if stuck_seconds and now > ends + stuck_seconds and key not in self._told:
                self._told.add(key)
                self._on_stuck(now - ends)
        self._told &= running.keys()
        return bool(running)


def _exit(seconds: float) -> None:
    log(
        "error",
        "stopped: a model does not end",
        seconds_too_long=round(seconds, 1),
        advice="an operator cannot be interrupted; this process ends so that another can begin",
    )
    os._exit(STUCK_EXIT)


@cache
def watchdog() -> Watchdog:
    """This process's own."""
    return Watchdog()


os.register_at_fork(after_in_child=watchdog.cache_clear)  # a child has no thread of its parent's
