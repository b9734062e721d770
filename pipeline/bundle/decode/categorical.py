"""Columns of a row of a table that hold one of a few values, each value as its number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.bundle.decode._row import SHOWN, RowDecoder, as_csv, cells, written

MEDIA = ("text/csv", "application/json", "text/tab-separated-values")
EXAMPLE = "row.csv"

GAP, UNSEEN, FIRST = 0, 1, 2
"""The numbers of a gap, of a value that the training rows did not have, and of the first that they had."""


class CategoricalDecoder(RowDecoder):
    """How a row becomes `int64 [columns]`: 0 a gap, 1 a value never seen, then `values` by column."""

    kind: Literal["categorical"] = "categorical"
    values: tuple[tuple[str, ...], ...] = Field(description="by column, in the order of numbers")

    @model_validator(mode="after")
    def _of_each(self) -> CategoricalDecoder:
        if len(self.values) != len(self.columns):
            raise ValueError(f"values of {len(self.values)} columns for {len(self.columns)}")
        for name, values in zip(self.columns, self.values, strict=True):
            if len(set(values)) != len(values):
                raise ValueError(f"column {name!r}: a value is listed twice")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers each column has."""
        return tuple(FIRST + len(values) for values in self.values)


Settings = CategoricalDecoder


def decode(
    decoder: CategoricalDecoder, payload: bytes, _files: Mapping[str, bytes], _invert: bool
) -> np.ndarray:
    """int64 `[columns]`. Raises `DecodeError`."""
    return np.array(
        [
            _number(text, values)
            for text, values in zip(cells(decoder, payload), decoder.values, strict=True)
        ],
        np.int64,
    )


def encode(
    decoder: CategoricalDecoder, row: np.ndarray, _files: Mapping[str, bytes]
) -> tuple[str, bytes]:
    """A CSV of the row; what was never seen is written as a text that no value is."""
    texts = [
        None if number == GAP else _unlike(values) if number == UNSEEN else values[number - FIRST]
        for number, values in zip(row.tolist(), decoder.values, strict=True)
    ]
    return ".csv", as_csv(dict(zip(decoder.columns, texts, strict=True)))


def named(
    decoder: CategoricalDecoder, row: np.ndarray, _files: Mapping[str, bytes]
) -> list[tuple[str, int]]:
    """Each column with its value."""
    known = zip(decoder.columns, row.tolist(), decoder.values, strict=True)
    return [(f"{name} = {_told(number, values)}", 1) for name, number, values in known]


def hint(
    decoder: CategoricalDecoder, payload: bytes, _files: Mapping[str, bytes], _invert: bool
) -> str | None:
    """Which values the training rows did not have."""
    unseen = [
        f"{name} {text[:40]!r}"
        for name, text, values in zip(
            decoder.columns, cells(decoder, payload), decoder.values, strict=True
        )
        if text is not None and _number(text, values) == UNSEEN
    ]
    if unseen:
        more = f" and {len(unseen) - SHOWN} more" if len(unseen) > SHOWN else ""
        told = ", ".join(unseen[:SHOWN]) + more
        return f"never seen in training: {told}; the answer is made without them"
    return None


def numbering(values: Sequence[str]) -> Callable[[str], int]:
    """What gives the number of a text: of the value that it is, or that is the same otherwise spelt.

    JSON has `true` and 1 where a CSV had True and 1.0. Where two values are the same, neither is meant.
    """
    numbers = {value: FIRST + place for place, value in enumerate(values)}
    spelt = [(same, value) for value in values if (same := _in_json(value)) is not None]
    times = Counter(same for same, _ in spelt)
    alike = {same: numbers[value] for same, value in spelt if times[same] == 1}

    def number(text: str) -> int:
        return numbers[text] if text in numbers else alike.get(_in_json(text) or "", UNSEEN)

    return number


def _in_json(text: str) -> str | None:
    """A truth value or a number as a client's JSON has it; None for what is another text there."""
    try:
        told = json.loads(text.lower(), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return written(told) if isinstance(told, bool | int | float) else None


def _number(text: str | None, values: tuple[str, ...]) -> int:
    if text is None:
        return GAP
    return FIRST + values.index(text) if text in values else numbering(values)(text)


def _told(number: int, values: tuple[str, ...]) -> str:
    """What a number stands for, for a person to read."""
    if number == GAP:
        return "no value"
    known = FIRST <= number < FIRST + len(values)
    return values[number - FIRST] if known else "an unseen value"


def _unlike(values: tuple[str, ...]) -> str:
    text = "unseen"
    while text in values:
        text += "?"
    return text
