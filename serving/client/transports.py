"""A pool of keep-alive connections for an event loop, asyncio's own or uvloop's."""

from __future__ import annotations

import asyncio
import select
import ssl
from typing import cast

from serving.client.address import Address
from serving.client.calls import Parts
from serving.client.errors import Unreachable, no_handshake, reason
from serving.client.kept import Idle, Kept
from serving.client.reading import Malformed, Reply


class Pool:
    """Connections of one event loop to one address, at most so many, the latest used first."""

    def __init__(self, address: Address, limit: int, answer_bytes: int) -> None:
        self._address = address
        self._limit = limit
        self._answer_bytes = answer_bytes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(limit)
        self._idle: Idle[Connection] = Idle()

    async def exchange(self, parts: Parts, fresh: bool) -> Reply:
        """Send a request and read its answer. Raises `Unreachable` and `Malformed`."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # `asyncio.run` once more: the old loop's connections are gone
            self._loop, self._free = loop, asyncio.Semaphore(self._limit)
            self._idle.forget()
        async with self._free:
            connection = None if fresh else self._idle.take()
            if connection is None:
                connection = await connect(self._address, self._answer_bytes)
            try:
                reply = await connection.exchange(parts)
            except BaseException:  # cancelled or late: an answer to come would be another's
                connection.close()
                raise
            self._idle.put(connection)
            return reply

    def close(self) -> None:
        """Close what is idle, and from now on whatever comes back."""
        self._idle.close()


class Connection(Kept, asyncio.Protocol):
    """One transport."""

    def __init__(self, answer_bytes: int) -> None:
        super().__init__(answer_bytes)
        self._transport: asyncio.Transport
        self._waiting: asyncio.Future[Reply] | None = None
        self._lost = False

    def usable(self) -> bool:
        """Whether the other side kept it. A busy loop may not have read yet that it did not."""
        return not self._lost and super().usable()

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
        told = reason(error) if error else "the server closed the connection"
        self._waiting.set_exception(self._cut_off(told))


async def connect(address: Address, answer_bytes: int) -> Connection:
    """Raises `Unreachable`."""
    where = f"{address.host}:{address.port}"
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(
            lambda: Connection(answer_bytes),
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
