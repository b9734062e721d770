"""Bytes to HTTP requests, without sockets or clocks: the parser, its limits and its refusals.

What has two readings is refused rather than guessed at: where a request ends must be the same to
this server and to whatever stands before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

import httptools

from serving.config import HttpSettings
from serving.doors.http.exchange import Request, Response, failure

# Given twice, these change where a request ends or what its bytes mean.
SINGLE_HEADERS = (
    b"content-length",
    b"transfer-encoding",
    b"host",
    b"inference-header-content-length",
    b"authorization",
    b"x-api-key",
    b"content-encoding",
)


class Reading(Enum):
    """Where a connection's incoming side stands."""

    IDLE = "between requests"
    HEAD = "within a request's head"
    BODY = "within a request's body"
    CLOSED = "nothing more is read"


END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD = 2048
"""Bytes of a head that is worth remembering."""

MAX_HEADS = 512
"""Heads that are remembered. Beyond that all are forgotten, and the frequent ones soon known again."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the parser made of a head, kept under its very bytes: clients send few different ones.

    Only heads that leave no choice are kept: a length or no body, no other protocol offered, the
    connection kept, and a line break wherever a parser could see one.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    length: int


Heads = dict[bytes, Head]

Guard = Callable[[str, Mapping[str, str]], Response | None]
"""Why a request with this path and these headers will not be answered, if it will not."""

UNGUARDED_BYTES = 64 << 10
"""Larger bodies are read only for a sender who may ask; the smaller ones' refusals are answers."""


class _Stop(Exception):
    """Ends the parsing of what is refused."""


class RequestReader:
    """One connection's incoming side. Feed it bytes; it gives requests, or why there are none."""

    def __init__(
        self, limits: HttpSettings, heads: Heads | None = None, guard: Guard | None = None
    ) -> None:
        self.state = Reading.IDLE
        self._heads = heads if heads is not None else {}
        self._fresh_head = b""
        self.continue_wanted = False
        self._limits = limits
        self._guard = guard
        self._parser = httptools.HttpRequestParser(self)
        self._found: list[Request | Response] = []
        self._refusal: Response | None = None
        self._replaying = False
        self._idle_bytes = 0
        self._begin()

    def feed(self, data: bytes) -> list[Request | Response]:
        """The requests that `data` completes. A `Response` is a refusal, and nothing follows it."""
        if self.state is Reading.CLOSED:
            return []
        if self.state is Reading.IDLE:
            found, data = self._known_requests(data)
            if not data:
                return found
            # The line break that some clients send after a body begins no request by itself.
            if not found or data.strip(b"\r\n"):
                self.state = Reading.HEAD
            return found + self._parsed(data)
        return self._parsed(data)

    def _known_requests(self, data: bytes) -> tuple[list[Request | Response], bytes]:
        """(whole requests at the start whose heads came before, what is left)."""
        found: list[Request | Response] = []
        start, size = 0, len(data)
        self._fresh_head = b""
        while start < size:
            end = data.find(END_OF_HEAD, start, start + MAX_HEAD) + len(END_OF_HEAD)
            if end < len(END_OF_HEAD):
                break
            head = self._heads.get(data[start:end])
            if head is None:
                self._fresh_head = data[start:end]
                break
            stop = end + head.length
            if stop > size:
                break
            found.append(Request(head.method, head.path, head.query, head.headers, data[end:stop]))
            start = stop
        return found, data[start:] if start else data

    def _parsed(self, data: bytes) -> list[Request | Response]:
        if self.state is Reading.HEAD:
            self._unparsed_bytes += len(data)
        self._held = self._body_bytes if self.state is Reading.BODY else -1
        try:
            self._parse(memoryview(data))
        except Exception as error:  # the parser wraps whatever stopped it
            self._refuse(
                self._refusal
                or failure(HTTPStatus.BAD_REQUEST, f"not HTTP/1.1 this server accepts: {error}")
            )
        else:
            if self.state is Reading.HEAD and self._unparsed_bytes > self._limits.header_bytes:
                self._refuse(self._long_head())
            elif self.state is Reading.BODY:
                self._check_progress(len(data))
        found, self._found = self._found, []
        return found

    @property
    def held(self) -> int:
        """Bytes of the body that is being read."""
        return self._body_bytes

    def close(self) -> None:
        """Read nothing more."""
        self.state = Reading.CLOSED
        self._body.clear()
        self._body_bytes = 0

    def _parse(self, data: memoryview) -> None:
        """Feed the parser, and a new one wherever it stopped at an offer of another protocol."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._parser.get_method() == b"CONNECT" or self.state is Reading.CLOSED:
                    self.close()  # what follows is not HTTP
                    return
                data = data[offer.args[0] :]
                self._ignore_offer()
            else:
                return

    def _ignore_offer(self) -> None:
        """Go on with HTTP/1.1, as RFC 9110 has it. The old parser takes the body for a stranger."""
        keep_alive = self._parser.should_keep_alive()
        self._parser = httptools.HttpRequestParser(self)
        if self.state is not Reading.BODY:
            return
        if b"transfer-encoding" in self._headers:
            body = b"Transfer-Encoding: chunked"
        else:
            body = b"Content-Length: " + self._headers[b"content-length"]
        self._replaying = True
        connection = b"keep-alive" if keep_alive else b"close"
        self._parser.feed_data(
            b"POST / HTTP/1.1\r\n" + body + b"\r\nConnection: " + connection + b"\r\n\r\n"
        )
        self._replaying = False

    def _check_progress(self, size: int) -> None:
        """What is fed within a body and brings nothing of it, a trailer above all, is limited."""
        self._idle_bytes += size
        if self._held != self._body_bytes:
            self._idle_bytes = 0
        if self._idle_bytes > self._limits.header_bytes:
            self._refuse(
                failure(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"chunk extensions and trailers: at most {self._limits.header_bytes} bytes "
                    "are read",
                )
            )

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._replaying:
            return
        if self.state is Reading.CLOSED:
            raise _Stop
        self.state = Reading.HEAD
        self._begin()

    def on_url(self, url: bytes) -> None:
        if self._replaying:
            return
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes | None) -> None:
        if self._replaying:
            return
        value = value or b""
        self._count_head(len(name) + len(value) + 4)
        self._header_count += 1
        if self._header_count > self._limits.header_count:
            self._stop(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"more than {self._limits.header_count} headers",
            )
        if self.state is Reading.BODY:
            return  # a trailer: counted, but too late to mean anything
        name = name.lower()
        if name in SINGLE_HEADERS and name in self._headers:
            self._stop(HTTPStatus.BAD_REQUEST, f"header {name.decode()!r} is given twice")
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        if self._replaying:
            return
        self._method = self._parser.get_method()
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop(HTTPStatus.BAD_REQUEST, "expected HTTP/1.1 or HTTP/1.0")
        if version == "1.1" and b"host" not in self._headers:
            self._stop(HTTPStatus.BAD_REQUEST, "Host: HTTP/1.1 wants this header")
        length = self._headers.get(b"content-length")
        coding = self._headers.get(b"transfer-encoding")
        if length is not None and coding is not None:
            self._stop(
                HTTPStatus.BAD_REQUEST, "both Content-Length and Transfer-Encoding are given"
            )
        if coding is not None and coding.strip().lower() != b"chunked":
            self._stop(HTTPStatus.BAD_REQUEST, "Transfer-Encoding: expected chunked alone")
        if length is not None and int(length) > self._limits.body_bytes:
            self._stop_large_body(f"{int(length)} bytes")
        expectation = self._headers.get(b"expect", b"").lower()
        if expectation not in (b"", b"100-continue"):
            self._stop(HTTPStatus.EXPECTATION_FAILED, "Expect: only 100-continue is known")
        if self._guard and (expectation or coding or int(length or 0) > UNGUARDED_BYTES):
            refusal = self._guard(self._path()[0], self._texts())
            if refusal:
                self._refusal = refusal
                raise _Stop
        self.continue_wanted = bool(expectation) and version != "1.0"  # which knows no 100
        self.state = Reading.BODY

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self._limits.body_chunks:
            self._stop(HTTPStatus.BAD_REQUEST, f"more than {self._limits.body_chunks} chunks")

    def on_body(self, piece: bytes) -> None:
        self.continue_wanted = False
        self._body_bytes += len(piece)
        if self._body_bytes > self._limits.body_bytes:
            self._stop_large_body("more")
        self._body.append(piece)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade() and self._body_follows():
            return  # the parser stops here and is replaced
        keep_alive = self._parser.should_keep_alive()
        request = self._request(keep_alive)
        self._found.append(request)
        self._remember(request)
        self._begin()
        self.state = Reading.IDLE if keep_alive else Reading.CLOSED

    # What it is made of

    def _begin(self) -> None:
        self._method = b""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = 0
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._idle_bytes = 0
        self._held = -1
        self._chunks = 0
        self.continue_wanted = False

    def _remember(self, request: Request) -> None:
        """Keep the head for the next time, where the next time can mean nothing else."""
        head, self._fresh_head = self._fresh_head, b""
        if not head or not request.keep_alive or self._header_count > MAX_HEAD // 8:
            return
        headers = request.headers
        if "transfer-encoding" in headers or "upgrade" in headers or "expect" in headers:
            return
        length = len(request.body)
        if length != int(headers.get("content-length", "0")) or request.method == "CONNECT":
            return
        # Line breaks before a request are skipped by the parser: these bytes were not the head then.
        # Nor were they had it taken a bare line feed, or one return, for the end.
        if not head.startswith(request.method.encode("latin-1") + b" "):
            return
        lines = head.count(b"\r\n")
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            return
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[head] = Head(request.method, request.path, request.query, headers, length)

    def _request(self, keep_alive: bool) -> Request:
        path, query = self._path()
        return Request(
            self._method.decode("latin-1"),
            path,
            query,
            self._texts(),
            self._body[0] if len(self._body) == 1 else b"".join(self._body),
            keep_alive,
        )

    def _path(self) -> tuple[str, str]:
        """(path, query) of the request's target."""
        target, _, query = self._target.partition(b"?")
        if not target.startswith(b"/") and b"://" in target:  # the form meant for proxies
            target = b"/" + target.split(b"://", 1)[1].partition(b"/")[2]
        return target.decode("latin-1"), query.decode("latin-1")

    def _texts(self) -> dict[str, str]:
        return {k.decode("latin-1"): v.decode("latin-1") for k, v in self._headers.items()}

    def _body_follows(self) -> bool:
        length = self._headers.get(b"content-length", b"0")
        return self._method != b"CONNECT" and (
            b"transfer-encoding" in self._headers or int(length) > 0
        )

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes:
            self._refusal = self._long_head()
            raise _Stop

    def _long_head(self) -> Response:
        return failure(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"request line and headers: at most {self._limits.header_bytes} bytes are read",
        )

    def _stop(self, status: HTTPStatus, message: str) -> None:
        self._refusal = failure(status, message)
        raise _Stop

    def _stop_large_body(self, size: str) -> None:
        self._stop(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body: at most {self._limits.body_bytes} bytes are accepted, got {size}",
        )

    def _refuse(self, refusal: Response) -> None:
        # After a request that was to be the last, what follows is nobody's business.
        if self.state is not Reading.CLOSED:
            self.close()
            self._found.append(refusal)
