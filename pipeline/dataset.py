"""What a data set hands over, before it is split: rows, what is to be learnt of them, and its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from pipeline.bundle.manifest import Input
from pipeline.config import Named, Section
from pipeline.frontends import pixels

SHOWN = 20
"""How many mistakes an error lists before it only counts them."""


class DataError(ValueError):
    """The data cannot be used as it is; the message names the rows or the file, and the fix."""


class Split(Section):
    """How rows are dealt out. A set that the data comes with is kept as it is."""

    validation: float = Field(
        0.1, gt=0, lt=1, description="share of the rows not given; unused with a given set"
    )
    test: float = Field(
        0.2, gt=0, lt=1, description="share of the rows not given; unused with a given set"
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="deals the rows out another way")


PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What people call the parts of a split."""


def part_of(name: str) -> str:
    """'train', 'validation' or 'test', by whichever of its names; '' where it is none of them."""
    return next((part for part, names in PARTS.items() if name.lower() in names), "")


def given_sets(parts: np.ndarray) -> dict[str, np.ndarray]:
    """The sets that a column of parts `[rows]` deals out, those that have rows: bool `[rows]` each."""
    return {part: parts == part for part in ("validation", "test") if (parts == part).any()}


@dataclass(frozen=True)
class Stream:
    """Rows that are made one after the other, for data that need not fit into memory.

    `rows()` gives `count` of them in the dtype of their input, without the batch axis and all of one
    shape. It may raise `DataError` at the end, so that a list of everything that could not be read is
    one error.
    """

    count: int
    rows: Callable[[], Iterator[np.ndarray]]

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Encoded:
    """Rows as tensors.

    `arrays[name]` is `[rows, ...]` in the dtype and row shape that `inputs` declare; an axis that is
    free there has one length here, and rows that are shorter end in the input's `padding`. `files` go
    into the bundle, for the decoders that read them.
    """

    inputs: tuple[Input, ...]
    arrays: Mapping[str, np.ndarray | Stream]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def one(cls, declared: Input, rows: np.ndarray | Stream) -> Encoded:
        """The rows of data with one input."""
        return cls((declared,), {declared.name: rows})


@dataclass(frozen=True)
class RawData:
    """A labelled data set in memory, mapped or streamed, before it is split.

    `rows` are the rows as tensors; or, where something must be learnt of the training rows first (a
    vocabulary), what gives them: it is called with the numbers of the training rows and may look at no
    others to learn. Then `identity` has what rows are told apart by. `ambiguous`: rows that are alike may
    have different targets and lie in different given sets, as people of one age and sex do.

    `target` is, by its type, what is taught: int64 `[rows]`, an index into `labels`; bool
    `[rows, labels]`, which of `labels` hold; float `[rows]`, a number in `units`.

    `given_test` and `given_validation` are bool `[rows]` where the data set comes with such a set of
    its own; `files` names the file of each row, below the data's path, where every row has one, and
    `first_row` is the number that messages give the first row elsewhere, or `lines` the line of the file
    that each begins in; `sample(row)` gives (suffix, bytes) of a row as a
    file, where it does not lie there as one.
    `frontend` are the settings of the arithmetic between tensors and features.
    """

    rows: Encoded | Callable[[np.ndarray], Encoded]
    target: np.ndarray
    labels: tuple[str, ...] = ()
    units: str = ""
    identity: Sequence[bytes] | None = None
    ambiguous: bool = False
    given_test: np.ndarray | None = None
    given_validation: np.ndarray | None = None
    files: tuple[str, ...] = ()
    first_row: int = 0
    lines: Sequence[int] = ()
    sample: Callable[[int], tuple[str, bytes]] | None = None
    frontend: Named = field(default_factory=lambda: pixels.Config(name="pixels"))
    source: Mapping[str, str] = field(default_factory=dict)

    def row(self, number: int | np.intp) -> str:
        """What a message calls a row."""
        if len(self.lines):
            return f"line {self.lines[int(number)]}"
        return self.files[number] if self.files else f"row {int(number) + self.first_row}"


def counted(number: int, noun: str) -> str:
    """`1 picture`, `3 pictures`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Listed(DataError):
    """Many mistakes of one kind: the first `shown` on a line each, the rest counted."""

    def __init__(self, mistakes: list[str], what: str, shown: int = SHOWN) -> None:
        self.mistakes, self.what = mistakes, what
        lines = [f"{what}:", *(f"  {mistake}" for mistake in mistakes[:shown])]
        if len(mistakes) > shown:
            lines.append(f"  ... and {len(mistakes) - shown} more")
        super().__init__("\n".join(lines))


def listed(mistakes: list[str], what: str) -> DataError:
    """One error for many: the first `SHOWN` on a line each, the rest counted."""
    return Listed(mistakes, what)


class Faults:
    """What several checks find wrong, told as one error: who mends a file wants to do it once.

    Kinds share the `SHOWN` lines of an error evenly, and those that one leaves are the others'.
    """

    def __init__(self) -> None:
        self._found: list[DataError] = []

    def note(self, error: DataError) -> None:
        """Keep one for the end."""
        self._found += error.faults if isinstance(error, Several) else [error]

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a `DataError` that is raised within; what comes after goes on without its result."""
        try:
            yield
        except DataError as error:
            self.note(error)

    def settle(self) -> None:
        """Raise `DataError` with everything that was found, if anything was."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise Several(self._found)


class Several(DataError):
    """Faults of several kinds, one below the other."""

    def __init__(self, faults: list[DataError]) -> None:
        self.faults = faults
        counts = [len(fault.mistakes) if isinstance(fault, Listed) else 1 for fault in faults]
        shares = _dealt(counts)
        lines = [
            str(Listed(fault.mistakes, fault.what, share) if isinstance(fault, Listed) else fault)
            for fault, share in zip(faults, shares, strict=True)
            if share
        ]
        untold = sum(c for c, share in zip(counts, shares, strict=True) if not share)
        super().__init__("\n".join([*lines, *([f"... and {untold} more"] if untold else [])]))


def _dealt(counts: list[int]) -> list[int]:
    """How many mistakes each kind shows: one in turn, until none are left or `SHOWN` are shown."""
    shares, left = [0] * len(counts), SHOWN
    for turn in range(SHOWN):
        for place, count in enumerate(counts[:SHOWN]):
            if turn < count and left:
                shares[place] += 1
                left -= 1
    return shares
