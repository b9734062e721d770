"""gRPC requests that differ only in their numbers, read at a glance, as `json_templates.py` does for JSON.

Of a message's bytes, the head (model, version, parameters, tensors) is the same again and again; the
id and the raw values change. What the strict reading of `codec_proto` found is kept under the head's
very bytes; while those come again, the values are views of the message. Whatever is new, typed,
damaged or out of the ordinary takes the strict way, which alone decides what is refused and with which
words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serving.codecs.codec_proto import decode, field_head, parse
from serving.codecs.json_templates import MAX_FRAME, MAX_KNOWN, Template, is_numeric
from serving.codecs.tensor_head import MAX_ID
from serving.inference.contract import Contract
from serving.protocol import InferRequest

ID, RAW = 0x1A, 0x3A
HEAD = frozenset(b"\x0a\x12\x1a\x22\x2a\x32")
"""Tags of ModelInferRequest: the id, the raw values, and all that may come before these."""

LONG = 0x80
"""This bit of a length says that another byte of it follows."""

LONG_BYTES = 256 << 10
"""From how many bytes on a message that is not raw is better read in a thread."""

Read = Callable[[Contract], InferRequest]


@dataclass(slots=True)
class Head:
    """What a known head asks for, and how the values after it lie.

    `marks` are the bytes before each input's values, by their distance from the head's end; `size`
    is all that follows the head.
    """

    model: str
    version: str | None
    template: Template
    marks: tuple[tuple[int, bytes], ...]
    size: int

    @classmethod
    def of(cls, model: str, version: str | None, request: InferRequest) -> Head:
        """What a request leaves when its numbers and its id are taken out."""
        template = Template.of(request)
        marks, at = [], 0
        for part, tensor in zip(template.parts, request.inputs, strict=True):
            mark = field_head(RAW, tensor.array.nbytes)
            marks.append((at, mark))
            part.start = at + len(mark)
            at = part.start + tensor.array.nbytes
        return cls(model, version, template, tuple(marks), at)

    def precedes(self, payload: bytes, start: int) -> bool:
        """Whether what follows a head that ends at `start` is every input's values and no more."""
        if len(payload) - start != self.size:
            return False
        return all(payload.startswith(mark, start + at) for at, mark in self.marks)

    def request(self, payload: bytes, start: int, identity: str | None) -> InferRequest:
        """The request, its arrays being views of the message."""
        found = self.template.filled([part.view(payload, start) for part in self.template.parts])
        found.id = identity
        return found


class Reader:
    """Reads requests for whatever model; a head says which."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def read(self, payload: bytes) -> tuple[str, str | None, Read]:
        """(model, version, what makes the request, once that model's contract is there).

        Raises `InvalidRequest` for what is no request, and so does what it gives back.
        """
        places = _places(payload)
        if places is None:
            return self._strictly(payload, b"", 0)
        head, identity, start = places
        known = self._known.get(head)
        if known is None:
            return self._strictly(payload, head, start)
        if not known.precedes(payload, start):
            return self._strictly(payload, b"", 0)
        request = known.request(payload, start, identity)
        return known.model, known.version, lambda contract: request

    def is_long(self, payload: bytes) -> bool:
        """Whether reading it would hold up the event loop: what is raw at first sight does not."""
        return len(payload) > LONG_BYTES and _places(payload) is None

    def _strictly(self, payload: bytes, head: bytes, start: int) -> tuple[str, str | None, Read]:
        asked = parse(payload)
        model, version = asked.model_name, asked.model_version or None

        def read(contract: Contract) -> InferRequest:
            request = decode(asked, contract.check)
            if head and is_numeric(request):
                found = Head.of(model, version, request)
                if found.precedes(payload, start):
                    self._remember(head, found)
            return request

        return model, version, read

    def _remember(self, head: bytes, found: Head) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[head] = found


def _places(payload: bytes) -> tuple[bytes, str | None, int] | None:
    """(the head without its id, the id, where the raw values begin); none where that is not plain.

    Every field of the message is a tag, a length and so many bytes.
    """
    at, end = 0, min(len(payload) - 2, MAX_FRAME)
    cut = past = text = 0
    while at < end:
        tag = payload[at]
        if tag == RAW:
            if not past:
                return payload[:at], None, at
            return _without(payload, cut, text, past, at)
        start = at + 2
        size = payload[at + 1]
        if size & LONG:
            size = size & ~LONG | payload[start] << 7
            start += 1
            if size >> 14:
                return None
        if tag not in HEAD:
            return None
        if tag == ID:
            if past:
                return None
            cut, text, past = at, start, start + size
        at = start + size
    return None


def _without(
    payload: bytes, cut: int, text: int, past: int, start: int
) -> tuple[bytes, str | None, int] | None:
    """The same for a head with an id: its field is from `cut`, its text from `text`, to `past`."""
    if past - text > MAX_ID:
        return None
    try:
        identity = payload[text:past].decode()
    except UnicodeDecodeError:
        return None
    return payload[:cut] + payload[past:start], identity or None, start
