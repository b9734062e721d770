"""The client for asyncio: the same calls awaited, cancellable at any point."""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from numpy.typing import ArrayLike

from serving.client import calls
from serving.client.address import Address, parse
from serving.client.answers import Answer
from serving.client.blocking import IDLE_SECONDS, POLL_SECONDS
from serving.client.calls import Call, File, Parts
from serving.client.errors import (
    ClientError,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    ServerError,
    Unreachable,
    no_handshake,
    reason,
)
from serving.client.reading import AnswerReader, Malformed, Reply
from serving.client.retries import Retries
from serving.protocol import IndexEntry, ModelMetadata, Prediction

T = TypeVar("T")


class AsyncClient:
    """A server's client on an event loop, asyncio's own or uvloop's; `Client` says the settings.

    Any number of tasks may share it. Cancelling a call closes its connection and no other, which
    also tells the server that nobody waits any longer.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        connections: int = 64,
        key: str | None = None,
        ca: str | Path | None = None,
        certificate: tuple[str | Path, str | Path] | None = None,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        binary: bool = True,
        compress: bool = False,
        answer_bytes: int = 256 << 20,
    ) -> None:
        self._address = parse(url, key, ca, certificate, tls, headers, compress)
        self._timeout = timeout
        self._retries = retries
        self._binary, self._compress = binary, compress
        self._answer_bytes = answer_bytes
        self._pool = AsyncPool(self._address, connections, answer_bytes)

    @property
    def url(self) -> str:
        """The server's address."""
        return self._address.url

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """Run a model on named arrays, the batch first. `outputs` none asks for all of them."""
        return await self._call(
            calls.infer(model, inputs, outputs, version, request_id, self._binary), timeout
        )

    async def predict(
        self,
        model: str,
        file: File,
        version: str | int | None = None,
        invert: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Label and probabilities of a file, given by its path or as its bytes."""
        return await self._call(calls.predict(model, file, version, invert, request_id), timeout)

    async def metadata(
        self, model: str, version: str | int | None = None, timeout: float | None = None
    ) -> ModelMetadata:
        """What a model takes and gives, and where it comes from."""
        return await self._call(calls.metadata(model, version), timeout)

    async def server(self, timeout: float | None = None) -> dict[str, Any]:
        """The server's name, version and extensions."""
        return await self._call(calls.server(), timeout)

    async def models(self, timeout: float | None = None) -> list[str]:
        """The names of the server's models."""
        return await self._call(calls.models(), timeout)

    async def index(
        self, ready_only: bool = False, timeout: float | None = None
    ) -> list[IndexEntry]:
        """Every version of every model with its state."""
        return await self._call(calls.index(ready_only), timeout)

    async def live(self, timeout: float | None = None) -> bool:
        """Whether the server says it runs. Raises `Unreachable` where nobody says anything."""
        return await self._holds(calls.live(), timeout)

    async def ready(
        self,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Whether the server, or one model, takes requests now; asked once, never retried."""
        return await self._holds(calls.ready(model, version), timeout)

    async def wait_ready(
        self,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Return once the server, or one model, takes requests; see `Client.wait_ready`."""
        deadline, pause = self._deadline(timeout), POLL_SECONDS
        while True:
            try:
                return await self._once(calls.ready(model, version), deadline)
            except (Unreachable, Overloaded, NotFound) as failure:
                if isinstance(failure, Unreachable) and failure.permanent:
                    raise
                if time.monotonic() + pause >= deadline:
                    raise DeadlineExceeded(f"not ready in time: {failure}") from failure
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    async def load(self, model: str, timeout: float | None = None) -> None:
        """Have the server load a model, or load it anew. Not tried again once it was sent."""
        await self._call(calls.load(model), timeout)

    async def unload(self, model: str, timeout: float | None = None) -> None:
        """Have the server unload a model. Not tried again once it was sent."""
        await self._call(calls.unload(model), timeout)

    async def close(self) -> None:
        """Close the connections; those in use close when their calls end."""
        self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    async def _holds(self, call: Call[None], timeout: float | None) -> bool:
        try:
            await self._once(call, self._deadline(timeout))
        except Overloaded:
            return False
        return True

    async def _call(self, call: Call[T], timeout: float | None) -> T:
        retries = Retries(self._retries, self._deadline(timeout), call.idempotent)
        while True:
            try:
                return await self._once(call, retries.deadline)
            except ClientError as failure:
                wait = retries.wait(failure, time.monotonic())
            if wait:
                await asyncio.sleep(wait)

    async def _once(self, call: Call[T], deadline: float) -> T:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{call.what}: the time was over before it was sent")
        parts = calls.rendered(call, self._address, left, self._compress)
        try:
            async with asyncio.timeout(None if left == inf else left):
                reply = await self._pool.exchange(parts, fresh=not call.idempotent)
        except TimeoutError:
            raise DeadlineExceeded(f"{call.what}: no answer from {self.url} in time") from None
        except Malformed as error:
            raise ServerError(f"{call.what}: {error}") from None
        return calls.result(call, self._address, reply, time.time(), self._answer_bytes)


class AsyncPool:
    """Connections of one event loop to one address, at most so many, the latest used first."""

    def __init__(self, address: Address, limit: int, answer_bytes: int) -> None:
        self._address = address
        self._limit = limit
        self._answer_bytes = answer_bytes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(limit)
        self._idle: list[AsyncConnection] = []
        self._closed = False

    async def exchange(self, parts: Parts, fresh: bool) -> Reply:
        """Send a request and read its answer. Raises `Unreachable` and `Malformed`."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # `asyncio.run` once more: the old loop's connections are gone
            self._loop, self._free, self._idle = loop, asyncio.Semaphore(self._limit), []
        async with self._free:
            connection = None if fresh else self._reused()
            if connection is None:
                connection = await connect(self._address, self._answer_bytes)
            try:
                reply = await connection.exchange(parts)
            except BaseException:  # cancelled or late: an answer to come would be another's
                connection.close()
                raise
            if connection.reusable and not self._closed:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
            else:
                connection.close()
            return reply

    def _reused(self) -> AsyncConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.close()
        return None

    def close(self) -> None:
        """Close what is idle, and from now on whatever comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class AsyncConnection(asyncio.Protocol):
    """One transport, used by one call at a time."""

    def __init__(self, answer_bytes: int) -> None:
        self._reader = AnswerReader(answer_bytes)
        self._transport: asyncio.Transport
        self._poll = select.poll()
        self._waiting: asyncio.Future[Reply] | None = None
        self._lost = False
        self.idle_since = -inf
        self.reusable = False

    def usable(self) -> bool:
        """Whether the other side kept it. A busy loop may not have read yet that it did not."""
        return (
            not self._lost
            and time.monotonic() < self.idle_since + IDLE_SECONDS
            and not self._poll.poll(0)
        )

    async def exchange(self, parts: Parts) -> Reply:
        """Raises `Unreachable` and `Malformed`; the connection is then spent."""
        self._reader.begin()
        self._waiting = asyncio.get_running_loop().create_future()
        if self._lost:
            self.connection_lost(None)
        else:
            # One piece: the transport may keep what it cannot send, and arrays may change.
            self._transport.write(b"".join(parts) if len(parts) > 1 else parts[0])
        reply = await self._waiting
        unsent = self._transport.get_write_buffer_size()
        self.reusable = self._reader.reusable and not unsent and not self._lost
        return reply

    def close(self) -> None:
        """Close at once."""
        self._lost = True
        self._transport.abort()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit it
        self._poll.register(transport.get_extra_info("socket"), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self.close()  # nobody asked: what came cannot be told from the next answer
            return
        try:
            reply = self._reader.feed(data)
        except Malformed as error:
            self._waiting.set_exception(error)
            return
        if reply is not None:
            self._waiting.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if self._waiting is None or self._waiting.done():
            return
        reply = self._reader.end()
        if reply is not None:
            self._waiting.set_result(reply)
            return
        started = self._reader.started
        told = reason(error) if error else "the server closed the connection"
        self._waiting.set_exception(
            Unreachable(
                f"{told} {'within' if started else 'before'} the answer",
                sent=True,
                stale=self.idle_since > -inf and not started,
            )
        )


async def connect(address: Address, answer_bytes: int) -> AsyncConnection:
    """Raises `Unreachable`."""
    where = f"{address.host}:{address.port}"
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(
            lambda: AsyncConnection(answer_bytes),
            address.host,
            address.port,
            ssl=address.tls,
            server_hostname=address.host if address.tls else None,
        )
    except ssl.SSLError as error:
        raise no_handshake(where, error) from None
    except TimeoutError as error:  # the system's, not the call's
        raise Unreachable(f"{where}: {reason(error)}") from None
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{where}: {reason(error)}; is the server running?") from None
    return connection
