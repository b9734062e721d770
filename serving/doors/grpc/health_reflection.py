"""gRPC's own two services, for orchestrators and tools: health, and what this server offers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc

from serving.codecs.codec_proto import parse_small
from serving.errors import NotFound
from serving.proto.inference import (
    FILES,
    HEALTH,
    INFERENCE,
    OLDER_REFLECTION,
    POOL,
    REFLECTION,
    message,
)

LIVENESS = "liveness"
"""The name under which an orchestrator asks whether the process answers at all."""

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
LOOK_SECONDS = 0.5
"""Between two looks at the state while somebody watches it."""

MAX_TOLD = 200


class Health:
    """`grpc.health.v1.Health`. Serving means ready; `liveness` is asked for by that name."""

    def __init__(self, live: Callable[[], bool], ready: Callable[[], bool]) -> None:
        self._states = {"": ready, INFERENCE: ready, HEALTH: ready, LIVENESS: live}
        self._request = message("grpc.health.v1.HealthCheckRequest")
        self._answer = message("grpc.health.v1.HealthCheckResponse")
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Tell whoever watches for the last time."""
        self._leaving.set()

    def check(self, payload: bytes, asked: object) -> bytes:
        """Check."""
        service = parse_small(payload, self._request).service
        state = self._states.get(service)
        if state is None:
            raise NotFound(
                f"service {service[:MAX_TOLD]!r}: expected one of "
                f"{', '.join(repr(name) for name in self._states)}"
            )
        return self._told(SERVING if state() else NOT_SERVING)

    async def watch(
        self, asked: AsyncIterator[bytes], incoming: object
    ) -> AsyncGenerator[bytes, None]:
        """Watch: its state now, and whenever it changes."""
        service = parse_small(await anext(asked, b""), self._request).service
        state = self._states.get(service)
        told = -1
        while True:
            leaving = self._leaving.is_set()
            now = SERVICE_UNKNOWN
            if state is not None:
                now = SERVING if state() and not leaving else NOT_SERVING
            if now != told:
                yield self._told(now)
                told = now
            if leaving:
                return
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._leaving.wait()
            except TimeoutError:
                continue

    def _told(self, status: int) -> bytes:
        found: bytes = self._answer(status=status).SerializeToString()
        return found


class Reflection:
    """`grpc.reflection`, in both versions that tools ask for."""

    def __init__(self, package: str) -> None:
        prefix = package.rpartition(".")[0]
        self._request = message(f"{prefix}.ServerReflectionRequest")
        self._answer = message(f"{prefix}.ServerReflectionResponse")

    async def info(
        self, asked: AsyncIterator[bytes], incoming: object
    ) -> AsyncGenerator[bytes, None]:
        """ServerReflectionInfo."""
        async for payload in asked:
            request = parse_small(payload, self._request)
            answer = self._answer(valid_host=request.host, original_request=request)
            self._fill(answer, request)
            yield answer.SerializeToString()

    def _fill(self, answer: Any, request: Any) -> None:
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for name in (INFERENCE, HEALTH, REFLECTION, OLDER_REFLECTION):
                    answer.list_services_response.service.add(name=name)
            elif kind == "file_by_filename":
                self._file(answer, POOL.FindFileByName(request.file_by_filename).name)
            elif kind == "file_containing_symbol":
                symbol = request.file_containing_symbol
                self._file(answer, POOL.FindFileContainingSymbol(symbol).name)
            elif kind == "all_extension_numbers_of_type":
                found = POOL.FindMessageTypeByName(request.all_extension_numbers_of_type)
                answer.all_extension_numbers_response.base_type_name = found.full_name
            else:  # extensions: proto3 has none
                raise KeyError(kind)
        except KeyError:
            answer.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
            answer.error_response.error_message = f"nothing here by that name ({kind})"

    @staticmethod
    def _file(answer: Any, name: str) -> None:
        (found,) = (file for file in FILES if file.name == name)
        answer.file_descriptor_response.file_descriptor_proto.append(found.SerializeToString())
