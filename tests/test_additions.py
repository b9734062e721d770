"""A data set, a model, a task and a metric that the project has not, written from docs/adding.md alone.

They lie in `tests/additions`. In a copy of the project each is put where the page says, and nothing else
is changed; the page's count of their lines is theirs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADDITIONS = Path(__file__).parent / "additions"
PLACES = {
    "wine": "pipeline/data/wine.py",
    "mixer": "pipeline/models/mixer.py",
    "ordinal": "pipeline/tasks/ordinal.py",
    "top_2_accuracy": "pipeline/metrics.py",
}
TRAIN = {"lr": 0.005, "epochs": 2, "batch_size": 32, "seed": 1}
EXPERIMENTS = {
    "wines": {
        "data": {"name": "wine", "path": "data/builtin"},
        "model": {"name": "mlp", "width": 16},
        "task": {"name": "classification"},
        "train": TRAIN,
        "metrics": ["top_2_accuracy"],
        "export": {"opset": 20},
    },
    "ordered": {
        "data": {"name": "digits", "path": "data/builtin"},
        "model": {"name": "mixer", "patch": 4, "width": 8, "depth": 1},
        "task": {"name": "ordinal"},
        "train": TRAIN,
        "metrics": ["accuracy", "top_2_accuracy"],
        "export": {"opset": 20},
    },
}
STAGES = """
from importlib import import_module
for experiment, stages in (
    ("wines", ("prepare",)), ("ordered", ("prepare", "train", "evaluate", "export", "verify"))
):
    for stage in stages:
        import_module(f"stages.{stage}").command([experiment], standalone_mode=False)
"""


def added(name: str) -> str:
    """What was written for it."""
    (path,) = ADDITIONS.glob(f"{name}.*")
    return path.read_text()


def test_the_page_counts_their_lines() -> None:
    page = (ROOT / "docs" / "adding.md").read_text()
    told = {
        name: (int(lines), place)
        for name, lines, place in re.findall(
            r"^\| [^|]*`(\w+)` \| (\d+) \| `(.*?)` \|$", page, re.M
        )
    }
    counted = {name: (len(added(name).splitlines()), place) for name, place in PLACES.items()}
    assert told == counted


@pytest.mark.slow
def test_each_is_one_file_and_works(tmp_path: Path) -> None:
    for folder in ("pipeline", "stages", "serving"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave)
    for name, place in PLACES.items():
        path = tmp_path / place
        before = f"{path.read_text()}\n\n" if path.exists() else ""
        path.write_text(before + added(name))
    (tmp_path / "params.yaml").write_text(json.dumps({"experiments": EXPERIMENTS}))
    done = subprocess.run(
        [sys.executable, "-c", STAGES],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "SLIPWAY_TRACKING": "off"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepared wine: " in done.stdout and "bundles/ordered is bundle" in done.stdout
    report = json.loads((tmp_path / "reports" / "ordered" / "metrics.json").read_text())["test"]
    assert 1 >= report["top_2_accuracy"] >= report["accuracy"] > 0
