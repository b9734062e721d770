"""A table beside the files that it names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from pipeline.config import Section
from pipeline.dataset import DataError
from pipeline.folders.source import Source


class Table(Section):
    """A CSV or TSV that names files and their labels, in place of folders of classes."""

    file: str = Field("", description="below `path`, with a header; empty: there is none")
    path: str = Field("path", description="its column of files, as seen from where it lies")
    label: str = Field("label", description="its column of labels")
    split: str = Field(
        "", description="its column of train, validation and test; empty: there is none"
    )


def read_table(found_in: Source, file: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """A table's header, and its rows with the lines that they end on. Raises `DataError`."""
    try:
        text = found_in.read(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{found_in.path / file}: cannot be read: {error}") from error
    first = text.partition("\n")[0]
    separator = max(",\t;", key=first.count)
    rows = _cells(found_in.path / file, text, separator)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    return header, ((number, values) for number, values in rows if values)


def _cells(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Every row with the line that it ends on. Raises `DataError` naming the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    begins = 1
    try:
        for values in reader:
            yield reader.line_num, values
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: line {begins}: {error}; a quote that is never closed takes in what follows, "
            "or this is no table"
        ) from None
