"""gzip and deflate of bodies: inflating within bounds, and choosing what an answer travels as.

Pure: bytes in, bytes out. What is large is done in steps, so that the caller may take the rest of
the work off the event loop.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from serving.errors import InvalidRequest, ServingError, TooLarge, UnsupportedMedia

GZIP, DEFLATE, IDENTITY = "gzip", "deflate", "identity"

MAX_MEMBERS = 256
"""gzip streams one after the other in one body: empty ones would be work without an end."""

FEED_BYTES = 64 << 10
STEP_BYTES = 64 << 10
"""Read and written at a time. Small, since zlib copies what it has not read yet."""

MAX_ACCEPT = 256
"""Characters of `Accept-Encoding` that are read; who sends more gets no compression."""

# zlib's window sizes, which say the format too.
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


def coding(content_encoding: str) -> str:
    """`gzip`, `deflate` or `identity`. Raises `UnsupportedMedia` for others, and for several."""
    name = content_encoding.strip().lower()
    if name in ("", IDENTITY):
        return IDENTITY
    if name in (GZIP, "x-gzip"):
        return GZIP
    if name == DEFLATE:
        return DEFLATE
    raise UnsupportedMedia(
        f"Content-Encoding: expected gzip, deflate or identity, got {content_encoding[:80]!r}"
    )


class Inflation:
    """One body on its way back to what it was. At most `limit` bytes are ever held of it."""

    def __init__(self, body: bytes, coding: str, limit: int) -> None:
        self._body = memoryview(body)
        self._coding = coding
        self._limit = limit
        self._read = 0
        self._members = 0
        self._size = 0
        self._found = io.BytesIO()  # gives its bytes away without a copy
        self._stream = self._new_stream()
        self._waiting: bytes | memoryview = b""

    def run(self, most: int | None = None) -> bytes | None:
        """The body, or none where it is more than `most` bytes and another call goes on.

        Raises `InvalidRequest` for what is damaged, cut off or followed by something else, and
        `TooLarge` as soon as there is a byte more than the limit.
        """
        try:
            return self._go_on(None if most is None else self._size + most)
        except ServingError:
            self._found.close()  # its memory, at once, whoever still holds the failure
            raise

    def _go_on(self, end: int | None) -> bytes | None:
        while end is None or self._size < end:
            self._step()
            if self._stream.eof:
                if not self._more_members():
                    return self._found.getvalue()
                self._stream = self._new_stream()
        return None

    def _step(self) -> None:
        if not self._waiting:
            self._waiting = self._body[self._read : self._read + FEED_BYTES]
            self._read += len(self._waiting)
            if not self._waiting:
                raise InvalidRequest(f"the body: its {self._coding} data is cut off")
        room = self._limit - self._size
        try:
            piece = self._stream.decompress(self._waiting, min(STEP_BYTES, room + 1))
        except zlib.error as error:
            raise InvalidRequest(f"the body: not {self._coding} data: {error}") from error
        if len(piece) > room:
            raise TooLarge(
                f"the body: at most {self._limit} bytes are accepted once inflated, got more"
            )
        self._found.write(piece)
        self._size += len(piece)
        self._waiting = self._stream.unused_data or self._stream.unconsumed_tail

    def _more_members(self) -> bool:
        """Whether another gzip stream follows the one that ended, as RFC 1952 allows."""
        if not self._waiting and self._read == len(self._body):
            return False
        if self._coding != GZIP:
            raise InvalidRequest(f"the body: {self._coding} data is followed by something else")
        if self._members == MAX_MEMBERS:
            raise InvalidRequest(f"the body: more than {MAX_MEMBERS} gzip streams in a row")
        return True

    def _new_stream(self) -> zlib._Decompress:
        self._members += 1
        if self._coding == GZIP:
            return zlib.decompressobj(_GZIP)
        # The name says zlib's format (RFC 9110); some clients mean the bare one all the same.
        head = bytes(self._body[:2])
        zlib_head = len(head) == 2 and head[0] & 15 == 8 and int.from_bytes(head) % 31 == 0
        return zlib.decompressobj(_ZLIB if zlib_head else _RAW)


def deflated(parts: Iterable[bytes | memoryview], coding: str, level: int) -> list[bytes]:
    """A body in its parts, compressed; `level` is 1 (fast) to 9 (small)."""
    stream = zlib.compressobj(level, zlib.DEFLATED, _GZIP if coding == GZIP else _ZLIB)
    pieces = [stream.compress(part) for part in parts]
    pieces.append(stream.flush())
    return [piece for piece in pieces if piece]


def worthwhile(parts: Sequence[bytes | memoryview], level: int) -> bool:
    """Whether compression takes off a tenth or more, by a sample out of the largest part's middle.

    The bytes of float tensors are close to noise: all that work would save next to nothing.
    """
    largest = memoryview(max(parts, key=len)).cast("B")
    middle = max(0, (len(largest) - _SAMPLE_BYTES) // 2)
    sample = largest[middle : middle + _SAMPLE_BYTES]
    return len(zlib.compress(sample, level)) < 0.9 * len(sample)


_SAMPLE_BYTES = 4096


@lru_cache(maxsize=64)
def _accepted(accept_encoding: str) -> str:
    weights: dict[str, float] = {}
    for item in accept_encoding.lower().split(","):
        name, *parameters = (step.strip() for step in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = _weight(value.strip())
        if name:
            weights[GZIP if name == "x-gzip" else name] = weight
    best, best_weight = IDENTITY, 0.0
    for name in (GZIP, DEFLATE):  # the first wins where both are as welcome
        weight = weights.get(name, weights.get("*", 0.0))
        if weight > best_weight:
            best, best_weight = name, weight
    return best if best_weight >= weights.get(IDENTITY, 0.0) else IDENTITY


def accepted(accept_encoding: str) -> str:
    """What the client would rather have an answer in: `gzip`, `deflate` or `identity`."""
    if not accept_encoding or len(accept_encoding) > MAX_ACCEPT:
        return IDENTITY
    return _accepted(accept_encoding)


def _weight(text: str) -> float:
    """A quality of 0 to 1; what is none counts as unwelcome."""
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
