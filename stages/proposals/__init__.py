"""What `slipway init FOLDER_OR_FILE` makes of data it is shown: one kind of data per file.

A file here offers `READS`, what it knows in a few words, and `propose(source, hints) -> Proposal | None`,
None where the data is of another kind.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from collections.abc import Sequence
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


def quoted(text: str) -> str:
    """A text as YAML has it."""
    return json.dumps(text, ensure_ascii=False)


def plain(value: object) -> str:
    """A number or a truth value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
