"""Which tests a worker of pytest-xdist runs, and in which order: hooks, told to pytest by conftest.py.

Whole files go to each worker, since a file's tests share what they set up (`--dist loadfile`).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

HERE = Path(__file__).parent
LONGEST = (
    "stages/test_repro.py",
    "test_plugins.py",
    "stages/test_tracking.py",
    "endurance",
    "serving/test_faults.py",
    "test_docs.py",
    "stages/test_proposals.py",
    "test_additions.py",
    "pipeline/test_train.py",
)
"""Files that take long, the longest first, and folders of them."""

TOGETHER = {
    "MLflow, awake once, and its server": (
        "stages/test_tracking.py",
        "stages/test_regist",
        "stages/test_ui.py",
    ),
    "torch's exporter, made ready once": (
        "test_plugins.py",
        "test_sound_journey.py",
        "test_text_journey.py",
        "pipeline/test_export.py",
        "pipeline/test_generators.py",
        "pipeline/test_log_mel.py",
        "pipeline/test_recurrent.py",
    ),
    "one load at a time": ("endurance/", "serving/test_faults.py"),
}
"""Files, by how their paths begin, that one worker runs one after the other."""


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """`-n auto` means one worker more than cores: a third of the time tests wait for a server."""
    count = yield
    return count if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") else count + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Files of `TOGETHER` are dealt as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    class TogetherScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            path = file.removeprefix(f"{HERE.name}/")
            return next((name for name, some in TOGETHER.items() if path.startswith(some)), file)

    return TogetherScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with slow tests: nobody waits at the end for one."""
    rank = {HERE / name: place for place, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> int:
        found = rank.get(item.path, rank.get(item.path.parent))
        return len(rank) + (item.path not in slow) if found is None else found

    items.sort(key=place)
