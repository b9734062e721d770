"""Texts in one file, with a label in each row."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.config import ConfigError, suggestion
from pipeline.data import texts
from pipeline.data.table import DATE
from pipeline.dataset import DataError, counted
from stages.proposals import (
    CLASSIFIED,
    Hints,
    Learning,
    Proposal,
    batch_size,
    plain,
    quoted,
    written,
)

READS = "a file of texts with a label in each row (.csv, .tsv)"
SECONDS = 150.0
"""What a proposed training may take on one thread; a slower machine than ours has as much to spare."""

SECONDS_PER_TOKEN = 40e-6
"""Of the proposed GRU, forward, back and the optimiser's step: 36 to 41 millionths were measured, as
processor time of one thread on two busy cores, with 6,000 texts of 20 words and with 1,200 of 190 (70 with
600 of 20, whose batches are smaller)."""

SHORTEST = 16
"""Tokens of a text that are read at least, however many texts there are."""

EPOCHS = 8
BATCH = 64
MIN_WORDS = 3.0
"""Mean words of a column's texts from which it is one of texts rather than of names."""

MOST_LABELS = 50
"""Different values up to which a column is taken for the labels."""

LABELS = ("label", "class", "category", "sentiment", "target", "topic", "rating")
ENCODINGS = ("utf-8", "windows-1252")


def propose(source: Path, hints: Hints) -> Proposal | None:
    """Columns, lengths, network and passes for the file. Raises `DataError` where it is unusable."""
    if not source.is_file() or source.suffix.lower() not in texts.SUFFIXES:
        return None
    if hints.task not in (None, "classification"):
        raise ConfigError(f"--task: {hints.task!r} is not for texts; they are classified")
    encoding, quoting = _form(source)
    settings = {"name": "texts", "path": str(source), "encoding": encoding, "quoting": quoting}
    table = texts.read(source, texts.Config(**settings))
    text, label, others = _columns(table, hints)
    config = texts.Config(**settings, text=text, label=label)
    found, labels = texts.sort_out(table, config)
    if label in labels and len(text.split()) >= MIN_WORDS:
        raise DataError(
            f"{source}: the first line, {text[:40]!r} and {label!r}, is a row like the others; put a line "
            "above it that names the columns, such as text and label"
        )
    counts = _counted(labels, label, source)
    least = min(counts.values())
    words = np.array([len(one.split()) for one in found])
    longest = int(min(256, max(16, 8 * np.ceil(1.4 * np.percentile(words, 98) / 8))))
    share = max(0.1, min(0.3, float(np.ceil(30 / least) / 100)))
    train = round(len(found) * (1 - 2 * share))
    longest, epochs, seconds = passes(train, 1.4 * float(words.mean()) + 8, longest)
    minutes = counted(max(1, round(seconds / 60)), "minute")
    uneven = least < 0.5 * len(found) / len(counts)
    data = TEXT.format(
        path=quoted(str(source)),
        text=quoted(text),
        label=quoted(label),
        quoting=plain(quoting),
        encoding=encoding,
        longest=longest,
        title=quoted(f"texts of {source.name}"),
        share=share,
    )
    learning = Learning(
        epochs,
        batch_size(train, BATCH),
        augment=AUGMENT,
        weight_decay=0.1,
        keep="best",
        clip="  clip_norm: 1.0\n",
    )
    uncommon = ("f1",) if len(counts) == 2 and uneven else ()
    metrics = (CLASSIFIED[0], *uncommon, *CLASSIFIED[1:])
    return Proposal(
        written(data, MODEL, TASK, learning, metrics),
        (
            f"{len(found)} texts in the column {text!r} (--text COLUMN chooses another), usually of "
            f"{round(float(np.median(words)))} words; {encoding}"
            + ("" if quoting else ", quotes are text"),
            f"{len(counts)} labels in the column {label!r} (--target COLUMN"
            + (f", such as {', '.join(others)}" if others else "")
            + "): "
            + ", ".join(f"{name} {count}" for name, count in counts.most_common(6))
            + (", ..." if len(counts) > 6 else ""),
            f"network recurrent (gru), {counted(epochs, 'epoch')}, the first {longest} tokens of each "
            f"text: at most {minutes} on one thread",
        ),
    )


def _counted(labels: list[str], column: str, source: Path) -> Counter[str]:
    """Rows of each label. Raises `DataError` where there are too few to learn and to test."""
    counts = Counter(labels)
    if len(counts) < 2:
        raise DataError(f"{source}: {column} is {labels[0]!r} in every row")
    rare, least = min(counts.items(), key=lambda item: item[1])
    if least < 3:
        raise DataError(
            f"{source}: label {rare!r} has {least} rows, and needs 3, to be in training, validation and "
            "test; gather more of it, or leave it out; --target names another column"
        )
    return counts


def passes(rows: int, usual: float, longest: int) -> tuple[int, int, float]:
    """(tokens read of a text, epochs, seconds) for so many texts, usually of `usual` tokens.

    What there is no time for is left out: passes first, down to two; then the ends of texts; then
    the second pass.
    """
    most = EPOCHS if rows > 2000 else 20
    budget = SECONDS / (rows * SECONDS_PER_TOKEN)
    longest = max(SHORTEST, longest if budget >= 2 * min(longest, usual) else int(budget / 2))
    read = min(longest, usual)
    epochs = max(1, min(most, int(budget / read)))
    return longest, epochs, rows * read * epochs * SECONDS_PER_TOKEN


def _form(source: Path) -> tuple[str, bool]:
    """Encoding, and whether quotes hold cells: the first way in which the file can be read."""
    error: DataError | None = None
    for encoding in ENCODINGS:
        for quoting in (True, False):
            try:
                texts.read(
                    source,
                    texts.Config(
                        name="texts", path=str(source), encoding=encoding, quoting=quoting
                    ),
                )
            except DataError as found:
                error = error or found
            else:
                return encoding, quoting
    assert error is not None
    raise error


def _columns(table: texts.Table, hints: Hints) -> tuple[str, str, list[str]]:
    """The column of the longest texts, the one of labels, and others that could be.

    By its name, else the one of fewest labels. Raises `ConfigError`, `DataError`.
    """
    for option, name in (("--text", hints.text), ("--target", hints.target)):
        if name is not None and name not in table.columns:
            raise ConfigError(
                f"{option}: no column {name!r}{suggestion(name, list(table.columns))}"
            )
    cells = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    words = {
        name: float(np.mean([len(cell.split()) for cell in column[:1000]]))
        for name, column in cells.items()
        if name != hints.target
    }
    text = hints.text or max(words, key=words.__getitem__)
    if hints.text is None and words[text] < MIN_WORDS:
        raise DataError(f"no column holds texts; name it with --text ({', '.join(table.columns)})")
    few = [
        name
        for name, column in cells.items()
        if name != text
        and 1 < len(set(column)) <= min(MOST_LABELS, len(column) // 3)
        and not all(re.match(DATE, cell.strip()) for cell in column)
    ]
    named = [name for likely in LABELS for name in few if likely in name.lower()]
    fewest = sorted(few, key=lambda name: len(set(cells[name])))
    label = hints.target or next(iter([*named, *fewest]), None)
    if label is None:
        raise DataError(
            f"no column holds labels (at most {MOST_LABELS} different ones); name it with --target "
            f"({', '.join(table.columns)})"
        )
    return text, label, [name for name in fewest if name != label]


MODEL = {
    "name": "recurrent",
    "cell": "gru",
    "depth": 1,
    "width": 128,
    "bidirectional": True,
    "pooling": "attention",
    "dropout": 0.4,
    "initialisation": "orthogonal",
}
TASK = """\
  name: classification
  label_smoothing: 0.0
"""
AUGMENT = """\
    # So that the place of words never seen learns something.
    drop_tokens: 0.1
"""
TEXT = """\
data:
  name: texts
  path: {path}
  text: {text}
  label: {label}
  # Whether "..." holds a text; otherwise quotes are part of it.
  quoting: {quoting}
  encoding: {encoding}
  # Tokens of a text that are read: nearly all of nearly every text.
  longest: {longest}
  vocabulary:
    # words; or bpe or wordpiece, parts of words, for languages that build long ones.
    kind: words
    lowercase: true
    most: 20000
    least: 2
  embedding:
    width: 128
    dropout: 0.3
  title: {title}
  licence: not stated
  split:
    validation: {share}
    test: {share}
    seed: 0
"""
