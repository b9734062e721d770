"""What every gRPC call has, whatever it asks for: its ids, its status, its lines in the books."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import grpc

from serving import errors
from serving.config import GrpcSettings
from serving.doors.access import Access
from serving.doors.grpc.access import check, scope_of
from serving.doors.grpc.core import Incoming, Metadata
from serving.doors.grpc.patience import Patience
from serving.doors.grpc.status import NAMES, OK, told
from serving.observability.accounting import CLIENT_LEFT, Books
from serving.observability.call import Call
from serving.observability.cells import CANCELLED, DEADLINE, GRPC
from serving.observability.tracing import trace_id


class Cancellable(Protocol):
    """What can be told that nobody waits for the answer any more."""

    def cancel(self) -> object: ...


Reply = Callable[[bytes | Exception], None]
"""Where a call's one answer goes, or why there is none; at once or later, on the event loop."""

Method = Callable[[bytes, "Unary"], bytes | Awaitable[bytes] | Cancellable]
"""Answers now, or with what is awaited; or calls `reply` itself, and says how to call it off."""

Stream = Callable[[AsyncIterator[bytes], Incoming], AsyncGenerator[bytes, None]]
"""Requests to answers, at any pace; what it raises is how the call ends."""

OPEN_SECONDS = 5.0
"""How long the message of a call without a key is waited for at most: it is a few bytes."""

OPEN_BYTES = 4096
"""Of such a message: the name of a service at most."""


class Kept:
    """Calls that share one bound: `limit`, the setting `name`, as many as there may be at a time."""

    def __init__(self, name: str, limit: int, seconds: float) -> None:
        self.name = name
        self.limit = limit
        self.open: set[Unary | Streaming] = set()
        self.patience = Patience(seconds)


class Calls:
    """The calls of one door, each led to its method.

    Those that need no key are kept apart, so that whoever has none closes the door for nobody else.
    """

    def __init__(self, books: Books, access: Access | None, settings: GrpcSettings) -> None:
        self.books = books
        self.keyed = Kept("grpc.calls", settings.calls, settings.message_seconds)
        seconds = min(settings.message_seconds, OPEN_SECONDS)
        self.unkeyed = Kept("grpc.open_calls", settings.open_calls, seconds)
        self.unary: Mapping[str, Method] = {}
        self.streams: Mapping[str, Stream] = {}
        self.counted = ""
        """The path of the method that asks a model."""
        self._access = access

    def under_way(self) -> int:
        """How many there are, a stream being one."""
        return len(self.keyed.open) + len(self.unkeyed.open)

    def accept(self, incoming: Incoming) -> None:
        """See to a call: refuse it before its request is read, or read that."""
        path = incoming.path
        if self._access is not None:
            try:
                incoming.key = check(self._access, path, incoming.metadata)
            except errors.ServingError as error:
                incoming.key = getattr(error, "key", "")
                self.refuse(incoming, error)
                return
        unary, stream = self.unary.get(path), self.streams.get(path)
        kept = self.unkeyed if scope_of(path) is None else self.keyed
        if not unary and not stream:
            self.refuse(incoming, errors.Unsupported("there is no such method"))
        elif len(kept.open) >= kept.limit:
            words = f"{kept.limit} concurrent calls are answered already ({kept.name})"
            self.refuse(incoming, errors.Overloaded(words), grpc.StatusCode.RESOURCE_EXHAUSTED)
        elif unary:
            incoming.receive(Unary(self, kept, incoming, unary).asked)
        elif stream:
            Streaming(kept, incoming, stream)

    def named(self, metadata: Metadata) -> tuple[str, str]:
        """(request id, trace id) of a call: the client's id, where it can be sent back, or one of ours."""
        request_id = traceparent = ""
        for name, value in metadata:
            if name == "x-request-id":
                request_id = _sendable(value)
            elif name == "traceparent":
                traceparent = str(value)
        return request_id or self.books.new_id(), trace_id(traceparent) if traceparent else ""

    async def ended(self, seconds: float) -> None:
        """Wait so long at most for calls that were called off."""
        both = self.keyed.open | self.unkeyed.open
        tasks = [call.task for call in both if isinstance(call, Streaming)]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def refuse(
        self, incoming: Incoming, error: errors.ServingError, code: grpc.StatusCode | None = None
    ) -> None:
        """End a call of which nothing was read, with `code` where it is not what the error has."""
        usual, details = told(error)
        code = code or usual
        request_id, trace = self.named(incoming.metadata)
        self.books.note(
            *(None, GRPC, "GRPC", incoming.path, NAMES[code], request_id, trace),
            *(0, 0, time.perf_counter(), incoming.key, error.label),
        )
        incoming.end(code, details)


class Unary:
    """One call of a method with one answer. What goes wrong is a status, and a line of the log."""

    __slots__ = (
        *("_arrived", "_calls", "_kept", "_method", "_names", "_received", "_under_way"),
        *("call", "incoming"),
    )

    def __init__(self, calls: Calls, kept: Kept, incoming: Incoming, method: Method) -> None:
        self._calls = calls
        self._kept = kept
        self._method = method
        self._under_way: Cancellable | None = None
        self.incoming = incoming
        self.call = Call()
        kept.open.add(self)
        kept.patience.begin(self)
        incoming.left = self._left

    def asked(self, payload: bytes | None) -> None:
        """The request is here; none where the client sent no message, or one too large."""
        if not self._kept.patience.over(self):
            return
        if payload is None:
            self._kept.open.discard(self)
            self.incoming.end(grpc.StatusCode.UNIMPLEMENTED, "expected one message, got none")
            return
        self._arrived = time.perf_counter()
        self._received = len(payload)
        self._names = self._calls.named(self.incoming.metadata)
        try:
            if self._received > OPEN_BYTES and self._kept is self._calls.unkeyed:
                raise errors.InvalidRequest(
                    f"expected a message of at most {OPEN_BYTES} bytes, got {self._received}"
                )
            found = self._method(payload, self)
        except Exception as error:
            self.reply(error)
            return
        if isinstance(found, bytes):
            self.reply(found)
        else:
            self._under_way = self._awaited(found) if isinstance(found, Awaitable) else found

    def late(self) -> None:
        """Its message did not come in time."""
        self._kept.open.discard(self)
        self._calls.refuse(self.incoming, _late(self._kept))

    def reply(self, answer: bytes | Exception) -> None:
        """Answer, or say why not."""
        trailing: tuple[tuple[str, str], ...] = (("x-request-id", self._names[0]),)
        if isinstance(answer, bytes):
            self.incoming.answer(answer, trailing)
            self._over(OK, len(answer))
            return
        self.call.failed(answer)
        code, details = told(answer)
        if code is grpc.StatusCode.UNAVAILABLE:
            wait = str(getattr(answer, "retry_after", 1) * 1000)
            trailing += (("grpc-retry-pushback-ms", wait),)
        self.incoming.end(code, details, trailing)
        self._over(code, 0, errors.label_of(answer))

    def _awaited(self, answer: Awaitable[bytes]) -> Cancellable:
        async def wait() -> None:
            try:
                found: bytes | Exception = await answer
            except Exception as error:
                found = error
            self.reply(found)

        return asyncio.ensure_future(wait())

    def _left(self) -> None:
        """The client gave up."""
        if self._under_way is not None:
            self._under_way.cancel()
            self._over(given_up(self.call, self.incoming), 0, CLIENT_LEFT)
        else:
            self._kept.patience.over(self)
            self._kept.open.discard(self)

    def _over(self, code: grpc.StatusCode, sent: int, reason: str = "") -> None:
        self._kept.open.discard(self)
        self._under_way = None  # it knows of `reply`: a circle that only the collector would find
        path = self.incoming.path
        call = self.call if path == self._calls.counted else None
        request_id, trace = self._names
        self._calls.books.note(
            *(call, GRPC, "GRPC", path, NAMES[code], request_id, trace),
            *(self._received, sent, self._arrived, self.incoming.key, reason),
        )


class Streaming:
    """One call with messages both ways: a task, cancelled when the client gives up."""

    def __init__(self, kept: Kept, incoming: Incoming, stream: Stream) -> None:
        self._kept = kept
        self._incoming = incoming
        kept.open.add(self)
        self.task = asyncio.create_task(self._run(stream))
        incoming.left = self.task.cancel

    async def _run(self, stream: Stream) -> None:
        try:
            async with aclosing(stream(self._requests(), self._incoming)) as answers:
                async for answer in answers:
                    await self._send(answer)
            self._incoming.end(OK)
        except Exception as error:
            self._incoming.end(*told(error))
        finally:
            self._kept.open.discard(self)

    async def _requests(self) -> AsyncIterator[bytes]:
        while True:
            coming: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
            self._incoming.receive(_telling(coming))
            payload = await self._coming(coming)
            if payload is None:
                return
            yield payload

    async def _coming(self, payload: asyncio.Future[bytes | None]) -> bytes | None:
        """The next request. Who has a key may take all the time there is, as a stream is there for."""
        if self._kept.name == "grpc.calls":
            return await payload
        try:
            async with asyncio.timeout(self._kept.patience.seconds):
                return await payload
        except TimeoutError as error:
            raise _late(self._kept) from error

    async def _send(self, answer: bytes) -> None:
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._incoming.send(answer, _telling(sent))
        await sent


def _late(kept: Kept) -> errors.DeadlineExceeded:
    seconds = kept.patience.seconds
    return errors.DeadlineExceeded(f"no whole message came within {seconds:g} seconds")


def _sendable(request_id: str | bytes) -> str:
    """A request id as it came, or nothing: grpc fails a call whose metadata it cannot send."""
    text = request_id.decode("latin-1") if isinstance(request_id, bytes) else request_id
    return text if text.isascii() and text.isprintable() else ""


def _telling(future: asyncio.Future[Any]) -> Callable[[Any], None]:
    def tell(value: Any) -> None:
        if not future.done():
            future.set_result(value)

    return tell


def given_up(call: Call, incoming: Incoming) -> grpc.StatusCode:
    """How a call ended that the client gave up: by leaving, or because its time was over."""
    if incoming.time_remaining() <= 0:
        call.outcome = DEADLINE
        return grpc.StatusCode.DEADLINE_EXCEEDED
    call.outcome = CANCELLED
    return grpc.StatusCode.CANCELLED
