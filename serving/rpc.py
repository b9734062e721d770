"""The gRPC door: which methods there are, and the server around them.

Messages are parsed here and not by grpc, whose own answer to bytes that are no message is an internal
error. grpc's channel work happens in its own threads; everything of ours is on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from serving import codec_proto, errors
from serving.access import Access
from serving.books import Books
from serving.call import Call
from serving.cells import GRPC
from serving.config import GrpcSettings
from serving.control import Control
from serving.dataplane import DataPlane
from serving.proto.inference import INFERENCE, OLDER_REFLECTION, REFLECTION, message
from serving.protocol import EXTENSIONS, NAME, server_version
from serving.rpc_access import Metadata
from serving.rpc_calls import Calls, Method, Unary
from serving.rpc_infer import INFER, STREAM, Inference
from serving.rpc_standard import Health, Reflection

CANCEL_SECONDS = 0.2
"""How long calls that were cut off have to end."""

GRACE_SECONDS, QUIET_SECONDS = 0.5, 0.1
"""How long, and until which silence, calls are still refused in words when leaving.

Once grpc is told to stop, it cuts off whoever calls, and clients see a call cancelled that they
could have made elsewhere.
"""

FLUSH_SECONDS = 1.0
"""How long, at the end, the reader of the log may take to read its last lines."""

CLOSED = (
    "this door loads and unloads nothing: start the server with --control-grpc-port PORT and ask "
    "there, on the machine itself"
)
CHANGES = ("RepositoryModelLoad", "RepositoryModelUnload")
ELSEWHERE = {
    **dict.fromkeys(CHANGES, CLOSED),
    "TraceSetting": "tracing has no settings here",
    "LogSettings": "logging is set when the server starts",
    **{
        f"{kind}SharedMemory{verb}": "shared memory is not offered here; send the data"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
}
"""Methods that the protocol has and this door has not."""


class RpcServer:
    """The listening port and its calls. With a `control` it is the control plane's: all the same,
    and it loads and unloads.
    """

    def __init__(
        self,
        plane: DataPlane,
        settings: GrpcSettings,
        books: Books,
        access: Access | None = None,
        credentials: grpc.ServerCredentials | None = None,
        control: Control | None = None,
    ) -> None:
        self._plane = plane
        self._settings = settings
        self._credentials = credentials
        self._control = control
        self._version = server_version()
        self._health = Health(plane.live, plane.ready)
        self._calls = Calls(books, access)
        self._inference = Inference(plane, self._calls, settings.pipelined)
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, shared: bool = False) -> int:
        """Listen; the port it became. `shared` lets other workers listen there too.

        Raises `OSError` where the address cannot be had.
        """
        server = grpc.aio.server(
            options=options(self._settings, shared),
            maximum_concurrent_rpcs=self._settings.calls,
        )
        server.add_generic_rpc_handlers((_Services(self._calls, self._unary(), self._others()),))
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
        inference = self._inference
        inference.leaving.set()
        self._health.leave()
        if self._server is None:
            return True
        began = time.monotonic()
        grace = began + min(GRACE_SECONDS, seconds / 2)
        inference.last_refused = began
        while (now := time.monotonic()) < grace and now < inference.last_refused + QUIET_SECONDS:
            await asyncio.sleep(0.01)
        left = max(began + seconds - now, 0)
        await self._server.stop(left)  # comes back earlier where nothing is left
        clean = time.monotonic() - now < left
        if self._calls.open:
            await asyncio.wait(self._calls.open, timeout=CANCEL_SECONDS)
        self._calls.books.close(FLUSH_SECONDS)
        return clean

    def sample(self) -> None:
        """Say how many calls are being answered; a stream is one."""
        self._calls.books.metrics.in_flight(GRPC, len(self._calls.open))

    def _unary(self) -> dict[str, Method]:
        methods: dict[str, Method] = {
            "ModelInfer": self._inference.infer,
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            **{name: _refusing(name) for name in ELSEWHERE},
        }
        if self._control:
            methods |= {"RepositoryModelLoad": self._load, "RepositoryModelUnload": self._unload}
        return {f"/{INFERENCE}/{name}": method for name, method in methods.items()}

    def _others(self) -> dict[str, grpc.RpcMethodHandler]:
        found = {STREAM: grpc.stream_stream_rpc_method_handler(self._inference.stream)}
        for service in (self._health, Reflection(REFLECTION), Reflection(OLDER_REFLECTION)):
            found |= service.methods()
        return found

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

    async def _load(self, payload: bytes, context: Any, call: Call) -> bytes:
        assert self._control
        name, body = codec_proto.decode_change(_parsed(payload, "RepositoryModelLoadRequest"))
        await self._control.load(name, body)
        return _message("RepositoryModelLoadResponse", model_name=name, isLoaded=True)

    async def _unload(self, payload: bytes, context: Any, call: Call) -> bytes:
        assert self._control
        name, body = codec_proto.decode_change(_parsed(payload, "RepositoryModelUnloadRequest"))
        await self._control.unload(name, body)
        return _message("RepositoryModelUnloadResponse", model_name=name, isUnloaded=True)


class _Services(grpc.GenericRpcHandler):
    """Every method by its path, unless the call is refused."""

    def __init__(
        self,
        calls: Calls,
        unary: Mapping[str, Method],
        others: Mapping[str, grpc.RpcMethodHandler],
    ) -> None:
        self._calls = calls
        self._unary = unary
        self._others = others

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        path: str = handler_call_details.method
        metadata: Metadata = handler_call_details.invocation_metadata
        refusal = self._calls.refusal(path, metadata)
        if refusal:
            return refusal
        method = self._unary.get(path)
        if method is None:
            return self._others.get(path)
        return Unary(self._calls, path, method, path == INFER, metadata)


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
