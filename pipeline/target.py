"""What is taught: one label of several, several that hold, or a number.

A target's kind follows from its array's type, so data sets, tasks and metrics need no other word
for it: int64 `[rows]` is a class, bool `[rows, labels]` are tags, float `[rows]` is a number.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.bundle.manifest import check_labels
from pipeline.config import Section
from pipeline.dataset import SHOWN, DataError, RawData

Kind = Literal["class", "tags", "number"]
STRATA = 10
"""Parts of equal size, by their order, in which numbers are dealt."""

LEAST = 10
"""Rows of such a part at least: of fewer, a tenth to validate by would be none."""


class Target(Section):
    """The target of a prepared data set."""

    kind: Kind
    labels: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    """Training rows of each label."""
    units: str = ""
    mean: float = 0.0
    """Of the training rows, where it is a number."""
    std: float = 1.0


def kind_of(target: np.ndarray) -> Kind:
    """The kind that an array's type tells. Raises `DataError` for one that tells none."""
    shape = (target.dtype.kind, target.ndim)
    if shape in (("i", 1), ("u", 1)):
        return "class"
    if shape == ("b", 2):
        return "tags"
    if shape == ("f", 1):
        return "number"
    raise DataError(
        f"the target is {target.dtype.name} {list(target.shape)}; expected int64 [rows], a label's "
        "index; bool [rows, labels], which labels hold; or float32 [rows], a number"
    )


def describe(raw: RawData, train: np.ndarray) -> Target:
    """The target, its mean and deviation over the training rows."""
    kind = kind_of(raw.target)
    if kind != "number":
        rows = counts(raw.target[train], raw.labels)
        return Target(kind=kind, labels=raw.labels, rows=rows)
    taught = raw.target[train].astype(np.float64)
    return Target(
        kind=kind,
        units=raw.units,
        mean=float(f"{taught.mean():.9g}"),
        std=float(f"{taught.std() or 1.0:.9g}"),
    )


def stored(target: np.ndarray) -> np.ndarray:
    """The target in the one dtype of its kind: int64, bool or float32."""
    dtype = {"class": np.int64, "tags": np.bool_, "number": np.float32}[kind_of(target)]
    return target.astype(dtype)


def strata(target: np.ndarray) -> np.ndarray:
    """int64 `[rows]`: rows that are alike, to be dealt evenly over the splits."""
    kind = kind_of(target)
    if kind == "class":
        return target.astype(np.int64)
    if kind == "tags":
        return np.unique(target, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    order = np.argsort(np.argsort(target, kind="stable"), kind="stable")
    parts = max(1, min(STRATA, len(order) // LEAST))
    return order * parts // max(1, len(order))


def counts(target: np.ndarray, labels: tuple[str, ...]) -> tuple[int, ...]:
    """Rows of each label; none for numbers."""
    kind = kind_of(target)
    if kind == "number":
        return ()
    if kind == "tags":
        return tuple(target.sum(0).tolist())
    return tuple(np.bincount(target, minlength=len(labels)).tolist())


def told(raw: RawData, row: int | np.intp) -> str:
    """What a message says of a row's target."""
    kind, value = kind_of(raw.target), raw.target[row]
    if kind == "class":
        return raw.labels[value]
    if kind == "tags":
        return "+".join(np.array(raw.labels)[value]) or "none"
    return f"{value:g}"


def differ(target: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """bool `[pairs]`: whether rows that are identical contradict each other.

    Two numbers need not: a measurement may come out otherwise the next time.
    """
    if kind_of(target) == "number":
        return np.zeros(len(first), bool)
    unlike = target[first] != target[second]
    return unlike if unlike.ndim == 1 else unlike.any(1)


def check(raw: RawData) -> None:
    """Raise `DataError` for labels or numbers that cannot be taught."""
    if not len(raw.target):
        raise DataError("the data set has no rows")
    kind = kind_of(raw.target)
    if kind == "number":
        bad = np.flatnonzero(~np.isfinite(raw.target))
        _refuse(raw, bad, "targets that are no finite number; fill or remove these rows")
        return
    try:
        check_labels(raw.labels)
    except ValueError as error:
        raise DataError(str(error)) from None
    if kind == "tags" and raw.target.shape[1] != len(raw.labels):
        raise DataError(f"{raw.target.shape[1]} tags a row, but {len(raw.labels)} labels")
    if kind == "class":
        bad = np.flatnonzero((raw.target < 0) | (raw.target >= len(raw.labels)))
        _refuse(
            raw,
            bad,
            f"labels out of range, expected 0 to {len(raw.labels) - 1} "
            f"({len(raw.labels)} names are declared)",
        )
    check_present("whole", raw.target, raw.labels)


def check_present(part: str, target: np.ndarray, labels: tuple[str, ...]) -> None:
    """Raise `DataError` for labels that no row of a part has, and for a part without any row."""
    if not len(target) and not labels:
        raise DataError(
            f"there is no row for the {part} data; add rows, or change the split's shares"
        )
    empty = [label for label, rows in zip(labels, counts(target, labels), strict=True) if not rows]
    if labels and empty:
        raise DataError(
            f"classes without a row in the {part} data: {', '.join(empty[:SHOWN])}; add rows, "
            "take the label out, or change the split's shares"
        )


def _refuse(raw: RawData, bad: np.ndarray, what: str) -> None:
    if len(bad):
        shown = ", ".join(f"{raw.row(row)} has {raw.target[row]}" for row in bad[:SHOWN])
        raise DataError(f"{len(bad)} {what}: {shown}")
