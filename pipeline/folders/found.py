"""The files that count, each with its label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import numpy as np

from pipeline.dataset import DataError, counted, listed
from pipeline.folders.source import LITTER, Source, natural


@dataclass(frozen=True)
class Kind:
    """Which files count, and what they are called."""

    noun: str
    suffixes: frozenset[str]

    def of(self, name: str) -> str:
        """The noun, 'hidden', 'litter', or the suffix of anything else."""
        if name.startswith("."):
            return "hidden"
        if name.lower() in LITTER:
            return "litter"
        suffix = PurePosixPath(name).suffix.lower()
        return self.noun if suffix in self.suffixes else suffix or "without a suffix"


@dataclass
class Found:
    """The files that count, by their place in the source, and what was passed over."""

    files: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    """'train', 'validation', 'test', or '' where nothing says."""
    classes: tuple[str, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)
    """How many files were passed over, by suffix or kind."""

    def passed_over(self) -> str:
        """`3 files ignored: 2 .txt, 1 hidden`, or nothing."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.ignored.most_common(5))
        return f"{counted(self.ignored.total(), 'file')} ignored: {kinds}" if kinds else ""

    def target(self) -> np.ndarray:
        """int64 `[rows]`: the number of each file's class."""
        numbers = {label: number for number, label in enumerate(self.classes)}
        return np.array([numbers[label] for label in self.labels], np.int64)

    def given(self, part: str, patterns: tuple[str, ...] = ()) -> np.ndarray | None:
        """bool `[rows]`: which files are a part by where they lie, or by their names.

        None where neither says. Raises `DataError` where both do, or a pattern fits no file.
        """
        if not patterns:
            return np.array(self.parts) == part if part in self.parts else None
        if part in self.parts:
            raise DataError(
                f"data.{part}_files: the data has a {part} set of its own; take one of them away"
            )
        idle = [p for p in patterns if not any(_fits(f, p) for f in self.files)]
        if idle:
            raise DataError(f"data.{part}_files: no file is called {', '.join(idle)}")
        return np.array([any(_fits(file, p) for p in patterns) for file in self.files])


def checked(found: Found, found_in: Source, mistakes: list[str]) -> Found:
    """The same with its classes. Raises `DataError` that lists what is wrong."""
    found.classes = tuple(sorted(set(found.labels), key=natural))
    if any(found.parts):
        mistakes = [*mistakes, *_one_sided(found)]
    if not mistakes and len(found.classes) < 2:
        mistakes = [f"one class only ({', '.join(found.classes)}); two are the least to tell"]
    if mistakes:
        note = f" ({found.passed_over()})" if found.ignored else ""
        raise listed(mistakes, f"{found_in.path}: mistakes in the folder{note}")
    return found


def _one_sided(found: Found) -> list[str]:
    """Classes that a given part lacks, and a split without anything to train on."""
    by_part: dict[str, set[str]] = {}
    for label, part in zip(found.labels, found.parts, strict=True):
        by_part.setdefault(part, set()).add(label)
    if "train" not in by_part:
        return [f"there is {' and '.join(sorted(by_part)) or 'nothing'}, but no train folder"]
    return [
        f"{label}: in {' and '.join(sorted(p for p in by_part if label in by_part[p]))} only, "
        f"not in {part}"
        for part in by_part
        for label in found.classes
        if label not in by_part[part]
    ]


def _fits(file: str, pattern: str) -> bool:
    """By the file's name, or by its whole path where the pattern has steps."""
    return fnmatchcase(file if "/" in pattern else PurePosixPath(file).name, pattern)
