"""The fields of a request's bytes, counted before protobuf makes an object of each.

An empty tensor is two bytes on the wire and ninety in memory, and gzip makes nothing of millions.
Whatever is wrong with the bytes is left to protobuf, which stops at the same place.
"""

from __future__ import annotations

from collections.abc import Iterator

from serving.errors import InvalidRequest

SMALL = 64 << 10
"""Bytes of a message in which there is no room for harm."""

MAX_FIELDS = 16 << 10
"""Of the message, its tensors and wanted outputs: 256 of each, with shapes and parameters, are fewer."""

MAX_VALUES = 1 << 20
"""Of typed contents where each value is a field of its own: texts, and numbers that are not packed."""

MAX_SHAPE = 1024
"""Bytes of a packed shape."""

MODEL, VERSION, INPUTS, OUTPUTS = 1, 2, 5, 6
SHAPE, CONTENTS = 3, 5
"""Fields of ModelInferRequest, and of its inputs."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
GROUPS = (3, 4)
"""The marks around a group; what is between them is counted as if it stood outside."""

Field = tuple[int, int, int]
"""(number, from where, up to where)"""


def fields(payload: bytes, at: int, end: int) -> Iterator[Field]:
    """The fields of the message from `at` to `end`, until there is something that is none."""
    while at < end:
        tag, at = _varint(payload, at, end)
        kind = tag & 7
        start = at
        if kind == BYTES:
            size, start = _varint(payload, at, end)
            at = start + size
        elif kind == VARINT:
            _, at = _varint(payload, at, end)
        elif kind in (FIXED32, FIXED64):
            at += 4 if kind == FIXED32 else 8
        elif kind not in GROUPS:
            return
        if at > end:
            return
        yield tag >> 3, start, at


def check_fields(payload: bytes) -> None:
    """Raise `InvalidRequest` for a ModelInferRequest of more fields than any client needs."""
    if len(payload) <= SMALL:
        return
    heads = values = 0
    for number, start, end in _few(payload):
        if number not in (INPUTS, OUTPUTS):
            continue
        for inner, begin, stop in fields(payload, start, end):
            heads += 1
            if heads > MAX_FIELDS:
                raise _too_many()
            if number == OUTPUTS:
                continue
            if inner == SHAPE and stop - begin > MAX_SHAPE:
                raise InvalidRequest(
                    f"an input's shape: expected at most {MAX_SHAPE} bytes, got {stop - begin}"
                )
            if inner == CONTENTS:
                for _ in fields(payload, begin, stop):
                    values += 1
                    if values > MAX_VALUES:
                        raise InvalidRequest(
                            f"contents: expected at most {MAX_VALUES} texts, or numbers that are "
                            "not packed, got more; send raw_input_contents"
                        )


def model_of(payload: bytes) -> tuple[str, str | None]:
    """(model, version) that a message names. Raises `InvalidRequest` for too many fields."""
    named = {MODEL: b"", VERSION: b""}
    for number, start, end in _few(payload):
        if number in named:
            named[number] = payload[start:end]
    name, version = (named[key].decode(errors="replace") for key in (MODEL, VERSION))
    return name, version or None


def _few(payload: bytes) -> Iterator[Field]:
    for count, field in enumerate(fields(payload, 0, len(payload))):
        if count >= MAX_FIELDS:
            raise _too_many()
        yield field


def _too_many() -> InvalidRequest:
    return InvalidRequest(
        f"the message: expected at most {MAX_FIELDS} fields, its tensors' among them, got more"
    )


def _varint(payload: bytes, at: int, end: int) -> tuple[int, int]:
    """(value, what comes after it); beyond the end where it is cut off or too long."""
    value = shift = 0
    while at < end and shift < 70:
        byte = payload[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, end + 1
