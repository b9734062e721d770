"""A tensor's values on the wire: JSON lists, raw bytes, length-prefixed texts. Pure functions.

Strict where a value would be changed without a word: 256 in UINT8, 1.5 in INT64, true in a number
are refused, and what JSON cannot say is never sent as null.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from struct import Struct
from struct import error as NoLength
from typing import Any

import numpy as np
import orjson

from pipeline.bundle.tensors import TensorType
from serving.errors import BackendFailure, InvalidRequest
from serving.protocol import Tensor

LENGTH = Struct("<I")
"""What stands before each text of binary BYTES."""

PIECE_VALUES = 1 << 14
"""Values that are written as JSON at once, in a millisecond or a few."""

MAX_TOLD = 80
"""Characters of a value that are repeated in a message."""


def element_count(shape: list[int]) -> int:
    """Elements of a shape, exactly: Python's integers do not overflow."""
    count = 1
    for axis in shape:
        count *= axis
    return count


def from_json(where: str, kind: TensorType, shape: list[int], data: Any) -> np.ndarray:
    if not isinstance(data, list):
        raise InvalidRequest(f"{where}: data: expected a list of values, got {kind_of(data)}")
    values = _flat(where, shape, data)
    if len(values) != element_count(shape):
        raise InvalidRequest(
            f"{where}: data: expected {element_count(shape)} values for shape {shape}, got {len(values)}"
        )
    expected, allowed = _accepted(kind)
    for found in set(map(type, values)) - allowed:
        wrong = next(value for value in values if type(value) is found)
        raise InvalidRequest(f"{where}: data: expected {expected}, got {told(wrong)}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, kind.numpy)
    except OverflowError as error:
        raise InvalidRequest(f"{where}: data: {_out_of_range(kind, values)}") from error
    if kind.numpy.kind == "f" and not bool(np.isfinite(array).all()):
        raise InvalidRequest(f"{where}: data: {_out_of_range(kind, values)}")
    return array.reshape(shape)


def _flat(where: str, shape: list[int], data: list[Any]) -> list[Any]:
    """The values of nested lists, whose lengths must be the shape's; flat data passes as it is."""
    if not data or type(data[0]) is not list:
        return data
    level = data
    for depth, axis in enumerate(shape):
        lengths = {len(level)} if depth == 0 else set(map(len, level))
        if lengths - {axis}:
            raise InvalidRequest(
                f"{where}: data: expected lists of {axis} at depth {depth + 1} for shape {shape}, "
                f"got {min(lengths - {axis})}"
            )
        if depth:
            level = list(chain.from_iterable(level))
        if depth + 1 < len(shape) and set(map(type, level)) - {list}:
            raise InvalidRequest(f"{where}: data: expected lists nested {len(shape)} deep")
    return level


def _accepted(kind: TensorType) -> tuple[str, set[type]]:
    """(words, Python types of JSON values) that a tensor type takes. A bool is no number here."""
    code = kind.numpy.kind
    if code == "b":
        return "true or false", {bool}
    if code == "f":
        return "numbers", {int, float}
    if code == "O":
        return "texts", {str}
    return f"whole numbers within {kind.protocol}", {int}


def _out_of_range(kind: TensorType, values: list[Any]) -> str:
    low: float | int
    high: float | int
    if kind.numpy.kind == "f":
        low, high = float(np.finfo(kind.numpy).min), float(np.finfo(kind.numpy).max)
    else:
        low, high = np.iinfo(kind.numpy).min, np.iinfo(kind.numpy).max
    wrong = next((v for v in values if not low <= v <= high), max(values, key=abs))
    return f"expected {kind.protocol} values from {low} to {high}, got {told(wrong)}"


def from_bytes(
    name: str, kind: TensorType, shape: list[int], body: bytes, offset: int, size: int
) -> np.ndarray:
    """A view of the body, copied only where it does not lie as the processor likes it."""
    expected = element_count(shape) * kind.itemsize
    if size != expected:
        raise InvalidRequest(
            f"input {name!r}: expected {expected} bytes for {kind.protocol} {shape}, got {size}"
        )
    array = np.frombuffer(body, kind.numpy, element_count(shape), offset).reshape(shape)
    if kind.protocol == "BOOL" and size and int(array.view(np.uint8).max()) > 1:
        raise InvalidRequest(f"input {name!r}: expected BOOL bytes of 0 or 1")
    return array if array.flags.aligned else array.copy()


def from_texts(where: str, shape: list[int], payload: memoryview) -> np.ndarray:
    """BYTES: each element as its length (uint32, little-endian) and that many bytes of UTF-8."""
    texts: list[str] = []
    position, size, expected = 0, len(payload), element_count(shape)
    length_at = LENGTH.unpack_from
    try:
        for _ in range(expected):
            start = position + 4
            position = start + length_at(payload, position)[0]
            if position > size:
                raise InvalidRequest(
                    f"{where}: text {len(texts)} says {position - start} bytes, beyond the data"
                )
            texts.append(str(payload[start:position], "utf-8"))
    except NoLength as error:
        if position == size:
            raise InvalidRequest(
                f"{where}: expected {expected} texts for shape {shape}, got {len(texts)}"
            ) from error
        raise InvalidRequest(
            f"{where}: text {len(texts)}: expected its length in 4 bytes, got {size - position}"
        ) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from error
    if position < size:
        raise InvalidRequest(f"{where}: expected {expected} texts for shape {shape}, got more")
    return np.array(texts, object).reshape(shape)


def utf8(where: str, payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from error


def _not_utf8(where: str, error: UnicodeDecodeError) -> InvalidRequest:
    return InvalidRequest(f"{where}: expected UTF-8 text: {error.reason}")


def to_json(tensor: Tensor) -> bytes:
    return _listed(tensor, np.ascontiguousarray(tensor.array).reshape(-1))


def to_json_parts(tensor: Tensor) -> Iterator[bytes]:
    """The same in parts; whoever waits for the interpreter gets it between two of them."""
    array = np.ascontiguousarray(tensor.array).reshape(-1)
    before = b"["
    for start in range(0, len(array), PIECE_VALUES):
        yield before
        yield _listed(tensor, array[start : start + PIECE_VALUES])[1:-1]
        before = b","
    yield b"]"


def _listed(tensor: Tensor, values: np.ndarray) -> bytes:
    if values.dtype.hasobject:
        return orjson.dumps([_as_text(value) for value in values])
    text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # so NaN and infinity are written
        raise BackendFailure(
            f"output {tensor.name!r} holds NaN or infinity, which JSON cannot say; ask for it in "
            'binary: "parameters": {"binary_data_output": true}'
        )
    return text


def to_bytes(tensor: Tensor) -> bytes | memoryview:
    if not tensor.array.dtype.hasobject:
        return tensor.array.tobytes()
    encoded = [_as_text(value).encode() for value in tensor.array.reshape(-1)]
    packed = LENGTH.pack
    return b"".join([packed(len(text)) + text for text in encoded])


def _as_text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number")


def told(value: Any) -> str:
    """A value as it came, short enough for a message; what is large or nested by its kind."""
    if isinstance(value, str):
        value = value[: MAX_TOLD + 1]
    elif isinstance(value, (list, dict)):
        items = value if isinstance(value, list) else value.values()
        if len(value) > MAX_TOLD or any(isinstance(item, (list, dict)) for item in items):
            return kind_of(value)
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # a whole number beyond 64 bits
        text = str(value)
    return text if len(text) <= MAX_TOLD else text[:MAX_TOLD] + "..."
