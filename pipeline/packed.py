"""Rows on disk: one safetensors file, written a slice at a time and read through a memory map.

The format is an 8-byte length, a JSON header and the data. The library writes and reads whole
tensors in memory; written here, a file takes no more than a slice, and its bytes are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

TYPES = {"BOOL": "?", "U8": "u1", "I16": "<i2", "F32": "<f4", "I64": "<i8"}
"""The format's names of types, narrow ones first; a file holds the wide ones first."""

SLICE = 1 << 23
"""Bytes that are handled at once."""


class PackedError(ValueError):
    """A file that is not there or not whole."""


def slices(rows: np.ndarray, row_bytes: int) -> Iterator[np.ndarray]:
    """The row numbers in parts of about `SLICE` bytes."""
    step = max(1, SLICE // max(1, row_bytes))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def write(path: Path, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> str:
    """`arrays[name][rows]` of every name to a file; the SHA-256 over names and bytes, by name."""
    kinds = {name: _kind(array.dtype) for name, array in arrays.items()}
    order = sorted(arrays, key=lambda name: (-list(TYPES).index(kinds[name]), name))
    header, end = {}, 0
    for name in order:
        start, end = end, end + len(rows) * _row_bytes(arrays[name])
        shape = [len(rows), *arrays[name].shape[1:]]
        header[name] = {"dtype": kinds[name], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for part in slices(rows, _row_bytes(arrays[name])):
                file.write(np.ascontiguousarray(arrays[name][part]).data)
    return _digest(read(path))


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as read-only memory maps. Raises `PackedError`."""
    if not path.is_file():
        raise PackedError(f"{path}: no prepared data")
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__")
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes, expected {8 + length + end}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackedError(f"{path}: damaged ({error})") from error
    return {
        name: np.memmap(
            path,
            TYPES[entry["dtype"]],
            "r",
            8 + length + entry["data_offsets"][0],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode() + b"\0")
        array = tensors[name]
        for part in slices(np.arange(len(array)), _row_bytes(array)):
            content.update(np.ascontiguousarray(array[part[0] : part[-1] + 1]).data)
    return content.hexdigest()


def _kind(dtype: np.dtype) -> str:
    return next(name for name, code in TYPES.items() if np.dtype(code) == dtype)


def _row_bytes(array: np.ndarray) -> int:
    return array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
