"""What this process may use of the machine: cores and memory, as the kernel limits them.

A container sees the whole machine in `/proc`; what it was given stands in its control group
(version 1 or 2) and its CPU affinity. All functions read files below a root, so that tests can
bring their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
WORKER_BYTES = 256 << 20
"""Memory that is set aside for one worker: the interpreter, ONNX Runtime, a model of some size."""


@dataclass(frozen=True)
class Mount:
    """One hierarchy of control groups: the folder of ours, and the folder it is mounted at."""

    version: int
    folder: Path
    top: Path

    def levels(self) -> Iterator[Path]:
        """Our group's folder and those around it: a limit of any of them binds."""
        folder = self.folder
        while True:
            yield folder
            if folder == self.top or self.top not in folder.parents:
                return
            folder = folder.parent


def usable_cores(root: Path = ROOT, affinity: int | None = None) -> int:
    """Whole cores this process may keep busy, at least one: affinity, then the group's quota."""
    cores = affinity if affinity is not None else _affinity()
    for mount in _mounts(root, "cpu"):
        for folder in mount.levels():
            quota = _quota(folder, mount.version)
            if quota is not None:
                cores = min(cores, int(quota))
    return max(1, cores)


def usable_memory(root: Path = ROOT, installed: int | None = None) -> int:
    """Bytes this process may have: what is installed, or the group's limit where that is less."""
    memory = installed if installed is not None else _installed()
    for mount in _mounts(root, "memory"):
        for folder in mount.levels():
            name = "memory.max" if mount.version == 2 else "memory.limit_in_bytes"
            text = _text(folder / name)
            if text.isdigit():  # 'max' is no limit; version 1 writes a number beyond any memory
                memory = min(memory, int(text))
    return memory


def fitting_workers(cores: int, threads: int, memory: int) -> int:
    """How many workers of that many threads each keep the cores busy and fit into memory."""
    return max(1, min(cores // threads, memory // WORKER_BYTES))


def memory_kills(root: Path = ROOT) -> int:
    """How many processes were killed for want of memory so far; 0 where nobody counts."""
    for line in _text(root / "proc/vmstat").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isdigit():
            return int(count)
    return 0


def _mounts(root: Path, controller: str) -> list[Mount]:
    """The hierarchies that can limit `controller`, with the place of our group in each."""
    groups: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            groups[name] = path  # '' is version 2
    found = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" and "" in groups:
            version, path = 2, groups[""]
        elif kind[0] == "cgroup" and controller in kind[2].split(",") and controller in groups:
            version, path = 1, groups[controller]
        else:
            continue
        top = root / fields[4].lstrip("/")
        found.append(Mount(version, _within(path, fields[3], top), top))
    return found


def _within(path: str, mounted: str, top: Path) -> Path:
    """The folder of group `path` where `mounted`, a group itself, is what is mounted at `top`.

    A container without a namespace of its own reads the host's path, and sees only its own group.
    """
    if mounted != "/" and (path == mounted or path.startswith(mounted + "/")):
        path = path[len(mounted) :]
    folder = top / path.strip("/")
    return folder if folder.is_dir() else top


def _quota(folder: Path, version: int) -> float | None:
    """Cores' worth of time the group may use, none where it may use all."""
    if version == 2:
        quota, _, period = _text(folder / "cpu.max").partition(" ")
    else:
        quota = _text(folder / "cpu.cfs_quota_us")
        period = _text(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return None  # 'max', -1, or no such file: no limit
    return int(quota) / int(period)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # no such thing as affinity on a Mac


def _installed() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
