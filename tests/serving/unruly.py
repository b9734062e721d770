"""A server that misbehaves as told: a real listening socket, one script of behaviours."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator

Behaviour = Callable[["Talk"], Awaitable[None]]


class Talk:
    """One connection, as a behaviour sees it: a request has been read, its bytes are `request`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.request = b""
        self.body = b""

    async def read_request(self) -> bool:
        try:
            self.request = await self.reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"(?i)\r\ncontent-length: (\d+)", self.request)
            self.body = await self.reader.readexactly(int(found[1]) if found else 0)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        return True

    def reset(self) -> None:
        """Close with RST rather than FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Unruly:
    """Runs in a thread with its own loop. `script` holds what the next requests meet, in order;
    after it, `default`. `requests` and `connections` are what it saw."""

    def __init__(self, default: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self.default, self.script = default, list[Behaviour]()
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.open = 0
        self._tls = tls
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        talk = Talk(reader, writer)
        try:
            while not writer.is_closing() and await talk.read_request():
                self.requests.append((talk.request, talk.body))
                behaviour = self.script.pop(0) if self.script else self.default
                await behaviour(talk)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Unruly:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)


ANSWER = (
    b'{"model_name":"m","model_version":"1","outputs":'
    b'[{"name":"y","datatype":"FP32","shape":[1],"data":[2.5]}]}'
)


def says(status: int, body: bytes = ANSWER, *headers: str) -> Behaviour:
    """Answers with a status and a body."""

    async def behave(talk: Talk) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
        talk.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await talk.writer.drain()
        if "Connection: close" in headers:
            talk.writer.close()

    return behave


def error(status: int, message: str = "no", *headers: str) -> Behaviour:
    return says(status, b'{"error":"%b"}' % message.encode(), *headers)


def sends(payload: bytes, close: bool = True) -> Behaviour:
    """Writes these very bytes."""

    async def behave(talk: Talk) -> None:
        talk.writer.write(payload)
        with contextlib.suppress(ConnectionError):
            await talk.writer.drain()
        if close:
            talk.writer.close()

    return behave


def after(seconds: float, then: Behaviour) -> Behaviour:
    async def behave(talk: Talk) -> None:
        await asyncio.sleep(seconds)
        await then(talk)

    return behave


async def resets(talk: Talk) -> None:
    talk.reset()


async def closes(talk: Talk) -> None:
    talk.writer.close()


def trickles(payload: bytes, seconds: float) -> Behaviour:
    """One byte at a time: every read succeeds, the answer never ends in time."""

    async def behave(talk: Talk) -> None:
        for byte in payload:
            talk.writer.write(bytes([byte]))
            await talk.writer.drain()
            await asyncio.sleep(seconds)

    return behave


@contextlib.contextmanager
def unruly(default: Behaviour, tls: ssl.SSLContext | None = None) -> Iterator[Unruly]:
    with Unruly(default, tls) as server:
        yield server
