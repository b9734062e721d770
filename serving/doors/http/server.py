"""HTTP/1.1 on asyncio: the connections, their order, their deadlines and their end.

Requests of one connection are answered one after the other, in order; what is read ahead is
bounded. Every wait has a deadline, kept by one sweep over all connections instead of a timer each.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from math import inf
from typing import Any, cast

from serving.config import HttpSettings
from serving.doors.http.exchange import Handler, Request, Response, failure
from serving.doors.http.reader import Guard, Heads, Reading, RequestReader
from serving.doors.offload import Cancellable
from serving.doors.tls import Certificates
from serving.observability.accounting import Books
from serving.observability.cells import HTTP
from serving.observability.tracing import trace_id
from serving.system.malloc import release_memory
from serving.system.sockets import admit_again, admit_no_more
from serving.telemetry import log

SWEEP_SECONDS = 0.25
LINGER_SECONDS = 2.0
"""How long a refused client may go on sending: closed at once, it would miss the refusal."""

GRACE_SECONDS = 0.5
"""How long idle connections stay when leaving: a request may be on its way already."""

CROWD = 64
"""Connections let in at one turn of the event loop, beside the one that the loop takes in itself."""

FAREWELL_SECONDS = 0.5
"""How long an idle TLS client has to answer that the connection is closed."""

FLUSH_SECONDS = 1.0
"""How long, at the end, the reader of the log may take to read its last lines."""

HANDSHAKE_SECONDS = 0.1
"""How long a closing door waits for who has knocked already: a round trip."""

JOIN_BYTES = 64 << 10
"""Answers up to this size are sent as one piece; larger ones are not copied together."""

LARGE_BYTES = 4 << 20
"""Once a body of this size is let go, the memory that bodies took is given back to the system."""

RELEASE_SECONDS = 2.0
"""And this often at most: under steady large bodies it would only be fetched again."""

CLOSE, KEEP_ALIVE = b"Connection: close\r\n", b"Connection: keep-alive\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client. Everything here happens on the event loop."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.settings
        self._loop = server.loop
        self._transport: asyncio.Transport
        self._reader = RequestReader(server.settings, server.heads, server.guard)
        self._waiting: deque[Request | Response] = deque()
        self._answering: Request | None = None
        self._handling: Cancellable | None = None
        self._held = 0
        self._starting = False
        self._paused_reading = False
        self._paused_writing = False
        self._unsent = 0
        self._read_deadline = inf
        self._write_deadline = inf

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit it
        self._tls = transport.get_extra_info("ssl_object") is not None
        self._read_deadline = self._loop.time() + self._limits.idle_seconds
        if not self._server.admit(self):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")

    def data_received(self, data: bytes) -> None:
        before = self._reader.state
        if before is Reading.CLOSED:
            return
        found = self._reader.feed(data)
        if found:
            now = time.perf_counter()
            for item in found:
                if type(item) is Request:
                    item.arrived = now
            self._waiting.extend(found)
        if found or self._reader.state is not before:
            self._set_read_deadline()
        if self._reader.continue_wanted and not self._busy:
            # Only where it cannot overtake an answer; the client sends after a moment anyway.
            self._reader.continue_wanted = False
            self._transport.write(CONTINUE)
        if len(self._waiting) >= self._limits.pipelined and not self._paused_reading:
            self._paused_reading = True
            self._transport.pause_reading()
            self._read_deadline = inf  # the client cannot help it
        self._count_held()
        if self._reader.state is Reading.BODY and self._server.held > self._limits.held_bytes:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"requests that are not answered yet hold {self._server.held} bytes, at most "
                f"{self._limits.held_bytes} may (setting http.held_bytes)",
            )
        self._answer_next()

    def eof_received(self) -> bool:
        """The client sends no more, yet may still read: its last answers are worth sending."""
        self._stop_reading()
        return self._busy and not self._tls  # TLS has no half-closed connections

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_reading()
        self._waiting.clear()
        asked, self._answering = self._answering, None
        self._count_held()
        self._count_unsent(0)
        if self._handling:
            self._handling.cancel()
        if asked:
            self._note_cancelled(asked)
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._paused_writing = True
        self._count_unsent(self._transport.get_write_buffer_size())
        self._write_deadline = self._loop.time() + self._limits.write_seconds
        if self._server.held > self._limits.held_bytes:
            self._transport.abort()  # there is no room to keep what it does not read

    def resume_writing(self) -> None:
        self._paused_writing = False
        self._count_unsent(0)
        self._write_deadline = inf
        self._answer_next()

    # The reading side

    def _set_read_deadline(self) -> None:
        state = self._reader.state
        if state is Reading.HEAD:
            self._read_deadline = self._loop.time() + self._limits.header_seconds
        elif state is Reading.BODY:
            self._read_deadline = self._loop.time() + self._limits.body_seconds
        else:  # nothing is awaited until the answers are out
            self._read_deadline = inf

    def _count_held(self) -> None:
        """Keep the server's sum of the bodies that wait for their end, their turn or an answer."""
        held = self._reader.held
        if self._answering:
            held += len(self._answering.body) + self._answering.inflated
        for item in self._waiting:
            if type(item) is Request:
                held += len(item.body)
        if self._held - held > LARGE_BYTES:
            self._server.let_go = True
        self._server.held += held - self._held
        self._held = held

    def _hold_inflated(self) -> bool:
        """Count what the body in hand has become, too; false where that is too much."""
        self._count_held()
        return self._server.held <= self._limits.held_bytes

    def _count_unsent(self, size: int) -> None:
        """Answers that wait for a client to read them are held as bodies are."""
        self._server.held += size - self._unsent
        self._unsent = size

    def _stop_reading(self) -> None:
        self._reader.close()
        self._read_deadline = inf

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """The last thing this connection is told, after the answers that are still due."""
        headers = (("Retry-After", "1"),) if status is HTTPStatus.SERVICE_UNAVAILABLE else ()
        self._stop_reading()
        self._count_held()
        self._waiting.append(failure(status, message, headers))
        self._answer_next()

    # The answering side

    @property
    def _busy(self) -> bool:
        return self._answering is not None or bool(self._waiting)

    def _answer_next(self) -> None:
        while self._waiting and self._answering is None and not self._paused_writing:
            if self._transport.is_closing():
                return
            due = self._waiting.popleft()
            if isinstance(due, Response):
                self._send(due, None, close=True)
                self._linger()
                return
            self._answering = due
            if "content-encoding" in due.headers:
                due.hold = self._hold_inflated
            self._starting = (
                True  # an answer that comes at once must not start the next from within
            )
            try:
                self._handling = self._server.handler(due, self._answered)
            except Exception as error:  # a handler answers for itself; this is the last net
                self._answered(_internal(error))
            self._starting = False
        if self._paused_reading and len(self._waiting) < self._limits.pipelined:
            self._paused_reading = False
            self._transport.resume_reading()
            self._set_read_deadline()

    def _answered(self, answer: Response) -> None:
        """The reply that handlers call; for a client that has gone it does nothing."""
        asked = self._answering
        if asked is None:
            return
        self._answering = self._handling = None
        size = len(asked.body) + asked.inflated
        if size > LARGE_BYTES:
            self._server.let_go = True
        self._server.held -= size
        self._held -= size
        reading = self._reader.state
        last = not self._waiting and (self._server.draining or reading is Reading.CLOSED)
        try:
            if last or not asked.keep_alive:
                self._send(answer, asked, close=True)
                self._waiting.clear()
                self._stop_reading()
                self._transport.close()
                return
            self._send(answer, asked, close=False)
            if self._waiting:
                if not self._starting:
                    self._answer_next()
            elif reading is Reading.IDLE:
                self._read_deadline = self._loop.time() + self._limits.idle_seconds
        except Exception as error:  # a defect of ours: better cut off than left waiting for ever
            log("error", "internal error", kind=type(error).__name__, where="an answer's end")
            self._transport.abort()

    def _send(self, answer: Response, asked: Request | None, close: bool) -> None:
        if self._transport.is_closing():
            if asked:
                self._note_cancelled(asked)
            return
        size = 0
        for part in answer.body:
            size += len(part)
        head = b"%b%b%d\r\n%b%b" % (
            _start(answer.status, answer.content_type),
            self._server.date,
            size,
            _fields(answer.headers) if answer.headers else b"",
            CLOSE if close else KEEP_ALIVE,
        )
        books = self._server.books
        request_id = (asked.headers.get("x-request-id") if asked else "") or books.new_id()
        head = b"%bX-Request-ID: %b\r\n" % (head, request_id.encode("latin-1"))
        traceparent = asked.headers.get("traceparent") if asked else None
        trace = trace_id(traceparent) if traceparent else ""
        if traceparent and trace:
            head = b"%bTraceparent: %b\r\n" % (head, traceparent.encode("latin-1"))
        if asked and asked.method == "HEAD":
            self._transport.write(head + b"\r\n")
        elif size <= JOIN_BYTES:
            self._transport.write(b"".join((head, b"\r\n", *answer.body)))
        else:
            self._transport.writelines((head, b"\r\n", *answer.body))
        if asked:
            books.note(
                *(asked.call, HTTP, asked.method, asked.path, answer.status, request_id, trace),
                *(len(asked.body), size, asked.arrived),
            )
        else:  # refused before it was a whole request
            books.note(
                None, HTTP, "", "", answer.status, request_id, "", 0, size, time.perf_counter()
            )

    def _note_cancelled(self, asked: Request) -> None:
        """The client left before the answer."""
        books, headers = self._server.books, asked.headers
        request_id = headers.get("x-request-id") or books.new_id()
        trace = trace_id(headers.get("traceparent", ""))
        if asked.call:
            books.cancelled(
                *(asked.call, HTTP, asked.method, asked.path, request_id, trace),
                *(len(asked.body), asked.arrived),
            )

    def _linger(self) -> None:
        """Say that no more comes, and let the client finish sending into the void."""
        self._stop_reading()
        if self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._read_deadline = self._loop.time() + LINGER_SECONDS

    # The server's sweep and end

    def sweep(self, now: float) -> None:
        """Act on the deadlines that have passed."""
        if now > self._write_deadline:
            unsent = self._transport.get_write_buffer_size()
            if unsent >= self._unsent:
                self._transport.abort()
                return
            self._count_unsent(unsent)
            self._write_deadline = now + self._limits.write_seconds
        if now <= self._read_deadline:
            return
        match self._reader.state:
            case Reading.IDLE:
                self._close_idle()
            case Reading.CLOSED:
                self._transport.abort()
            case Reading.HEAD:
                self._late("headers", self._limits.header_seconds)
            case Reading.BODY:
                self._late("body", self._limits.body_seconds)

    def _late(self, what: str, seconds: float) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the {what} did not arrive within {seconds:g} s")

    @property
    def answering(self) -> bool:
        """Whether a request of this client is in hand now."""
        return self._answering is not None

    def leave(self) -> None:
        """Close if nothing is on its way in or out; else the last answer due is the last."""
        idle = self._reader.state is Reading.IDLE and self._loop.time() >= self._server.grace_end
        if not self._busy and (idle or self._reader.state is Reading.CLOSED):
            self._stop_reading()
            self._close_idle()

    def _close_idle(self) -> None:
        """Close with nothing left to send, and wait for no farewell: idle clients do not read."""
        self._transport.close()
        if self._tls:
            self._loop.call_later(FAREWELL_SECONDS, self._transport.abort)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


class HttpServer:
    """The listening socket and the connections it brought."""

    def __init__(
        self,
        handler: Handler,
        settings: HttpSettings,
        books: Books,
        guard: Guard | None = None,
    ) -> None:
        self.handler = handler
        self.settings = settings
        self.guard = guard
        self.books = books
        self.loop = asyncio.get_running_loop()
        self.draining = False
        self.grace_end = inf
        self.date = _date()
        self.heads: Heads = {}
        self.held = 0
        self.let_go = False
        self._release_at = 0.0
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._sock: socket.socket | None = None
        self._tls: dict[str, Any] = {}
        """What the loop is told of TLS for each connection."""
        self._crowd = False
        """Whether those who wait at the door are about to be let in."""
        self._arriving: set[asyncio.Task[None]] = set()
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    async def start(self, sock: socket.socket, tls: Certificates | None = None) -> None:
        """Accept connections on a bound socket, over TLS where there are certificates."""
        self._sock = sock
        if tls:
            self._tls = {
                "ssl": tls,
                "ssl_handshake_timeout": tls.handshake_seconds,
                # Sending what is left is part of a shutdown: as patient as with any slow reader.
                "ssl_shutdown_timeout": self.settings.write_seconds,
            }
        admit_again(sock)
        self._listener = await self.loop.create_server(
            self._arrived, sock=sock, backlog=self.settings.backlog, **self._tls
        )

    def _arrived(self) -> Connection:
        """A connection; whoever waits behind it is let in at the same turn of the loop.

        libuv takes in one at a turn, and a turn can be a whole batch long: of a crowd that comes to
        a busy server the last would wait for seconds, while those inside are served again and again.
        """
        if not self._crowd and not self.draining:
            self._crowd = True
            self.loop.call_soon(self._let_crowd_in)
        return Connection(self)

    def _let_crowd_in(self) -> None:
        self._crowd = False
        if not self.draining:
            for accepted in self._waiting_at_the_door(CROWD):
                task = self.loop.create_task(self._let_in(accepted))
                self._arriving.add(task)
                task.add_done_callback(self._arriving.discard)

    def admit(self, connection: Connection) -> bool:
        """Count a connection in; false where there are too many."""
        self._connections.add(connection)
        if len(self._connections) <= self.settings.connections:
            return True
        self.books.metrics.refused()
        return False

    def forget(self, connection: Connection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)

    async def drain(self, seconds: float) -> bool:
        """Stop accepting, let what is in flight finish, then close. False if time ran out."""
        self.draining = True
        if self._listener and self._sock:
            if seconds and admit_no_more(self._sock):
                await asyncio.sleep(min(HANDSHAKE_SECONDS, seconds / 4))
            waiting = self._waiting_at_the_door(self.settings.backlog)
            self._listener.close()  # nothing in between: who came then would be cut off
            await asyncio.gather(*map(self._let_in, waiting))
        end = self.loop.time() + seconds
        self.grace_end = self.loop.time() + min(GRACE_SECONDS, seconds / 2)
        while self._connections and self.loop.time() < end:
            for connection in list(self._connections):
                connection.leave()
            await asyncio.sleep(0.02)
        clean = not self._connections
        for connection in list(self._connections):
            connection.abort()
        self._sweeper.cancel()
        self.books.close(FLUSH_SECONDS)
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
            await self.loop.connect_accepted_socket(lambda: Connection(self), accepted, **self._tls)

    def sample(self) -> None:
        """Say how many connections are open, and how many of them wait for an answer."""
        metrics = self.books.metrics
        metrics.connections(len(self._connections))
        metrics.in_flight(HTTP, sum(connection.answering for connection in self._connections))

    def _sweep(self) -> None:
        # First of all: whatever fails in here, the deadlines go on being kept.
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)
        now = self.loop.time()
        self.date = _date()
        for connection in list(self._connections):
            try:
                connection.sweep(now)
            except Exception as error:
                log("error", "internal error", kind=type(error).__name__, where="a deadline")
                connection.abort()
        if self.let_go and self.held < LARGE_BYTES and now >= self._release_at:
            self.let_go, self._release_at = False, now + RELEASE_SECONDS
            release_memory()
        self.books.tick()


@lru_cache(maxsize=256)
def _fields(headers: tuple[tuple[str, str], ...]) -> bytes:
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)


@lru_cache(maxsize=256)
def _start(status: int, content_type: str) -> bytes:
    """Everything of an answer's head that depends on nothing else; ends within the date."""
    phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {content_type}\r\nDate: ".encode()


def _date() -> bytes:
    return f"{formatdate(usegmt=True)}\r\nContent-Length: ".encode()


def _internal(error: BaseException) -> Response:
    log("error", "internal error", kind=type(error).__name__)
    return failure(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log has it")
