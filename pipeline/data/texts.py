"""Texts in one file, CSV or TSV, with a label in each row.

What the tokenizer knows is learnt of the training rows alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline import tokens as vocabularies
from pipeline.bundle.decode import DecodeError, decode
from pipeline.bundle.decode.text import MAX_BYTES, TOKENIZER, TextDecoder, text_of
from pipeline.bundle.manifest import Input
from pipeline.config import Section, suggestion
from pipeline.dataset import (
    DataError,
    Encoded,
    Faults,
    RawData,
    Split,
    given_sets,
    listed,
    part_of,
)
from pipeline.frontends import tokens as frontend
from pipeline.tokens import Vocabulary

DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";"}
SUFFIXES = {".csv": "comma", ".tsv": "tab", ".tab": "tab"}
MOST_LABELS = 1000


class Config(Section):
    """A file of texts, its columns, and how the texts are cut into tokens."""

    name: str
    path: str = Field(description="a file whose first row names its columns")
    text: str = Field("text", description="the column of texts")
    label: str = Field("label", description="the column of labels")
    split_column: str = Field(
        "", description="a column that says train, validation or test of each row"
    )
    delimiter: Literal["auto", "comma", "tab", "semicolon"] = Field(
        "auto",
        description="between columns; auto: a comma, in a .tsv a tab, or the only one in the first line",
    )
    quoting: bool = Field(True, description='whether "..." holds a text; false: quotes are text')
    encoding: Literal["utf-8", "windows-1252", "latin-1", "utf-16"] = Field(
        "utf-8", description="of the file"
    )
    longest: int = Field(
        256, ge=1, le=65536, description="tokens that are read of a text; the rest is cut off"
    )
    vocabulary: Vocabulary = Vocabulary()
    embedding: frontend.Embedding = frontend.Embedding()
    title: str = Field("Texts in a file", description="what the data is, for the model card")
    licence: str = Field("not stated", description="under what terms, for the model card")
    split: Split = Split()

    @model_validator(mode="after")
    def _once(self) -> Config:
        names = [self.text, self.label, *filter(None, [self.split_column])]
        if len(set(names)) < len(names):
            raise ValueError(f"text, label and split_column: expected other columns, got {names}")
        return self


@dataclass(frozen=True)
class Table:
    """The cells of a file: rows without the header, and the line that each of them begins in."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]


def look(config: Config, root: Path) -> None:
    """Raises `DataError` for a file that is no table of texts, or lacks columns."""
    table = read(root / config.path, config)
    faults = Faults()
    for name in filter(None, (config.text, config.label, config.split_column)):
        with faults.noted():
            _column(table, config, name)
    faults.settle()


def load(config: Config, root: Path) -> RawData:
    """Every row as `token_ids` int64 `[rows, tokens]`. Raises `DataError` that lists rows by line."""
    table = read(root / config.path, config)
    faults = Faults()
    with faults.noted():
        texts, labels = sort_out(table, config)
    with faults.noted():
        given = _given(table, config)
    faults.settle()
    known = sorted(set(labels), key=_by_number(labels))
    if len(known) < 2:
        raise DataError(f"{config.path}: {config.label} is {known[0]!r} in every row")
    if len(known) > MOST_LABELS:
        raise DataError(
            f"{config.path}: {config.label} has {len(known)} different values, at most {MOST_LABELS} "
            "are labels; name another column"
        )
    target = np.array([known.index(label) for label in labels], np.int64)
    payloads = [text.encode() for text in texts]
    return RawData(
        rows=lambda train: _encoded(config, texts, payloads, train),
        target=target,
        labels=tuple(known),
        identity=payloads,
        given_test=given.get("test"),
        given_validation=given.get("validation"),
        lines=table.lines,
        sample=lambda row: (".txt", payloads[row]),
        frontend=frontend.Config(name="tokens", **config.embedding.model_dump()),
        source={"title": config.title, "licence": config.licence, "path": config.path},
    )


def read(path: Path, config: Config) -> Table:
    """The cells of a file. Raises `DataError` for what has no header or is no text."""
    if not path.is_file():
        expected = "expected a file of texts" if path.exists() else "no such file"
        raise DataError(f"{path}: {expected}")
    text = _decoded(path, config.encoding)
    delimiter = _delimiter(path, config, text)
    rows, lines = _rows(path, text, config, delimiter)
    if len(rows) < 2:
        raise DataError(f"{path}: expected a first row that names the columns, and rows below it")
    columns = tuple(name.strip() for name in rows[0])
    twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if twice:
        raise DataError(f"{path}: columns named twice: {', '.join(map(repr, twice))}; rename one")
    wrong = [
        f"line {line}: {len(row)} columns"
        for row, line in zip(rows[1:], lines[1:], strict=True)
        if len(row) != len(columns)
    ]
    if wrong:
        raise listed(
            wrong,
            f"{path}: rows of another number of columns than the first row's {len(columns)}; a text "
            f"that holds a {config.delimiter if config.delimiter != 'auto' else repr(delimiter)} must "
            "stand in quotes",
        )
    return Table(columns, rows[1:], lines[1:])


def _delimiter(path: Path, config: Config, text: str) -> str:
    """As the settings say; else as the suffix, unless the first line has only another one."""
    if config.delimiter != "auto":
        return DELIMITERS[config.delimiter]
    usual = DELIMITERS[SUFFIXES.get(path.suffix.lower(), "comma")]
    first = text.lstrip().partition("\n")[0]
    others = [mark for mark in DELIMITERS.values() if mark in first]
    return usual if usual in first or len(others) != 1 else others[0]


def _rows(
    path: Path, text: str, config: Config, delimiter: str
) -> tuple[list[list[str]], list[int]]:
    """Rows that are not empty, and the line that each begins in. Raises `DataError`."""
    usual = csv.field_size_limit(MAX_BYTES)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if config.quoting else csv.QUOTE_NONE,
        strict=True,
    )
    rows, lines, begins = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(begins)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: line {begins}: {error}; if quotes are plain text in this file, set "
            "data.quoting to false"
        ) from None
    finally:
        csv.field_size_limit(usual)  # it holds for the whole process
    return rows, lines


def sort_out(table: Table, config: Config) -> tuple[list[str], list[str]]:
    """Texts and labels. Raises `DataError` for rows that lack one, or whose text no server reads."""
    texts = [cell.strip() for cell in _column(table, config, config.text)]
    labels = [cell.strip() for cell in _column(table, config, config.label)]
    mistakes = []
    for text, label, line in zip(texts, labels, table.lines, strict=True):
        if not text:
            mistakes.append(f"line {line}: no text")
        elif not label:
            mistakes.append(f"line {line}: no label")
        else:
            try:
                text_of(text.encode())
            except DecodeError as error:
                mistakes.append(f"line {line}: {error}")
            except UnicodeEncodeError:
                mistakes.append(f"line {line}: half of a character (a lone surrogate)")
    if mistakes:
        raise listed(mistakes, f"{config.path}: rows that cannot be used; mend or remove them")
    return texts, labels


def _decoded(path: Path, encoding: str) -> str:
    """The file's text. Raises `DataError` listing the lines that are in another encoding."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise DataError(f"{path}: not UTF-16: {error.reason} at byte {error.start}") from None
    mistakes = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            line.decode(encoding)
        except UnicodeDecodeError as error:
            mistakes.append(f"line {number}: byte 0x{line[error.start]:02x} at place {error.start}")
    raise listed(
        mistakes,
        f"{path}: lines that are not {encoding}; say what they are under data.encoding "
        "(windows-1252 is usual for old files), or mend them",
    )


def _column(table: Table, config: Config, name: str) -> list[str]:
    if name not in table.columns:
        raise DataError(f"{config.path}: no column {name!r}{suggestion(name, list(table.columns))}")
    place = table.columns.index(name)
    return [row[place] for row in table.rows]


def _by_number(labels: list[str]) -> Callable[[str], tuple[float, str]]:
    """Labels that are numbers stand in their order, others and equal ones in the alphabet's."""
    if all(label.isdecimal() for label in labels):
        return lambda label: (float(label), label)
    return lambda label: (0.0, label)


def _given(table: Table, config: Config) -> dict[str, np.ndarray]:
    """The sets that a column deals out, those that have rows. Raises `DataError`."""
    if not config.split_column:
        return {}
    said = _column(table, config, config.split_column)
    parts = np.array([part_of(part.strip()) for part in said])
    mistakes = [f"line {table.lines[row]}: {said[row]!r}" for row in np.flatnonzero(parts == "")]
    if mistakes:
        raise listed(
            mistakes,
            f"{config.path}: {config.split_column} is neither train, validation nor test",
        )
    return given_sets(parts)


def _encoded(config: Config, texts: list[str], payloads: list[bytes], train: np.ndarray) -> Encoded:
    """Every row's ids, by what the training rows taught the tokenizer."""
    tokenizer = vocabularies.trained((texts[row] for row in train), config.vocabulary)
    files = {TOKENIZER: tokenizer}
    decoder = TextDecoder(longest=config.longest, vocabulary=vocabularies.places(tokenizer))
    rows = [decode(decoder, payload, files) for payload in payloads]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    declared = Input(
        name="token_ids",
        dtype="int64",
        shape=("batch", "tokens"),
        decoder=decoder,
        padding=0,
        units=f"token's place in {TOKENIZER}",
    )
    return Encoded((declared,), {declared.name: ids}, files)
