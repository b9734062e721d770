"""Cores and memory as a container's kernel files tell them, on trees made up for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from serving.system.host import fitting_workers, memory_kills, usable_cores, usable_memory

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
CGROUP_V1 = "4:memory:{path}\n3:cpu,cpuacct:{path}\n"
GIB = 1 << 30


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(root: Path, path: str, mounted: str, limits: Mapping[str, str]) -> Path:
    return tree(
        root,
        {
            "proc/self/cgroup": f"0::{path}\n",
            "proc/self/mountinfo": V2.format(root=mounted),
            **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()},
        },
    )


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("100000 0", 8),
    ],
)
def test_quota_of_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    root = version_2(tmp_path, "/", "/", {"cpu.max": quota + "\n"})
    assert usable_cores(root, affinity=8) == cores


def test_affinity_binds_too(tmp_path: Path) -> None:
    root = version_2(tmp_path, "/", "/", {"cpu.max": "400000 100000\n"})
    assert usable_cores(root, affinity=3) == 3


def test_the_limit_of_an_outer_group_binds(tmp_path: Path) -> None:
    limits = {
        "cpu.max": "max 100000",
        "pod/cpu.max": "200000 100000",
        "pod/app/cpu.max": "max 100000",
        "pod/memory.max": str(GIB),
        "pod/app/memory.max": "max",
    }
    root = version_2(tmp_path, "/pod/app", "/", limits)
    assert usable_cores(root, affinity=8) == 2
    assert usable_memory(root, installed=8 * GIB) == GIB


def test_version_1_in_a_container_that_reads_the_hosts_paths(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": CGROUP_V1.format(path="/docker/abc"),
            "proc/self/mountinfo": V1.format(root="/docker/abc"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        },
    )
    assert usable_cores(root, affinity=8) == 3
    assert usable_memory(root, installed=8 * GIB) == 2 * GIB


def test_version_1_without_limits(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": CGROUP_V1.format(path="/"),
            "proc/self/mountinfo": V1.format(root="/"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert usable_cores(root, affinity=8) == 8
    assert usable_memory(root, installed=8 * GIB) == 8 * GIB


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, affinity=5) == 5
    assert usable_memory(tmp_path, installed=GIB) == GIB
    assert memory_kills(tmp_path) == 0


def test_this_machine() -> None:
    assert usable_cores() >= 1
    assert usable_memory() > 64 << 20


def test_processes_killed_for_memory_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/vmstat": "nr_free_pages 7\noom_kill 3\noom_kill_other 9\n"})
    assert memory_kills(root) == 3


@pytest.mark.parametrize(
    ("cores", "threads", "memory", "workers"),
    [(8, 1, 64 * GIB, 8), (8, 3, 64 * GIB, 2), (2, 4, 64 * GIB, 1), (16, 1, GIB, 4), (4, 1, 0, 1)],
)
def test_workers_that_fit(cores: int, threads: int, memory: int, workers: int) -> None:
    assert fitting_workers(cores, threads, memory) == workers
