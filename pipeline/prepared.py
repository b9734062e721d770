"""Prepared data: what a data set hands over, how it is split, and the split on disk.

A prepared folder holds one packed `safetensors` file per split and a manifest. Rows are read
through a memory map, so training needs memory for a batch, not for the data set, and DVC handles
four files however many rows there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from pipeline.bundle.manifest import Input, canonical_json, check_labels, sha256
from pipeline.config import ConfigError, Section

SPLITS = ("train", "validation", "test")
TARGET = "target"
MANIFEST = "manifest.json"
SHOWN = 10
"""How many offending rows an error lists before it only counts them."""


class DataError(ValueError):
    """The data cannot be used as it is; the message names the rows or the file, and the fix."""


class Split(Section):
    """How rows are dealt out. A test set that the data comes with is kept as it is."""

    validation: float = Field(
        0.1, gt=0, lt=1, description="share of all rows that are not given as test"
    )
    test: float = Field(
        0.2, gt=0, lt=1, description="share of all rows; unused with a given test set"
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
class RawData:
    """A labelled data set in memory or mapped, before it is split.

    `arrays[name]` is `[rows, ...]` in the dtype and row shape that `inputs` declare; `target` is
    int64 `[rows]`, an index into `labels`; `given_test` is bool `[rows]` where the data set comes
    with a test set of its own.
    """

    inputs: tuple[Input, ...]
    arrays: Mapping[str, np.ndarray]
    target: np.ndarray
    labels: tuple[str, ...]
    given_test: np.ndarray | None = None
    source: Mapping[str, str] = field(default_factory=dict)


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
    labels, and a given test set that shares rows with the rest.
    """
    _check_shapes(raw)
    _check_labels(raw)
    identity = _row_identity(raw)
    repeated = _check_identical_rows(raw, identity)
    member = assign(identity, raw.target, split, raw.given_test)

    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    for code, part in enumerate(SPLITS):
        chosen = np.flatnonzero(member == code)
        tensors = {key: np.ascontiguousarray(array[chosen]) for key, array in raw.arrays.items()}
        tensors[TARGET] = raw.target[chosen].astype(np.int64)
        _check_classes(part, tensors[TARGET], raw.labels)
        digests[part] = _write(folder / f"{part}.safetensors", tensors)
    manifest = Manifest(
        name=name,
        source=dict(raw.source),
        inputs=raw.inputs,
        labels=raw.labels,
        split=split,
        given_test=raw.given_test is not None,
        rows={part: int((member == code).sum()) for code, part in enumerate(SPLITS)},
        rows_by_label={
            part: tuple(np.bincount(raw.target[member == code], minlength=len(raw.labels)).tolist())
            for code, part in enumerate(SPLITS)
        },
        identical_rows=repeated,
        statistics={i.name: _statistics(raw.arrays[i.name], member == 0) for i in raw.inputs},
        sha256=digests,
    )
    (folder / MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json")))
    return manifest


def assign(
    identity: np.ndarray, target: np.ndarray, split: Split, given_test: np.ndarray | None
) -> np.ndarray:
    """The split of each row as int8 `[rows]`, an index into `SPLITS`.

    Stratified by label. Rows are ordered by a hash of their content and the seed, so the split
    depends neither on the order of the rows nor on a random generator's version, and identical
    rows, having one hash, always land together.
    """
    member = np.zeros(len(target), np.int8)
    if given_test is not None:
        member[given_test] = SPLITS.index("test")
    shares = {"validation": split.validation, "test": 0.0 if given_test is not None else split.test}
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
    """One split ('train', 'validation', 'test'), memory-mapped."""
    tensors = _map(Path(folder) / f"{part}.safetensors")
    target = tensors.pop(TARGET)
    return Rows(tensors, target)


def _check_shapes(raw: RawData) -> None:
    for declared in raw.inputs:
        array = raw.arrays[declared.name]
        if array.dtype.name != declared.dtype or array.shape[1:] != tuple(declared.shape[1:]):
            raise DataError(
                f"input {declared.name!r}: declared {declared.dtype} {list(declared.shape)}, "
                f"loaded {array.dtype.name} {list(array.shape)}"
            )
        if len(array) != len(raw.target):
            raise DataError(f"{len(array)} rows of {declared.name!r} but {len(raw.target)} labels")
    if not len(raw.target):
        raise DataError("the data set has no rows")


def _check_labels(raw: RawData) -> None:
    try:
        check_labels(raw.labels)
    except ValueError as error:
        raise DataError(str(error)) from None
    bad = np.flatnonzero((raw.target < 0) | (raw.target >= len(raw.labels)))
    if len(bad):
        shown = ", ".join(f"row {row} has {raw.target[row]}" for row in bad[:SHOWN])
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


def _row_identity(raw: RawData) -> np.ndarray:
    """16 bytes per row that equal rows share, as uint8 `[rows, 16]`."""
    names = sorted(raw.arrays)
    identity = np.empty((len(raw.target), 16), np.uint8)
    for row in range(len(raw.target)):
        content = hashlib.blake2b(digest_size=16)
        for name in names:
            content.update(np.ascontiguousarray(raw.arrays[name][row]).data)
        identity[row] = np.frombuffer(content.digest(), np.uint8)
    return identity


def _check_identical_rows(raw: RawData, identity: np.ndarray) -> int:
    """How many rows repeat an earlier one; refuses those that contradict or leak."""
    _, group = np.unique(identity.view("V16").ravel(), return_inverse=True)
    order = np.argsort(group, kind="stable")
    same = group[order][1:] == group[order][:-1]
    first, second = order[:-1][same], order[1:][same]
    _refuse(
        first,
        second,
        raw.target[first] != raw.target[second],
        "identical rows have different labels; correct or remove them",
        lambda row: raw.labels[raw.target[row]],
    )
    if raw.given_test is not None:
        given = raw.given_test
        _refuse(
            first,
            second,
            given[first] != given[second],
            "rows of the given test set are also training rows, so the test would flatter; "
            "remove them from one of the two",
            lambda row: "test" if given[row] else "train",
        )
    return len(first)


def _refuse(
    first: np.ndarray,
    second: np.ndarray,
    wrong: np.ndarray,
    what: str,
    describe: Callable[[np.intp], str],
) -> None:
    pairs = list(zip(first[wrong], second[wrong], strict=True))
    if pairs:
        shown = "; ".join(
            f"row {a} ({describe(a)}) and row {b} ({describe(b)})" for a, b in pairs[:SHOWN]
        )
        raise DataError(f"{what}: {len(pairs)} pairs: {shown}")


def _statistics(array: np.ndarray, train: np.ndarray) -> tuple[Channel, ...]:
    """Mean and deviation by last axis over the training rows, a slice of rows at a time."""
    total = square = None
    count = 0
    rows = np.flatnonzero(train)
    for start in range(0, len(rows), 1024):
        part = array[rows[start : start + 1024]].astype(np.float64)
        part = part.reshape(-1, part.shape[-1])
        total = part.sum(0) if total is None else total + part.sum(0)
        square = (part**2).sum(0) if square is None else square + (part**2).sum(0)
        count += len(part)
    assert total is not None and square is not None
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    return tuple(
        Channel(mean=float(f"{m:.9g}"), std=float(f"{s:.9g}"))
        for m, s in zip(mean, std, strict=True)
    )


def _write(path: Path, tensors: dict[str, np.ndarray]) -> str:
    from safetensors.numpy import save_file

    save_file(tensors, path)
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode() + b"\0" + tensors[name].data)
    return content.hexdigest()


def _map(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only memory maps.

    The library's own numpy reader copies whole tensors; the format is an 8-byte length, a JSON
    header and the data, so mapping it takes a few lines.
    """
    types = {"U8": "u1", "I16": "<i2", "I64": "<i8", "F32": "<f4", "BOOL": "?"}
    if not path.is_file():
        raise DataError(f"{path}: no prepared data; run `dvc repro`")
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__")
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes, expected {8 + length + end}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); run `dvc repro`") from error
    return {
        name: np.memmap(
            path,
            types[entry["dtype"]],
            "r",
            8 + length + entry["data_offsets"][0],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
