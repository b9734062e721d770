"""The HTTP door without sockets: routes, one status table, JSON errors.

A `Request` in, a `Response` out. `server.py` carries both over the wire and knows no route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote
from weakref import WeakKeyDictionary, WeakMethod

import orjson

from serving import errors
from serving.codecs import codec_json, json_templates
from serving.codecs.long_lists import LONG_BYTES
from serving.codecs.tensor_head import Check
from serving.dataplane import DataPlane
from serving.doors.http.manual import Manual, policy
from serving.doors.offload import Apart, Cancellable, LongReader
from serving.inference.contract import Contract
from serving.models.control import CLOSED, Control
from serving.observability import exposition, statistics
from serving.observability.call import Call
from serving.protocol import (
    EXTENSIONS,
    NAME,
    InferRequest,
    InferResponse,
    TensorSpec,
    server_version,
)
from serving.telemetry import log, places

JSON = "application/json"
BINARY = "application/octet-stream"
HTML = "text/html; charset=utf-8"
ROOT_HINT = "no such path; the Open Inference Protocol begins at /v2, for people at /docs"
PAGE_HEADERS = (
    ("Content-Security-Policy", policy()),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)
HEADER_LENGTH = "inference-header-content-length"

STATUS: dict[type[errors.ServingError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.Unsupported: HTTPStatus.NOT_IMPLEMENTED,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.BackendFailure: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ModelRefused: HTTPStatus.BAD_REQUEST,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    errors.WaitedTooLong: HTTPStatus.GATEWAY_TIMEOUT,
}

# curl sends the form type with `--data-binary` unless told otherwise; what it sends is no form.
CURL_DEFAULT = "application/x-www-form-urlencoded"
INFER_TYPES = ("", JSON, BINARY, "text/json", CURL_DEFAULT)
FILE_TYPES = ("", BINARY, CURL_DEFAULT)
MAX_ROUTES, MAX_PATH = 1024, 512
"""Paths whose routes are remembered, and characters of one that is."""

TEXT_BYTES = 32 << 10
"""Bytes of a body that may hold texts and is read at once: up to 8 thousand, in a millisecond or two."""

UNWRITTEN_BYTES = 256 << 20
"""Bytes of answers that may wait to be written as JSON; one is taken whatever its size."""

TRUE, FALSE = ("true", "1", "yes", ""), ("false", "0", "no")


@dataclass(slots=True)
class Request:
    """One request, whole. `path` is as it was sent; header names are lower-case.

    `keep_alive`: whether another may follow on the connection. `arrived` is when the last byte
    came, by `time.perf_counter`. `call` is what becomes of it, where a model is asked.
    `outer` is the request as it came, where this is it inflated. `inflated` are the bytes that are
    held beside `body` because of that; `hold` has the connection count them, and is false where
    there is no room for them.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    keep_alive: bool = True
    arrived: float = 0.0
    call: Call | None = None
    outer: Request | None = None
    inflated: int = 0
    hold: Callable[[], bool] | None = None


@dataclass(slots=True)
class Response:
    """One answer; the body's parts are sent one after the other."""

    status: int
    body: Sequence[bytes | memoryview] = ()
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


Reply = Callable[[Response], None]
"""Where a request's one answer goes, at once or later, on the event loop."""


Handler = Callable[[Request, Reply], Cancellable | None]
Route = Callable[[Request, Reply], Response | Awaitable[Response] | Cancellable]
"""Answers now, or with what is awaited; or calls the reply itself, and says how to call it off."""


def failure(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """The one form an error takes."""
    return Response(status, (orjson.dumps({"error": message}),), JSON, headers)


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
        self._long = LongReader("json")
        self._writers = ThreadPoolExecutor(1, "answers")
        self._unwritten = 0
        self._readers: WeakKeyDictionary[Contract, json_templates.Reader] = WeakKeyDictionary()
        self._version = server_version()
        self._manual = Manual(plane, self._version, plane.keys)

    def __call__(self, request: Request, reply: Reply) -> Cancellable | None:
        """Answer a request; what comes back calls off an answer that is not there yet."""
        try:
            allowed, route = self._routes.get(request.path) or self._found(request.path)
            method = "GET" if request.method == "HEAD" else request.method
            if method != allowed:
                verbs = "GET, HEAD" if allowed == "GET" else allowed
                reply(
                    failure(
                        HTTPStatus.METHOD_NOT_ALLOWED,
                        f"method {request.method} is not allowed here, expected {verbs}",
                        (("Allow", verbs),),
                    )
                )
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
        return _awaited(answer, reply) if isinstance(answer, Awaitable) else answer

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
            case ["", "v2", "models", name, "infer"]:
                return "POST", partial(self._infer, name, None)
            case ["", "v2", "models", name, "versions", number, "infer"]:
                return "POST", partial(self._infer, name, number)
            case ["", "v2", "models", name, "predict"]:
                return "POST", lambda request, reply: self._predict(request, name, None)
            case ["", "v2", "models", name, "versions", number, "predict"]:
                return "POST", lambda request, reply: self._predict(request, name, number)
            case ["", "metrics"]:
                return "GET", lambda request, reply: self._metrics(request)
            case ["", "v2", "models", "stats"]:
                return "GET", lambda request, reply: self._statistics(None, None)
            case ["", "v2", "models", name, "stats"]:
                return "GET", lambda request, reply: self._statistics(name, None)
            case ["", "v2", "models", name, "versions", number, "stats"]:
                return "GET", lambda request, reply: self._statistics(name, number)
            case ["", "v2"] | ["", "v2", ""]:
                return "GET", lambda request, reply: self._server()
            case ["", "openapi.json"]:
                return "GET", lambda request, reply: _document(self._manual.openapi())
            case ["", "docs"] | ["", "docs", ""]:
                return "GET", lambda request, reply: self._page(request, None)
            case ["", "docs", name]:
                return "GET", lambda request, reply: self._page(request, name)
            case ["", ""]:
                return "GET", lambda request, reply: _root(request)
            case ["", "v2", "health", "live"]:
                return "GET", lambda request, reply: self._live()
            case ["", "v2", "health", "ready"]:
                return "GET", lambda request, reply: self._ready()
            case ["", "v2", "models"] | ["", "v2", "models", ""]:
                return "GET", lambda request, reply: _json({"models": self._plane.models()})
            case ["", "v2", "models", name]:
                return "GET", lambda request, reply: self._metadata(name, None)
            case ["", "v2", "models", name, "versions", number]:
                return "GET", lambda request, reply: self._metadata(name, number)
            case ["", "v2", "models", name, "ready"]:
                return "GET", lambda request, reply: self._model_ready(name, None)
            case ["", "v2", "models", name, "versions", number, "ready"]:
                return "GET", lambda request, reply: self._model_ready(name, number)
            case ["", "v2", "models", name, "config"]:
                return "GET", lambda request, reply: _json(self._plane.config(name, None))
            case ["", "v2", "models", name, "versions", number, "config"]:
                return "GET", lambda request, reply: _json(self._plane.config(name, number))
            case ["", "v2", "repository", "index"] | ["", "v2", "repository", _, "index"]:
                return "POST", lambda request, reply: self._index(request)
            case ["", "v2", "repository", "models", name, "load" | "unload" as change] | [
                "",
                "v2",
                "repository",
                _,
                "models",
                name,
                "load" | "unload" as change,
            ]:
                return "POST", lambda request, reply: self._change(request, change, name)
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
        return _unready("the server is not ready: it is loading, draining, or has no model")

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

    async def _change(self, request: Request, change: str, name: str) -> Response:
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

    def _infer(self, name: str, number: str | None, request: Request, reply: Reply) -> Cancellable:
        call = (request.outer or request).call = Call()

        def read(contract: Contract) -> InferRequest:
            length = request.headers.get(HEADER_LENGTH, "")
            if codec_json.is_raw(length):
                return codec_json.decode_raw(request.body, self._plane.inputs(name, number))
            try:
                return self._reader(contract).read(request.body, length)
            except errors.InvalidRequest as error:
                if hint := _raw_hint(request):
                    raise errors.InvalidRequest(f"{error}{hint}") from None
                raise

        def done(asked: InferRequest, answer: InferResponse | errors.ServingError) -> None:
            try:
                if isinstance(answer, Exception):
                    raise answer
                if codec_json.is_long_answer(asked, answer):
                    self._tell_apart(asked, answer, reply, call)
                    return
                response = _response(*codec_json.encode(asked, answer))
            except Exception as error:
                call.failed(error)
                response = failed(error)
            reply(response)

        try:
            _check_type(request, INFER_TYPES, f"{JSON} or {BINARY}")
            if len(request.body) > TEXT_BYTES:
                length = request.headers.get(HEADER_LENGTH, "")
                if self._is_long(name, number, len(request.body), length):
                    return self._read_apart(name, number, request, length, done, reply, call)
            return self._plane.submit(name, number, read, done, call)
        except Exception as error:
            call.failed(error)
            raise

    def _is_long(self, name: str, number: str | None, size: int, length: str) -> bool:
        """Whether a body has more JSON, or may have more texts, than is read while others wait."""
        text = codec_json.json_size(size, length)
        if text > LONG_BYTES:
            codec_json.check_json(text, self._json_bytes)
            return True
        return not codec_json.is_raw(length) and self._plane.takes_texts(name, number)

    def _read_apart(
        self,
        name: str,
        number: str | None,
        request: Request,
        length: str,
        done: Callable[[InferRequest, InferResponse | errors.ServingError], None],
        reply: Reply,
        call: Call,
    ) -> Cancellable:
        """Have much JSON or text read in a thread, in which it takes turns with the event loop."""
        check = self._plane.check(name, number, call)

        def then(asked: InferRequest) -> Cancellable:
            return self._plane.submit(name, number, lambda contract: asked, done, call)

        def fail(error: BaseException) -> None:
            if isinstance(error, Exception):
                call.failed(error)
            if hint and isinstance(error, errors.InvalidRequest):
                error = errors.InvalidRequest(f"{error}{hint}")
            reply(failed(error))

        body, hint = request.body, _raw_hint(request)
        return self._long.read(
            lambda: codec_json.decode(body, length, check, self._json_bytes), then, fail
        )

    def _tell_apart(
        self, asked: InferRequest, answer: InferResponse, reply: Reply, call: Call
    ) -> None:
        """Have a long answer written in a thread, in which it takes turns with the event loop."""
        size = sum(tensor.array.nbytes for tensor in answer.outputs)
        if self._unwritten and self._unwritten + size > UNWRITTEN_BYTES:
            raise errors.Overloaded(
                f"answers of {self._unwritten} bytes wait to be written as JSON; ask for this one "
                'in binary: "parameters": {"binary_data_output": true}'
            )

        def fail(error: BaseException) -> None:
            if isinstance(error, Exception):
                call.failed(error)
            reply(failed(error))

        def written(work: object) -> None:
            self._unwritten -= size

        work = asyncio.get_running_loop().run_in_executor(
            self._writers, lambda: _response(*codec_json.encode_long(asked, answer))
        )
        self._unwritten += size
        work.add_done_callback(written)
        Apart(work, reply, fail)

    def _reader(self, contract: Contract) -> json_templates.Reader:
        reader = self._readers.get(contract)
        if reader is None:
            reader = json_templates.Reader(_weakly(contract.check), self._json_bytes)
            self._readers[contract] = reader
        return reader

    async def _predict(self, request: Request, name: str, number: str | None) -> Response:
        call = (request.outer or request).call = Call()
        try:
            media = self._plane.media(name, number)
            begins = tuple(kind.removesuffix("*") for kind in media)
            _check_type(request, FILE_TYPES, ", ".join((*media, BINARY)), begins)
            invert = _invert(request.query)
            if not request.body:
                raise errors.InvalidRequest("the body: expected a file, got nothing")
            answer = await self._plane.predict(name, number, request.body, invert, call)
        except Exception as error:
            call.failed(error)
            raise
        return Response(HTTPStatus.OK, (codec_json.encode_prediction(answer),))


def _response(parts: Sequence[bytes | memoryview], json_bytes: int) -> Response:
    if json_bytes < 0:
        return Response(200, parts)
    return Response(200, parts, BINARY, (("Inference-Header-Content-Length", str(json_bytes)),))


def _awaited(answer: Awaitable[Response], reply: Reply) -> Cancellable:
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


def failed(error: BaseException) -> Response:
    """A failure as an answer. What was not foreseen is logged whole and told in general words."""
    status = STATUS.get(type(error)) if isinstance(error, errors.ServingError) else None
    if status is None:
        log("error", "internal error", kind=type(error).__name__, trace=places(error))
        return failure(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log has it")
    headers: tuple[tuple[str, str], ...] = ()
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers = (("Retry-After", str(getattr(error, "retry_after", 1))),)
    if status is HTTPStatus.UNAUTHORIZED:
        headers = (("WWW-Authenticate", 'Bearer realm="slipway"'),)
    if type(error) in (errors.BackendFailure, errors.DeadlineExceeded):
        log("error", "backend failure", reason=str(error))
    return failure(status, str(error), headers)


def _weakly(check: Check) -> Check:
    """The same check, not keeping its contract: a model that was unloaded must go."""
    kept = WeakMethod(check)

    def checked(name: str, datatype: str, shape: Sequence[int]) -> None:
        alive = kept()
        if alive is not None:
            alive(name, datatype, shape)

    return checked


def _root(request: Request) -> Response:
    """A person with a browser wants the page; a program is told where the protocol begins."""
    if "text/html" in request.headers.get("accept", ""):
        return Response(HTTPStatus.TEMPORARY_REDIRECT, (), HTML, (("Location", "/docs"),))
    return failure(HTTPStatus.NOT_FOUND, ROOT_HINT)


def _document(document: bytes) -> Response:
    return Response(HTTPStatus.OK, (document,))


def _json(value: Any) -> Response:
    return Response(HTTPStatus.OK, (orjson.dumps(value),))


def _unready(message: str, more: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps({"error": message, "ready": False, **(more or {})})
    return Response(HTTPStatus.SERVICE_UNAVAILABLE, (body,), JSON, (("Retry-After", "1"),))


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _raw_hint(request: Request) -> str:
    """What to add to a refusal where raw bytes were sent without the header that says so."""
    if HEADER_LENGTH in request.headers or request.body[:64].lstrip().startswith(b"{"):
        return ""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != BINARY:
        return ""
    return "; for raw bytes send Inference-Header-Content-Length: 0"


def _check_type(
    request: Request, known: tuple[str, ...], expected: str, prefixes: tuple[str, ...] = ()
) -> None:
    sent = request.headers.get("content-type", "")
    if sent in known:
        return
    sent = sent.partition(";")[0].strip().lower()
    if sent not in known and not sent.startswith(prefixes):
        multipart = sent.startswith("multipart/")
        hint = "; send the file itself, as curl --data-binary @FILE does" if multipart else ""
        raise errors.UnsupportedMedia(f"Content-Type: expected {expected}, got {sent[:80]!r}{hint}")


def _invert(query: str) -> bool:
    invert = False
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise errors.InvalidRequest(f"query: {error}") from error
    for key, value in fields:
        if key != "invert" or value.lower() not in TRUE + FALSE:
            raise errors.InvalidRequest(
                "query: expected invert=true (or 1, yes) or invert=false (or 0, no), got "
                f"{key[:80]}={value[:80]}"
            )
        invert = value.lower() in TRUE
    return invert
