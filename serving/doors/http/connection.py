"""One connection of HTTP/1.1: what is read from it, in which order it is answered, and its end.

Its requests are answered one after the other, in order; what is read ahead is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from http import HTTPStatus
from math import inf
from typing import cast

from serving.doors.http.answer_head import CLOSE, KEEP_ALIVE, first_lines, more_lines
from serving.doors.http.exchange import Request, Response, failure
from serving.doors.http.reader import Reading, RequestReader
from serving.doors.http.shared import LARGE_BYTES, Shared
from serving.doors.http.status import failed
from serving.doors.offload import Cancellable
from serving.errors import Overloaded
from serving.observability.cells import HTTP
from serving.observability.tracing import trace_id
from serving.telemetry import log

LINGER_SECONDS = 2.0
"""How long a refused client may go on sending: closed at once, it would miss the refusal."""

FAREWELL_SECONDS = 0.5
"""How long an idle TLS client has to answer that the connection is closed."""

JOIN_BYTES = 64 << 10
"""Answers up to this size are sent as one piece; larger ones are not copied together."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client, beside `everyone` else's. Everything here happens on the event loop."""

    def __init__(self, shared: Shared, everyone: set[Connection]) -> None:
        self._shared = shared
        self._everyone = everyone
        self._limits = shared.settings
        self._loop = shared.loop
        self._transport: asyncio.Transport
        self._reader = RequestReader(shared.settings, shared.heads, shared.guard)
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
        self._everyone.add(self)
        if len(self._everyone) > self._limits.connections:
            self._shared.books.metrics.refused()
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
        if self._reader.state is Reading.BODY and self._shared.held > self._limits.held_bytes:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"requests that are not answered yet hold {self._shared.held} bytes, at most "
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
        self._everyone.discard(self)

    def pause_writing(self) -> None:
        self._paused_writing = True
        self._count_unsent(self._transport.get_write_buffer_size())
        self._write_deadline = self._loop.time() + self._limits.write_seconds
        if self._shared.held > self._limits.held_bytes:
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
            self._shared.let_go = True
        self._shared.held += held - self._held
        self._held = held

    def _hold_inflated(self) -> bool:
        """Count what the body in hand has become, too; false where that is too much."""
        self._count_held()
        return self._shared.held <= self._limits.held_bytes

    def _count_unsent(self, size: int) -> None:
        """Answers that wait for a client to read them are held as bodies are."""
        self._shared.held += size - self._unsent
        self._unsent = size

    def _stop_reading(self) -> None:
        self._reader.close()
        self._read_deadline = inf

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """The last thing this connection is told, after the answers that are still due."""
        crowded = status is HTTPStatus.SERVICE_UNAVAILABLE
        headers, reason = ((("Retry-After", "1"),), Overloaded.label) if crowded else ((), "")
        self._stop_reading()
        self._count_held()
        self._waiting.append(failure(status, message, headers, reason))
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
                self._handling = self._shared.handler(due, self._answered)
            except Exception as error:  # a handler answers for itself; this is the last net
                self._answered(failed(error))
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
            self._shared.let_go = True
        self._shared.held -= size
        self._held -= size
        reading = self._reader.state
        last = not self._waiting and (self._shared.draining or reading is Reading.CLOSED)
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
            first_lines(answer.status, answer.content_type),
            self._shared.date,
            size,
            more_lines(answer.headers) if answer.headers else b"",
            CLOSE if close else KEEP_ALIVE,
        )
        books = self._shared.books
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
                *(len(asked.body), size, asked.arrived, asked.key, answer.reason),
            )
        else:  # refused before it was a whole request
            books.note(
                *(None, HTTP, "", "", answer.status, request_id, "", 0, size, time.perf_counter()),
                *(answer.key, answer.reason),
            )

    def _note_cancelled(self, asked: Request) -> None:
        """The client left before the answer."""
        books, headers = self._shared.books, asked.headers
        request_id = headers.get("x-request-id") or books.new_id()
        trace = trace_id(headers.get("traceparent", ""))
        if asked.call:
            books.cancelled(
                *(asked.call, HTTP, asked.method, asked.path, request_id, trace),
                *(len(asked.body), asked.arrived, asked.key),
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
        idle = self._reader.state is Reading.IDLE and self._loop.time() >= self._shared.grace_end
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
