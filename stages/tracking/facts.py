"""Everything a run shall say about a pipeline state, gathered from files. Free of mlflow."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.bundle import manifest as bundles
from pipeline.bundle.manifest import Bundle
from stages.entry import StageError
from stages.layout import Layout
from stages.params import Experiment
from stages.tracking import state

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy", "slipway")
CODE = ("pipeline/", "stages/")
"""Where the modules lie that a stage depends on, folders of them too."""

# Constants of the comparison, and the test metrics over again: they would only crowd the charts.
UNINTERESTING = re.compile(r"parity\.(tolerance\..*|metrics_onnx\..*|rows)")


@dataclass(frozen=True)
class Facts:
    """A pipeline state as MLflow shall show it.

    `curves` holds one dict per epoch with the key `epoch`; `finals` and `latency` are the single
    numbers. `lineage` is what `lineage.json` says before the run is known.
    """

    experiment: str
    layout: Layout
    bundle: Bundle
    key: str
    train_key: str | None
    params: dict[str, str]
    tags: dict[str, str]
    curves: list[dict[str, float]]
    finals: dict[str, float]
    latency: dict[str, float]
    latency_digest: str
    lineage: dict[str, Any]

    @property
    def run_name(self) -> str:
        """Short and unlike others: with DVC's name for an experiment, else the key's start."""
        return f"{self.experiment}-{self.lineage['dvc']['experiment'] or self.key[:7]}"

    def tracked(self, server: str, run_id: str, model_id: str | None) -> Facts:
        """The same, its lineage naming the run."""
        mlflow = {"server": server, "run_id": run_id, "model_id": model_id}
        return replace(self, lineage=self.lineage | {"mlflow": mlflow})


def gather(experiment: Experiment, layout: Layout) -> Facts:
    """Read it all. Raises `BundleError` or `StageError` where the pipeline was not run whole."""
    stages = state.section(experiment.name)
    bundle = bundles.read(layout.bundle)
    lineage = _lineage(experiment, layout, bundle, stages)
    return Facts(
        experiment=experiment.name,
        layout=layout,
        bundle=bundle,
        key=lineage["pipeline_key"],
        train_key=lineage["train_key"],
        params=flat_params(experiment.resolved()),
        tags=_tags(experiment, bundle, lineage),
        curves=curves(layout.history),
        finals=finals(json_of(layout.metrics), json_of(layout.parity)),
        latency={
            name if name.startswith("latency.") else f"latency.{name}": value
            for name, value in numbers(json_of(layout.latency))
        },
        latency_digest=digest_of(layout.latency) or "",
        lineage=lineage,
    )


def _lineage(
    experiment: Experiment, layout: Layout, bundle: Bundle, stages: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Where a bundle comes from, as `lineage.json` says it before the run is known."""
    data, train = _data_and_train_key(experiment, layout)
    return {
        "experiment": experiment.name,
        "bundle": bundle.digest,
        "onnx_sha256": bundle.manifest.files[bundle.manifest.variants["fp32"].file].sha256,
        "weights_sha256": digest_of(layout.weights),
        "data_sha256": data,
        "pipeline_key": state.pipeline_key(stages),
        "train_key": train,
        "git": git_state(),
        "dvc": {
            "experiment": os.environ.get("DVC_EXP_NAME") or None,
            "data_md5": {
                path: md5
                for path, md5 in state.files(stages["prepare"], "deps").items()
                if not path.startswith(CODE)
            },
        },
        "mlflow": None,
    }


def _data_and_train_key(experiment: Experiment, layout: Layout) -> tuple[str | None, str | None]:
    """Digest of the prepared data, and the key of the training; none where files are not here.

    DVC need not bring intermediate files into a fresh clone.
    """
    from pipeline import prepared

    if not (layout.data / prepared.MANIFEST).is_file():
        return None, None
    data = prepared.digest(prepared.read_manifest(layout.data))
    if experiment.start.path is None or experiment.start.path.is_file():
        return data, experiment.train_key(data)
    return data, None


def _tags(experiment: Experiment, bundle: Bundle, lineage: Mapping[str, Any]) -> dict[str, str]:
    """The lineage as tags of a run, those that are known; threads and versions beside it."""
    git = lineage["git"]
    tags = {
        "experiment": experiment.name,
        "pipeline.key": lineage["pipeline_key"],
        "train.key": lineage["train_key"],
        "bundle": lineage["bundle"],
        "onnx.sha256": lineage["onnx_sha256"],
        "data.sha256": lineage["data_sha256"],
        "weights.sha256": lineage["weights_sha256"],
        "git.commit": git and git["commit"],
        "git.dirty": git and str(git["dirty"]).lower(),
        "dvc.experiment": lineage["dvc"]["experiment"],
        "threads": str(experiment.train.threads),
    }
    tags |= {f"version.{name}": version for name, version in versions(bundle).items()}
    return {name: value for name, value in tags.items() if value}


def finals(metrics: Mapping[str, Any], parity: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers of both reports, and the ends of each interval."""
    found = metrics.get("intervals")
    intervals = found if isinstance(found, Mapping) else {}
    ends = {
        f"interval.{name}.{end}": float(value)
        for name, interval in intervals.items()
        for end, value in zip(("low", "high"), interval, strict=True)
    }
    return dict(numbers({**metrics, **parity})) | ends


def flat_params(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`train.lr` -> '0.001'; lists as JSON. MLflow keeps 6000 characters of a value."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{key}"] = text[:6000]
    return flat


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a report by its dotted name. Truth values, texts and lists are no metrics."""
    for key, value in values.items():
        # MLflow's names hold letters, digits, spaces and _ - . / :
        name = re.sub(r"[^\w\-. /:]", "_", f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not (
            isinstance(value, bool) or UNINTERESTING.fullmatch(name)
        ):
            yield name, float(value)


def curves(path: Path) -> list[dict[str, float]]:
    """The learning curves, a line per epoch; a cell that holds nothing is left out."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        try:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        except (ValueError, TypeError, csv.Error) as error:
            raise StageError(f"{path}: not as `train` writes it: {error}") from None


def json_of(path: Path) -> dict[str, Any]:
    """A JSON report, empty where there is none. Raises `StageError` where it is none."""
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_bytes())
    except ValueError as error:
        raise StageError(f"{path}: not JSON: {error}; delete it and run `dvc repro`") from None
    if not isinstance(report, dict):
        raise StageError(f"{path}: expected a JSON object; delete it and run `dvc repro`")
    return report


def digest_of(path: Path) -> str | None:
    """SHA-256 of a file, none where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(bundle: Bundle) -> dict[str, str]:
    """Of the tools: what the bundle was made with, else what is installed here."""
    found = dict(bundle.manifest.versions)
    for name in PACKAGES:
        if name not in found:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it, or none outside git.

    What the pipeline itself writes does not count: after each new result `dvc.lock` and the
    reports differ from the commit whose code and settings gave it.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "HEAD")
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}
