"""Columns of numbers of a row of a table, a gap being no number (NaN)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pipeline.bundle.decode._row import RowDecoder, as_csv, cells, number

MEDIA = ("text/csv", "application/json", "text/tab-separated-values")
EXAMPLE = "row.csv"


class NumericDecoder(RowDecoder):
    """How a row becomes `float32 [columns]`: one notation of numbers, and gaps."""

    kind: Literal["numeric"] = "numeric"

    @property
    def gapped(self) -> bool:
        """Gaps are NaN."""
        return True


Settings = NumericDecoder


def decode(
    decoder: NumericDecoder, payload: bytes, _files: Mapping[str, bytes], _invert: bool
) -> np.ndarray:
    """float32 `[columns]`, NaN where there is a gap. Raises `DecodeError`."""
    texts = zip(cells(decoder, payload), decoder.columns, strict=True)
    return np.array(
        [np.nan if text is None else number(text, name) for text, name in texts], np.float32
    )


def encode(
    decoder: NumericDecoder, row: np.ndarray, _files: Mapping[str, bytes]
) -> tuple[str, bytes]:
    """A CSV of the row, with the fewest digits that are the same float32."""
    texts = (None if np.isnan(value) else str(value) for value in row)
    return ".csv", as_csv(dict(zip(decoder.columns, texts, strict=True)))


def named(
    decoder: NumericDecoder, row: np.ndarray, _files: Mapping[str, bytes]
) -> list[tuple[str, int]]:
    """Each column with its value."""
    values = ("no value" if np.isnan(value) else f"{value:.6g}" for value in row.tolist())
    return [(f"{name} = {value}", 1) for name, value in zip(decoder.columns, values, strict=True)]


def hint(
    decoder: NumericDecoder, payload: bytes, _files: Mapping[str, bytes], _invert: bool
) -> str | None:
    """Whether nothing but gaps was given."""
    if all(text is None for text in cells(decoder, payload)):
        return "every number of the row is a gap; the answer is hardly about this row"
    return None
