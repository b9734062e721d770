"""The HTTP door without sockets: paths and methods, and what answers each.

A `Request` in, a `Response` out. `server.py` carries both over the wire and knows no route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import unquote

import orjson

from serving import errors
from serving.codecs import codec_json
from serving.codecs.long_lists import LONG_BYTES
from serving.dataplane import DataPlane
from serving.doors.http.exchange import HTML, JSON, Reply, Request, Response, failure
from serving.doors.http.infer import Inference
from serving.doors.http.manual import Manual, policy
from serving.doors.http.status import failed
from serving.doors.offload import Cancellable
from serving.models.control import CLOSED, Control
from serving.observability import exposition, statistics
from serving.protocol import EXTENSIONS, NAME, TensorSpec, server_version

ROOT_HINT = "no such path; the Open Inference Protocol begins at /v2, for people at /docs"
PAGE_HEADERS = (
    ("Content-Security-Policy", policy()),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)

MAX_ROUTES, MAX_PATH = 1024, 512
"""Paths whose routes are remembered, and characters of one that is."""

Route = Callable[[Request, Reply], Response | Awaitable[Response] | Cancellable]
"""Answers now, or with what is awaited; or calls the reply itself, and says how to call it off."""


class Rest:
    """Routes requests to the data plane. Never raises: what goes wrong is an answer too.

    With a `control` it is the control plane's door: all the same, and it loads and unloads.
    """

    def __init__(
        self,
        plane: DataPlane,
        json_bytes: int = codec_json.MAX_JSON,
        control: Control | None = None,
    ) -> None:
        self._plane = plane
        self._control = control
        self._json_bytes = json_bytes
        self._routes: dict[str, tuple[str, Route]] = {}
        self._inference = Inference(plane, json_bytes)
        self._version = server_version()
        self._manual = Manual(plane, self._version, plane.keys)

    def __call__(self, request: Request, reply: Reply) -> Cancellable | None:
        """Answer a request; what comes back calls off an answer that is not there yet."""
        try:
            allowed, route = self._routes.get(request.path) or self._found(request.path)
            method = "GET" if request.method == "HEAD" else request.method
            if method != allowed:
                reply(_not_allowed(request.method, allowed))
                return None
            encoding = request.headers.get("content-encoding")
            if encoding and encoding.strip().lower() != "identity":
                raise errors.UnsupportedMedia(
                    f"Content-Encoding: expected identity, got {encoding[:80]!r}"
                )
            answer = route(request, reply)
        except Exception as error:
            reply(failed(error))
            return None
        if isinstance(answer, Response):
            reply(answer)
            return None
        return reply_when_done(answer, reply) if isinstance(answer, Awaitable) else answer

    def _found(self, path: str) -> tuple[str, Route]:
        """A path's route, remembered: there are few, and finding one costs more than a lookup."""
        route = self._route([unquote(step) for step in path.split("/")])
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        if len(path) <= MAX_PATH:
            self._routes[path] = route
        return route

    def _route(self, steps: list[str]) -> tuple[str, Route]:
        match steps:
            case ["", "v2", "models"] | ["", "v2", "models", ""]:
                return "GET", lambda request, reply: _json({"models": self._plane.models()})
            case ["", "v2", "models", "stats"]:
                return "GET", lambda request, reply: self._statistics(None, None)
            case ["", "v2", "models", name, "versions", number, *asked]:
                return self._model_route(name, number, asked)
            case ["", "v2", "models", name, *asked]:
                return self._model_route(name, None, asked)
            case ["", "v2", "repository", *asked]:
                return self._repository_route(asked)
            case ["", "v2", "health", "live"]:
                return "GET", lambda request, reply: self._live()
            case ["", "v2", "health", "ready"]:
                return "GET", lambda request, reply: self._ready()
            case ["", "v2"] | ["", "v2", ""]:
                return "GET", lambda request, reply: self._server()
            case ["", "metrics"]:
                return "GET", lambda request, reply: self._metrics(request)
            case ["", "openapi.json"]:
                return "GET", lambda request, reply: _document(self._manual.openapi())
            case ["", "docs"] | ["", "docs", ""]:
                return "GET", lambda request, reply: self._page(request, None)
            case ["", "docs", name]:
                return "GET", lambda request, reply: self._page(request, name)
            case ["", ""]:
                return "GET", lambda request, reply: _root(request)
        raise errors.NotFound(ROOT_HINT)

    def _model_route(self, name: str, number: str | None, asked: list[str]) -> tuple[str, Route]:
        """What is asked of one model; without a version's number, of the one that serves."""
        match asked:
            case ["infer"]:
                return "POST", partial(self._inference.infer, name, number)
            case ["predict"]:
                return "POST", lambda request, reply: self._inference.predict(name, number, request)
            case []:
                return "GET", lambda request, reply: self._metadata(name, number)
            case ["ready"]:
                return "GET", lambda request, reply: self._model_ready(name, number)
            case ["config"]:
                return "GET", lambda request, reply: _json(self._plane.config(name, number))
            case ["stats"]:
                return "GET", lambda request, reply: self._statistics(name, number)
        raise errors.NotFound(ROOT_HINT)

    def _repository_route(self, asked: list[str]) -> tuple[str, Route]:
        """Triton's paths; a repository's name, which it allows before them, changes nothing."""
        match asked:
            case ["index"] | [_, "index"]:
                return "POST", lambda request, reply: self._index(request)
            case ["models", name, "load"] | [_, "models", name, "load"]:
                return "POST", lambda request, reply: self._change(request, "load", name)
            case ["models", name, "unload"] | [_, "models", name, "unload"]:
                return "POST", lambda request, reply: self._change(request, "unload", name)
        raise errors.NotFound(ROOT_HINT)

    def _server(self) -> Response:
        return _json({"name": NAME, "version": self._version, "extensions": EXTENSIONS})

    def _page(self, request: Request, name: str | None) -> Response:
        page = self._manual.page(request.headers.get("host", ""), self._plane.scheme, name)
        return Response(HTTPStatus.OK, (page,), HTML, PAGE_HEADERS)

    async def _metrics(self, request: Request) -> Response:
        openmetrics = exposition.wants_openmetrics(request.headers.get("accept", ""))
        body = await self._plane.metrics(self._version, openmetrics)
        kind = exposition.OPENMETRICS if openmetrics else exposition.TEXT
        return Response(HTTPStatus.OK, (body,), kind)

    def _statistics(self, name: str | None, number: str | None) -> Response:
        return _json(statistics.as_json(self._plane.statistics(name, number)))

    def _live(self) -> Response:
        return _json({"live": self._plane.live()})

    def _ready(self) -> Response:
        if self._plane.ready():
            return _json({"ready": True, "live": True})
        return _unready("the server is not ready: it is loading, draining, or lacks a model")

    def _model_ready(self, name: str, number: str | None) -> Response:
        try:
            self._plane.model_ready(name, number)
        except errors.NotReady as error:
            return _unready(str(error), {"name": name})
        return _json({"name": name, "ready": True})

    def _metadata(self, name: str, number: str | None) -> Response:
        told = self._plane.metadata(name, number)
        return _json(
            {
                "name": told.name,
                "versions": told.versions,
                "platform": told.platform,
                "inputs": [_spec(spec) for spec in told.inputs],
                "outputs": [_spec(spec) for spec in told.outputs],
                "properties": dict(told.properties),
            }
        )

    async def _change(
        self, request: Request, change: Literal["load", "unload"], name: str
    ) -> Response:
        if self._control is None:
            raise errors.Forbidden(CLOSED)
        if "origin" in request.headers:
            # Any page an operator's browser shows could send this, to a door that trusts its place.
            raise errors.Forbidden(
                "Origin: models are not loaded or unloaded by pages of a browser"
            )
        asked = self._fields(request)
        done = self._control.load if change == "load" else self._control.unload
        return _json(await done(name, asked))

    def _fields(self, request: Request) -> Any:
        """The JSON of a body that may be empty, and is short: it is read while others wait."""
        codec_json.check_json(len(request.body), self._json_bytes)
        if len(request.body) > LONG_BYTES:
            raise errors.TooLarge(
                f"the body: at most {LONG_BYTES} bytes of JSON are read here, got "
                f"{len(request.body)}"
            )
        if not request.body.strip():
            return {}
        try:
            return orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            raise errors.InvalidRequest(f"the body is not JSON: {error}") from error

    def _index(self, request: Request) -> Response:
        asked = self._fields(request)
        ready = asked.get("ready", False) if isinstance(asked, dict) else None
        if not isinstance(ready, bool):
            raise errors.InvalidRequest('the body: expected {"ready": true or false} or nothing')
        entries = self._plane.index(ready)
        return _json(
            [
                {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
                for e in entries
            ]
        )


def reply_when_done(answer: Awaitable[Response], reply: Reply) -> Cancellable:
    """Wait for an answer, which may be that there is none; what comes back calls it off."""

    async def wait() -> None:
        try:
            response = await answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # nobody waits for the answer
                raise
            # What it waited for was called off, not the request: the model's threads have ended.
            response = failed(errors.NotReady("the model was unloaded before it could answer"))
        except Exception as error:
            response = failed(error)
        reply(response)

    return asyncio.ensure_future(wait())


def _root(request: Request) -> Response:
    """A person with a browser wants the page; a program is told where the protocol begins."""
    if "text/html" in request.headers.get("accept", ""):
        return Response(HTTPStatus.TEMPORARY_REDIRECT, (), HTML, (("Location", "/docs"),))
    return failure(HTTPStatus.NOT_FOUND, ROOT_HINT)


def _not_allowed(method: str, allowed: str) -> Response:
    verbs = "GET, HEAD" if allowed == "GET" else allowed
    return failure(
        HTTPStatus.METHOD_NOT_ALLOWED,
        f"method {method} is not allowed here, expected {verbs}",
        (("Allow", verbs),),
    )


def _document(document: bytes) -> Response:
    return Response(HTTPStatus.OK, (document,))


def _json(value: Any) -> Response:
    return Response(HTTPStatus.OK, (orjson.dumps(value),))


def _unready(message: str, more: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps({"error": message, "ready": False, **(more or {})})
    headers, label = (("Retry-After", "1"),), errors.NotReady.label
    return Response(HTTPStatus.SERVICE_UNAVAILABLE, (body,), JSON, headers, label)


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
