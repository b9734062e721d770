"""Requests that differ only in their numbers, read at a glance.

A client sends the same JSON again and again around other numbers. What the strict reading of
`codec_json` found in it is kept as a template under its very bytes; while those come again, only
the numbers are read. Whatever is new or out of the ordinary takes the strict way, which alone
decides what is refused and with which words. A template therefore never answers differently, only
sooner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import orjson
import simdjson

from pipeline.bundle.tensors import BY_PROTOCOL, TensorType
from serving.codecs import codec_json
from serving.codecs.long_lists import TYPES, WIDE, narrowed
from serving.codecs.tensor_head import Check
from serving.protocol import InferRequest, Tensor, WantedOutput

MAX_FRAME = 2048
"""Bytes of JSON around the numbers that are worth remembering."""

MAX_KNOWN = 256
"""Templates of one model. Beyond that all are forgotten, and the frequent ones soon known again."""

MAX_KEPT = 1 << 20
"""Bytes of numbers that are read with the parser that stays."""

DATA = b'"data":'
SPACED_DATA = b'"data": '


@dataclass(slots=True)
class Part:
    """One input's place in a request. `start` is its first byte after the JSON, if binary."""

    name: str
    kind: TensorType
    shape: tuple[int, ...]
    count: int
    start: int = 0

    def tensor(self, array: np.ndarray) -> Tensor:
        return Tensor(self.name, self.kind.protocol, array)

    def view(self, body: bytes, length: int) -> np.ndarray:
        """The values in a body of `length` bytes of JSON; copied only where they lie crooked."""
        kind, start = self.kind.numpy, length + self.start
        if start % kind.itemsize:  # a body itself begins at an even address
            body, start = body[start : start + self.count * kind.itemsize], 0
        return np.frombuffer(body, kind, self.count, start).reshape(self.shape)


@dataclass(slots=True)
class Template:
    """A request without its numbers; `size` is the bytes of its binary tensors."""

    parts: tuple[Part, ...]
    size: int
    outputs: tuple[WantedOutput, ...] | None
    binary: bool
    timeout: float
    priority: int

    @classmethod
    def of(cls, request: InferRequest) -> Template:
        """What a request leaves when its numbers are taken out."""
        parts, size = [], 0
        for t in request.inputs:
            kind = BY_PROTOCOL[t.datatype]
            parts.append(Part(t.name, kind, t.array.shape, t.array.size, size))
            size += t.array.nbytes
        return cls(
            tuple(parts), size, request.outputs, request.binary, request.timeout, request.priority
        )

    def filled(self, arrays: list[np.ndarray]) -> InferRequest:
        tensors = tuple([part.tensor(a) for part, a in zip(self.parts, arrays, strict=True)])
        return InferRequest(tensors, self.outputs, self.binary, None, self.timeout, self.priority)


class Reader:
    """Reads one model's requests. `check` is told each input before its data is read."""

    def __init__(self, check: Check, json_bytes: int) -> None:
        self._check = check
        self._json_bytes = json_bytes
        self._known: dict[bytes | tuple[bytes, bytes], Template] = {}
        self._parser = simdjson.Parser()

    def read(self, body: bytes, header_length: str) -> InferRequest:
        """What `codec_json.decode` says of the same bytes, errors included."""
        if header_length:
            return self._binary(body, header_length)
        start = _numbers_start(body)
        stop = body.find(b"]", start) if start else -1
        if stop < 0 or start + len(body) - stop > MAX_FRAME or len(body) > self._json_bytes:
            return self._strictly(body, header_length)
        frame = body[:start], body[stop + 1 :]
        template = self._known.get(frame)
        if template is not None:
            array = self._numbers(body[start : stop + 1], template.parts[0])
            if array is not None:
                return template.filled([array])
        request = self._strictly(body, header_length)
        if template is None and _is_plain(frame, request):
            self._remember(frame, Template.of(request))
        return request

    def _strictly(self, body: bytes, header_length: str) -> InferRequest:
        return codec_json.decode(body, header_length, self._check, self._json_bytes)

    def _binary(self, body: bytes, header_length: str) -> InferRequest:
        length = int(header_length) if len(header_length) < 5 and header_length.isdecimal() else 0
        if not 0 < length <= MAX_FRAME:
            return self._strictly(body, header_length)
        frame = body[:length]
        template = self._known.get(frame)
        if template is not None and len(body) == length + template.size:
            return template.filled([part.view(body, length) for part in template.parts])
        request = self._strictly(body, header_length)
        # Where their bytes are not all that follows, some input came within the JSON.
        binary = sum(tensor.array.nbytes for tensor in request.inputs)
        if request.id is None and is_numeric(request) and length + binary == len(body):
            self._remember(frame, Template.of(request))
        return request

    def _numbers(self, text: bytes, part: Part) -> np.ndarray | None:
        """The values of a flat list; none where they are not plainly those of the part."""
        kind = part.kind.numpy
        # A parser keeps the room of the largest text it ever read.
        parser = self._parser if len(text) <= MAX_KEPT else simdjson.Parser()
        try:
            listed = parser.parse(text)
            if not isinstance(listed, simdjson.Array):
                return None
            wide = np.frombuffer(listed.as_buffer(of_type=TYPES[kind.kind]), WIDE[kind.kind])
        except (ValueError, TypeError, RuntimeError):
            self._parser = simdjson.Parser()  # the old one may be held by the error's traceback
            return None
        array = narrowed(wide, part.kind) if len(wide) == part.count else None
        return None if array is None else array.reshape(part.shape)

    def _remember(self, frame: bytes | tuple[bytes, bytes], template: Template) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[frame] = template


def _numbers_start(body: bytes) -> int:
    """Where the first list of numbers begins; 0 where it is not soon found."""
    at = body.find(DATA, 0, MAX_FRAME)
    if at < 0:
        return 0
    at += len(SPACED_DATA) if body[at + len(DATA) : at + len(SPACED_DATA)] == b" " else len(DATA)
    return at if body[at : at + 1] == b"[" else 0


def _is_plain(frame: tuple[bytes, bytes], request: InferRequest) -> bool:
    """Whether what was cut out is the data of the only input, whatever else the JSON says."""
    if len(request.inputs) != 1 or request.id is not None or not is_numeric(request):
        return False
    try:
        skeleton = orjson.loads(b"[]".join(frame))
        item = skeleton["inputs"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        return False
    return len(skeleton["inputs"]) == 1 and item.get("data") == []


def is_numeric(request: InferRequest) -> bool:
    """Whether its tensors are numbers, which can be taken out of what comes again."""
    return all(t.array.size and t.array.dtype.kind in TYPES for t in request.inputs)
