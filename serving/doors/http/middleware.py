"""What stands before the routes: keys, then compressed bodies. Each is a handler around another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from urllib.parse import unquote

from serving.config import CompressionSettings
from serving.doors.access import INDEX, Access, Needed, Scope, presented, typed
from serving.doors.http.compression import (
    IDENTITY,
    Inflation,
    accepted,
    coding,
    deflated,
    worthwhile,
)
from serving.doors.http.exchange import Handler, Reply, Request, Response
from serving.doors.http.status import failed
from serving.doors.offload import Apart, Cancellable
from serving.errors import Overloaded, ServingError, Unauthenticated, UnsupportedMedia
from serving.telemetry import log

MAX_PATH = 512
"""Characters of a path whose scope is remembered."""

LOOP_BYTES = 64 << 10
"""Inflated or deflated on the event loop, within a millisecond; more goes to a thread."""

ASK_IN_BROWSER = (("WWW-Authenticate", 'Basic realm="slipway: any name, an API key as password"'),)
"""Has a browser ask for a key. Programs are asked for a bearer's."""

THREADS = 2
"""They bound what inflating may hold of memory at a time, too."""


class Guarded:
    """Passes on what its sender has the key for."""

    def __init__(self, handler: Handler, access: Access) -> None:
        self._handler = handler
        self._access = access

    def __call__(self, request: Request, reply: Reply) -> Cancellable | None:
        """Refuse a request, or have it answered."""
        checked = self._checked(request.path, request.headers)
        if isinstance(checked, str):
            request.key = checked
            return self._handler(request, reply)
        request.key = checked.key
        reply(checked)
        return None

    def refusal(self, path: str, headers: Mapping[str, str]) -> Response | None:
        """Why a request is not answered, told by its head alone; none where it may go on."""
        checked = self._checked(path, headers)
        return checked if isinstance(checked, Response) else None

    def _checked(self, path: str, headers: Mapping[str, str]) -> str | Response:
        """The name of the key that a request came with, '' where it needs none; or why it is refused."""
        needed = scope_of(path) if len(path) <= MAX_PATH else Scope.ADMIN
        if needed is None:
            return ""
        key = presented(headers.get("authorization", ""), headers.get("x-api-key", ""))
        page = is_page(path)
        if page and not key:
            key = typed(headers.get("authorization", ""))
        try:
            return self._access.allow(needed, key)
        except ServingError as error:
            refused = replace(failed(error), key=getattr(error, "key", ""))
            browser = page and "text/html" in headers.get("accept", "")
            if browser and isinstance(error, Unauthenticated):
                return replace(refused, headers=ASK_IN_BROWSER)
            return refused


def is_page(path: str) -> bool:
    """Whether a path is for reading in a browser, which can send no header of its own.

    There alone a key may come as a browser's password. Browsers repeat that by themselves, also for
    what another site has them send; so nothing that runs or changes anything takes it.
    """
    return path in ("/", "/docs", "/openapi.json") or path.startswith("/docs/")


@lru_cache(maxsize=1024)
def scope_of(path: str) -> Needed | None:
    """What a path as it was sent asks for, none where it is open to everyone.

    It is read as the routes are. What no route is known for needs a key as well.
    """
    match [unquote(step) for step in path.split("/")]:
        case ["", "v2", "health", "live" | "ready"]:
            return None
        case ["", "metrics"]:
            return Scope.METRICS
        case ["", "v2", "repository", "index"] | ["", "v2", "repository", _, "index"]:
            return INDEX
        case ["", "v2", "repository", *_]:
            return Scope.ADMIN
    return Scope.INFER


class Compressed:
    """Inflates what comes compressed, and compresses large answers for who accepts that."""

    def __init__(self, handler: Handler, settings: CompressionSettings, body_bytes: int) -> None:
        self._handler = handler
        self._settings = settings
        self._body_bytes = body_bytes
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="compression")

    def __call__(self, request: Request, reply: Reply) -> Cancellable | None:
        """Have a request answered by the handler within."""
        headers = request.headers
        if "accept-encoding" in headers and self._settings.answers:
            wanted = accepted(headers["accept-encoding"])
            if wanted != IDENTITY:
                reply = self._compressing(wanted, reply)
        if "content-encoding" in headers:
            return self._inflated(request, reply)
        return self._handler(request, reply)

    def _inflated(self, request: Request, reply: Reply) -> Cancellable | None:
        try:
            name = coding(request.headers["content-encoding"])
            if name == IDENTITY or not request.body:
                return self._handler(_without_coding(request, request.body), reply)
            if not self._settings.requests:
                raise UnsupportedMedia(
                    "Content-Encoding: compressed bodies are not read here (setting "
                    "compression.requests)"
                )
            work = Inflation(request.body, name, self._body_bytes)
            body = work.run(LOOP_BYTES)
        except ServingError as error:
            reply(failed(error))
            return None
        if body is not None:
            return self._held(request, body, reply)
        return Apart(
            asyncio.get_running_loop().run_in_executor(self._threads, work.run),
            lambda body: self._held(request, body or b"", reply),
            lambda error: reply(failed(error)),
        )

    def _held(self, request: Request, body: bytes, reply: Reply) -> Cancellable | None:
        """Go on with what a body was inflated to, if there is room to keep it."""
        request.inflated = len(body)
        if request.hold is None or request.hold():
            return self._handler(_without_coding(request, body), reply)
        reply(
            failed(
                Overloaded(
                    f"the body: inflated, it has {len(body)} bytes, more than there is room for "
                    "now (setting http.held_bytes)"
                )
            )
        )
        return None

    def _compressing(self, name: str, reply: Reply) -> Reply:
        """A reply that compresses first what is large enough."""
        level, threshold = self._settings.level, self._settings.answer_bytes

        def compressing(answer: Response) -> None:
            size = sum(len(part) for part in answer.body)
            if size < threshold or not size:
                reply(answer)
            elif size <= LOOP_BYTES:
                reply(_compressed(answer, name, level))
            else:
                loop = asyncio.get_running_loop()
                work = loop.run_in_executor(self._threads, _compressed, answer, name, level)
                work.add_done_callback(
                    lambda done: reply(answer if done.cancelled() else done.result())
                )

        return compressing


def _without_coding(request: Request, body: bytes) -> Request:
    headers = {k: v for k, v in request.headers.items() if k != "content-encoding"}
    return replace(request, headers=headers, body=body, outer=request, inflated=0, hold=None)


def _compressed(answer: Response, name: str, level: int) -> Response:
    """An answer in fewer bytes, or as it is where there would not be many fewer."""
    try:
        if not worthwhile(answer.body, level):
            return answer
        body = deflated(answer.body, name, level)
    except Exception as error:  # zlib out of memory, above all; the answer itself is sound
        log("error", "an answer could not be compressed", kind=type(error).__name__)
        return answer
    headers = (*answer.headers, ("Content-Encoding", name), ("Vary", "Accept-Encoding"))
    return replace(answer, body=body, headers=headers)
