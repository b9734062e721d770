"""A table in one file, with a column to learn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.decode._row import GAPS
from pipeline.columns import SUFFIXES, Column, Table, read
from pipeline.config import ConfigError, suggestion
from pipeline.data import table as tables
from pipeline.dataset import DataError, counted
from stages.proposals import (
    CLASSIFIED,
    Hints,
    Learning,
    Proposal,
    batch_size,
    quoted,
    written,
)

READS = f"a table with a column to learn ({', '.join(SUFFIXES)})"
SECONDS = 240.0
"""What a proposed training may take on one thread; a slower machine than ours has a minute to spare."""

SECONDS_PER_ROW = 2.2e-5
"""Of an MLP of `WEIGHTS` weights in batches of `BATCH`, scored after each pass: seen on a server core of
2023, California housing."""

WEIGHTS = 75_000

BATCH = 256
WIDTH = 256
EPOCHS = 60
LIKELY = ("target", "label", "class", "y", "outcome", "response", "price", "value", "survived")
"""Names of targets, beside the last column's."""

MAX_WORDS = 8
"""Mean words of a column's texts from which the table is one of texts."""


@dataclass(frozen=True)
class Chosen:
    """The target, and why."""

    target: tuple[str, ...]
    teaches: str
    why: str


def propose(source: Path, hints: Hints) -> Proposal | None:
    """Target, columns, network and passes for the file. Raises `DataError` where it is unusable."""
    if not source.is_file() or not source.name.lower().endswith(SUFFIXES):
        return None
    table = read(source, GAPS)
    if hints.text is not None or _texts(table):
        return None
    _check_header(table)
    chosen = _choose(table, hints)
    settings: dict[str, Any] = {
        "name": "table",
        "path": str(source),
        "target": chosen.target if chosen.teaches == "tags" else chosen.target[0],
        "teaches": "auto" if chosen.teaches == "tags" else chosen.teaches,
    }
    config = tables.Config(**settings)
    found = tables.sort_out(table, config)
    target, labels = tables.taught(table, config)
    found = _without_leaks(table, found, target)
    tables.check_cells(table, found)
    rows = len(target)
    share = _share(target, labels, chosen, table)
    train = round(rows * (1 - 2 * share))
    width = WIDTH if train > 2000 else 64
    epochs, seconds = _passes(train, width * (_places(found, config) + width))
    minutes = max(1, math.ceil(seconds / 60))
    task = {"class": "classification", "number": "regression"}.get(chosen.teaches, "multilabel")
    data = _data(source, chosen, found, share)
    model = {
        "name": "mlp",
        "depth": 2,
        "width": width,
        "activation": "relu",
        "batch_norm": False,
        "dropout": 0.1 if train > 2000 else 0.2,
        "initialisation": "default",
    }
    learning = Learning(
        epochs,
        batch_size(train, BATCH),
        augment=_augment(found),
        lr=0.002,
        weight_decay=0.02,
        schedule="cosine",
        warmup=0.1,
        keep="best",
    )
    told = [
        f"{rows} rows; target {', '.join(chosen.target)}: {chosen.why}",
        f"task {task}"
        + (f", {len(labels)} labels: {_few(labels)}" if labels else "")
        + " (--target COLUMN and --task regression, classification or multilabel choose otherwise)",
        f"{len(found.numeric)} columns of numbers, {len(found.categorical)} of categories",
        *(f"ignored: {name!r}, {why}" for name, why in found.ignored.items()),
        f"network mlp, {epochs} epochs: at most {counted(minutes, 'minute')} on one thread",
    ]
    text = written(data, model, TASKS[task], learning, METRICS[task])
    return Proposal(text, tuple(told))


def _check_header(table: Table) -> None:
    """Raise `DataError` where the names are values: then the first row was taken for a header."""
    values = [c for c in table.columns if c.name in {str(text) for text in c.values.to_pylist()}]
    if len(values) > 1 and 2 * len(values) >= len(table.columns):
        raise DataError(
            f"{table.path}: the first line ({', '.join(c.name for c in table.columns)[:80]}) is a row like "
            "the others; put a line above it that names the columns"
        )


def _without_leaks(table: Table, found: tables.Sorted, target: np.ndarray) -> tables.Sorted:
    """The columns but those that are the target over again. Raises `DataError` where none is left."""
    leaks = tables.leaks(found, target)
    numeric = tuple(column for column in found.numeric if column.name not in leaks)
    categorical = tuple(column for column in found.categorical if column.name not in leaks)
    if not numeric and not categorical:
        raise DataError(
            f"{table.path}: nothing is left to learn from: {', '.join(leaks)} tells the target of every "
            "row; name another one with --target"
        )
    return tables.Sorted(
        numeric, categorical, found.ignored | dict.fromkeys(leaks, "the target over again")
    )


def _passes(rows: int, weights: int) -> tuple[int, float]:
    """(epochs, seconds) that there is time for, by the weights between features and hidden layers."""
    seconds = rows * SECONDS_PER_ROW * max(1.0, weights / WEIGHTS)
    epochs = max(1, min(EPOCHS, int(SECONDS / seconds)))
    return epochs, epochs * seconds


def _data(source: Path, chosen: Chosen, found: tables.Sorted, share: float) -> str:
    """The section that says what the columns are."""
    several = chosen.teaches == "tags"
    return TEXT.format(
        path=quoted(str(source)),
        target=quoted(list(chosen.target) if several else chosen.target[0]),
        why=chosen.why,
        teaches="auto" if several else chosen.teaches,
        units=UNITS.format(quoted(chosen.target[0])) if chosen.teaches == "number" else "",
        columns=_told(found),
        log=quoted([column.name for column in found.numeric if _long_tail(column)]),
        numeric=quoted([column.name for column in found.numeric]),
        categorical=quoted([column.name for column in found.categorical]),
        ignore=quoted(list(found.ignored)),
        title=quoted(f"table {source.name}"),
        share=share,
    )


def _choose(table: Table, hints: Hints) -> Chosen:
    names = [column.name for column in table.columns]
    by_name = dict(zip(names, table.columns, strict=True))
    if hints.task not in (None, "classification", "regression", "multilabel"):
        known = ["classification", "regression", "multilabel"]
        raise ConfigError(
            f"--task: no {hints.task!r} for a table{suggestion(hints.task or '', known)}"
        )
    wanted = tuple(name.strip() for name in hints.target.split(",")) if hints.target else ()
    if hints.target in names:
        wanted = (hints.target,)
    for name in wanted:
        if name not in names:
            raise ConfigError(f"--target: no column {name!r}{suggestion(name, names)}")
    if len(wanted) > 1 or hints.task == "multilabel":
        if len(wanted) < 2:
            raise ConfigError("--task multilabel: name its columns, --target COLUMN,COLUMN,...")
        return Chosen(wanted, "tags", "columns of 0 and 1, as asked for")
    name, why = (wanted[0], "as asked for") if wanted else _likely(table)
    if hints.task is not None:
        return Chosen((name,), "class" if hints.task == "classification" else "number", why)
    kind = tables.kind_of_target(by_name[name])
    return Chosen((name,), kind, why)


def _likely(table: Table) -> tuple[str, str]:
    """The column that is named like a target, else the last one without gaps that can be learnt."""
    useful = [c for c in table.columns if tables.useless(c) is None]
    if len(useful) < 2:
        raise DataError(f"{table.path}: no two columns that tell anything; name one with --target")
    for likely in LIKELY:
        for column in useful:
            if re.fullmatch(rf"(.*[_ ])?{likely}", column.name, re.IGNORECASE):
                return column.name, "named like a target"
    whole = [c.name for c in useful if (c.codes >= 0).all()]
    if not whole:
        raise DataError(
            f"{table.path}: every column has gaps, and a target has none; fill or remove its rows, and "
            f"name it with --target ({', '.join(c.name for c in useful)})"
        )
    return whole[-1], "the last column that tells anything and has no gaps"


def _texts(table: Table) -> bool:
    """Whether the table is one of texts: a column of many words, and no more than a label beside it."""
    texts = [column for column in table.columns if _words(column) >= MAX_WORDS]
    others = [c for c in table.columns if c not in texts and tables.useless(c) is None]
    return bool(texts) and len(others) <= 1


def _words(column: Column) -> float:
    some = [str(text) for text in column.values[:200]]
    return float(np.mean([text.count(" ") + 1 for text in some])) if len(some) > 20 else 0.0


def _share(target: np.ndarray, labels: Sequence[str], chosen: Chosen, table: Table) -> float:
    """Of the rows for validation and as much for the test, so that every label is in each."""
    if target.dtype.kind == "f":
        return 0.15
    counts = np.bincount(target) if target.ndim == 1 else target.sum(0)
    least = int(counts.min())
    if least < 3:
        raise DataError(
            f"{table.path}: {', '.join(chosen.target)} has {counted(len(labels), 'label')}, "
            f"and {labels[int(counts.argmin())]!r} {counted(least, 'row')}; a label needs 3, to "
            "be in training, validation and test: gather more of it, or leave it out"
            + _or_a_number(chosen, table)
        )
    return max(0.15, min(0.3, float(np.ceil(60 / least) / 100)))


def _or_a_number(chosen: Chosen, table: Table) -> str:
    """What else may be meant, where the labels are numbers."""
    column = next(column for column in table.columns if column.name == chosen.target[0])
    if chosen.teaches == "class" and tables.kind_of_target(column) == "number":
        return "; if it is a number to be estimated, --task regression"
    return ""


def _places(found: tables.Sorted, config: tables.Config) -> int:
    """Features that the columns become."""
    values = (min(len(column), config.most_values) + 2 for column in found.categorical)
    return 2 * len(found.numeric) + sum(values)


def _long_tail(column: Column) -> bool:
    """Whether a few numbers lie far above all others, as incomes and counts do."""
    numbers = column.numbers()
    low, middle, high = np.nanquantile(numbers, (0.01, 0.5, 0.999))
    return bool(low >= 0 and high - middle > 8 * max(middle - low, 1e-9))


def _augment(found: tables.Sorted) -> str:
    lines = []
    if found.categorical:
        lines += [
            "    # So that the place of values never seen learns something.",
            "    unseen: 0.01",
        ]
    if found.numeric:
        lines += ["    # So that the place of gaps does.", "    gaps: 0.01"]
    return "".join(f"{line}\n" for line in lines)


def _told(found: tables.Sorted) -> str:
    return (
        f"{len(found.numeric)} of numbers and {len(found.categorical)} of categories by their look"
    )


def _few(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")


METRICS = {
    "classification": CLASSIFIED,
    "regression": ("r2", "rmse", "mae", "median_absolute_error"),
    "multilabel": (
        "micro_f1",
        "macro_f1",
        "exact_match",
        "mean_average_precision",
        "roc_auc",
        "log_loss",
    ),
}
TASKS = {
    "classification": """\
  name: classification
  label_smoothing: 0.0
  # balanced: a rare class counts as much as a common one.
  class_weights: none
""",
    "regression": """\
  name: regression
  # absolute or huber where a few rows are far off.
  loss: squared
""",
    "multilabel": """\
  name: multilabel
  # Lower finds more labels, and says more of them wrongly.
  threshold: 0.5
""",
}
UNITS = """\
  # Told with every answer; better its units, such as euros.
  units: {}
"""
TEXT = """\
data:
  name: table
  path: {path}
  # To learn: {why}.
  target: {target}
  # class, number, or auto: texts and few integers are classes.
  teaches: {teaches}
{units}  # {columns}.
  numeric: {numeric}
  categorical: {categorical}
  ignore: {ignore}
  encoding:
    categories: one_hot
    # Columns of numbers with long tails.
    log: {log}
    clip: 10.0
    waves: 0
  title: {title}
  licence: not stated
  split:
    validation: {share}
    test: {share}
    seed: 0
"""
