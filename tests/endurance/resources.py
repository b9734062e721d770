"""What a server and its children hold: memory, descriptors, threads; from /proc."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
ALLOCATED = re.compile(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", re.M)


@dataclass(frozen=True, slots=True)
class Held:
    """At one moment.

    `memory` in bytes: what was allocated, of shared pages each process's part (Pss_Anon). Pages of
    files are left out: whoever else on the machine maps a library changes what it weighs here.
    """

    memory: int
    descriptors: int
    threads: int


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    with suppress(OSError):
        for task in (PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def held(pid: int) -> Held:
    """What a process and its children hold now."""
    memory = descriptors = threads = 0
    for member in family(pid):
        place = PROC / str(member)
        with suppress(OSError):  # it has just ended
            rollup = (place / "smaps_rollup").read_text()
            for kilobytes in ALLOCATED.findall(rollup):
                memory += int(kilobytes) * 1024
            descriptors += sum(1 for _ in (place / "fd").iterdir())
            threads += sum(1 for _ in (place / "task").iterdir())
    return Held(memory, descriptors, threads)


def cpu_seconds(pid: int) -> float:
    """What a process and its children have used of all cores so far."""
    ticks = 0
    for member in family(pid):
        with suppress(OSError):  # it has just ended
            fields = (PROC / str(member) / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def descriptors_return(pid: int, to: int, seconds: float = 10.0) -> int:
    """How many descriptors are open once they are down to `to`, or when the time is up."""
    end = time.monotonic() + seconds
    while (now := held(pid).descriptors) > to and time.monotonic() < end:
        time.sleep(0.05)
    return now


def slope(times: list[float], values: list[float]) -> float:
    """Change a second: the line with the least squares."""
    middle = sum(times) / len(times)
    mean = sum(values) / len(values)
    spread = sum((t - middle) ** 2 for t in times)
    return sum((t - middle) * (v - mean) for t, v in zip(times, values, strict=True)) / spread
