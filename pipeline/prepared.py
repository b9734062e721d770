"""Prepared data: what a data set hands over, how it is split, and the split on disk.

A prepared folder holds one packed file per split (`pipeline/packed.py`) and a manifest. Rows are
written a slice at a time and read through a memory map, so neither preparation nor training needs
memory for the data set, and DVC handles a few files however many rows there are.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from pipeline import packed
from pipeline.bundle.manifest import Input, canonical_json, check_labels, sha256
from pipeline.config import ConfigError, Section

SPLITS = ("train", "validation", "test")
TARGET = "target"
MANIFEST = "manifest.json"
FILES = "files.json"
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


class Channel(Section):
    """Mean and standard deviation of one channel over the training split, in the input's units."""

    mean: float
    std: float


class Manifest(Section):
    """What the prepared folder holds; its SHA-256 is the data set's digest."""

    schema_version: int = 1
    name: str
    source: dict[str, str]
    inputs: tuple[Input, ...]
    labels: tuple[str, ...]
    split: Split
    given_test: bool
    rows: dict[str, int]
    rows_by_label: dict[str, tuple[int, ...]]
    identical_rows: int = Field(
        description="rows that repeat an earlier row; kept in that row's split"
    )
    statistics: dict[str, tuple[Channel, ...]]
    sha256: dict[str, str] = Field(description="by split, over the tensors' bytes in name order")


@dataclass(frozen=True)
class Stream:
    """Rows that are made one after the other, for data that need not fit into memory.

    `rows()` gives `count` of them, as its input declares them without the batch axis. It may raise
    `DataError` at the end, so that a list of everything that could not be read is one error.
    """

    count: int
    rows: Callable[[], Iterator[np.ndarray]]

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class RawData:
    """A labelled data set in memory, mapped or streamed, before it is split.

    `arrays[name]` is `[rows, ...]` in the dtype and row shape that `inputs` declare; `target` is
    int64 `[rows]`, an index into `labels`; `given_test` and `given_validation` are bool `[rows]`
    where the data set comes with such a set of its own; `files` names the file of each row, below
    the data's path, where every row has one.
    """

    inputs: tuple[Input, ...]
    arrays: Mapping[str, np.ndarray | Stream]
    target: np.ndarray
    labels: tuple[str, ...]
    given_test: np.ndarray | None = None
    given_validation: np.ndarray | None = None
    files: tuple[str, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)

    def row(self, number: int | np.intp) -> str:
        """What a message calls a row."""
        return self.files[number] if self.files else f"row {number}"


@dataclass(frozen=True)
class Rows:
    """One split: memory-mapped arrays `[rows, ...]` and the int64 target `[rows]`."""

    arrays: Mapping[str, np.ndarray]
    target: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def take(self, indices: np.ndarray | slice) -> dict[str, np.ndarray]:
        """These rows of every input, copied out of the map."""
        return {name: np.array(array[indices]) for name, array in self.arrays.items()}

    def batches(self, size: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """All rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.take(part), np.array(self.target[part])


def prepare(name: str, raw: RawData, split: Split, folder: Path) -> Manifest:
    """Check and split `raw` and write it to `folder`.

    Raises `DataError` for labels out of range, empty classes, identical rows with different
    labels, and a given test or validation set that shares rows with the rest.
    """
    _check_labels(raw)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=folder) as scratch:
        arrays = {i.name: _mapped(i, raw.arrays[i.name], Path(scratch)) for i in raw.inputs}
        return _deal(name, raw, arrays, split, folder)


def _deal(
    name: str, raw: RawData, arrays: Mapping[str, np.ndarray], split: Split, folder: Path
) -> Manifest:
    _check_shapes(raw, arrays)
    identity = _row_identity(arrays)
    repeated = _check_identical_rows(raw, identity)
    member = assign(identity, raw.target, split, raw.given_test, raw.given_validation)
    chosen = {part: np.flatnonzero(member == code) for code, part in enumerate(SPLITS)}
    for part, rows in chosen.items():
        _check_classes(part, raw.target[rows], raw.labels)
    tensors = {**arrays, TARGET: raw.target.astype(np.int64)}
    manifest = Manifest(
        name=name,
        source=dict(raw.source),
        inputs=raw.inputs,
        labels=raw.labels,
        split=split,
        given_test=raw.given_test is not None,
        rows={part: len(rows) for part, rows in chosen.items()},
        rows_by_label={
            part: tuple(np.bincount(raw.target[rows], minlength=len(raw.labels)).tolist())
            for part, rows in chosen.items()
        },
        identical_rows=repeated,
        statistics={i.name: _statistics(arrays[i.name], chosen["train"]) for i in raw.inputs},
        sha256={
            part: packed.write(folder / f"{part}.safetensors", tensors, rows)
            for part, rows in chosen.items()
        },
    )
    if raw.files:
        named = {part: [raw.files[row] for row in rows] for part, rows in chosen.items()}
        (folder / FILES).write_bytes(canonical_json(named))
    (folder / MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json")))
    return manifest


def assign(
    identity: np.ndarray,
    target: np.ndarray,
    split: Split,
    given_test: np.ndarray | None,
    given_validation: np.ndarray | None = None,
) -> np.ndarray:
    """The split of each row as int8 `[rows]`, an index into `SPLITS`.

    Stratified by label. Rows are ordered by a hash of their content and the seed, so the split
    depends neither on the order of the rows nor on a random generator's version, and identical
    rows, having one hash, always land together.
    """
    member = np.zeros(len(target), np.int8)
    shares = {"validation": split.validation, "test": split.test}
    for part, given in (("validation", given_validation), ("test", given_test)):
        if given is not None:
            member[given] = SPLITS.index(part)
            del shares[part]
    if sum(shares.values()) >= 1:
        raise ConfigError(
            f"data.split: validation and test take {sum(shares.values())}, nothing is left to train"
        )
    for label in np.unique(target):
        rows = np.flatnonzero((target == label) & (member == 0))
        keys = [
            hashlib.sha256(split.seed.to_bytes(8, "little") + bytes(identity[row])).digest()
            for row in rows
        ]
        order = sorted(range(len(rows)), key=keys.__getitem__)
        start = 0
        for part, share in shares.items():
            stop = min(len(order), start + round(share * len(order)))
            while start < stop < len(order) and keys[order[stop]] == keys[order[stop - 1]]:
                stop += 1  # a group of identical rows is never cut
            member[rows[order[start:stop]]] = SPLITS.index(part)
            start = stop
    return member


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder. Raises `DataError` when there is none."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: no prepared data; run `dvc repro`")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: damaged ({error.errors()[0]['msg']}); run `dvc repro`") from error


def digest(manifest: Manifest) -> str:
    """The data set's identity: SHA-256 over its manifest, which lists the digest of each split."""
    return sha256(canonical_json(manifest.model_dump(mode="json")))


def read(folder: Path, part: str) -> Rows:
    """One split ('train', 'validation', 'test'), memory-mapped. Raises `DataError`."""
    try:
        tensors = packed.read(Path(folder) / f"{part}.safetensors")
    except packed.PackedError as error:
        raise DataError(f"{error}; run `dvc repro`") from error
    target = tensors.pop(TARGET)
    return Rows(tensors, target)


def read_files(folder: Path, part: str) -> list[str] | None:
    """The file of each row of a split, below the data's path; None where rows have no files."""
    path = Path(folder) / FILES
    if not path.is_file():
        return None
    files: list[str] = json.loads(path.read_bytes())[part]
    return files


def listed(mistakes: list[str], what: str) -> DataError:
    """One error for many: the first `SHOWN` on a line each, the rest counted."""
    lines = [f"{what}: {len(mistakes)}", *(f"  {mistake}" for mistake in mistakes[:SHOWN])]
    if len(mistakes) > SHOWN:
        lines.append(f"  ... and {len(mistakes) - SHOWN} more")
    return DataError("\n".join(lines))


def _mapped(declared: Input, array: np.ndarray | Stream, scratch: Path) -> np.ndarray:
    """The rows as one array; a stream's are written to a file as they come, and mapped."""
    if not isinstance(array, Stream):
        return array
    shape, path = tuple(int(n) for n in declared.shape[1:]), scratch / declared.name
    count = 0
    with open(path, "wb") as file:
        for row in array.rows():
            if row.dtype.name != declared.dtype or row.shape != shape:
                raise DataError(
                    f"input {declared.name!r}: declared {declared.dtype} {list(shape)}, "
                    f"row {count} is {row.dtype.name} {list(row.shape)}"
                )
            file.write(np.ascontiguousarray(row).data)
            count += 1
    if count != array.count:
        raise DataError(f"input {declared.name!r}: {array.count} rows announced, {count} came")
    if not count:
        return np.empty((0, *shape), declared.dtype)
    return np.memmap(path, declared.dtype, "r", 0, (count, *shape))


def _check_shapes(raw: RawData, arrays: Mapping[str, np.ndarray]) -> None:
    for declared in raw.inputs:
        array = arrays[declared.name]
        if array.dtype.name != declared.dtype or array.shape[1:] != tuple(declared.shape[1:]):
            raise DataError(
                f"input {declared.name!r}: declared {declared.dtype} {list(declared.shape)}, "
                f"loaded {array.dtype.name} {list(array.shape)}"
            )


def _check_labels(raw: RawData) -> None:
    for declared in raw.inputs:
        if (count := len(raw.arrays[declared.name])) != len(raw.target):
            raise DataError(f"{count} rows of {declared.name!r} but {len(raw.target)} labels")
    if not len(raw.target):
        raise DataError("the data set has no rows")
    try:
        check_labels(raw.labels)
    except ValueError as error:
        raise DataError(str(error)) from None
    bad = np.flatnonzero((raw.target < 0) | (raw.target >= len(raw.labels)))
    if len(bad):
        shown = ", ".join(f"{raw.row(row)} has {raw.target[row]}" for row in bad[:SHOWN])
        raise DataError(
            f"{len(bad)} labels out of range, expected 0 to {len(raw.labels) - 1} "
            f"({len(raw.labels)} names are declared): {shown}"
        )
    _check_classes("whole", raw.target, raw.labels)


def _check_classes(part: str, target: np.ndarray, labels: tuple[str, ...]) -> None:
    counts = np.bincount(target, minlength=len(labels))
    empty = [labels[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(
            f"classes without a row in the {part} data: {', '.join(empty[:SHOWN])}; add rows, "
            "take the label out, or change the split's shares"
        )


def _row_identity(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """16 bytes per row that equal rows share, as uint8 `[rows, 16]`."""
    names = sorted(arrays)
    rows = len(arrays[names[0]])
    identity = np.empty((rows, 16), np.uint8)
    for row in range(rows):
        content = hashlib.blake2b(digest_size=16)
        for name in names:
            content.update(np.ascontiguousarray(arrays[name][row]).data)
        identity[row] = np.frombuffer(content.digest(), np.uint8)
    return identity


def _check_identical_rows(raw: RawData, identity: np.ndarray) -> int:
    """How many rows repeat an earlier one; refuses those that contradict or leak."""
    _, group = np.unique(identity.view("V16").ravel(), return_inverse=True)
    order = np.argsort(group, kind="stable")
    same = group[order][1:] == group[order][:-1]
    first, second = order[:-1][same], order[1:][same]
    _refuse(
        raw,
        (first, second),
        raw.target[first] != raw.target[second],
        "identical rows have different labels; correct or remove them",
        lambda row: raw.labels[raw.target[row]],
    )
    given = np.zeros(len(raw.target), np.int8)
    for part, rows in (("validation", raw.given_validation), ("test", raw.given_test)):
        if rows is not None:
            given[rows] = SPLITS.index(part)
    _refuse(
        raw,
        (first, second),
        given[first] != given[second],
        "rows of a given set are also in another, so its figures would flatter; "
        "remove them from one of the two",
        lambda row: SPLITS[given[row]],
    )
    return len(first)


def _refuse(
    raw: RawData,
    pairs: tuple[np.ndarray, np.ndarray],
    wrong: np.ndarray,
    what: str,
    describe: Callable[[np.intp], str],
) -> None:
    if wrong.any():
        raise listed(
            [
                f"{raw.row(a)} ({describe(a)}) and {raw.row(b)} ({describe(b)})"
                for a, b in sorted(zip(pairs[0][wrong], pairs[1][wrong], strict=True))
            ],
            what,
        )


def _statistics(array: np.ndarray, rows: np.ndarray) -> tuple[Channel, ...]:
    """Mean and deviation by last axis over these rows, a slice of them at a time."""
    total = square = np.zeros(array.shape[-1])
    count = 0
    for some in packed.slices(rows, 8 * int(np.prod(array.shape[1:]))):
        part = array[some].astype(np.float64).reshape(-1, array.shape[-1])
        total, square = total + part.sum(0), square + (part**2).sum(0)
        count += len(part)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    return tuple(
        Channel(mean=float(f"{m:.9g}"), std=float(f"{s:.9g}"))
        for m, s in zip(mean, std, strict=True)
    )
