"""What a request says of a tensor before its data: name, datatype, shape. The same at every door."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.bundle.tensors import BY_PROTOCOL, TensorType
from serving.codecs.tensor_data import told
from serving.errors import InvalidRequest
from serving.protocol import MAX_PRIORITY

MAX_RANK = 8
MAX_TENSORS = 256
MAX_ID = 1024
MAX_ELEMENTS = 2**31 - 1
"""Of one tensor, a zero axis counted as one: numpy cannot shape everything that is empty."""

Check = Callable[[str, str, Sequence[int]], None]
"""Told an input's name, datatype and shape before its data is read; raises `InvalidRequest`."""


def check_unique(names: list[str], what: str) -> None:
    """Raise `InvalidRequest` for a name that comes twice."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"{what} {twice!r}: expected once, got {names.count(twice)} times")


DIGITS = re.compile("[0-9]{1,20}")
"""A whole number as a text, which is how some clients write parameters."""


def check_count(key: str, count: int) -> None:
    """Raise `InvalidRequest` for more tensors than any model has."""
    if count > MAX_TENSORS:
        raise InvalidRequest(f"{key}: expected at most {MAX_TENSORS} tensors, got {count}")


def check_id(identity: Any) -> None:
    """Raise `InvalidRequest` for an id that is no text, or an essay."""
    if identity is not None and (not isinstance(identity, str) or len(identity) > MAX_ID):
        raise InvalidRequest(
            f"id: expected a text of up to {MAX_ID} characters, got {told(identity)}"
        )


def timeout(value: Any) -> float:
    """Seconds of a request's parameter `timeout`, microseconds; 0 for none. Raises `InvalidRequest`."""
    if isinstance(value, str) and DIGITS.fullmatch(value):
        value = int(value)
    if type(value) not in (int, float) or not 0 <= value < 2**63:
        raise InvalidRequest(f"timeout: expected microseconds, 0 for none, got {told(value)}")
    return float(value) / 1e6


def priority(value: Any) -> int:
    """A request's parameter `priority`. Raises `InvalidRequest`."""
    if isinstance(value, str) and DIGITS.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_PRIORITY:
        raise InvalidRequest(
            f"priority: expected 1, the first, to {MAX_PRIORITY}, or 0 for the default, "
            f"got {told(value)}"
        )
    return value


def datatype(value: Any, where: str) -> TensorType:
    """The element type of a protocol name. Raises `InvalidRequest` with those there are."""
    kind = BY_PROTOCOL.get(value) if isinstance(value, str) else None
    if kind is None:
        raise InvalidRequest(
            f"{where}: datatype: expected one of {', '.join(BY_PROTOCOL)}, got {told(value)}"
        )
    return kind


def shape(value: Any, where: str) -> list[int]:
    """The axes of a shape, the batch included. Raises `InvalidRequest`."""
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise InvalidRequest(
            f"{where}: shape: expected a list of up to {MAX_RANK} whole numbers, got {told(value)}"
        )
    for axis in value:
        if type(axis) is not int or axis < 0:
            raise InvalidRequest(
                f"{where}: shape: expected whole numbers from 0, the batch included, "
                f"got {told(value)}"
            )
    elements = 1
    for axis in value:
        elements *= max(axis, 1)
    if elements > MAX_ELEMENTS:
        raise InvalidRequest(
            f"{where}: shape: expected at most {MAX_ELEMENTS} elements, got {told(value)}"
        )
    return value
