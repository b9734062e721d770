"""One request and its one answer, whatever carries them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

from serving.doors.offload import Cancellable
from serving.observability.call import Call

JSON = "application/json"
BINARY = "application/octet-stream"
HTML = "text/html; charset=utf-8"


@dataclass(slots=True)
class Request:
    """One request, whole. `path` is as it was sent; header names are lower-case.

    `keep_alive`: whether another may follow on the connection. `arrived` is when the last byte
    came, by `time.perf_counter`. `key` is the name of the API key it came with, `call` what becomes
    of it, where a model is asked. `outer` is the request as it came, where this is it inflated.
    `inflated` are the bytes that are held beside `body` because of that; `hold` has the connection
    count them, and is false where there is no room for them.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    keep_alive: bool = True
    arrived: float = 0.0
    key: str = ""
    call: Call | None = None
    outer: Request | None = None
    inflated: int = 0
    hold: Callable[[], bool] | None = None


@dataclass(slots=True)
class Response:
    """One answer; the body's parts are sent one after the other.

    For the access log: `reason` is the label of a failure, `key` the name of the API key of a request
    that was refused for what that key may not do.
    """

    status: int
    body: Sequence[bytes | memoryview] = ()
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    key: str = ""


Reply = Callable[[Response], None]
"""Where a request's one answer goes, at once or later, on the event loop."""


Handler = Callable[[Request, Reply], Cancellable | None]


def failure(
    status: int, message: str, headers: tuple[tuple[str, str], ...] = (), reason: str = ""
) -> Response:
    """The one form an error takes. Without a `reason` the log has the status in words."""
    reason = reason or HTTPStatus(status).name.lower()
    return Response(status, (orjson.dumps({"error": message}),), JSON, headers, reason)
