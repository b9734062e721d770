"""Files of tables, column by column: CSV, TSV and Parquet, read by pyarrow.

Each column is kept as the different texts that occur and a code for each row, so a million rows of a
few values take a few megabytes. Texts and the names of columns are trimmed.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bundle.decode._row import DELIMITERS, NUMBER, written
from pipeline.dataset import DataError, listed

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES = (".parquet", ".pq")
SUFFIXES = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)

LIKE_A_NUMBER = r"^[+-]?[0-9.][0-9.,' ]*([eE][+-]?[0-9]+)?$|^[+-]?(?i:inf|infinity)$"
"""Numbers in any notation, so that another one is refused rather than taken for a category."""

HEADER_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Column:
    """`codes` int32 `[rows]` count into `values`, -1 for a gap; `unread` says why there are none."""

    name: str
    codes: np.ndarray
    values: Any
    """A pyarrow array of different texts, in the order of their first row."""
    unread: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def text(self, code: int | np.integer) -> str:
        """The text of a code."""
        return str(self.values[int(code)])

    def numbers(self) -> np.ndarray:
        """float64 `[rows]`, NaN for gaps and for what is no number."""
        return np.append(self.known_numbers, np.nan)[self.codes]

    def share(self, pattern: str) -> float:
        """How much of the rows that have a text has one that matches."""
        import pyarrow.compute as pc

        matched = pc.match_substring_regex(self.values, pattern).to_numpy(zero_copy_only=False)
        known = self.codes[self.codes >= 0]
        return float(matched[known].mean()) if len(known) else 0.0

    def digests(self) -> np.ndarray:
        """uint64 `[rows]`: the same for the same text, in whatever row it first occurs."""
        short = [
            int.from_bytes(hashlib.blake2b(str(text).encode(), digest_size=8).digest(), "little")
            for text in self.values
        ]
        return np.array([*short, 0], np.uint64)[self.codes]

    @cached_property
    def share_like_numbers(self) -> float:
        """How much of the rows that have a text has a number, or one in another notation."""
        return self.share(LIKE_A_NUMBER)

    @cached_property
    def known_numbers(self) -> np.ndarray:
        """float64 by code, NaN for what is no number in our notation."""
        import pyarrow as pa
        import pyarrow.compute as pc

        plain = pc.match_substring_regex(self.values, f"^(?:{NUMBER})$")
        kept = pc.if_else(plain, self.values, pa.scalar(None, pa.string()))
        # Python's notation allows a plus sign, and Arrow's does not.
        kept = pc.replace_substring_regex(kept, r"^\+", "")
        return np.asarray(pc.cast(kept, pa.float64()).to_numpy(zero_copy_only=False), np.float64)


@dataclass(frozen=True)
class Table:
    """The columns of a file. `first_row` is the number of the first one in a spreadsheet."""

    path: Path
    columns: tuple[Column, ...]
    first_row: int = field(default=2)

    def row(self, number: int | np.integer) -> str:
        """What a message calls a row."""
        return f"row {int(number) + self.first_row}"


def read(path: Path, gaps: Sequence[str]) -> Table:
    """Every column. Raises `DataError` for a file that is no table, listing its rows."""
    if _is_parquet(path):
        table, first = _parquet(path), 1
    else:
        with _readable(path):
            table, first = _delimited(path), 2
    names = [name.strip() for name in table.column_names]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: columns named twice: {', '.join(map(repr, twice))}; rename one")
    if not table.num_rows:
        raise DataError(f"{path}: no rows below the header")
    columns = (_told_of(path, name, table.column(place), gaps) for place, name in enumerate(names))
    return Table(path, tuple(columns), first)


def header_of(path: Path) -> list[str]:
    """The header alone. Raises `DataError` for a file that is no table."""
    from pyarrow import parquet

    if _is_parquet(path):
        with _readable_parquet(path):
            return [name.strip() for name in parquet.read_schema(path).names]
    with _readable(path):
        return [name.strip() for name in _header(path, _head(path))[0]]


def _is_parquet(path: Path) -> bool:
    """Whether it is one, or a delimited text, by its name. Raises `DataError` for anything else."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    name = path.name.lower()
    if not path.is_file() or not name.endswith(SUFFIXES):
        raise DataError(f"{path}: expected a file named {', '.join(SUFFIXES)}")
    return name.endswith(PARQUET_SUFFIXES)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise `DataError` for what Arrow raises where a file cannot be unpacked."""
    try:
        yield
    except OSError as error:
        packed = "; damaged, cut short or no gzip; pack it anew" if path.suffix == ".gz" else ""
        raise DataError(f"{path}: cannot be read: {error}{packed}") from None


def _head(path: Path) -> bytes:
    import pyarrow as pa

    with pa.input_stream(str(path), compression="detect") as file:
        return bytes(file.read(HEADER_BYTES))


def _delimited(path: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv as arrow

    header, delimiter = _header(path, _head(path))
    ragged: list[str] = []

    def note(row: Any) -> str:
        ragged.append(
            f"row {row.number}: {row.actual_columns} values, the header has {row.expected_columns} columns"
        )
        return "skip"

    try:
        table = arrow.read_csv(
            str(path),
            # One thread: only then does a bad row have a number.
            read_options=arrow.ReadOptions(use_threads=False, block_size=1 << 24),
            parse_options=arrow.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=arrow.ConvertOptions(
                column_types={name: pa.string() for name in header},
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _undecodable(path) or DataError(f"{path}: not a table: {error}") from None
    if ragged:
        raise listed(ragged, f"{path}: rows of another length than the header; mend them")
    return table


def _header(path: Path, head: bytes) -> tuple[list[str], str]:
    """(names, delimiter) of the first row; a name in quotes may go over several lines."""
    try:
        text = head.decode("utf-8-sig", errors="ignore" if len(head) == HEADER_BYTES else "strict")
    except UnicodeDecodeError:
        raise _undecodable(path) or DataError(f"{path}: not UTF-8") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise DataError(f"{path}: empty; expected a header and rows")
    tab = path.name.lower().split(".")[-1 - path.name.lower().endswith(".gz")] in ("tsv", "tab")
    mark = "\t" if tab else max(DELIMITERS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    try:
        return next(row for row in rows if any(name.strip() for name in row)), mark
    except (csv.Error, StopIteration) as error:
        raise DataError(
            f"{path}: line {rows.line_num}: {str(error) or 'empty'}; expected the names of columns"
        ) from None


def _undecodable(path: Path) -> DataError | None:
    """The lines that are not UTF-8, if that is what is wrong."""
    import pyarrow as pa

    mistakes = []
    with pa.input_stream(str(path), compression="detect") as file:
        for number, line in enumerate(io.BufferedReader(file), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                mistakes.append(f"line {number}: byte 0x{line[error.start]:02x}")
    if mistakes:
        return listed(mistakes, f"{path}: lines that are not UTF-8; save the file as UTF-8")
    return None


def _parquet(path: Path) -> pa.Table:
    from pyarrow import parquet

    with _readable_parquet(path):
        return parquet.read_table(path)


@contextmanager
def _readable_parquet(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from None


def _told_of(path: Path, name: str, chunks: pa.ChunkedArray, gaps: Sequence[str]) -> Column:
    """The column. Raises `DataError` naming it where Arrow cannot tell its values."""
    import pyarrow as pa

    try:
        return _column(name, chunks, gaps)
    except MemoryError:
        raise
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: column {name!r}: values of type {chunks.type} cannot be read: {error}; write "
            "them as another type, or leave the column out"
        ) from None


def _column(name: str, chunks: pa.ChunkedArray, gaps: Sequence[str]) -> Column:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = chunks.type
    if pa.types.is_dictionary(kind):
        chunks = chunks.cast(kind.value_type)
        kind = chunks.type
    if pa.types.is_float16(kind):  # which Arrow neither encodes nor compares
        chunks = chunks.cast(pa.float32())
    nothing = pa.array([], pa.string())
    if pa.types.is_temporal(kind):
        why = "dates; make numbers of them, such as the month or days since"
        return Column(name, np.full(len(chunks), -1, np.int32), nothing, why)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return Column(name, np.full(len(chunks), -1, np.int32), nothing, f"values of type {kind}")
    encoded = pc.dictionary_encode(chunks).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    texts = _texts(encoded.dictionary)
    # Texts that are the same once trimmed, and gaps, become one.
    trimmed = pc.dictionary_encode(pc.utf8_trim_whitespace(texts))
    empty = pc.is_in(trimmed.dictionary, value_set=pa.array(list(gaps), pa.string()))
    kept = np.flatnonzero(~empty.to_numpy(zero_copy_only=False))
    place = np.full(len(trimmed.dictionary) + 1, -1, np.int32)
    place[kept] = np.arange(len(kept), dtype=np.int32)
    merged = pc.fill_null(trimmed.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    codes = np.append(place[merged], np.int32(-1))[codes]
    return Column(name, codes, trimmed.dictionary.take(pa.array(kept)))


def _texts(values: pa.Array) -> pa.Array:
    """Values of Parquet as CSV would have them; NaN is a gap."""
    import pyarrow as pa

    if pa.types.is_string(values.type):
        return values
    if pa.types.is_large_string(values.type) or pa.types.is_integer(values.type):
        return values.cast(pa.string())
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    told = (written(value) for value in values.to_pylist())
    return pa.array([None if text == "nan" else text for text in told], pa.string())
