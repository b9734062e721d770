"""What `slipway init FOLDER_OR_FILE` makes of data it is shown: one kind of data per file.

A file here offers `READS`, what it knows in a few words, and `propose(source, hints) -> Proposal | None`,
None where the data is of another kind.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.dataset import DataError


@dataclass(frozen=True)
class Proposal:
    """An experiment that works, and why it is as it is."""

    text: str
    """The sections as YAML, with comments."""
    chosen: tuple[str, ...]
    """What was seen and chosen, a line each."""
    warnings: tuple[str, ...] = ()
    """What should be mended before it is trained, a line each."""


@dataclass(frozen=True)
class Hints:
    """What a person says beside the data; none where the data shall tell."""

    target: str | None = None
    """The column to learn, or several, divided by commas."""
    task: str | None = None
    """A file of `pipeline/tasks`."""
    text: str | None = None
    """The column of texts."""


def propose(source: Path, hints: Hints | None = None) -> Proposal:
    """The experiment for the data at `source`.

    Raises `ConfigError` where no file here knows it, `DataError` where it is known and unusable.
    """
    if not source.exists():
        raise ConfigError(f"{source}: does not exist")
    kinds = [
        importlib.import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
    ]
    refused = None
    for kind in kinds:
        try:
            proposal = kind.propose(source, hints or Hints())
        except DataError as error:  # another kind may read what this one cannot
            refused = refused or error
            continue
        if isinstance(proposal, Proposal):
            return proposal
    if refused is not None:
        raise refused
    known = "; ".join(kind.READS for kind in kinds)
    raise ConfigError(f"{source}: nothing here that is known; expected one of: {known}")


def spread(files: Sequence[str], count: int) -> Sequence[str]:
    """So many of the files, evenly over the list."""
    return files[:: max(1, math.ceil(len(files) / count))]


def batch_size(rows: int, most: int) -> int:
    """A power of 2 that makes about twenty steps of a pass over the rows, from 8 to `most`."""
    return min(most, 2 ** int(math.log2(max(8, rows / 20))))


def quoted(value: object) -> str:
    """A text, or a list of them, as YAML has it."""
    return json.dumps(value, ensure_ascii=False)


def plain(value: object) -> str:
    """A number or a truth value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


CLASSIFIED = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error")
"""Metrics of an answer that is one of some classes."""


@dataclass(frozen=True)
class Learning:
    """How a proposed network learns. `told`, `clip` and `augment` are whole lines of YAML."""

    epochs: int
    batch: int
    augment: str
    lr: float = 0.003
    weight_decay: float = 0.05
    schedule: str = "one_cycle"
    warmup: float = 0.2
    keep: str = "last"
    told: str = ""
    clip: str = ""


def written(
    data: str,
    model: Mapping[str, object],
    task: str,
    learning: Learning,
    metrics: Sequence[str] = CLASSIFIED,
) -> str:
    """An experiment's sections; `data` and `task` are lines of YAML, the one with its heading."""
    return data + REST.format(
        model="".join(f"  {key}: {plain(value)}\n" for key, value in model.items()),
        task=task,
        metrics="".join(f"  - {name}\n" for name in metrics),
        **vars(learning),
    )


REST = """\
model:
{model}  init_from: data/new-weights
task:
{task}train:
  lr: {lr}
{told}  epochs: {epochs}
  batch_size: {batch}
  seed: 1
  threads: 1
  device: auto
  optimiser:
    name: adamw
    weight_decay: {weight_decay}
  schedule:
    name: {schedule}
    warmup: {warmup}
{clip}  augment:
{augment}  early_stopping:
    metric: loss
    patience: 0
    keep: {keep}
metrics:
{metrics}export:
  opset: 20
  golden_rows: 20
"""
