"""The gRPC door: which methods there are, and the server around them.

Messages are parsed here and not by grpc, whose own answer to bytes that are no message is an internal
error.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from serving import errors
from serving.codecs import codec_proto
from serving.config import GrpcSettings
from serving.dataplane import DataPlane
from serving.doors.access import Access
from serving.doors.grpc.calls import Calls, Method, Stream, Unary
from serving.doors.grpc.core import Listener
from serving.doors.grpc.health_reflection import Health, Reflection
from serving.doors.grpc.infer import INFER, STREAM, Inference
from serving.models.control import Control
from serving.observability.accounting import Books
from serving.observability.cells import GRPC
from serving.proto.inference import HEALTH, INFERENCE, OLDER_REFLECTION, REFLECTION, message
from serving.protocol import EXTENSIONS, NAME, server_version

CANCEL_SECONDS = 0.2
"""How long calls that were cut off have to end."""

LOOK_SECONDS, LOOKS, QUIET_LOOKS = 0.01, 50, 10
"""How often, how many times at most, and until how many times nobody came it is looked, when
leaving, for calls that are on their way. Turns of the loop, not the clock: it may have stood still.

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
        self._calls = Calls(books, access, settings)
        self._inference = Inference(plane, self._calls, settings.pipelined)
        self._calls.unary, self._calls.streams = self._unary(), self._streams()
        self._calls.counted = INFER
        self._listener: Listener | None = None

    async def start(self, host: str, shared: bool = False) -> int:
        """Listen; the port it became. `shared` lets other workers listen there too.

        Raises `OSError` where the address cannot be had.
        """
        listener = Listener(options(self._settings, shared), self._calls.accept)
        place = f"[{host}]" if ":" in host else host
        port = listener.bind(f"{place}:{self._settings.port}", self._credentials)
        listener.start()
        self._listener = listener
        return port

    async def drain(self, seconds: float) -> bool:
        """Not serving; take no more calls, let those in flight finish. False if time ran out."""
        inference = self._inference
        inference.leaving.set()
        self._health.leave()
        if self._listener is None:
            return True
        began = time.monotonic()
        looks = quiet = 0
        while looks < LOOKS and quiet < QUIET_LOOKS and time.monotonic() < began + seconds / 2:
            late = inference.late
            await asyncio.sleep(LOOK_SECONDS)
            looks, quiet = looks + 1, quiet + 1 if inference.late == late else 0
        now = time.monotonic()
        left = max(began + seconds - now, 0)
        stopping = asyncio.ensure_future(
            self._listener.stop(left)
        )  # done as soon as nothing is left
        await asyncio.sleep(LOOK_SECONDS)  # every connection is told by then
        inference.closed.set()
        await stopping
        clean = time.monotonic() - now < left
        await self._calls.ended(CANCEL_SECONDS)
        self._calls.books.close(FLUSH_SECONDS)
        return clean

    def sample(self) -> None:
        """Say how many calls are being answered; a stream is one."""
        self._calls.books.metrics.in_flight(GRPC, self._calls.under_way())

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
        return {f"/{INFERENCE}/{name}": method for name, method in methods.items()} | {
            f"/{HEALTH}/Check": self._health.check
        }

    def _streams(self) -> dict[str, Stream]:
        return {
            STREAM: self._inference.stream,
            f"/{HEALTH}/Watch": self._health.watch,
            **{
                f"/{service}/ServerReflectionInfo": Reflection(service).info
                for service in (REFLECTION, OLDER_REFLECTION)
            },
        }

    def _live(self, payload: bytes, asked: Unary) -> bytes:
        return _message("ServerLiveResponse", live=self._plane.live())

    def _ready(self, payload: bytes, asked: Unary) -> bytes:
        return _message("ServerReadyResponse", ready=self._plane.ready())

    def _model_ready(self, payload: bytes, asked: Unary) -> bytes:
        told = _parsed(payload, "ModelReadyRequest")
        try:
            self._plane.model_ready(told.name, told.version or None)
        except errors.NotReady:
            return _message("ModelReadyResponse", ready=False)
        return _message("ModelReadyResponse", ready=True)

    def _metadata(self, payload: bytes, asked: Unary) -> bytes:
        return _message(
            "ServerMetadataResponse", name=NAME, version=self._version, extensions=EXTENSIONS
        )

    def _model_metadata(self, payload: bytes, asked: Unary) -> bytes:
        told = _parsed(payload, "ModelMetadataRequest")
        return codec_proto.encode_metadata(self._plane.metadata(told.name, told.version or None))

    def _config(self, payload: bytes, asked: Unary) -> bytes:
        told = _parsed(payload, "ModelConfigRequest")
        return codec_proto.encode_config(self._plane.config(told.name, told.version or None))

    def _statistics(self, payload: bytes, asked: Unary) -> bytes:
        told = _parsed(payload, "ModelStatisticsRequest")
        found = self._plane.statistics(told.name or None, told.version or None)
        return codec_proto.encode_statistics(found)

    def _index(self, payload: bytes, asked: Unary) -> bytes:
        told = _parsed(payload, "RepositoryIndexRequest")
        return codec_proto.encode_index(self._plane.index(told.ready))

    async def _load(self, payload: bytes, asked: Unary) -> bytes:
        assert self._control
        name, body = codec_proto.decode_change(_parsed(payload, "RepositoryModelLoadRequest"))
        await self._control.load(name, body)
        return _message("RepositoryModelLoadResponse", model_name=name, isLoaded=True)

    async def _unload(self, payload: bytes, asked: Unary) -> bytes:
        assert self._control
        name, body = codec_proto.decode_change(_parsed(payload, "RepositoryModelUnloadRequest"))
        await self._control.unload(name, body)
        return _message("RepositoryModelUnloadResponse", model_name=name, isUnloaded=True)


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
    def method(payload: bytes, asked: Unary) -> bytes:
        raise errors.Unsupported(f"{name}: {ELSEWHERE[name]}")

    return method


def _parsed(payload: bytes, name: str) -> Any:
    return codec_proto.parse_small(payload, message(f"inference.{name}"))


def _message(kind: str, **fields: Any) -> bytes:
    found: bytes = message(f"inference.{kind}")(**fields).SerializeToString()
    return found


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
