"""The gRPC door: methods, one status table, the server around them.

Messages are parsed here and not by grpc, whose own answer to bytes that are no message is an internal
error. grpc's channel work happens in its own threads; everything of ours is on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from serving import codec_proto, errors
from serving.access import Access
from serving.books import Books
from serving.call import Call
from serving.cells import CANCELLED, DEADLINE, GRPC
from serving.config import GrpcSettings
from serving.dataplane import DataPlane
from serving.proto.inference import INFERENCE, OLDER_REFLECTION, REFLECTION, message
from serving.protocol import EXTENSIONS, NAME, server_version
from serving.rpc_access import Metadata, check
from serving.rpc_standard import Health, Reflection
from serving.telemetry import log, places
from serving.tracing import trace_id

STATUS: dict[type[errors.ServingError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.UnsupportedMedia: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.UNAVAILABLE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.WaitedTooLong: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.BackendFailure: grpc.StatusCode.INTERNAL,
}

MAX_DETAILS = 2000
"""Bytes of a message: it travels in a header, where they may treble, and clients take 8 KiB."""

CANCEL_SECONDS = 0.2
"""How long calls that were cut off have to end."""

GRACE_SECONDS, QUIET_SECONDS = 0.5, 0.1
"""How long, and until which silence, calls are still refused in words when leaving.

Once grpc is told to stop, it cuts off whoever calls, and clients see a call cancelled that they
could have made elsewhere.
"""

ELSEWHERE = {
    "RepositoryModelLoad": "loading is the control plane's, on an HTTP port of its own",
    "RepositoryModelUnload": "unloading is the control plane's, on an HTTP port of its own",
    "TraceSetting": "tracing has no settings here",
    "LogSettings": "logging is set when the server starts",
    **{
        f"{kind}SharedMemory{verb}": "shared memory is not offered here; send the data"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
}
"""Methods that the protocol has and this door has not."""

Refusal = Callable[[str, Metadata], grpc.RpcMethodHandler | None]
Method = Callable[[bytes, Any, Call], bytes | Awaitable[bytes]]
INFER, STREAM = f"/{INFERENCE}/ModelInfer", f"/{INFERENCE}/ModelStreamInfer"
FLUSH_SECONDS = 1.0
"""How long, at the end, the reader of the log may take to read its last lines."""


class RpcServer:
    """The listening port and its calls."""

    def __init__(
        self,
        plane: DataPlane,
        settings: GrpcSettings,
        books: Books,
        access: Access | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._plane = plane
        self._settings = settings
        self._access = access
        self._credentials = credentials
        self._books = books
        self._version = server_version()
        self._health = Health(plane.live, plane.ready)
        self._open: set[asyncio.Task[Any]] = set()
        self._leaving = asyncio.Event()
        self._last_refused = 0.0
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, shared: bool = False) -> int:
        """Listen; the port it became. `shared` lets other workers listen there too.

        Raises `OSError` where the address cannot be had.
        """
        server = grpc.aio.server(
            options=options(self._settings, shared),
            maximum_concurrent_rpcs=self._settings.calls,
        )
        server.add_generic_rpc_handlers((_Services(self._methods(), self._refusal),))
        place = f"[{host}]" if ":" in host else host
        place = f"{place}:{self._settings.port}"
        try:
            if self._credentials:
                port = server.add_secure_port(place, self._credentials)
            else:
                port = server.add_insecure_port(place)
        except RuntimeError as error:
            raise OSError(f"{host}:{self._settings.port}: cannot be listened at") from error
        await server.start()
        self._server = server
        return port

    async def drain(self, seconds: float) -> bool:
        """Not serving; take no more calls, let those in flight finish. False if time ran out."""
        self._leaving.set()
        self._health.leave()
        if self._server is None:
            return True
        began = time.monotonic()
        grace = began + min(GRACE_SECONDS, seconds / 2)
        self._last_refused = began
        while (now := time.monotonic()) < grace and now < self._last_refused + QUIET_SECONDS:
            await asyncio.sleep(0.01)
        left = max(began + seconds - now, 0)
        await self._server.stop(left)  # comes back earlier where nothing is left
        clean = time.monotonic() - now < left
        if self._open:
            await asyncio.wait(self._open, timeout=CANCEL_SECONDS)
        self._books.close(FLUSH_SECONDS)
        return clean

    def sample(self) -> None:
        """Say how many calls are being answered; a stream is one."""
        self._books.metrics.in_flight(GRPC, len(self._open))

    def _methods(self) -> Mapping[str, grpc.RpcMethodHandler]:
        found: dict[str, grpc.RpcMethodHandler] = {}
        unary: list[tuple[str, Method]] = [
            ("ModelInfer", self._infer),
            ("ServerLive", self._live),
            ("ServerReady", self._ready),
            ("ModelReady", self._model_ready),
            ("ServerMetadata", self._metadata),
            ("ModelMetadata", self._model_metadata),
            ("ModelConfig", self._config),
            ("ModelStatistics", self._statistics),
            ("RepositoryIndex", self._index),
            *((name, _refusing(name)) for name in ELSEWHERE),
        ]
        for name, method in unary:
            path = f"/{INFERENCE}/{name}"
            found[path] = grpc.unary_unary_rpc_method_handler(self._guarded(path, method))
        found[STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)
        for service in (self._health, Reflection(REFLECTION), Reflection(OLDER_REFLECTION)):
            found |= service.methods()
        return found

    def _guarded(self, path: str, method: Method) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """A handler that never raises: what goes wrong is a status, and a line of the access log."""

        async def handler(payload: bytes, context: Any) -> bytes:
            arrived = time.perf_counter()
            call = Call()
            request_id, trace = self._named(context)
            trailing: tuple[tuple[str, str], ...] = (("x-request-id", request_id),)
            code = grpc.StatusCode.CANCELLED
            answer: bytes | Awaitable[bytes] = b""
            task = asyncio.current_task()
            assert task is not None
            self._open.add(task)
            try:
                answer = method(payload, context, call)
                if not isinstance(answer, bytes):
                    answer = await answer
                code = grpc.StatusCode.OK
                return answer
            except Exception as error:
                call.failed(error)
                code, details = told(error)
                context.set_code(code)
                context.set_details(details)
                if code is grpc.StatusCode.UNAVAILABLE:
                    wait = str(getattr(error, "retry_after", 1) * 1000)
                    trailing += (("grpc-retry-pushback-ms", wait),)
                return b""
            finally:
                self._open.discard(task)
                if code is grpc.StatusCode.CANCELLED:
                    code = _given_up(call, context)
                else:
                    context.set_trailing_metadata(trailing)
                sent = len(answer) if isinstance(answer, bytes) else 0
                asked = call if path == INFER else None
                self._books.note(
                    *(asked, GRPC, "GRPC", path, code.name, request_id, trace),
                    *(len(payload), sent, arrived),
                )

        return handler

    def _named(self, context: Any) -> tuple[str, str]:
        """(request id, trace id) of a call: the client's, or an id of ours."""
        sent = dict(context.invocation_metadata() or ())
        traceparent = sent.get("traceparent", "")
        request_id = sent.get("x-request-id") or self._books.new_id()
        return request_id, trace_id(traceparent) if traceparent else ""

    def _refusal(self, path: str, metadata: Metadata) -> grpc.RpcMethodHandler | None:
        """What answers a call that may not go on, told before its request is read."""
        if self._access is None:
            return None
        try:
            check(self._access, path, metadata)
        except errors.ServingError as error:
            code, details = told(error)
        else:
            return None

        async def refuse(asked: AsyncIterator[bytes], context: Any) -> None:
            named = self._named(context)
            self._books.note(None, GRPC, "GRPC", path, code.name, *named, 0, 0, time.perf_counter())
            await context.abort(code, details)

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _infer(self, payload: bytes, context: Any, call: Call) -> bytes:
        if self._leaving.is_set():
            self._last_refused = time.monotonic()
            raise errors.NotReady("the server is leaving; ask again in a moment")
        left = context.time_remaining()
        if left is not None and left <= 0:
            raise errors.DeadlineExceeded("the deadline had passed when the request came")
        return await self._answer(codec_proto.parse(payload), call)

    async def _answer(self, asked: Any, call: Call) -> bytes:
        """One request's answer. Cancelled, it leaves the queue."""
        name, version = asked.model_name, asked.model_version or None
        # An unknown model is told before a bad tensor, a bad shape before its data is read.
        request = codec_proto.decode(asked, self._plane.check(name, version, call))
        answer = await self._plane.infer(name, version, request, call)
        return codec_proto.encode(request.id, answer)

    async def _stream(self, asked: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answers in the order of the requests, which run beside one another."""
        waiting: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(self._settings.pipelined)
        running: set[asyncio.Task[Any]] = set()
        reader = asyncio.create_task(self._read(asked, context, waiting, running))
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while (answer := await waiting.get()) is not None:
                yield await answer
                running.discard(answer)
            if self._leaving.is_set():
                context.set_code(grpc.StatusCode.UNAVAILABLE)
                context.set_details("the server is leaving; open another stream")
        finally:
            self._open.discard(task)
            for left in (reader, *running):
                left.cancel()

    async def _read(
        self,
        asked: AsyncIterator[bytes],
        context: Any,
        waiting: asyncio.Queue[asyncio.Task[bytes] | None],
        running: set[asyncio.Task[Any]],
    ) -> None:
        """Start each request as it comes; at the end, or when leaving, say that there are no more."""
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            while not leaving.done():
                coming = asyncio.ensure_future(anext(asked, None))
                await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    break
                payload = coming.result()
                if payload is None:
                    break
                answer = asyncio.create_task(self._streamed(payload, context))
                running.add(answer)
                await waiting.put(answer)
        except Exception as error:  # grpc's, for a call that has ended; whoever waits must not hang
            log("warning", "a stream broke off", kind=type(error).__name__)
        finally:
            leaving.cancel()
        await waiting.put(None)

    async def _streamed(self, payload: bytes, context: Any) -> bytes:
        """One request of a stream; its failure is an answer like any other."""
        arrived = time.perf_counter()
        asked, call, code, answer = None, Call(), grpc.StatusCode.CANCELLED, b""
        try:
            asked = codec_proto.parse(payload)
            answer = codec_proto.encode_streamed(await self._answer(asked, call))
            code = grpc.StatusCode.OK
        except Exception as error:
            call.failed(error)
            code, details = told(error)
            answer = codec_proto.encode_stream_failure(asked, details)
        finally:
            if code is grpc.StatusCode.CANCELLED:
                code = _given_up(call, context)
            self._books.note(
                *(call, GRPC, "GRPC", STREAM, code.name, *self._named(context)),
                *(len(payload), len(answer), arrived),
            )
        return answer

    def _live(self, payload: bytes, context: Any, call: Call) -> bytes:
        return _message("ServerLiveResponse", live=self._plane.live())

    def _ready(self, payload: bytes, context: Any, call: Call) -> bytes:
        return _message("ServerReadyResponse", ready=self._plane.ready())

    def _model_ready(self, payload: bytes, context: Any, call: Call) -> bytes:
        asked = _parsed(payload, "ModelReadyRequest")
        try:
            self._plane.model_ready(asked.name, asked.version or None)
        except errors.NotReady:
            return _message("ModelReadyResponse", ready=False)
        return _message("ModelReadyResponse", ready=True)

    def _metadata(self, payload: bytes, context: Any, call: Call) -> bytes:
        return _message(
            "ServerMetadataResponse", name=NAME, version=self._version, extensions=EXTENSIONS
        )

    def _model_metadata(self, payload: bytes, context: Any, call: Call) -> bytes:
        asked = _parsed(payload, "ModelMetadataRequest")
        return codec_proto.encode_metadata(self._plane.metadata(asked.name, asked.version or None))

    def _config(self, payload: bytes, context: Any, call: Call) -> bytes:
        asked = _parsed(payload, "ModelConfigRequest")
        return codec_proto.encode_config(self._plane.config(asked.name, asked.version or None))

    def _statistics(self, payload: bytes, context: Any, call: Call) -> bytes:
        asked = _parsed(payload, "ModelStatisticsRequest")
        found = self._plane.statistics(asked.name or None, asked.version or None)
        return codec_proto.encode_statistics(found)

    def _index(self, payload: bytes, context: Any, call: Call) -> bytes:
        asked = _parsed(payload, "RepositoryIndexRequest")
        return codec_proto.encode_index(self._plane.index(asked.ready))


class _Services(grpc.GenericRpcHandler):
    """Every method by its path, unless the call is refused."""

    def __init__(self, methods: Mapping[str, grpc.RpcMethodHandler], refusal: Refusal) -> None:
        self._methods = methods
        self._refusal = refusal

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        path = handler_call_details.method
        refusal = self._refusal(path, handler_call_details.invocation_metadata)
        return refusal or self._methods.get(path)


def options(settings: GrpcSettings, shared: bool) -> list[tuple[str, int]]:
    """What grpc's core is told, by its names; times are in milliseconds."""
    found = {
        "grpc.so_reuseport": int(shared),
        "grpc.max_receive_message_length": settings.message_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.max_metadata_size": settings.header_bytes,
        "grpc.absolute_max_metadata_size": settings.header_bytes,
        "grpc.max_allowed_incoming_connections": settings.connections,
        "grpc.max_concurrent_streams": settings.streams,
        "grpc.server_handshake_timeout_ms": _ms(settings.handshake_seconds),
        "grpc.keepalive_time_ms": _ms(settings.keepalive_seconds),
        "grpc.keepalive_timeout_ms": _ms(settings.keepalive_patience),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": _ms(settings.ping_seconds),
    }
    if settings.idle_seconds:
        found["grpc.max_connection_idle_ms"] = _ms(settings.idle_seconds)
    if settings.age_seconds:
        found["grpc.max_connection_age_ms"] = _ms(settings.age_seconds)
    return list(found.items())


def told(error: Exception) -> tuple[grpc.StatusCode, str]:
    """A failure as a status. What was not foreseen is logged whole and told in general words."""
    code = STATUS.get(type(error)) if isinstance(error, errors.ServingError) else None
    if code is None:
        log("error", "internal error", kind=type(error).__name__, trace=places(error))
        return grpc.StatusCode.INTERNAL, "internal error; the server's log has it"
    if isinstance(error, errors.BackendFailure):
        log("error", "backend failure", reason=str(error))
    return code, str(error).encode()[:MAX_DETAILS].decode(errors="ignore")


def _given_up(call: Call, context: Any) -> grpc.StatusCode:
    """How a call ended that the client gave up: by leaving, or because its time was over."""
    left = context.time_remaining()
    if left is not None and left <= 0:
        call.outcome = DEADLINE
        return grpc.StatusCode.DEADLINE_EXCEEDED
    call.outcome = CANCELLED
    return grpc.StatusCode.CANCELLED


def _refusing(name: str) -> Method:
    def method(payload: bytes, context: Any, call: Call) -> bytes:
        raise errors.Unsupported(f"{name}: {ELSEWHERE[name]}")

    return method


def _parsed(payload: bytes, name: str) -> Any:
    return codec_proto.parse(payload, message(f"inference.{name}"))


def _message(kind: str, **fields: Any) -> bytes:
    found: bytes = message(f"inference.{kind}")(**fields).SerializeToString()
    return found


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
