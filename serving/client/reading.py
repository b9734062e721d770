"""Bytes to HTTP answers, without sockets: the parser and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httptools

MAX_HEADER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole HTTP answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Malformed(Exception):
    """What came is not an HTTP answer, or is beyond what is read."""


class AnswerReader:
    """One connection's incoming side: feed it bytes until it gives the answer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parser = httptools.HttpResponseParser(self)
        self._refusal = ""
        self.started = False
        """Whether any byte of the present answer has come."""
        self._done: Reply | None = None
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        """Received so far of a head that is not whole."""
        self._in_head = True
        self._body: list[bytes] = []
        self._size = 0
        self._until_closed = False
        self.reusable = False
        """Whether the connection may carry another request."""

    def begin(self) -> None:
        """Before each request: the next bytes are its answer."""
        self.started = False
        self._done = None
        self._in_head, self._head_bytes = True, 0

    def feed(self, data: bytes) -> Reply | None:
        """The answer once it is whole. Raises `Malformed`."""
        self.started = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Malformed("the server changed the protocol") from None
        except httptools.HttpParserError as error:
            raise Malformed(self._refusal or f"not an HTTP answer: {error}") from None
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                raise Malformed(f"more than {MAX_HEADER_BYTES} bytes of headers")
        return self._done

    def end(self) -> Reply | None:
        """The server closed: the answer, where closing is what ends it."""
        if self._until_closed:
            self.on_message_complete()
        return self._done

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._done is not None:
            self._refuse("more came than one answer to one request")
        self._headers, self._body, self._size = {}, [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        length = self._headers.get("content-length")
        if length is not None and int(length) > self._limit:
            self._refuse(f"the answer has {length} bytes, more than answer_bytes={self._limit}")
        self._until_closed = (
            length is None
            and "chunked" not in self._headers.get("transfer-encoding", "").lower()
            and self._parser.get_status_code() not in (204, 304)
        )

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            self._refuse(f"the answer has more than answer_bytes={self._limit} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # 100 and its like only announce the answer
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self.reusable = self._parser.should_keep_alive() and not self._until_closed
            self._done = Reply(status, self._headers, body)

    def _refuse(self, message: str) -> None:
        self._refusal = message
        raise ValueError(message)
