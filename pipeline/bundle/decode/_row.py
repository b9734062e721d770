"""One row of a table as bytes, CSV with its header or a JSON object, to texts by column.

The kinds `numeric` and `categorical` both read it: each takes its own columns from the one file.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from pipeline.bundle.decode._settings import DecodeError, DecoderSettings

MAX_BYTES = 1 << 20
"""Of one row; what is longer is a table."""

GAPS = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null")
"""Texts that stand for no value, unless the data's settings name others."""

NUMBER = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
"""The one notation of numbers: 1234.5, -0.5 or 1e-3. RE2 and Python read it alike.

No digit can be read in two ways: a long text that is no number would take its length squared.
"""

MOST = float(np.nextafter(2.0**128 - 2.0**103, 0))
"""The largest number that float32 rounds to a finite one; its own largest is written 3.4028235e+38."""

DELIMITERS = ",\t;|"
SHOWN = 10


class RowDecoder(DecoderSettings):
    """Columns of a row that make one input, and those that others read or nobody does."""

    columns: tuple[str, ...] = Field(min_length=1)
    others: tuple[str, ...] = Field((), description="columns that a row may have beside these")
    gaps: tuple[str, ...] = GAPS

    @model_validator(mode="after")
    def _different(self) -> RowDecoder:
        names = (*self.columns, *self.others)
        if len(set(names)) != len(names):
            raise ValueError("a column is named twice")
        return self

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of what it gives: as many values as columns."""
        return (len(self.columns),)


def cells(decoder: RowDecoder, payload: bytes) -> list[str | None]:
    """The texts of the decoder's columns in its order, none for a gap. Raises `DecodeError`."""
    if len(payload) > MAX_BYTES:
        raise DecodeError(f"a row of {len(payload)} bytes; at most {MAX_BYTES} are read")
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError(f"not a row of a table: byte {error.start} is not UTF-8") from None
    row = _json(text) if text.lstrip()[:1] in ("{", "[") else _csv(decoder, text)
    known = (*decoder.columns, *decoder.others)
    unknown = [name for name in row if name not in known]
    if unknown:
        raise DecodeError(
            f"unknown columns: {_listed(unknown)}{_meant(unknown[0], known)}; the model knows "
            f"{_listed(known)}"
        )
    missing = [name for name in decoder.columns if name not in row]
    if missing:
        raise DecodeError(
            f"missing columns: {_listed(missing)}; a value that is not known is left empty, or null in "
            "JSON, but its column is there"
        )
    texts = [row[name] for name in decoder.columns]
    return [None if text is None or text in decoder.gaps else text for text in texts]


def number(text: str, name: str) -> float:
    """A number that float32 holds. Raises `DecodeError` for any other notation."""
    if not re.fullmatch(NUMBER, text):
        raise DecodeError(f"column {name!r}: {text[:40]!r} is no number{notation(text)}")
    value = float(text)
    if not abs(value) <= MOST:
        raise DecodeError(f"column {name!r}: {text[:40]!r}{notation(text)}")
    return value


def notation(text: str) -> str:
    """What a text that is nearly a number should have been."""
    if re.fullmatch(r"[+-]?[1-9][0-9]{0,2}([,' ][0-9]{3})+(\.[0-9]+)?", text):
        return "; write it without thousands separators: 1234.5"
    if re.fullmatch(r"[+-]?[0-9.]*,[0-9]+", text):
        return "; write it with a decimal point: 1234.5"
    if re.fullmatch(NUMBER, text):
        return " is beyond what float32 holds; choose larger units"
    if text.lower().strip("+-") in ("inf", "infinity"):
        return "; leave it empty where the value is not known"
    return "; expected a notation such as 1234.5, -0.5 or 1e-3"


def written(value: Any) -> str | None:
    """A value of JSON or Parquet as CSV would have it; none stays none."""
    if value is None or isinstance(value, str):
        return None if value is None else value.strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def as_csv(row: Mapping[str, str | None]) -> bytes:
    """A header and one row, as `cells` reads it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(row)
    writer.writerow("" if value is None else value for value in row.values())
    return text.getvalue().encode()


def _csv(decoder: RowDecoder, text: str) -> dict[str, str | None]:
    """The one row below the header, in whichever delimiter makes most of the header's names known."""
    known = {*decoder.columns, *decoder.others}
    header, _, _ = text.lstrip("\r\n").partition("\n")
    delimiter = max(
        DELIMITERS,
        key=lambda mark: sum(name.strip().strip('"') in known for name in header.split(mark)),
    )
    try:
        rows = [r for r in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if r]
    except csv.Error as error:
        raise DecodeError(f"not a row of a table: {error}") from None
    if len(rows) < 2:
        raise DecodeError(
            "expected a header and one row of values, or a JSON object of column -> value; got "
            f"{text[:80]!r}"
        )
    if len(rows) > 2:
        raise DecodeError(f"{len(rows) - 1} rows below the header; one at a time is answered")
    names = [name.strip() for name in rows[0]]
    if len(rows[1]) != len(names):
        raise DecodeError(f"{len(names)} columns in the header, {len(rows[1])} values below it")
    twice = _twice(names)
    if twice:
        raise DecodeError(f"columns named twice: {_listed(twice)}")
    return dict(zip(names, (value.strip() for value in rows[1]), strict=True))


def _json(text: str) -> dict[str, str | None]:
    """An object of column -> text, number, true, false or null."""
    try:
        told = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not a JSON object of column -> value: {error}") from None
    if isinstance(told, list) and len(told) == 1:
        told = told[0]
    if not isinstance(told, dict):
        raise DecodeError("expected a JSON object of column -> value, one row at a time")
    for name, value in told.items():
        if isinstance(value, dict | list):
            raise DecodeError(
                f"column {name!r}: expected a text, a number or null, got {value!r:.40}"
            )
    return {name: written(value) for name, value in told.items()}


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    named = [(name.strip(), value) for name, value in pairs]  # as the names of a CSV are
    twice = _twice([name for name, _ in named])
    if twice:
        raise ValueError(f"key {twice[0]!r} is given twice")
    return dict(named)


def _twice(names: Sequence[str]) -> list[str]:
    """Names that come more than once."""
    return [name for name, times in Counter(names).items() if times > 1]


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(repr(name[:60]) for name in names[:SHOWN])
    return told + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _meant(wrong: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
