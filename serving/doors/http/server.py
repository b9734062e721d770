"""HTTP/1.1 on asyncio: the listening socket, the connections it brings, and leaving.

Every wait has a deadline, kept by one sweep over all connections instead of a timer each.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

from serving.config import HttpSettings
from serving.doors.http.answer_head import date_lines
from serving.doors.http.connection import Connection
from serving.doors.http.exchange import Handler
from serving.doors.http.reader import Guard
from serving.doors.http.shared import Shared
from serving.doors.tls import Certificates
from serving.observability.accounting import Books
from serving.observability.cells import HTTP
from serving.system.sockets import admit_again, admit_no_more
from serving.telemetry import log

SWEEP_SECONDS = 0.25

GRACE_SECONDS = 0.5
"""How long idle connections stay when leaving: a request may be on its way already."""

CROWD = 64
"""Connections let in at one turn of the event loop, beside the one that the loop takes in itself."""

FLUSH_SECONDS = 1.0
"""How long, at the end, the reader of the log may take to read its last lines."""

HANDSHAKE_SECONDS = 0.1
"""How long a closing door waits for who has knocked already: a round trip."""


class HttpServer:
    """The listening socket and the connections it brought."""

    def __init__(
        self,
        handler: Handler,
        settings: HttpSettings,
        books: Books,
        guard: Guard | None = None,
    ) -> None:
        self._shared = Shared(handler, settings, books, guard, asyncio.get_running_loop())
        self._settings = settings
        self._books = books
        self._loop = self._shared.loop
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._sock: socket.socket | None = None
        self._tls: dict[str, Any] = {}
        """What the loop is told of TLS for each connection."""
        self._crowd = False
        """Whether those who wait at the door are about to be let in."""
        self._arriving: set[asyncio.Task[None]] = set()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    async def start(self, sock: socket.socket, tls: Certificates | None = None) -> None:
        """Accept connections on a bound socket, over TLS where there are certificates."""
        self._sock = sock
        if tls:
            self._tls = {
                "ssl": tls,
                "ssl_handshake_timeout": tls.handshake_seconds,
                # Sending what is left is part of a shutdown: as patient as with any slow reader.
                "ssl_shutdown_timeout": self._settings.write_seconds,
            }
        admit_again(sock)
        self._listener = await self._loop.create_server(
            self._arrived, sock=sock, backlog=self._settings.backlog, **self._tls
        )

    def _arrived(self) -> Connection:
        """A connection; whoever waits behind it is let in at the same turn of the loop.

        libuv takes in one at a turn, and a turn can be a whole batch long: of a crowd that comes to
        a busy server the last would wait for seconds, while those inside are served again and again.
        """
        if not self._crowd and not self._shared.draining:
            self._crowd = True
            self._loop.call_soon(self._let_crowd_in)
        return self._connection()

    def _connection(self) -> Connection:
        return Connection(self._shared, self._connections)

    def _let_crowd_in(self) -> None:
        self._crowd = False
        if not self._shared.draining:
            for accepted in self._waiting_at_the_door(CROWD):
                task = self._loop.create_task(self._let_in(accepted))
                self._arriving.add(task)
                task.add_done_callback(self._arriving.discard)

    async def drain(self, seconds: float) -> bool:
        """Stop accepting, let what is in flight finish, then close. False if time ran out."""
        self._shared.draining = True
        if self._listener and self._sock:
            if seconds and admit_no_more(self._sock):
                await asyncio.sleep(min(HANDSHAKE_SECONDS, seconds / 4))
            waiting = self._waiting_at_the_door(self._settings.backlog)
            self._listener.close()  # nothing in between: who came then would be cut off
            await asyncio.gather(*map(self._let_in, waiting))
        end = self._loop.time() + seconds
        self._shared.grace_end = self._loop.time() + min(GRACE_SECONDS, seconds / 2)
        while self._connections and self._loop.time() < end:
            for connection in list(self._connections):
                connection.leave()
            await asyncio.sleep(0.02)
        clean = not self._connections
        for connection in list(self._connections):
            connection.abort()
        self._sweeper.cancel()
        self._books.close(FLUSH_SECONDS)
        return clean

    def _waiting_at_the_door(self, most: int) -> list[socket.socket]:
        """Take in who waits there: at a closing door the kernel would cut them off mid-request."""
        waiting: list[socket.socket] = []
        with suppress(OSError):  # nobody is left
            while self._sock and len(waiting) < most:
                waiting.append(self._sock.accept()[0])
        return waiting

    async def _let_in(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        with suppress(OSError):
            await self._loop.connect_accepted_socket(self._connection, accepted, **self._tls)

    @property
    def held(self) -> int:
        """Bytes of the requests and answers that wait here."""
        return self._shared.held

    def sample(self) -> None:
        """Say how many connections are open, and how many of them wait for an answer."""
        metrics = self._books.metrics
        metrics.connections(len(self._connections))
        metrics.in_flight(HTTP, sum(connection.answering for connection in self._connections))

    def _sweep(self) -> None:
        # First of all: whatever fails in here, the deadlines go on being kept.
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        now = self._loop.time()
        self._shared.date = date_lines()
        for connection in list(self._connections):
            try:
                connection.sweep(now)
            except Exception as error:
                log("error", "internal error", kind=type(error).__name__, where="a deadline")
                connection.abort()
        self._shared.give_back(now)
        self._books.tick()
