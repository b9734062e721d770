"""What every gRPC call has, whatever it asks for: its ids, its status, its lines in the books."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from serving import errors
from serving.access import Access
from serving.books import Books
from serving.call import Call
from serving.cells import CANCELLED, DEADLINE, GRPC
from serving.rpc_access import Metadata, check
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
    errors.ModelRefused: grpc.StatusCode.FAILED_PRECONDITION,
}

MAX_DETAILS = 2000
"""Bytes of a message: it travels in a header, where they may treble, and clients take 8 KiB."""

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
NAMES = {code: code.name for code in grpc.StatusCode}
"""Asking a code for its name costs more than this."""

Method = Callable[[bytes, Any, Call], bytes | Awaitable[bytes]]
"""(the request, grpc's context, what is noted of it) -> the answer, now or to be awaited."""


class Calls:
    """The calls of one door. `open` are the tasks of those under way; a stream is one."""

    def __init__(self, books: Books, access: Access | None) -> None:
        self.books = books
        self.open: set[asyncio.Task[Any]] = set()
        self._access = access

    def refusal(self, path: str, metadata: Metadata) -> grpc.RpcMethodHandler | None:
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
            request_id, trace = self.named(metadata)
            self.books.note(
                *(None, GRPC, "GRPC", path, NAMES[code], request_id, trace),
                *(0, 0, time.perf_counter()),
            )
            await context.abort(code, details)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def named(self, metadata: Metadata) -> tuple[str, str]:
        """(request id, trace id) of a call: the client's, or an id of ours."""
        request_id = traceparent = ""
        for name, value in metadata:
            if name == "x-request-id":
                request_id = str(value)
            elif name == "traceparent":
                traceparent = str(value)
        return request_id or self.books.new_id(), trace_id(traceparent) if traceparent else ""


class Unary(grpc.RpcMethodHandler):
    """One call of a method with one answer. Never raises: what goes wrong is a status.

    Made for each call, with the metadata that grpc has read by then: reading them again, as its
    context would, costs more than all else in here. `counted` says that a model is asked.
    """

    request_streaming = response_streaming = False
    request_deserializer = response_serializer = None
    unary_stream = stream_unary = stream_stream = None

    def __init__(
        self, calls: Calls, path: str, method: Method, counted: bool, metadata: Metadata
    ) -> None:
        self._calls = calls
        self._path = path
        self._method = method
        self._counted = counted
        self._metadata = metadata

    async def unary_unary(self, payload: bytes, context: Any) -> bytes:
        """The answer, or nothing beside the status that the context is told."""
        arrived = time.perf_counter()
        calls, call = self._calls, Call()
        request_id, trace = calls.named(self._metadata)
        trailing: tuple[tuple[str, str], ...] = (("x-request-id", request_id),)
        code: grpc.StatusCode | None = None
        answer: bytes = b""
        task = asyncio.current_task()
        assert task is not None
        calls.open.add(task)
        try:
            found = self._method(payload, context, call)
            answer = found if isinstance(found, bytes) else await found
            code = OK
        except Exception as error:
            call.failed(error)
            code, details = told(error)
            context.set_code(code)
            context.set_details(details)
            if code is UNAVAILABLE:
                wait = str(getattr(error, "retry_after", 1) * 1000)
                trailing += (("grpc-retry-pushback-ms", wait),)
        finally:
            calls.open.discard(task)
            if code is None:
                code = given_up(call, context)
            else:
                context.set_trailing_metadata(trailing)
            calls.books.note(
                *(call if self._counted else None, GRPC, "GRPC", self._path, NAMES[code]),
                *(request_id, trace, len(payload), len(answer), arrived),
            )
        return answer


def told(error: Exception) -> tuple[grpc.StatusCode, str]:
    """A failure as a status. What was not foreseen is logged whole and told in general words."""
    code = STATUS.get(type(error)) if isinstance(error, errors.ServingError) else None
    if code is None:
        log("error", "internal error", kind=type(error).__name__, trace=places(error))
        return grpc.StatusCode.INTERNAL, "internal error; the server's log has it"
    if isinstance(error, errors.BackendFailure):
        log("error", "backend failure", reason=str(error))
    return code, str(error).encode()[:MAX_DETAILS].decode(errors="ignore")


def given_up(call: Call, context: Any) -> grpc.StatusCode:
    """How a call ended that the client gave up: by leaving, or because its time was over."""
    left = context.time_remaining()
    if left is not None and left <= 0:
        call.outcome = DEADLINE
        return grpc.StatusCode.DEADLINE_EXCEEDED
    call.outcome = CANCELLED
    return grpc.StatusCode.CANCELLED
