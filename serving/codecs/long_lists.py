"""Long lists of numbers within JSON, read piece by piece.

Reading megabytes in one call holds the interpreter for most of a second, in whatever thread it is
done, and every other client waits that long. Here no call takes more than some milliseconds. What a
list says is what `tensor_data.from_json` makes of it; only the words for what is wrong with its
nesting are others.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from itertools import chain
from math import inf
from typing import Any, Literal

import numpy as np
import orjson
import simdjson

from pipeline.bundle.tensors import TensorType
from serving.codecs.tensor_data import element_count, from_json
from serving.codecs.tensor_head import MAX_RANK, MAX_TENSORS
from serving.errors import InvalidRequest
from serving.inference.contract import MAX_SQUARED

LONG_BYTES = 256 << 10
"""Bytes of JSON that are read at once, in a millisecond or a few."""

PIECE_BYTES = 128 << 10
COUNTED_BYTES = 1 << 20
"""Bytes looked through at a time for single characters."""

AROUND_BYTES = 256 << 10
"""Bytes of JSON around the lists named `data`, which are names, shapes and a few parameters."""

MAX_LISTS = 1 << 19
"""Lists within those that hold texts: each costs as much as many texts do."""

DATA = b'"data"'
OPENING = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')
NESTED = re.compile(rb"\[[ \t\r\n]*\[")
TO_BRACKET = re.compile(
    rb'[^][{}"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^][{}"]*+){0,4096}+[][{}]?', re.DOTALL
)
"""Up to and with the next bracket that is in no text, or past many texts."""

OPEN, CLOSE, COMMA = b"[],"

TYPES: dict[str, Literal["i", "u", "d"]] = {"i": "i", "u": "u", "f": "d"}
WIDE = {"i": np.int64, "u": np.uint64, "f": np.float64}
"""What simdjson calls a kind of number, and what it makes of it, by numpy's letter."""


def loads(text: bytes) -> Any:
    """What `orjson.loads` makes of a text, save that an input's long `data` is a `LongList`.

    Raises `orjson.JSONDecodeError`, and `InvalidRequest` for a long list that is none, and for
    more lists or objects than a request has: making a million holds the interpreter for a second.
    """
    mark = secrets.token_hex(8)  # no sender can write what stands for another's list
    parts: list[bytes] = []
    lists: dict[str, LongList] = {}
    kept = at = 0
    for _ in range(MAX_TENSORS):
        at = text.find(DATA, at)
        opening = OPENING.match(text, at) if at >= 0 else None
        if at < 0:
            break
        at += len(DATA)
        if opening is None:
            continue
        start = opening.end()
        stop = _end(text, start)
        opened = _count(text, OPEN, start, stop) if stop - start > PIECE_BYTES else 0
        if not opened or opened != _count(text, CLOSE, start, stop):
            continue
        name = f"{mark}{len(lists)}"
        lists[name] = LongList(text, start, stop, flat=opened == 1)
        parts += [text[kept:start], b'"%b"' % name.encode()]
        kept = at = stop
    if lists:
        text = b"".join([*parts, text[kept:]])
    if len(text) > AROUND_BYTES:
        _check_around(text)
    value = orjson.loads(text)
    if isinstance(value, dict) and isinstance(value.get("inputs"), list):
        for item in value["inputs"]:
            if isinstance(item, dict) and isinstance(item.get("data"), str):
                item["data"] = lists.pop(item["data"], item["data"])
    for unused in lists.values():  # nobody asks for it, yet it has to be JSON
        unused.check()
    return value


def _check_around(text: bytes) -> None:
    """Raise `InvalidRequest` for too much around the lists named `data`, or too many lists in them."""
    around, at, lists = len(text.strip()), 0, 0
    for _ in range(MAX_TENSORS):
        at = text.find(DATA, at)
        if at < 0:
            break
        opening = OPENING.match(text, at)
        at += len(DATA)
        if opening is not None:
            at, lists = _past_list(text, opening.end(), lists)
            around -= at - opening.end()
    if around > AROUND_BYTES:
        raise InvalidRequest(
            f"the body: expected at most {AROUND_BYTES} bytes of JSON around the lists named "
            f'"data", got {around}'
        )


def _past_list(text: bytes, start: int, lists: int) -> tuple[int, int]:
    """(where the list ends that begins at `start`, `lists` and those in it). Raises `InvalidRequest`."""
    at, depth = start, 0
    while found := TO_BRACKET.match(text, at):
        if found.end() == at:
            break  # a text without an end
        at = found.end()
        last = text[at - 1]
        if last in b"[{":
            depth, lists = depth + 1, lists + 1
            if depth > MAX_RANK or lists > MAX_LISTS:
                raise InvalidRequest(
                    f"data: expected lists nested up to {MAX_RANK} deep, {MAX_LISTS} of them in all"
                )
        elif last in b"]}":
            depth -= 1
            if not depth:
                break
    return at, lists


def _end(text: bytes, start: int) -> int:
    """Where the list ends that begins at `start`, if there are neither texts nor objects in it."""
    quote = text.find(b'"', start)
    limit = quote if quote >= 0 else len(text)
    brace = text.find(b"}", start, limit)
    return text.rfind(b"]", start, brace if brace >= 0 else limit) + 1


def _count(text: bytes, character: int, start: int, stop: int) -> int:
    """How often a character occurs: at a fraction of what `bytes.count` of one takes."""
    found = 0
    for at in range(start, stop, COUNTED_BYTES):
        piece = np.frombuffer(text, np.uint8, min(COUNTED_BYTES, stop - at), at)
        found += int(np.count_nonzero(piece == character))
    return found


class LongList:
    """A list of numbers, nested or flat, as its text: bytes `start` to `stop` of a body.

    A flat one has one bracket at each end and none between: there is no nesting to look at.
    """

    def __init__(self, text: bytes, start: int, stop: int, flat: bool) -> None:
        self._text = text
        self._start, self._stop = start, stop
        self._is_flat = flat
        self._parser = simdjson.Parser()

    def array(self, where: str, kind: TensorType, shape: list[int]) -> np.ndarray:
        """The values as an array of that shape. Raises `InvalidRequest` as `from_json` does."""
        expected = element_count(shape)
        count = 1 + _count(self._text, COMMA, self._start, self._stop)
        if count != expected:
            raise InvalidRequest(
                f"{where}: data: expected {expected} values for shape {shape}, got {count}"
            )
        rank = len(shape) if NESTED.match(self._text, self._start) else 1
        nesting = None if self._is_flat else _Nesting(where, shape if rank > 1 else [count])
        array = np.empty(count, kind.numpy)
        filled = 0
        for piece, opened, left in self._pieces(where):
            whole = b"%b%b%b" % (b"[" * opened, piece, b"]" * left)
            values = self._numbers(whole, kind)
            if values is None:
                flat = _flat(where, _list(where, whole), rank)
                values = from_json(where, kind, [len(flat)], flat)
            if nesting:
                nesting.check(piece)
            if filled + len(values) > count:
                raise _not_a_list(where)
            array[filled : filled + len(values)] = values
            filled += len(values)
        if nesting:
            nesting.check_end()
        if filled != count:
            raise _not_a_list(where)
        return array.reshape(shape)

    def check(self) -> None:
        """Raise `InvalidRequest` where this is not JSON."""
        for piece, opened, left in self._pieces("the body"):
            _list("the body", b"%b%b%b" % (b"[" * opened, piece, b"]" * left))

    def _pieces(self, where: str) -> Iterator[tuple[bytes, int, int]]:
        """The text cut at commas: (piece, lists open before it, lists open after it)."""
        at, depth = self._start, 0
        while at < self._stop:
            stop = self._stop
            if stop - at > PIECE_BYTES:
                stop = self._text.rfind(b",", at, at + PIECE_BYTES)
            piece = self._text[at:stop] if stop > at else b""
            # With brackets put around it, what is wrong at a cut could look right.
            first, last = piece.lstrip()[:1], piece.rstrip()[-1:]
            if not first or first in b"]," or last in b"[,":
                raise _not_a_list(where)
            opened = depth
            depth += _count(piece, OPEN, 0, len(piece)) - _count(piece, CLOSE, 0, len(piece))
            if depth < (stop < self._stop):
                raise _not_a_list(where)
            yield piece, opened, depth
            at = stop + 1

    def _numbers(self, text: bytes, kind: TensorType) -> np.ndarray | None:
        """The values of a piece; none where they are not plainly of that type."""
        letter = kind.numpy.kind
        if letter not in TYPES:
            return None
        try:
            listed = self._parser.parse(text)
            if not isinstance(listed, simdjson.Array):
                return None
            wide = np.frombuffer(listed.as_buffer(of_type=TYPES[letter]), WIDE[letter])
        except (ValueError, TypeError, RuntimeError):
            self._parser = simdjson.Parser()  # the old one may be held by the error's traceback
            return None
        return narrowed(wide, kind)


SQUARES = {2: 65504.0**2, 4: float(np.finfo(np.float32).max) ** 2, 8: inf}
"""Of the largest number of each type, by its bytes: a sum of squares below it holds none beyond."""


def narrowed(wide: np.ndarray, kind: TensorType) -> np.ndarray | None:
    """Numbers as simdjson gives them in a tensor's type; none where there are none, or one is beyond."""
    if not len(wide):
        return None
    if kind.numpy.kind != "f":
        limits = np.iinfo(kind.numpy)
        fit = limits.min <= wide.min() <= wide.max() <= limits.max
        return wide.astype(kind.numpy) if fit else None
    if len(wide) <= MAX_SQUARED and np.vdot(wide, wide) < SQUARES[kind.numpy.itemsize]:
        return wide.astype(kind.numpy)  # none is as large as the type's largest
    with np.errstate(over="ignore"):
        array = wide.astype(kind.numpy)
    return array if np.isfinite(array).all() else None


class _Nesting:
    """Holds the brackets of a list against a shape, piece by piece.

    At every comma between two values as many lists must be open as the shape has at that place;
    with none too deep and as many opened in all as there are, no bracket is left to stand wrong.
    """

    def __init__(self, where: str, shape: Sequence[int]) -> None:
        self._where = where
        self._shape = shape
        self._sizes = [element_count(list(shape[axis:])) for axis in range(1, len(shape))]
        self._depth = self._opened = 0
        self._passed = 0

    def check(self, piece: bytes) -> None:
        """Go on with the next piece, and the comma after it."""
        text = np.frombuffer(piece + b",", np.uint8)
        steps = (text == OPEN).astype(np.int32)
        self._opened += int(steps.sum())
        steps -= text == CLOSE
        depth = self._depth + np.cumsum(steps, dtype=np.int32)
        commas = depth[text == COMMA]
        values = self._passed + 1 + np.arange(len(commas))
        expected = np.full(len(commas), len(self._shape), np.int32)
        for size in self._sizes:
            expected -= values % size == 0
        self._depth, self._passed = int(depth[-1]), self._passed + len(commas)
        if self._passed == element_count(list(self._shape)):
            expected[-1] = 0  # the comma that was put after the end
        if depth.max() > len(self._shape) or (commas != expected).any():
            raise self._wrong()

    def check_end(self) -> None:
        """There are as many lists as the shape says."""
        lists, count = 1, 1
        for axis in self._shape[:-1]:
            count *= axis
            lists += count
        if self._opened != lists:
            raise self._wrong()

    def _wrong(self) -> InvalidRequest:
        return InvalidRequest(
            f"{self._where}: data: expected lists nested as shape {list(self._shape)} says"
        )


def _list(where: str, text: bytes) -> list[Any]:
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{where}: not JSON within a long list: {error.msg}") from error
    if not isinstance(values, list):
        raise _not_a_list(where)
    return values


def _flat(where: str, values: list[Any], rank: int) -> list[Any]:
    for _ in range(rank - 1):
        if set(map(type, values)) - {list}:
            raise InvalidRequest(f"{where}: data: expected lists nested {rank} deep")
        values = list(chain.from_iterable(values))
    return values


def _not_a_list(where: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: the body is not JSON: a long list of numbers is damaged")
