"""Prepared data: the split on disk.

A prepared folder holds one packed file per split (`pipeline/packed.py`) and a manifest. Rows are
written a slice at a time and read through a memory map, so neither preparation nor training needs
memory for the data set, and DVC handles a few files however many rows there are.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from pipeline import packed, plugins
from pipeline import target as targets
from pipeline.bundle.decode import drawn
from pipeline.bundle.manifest import Input, canonical_json, sha256
from pipeline.config import Section
from pipeline.dataset import DataError, Encoded, RawData, Split, Stream
from pipeline.split import SPLITS, assign, check_identical, identity_of, strata_of
from pipeline.statistics import Channel
from pipeline.target import Target

TARGET = "target"
MANIFEST = "manifest.json"
FILES = "files.json"


class Manifest(Section):
    """What the prepared folder holds; its SHA-256 is the data set's digest."""

    schema_version: int = 2
    name: str
    source: dict[str, str]
    inputs: tuple[Input, ...]
    frontend: dict[str, Any]
    target: Target
    split: Split
    given_test: bool
    rows: dict[str, int]
    rows_by_label: dict[str, tuple[int, ...]]
    identical_rows: int = Field(
        description="rows that repeat an earlier row; kept in that row's split"
    )
    statistics: dict[str, tuple[Channel, ...]]
    files: dict[str, str] = Field(description="SHA-256 of what decoders read, for the bundle")
    sha256: dict[str, str] = Field(description="by split, over the tensors' bytes in name order")

    @property
    def labels(self) -> tuple[str, ...]:
        """The target's labels; none where it is a number."""
        return self.target.labels


@dataclass(frozen=True)
class Rows:
    """One split: memory-mapped arrays `[rows, ...]` and the target `[rows, ...]`.

    `padding` has what fills up the rows of an input whose length is free; `seen(row)` is a row as a
    person sees it: levels of a picture, or a text; None where there is nothing to see. `name(row)` is
    its file, or its place.
    """

    arrays: Mapping[str, np.ndarray]
    target: np.ndarray
    padding: Mapping[str, int] = field(default_factory=dict)
    seen: Callable[[int], np.ndarray | str | None] = lambda row: None
    name: Callable[[int], str] = lambda row: f"row {row}"

    def __len__(self) -> int:
        return len(self.target)

    def take(self, indices: np.ndarray | slice) -> dict[str, np.ndarray]:
        """These rows of every input, copied out of the map, no longer than the longest of them."""
        taken = {name: np.array(array[indices]) for name, array in self.arrays.items()}
        for name, filling in self.padding.items():
            used = np.flatnonzero((taken[name] != filling).any(0))
            taken[name] = np.ascontiguousarray(taken[name][:, : used[-1] + 1 if len(used) else 1])
        return taken

    def batches(self, size: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """All rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.take(part), np.array(self.target[part])


def prepare(
    name: str, raw: RawData, split: Split, folder: Path
) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Check and split `raw` and write it to `folder`: the manifest, and each split's row numbers.

    Raises `DataError` for targets that cannot be taught, labels without rows, identical rows with
    different labels, and a given test or validation set that shares rows with the rest.
    """
    targets.check(raw)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=folder) as scratch:
        return _deal(name, raw, split, folder, Path(scratch))


def _deal(
    name: str, raw: RawData, split: Split, folder: Path, scratch: Path
) -> tuple[Manifest, dict[str, np.ndarray]]:
    arrays = {} if callable(raw.rows) else _mapped(raw, raw.rows, scratch)
    identity = identity_of(arrays if raw.identity is None else raw.identity)
    repeated = check_identical(raw, identity)
    member = assign(identity, strata_of(raw, identity), split, raw.given_test, raw.given_validation)
    chosen = {part: np.flatnonzero(member == code) for code, part in enumerate(SPLITS)}
    for part, rows in chosen.items():
        targets.check_present(part, raw.target[rows], raw.labels)
    if callable(raw.rows):
        encoded = raw.rows(chosen["train"])
        arrays = _mapped(raw, encoded, scratch)
    else:
        encoded = raw.rows
    tensors = {**arrays, TARGET: targets.stored(raw.target)}
    frontend = plugins.load("frontend", raw.frontend.name, "data.frontend.name")
    manifest = Manifest(
        name=name,
        source=dict(raw.source),
        inputs=encoded.inputs,
        frontend=raw.frontend.model_dump(mode="json"),
        target=targets.describe(raw, chosen["train"]),
        split=split,
        given_test=raw.given_test is not None,
        rows={part: len(rows) for part, rows in chosen.items()},
        rows_by_label={
            part: targets.counts(raw.target[rows], raw.labels) for part, rows in chosen.items()
        },
        identical_rows=repeated,
        statistics=frontend.measure(raw.frontend, encoded.inputs, arrays, chosen["train"]),
        files={name: sha256(payload) for name, payload in encoded.files.items()},
        sha256={
            part: packed.write(folder / f"{part}.safetensors", tensors, rows)
            for part, rows in chosen.items()
        },
    )
    for name, payload in encoded.files.items():
        (folder / name).write_bytes(payload)
    if raw.files:
        named = {part: [raw.files[row] for row in rows] for part, rows in chosen.items()}
        (folder / FILES).write_bytes(canonical_json(named))
    (folder / MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json")))
    return manifest, chosen


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
    manifest = read_manifest(folder)
    try:
        tensors = packed.read(Path(folder) / f"{part}.safetensors")
    except packed.PackedError as error:
        raise DataError(f"{error}; run `dvc repro`") from error
    target = tensors.pop(TARGET)
    # In the order in which the network is called with them.
    arrays = {declared.name: tensors[declared.name] for declared in manifest.inputs}
    padding = {i.name: i.padding for i in manifest.inputs if i.padding is not None}
    return Rows(arrays, target, padding, _seen(folder, manifest, arrays), _name(folder, part))


def _seen(
    folder: Path, manifest: Manifest, arrays: Mapping[str, np.ndarray]
) -> Callable[[int], np.ndarray | str | None]:
    """What shows a row, by the first input that a file becomes."""
    declared = next((i for i in manifest.inputs if i.decoder is not None), None)
    if declared is None or declared.decoder is None:
        return lambda row: None
    decoder, array = declared.decoder, arrays[declared.name]
    files = {name: (Path(folder) / name).read_bytes() for name in decoder.reads}
    return lambda row: drawn(decoder, np.array(array[row]), files)


def _name(folder: Path, part: str) -> Callable[[int], str]:
    """What a row is called: its file where it has one, below the data's path."""

    @cache
    def files() -> list[str] | None:
        return read_files(folder, part)

    def name(row: int) -> str:
        known = files()
        return known[row] if known else f"{part} row {row}"

    return name


def read_files(folder: Path, part: str) -> list[str] | None:
    """The file of each row of a split, below the data's path; None where rows have no files."""
    path = Path(folder) / FILES
    if not path.is_file():
        return None
    files: list[str] = json.loads(path.read_bytes())[part]
    return files


def _mapped(raw: RawData, encoded: Encoded, scratch: Path) -> dict[str, np.ndarray]:
    """Every input's rows as one array, of the declared type and shape. Raises `DataError`."""
    arrays = {}
    for declared in encoded.inputs:
        rows = encoded.arrays[declared.name]
        if len(rows) != len(raw.target):
            raise DataError(f"{len(rows)} rows of {declared.name!r} but {len(raw.target)} labels")
        array = _drained(declared, rows, scratch) if isinstance(rows, Stream) else rows
        if array.dtype.name != declared.dtype or not _fits(declared, array.shape):
            raise DataError(
                f"input {declared.name!r}: declared {declared.dtype} {list(declared.shape)}, "
                f"loaded {array.dtype.name} {list(array.shape)}"
            )
        arrays[declared.name] = array
    return arrays


def _fits(declared: Input, shape: tuple[int, ...]) -> bool:
    axes = declared.shape[1:]
    return len(axes) == len(shape) - 1 and all(
        isinstance(axis, str) or axis == n for axis, n in zip(axes, shape[1:], strict=True)
    )


def _drained(declared: Input, stream: Stream, scratch: Path) -> np.ndarray:
    """A stream's rows, written to a file as they come, and mapped."""
    path, count, shape = scratch / declared.name, 0, None
    with open(path, "wb") as file:
        for row in stream.rows():
            shape = shape or row.shape
            if (
                row.dtype.name != declared.dtype
                or row.shape != shape
                or not _fits(declared, (1, *row.shape))
            ):
                raise DataError(
                    f"input {declared.name!r}: declared {declared.dtype} {list(declared.shape[1:])}, "
                    f"row {count} is {row.dtype.name} {list(row.shape)}"
                )
            file.write(np.ascontiguousarray(row).data)
            count += 1
    if count != stream.count:
        raise DataError(f"input {declared.name!r}: {stream.count} rows announced, {count} came")
    if not count or shape is None:
        return np.empty((0, *(1 if isinstance(n, str) else n for n in declared.shape[1:])))
    return np.memmap(path, declared.dtype, "r", 0, (count, *shape))
