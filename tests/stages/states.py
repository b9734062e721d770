"""Pipeline states without a pipeline: the files that `dvc repro` would have left, in a second."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np

from pipeline.dataset import Encoded, RawData, Split
from pipeline.prepared import prepare
from stages.tracking import QUIET
from tests.serving.bundles import LABELS, digits_graph, digits_interface, make_bundle

ROOT = Path(__file__).parents[2]
EXPERIMENT = "digits-mlp"
EPOCHS = 3


class State:
    """A folder as it is before `track`, and ways to run things in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env: dict[str, str] = {}

    def become(self, seed: int) -> State:
        """The files that a pipeline with this seed would have left."""
        shutil.rmtree(self.folder / "bundles", ignore_errors=True)
        digest = make_bundle(
            self.folder / "bundles" / EXPERIMENT, digits_graph(seed), name=EXPERIMENT
        )
        reports = self.folder / "reports" / EXPERIMENT
        (reports / "pictures").mkdir(parents=True, exist_ok=True)
        (reports / "pictures" / "curves.svg").write_text(
            "<svg xmlns='http://www.w3.org/2000/svg'/>"
        )
        lines = [f"{e},0.00{e},{1 / (e + seed)},0.5" for e in range(1, EPOCHS + 1)]
        header = "epoch,lr,train_loss,validation_accuracy"
        (reports / "history.csv").write_text("\n".join([header, *lines]) + "\n")
        (reports / "metrics.json").write_text(json.dumps({"test": {"accuracy": 0.9 + seed / 100}}))
        parity = {"rows": 8, "max_abs_difference": {"logits": 1e-6}, "tolerance": {"logits": 1e-5}}
        (reports / "parity.json").write_text(json.dumps({"parity": parity}))
        self.measure(0.5, digest)
        (self.folder / "build" / EXPERIMENT / "weights.safetensors").write_bytes(bytes([seed]))
        self.lock(seed)
        return self

    def measure(self, milliseconds: float, digest: str | None = None) -> None:
        """What `benchmark` would have written."""
        report = {"bundles": [digest or self.digest], "latency": {"batch_1_p50_ms": milliseconds}}
        (self.folder / "reports" / EXPERIMENT / "latency.json").write_text(json.dumps(report))

    def lock(self, seed: int) -> None:
        """A `dvc.lock` as DVC writes it, another experiment's entries among ours."""
        lines = ["schema: '2.0'", "stages:"]
        for name in (EXPERIMENT, "other"):
            for stage in ("prepare", "train", "evaluate", "export", "verify", "benchmark"):
                md5 = hashlib.md5(f"{stage}{seed}".encode(), usedforsecurity=False).hexdigest()
                lines += [
                    f"  {stage}@{name}:",
                    f"    cmd: python -m stages.{stage} {name}",
                    "    deps:",
                    "    - path: pipeline/bundle/decode",
                    "      hash: md5",
                    f"      md5: {md5}.dir",
                    "    - path: data/builtin",
                    "      hash: md5",
                    f"      md5: {md5}",
                    f"      size: {seed}",
                    "    params:",
                    "      params.yaml:",
                    f"        experiments.{name}.train:",
                    "          lr: 0.002",
                    "    outs:",
                    f"    - path: build/{name}/{stage}",
                    "      hash: md5",
                    f"      md5: {md5}",
                    "      size: 3",
                ]
        (self.folder / "dvc.lock").write_text("\n".join(lines) + "\n")

    @property
    def digest(self) -> str:
        manifest = self.folder / "bundles" / EXPERIMENT / "manifest.json"
        return hashlib.sha256(manifest.read_bytes()).hexdigest()

    @property
    def lineage(self) -> dict[str, Any]:
        return json.loads((self.folder / "bundles" / f"{EXPERIMENT}.lineage.json").read_text())

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """`python ARGUMENTS` in the folder, with output kept."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment(**env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """The same, awaited."""
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def environment(self, **env: str) -> dict[str, str]:
        """This process's, without settings that would lead out of the folder."""
        ours = ("MLFLOW_", "DVC_", "SLIPWAY_T", "GIT_")
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(ours)}
        return kept | {"PYTHONPATH": str(ROOT)} | self.env | env

    def track(self, **env: str) -> subprocess.CompletedProcess[str]:
        """The track stage, in this process: waking MLflow each time takes longer than tracking."""
        from stages.projecting import command

        return self.here(command, EXPERIMENT, **env)

    def here(
        self, command: click.Command, *arguments: str, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """A command in this process, as if it were one of its own in the folder."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.dict(os.environ, QUIET | self.environment(**env), clear=True),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                command.main(list(arguments), standalone_mode=False)
            except SystemExit as left:
                code = int(left.code or 0)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def runs(self, *, deleted: bool = False) -> list[dict[str, Any]]:
        """Every run with its tags, read from the database itself, the earliest first."""
        return runs(self.folder / "mlflow.db", deleted=deleted)

    def points(self, run: str, metric: str) -> list[tuple[int, float]]:
        """A curve as (step, value)."""
        query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step"
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            return database.execute(query, (run, metric)).fetchall()


def new_state(folder: Path, seed: int = 1) -> State:
    """A folder with everything that `track` reads."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", folder)
    inputs, _ = digits_interface()
    target = np.arange(400) % 10
    pictures = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), np.uint8)
    raw = RawData(Encoded(inputs, {"image": pictures}), target.astype(np.int64), LABELS)
    prepare("digits", raw, Split(), folder / "build" / EXPERIMENT / "data")
    return State(folder).become(seed)


def runs(database: Path, *, deleted: bool = False) -> list[dict[str, Any]]:
    """Runs of an MLflow database with their tags; with `deleted`, those put away as well."""
    if not database.exists():
        return []
    stages = ("active", "deleted") if deleted else ("active", "active")
    with sqlite3.connect(database) as connection:
        found = connection.execute(
            "SELECT run_uuid, name, status, lifecycle_stage FROM runs "
            "WHERE lifecycle_stage IN (?, ?) ORDER BY start_time",
            stages,
        ).fetchall()
        return [
            {"id": run, "name": name, "status": status, "stage": stage}
            | dict(connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run,)))
            for run, name, status, stage in found
        ]
