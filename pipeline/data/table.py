"""A table with a column to learn: CSV, TSV or Parquet, numbers and categories, with gaps.

What kind a column is follows from its values, unless the settings say otherwise; which values a
category has is learnt of the training rows alone. Columns that cannot tell anything (ids, constants,
dates) are ignored, and said. Numbers have one notation, 1234.5: a column that is nearly one of numbers
is refused row by row rather than taken for categories.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.bundle.decode._row import GAPS, MOST, as_csv, notation, written
from pipeline.bundle.decode.categorical import GAP, CategoricalDecoder, numbering
from pipeline.bundle.decode.numeric import NumericDecoder
from pipeline.bundle.manifest import Input
from pipeline.columns import Column, Table, header_of, read
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
from pipeline.frontends import columns as frontend

MOST_CLASSES = 1000
FEW_INTEGERS = 20
"""Different integers up to which a target is taken for classes, if each is common enough."""

NEARLY = 0.9
"""Share of numbers from which a column is one of numbers, and the rest are mistakes."""

MOSTLY_DIFFERENT = 0.5
"""Share of different texts from which a column is one of names or ids."""

ID = re.compile(r"(.*[_\W])?(id|uuid|guid|index|key|no|nr|number|unnamed: 0)", re.IGNORECASE)
DATE = r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([T ].*)?$|^[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{4}( .*)?$"


class Config(Section):
    """A table, what is learnt of it, and what its columns are."""

    name: str
    path: str = Field(description="a file: .csv, .tsv (both may end in .gz) or .parquet")
    target: str | tuple[str, ...] = Field(
        description="the column to learn; or a list of columns of 0 and 1, each a label of its own"
    )
    teaches: Literal["auto", "class", "number"] = Field(
        "auto", description="what the target is; auto: texts and few integers are classes"
    )
    units: str = Field("", description="of a number that is learnt, told with every answer")
    numeric: tuple[str, ...] = Field(
        (), description="columns that hold numbers, whatever they look"
    )
    categorical: tuple[str, ...] = Field((), description="columns that hold categories")
    ignore: tuple[str, ...] = Field((), description="columns that are not looked at")
    gaps: tuple[str, ...] = Field(GAPS, description="texts that stand for no value")
    most_values: int = Field(
        100, ge=1, le=10_000, description="values of a category that have a place, the commonest"
    )
    least_rows: int = Field(
        5, ge=1, description="training rows that a value needs for a place of its own"
    )
    split_column: str = Field(
        "", description="a column that says train, validation or test of each row"
    )
    encoding: frontend.Encoding = frontend.Encoding()
    title: str = Field("A table", description="what the data is, for the model card")
    licence: str = Field("not stated", description="under what terms, for the model card")
    split: Split = Split()

    @model_validator(mode="after")
    def _once(self) -> Config:
        if not self.targets:
            raise ValueError("target: expected a column, or a list of columns")
        names = self.named
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"column {twice!r} is named in two places")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns to learn."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def named(self) -> tuple[str, ...]:
        """The columns that must be there."""
        dealt = (self.split_column,) if self.split_column else ()
        return (*self.targets, *self.numeric, *self.categorical, *self.ignore, *dealt)


@dataclass(frozen=True)
class Sorted:
    """The columns of a table by what becomes of them; `ignored` says why."""

    numeric: tuple[Column, ...]
    categorical: tuple[Column, ...]
    ignored: dict[str, str]


def look(config: Config, root: Path) -> None:
    """Raises `DataError` listing the columns that the file lacks, told from its header alone."""
    path = root / config.path
    _check_named(path, header_of(path), (*config.named, *config.encoding.log))


def load(config: Config, root: Path) -> RawData:
    """Every row: `numeric` float32 and `categorical` int64 `[rows, columns]`, whichever there are.

    Raises `DataError` that lists what is wrong by row.
    """
    table = read(root / config.path, config.gaps)
    _check_named(table.path, [column.name for column in table.columns], config.named)
    faults = Faults()
    with faults.noted():
        target, labels = taught(table, config)
    with faults.noted():
        found = sort_out(table, config)
        if found.ignored:
            told = "; ".join(f"{name!r} ({why})" for name, why in found.ignored.items())
            print(f"{config.path}: columns ignored: {told}", flush=True)
        with faults.noted():
            check_cells(table, found)
        with faults.noted():
            _check_log(table, found, config.encoding.log)
    with faults.noted():
        given = _given(table, config)
    faults.settle()
    _check_leaks(table, found, target)
    if coarse := [column.name for column in found.numeric if _coarse(column)]:
        print(
            f"warning: {config.path}: {_few(coarse)}: so large that float32, which the network reads, "
            "rounds away what tells the rows apart; subtract what the numbers have in common, as the first "
            "of some dates",
            flush=True,
        )
    return RawData(
        rows=lambda train: _encoded(config, found, train),
        target=target,
        labels=labels,
        units=config.units,
        identity=_Identity(found),
        ambiguous=True,
        first_row=table.first_row,
        given_test=given.get("test"),
        given_validation=given.get("validation"),
        sample=lambda row: (".csv", as_csv(_texts(found, row))),
        frontend=frontend.Config(name="columns", **config.encoding.model_dump()),
        source={"title": config.title, "licence": config.licence, "path": config.path},
    )


def taught(table: Table, config: Config) -> tuple[np.ndarray, tuple[str, ...]]:
    """(target, labels): classes, numbers without labels, or tags. Raises `DataError`."""
    columns = [_there(table, name) for name in config.targets]
    for column in columns:
        if column.unread:
            raise DataError(
                f"{table.path}: {column.name}: {column.unread}; a target is a number or a class"
            )
    faults = Faults()
    with faults.noted():
        _check_filled(table, columns)
    if not all(map(len, columns)):  # nothing but gaps: there is no more to say
        faults.settle()
    if isinstance(config.target, tuple):
        with faults.noted():
            tags = _tags(table, columns)
        faults.settle()
        return tags, config.targets
    (column,) = columns
    kind = kind_of_target(column) if config.teaches == "auto" else config.teaches
    if kind == "class":
        with faults.noted():
            classes = _classes(table, column)
        faults.settle()
        return classes
    with faults.noted():
        _check_numbers(table, column)
    faults.settle()
    numbers = column.numbers()
    if numbers.min() == numbers.max():
        raise DataError(f"{table.path}: {column.name} is {numbers[0]:g} in every row")
    return numbers, ()


def _check_filled(table: Table, columns: Sequence[Column]) -> None:
    """Raise `DataError` listing the rows that have no target."""
    missing = [
        f"{table.row(row)}: no {column.name}"
        for column in columns
        for row in np.flatnonzero(column.codes < 0)
    ]
    if missing:
        raise listed(missing, f"{table.path}: rows without a target; fill or remove them")


def _check_numbers(table: Table, column: Column) -> None:
    """Raise `DataError` listing the targets that are no numbers."""
    wrong = [_mistake(table, column, row) for row in _not_numbers(column)]
    if wrong:
        raise listed(
            wrong, f"{table.path}: targets that are no finite number; mend or remove these rows"
        )


def kind_of_target(column: Column) -> Literal["class", "number"]:
    """Texts and few integers are classes, other numbers numbers."""
    if not _looks_numeric(column):
        return "class"
    known = column.known_numbers
    whole = bool((known == np.round(known)).all())  # nor are mistakes, which are refused by row
    few = len(known) <= min(FEW_INTEGERS, max(2, len(column.codes) // 10))
    return "class" if whole and few else "number"


def sort_out(table: Table, config: Config) -> Sorted:
    """Which columns are numbers, which categories, and which are ignored and why. Raises `DataError`."""
    numeric, categorical, ignored = [], [], {}
    for column in table.columns:
        name = column.name
        if name in config.targets:
            continue
        if name in config.ignore:
            ignored[name] = "as the settings say"
        elif config.split_column and name == config.split_column:
            ignored[name] = "it deals the rows"
        elif name in config.numeric:
            numeric.append(column)
        elif name in config.categorical:
            categorical.append(column)
        elif why := useless(column):
            ignored[name] = why
        elif _looks_numeric(column):
            numeric.append(column)
        else:
            categorical.append(column)
    nameless = [str(i + 1) for i, c in enumerate(table.columns) if not c.name]
    if nameless and "" not in ignored:
        raise DataError(f"{table.path}: column {', '.join(nameless)} has no name in the header")
    if not numeric and not categorical:
        told = "; ".join(f"{name!r}: {why}" for name, why in ignored.items())
        raise DataError(f"{table.path}: no column is left to learn from ({told or 'none'})")
    return Sorted(tuple(numeric), tuple(categorical), ignored)


def useless(column: Column) -> str | None:
    """Why a column can tell nothing that holds for other rows; None where it may."""
    rows, known = len(column.codes), int((column.codes >= 0).sum())
    if column.unread:
        return column.unread
    if not known:
        return "nothing but gaps"
    if len(column) == 1 and known == rows:
        return f"{column.text(0)!r} in every row"
    if _looks_numeric(column):
        numbers = column.numbers()
        counted = known == rows > 2 and bool((np.diff(numbers) == 1).all())
        if counted:
            return "counts the rows"
        if (
            ID.fullmatch(column.name)
            and len(column) == rows
            and (numbers == np.round(numbers)).all()
        ):
            return "an id: another number in every row"
        return None
    if column.share(DATE) >= NEARLY:
        return "dates; make numbers of them, such as the month or days since"
    if known > 20 and len(column) > MOSTLY_DIFFERENT * known:
        return "ids or free texts: hardly any occurs twice"
    return None


def _looks_numeric(column: Column) -> bool:
    return column.share_like_numbers >= NEARLY


def _there(table: Table, name: str) -> Column:
    _check_named(table.path, [column.name for column in table.columns], [name])
    return next(column for column in table.columns if column.name == name)


def _check_named(path: Path, known: list[str], wanted: Sequence[str]) -> None:
    """Raise `DataError` for each column that is not there."""
    faults = Faults()
    for name in dict.fromkeys(wanted):
        if name not in known:
            faults.note(DataError(f"{path}: no column {name!r}{suggestion(name, known)}"))
    faults.settle()


def _classes(table: Table, column: Column) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels in the order of their numbers where they are numbers, else of the alphabet."""
    texts = [column.text(code) for code in range(len(column))]
    if len(texts) > MOST_CLASSES:
        raise DataError(
            f"{table.path}: {column.name} has {len(texts)} different values, at most {MOST_CLASSES} are "
            "classes; name another target, or set teaches to number"
        )
    if len(texts) < 2:
        raise DataError(f"{table.path}: {column.name} is {texts[0]!r} in every row")
    numbers = column.known_numbers
    _check_spelling(table, column)
    key = texts.__getitem__ if np.isnan(numbers).any() else numbers.__getitem__
    order = sorted(range(len(texts)), key=key)
    place = np.empty(len(texts), np.int64)
    place[order] = np.arange(len(texts))
    return place[column.codes], tuple(texts[code] for code in order)


def _check_spelling(table: Table, column: Column) -> None:
    """Raise `DataError` for classes that are one number, as 1 and 1.0 are: they would be told apart."""
    spelt: dict[float, list[str]] = {}
    for code, number in enumerate(column.known_numbers.tolist()):
        if not np.isnan(number):
            spelt.setdefault(number, []).append(column.text(code))
    twice = [" and ".join(map(repr, texts)) for texts in spelt.values() if len(texts) > 1]
    if twice:
        raise listed(
            twice,
            f"{table.path}: {column.name}: classes that are the same number; write each in one way",
        )


def _tags(table: Table, columns: Sequence[Column]) -> np.ndarray:
    """bool `[rows, labels]` of columns that hold 0 and 1, or false and true."""
    truth = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
    mistakes, held = [], []
    for column in columns:
        said = [truth.get(column.text(code).lower()) for code in range(len(column))]
        wrong = np.array([*(value is None for value in said), False])[column.codes]  # a gap is -1
        mistakes += [
            f"{table.row(row)}: {column.name} is {column.text(column.codes[row])!r}"
            for row in np.flatnonzero(wrong)
        ]
        held.append(np.array([*(bool(value) for value in said), False])[column.codes])
    if mistakes:
        raise listed(mistakes, f"{table.path}: labels that are neither 0 nor 1")
    return np.stack(held, 1)


def check_cells(table: Table, found: Sorted) -> None:
    """Every number is one. Raises `DataError` listing those that are none, by row and column."""
    mistakes = [
        _mistake(table, column, row) for column in found.numeric for row in _not_numbers(column)
    ]
    if mistakes:
        raise listed(
            mistakes,
            f"{table.path}: values that are no finite number; mend them, name the column under "
            "data.categorical or data.ignore, or what stands for a gap under data.gaps",
        )


def _check_log(table: Table, found: Sorted, log: Sequence[str]) -> None:
    """Raise `DataError` for columns with long tails that are no columns of numbers."""
    numeric = [column.name for column in found.numeric]
    for name in log:
        if name not in numeric:
            raise DataError(
                f"{table.path}: data.encoding.log: no column of numbers {name!r}"
                f"{suggestion(name, numeric)}"
            )


def _coarse(column: Column) -> bool:
    """Whether rounding a column to float32 takes more than a hundredth of its deviation."""
    known = column.known_numbers
    known = known[np.abs(known) <= MOST]
    lost = np.abs(known - known.astype(np.float32)).max(initial=0.0)
    return bool(lost > 0.01 * known.std()) if len(known) > 1 else False


def _not_numbers(column: Column) -> np.ndarray:
    known = column.known_numbers
    wrong = ~(np.abs(known) <= MOST)
    return np.flatnonzero(np.append(wrong, False)[column.codes])


def _mistake(table: Table, column: Column, row: int) -> str:
    text = column.text(column.codes[row])
    return f"{table.row(row)}: {column.name} is {text[:40]!r}{notation(text)}"


def _check_leaks(table: Table, found: Sorted, target: np.ndarray) -> None:
    """Raise `DataError` for columns that are the target over again."""
    if told := leaks(found, target):
        raise listed(
            [f"{name}: tells the target of every row" for name in told],
            f"{table.path}: columns that are the target over again, so nothing would be learnt; name them "
            "under data.ignore",
        )


def leaks(found: Sorted, target: np.ndarray) -> list[str]:
    """The columns that are the target over again."""
    answers = target.T if target.ndim == 2 else [target]
    return [
        column.name
        for column in (*found.numeric, *found.categorical)
        if any(_tells(column, column in found.numeric, answer) for answer in answers)
    ]


def _tells(column: Column, is_numeric: bool, answer: np.ndarray) -> bool:
    """Whether a column equals a number up to its scale, or has one value for each class."""
    if (column.codes < 0).any():
        return False
    if answer.dtype.kind == "f":
        if not is_numeric:
            return False
        numbers = column.numbers()
        if numbers.std() == 0 or len(numbers) < 3:
            return False
        return bool(abs(np.corrcoef(numbers, answer)[0, 1]) > 1 - 1e-9)
    classes = len(np.unique(answer))
    if len(column) != classes or len(answer) < 20:
        return False
    pairs = column.codes.astype(np.int64) * classes + np.unique(answer, return_inverse=True)[1]
    return len(np.unique(pairs)) == classes


def _given(table: Table, config: Config) -> dict[str, np.ndarray]:
    """The sets that a column deals out, those that have rows. Raises `DataError`."""
    if not config.split_column:
        return {}
    column = _there(table, config.split_column)
    said = [part_of(column.text(code)) for code in range(len(column))]
    parts = np.array([*said, ""])[column.codes]
    mistakes = [
        f"{table.row(row)}: {'nothing' if column.codes[row] < 0 else column.text(column.codes[row])!r}"
        for row in np.flatnonzero(parts == "")
    ]
    if mistakes:
        raise listed(mistakes, f"{table.path}: {column.name} is neither train, validation nor test")
    return given_sets(parts)


def _encoded(config: Config, found: Sorted, train: np.ndarray) -> Encoded:
    """The rows as tensors; the values of categories are those of the rows `train`."""
    names = {
        "numeric": tuple(column.name for column in found.numeric),
        "categorical": tuple(column.name for column in found.categorical),
    }
    passed = (*config.targets, *found.ignored)
    inputs, arrays = [], {}
    if found.numeric:
        arrays["numeric"] = np.stack(
            [column.numbers().astype(np.float32) for column in found.numeric], 1
        )
        decoder = NumericDecoder(
            columns=names["numeric"], others=(*names["categorical"], *passed), gaps=config.gaps
        )
        inputs.append(_input("numeric", "float32", decoder, f"numbers of {_few(names['numeric'])}"))
    if found.categorical:
        learnt = [_learnt(column, train, config) for column in found.categorical]
        arrays["categorical"] = np.stack([numbers for numbers, _ in learnt], 1)
        values = CategoricalDecoder(
            columns=names["categorical"],
            others=(*names["numeric"], *passed),
            gaps=config.gaps,
            values=tuple(texts for _, texts in learnt),
        )
        told = f"0 a gap, 1 unseen, 2 and above a value of {_few(names['categorical'])}"
        inputs.append(_input("categorical", "int64", values, told))
    return Encoded(tuple(inputs), arrays)


def _input(
    name: str, dtype: str, decoder: NumericDecoder | CategoricalDecoder, units: str
) -> Input:
    return Input(
        name=name, dtype=dtype, shape=("batch", *decoder.row), decoder=decoder, units=units
    )


def _learnt(
    column: Column, train: np.ndarray, config: Config
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int64 `[rows]`, the values that have a number): common ones first, equals by the alphabet."""
    codes = column.codes[train]
    counts = np.bincount(codes[codes >= 0], minlength=len(column))
    common = np.flatnonzero(counts >= config.least_rows)
    order = sorted((-int(counts[code]), column.text(code), code) for code in common)
    chosen = order[: config.most_values]
    values = tuple(text for _, text, _ in chosen)
    number = numbering(values)
    # A gap is last: what the code -1 finds.
    numbers = np.array([*map(number, map(str, column.values)), GAP], np.int64)
    return numbers[column.codes], values


def _texts(found: Sorted, row: int) -> dict[str, str | None]:
    """A row as a person would write it, by column."""
    numbers = {column.name: written(_known(column.numbers()[row])) for column in found.numeric}
    texts = {
        column.name: column.text(column.codes[row]) if column.codes[row] >= 0 else None
        for column in found.categorical
    }
    return numbers | texts


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _few(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class _Identity(Sequence[bytes]):
    """What a row is told apart by: its values, whatever the order of rows and columns.

    Where most rows repeat another, each is dealt by itself: a few values, such as age and sex, say
    little about which rows belong together.
    """

    def __init__(self, found: Sorted) -> None:
        columns = sorted((*found.numeric, *found.categorical), key=lambda column: column.name)
        parts = [
            column.numbers().view(np.uint64) if column in found.numeric else column.digests()
            for column in columns
        ]
        self._rows = np.ascontiguousarray(np.stack(parts, 1))
        whole = self._rows.view(f"V{8 * len(parts)}").ravel()
        _, group = np.unique(whole, return_inverse=True)
        if group.max(initial=0) + 1 < len(group) / 2:
            order = np.argsort(group, kind="stable")
            turn = np.arange(len(group))
            first = np.r_[True, np.diff(group[order]) != 0]
            start = np.maximum.accumulate(np.where(first, turn, 0))
            times = np.empty(len(group), np.uint64)
            times[order] = turn - start
            self._rows = np.ascontiguousarray(np.c_[self._rows, times])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> bytes:  # type: ignore[override]  # nobody asks for a slice
        return self._rows[row].tobytes()
